/* Batches of augmented crops: which images make up batch b, and their augmentation on the context's threads.
 *
 * Everything about batch b is a function of the seed and b: the order of an epoch comes from the stream (seed, epoch),
 * the crops of an image from (seed, epoch * count + image, view). So threads, seeks and prefetching cannot change it.
 *
 * There are two buffers: one holds the batch that was given last, the other takes the next. */
#include "data/loader.h"
#include "data/dataset.h"
#include "image/image.h"

#include <stdio.h>
#include <string.h>

#define MESSAGE_MAX 256

/* The first failure in the order of samples, so that what is reported does not depend on threads. */
typedef struct sd_load_error {
    sd_status status;
    size_t sample;
    char message[MESSAGE_MAX];
} sd_load_error;

typedef struct sd_load_buffer {
    float *globals, *locals;
    uint64_t batch;
    bool ready; /* holds `batch`, or the error that it met */
    sd_load_error error;
} sd_load_buffer;

typedef struct sd_load_thread {
    sd_augmenter *augmenter;
    sd_load_error error;
} sd_load_thread;

struct sd_loader {
    sd_context *context;
    const sd_dataset *dataset;
    sd_augment_config augment;
    sd_loader_config config;
    uint64_t count, batches_per_epoch;
    size_t global_values, local_values; /* of one crop */
    uint64_t position;
    sd_load_buffer buffer[2];
    size_t given;    /* the buffer that was given last */
    uint32_t *order; /* of order_epoch; NULL: not shuffled */
    uint64_t order_epoch;
    bool order_known;
    sd_load_thread *thread;
    size_t threads;
    size_t buffer_bytes;
};

SD_API void sd_loader_config_init(sd_loader_config *config) {
    if (config != NULL)
        *config = (sd_loader_config){.size = sizeof *config, .batch_size = 64, .shuffle = 1, .channels = 3};
}

static sd_status allocate_buffers(sd_loader *loader) {
    const sd_augment_config *augment = &loader->augment;
    size_t channels = (size_t)loader->config.channels, samples = loader->config.batch_size, globals, locals, bytes;
    size_t global_side = (size_t)augment->global_size, local_side = (size_t)augment->local_size;
    loader->global_values = channels * global_side * global_side;
    loader->local_values = augment->local_crops > 0 ? channels * local_side * local_side : 0;
    SD_REQUIRE(sd_size_mul(samples, 2 * loader->global_values, &globals) &&
                   sd_size_mul(samples, (size_t)augment->local_crops * loader->local_values, &locals) &&
                   sd_size_add(globals, locals, &bytes) && sd_size_mul(bytes, 2 * sizeof(float), &loader->buffer_bytes),
               SD_ERR_MEMORY, "the crops of %zu images do not fit into the address space", samples);
    for (size_t i = 0; i < 2; i++) {
        loader->buffer[i].globals = SD_NEW_ARRAY(loader->context, float, globals);
        if (loader->buffer[i].globals == NULL)
            return SD_ERR_MEMORY;
        if (locals == 0)
            continue;
        loader->buffer[i].locals = SD_NEW_ARRAY(loader->context, float, locals);
        if (loader->buffer[i].locals == NULL)
            return SD_ERR_MEMORY;
    }
    return SD_OK;
}

/* Where the images are known beforehand, so is the working space: then no batch allocates. */
static sd_status reserve_threads(sd_loader *loader) {
    const sd_dataset *dataset = loader->dataset;
    for (int32_t type = SD_PIXEL_U8; type <= SD_PIXEL_F32; type++) {
        size_t width = 0, height = 0, channels = 0;
        for (uint64_t i = 0; dataset->images != NULL && i < dataset->count; i++)
            if (dataset->images[i].pixel_type == type) {
                width = sd_size_max(width, dataset->images[i].width);
                height = sd_size_max(height, dataset->images[i].height);
                channels = sd_size_max(channels, (size_t)dataset->images[i].channels);
            }
        if (dataset->pixels != NULL && type == SD_PIXEL_U8) {
            width = dataset->width;
            height = dataset->height;
            channels = (size_t)dataset->channels;
        }
        for (size_t i = 0; width > 0 && i < loader->threads; i++) {
            sd_status status = sd_augmenter_reserve(loader->thread[i].augmenter, type, channels, width, height);
            if (status != SD_OK)
                return status;
        }
    }
    return SD_OK;
}

