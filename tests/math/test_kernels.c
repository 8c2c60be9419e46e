/* The vector kernels of every instruction set that this CPU has, against the C library in double precision. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/system.h"
#include "math/kernels.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static const sd_kernels *sets[3];
static size_t set_count;

static int find_sets(void **state) {
    (void)state;
    sets[set_count++] = &sd_kernels_generic;
#if defined(SD_HAVE_X86_KERNELS)
    if (sd_cpu_detect() >= SD_CPU_AVX2)
        sets[set_count++] = &sd_kernels_avx2;
    if (sd_cpu_detect() >= SD_CPU_AVX512)
        sets[set_count++] = &sd_kernels_avx512;
#endif
    return 0;
}

/* Units in the last place of `expected` by which `actual` is off. */
static double ulps(float actual, double expected) {
    float rounded = (float)expected;
    float next = nextafterf(fabsf(rounded), INFINITY);
    return fabs((double)actual - expected) / (double)(next - fabsf(rounded));
}

static void test_exp(void **state) {
    (void)state;
    for (size_t k = 0; k < set_count; k++) {
        double worst = 0.0;
        for (double start = -87.0; start < 88.0; start += 1.0) {
            float x[256], y[256];
            for (size_t i = 0; i < 256; i++)
                x[i] = (float)(start + (double)i / 256.0);
            sets[k]->exp(x, y, 256);
            for (size_t i = 0; i < 256; i++)
                worst = fmax(worst, ulps(y[i], exp((double)x[i])));
        }
        assert_true(worst < 1.5);
        float extremes[4] = {-1e30f, -200.0f, 0.0f, -0.0f}, results[4];
        sets[k]->exp(extremes, results, 4);
        assert_true(results[0] < 2e-38f && results[0] >= 0.0f && results[1] < 2e-38f);
        assert_true(results[2] == 1.0f && results[3] == 1.0f);
    }
}

static double gelu(double x) { return 0.5 * x * erfc(-x / sqrt(2.0)); }
static double gelu_slope(double x) {
    return 0.5 * erfc(-x / sqrt(2.0)) + x * exp(-0.5 * x * x) / sqrt(2.0 * 3.14159265358979323846);
}

static void test_gelu(void **state) {
    (void)state;
    for (size_t k = 0; k < set_count; k++) {
        double worst_near = 0.0, worst_far = 0.0, worst_slope = 0.0;
        for (double start = -9.0; start < 9.0; start += 0.25) {
            float h[250], g[250], d[250], bias[250] = {0}, sum[250] = {0}, again[250];
            for (size_t i = 0; i < 250; i++) {
                h[i] = (float)(start + (double)i * 0.001);
                d[i] = 1.0f;
            }
            float in_place[250];
            memcpy(in_place, h, sizeof in_place);
            sets[k]->bias_gelu(h, 1, 250, 250, bias, g, 250);
            sets[k]->bias_gelu(in_place, 1, 250, 250, bias, in_place, 250);
            assert_memory_equal(in_place, g, sizeof in_place);
            float down[250], over[250], sum_over[250] = {0};
            memcpy(over, h, sizeof over);
            sets[k]->gelu_backward(over, d, 1, 250, 250, over, NULL, sum_over); /* in the place of h */
            sets[k]->gelu_backward(h, d, 1, 250, 250, down, again, sum);
            assert_memory_equal(over, down, sizeof over);
            assert_memory_equal(sum_over, sum, sizeof sum);
            memcpy(over, h, sizeof over);
            sets[k]->gelu_backward(over, d, 1, 250, 250, over, again, sum_over);
            assert_memory_equal(over, down, sizeof over);
            float both[250];
            memcpy(over, h, sizeof over);
            memcpy(both, d, sizeof both);
            sets[k]->gelu_backward(over, both, 1, 250, 250, over, both, sum_over); /* g in that of d */
            assert_memory_equal(over, down, sizeof over);
            assert_memory_equal(both, again, sizeof both);
            sets[k]->gelu_backward(h, d, 1, 250, 250, d, NULL, sum_over); /* and in that of d */
            assert_memory_equal(d, down, sizeof d);
            for (size_t i = 0; i < 250; i++) {
                double x = (double)h[i];
                double off = ulps(g[i], gelu(x));
                if (x > -2.0)
                    worst_near = fmax(worst_near, off);
                else /* the exponent x^2/2 is rounded, which the tail feels: it stays relatively exact all the same */
                    worst_far = fmax(worst_far, fabs((double)g[i] / gelu(x) - 1.0));
                worst_slope = fmax(worst_slope, fabs((double)d[i] - gelu_slope(x)));
                assert_true(g[i] == again[i] && sum[i] == d[i]);
            }
        }
        print_message("%s: gelu is off by %.1f ulp above -2, relatively %.1e below, its slope by %.1e\n", sets[k]->name,
                      worst_near, worst_far, worst_slope);
        assert_true(worst_near < 6.0);
        assert_true(worst_far < 6e-6);
        assert_true(worst_slope < 4e-7);
    }
}

