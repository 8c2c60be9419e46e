/* Configuration, parameter table, initialisation. */
#include "math/math.h"
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

SD_API void sd_model_config_init(sd_model_config *config) {
    if (config == NULL)
        return;
    memset(config, 0, sizeof *config);
    config->size = sizeof *config;
    config->image_size = 224;
    config->patch_size = 16;
    config->channels = 3;
    config->dim = 384;
    config->depth = 12;
    config->heads = 6;
    config->mlp_ratio = 4.0;
    config->drop_path = 0.1;
    config->interpolate_offset = 0.1;
    config->head_layers = 3;
    config->head_hidden = 2048;
    config->head_dim = 256;
}

SD_API sd_status sd_model_config_preset(sd_model_config *config, const char *name) {
    static const struct {
        const char *name;
        int32_t dim, depth, heads;
    } presets[] = {{"tiny", 192, 12, 3}, {"small", 384, 12, 6}, {"base", 768, 12, 12}, {"large", 1024, 24, 16}};
    SD_REQUIRE(config != NULL && name != NULL, SD_ERR_ARGUMENT, "%s is NULL", config == NULL ? "config" : "name");
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++)
        if (strcmp(name, presets[i].name) == 0) {
            config->dim = presets[i].dim;
            config->depth = presets[i].depth;
            config->heads = presets[i].heads;
            return SD_OK;
        }
    return sd_fail(SD_ERR_ARGUMENT, "preset \"%s\" is unknown: use tiny, small, base or large", name);
}

