/* Twelve training steps against the official training loop (golden/trajectory/simdino.npz). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "golden.h"
#include "model/model.h"
#include "train/trainer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEPS 12

static double hp(const golden *archive, const char *name) { return golden_scalar(archive, "hp/%s", name); }

static sd_pretrainer *create(const golden *archive, sd_context *context, size_t micro_batch, int32_t activations) {
    sd_pretrainer_config c;
    sd_pretrainer_config_init(&c);
    c.model.image_size = c.augment.global_size = (int32_t)hp(archive, "global_size");
    c.augment.local_size = (int32_t)hp(archive, "local_size");
    c.augment.local_crops = (int32_t)hp(archive, "n_local");
    c.model.patch_size = (int32_t)hp(archive, "patch_size");
    c.model.dim = (int32_t)hp(archive, "embed_dim");
    c.model.depth = (int32_t)hp(archive, "depth");
    c.model.heads = (int32_t)hp(archive, "num_heads");
    c.model.mlp_ratio = hp(archive, "mlp_ratio");
    c.model.drop_path = 0.0;
    c.model.head_hidden = (int32_t)hp(archive, "head_hidden");
    c.model.head_dim = (int32_t)hp(archive, "head_bottleneck");
    c.batch_size = (size_t)hp(archive, "batch_size");
    c.micro_batch = micro_batch;
    c.activations = activations;
    c.clip_limit = hp(archive, "clip_grad");
    c.loss.eps_sq = hp(archive, "eps");
    c.loss.coeff = hp(archive, "coeff");
    c.loss.expa_type = (int32_t)hp(archive, "expa_type");
    c.loss.normalized = 0; /* SimDINO divides by the norms again */
    c.total_steps = STEPS;
    c.warmup_steps = 3;
    c.lr = 0.002;
    c.min_lr = 1e-5;
    c.momentum = 0.9;
    sd_pretrainer *trainer;
    assert_int_equal(sd_pretrainer_create(context, &c, &trainer), SD_OK);
    for (size_t i = 0; i < trainer->student->tensor_count; i++) {
        const sd_tensor_info *info = &trainer->student->tensors[i];
        memcpy(trainer->student->parameters + info->offset, golden_f32(archive, "init/%s", info->name),
               info->count * sizeof(float));
    }
    assert_int_equal(sd_model_copy(trainer->teacher, trainer->student), SD_OK);
    return trainer;
}

static sd_crop_batch crops_of(const golden *archive, const sd_pretrainer *trainer, int step) {
    const sd_pretrainer_config *c = &trainer->config;
    return (sd_crop_batch){c->batch_size,
                           3,
                           c->augment.global_size,
                           c->augment.local_size,
                           c->augment.local_crops,
                           golden_f32(archive, "global_crops/%d", step % 3),
                           golden_f32(archive, "local_crops/%d", step % 3),
                           NULL};
}

/* The key third of qkv biases has a true gradient of zero, whose rounding noise Adam turns into steps: it is left out. */
static void compare_final(const golden *archive, const char *prefix, const sd_model *model) {
    for (size_t i = 0; i < model->tensor_count; i++) {
        const sd_tensor_info *info = &model->tensors[i];
        const float *expected = golden_f32(archive, "%s/%s", prefix, info->name);
        const float *actual = model->parameters + info->offset;
        double tolerance = golden_tolerance(archive, "%s/%s", prefix, info->name);
        bool is_qkv_bias = strstr(info->name, "attn.qkv.bias") != NULL;
        for (size_t j = 0; j < info->count; j++) {
            bool is_key = is_qkv_bias && j >= info->count / 3 && j < 2 * info->count / 3;
            if (!is_key && !(fabs((double)actual[j] - (double)expected[j]) <= tolerance))
                fail_msg("%s/%s[%zu]: %.9g, expected %.9g within %g", prefix, info->name, j, (double)actual[j],
                         (double)expected[j], tolerance);
        }
    }
}

static void follow(int threads, size_t micro_batch, int32_t activations) {
    golden *archive = golden_open("trajectory/simdino.npz");
    sd_context_config hooks;
    sd_context_config_init(&hooks);
    hooks.threads = threads;
    hooks.blas_threads = SD_BLAS_THREADS_ONE;
    sd_context *context;
    assert_int_equal(sd_context_create(&hooks, &context), SD_OK);
    sd_pretrainer *trainer = create(archive, context, micro_batch, activations);
    const float *norms = golden_f32(archive, "grad_norm/values");
    const golden_array *names = golden_get(archive, "grad_norm/names");
    for (int step = 0; step < STEPS; step++) {
        sd_crop_batch crops = crops_of(archive, trainer, step);
        sd_step_metrics metrics = {.size = sizeof metrics};
        assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, &metrics), SD_OK);
        const double schedule[] = {metrics.lr, metrics.weight_decay, metrics.momentum};
        const char *schedule_names[] = {"lr", "wd", "momentum"};
        for (size_t k = 0; k < 3; k++) {
            double expected = golden_number(golden_get(archive, "schedule/%s", schedule_names[k]), (size_t)step);
            assert_true(fabs(schedule[k] - expected) <= 1e-15);
        }
        const char *keys[] = {"loss", "comp_loss", "expa_loss"};
        double actual[] = {metrics.loss, metrics.compression, metrics.expansion};
        for (size_t k = 0; k < 3; k++) {
            double expected = golden_number(golden_get(archive, "step64/%s", keys[k]), (size_t)step);
            double tolerance = golden_tolerance(archive, "step/%s", keys[k]);
            if (!(fabs(actual[k] - expected) <= tolerance))
                fail_msg("step %d: %s is %.9g, expected %.9g within %g", step, keys[k], actual[k], expected, tolerance);
        }
        for (size_t i = 0; i < names->count; i++) {
            const char *name = golden_text(names, i);
            const sd_tensor_info *info = sd_model_find_tensor(trainer->student, name);
            assert_non_null(info);
            double expected = norms[(size_t)step * names->count + i];
            double norm = trainer->norms[info - trainer->student->tensors];
            if (!(fabs(norm - expected) <= golden_tolerance(archive, "grad_norm/values")))
                fail_msg("step %d: norm of %s is %.9g, expected %.9g", step, name, norm, expected);
            if (step == 0) {
                char key[96];
                snprintf(key, sizeof key, "grad0/%s", name);
                golden_compare_f32(archive, key, trainer->gradient + info->offset, info->count,
                                   golden_tolerance(archive, "%s", key));
            }
        }
    }
    compare_final(archive, "student_final", trainer->student);
    compare_final(archive, "teacher_final", trainer->teacher);
    sd_pretrainer_destroy(trainer);
    sd_context_destroy(context);
    golden_close(archive);
}

static void test_one_thread(void **state) {
    (void)state;
    follow(1, 0, SD_ACTIVATIONS_SPEED);
}

static void test_three_threads(void **state) {
    (void)state;
    follow(3, 0, SD_ACTIVATIONS_SPEED);
}

static void test_recomputed_activations(void **state) {
    (void)state;
    follow(2, 0, SD_ACTIVATIONS_MEMORY);
}

/* The whole batch's loss in pieces of 3, 3 and 2 samples. */
static void test_accumulated(void **state) {
    (void)state;
    follow(2, 3, SD_ACTIVATIONS_SPEED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_thread),        cmocka_unit_test(test_three_threads),
        cmocka_unit_test(test_recomputed_activations), cmocka_unit_test(test_accumulated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
