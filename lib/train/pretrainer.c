/* The pretrainer as an object: configuration, creation, memory. */
#define _POSIX_C_SOURCE 200809L
#include "train/trainer.h"
#include "model/model.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

double sd_trainer_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- configuration ------------------------------------------------------------------------- */

SD_API void sd_pretrainer_config_init(sd_pretrainer_config *config) {
    if (config == NULL)
        return;
    memset(config, 0, sizeof *config);
    config->size = sizeof *config;
    sd_model_config_init(&config->model);
    sd_simdino_config_init(&config->loss);
    sd_augment_config_init(&config->augment);
    sd_optimizer_config_init(&config->optimizer);
    config->batch_size = 64;
    config->accumulation = SD_ACCUMULATE_WHOLE;
    config->activations = SD_ACTIVATIONS_SPEED;
    config->total_steps = 10000;
    config->warmup_steps = 1000;
    config->lr = 5e-4;
    config->min_lr = 1e-6;
    config->weight_decay = 0.04;
    config->weight_decay_end = 0.4;
    config->momentum = 0.996;
    config->momentum_end = 1.0;
    config->clip = SD_CLIP_TENSOR;
    config->clip_limit = 3.0;
}

size_t sd_trainer_global_values(const sd_pretrainer_config *config) {
    return (size_t)config->model.channels * (size_t)config->augment.global_size * (size_t)config->augment.global_size;
}

size_t sd_trainer_local_values(const sd_pretrainer_config *config) {
    return config->augment.local_crops == 0 ? 0
                                            : (size_t)config->model.channels * (size_t)config->augment.local_size *
                                                  (size_t)config->augment.local_size;
}

size_t sd_trainer_micro_batch(const sd_pretrainer_config *config) {
    return config->micro_batch == 0 ? config->batch_size : sd_size_min(config->micro_batch, config->batch_size);
}

size_t sd_trainer_groups(const sd_pretrainer_config *config, size_t samples, sd_image_group groups[2]) {
    size_t global = (size_t)config->augment.global_size, local = (size_t)config->augment.local_size;
    size_t locals = (size_t)config->augment.local_crops;
    groups[0] = (sd_image_group){NULL, 2 * samples, global, global};
    if (locals == 0)
        return 1;
    groups[1] = (sd_image_group){NULL, locals * samples, local, local};
    return 2;
}

static bool is_positive(double value) { return value > 0.0 && isfinite(value); }
static bool is_not_negative(double value) { return value >= 0.0 && isfinite(value); }
static bool is_share(double value) { return value >= 0.0 && value <= 1.0; }

sd_status sd_trainer_check(const sd_pretrainer_config *c) {
    const sd_augment_config *augment = &c->augment;
    int32_t patch = c->model.patch_size;
    SD_REQUIRE(c->model.head_layers > 0, SD_ERR_ARGUMENT,
               "model.head_layers is 0: pretraining needs a projection head");
    SD_REQUIRE(augment->global_size > 0 && patch > 0 && augment->global_size % patch == 0, SD_ERR_ARGUMENT,
               "augment.global_size is %d: it must be a multiple of model.patch_size (%d)", augment->global_size,
               patch);
    SD_REQUIRE(augment->local_crops >= 0 && augment->local_crops <= SD_MAX_VIEWS - 2, SD_ERR_ARGUMENT,
               "augment.local_crops is %d: it must be 0 to %d", augment->local_crops, SD_MAX_VIEWS - 2);
    SD_REQUIRE(augment->local_crops == 0 || (augment->local_size > 0 && augment->local_size % patch == 0),
               SD_ERR_ARGUMENT, "augment.local_size is %d: it must be a multiple of model.patch_size (%d)",
               augment->local_size, patch);
    SD_REQUIRE(c->batch_size >= 1 && c->batch_size <= 1 << 20, SD_ERR_ARGUMENT,
               "batch_size is %zu: it must be 1 to %d", c->batch_size, 1 << 20);
    SD_REQUIRE(c->accumulation == SD_ACCUMULATE_WHOLE || c->accumulation == SD_ACCUMULATE_PIECES, SD_ERR_ARGUMENT,
               "accumulation is %d: it must be one of sd_accumulation", c->accumulation);
    SD_REQUIRE(c->activations == SD_ACTIVATIONS_SPEED || c->activations == SD_ACTIVATIONS_MEMORY, SD_ERR_ARGUMENT,
               "activations is %d: training needs SD_ACTIVATIONS_SPEED or SD_ACTIVATIONS_MEMORY", c->activations);
    SD_REQUIRE(c->loss.groups >= 1 && c->batch_size % (size_t)c->loss.groups == 0, SD_ERR_ARGUMENT,
               "loss.groups is %d: it must be at least 1 and divide batch_size (%zu)", c->loss.groups, c->batch_size);
    SD_REQUIRE(c->accumulation == SD_ACCUMULATE_WHOLE || sd_trainer_micro_batch(c) % (size_t)c->loss.groups == 0,
               SD_ERR_ARGUMENT, "loss.groups is %d: with SD_ACCUMULATE_PIECES it must divide micro_batch (%zu)",
               c->loss.groups, sd_trainer_micro_batch(c));
    SD_REQUIRE(c->total_steps >= 1, SD_ERR_ARGUMENT, "total_steps is 0: it must be at least 1");
    SD_REQUIRE(c->warmup_steps <= c->total_steps, SD_ERR_ARGUMENT,
               "warmup_steps is %llu: it must not exceed total_steps (%llu)", (unsigned long long)c->warmup_steps,
               (unsigned long long)c->total_steps);
    SD_REQUIRE(is_not_negative(c->lr) && is_not_negative(c->min_lr), SD_ERR_ARGUMENT,
               "lr is %g and min_lr is %g: both must be finite and not negative", c->lr, c->min_lr);
    SD_REQUIRE(is_not_negative(c->weight_decay) && is_not_negative(c->weight_decay_end), SD_ERR_ARGUMENT,
               "weight_decay is %g and weight_decay_end is %g: both must be finite and not negative", c->weight_decay,
               c->weight_decay_end);
    SD_REQUIRE(is_share(c->momentum) && is_share(c->momentum_end), SD_ERR_ARGUMENT,
               "momentum is %g and momentum_end is %g: both must be in [0, 1]", c->momentum, c->momentum_end);
    SD_REQUIRE(c->clip == SD_CLIP_NONE || c->clip == SD_CLIP_TENSOR || c->clip == SD_CLIP_MODULE, SD_ERR_ARGUMENT,
               "clip is %d: it must be one of sd_clip_kind", c->clip);
    SD_REQUIRE(c->clip == SD_CLIP_NONE || is_positive(c->clip_limit), SD_ERR_ARGUMENT,
               "clip_limit is %g: it must be finite and above 0", c->clip_limit);
    return SD_OK;
}