sd_status sd_geometry_of(const sd_model_config *c, sd_geometry *g) {
    SD_REQUIRE(c->patch_size >= 1 && c->patch_size <= 1024, SD_ERR_ARGUMENT, "patch_size is %d: it must be 1 to 1024",
               c->patch_size);
    SD_REQUIRE(c->image_size >= c->patch_size && c->image_size <= 65536, SD_ERR_ARGUMENT,
               "image_size is %d: it must be at least patch_size (%d) and at most 65536", c->image_size, c->patch_size);
    SD_REQUIRE(c->channels >= 1 && c->channels <= SD_MAX_CHANNELS, SD_ERR_ARGUMENT,
               "channels is %d: it must be 1 to %d", c->channels, SD_MAX_CHANNELS);
    SD_REQUIRE(c->dim >= 1 && c->dim <= 16384, SD_ERR_ARGUMENT, "dim is %d: it must be 1 to 16384", c->dim);
    SD_REQUIRE(c->depth >= 1 && c->depth <= 1024, SD_ERR_ARGUMENT, "depth is %d: it must be 1 to 1024", c->depth);
    SD_REQUIRE(c->heads >= 1 && c->dim % c->heads == 0, SD_ERR_ARGUMENT,
               "heads is %d: it must be at least 1 and divide dim (%d)", c->heads, c->dim);
    SD_REQUIRE(c->mlp_ratio > 0.0 && c->mlp_ratio <= 64.0 && (int)(c->mlp_ratio * c->dim) >= 1, SD_ERR_ARGUMENT,
               "mlp_ratio is %g: it must be above 0 and at most 64, with a hidden width of at least 1", c->mlp_ratio);
    SD_REQUIRE(c->drop_path >= 0.0 && c->drop_path < 1.0, SD_ERR_ARGUMENT, "drop_path is %g: it must be in [0, 1)",
               c->drop_path);
    SD_REQUIRE(c->interpolate_offset >= 0.0 && c->interpolate_offset < 1.0, SD_ERR_ARGUMENT,
               "interpolate_offset is %g: it must be in [0, 1)", c->interpolate_offset);
    SD_REQUIRE(c->head_layers >= 0 && c->head_layers <= SD_HEAD_LAYERS_MAX, SD_ERR_ARGUMENT,
               "head_layers is %d: it must be 0 to %d", c->head_layers, SD_HEAD_LAYERS_MAX);
    if (c->head_layers > 0) {
        SD_REQUIRE(c->head_dim >= 1 && c->head_dim <= 65536, SD_ERR_ARGUMENT, "head_dim is %d: it must be 1 to 65536",
                   c->head_dim);
        SD_REQUIRE(c->head_layers == 1 || (c->head_hidden >= 1 && c->head_hidden <= 65536), SD_ERR_ARGUMENT,
                   "head_hidden is %d: it must be 1 to 65536", c->head_hidden);
    }
    SD_REQUIRE(c->registers >= 0 && c->registers <= SD_REGISTERS_MAX, SD_ERR_ARGUMENT,
               "registers is %d: it must be 0 to %d", c->registers, SD_REGISTERS_MAX);
    SD_REQUIRE(c->feed_forward == SD_FEED_FORWARD_MLP || c->feed_forward == SD_FEED_FORWARD_SWIGLU, SD_ERR_ARGUMENT,
               "feed_forward is %d: it must be one of sd_feed_forward", c->feed_forward);
    SD_REQUIRE(isfinite(c->layer_scale), SD_ERR_ARGUMENT, "layer_scale is %g: it must be finite", c->layer_scale);
    SD_REQUIRE(c->prototypes >= 0 && c->prototypes <= SD_PROTOTYPES_MAX && c->patch_prototypes >= 0 &&
                   c->patch_prototypes <= SD_PROTOTYPES_MAX,
               SD_ERR_ARGUMENT, "%s is %d: it must be 0 to %d",
               c->prototypes < 0 || c->prototypes > SD_PROTOTYPES_MAX ? "prototypes" : "patch_prototypes",
               c->prototypes < 0 || c->prototypes > SD_PROTOTYPES_MAX ? c->prototypes : c->patch_prototypes,
               SD_PROTOTYPES_MAX);
    SD_REQUIRE(c->prototypes == 0 || c->head_layers > 0, SD_ERR_ARGUMENT,
               "prototypes is %d, but the model has no head (head_layers is 0)", c->prototypes);
    SD_REQUIRE(c->patch_head == 0 || c->head_layers > 0, SD_ERR_ARGUMENT,
               "patch_head is %d, but the model has no head (head_layers is 0)", c->patch_head);
    SD_REQUIRE(c->patch_prototypes == 0 || c->patch_head != 0, SD_ERR_ARGUMENT,
               "patch_prototypes is %d, but patch_head is 0: patches then share the prototypes of the head",
               c->patch_prototypes);
    memset(g, 0, sizeof *g);
    g->dim = (size_t)c->dim;
    g->depth = (size_t)c->depth;
    g->heads = (size_t)c->heads;
    g->registers = (size_t)c->registers;
    g->mask_token = c->mask_token != 0;
    g->swiglu = c->feed_forward == SD_FEED_FORWARD_SWIGLU;
    g->qk_norm = c->qk_norm != 0;
    g->layer_scale = c->layer_scale != 0.0;
    g->hidden = (size_t)(c->mlp_ratio * c->dim);
    if (g->swiglu) /* int(2/3 hidden) rounded up to a multiple of 8 */
        g->hidden = (g->hidden * 2 / 3 + 7) / 8 * 8;
    g->hidden_in = g->swiglu ? 2 * g->hidden : g->hidden;
    g->patch = (size_t)c->patch_size;
    g->channels = (size_t)c->channels;
    g->patch_values = g->channels * g->patch * g->patch;
    g->grid = (size_t)(c->image_size / c->patch_size);
    g->head_layers = (size_t)c->head_layers;
    g->head_width[0] = g->dim;
    for (size_t i = 0; i < g->head_layers; i++)
        g->head_width[i + 1] = (size_t)(i + 1 == g->head_layers ? c->head_dim : c->head_hidden);
    g->patch_head = c->patch_head != 0;
    g->prototypes[0] = (size_t)c->prototypes;
    g->prototypes[1] = (size_t)c->patch_prototypes;
    g->drop_path = c->drop_path;
    g->drop_uniform = c->drop_path_uniform != 0;
    g->drop_subset = c->drop_path_subset != 0;
    /* member by member: geometries are compared as bytes, and the gaps between members stay 0 */
    g->position.offset = c->interpolate_offset;
    g->position.antialias = c->interpolate_antialias != 0;
    return SD_OK;
}

size_t sd_geometry_patches(const sd_geometry *g, size_t height, size_t width) {
    return (height / g->patch) * (width / g->patch);
}

size_t sd_geometry_tokens(const sd_geometry *g, size_t height, size_t width) {
    return 1 + g->registers + sd_geometry_patches(g, height, width);
}

/* ---- the table ----------------------------------------------------------------------------- */

/* Walks over the tensors in state-dict order; with model NULL it only counts. */
typedef struct table_builder {
    sd_model *model;
    size_t tensors, parameters;
} table_builder;