/* Gates: both results in the place of what they come from, as anywhere else. */
static void test_swiglu(void **state) {
    (void)state;
    enum { N = 50, PLACES = 2 * N };
    for (size_t k = 0; k < set_count; k++) {
        float h[PLACES], d[N], bias[PLACES] = {0}, g[N], again[N], dh[PLACES], over[PLACES], both[N];
        float sum[PLACES] = {0}, sum_over[PLACES] = {0}, alone[PLACES];
        for (size_t i = 0; i < PLACES; i++)
            h[i] = (float)(4.0 * sin(0.7 * (double)i));
        for (size_t i = 0; i < N; i++)
            d[i] = (float)cos(0.9 * (double)i);
        sets[k]->bias_swiglu(h, 1, N, bias, g);
        sets[k]->swiglu_backward(h, d, N, 1, N, dh, again, sum);
        memcpy(over, h, sizeof over);
        memcpy(both, d, sizeof both);
        sets[k]->swiglu_backward(over, both, N, 1, N, over, both, sum_over);
        assert_memory_equal(over, dh, sizeof dh);
        assert_memory_equal(both, again, sizeof again);
        sets[k]->swiglu_backward(h, d, N, 1, N, alone, NULL, sum_over);
        for (size_t i = 0; i < N; i++) {
            const double a = (double)h[i], b = (double)h[N + i], s = 1.0 / (1.0 + exp(-a)), up = (double)d[i];
            assert_true(fabs((double)g[i] - a * s * b) <= 2e-6 && fabs((double)again[i] - (double)g[i]) <= 2e-6);
            assert_true(fabs((double)dh[i] - up * b * s * (1.0 + a * (1.0 - s))) <= 4e-6);
            assert_true(fabs((double)dh[N + i] - up * a * s) <= 2e-6);
            assert_true(fabs((double)alone[i] - (double)dh[i]) <= 1e-6 && sum[i] == dh[i]);
        }
    }
}

static float sample(size_t i) { return (float)sin(0.7 * (double)i + 0.3 * (double)(i % 17)); }

#define ROWS 5
#define WIDTH 37 /* no multiple of a vector */

