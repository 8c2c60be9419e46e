/* The losses of DINO, DINOv2 and SimDINOv2's patches against the official code (golden/loss).
 *
 * The files hold outputs of heads, logits. With prototypes e_1 .. e_K of width K the features are the logits. */
#include "support/golden.h"

#include "loss/prototypes.h"

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

static sd_prototypes identity(size_t K) {
    float *weight = floats(K * K);
    for (size_t i = 0; i < K; i++)
        weight[i * K + i] = 1.0f;
    return (sd_prototypes){.weight_v = weight, .count = K};
}

static void free_layer(sd_prototypes layer) {
    free((void *)(uintptr_t)layer.weight_v);
}

/* A number of one call beside the file's. */
static void compare(const golden *g, const char *name, size_t step, double actual) {
    double expected = golden_number(golden_get(g, "%s", name), step), tolerance = golden_tolerance(g, "%s", name);
    if (!(fabs(actual - expected) <= tolerance))
        fail_msg("%s[%zu] is %.9g, expected %.9g within %g", name, step, actual, expected, tolerance);
}

static void scale(float *values, size_t count, double factor) {
    for (size_t i = 0; i < count; i++)
        values[i] = (float)(factor * (double)values[i]);
}

static sd_dino_config config_of(int32_t target) {
    sd_dino_config config;
    sd_dino_config_init(&config);
    config.target = target;
    config.student_temp = 0.1;
    config.center_momentum = 0.9;
    return config;
}

/* ---- DINO ---------------------------------------------------------------------------------- */

static void test_dino_v1(void **state) {
    (void)state;
    golden *g = golden_open("loss/dino_v1.npz");
    const golden_array *student = golden_get(g, "student_output"), *teacher = golden_get(g, "teacher_output");
    size_t calls = student->shape[0], views = (size_t)golden_scalar(g, "hp/ncrops"), K = student->shape[2];
    size_t samples = student->shape[1] / views, rows = views * samples;
    assert_int_equal(teacher->shape[1], 2 * samples);
    const float *xs = golden_f32(g, "student_output"), *xt = golden_f32(g, "teacher_output");
    sd_prototypes layer = identity(K);
    sd_dino_config config = config_of(SD_TARGET_CENTER);
    sd_dino_loss *loss;
    assert_int_equal(sd_dino_loss_create(NULL, &config, samples, views, K, K, &loss), SD_OK);
    float *grad = floats(calls * rows * K), *centers = floats(calls * K);
    for (size_t call = 0; call < calls; call++) {
        size_t epoch = (size_t)golden_number(golden_get(g, "epoch"), call);
        double temp = golden_number(golden_get(g, "teacher_temp_schedule"), epoch);
        sd_dino_result result;
        assert_int_equal(sd_dino_loss_evaluate(loss, xs + call * rows * K, xt + call * 2 * samples * K, samples, views,
                                               &layer, &layer, temp, grad + call * rows * K, NULL, &result),
                         SD_OK);
        sd_dino_loss_commit(loss);
        memcpy(centers + call * K, sd_dino_loss_center(loss), K * sizeof(float));
        compare(g, "loss", call, result.loss);
        assert_true(fabs(result.local_loss + result.global_loss - result.loss) < 1e-12);
    }
    golden_compare_f32(g, "grad_student", grad, calls * rows * K, golden_tolerance(g, "grad_student"));
    golden_compare_f32(g, "center", centers, calls * K, golden_tolerance(g, "center"));
    free(centers);
    free(grad);
    sd_dino_loss_destroy(loss);
    free_layer(layer);
    golden_close(g);
}

/* ---- DINOv2's class tokens ----------------------------------------------------------------- */

/* What the official code computes in parts, and undivided. The file's teacher rows are in the order in which DINOv2's
 * loss sees them: its caller has exchanged the two global views, ours exchanges them itself. SimDINOv2's copy of the
 * loss takes the same rows without exchange. */
