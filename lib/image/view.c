/* Views of images, and memory that grows with them. */
#include "image/image.h"

#include <string.h>

size_t sd_pixel_size(int32_t pixel_type) { return pixel_type == SD_PIXEL_U8 ? sizeof(uint8_t) : sizeof(float); }

size_t sd_image_stride(const sd_image *image) {
    return image->row_stride != 0 ? image->row_stride
                                  : image->width * (size_t)image->channels * sd_pixel_size(image->pixel_type);
}

sd_status sd_image_check(const sd_image *image) {
    SD_REQUIRE(image != NULL, SD_ERR_ARGUMENT, "image is NULL");
    SD_REQUIRE(image->pixels != NULL, SD_ERR_ARGUMENT, "the image's pixels are NULL");
    SD_REQUIRE(image->width > 0 && image->height > 0, SD_ERR_ARGUMENT, "an image of %zu x %zu has no pixels",
               image->width, image->height);
    SD_REQUIRE(image->width <= INT32_MAX && image->height <= INT32_MAX, SD_ERR_ARGUMENT,
               "an image of %zu x %zu is too large: a side has at most %d pixels", image->width, image->height,
               INT32_MAX);
    SD_REQUIRE(image->channels >= 1 && image->channels <= SD_MAX_CHANNELS, SD_ERR_ARGUMENT,
               "the image has %d channels: 1 to %d are possible", image->channels, SD_MAX_CHANNELS);
    SD_REQUIRE(image->pixel_type == SD_PIXEL_U8 || image->pixel_type == SD_PIXEL_F32, SD_ERR_ARGUMENT,
               "the image's pixel_type is %d: it must be SD_PIXEL_U8 or SD_PIXEL_F32", image->pixel_type);
    size_t row, total, item = sd_pixel_size(image->pixel_type);
    SD_REQUIRE(sd_size_mul(image->width, (size_t)image->channels * item, &row), SD_ERR_ARGUMENT,
               "an image row of %zu pixels does not fit into the address space", image->width);
    SD_REQUIRE(image->row_stride == 0 || image->row_stride >= row, SD_ERR_ARGUMENT,
               "the image's row_stride is %zu bytes, less than the %zu of a row", image->row_stride, row);
    SD_REQUIRE(sd_size_mul(sd_image_stride(image), image->height, &total), SD_ERR_ARGUMENT,
               "an image of %zu x %zu does not fit into the address space", image->width, image->height);
    SD_REQUIRE(image->row_stride % item == 0 && (uintptr_t)image->pixels % item == 0, SD_ERR_ARGUMENT,
               "float pixels must be aligned to %zu bytes, rows too (row_stride is %zu)", item, image->row_stride);
    return SD_OK;
}

sd_status sd_scratch_reserve(sd_context *context, sd_scratch *scratch, size_t count, size_t size) {
    size_t padded, bytes;
    SD_REQUIRE(sd_size_add(count, SD_PIXEL_SLACK, &padded) && sd_size_mul(padded, size, &bytes), SD_ERR_MEMORY,
               "%zu values of %zu bytes do not fit into the address space", count, size);
    if (bytes <= scratch->bytes)
        return SD_OK;
    sd_scratch_release(context, scratch);
    scratch->data = sd_allocate(context, bytes, 1);
    if (scratch->data == NULL)
        return SD_ERR_MEMORY;
    scratch->bytes = bytes;
    return SD_OK;
}

void sd_scratch_release(sd_context *context, sd_scratch *scratch) {
    sd_release(context, scratch->data);
    scratch->data = NULL;
    scratch->bytes = 0;
}
