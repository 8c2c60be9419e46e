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
    size_t channels, patch, dim;
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
    *config = (sd_embed_config){.size = sizeof(*config), .kind = SD_EMBED_CLASS, .batch = 64};
    for (size_t c = 0; c < SD_MAX_CHANNELS; c++) {
        config->mean[c] = c < 3 ? mean[c] : 0.5;
        config->std[c] = c < 3 ? deviation[c] : 0.5;
    }
}

/* ---- create -------------------------------------------------------------------------------- */

static sd_status check_config(const sd_embed_config *config, const sd_model_config *model) {
    SD_REQUIRE(config->kind == SD_EMBED_CLASS || config->kind == SD_EMBED_HEAD, SD_ERR_ARGUMENT,
               "kind is %d: it must be SD_EMBED_CLASS or SD_EMBED_HEAD", (int)config->kind);
    SD_REQUIRE(config->kind != SD_EMBED_HEAD || model->head_layers > 0, SD_ERR_ARGUMENT,
               "kind is SD_EMBED_HEAD, but the model has no head");
    SD_REQUIRE(config->resize >= 0, SD_ERR_ARGUMENT, "resize is %d: it must not be negative", (int)config->resize);
    SD_REQUIRE(config->crop >= 0 && config->crop % model->patch_size == 0, SD_ERR_ARGUMENT,
               "crop is %d: it must be a multiple of the patch size %d", (int)config->crop, (int)model->patch_size);
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
    e->dim = (size_t)(read.kind == SD_EMBED_HEAD ? shape.head_dim : shape.dim);
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
    it->width = width / e->patch * e->patch;
    it->height = height / e->patch * e->patch;
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
    size_t left = center(width, it->width), top = center(height, it->height);
    if (e->config.resize == 0) { /* nothing is resampled: the part is a view of its own */
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
    for (size_t c = 0; c < e->channels; c++)
        for (size_t y = 0; y < it->height; y++)
            memcpy(tensor + (c * it->height + y) * it->width,
                   (const float *)scratch->data + (c * height + top + y) * width + left, it->width * sizeof(float));
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
static sd_status find_plan(sd_embedder *e, size_t height, size_t width, size_t count, sd_activations **activations) {
    plan *place = &e->plans[0];

    for (size_t i = 0; i < PLANS; i++) {
        plan *p = &e->plans[i];
        if (p->activations && p->height == height && p->width == width) {
            place = p;
            break;
        }
        if (place->activations && (!p->activations || p->used < place->used))
            place = p;
    }
    if (!place->activations || place->height != height || place->width != width || place->count < count) {
        const sd_image_group shape = {.count = count, .height = height, .width = width};
        sd_activations *made = NULL;
        sd_activations_destroy(place->activations); /* first, so that both need not fit */
        *place = (plan){0};
        sd_status status = sd_activations_create(e->model, &shape, 1, SD_ACTIVATIONS_INFERENCE, 0, &made);
        if (status != SD_OK)
            return status;
        *place = (plan){.activations = made, .height = height, .width = width, .count = count};
    }
    place->used = ++e->clock;
    *activations = place->activations;
    return SD_OK;
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
    sd_status status = find_plan(e, it->height, it->width, count, &activations);

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