static void check_v2(const char *file, int32_t target) {
    golden *g = golden_open(file);
    const golden_array *local = golden_get(g, "student_local"), *global = golden_get(g, "student_global");
    size_t steps = local->shape[0], locals = (size_t)golden_scalar(g, "n_local"), K = local->shape[2];
    size_t samples = global->shape[1] / 2, views = 2 + locals;
    size_t of_global = 2 * samples * K, of_local = locals * samples * K;
    assert_int_equal(local->shape[1], locals * samples);
    double pairs = (double)(2 * locals + 2); /* DINOv2 divides by it elsewhere */
    const float *xl = golden_f32(g, "student_local"), *xg = golden_f32(g, "student_global");
    const float *xt = golden_f32(g, "teacher_output");
    sd_prototypes layer = identity(K);
    sd_dino_config config = config_of(target);
    sd_dino_loss *loss;
    assert_int_equal(sd_dino_loss_create(NULL, &config, samples, views, K, K, &loss), SD_OK);
    float *student = floats(of_global + of_local), *teacher = floats(of_global), *grad = floats(of_global + of_local);
    float *simdino_global = floats(steps * of_global), *simdino_local = floats(steps * of_local);
    float *grad_global = floats(steps * of_global), *grad_local = floats(steps * of_local),
          *centers = floats(steps * K);
    for (size_t step = 0; step < steps; step++) {
        double temp = golden_number(golden_get(g, "teacher_temp"), step);
        const float *given = xt + step * of_global;
        sd_dino_result result;
        memcpy(student, xg + step * of_global, of_global * sizeof(float));
        memcpy(student + of_global, xl + step * of_local, of_local * sizeof(float));
        memcpy(centers + step * K, sd_dino_loss_center(loss), K * sizeof(float)); /* the file's, before the update */
        assert_int_equal(
            sd_dino_loss_evaluate(loss, student, given, samples, views, &layer, &layer, temp, grad, NULL, &result),
            SD_OK);
        sd_dino_loss_discard(loss); /* of the two evaluations one counts */
        compare(g, "simdino_loss", step, pairs * result.loss);
        compare(g, "simdino_global_loss", step, pairs * result.global_loss);
        scale(grad, of_global + of_local, pairs);
        memcpy(simdino_global + step * of_global, grad, of_global * sizeof(float));
        memcpy(simdino_local + step * of_local, grad + of_global, of_local * sizeof(float));

        memcpy(teacher, given + of_global / 2, of_global / 2 * sizeof(float));
        memcpy(teacher + of_global / 2, given, of_global / 2 * sizeof(float));
        assert_int_equal(
            sd_dino_loss_evaluate(loss, student, teacher, samples, views, &layer, &layer, temp, grad, NULL, &result),
            SD_OK);
        sd_dino_loss_commit(loss);
        compare(g, "local_loss", step, pairs * result.local_loss);
        compare(g, "global_loss", step, pairs / 2.0 * result.global_loss); /* a mean over both views, times 2 later */
        scale(grad, of_global, pairs / 2.0);
        scale(grad + of_global, of_local, pairs);
        memcpy(grad_global + step * of_global, grad, of_global * sizeof(float));
        memcpy(grad_local + step * of_local, grad + of_global, of_local * sizeof(float));
    }
    golden_compare_f32(g, "simdino_grad_global", simdino_global, steps * of_global,
                       golden_tolerance(g, "simdino_grad_global"));
    golden_compare_f32(g, "simdino_grad_local", simdino_local, steps * of_local,
                       golden_tolerance(g, "simdino_grad_local"));
    golden_compare_f32(g, "grad_global", grad_global, steps * of_global, golden_tolerance(g, "grad_global"));
    golden_compare_f32(g, "grad_local", grad_local, steps * of_local, golden_tolerance(g, "grad_local"));
    if (target == SD_TARGET_CENTER)
        golden_compare_f32(g, "center", centers, steps * K, golden_tolerance(g, "center"));
    float *arrays[] = {student, teacher, grad, simdino_global, simdino_local, grad_global, grad_local, centers};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        free(arrays[i]);
    sd_dino_loss_destroy(loss);
    free_layer(layer);
    golden_close(g);
}

static void test_dino_v2_centering(void **state) {
    (void)state;
    check_v2("loss/dino_v2_centering.npz", SD_TARGET_CENTER);
}

static void test_dino_v2_sinkhorn(void **state) {
    (void)state;
    check_v2("loss/dino_v2_sinkhorn.npz", SD_TARGET_SINKHORN);
}

/* ---- masked patches ------------------------------------------------------------------------ */

