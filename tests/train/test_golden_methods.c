/* Twelve training steps of SimDINOv2, DINO and DINOv2 against the official training loops (golden/trajectory). */
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

typedef struct trajectory {
    golden *archive;
    golden *crops; /* where crops, masks and the first parameters are: archive, or another file */
    int32_t method;
} trajectory;

static double hp(const trajectory *t, const char *name) { return golden_scalar(t->archive, "hp/%s", name); }

/* The official name of a tensor. */
static const char *official(const trajectory *t, const char *name, char *text, size_t size) {
    bool v2 = t->method != SD_METHOD_DINO;
    if (v2 && strncmp(name, "head.", 5) == 0)
        snprintf(text, size, "dino_%s", name);
    else if (strncmp(name, "patch_head.", 11) == 0)
        snprintf(text, size, "ibot_%s", name + 6);
    else
        snprintf(text, size, "%s", name);
    return text;
}

static void set_v2(const trajectory *t, sd_pretrainer_config *c) {
    c->model.registers = (int32_t)hp(t, "num_register_tokens");
    c->model.interpolate_antialias = (int32_t)hp(t, "interpolate_antialias");
    c->model.interpolate_offset = hp(t, "interpolate_offset");
    c->layer_decay = hp(t, "layerwise_decay");
    c->patch_embed_lr = hp(t, "patch_embed_lr_mult");
    c->patch_weight = hp(t, "ibot_loss_weight");
    c->lr = golden_number(golden_get(t->archive, "schedule/lr"), 3);
    c->min_lr = 1e-6;
    c->lr_start = t->method == SD_METHOD_SIMDINOV2 ? 1e-6 : 0.0;
}

static void set_prototypes(const trajectory *t, sd_pretrainer_config *c) {
    c->dino.student_temp = hp(t, "student_temp");
    c->dino.center_momentum = hp(t, "center_momentum");
    c->freeze_steps = 3;
    c->teacher_temp_start = 0.04;
    c->teacher_temp = 0.07;
    c->teacher_temp_steps = 6;
}

static sd_pretrainer *create(const trajectory *t, sd_context *context, size_t micro_batch, int32_t activations) {
    sd_pretrainer_config c;
    assert_int_equal(sd_pretrainer_config_method(&c, t->method), SD_OK);
    c.model.image_size = c.augment.global_size = (int32_t)hp(t, "global_size");
    c.augment.local_size = (int32_t)hp(t, "local_size");
    c.augment.local_crops = (int32_t)hp(t, "n_local");
    c.model.patch_size = (int32_t)hp(t, "patch_size");
    c.model.dim = (int32_t)hp(t, "embed_dim");
    c.model.depth = (int32_t)hp(t, "depth");
    c.model.heads = (int32_t)hp(t, "num_heads");
    c.model.mlp_ratio = hp(t, "mlp_ratio");
    c.model.drop_path = 0.0;
    c.model.head_hidden = (int32_t)hp(t, "head_hidden");
    c.model.head_dim = (int32_t)hp(t, "head_bottleneck");
    c.batch_size = (size_t)hp(t, "batch_size");
    c.micro_batch = micro_batch;
    c.activations = activations;
    c.clip_limit = hp(t, "clip_grad");
    c.total_steps = STEPS;
    c.warmup_steps = 3;
    c.momentum = 0.9;
    c.lr = 0.002;
    c.min_lr = 1e-5;
    if (t->method == SD_METHOD_DINO) {
        c.model.prototypes = (int32_t)hp(t, "out_dim");
        c.epoch_steps = 3;
        set_prototypes(t, &c);
    } else {
        set_v2(t, &c);
    }
    if (t->method == SD_METHOD_DINOV2) {
        c.model.prototypes = (int32_t)hp(t, "dino_prototypes");
        c.model.patch_head = (int32_t)hp(t, "separate_head");
        c.model.patch_prototypes = c.model.patch_head ? (int32_t)hp(t, "ibot_prototypes") : 0;
        c.dino.target = hp(t, "sinkhorn") != 0.0 ? SD_TARGET_SINKHORN : SD_TARGET_CENTER;
        c.koleo_weight = hp(t, "koleo_loss_weight");
        set_prototypes(t, &c);
    }
    sd_pretrainer *trainer;
    if (sd_pretrainer_create(context, &c, &trainer) != SD_OK)
        fail_msg("%s", sd_last_error());
    for (size_t i = 0; i < trainer->student->tensor_count; i++) {
        const sd_tensor_info *info = &trainer->student->tensors[i];
        char text[96], key[112];
        snprintf(key, sizeof key, "init/%s", official(t, info->name, text, sizeof text));
        const golden *from = golden_has(t->archive, key) ? t->archive : t->crops;
        const golden_array *array = golden_get(from, "%s", key);
        assert_int_equal(array->count, info->count);
        memcpy(trainer->student->parameters + info->offset, array->data, info->count * sizeof(float));
    }
    assert_int_equal(sd_model_copy(trainer->teacher, trainer->student), SD_OK);
    return trainer;
}

