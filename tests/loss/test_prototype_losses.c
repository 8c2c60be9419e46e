/* The losses of DINO, DINOv2 and iBOT against the official code. The golden files hold logits: they are features here, and
 * the prototypes the unit vectors. */
#include "support/golden.h"

#include <simdino/loss.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static float *floats(size_t count) {
    float *memory = calloc(count, sizeof(float));
    assert_non_null(memory);
    return memory;
}

static void assert_near(double actual, double expected, double tolerance, const char *what) {
    if (!(fabs(actual - expected) <= tolerance))
        fail_msg("%s is %.9g, expected %.9g: off by %.3g, allowed %.3g", what, actual, expected, actual - expected,
                 tolerance);
}

/* `step` of an array whose first dimension is the step. */
static const float *of_step(const golden *g, const char *name, size_t step, size_t *count) {
    const golden_array *array = golden_get(g, "%s", name);
    *count = array->count / array->shape[0];
    return golden_f32(g, "%s", name) + step * *count;
}

static void compare_step(const golden *g, const char *name, size_t step, const float *actual, double factor) {
    size_t count;
    const float *expected = of_step(g, name, step, &count);
    double tolerance = golden_tolerance(g, "%s", name);
    for (size_t i = 0; i < count; i++)
        if (!(fabs(factor * (double)actual[i] - (double)expected[i]) <= tolerance))
            fail_msg("%s, step %zu, element %zu is %.9g, expected %.9g, allowed %.3g", name, step, i,
                     factor * (double)actual[i], (double)expected[i], tolerance);
}

static void near_step(const golden *g, const char *name, size_t step, double actual) {
    size_t count;
    const float *expected = of_step(g, name, step, &count);
    assert_int_equal(count, 1);
    assert_near(actual, (double)*expected, golden_tolerance(g, "%s", name), name);
}

static sd_prototypes units(float *memory, size_t K) {
    for (size_t k = 0; k < K; k++)
        memory[k * K + k] = 2.5f; /* the length does not count */
    return (sd_prototypes){.weight_v = memory, .count = K};
}

/* ---- DINO ---------------------------------------------------------------------------------- */

static void test_dino_v1(void **state) {
    (void)state;
    enum { SAMPLES = 6, K = 48 };
    golden *g = golden_open("loss/dino_v1.npz");
    size_t views = (size_t)golden_scalar(g, "hp/ncrops"), count;
    assert_int_equal(golden_get(g, "student_output")->shape[1], views * SAMPLES);
    float *identity = floats(K * K), *grad = floats(views * SAMPLES * K);
    sd_prototypes layer = units(identity, K);
    sd_dino_loss *loss;
    assert_int_equal(sd_dino_loss_create(NULL, NULL, SAMPLES, views, K, K, &loss), SD_OK);
    for (size_t step = 0; step < 3; step++) {
        size_t epoch = (size_t)golden_number(golden_get(g, "epoch"), step);
        double temperature = golden_number(golden_get(g, "teacher_temp_schedule"), epoch);
        sd_dino_result result;
        assert_int_equal(sd_dino_loss_evaluate(loss, of_step(g, "student_output", step, &count),
                                               of_step(g, "teacher_output", step, &count), SAMPLES, views, &layer,
                                               &layer, temperature, grad, NULL, &result),
                         SD_OK);
        near_step(g, "loss", step, result.loss);
        compare_step(g, "grad_student", step, grad, 1.0);
        sd_dino_loss_commit(loss);
        compare_step(g, "center", step, sd_dino_loss_center(loss), 1.0);
    }
    sd_dino_loss_destroy(loss);
    free(identity);
    free(grad);
    golden_close(g);
}

/* DINOv2 divides local_loss and 2 global_loss by the number of pairs; its teacher's views are swapped so that rows of the
 * same number belong together. SimDINOv2 leaves them and removes the diagonal. */