static void check_ibot(const char *file, int32_t target) {
    golden *g = golden_open(file);
    const golden_array *shape = golden_get(g, "student");
    size_t steps = shape->shape[0], rows = shape->shape[1], K = shape->shape[2];
    size_t images = golden_get(g, "masks")->shape[0];
    const float *xs = golden_f32(g, "student"), *xt = golden_f32(g, "teacher"),
                *weights = golden_f32(g, "masks_weight");
    sd_prototypes layer = identity(K);
    sd_dino_config config = config_of(target);
    sd_patch_loss *loss;
    assert_int_equal(sd_patch_loss_create(NULL, &config, rows, K, K, &loss), SD_OK);
    float *grad = floats(steps * rows * K), *centers = floats(steps * K);
    for (size_t step = 0; step < steps; step++) {
        double result, temp = golden_number(golden_get(g, "teacher_temp"), step);
        memcpy(centers + step * K, sd_patch_loss_center(loss), K * sizeof(float));
        assert_int_equal(sd_patch_loss_evaluate(loss, xs + step * rows * K, xt + step * rows * K, rows, weights, images,
                                                &layer, &layer, temp, 1.0, grad + step * rows * K, NULL, &result),
                         SD_OK);
        sd_patch_loss_commit(loss);
        compare(g, "loss", step, result);
    }
    golden_compare_f32(g, "grad_student", grad, steps * rows * K, golden_tolerance(g, "grad_student"));
    if (target == SD_TARGET_CENTER)
        golden_compare_f32(g, "center", centers, steps * K, golden_tolerance(g, "center"));
    free(centers);
    free(grad);
    sd_patch_loss_destroy(loss);
    free_layer(layer);
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

/* Rows of all tokens where the mask is set. */
static float *masked_rows(const golden *g, const float *all, size_t rows, size_t K) {
    float *some = floats(rows * K);
    for (size_t i = 0; i < rows; i++)
        memcpy(some + i * K, all + (size_t)golden_number(golden_get(g, "mask_indices"), i) * K, K * sizeof(float));
    return some;
}

/* And back, among zeros. */
static float *spread_rows(const golden *g, const float *some, size_t rows, size_t K, size_t tokens) {
    float *all = floats(tokens * K);
    for (size_t i = 0; i < rows; i++)
        memcpy(all + (size_t)golden_number(golden_get(g, "mask_indices"), i) * K, some + i * K, K * sizeof(float));
    return all;
}

/* forward() of all tokens with given teacher probabilities: logits ln q at temperature 1 have these. */
static void test_ibot_all_tokens(void **state) {
    (void)state;
    golden *g = golden_open("loss/ibot_centering.npz");
    const golden_array *full = golden_get(g, "student_full");
    size_t images = full->shape[0], tokens = images * full->shape[1], K = full->shape[2];
    size_t rows = golden_get(g, "mask_indices")->count;
    float *student = masked_rows(g, golden_f32(g, "student_full"), rows, K);
    float *teacher = masked_rows(g, golden_f32(g, "teacher_prob_full"), rows, K), *grad = floats(rows * K);
    for (size_t i = 0; i < rows * K; i++)
        teacher[i] = logf(fmaxf(teacher[i], 1e-37f));
    sd_prototypes layer = identity(K);
    sd_dino_config config = config_of(SD_TARGET_CENTER);
    sd_patch_loss *loss;
    double result;
    assert_int_equal(sd_patch_loss_create(NULL, &config, rows, K, K, &loss), SD_OK);
    assert_int_equal(sd_patch_loss_evaluate(loss, student, teacher, rows, golden_f32(g, "masks_weight"), images, &layer,
                                            &layer, 1.0, 1.0, grad, NULL, &result),
                     SD_OK);
    compare(g, "loss_full", 0, result);
    float *all = spread_rows(g, grad, rows, K, tokens);
    golden_compare_f32(g, "grad_student_full", all, tokens * K, golden_tolerance(g, "grad_student_full"));
    free(all);
    free(grad);
    free(teacher);
    free(student);
    sd_patch_loss_destroy(loss);
    free_layer(layer);
    golden_close(g);
}

static void test_patch_cosine(void **state) {
    (void)state;
    golden *g = golden_open("loss/cosine_patch.npz");
    const golden_array *full = golden_get(g, "student_full");
    size_t images = full->shape[0], tokens = images * full->shape[1], dim = full->shape[2];
    size_t rows = golden_get(g, "mask_indices")->count;
    const float *weights = golden_f32(g, "masks_weight");
    float *grad = floats(rows * dim);
    double loss, again;
    assert_int_equal(
        sd_patch_cosine(golden_f32(g, "student"), golden_f32(g, "teacher"), rows, dim, weights, images, grad, &loss),
        SD_OK);
    compare(g, "loss", 0, loss);
    compare(g, "loss_no_weight", 0, loss);
    golden_compare_f32(g, "grad_student", grad, rows * dim, golden_tolerance(g, "grad_student"));
    assert_int_equal(
        sd_patch_cosine(golden_f32(g, "student"), golden_f32(g, "teacher"), rows, dim, weights, images, NULL, &again),
        SD_OK);
    assert_true(again == loss);

    float *student = masked_rows(g, golden_f32(g, "student_full"), rows, dim);
    float *teacher = masked_rows(g, golden_f32(g, "teacher_full"), rows, dim);
    assert_int_equal(sd_patch_cosine(student, teacher, rows, dim, weights, images, grad, &loss), SD_OK);
    compare(g, "loss_full", 0, loss);
    float *all = spread_rows(g, grad, rows, dim, tokens);
    golden_compare_f32(g, "grad_student_full", all, tokens * dim, golden_tolerance(g, "grad_student_full"));
    free(all);
    free(teacher);
    free(student);
    free(grad);
    golden_close(g);
}

/* ---- assignments --------------------------------------------------------------------------- */

static void check_sinkhorn(const char *file, const char *teacher) {
    golden *g = golden_open(file);
    const golden_array *shape = golden_get(g, "%s", teacher);
    size_t steps = shape->shape[0], n = shape->shape[1], K = shape->shape[2];
    float *scores = floats(n * K), *assigned = floats(steps * n * K);
    double *u = calloc(n, sizeof *u), *v = calloc(K, sizeof *v);
    for (size_t step = 0; step < steps; step++) {
        double temp = golden_number(golden_get(g, "teacher_temp"), step);
        for (size_t i = 0; i < n * K; i++)
            scores[i] = golden_f32(g, "%s", teacher)[step * n * K + i] * (float)(1.0 / temp);
        assert_int_equal(sd_sinkhorn(NULL, sd_kernels_get(), scores, n, K, K, 3, u, v), SD_OK);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < K; j++)
                assigned[(step * n + i) * K + j] = (float)(u[i] * v[j] * (double)scores[i * K + j]);
    }
    golden_compare_f32(g, "teacher_prob", assigned, steps * n * K, golden_tolerance(g, "teacher_prob"));
    free(v);
    free(u);
    free(assigned);
    free(scores);
    golden_close(g);
}

