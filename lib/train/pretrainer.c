/* The pretrainer as an object: creation, memory. */
#define _POSIX_C_SOURCE 200809L
#include "train/trainer.h"
#include "model/model.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

double sd_trainer_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- sizes --------------------------------------------------------------------------------- */

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

/* Where pieces have losses of their own, the prototypes' gradient of one is weighted by its share of the batch. */
static bool needs_prototype_gradient(const sd_pretrainer_config *config) {
    return sd_method_has_prototypes(config) && config->accumulation == SD_ACCUMULATE_PIECES &&
           sd_trainer_micro_batch(config) < config->batch_size;
}

/* Arrays of as many floats as there are parameters: student, teacher, gradients, moments. */
static size_t parameter_copies(const sd_pretrainer_config *config) {
    size_t moments = config->optimizer.kind == SD_OPTIMIZER_ADAMW ? 2 : 1;
    return 3 + moments + (needs_prototype_gradient(config) ? 1 : 0);
}

/* SD_RECOMPUTED_BLOCKS_AUTO. What PyTorch keeps of a block is a little more than twice of what is kept here, but parameters
 * and their copies are the same on both sides. Blocks that make up for a quarter of these bring a step to half of PyTorch's
 * memory (docs/performance.md): the fewer images, the more blocks. */
static sd_status choose_recomputed_blocks(const sd_pretrainer_config *config, const sd_image_group *groups,
                                          size_t group_count, sd_activations_config *student) {
    sd_geometry geometry;
    size_t bytes[2];
    sd_status status = sd_geometry_of(&config->model, &geometry);
    if (status != SD_OK || geometry.depth < 12)
        return status;
    for (int32_t i = 0; i < 2; i++) {
        student->recomputed_blocks = 1 + i;
        status = sd_activations_bytes(&config->model, groups, group_count, student, 1, &bytes[i]);
        if (status != SD_OK)
            return status;
    }
    const size_t block = bytes[0] - bytes[1];
    const size_t quarter = sd_geometry_parameters(&geometry) * parameter_copies(config) * sizeof(float) / 4;
    student->recomputed_blocks = (int32_t)sd_size_min((quarter + block / 2) / block, geometry.depth / 2);
    return SD_OK;
}

/* How the student's and the teacher's passes over a piece are planned. */
static sd_status plan_passes(const sd_pretrainer_config *config, const sd_batch_shape *shape, const sd_image_group *groups,
                             size_t group_count, sd_activations_config *student, sd_activations_config *teacher) {
    sd_activations_config_init(student);
    student->mode = config->activations;
    student->precision = config->precision;
    student->products = config->products;
    student->all_tokens = sd_method_has_masks(config);
    student->max_patches =
        shape->micro < shape->batch ? shape->max_piece_patches : shape->max_patches;
    *teacher = *student;
    teacher->mode = SD_ACTIVATIONS_INFERENCE;
    if (config->recomputed_blocks != SD_RECOMPUTED_BLOCKS_AUTO)
        student->recomputed_blocks = config->recomputed_blocks;
    else if (config->activations == SD_ACTIVATIONS_SPEED)
        return choose_recomputed_blocks(config, groups, group_count, student);
    return SD_OK;
}

/* ---- create and destroy -------------------------------------------------------------------- */

/* Learning rates by layer, and the same with the prototypes at 0. */
static sd_status plan_rates(sd_pretrainer *trainer) {
    const sd_pretrainer_config *c = &trainer->config;
    const sd_model *model = trainer->student;
    bool layers = c->layer_decay != 1.0 || c->patch_embed_lr != 1.0, freezes = c->method == SD_METHOD_DINOV2;
    if (!layers && !freezes)
        return SD_OK;
    trainer->rates = SD_NEW_ARRAY(trainer->context, double, model->tensor_count);
    trainer->last_layer_rates = SD_NEW_ARRAY(trainer->context, double, model->tensor_count);
    if (trainer->rates == NULL || trainer->last_layer_rates == NULL)
        return SD_ERR_MEMORY;
    sd_status status = sd_layer_multipliers(model->tensors, model->tensor_count, c->model.depth, c->layer_decay,
                                            c->patch_embed_lr, trainer->rates, NULL, NULL);
    if (status != SD_OK)
        return status;
    for (size_t i = 0; i < model->tensor_count; i++) {
        bool last = strstr(model->tensors[i].name, "last_layer.") != NULL;
        trainer->last_layer_rates[i] = last ? 0.0 : trainer->rates[i];
    }
    return sd_optimizer_set_multipliers(trainer->optimizer, trainer->rates, NULL);
}

