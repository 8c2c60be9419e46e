/* Determinant and inverse of a symmetric positive definite matrix, by panels that threads share: dense_invert.h once for
 * each type. */
#include "math/dense.h"

#include <string.h>

#define BLOCK SD_DENSE_BLOCK
#define PANEL SD_DENSE_PANEL

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
