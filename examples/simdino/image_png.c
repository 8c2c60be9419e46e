/* PNG by libpng. See image_file.h. */
#include "image_file.h"

#include <stdio.h>

#if !defined(HAVE_PNG)

int image_decode_png(const uint8_t *bytes, size_t size, bool header_only, image_pixels *image, char why[IMAGE_WHY]) {
    (void)bytes, (void)size, (void)header_only, (void)image;
    snprintf(why, IMAGE_WHY, "a PNG file, which this program was built without");
    return -1;
}

#else

#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#define MOST_CHUNK ((png_alloc_size_t)1 << 24) /* of a chunk that is looked at: the palette, transparency */
#define MOST_SIDE  ((png_uint_32)1 << 27)

/* Everything that must survive a longjmp lies here. */
typedef struct png_job {
    png_structp png;
    png_infop info;
    jmp_buf escape;
    char *why;
    image_pixels *image;
    png_bytepp rows;
    const uint8_t *bytes;
    size_t size, position;
} png_job;

static void give_up(png_structp png, png_const_charp message) {
    png_job *job = png_get_error_ptr(png);
    snprintf(job->why, IMAGE_WHY, "%s", message);
    longjmp(job->escape, 1);
}

static void drop_warning(png_structp png, png_const_charp message) {
    (void)png, (void)message;
}

static void take_bytes(png_structp png, png_bytep to, size_t count) {
    png_job *job = png_get_io_ptr(png);
    if (count > job->size - job->position) {
        png_error(png, "the file is truncated");
    }
    memcpy(to, job->bytes + job->position, count);
    job->position += count;
}

/* Without local variables that a longjmp could lose. */
static int decode(png_job *job, bool header_only) {
    png_structp png = job->png;
    png_infop info = job->info;
    png_set_user_limits(png, MOST_SIDE, MOST_SIDE);
    png_set_chunk_malloc_max(png, MOST_CHUNK);
#if defined(PNG_HANDLE_AS_UNKNOWN_SUPPORTED)
    /* Texts and colour profiles are packed as well: a file could unpack a thousand of them into memory for nothing. */
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
#endif
    png_set_read_fn(png, job, take_bytes);
    png_read_info(png, info);
    size_t width = png_get_image_width(png, info), height = png_get_image_height(png, info);
    int type = png_get_color_type(png, info);
    if (header_only) {
        *job->image = (image_pixels){NULL, width, height, (type & PNG_COLOR_MASK_COLOR) != 0 ? 3 : 1};
        return 0;
    }
    /* Deflate makes at most 1032 bytes out of one. */
    if ((double)png_get_rowbytes(png, info) * (double)height > 1032.0 * (double)job->size) {
        snprintf(job->why, IMAGE_WHY, "%zu x %zu pixels do not fit into %zu bytes", width, height, job->size);
        return -1;
    }
    if (png_get_bit_depth(png, info) == 16) {
        png_set_scale_16(png);
    }
    if (type == PNG_COLOR_TYPE_PALETTE) {
        png_set_palette_to_rgb(png);
    } else if (type == PNG_COLOR_TYPE_GRAY) {
        png_set_expand_gray_1_2_4_to_8(png);
    }
    png_set_strip_alpha(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    int32_t channels = png_get_channels(png, info);
    if ((channels != 1 && channels != 3) || png_get_rowbytes(png, info) != width * (size_t)channels) {
        snprintf(job->why, IMAGE_WHY, "an unknown form of pixels");
        return -1;
    }
    if (image_allocate(job->image, width, height, channels, job->why) != 0) {
        return -1;
    }
    job->rows = malloc(height * sizeof *job->rows);
    if (job->rows == NULL) {
        snprintf(job->why, IMAGE_WHY, "out of memory");
        return -1;
    }
    for (size_t y = 0; y < height; y++) {
        job->rows[y] = job->image->pixels + y * width * (size_t)channels;
    }
    png_read_image(png, job->rows);
    png_read_end(png, NULL); /* so that a truncated file is noticed */
    return 0;
}

int image_decode_png(const uint8_t *bytes, size_t size, bool header_only, image_pixels *image, char why[IMAGE_WHY]) {
    png_job *job = calloc(1, sizeof *job);
    if (job == NULL) {
        snprintf(why, IMAGE_WHY, "out of memory");
        return -1;
    }
    *job = (png_job){.why = why, .image = image, .bytes = bytes, .size = size};
    volatile int result = -1;
    snprintf(why, IMAGE_WHY, "out of memory");
    if (setjmp(job->escape) == 0) {
        job->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, job, give_up, drop_warning);
        if (job->png != NULL && (job->info = png_create_info_struct(job->png)) != NULL) {
            result = decode(job, header_only);
        }
    }
    if (job->png != NULL) {
        png_destroy_read_struct(&job->png, job->info != NULL ? &job->info : NULL, NULL);
    }
    free(job->rows);
    free(job);
    return result;
}

#endif
