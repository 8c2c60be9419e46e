/* What follows a product of a block, of the tail or of the head while its numbers are in the cache. Other matrices have rows as far
 * apart as the product's. */
#include "model/model.h"

static void bias(const void *data, float *c, size_t ldc, size_t row, size_t rows, size_t column, size_t columns) {
    const sd_bias_finish *f = data;
    float *gelu = f->gelu == NULL ? NULL : f->gelu + row * ldc + column;
    f->kernels->bias_gelu(c, rows, columns, ldc, f->bias + column, gelu, ldc);
}

sd_finish sd_finish_bias(const sd_bias_finish *data) {
    return (sd_finish){bias, data, {.bias = data->bias, .gelu = data->gelu}};
}

static void gelu_backward(const void *data, float *c, size_t ldc, size_t row, size_t rows, size_t column, size_t columns) {
    const sd_gelu_finish *f = data;
    const size_t place = row * ldc + column;
    f->kernels->gelu_backward(f->hidden + place, c, rows, columns, ldc, c, NULL, f->dbias + column);
}

sd_finish sd_finish_gelu_backward(const sd_gelu_finish *data) { return (sd_finish){.function = gelu_backward, .data = data}; }

static void residual(const void *data, float *c, size_t ldc, size_t row, size_t rows, size_t column, size_t columns) {
    const sd_residual_finish *f = data;
    const float *gamma = f->gamma == NULL ? NULL : f->gamma + column;
    for (size_t r = 0; r < rows; r++) {
        const size_t place = (row + r) * ldc + column;
        f->kernels->residual(f->out + place, f->x + place, c + r * ldc, 1, columns, f->bias + column, gamma, 1.0f);
    }
}

sd_finish sd_finish_residual(const sd_residual_finish *data) {
    return (sd_finish){
        residual, data, {.bias = data->bias, .factor = data->gamma, .residual = data->x, .out = data->out}};
}
