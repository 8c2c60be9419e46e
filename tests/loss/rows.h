/* rows - features for the tests of the coding rate: made, rounded, compared. */
#ifndef SD_TEST_ROWS_H
#define SD_TEST_ROWS_H

#include <simdino/loss.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static inline void *array(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    assert_non_null(memory);
    return memory;
}
#define DOUBLES(count) ((double *)array((count), sizeof(double)))
#define FLOATS(count) ((float *)array((count), sizeof(float)))

static inline void fill(double *x, size_t count, uint64_t seed) {
    sd_random random;
    sd_random_init(&random, seed, 0, 0);
    for (size_t i = 0; i < count; i++)
        x[i] = sd_random_normal(&random);
}

static inline void normalize(double *x, size_t n, size_t d) {
    for (size_t i = 0; i < n; i++) {
        double sum = 0.0;
        for (size_t j = 0; j < d; j++)
            sum += x[i * d + j] * x[i * d + j];
        for (size_t j = 0; j < d; j++)
            x[i * d + j] /= sqrt(sum);
    }
}

static inline float *rounded(const double *x, size_t count) {
    float *f = FLOATS(count);
    for (size_t i = 0; i < count; i++)
        f[i] = (float)x[i];
    return f;
}

static inline double *widened(const float *x, size_t count) {
    double *d = DOUBLES(count);
    for (size_t i = 0; i < count; i++)
        d[i] = (double)x[i];
    return d;
}

static inline double largest(const double *x, size_t count) {
    double most = 0.0;
    for (size_t i = 0; i < count; i++)
        most = fmax(most, fabs(x[i]));
    return most;
}

static inline void assert_near(double actual, double expected, double tolerance, const char *what) {
    if (!(fabs(actual - expected) <= tolerance))
        fail_msg("%s is %.15g, expected %.15g: off by %.3g, allowed %.3g", what, actual, expected, actual - expected,
                 tolerance);
}

static inline void assert_relative(double actual, double expected, double tolerance, const char *what) {
    assert_near(actual, expected, tolerance * fabs(expected), what);
}

#endif
