/* A model's weights under the names of other codes. */
#include "io/names.h"
#include "io/safetensors.h"
#include "model/model.h"

#include <simdino/io.h>

#include <stdio.h>
#include <string.h>

#define TEXT_MAX 64

enum { SETTINGS = 13 };

/* The tensors of the file, and what has to be made for them. */
typedef struct content {
    const sd_model *model;
    sd_model_config config;
    sd_name_target target;
    sd_tensor_data *tensors;
    char (*names)[SD_NATIVE_NAME_MAX];
    size_t count;
    float *made; /* class token with its position; zeros; ones: dim each */
} content;

static sd_status add(content *c, const char *name, const int64_t *shape, int32_t dimensions, const float *data) {
    if (!c->tensors) { /* only counted */
        c->count++;
        return SD_OK;
    }
    sd_tensor_data *tensor = &c->tensors[c->count];
    memcpy(c->names[c->count], name, strlen(name) + 1);
    *tensor = (sd_tensor_data){.name = c->names[c->count], .dimensions = dimensions, .data = data};
    memcpy(tensor->shape, shape, (size_t)dimensions * sizeof *shape);
    c->count++;
    return SD_OK;
}

/* timm's networks with registers have no position for the class token, because it is added to the token. */
static bool folds_position(const content *c) {
    return c->target.names == SD_NAMES_TIMM && c->config.registers > 0;
}

static sd_status add_tensor(content *c, const sd_tensor_info *info) {
    size_t pieces = sd_name_pieces(&c->target, info->name);
    const float *values = sd_model_parameters_const(c->model) + info->offset;
    int64_t shape[4];
    memcpy(shape, info->shape, sizeof shape);
    if (pieces == 0) {
        bool inside = strncmp(info->name, "backbone.", 9) == 0;
        SD_REQUIRE(!inside || (c->target.names == SD_NAMES_TIMM || strcmp(info->name, "backbone.mask_token") == 0),
                   SD_ERR_UNSUPPORTED, "%s has no place in a file of these names", info->name);
        return SD_OK;
    }
    if (folds_position(c) && strcmp(info->name, "backbone.pos_embed") == 0) {
        shape[1]--;
        values += shape[2];
    }
    if (folds_position(c) && strcmp(info->name, "backbone.cls_token") == 0)
        values = c->made;
    shape[0] /= (int64_t)pieces;
    for (size_t i = 0; i < pieces; i++) {
        char name[SD_NATIVE_NAME_MAX];
        SD_REQUIRE(sd_name_to(&c->target, info->name, i, name), SD_ERR_UNSUPPORTED,
                   "%s has no name in a file of these names", info->name);
        sd_status status = add(c, name, shape, info->dimensions, values + i * (info->count / pieces));
        if (status != SD_OK)
            return status;
    }
    return SD_OK;
}

/* What Dinov2Model has in any case: LayerScale (here without effect) and the mask token. */
static sd_status add_expected(content *c) {
    int64_t token[2] = {1, c->config.dim}, vector[1] = {c->config.dim};
    sd_status status = SD_OK;
    if (c->target.names != SD_NAMES_HUGGING_FACE || !c->target.v2)
        return SD_OK;
    if (!c->config.mask_token)
        status = add(c, "embeddings.mask_token", token, 2, c->made + c->config.dim);
    for (int32_t i = 0; c->config.layer_scale == 0.0 && status == SD_OK && i < 2 * c->config.depth; i++) {
        char name[SD_NATIVE_NAME_MAX];
        snprintf(name, sizeof name, "encoder.layer.%d.layer_scale%d.lambda1", (int)(i / 2), (int)(i % 2 + 1));
        status = add(c, name, vector, 1, c->made + 2 * (size_t)c->config.dim);
    }
    return status;
}

static sd_status add_all(content *c) {
    c->count = 0;
    for (size_t i = 0; i < sd_model_tensor_count(c->model); i++) {
        sd_status status = add_tensor(c, sd_model_tensor(c->model, i));
        if (status != SD_OK)
            return status;
    }
    return add_expected(c);
}

static void make_values(content *c) {
    const float *parameters = sd_model_parameters_const(c->model);
    const sd_tensor_info *token = sd_model_find_tensor(c->model, "backbone.cls_token");
    const sd_tensor_info *position = sd_model_find_tensor(c->model, "backbone.pos_embed");
    size_t dim = (size_t)c->config.dim;
    for (size_t i = 0; i < dim; i++) {
        c->made[i] = parameters[token->offset + i] + parameters[position->offset + i];
        c->made[2 * dim + i] = 1.0f;
    }
}

/* ---- what no tensor tells ------------------------------------------------------------------------ */

static void print_integer(sd_metadata *entry, char *text, const char *key, int32_t value) {
    snprintf(text, TEXT_MAX, "%d", (int)value);
    *entry = (sd_metadata){key, text};
}

/* As in checkpoints: for people, and the bits. printf writes the decimal point of the locale: it becomes a point again.
 * */
