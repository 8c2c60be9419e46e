/* Interpolation of the learned position embedding to another grid of patches. */
#include "nn/nn.h"

#include <math.h>
#include <string.h>

/* The four source positions and weights of output position `out`: Keys' cubic convolution with a = -0.75, border
 * repeated. */
typedef struct cubic_taps {
    size_t index[4];
    float weight[4];
} cubic_taps;

static cubic_taps taps_of(size_t out, size_t out_size, size_t native, double offset) {
    const double a = -0.75;
    /* PyTorch maps positions with the factor that it was given, not with the ratio of the sizes. */
    double step = (double)native / ((double)out_size + offset);
    double position = step * ((double)out + 0.5) - 0.5;
    double base = floor(position), t = position - base;
    double near = 1.0 - t, far[2] = {t + 1.0, 2.0 - t};
    double weights[4] = {
        ((a * far[0] - 5.0 * a) * far[0] + 8.0 * a) * far[0] - 4.0 * a,
        ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0,
        ((a + 2.0) * near - (a + 3.0)) * near * near + 1.0,
        ((a * far[1] - 5.0 * a) * far[1] + 8.0 * a) * far[1] - 4.0 * a,
    };
    cubic_taps taps;
    for (int i = 0; i < 4; i++) {
        double source = base + (double)(i - 1);
        source = source < 0.0 ? 0.0 : source > (double)(native - 1) ? (double)(native - 1) : source;
        taps.index[i] = (size_t)source;
        taps.weight[i] = (float)weights[i];
    }
    return taps;
}

void sd_position_forward(const float *embedding, size_t native, size_t dim, size_t rows, size_t columns, double offset,
                         float *out) {
    if (rows == native && columns == native) {
        memcpy(out, embedding, (1 + native * native) * dim * sizeof *out);
        return;
    }
    memcpy(out, embedding, dim * sizeof *out);
    for (size_t y = 0; y < rows; y++) {
        cubic_taps vertical = taps_of(y, rows, native, offset);
        for (size_t x = 0; x < columns; x++) {
            cubic_taps horizontal = taps_of(x, columns, native, offset);
            float *target = out + (1 + y * columns + x) * dim;
            memset(target, 0, dim * sizeof *target);
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) {
                    float weight = vertical.weight[i] * horizontal.weight[j];
                    const float *source =
                        embedding + (1 + vertical.index[i] * native + horizontal.index[j]) * dim;
                    for (size_t d = 0; d < dim; d++)
                        target[d] += weight * source[d];
                }
        }
    }
}

void sd_position_backward(const float *dout, size_t native, size_t dim, size_t rows, size_t columns, double offset,
                          float *dembedding) {
    if (rows == native && columns == native) {
        for (size_t i = 0; i < (1 + native * native) * dim; i++)
            dembedding[i] += dout[i];
        return;
    }
    for (size_t d = 0; d < dim; d++)
        dembedding[d] += dout[d];
    for (size_t y = 0; y < rows; y++) {
        cubic_taps vertical = taps_of(y, rows, native, offset);
        for (size_t x = 0; x < columns; x++) {
            cubic_taps horizontal = taps_of(x, columns, native, offset);
            const float *source = dout + (1 + y * columns + x) * dim;
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) {
                    float weight = vertical.weight[i] * horizontal.weight[j];
                    float *target = dembedding + (1 + vertical.index[i] * native + horizontal.index[j]) * dim;
                    for (size_t d = 0; d < dim; d++)
                        target[d] += weight * source[d];
                }
        }
    }
}
