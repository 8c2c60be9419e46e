/* Features of images: prepare a batch in parallel, group what has the same size, run the network forward. */
#include "base/base.h"
#include "math/math.h"

#include <simdino/embed.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Image sizes whose activations are kept, so that two or three sizes in turn do not plan anew each time. */
#define PLANS 4

typedef struct plan {
    sd_activations *activations; /* NULL: unused */
    size_t height, width, count; /* planned for so many images of that size */
    bool all_tokens;
    uint64_t used;               /* when it was last used */
} plan;

/* One image of the present batch. */
typedef struct item {
    sd_image image;
    void *token;         /* of the dataset */
    bool acquired;
    size_t height, width; /* as the network sees it */
    size_t pixels;       /* where its tensor begins in `pixels` */
    sd_status status;
} item;

/* Grow-only memory. */
typedef struct buffer {
    void *data;
    size_t bytes;
} buffer;

struct sd_embedder {
    sd_context *context;
    const sd_model *model;
    sd_embed_config config;
    size_t channels, patch, dim, width, registers, depth;
    bool all_tokens;   /* the features need more than the last class token */
    buffer tokens;     /* blocks x tokens of some images */
    plan plans[PLANS];
    uint64_t clock;
    item *items;       /* config.batch */
    float *features;   /* config.batch x dim */
    buffer pixels;
    buffer *scratch;   /* one per thread: an image before it is cropped to whole patches */
    size_t scratch_count;

    /* the batch that runs */
    const sd_dataset *dataset;
    uint64_t first;
};

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
    e->items = SD_NEW_ARRAY(context, item, (size_t)read.batch);
    size_t count;
    SD_EXPECT(sd_size_mul((size_t)read.batch, e->dim, &count), SD_ERR_MEMORY, "batch is %d: too large",
              (int)read.batch);
    e->features = SD_NEW_ARRAY(context, float, count);
    e->scratch = SD_NEW_ARRAY(context, buffer, e->scratch_count);
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
    for (size_t i = 0; i < PLANS; i++)
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

/* ---- preparing images ---------------------------------------------------------------------- */

static sd_status reserve(sd_context *context, buffer *b, size_t count, size_t size) {
    size_t bytes;

    SD_REQUIRE(sd_size_mul(count, size, &bytes), SD_ERR_MEMORY, "%zu values do not fit into memory", count);
    if (bytes <= b->bytes)
        return SD_OK;
    void *larger = sd_allocate(context, bytes, 1);
    if (!larger)
        return SD_ERR_MEMORY;
    sd_release(context, b->data);
    *b = (buffer){.data = larger, .bytes = bytes};
    return SD_OK;
}

/* Checks an image and tells its size as the network will see it. */
static sd_status measure(const sd_embedder *e, item *it) {
    size_t width, height, resize = (size_t)e->config.resize, crop = (size_t)e->config.crop;
    sd_status status = sd_image_prepare(&it->image, resize, crop, e->config.mean, e->config.std, NULL, &width, &height);

    if (status != SD_OK)
        return status;
    size_t channels = (size_t)it->image.channels;
    SD_REQUIRE(channels == e->channels || (channels == 1 && e->channels == 3), SD_ERR_MISMATCH,
               "it has %zu channels, the model %zu", channels, e->channels);
    size_t more = e->config.fit == SD_FIT_PAD ? e->patch - 1 : 0;
    it->width = (width + more) / e->patch * e->patch;
    it->height = (height + more) / e->patch * e->patch;
    SD_REQUIRE(it->width > 0 && it->height > 0, SD_ERR_ARGUMENT, "%zu x %zu pixels are less than a patch of %zu", width,
               height, e->patch);
    return SD_OK;
}

/* The planes of one image; a grey one gives three, each with its channel's mean and deviation. */
static sd_status prepare_planes(const sd_embedder *e, const sd_image *image, float *tensor, size_t plane) {
    size_t resize = (size_t)e->config.resize, crop = (size_t)e->config.crop;

    if ((size_t)image->channels == e->channels)
        return sd_image_prepare(image, resize, crop, e->config.mean, e->config.std, tensor, NULL, NULL);
    for (size_t c = 0; c < e->channels; c++) {
        sd_status status = sd_image_prepare(image, resize, crop, e->config.mean + c, e->config.std + c,
                                            tensor + c * plane, NULL, NULL);
        if (status != SD_OK)
            return status;
    }
    return SD_OK;
}

/* Where the centre `part` of `whole` begins: half of the rest, rounded half to even as torchvision does. */
static size_t center(size_t whole, size_t part) {
    size_t rest = whole - part, half = rest / 2;

    return half + (rest % 2 == 1 && half % 2 == 1);
}