/* The outer struct and the four within it may each be of an older header's size. */
static sd_status read_config(const sd_pretrainer_config *source, sd_pretrainer_config *config) {
    sd_pretrainer_config_init(config);
    sd_pretrainer_config given = *config;
    sd_status status = sd_config_read(&given, sizeof given, source, "sd_pretrainer_config");
    if (status != SD_OK)
        return status;
    sd_pretrainer_config defaults = *config;
    *config = given;
    config->model = defaults.model;
    config->loss = defaults.loss;
    config->augment = defaults.augment;
    config->optimizer = defaults.optimizer;
    if ((status = sd_config_read(&config->model, sizeof config->model, &given.model, "model")) != SD_OK ||
        (status = sd_config_read(&config->loss, sizeof config->loss, &given.loss, "loss")) != SD_OK ||
        (status = sd_config_read(&config->augment, sizeof config->augment, &given.augment, "augment")) != SD_OK ||
        (status = sd_config_read(&config->optimizer, sizeof config->optimizer, &given.optimizer, "optimizer")) != SD_OK)
        return status;
    return sd_trainer_check(config);
}

/* ---- create and destroy -------------------------------------------------------------------- */

/* Counts of floats that a pretrainer allocates for itself. */
typedef struct trainer_sizes {
    size_t parameters, student_rows, teacher_rows, piece_pixels;
    bool pieces;
} trainer_sizes;

static sd_status sizes_of(const sd_pretrainer_config *config, const sd_geometry *geometry, trainer_sizes *sizes) {
    size_t micro = sd_trainer_micro_batch(config), views = 2 + (size_t)config->augment.local_crops, per_sample, total;
    sizes->parameters = sd_geometry_parameters(geometry);
    sizes->student_rows = views * config->batch_size;
    sizes->teacher_rows = 2 * config->batch_size;
    sizes->pieces = micro < config->batch_size;
    per_sample = 2 * sd_trainer_global_values(config) +
                 (size_t)config->augment.local_crops * sd_trainer_local_values(config);
    SD_REQUIRE(sd_size_mul(per_sample, micro, &total), SD_ERR_MEMORY, "the crops of %zu samples do not fit into memory",
               micro);
    sizes->piece_pixels = sizes->pieces ? total : 0;
    return SD_OK;
}

