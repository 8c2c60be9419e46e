/* MCR2: against its definition by coding rates, and finite differences. */
#include <simdino/loss.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 23, D = 6, LD = 8, CLASSES = 5 };

static void make(double *z, int32_t *labels) {
    sd_random random;
    sd_random_init(&random, 4, 0, 0);
    for (size_t i = 0; i < N * LD; i++)
        z[i] = sd_random_normal(&random);
    for (size_t i = 0; i < N; i++)
        labels[i] = (int32_t)((i * i + 1) % 4) + (i == 7); /* class 4 rare or empty, class 3 empty */
}

static void assert_near(double actual, double expected, double tolerance, const char *what) {
    if (!(fabs(actual - expected) <= tolerance))
        fail_msg("%s is %.15g, expected %.15g", what, actual, expected);
}

static void test_definition(void **state) {
    (void)state;
    double z[N * LD], part[N * D], whole, parts, reduction, expected_whole, expected_parts = 0.0, rate;
    int32_t labels[N];
    make(z, labels);
    for (int32_t k = 0; k < CLASSES; k++) {
        size_t rows = 0;
        for (size_t i = 0; i < N; i++)
            if (labels[i] == k)
                memcpy(part + D * rows++, z + i * LD, D * sizeof(double));
        if (rows) {
            assert_int_equal(sd_coding_rate_f64(part, rows, D, D, 0.1, &rate, NULL, 0), SD_OK);
            expected_parts += (double)rows / N * rate;
        }
    }
    assert_int_equal(sd_coding_rate_f64(z, N, D, LD, 0.1, &expected_whole, NULL, 0), SD_OK);
    assert_int_equal(sd_rate_reduction_f64(z, N, D, LD, labels, CLASSES, 0.1, &reduction, &whole, &parts, NULL, 0),
                     SD_OK);
    assert_near(whole, expected_whole, 1e-12, "whole");
    assert_near(parts, expected_parts, 1e-12, "parts");
    assert_near(reduction, expected_whole - expected_parts, 1e-12, "reduction");

    float f[N * LD];
    for (size_t i = 0; i < N * LD; i++)
        f[i] = (float)z[i];
    assert_int_equal(sd_rate_reduction(f, N, D, LD, labels, CLASSES, 0.1, &reduction, &whole, &parts, NULL, 0), SD_OK);
    assert_near(reduction, expected_whole - expected_parts, 1e-5 * expected_whole, "reduction of floats");
    assert_near(reduction, whole - parts, 1e-12, "difference");
    assert_int_equal(sd_rate_reduction_f64(z, N, D, LD, labels, CLASSES, 0.1, NULL, NULL, NULL, NULL, 0), SD_OK);
}

static void test_gradient(void **state) {
    (void)state;
    double z[N * LD], grad[N * LD] = {0}, step = 1e-5;
    float f[N * LD], grad_float[N * LD];
    int32_t labels[N];
    make(z, labels);
    for (size_t i = 0; i < N * LD; i++)
        f[i] = (float)z[i];
    for (size_t i = 0; i < N * LD; i++)
        z[i] = (double)f[i];
    assert_int_equal(sd_rate_reduction_f64(z, N, D, LD, labels, CLASSES, 0.1, NULL, NULL, NULL, grad, LD), SD_OK);
    assert_int_equal(sd_rate_reduction(f, N, D, LD, labels, CLASSES, 0.1, NULL, NULL, NULL, grad_float, LD), SD_OK);
    for (size_t i = 0; i < N; i++) {
        for (size_t j = 0; j < LD; j++) {
            size_t at = i * LD + j;
            double keep = z[at], above, below;
            if (j >= D) {
                assert_true(grad[at] == 0.0);
                continue;
            }
            z[at] = keep + step;
            assert_int_equal(sd_rate_reduction_f64(z, N, D, LD, labels, CLASSES, 0.1, &above, NULL, NULL, NULL, 0),
                             SD_OK);
            z[at] = keep - step;
            assert_int_equal(sd_rate_reduction_f64(z, N, D, LD, labels, CLASSES, 0.1, &below, NULL, NULL, NULL, 0),
                             SD_OK);
            z[at] = keep;
            assert_near(grad[at], (above - below) / (2.0 * step), 1e-8, "gradient");
            assert_near((double)grad_float[at], grad[at], 1e-6, "float gradient");
        }
    }
}

/* One class: nothing is gained. Classes in orthogonal subspaces: as much as there is. */
static void test_extremes(void **state) {
    (void)state;
    double z[8 * 4] = {0}, reduction, rate;
    int32_t one[8] = {0}, two[8];
    for (size_t i = 0; i < 8; i++) {
        two[i] = (int32_t)(i % 2);
        z[i * 4 + (i % 4)] = 1.0;
    }
    assert_int_equal(sd_rate_reduction_f64(z, 8, 4, 4, one, 1, 0.5, &reduction, NULL, NULL, NULL, 0), SD_OK);
    assert_near(reduction, 0.0, 1e-14, "reduction of one class");
    assert_int_equal(sd_rate_reduction_f64(z, 8, 4, 4, two, 2, 0.5, &reduction, &rate, NULL, NULL, 0), SD_OK);
    /* Whole: Z'Z = 2 I, alpha = 1, 4 eigenvalues 3. Part: Z'Z = 2 on two axes, alpha = 2: 2 eigenvalues 5. */
    assert_near(rate, 2.0 * log(3.0), 1e-13, "whole");
    assert_near(reduction, 2.0 * log(3.0) - log(5.0), 1e-13, "reduction");
}

static void test_errors(void **state) {
    (void)state;
    float z[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}, grad[12] = {9};
    int32_t labels[4] = {0, 1, 2, 1};
    double r = 9.0;
    assert_int_equal(sd_rate_reduction(z, 4, 3, 3, NULL, 3, 0.5, &r, NULL, NULL, grad, 3), SD_ERR_ARGUMENT);
    assert_int_equal(sd_rate_reduction(z, 4, 3, 3, labels, 0, 0.5, &r, NULL, NULL, grad, 3), SD_ERR_ARGUMENT);
    assert_int_equal(sd_rate_reduction(z, 4, 3, 3, labels, 2, 0.5, &r, NULL, NULL, grad, 3), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "labels[2] is 2"));
    labels[0] = -1;
    assert_int_equal(sd_rate_reduction(z, 4, 3, 3, labels, 3, 0.5, &r, NULL, NULL, grad, 3), SD_ERR_ARGUMENT);
    labels[0] = 0;
    assert_int_equal(sd_rate_reduction(z, 4, 3, 2, labels, 3, 0.5, &r, NULL, NULL, grad, 3), SD_ERR_ARGUMENT);
    assert_int_equal(sd_rate_reduction(z, 4, 3, 3, labels, 3, 0.0, &r, NULL, NULL, grad, 3), SD_ERR_ARGUMENT);
    z[4] = NAN;
    assert_int_equal(sd_rate_reduction(z, 4, 3, 3, labels, 3, 0.5, &r, NULL, NULL, grad, 3), SD_ERR_NUMERIC);
    assert_non_null(strstr(sd_last_error(), "row 1, column 1"));
    assert_true(r == 9.0 && grad[0] == 9.0f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_definition),
        cmocka_unit_test(test_gradient),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests_name("rate reduction", tests, NULL, NULL);
}