static void print_real(sd_metadata *entry, char *text, const char *key, double value) {
    char local[TEXT_MAX / 2];
    uint64_t bits;
    size_t length = 0;
    snprintf(local, sizeof local, "%.15g", value);
    for (const char *c = local; *c; c++) {
        if (strchr("0123456789+-einfa", *c))
            text[length++] = *c;
        else if (length == 0 || text[length - 1] != '.')
            text[length++] = '.';
    }
    memcpy(&bits, &value, sizeof bits);
    snprintf(text + length, TEXT_MAX - length, " (%016llx)", (unsigned long long)bits);
    *entry = (sd_metadata){key, text};
}

/* "format" is what transformers asks for. */
static size_t fill_metadata(const sd_model_config *c, sd_metadata *metadata, char texts[SETTINGS][TEXT_MAX]) {
    size_t n = 0;
    metadata[n++] = (sd_metadata){"format", "pt"};
    snprintf(texts[n], TEXT_MAX, "libsimdino %s", sd_version_string());
    metadata[n] = (sd_metadata){"library", texts[n]};
    n++;
#define INTEGER(member) (print_integer(&metadata[n], texts[n], "model." #member, c->member), n++)
#define REAL(member)    (print_real(&metadata[n], texts[n], "model." #member, c->member), n++)
    INTEGER(dim);
    INTEGER(image_size);
    INTEGER(heads);
    INTEGER(interpolate_antialias);
    INTEGER(drop_path_uniform);
    INTEGER(drop_path_subset);
    INTEGER(prototype_scale);
    REAL(mlp_ratio);
    REAL(drop_path);
    REAL(interpolate_offset);
    REAL(layer_scale);
#undef INTEGER
#undef REAL
    return n;
}

static sd_status write_safetensors(sd_context *context, const char *path, const content *c) {
    sd_metadata metadata[SETTINGS];
    char texts[SETTINGS][TEXT_MAX];
    size_t settings = fill_metadata(&c->config, metadata, texts);
    sd_tensor_source *sources = SD_NEW_ARRAY(context, sd_tensor_source, c->count);
    if (!sources)
        return SD_ERR_MEMORY;
    for (size_t i = 0; i < c->count; i++) {
        sources[i] = (sd_tensor_source){
            .name = c->tensors[i].name, .dimensions = (size_t)c->tensors[i].dimensions, .data = c->tensors[i].data};
        for (size_t j = 0; j < sources[i].dimensions; j++)
            sources[i].shape[j] = (uint64_t)c->tensors[i].shape[j];
    }
    sd_status status = sd_safetensors_write(context, path, sources, c->count, metadata, settings);
    sd_release(context, sources);
    return status;
}

static bool ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), wanted = strlen(ending);
    return length > wanted && strcmp(text + length - wanted, ending) == 0;
}

SD_API sd_status sd_model_save_weights(const sd_model *model, const char *path, sd_names names, int32_t with_heads) {
    SD_REQUIRE(model && path, SD_ERR_ARGUMENT, "%s is NULL", model ? "path" : "model");
    SD_REQUIRE((int)names >= SD_NAMES_NATIVE && (int)names <= SD_NAMES_HUGGING_FACE, SD_ERR_ARGUMENT,
               "names is %d: it must be one of sd_names", (int)names);
    SD_REQUIRE(with_heads == 0 || with_heads == 1, SD_ERR_ARGUMENT, "with_heads is %d: it must be 0 or 1",
               (int)with_heads);
    SD_REQUIRE(!with_heads || names == SD_NAMES_NATIVE || names == SD_NAMES_OFFICIAL, SD_ERR_ARGUMENT,
               "with_heads is 1, but %s names have no heads", names == SD_NAMES_TIMM ? "timm's" : "Hugging Face's");
    bool archive = ends_with(path, ".npz");
    SD_REQUIRE(archive || ends_with(path, ".safetensors"), SD_ERR_ARGUMENT,
               "%s: its name must end in .safetensors or .npz", path);
    sd_context *context = model->context;
    const sd_model_config *config = &model->config;
    sd_status status;
    content c = {.model = model, .config = *config};
    c.target = (sd_name_target){.names = names,
                                .with_heads = with_heads == 1,
                                .v2 = config->registers > 0 || config->mask_token || config->layer_scale != 0.0 ||
                                      config->feed_forward == SD_FEED_FORWARD_SWIGLU};
    c.made = SD_NEW_ARRAY(context, float, 3 * (size_t)config->dim);
    if (!c.made) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    make_values(&c);
    SD_TRY(add_all(&c)); /* counts */
    sd_tensor_data *tensors = SD_NEW_ARRAY(context, sd_tensor_data, c.count);
    c.names = sd_allocate(context, c.count, sizeof *c.names);
    c.tensors = tensors;
    if (!c.tensors || !c.names) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    SD_TRY(add_all(&c));
    status =
        archive ? sd_tensor_file_write(context, path, c.tensors, c.count, 0) : write_safetensors(context, path, &c);
cleanup:
    sd_release(context, c.made);
    sd_release(context, c.names);
    sd_release(context, c.tensors);
    return status;
}
