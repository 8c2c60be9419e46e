/* The evaluation transform: resize of the shorter side, centre crop, normalise. Only the part that the crop keeps is
 * computed. */
#include "image/image.h"

#include <math.h>

/* Sizes after torchvision's Resize(side): the longer one is truncated. */
static sd_status resized_size(const sd_image *image, size_t side, size_t *width, size_t *height) {
    *width = image->width;
    *height = image->height;
    if (side == 0)
        return SD_OK;
    size_t shorter = sd_size_min(image->width, image->height), longer = sd_size_max(image->width, image->height);
    size_t product;
    SD_REQUIRE(side <= INT32_MAX && sd_size_mul(side, longer, &product) && product / shorter <= INT32_MAX,
               SD_ERR_ARGUMENT, "resize is %zu: an image of %zu x %zu would become too large", side, image->width,
               image->height);
    *width = image->width <= image->height ? side : product / shorter;
    *height = image->width <= image->height ? product / shorter : side;
    return SD_OK;
}

/* Where a crop of `crop` out of `size` begins: half of the difference, rounded half to even. */
static size_t center_offset(size_t size, size_t crop) {
    size_t difference = size - crop, half = difference / 2;
    return half + (difference % 2 == 1 && half % 2 == 1);
}

SD_API sd_status sd_image_prepare(const sd_image *image, size_t resize, size_t crop, const double *mean,
                                  const double *std, float *tensor, size_t *out_width, size_t *out_height) {
    sd_status status = SD_OK;
    sd_resizer resizer = {0};
    sd_scratch planes = {0};
    size_t full_width, full_height;
    SD_TRY(sd_image_check(image));
    SD_TRY(resized_size(image, resize, &full_width, &full_height));
    SD_EXPECT(crop <= full_width && crop <= full_height, SD_ERR_ARGUMENT,
              "crop is %zu, but the resized image is %zu x %zu", crop, full_width, full_height);
    size_t width = crop > 0 ? crop : full_width, height = crop > 0 ? crop : full_height;
    size_t channels = (size_t)image->channels;
    for (size_t c = 0; c < channels; c++) {
        SD_EXPECT(mean == NULL || isfinite(mean[c]), SD_ERR_ARGUMENT, "mean of channel %zu is %g", c, mean[c]);
        SD_EXPECT(std == NULL || (isfinite(std[c]) && std[c] > 0.0), SD_ERR_ARGUMENT,
                  "std of channel %zu is %g: it must be above 0", c, std[c]);
    }
    if (tensor != NULL) {
        const sd_pixel_kernels *kernels = sd_pixel_kernels_get(image->pixel_type);
        size_t pixels, values;
        SD_EXPECT(sd_size_mul(width, height, &pixels) && sd_size_mul(pixels, channels, &values), SD_ERR_MEMORY,
                  "an output of %zu x %zu does not fit into the address space", width, height);
        SD_TRY(sd_scratch_reserve(NULL, &planes, values, kernels->item));
        sd_resize_job job = {.height = image->height,
                             .width = image->width,
                             .out_width = full_width,
                             .out_height = full_height,
                             .x = center_offset(full_width, width),
                             .y = center_offset(full_height, height),
                             .columns = width,
                             .rows = height,
                             .filter = SD_FILTER_BICUBIC};
        SD_TRY(sd_resize_planes(NULL, &resizer, kernels, image, &job, planes.data));
        double full = image->pixel_type == SD_PIXEL_U8 ? 255.0 : 1.0;
        for (size_t c = 0; c < channels; c++)
            kernels->normalize((const char *)planes.data + c * pixels * kernels->item, pixels,
                               (float)(full * (mean != NULL ? mean[c] : 0.0)),
                               (float)(1.0 / (full * (std != NULL ? std[c] : 1.0))), tensor + c * pixels);
    }
    if (out_width != NULL)
        *out_width = width;
    if (out_height != NULL)
        *out_height = height;
cleanup:
    sd_scratch_release(NULL, &planes);
    sd_resizer_release(NULL, &resizer);
    return status;
}
