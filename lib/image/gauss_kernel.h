/* The float part of the Gaussian blur, which both pixel types share. Included by the kernel files only. */
#ifndef SD_GAUSS_KERNEL_H
#define SD_GAUSS_KERNEL_H

#include "image/kernels.h"

#define SD_GAUSS_REACH (SD_GAUSS_TAPS / 2)

/* Index of the sample that `i` is mirrored to; the edge itself is not repeated. Also for fewer samples than the kernel
 * reaches. */
static inline size_t sd_gauss_mirror(ptrdiff_t i, size_t n) {
    ptrdiff_t period = 2 * ((ptrdiff_t)n - 1);
    if (period == 0)
        return 0;
    i %= period;
    i = i < 0 ? i + period : i;
    return (size_t)(i < (ptrdiff_t)n ? i : period - i);
}

/* padded holds `width` values from SD_GAUSS_REACH on; the room around them is filled here. */
static inline void gauss_row(float *padded, size_t width, const float *taps, float *restrict out) {
    for (ptrdiff_t d = 1; d <= SD_GAUSS_REACH; d++) {
        padded[SD_GAUSS_REACH - d] = padded[SD_GAUSS_REACH + sd_gauss_mirror(-d, width)];
        padded[SD_GAUSS_REACH + (ptrdiff_t)width - 1 + d] =
            padded[SD_GAUSS_REACH + sd_gauss_mirror((ptrdiff_t)width - 1 + d, width)];
    }
    for (size_t x = 0; x < width; x++) {
        float sum = 0.0f;
        for (size_t t = 0; t < SD_GAUSS_TAPS; t++)
            sum += taps[t] * padded[x + t];
        out[x] = sum;
    }
}

/* Row y of the result. */
static inline void gauss_column(const float *rows, size_t width, size_t height, size_t y, const float *taps,
                                float *restrict out) {
    const float *row[SD_GAUSS_TAPS];
    for (size_t t = 0; t < SD_GAUSS_TAPS; t++)
        row[t] = rows + sd_gauss_mirror((ptrdiff_t)(y + t) - SD_GAUSS_REACH, height) * width;
    for (size_t x = 0; x < width; x++) {
        float sum = 0.0f;
        for (size_t t = 0; t < SD_GAUSS_TAPS; t++)
            sum += taps[t] * row[t][x];
        out[x] = sum;
    }
}

#endif