SD_API sd_status sd_loader_create(sd_context *context, const sd_dataset *dataset, const sd_augment_config *augment,
                                  const sd_loader_config *config, sd_loader **out) {
    sd_status status = SD_OK;
    sd_loader *loader = NULL;
    sd_loader_config full;
    sd_augment_config recipe;
    SD_EXPECT(out != NULL, SD_ERR_ARGUMENT, "loader is NULL");
    SD_EXPECT(dataset != NULL, SD_ERR_ARGUMENT, "dataset is NULL");
    sd_augment_config_init(&recipe);
    SD_TRY(sd_config_read(&recipe, sizeof recipe, augment, "sd_augment_config"));
    SD_TRY(sd_augment_config_check(&recipe));
    sd_loader_config_init(&full);
    SD_TRY(sd_config_read(&full, sizeof full, config, "sd_loader_config"));
    uint64_t count = sd_dataset_count(dataset);
    SD_EXPECT(full.batch_size > 0, SD_ERR_ARGUMENT, "batch_size is 0: it must be at least 1");
    SD_EXPECT(full.batch_size <= count, SD_ERR_ARGUMENT, "batch_size is %zu: the dataset has only %llu images",
              full.batch_size, (unsigned long long)count);
    SD_EXPECT(full.channels >= 1 && full.channels <= SD_MAX_CHANNELS, SD_ERR_ARGUMENT,
              "channels is %d: it must be in 1 .. %d", full.channels, SD_MAX_CHANNELS);
    SD_EXPECT(!full.shuffle || count <= UINT32_MAX, SD_ERR_ARGUMENT,
              "shuffle is possible for up to %u images, not %llu", UINT32_MAX, (unsigned long long)count);

    loader = SD_NEW(context, sd_loader);
    if (loader == NULL)
        return SD_ERR_MEMORY;
    loader->context = context;
    loader->dataset = dataset;
    loader->augment = recipe;
    loader->config = full;
    loader->count = count;
    loader->batches_per_epoch = count / full.batch_size;
    SD_TRY(allocate_buffers(loader));
    if (full.shuffle) {
        loader->order = SD_NEW_ARRAY(context, uint32_t, (size_t)count);
        SD_EXPECT(loader->order != NULL, SD_ERR_MEMORY, "no memory for the order of %llu images",
                  (unsigned long long)count);
    }
    loader->threads = sd_threads(context);
    loader->thread = SD_NEW_ARRAY(context, sd_load_thread, loader->threads);
    SD_EXPECT(loader->thread != NULL, SD_ERR_MEMORY, "no memory for %zu threads", loader->threads);
    for (size_t i = 0; i < loader->threads; i++)
        SD_TRY(sd_augmenter_create(context, &recipe, &loader->thread[i].augmenter));
    SD_TRY(reserve_threads(loader));
    *out = loader;
    loader = NULL;
cleanup:
    sd_loader_destroy(loader);
    return status;
}

SD_API void sd_loader_destroy(sd_loader *loader) {
    if (loader == NULL)
        return;
    for (size_t i = 0; loader->thread != NULL && i < loader->threads; i++)
        sd_augmenter_destroy(loader->thread[i].augmenter);
    sd_release(loader->context, loader->thread);
    sd_release(loader->context, loader->order);
    for (size_t i = 0; i < 2; i++) {
        sd_release(loader->context, loader->buffer[i].globals);
        sd_release(loader->context, loader->buffer[i].locals);
    }
    sd_release(loader->context, loader);
}

SD_API uint64_t sd_loader_batches_per_epoch(const sd_loader *loader) {
    return loader != NULL ? loader->batches_per_epoch : 0;
}

SD_API void sd_loader_seek(sd_loader *loader, uint64_t batch) {
    if (loader != NULL)
        loader->position = batch;
}

SD_API uint64_t sd_loader_position(const sd_loader *loader) { return loader != NULL ? loader->position : 0; }

const sd_augment_config *sd_loader_augment_config(const sd_loader *loader) { return &loader->augment; }

size_t sd_loader_batch_size(const sd_loader *loader) { return loader->config.batch_size; }

size_t sd_loader_memory(const sd_loader *loader) {
    size_t bytes = sizeof *loader + loader->buffer_bytes + loader->threads * sizeof *loader->thread;
    if (loader->order != NULL)
        bytes += (size_t)loader->count * sizeof *loader->order;
    for (size_t i = 0; i < loader->threads; i++)
        bytes += sd_augmenter_memory(loader->thread[i].augmenter);
    return bytes;
}

/* ---- one batch ----------------------------------------------------------------------------- */

