/* The configuration of a network from the names and shapes of its tensors. */
#include "io/weights.h"
#include "model/model.h"

#include <stdio.h>
#include <string.h>

#define SIZE_LIMIT ((uint64_t)1 << 20) /* of one dimension; a configuration's own limits are lower */
#define HEAD_WIDTH 64                  /* of attention heads, in all published networks */

static const sd_stored *tensor_of(const sd_weights *weights, const char *name) {
    const sd_weight *weight = sd_weights_find(weights, name, SD_WHOLE);
    return weight ? sd_weights_tensor(weights, weight) : NULL;
}

/* A tensor of so many dimensions, none of them 0 or beyond all reason; NULL when there is no such tensor. */
static sd_status shaped(const sd_weights *weights, const char *name, size_t dimensions, const sd_stored **tensor) {
    const sd_stored *found = tensor_of(weights, name);
    *tensor = found;
    if (!found)
        return SD_OK;
    bool fits = found->dimensions == dimensions;
    for (size_t i = 0; fits && i < dimensions; i++)
        fits = found->shape[i] >= 1 && found->shape[i] <= SIZE_LIMIT;
    SD_REQUIRE(fits, SD_ERR_MISMATCH, "%s: %.300s (%s) does not have %zu dimensions of a possible size", weights->path,
               found->name, name, dimensions);
    return SD_OK;
}

/* ---- what our own files record ---------------------------------------------------------------- */

/* "model.NAME" of the metadata, as the checkpoints of this library write it: a whole number, or one with a fraction
 * whose bits stand in parentheses. */
static bool recorded_integer(const sd_weights *weights, const char *key, int32_t *number) {
    const char *text = sd_tensor_file_metadata(weights->file, key);
    int32_t value = 0;
    if (!text || !*text || strlen(text) > 8)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        value = value * 10 + (*text - '0');
    }
    *number = value;
    return true;
}

static bool recorded_real(const sd_weights *weights, const char *key, double *number) {
    const char *text = sd_tensor_file_metadata(weights->file, key), *at = text ? strchr(text, '(') : NULL;
    uint64_t bits = 0;
    if (!at || strlen(at) != 18 || at[17] != ')')
        return false;
    for (int i = 1; i <= 16; i++) {
        char c = at[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0)
            return false;
        bits = bits << 4 | (uint64_t)digit;
    }
    memcpy(number, &bits, sizeof bits);
    return true;
}

static void take_recorded(const sd_weights *weights, sd_model_config *c) {
    int32_t image_size;
    if (recorded_integer(weights, "model.image_size", &image_size) &&
        image_size / c->patch_size == c->image_size / c->patch_size)
        c->image_size = image_size;
    recorded_integer(weights, "model.heads", &c->heads);
    recorded_integer(weights, "model.interpolate_antialias", &c->interpolate_antialias);
    recorded_integer(weights, "model.drop_path_uniform", &c->drop_path_uniform);
    recorded_integer(weights, "model.drop_path_subset", &c->drop_path_subset);
    recorded_integer(weights, "model.prototype_scale", &c->prototype_scale);
    recorded_real(weights, "model.mlp_ratio", &c->mlp_ratio);
    recorded_real(weights, "model.drop_path", &c->drop_path);
    recorded_real(weights, "model.interpolate_offset", &c->interpolate_offset);
    if (c->layer_scale != 0.0)
        recorded_real(weights, "model.layer_scale", &c->layer_scale);
}

/* ---- the backbone ------------------------------------------------------------------------------ */

static sd_status infer_patches(const sd_weights *weights, sd_model_config *c) {
    const sd_stored *kernel, *position;
    sd_status status = shaped(weights, "backbone.patch_embed.proj.weight", 4, &kernel);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(kernel, SD_ERR_MISMATCH, "%s: its patch projection has no name of this family", weights->path);
    SD_REQUIRE(kernel->shape[2] == kernel->shape[3], SD_ERR_MISMATCH,
               "%s: patches of %llu x %llu pixels are not square", weights->path, (unsigned long long)kernel->shape[2],
               (unsigned long long)kernel->shape[3]);
    c->dim = (int32_t)kernel->shape[0];
    c->channels = (int32_t)kernel->shape[1];
    c->patch_size = (int32_t)kernel->shape[2];
    status = shaped(weights, "backbone.pos_embed", 3, &position);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(position, SD_ERR_MISMATCH, "%s: it has no learned position embedding", weights->path);
    uint64_t patches = position->shape[1] - (weights->no_class_position ? 0 : 1), grid = 1;
    while (grid * grid < patches)
        grid++;
    SD_REQUIRE(grid * grid == patches, SD_ERR_MISMATCH,
               "%s: a position embedding of %llu tokens is not that of a square grid of patches", weights->path,
               (unsigned long long)position->shape[1]);
    SD_REQUIRE(grid * kernel->shape[2] <= 65536, SD_ERR_MISMATCH, "%s: a grid of %llu x %llu patches", weights->path,
               (unsigned long long)grid, (unsigned long long)grid);
    c->image_size = (int32_t)(grid * kernel->shape[2]);
    return SD_OK;
}