static void test_layer_norm(void **state) {
    (void)state;
    float x[ROWS * WIDTH], weight[WIDTH], bias[WIDTH], y[ROWS * WIDTH], dy[ROWS * WIDTH];
    for (size_t i = 0; i < ROWS * WIDTH; i++) {
        x[i] = 3.0f * sample(i) + 1.0f;
        dy[i] = sample(3 * i + 1);
    }
    for (size_t j = 0; j < WIDTH; j++) {
        weight[j] = 1.0f + 0.3f * sample(j);
        bias[j] = 0.2f * sample(7 * j);
    }
    for (size_t k = 0; k < set_count; k++) {
        float mean[ROWS], rstd[ROWS], dx[ROWS * WIDTH] = {0}, dweight[WIDTH] = {0}, dbias[WIDTH] = {0};
        float again[ROWS * WIDTH];
        sets[k]->layer_norm(x, ROWS, WIDTH, weight, bias, y, mean, rstd);
        sets[k]->layer_norm_backward(dy, x, mean, rstd, ROWS, WIDTH, weight, bias, dx, dweight, dbias, again);
        assert_memory_equal(y, again, sizeof y);
        float over[ROWS * WIDTH], dx_over[ROWS * WIDTH] = {0}, unused[WIDTH] = {0};
        memcpy(over, x, sizeof over);
        sets[k]->layer_norm_backward(dy, over, mean, rstd, ROWS, WIDTH, weight, bias, dx_over, unused, unused, over);
        assert_memory_equal(over, y, sizeof over);
        assert_memory_equal(dx_over, dx, sizeof dx);
        double expected_dbias[WIDTH] = {0}, expected_dweight[WIDTH] = {0};
        for (size_t i = 0; i < ROWS; i++) {
            const float *row = x + i * WIDTH, *drow = dy + i * WIDTH;
            double m = 0.0, v = 0.0, sum = 0.0, dot = 0.0;
            for (size_t j = 0; j < WIDTH; j++)
                m += (double)row[j] / WIDTH;
            for (size_t j = 0; j < WIDTH; j++)
                v += ((double)row[j] - m) * ((double)row[j] - m) / WIDTH;
            double r = 1.0 / sqrt(v + 1e-6);
            for (size_t j = 0; j < WIDTH; j++) {
                double normal = ((double)row[j] - m) * r, a = (double)drow[j] * (double)weight[j];
                sum += a / WIDTH;
                dot += a * normal / WIDTH;
                expected_dweight[j] += (double)drow[j] * normal;
                expected_dbias[j] += (double)drow[j];
                assert_true(fabs((double)y[i * WIDTH + j] - (normal * (double)weight[j] + (double)bias[j])) < 2e-6);
            }
            for (size_t j = 0; j < WIDTH; j++) {
                double normal = ((double)row[j] - m) * r;
                double expected = r * ((double)drow[j] * (double)weight[j] - sum - normal * dot);
                assert_true(fabs((double)dx[i * WIDTH + j] - (expected)) < 2e-6);
            }
        }
        for (size_t j = 0; j < WIDTH; j++) {
            assert_true(fabs((double)dweight[j] - (expected_dweight[j])) < 2e-6);
            assert_true(fabs((double)dbias[j] - (expected_dbias[j])) < 2e-6);
        }
    }
}

static void test_softmax(void **state) {
    (void)state;
    enum { LD = 48 };
    for (size_t k = 0; k < set_count; k++) {
        float s[ROWS * LD], p[ROWS * LD], dp[ROWS * LD];
        for (size_t i = 0; i < ROWS * LD; i++) {
            s[i] = i % LD < WIDTH ? 20.0f * sample(i) : NAN; /* padding is not read */
            dp[i] = i % LD < WIDTH ? sample(5 * i) : NAN;
        }
        memcpy(p, s, sizeof p);
        const float scale = k % 2 == 0 ? 1.0f : 0.75f;
        sets[k]->softmax(p, ROWS, WIDTH, LD, scale);
        float ds[ROWS * LD];
        memcpy(ds, dp, sizeof ds);
        sets[k]->softmax_backward(p, ds, ROWS, WIDTH, LD, 0.5f);
        for (size_t i = 0; i < ROWS; i++) {
            double sum = 0.0, dot = 0.0, expected[WIDTH];
            for (size_t j = 0; j < WIDTH; j++)
                sum += exp((double)scale * ((double)s[i * LD + j] - 20.0));
            for (size_t j = 0; j < WIDTH; j++) {
                expected[j] = exp((double)scale * ((double)s[i * LD + j] - 20.0)) / sum;
                dot += expected[j] * (double)dp[i * LD + j];
                /* differences of logits of up to 40 are rounded by up to 1.9e-6, which the exponential takes over */
                assert_true(fabs((double)p[i * LD + j] - expected[j]) <= 2.5e-6 * expected[j] + 1e-37);
            }
            for (size_t j = 0; j < WIDTH; j++)
                assert_true(fabs((double)ds[i * LD + j] - 0.5 * expected[j] * ((double)dp[i * LD + j] - dot)) < 1e-6);
        }
    }
}

/* ---- rows that are taken some at a time ------------------------------------------------------ */

enum { MOST_ROWS = 20, MOST_WIDTH = 197, MOST_LD = 224 };

static void expect_row(const char *set, const char *what, size_t row, size_t n, const float *actual, const float *alone) {
    if (memcmp(actual, alone, n * sizeof *actual) != 0)
        fail_msg("%s, %s: row %zu of width %zu is another one than alone", set, what, row, n);
}