static size_t add_tensor(table_builder *builder, size_t layer, const char *name, const size_t *shape, int dimensions) {
    size_t count = 1, offset = builder->parameters;
    for (int i = 0; i < dimensions; i++)
        count *= shape[i];
    if (builder->model != NULL) {
        sd_tensor_info *info = &builder->model->tensors[builder->tensors];
        char *text = builder->model->names[builder->tensors];
        snprintf(text, sizeof builder->model->names[0], "%s", name);
        info->name = text;
        info->dimensions = dimensions;
        for (int i = 0; i < dimensions; i++)
            info->shape[i] = (int64_t)shape[i];
        size_t length = strlen(name);
        bool is_bias = length > 5 && strcmp(name + length - 5, ".bias") == 0;
        bool fixed = strstr(name, ".weight_g") != NULL && !builder->model->config.prototype_scale;
        info->decay = dimensions > 1 && !is_bias && !fixed;
        info->offset = offset;
        info->count = count;
        info->layer = (int32_t)layer;
    }
    builder->tensors++;
    builder->parameters += count;
    return offset;
}

static size_t add_vector(table_builder *builder, size_t layer, const char *name, size_t n) {
    return add_tensor(builder, layer, name, &n, 1);
}

static size_t add_matrix(table_builder *builder, size_t layer, const char *name, size_t rows, size_t columns) {
    size_t shape[2] = {rows, columns};
    return add_tensor(builder, layer, name, shape, 2);
}

static void add_block(table_builder *builder, const sd_geometry *g, size_t block, sd_layout *l) {
    size_t d = g->dim, size = d / g->heads, layer = block + 1;
    char name[64];
#define NAMED(suffix) (snprintf(name, sizeof name, "backbone.blocks.%zu." suffix, block), name)
    l->norm1_weight = add_vector(builder, layer, NAMED("norm1.weight"), d);
    l->norm1_bias = add_vector(builder, layer, NAMED("norm1.bias"), d);
    l->qkv_weight = add_matrix(builder, layer, NAMED("attn.qkv.weight"), 3 * d, d);
    l->qkv_bias = add_vector(builder, layer, NAMED("attn.qkv.bias"), 3 * d);
    if (g->qk_norm) {
        l->q_norm_weight = add_vector(builder, layer, NAMED("attn.q_norm.weight"), size);
        l->q_norm_bias = add_vector(builder, layer, NAMED("attn.q_norm.bias"), size);
        l->k_norm_weight = add_vector(builder, layer, NAMED("attn.k_norm.weight"), size);
        l->k_norm_bias = add_vector(builder, layer, NAMED("attn.k_norm.bias"), size);
    }
    l->proj_weight = add_matrix(builder, layer, NAMED("attn.proj.weight"), d, d);
    l->proj_bias = add_vector(builder, layer, NAMED("attn.proj.bias"), d);
    if (g->layer_scale)
        l->gamma1 = add_vector(builder, layer, NAMED("ls1.gamma"), d);
    l->norm2_weight = add_vector(builder, layer, NAMED("norm2.weight"), d);
    l->norm2_bias = add_vector(builder, layer, NAMED("norm2.bias"), d);
    const char *fc1 = g->swiglu ? "w12" : "fc1", *fc2 = g->swiglu ? "w3" : "fc2";
#define NAMED_MLP(part, suffix) (snprintf(name, sizeof name, "backbone.blocks.%zu.mlp.%s." suffix, block, part), name)
    l->fc1_weight = add_matrix(builder, layer, NAMED_MLP(fc1, "weight"), g->hidden_in, d);
    l->fc1_bias = add_vector(builder, layer, NAMED_MLP(fc1, "bias"), g->hidden_in);
    l->fc2_weight = add_matrix(builder, layer, NAMED_MLP(fc2, "weight"), d, g->hidden);
    l->fc2_bias = add_vector(builder, layer, NAMED_MLP(fc2, "bias"), d);
    if (g->layer_scale)
        l->gamma2 = add_vector(builder, layer, NAMED("ls2.gamma"), d);
#undef NAMED_MLP
#undef NAMED
}

