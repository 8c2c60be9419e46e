/* The loss of masked patches of SimDINOv2, and KoLeo, against the official code, by finite differences and on bad input. */
#include "support/failing_memory.h"
#include "support/golden.h"

#include <simdino/loss.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static float *floats(size_t count) {
    float *memory = calloc(count, sizeof(float));
    assert_non_null(memory);
    return memory;
}

static float *random_rows(size_t count, uint64_t seed) {
    sd_random random;
    sd_random_init(&random, seed, 0, 0);
    float *x = floats(count);
    for (size_t i = 0; i < count; i++)
        x[i] = (float)sd_random_normal(&random);
    return x;
}

static void assert_near(double actual, double expected, double tolerance, const char *what) {
    if (!(fabs(actual - expected) <= tolerance))
        fail_msg("%s is %.9g, expected %.9g: off by %.3g, allowed %.3g", what, actual, expected, actual - expected,
                 tolerance);
}

/* ---- cosine of masked patches --------------------------------------------------------------- */

static void test_patch_cosine_golden(void **state) {
    (void)state;
    enum { DIM = 40 };
    golden *g = golden_open("loss/cosine_patch.npz");
    size_t rows = golden_get(g, "mask_indices")->count, images = golden_get(g, "masks")->shape[0];
    const float *weights = golden_f32(g, "masks_weight");
    float *grad = floats(rows * DIM);
    double loss;
    assert_int_equal(sd_patch_cosine(golden_f32(g, "student"), golden_f32(g, "teacher"), rows, DIM, weights, images,
                                     grad, &loss),
                     SD_OK);
    assert_near(loss, golden_scalar(g, "loss"), golden_tolerance(g, "loss"), "loss");
    golden_compare_f32(g, "grad_student", grad, rows * DIM, golden_tolerance(g, "grad_student"));

    /* from all tokens: the masked ones are picked */
    const golden_array *indices = golden_get(g, "mask_indices"), *full = golden_get(g, "student_full");
    float *student = floats(rows * DIM), *teacher = floats(rows * DIM), *all = floats(full->count);
    for (size_t r = 0; r < rows; r++) {
        size_t from = (size_t)golden_number(indices, r) * DIM;
        memcpy(student + r * DIM, golden_f32(g, "student_full") + from, DIM * sizeof *student);
        memcpy(teacher + r * DIM, golden_f32(g, "teacher_full") + from, DIM * sizeof *teacher);
    }
    assert_int_equal(sd_patch_cosine(student, teacher, rows, DIM, weights, images, grad, &loss), SD_OK);
    assert_near(loss, golden_scalar(g, "loss_full"), golden_tolerance(g, "loss_full"), "loss_full");
    for (size_t r = 0; r < rows; r++)
        memcpy(all + (size_t)golden_number(indices, r) * DIM, grad + r * DIM, DIM * sizeof *grad);
    golden_compare_f32(g, "grad_student_full", all, full->count, golden_tolerance(g, "grad_student_full"));
    free(student);
    free(teacher);
    free(all);
    free(grad);
    golden_close(g);
}