static void check_dino_v2(const char *file, int32_t target) {
    enum { SAMPLES = 6, K = 48 };
    golden *g = golden_open(file);
    size_t local = (size_t)golden_scalar(g, "n_local"), views = 2 + local, half = SAMPLES * K, count;
    double pairs = (double)(2 * views - 2);
    float *identity = floats(K * K), *grad = floats(views * half), *student = floats(views * half);
    float *swapped = floats(2 * half);
    sd_prototypes layer = units(identity, K);
    sd_dino_config config;
    sd_dino_config_init(&config);
    config.target = target;
    sd_dino_loss *loss;
    assert_int_equal(sd_dino_loss_create(NULL, &config, SAMPLES, views, K, K, &loss), SD_OK);
    for (size_t step = 0; step < 3; step++) {
        const float *teacher = of_step(g, "teacher_output", step, &count);
        assert_int_equal(count, 2 * half);
        double temperature = golden_number(golden_get(g, "teacher_temp"), step);
        memcpy(swapped, teacher + half, half * sizeof *teacher);
        memcpy(swapped + half, teacher, half * sizeof *teacher);
        memcpy(student, of_step(g, "student_global", step, &count), 2 * half * sizeof *student);
        memcpy(student + 2 * half, of_step(g, "student_local", step, &count), local * half * sizeof *student);
        sd_dino_result result;
        if (target == SD_TARGET_CENTER)
            compare_step(g, "center", step, sd_dino_loss_center(loss), 1.0);

        assert_int_equal(sd_dino_loss_evaluate(loss, student, swapped, SAMPLES, views, &layer, &layer, temperature,
                                               grad, NULL, &result),
                         SD_OK);
        near_step(g, "local_loss", step, pairs * result.local_loss);
        near_step(g, "global_loss", step, pairs * result.global_loss / 2.0);
        assert_near(result.loss, result.local_loss + result.global_loss, 1e-12, "sum of the parts");
        compare_step(g, "grad_local", step, grad + 2 * half, pairs);
        compare_step(g, "grad_global", step, grad, pairs / 2.0);
        sd_dino_loss_discard(loss);

        assert_int_equal(sd_dino_loss_evaluate(loss, student, teacher, SAMPLES, views, &layer, &layer, temperature,
                                               grad, NULL, &result),
                         SD_OK);
        near_step(g, "simdino_loss", step, pairs * result.loss);
        near_step(g, "simdino_global_loss", step, pairs * result.global_loss);
        compare_step(g, "simdino_grad_local", step, grad + 2 * half, pairs);
        compare_step(g, "simdino_grad_global", step, grad, pairs);
        sd_dino_loss_commit(loss);
    }
    sd_dino_loss_destroy(loss);
    free(identity);
    free(grad);
    free(student);
    free(swapped);
    golden_close(g);
}

static void test_dino_v2_centering(void **state) {
    (void)state;
    check_dino_v2("loss/dino_v2_centering.npz", SD_TARGET_CENTER);
}

static void test_dino_v2_sinkhorn(void **state) {
    (void)state;
    check_dino_v2("loss/dino_v2_sinkhorn.npz", SD_TARGET_SINKHORN);
}

/* ---- iBOT ---------------------------------------------------------------------------------- */

static void check_ibot(const char *file, int32_t target) {
    enum { K = 40 };
    golden *g = golden_open(file);
    size_t rows = golden_get(g, "mask_indices")->count, images = golden_get(g, "masks")->shape[0], count;
    float *identity = floats(K * K), *grad = floats(rows * K);
    sd_prototypes layer = units(identity, K);
    sd_dino_config config;
    sd_dino_config_init(&config);
    config.target = target;
    sd_patch_loss *loss;
    assert_int_equal(sd_patch_loss_create(NULL, &config, rows, K, K, &loss), SD_OK);
    for (size_t step = 0; step < 3; step++) {
        double value, temperature = golden_number(golden_get(g, "teacher_temp"), step);
        if (target == SD_TARGET_CENTER)
            compare_step(g, "center", step, sd_patch_loss_center(loss), 1.0);
        assert_int_equal(sd_patch_loss_evaluate(loss, of_step(g, "student", step, &count),
                                                of_step(g, "teacher", step, &count), rows,
                                                golden_f32(g, "masks_weight"), images, &layer, &layer, temperature, 1.0,
                                                grad, NULL, &value),
                         SD_OK);
        near_step(g, "loss", step, value);
        compare_step(g, "grad_student", step, grad, 1.0);
        sd_patch_loss_commit(loss);
    }
    sd_patch_loss_destroy(loss);
    free(identity);
    free(grad);
    golden_close(g);
}

static void test_ibot_centering(void **state) {
    (void)state;
    check_ibot("loss/ibot_centering.npz", SD_TARGET_CENTER);
}

static void test_ibot_sinkhorn(void **state) {
    (void)state;
    check_ibot("loss/ibot_sinkhorn.npz", SD_TARGET_SINKHORN);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dino_v1),          cmocka_unit_test(test_dino_v2_centering),
        cmocka_unit_test(test_dino_v2_sinkhorn), cmocka_unit_test(test_ibot_centering),
        cmocka_unit_test(test_ibot_sinkhorn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
