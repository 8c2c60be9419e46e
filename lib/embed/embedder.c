/* Features of images: prepare a batch in parallel, group what has the same size, run the network forward. */
#include "embed/embedder.h"

#include <math.h>
#include <string.h>

SD_API void sd_embed_config_init(sd_embed_config *config) {
    static const double mean[3] = {0.485, 0.456, 0.406}, deviation[3] = {0.229, 0.224, 0.225}; /* ImageNet */

    if (!config)
        return;
    *config = (sd_embed_config){
        .size = sizeof(*config), .kind = SD_EMBED_CLASS, .batch = 64, .blocks = 1, .block_norm = 1};
    for (size_t c = 0; c < SD_MAX_CHANNELS; c++) {
        config->mean[c] = c < 3 ? mean[c] : 0.5;
        config->std[c] = c < 3 ? deviation[c] : 0.5;
    }
}

/* ---- create -------------------------------------------------------------------------------- */

static sd_status check_config(const sd_embed_config *config, const sd_model_config *model) {
    SD_REQUIRE(config->kind >= SD_EMBED_CLASS && config->kind <= SD_EMBED_CLASS_MEAN, SD_ERR_ARGUMENT,
               "kind is %d: it must be one of sd_embed_kind", (int)config->kind);
    SD_REQUIRE(config->blocks >= 1 && config->blocks <= model->depth, SD_ERR_ARGUMENT,
               "blocks is %d: it must be 1 to the model's depth (%d)", (int)config->blocks, (int)model->depth);
    SD_REQUIRE(config->block_norm == 0 || config->block_norm == 1, SD_ERR_ARGUMENT,
               "block_norm is %d: it must be 0 or 1", (int)config->block_norm);
    SD_REQUIRE(config->fit == SD_FIT_CROP || config->fit == SD_FIT_PAD, SD_ERR_ARGUMENT,
               "fit is %d: it must be one of sd_embed_fit", (int)config->fit);
    SD_REQUIRE(config->kind != SD_EMBED_HEAD || model->head_layers > 0, SD_ERR_ARGUMENT,
               "kind is SD_EMBED_HEAD, but the model has no head");
    SD_REQUIRE(config->resize >= 0, SD_ERR_ARGUMENT, "resize is %d: it must not be negative", (int)config->resize);
    SD_REQUIRE(config->crop >= 0 && (config->crop % model->patch_size == 0 || config->fit == SD_FIT_PAD),
               SD_ERR_ARGUMENT, "crop is %d: it must be a multiple of the patch size %d", (int)config->crop,
               (int)model->patch_size);
    sd_status status = sd_precision_check(config->precision);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(config->normalize == 0 || config->normalize == 1, SD_ERR_ARGUMENT, "normalize is %d: it must be 0 or 1",
               (int)config->normalize);
    SD_REQUIRE(config->batch >= 1, SD_ERR_ARGUMENT, "batch is %d: it must be at least 1", (int)config->batch);
    for (int32_t c = 0; c < model->channels; c++) {
        SD_REQUIRE(isfinite(config->mean[c]), SD_ERR_ARGUMENT, "mean of channel %d is %g", (int)c, config->mean[c]);
        SD_REQUIRE(isfinite(config->std[c]) && config->std[c] > 0.0, SD_ERR_ARGUMENT,
                   "std of channel %d is %g: it must be above 0", (int)c, config->std[c]);
    }
    return SD_OK;
}

/* Numbers per image. */
static size_t numbers_of(const sd_embed_config *config, const sd_model_config *model) {
    size_t dim = (size_t)model->dim, classes = (size_t)config->blocks * dim;

    switch (config->kind) {
    case SD_EMBED_HEAD: return (size_t)model->head_dim;
    case SD_EMBED_MEAN: return dim;
    case SD_EMBED_CLASS_MEAN: return classes + dim;
    default: return classes;
    }
}

