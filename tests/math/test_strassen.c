/* Products by Strassen's formulas: of whole numbers, of which all sums are exact in float, every number must be right to the
 * last bit; of others the error is held against that of plain sums. Skipped where the library has no such products. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "math/math.h"
#include "math/products.h"
#include "math/strassen.h"
#include "ways.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static sd_gemm gemm;

static int make_gemm(void **state) {
    (void)state;
    fp32_take("fma");
    size_t bytes = sd_gemm_scratch(SD_PRECISION_FP32);
    gemm = sd_gemm_of(SD_PRECISION_FP32, bytes == 0 ? NULL : sd_allocate(NULL, bytes, 1));
    sd_gemm_take_strassen(&gemm);
    return 0;
}

static int drop_gemm(void **state) {
    (void)state;
    fp32_take(NULL);
    sd_release(NULL, gemm.scratch);
    return 0;
}

static void need_strassen(void) {
    if (gemm.strassen == NULL)
        skip();
}

/* Memory of exactly so many floats, whose end is where the sanitizer watches. */
static float *take(size_t count) {
    float *x = malloc(count * sizeof *x);
    assert_non_null(x);
    return x;
}

/* Normal ones; or whole ones from -4 to 4: sums of 1,536 products of sums of two stay below 2^24. */
static float *random_numbers(size_t count, uint64_t seed, bool whole) {
    float *x = take(count);
    sd_random random;
    sd_random_init(&random, seed, 1, 0);
    for (size_t i = 0; i < count; i++)
        x[i] = whole ? (float)((int)(sd_random_u32(&random) % 9) - 4) : (float)sd_random_normal(&random);
    return x;
}

static float *whole_numbers(size_t count, uint64_t seed) { return random_numbers(count, seed, true); }
static float *normal_numbers(size_t count, uint64_t seed) { return random_numbers(count, seed, false); }

static float *transposed(const float *x, size_t rows, size_t columns) {
    float *y = take(rows * columns);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            y[j * rows + i] = x[i * columns + j];
    return y;
}

/* C[m x n] = A B in double, A m x k and B k x n without gaps. */
static double *product(const float *a, const float *b, size_t m, size_t n, size_t k) {
    double *c = calloc(m * n, sizeof *c);
    assert_non_null(c);
    for (size_t i = 0; i < m; i++)
        for (size_t l = 0; l < k; l++) {
            double x = (double)a[i * k + l];
            for (size_t j = 0; j < n; j++)
                c[i * n + j] += x * (double)b[l * n + j];
        }
    return c;
}

static sd_factor packed_factor(bool tb, size_t n, size_t k, const float *b, size_t columns_at_once) {
    sd_factor factor = {.tb = tb, .n = n, .k = k, .b = b, .ldb = tb ? k : n};
    sd_factor_take_strassen(&gemm, &factor);
    factor.packed = sd_allocate(NULL, sd_factor_bytes(&gemm, n, k), 1);
    assert_non_null(factor.packed);
    for (size_t column = 0; column < n; column += columns_at_once)
        sd_factor_pack(&gemm, &factor, column, sd_size_min(columns_at_once, n - column));
    return factor;
}

/* n, k of right factors, such that slices of the inner dimension are one, two alike, two that differ, three. */
static const size_t factors[][2] = {{128, 128}, {192, 160}, {448, 384}, {128, 1120}, {192, 800}, {384, 1536}};
/* Few rows, one missing, one tile more than fits, more than are taken at once (416). */
static const size_t rows[] = {1, 2, 3, 5, 9, 16, 17, 27, 31, 100, 197, 391, 394, 417, 430, 840};

