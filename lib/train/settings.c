/* The configuration: defaults, what belongs to a method, and what is refused. */
#include "train/trainer.h"
#include "model/model.h"

#include <math.h>
#include <string.h>

/* ---- methods ------------------------------------------------------------------------------- */

static const char *const method_names[] = {"simdino", "simdinov2", "dino", "dinov2"};
#define METHODS ((int32_t)(sizeof method_names / sizeof *method_names))

SD_API const char *sd_method_name(int32_t method) {
    return method >= 0 && method < METHODS ? method_names[method] : NULL;
}

SD_API sd_status sd_method_from_name(const char *name, int32_t *method) {
    SD_REQUIRE(name != NULL && method != NULL, SD_ERR_ARGUMENT, "%s is NULL", name == NULL ? "name" : "method");
    for (int32_t i = 0; i < METHODS; i++)
        if (strcmp(name, method_names[i]) == 0) {
            *method = i;
            return SD_OK;
        }
    return sd_fail(SD_ERR_ARGUMENT, "method \"%s\" is unknown: use simdino, simdinov2, dino or dinov2", name);
}

/* ---- defaults ------------------------------------------------------------------------------ */

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
    config->products = SD_PRODUCTS_STRASSEN;
    config->recomputed_blocks = SD_RECOMPUTED_BLOCKS_AUTO;
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
    sd_dino_config_init(&config->dino);
    config->teacher_temp_start = 0.04;
    config->teacher_temp = 0.07;
    sd_mask_config_init(&config->mask);
    config->patch_weight = 1.0;
    config->koleo_weight = 0.1;
    config->layer_decay = 1.0;
    config->patch_embed_lr = 1.0;
    config->eps_sq_end = -1.0;
    config->coeff_end = -1.0;
}

SD_API sd_status sd_pretrainer_config_method(sd_pretrainer_config *config, int32_t method) {
    SD_REQUIRE(config != NULL, SD_ERR_ARGUMENT, "config is NULL");
    SD_REQUIRE(sd_method_name(method) != NULL, SD_ERR_ARGUMENT, "method is %d: it must be one of sd_method", method);
    sd_pretrainer_config_init(config);
    config->method = method;
    if (method == SD_METHOD_DINO) {
        config->model.prototypes = 65536;
        config->teacher_temp = 0.04;
    }
    if (method == SD_METHOD_DINOV2 || method == SD_METHOD_SIMDINOV2) {
        config->model.mask_token = 1;
        config->model.layer_scale = method == SD_METHOD_DINOV2 ? 1e-5 : 0.1;
        config->model.drop_path_uniform = 1;
        config->model.drop_path_subset = 1;
        config->model.drop_path = 0.3;
        config->augment.blur_kind = SD_BLUR_TORCHVISION;
        config->clip = SD_CLIP_MODULE;
        config->layer_decay = 0.9;
        config->patch_embed_lr = 0.2;
    }
    if (method == SD_METHOD_DINOV2) {
        config->model.prototypes = 65536;
        config->model.prototype_scale = 1;
        config->momentum = 0.992;
    }
    if (method == SD_METHOD_SIMDINOV2) {
        config->model.registers = 4;
        config->model.interpolate_antialias = 1;
        config->model.interpolate_offset = 0.0;
        config->model.drop_path = 0.2;
        config->momentum = 0.9;
        config->lr_start = config->min_lr;
        config->warmup_kind = SD_WARMUP_EXCLUSIVE;
    }
    return SD_OK;
}

/* ---- checks -------------------------------------------------------------------------------- */

static bool is_positive(double value) { return value > 0.0 && isfinite(value); }
static bool is_not_negative(double value) { return value >= 0.0 && isfinite(value); }
static bool is_share(double value) { return value >= 0.0 && value <= 1.0; }

