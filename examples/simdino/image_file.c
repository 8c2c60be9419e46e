/* Image files, whatever their kind. See image_file.h. */
#define _POSIX_C_SOURCE 200809L
#include "image_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST_BYTES  ((size_t)1 << 30)
#define HEAD_BYTES  ((size_t)1 << 16) /* enough for the header of nearly all files */

int image_allocate(image_pixels *image, size_t width, size_t height, int32_t channels, char why[IMAGE_WHY]) {
    if (width == 0 || height == 0 || width > IMAGE_MOST_PIXELS / height) {
        snprintf(why, IMAGE_WHY, "%zu x %zu pixels: at most %zu are read", width, height, IMAGE_MOST_PIXELS);
        return -1;
    }
    *image = (image_pixels){malloc(width * height * (size_t)channels), width, height, channels};
    if (image->pixels == NULL) {
        snprintf(why, IMAGE_WHY, "out of memory");
        return -1;
    }
    return 0;
}

void image_free(image_pixels *image) {
    free(image->pixels);
    *image = (image_pixels){0};
}

/* Grey as in ITU-R 601, with the weights that Pillow has. */
static int convert(image_pixels *image, int32_t channels, char why[IMAGE_WHY]) {
    image_pixels to;
    if (image_allocate(&to, image->width, image->height, channels, why) != 0) {
        return -1;
    }
    size_t count = image->width * image->height;
    for (size_t i = 0; i < count; i++) {
        if (channels == 3) {
            to.pixels[3 * i] = to.pixels[3 * i + 1] = to.pixels[3 * i + 2] = image->pixels[i];
        } else {
            const uint8_t *p = image->pixels + 3 * i;
            to.pixels[i] = (uint8_t)((19595u * p[0] + 38470u * p[1] + 7471u * p[2] + 32768u) >> 16);
        }
    }
    image_free(image);
    *image = to;
    return 0;
}

static bool is_jpeg(const uint8_t *bytes, size_t size) {
    return size >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff;
}

static bool is_png(const uint8_t *bytes, size_t size) {
    static const uint8_t signature[8] = {137, 80, 78, 71, 13, 10, 26, 10};
    return size >= sizeof signature && memcmp(bytes, signature, sizeof signature) == 0;
}

static int decode(const uint8_t *bytes, size_t size, bool header_only, image_pixels *image, char why[IMAGE_WHY]) {
    *image = (image_pixels){0};
    if (is_jpeg(bytes, size)) {
        return image_decode_jpeg(bytes, size, header_only, image, why);
    }
    if (is_png(bytes, size)) {
        return image_decode_png(bytes, size, header_only, image, why);
    }
    snprintf(why, IMAGE_WHY, size == 0 ? "the file is empty" : "neither a JPEG nor a PNG file");
    return -1;
}

int image_decode(const uint8_t *bytes, size_t size, int32_t channels, image_pixels *image, char why[IMAGE_WHY]) {
    int result = decode(bytes, size, false, image, why);
    if (result == 0 && channels != 0 && channels != image->channels) {
        result = convert(image, channels, why);
    }
    if (result != 0) {
        image_free(image);
    }
    return result;
}

/* The first `most` bytes of a file (0: all). NULL with the reason. */
static uint8_t *read_bytes(const char *path, size_t most, size_t *size, char why[IMAGE_WHY]) {
    int file = open(path, O_RDONLY | O_NONBLOCK); /* a pipe must not make the program wait */
    struct stat about;
    uint8_t *bytes = NULL;
    *size = 0;
    if (file < 0 || fstat(file, &about) != 0) {
        snprintf(why, IMAGE_WHY, "%s", strerror(errno));
    } else if (!S_ISREG(about.st_mode)) {
        snprintf(why, IMAGE_WHY, "not a regular file");
    } else if ((uintmax_t)about.st_size > MOST_BYTES) {
        snprintf(why, IMAGE_WHY, "larger than %zu bytes", MOST_BYTES);
    } else {
        size_t wanted = (size_t)about.st_size;
        wanted = most > 0 && wanted > most ? most : wanted;
        bytes = malloc(wanted > 0 ? wanted : 1);
        if (bytes == NULL) {
            snprintf(why, IMAGE_WHY, "out of memory");
        }
        while (bytes != NULL && *size < wanted) {
            ssize_t got = read(file, bytes + *size, wanted - *size);
            if (got <= 0) {
                if (got < 0 && errno == EINTR) {
                    continue;
                }
                snprintf(why, IMAGE_WHY, "%s", got < 0 ? strerror(errno) : "it became shorter while it was read");
                free(bytes);
                bytes = NULL;
                break;
            }
            *size += (size_t)got;
        }
    }
    if (file >= 0) {
        close(file);
    }
    return bytes;
}

int image_read(const char *path, int32_t channels, image_pixels *image, char why[IMAGE_WHY]) {
    size_t size = 0;
    uint8_t *bytes = read_bytes(path, 0, &size, why);
    *image = (image_pixels){0};
    if (bytes == NULL) {
        return -1;
    }
    int result = image_decode(bytes, size, channels, image, why);
    free(bytes);
    return result;
}

int32_t image_file_channels(const char *path) {
    char why[IMAGE_WHY];
    size_t size = 0;
    uint8_t *bytes = read_bytes(path, HEAD_BYTES, &size, why);
    image_pixels image = {0};
    int32_t channels = bytes != NULL && decode(bytes, size, true, &image, why) == 0 ? image.channels : 0;
    free(bytes);
    return channels;
}

bool image_name(const char *name) {
    static const char *const endings[] = {".jpg", ".jpeg", ".jpe", ".png"};
    size_t length = strlen(name);
    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++) {
        size_t wanted = strlen(endings[i]);
        if (length > wanted && strcasecmp(name + length - wanted, endings[i]) == 0) {
            return true;
        }
    }
    return false;
}

const char *image_kinds(void) {
#if defined(HAVE_JPEG) && defined(HAVE_PNG)
    return "JPEG and PNG";
#elif defined(HAVE_JPEG)
    return "JPEG";
#elif defined(HAVE_PNG)
    return "PNG";
#else
    return "no";
#endif
}