/* The smallest ratio whose hidden width, as the model computes it, is this one. */
static double ratio_of(uint64_t hidden, int32_t dim) {
    double ratio = (double)hidden / (double)dim;
    if ((uint64_t)(ratio * dim) != hidden)
        ratio = ((double)hidden + 0.5) / (double)dim;
    return ratio;
}

/* w3: dim x hidden, hidden being 2/3 of mlp_ratio*dim rounded up to a multiple of 8. */
static uint64_t swiglu_hidden(double ratio, int32_t dim) {
    return ((uint64_t)(ratio * dim) * 2 / 3 + 7) / 8 * 8;
}

static sd_status infer_feed_forward(const sd_weights *weights, sd_model_config *c) {
    const sd_stored *fc2, *w3;
    sd_status status = shaped(weights, "backbone.blocks.0.mlp.fc2.weight", 2, &fc2);
    if (status == SD_OK)
        status = shaped(weights, "backbone.blocks.0.mlp.w3.weight", 2, &w3);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(fc2 || w3, SD_ERR_MISMATCH, "%s: the MLP of block 0 is missing, or of an unknown form", weights->path);
    if (fc2) {
        c->mlp_ratio = ratio_of(fc2->shape[1], c->dim);
        return SD_OK;
    }
    c->feed_forward = SD_FEED_FORWARD_SWIGLU;
    c->mlp_ratio = 4.0;
    if (swiglu_hidden(c->mlp_ratio, c->dim) != w3->shape[1])
        c->mlp_ratio = ((double)w3->shape[1] * 1.5 + 0.25) / (double)c->dim;
    SD_REQUIRE(swiglu_hidden(c->mlp_ratio, c->dim) == w3->shape[1], SD_ERR_MISMATCH,
               "%s: a SwiGLU of width %llu, which is not a multiple of 8", weights->path,
               (unsigned long long)w3->shape[1]);
    return SD_OK;
}

static sd_status infer_heads(const sd_weights *weights, const sd_weights_options *options, sd_model_config *c) {
    const sd_stored *norm;
    sd_status status = shaped(weights, "backbone.blocks.0.attn.q_norm.weight", 1, &norm);
    if (status != SD_OK)
        return status;
    c->qk_norm = norm != NULL;
    c->heads = c->dim / HEAD_WIDTH > 0 ? c->dim / HEAD_WIDTH : 1;
    while (c->dim % c->heads != 0)
        c->heads--;
    take_recorded(weights, c);
    if (norm && c->dim % (int32_t)norm->shape[0] == 0)
        c->heads = c->dim / (int32_t)norm->shape[0];
    if (options->heads > 0)
        c->heads = options->heads;
    SD_REQUIRE(c->heads >= 1 && c->dim % c->heads == 0, SD_ERR_MISMATCH,
               "%s: %d attention heads do not divide width %d", weights->path, (int)c->heads, (int)c->dim);
    return SD_OK;
}

static sd_status infer_backbone(const sd_weights *weights, sd_model_config *c) {
    const sd_stored *registers;
    sd_status status = infer_patches(weights, c);
    if (status == SD_OK)
        status = shaped(weights, "backbone.register_tokens", 3, &registers);
    if (status != SD_OK)
        return status;
    uint64_t depth = 0, block;
    for (size_t i = 0; i < weights->count; i++)
        if (sd_name_block(weights->list[i].name, &block) && block + 1 > depth)
            depth = block + 1;
    c->depth = (int32_t)depth; /* at most a million */
    c->registers = registers ? (int32_t)registers->shape[1] : 0;
    c->mask_token = tensor_of(weights, "backbone.mask_token") != NULL;
    c->layer_scale = tensor_of(weights, "backbone.blocks.0.ls1.gamma") ? 1.0 : 0.0;
    c->interpolate_antialias = c->registers > 0;
    c->interpolate_offset = c->registers > 0 ? 0.0 : 0.1;
    return infer_feed_forward(weights, c);
}

/* ---- projection heads -------------------------------------------------------------------------- */

