/* Determinant and inverse of a symmetric positive definite matrix, by panels that threads share: dense_invert.h once for
 * each type. */
#include "math/dense.h"

#include <string.h>

#define BLOCK SD_DENSE_BLOCK
#define PANEL SD_DENSE_PANEL

/* An odd number of cache lines. */
size_t sd_dense_distance(size_t n, size_t item) {
    size_t line = SD_ALIGNMENT / item;

    return (sd_size_ceil(n, line) | 1) * line;
}

#define REAL float
#define NAME(x) x##_f32
#define GEMM sgemm
#define FACTOR sfactor
#include "math/dense_invert.h"

#define REAL double
#define NAME(x) x##_f64
#define GEMM dgemm
#define FACTOR dfactor
#include "math/dense_invert.h"