static sd_crop_batch crops_of(const trajectory *t, const sd_pretrainer *trainer, int step) {
    const sd_pretrainer_config *c = &trainer->config;
    sd_crop_batch crops = {
        .samples = c->batch_size,
        .channels = 3,
        .global_size = c->augment.global_size,
        .local_size = c->augment.local_size,
        .local_crops = c->augment.local_crops,
        .globals = golden_f32(t->crops, "global_crops/%d", step % 3),
        .locals = golden_f32(t->crops, "local_crops/%d", step % 3),
    };
    if (t->method != SD_METHOD_DINO)
        crops.masks = golden_u8(t->crops, "masks/%d", step % 3);
    return crops;
}

/* A number of a step beside the official one's, where the file has it. */
static void compare_step(const trajectory *t, int step, const char *name, double actual) {
    char key[64];
    snprintf(key, sizeof key, "step64/%s", name);
    if (!golden_has(t->archive, key))
        return;
    double expected = golden_number(golden_get(t->archive, "%s", key), (size_t)step);
    double tolerance = golden_tolerance(t->archive, "step/%s", name);
    if (!(fabs(actual - expected) <= tolerance))
        fail_msg("step %d: %s is %.9g, expected %.9g within %g", step, name, actual, expected, tolerance);
}

static void compare_schedule(const trajectory *t, int step, const char *name, double actual) {
    double expected = golden_number(golden_get(t->archive, "schedule/%s", name), (size_t)step);
    if (!(fabs(actual - expected) <= 1e-15))
        fail_msg("step %d: %s is %.17g, expected %.17g", step, name, actual, expected);
}

static void compare_metrics(const trajectory *t, int step, const sd_step_metrics *m) {
    compare_schedule(t, step, "lr", m->lr);
    compare_schedule(t, step, "wd", m->weight_decay);
    compare_schedule(t, step, "momentum", m->momentum);
    if (t->method == SD_METHOD_DINOV2)
        compare_schedule(t, step, "teacher_temp", m->teacher_temp);
    if (t->method == SD_METHOD_DINO) {
        assert_true(fabs(m->teacher_temp - golden_number(golden_get(t->archive, "hp/teacher_temp"),
                                                         (size_t)step / 3)) < 1e-15);
        compare_step(t, step, "loss", m->loss);
        return;
    }
    compare_step(t, step, "optimised_loss", m->loss);
    compare_step(t, step, "dino_mcr_comp_loss", m->compression);
    compare_step(t, step, "dino_mcr_expa_loss", m->expansion);
    compare_step(t, step, "ibot_comp_loss", m->patch_loss);
    compare_step(t, step, "dino_local_crops_loss", m->local_loss);
    compare_step(t, step, "dino_global_crops_loss", m->global_loss);
    /* the official code logs half of what it optimises */
    compare_step(t, step, "koleo_loss", 0.5 * 0.1 * m->koleo);
    compare_step(t, step, "ibot_loss", 0.5 * m->patch_loss);
}

/* The official buffer of DINOv2 shows a step's update only after the next step has begun. */
static void compare_centers(const trajectory *t, int step, const sd_pretrainer *trainer) {
    const char *names[] = {"dino_loss.center", "ibot_patch_loss.center"};
    bool lazy = t->method == SD_METHOD_DINOV2;
    for (size_t i = 0; i < sd_objective_state_count(trainer->objective); i++) {
        sd_objective_state state = sd_objective_state_at(trainer->objective, i);
        const char *name = lazy ? names[i] : "center";
        if (lazy && step == STEPS - 1)
            continue;
        const float *all = golden_f32(t->archive, "step/%s", name);
        double tolerance = golden_tolerance(t->archive, "step/%s", name);
        const float *expected = all + (size_t)(lazy ? step + 1 : step) * state.columns;
        assert_true(golden_difference_f32(state.values, expected, state.columns) <= tolerance);
    }
}