SD_API sd_status sd_pretrainer_create(sd_context *context, const sd_pretrainer_config *source, sd_pretrainer **out) {
    SD_REQUIRE(out != NULL, SD_ERR_ARGUMENT, "trainer is NULL");
    sd_pretrainer_config config;
    sd_status status = read_config(source, &config);
    if (status != SD_OK)
        return status;
    sd_pretrainer *trainer = SD_NEW(context, sd_pretrainer);
    if (trainer == NULL)
        return SD_ERR_MEMORY;
    trainer->context = context;
    trainer->config = config;
    trainer->micro_batch = sd_trainer_micro_batch(&config);
    trainer->views = 2 + (size_t)config.augment.local_crops;
    trainer->dim = (size_t)config.model.head_dim;

    SD_TRY(sd_model_create(context, &config.model, &trainer->student));
    SD_TRY(sd_model_create(context, &config.model, &trainer->teacher));
    sd_model_initialize(trainer->student, config.seed);
    SD_TRY(sd_model_copy(trainer->teacher, trainer->student));
    SD_TRY(sd_optimizer_create_for_model(context, &config.optimizer, trainer->student, &trainer->optimizer));
    SD_TRY(sd_simdino_loss_create(context, &config.loss, config.batch_size, trainer->views, trainer->dim,
                                  &trainer->loss));
    sd_image_group groups[2];
    size_t group_count = sd_trainer_groups(&config, trainer->micro_batch, groups);
    SD_TRY(sd_activations_create(trainer->student, groups, group_count, (sd_activation_mode)config.activations, 0,
                                 &trainer->student_activations));
    SD_TRY(sd_activations_create(trainer->teacher, groups, 1, SD_ACTIVATIONS_INFERENCE, 0,
                                 &trainer->teacher_activations));
    trainer_sizes sizes;
    SD_TRY(sizes_of(&config, &trainer->student->geometry, &sizes));
    size_t tensors = sd_model_tensor_count(trainer->student), piece_rows = trainer->views * trainer->micro_batch;
    trainer->gradient = SD_NEW_ARRAY(context, float, sizes.parameters);
    trainer->norms = SD_NEW_ARRAY(context, double, tensors);
    trainer->clip = SD_NEW_ARRAY(context, double, tensors);
    trainer->student_features = SD_NEW_ARRAY(context, float, sizes.student_rows *trainer->dim);
    trainer->dfeatures = SD_NEW_ARRAY(context, float, sizes.student_rows *trainer->dim);
    trainer->teacher_features = SD_NEW_ARRAY(context, float, sizes.teacher_rows *trainer->dim);
    bool complete = trainer->gradient != NULL && trainer->norms != NULL && trainer->clip != NULL &&
                    trainer->student_features != NULL && trainer->dfeatures != NULL &&
                    trainer->teacher_features != NULL;
    if (complete && sizes.pieces) {
        trainer->piece_features = SD_NEW_ARRAY(context, float, piece_rows *trainer->dim);
        trainer->piece_dfeatures = SD_NEW_ARRAY(context, float, piece_rows *trainer->dim);
        trainer->piece_pixels = SD_NEW_ARRAY(context, float, sizes.piece_pixels);
        complete = trainer->piece_features != NULL && trainer->piece_dfeatures != NULL && trainer->piece_pixels != NULL;
    }
    if (!complete)
        status = SD_ERR_MEMORY;
cleanup:
    if (status != SD_OK) {
        sd_pretrainer_destroy(trainer);
        return status;
    }
    *out = trainer;
    return SD_OK;
}

SD_API void sd_pretrainer_destroy(sd_pretrainer *trainer) {
    if (trainer == NULL)
        return;
    sd_context *context = trainer->context;
    if (trainer->augmenters != NULL)
        for (size_t i = 0; i < sd_threads(context); i++)
            sd_augmenter_destroy(trainer->augmenters[i]);
    sd_release(context, trainer->augmenters);
    sd_release(context, trainer->crop_pixels);
    sd_release(context, trainer->piece_pixels);
    sd_release(context, trainer->piece_dfeatures);
    sd_release(context, trainer->piece_features);
    sd_release(context, trainer->teacher_features);
    sd_release(context, trainer->dfeatures);
    sd_release(context, trainer->student_features);
    sd_release(context, trainer->clip);
    sd_release(context, trainer->norms);
    sd_release(context, trainer->gradient);
    sd_activations_destroy(trainer->teacher_activations);
    sd_activations_destroy(trainer->student_activations);
    sd_simdino_loss_destroy(trainer->loss);
    sd_optimizer_destroy(trainer->optimizer);
    sd_model_destroy(trainer->teacher);
    sd_model_destroy(trainer->student);
    sd_release(context, trainer);
}

/* ---- memory -------------------------------------------------------------------------------- */

/* Hooks that add up what the loss, an object of moderate size and an inside that only its room knows, takes. */
static void *count_allocate(void *opaque, size_t bytes) {
    *(size_t *)opaque += bytes;
    return malloc(bytes);
}

static void count_release(void *opaque, void *address) {
    (void)opaque;
    free(address);
}

