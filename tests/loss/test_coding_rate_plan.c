/* The coding rate's plan (same numbers on any number of threads, one allocation) and what all forms refuse. */
#include "rows.h"
#include "support/failing_memory.h"

/* ---- plan ---------------------------------------------------------------------------------- */

static void check_plan_and_threads(size_t n, size_t d) {
    double *z = DOUBLES(n * d);
    fill(z, n * d, 77);
    normalize(z, n, d);
    for (int collapsed = 0; collapsed < 2; collapsed++) {
        float *f, *first = FLOATS(n * d), *grad = FLOATS(n * d);
        double rate_first = 0.0, rate = 0.0;
        if (collapsed) /* forces double */
            for (size_t i = 0; i < n * d; i++)
                z[i] = (i % d == 0 ? 1.0 : 0.0) + 1e-4 * z[i];
        f = rounded(z, n * d);
        assert_int_equal(sd_coding_rate(f, n, d, d, 0.05, &rate_first, first, d), SD_OK);
        for (int32_t threads = 1; threads <= 5; threads += 2) {
            sd_context_config config;
            sd_context *context = NULL;
            sd_coding_rate_plan *plan = NULL;
            sd_context_config_init(&config);
            config.threads = threads;
            assert_int_equal(sd_context_create(&config, &context), SD_OK);
            assert_int_equal(sd_coding_rate_plan_create(context, n, d, &plan), SD_OK);
            for (int again = 0; again < 2; again++) {
                memset(grad, 0, n * d * sizeof(float));
                assert_int_equal(sd_coding_rate_plan_run(plan, f, n, d, d, 0.05, &rate, grad, d), SD_OK);
                assert_true(rate == rate_first);
                assert_memory_equal(grad, first, n * d * sizeof(float));
            }
            assert_int_equal(sd_coding_rate_plan_run(plan, f, 7, 9, 9, 0.05, &rate, grad, 9), SD_OK);
            assert_int_equal(sd_coding_rate_plan_run(plan, f, 9, 7, 7, 0.05, &rate, grad, 7), SD_OK);
            double *rows = widened(f, n * d), value, value_plan;
            assert_int_equal(sd_coding_rate_f64(rows, n, d, d, 0.05, &value, NULL, 0), SD_OK);
            assert_int_equal(sd_coding_rate_plan_run_f64(plan, rows, n, d, d, 0.05, &value_plan, NULL, 0), SD_OK);
            assert_true(value == value_plan);
            free(rows);
            sd_coding_rate_plan_destroy(plan);
            sd_context_destroy(context);
        }
        free(f);
        free(first);
        free(grad);
    }
    free(z);
}

static void test_plan_and_threads(void **state) {
    (void)state;
    check_plan_and_threads(1500, 40);
    check_plan_and_threads(9000, 24); /* more slices than are summed at once */
    check_plan_and_threads(320, 300); /* several panels of the inverse, on both sides */
    check_plan_and_threads(150, 400);
}