static void compare_norms(const trajectory *t, int step, const sd_pretrainer *trainer) {
    const sd_model *student = trainer->student;
    if (t->method == SD_METHOD_DINO) {
        const golden_array *names = golden_get(t->archive, "grad_norm/names");
        for (size_t i = 0; i < names->count; i++) {
            const sd_tensor_info *info = sd_model_find_tensor(student, golden_text(names, i));
            assert_non_null(info);
            double expected = golden_number(golden_get(t->archive, "grad_norm/values"),
                                            (size_t)step * names->count + i);
            double norm = trainer->norms[info - student->tensors];
            if (!(fabs(norm - expected) <= golden_tolerance(t->archive, "grad_norm/values")))
                fail_msg("step %d: norm of %s is %.9g, expected %.9g", step, info->name, norm, expected);
        }
        return;
    }
    const char *modules[][2] = {{"backbone.", "backbone"}, {"head.", "dino_head"}, {"patch_head.", "ibot_head"}};
    for (size_t i = 0; i < 3; i++) {
        char key[32];
        snprintf(key, sizeof key, "grad_norm/%s", modules[i][1]);
        double square = 0.0;
        for (size_t j = 0; j < student->tensor_count; j++)
            if (strncmp(student->tensors[j].name, modules[i][0], strlen(modules[i][0])) == 0)
                square += trainer->norms[j] * trainer->norms[j];
        if (!golden_has(t->archive, key)) {
            assert_true(square == 0.0);
            continue;
        }
        double expected = golden_number(golden_get(t->archive, "%s", key), (size_t)step), norm = sqrt(square);
        if (!(fabs(norm - expected) <= golden_tolerance(t->archive, "%s", key)))
            fail_msg("step %d: norm of %s is %.9g, expected %.9g", step, modules[i][1], norm, expected);
    }
}

static bool is_key_bias(const sd_tensor_info *info, size_t element) {
    return strstr(info->name, "attn.qkv.bias") != NULL && element >= info->count / 3 && element < 2 * info->count / 3;
}

static void compare_first_gradient(const trajectory *t, const sd_pretrainer *trainer) {
    for (size_t i = 0; i < trainer->student->tensor_count; i++) {
        const sd_tensor_info *info = &trainer->student->tensors[i];
        char text[96], key[112];
        snprintf(key, sizeof key, "grad0/%s", official(t, info->name, text, sizeof text));
        const float *gradient = trainer->gradient + info->offset;
        if (golden_has(t->archive, key)) {
            golden_compare_f32(t->archive, key, gradient, info->count, golden_tolerance(t->archive, "%s", key));
            continue;
        }
        assert_true(golden_has(t->archive, "summary/names") || strstr(info->name, "weight_g") != NULL);
    }
}

/* The key third of qkv biases has a true gradient of zero, whose rounding noise Adam turns into steps: it is left out. */
static void compare_final(const trajectory *t, const char *prefix, const sd_model *model) {
    for (size_t i = 0; i < model->tensor_count; i++) {
        const sd_tensor_info *info = &model->tensors[i];
        char text[96];
        const char *name = official(t, info->name, text, sizeof text);
        const float *expected = golden_f32(t->archive, "%s/%s", prefix, name), *actual = model->parameters + info->offset;
        double tolerance = golden_tolerance(t->archive, "%s/%s", prefix, name);
        for (size_t j = 0; j < info->count; j++)
            if (!is_key_bias(info, j) && !(fabs((double)actual[j] - (double)expected[j]) <= tolerance))
                fail_msg("%s/%s[%zu]: %.9g, expected %.9g within %g", prefix, info->name, j, (double)actual[j],
                         (double)expected[j], tolerance);
    }
}

