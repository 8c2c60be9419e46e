/* Colour operations on planes: which kernel, with which numbers. */
#include "image/image.h"

void *sd_plane(const sd_planes *planes, size_t channel) {
    return (char *)planes->data + channel * planes->width * planes->height * planes->kernels->item;
}

static size_t pixels_of(const sd_planes *planes) { return planes->width * planes->height; }

void sd_adjust_brightness(const sd_planes *planes, double factor) {
    planes->kernels->blend(planes->data, pixels_of(planes) * planes->channels, 0.0f, (float)factor);
}

void sd_adjust_contrast(const sd_planes *planes, double factor) {
    size_t n = pixels_of(planes), values = n * planes->channels;
    const sd_pixel_kernels *kernels = planes->kernels;
    double mean = planes->channels == 3
                      ? kernels->sum_gray(sd_plane(planes, 0), sd_plane(planes, 1), sd_plane(planes, 2), n) / (double)n
                      : kernels->sum(planes->data, values) / (double)values;
    if (planes->pixel_type == SD_PIXEL_U8)
        mean = (double)(int)(mean + 0.5);
    kernels->blend(planes->data, values, (float)mean, (float)factor);
}

void sd_adjust_saturation(const sd_planes *planes, double factor) {
    if (planes->channels == 3)
        planes->kernels->saturate(sd_plane(planes, 0), sd_plane(planes, 1), sd_plane(planes, 2), pixels_of(planes),
                                  (float)factor);
}

void sd_adjust_hue(const sd_planes *planes, double factor) {
    if (planes->channels == 3)
        planes->kernels->hue(sd_plane(planes, 0), sd_plane(planes, 1), sd_plane(planes, 2), pixels_of(planes), factor);
}

void sd_make_gray(const sd_planes *planes) {
    if (planes->channels == 3)
        planes->kernels->gray(sd_plane(planes, 0), sd_plane(planes, 1), sd_plane(planes, 2), pixels_of(planes));
}

void sd_make_solarized(const sd_planes *planes, int32_t threshold) {
    planes->kernels->solarize(planes->data, pixels_of(planes) * planes->channels, threshold);
}
