/* JPEG by libjpeg-turbo (or libjpeg). See image_file.h. */
#include "image_file.h"

#include <stdio.h>

#if !defined(HAVE_JPEG)

int image_decode_jpeg(const uint8_t *bytes, size_t size, bool header_only, image_pixels *image, char why[IMAGE_WHY]) {
    (void)bytes, (void)size, (void)header_only, (void)image;
    snprintf(why, IMAGE_WHY, "a JPEG file, which this program was built without");
    return -1;
}

#else

#include <jerror.h>
#include <jpeglib.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#define MOST_SCANS 100 /* of a progressive file: each can cost as much time as a whole image */
#define TAG_ORIENTATION 0x0112

/* Everything that must survive a longjmp lies here. */
typedef struct jpeg_job {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
    char *why;
    image_pixels *image;
    uint8_t *row; /* of a file with four inks */
} jpeg_job;

static void give_up(j_common_ptr common) {
    jpeg_job *job = common->client_data;
    char message[JMSG_LENGTH_MAX];
    common->err->format_message(common, message);
    snprintf(job->why, IMAGE_WHY, "%.*s", IMAGE_WHY - 1, message);
    longjmp(job->escape, 1);
}

/* Most warnings tell of missing or wrong pixels, and are failures. */
static void on_message(j_common_ptr common, int level) {
    static const int harmless[] = {JWRN_ADOBE_XFORM,    JWRN_BOGUS_PROGRESSION, JWRN_EXTRANEOUS_DATA,
                                   JWRN_JFIF_MAJOR,     JWRN_NOT_SEQUENTIAL,    JWRN_TOO_MUCH_DATA};
    for (size_t i = 0; i < sizeof harmless / sizeof harmless[0]; i++) {
        if (common->err->msg_code == harmless[i]) {
            return;
        }
    }
    if (level < 0) {
        give_up(common);
    }
}

static void drop_message(j_common_ptr common) {
    (void)common;
}

static void on_progress(j_common_ptr common) {
    jpeg_job *job = common->client_data;
    if (job->jpeg.input_scan_number > MOST_SCANS) {
        snprintf(job->why, IMAGE_WHY, "more than %d scans", MOST_SCANS);
        longjmp(job->escape, 1);
    }
}

/* ---- orientation --------------------------------------------------------------------------- */

static uint32_t number(const uint8_t *at, size_t bytes, bool big_endian) {
    uint32_t value = 0;
    for (size_t i = 0; i < bytes; i++) {
        value |= (uint32_t)at[i] << 8 * (big_endian ? bytes - 1 - i : i);
    }
    return value;
}

/* The orientation, 1 to 8, in a marker with EXIF data (TIFF: byte order, 42, place of a table of 12-byte entries). */
static int orientation_in(const uint8_t *data, size_t length) {
    if (length < 14 || memcmp(data, "Exif\0\0", 6) != 0) {
        return 1;
    }
    const uint8_t *tiff = data + 6;
    size_t room = length - 6;
    bool big_endian = tiff[0] == 'M';
    size_t table = number(tiff + 4, 4, big_endian);
    if ((memcmp(tiff, "II", 2) != 0 && memcmp(tiff, "MM", 2) != 0) || number(tiff + 2, 2, big_endian) != 42 ||
        table > room - 2) {
        return 1;
    }
    size_t entries = number(tiff + table, 2, big_endian);
    for (size_t i = 0; i < entries && table + 2 + 12 * (i + 1) <= room; i++) {
        const uint8_t *entry = tiff + table + 2 + 12 * i;
        if (number(entry, 2, big_endian) == TAG_ORIENTATION && number(entry + 2, 2, big_endian) == 3) {
            uint32_t value = number(entry + 8, 2, big_endian);
            return value >= 1 && value <= 8 ? (int)value : 1;
        }
    }
    return 1;
}

