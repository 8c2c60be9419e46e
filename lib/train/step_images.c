/* The ways into a step: crops that the host made, a loader's batch, images. */
#include "data/loader.h"
#include "train/trainer.h"

#include <string.h>

static sd_status check_arguments(const sd_pretrainer *trainer, const sd_step_metrics *metrics) {
    SD_REQUIRE(trainer != NULL, SD_ERR_ARGUMENT, "trainer is NULL");
    SD_REQUIRE(metrics == NULL || metrics->size >= sizeof metrics->size, SD_ERR_ARGUMENT,
               "metrics->size is %zu: set it to sizeof(sd_step_metrics)", metrics->size);
    return SD_OK;
}

SD_API sd_status sd_pretrainer_step_crops(sd_pretrainer *trainer, const sd_crop_batch *crops,
                                          sd_step_metrics *metrics) {
    sd_status status = check_arguments(trainer, metrics);
    return status == SD_OK ? sd_trainer_step(trainer, crops, NULL, metrics) : status;
}

static void prefetch_task(void *loader, size_t index, size_t thread) { sd_loader_prefetch_task(loader, index, thread); }

SD_API sd_status sd_pretrainer_step_loader(sd_pretrainer *trainer, sd_loader *loader, sd_step_metrics *metrics) {
    sd_status status = check_arguments(trainer, metrics);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(loader != NULL, SD_ERR_ARGUMENT, "loader is NULL");
    double start = sd_trainer_clock();
    if (sd_loader_position(loader) != trainer->step)
        sd_loader_seek(loader, trainer->step);
    sd_crop_batch crops;
    status = sd_loader_next(loader, &crops);
    if (status != SD_OK)
        return status;
    sd_side_work side = {.function = prefetch_task, .work = loader};
    if (trainer->step + 1 < trainer->config.total_steps)
        side.count = sd_loader_prefetch_begin(loader);
    bool begun = side.count > 0;
    side.done = !begun;
    status = sd_trainer_step(trainer, &crops, &side, metrics);
    if (begun && side.done)
        sd_loader_prefetch_end(loader);
    else if (begun)
        sd_loader_prefetch_drop(loader);
    if (status == SD_OK && metrics != NULL) {
        sd_step_metrics filled = {.size = 0};
        memcpy(&filled, metrics, sd_size_min(metrics->size, sizeof filled));
        filled.seconds = sd_trainer_clock() - start;
        filled.images_per_second = filled.seconds > 0.0 ? (double)crops.samples / filled.seconds : 0.0;
        memcpy(metrics, &filled, sd_size_min(metrics->size, sizeof filled));
    }
    return status;
}

/* ---- a step on images ---------------------------------------------------------------------- */

typedef struct augment_job {
    sd_pretrainer *trainer;
    const sd_image *images;
    size_t count;
    sd_status *statuses; /* by thread: an error message belongs to the thread that met the error */
} augment_job;

static sd_status augment_one(const augment_job *job, size_t index, size_t thread) {
    sd_pretrainer *t = job->trainer;
    const sd_image *image = &job->images[index];
    size_t global = sd_trainer_global_values(&t->config), local = sd_trainer_local_values(&t->config);
    float *views[SD_MAX_VIEWS];
    for (size_t view = 0; view < 2; view++)
        views[view] = t->crop_pixels + (view * job->count + index) * global;
    for (size_t view = 2; view < t->views; view++)
        views[view] = t->crop_pixels + 2 * job->count * global + ((view - 2) * job->count + index) * local;
    SD_REQUIRE(image->channels == t->config.model.channels, SD_ERR_MISMATCH,
               "image %zu has %d channels, the model %d", index, image->channels, t->config.model.channels);
    return sd_augment(t->augmenters[thread], image, t->config.seed, t->step * t->config.batch_size + index, views,
                      views + 2);
}

static void augment_task(void *argument, size_t index, size_t thread) {
    augment_job *job = argument;
    if (job->statuses[thread] != SD_OK)
        return;
    job->statuses[thread] = augment_one(job, index, thread);
}

/* Augmenters and room for crops, made at the first step on images. */
static sd_status prepare_augmenters(sd_pretrainer *t) {
    sd_status status = SD_OK;
    size_t values = 2 * sd_trainer_global_values(&t->config) + (t->views - 2) * sd_trainer_local_values(&t->config);
    if (t->crop_pixels == NULL)
        t->crop_pixels = SD_NEW_ARRAY(t->context, float, values *t->config.batch_size);
    if (t->augmenters == NULL)
        t->augmenters = SD_NEW_ARRAY(t->context, sd_augmenter *, sd_threads(t->context));
    if (t->crop_pixels == NULL || t->augmenters == NULL)
        return SD_ERR_MEMORY;
    for (size_t i = 0; i < sd_threads(t->context) && status == SD_OK; i++)
        if (t->augmenters[i] == NULL)
            status = sd_augmenter_create(t->context, &t->config.augment, &t->augmenters[i]);
    return status;
}

SD_API sd_status sd_pretrainer_step(sd_pretrainer *t, const sd_image *images, size_t count, sd_step_metrics *metrics) {
    sd_status status = check_arguments(t, metrics);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(images != NULL, SD_ERR_ARGUMENT, "images is NULL");
    SD_REQUIRE(count >= 1 && count <= t->config.batch_size, SD_ERR_ARGUMENT,
               "count is %zu: it must be 1 to batch_size (%zu)", count, t->config.batch_size);
    double start = sd_trainer_clock();
    status = prepare_augmenters(t);
    if (status != SD_OK)
        return status;
    sd_status statuses[1024] = {SD_OK};
    augment_job job = {.trainer = t, .images = images, .count = count, .statuses = statuses};
    status = sd_run(t->context, augment_task, &job, count);
    if (status != SD_OK)
        return status;
    for (size_t i = 0; i < sd_threads(t->context); i++)
        if (statuses[i] != SD_OK) {
            /* once more on this thread, so that the message is the caller's */
            for (size_t image = 0; image < count; image++)
                if ((status = augment_one(&job, image, 0)) != SD_OK)
                    return status;
            return statuses[i];
        }
    size_t global = sd_trainer_global_values(&t->config);
    sd_crop_batch crops = {
        .samples = count,
        .channels = t->config.model.channels,
        .global_size = t->config.augment.global_size,
        .local_size = t->config.augment.local_size,
        .local_crops = t->config.augment.local_crops,
        .globals = t->crop_pixels,
        .locals = t->views > 2 ? t->crop_pixels + 2 * count * global : NULL,
    };
    status = sd_trainer_step(t, &crops, NULL, metrics);
    if (status == SD_OK && metrics != NULL && metrics->size >= sizeof *metrics) {
        metrics->seconds = sd_trainer_clock() - start;
        metrics->images_per_second = metrics->seconds > 0.0 ? (double)count / metrics->seconds : 0.0;
    }
    return status;
}
