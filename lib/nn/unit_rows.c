#include "nn/nn.h"

#include <math.h>

#define SD_UNIT_EPSILON 1e-12 /* of torch.nn.functional.normalize */

void sd_unit_rows_forward(const float *x, size_t rows, size_t n, float *y, float *lengths) {
    for (size_t i = 0; i < rows; i++, x += n, y += n) {
        double square = 0.0;
        for (size_t j = 0; j < n; j++)
            square += (double)x[j] * (double)x[j];
        double length = sqrt(square);
        length = length < SD_UNIT_EPSILON ? SD_UNIT_EPSILON : length;
        lengths[i] = (float)length;
        float inverse = (float)(1.0 / length);
        for (size_t j = 0; j < n; j++)
            y[j] = x[j] * inverse;
    }
}

void sd_unit_rows_backward(const float *dy, const float *y, const float *lengths, size_t rows, size_t n, float *dx) {
    for (size_t i = 0; i < rows; i++, dy += n, y += n, dx += n) {
        double dot = 0.0;
        for (size_t j = 0; j < n; j++)
            dot += (double)dy[j] * (double)y[j];
        float along = (float)dot, inverse = 1.0f / lengths[i];
        for (size_t j = 0; j < n; j++)
            dx[j] = (dy[j] - y[j] * along) * inverse;
    }
}