/* Fisher-Yates. */
static void shuffle(sd_loader *loader, uint64_t epoch) {
    if (loader->order == NULL || (loader->order_known && loader->order_epoch == epoch))
        return;
    sd_random random;
    sd_random_init(&random, loader->config.seed, epoch, SD_RANDOM_ORDER);
    uint32_t *order = loader->order;
    uint32_t count = (uint32_t)loader->count;
    for (uint32_t i = 0; i < count; i++)
        order[i] = i;
    for (uint32_t i = count - 1; i > 0; i--) {
        uint32_t other = (uint32_t)sd_random_below(&random, (uint64_t)i + 1);
        uint32_t kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
    loader->order_epoch = epoch;
    loader->order_known = true;
}

/* The buffer that takes the batch at `position`. */
static sd_load_buffer *next_buffer(sd_loader *loader) { return &loader->buffer[1 - loader->given]; }

static bool has_next(sd_loader *loader) {
    const sd_load_buffer *buffer = next_buffer(loader);
    return buffer->ready && buffer->batch == loader->position && buffer->error.status != SD_ERR_CANCELLED;
}

static sd_status augment_sample(const sd_loader *loader, const sd_load_buffer *buffer, size_t i,
                                sd_augmenter *augmenter) {
    sd_status status = sd_check_cancel(loader->context);
    if (status != SD_OK)
        return status;
    const size_t samples = loader->config.batch_size;
    const uint64_t epoch = buffer->batch / loader->batches_per_epoch;
    const uint64_t place = buffer->batch % loader->batches_per_epoch * samples + i;
    const uint64_t index = loader->order != NULL ? loader->order[place] : place;
    float *globals[2], *locals[SD_MAX_VIEWS];
    for (size_t v = 0; v < 2; v++)
        globals[v] = buffer->globals + (v * samples + i) * loader->global_values;
    for (size_t v = 0; v < (size_t)loader->augment.local_crops; v++)
        locals[v] = buffer->locals + (v * samples + i) * loader->local_values;

    sd_image image;
    void *token;
    status = sd_dataset_acquire(loader->dataset, index, &image, &token);
    if (status != SD_OK)
        return status;
    if (image.channels == loader->config.channels || (image.channels == 1 && loader->config.channels == 3))
        status = sd_augment_channels(augmenter, &image, (size_t)loader->config.channels, loader->config.seed,
                                     epoch * loader->count + index, globals, locals);
    else
        status = sd_fail(SD_ERR_MISMATCH, "image %llu has %d channels: the loader's crops have %d",
                         (unsigned long long)index, image.channels, loader->config.channels);
    sd_dataset_release(loader->dataset, index, token);
    return status;
}

size_t sd_loader_prefetch_begin(sd_loader *loader) {
    if (has_next(loader))
        return 0;
    sd_load_buffer *buffer = next_buffer(loader);
    buffer->ready = false;
    buffer->batch = loader->position;
    shuffle(loader, loader->position / loader->batches_per_epoch);
    for (size_t i = 0; i < loader->threads; i++)
        loader->thread[i].error.status = SD_OK;
    return loader->config.batch_size;
}

void sd_loader_prefetch_task(sd_loader *loader, size_t index, size_t thread) {
    sd_load_thread *own = &loader->thread[thread];
    sd_status status = augment_sample(loader, next_buffer(loader), index, own->augmenter);
    if (status == SD_OK || (own->error.status != SD_OK && own->error.sample < index))
        return;
    own->error.status = status;
    own->error.sample = index;
    snprintf(own->error.message, sizeof own->error.message, "%s", sd_last_error());
}

void sd_loader_prefetch_end(sd_loader *loader) {
    sd_load_buffer *buffer = next_buffer(loader);
    buffer->error.status = SD_OK;
    for (size_t i = 0; i < loader->threads; i++) {
        const sd_load_error *error = &loader->thread[i].error;
        if (error->status != SD_OK && (buffer->error.status == SD_OK || error->sample < buffer->error.sample))
            buffer->error = *error;
    }
    buffer->ready = true;
}

void sd_loader_prefetch_drop(sd_loader *loader) { next_buffer(loader)->ready = false; }

static void run_task(void *work, size_t index, size_t thread) { sd_loader_prefetch_task(work, index, thread); }

SD_API sd_status sd_loader_next(sd_loader *loader, sd_crop_batch *batch) {
    sd_status status = SD_OK;
    SD_EXPECT(loader != NULL, SD_ERR_ARGUMENT, "loader is NULL");
    SD_EXPECT(batch != NULL, SD_ERR_ARGUMENT, "batch is NULL");
    SD_TRY(sd_check_cancel(loader->context));
    size_t tasks = sd_loader_prefetch_begin(loader);
    if (tasks > 0) {
        SD_TRY(sd_run(loader->context, run_task, loader, tasks));
        sd_loader_prefetch_end(loader);
    }
    sd_load_buffer *buffer = next_buffer(loader);
    if (buffer->error.status != SD_OK) {
        buffer->ready = false; /* so that another call tries again */
        return sd_fail(buffer->error.status, "%s", buffer->error.message);
    }
    *batch = (sd_crop_batch){.samples = loader->config.batch_size,
                             .channels = loader->config.channels,
                             .global_size = loader->augment.global_size,
                             .local_size = loader->augment.local_size,
                             .local_crops = loader->augment.local_crops,
                             .globals = buffer->globals,
                             .locals = buffer->locals};
    loader->given = 1 - loader->given;
    loader->position++;
cleanup:
    return status;
}
