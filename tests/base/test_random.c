/* The random numbers: Philox's known answers, and the distributions made from them. */
#include "base/base.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* Known answers of philox4x32-10 that its authors publish with Random123 (kat_vectors): counter, key, result. */
static void known_answers(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], result[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < 3; i++) {
        sd_random random;
        sd_random_init(&random, 0, 0, 0);
        memcpy(random.counter, cases[i].counter, sizeof random.counter);
        memcpy(random.key, cases[i].key, sizeof random.key);
        for (int j = 0; j < 4; j++)
            assert_int_equal(sd_random_u32(&random), cases[i].result[j]);
    }
    sd_random zero; /* the plain stream begins with the first of them */
    sd_random_init(&zero, 0, 0, 0);
    assert_int_equal(sd_random_u32(&zero), 0x6627e8d5);
}

static void streams_are_repeatable_and_apart(void **state) {
    (void)state;
    static const struct {
        uint64_t seed, a;
        uint32_t b;
    } streams[] = {{1, 2, 3}, {1, 2, 4}, {1, 3, 3}, {2, 2, 3}, {0x100000001, 2, 3}, {1, 0x100000002, 3}};
    uint32_t first[6][8];
    for (size_t i = 0; i < 6; i++) {
        sd_random random, again;
        sd_random_init(&random, streams[i].seed, streams[i].a, streams[i].b);
        sd_random_init(&again, streams[i].seed, streams[i].a, streams[i].b);
        for (size_t j = 0; j < 8; j++) {
            first[i][j] = sd_random_u32(&random);
            assert_int_equal(first[i][j], sd_random_u32(&again));
        }
        for (size_t k = 0; k < i; k++)
            assert_memory_not_equal(first[i], first[k], sizeof first[i]);
    }
}

/* A copy of a stream goes on by itself. */
static void stream_is_a_value(void **state) {
    (void)state;
    sd_random random, copy;
    sd_random_init(&random, 5, 6, 7);
    for (int skip = 0; skip < 9; skip++) {
        copy = random;
        uint32_t expected = sd_random_u32(&random);
        assert_int_equal(sd_random_u32(&copy), expected);
    }
}

static double chi_square(const size_t *counts, size_t bins, double expected) {
    double sum = 0;
    for (size_t i = 0; i < bins; i++)
        sum += ((double)counts[i] - expected) * ((double)counts[i] - expected) / expected;
    return sum;
}

static void uniform(void **state) {
    (void)state;
    enum { DRAWS = 200000, BINS = 100 };
    size_t counts[BINS] = {0}, low_bits[2] = {0};
    double sum = 0, square = 0, before = 0, product = 0;
    sd_random random;
    sd_random_init(&random, 42, 0, 0);
    for (int i = 0; i < DRAWS; i++) {
        double u = sd_random_uniform(&random);
        assert_true(u >= 0 && u < 1);
        counts[(size_t)(u * BINS)]++;
        low_bits[(uint64_t)(u * 0x1p53) & 1]++;
        sum += u;
        square += u * u;
        product += (u - 0.5) * (before - 0.5);
        before = u;
    }
    assert_true(chi_square(counts, BINS, (double)DRAWS / BINS) < 99 + 5 * sqrt(2 * 99)); /* mean + 5 deviations */
    assert_true(chi_square(low_bits, 2, DRAWS / 2.0) < 20);                             /* all 53 bits are drawn */
    assert_true(fabs(sum / DRAWS - 0.5) < 5 * sqrt(1.0 / 12 / DRAWS));
    assert_true(fabs(square / DRAWS - 1.0 / 3) < 5 * sqrt(4.0 / 45 / DRAWS));
    assert_true(fabs(product / DRAWS) < 5 / (12 * sqrt(DRAWS)));
}

static void below(void **state) {
    (void)state;
    enum { DRAWS = 70000 };
    sd_random random;
    sd_random_init(&random, 43, 0, 0);
    for (size_t n = 1; n <= 7; n++) {
        size_t counts[7] = {0};
        for (int i = 0; i < DRAWS; i++) {
            uint64_t value = sd_random_below(&random, n);
            assert_true(value < n);
            counts[value]++;
        }
        assert_true(chi_square(counts, n, (double)DRAWS / (double)n) < (double)n + 5 * sqrt(2 * (double)n) + 5);
    }
    assert_true(sd_random_below(&random, 0) == 0);
    assert_true(sd_random_below(&random, 1) == 0);
    /* Just above half of the range a biased way (modulo) favours the lower third twofold. */
    uint64_t n = ((uint64_t)1 << 63) + ((uint64_t)1 << 62);
    size_t thirds[3] = {0};
    for (int i = 0; i < 30000; i++) {
        uint64_t value = sd_random_below(&random, n);
        assert_true(value < n);
        thirds[value / (n / 3)]++;
    }
    assert_true(chi_square(thirds, 3, 10000) < 25);
}

static void normal(void **state) {
    (void)state;
    enum { DRAWS = 400000 };
    double moments[4] = {0};
    size_t inside[3] = {0};
    sd_random random;
    sd_random_init(&random, 44, 0, 0);
    for (int i = 0; i < DRAWS; i++) {
        double x = sd_random_normal(&random), power = 1;
        assert_true(isfinite(x));
        for (int k = 0; k < 4; k++)
            moments[k] += (power *= x) / DRAWS;
        for (int k = 0; k < 3; k++)
            inside[k] += fabs(x) < k + 1;
    }
    assert_true(fabs(moments[0]) < 5 * sqrt(1.0 / DRAWS));
    assert_true(fabs(moments[1] - 1) < 5 * sqrt(2.0 / DRAWS));
    assert_true(fabs(moments[2]) < 5 * sqrt(15.0 / DRAWS));
    assert_true(fabs(moments[3] - 3) < 5 * sqrt(96.0 / DRAWS));
    static const double shares[] = {0.682689492137, 0.954499736104, 0.997300203937};
    for (int k = 0; k < 3; k++)
        assert_true(fabs((double)inside[k] / DRAWS - shares[k]) < 5 * sqrt(shares[k] * (1 - shares[k]) / DRAWS));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers), cmocka_unit_test(streams_are_repeatable_and_apart),
        cmocka_unit_test(stream_is_a_value), cmocka_unit_test(uniform),
        cmocka_unit_test(below),         cmocka_unit_test(normal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
