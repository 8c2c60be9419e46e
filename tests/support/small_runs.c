#include "small_runs.h"

#include "model/model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

const char *small_run_name(int run) {
    static const char *const names[] = {"simdinov2", "dino", "dinov2", "dinov2 with Sinkhorn-Knopp"};
    return names[run];
}

sd_pretrainer_config small_config(int run) {
    static const int32_t methods[] = {SD_METHOD_SIMDINOV2, SD_METHOD_DINO, SD_METHOD_DINOV2, SD_METHOD_DINOV2};
    sd_pretrainer_config c;
    assert_int_equal(sd_pretrainer_config_method(&c, methods[run]), SD_OK);
    c.model.image_size = c.augment.global_size = SMALL_GLOBAL;
    c.augment.local_size = SMALL_LOCAL;
    c.augment.local_crops = SMALL_LOCALS;
    c.model.patch_size = 4;
    c.model.dim = 24;
    c.model.depth = 2;
    c.model.heads = 2;
    c.model.head_hidden = 32;
    c.model.head_dim = 16;
    c.model.drop_path = 0.2;
    if (run != SMALL_SIMDINOV2)
        c.model.prototypes = 50;
    if (run != SMALL_DINO) /* with the published 1e-5 all images look alike at first, and KoLeo sees only rounding */
        c.model.layer_scale = 0.5;
    if (run == SMALL_DINOV2_SINKHORN) {
        c.dino.target = SD_TARGET_SINKHORN;
        c.model.patch_head = 1;
        c.model.patch_prototypes = 33;
    }
    c.batch_size = SMALL_BATCH;
    c.total_steps = 40;
    c.warmup_steps = 2;
    c.lr = 2e-3;
    c.lr_start = 1e-4;
    c.teacher_temp_start = 0.04;
    c.teacher_temp = 0.07;
    c.teacher_temp_steps = 6;
    c.freeze_steps = 3;
    c.seed = 5;
    return c;
}

const sd_image *small_images(void) {
    static uint8_t pixels[SMALL_IMAGES * SMALL_GLOBAL * SMALL_GLOBAL * 3];
    static sd_image images[SMALL_IMAGES];
    if (images[0].pixels == NULL) {
        sd_random random;
        sd_random_init(&random, 77, 0, 0);
        for (size_t i = 0; i < sizeof pixels; i++)
            pixels[i] = (uint8_t)sd_random_u32(&random);
        for (size_t i = 0; i < SMALL_IMAGES; i++)
            images[i] =
                (sd_image){pixels + i * SMALL_GLOBAL * SMALL_GLOBAL * 3, SMALL_GLOBAL, SMALL_GLOBAL, 0, 3, SD_PIXEL_U8};
    }
    return images;
}

float *small_crops(uint64_t seed, sd_crop_batch *crops) {
    size_t globals = SMALL_BATCH * 3 * 2 * SMALL_GLOBAL * SMALL_GLOBAL;
    size_t locals = SMALL_BATCH * 3 * SMALL_LOCALS * SMALL_LOCAL * SMALL_LOCAL;
    float *pixels = calloc(globals + locals, sizeof *pixels);
    assert_non_null(pixels);
    sd_random random;
    sd_random_init(&random, seed, 0, 0);
    for (size_t i = 0; i < globals + locals; i++)
        pixels[i] = (float)sd_random_normal(&random);
    *crops = (sd_crop_batch){
        .samples = SMALL_BATCH,
        .channels = 3,
        .global_size = SMALL_GLOBAL,
        .local_size = SMALL_LOCAL,
        .local_crops = SMALL_LOCALS,
        .globals = pixels,
        .locals = pixels + globals,
    };
    return pixels;
}

sd_context *small_context(int32_t threads, failing_memory *memory) {
    sd_context_config hooks;
    sd_context_config_init(&hooks);
    hooks.threads = threads;
    hooks.blas_threads = SD_BLAS_THREADS_ONE;
    if (memory != NULL)
        failing_memory_install(memory, &hooks);
    sd_context *context = NULL;
    assert_int_equal(sd_context_create(&hooks, &context), SD_OK);
    return context;
}

sd_pretrainer *small_trainer(sd_context *context, const sd_pretrainer_config *config) {
    sd_pretrainer *trainer = NULL;
    if (sd_pretrainer_create(context, config, &trainer) != SD_OK)
        fail_msg("%s", sd_last_error());
    return trainer;
}

sd_step_metrics small_step(sd_pretrainer *trainer, size_t first) {
    return small_step_of(trainer, first, SMALL_BATCH);
}

sd_step_metrics small_step_of(sd_pretrainer *trainer, size_t first, size_t count) {
    sd_step_metrics metrics = {.size = sizeof metrics};
    if (sd_pretrainer_step(trainer, small_images() + first, count, &metrics) != SD_OK)
        fail_msg("%s", sd_last_error());
    if (!(isfinite(metrics.loss) && metrics.gradient_norm > 0.0 && metrics.effective_rank >= 1.0))
        fail_msg("loss %g, gradient %g, effective rank %.9g", metrics.loss, metrics.gradient_norm,
                 metrics.effective_rank);
    metrics.seconds = metrics.images_per_second = 0.0;
    return metrics;
}

/* ---- state --------------------------------------------------------------------------------- */

/* Adds `count` values, or only counts them. */
static void add_values(small_state *state, const float *values, size_t count) {
    if (state->values != NULL)
        memcpy(state->values + state->count, values, count * sizeof *values);
    state->count += count;
}

static void add_all(const sd_pretrainer *trainer, small_state *state) {
    size_t parameters = trainer->student->parameter_count;
    state->count = 0;
    add_values(state, trainer->student->parameters, parameters);
    add_values(state, trainer->teacher->parameters, parameters);
    for (size_t i = 0; i < sd_optimizer_state_count(trainer->optimizer); i++)
        add_values(state, sd_optimizer_state(trainer->optimizer, i), parameters);
    for (size_t i = 0; i < sd_objective_state_count(trainer->objective); i++) {
        sd_objective_state center = sd_objective_state_at(trainer->objective, i);
        add_values(state, center.values, center.rows * center.columns);
    }
}

small_state small_state_of(const sd_pretrainer *trainer) {
    small_state state = {.step = sd_pretrainer_position(trainer),
                         .optimizer_steps = sd_optimizer_steps(trainer->optimizer)};
    add_all(trainer, &state);
    state.values = calloc(state.count, sizeof *state.values);
    assert_non_null(state.values);
    add_all(trainer, &state);
    return state;
}

void small_state_compare(const sd_pretrainer *trainer, const small_state *kept, const char *when) {
    small_state now = small_state_of(trainer);
    if (now.step != kept->step || now.optimizer_steps != kept->optimizer_steps)
        fail_msg("%s: step %llu, expected %llu", when, (unsigned long long)now.step, (unsigned long long)kept->step);
    assert_int_equal(now.count, kept->count);
    if (memcmp(now.values, kept->values, now.count * sizeof *now.values) != 0) {
        size_t i = 0;
        while (memcmp(now.values + i, kept->values + i, sizeof *now.values) == 0)
            i++;
        fail_msg("%s: value %zu of %zu is %.9g, expected %.9g", when, i, now.count, (double)now.values[i],
                 (double)kept->values[i]);
    }
    small_state_free(&now);
}

void small_state_free(small_state *state) {
    free(state->values);
}
