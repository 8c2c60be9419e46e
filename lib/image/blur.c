/* The two blurs: Pillow's GaussianBlur, which is three box blurs a direction, and torchvision's gaussian_blur. */
#include "image/image.h"

#include <math.h>
#include <string.h>

/* P. Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering", 2011: the box of real
 * radius l + a whose triple convolution has the variance radius^2. Rounded to float at the same places as Pillow. */
sd_box sd_box_of_radius(double radius) {
    float r = (float)radius;
    float variance = r * r / 3.0f;
    float length = (float)sqrt(12.0 * (double)variance + 1.0);
    float whole = (float)floor(((double)length - 1.0) / 2.0);
    float part = (2.0f * whole + 1.0f) * (whole * (whole + 1.0f) - 3.0f * variance);
    part /= 6.0f * (variance - (whole + 1.0f) * (whole + 1.0f));
    float box_radius = whole + part;

    sd_box box;
    uint32_t reach = (uint32_t)box_radius;
    box.reach = reach;
    box.inner_int = (uint32_t)(16777216.0f / (box_radius * 2.0f + 1.0f));
    box.outer_int = (16777216u - (2u * reach + 1u) * box.inner_int) / 2u;
    box.inner = 1.0f / (box_radius * 2.0f + 1.0f);
    box.outer = 0.5f * (1.0f - (float)(2u * reach + 1u) * box.inner);
    return box;
}

void sd_gauss_taps(double sigma, float taps[SD_GAUSS_TAPS]) {
    float sum = 0.0f, width = (float)sigma;
    for (int i = 0; i < SD_GAUSS_TAPS; i++) {
        float x = (float)(i - SD_GAUSS_TAPS / 2) / width;
        taps[i] = expf(-0.5f * (x * x));
        sum += taps[i];
    }
    for (int i = 0; i < SD_GAUSS_TAPS; i++)
        taps[i] /= sum;
}

sd_status sd_blur_room(size_t width, size_t height, double radius, size_t *values) {
    /* The largest of: a plane and a row (both blurs); two rows with their padding; a plane and row sums. */
    size_t padding = 4 * ((size_t)radius + 2 + SD_GAUSS_TAPS), plane;
    SD_REQUIRE(sd_size_mul(width, height, &plane) && sd_size_add(plane, 2 * width + padding, values), SD_ERR_MEMORY,
               "a picture of %zu x %zu does not fit into the address space", width, height);
    return SD_OK;
}

void sd_blur(const sd_planes *planes, sd_blur_kind kind, double radius, void *work) {
    const sd_pixel_kernels *kernels = planes->kernels;
    size_t width = planes->width, height = planes->height;
    if (kind == SD_BLUR_TORCHVISION) {
        float taps[SD_GAUSS_TAPS];
        sd_gauss_taps(radius, taps);
        for (size_t c = 0; c < planes->channels; c++)
            kernels->gauss(sd_plane(planes, c), width, height, taps, work);
        return;
    }
    sd_box box = sd_box_of_radius(radius);
    float *sums = work;
    char *other = (char *)(sums + sd_size_ceil(width, 16) * 16);
    for (size_t c = 0; c < planes->channels; c++) {
        void *plane = sd_plane(planes, c);
        kernels->box_rows(plane, width, height, &box, work);
        kernels->box_columns(plane, width, height, &box, other, sums);
        kernels->box_columns(other, width, height, &box, plane, sums);
        kernels->box_columns(plane, width, height, &box, other, sums);
        memcpy(plane, other, width * height * kernels->item);
    }
}
