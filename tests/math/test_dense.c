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

/* The least memory, or that with which large products of floats go by tiles where the CPU has them. */
static bool at_best;
static size_t scratch_for(size_t k, size_t n) { return at_best ? sd_dense_scratch_at_best(k, n) : sd_dense_scratch(k, n); }

static void check_product(const sd_dense *dense, size_t m, size_t n, size_t k, bool ta, bool tb, bool upper,
                          double beta, size_t scratch_columns) {
    size_t lda = (ta ? m : k) + 3, ldb = (tb ? k : n) + 1, ldc = n + 2;
    size_t a_count = (ta ? k : m) * lda, b_count = (tb ? n : k) * ldb, c_count = m * ldc;
    double *a = random_doubles(a_count, 1), *b = random_doubles(b_count, 2), *c = random_doubles(c_count, 3);
    float *af = as_floats(a, a_count), *bf = as_floats(b, b_count), *cf = as_floats(c, c_count);
    double *before = malloc(c_count * sizeof(double)), alpha = 1.25;
    size_t bytes = scratch_for(k, scratch_columns);
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
            if (upper && i + n > j + m)
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

static double largest_difference(const double *a, const double *b, size_t count) {
    double most = 0.0;
    for (size_t i = 0; i < count; i++)
        most = fmax(most, fabs(a[i] - b[i]));
    return most;
}

/* A = I + Z'Z of 2n rows of n: the inverse from A's upper triangle alone, in both types, with and without threads. */
static void check_inverse(const sd_dense *dense, size_t n, sd_context *context) {
    size_t square = n * n, bytes = scratch_for(SD_DENSE_PANEL, n);
    double *z = random_doubles(2 * square, 5), *whole = random_doubles(square, 6), *a = random_doubles(square, 6);
    double *inverse = random_doubles(square, 7), *alone = random_doubles(square, 8),
           *product = random_doubles(square, 9);
    double *pivots = random_doubles(2 * n, 1), *squares = pivots + n, frobenius = 0.0, determinant = 0.0;
    float *af = malloc(square * sizeof(float)), *inverse_f = as_floats(inverse, square);
    size_t threads = (size_t)sd_context_threads(context);
    void *scratch = sd_allocate(NULL, bytes, threads);
    const sd_dense_room room = {context, scratch, bytes}, single = {NULL, scratch, bytes};

    assert_non_null(af);
    assert_non_null(scratch);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = i == j ? 1.0 : 0.0;
            for (size_t l = 0; l < 2 * n; l++)
                sum += z[l * n + i] * z[l * n + j];
            whole[i * n + j] = sum;
            a[i * n + j] = j >= i ? sum : (double)NAN; /* the lower triangle is not read */
            af[i * n + j] = (float)a[i * n + j];
        }
    memcpy(product, a, square * sizeof(double));
    assert_int_equal(sd_dense_invert_f64(dense, &room, n, a, n, inverse, pivots, squares), 0);
    for (size_t i = 0; i < n; i++) {
        determinant += log(pivots[i]);
        frobenius += squares[i];
    }
    memcpy(a, product, square * sizeof(double));
    assert_int_equal(sd_dense_invert_f64(dense, &single, n, a, n, alone, pivots, squares), 0);
    assert_memory_equal(inverse, alone, square * sizeof(double));
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++) {
            double sum = 0.0;
            for (size_t l = 0; l < n; l++)
                sum += whole[i * n + l] * inverse[l * n + j];
            product[i * n + j] = sum - (i == j ? 1.0 : 0.0);
            assert_true(inverse[i * n + j] == inverse[j * n + i]);
            frobenius -= inverse[i * n + j] * inverse[i * n + j];
        }
    }
    assert_true(fabs(frobenius) <= 1e-12 * (double)n);
    memset(alone, 0, square * sizeof(double));
    if (!(largest_difference(product, alone, square) <= 1e-12 * (double)(n + 10)))
        fail_msg("%s, n %zu: A A^-1 - I is %g", dense->name, n, largest_difference(product, alone, square));

    /* float, and the pivots without an inverse */
    assert_int_equal(sd_dense_invert_f32(dense, &room, n, af, n, inverse_f, pivots, squares), 0);
    for (size_t i = 0; i < square; i++)
        alone[i] = (double)inverse_f[i];
    if (!(largest_difference(inverse, alone, square) <= 1e-6))
        fail_msg("%s, n %zu: float inverse off by %g", dense->name, n, largest_difference(inverse, alone, square));
    for (size_t i = 0; i < n; i++)
        determinant -= log(pivots[i]);
    assert_true(fabs(determinant) <= 1e-6 * (double)n);
    double with[1] = {0}, without[1] = {0};
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++)
            a[i * n + j] = j >= i ? whole[i * n + j] : (double)NAN;
    }
    memcpy(product, a, square * sizeof(double));
    assert_int_equal(sd_dense_invert_f64(dense, &room, n, a, n, inverse, pivots, squares), 0);
    for (size_t i = 0; i < n; i++)
        with[0] += pivots[i];
    assert_int_equal(sd_dense_invert_f64(dense, &room, n, product, n, NULL, pivots, NULL), 0);
    for (size_t i = 0; i < n; i++)
        without[0] += pivots[i];
    assert_true(with[0] == without[0]);

    /* A matrix that is not positive definite, or not a number: the pivot. */
    size_t bad = n * 2 / 3;
    for (int nan = 0; nan < 2; nan++) {
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++) {
                a[i * n + j] = i == j ? 1.0 : 0.0;
                af[i * n + j] = (float)a[i * n + j];
            }
        a[bad * n + bad] = nan ? (double)NAN : -1.0;
        af[bad * n + bad] = (float)a[bad * n + bad];
        assert_int_equal(sd_dense_invert_f64(dense, &room, n, a, n, inverse, pivots, squares), bad + 1);
        assert_int_equal(sd_dense_invert_f32(dense, &room, n, af, n, inverse_f, pivots, squares), bad + 1);
    }
    free(z);
    free(whole);
    free(a);
    free(inverse);
    free(alone);
    free(product);
    free(pivots);
    free(af);
    free(inverse_f);
    sd_release(NULL, scratch);
}