static void add_head(table_builder *builder, const sd_geometry *g, size_t head, struct sd_head_layout *l) {
    const char *prefix = head == 0 ? "head" : "patch_head";
    size_t layer = g->depth + 1, width = g->head_width[g->head_layers];
    char name[64];
    for (size_t i = 0; i < g->head_layers; i++) {
        char place[24] = "mlp"; /* GELUs take the odd places of the official nn.Sequential */
        if (g->head_layers > 1)
            snprintf(place, sizeof place, "mlp.%zu", 2 * i);
        snprintf(name, sizeof name, "%s.%s.weight", prefix, place);
        l->weight[i] = add_matrix(builder, layer, name, g->head_width[i + 1], g->head_width[i]);
        snprintf(name, sizeof name, "%s.%s.bias", prefix, place);
        l->bias[i] = add_vector(builder, layer, name, g->head_width[i + 1]);
    }
    if (g->prototypes[head] > 0) {
        snprintf(name, sizeof name, "%s.last_layer.weight_g", prefix);
        l->prototype_scale = add_matrix(builder, layer, name, g->prototypes[head], 1);
        snprintf(name, sizeof name, "%s.last_layer.weight_v", prefix);
        l->prototype_direction = add_matrix(builder, layer, name, g->prototypes[head], width);
    }
}

static void build_table(const sd_geometry *g, table_builder *builder, sd_layout *layout) {
    size_t d = g->dim;
    size_t token[3] = {1, 1, d}, position[3] = {1, 1 + g->grid * g->grid, d}, registers[3] = {1, g->registers, d};
    size_t kernel[4] = {d, g->channels, g->patch, g->patch};
    memset(layout, 0, sizeof *layout);
    layout->cls_token = add_tensor(builder, 0, "backbone.cls_token", token, 3);
    layout->position = add_tensor(builder, 0, "backbone.pos_embed", position, 3);
    if (g->registers > 0)
        layout->registers = add_tensor(builder, 0, "backbone.register_tokens", registers, 3);
    if (g->mask_token)
        layout->mask_token = add_matrix(builder, 0, "backbone.mask_token", 1, d);
    layout->patch_weight = add_tensor(builder, 0, "backbone.patch_embed.proj.weight", kernel, 4);
    layout->patch_bias = add_vector(builder, 0, "backbone.patch_embed.proj.bias", d);
    size_t start = builder->parameters;
    sd_layout repeated;
    for (size_t b = 0; b < g->depth; b++) {
        add_block(builder, g, b, b == 0 ? layout : &repeated);
        if (b == 0)
            layout->block_stride = builder->parameters - start;
    }
    layout->norm_weight = add_vector(builder, g->depth + 1, "backbone.norm.weight", d);
    layout->norm_bias = add_vector(builder, g->depth + 1, "backbone.norm.bias", d);
    if (g->head_layers > 0)
        add_head(builder, g, 0, &layout->head[0]);
    if (g->patch_head)
        add_head(builder, g, 1, &layout->head[1]);
}

size_t sd_geometry_parameters(const sd_geometry *geometry) {
    table_builder builder = {0};
    sd_layout layout;
    build_table(geometry, &builder, &layout);
    return builder.parameters;
}

/* ---- create and destroy -------------------------------------------------------------------- */

SD_API sd_status sd_model_create(sd_context *context, const sd_model_config *source, sd_model **out) {
    SD_REQUIRE(out != NULL, SD_ERR_ARGUMENT, "model is NULL");
    sd_model_config config;
    sd_model_config_init(&config);
    sd_status status = sd_config_read(&config, sizeof config, source, "sd_model_config");
    if (status != SD_OK)
        return status;
    sd_geometry geometry;
    status = sd_geometry_of(&config, &geometry);
    if (status != SD_OK)
        return status;
    sd_model *model = SD_NEW(context, sd_model);
    if (model == NULL)
        return SD_ERR_MEMORY;
    model->context = context;
    model->config = config;
    model->geometry = geometry;
    table_builder counter = {0};
    build_table(&geometry, &counter, &model->layout);
    model->tensor_count = counter.tensors;
    model->parameter_count = counter.parameters;
    model->tensors = SD_NEW_ARRAY(context, sd_tensor_info, counter.tensors);
    model->names = sd_allocate(context, counter.tensors, sizeof *model->names);
    model->parameters = SD_NEW_ARRAY(context, float, counter.parameters);
    if (model->tensors == NULL || model->names == NULL || model->parameters == NULL) {
        sd_model_destroy(model);
        return SD_ERR_MEMORY;
    }
    table_builder builder = {.model = model};
    build_table(&geometry, &builder, &model->layout);
    *out = model;
    return SD_OK;
}

SD_API void sd_model_destroy(sd_model *model) {
    if (model == NULL)
        return;
    sd_model_unpack(model);
    sd_release(model->context, model->parameters);
    sd_release(model->context, model->names);
    sd_release(model->context, model->tensors);
    sd_release(model->context, model);
}

/* The official trunc_normal_(std=.02) cuts at +-2, which is 100 deviations and never happens. */
static void fill_normal(sd_random *random, float *values, size_t count, double deviation) {
    for (size_t i = 0; i < count; i++)
        values[i] = (float)(deviation * sd_random_normal(random));
}