static void test_patch_cosine_edges(void **state) {
    (void)state;
    const float teacher[6] = {1.0f, 2.0f, 2.0f, 1.0f, 0.0f, 0.0f}, weights[2] = {0.5f, 1.0f};
    float student[6] = {0.0f, 0.0f, 0.0f, 0.0f, 2.0f, 0.0f}, grad[6];
    double loss;
    /* A row of zeros has the cosine 0; its length is clamped at 1e-8, so that its slope is -w t/(|t| 1e-8). */
    assert_int_equal(sd_patch_cosine(student, teacher, 2, 3, weights, 4, grad, &loss), SD_OK);
    assert_true(loss == 0.0);
    assert_near((double)grad[1], -0.125 * 2.0 / 3.0 * 1e8, 10.0, "slope at zero");
    assert_near((double)grad[3], -0.25 * 0.5, 1e-7, "slope at a right angle");
    assert_true(grad[4] == 0.0f && grad[5] == 0.0f);
    student[0] = 1e-9f; /* below the clamp the length is a constant, too */
    assert_int_equal(sd_patch_cosine(student, teacher, 2, 3, weights, 4, grad, &loss), SD_OK);
    assert_near(loss, -0.125 * 0.1 / 3.0, 1e-8, "clamped");
    assert_near((double)grad[0], -0.125 * 1.0 / 3.0 * 1e8, 10.0, "clamped slope");
    assert_int_equal(sd_patch_cosine(NULL, NULL, 0, 3, NULL, 4, NULL, &loss), SD_OK);
    assert_true(loss == 0.0);

    for (size_t i = 0; i < 3; i++) {
        float bad[3][2] = {{NAN, 1.0f}, {INFINITY, 1.0f}, {1.0f, NAN}};
        float s[1] = {bad[i][0]}, w[1] = {bad[i][1]}, t[1] = {1.0f};
        loss = 7.0;
        assert_int_equal(sd_patch_cosine(s, t, 1, 1, w, 1, NULL, &loss), SD_ERR_NUMERIC);
        assert_true(loss == 7.0);
    }
    assert_int_equal(sd_patch_cosine(student, teacher, 2, 3, weights, 0, NULL, &loss), SD_ERR_ARGUMENT);
    assert_int_equal(sd_patch_cosine(student, NULL, 2, 3, weights, 1, NULL, &loss), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "teacher"));
    assert_int_equal(sd_patch_cosine(student, teacher, 2, 3, NULL, 1, NULL, &loss), SD_ERR_ARGUMENT);
}

/* ---- KoLeo --------------------------------------------------------------------------------- */

static sd_koleo *make_koleo(sd_context *context, size_t rows, size_t dim) {
    sd_koleo *koleo;
    if (sd_koleo_create(context, rows, dim, &koleo) != SD_OK)
        fail_msg("%s", sd_last_error());
    return koleo;
}

static void test_koleo_golden(void **state) {
    (void)state;
    golden *g = golden_open("loss/koleo.npz");
    const golden_array *x = golden_get(g, "x");
    float *grad = floats(x->count);
    double loss;
    sd_koleo *koleo = make_koleo(NULL, 100, 50); /* larger than the batch */
    assert_int_equal(sd_koleo_evaluate(koleo, golden_f32(g, "x"), x->shape[0], x->shape[1], grad, &loss), SD_OK);
    assert_near(loss, golden_scalar(g, "loss"), golden_tolerance(g, "loss"), "loss");
    golden_compare_f32(g, "grad", grad, x->count, golden_tolerance(g, "grad"));
    sd_koleo_destroy(koleo);
    free(grad);
    golden_close(g);
}

/* In double, with neighbours found in double. */
static double koleo_reference(const double *x, size_t rows, size_t dim) {
    double *u = calloc(rows * dim, sizeof *u), sum = 0.0;
    for (size_t i = 0; i < rows; i++) {
        double square = 0.0;
        for (size_t j = 0; j < dim; j++)
            square += x[i * dim + j] * x[i * dim + j];
        for (size_t j = 0; j < dim; j++)
            u[i * dim + j] = x[i * dim + j] / fmax(sqrt(square), 1e-8);
    }
    for (size_t i = 0; i < rows; i++) {
        double best = -2.0, square = 0.0;
        size_t nearest = 0;
        for (size_t k = 0; k < rows; k++) {
            double product = 0.0;
            for (size_t j = 0; j < dim; j++)
                product += u[i * dim + j] * u[k * dim + j];
            if (k != i && product > best) {
                best = product;
                nearest = k;
            }
        }
        for (size_t j = 0; j < dim; j++) {
            double difference = u[i * dim + j] - u[nearest * dim + j] + 1e-8;
            square += difference * difference;
        }
        sum -= log(sqrt(square) + 1e-8);
    }
    free(u);
    return sum / (double)rows;
}

/* More rows than a block of the search, so that neighbours lie in other blocks. */
static void test_koleo_differences(void **state) {
    (void)state;
    enum { ROWS = 150, DIM = 7 };
    float *x = random_rows(ROWS * DIM, 3), *grad = floats(ROWS * DIM);
    double *x64 = calloc(ROWS * DIM, sizeof *x64), loss;
    for (size_t i = 0; i < ROWS * DIM; i++)
        x64[i] = (double)x[i];
    sd_koleo *koleo = make_koleo(NULL, ROWS, DIM);
    assert_int_equal(sd_koleo_evaluate(koleo, x, ROWS, DIM, grad, &loss), SD_OK);
    assert_near(loss, koleo_reference(x64, ROWS, DIM), 1e-6, "loss");
    for (size_t i = 0; i < ROWS * DIM; i += 13) {
        const double step = 1e-6, kept = x64[i];
        x64[i] = kept + step;
        double above = koleo_reference(x64, ROWS, DIM);
        x64[i] = kept - step;
        double below = koleo_reference(x64, ROWS, DIM);
        x64[i] = kept;
        assert_near((double)grad[i], (above - below) / (2.0 * step), 2e-6, "gradient");
    }
    sd_koleo_destroy(koleo);
    free(x64);
    free(x);
    free(grad);
}