SD_API sd_status sd_embed_config_preset(sd_embed_config *config, const char *name) {
    static const char *const names[] = {"dino", "dinov2", "simdino", "simdinov2"};
    SD_REQUIRE(config && name, SD_ERR_ARGUMENT, "%s is NULL", config ? "name" : "config");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) {
            sd_embed_config defaults;
            sd_embed_config_init(&defaults);
            config->resize = 256;
            config->crop = 224;
            memcpy(config->mean, defaults.mean, sizeof config->mean);
            memcpy(config->std, defaults.std, sizeof config->std);
            return SD_OK;
        }
    return sd_fail(SD_ERR_ARGUMENT, "preset \"%s\" is unknown: use dino, dinov2, simdino or simdinov2", name);
}

SD_API sd_status sd_embedder_create(sd_context *context, const sd_model *model, const sd_embed_config *config,
                                    sd_embedder **embedder) {
    sd_status status = SD_OK;
    sd_embedder *e = NULL;
    sd_model_config shape = {.size = sizeof(shape)};
    sd_embed_config read;

    SD_REQUIRE(model, SD_ERR_ARGUMENT, "model is NULL");
    SD_REQUIRE(embedder, SD_ERR_ARGUMENT, "embedder is NULL");
    sd_embed_config_init(&read);
    SD_TRY(sd_config_read(&read, sizeof(read), config, "sd_embed_config"));
    SD_TRY(sd_model_get_config(model, &shape));
    SD_TRY(check_config(&read, &shape));
    e = SD_NEW(context, sd_embedder);
    if (!e)
        return SD_ERR_MEMORY;
    e->context = context;
    e->model = model;
    e->config = read;
    e->channels = (size_t)shape.channels;
    e->patch = (size_t)shape.patch_size;
    e->width = (size_t)shape.dim;
    e->registers = (size_t)shape.registers;
    e->depth = (size_t)shape.depth;
    e->dim = numbers_of(&read, &shape);
    e->all_tokens = read.kind >= SD_EMBED_MEAN || (read.kind == SD_EMBED_CLASS && (read.blocks > 1 || !read.block_norm));
    e->scratch_count = sd_threads(context);
    e->items = SD_NEW_ARRAY(context, sd_embed_item, (size_t)read.batch);
    size_t count;
    SD_EXPECT(sd_size_mul((size_t)read.batch, e->dim, &count), SD_ERR_MEMORY, "batch is %d: too large",
              (int)read.batch);
    e->features = SD_NEW_ARRAY(context, float, count);
    e->scratch = SD_NEW_ARRAY(context, sd_embed_buffer, e->scratch_count);
    if (!e->items || !e->features || !e->scratch) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    *embedder = e;
cleanup:
    if (status != SD_OK)
        sd_embedder_destroy(e);
    return status;
}

SD_API void sd_embedder_destroy(sd_embedder *embedder) {
    if (!embedder)
        return;
    sd_context *context = embedder->context;
    for (size_t i = 0; i < SD_EMBEDDER_PLANS; i++)
        sd_activations_destroy(embedder->plans[i].activations);
    for (size_t i = 0; embedder->scratch && i < embedder->scratch_count; i++)
        sd_release(context, embedder->scratch[i].data);
    sd_release(context, embedder->scratch);
    sd_release(context, embedder->pixels.data);
    sd_release(context, embedder->tokens.data);
    sd_release(context, embedder->features);
    sd_release(context, embedder->items);
    sd_release(context, embedder);
}

SD_API size_t sd_embedder_dim(const sd_embedder *embedder) { return embedder ? embedder->dim : 0; }

/* ---- images ---------------------------------------------------------------------------------- */

