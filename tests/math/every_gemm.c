#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "every_gemm.h"
#include "ways.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

sd_gemm make_gemm(int32_t precision) {
    size_t bytes = sd_gemm_scratch(precision);
    void *scratch = bytes == 0 ? NULL : sd_allocate(NULL, bytes, 1);
    assert_true(bytes == 0 || scratch != NULL);
    return sd_gemm_of(precision, scratch);
}

void drop_gemm(sd_gemm *gemm) { sd_release(NULL, gemm->scratch); }

static gemm_check *check_gemm;

static void with_gemm(int32_t precision, const char *way) {
    sd_gemm gemm = make_gemm(precision);
    check_gemm(&gemm, precision, way);
    drop_gemm(&gemm);
}

void each_gemm(gemm_check *check) {
    check_gemm = check;
    each_way(with_gemm);
}

/* rint rounds ties to even. */
double rounded(double x) {
    int exponent;
    if (!isfinite(x) || x == 0.0)
        return x;
    double significand = frexp(x, &exponent);
    double result = ldexp(rint(ldexp(significand, 8)), exponent - 8);
    if (fabs(x) < (double)FLT_MIN)
        return copysign(0.0, x);
    return fabs(result) >= ldexp(1.0, 128) ? copysign((double)INFINITY, x) : result;
}

double *copy_in(int32_t precision, const float *x, size_t count) {
    double *copy = malloc(count * sizeof *copy);
    assert_non_null(copy);
    for (size_t i = 0; i < count; i++)
        copy[i] = precision == SD_PRECISION_BF16 ? rounded((double)x[i]) : (double)x[i];
    return copy;
}