static void check_rows(const sd_kernels *kernels, size_t rows, size_t n) {
    const size_t ld = sd_padded_row(n) + SD_ROW_PAD, spoilt = rows > 3 ? 3 : rows; /* rows: none */
    float logits[MOST_ROWS * MOST_LD], p[MOST_ROWS * MOST_LD], dp[MOST_ROWS * MOST_LD], ds[MOST_ROWS * MOST_LD];
    float row[MOST_LD];
    for (size_t i = 0; i < rows * ld; i++) {
        logits[i] = i % ld < n ? 20.0f * sample(i) : NAN;
        dp[i] = i % ld < n ? sample(5 * i) : NAN;
    }
    if (spoilt < rows)
        logits[spoilt * ld + n / 2] = NAN;
    memcpy(p, logits, sizeof p);
    kernels->softmax(p, rows, n, ld, 0.35f);
    memcpy(ds, dp, sizeof ds);
    kernels->softmax_backward(p, ds, rows, n, ld, 0.5f);
    for (size_t i = 0; i < rows; i++) {
        float *at = p + i * ld, *slope = ds + i * ld;
        if (i == spoilt) {
            assert_true(isnan(at[n / 2]) && isnan(slope[n / 2]));
            continue;
        }
        for (size_t j = 0; j < n; j++)
            assert_true(isfinite(at[j]) && isfinite(slope[j]));
        memcpy(row, logits + i * ld, ld * sizeof *row);
        kernels->softmax(row, 1, n, ld, 0.35f);
        expect_row(kernels->name, "softmax", i, n, at, row);
        memcpy(row, dp + i * ld, ld * sizeof *row);
        kernels->softmax_backward(at, row, 1, n, ld, 0.5f);
        expect_row(kernels->name, "softmax_backward", i, n, slope, row);
    }
}

/* What a row becomes does not depend on the others, not even on one that is spoilt, which stays so. */
static void test_softmax_rows(void **state) {
    (void)state;
    const size_t counts[] = {1, 7, 8, 9, MOST_ROWS}, widths[] = {1, 5, 16, 17, 37, MOST_WIDTH};
    for (size_t k = 0; k < set_count; k++)
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
            for (size_t j = 0; j < sizeof widths / sizeof *widths; j++)
                check_rows(sets[k], counts[i], widths[j]);
}

/* Logits far below the others, infinitely too, leave next to nothing of themselves and do not move the others; nor do they
 * where all are so, and the row is as long as the vectors. */
static void test_softmax_masked(void **state) {
    (void)state;
    enum { N = 19, LD = 32, COUNT = 9, FULL = 16 };
    const float low[] = {-1e30f, -INFINITY, -1000.0f, -3e38f};
    for (size_t k = 0; k < set_count; k++)
        for (size_t form = 0; form < sizeof low / sizeof *low; form++) {
            float s[COUNT * LD], full[FULL];
            for (size_t i = 0; i < COUNT * LD; i++)
                s[i] = i % LD % 3 == 1 ? low[form] : 3.0f * sample(i);
            float p[COUNT * LD];
            memcpy(p, s, sizeof p);
            sets[k]->softmax(p, COUNT, N, LD, 1.0f);
            for (size_t i = 0; i < COUNT; i++) {
                double sum = 0.0;
                for (size_t j = 0; j < N; j++)
                    sum += j % 3 == 1 ? 0.0 : exp((double)s[i * LD + j]);
                for (size_t j = 0; j < N; j++) {
                    double expected = j % 3 == 1 ? 0.0 : exp((double)s[i * LD + j]) / sum;
                    assert_true(fabs((double)p[i * LD + j] - expected) <= 2.5e-6 * expected + 2e-38);
                    assert_true(p[i * LD + j] >= 0.0f);
                }
            }
            for (size_t j = 0; j < FULL; j++)
                full[j] = low[form];
            sets[k]->softmax(full, 1, FULL, FULL, 0.125f);
            for (size_t j = 0; j < FULL; j++)
                assert_true(fabs((double)full[j] * FULL - 1.0) < 1e-6);
        }
}

