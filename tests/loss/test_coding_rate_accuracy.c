/* The float form's promise, 1e-5 of value and gradient in norm, on rows whose rounding errors conspire. The library
 * tells from norms whether float is enough, as if rounding errors had random signs; here they do not: equal rows add
 * the same product again and again, so that a sum drifts, and the errors of a row of the Gram resemble each other. */
#include "rows.h"

#include <cmocka.h>

typedef enum family {
    SPREAD,        /* in all directions */
    EQUAL_ROWS,    /* one row, n times */
    EQUAL_FOURS,   /* each row four times */
    CONSTANT,      /* nearly the same number everywhere */
    CLUSTERS,      /* near one of eight rows */
    LOW_RANK,      /* in min(n, d) / 8 directions, and a little of all */
    STEEP,         /* coordinates from 1 down to 1e-4 */
    POSITIVE,      /* half of the numbers zero, as after a ReLU */
    ONE_HOT,       /* one coordinate each */
    LARGE_COLUMN,  /* one coordinate a hundred times the others; not of length 1 */
    LARGE_ROW,     /* one row a thousand times the others; not of length 1 */
    FAMILIES
} family;

static const char *const names[FAMILIES] = {"spread",   "equal rows", "equal fours", "constant",
                                            "clusters", "low rank",   "steep",       "positive",
                                            "one hot",  "large column", "large row"};

static double *make(family kind, size_t n, size_t d) {
    double *z = DOUBLES(n * d), *base = DOUBLES((n + 8) * d), *turn = DOUBLES(n * d);
    size_t rank = (n < d ? n : d) / 8 + 1;

    fill(z, n * d, 300 + (uint64_t)kind);
    fill(base, (n + 8) * d, 400 + (uint64_t)kind);
    fill(turn, n * d, 500);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < d; j++) {
            double *x = &z[i * d + j];
            switch (kind) {
            case EQUAL_ROWS: *x = base[j]; break;
            case EQUAL_FOURS: *x = base[i / 4 * d + j]; break;
            case CONSTANT: *x = 1.0 + 0.01 * *x; break;
            case CLUSTERS: *x = base[i * 5 % 8 * d + j] + 0.05 * *x; break;
            case LOW_RANK:
                *x *= 1e-3;
                for (size_t r = 0; r < rank; r++)
                    *x += turn[i * d + r] * base[r * d + j];
                break;
            case STEEP: *x *= pow(10.0, -4.0 * (double)j / (double)d); break;
            case POSITIVE: *x = fmax(*x, 0.0); break;
            case ONE_HOT: *x = j == (i * 7 + i / 3) % d ? 1.0 : 0.0; break;
            case LARGE_COLUMN: *x *= j == 0 ? 100.0 : 1.0; break;
            case LARGE_ROW: *x *= i == 0 ? 1000.0 : 1.0; break;
            case SPREAD:
            case FAMILIES: break;
            }
        }
    }
    if (kind != LARGE_COLUMN && kind != LARGE_ROW)
        normalize(z, n, d);
    free(base);
    free(turn);
    return z;
}

static void check(const char *name, const double *z, size_t n, size_t d, double eps_sq) {
    float *f = rounded(z, n * d), *grad_float = FLOATS(n * d);
    double *exact = widened(f, n * d), *grad = DOUBLES(n * d), expected, rate, alone, error = 0.0, norm = 0.0;

    assert_int_equal(sd_coding_rate_f64(exact, n, d, d, eps_sq, &expected, grad, d), SD_OK);
    assert_int_equal(sd_coding_rate(f, n, d, d, eps_sq, &rate, grad_float, d), SD_OK);
    assert_int_equal(sd_coding_rate(f, n, d, d, eps_sq, &alone, NULL, 0), SD_OK);
    for (size_t i = 0; i < n * d; i++) {
        double off = (double)grad_float[i] - grad[i];
        error += off * off;
        norm += grad[i] * grad[i];
    }
    if (!(sqrt(error / norm) <= 1e-5) || !(fabs(rate - expected) <= 1e-5 * expected) ||
        !(fabs(alone - expected) <= 1e-5 * expected))
        fail_msg("%s, n %zu, d %zu, eps %g: gradient off by %.3g, rate by %.3g, rate without gradient by %.3g", name, n,
                 d, eps_sq, sqrt(error / norm), fabs(rate - expected) / expected, fabs(alone - expected) / expected);
    free(f);
    free(grad_float);
    free(exact);
    free(grad);
}

static void test_families(void **state) {
    (void)state;
    const size_t sizes[][2] = {{256, 64}, {64, 256}, {200, 33}, {150, 150}, {300, 140}};
    const double eps[] = {1e-4, 0.01, 0.05, 0.5, 5.0, 50.0, 1000.0};

    for (int kind = 0; kind < FAMILIES; kind++)
        for (size_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++) {
            double *z = make((family)kind, sizes[s][0], sizes[s][1]);
            for (size_t e = 0; e < sizeof(eps) / sizeof(*eps); e++)
                check(names[kind], z, sizes[s][0], sizes[s][1], eps[e]);
            free(z);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),
    };
    return cmocka_run_group_tests_name("accuracy of the coding rate in float", tests, NULL, NULL);
}
