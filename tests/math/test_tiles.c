/* Products of floats as sums of three bfloat16 each, by the tiles of AMX: that the parts add up to the number, how close the sums
 * are, and what becomes of numbers at the ends of the range. Skipped where the CPU has no such tiles; tests/math/test_gemm.c has
 * sizes, edges and threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "math/math.h"
#include "ways.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static sd_gemm tiles, fma_chain;

static int make_gemms(void **state) {
    (void)state;
    const char *ways[FP32_WAYS_MAX];
    if (fp32_ways(ways) < 3)
        return 0;
    fp32_take("fma");
    fma_chain = sd_gemm_of(SD_PRECISION_FP32, sd_allocate(NULL, sd_gemm_scratch(SD_PRECISION_FP32), 1));
    fp32_take("tiles");
    tiles = sd_gemm_of(SD_PRECISION_FP32, sd_allocate(NULL, sd_gemm_scratch(SD_PRECISION_FP32), 1));
    fp32_take(NULL);
    return 0;
}

static int drop_gemms(void **state) {
    (void)state;
    sd_release(NULL, tiles.scratch);
    sd_release(NULL, fma_chain.scratch);
    return 0;
}

static void need_tiles(void) {
    if (tiles.packed == NULL)
        skip();
}

static float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* x 1 and 1 x, each also with A transposed and with B transposed. */
static void check_number(float x, float expected) {
    const float one = 1.0f;
    for (int variant = 0; variant < 8; variant++) {
        const float *a = variant & 4 ? &x : &one, *b = variant & 4 ? &one : &x;
        float c = -1.0f;
        sd_multiply(&tiles, variant & 1, variant & 2, 1, 1, 1, 1.0f, a, 1, b, 1, 0.0f, &c, 1);
        if (isnan(expected) ? !isnan(c) : !(c == expected))
            fail_msg("%a becomes %a instead of %a, variant %d", (double)x, (double)c, (double)expected, variant);
    }
}

/* Every number is the sum of its parts: nothing is lost of 24 bits of significand, from where the last part is no subnormal
 * number. */
static void test_nothing_is_lost(void **state) {
    (void)state;
    need_tiles();
    sd_random random;
    sd_random_init(&random, 1, 0, 0);
    for (size_t i = 0; i < 20000; i++) {
        const uint32_t bits = sd_random_u32(&random), exponent = 25 + bits % 228;
        const float x = of_bits((bits & 0x80000000u) | exponent << 23 | sd_random_u32(&random) >> 9);
        check_number(x, x);
    }
    /* carries from part to part, and ties */
    const uint32_t significands[] = {0,        1,        0x7f,     0x80,     0x81,     0xff,     0x7fff,   0x8000,  0x8001,
                                     0x7f7f,   0x7f80,   0x8080,   0x80ff,   0xffff,   0x10000,  0x18000,  0x7effff, 0x7f0000,
                                     0x7f7fff, 0x7f8000, 0x7fff7f, 0x7fff80, 0x7fffff, 0x400000, 0x3fffff, 0x555555, 0x2aaaaa};
    for (size_t i = 0; i < sizeof significands / sizeof *significands; i++)
        for (uint32_t exponent = 30; exponent < 254; exponent += 31)
            for (uint32_t sign = 0; sign < 2; sign++) {
                const float x = of_bits(sign << 31 | exponent << 23 | significands[i]);
                check_number(x, x);
            }
    check_number(0.0f, 0.0f);
}

/* Below the smallest normal number 0, above what rounds to a bfloat16 NaN, and so for infinite ones and NaN. */
static void test_ends_of_range(void **state) {
    (void)state;
    need_tiles();
    check_number(FLT_MIN, FLT_MIN);
    check_number(FLT_MIN / 2, 0.0f);
    check_number(-FLT_TRUE_MIN, 0.0f);
    check_number(of_bits(0x7f7f7fffu), of_bits(0x7f7f7fffu)); /* 3.396e38 */
    check_number(of_bits(0x7f7f8000u), NAN);
    check_number(-FLT_MAX, NAN);
    check_number(INFINITY, NAN);
    check_number(-INFINITY, NAN);
    check_number(NAN, NAN);
    check_number(of_bits(0x7f800001u), NAN);
    check_number(of_bits(0x7fffffffu), NAN); /* whose upper half overflows when it is rounded */
    check_number(of_bits(0xffffffffu), NAN);
}