/* The tensor of one image into its place: resized, cropped to whole patches, normalised. */
static sd_status prepare(sd_embedder *e, const item *it, size_t thread) {
    float *tensor = (float *)e->pixels.data + it->pixels;
    sd_image view = it->image;
    size_t width, height;
    sd_status status = sd_image_prepare(&it->image, (size_t)e->config.resize, (size_t)e->config.crop, e->config.mean,
                                        e->config.std, NULL, &width, &height);

    if (status != SD_OK)
        return status;
    if (width == it->width && height == it->height)
        return prepare_planes(e, &view, tensor, width * height);
    bool pads = e->config.fit == SD_FIT_PAD;
    size_t left = pads ? (it->width - width) / 2 : center(width, it->width);
    size_t top = pads ? (it->height - height) / 2 : center(height, it->height);
    if (!pads && e->config.resize == 0) { /* nothing is resampled: the part is a view of its own */
        size_t pixel = (size_t)view.channels * (view.pixel_type == SD_PIXEL_U8 ? 1 : sizeof(float));
        view.row_stride = view.row_stride ? view.row_stride : view.width * pixel;
        view.pixels = (const char *)view.pixels + top * view.row_stride + left * pixel;
        view.width = it->width;
        view.height = it->height;
        return prepare_planes(e, &view, tensor, it->width * it->height);
    }
    buffer *scratch = &e->scratch[thread];
    size_t plane;
    SD_REQUIRE(sd_size_mul(width, height, &plane), SD_ERR_MEMORY, "%zu x %zu pixels do not fit into memory", width,
               height);
    SD_REQUIRE(sd_size_mul(plane, e->channels, &plane), SD_ERR_MEMORY, "%zu x %zu pixels do not fit into memory", width,
               height);
    status = reserve(e->context, scratch, plane, sizeof(float));
    if (status == SD_OK)
        status = prepare_planes(e, &view, scratch->data, width * height);
    if (status != SD_OK)
        return status;
    const float *planes = scratch->data;
    if (pads)
        memset(tensor, 0, e->channels * it->height * it->width * sizeof *tensor);
    for (size_t c = 0; c < e->channels; c++)
        for (size_t y = 0; y < (pads ? height : it->height); y++) {
            float *row = tensor + (c * it->height + y) * it->width;
            if (pads)
                memcpy(row + top * it->width + left, planes + (c * height + y) * width, width * sizeof *row);
            else
                memcpy(row, planes + (c * height + top + y) * width + left, it->width * sizeof *row);
        }
    return SD_OK;
}

static sd_status take(sd_embedder *e, size_t index) {
    item *it = &e->items[index];

    if (e->dataset) {
        sd_status status = sd_dataset_acquire(e->dataset, e->first + index, &it->image, &it->token);
        if (status != SD_OK)
            return status;
        it->acquired = true;
    }
    return measure(e, it);
}

static void take_task(void *work, size_t index, size_t thread) {
    sd_embedder *e = work;

    (void)thread;
    e->items[index].status = take(e, index);
}

static void prepare_task(void *work, size_t index, size_t thread) {
    sd_embedder *e = work;

    e->items[index].status = prepare(e, &e->items[index], thread);
}

static void let_go(sd_embedder *e, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (e->items[i].acquired)
            sd_dataset_release(e->dataset, e->first + i, e->items[i].token);
        e->items[i].acquired = false;
    }
}

/* The first failure among the items, if any. Messages belong to the thread that met them, so the step is done again
 * here. */
static sd_status first_failure(sd_embedder *e, size_t count, bool taking) {
    for (size_t i = 0; i < count; i++) {
        item *it = &e->items[i];
        char reason[400];

        if (it->status == SD_OK)
            continue;
        sd_status again = !taking ? prepare(e, it, 0) : it->acquired ? measure(e, it) : take(e, i);
        snprintf(reason, sizeof(reason), "%s", again == SD_OK ? "it failed once, but not again" : sd_last_error());
        if (again != SD_OK && it->status == SD_ERR_IO)
            return sd_fail(it->status, "%s", reason); /* the dataset names the image */
        return sd_fail(it->status, "image %llu: %s", (unsigned long long)(e->first + i), reason);
    }
    return SD_OK;
}

/* ---- the network --------------------------------------------------------------------------- */

/* Activations for `count` images of one size: kept ones that are large enough, else new ones in the place used longest
 * ago. */
