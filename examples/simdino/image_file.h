/* image_file.h - JPEG and PNG files as 8-bit pixels: grey or red-green-blue, upright. */
#ifndef IMAGE_FILE_H
#define IMAGE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct image_pixels {
    uint8_t *pixels; /* height rows of width * channels, packed; from malloc */
    size_t width, height;
    int32_t channels; /* 1 or 3 */
} image_pixels;

#define IMAGE_WHY 200 /* room for the reason of a failure */

/* The largest image that is read, in pixels. */
#define IMAGE_MOST_PIXELS ((size_t)1 << 27)

/* Decodes a file that lies in memory; its kind is told by its first bytes. `channels` 1 or 3: colours become grey, or grey
 * is repeated; 0: as it is. An EXIF orientation (JPEG) is applied, opacity (PNG) is dropped, 16 bits become 8. Damaged
 * and truncated files are refused, and so are sizes that a file of so many bytes cannot hold. Safe in many threads at
 * once. 0, or -1 with the reason in `why`. */
int image_decode(const uint8_t *bytes, size_t size, int32_t channels, image_pixels *image, char why[IMAGE_WHY]);

/* The same for a file by name. */
int image_read(const char *path, int32_t channels, image_pixels *image, char why[IMAGE_WHY]);
void image_free(image_pixels *image);

/* Channels that the file has by its header: 1 or 3; 0: it cannot be told. */
int32_t image_file_channels(const char *path);

/* Whether a name ends as those of images do: .jpg, .jpeg, .jpe, .png, in any case. */
bool image_name(const char *name);

/* "JPEG and PNG", or what was built in. */
const char *image_kinds(void);

/* ---- the two kinds (image_jpeg.c, image_png.c); header_only: width, height and channels without pixels ---- */

int image_decode_jpeg(const uint8_t *bytes, size_t size, bool header_only, image_pixels *image, char why[IMAGE_WHY]);
int image_decode_png(const uint8_t *bytes, size_t size, bool header_only, image_pixels *image, char why[IMAGE_WHY]);

/* Memory for an image whose header was read: 0, or -1 with the reason. */
int image_allocate(image_pixels *image, size_t width, size_t height, int32_t channels, char why[IMAGE_WHY]);

#endif
