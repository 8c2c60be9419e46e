/* Products in fp32 and in bf16, every way that this machine has, against sums in double over factors rounded by other
 * means; and the rounding itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "every_gemm.h"
#include "math/products.h"
#include "ways.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the rounding -------------------------------------------------------------------------- */

static float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* x * 1 + 0: what is left of x as either factor. */
static void check_number(const sd_gemm *gemm, float x) {
    const float one = 1.0f;
    float left = -1.0f, right = -1.0f;
    sd_multiply(gemm, false, false, 1, 1, 1, 1.0f, &x, 1, &one, 1, 0.0f, &left, 1);
    sd_multiply(gemm, false, true, 1, 1, 1, 1.0f, &one, 1, &x, 1, 0.0f, &right, 1);
    float expected = (float)rounded((double)x);
    if (isnan(x) ? !isnan(left) || !isnan(right) : !(left == expected) || !(right == expected))
        fail_msg("%a becomes %a and %a instead of %a", (double)x, (double)left, (double)right, (double)expected);
}

static void test_rounding(void **state) {
    (void)state;
    const char *ways[BF16_WAYS_MAX];
    size_t count = bf16_ways(ways);
    const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff}; /* of the half that is cut off */
    const uint32_t upper[] = {0x0000, 0x0001, 0x007f, 0x0080, 0x0081, 0x00ff, 0x3f7f, 0x3f80,
                              0x3f81, 0x3fff, 0x4000, 0x42aa, 0x7eff, 0x7f7e, 0x7f7f, 0x7f80};
    for (size_t way = 0; way < count; way++) {
        bf16_take(ways[way]);
        sd_gemm gemm = make_gemm(SD_PRECISION_BF16);
        for (size_t i = 0; i < sizeof upper / sizeof *upper; i++)
            for (size_t j = 0; j < sizeof lower / sizeof *lower; j++)
                for (uint32_t sign = 0; sign < 2; sign++)
                    check_number(&gemm, of_bits(sign << 31 | upper[i] << 16 | lower[j]));
        check_number(&gemm, NAN);
        check_number(&gemm, of_bits(0x7f800001u)); /* a NaN whose upper half alone is infinity */
        float *x = random_floats(2000, 3);
        for (size_t i = 0; i < 2000; i++)
            check_number(&gemm, x[i]);
        free(x);
        drop_gemm(&gemm);
    }
    bf16_take(NULL);
}

/* Numbers of all exponents and both signs that lie in memory as bfloat16, about ties and at the ends of the range; counts that
 * are no multiple of a vector. */
static void check_rounding_in_memory(const sd_gemm *gemm, int32_t precision, const char *way) {
    enum { UPPER = 0x10000, LOWER = 6 };
    const uint32_t lower[LOWER] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    (void)precision;
    if (!sd_gemm_reads_bf16(gemm))
        return;
    float *x = malloc(UPPER * sizeof *x), *wide = malloc((UPPER + 1) * sizeof *wide);
    uint16_t *y = malloc((UPPER + 1) * sizeof *y);
    assert_true(x != NULL && wide != NULL && y != NULL);
    for (size_t l = 0; l < LOWER; l++) {
        const size_t count = UPPER - 5 * l;
        for (uint32_t i = 0; i < UPPER; i++)
            x[i] = of_bits(i << 16 | lower[l]);
        y[count] = 0x1234;
        wide[count] = 1.5f;
        sd_bf16_round(gemm, x, count, y);
        sd_bf16_widen(gemm, y, count, wide);
        assert_true(y[count] == 0x1234 && wide[count] == 1.5f);
        for (size_t i = 0; i < count; i++) {
            const float expected = (float)rounded((double)x[i]);
            assert_true(of_bits((uint32_t)y[i] << 16) == wide[i] || isnan(x[i]));
            if (isnan(x[i]) ? !isnan(wide[i]) : !(wide[i] == expected) || signbit(wide[i]) != signbit(x[i]))
                fail_msg("%s: %a becomes %a instead of %a", way, (double)x[i], (double)wide[i], (double)expected);
        }
    }
    free(x);
    free(wide);
    free(y);
}

static void test_rounding_in_memory(void **state) {
    (void)state;
    each_gemm(check_rounding_in_memory);
}

/* ---- products ------------------------------------------------------------------------------ */

/* |computed - exact| <= (k + 2) u (|alpha| sum |a b| + |beta c|) (1 + a little), u = 2^-24: k products are added up
 * with one rounding each (VDPBF16PS and a BLAS without FMA: each product and each sum), and alpha and beta are applied.
 * Factors that were not rounded, or rounded in another way, would be off by about 2^-9 |a b|. */