SD_API sd_status sd_pretrainer_create(sd_context *context, const sd_pretrainer_config *source, sd_pretrainer **out) {
    SD_REQUIRE(out != NULL, SD_ERR_ARGUMENT, "trainer is NULL");
    sd_pretrainer_config config;
    sd_batch_shape shape;
    sd_status status = sd_trainer_read_config(source, &config);
    if (status == SD_OK)
        status = sd_batch_shape_of(&config, &shape);
    if (status != SD_OK)
        return status;
    sd_pretrainer *trainer = SD_NEW(context, sd_pretrainer);
    if (trainer == NULL)
        return SD_ERR_MEMORY;
    trainer->context = context;
    trainer->config = config;
    trainer->views = shape.views;

    SD_TRY(sd_model_create(context, &config.model, &trainer->student));
    SD_TRY(sd_model_create(context, &config.model, &trainer->teacher));
    sd_model_initialize(trainer->student, config.seed);
    SD_TRY(sd_model_copy(trainer->teacher, trainer->student));
    SD_TRY(sd_optimizer_create_for_model(context, &config.optimizer, trainer->student, &trainer->optimizer));
    SD_TRY(plan_rates(trainer));
    SD_TRY(sd_objective_create(context, &config, config.batch_size, shape.max_patches, &trainer->objective));
    sd_image_group groups[2];
    size_t group_count = sd_trainer_groups(&config, shape.micro, groups);
    sd_activations_config student, teacher;
    SD_TRY(plan_passes(&config, &shape, groups, group_count, &student, &teacher));
    SD_TRY(sd_activations_create_with(trainer->student, groups, group_count, &student, &trainer->student_activations));
    SD_TRY(sd_activations_create_with(trainer->teacher, groups, 1, &teacher, &trainer->teacher_activations));
    SD_TRY(sd_batch_create(context, &shape, &trainer->batch));
    size_t tensors = sd_model_tensor_count(trainer->student), parameters = trainer->student->parameter_count;
    trainer->gradient = SD_NEW_ARRAY(context, float, parameters);
    trainer->norms = SD_NEW_ARRAY(context, double, tensors);
    trainer->clip = SD_NEW_ARRAY(context, double, tensors);
    if (needs_prototype_gradient(&config))
        trainer->prototype_gradient = SD_NEW_ARRAY(context, float, parameters);
    if (trainer->gradient == NULL || trainer->norms == NULL || trainer->clip == NULL ||
        (needs_prototype_gradient(&config) && trainer->prototype_gradient == NULL))
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
    sd_batch_destroy(&trainer->batch);
    sd_release(context, trainer->prototype_gradient);
    sd_release(context, trainer->clip);
    sd_release(context, trainer->norms);
    sd_release(context, trainer->gradient);
    sd_activations_destroy(trainer->teacher_activations);
    sd_activations_destroy(trainer->student_activations);
    sd_objective_destroy(trainer->objective);
    sd_release(context, trainer->last_layer_rates);
    sd_release(context, trainer->rates);
    sd_optimizer_destroy(trainer->optimizer);
    sd_model_destroy(trainer->teacher);
    sd_model_destroy(trainer->student);
    sd_release(context, trainer);
}

/* ---- memory -------------------------------------------------------------------------------- */

/* Hooks that add up what the objective, an object of moderate size and an inside that only its room knows, takes. */
static void *count_allocate(void *opaque, size_t bytes) {
    *(size_t *)opaque += bytes;
    return malloc(bytes);
}

static void count_release(void *opaque, void *address) {
    (void)opaque;
    free(address);
}

static int run_in_order(void *opaque, sd_parallel_function function, void *work, size_t count) {
    (void)opaque;
    for (size_t i = 0; i < count; i++)
        function(work, i, 0);
    return 0;
}

static sd_status objective_bytes(const sd_context *context, const sd_pretrainer_config *config,
                                 const sd_batch_shape *shape, size_t *bytes) {
    sd_context_config hooks;
    sd_context_config_init(&hooks);
    *bytes = 0;
    hooks.threads = (int32_t)sd_threads(context);
    hooks.runner = run_in_order;
    hooks.allocate = count_allocate;
    hooks.release = count_release;
    hooks.memory_opaque = bytes;
    sd_context *counter;
    sd_status status = sd_context_create(&hooks, &counter);
    if (status != SD_OK)
        return status;
    *bytes = 0;
    sd_objective *objective = NULL;
    status = sd_objective_create(counter, config, config->batch_size, shape->max_patches, &objective);
    sd_objective_destroy(objective);
    sd_context_destroy(counter);
    return status;
}

SD_API sd_status sd_pretrainer_memory(sd_context *context, const sd_pretrainer_config *source, size_t *bytes) {
    SD_REQUIRE(bytes != NULL, SD_ERR_ARGUMENT, "bytes is NULL");
    sd_pretrainer_config config;
    sd_geometry geometry;
    sd_batch_shape shape;
    sd_status status = sd_trainer_read_config(source, &config);
    if (status != SD_OK)
        return status;
    SD_TRY(sd_geometry_of(&config.model, &geometry));
    SD_TRY(sd_batch_shape_of(&config, &shape));
    size_t student, teacher, objective;
    sd_image_group groups[2];
    size_t group_count = sd_trainer_groups(&config, shape.micro, groups);
    sd_activations_config student_plan, teacher_plan;
    SD_TRY(plan_passes(&config, &shape, groups, group_count, &student_plan, &teacher_plan));
    SD_TRY(sd_activations_bytes(&config.model, groups, group_count, &student_plan, sd_threads(context), &student));
    SD_TRY(sd_activations_bytes(&config.model, groups, 1, &teacher_plan, sd_threads(context), &teacher));
    SD_TRY(objective_bytes(context, &config, &shape, &objective));
    double floats = (double)sd_geometry_parameters(&geometry) * (double)parameter_copies(&config);
    /* crops: a loader holds two batches of them */
    floats += 2.0 * (double)config.batch_size *
              (2.0 * (double)shape.global_values + (double)(shape.views - 2) * (double)shape.local_values);
    double total =
        4.0 * floats + sd_batch_bytes(&shape) + (double)student + (double)teacher + (double)objective;
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
sd_objective *sd_pretrainer_objective(const sd_pretrainer *trainer) { return trainer->objective; }

sd_status sd_pretrainer_set_position(sd_pretrainer *trainer, uint64_t step, uint64_t optimizer_steps) {
    sd_status status = SD_OK;
    trainer->step = step;
    sd_optimizer_set_steps(trainer->optimizer, optimizer_steps);
    for (size_t i = 0; i < trainer->student->tensor_count && status == SD_OK; i++) {
        uint64_t steps = sd_trainer_tensor_steps(&trainer->config, &trainer->student->tensors[i], optimizer_steps);
        if (steps != optimizer_steps)
            status = sd_optimizer_set_tensor_steps(trainer->optimizer, i, steps);
    }
    return status;
}
