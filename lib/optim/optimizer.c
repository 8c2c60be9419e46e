/* AdamW, SGD and LARS over the tensors of one layout. */
#include "optim/optim.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct optimizer_tensor {
    size_t offset, count;
    size_t index;       /* in the caller's table */
    size_t first_block; /* its blocks are consecutive */
    size_t block_count;
    bool decay;
    bool adapt;         /* LARS: weight decay and trust ratio apply (not one-dimensional) */
    bool frozen;        /* as without a gradient */
    double lr_multiplier, decay_multiplier;
    uint64_t steps;     /* that it was not frozen */
    /* of the running step */
    sd_adamw_numbers adamw;
    float keep;         /* AdamW: 1 - lr * weight decay */
    float pull;         /* SGD and LARS: weight decay, which they add to the gradient */
    float change;       /* SGD and LARS: -lr */
    float ratio;        /* trust ratio of LARS, else 1 */
} optimizer_tensor;

typedef struct optimizer_block {
    size_t tensor, offset, count;
    double parameter_square, update_square; /* LARS: partial sums of the running step */
} optimizer_block;

struct sd_optimizer {
    sd_context *context;
    sd_optimizer_config config;
    optimizer_tensor *tensors; /* by offset */
    size_t tensor_count;
    optimizer_block *blocks;
    size_t block_count;
    size_t parameter_count;
    float *state[2];
    size_t state_count;
    uint64_t steps;
};

/* ---- creation ------------------------------------------------------------------------------ */

static const sd_optimizer_config default_config = {
    .size = sizeof(sd_optimizer_config),
    .kind = SD_OPTIMIZER_ADAMW,
    .beta1 = 0.9,
    .beta2 = 0.999,
    .epsilon = 1e-8,
    .momentum = 0.9,
    .trust = 0.001,
};

SD_API void sd_optimizer_config_init(sd_optimizer_config *config) {
    if (config)
        *config = default_config;
}

static bool in_unit_interval(double value) { return value >= 0 && value < 1; } /* false for NaN */

static sd_status check_config(const sd_optimizer_config *config) {
    SD_REQUIRE(config->kind >= SD_OPTIMIZER_ADAMW && config->kind <= SD_OPTIMIZER_LARS, SD_ERR_ARGUMENT,
               "kind is %d: no such optimizer", (int)config->kind);
    SD_REQUIRE(in_unit_interval(config->beta1), SD_ERR_ARGUMENT, "beta1 is %g: it must be in [0, 1)", config->beta1);
    SD_REQUIRE(in_unit_interval(config->beta2), SD_ERR_ARGUMENT, "beta2 is %g: it must be in [0, 1)", config->beta2);
    SD_REQUIRE(config->epsilon >= 0 && isfinite(config->epsilon), SD_ERR_ARGUMENT,
               "epsilon is %g: it must be finite and not negative", config->epsilon);
    SD_REQUIRE(config->momentum >= 0 && isfinite(config->momentum), SD_ERR_ARGUMENT,
               "momentum is %g: it must be finite and not negative", config->momentum);
    SD_REQUIRE(config->trust > 0 && isfinite(config->trust), SD_ERR_ARGUMENT,
               "trust is %g: it must be finite and positive", config->trust);
    return SD_OK;
}