static void test_sinkhorn_assignments(void **state) {
    (void)state;
    check_sinkhorn("loss/dino_v2_sinkhorn.npz", "teacher_output");
    check_sinkhorn("loss/ibot_sinkhorn.npz", "teacher");
}

static void check_centered(const char *file, const char *teacher) {
    golden *g = golden_open(file);
    const golden_array *shape = golden_get(g, "%s", teacher);
    size_t steps = shape->shape[0], n = shape->shape[1], K = shape->shape[2];
    float *assigned = floats(steps * n * K), *factors = floats(K), largest, sum;
    for (size_t i = 0; i < steps * n; i++) {
        float inverse = (float)(1.0 / golden_number(golden_get(g, "teacher_temp"), i / n)), *row = assigned + i * K;
        memcpy(row, golden_f32(g, "%s", teacher) + i * K, K * sizeof *row);
        for (size_t j = 0; j < K; j++)
            factors[j] = inverse;
        sd_kernels_get()->softmax_piece(row, factors, golden_f32(g, "center") + i / n * K, inverse, K, &largest, &sum);
        for (size_t j = 0; j < K; j++)
            row[j] /= sum;
    }
    golden_compare_f32(g, "teacher_prob", assigned, steps * n * K, golden_tolerance(g, "teacher_prob"));
    free(factors);
    free(assigned);
    golden_close(g);
}

static void test_centered_assignments(void **state) {
    (void)state;
    check_centered("loss/dino_v2_centering.npz", "teacher_output");
    check_centered("loss/ibot_centering.npz", "teacher");
}

/* ---- KoLeo --------------------------------------------------------------------------------- */

static void test_koleo(void **state) {
    (void)state;
    golden *g = golden_open("loss/koleo.npz");
    const golden_array *x = golden_get(g, "x");
    size_t rows = x->shape[0], dim = x->shape[1];
    float *grad = floats(x->count);
    double loss, again;
    sd_koleo *koleo;
    assert_int_equal(sd_koleo_create(NULL, rows + 3, dim + 2, &koleo), SD_OK);
    assert_int_equal(sd_koleo_evaluate(koleo, golden_f32(g, "x"), rows, dim, grad, &loss), SD_OK);
    compare(g, "loss", 0, loss);
    golden_compare_f32(g, "grad", grad, x->count, golden_tolerance(g, "grad"));
    assert_int_equal(sd_koleo_evaluate(koleo, golden_f32(g, "x"), rows, dim, NULL, &again), SD_OK);
    assert_true(again == loss);
    sd_koleo_destroy(koleo);
    free(grad);
    golden_close(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dino_v1),
        cmocka_unit_test(test_dino_v2_centering),
        cmocka_unit_test(test_dino_v2_sinkhorn),
        cmocka_unit_test(test_ibot_centering),
        cmocka_unit_test(test_ibot_sinkhorn),
        cmocka_unit_test(test_ibot_all_tokens),
        cmocka_unit_test(test_patch_cosine),
        cmocka_unit_test(test_sinkhorn_assignments),
        cmocka_unit_test(test_centered_assignments),
        cmocka_unit_test(test_koleo),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