static sd_status check_method(const sd_pretrainer_config *c) {
    SD_REQUIRE(sd_method_name(c->method) != NULL, SD_ERR_ARGUMENT, "method is %d: it must be one of sd_method",
               c->method);
    const char *method = sd_method_name(c->method);
    bool v2 = c->method == SD_METHOD_SIMDINOV2 || c->method == SD_METHOD_DINOV2;
    SD_REQUIRE(c->patch_weight >= 0.0 && isfinite(c->patch_weight), SD_ERR_ARGUMENT,
               "patch_weight is %g: it must be finite and not negative", c->patch_weight);
    SD_REQUIRE(c->koleo_weight >= 0.0 && isfinite(c->koleo_weight), SD_ERR_ARGUMENT,
               "koleo_weight is %g: it must be finite and not negative", c->koleo_weight);
    SD_REQUIRE(!v2 || c->patch_weight == 0.0 || c->model.mask_token != 0, SD_ERR_ARGUMENT,
               "model.mask_token is 0: %s masks patches (patch_weight is %g) and needs it", method, c->patch_weight);
    SD_REQUIRE(c->layer_decay > 0.0 && c->layer_decay <= 1.0, SD_ERR_ARGUMENT,
               "layer_decay is %g: it must be above 0 and at most 1", c->layer_decay);
    SD_REQUIRE(c->patch_embed_lr >= 0.0 && isfinite(c->patch_embed_lr), SD_ERR_ARGUMENT,
               "patch_embed_lr is %g: it must be finite and not negative", c->patch_embed_lr);
    SD_REQUIRE(c->lr_start >= 0.0 && isfinite(c->lr_start), SD_ERR_ARGUMENT,
               "lr_start is %g: it must be finite and not negative", c->lr_start);
    SD_REQUIRE(c->warmup_kind == SD_WARMUP_INCLUSIVE || c->warmup_kind == SD_WARMUP_EXCLUSIVE, SD_ERR_ARGUMENT,
               "warmup_kind is %d: it must be one of sd_warmup_kind", c->warmup_kind);
    SD_REQUIRE(c->peak_steps <= c->total_steps - c->warmup_steps, SD_ERR_ARGUMENT,
               "peak_steps is %llu: only %llu steps follow the warm-up", (unsigned long long)c->peak_steps,
               (unsigned long long)(c->total_steps - c->warmup_steps));
    SD_REQUIRE(isfinite(c->eps_sq_end) && c->eps_sq_end != 0.0, SD_ERR_ARGUMENT,
               "eps_sq_end is %g: it must be above 0, or negative for none", c->eps_sq_end);
    SD_REQUIRE(isfinite(c->coeff_end), SD_ERR_ARGUMENT, "coeff_end is %g: it must be finite", c->coeff_end);
    if (!sd_method_has_prototypes(c))
        return SD_OK;
    SD_REQUIRE(c->model.prototypes > 0, SD_ERR_ARGUMENT,
               "model.prototypes is %d: %s assigns features to prototypes and needs at least 1", c->model.prototypes,
               method);
    SD_REQUIRE(!sd_method_has_masks(c) || c->model.patch_head == 0 || c->model.patch_prototypes > 0, SD_ERR_ARGUMENT,
               "model.patch_prototypes is %d: with model.patch_head the patches of %s need prototypes of their own",
               c->model.patch_prototypes, method);
    SD_REQUIRE(is_positive(c->teacher_temp) && is_positive(c->teacher_temp_start), SD_ERR_ARGUMENT,
               "teacher_temp is %g and teacher_temp_start is %g: both must be finite and above 0", c->teacher_temp,
               c->teacher_temp_start);
    return SD_OK;
}

static sd_status check(const sd_pretrainer_config *c) {
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
    SD_REQUIRE(c->recomputed_blocks >= SD_RECOMPUTED_BLOCKS_AUTO && c->recomputed_blocks <= c->model.depth,
               SD_ERR_ARGUMENT, "recomputed_blocks is %d: it must be 0 to model.depth (%d), or %d", c->recomputed_blocks,
               c->model.depth, SD_RECOMPUTED_BLOCKS_AUTO);
    SD_REQUIRE(c->products == SD_PRODUCTS_PLAIN || c->products == SD_PRODUCTS_STRASSEN, SD_ERR_ARGUMENT,
               "products is %d: it must be one of sd_products", c->products);
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
    sd_status status = sd_precision_check(c->precision);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(c->clip == SD_CLIP_NONE || c->clip == SD_CLIP_TENSOR || c->clip == SD_CLIP_MODULE, SD_ERR_ARGUMENT,
               "clip is %d: it must be one of sd_clip_kind", c->clip);
    SD_REQUIRE(c->clip == SD_CLIP_NONE || is_positive(c->clip_limit), SD_ERR_ARGUMENT,
               "clip_limit is %g: it must be finite and above 0", c->clip_limit);
    return check_method(c);
}

/* Config structs that are part of the whole, each of which may be of an older header's size. */
static const struct {
    size_t offset, size;
    const char *name;
} parts[] = {
#define PART(member) {offsetof(sd_pretrainer_config, member), sizeof(((sd_pretrainer_config *)0)->member), #member}
    PART(model), PART(loss), PART(augment), PART(optimizer), PART(dino), PART(mask),
#undef PART
};

sd_status sd_trainer_read_config(const sd_pretrainer_config *source, sd_pretrainer_config *config) {
    sd_pretrainer_config_init(config);
    sd_pretrainer_config defaults = *config;
    sd_status status = sd_config_read(config, sizeof *config, source, "sd_pretrainer_config");
    if (status != SD_OK)
        return status;
    for (size_t i = 0; i < sizeof parts / sizeof *parts && status == SD_OK; i++) {
        sd_pretrainer_config given = *config;
        char *to = (char *)config + parts[i].offset;
        memcpy(to, (const char *)&defaults + parts[i].offset, parts[i].size);
        status = sd_config_read(to, parts[i].size, (const char *)&given + parts[i].offset, parts[i].name);
    }
    return status == SD_OK ? check(config) : status;
}