/* The pieces of long softmax rows, at widths that vectors do not divide, with one and two targets. */
static void test_logit_pieces(void **state) {
    (void)state;
    const size_t widths[] = {1, 7, 16, 33, 1000, SD_LOGIT_PIECE};
    for (size_t k = 0; k < set_count; k++)
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
            enum { MOST = SD_LOGIT_PIECE };
            static float x[MOST], y[MOST], factor[MOST], center[MOST], q0[MOST], q1[MOST], along[MOST];
            size_t n = widths[w];
            for (size_t j = 0; j < n; j++) {
                x[j] = sinf((float)(3 * j + 1));
                factor[j] = 4.0f + 3.0f * cosf((float)j);
                center[j] = 0.3f * sinf((float)(7 * j));
                q0[j] = (float)(j % 5) / (float)n;
                q1[j] = (float)(j % 3) / (float)n;
            }
            double squares, exact = 0.0;
            sets[k]->row_squares(x, 1, n, &squares);
            for (size_t j = 0; j < n; j++)
                exact += (double)x[j] * (double)x[j];
            assert_true(fabs(squares - exact) <= 1e-13 * (double)n);

            float high, sum, dot;
            memcpy(y, x, sizeof y);
            double most = -INFINITY;
            assert_true(sets[k]->scale_logits(y, factor, n) == 0.0f);
            for (size_t j = 0; j < n; j++) {
                assert_true(y[j] == x[j] * factor[j]);
                most = fmax(most, (double)y[j]);
            }
            y[n / 2] = NAN;
            assert_true(isnan(sets[k]->scale_logits(y, factor, n)));
            y[n / 2] = INFINITY;
            assert_true(isnan(sets[k]->scale_logits(y, factor, n)));

            memcpy(y, x, sizeof y);
            sets[k]->softmax_piece(y, factor, center, 2.5f, n, &high, &sum);
            double total = 0.0;
            for (size_t j = 0; j < n; j++) {
                double power = exp((double)factor[j] * (double)x[j] - 2.5 * (double)center[j] - (double)high);
                assert_true(power <= 1.000001 && fabs((double)y[j] - power) <= 3e-6 * power);
                total += power;
            }
            assert_true(fabs((double)sum - total) <= 5e-6 * total);

            for (int targets = 1; targets <= 2; targets++) {
                const float *second = targets == 2 ? q1 : NULL;
                double product = 0.0, scale = 0.0;
                total = 0.0;
                sets[k]->entropy_piece(x, factor, q0, second, n, &high, &sum, &dot);
                assert_true((double)high >= most - 1e-6 && (double)high <= most + 1e-6);
                for (size_t j = 0; j < n; j++) {
                    double logit = (double)factor[j] * (double)x[j];
                    double target = (double)q0[j] + (second ? (double)q1[j] : 0.0);
                    total += exp(logit - (double)high);
                    product += target * logit;
                    scale += target * fabs(logit);
                }
                assert_true(fabs((double)sum - total) <= 5e-6 * total);
                assert_true(fabs((double)dot - product) <= 1e-6 * scale);

                memcpy(y, x, sizeof y);
                for (size_t j = 0; j < n; j++)
                    along[j] = 1.0f;
                sets[k]->entropy_slope(y, factor, q0, second, n, high, 0.5f, 0.25f, along);
                for (size_t j = 0; j < n; j++) {
                    double power = exp((double)factor[j] * (double)x[j] - (double)high);
                    double slope = 0.5 * power - 0.25 * ((double)q0[j] + (second ? (double)q1[j] : 0.0));
                    assert_true(fabs((double)y[j] - slope * (double)factor[j]) <= 3e-5);
                    assert_true(fabs((double)along[j] - 1.0 - slope * (double)x[j]) <= 5e-6);
                }
            }
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_swiglu),
        cmocka_unit_test(test_logit_pieces),
        cmocka_unit_test(test_exp),     cmocka_unit_test(test_gelu),       cmocka_unit_test(test_layer_norm),
        cmocka_unit_test(test_softmax), cmocka_unit_test(test_softmax_rows), cmocka_unit_test(test_softmax_masked),
    };
    return cmocka_run_group_tests(tests, find_sets, NULL);
}