static const char *const levels[] = {"avx512", "avx2", "generic"};

/* Z'Z and ZZ' with one matrix as both factors, which the products tell by the pointer. */
static void check_gram(const sd_dense *dense, size_t m, size_t k, bool tall, size_t scratch_columns) {
    size_t ld = (tall ? m : k) + 1, count = (tall ? k : m) * ld, bytes = scratch_for(k, scratch_columns);
    double *z = random_doubles(count, 4), *c = random_doubles(m * m, 3);
    float *zf = as_floats(z, count), *cf = as_floats(c, m * m);
    void *scratch = sd_allocate(NULL, bytes, 1);

    dense->dgemm(tall, !tall, SD_DENSE_UPPER, m, m, k, 2.0, z, ld, z, ld, 0.0, c, m, scratch, bytes);
    dense->sgemm(tall, !tall, SD_DENSE_UPPER, m, m, k, 2.0f, zf, ld, zf, ld, 0.0f, cf, m, scratch, bytes);
    for (size_t i = 0; i < m; i++)
        for (size_t j = i; j < m; j++) {
            double sum = 0.0;
            for (size_t l = 0; l < k; l++)
                sum += 2.0 * (tall ? z[l * ld + i] * z[l * ld + j] : z[i * ld + l] * z[j * ld + l]);
            if (!(fabs(c[i * m + j] - sum) <= 1e-13 * (1.0 + (double)k)) ||
                !(fabs((double)cf[i * m + j] - sum) <= 3e-7 * sqrt(1.0 + (double)k) + 1e-6 * fabs(sum)))
                fail_msg("%s Gram %zu of %zu, tall %d: (%zu, %zu) is %g and %g, expected %g", dense->name, m, k, tall,
                         i, j, c[i * m + j], (double)cf[i * m + j], sum);
        }
    free(z);
    free(c);
    free(zf);
    free(cf);
    sd_release(NULL, scratch);
}

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
        for (size_t m = 1; m < 80; m += 13)
            for (size_t k = 1; k < 600; k += 123)
                for (int variant = 0; variant < 4; variant++)
                    check_gram(dense, m, k, variant & 1, variant & 2 ? 1 : m);
    }
    unsetenv("SIMDINO_CPU");
    at_best = true;
    for (int variant = 0; variant < 16; variant++)
        check_product(sd_dense_get(), 130, 257, 71, variant & 1, variant & 2, variant & 4, variant & 8 ? -0.5 : 0.0, 257);
    for (size_t m = 150; m < 300; m += 53)
        for (int tall = 0; tall < 2; tall++)
            check_gram(sd_dense_get(), m, 401, tall, m);
    at_best = false;
}

static void test_inverse(void **state) {
    (void)state;
    const size_t sizes[] = {1, 2, 7, 15, 16, 17, 33, 63, 64, 65, 100, 128, 129, 200, 257, 330};
    sd_context_config config;
    sd_context *context = NULL;

    sd_context_config_init(&config);
    config.threads = 3;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    for (size_t level = 0; level < 3; level++) {
        setenv("SIMDINO_CPU", levels[level], 1);
        for (size_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++)
            check_inverse(sd_dense_get(), sizes[s], context);
    }
    unsetenv("SIMDINO_CPU");
    at_best = true;
    check_inverse(sd_dense_get(), 128, context);
    check_inverse(sd_dense_get(), 330, context);
    at_best = false;
    sd_context_destroy(context);
}

static int failing_runner(void *opaque, sd_parallel_function function, void *work, size_t count) {
    (void)opaque, (void)count;
    function(work, 0, 0);
    return 1;
}

/* A host's runner that fails half-way: said, not hidden in a wrong inverse. */
static void test_failing_runner(void **state) {
    (void)state;
    const size_t n = 300;
    size_t bytes = scratch_for(SD_DENSE_PANEL, n);
    sd_context_config config;
    sd_context *context = NULL;
    float *a = calloc(n * n, sizeof(float)), *inverse = calloc(n * n, sizeof(float));
    double *pivots = calloc(2 * n, sizeof(double));
    void *scratch = sd_allocate(NULL, bytes, 2);

    assert_true(a && inverse && pivots && scratch);
    sd_context_config_init(&config);
    config.threads = 2;
    config.runner = failing_runner;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    for (size_t i = 0; i < n; i++)
        a[i * n + i] = 1.0f;
    const sd_dense_room room = {context, scratch, bytes};
    assert_true(sd_dense_invert_f32(sd_dense_get(), &room, n, a, n, inverse, pivots, pivots + n) ==
                SD_DENSE_NO_THREADS);
    sd_context_destroy(context);
    sd_release(NULL, scratch);
    free(a);
    free(inverse);
    free(pivots);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_inverse),
        cmocka_unit_test(test_failing_runner),
    };
    return cmocka_run_group_tests_name("dense", tests, NULL, NULL);
}