/* Whole numbers below 2^12, whose products are exact in float, and few of them, so that sums are too: every number right. */
static void test_whole_numbers(void **state) {
    (void)state;
    need_tiles();
    enum { M = 50, N = 70 };
    float *a = malloc(M * 64 * sizeof *a), *b = malloc(64 * N * sizeof *b), *c = malloc(M * N * sizeof *c);
    assert_true(a != NULL && b != NULL && c != NULL);
    for (size_t k = 1; k <= 64; k += 9) {
        sd_random random;
        sd_random_init(&random, 7, k, 0);
        for (size_t i = 0; i < M * k; i++)
            a[i] = (float)((int)(sd_random_u32(&random) % 1023) - 511);
        for (size_t i = 0; i < k * N; i++)
            b[i] = (float)((int)(sd_random_u32(&random) % 1023) - 511);
        sd_multiply(&tiles, false, false, M, N, k, 1.0f, a, k, b, N, 0.0f, c, N);
        for (size_t i = 0; i < M; i++)
            for (size_t j = 0; j < N; j++) {
                double sum = 0.0;
                for (size_t l = 0; l < k; l++)
                    sum += (double)a[i * k + l] * (double)b[l * N + j];
                if ((double)c[i * N + j] != sum)
                    fail_msg("depth %zu: (%zu, %zu) is %.9g instead of %.9g", k, i, j, (double)c[i * N + j], sum);
            }
    }
    free(a);
    free(b);
    free(c);
}

/* Root mean square and largest error of the product, as shares of the root of the sum of squares of what is added up. */
typedef struct errors {
    double usual, largest;
} errors;

static errors errors_of(const sd_gemm *gemm, size_t m, size_t n, size_t k, const float *a, const float *b) {
    float *c = malloc(m * n * sizeof *c);
    errors e = {0.0, 0.0};
    assert_non_null(c);
    sd_multiply(gemm, false, true, m, n, k, 1.0f, a, k, b, k, 0.0f, c, n);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0.0, squares = 0.0;
            for (size_t l = 0; l < k; l++) {
                const double product = (double)a[i * k + l] * (double)b[j * k + l];
                sum += product;
                squares += product * product;
            }
            const double error = fabs((double)c[i * n + j] - sum) / sqrt(squares);
            e.usual += error * error / (double)(m * n);
            e.largest = fmax(e.largest, error);
        }
    e.usual = sqrt(e.usual);
    free(c);
    return e;
}

/* Closer to the exact sums than a chain of FMA, for numbers of one sign too, whose sums grow with each product. */
static void test_errors(void **state) {
    (void)state;
    need_tiles();
    enum { M = 64, N = 96 };
    const size_t depths[] = {64, 384, 1536};
    for (int one_sign = 0; one_sign < 2; one_sign++)
        for (size_t d = 0; d < sizeof depths / sizeof *depths; d++) {
            const size_t k = depths[d];
            float *a = malloc(M * k * sizeof *a), *b = malloc(N * k * sizeof *b);
            sd_random random;
            assert_true(a != NULL && b != NULL);
            sd_random_init(&random, 11, k, 0);
            for (size_t i = 0; i < M * k; i++)
                a[i] = (float)(one_sign ? fabs(sd_random_normal(&random)) : sd_random_normal(&random));
            for (size_t i = 0; i < N * k; i++)
                b[i] = (float)(one_sign ? fabs(sd_random_normal(&random)) : sd_random_normal(&random));
            const errors ours = errors_of(&tiles, M, N, k, a, b), chain = errors_of(&fma_chain, M, N, k, a, b);
            print_message("depth %zu%s: errors of tiles %.2g (largest %.2g), of chains of FMA %.2g (%.2g)\n", k,
                          one_sign ? ", one sign" : "", ours.usual, ours.largest, chain.usual, chain.largest);
            assert_true(ours.usual <= 0.6 * chain.usual && ours.largest <= 0.8 * chain.largest);
            assert_true(ours.usual > 0.0);
            free(a);
            free(b);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_is_lost),
        cmocka_unit_test(test_ends_of_range),
        cmocka_unit_test(test_whole_numbers),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests_name("tiles", tests, make_gemms, drop_gemms);
}