/* GELUs take the odd places of the official nn.Sequential; a single layer has no number. */
static sd_status infer_layers(const sd_weights *weights, const char *head, int32_t *layers, int32_t *hidden,
                              int32_t *out) {
    char name[SD_NATIVE_NAME_MAX];
    const sd_stored *weight;
    snprintf(name, sizeof name, "%s.mlp.weight", head);
    sd_status status = shaped(weights, name, 2, &weight);
    *layers = *hidden = 0;
    if (status == SD_OK && weight) {
        *layers = 1;
        *out = (int32_t)weight->shape[0];
        return SD_OK;
    }
    while (status == SD_OK && *layers < SD_HEAD_LAYERS_MAX) {
        snprintf(name, sizeof name, "%s.mlp.%d.weight", head, 2 * (int)*layers);
        status = shaped(weights, name, 2, &weight);
        if (status != SD_OK || !weight)
            break;
        if (*layers == 0)
            *hidden = (int32_t)weight->shape[0];
        *out = (int32_t)weight->shape[0];
        ++*layers;
    }
    return status;
}

static sd_status infer_prototypes(const sd_weights *weights, const char *head, int32_t *prototypes) {
    char name[SD_NATIVE_NAME_MAX];
    const sd_stored *weight;
    snprintf(name, sizeof name, "%s.last_layer.weight_v", head);
    sd_status status = shaped(weights, name, 2, &weight);
    *prototypes = status == SD_OK && weight ? (int32_t)weight->shape[0] : 0;
    return status;
}

static sd_status infer_projection(const sd_weights *weights, sd_model_config *c) {
    int32_t layers, hidden = 0, out = 0, patch_layers, patch_hidden = 0, patch_out = 0;
    sd_status status = infer_layers(weights, "head", &layers, &hidden, &out);
    if (status == SD_OK)
        status = infer_layers(weights, "patch_head", &patch_layers, &patch_hidden, &patch_out);
    if (status != SD_OK)
        return status;
    c->head_layers = layers;
    if (layers == 0)
        return SD_OK;
    c->head_dim = out;
    if (hidden > 0)
        c->head_hidden = hidden;
    status = infer_prototypes(weights, "head", &c->prototypes);
    if (status != SD_OK || patch_layers == 0) {
        c->prototype_scale = c->prototypes > 0 && weights->v2_heads;
        return status;
    }
    SD_REQUIRE(
        patch_layers == layers && patch_hidden == hidden && patch_out == out, SD_ERR_MISMATCH,
        "%s: the head of the patches (%d layers, %d, %d) is not of the same form as the other (%d layers, %d, %d)",
        weights->path, (int)patch_layers, (int)patch_hidden, (int)patch_out, (int)layers, (int)hidden, (int)out);
    c->patch_head = 1;
    c->prototype_scale = c->prototypes > 0 && weights->v2_heads;
    return infer_prototypes(weights, "patch_head", &c->patch_prototypes);
}

/* ---- all --------------------------------------------------------------------------------------- */

/* A file of a few bytes could declare a network of any size: one block's tensors and a name of block 1000 are enough.
 * */
static sd_status check_proportion(const sd_weights *weights, const sd_geometry *geometry) {
    uint64_t stored = sd_tensor_file_bytes(weights->file), size = sd_input_file_size(weights->file->input);
    uint64_t most = stored / 4 < size * 4 ? stored : size * 16; /* floats for bytes: deflate, eight-bit numbers, gaps */
    size_t parameters = sd_geometry_parameters(geometry);
    SD_REQUIRE(parameters <= most * 4 + 65536, SD_ERR_MISMATCH,
               "%s: its names and shapes declare a network of %zu parameters, for which the file is too small",
               weights->path, parameters);
    return SD_OK;
}

sd_status sd_weights_infer(const sd_weights *weights, const sd_weights_options *options, sd_model_config *config) {
    sd_model_config c;
    sd_geometry geometry;
    sd_model_config_init(&c);
    sd_status status = infer_backbone(weights, &c);
    if (status == SD_OK)
        status = infer_projection(weights, &c);
    if (status == SD_OK)
        status = infer_heads(weights, options, &c);
    if (status != SD_OK)
        return status;
    status = sd_geometry_of(&c, &geometry);
    if (status != SD_OK) { /* the same reason with the file's name in front */
        char reason[600];
        snprintf(reason, sizeof reason, "%s", sd_last_error());
        return sd_fail(SD_ERR_MISMATCH, "%s: a network that is not possible here: %s", weights->path, reason);
    }
    status = check_proportion(weights, &geometry);
    if (status == SD_OK)
        *config = c;
    return status;
}