static void check_product(const sd_gemm *gemm, int32_t precision, const char *way, size_t m, size_t n, size_t k, bool ta,
                          bool tb, float alpha, float beta) {
    size_t lda = (ta ? m : k) + 3, ldb = (tb ? k : n) + 1, ldc = n + 2;
    float *a = random_floats((ta ? k : m) * lda, 1), *b = random_floats((tb ? n : k) * ldb, 2);
    float *c = random_floats(m * ldc, 3), *before = random_floats(m * ldc, 3);
    double *ra = copy_in(precision, a, (ta ? k : m) * lda), *rb = copy_in(precision, b, (tb ? n : k) * ldb);
    for (size_t i = 0; beta == 0.0f && i < m; i++)
        for (size_t j = 0; j < n; j++)
            c[i * ldc + j] = NAN; /* must not be read */
    sd_multiply(gemm, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            double sum = 0.0, size = 0.0;
            for (size_t l = 0; l < k; l++) {
                double product = ra[ta ? l * lda + i : i * lda + l] * rb[tb ? j * ldb + l : l * ldb + j];
                sum += product;
                size += fabs(product);
            }
            double more = beta == 0.0f ? 0.0 : (double)beta * (double)before[i * ldc + j];
            double expected = (double)alpha * sum + more, actual = (double)c[i * ldc + j];
            double bound = 1.01 * (double)(2 * k + 2) * 0x1p-24 * (fabs((double)alpha) * size + fabs(more));
            if (!(fabs(actual - expected) <= bound))
                fail_msg("%s, %zu x %zu x %zu, ta %d, tb %d, beta %g: (%zu, %zu) is %.9g, expected %.9g within %.3g", way,
                         m, n, k, ta, tb, (double)beta, i, j, actual, expected, bound);
        }
        for (size_t j = n; j < ldc; j++) /* beyond the columns nothing is written */
            assert_true(c[i * ldc + j] == before[i * ldc + j]);
    }
    free(a);
    free(b);
    free(c);
    free(before);
    free(ra);
    free(rb);
}

/* Every edge of tiles, panels and slices; the last shape has more rows, columns and depth than are packed at once. */
static void check_products(const sd_gemm *gemm, int32_t precision, const char *way) {
    const size_t shapes[][3] = {{1, 1, 1},    {8, 32, 2},   {7, 31, 3},    {9, 33, 17},    {16, 64, 32},  {15, 47, 31},
                                {17, 16, 33}, {70, 65, 64}, {20, 70, 257}, {40, 50, 512}, {33, 100, 513}, {2, 5, 1030},
                                {97, 101, 97}, {90, 500, 40}, {430, 170, 390}};
    const float factors[3][2] = {{1.0f, 1.0f}, {1.0f, 0.0f}, {-0.3f, 0.7f}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int variant = 0; variant < 4; variant++)
            for (int form = 0; form < (shapes[s][0] > 400 ? 1 : 3); form++)
                check_product(gemm, precision, way, shapes[s][0], shapes[s][1], shapes[s][2], variant & 1, variant & 2,
                              factors[form][0], factors[form][1]);
}

static void test_products(void **state) {
    (void)state;
    each_gemm(check_products);
}

/* Numbers that lie in memory as bfloat16: to the last bit the product of the same numbers as floats. */
static void check_gradient(const sd_gemm *gemm, const char *way, size_t m, size_t n, size_t k, float beta) {
    const size_t lda = m + 5, ldb = n + 1, ldc = n + 2;
    float *a = random_floats(k * lda, 1), *b = random_floats(k * ldb, 2);
    float *c = random_floats(m * ldc, 3), *expected = random_floats(m * ldc, 3);
    uint16_t *ra = malloc(k * lda * sizeof *ra), *rb = malloc(k * ldb * sizeof *rb);
    assert_true(ra != NULL && rb != NULL);
    sd_bf16_round(gemm, a, k * lda, ra);
    sd_bf16_round(gemm, b, k * ldb, rb);
    sd_multiply(gemm, true, false, m, n, k, 1.0f, a, lda, b, ldb, beta, expected, ldc);
    sd_multiply_bf16(gemm, m, n, k, ra, lda, rb, ldb, beta, c, ldc);
    for (size_t i = 0; i < m * ldc; i++)
        if (memcmp(&c[i], &expected[i], sizeof *c) != 0)
            fail_msg("%s, %zu x %zu x %zu: (%zu, %zu) is %.9g instead of %.9g", way, m, n, k, i / ldc, i % ldc, (double)c[i],
                     (double)expected[i]);
    free(a);
    free(b);
    free(c);
    free(expected);
    free(ra);
    free(rb);
}

