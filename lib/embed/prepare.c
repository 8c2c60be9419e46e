/* From images to tensors: measured, resized, cropped or padded to whole patches, normalised; a batch in parallel. */
#include "embed/embedder.h"

#include <stdio.h>
#include <string.h>

sd_status sd_embedder_reserve(sd_context *context, sd_embed_buffer *b, size_t count, size_t size) {
    size_t bytes;

    SD_REQUIRE(sd_size_mul(count, size, &bytes), SD_ERR_MEMORY, "%zu values do not fit into memory", count);
    if (bytes <= b->bytes)
        return SD_OK;
    void *larger = sd_allocate(context, bytes, 1);
    if (!larger)
        return SD_ERR_MEMORY;
    sd_release(context, b->data);
    *b = (sd_embed_buffer){.data = larger, .bytes = bytes};
    return SD_OK;
}

sd_status sd_embedder_measure(const sd_embedder *e, sd_embed_item *it) {
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

sd_status sd_embedder_prepare(sd_embedder *e, const sd_embed_item *it, size_t thread) {
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
    sd_embed_buffer *scratch = &e->scratch[thread];
    size_t plane;
    SD_REQUIRE(sd_size_mul(width, height, &plane), SD_ERR_MEMORY, "%zu x %zu pixels do not fit into memory", width,
               height);
    SD_REQUIRE(sd_size_mul(plane, e->channels, &plane), SD_ERR_MEMORY, "%zu x %zu pixels do not fit into memory", width,
               height);
    status = sd_embedder_reserve(e->context, scratch, plane, sizeof(float));
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
    sd_embed_item *it = &e->items[index];

    if (e->dataset) {
        sd_status status = sd_dataset_acquire(e->dataset, e->first + index, &it->image, &it->token);
        if (status != SD_OK)
            return status;
        it->acquired = true;
    }
    return sd_embedder_measure(e, it);
}

static void take_task(void *work, size_t index, size_t thread) {
    sd_embedder *e = work;

    (void)thread;
    e->items[index].status = take(e, index);
}

static void prepare_task(void *work, size_t index, size_t thread) {
    sd_embedder *e = work;

    e->items[index].status = sd_embedder_prepare(e, &e->items[index], thread);
}

void sd_embedder_let_go(sd_embedder *e, size_t count) {
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
        sd_embed_item *it = &e->items[i];
        char reason[400];

        if (it->status == SD_OK)
            continue;
        sd_status again = !taking        ? sd_embedder_prepare(e, it, 0)
                          : it->acquired ? sd_embedder_measure(e, it)
                                         : take(e, i);
        snprintf(reason, sizeof(reason), "%s", again == SD_OK ? "it failed once, but not again" : sd_last_error());
        if (again != SD_OK && it->status == SD_ERR_IO)
            return sd_fail(it->status, "%s", reason); /* the dataset names the image */
        return sd_fail(it->status, "image %llu: %s", (unsigned long long)(e->first + i), reason);
    }
    return SD_OK;
}

sd_status sd_embedder_take_items(sd_embedder *e, size_t count) {
    sd_status status = sd_run(e->context, take_task, e, count);
    return status != SD_OK ? status : first_failure(e, count, true);
}

sd_status sd_embedder_prepare_items(sd_embedder *e, size_t count) {
    sd_status status = sd_run(e->context, prepare_task, e, count);
    return status != SD_OK ? status : first_failure(e, count, false);
}