static int by_offset(const void *left, const void *right) {
    const optimizer_tensor *a = left, *b = right;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

/* Copies the table in the order of memory, and refuses tensors that leave the array or share memory, where two threads
 * would write. */
static sd_status copy_tensors(sd_optimizer *optimizer, const sd_tensor_info *tensors, size_t tensor_count) {
    for (size_t i = 0; i < tensor_count; i++) {
        const sd_tensor_info *tensor = &tensors[i];
        SD_REQUIRE(tensor->count > 0, SD_ERR_ARGUMENT, "tensor %zu (%s) has no elements", i,
                   tensor->name ? tensor->name : "unnamed");
        SD_REQUIRE(tensor->count <= optimizer->parameter_count &&
                       tensor->offset <= optimizer->parameter_count - tensor->count,
                   SD_ERR_ARGUMENT, "tensor %zu (%s) of %zu elements at %zu ends beyond the %zu parameters", i,
                   tensor->name ? tensor->name : "unnamed", tensor->count, tensor->offset, optimizer->parameter_count);
        optimizer->tensors[i] = (optimizer_tensor){
            .offset = tensor->offset,
            .count = tensor->count,
            .index = i,
            .decay = tensor->decay != 0,
            .adapt = tensor->dimensions != 1,
            .lr_multiplier = 1,
            .decay_multiplier = tensor->decay != 0,
        };
    }
    optimizer->tensor_count = tensor_count;
    qsort(optimizer->tensors, tensor_count, sizeof *optimizer->tensors, by_offset);
    for (size_t i = 0; i < tensor_count; i++) {
        optimizer_tensor *tensor = &optimizer->tensors[i];
        const optimizer_tensor *before = i > 0 ? tensor - 1 : NULL;
        SD_REQUIRE(!before || before->offset + before->count <= tensor->offset, SD_ERR_ARGUMENT,
                   "tensors %zu and %zu overlap at element %zu", before->index, tensor->index, tensor->offset);
        tensor->first_block = optimizer->block_count;
        tensor->block_count = sd_size_ceil(tensor->count, SD_OPTIM_BLOCK);
        optimizer->block_count += tensor->block_count;
    }
    return SD_OK;
}

static sd_status cut_blocks(sd_optimizer *optimizer) {
    optimizer->blocks = SD_NEW_ARRAY(optimizer->context, optimizer_block, optimizer->block_count);
    if (!optimizer->blocks)
        return SD_ERR_MEMORY;
    optimizer_block *block = optimizer->blocks;
    for (size_t i = 0; i < optimizer->tensor_count; i++) {
        const optimizer_tensor *tensor = &optimizer->tensors[i];
        for (size_t begin = 0; begin < tensor->count; begin += SD_OPTIM_BLOCK, block++) {
            block->tensor = i;
            block->offset = tensor->offset + begin;
            block->count = sd_size_min(SD_OPTIM_BLOCK, tensor->count - begin);
        }
    }
    return SD_OK;
}

SD_API sd_status sd_optimizer_create(sd_context *context, const sd_optimizer_config *config,
                                     const sd_tensor_info *tensors, size_t tensor_count, size_t parameter_count,
                                     sd_optimizer **optimizer) {
    SD_REQUIRE(optimizer, SD_ERR_ARGUMENT, "optimizer is NULL");
    SD_REQUIRE(tensors, SD_ERR_ARGUMENT, "tensors is NULL");
    SD_REQUIRE(tensor_count > 0, SD_ERR_ARGUMENT, "tensor_count is 0: it must be at least 1");
    SD_REQUIRE(parameter_count > 0, SD_ERR_ARGUMENT, "parameter_count is 0: it must be at least 1");

    sd_status status;
    sd_optimizer *created = SD_NEW(context, sd_optimizer);
    if (!created)
        return SD_ERR_MEMORY;
    created->context = context;
    created->config = default_config;
    created->parameter_count = parameter_count;
    SD_TRY(sd_config_read(&created->config, sizeof created->config, config, "sd_optimizer_config"));
    SD_TRY(check_config(&created->config));

    created->tensors = SD_NEW_ARRAY(context, optimizer_tensor, tensor_count);
    if (!created->tensors) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    SD_TRY(copy_tensors(created, tensors, tensor_count));
    SD_TRY(cut_blocks(created));

    created->state_count = created->config.kind == SD_OPTIMIZER_ADAMW ? 2 : 1;
    for (size_t i = 0; i < created->state_count; i++) {
        created->state[i] = SD_NEW_ARRAY(context, float, parameter_count);
        if (!created->state[i]) {
            status = SD_ERR_MEMORY;
            goto cleanup;
        }
    }
    *optimizer = created;
    return SD_OK;

cleanup:
    sd_optimizer_destroy(created);
    return status;
}

SD_API sd_status sd_optimizer_create_for_model(sd_context *context, const sd_optimizer_config *config,
                                               const sd_model *model, sd_optimizer **optimizer) {
    SD_REQUIRE(model, SD_ERR_ARGUMENT, "model is NULL");
    size_t count = sd_model_tensor_count(model);
    sd_tensor_info *tensors = SD_NEW_ARRAY(context, sd_tensor_info, count);
    if (!tensors)
        return SD_ERR_MEMORY;
    for (size_t i = 0; i < count; i++)
        tensors[i] = *sd_model_tensor(model, i);
    sd_status status =
        sd_optimizer_create(context, config, tensors, count, sd_model_parameter_count(model), optimizer);
    sd_release(context, tensors);
    return status;
}

SD_API void sd_optimizer_destroy(sd_optimizer *optimizer) {
    if (!optimizer)
        return;
    sd_context *context = optimizer->context;
    sd_release(context, optimizer->state[0]);
    sd_release(context, optimizer->state[1]);
    sd_release(context, optimizer->blocks);
    sd_release(context, optimizer->tensors);
    sd_release(context, optimizer);
}

/* ---- state --------------------------------------------------------------------------------- */

SD_API size_t sd_optimizer_state_count(const sd_optimizer *optimizer) { return optimizer ? optimizer->state_count : 0; }

SD_API float *sd_optimizer_state(sd_optimizer *optimizer, size_t index) {
    return optimizer && index < optimizer->state_count ? optimizer->state[index] : NULL;
}

SD_API const char *sd_optimizer_state_name(const sd_optimizer *optimizer, size_t index) {
    if (!optimizer || index >= optimizer->state_count)
        return NULL;
    if (optimizer->config.kind != SD_OPTIMIZER_ADAMW)
        return "momentum";
    return index == 0 ? "exp_avg" : "exp_avg_sq";
}

SD_API uint64_t sd_optimizer_steps(const sd_optimizer *optimizer) { return optimizer ? optimizer->steps : 0; }

SD_API void sd_optimizer_set_steps(sd_optimizer *optimizer, uint64_t steps) {
    if (!optimizer)
        return;
    optimizer->steps = steps;
    for (size_t i = 0; i < optimizer->tensor_count; i++)
        optimizer->tensors[i].steps = steps;
}

/* By its number in the caller's table; NULL when there is none. Most tables are in the order of memory. */
static optimizer_tensor *find_tensor(const sd_optimizer *optimizer, size_t index) {
    if (!optimizer || index >= optimizer->tensor_count)
        return NULL;
    optimizer_tensor *tensor = &optimizer->tensors[index];
    if (tensor->index != index)
        for (tensor = optimizer->tensors; tensor->index != index; tensor++)
            continue;
    return tensor;
}

static sd_status require_tensor(const sd_optimizer *optimizer, size_t index, optimizer_tensor **tensor) {
    SD_REQUIRE(optimizer, SD_ERR_ARGUMENT, "optimizer is NULL");
    *tensor = find_tensor(optimizer, index);
    SD_REQUIRE(*tensor, SD_ERR_ARGUMENT, "tensor is %zu: the optimizer has %zu tensors", index,
               optimizer->tensor_count);
    return SD_OK;
}

SD_API uint64_t sd_optimizer_tensor_steps(const sd_optimizer *optimizer, size_t tensor) {
    const optimizer_tensor *found = find_tensor(optimizer, tensor);
    return found ? found->steps : 0;
}

SD_API sd_status sd_optimizer_set_tensor_steps(sd_optimizer *optimizer, size_t tensor, uint64_t steps) {
    optimizer_tensor *found;
    sd_status status = require_tensor(optimizer, tensor, &found);
    if (status == SD_OK)
        found->steps = steps;
    return status;
}

/* ---- multipliers and frozen tensors -------------------------------------------------------- */

static sd_status check_multipliers(const char *name, const double *values, size_t count) {
    for (size_t i = 0; values && i < count; i++)
        SD_REQUIRE(values[i] >= 0 && isfinite(values[i]), SD_ERR_ARGUMENT,
                   "the %s multiplier of tensor %zu is %g: it must be finite and not negative", name, i, values[i]);
    return SD_OK;
}

SD_API sd_status sd_optimizer_set_multipliers(sd_optimizer *optimizer, const double *lr, const double *decay) {
    SD_REQUIRE(optimizer, SD_ERR_ARGUMENT, "optimizer is NULL");
    sd_status status;
    SD_TRY(check_multipliers("lr", lr, optimizer->tensor_count));
    SD_TRY(check_multipliers("decay", decay, optimizer->tensor_count));
    for (size_t i = 0; i < optimizer->tensor_count; i++) {
        optimizer_tensor *tensor = &optimizer->tensors[i];
        tensor->lr_multiplier = lr ? lr[tensor->index] : 1;
        tensor->decay_multiplier = decay ? decay[tensor->index] : tensor->decay;
    }
cleanup:
    return status;
}

SD_API sd_status sd_optimizer_set_frozen(sd_optimizer *optimizer, size_t tensor, int32_t frozen) {
    optimizer_tensor *found;
    sd_status status = require_tensor(optimizer, tensor, &found);
    if (status == SD_OK)
        found->frozen = frozen != 0;
    return status;
}

/* ---- step ---------------------------------------------------------------------------------- */

typedef struct step_work {
    sd_optimizer *optimizer;
    float *parameters;
    const float *gradient;
    const double *tensor_scale;
    float *teacher;
    double lr, weight_decay;
    float momentum, rest; /* of the teacher */
} step_work;

static float scale_of(const step_work *work, const optimizer_tensor *tensor) {
    return work->tensor_scale ? (float)work->tensor_scale[tensor->index] : 1.0f;
}

static void update_tensor_block(const step_work *work, const optimizer_tensor *tensor, const optimizer_block *block) {
    sd_optimizer *optimizer = work->optimizer;
    float *parameters = work->parameters + block->offset;
    const float *gradient = work->gradient + block->offset;
    float *first = optimizer->state[0] + block->offset;
    float scale = scale_of(work, tensor);
    if (optimizer->config.kind == SD_OPTIMIZER_ADAMW)
        sd_adamw_block(&tensor->adamw, tensor->keep, scale, parameters, gradient, first,
                       optimizer->state[1] + block->offset, block->count);
    else
        sd_momentum_block((float)optimizer->config.momentum, tensor->pull, tensor->ratio, tensor->change, scale,
                          parameters, gradient, first, block->count);
}

static void update_block(void *opaque, size_t index, size_t thread) {
    (void)thread;
    const step_work *work = opaque;
    const optimizer_block *block = &work->optimizer->blocks[index];
    const optimizer_tensor *tensor = &work->optimizer->tensors[block->tensor];
    if (!tensor->frozen)
        update_tensor_block(work, tensor, block);
    if (work->teacher) /* now, while the block is in the cache */
        sd_ema_block(work->momentum, work->rest, work->teacher + block->offset, work->parameters + block->offset,
                     block->count);
}

static void measure_block(void *opaque, size_t index, size_t thread) {
    (void)thread;
    const step_work *work = opaque;
    optimizer_block *block = &work->optimizer->blocks[index];
    const optimizer_tensor *tensor = &work->optimizer->tensors[block->tensor];
    if (!tensor->adapt || tensor->frozen)
        return;
    const float *parameters = work->parameters + block->offset;
    block->parameter_square = sd_square_sum(parameters, block->count);
    block->update_square = sd_update_square_sum(tensor->pull, scale_of(work, tensor), parameters,
                                                work->gradient + block->offset, block->count);
}

/* LARS (You et al. 2017): ratio = trust |p| / |g + weight_decay p|, and 1 where either norm is 0. */
static sd_status find_trust_ratios(step_work *work) {
    sd_optimizer *optimizer = work->optimizer;
    sd_status status = sd_run(optimizer->context, measure_block, work, optimizer->block_count);
    if (status != SD_OK)
        return status;
    for (size_t i = 0; i < optimizer->tensor_count; i++) {
        optimizer_tensor *tensor = &optimizer->tensors[i];
        double parameter_square = 0, update_square = 0;
        if (!tensor->adapt || tensor->frozen)
            continue;
        for (size_t b = tensor->first_block; b < tensor->first_block + tensor->block_count; b++) {
            parameter_square += optimizer->blocks[b].parameter_square;
            update_square += optimizer->blocks[b].update_square;
        }
        if (parameter_square > 0 && update_square > 0)
            tensor->ratio = (float)(optimizer->config.trust * sqrt(parameter_square) / sqrt(update_square));
    }
    return SD_OK;
}

/* 1 - beta^t of a tensor's step count. */
typedef struct bias_correction {
    uint64_t step;
    double first, second;
} bias_correction;

static bias_correction correction_at(const sd_optimizer_config *config, uint64_t step) {
    int saved = errno; /* beta^step underflows in long runs, and pow says so */
    bias_correction correction = {
        .step = step,
        .first = 1.0 - pow(config->beta1, (double)step),
        .second = 1.0 - pow(config->beta2, (double)step),
    };
    errno = saved;
    return correction;
}

static sd_adamw_numbers adamw_numbers(const sd_optimizer_config *config, const bias_correction *correction,
                                      double lr) {
    return (sd_adamw_numbers){
        .beta1 = (float)config->beta1,
        .rest1 = (float)(1.0 - config->beta1),
        .beta2 = (float)config->beta2,
        .rest2 = (float)(1.0 - config->beta2),
        .root_correction2 = (float)sqrt(correction->second),
        .epsilon = (float)config->epsilon,
        .step = (float)(-lr / correction->first),
    };
}

/* What the step multiplies with, tensor by tensor. */
static void prepare_tensors(const step_work *work) {
    sd_optimizer *optimizer = work->optimizer;
    const sd_optimizer_config *config = &optimizer->config;
    bias_correction correction = correction_at(config, optimizer->steps + 1);
    for (size_t i = 0; i < optimizer->tensor_count; i++) {
        optimizer_tensor *tensor = &optimizer->tensors[i];
        double lr = work->lr * tensor->lr_multiplier, decay = work->weight_decay * tensor->decay_multiplier;
        if (config->kind == SD_OPTIMIZER_LARS && !tensor->adapt)
            decay = 0;
        if (config->kind == SD_OPTIMIZER_ADAMW && !tensor->frozen) {
            if (tensor->steps + 1 != correction.step) /* it was frozen for a while, and so were its neighbours */
                correction = correction_at(config, tensor->steps + 1);
            tensor->adamw = adamw_numbers(config, &correction, lr);
        }
        tensor->keep = (float)(1.0 - lr * decay);
        tensor->pull = (float)decay;
        tensor->change = (float)-lr;
        tensor->ratio = 1.0f;
    }
}

sd_status sd_optimizer_step_fused(sd_optimizer *optimizer, float *parameters, const float *gradient,
                                  const double *tensor_scale, double lr, double weight_decay, float *teacher,
                                  double momentum) {
    SD_REQUIRE(optimizer, SD_ERR_ARGUMENT, "optimizer is NULL");
    SD_REQUIRE(parameters, SD_ERR_ARGUMENT, "parameters is NULL");
    SD_REQUIRE(gradient, SD_ERR_ARGUMENT, "gradient is NULL");
    SD_REQUIRE(lr >= 0 && isfinite(lr), SD_ERR_ARGUMENT, "lr is %g: it must be finite and not negative", lr);
    SD_REQUIRE(weight_decay >= 0 && isfinite(weight_decay), SD_ERR_ARGUMENT,
               "weight_decay is %g: it must be finite and not negative", weight_decay);
    SD_REQUIRE(!teacher || (momentum >= 0 && momentum <= 1), SD_ERR_ARGUMENT,
               "momentum is %g: it must be in [0, 1]", momentum);

    step_work work = {
        .optimizer = optimizer,
        .parameters = parameters,
        .gradient = gradient,
        .tensor_scale = tensor_scale,
        .teacher = momentum < 1 ? teacher : NULL, /* with 1 the teacher stays as it is */
        .lr = lr,
        .weight_decay = weight_decay,
        .momentum = (float)momentum,
        .rest = (float)(1.0 - momentum),
    };
    sd_status status = SD_OK;
    prepare_tensors(&work);
    if (optimizer->config.kind == SD_OPTIMIZER_LARS)
        SD_TRY(find_trust_ratios(&work));
    SD_TRY(sd_run(optimizer->context, update_block, &work, optimizer->block_count));
    optimizer->steps++;
    for (size_t i = 0; i < optimizer->tensor_count; i++)
        optimizer->tensors[i].steps += !optimizer->tensors[i].frozen;
cleanup:
    return status;
}

SD_API sd_status sd_optimizer_step(sd_optimizer *optimizer, float *parameters, const float *gradient, double lr,
                                   double weight_decay) {
    return sd_optimizer_step_fused(optimizer, parameters, gradient, NULL, lr, weight_decay, NULL, 1.0);
}