static sd_status find_plan(sd_embedder *e, size_t height, size_t width, size_t count, bool all_tokens,
                           sd_activations **activations) {
    plan *place = &e->plans[0];

    for (size_t i = 0; i < PLANS; i++) {
        plan *p = &e->plans[i];
        if (p->activations && p->height == height && p->width == width && p->all_tokens == all_tokens) {
            place = p;
            break;
        }
        if (place->activations && (!p->activations || p->used < place->used))
            place = p;
    }
    if (!place->activations || place->height != height || place->width != width || place->all_tokens != all_tokens ||
        place->count < count) {
        const sd_image_group shape = {.count = count, .height = height, .width = width};
        sd_activations *made = NULL;
        sd_activations_destroy(place->activations); /* first, so that both need not fit */
        *place = (plan){0};
        sd_activations_config config;
        sd_activations_config_init(&config);
        config.mode = SD_ACTIVATIONS_INFERENCE;
        config.all_tokens = all_tokens;
        config.precision = e->config.precision;
        sd_status status = sd_activations_create_with(e->model, &shape, 1, &config, &made);
        if (status != SD_OK)
            return status;
        *place = (plan){
            .activations = made, .height = height, .width = width, .count = count, .all_tokens = all_tokens};
    }
    place->used = ++e->clock;
    *activations = place->activations;
    return SD_OK;
}

static size_t tokens_of(const sd_embedder *e, const item *it) {
    return 1 + e->registers + (it->height / e->patch) * (it->width / e->patch);
}

/* Fills `numbers` with the last blocks of the network. */
#define BLOCKS_MAX 1024
static void last_blocks(const sd_embedder *e, int32_t numbers[BLOCKS_MAX]) {
    for (int32_t i = 0; i < e->config.blocks; i++)
        numbers[i] = (int32_t)e->depth - e->config.blocks + i;
}

/* Class tokens of blocks and the mean of patches, out of the tokens of the last blocks (block after block, image after
 * image) and those after the final norm. */
static void pool(const sd_embedder *e, size_t tokens, size_t count, const float *blocks, const float *normal,
                 float *features) {
    size_t d = e->width, extra = 1 + e->registers, n = (size_t)e->config.blocks;

    for (size_t i = 0; i < count; i++, features += e->dim) {
        float *mean = features;
        if (e->config.kind != SD_EMBED_MEAN) {
            for (size_t b = 0; b < n; b++)
                memcpy(features + b * d, blocks + (b * count + i) * tokens * d, d * sizeof *features);
            mean += n * d;
        }
        if (e->config.kind == SD_EMBED_CLASS)
            continue;
        for (size_t j = 0; j < d; j++) {
            double sum = 0.0;
            for (size_t t = extra; t < tokens; t++)
                sum += (double)normal[(i * tokens + t) * d + j];
            mean[j] = (float)(sum / (double)(tokens - extra));
        }
    }
}

/* Images whose tokens are kept together: up to 64 MiB of them. */
#define TOKEN_BYTES ((size_t)64 << 20)

static sd_status forward_tokens(sd_embedder *e, size_t first, size_t count) {
    const item *it = &e->items[first];
    size_t tokens = tokens_of(e, it), n = (size_t)e->config.blocks, d = e->width;
    size_t most = sd_size_max(TOKEN_BYTES / ((n + 1) * tokens * d * sizeof(float)), 1), values;
    int32_t numbers[BLOCKS_MAX];
    sd_status status = SD_OK;

    last_blocks(e, numbers);
    for (size_t done = 0; done < count; done += most) {
        size_t part = sd_size_min(most, count - done);
        const sd_image_group group = {.pixels = (const float *)e->pixels.data + e->items[first + done].pixels,
                                      .count = part, .height = it->height, .width = it->width};
        sd_activations *activations = NULL;
        sd_forward_options options;
        sd_forward_outputs outputs;
        SD_TRY(find_plan(e, it->height, it->width, part, true, &activations));
        SD_EXPECT(sd_size_mul(part * tokens, (n + 1) * d, &values), SD_ERR_MEMORY,
                  "the tokens of %zu images do not fit into memory", part);
        SD_TRY(reserve(e->context, &e->tokens, values, sizeof(float)));
        float *blocks = e->tokens.data, *normal = blocks + n * part * tokens * d;
        sd_forward_options_init(&options);
        sd_forward_outputs_init(&outputs);
        options.head = 0;
        outputs.blocks = numbers;
        outputs.block_count = n;
        outputs.block_norm = e->config.block_norm;
        outputs.block_tokens = e->config.kind == SD_EMBED_MEAN ? NULL : blocks;
        outputs.tokens_norm = e->config.kind == SD_EMBED_CLASS ? NULL : normal;
        SD_TRY(sd_model_forward(e->model, activations, &group, 1, &options, &outputs));
        pool(e, tokens, part, blocks, normal, e->features + (first + done) * e->dim);
    }
cleanup:
    return status;
}