static void test_products(void **state) {
    (void)state;
    need_strassen();
    for (size_t f = 0; f < sizeof factors / sizeof *factors; f++) {
        size_t n = factors[f][0], k = factors[f][1];
        float *b = whole_numbers(k * n, f), *b_transposed = transposed(b, k, n);
        sd_factor plain = packed_factor(false, n, k, b, n), other = packed_factor(true, n, k, b_transposed, 64);
        assert_true(plain.strassen && other.strassen);
        assert_memory_equal(plain.packed, other.packed, sd_strassen_bytes(n, k));
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
            size_t m = rows[r], lda = k + r % 3, ldc = n + r % 2;
            float *a = whole_numbers(m * k, 100 + r), *gaps = take((m - 1) * lda + k), *c = take((m - 1) * ldc + n + 1);
            for (size_t i = 0; i < (m - 1) * lda + k; i++)
                gaps[i] = NAN;
            for (size_t i = 0; i < m; i++)
                memcpy(gaps + i * lda, a + i * k, k * sizeof *a);
            for (size_t i = 0; i <= (m - 1) * ldc + n; i++)
                c[i] = -1.5f;
            double *expected = product(a, b, m, n, k);
            sd_multiply_factor(&gemm, m, gaps, lda, &plain, 0, n, c, ldc, NULL);
            for (size_t i = 0; i < m; i++) {
                for (size_t j = 0; j < n; j++)
                    if (!((double)c[i * ldc + j] == expected[i * n + j]))
                        fail_msg("%zu x %zu x %zu: C(%zu, %zu) is %g instead of %g", m, n, k, i, j,
                                 (double)c[i * ldc + j], expected[i * n + j]);
                if (ldc > n || i + 1 == m)
                    assert_true(c[i * ldc + n] == -1.5f); /* a gap, or what follows C */
            }
            free(a);
            free(gaps);
            free(c);
            free(expected);
        }
        sd_release(NULL, plain.packed);
        sd_release(NULL, other.packed);
        free(b);
        free(b_transposed);
    }
}

/* Largest and root mean square difference from `expected`. */
static void errors_of(const float *c, const double *expected, size_t count, double *largest, double *rms) {
    double sum = 0.0;
    *largest = 0.0;
    for (size_t i = 0; i < count; i++) {
        double error = fabs((double)c[i] - expected[i]);
        *largest = fmax(*largest, error);
        sum += error * error;
    }
    *rms = sqrt(sum / (double)count);
}

/* What the formulas cost in exactness: for numbers of one size errors are about twice those of plain sums (2.1 here). */
static void test_errors(void **state) {
    (void)state;
    need_strassen();
    size_t m = 394, n = 384, k = 1536;
    float *a = normal_numbers(m * k, 1), *b = normal_numbers(k * n, 2), *c = take(m * n), *plain = take(m * n);
    double *expected = product(a, b, m, n, k), largest, rms, plain_largest, plain_rms;
    sd_factor factor = packed_factor(false, n, k, b, n);
    sd_multiply_rows(&gemm, m, a, &factor, c, NULL);
    sd_multiply(&gemm, false, false, m, n, k, 1.0f, a, k, b, n, 0.0f, plain, n);
    errors_of(c, expected, m * n, &largest, &rms);
    errors_of(plain, expected, m * n, &plain_largest, &plain_rms);
    if (!(rms <= 2.5 * plain_rms) || !(largest <= 3.0 * plain_largest))
        fail_msg("errors of %g and at most %g; plain sums: %g and %g", rms, largest, plain_rms, plain_largest);
    assert_true(memcmp(c, plain, m * n * sizeof *c) != 0); /* else no formulas were at work */
    sd_release(NULL, factor.packed);
    free(a);
    free(b);
    free(c);
    free(plain);
    free(expected);
}

static void test_sizes(void **state) {
    (void)state;
    need_strassen();
    const size_t unfit[][2] = {{64, 128}, {128, 96}, {160, 128}, {128, 144}};
    for (size_t i = 0; i < sizeof unfit / sizeof *unfit; i++) {
        sd_factor factor = {.n = unfit[i][0], .k = unfit[i][1]};
        sd_factor_take_strassen(&gemm, &factor);
        assert_false(factor.strassen);
    }
    sd_gemm plain = gemm;
    plain.strassen = NULL;
    sd_factor factor = {.n = 128, .k = 128};
    sd_factor_take_strassen(&plain, &factor);
    assert_false(factor.strassen);
    assert_true(sd_factor_bytes(&plain, 128, 128) < sd_factor_bytes(&gemm, 128, 128));
}