/* One batch: items hold the images, or the dataset does. */
static sd_status embed_batch(sd_embedder *e, size_t count, float *out, size_t ld) {
    sd_status status = SD_OK;
    size_t values = 0;

    SD_TRY(sd_check_cancel(e->context));
    SD_TRY(sd_embedder_take_items(e, count));
    for (size_t i = 0; i < count; i++) {
        sd_embed_item *it = &e->items[i];
        size_t size;
        it->pixels = values;
        SD_EXPECT(sd_size_mul(it->height, it->width, &size) && sd_size_mul(size, e->channels, &size) &&
                      sd_size_add(values, size, &values),
                  SD_ERR_MEMORY, "a batch of %zu images does not fit into memory", count);
    }
    SD_TRY(sd_embedder_reserve(e->context, &e->pixels, values, sizeof(float)));
    SD_TRY(sd_embedder_prepare_items(e, count));
    sd_embedder_let_go(e, count);
    for (size_t first = 0; first < count;) {
        size_t last = first + 1;
        while (last < count && e->items[last].height == e->items[first].height &&
               e->items[last].width == e->items[first].width)
            last++;
        SD_TRY(sd_embedder_forward(e, first, last - first));
        first = last;
    }
    for (size_t i = 0; i < count; i++) {
        const float *from = e->features + i * e->dim;
        double sum = 0.0;
        for (size_t j = 0; e->config.normalize && j < e->dim; j++)
            sum += (double)from[j] * (double)from[j];
        double scale = sum > 0.0 ? 1.0 / sqrt(sum) : 1.0;
        for (size_t j = 0; j < e->dim; j++)
            out[i * ld + j] = e->config.normalize ? (float)((double)from[j] * scale) : from[j];
    }
cleanup:
    sd_embedder_let_go(e, count);
    return status;
}

static sd_status check_output(const sd_embedder *e, const float *out, size_t ld) {
    SD_REQUIRE(out, SD_ERR_ARGUMENT, "out is NULL");
    SD_REQUIRE(ld >= e->dim, SD_ERR_ARGUMENT, "ld is %zu: it must be at least %zu", ld, e->dim);
    return SD_OK;
}

SD_API sd_status sd_embed_images(sd_embedder *embedder, const sd_image *images, size_t count, float *out, size_t ld) {
    SD_REQUIRE(embedder, SD_ERR_ARGUMENT, "embedder is NULL");
    SD_REQUIRE(images || count == 0, SD_ERR_ARGUMENT, "images is NULL");
    sd_embedder *e = embedder;
    sd_status status = check_output(e, out, ld);
    size_t batch = (size_t)e->config.batch;

    e->dataset = NULL;
    for (size_t done = 0; status == SD_OK && done < count; done += batch) {
        size_t part = sd_size_min(batch, count - done);
        e->first = done;
        for (size_t i = 0; i < part; i++)
            e->items[i] = (sd_embed_item){.image = images[done + i]};
        status = embed_batch(e, part, out + done * ld, ld);
    }
    return status;
}

/* ---- all tokens of one image --------------------------------------------------------------- */

SD_API sd_status sd_embed_grid(const sd_embedder *e, const sd_image *image, size_t *rows, size_t *columns) {
    SD_REQUIRE(e && image, SD_ERR_ARGUMENT, "%s is NULL", e ? "image" : "embedder");
    sd_embed_item it = {.image = *image};
    sd_status status = sd_embedder_measure(e, &it);
    if (status != SD_OK)
        return status;
    if (rows)
        *rows = it.height / e->patch;
    if (columns)
        *columns = it.width / e->patch;
    return SD_OK;
}

SD_API void sd_token_outputs_init(sd_token_outputs *outputs) {
    if (outputs)
        *outputs = (sd_token_outputs){.size = sizeof(*outputs)};
}