static void fill_uniform(sd_random *random, float *values, size_t count, double bound) {
    for (size_t i = 0; i < count; i++)
        values[i] = (float)(bound * (2.0 * sd_random_uniform(random) - 1.0));
}

static void fill_constant(float *values, size_t count, float value) {
    for (size_t i = 0; i < count; i++)
        values[i] = value;
}

static bool named(const sd_tensor_info *info, const char *part) { return strstr(info->name, part) != NULL; }

static void initialize_tensor(const sd_model *model, const sd_tensor_info *info, sd_random *random, float *values) {
    const sd_geometry *g = &model->geometry;
    if (named(info, "patch_embed.")) {
        fill_uniform(random, values, info->count, 1.0 / sqrt((double)g->patch_values));
    } else if (named(info, ".weight_v")) {
        fill_uniform(random, values, info->count, 1.0 / sqrt((double)info->shape[1]));
    } else if (named(info, ".weight_g")) {
        fill_constant(values, info->count, 1.0f);
    } else if (named(info, ".gamma")) {
        fill_constant(values, info->count, (float)model->config.layer_scale);
    } else if (named(info, "mask_token")) {
        fill_constant(values, info->count, 0.0f);
    } else if (named(info, "register_tokens") || (g->mask_token && named(info, "cls_token"))) {
        fill_normal(random, values, info->count, 1e-6);
    } else if (info->dimensions > 1) {
        fill_normal(random, values, info->count, 0.02);
    } else {
        bool is_norm_weight = named(info, "norm") && named(info, ".weight");
        fill_constant(values, info->count, is_norm_weight ? 1.0f : 0.0f);
    }
}

SD_API void sd_model_initialize(sd_model *model, uint64_t seed) {
    if (model == NULL)
        return;
    sd_model_unpack(model);
    for (size_t i = 0; i < model->tensor_count; i++) {
        const sd_tensor_info *info = &model->tensors[i];
        sd_random random;
        sd_random_init(&random, seed, 0, SD_RANDOM_INIT + (uint32_t)i);
        initialize_tensor(model, info, &random, model->parameters + info->offset);
    }
}

/* ---- asking -------------------------------------------------------------------------------- */

SD_API sd_status sd_model_get_config(const sd_model *model, sd_model_config *config) {
    SD_REQUIRE(model != NULL && config != NULL, SD_ERR_ARGUMENT, "%s is NULL", model == NULL ? "model" : "config");
    size_t size = config->size;
    SD_REQUIRE(size >= sizeof size, SD_ERR_ARGUMENT, "config->size is %zu: set it to sizeof(sd_model_config)", size);
    memcpy(config, &model->config, sd_size_min(size, sizeof model->config));
    config->size = size;
    return SD_OK;
}

SD_API size_t sd_model_parameter_count(const sd_model *model) { return model == NULL ? 0 : model->parameter_count; }
SD_API float *sd_model_parameters(sd_model *model) {
    sd_model_unpack(model); /* whoever asks may write */
    return model == NULL ? NULL : model->parameters;
}
SD_API const float *sd_model_parameters_const(const sd_model *model) {
    return model == NULL ? NULL : model->parameters;
}

SD_API sd_status sd_model_copy(sd_model *to, const sd_model *from) {
    SD_REQUIRE(to != NULL && from != NULL, SD_ERR_ARGUMENT, "%s is NULL", to == NULL ? "to" : "from");
    SD_REQUIRE(memcmp(&to->geometry, &from->geometry, sizeof to->geometry) == 0, SD_ERR_MISMATCH,
               "the models differ in their configuration");
    sd_model_unpack(to);
    memcpy(to->parameters, from->parameters, to->parameter_count * sizeof *to->parameters);
    return SD_OK;
}

SD_API size_t sd_model_tensor_count(const sd_model *model) { return model == NULL ? 0 : model->tensor_count; }

SD_API const sd_tensor_info *sd_model_tensor(const sd_model *model, size_t index) {
    return model != NULL && index < model->tensor_count ? &model->tensors[index] : NULL;
}

SD_API const sd_tensor_info *sd_model_find_tensor(const sd_model *model, const char *name) {
    if (model == NULL || name == NULL)
        return NULL;
    for (size_t i = 0; i < model->tensor_count; i++)
        if (strcmp(model->tensors[i].name, name) == 0)
            return &model->tensors[i];
    return NULL;
}