static void test_koleo_edges(void **state) {
    (void)state;
    float same[8] = {1.0f, 2.0f, 1.0f, 2.0f, 1.0f, 2.0f, 1.0f, 2.0f}, grad[8];
    double loss = 3.0;
    sd_koleo *koleo = make_koleo(NULL, 4, 2);
    assert_int_equal(sd_koleo_evaluate(koleo, same, 4, 2, grad, &loss), SD_OK); /* collapsed: large, not infinite */
    assert_near(loss, -log(sqrt(2.0) * 1e-8 + 1e-8), 0.01, "equal rows");
    for (size_t i = 0; i < 8; i++)
        assert_true(isfinite(grad[i]));
    assert_int_equal(sd_koleo_evaluate(koleo, same, 1, 2, grad, &loss), SD_OK);
    assert_true(loss == 0.0 && grad[0] == 0.0f && grad[1] == 0.0f);
    float zeros[4] = {0};
    assert_int_equal(sd_koleo_evaluate(koleo, zeros, 2, 2, grad, &loss), SD_OK);
    assert_true(isfinite(loss) && isfinite(grad[0]));
    same[5] = NAN;
    loss = 3.0;
    assert_int_equal(sd_koleo_evaluate(koleo, same, 4, 2, grad, &loss), SD_ERR_NUMERIC);
    assert_non_null(strstr(sd_last_error(), "row 2"));
    assert_true(loss == 3.0);
    assert_int_equal(sd_koleo_evaluate(koleo, same, 5, 2, NULL, &loss), SD_ERR_ARGUMENT);
    assert_int_equal(sd_koleo_evaluate(koleo, same, 4, 3, NULL, &loss), SD_ERR_ARGUMENT);
    assert_int_equal(sd_koleo_evaluate(koleo, NULL, 4, 2, NULL, &loss), SD_ERR_ARGUMENT);
    sd_koleo_destroy(koleo);
    assert_int_equal(sd_koleo_create(NULL, 0, 2, &koleo), SD_ERR_ARGUMENT);
    assert_int_equal(sd_koleo_create(NULL, 2, 0, &koleo), SD_ERR_ARGUMENT);
    assert_int_equal(sd_koleo_create(NULL, SIZE_MAX / 2, 8, &koleo), SD_ERR_ARGUMENT);
    sd_koleo_destroy(NULL);
}

static void test_koleo_memory(void **state) {
    (void)state;
    failing_memory memory;
    sd_context_config config;
    sd_context *context;
    sd_koleo *koleo = NULL;
    sd_context_config_init(&config);
    config.threads = 1;
    failing_memory_install(&memory, &config);
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    long before = memory.live, tries = 0;
    for (;; tries++) {
        memory.fail_at = memory.allocations + tries;
        sd_status status = sd_koleo_create(context, 4, 2, &koleo);
        if (status == SD_OK)
            break;
        assert_int_equal(status, SD_ERR_MEMORY);
        assert_int_equal(memory.live, before);
        assert_true(tries < 100);
    }
    assert_true(tries > 4);
    float *x = random_rows(8, 1), grad[8];
    double loss;
    long made = memory.allocations;
    assert_int_equal(sd_koleo_evaluate(koleo, x, 4, 2, grad, &loss), SD_OK);
    assert_int_equal(memory.allocations, made);
    free(x);
    sd_koleo_destroy(koleo);
    assert_int_equal(memory.live, before);
    sd_context_destroy(context);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_patch_cosine_golden), cmocka_unit_test(test_patch_cosine_edges),
        cmocka_unit_test(test_koleo_golden),        cmocka_unit_test(test_koleo_differences),
        cmocka_unit_test(test_koleo_edges),         cmocka_unit_test(test_koleo_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
