/* Products in fp32 and in bf16, every way that this machine has, against sums in double over factors rounded by other
 * means. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "bf16.h"
#include "math/math.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static sd_gemm make_gemm_in(int32_t precision) {
    size_t bytes = sd_gemm_scratch(precision);
    void *scratch = bytes == 0 ? NULL : sd_allocate(NULL, bytes, 1);
    assert_true(bytes == 0 || scratch != NULL);
    return sd_gemm_of(precision, scratch);
}

static sd_gemm make_gemm(void) { return make_gemm_in(SD_PRECISION_BF16); }

static void drop_gemm(sd_gemm *gemm) { sd_release(NULL, gemm->scratch); }

/* The nearest number of 8 bits of significand, by arithmetic instead of by bits: rint rounds ties to even. */
static double rounded(double x) {
    int exponent;
    if (!isfinite(x) || x == 0.0)
        return x;
    double significand = frexp(x, &exponent);
    double result = ldexp(rint(ldexp(significand, 8)), exponent - 8);
    if (fabs(x) < (double)FLT_MIN)
        return copysign(0.0, x);
    return fabs(result) >= ldexp(1.0, 128) ? copysign((double)INFINITY, x) : result;
}

static float *random_floats(size_t count, uint64_t seed) {
    float *x = malloc(count * sizeof *x);
    assert_non_null(x);
    sd_random random;
    sd_random_init(&random, seed, 0, 0);
    for (size_t i = 0; i < count; i++)
        x[i] = (float)sd_random_normal(&random);
    return x;
}

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
        sd_gemm gemm = make_gemm();
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

/* ---- products ------------------------------------------------------------------------------ */

static double *copy_in(int32_t precision, const float *x, size_t count) {
    double *copy = malloc(count * sizeof *copy);
    assert_non_null(copy);
    for (size_t i = 0; i < count; i++)
        copy[i] = precision == SD_PRECISION_BF16 ? rounded((double)x[i]) : (double)x[i];
    return copy;
}

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
    const char *ways[BF16_WAYS_MAX];
    size_t count = bf16_ways(ways);
    for (size_t way = 0; way < count; way++) {
        bf16_take(ways[way]);
        sd_gemm gemm = make_gemm();
        check_products(&gemm, SD_PRECISION_BF16, ways[way]);
        drop_gemm(&gemm);
    }
    bf16_take(NULL);
}

static void test_fp32_products(void **state) {
    (void)state;
    sd_gemm gemm = make_gemm_in(SD_PRECISION_FP32);
    check_products(&gemm, SD_PRECISION_FP32, "fp32");
    drop_gemm(&gemm);
}

/* No inner dimension: beta C. */
static void test_empty(void **state) {
    (void)state;
    bf16_take_any();
    sd_gemm gemm = make_gemm();
    float c[2] = {3.14159f, NAN}, a = 1.0f;
    sd_multiply(&gemm, false, false, 1, 1, 0, 1.0f, &a, 1, &a, 1, 1.0f, c, 1);
    assert_true(c[0] == 3.14159f);
    sd_multiply(&gemm, false, false, 1, 2, 0, 1.0f, &a, 1, &a, 2, 0.0f, c, 2);
    assert_true(c[0] == 0.0f && c[1] == 0.0f);
    drop_gemm(&gemm);
    bf16_take(NULL);
}

/* An infinite or NaN factor spoils its row or column and nothing else, at the edges of tiles too. */
static void test_not_finite(void **state) {
    (void)state;
    enum { M = 19, N = 45, K = 37 };
    const char *ways[BF16_WAYS_MAX];
    size_t count = bf16_ways(ways);
    for (size_t way = 0; way < count; way++) {
        bf16_take(ways[way]);
        sd_gemm gemm = make_gemm();
        float *a = random_floats(M * K, 1), *b = random_floats(K * N, 2), *c = random_floats(M * N, 3);
        a[18 * K + 36] = INFINITY;
        b[36 * N + 44] = NAN;
        sd_multiply(&gemm, false, false, M, N, K, 1.0f, a, K, b, N, 0.0f, c, N);
        for (size_t i = 0; i < M; i++)
            for (size_t j = 0; j < N; j++)
                if ((isfinite(c[i * N + j]) != 0) != (i != 18 && j != 44))
                    fail_msg("%s: (%zu, %zu) is %g", ways[way], i, j, (double)c[i * N + j]);
        free(a);
        free(b);
        free(c);
        drop_gemm(&gemm);
    }
    bf16_take(NULL);
}

/* The same number comes out whichever part of the product is computed: so threads may cut it. */
static void check_parts(const sd_gemm *gemm) {
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
    const char *ways[BF16_WAYS_MAX];
    size_t count = bf16_ways(ways);
    for (size_t way = 1; way < count; way++) { /* sd_sgemm does not promise it, nor does oneDNN */
        if (strcmp(ways[way], "onednn") == 0)
            continue;
        bf16_take(ways[way]);
        sd_gemm gemm = make_gemm();
        check_parts(&gemm);
        drop_gemm(&gemm);
    }
    bf16_take(NULL);
    sd_gemm gemm = make_gemm_in(SD_PRECISION_FP32);
    if (gemm.scratch != NULL) /* the own products */
        check_parts(&gemm);
    drop_gemm(&gemm);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rounding),   cmocka_unit_test(test_products), cmocka_unit_test(test_empty),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_parts),    cmocka_unit_test(test_fp32_products),
    };
    return cmocka_run_group_tests_name("gemm", tests, NULL, NULL);
}