/* Where the file has norms only: of the first gradient, and of the change of each tensor over the run. */
static void compare_summary(const trajectory *t, const char *what, const char *names_key, const sd_model *model,
                            const float *values, const float *minus) {
    const golden_array *names = golden_get(t->archive, "summary/%s", names_key);
    double tolerance = golden_tolerance(t->archive, "summary/%s", what);
    for (size_t i = 0; i < model->tensor_count; i++) {
        const sd_tensor_info *info = &model->tensors[i];
        char text[96];
        const char *name = official(t, info->name, text, sizeof text);
        for (size_t j = 0; j < names->count; j++) {
            if (strcmp(golden_text(names, j), name) != 0)
                continue;
            double square = 0.0;
            for (size_t k = info->offset; k < info->offset + info->count; k++) {
                double value = (double)values[k] - (minus == NULL ? 0.0 : (double)minus[k]);
                square += value * value;
            }
            double expected = golden_number(golden_get(t->archive, "summary/%s", what), j);
            if (!(fabs(sqrt(square) - expected) <= tolerance))
                fail_msg("%s of %s: %.9g, expected %.9g within %g", what, name, sqrt(square), expected, tolerance);
        }
    }
}

static void follow(const char *file, const char *crops_file, int32_t method, int threads, size_t micro_batch,
                   int32_t activations) {
    trajectory t = {.archive = golden_open(file), .method = method};
    t.crops = crops_file == NULL ? t.archive : golden_open(crops_file);
    sd_context_config hooks;
    sd_context_config_init(&hooks);
    hooks.threads = threads;
    hooks.blas_threads = SD_BLAS_THREADS_ONE;
    sd_context *context;
    assert_int_equal(sd_context_create(&hooks, &context), SD_OK);
    sd_pretrainer *trainer = create(&t, context, micro_batch, activations);
    bool summary = golden_has(t.archive, "summary/names");
    size_t count = trainer->student->parameter_count;
    float *start = malloc(count * sizeof *start);
    memcpy(start, trainer->student->parameters, count * sizeof *start);
    for (int step = 0; step < STEPS; step++) {
        sd_crop_batch crops = crops_of(&t, trainer, step);
        sd_step_metrics metrics = {.size = sizeof metrics};
        if (sd_pretrainer_step_crops(trainer, &crops, &metrics) != SD_OK)
            fail_msg("%s", sd_last_error());
        compare_metrics(&t, step, &metrics);
        compare_norms(&t, step, trainer);
        if (!summary)
            compare_centers(&t, step, trainer);
        if (step == 0 && summary)
            compare_summary(&t, "grad0_norm", "grad0_names", trainer->student, trainer->gradient, NULL);
        if (step == 0)
            compare_first_gradient(&t, trainer);
    }
    if (summary) {
        compare_summary(&t, "student_final_change", "names", trainer->student, trainer->student->parameters, start);
        compare_summary(&t, "teacher_final_change", "names", trainer->teacher, trainer->teacher->parameters, start);
    } else {
        compare_final(&t, "student_final", trainer->student);
        compare_final(&t, "teacher_final", trainer->teacher);
    }
    free(start);
    sd_pretrainer_destroy(trainer);
    sd_context_destroy(context);
    if (t.crops != t.archive)
        golden_close(t.crops);
    golden_close(t.archive);
}

/* One thread, three threads with recomputed activations, and the whole batch's loss in pieces of 3, 3 and 2 samples. */
static void follow_in_three_ways(const char *file, const char *crops_file, int32_t method) {
    follow(file, crops_file, method, 1, 0, SD_ACTIVATIONS_SPEED);
    follow(file, crops_file, method, 3, 0, SD_ACTIVATIONS_MEMORY);
    follow(file, crops_file, method, 2, 3, SD_ACTIVATIONS_SPEED);
}

static void test_simdinov2(void **state) {
    (void)state;
    follow_in_three_ways("trajectory/simdinov2.npz", NULL, SD_METHOD_SIMDINOV2);
}

static void test_dino(void **state) {
    (void)state;
    follow_in_three_ways("trajectory/dino.npz", NULL, SD_METHOD_DINO);
}

static void test_dinov2(void **state) {
    (void)state;
    follow_in_three_ways("trajectory/dinov2.npz", NULL, SD_METHOD_DINOV2);
}

static void test_dinov2_sinkhorn(void **state) {
    (void)state;
    follow_in_three_ways("trajectory/dinov2_sinkhorn.npz", "trajectory/dinov2.npz", SD_METHOD_DINOV2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_simdinov2),
        cmocka_unit_test(test_dino),
        cmocka_unit_test(test_dinov2),
        cmocka_unit_test(test_dinov2_sinkhorn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