static void check_gradients(const sd_gemm *gemm, int32_t precision, const char *way) {
    const size_t shapes[][3] = {{1, 1, 1},    {8, 32, 2},   {7, 31, 3},     {16, 64, 32},  {15, 47, 31},   {17, 16, 33},
                                {70, 65, 64}, {33, 100, 513}, {97, 101, 97}, {90, 500, 40}, {430, 170, 390}, {5, 7, 0}};
    /* floats are never read rounded, and what multiplies with a library's products reads floats alone */
    assert_int_equal(sd_gemm_reads_bf16(gemm), precision == SD_PRECISION_BF16 && strcmp(way, "onednn") != 0);
    for (size_t s = 0; sd_gemm_reads_bf16(gemm) && s < sizeof shapes / sizeof *shapes; s++)
        for (int more = 0; more < 2; more++)
            check_gradient(gemm, way, shapes[s][0], shapes[s][1], shapes[s][2], (float)more);
}

static void test_gradients_of_bf16(void **state) {
    (void)state;
    each_gemm(check_gradients);
}

/* No inner dimension: beta C. */
static void test_empty(void **state) {
    (void)state;
    bf16_take_any();
    sd_gemm gemm = make_gemm(SD_PRECISION_BF16);
    float c[2] = {3.14159f, NAN}, a = 1.0f;
    sd_multiply(&gemm, false, false, 1, 1, 0, 1.0f, &a, 1, &a, 1, 1.0f, c, 1);
    assert_true(c[0] == 3.14159f);
    sd_multiply(&gemm, false, false, 1, 2, 0, 1.0f, &a, 1, &a, 2, 0.0f, c, 2);
    assert_true(c[0] == 0.0f && c[1] == 0.0f);
    drop_gemm(&gemm);
    bf16_take(NULL);
}

/* An infinite or NaN factor spoils its row or column and nothing else, at the edges of tiles too. */
static void check_not_finite(const sd_gemm *gemm, int32_t precision, const char *way) {
    (void)precision;
    enum { M = 19, N = 45, K = 37 };
    float *a = random_floats(M * K, 1), *b = random_floats(K * N, 2), *c = random_floats(M * N, 3);
    a[18 * K + 36] = INFINITY;
    b[36 * N + 44] = NAN;
    sd_multiply(gemm, false, false, M, N, K, 1.0f, a, K, b, N, 0.0f, c, N);
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++)
            if ((isfinite(c[i * N + j]) != 0) != (i != 18 && j != 44))
                fail_msg("%s: (%zu, %zu) is %g", way, i, j, (double)c[i * N + j]);
    free(a);
    free(b);
    free(c);
}

static void test_not_finite(void **state) {
    (void)state;
    each_gemm(check_not_finite);
}

/* The same number comes out whichever part of the product is computed: so threads may cut it. */
static void check_parts(const sd_gemm *gemm, int32_t precision, const char *way) {
    if (gemm->packed == NULL || strcmp(way, "emulate") == 0) /* sd_sgemm does not promise it, nor does oneDNN */
        return;
    (void)precision;
    enum { M = 100, N = 90, K = 530 };
    float *a = random_floats(M * K, 1), *b = random_floats(N * K, 2), *whole = random_floats(M * N, 3);
    float *parts = random_floats(M * N, 3);
    sd_multiply(gemm, false, true, M, N, K, 1.0f, a, K, b, K, 1.0f, whole, N);
    for (size_t i = 0; i < M; i += 32)
        for (size_t j = 0; j < N; j += 48)
            sd_multiply(gemm, false, true, sd_size_min(32, M - i), sd_size_min(48, N - j), K, 1.0f, a + i * K, K,
                        b + j * K, K, 1.0f, parts + i * N + j, N);
    assert_memory_equal(parts, whole, M * N * sizeof *whole);
    free(a);
    free(b);
    free(whole);
    free(parts);
}

static void test_parts(void **state) {
    (void)state;
    each_gemm(check_parts);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_rounding_in_memory),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_gradients_of_bf16),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_parts),
    };
    return cmocka_run_group_tests_name("gemm", tests, NULL, NULL);
}
