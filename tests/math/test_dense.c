/* The dense products, Cholesky and inverse of every instruction set that this CPU has, against plain loops. */
#define _POSIX_C_SOURCE 200809L /* setenv */
#include "math/dense.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static double *random_doubles(size_t count, uint64_t seed) {
    double *x = malloc((count ? count : 1) * sizeof(double));
    sd_random random;
    assert_non_null(x);
    sd_random_init(&random, seed, 0, 0);
    for (size_t i = 0; i < count; i++)
        x[i] = sd_random_uniform(&random) - 0.5;
    return x;
}

static float *as_floats(const double *x, size_t count) {
    float *f = malloc((count ? count : 1) * sizeof(float));
    assert_non_null(f);
    for (size_t i = 0; i < count; i++)
        f[i] = (float)x[i];
    return f;
}

static void check_product(const sd_dense *dense, size_t m, size_t n, size_t k, bool ta, bool tb, bool upper,
                          double beta, size_t scratch_columns) {
    size_t lda = (ta ? m : k) + 3, ldb = (tb ? k : n) + 1, ldc = n + 2;
    size_t a_count = (ta ? k : m) * lda, b_count = (tb ? n : k) * ldb, c_count = m * ldc;
    double *a = random_doubles(a_count, 1), *b = random_doubles(b_count, 2), *c = random_doubles(c_count, 3);
    float *af = as_floats(a, a_count), *bf = as_floats(b, b_count), *cf = as_floats(c, c_count);
    double *before = malloc(c_count * sizeof(double)), alpha = 1.25;
    size_t bytes = sd_dense_scratch(k, scratch_columns);
    void *scratch = sd_allocate(NULL, bytes, 1);

    memcpy(before, c, c_count * sizeof(double));
    if (beta == 0.0) /* must not be read */
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++) {
                c[i * ldc + j] = (double)NAN;
                cf[i * ldc + j] = NAN;
            }
    dense->dgemm(ta, tb, upper ? SD_DENSE_UPPER : SD_DENSE_ALL, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, scratch,
                 bytes);
    dense->sgemm(ta, tb, upper ? SD_DENSE_UPPER : SD_DENSE_ALL, m, n, k, (float)alpha, af, lda, bf, ldb, (float)beta,
                 cf, ldc, scratch, bytes);
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            double sum = 0.0;
            if (upper && i > j)
                continue;
            for (size_t l = 0; l < k; l++)
                sum += a[ta ? l * lda + i : i * lda + l] * b[tb ? j * ldb + l : l * ldb + j];
            double expected = alpha * sum + (beta == 0.0 ? 0.0 : beta * before[i * ldc + j]);
            if (!(fabs(c[i * ldc + j] - expected) <= 1e-13 * (1.0 + (double)k)) ||
                !(fabs((double)cf[i * ldc + j] - expected) <= 3e-7 * sqrt(1.0 + (double)k)))
                fail_msg("%s %zu x %zu x %zu, ta %d, tb %d, upper %d: (%zu, %zu) is %g and %g, expected %g",
                         dense->name, m, n, k, ta, tb, upper, i, j, c[i * ldc + j], (double)cf[i * ldc + j], expected);
        }
        for (size_t j = n; j < ldc; j++) /* beyond the columns nothing is written */
            assert_true(c[i * ldc + j] == before[i * ldc + j]);
    }
    free(a);
    free(b);
    free(c);
    free(af);
    free(bf);
    free(cf);
    free(before);
    sd_release(NULL, scratch);
}

static void check_inverse(const sd_dense *dense, size_t n) {
    size_t lda = n + 1, bytes = sd_dense_scratch(n, n);
    double *z = random_doubles(2 * n * n, 5), *a = malloc(n * lda * sizeof(double)),
           *whole = malloc(n * n * sizeof(double));
    double *inverse = malloc(n * n * sizeof(double)), determinant = 0.0;
    void *scratch = sd_allocate(NULL, bytes, 1);

    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = i == j ? 1.0 : 0.0;
            for (size_t l = 0; l < 2 * n; l++)
                sum += z[l * n + i] * z[l * n + j];
            whole[i * n + j] = sum;
            a[i * lda + j] = j >= i ? sum : (double)NAN; /* the lower triangle is not read */
        }
    assert_int_equal(sd_dense_cholesky(dense, n, a, lda, inverse, scratch, bytes), 0);
    for (size_t i = 0; i < n; i++) {
        determinant += log(a[i * lda + i]);
        for (size_t j = i; j < n; j++) { /* U'U */
            double sum = 0.0;
            for (size_t l = 0; l <= i; l++)
                sum += a[l * lda + i] * a[l * lda + j];
            assert_true(fabs(sum - whole[i * n + j]) <= 1e-13 * (double)(n + 10));
        }
    }
    assert_true(isfinite(determinant));
    sd_dense_invert(dense, NULL, n, a, lda, inverse, scratch, bytes);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0.0;
            for (size_t l = 0; l < n; l++)
                sum += whole[i * n + l] * (l <= j ? a[l * lda + j] : a[j * lda + l]);
            if (!(fabs(sum - (i == j ? 1.0 : 0.0)) <= 1e-12 * (double)(n + 10)))
                fail_msg("%s, n %zu: (A A^-1)(%zu, %zu) = %g", dense->name, n, i, j, sum);
        }
    /* A matrix that is not positive definite: the pivot. */
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            a[i * lda + j] = i == j ? 1.0 : 0.0;
    size_t bad = n * 2 / 3;
    a[bad * lda + bad] = -1.0;
    assert_int_equal(sd_dense_cholesky(dense, n, a, lda, inverse, scratch, bytes), bad + 1);
    free(z);
    free(a);
    free(whole);
    free(inverse);
    sd_release(NULL, scratch);
}

static const char *const levels[] = {"avx512", "avx2", "generic"};

static void test_products(void **state) {
    (void)state;
    const size_t shapes[][3] = {{1, 1, 1},    {8, 32, 4},    {7, 31, 5},    {9, 33, 17},  {6, 16, 8},
                                {64, 64, 70}, {20, 70, 257}, {50, 40, 600}, {33, 100, 3}};
    for (size_t level = 0; level < 3; level++) {
        setenv("SIMDINO_CPU", levels[level], 1);
        const sd_dense *dense = sd_dense_get();
        for (size_t s = 0; s < sizeof(shapes) / sizeof(*shapes); s++)
            for (int variant = 0; variant < 16; variant++) {
                size_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
                check_product(dense, m, n, k, variant & 1, variant & 2, variant & 4, variant & 8 ? -0.5 : 0.0,
                              variant & 1 ? 1 : n);
            }
    }
    unsetenv("SIMDINO_CPU");
}

static void test_inverse(void **state) {
    (void)state;
    const size_t sizes[] = {1, 2, 7, 63, 64, 65, 130, 200};
    for (size_t level = 0; level < 3; level++) {
        setenv("SIMDINO_CPU", levels[level], 1);
        for (size_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++)
            check_inverse(sd_dense_get(), sizes[s]);
    }
    unsetenv("SIMDINO_CPU");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_inverse),
    };
    return cmocka_run_group_tests_name("dense", tests, NULL, NULL);
}