static void test_plan_allocates_once(void **state) {
    (void)state;
    failing_memory memory = {.fail_at = -1};
    sd_context_config config;
    sd_context *context = NULL;
    sd_coding_rate_plan *plan = NULL;
    const float z[6] = {1, 2, 3, 4, 5, 6};
    float grad[6];
    double rate;

    sd_context_config_init(&config);
    config.threads = 2;
    failing_memory_install(&memory, &config);
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    long before = memory.live;
    assert_int_equal(sd_coding_rate_plan_create(context, 3, 5, &plan), SD_OK);
    long made = memory.allocations;
    assert_int_equal(sd_coding_rate_plan_run(plan, z, 3, 2, 2, 0.5, &rate, grad, 2), SD_OK);
    assert_int_equal(sd_coding_rate_plan_run(plan, z, 2, 3, 3, 1e-14, &rate, grad, 3), SD_OK);
    assert_int_equal(memory.allocations, made);
    sd_coding_rate_plan_destroy(plan);
    sd_coding_rate_plan_destroy(NULL);
    assert_int_equal(memory.live, before);
    for (long fail = 0;; fail++) {
        plan = NULL;
        memory.fail_at = memory.allocations + fail;
        sd_status status = sd_coding_rate_plan_create(context, 3, 5, &plan);
        if (status == SD_OK)
            break;
        assert_int_equal(status, SD_ERR_MEMORY);
        assert_null(plan);
        assert_int_equal(memory.live, before);
        assert_true(fail < 20);
    }
    memory.fail_at = -1;
    sd_coding_rate_plan_destroy(plan);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

/* ---- errors -------------------------------------------------------------------------------- */

static void expect_message(const char *part) {
    if (!strstr(sd_last_error(), part))
        fail_msg("message \"%s\" does not contain \"%s\"", sd_last_error(), part);
}

static void test_arguments(void **state) {
    (void)state;
    const float z[6] = {1, 2, 3, 4, 5, 6};
    const double z64[6] = {1, 2, 3, 4, 5, 6};
    float grad[6] = {9, 9, 9, 9, 9, 9};
    double rate = 9.0;
    const double bad_eps[] = {0.0, -1.0, (double)NAN, (double)INFINITY};

    assert_int_equal(sd_coding_rate(NULL, 2, 3, 3, 0.5, &rate, grad, 3), SD_ERR_ARGUMENT);
    expect_message("z is NULL");
    assert_int_equal(sd_coding_rate(z, 0, 3, 3, 0.5, &rate, grad, 3), SD_ERR_ARGUMENT);
    assert_int_equal(sd_coding_rate(z, 2, 0, 3, 0.5, &rate, grad, 3), SD_ERR_ARGUMENT);
    assert_int_equal(sd_coding_rate(z, 2, 3, 2, 0.5, &rate, grad, 3), SD_ERR_ARGUMENT);
    expect_message("ldz is 2");
    assert_int_equal(sd_coding_rate(z, 2, 3, 3, 0.5, &rate, grad, 2), SD_ERR_ARGUMENT);
    expect_message("ldg is 2");
    assert_int_equal(sd_coding_rate(z, SIZE_MAX, 3, 3, 0.5, &rate, grad, 3), SD_ERR_ARGUMENT);
    for (size_t e = 0; e < 4; e++) {
        assert_int_equal(sd_coding_rate(z, 2, 3, 3, bad_eps[e], &rate, grad, 3), SD_ERR_ARGUMENT);
        expect_message("eps_sq");
        assert_int_equal(sd_coding_rate_f64(z64, 2, 3, 3, bad_eps[e], &rate, NULL, 3), SD_ERR_ARGUMENT);
        assert_int_equal(sd_coding_rate_gram(z64, 2, 3, 2.0, bad_eps[e], &rate, NULL, 3), SD_ERR_ARGUMENT);
        assert_int_equal(sd_coding_rate_gram(z64, 2, 3, bad_eps[e], 0.5, &rate, NULL, 3), SD_ERR_ARGUMENT);
        expect_message("n_total");
    }
    assert_int_equal(sd_coding_rate(z, 2, 3, 3, 0.5, NULL, NULL, 0), SD_OK);
    assert_int_equal(sd_coding_rate_gram(NULL, 2, 3, 2.0, 0.5, &rate, NULL, 3), SD_ERR_ARGUMENT);
    assert_int_equal(sd_coding_rate_gram(z64, 0, 3, 2.0, 0.5, &rate, NULL, 3), SD_ERR_ARGUMENT);
    assert_int_equal(sd_coding_rate_gram(z64, 2, 1, 2.0, 0.5, &rate, NULL, 3), SD_ERR_ARGUMENT);
    sd_coding_rate_plan *plan = NULL;
    assert_int_equal(sd_coding_rate_plan_create(NULL, 0, 3, &plan), SD_ERR_ARGUMENT);
    assert_int_equal(sd_coding_rate_plan_create(NULL, 3, 3, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_coding_rate_plan_create(NULL, 2, 3, &plan), SD_OK);
    assert_int_equal(sd_coding_rate_plan_run(plan, z, 3, 2, 2, 0.5, &rate, NULL, 0), SD_ERR_ARGUMENT);
    expect_message("the plan has room for 2 of 3");
    assert_int_equal(sd_coding_rate_plan_run(plan, z, 1, 4, 4, 0.5, &rate, NULL, 0), SD_ERR_ARGUMENT);
    assert_int_equal(sd_coding_rate_plan_run(NULL, z, 1, 4, 4, 0.5, &rate, NULL, 0), SD_ERR_ARGUMENT);
    sd_coding_rate_plan_destroy(plan);
    assert_true(rate == 9.0 && grad[0] == 9.0f && grad[5] == 9.0f);
    assert_true(sd_coding_rate_gamma(0, 3) == 0.0 && sd_coding_rate_gamma(3, 0) == 0.0);
}

static void test_numeric_failures(void **state) {
    (void)state;
    const size_t shape[][2] = {{8, 5}, {5, 8}, {300, 2}};
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t s = 0; s < 3; s++) {
        size_t n = shape[s][0], d = shape[s][1];
        double *z64 = DOUBLES(n * d), *grad64 = DOUBLES(n * d), rate = 9.0;
        float *z, *grad = FLOATS(n * d);
        fill(z64, n * d, 6);
        z = rounded(z64, n * d);
        for (size_t b = 0; b < 3; b++) {
            for (size_t at = 0; at < n * d; at += 7) {
                float keep = z[at];
                double keep64 = z64[at];
                char where[64];
                z[at] = bad[b];
                z64[at] = (double)bad[b];
                snprintf(where, sizeof(where), "row %zu, column %zu", at / d, at % d);
                grad[at] = 9.0f;
                grad64[at] = 9.0;
                assert_int_equal(sd_coding_rate(z, n, d, d, 0.5, &rate, grad, d), SD_ERR_NUMERIC);
                expect_message(where);
                assert_int_equal(sd_coding_rate_f64(z64, n, d, d, 0.5, &rate, grad64, d), SD_ERR_NUMERIC);
                expect_message(where);
                assert_true(rate == 9.0 && grad[at] == 9.0f && grad64[at] == 9.0);
                z[at] = keep;
                z64[at] = keep64;
            }
        }
        free(z64);
        free(grad64);
        free(z);
        free(grad);
    }
    double rate = 9.0, huge[4] = {1e200, 0, 0, 1e200}, dgram[4] = {9, 9, 9, 9};
    assert_int_equal(sd_coding_rate_f64(huge, 2, 2, 2, 0.5, &rate, NULL, 0), SD_ERR_NUMERIC);
    /* A gradient too large for float: nothing is written. */
    float tiny[2] = {1e-39f, 1e-40f}, grad[2] = {9, 9};
    assert_int_equal(sd_coding_rate(tiny, 2, 1, 1, 1e-90, &rate, grad, 1), SD_ERR_NUMERIC);
    assert_true(rate == 9.0 && grad[0] == 9.0f && grad[1] == 9.0f);

    double gram[9] = {1, 0, 0, 0, 1, 0, 0, 0, -5};
    assert_int_equal(sd_coding_rate_gram(gram, 3, 3, 3.0, 0.5, &rate, dgram, 3), SD_ERR_NUMERIC);
    expect_message("pivot 3");
    gram[8] = (double)NAN;
    assert_int_equal(sd_coding_rate_gram(gram, 3, 3, 3.0, 0.5, &rate, dgram, 3), SD_ERR_NUMERIC);
    expect_message("row 2, column 2");
    gram[8] = 1e308;
    assert_int_equal(sd_coding_rate_gram(gram, 3, 3, 3.0, 1e-30, &rate, dgram, 3), SD_ERR_NUMERIC);
    assert_true(rate == 9.0 && dgram[0] == 9.0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_and_threads),
        cmocka_unit_test(test_plan_allocates_once),
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_numeric_failures),
    };
    return cmocka_run_group_tests_name("coding rate: plan and refusals", tests, NULL, NULL);
}