/* Features of items first .. first+count-1, which have one size. */
static sd_status forward(sd_embedder *e, size_t first, size_t count) {
    const item *it = &e->items[first];
    const sd_image_group group = {.pixels = (const float *)e->pixels.data + it->pixels,
                                  .count = count,
                                  .height = it->height,
                                  .width = it->width};
    sd_activations *activations = NULL;
    sd_forward_options options;
    sd_forward_outputs outputs;
    sd_status status = SD_OK;

    if (e->all_tokens)
        return forward_tokens(e, first, count);
    status = find_plan(e, it->height, it->width, count, false, &activations);
    if (status != SD_OK)
        return status;
    sd_forward_options_init(&options);
    sd_forward_outputs_init(&outputs);
    options.head = e->config.kind == SD_EMBED_HEAD;
    if (e->config.kind == SD_EMBED_HEAD)
        outputs.features = e->features + first * e->dim;
    else
        outputs.class_tokens = e->features + first * e->dim;
    return sd_model_forward(e->model, activations, &group, 1, &options, &outputs);
}

/* One batch: items hold the images, or the dataset does. */
static sd_status embed_batch(sd_embedder *e, size_t count, float *out, size_t ld) {
    sd_status status = SD_OK;
    size_t values = 0;

    SD_TRY(sd_check_cancel(e->context));
    SD_TRY(sd_run(e->context, take_task, e, count));
    SD_TRY(first_failure(e, count, true));
    for (size_t i = 0; i < count; i++) {
        item *it = &e->items[i];
        size_t size;
        it->pixels = values;
        SD_EXPECT(sd_size_mul(it->height, it->width, &size) && sd_size_mul(size, e->channels, &size) &&
                      sd_size_add(values, size, &values),
                  SD_ERR_MEMORY, "a batch of %zu images does not fit into memory", count);
    }
    SD_TRY(reserve(e->context, &e->pixels, values, sizeof(float)));
    SD_TRY(sd_run(e->context, prepare_task, e, count));
    SD_TRY(first_failure(e, count, false));
    let_go(e, count);
    for (size_t first = 0; first < count;) {
        size_t last = first + 1;
        while (last < count && e->items[last].height == e->items[first].height &&
               e->items[last].width == e->items[first].width)
            last++;
        SD_TRY(forward(e, first, last - first));
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
    let_go(e, count);
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
            e->items[i] = (item){.image = images[done + i]};
        status = embed_batch(e, part, out + done * ld, ld);
    }
    return status;
}

/* ---- all tokens of one image --------------------------------------------------------------- */

SD_API sd_status sd_embed_grid(const sd_embedder *e, const sd_image *image, size_t *rows, size_t *columns) {
    SD_REQUIRE(e && image, SD_ERR_ARGUMENT, "%s is NULL", e ? "image" : "embedder");
    item it = {.image = *image};
    sd_status status = measure(e, &it);
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
    item *it = &e->items[0];
    *it = (item){.image = *image};
    e->dataset = NULL;
    e->first = 0;
    SD_TRY(measure(e, it));
    size_t tokens = tokens_of(e, it), n = (size_t)e->config.blocks, d = e->width, values;
    SD_EXPECT(sd_size_mul(it->height * it->width, e->channels, &values), SD_ERR_MEMORY, "the image is too large");
    SD_TRY(reserve(e->context, &e->pixels, values, sizeof(float)));
    SD_TRY(prepare(e, it, 0));
    SD_EXPECT(sd_size_mul(tokens, n * d, &values), SD_ERR_MEMORY, "the image is too large");
    SD_TRY(reserve(e->context, &e->tokens, values, sizeof(float)));
    const sd_image_group group = {.pixels = e->pixels.data, .count = 1, .height = it->height, .width = it->width};
    int32_t numbers[BLOCKS_MAX];
    sd_activations *activations = NULL;
    sd_forward_options options;
    sd_forward_outputs outputs;
    last_blocks(e, numbers);
    SD_TRY(find_plan(e, it->height, it->width, 1, true, &activations));
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
            e->items[i] = (item){0};
        status = embed_batch(e, part, out + (size_t)done * ld, ld);
        done += part;
        if (status == SD_OK)
            sd_progress(e->context, "embed", done, count);
    }
    e->dataset = NULL;
    return status;
}