/* Turns the image upright; `orientation` says where its first row and column belong. */
static int turn(image_pixels *image, int orientation, char *why) {
    image_pixels to;
    bool sides = orientation >= 5;
    size_t width = image->width, height = image->height, channels = (size_t)image->channels;
    if (orientation == 1) {
        return 0;
    }
    if (image_allocate(&to, sides ? height : width, sides ? width : height, image->channels, why) != 0) {
        return -1;
    }
    for (size_t y = 0; y < to.height; y++) {
        for (size_t x = 0; x < to.width; x++) {
            size_t from_x = sides ? y : x, from_y = sides ? x : y;
            if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) {
                from_x = width - 1 - from_x;
            }
            if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) {
                from_y = height - 1 - from_y;
            }
            memcpy(to.pixels + (y * to.width + x) * channels, image->pixels + (from_y * width + from_x) * channels,
                   channels);
        }
    }
    image_free(image);
    *image = to;
    return 0;
}

/* ---- decoding ------------------------------------------------------------------------------ */

/* Cyan, magenta, yellow, black: Adobe writes them inverted, as all programs that follow it expect. */
static void inks_to_colors(const uint8_t *inks, size_t width, bool inverted, uint8_t *to) {
    for (size_t i = 0; i < width; i++) {
        unsigned black = inverted ? inks[4 * i + 3] : 255u - inks[4 * i + 3];
        for (size_t c = 0; c < 3; c++) {
            unsigned ink = inverted ? inks[4 * i + c] : 255u - inks[4 * i + c];
            to[3 * i + c] = (uint8_t)((ink * black + 127) / 255);
        }
    }
}

/* Without local variables that a longjmp could lose. */
static int decode(jpeg_job *job, const uint8_t *bytes, size_t size, bool header_only) {
    struct jpeg_decompress_struct *jpeg = &job->jpeg;
    jpeg_mem_src(jpeg, bytes, (unsigned long)size);
    jpeg_save_markers(jpeg, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(jpeg, TRUE);
    size_t width = jpeg->image_width, height = jpeg->image_height;
    if (header_only) {
        *job->image = (image_pixels){NULL, width, height, jpeg->num_components == 1 ? 1 : 3};
        return 0;
    }
    /* A Huffman code is at least a bit long, and each block of 64 pixels has one. */
    if (!jpeg->arith_code && (double)width * (double)height / 64 > 8 * (double)size) {
        snprintf(job->why, IMAGE_WHY, "%zu x %zu pixels do not fit into %zu bytes", width, height, size);
        return -1;
    }
    bool inks = jpeg->num_components == 4;
    jpeg->out_color_space = inks ? JCS_CMYK : jpeg->num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
    if (image_allocate(job->image, width, height, jpeg->num_components == 1 ? 1 : 3, job->why) != 0) {
        return -1;
    }
    if (inks && (job->row = malloc(4 * width)) == NULL) {
        snprintf(job->why, IMAGE_WHY, "out of memory");
        return -1;
    }
    jpeg_start_decompress(jpeg);
    while (jpeg->output_scanline < jpeg->output_height) {
        uint8_t *to = job->image->pixels + jpeg->output_scanline * width * (size_t)job->image->channels;
        JSAMPROW row = inks ? job->row : to;
        jpeg_read_scanlines(jpeg, &row, 1);
        if (inks) {
            inks_to_colors(job->row, width, jpeg->saw_Adobe_marker, to);
        }
    }
    int orientation = 1;
    for (jpeg_saved_marker_ptr marker = jpeg->marker_list; marker != NULL && orientation == 1; marker = marker->next) {
        orientation = orientation_in(marker->data, marker->data_length);
    }
    jpeg_finish_decompress(jpeg);
    return turn(job->image, orientation, job->why);
}

int image_decode_jpeg(const uint8_t *bytes, size_t size, bool header_only, image_pixels *image, char why[IMAGE_WHY]) {
    jpeg_job *job = calloc(1, sizeof *job);
    if (job == NULL) {
        snprintf(why, IMAGE_WHY, "out of memory");
        return -1;
    }
    job->why = why;
    job->image = image;
    job->jpeg.err = jpeg_std_error(&job->errors);
    job->errors.error_exit = give_up;
    job->errors.emit_message = on_message;
    job->errors.output_message = drop_message;
    job->jpeg.client_data = job;
    volatile int result = -1;
    if (setjmp(job->escape) == 0) {
        jpeg_create_decompress(&job->jpeg);
        job->progress.progress_monitor = on_progress;
        job->jpeg.progress = &job->progress;
        result = decode(job, bytes, size, header_only);
    }
    jpeg_destroy_decompress(&job->jpeg);
    free(job->row);
    free(job);
    return result;
}

#endif