static sd_status loss_bytes(const sd_pretrainer_config *config, size_t *bytes) {
    sd_context_config hooks;
    sd_context_config_init(&hooks);
    *bytes = 0;
    hooks.threads = 1;
    hooks.allocate = count_allocate;
    hooks.release = count_release;
    hooks.memory_opaque = bytes;
    sd_context *counter;
    sd_status status = sd_context_create(&hooks, &counter);
    if (status != SD_OK)
        return status;
    *bytes = 0;
    sd_simdino_loss *loss = NULL;
    status = sd_simdino_loss_create(counter, &config->loss, config->batch_size,
                                    2 + (size_t)config->augment.local_crops, (size_t)config->model.head_dim, &loss);
    sd_simdino_loss_destroy(loss);
    sd_context_destroy(counter);
    return status;
}

SD_API sd_status sd_pretrainer_memory(sd_context *context, const sd_pretrainer_config *source, size_t *bytes) {
    SD_REQUIRE(bytes != NULL, SD_ERR_ARGUMENT, "bytes is NULL");
    sd_pretrainer_config config;
    sd_geometry geometry;
    sd_status status = read_config(source, &config);
    if (status != SD_OK)
        return status;
    SD_TRY(sd_geometry_of(&config.model, &geometry));
    trainer_sizes sizes;
    SD_TRY(sizes_of(&config, &geometry, &sizes));
    size_t student, teacher, loss, micro = sd_trainer_micro_batch(&config);
    sd_image_group groups[2];
    size_t group_count = sd_trainer_groups(&config, micro, groups);
    sd_activations_config activations;
    sd_activations_config_init(&activations);
    activations.mode = config.activations;
    SD_TRY(sd_activations_bytes(&config.model, groups, group_count, &activations, sd_threads(context), &student));
    activations.mode = SD_ACTIVATIONS_INFERENCE;
    SD_TRY(sd_activations_bytes(&config.model, groups, 1, &activations, sd_threads(context), &teacher));
    SD_TRY(loss_bytes(&config, &loss));
    size_t views = 2 + (size_t)config.augment.local_crops, dim = (size_t)config.model.head_dim;
    size_t moments = config.optimizer.kind == SD_OPTIMIZER_ADAMW ? 2 : 1;
    /* student, teacher, gradient, moments; features and their gradients; crops: a loader holds two batches of them */
    double floats = (double)sizes.parameters * (double)(3 + moments);
    floats += (double)(2 * sizes.student_rows + sizes.teacher_rows) * (double)dim;
    floats += (sizes.pieces ? 2.0 * (double)(views * micro * dim) : 0.0) + (double)sizes.piece_pixels;
    floats += 2.0 * (double)config.batch_size *
              (2.0 * (double)sd_trainer_global_values(&config) +
               (double)config.augment.local_crops * (double)sd_trainer_local_values(&config));
    double total = 4.0 * floats + (double)student + (double)teacher + (double)loss;
    SD_EXPECT(total < (double)(SIZE_MAX / 2), SD_ERR_MEMORY, "the pretrainer does not fit into the address space");
    *bytes = (size_t)total;
cleanup:
    return status;
}

/* ---- asking -------------------------------------------------------------------------------- */

SD_API uint64_t sd_pretrainer_position(const sd_pretrainer *trainer) { return trainer == NULL ? 0 : trainer->step; }
SD_API const sd_model *sd_pretrainer_student(const sd_pretrainer *trainer) {
    return trainer == NULL ? NULL : trainer->student;
}
SD_API const sd_model *sd_pretrainer_teacher(const sd_pretrainer *trainer) {
    return trainer == NULL ? NULL : trainer->teacher;
}

SD_API sd_status sd_pretrainer_get_config(const sd_pretrainer *trainer, sd_pretrainer_config *config) {
    SD_REQUIRE(trainer != NULL && config != NULL, SD_ERR_ARGUMENT, "%s is NULL",
               trainer == NULL ? "trainer" : "config");
    size_t size = config->size;
    SD_REQUIRE(size >= sizeof size, SD_ERR_ARGUMENT, "config->size is %zu: set it to sizeof(sd_pretrainer_config)",
               size);
    memcpy(config, &trainer->config, sd_size_min(size, sizeof trainer->config));
    config->size = size;
    return SD_OK;
}

sd_context *sd_pretrainer_context(const sd_pretrainer *trainer) { return trainer->context; }
const sd_pretrainer_config *sd_pretrainer_config_of(const sd_pretrainer *trainer) { return &trainer->config; }
sd_model *sd_pretrainer_mutable_student(sd_pretrainer *trainer) { return trainer->student; }
sd_model *sd_pretrainer_mutable_teacher(sd_pretrainer *trainer) { return trainer->teacher; }
sd_optimizer *sd_pretrainer_optimizer(const sd_pretrainer *trainer) { return trainer->optimizer; }
void sd_pretrainer_set_position(sd_pretrainer *trainer, uint64_t step) { trainer->step = step; }