SD_API sd_status sd_embed_tokens(sd_embedder *e, const sd_image *image, const sd_token_outputs *source) {
    SD_REQUIRE(e && image, SD_ERR_ARGUMENT, "%s is NULL", e ? "image" : "embedder");
    sd_token_outputs wanted;
    sd_token_outputs_init(&wanted);
    sd_status status = sd_config_read(&wanted, sizeof wanted, source, "sd_token_outputs");
    if (status != SD_OK)
        return status;
    sd_embed_item *it = &e->items[0];
    *it = (sd_embed_item){.image = *image};
    e->dataset = NULL;
    e->first = 0;
    SD_TRY(sd_embedder_measure(e, it));
    size_t tokens = sd_embedder_tokens(e, it), n = (size_t)e->config.blocks, d = e->width, values;
    SD_EXPECT(sd_size_mul(it->height * it->width, e->channels, &values), SD_ERR_MEMORY, "the image is too large");
    SD_TRY(sd_embedder_reserve(e->context, &e->pixels, values, sizeof(float)));
    SD_TRY(sd_embedder_prepare(e, it, 0));
    SD_EXPECT(sd_size_mul(tokens, n * d, &values), SD_ERR_MEMORY, "the image is too large");
    SD_TRY(sd_embedder_reserve(e->context, &e->tokens, values, sizeof(float)));
    const sd_image_group group = {.pixels = e->pixels.data, .count = 1, .height = it->height, .width = it->width};
    int32_t numbers[SD_EMBEDDER_BLOCKS_MAX];
    sd_activations *activations = NULL;
    sd_forward_options options;
    sd_forward_outputs outputs;
    sd_embedder_last_blocks(e, numbers);
    SD_TRY(sd_embedder_plan(e, it->height, it->width, 1, true, &activations));
    sd_forward_options_init(&options);
    sd_forward_outputs_init(&outputs);
    options.head = 0;
    outputs.blocks = numbers;
    outputs.block_count = n;
    outputs.block_norm = e->config.block_norm;
    outputs.block_tokens = e->tokens.data;
    outputs.attention = wanted.attention;
    outputs.attention_block = wanted.attention_block;
    SD_TRY(sd_model_forward(e->model, activations, &group, 1, &options, &outputs));
    size_t patches = tokens - 1 - e->registers;
    for (size_t b = 0; b < n; b++) {
        const float *block = (const float *)e->tokens.data + b * tokens * d;
        if (wanted.class_tokens)
            memcpy(wanted.class_tokens + b * d, block, d * sizeof *block);
        if (wanted.register_tokens)
            memcpy(wanted.register_tokens + b * e->registers * d, block + d, e->registers * d * sizeof *block);
        if (wanted.patch_tokens)
            memcpy(wanted.patch_tokens + b * patches * d, block + (1 + e->registers) * d, patches * d * sizeof *block);
    }
cleanup:
    return status;
}

SD_API sd_status sd_embed_dataset(sd_embedder *embedder, const sd_dataset *dataset, uint64_t first, uint64_t count,
                                  float *out, size_t ld) {
    SD_REQUIRE(embedder, SD_ERR_ARGUMENT, "embedder is NULL");
    SD_REQUIRE(dataset, SD_ERR_ARGUMENT, "dataset is NULL");
    sd_embedder *e = embedder;
    sd_status status = check_output(e, out, ld);
    uint64_t images = sd_dataset_count(dataset), batch = (uint64_t)e->config.batch;

    if (status != SD_OK)
        return status;
    SD_REQUIRE(first <= images && count <= images - first, SD_ERR_ARGUMENT,
               "images %llu to %llu were asked for: the dataset has %llu", (unsigned long long)first,
               (unsigned long long)(first + count), (unsigned long long)images);
    e->dataset = dataset;
    for (uint64_t done = 0; status == SD_OK && done < count;) {
        size_t part = (size_t)(count - done < batch ? count - done : batch);
        e->first = first + done;
        for (size_t i = 0; i < part; i++)
            e->items[i] = (sd_embed_item){0};
        status = embed_batch(e, part, out + (size_t)done * ld, ld);
        done += part;
        if (status == SD_OK)
            sd_progress(e->context, "embed", done, count);
    }
    e->dataset = NULL;
    return status;
}
