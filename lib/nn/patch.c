#include "nn/nn.h"

#include <string.h>

void sd_patches_gather(const float *image, size_t channels, size_t height, size_t width, size_t patch, float *rows) {
    for (size_t top = 0; top + patch <= height; top += patch)
        for (size_t left = 0; left + patch <= width; left += patch)
            for (size_t c = 0; c < channels; c++)
                for (size_t y = 0; y < patch; y++, rows += patch)
                    memcpy(rows, image + (c * height + top + y) * width + left, patch * sizeof *rows);
}

void sd_patches_scatter(const float *rows, size_t channels, size_t height, size_t width, size_t patch, float *image) {
    for (size_t top = 0; top + patch <= height; top += patch)
        for (size_t left = 0; left + patch <= width; left += patch)
            for (size_t c = 0; c < channels; c++)
                for (size_t y = 0; y < patch; y++, rows += patch)
                    memcpy(image + (c * height + top + y) * width + left, rows, patch * sizeof *rows);
}