/* ---- gradients of weights ------------------------------------------------------------------ */

static void run_gradient(size_t threads, const sd_product *products, size_t count) {
    sd_context_config config;
    sd_context *context;
    sd_context_config_init(&config);
    config.threads = (int32_t)threads;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    sd_gemm gemms[4];
    for (size_t i = 0; i < threads; i++) {
        gemms[i] = gemm;
        gemms[i].scratch = sd_allocate(NULL, sd_gemm_scratch(SD_PRECISION_FP32), 1);
    }
    assert_int_equal(sd_run_products(context, gemms, products, count, NULL, NULL), SD_OK);
    for (size_t i = 0; i < threads; i++)
        sd_release(NULL, gemms[i].scratch);
    sd_context_destroy(context);
}

static void test_gradients(void **state) {
    (void)state;
    need_strassen();
    const size_t shapes[][2] = {{128, 128}, {160, 192}, {576, 192}, {192, 768}, {1184, 384}};
    const size_t depths[] = {256, 257, 400, 767, 769, 1001};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t d = 0; d < sizeof depths / sizeof *depths; d++) {
            size_t out = shapes[s][0], in = shapes[s][1], tokens = depths[d];
            assert_true(sd_strassen_fits_gradient(out, in, tokens));
            float *dy = whole_numbers(tokens * out, s), *x = whole_numbers(tokens * in, 50 + d);
            float *dy_transposed = transposed(dy, tokens, out), *before = whole_numbers(out * in, 70);
            double *expected = product(dy_transposed, x, out, in, tokens);
            for (size_t threads = 1; threads <= 4; threads++) {
                float *dweight = take(out * in);
                memcpy(dweight, before, out * in * sizeof *before);
                sd_product gradient = sd_linear_weight(dy, x, tokens, out, in, dweight);
                const bool added = threads != 3; /* else what was there before is overwritten */
                if (!added)
                    gradient.beta = 0.0f;
                run_gradient(threads, &gradient, 1);
                for (size_t i = 0; i < out * in; i++)
                    if (!((double)dweight[i] == expected[i] + (added ? (double)before[i] : 0.0)))
                        fail_msg("%zu x %zu, %zu tokens, %zu threads: number %zu is %g instead of %g", out, in, tokens,
                                 threads, i, (double)dweight[i], expected[i] + (added ? (double)before[i] : 0.0));
                free(dweight);
            }
            free(dy);
            free(x);
            free(dy_transposed);
            free(before);
            free(expected);
        }
}

/* The same to the last bit however threads cut them, beside other products. */
static void test_cuts(void **state) {
    (void)state;
    need_strassen();
    size_t tokens = 700, d = 192, f = 768;
    float *dy = normal_numbers(tokens * f, 1), *x = normal_numbers(tokens * f, 2), *first = NULL;
    for (size_t threads = 1; threads <= 4; threads++) {
        float *gradients = calloc(3 * d * f, sizeof *gradients);
        assert_non_null(gradients);
        sd_product products[] = {sd_linear_weight(dy, x, tokens, f, d, gradients),
                                 sd_linear_weight(dy, x, tokens, d, f, gradients + d * f),
                                 sd_linear_weight(dy, x, tokens, d, d, gradients + 2 * d * f)};
        run_gradient(threads, products, 3);
        if (first == NULL) {
            first = gradients;
            continue;
        }
        assert_memory_equal(gradients, first, 3 * d * f * sizeof *gradients);
        free(gradients);
    }
    free(first);
    free(dy);
    free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),  cmocka_unit_test(test_errors), cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_gradients), cmocka_unit_test(test_cuts),
    };
    return cmocka_run_group_tests_name("math_strassen", tests, make_gemm, drop_gemm);
}
