/* every_gemm - each way to multiply that this machine has, in both precisions, and what is expected of them. */
#ifndef EVERY_GEMM_H
#define EVERY_GEMM_H

#include "math/math.h"
#include "random_floats.h"

/* Calls check with each way to multiply; way is its name. */
typedef void gemm_check(const sd_gemm *gemm, int32_t precision, const char *way);
void each_gemm(gemm_check *check);

/* The way that is chosen now, with memory of its own. */
sd_gemm make_gemm(int32_t precision);
void drop_gemm(sd_gemm *gemm);

/* The nearest number of 8 bits of significand, by arithmetic instead of by bits; below FLT_MIN: 0. */
double rounded(double x);
/* What a product in that precision reads of x. To be freed. */
double *copy_in(int32_t precision, const float *x, size_t count);

#endif
