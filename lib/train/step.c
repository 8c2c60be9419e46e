/* One training step, written with the calls of model, loss and optim:
 *     teacher on the global crops, student on all, loss, backward, clip, optimizer, teacher <- moving average.
 * A batch larger than the micro-batch goes in pieces; then either each piece has its own loss, or (SD_ACCUMULATE_WHOLE)
 * a first round only collects features, the loss is that of the whole batch, and a second round runs backward from its
 * gradient (L. Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", 2021). Stochastic
 * depth repeats its decisions in the second round, because they are a function of the step and the image. */
#include "train/trainer.h"
#include "data/loader.h"
#include "model/model.h"
#include "optim/optim.h"

#include <math.h>
#include <string.h>

/* ---- schedules ----------------------------------------------------------------------------- */

typedef struct step_values {
    double lr, weight_decay, momentum;
} step_values;

static step_values values_at(const sd_pretrainer_config *c, uint64_t step) {
    sd_schedule lr = {.base = c->lr, .final = c->min_lr, .total = c->total_steps, .warmup = c->warmup_steps};
    sd_schedule decay = {.base = c->weight_decay, .final = c->weight_decay_end, .total = c->total_steps};
    sd_schedule momentum = {.base = c->momentum, .final = c->momentum_end, .total = c->total_steps};
    return (step_values){sd_schedule_value(&lr, step), sd_schedule_value(&decay, step),
                         sd_schedule_value(&momentum, step)};
}

/* ---- pieces -------------------------------------------------------------------------------- */

typedef struct step_job {
    sd_pretrainer *trainer;
    const sd_crop_batch *crops;
    size_t pieces;
    sd_side_work *side;
} step_job;

typedef struct piece {
    size_t first, samples;
    sd_image_group groups[2];
    size_t group_count;
} piece;

static void copy_view(float **to, const float *from, size_t batch, size_t view, size_t values, const piece *part) {
    memcpy(*to, from + (view * batch + part->first) * values, part->samples * values * sizeof **to);
    *to += part->samples * values;
}

/* The crops of piece `index`: borrowed when it is the whole batch, else gathered. */
static piece piece_of(const step_job *job, size_t index) {
    sd_pretrainer *t = job->trainer;
    const sd_crop_batch *crops = job->crops;
    piece part = {.first = index * t->micro_batch};
    part.samples = sd_size_min(t->micro_batch, crops->samples - part.first);
    part.group_count = sd_trainer_groups(&t->config, part.samples, part.groups);
    part.groups[0].pixels = crops->globals;
    part.groups[1].pixels = crops->locals;
    if (job->pieces > 1) {
        size_t global = sd_trainer_global_values(&t->config), local = sd_trainer_local_values(&t->config);
        float *to = t->piece_pixels;
        part.groups[0].pixels = to;
        for (size_t view = 0; view < 2; view++)
            copy_view(&to, crops->globals, crops->samples, view, global, &part);
        part.groups[1].pixels = to;
        for (size_t view = 0; view + 2 < t->views; view++)
            copy_view(&to, crops->locals, crops->samples, view, local, &part);
    }
    return part;
}

/* Rows of a piece to their places among the whole batch, or back. */
static void scatter_rows(const step_job *job, const piece *part, size_t views, const float *rows, float *whole) {
    size_t dim = job->trainer->dim, batch = job->crops->samples;
    for (size_t view = 0; view < views; view++)
        memcpy(whole + (view * batch + part->first) * dim, rows + view * part->samples * dim,
               part->samples * dim * sizeof *whole);
}

static void gather_rows(const step_job *job, const piece *part, size_t views, const float *whole, float *rows) {
    size_t dim = job->trainer->dim, batch = job->crops->samples;
    for (size_t view = 0; view < views; view++)
        memcpy(rows + view * part->samples * dim, whole + (view * batch + part->first) * dim,
               part->samples * dim * sizeof *rows);
}

/* ---- forward and backward of a piece ------------------------------------------------------- */

static sd_status teacher_forward(const step_job *job, const piece *part, float *features) {
    sd_pretrainer *t = job->trainer;
    sd_forward_outputs outputs;
    sd_forward_outputs_init(&outputs);
    outputs.features = features;
    return sd_model_forward(t->teacher, t->teacher_activations, part->groups, 1, NULL, &outputs);
}

static sd_status student_forward(const step_job *job, const piece *part, float *features) {
    sd_pretrainer *t = job->trainer;
    sd_forward_options options;
    sd_forward_outputs outputs;
    sd_forward_options_init(&options);
    sd_forward_outputs_init(&outputs);
    options.train = 1;
    options.seed = t->config.seed;
    options.step = t->step;
    options.first_sample = part->first * t->views;
    outputs.features = features;
    if (job->side != NULL && !job->side->done)
        sd_activations_set_side_work(t->student_activations, job->side->function, job->side->work, job->side->count);
    sd_status status =
        sd_model_forward(t->student, t->student_activations, part->groups, part->group_count, &options, &outputs);
    if (job->side != NULL)
        job->side->done = job->side->done || sd_activations_side_done(t->student_activations);
    return status;
}

static sd_status student_backward(const step_job *job, const float *dfeatures, bool accumulate) {
    sd_pretrainer *t = job->trainer;
    sd_backward_inputs inputs;
    sd_backward_inputs_init(&inputs);
    inputs.features = dfeatures;
    return sd_model_backward(t->student, t->student_activations, &inputs, t->gradient, accumulate, NULL);
}

/* ---- the two ways through the pieces ------------------------------------------------------- */

static sd_status gradient_of_whole(const step_job *job, sd_simdino_result *result) {
    sd_pretrainer *t = job->trainer;
    sd_status status = SD_OK;
    for (size_t i = 0; i < job->pieces; i++) {
        piece part = piece_of(job, i);
        bool whole = job->pieces == 1;
        float *features = whole ? t->student_features : t->piece_features;
        SD_TRY(teacher_forward(job, &part, whole ? t->teacher_features : features));
        if (!whole)
            scatter_rows(job, &part, 2, features, t->teacher_features);
        SD_TRY(student_forward(job, &part, features));
        if (!whole)
            scatter_rows(job, &part, t->views, features, t->student_features);
    }
    SD_TRY(sd_simdino_loss_evaluate(t->loss, t->student_features, t->teacher_features, job->crops->samples, t->views,
                                    t->dfeatures, result));
    /* backwards: the last piece's activations are still there */
    for (size_t i = job->pieces; i-- > 0;) {
        const float *dfeatures = t->dfeatures;
        if (job->pieces > 1) {
            piece part = piece_of(job, i);
            if (i + 1 < job->pieces)
                SD_TRY(student_forward(job, &part, t->piece_features));
            gather_rows(job, &part, t->views, t->dfeatures, t->piece_dfeatures);
            dfeatures = t->piece_dfeatures;
        }
        SD_TRY(student_backward(job, dfeatures, i + 1 < job->pieces));
    }
cleanup:
    return status;
}

static sd_status gradient_of_pieces(const step_job *job, sd_simdino_result *mean) {
    sd_pretrainer *t = job->trainer;
    sd_status status = SD_OK;
    memset(mean, 0, sizeof *mean);
    for (size_t i = 0; i < job->pieces; i++) {
        piece part = piece_of(job, i);
        sd_simdino_result result;
        SD_TRY(teacher_forward(job, &part, t->teacher_features));
        SD_TRY(student_forward(job, &part, t->piece_features));
        SD_TRY(sd_simdino_loss_evaluate(t->loss, t->piece_features, t->teacher_features, part.samples, t->views,
                                        t->piece_dfeatures, &result));
        double share = (double)part.samples / (double)job->crops->samples;
        for (size_t j = 0; j < t->views * part.samples * t->dim; j++)
            t->piece_dfeatures[j] *= (float)share;
        SD_TRY(student_backward(job, t->piece_dfeatures, i > 0));
        mean->loss += share * result.loss;
        mean->compression += share * result.compression;
        mean->expansion += share * result.expansion;
        mean->rate += share * result.rate;
        mean->effective_rank += share * result.effective_rank;
        mean->similarity += share * result.similarity;
    }
cleanup:
    return status;
}

/* ---- the step ------------------------------------------------------------------------------ */

static sd_status check_crops(const sd_pretrainer *t, const sd_crop_batch *crops) {
    const sd_pretrainer_config *c = &t->config;
    SD_REQUIRE(crops != NULL, SD_ERR_ARGUMENT, "crops is NULL");
    SD_REQUIRE(crops->samples >= 1 && crops->samples <= c->batch_size, SD_ERR_ARGUMENT,
               "the batch has %zu samples: it must have 1 to batch_size (%zu)", crops->samples, c->batch_size);
    SD_REQUIRE(crops->samples % (size_t)c->loss.groups == 0, SD_ERR_ARGUMENT,
               "the batch has %zu samples: it must be a multiple of loss.groups (%d)", crops->samples, c->loss.groups);
    SD_REQUIRE(crops->channels == c->model.channels, SD_ERR_MISMATCH, "the crops have %d channels, the model %d",
               crops->channels, c->model.channels);
    SD_REQUIRE(crops->global_size == c->augment.global_size && crops->local_crops == c->augment.local_crops &&
                   (crops->local_crops == 0 || crops->local_size == c->augment.local_size),
               SD_ERR_MISMATCH,
               "the crops are 2 of side %d and %d of side %d, the pretrainer's configuration has 2 of side %d and %d "
               "of side %d",
               crops->global_size, crops->local_crops, crops->local_size, c->augment.global_size,
               c->augment.local_crops, c->augment.local_size);
    SD_REQUIRE(crops->globals != NULL && (crops->locals != NULL || crops->local_crops == 0), SD_ERR_ARGUMENT,
               "the pixels of the %s crops are NULL", crops->globals == NULL ? "global" : "local");
    SD_REQUIRE(t->step < c->total_steps, SD_ERR_STATE, "all %llu steps of the schedule are done",
               (unsigned long long)c->total_steps);
    return SD_OK;
}

/* Collapsed features lie on one line: all similar to each other, and of rank 1. Untrained networks look alike, so the
 * start of a run is let pass. */
static bool has_collapsed(const sd_pretrainer *t, const sd_simdino_result *result) {
    uint64_t start = t->config.warmup_steps > t->config.total_steps / 10 ? t->config.warmup_steps
                                                                         : t->config.total_steps / 10;
    return t->step >= start && t->step >= 20 && result->similarity > 0.995 && result->effective_rank < 1.05 &&
           t->config.batch_size > 1;
}

sd_status sd_trainer_step(sd_pretrainer *t, const sd_crop_batch *crops, sd_side_work *side, sd_step_metrics *metrics) {
    double start = sd_trainer_clock();
    sd_status status = check_crops(t, crops);
    if (status != SD_OK)
        return status;
    const sd_pretrainer_config *c = &t->config;
    step_values values = values_at(c, t->step);
    step_job job = {.trainer = t, .crops = crops, .side = side,
                    .pieces = sd_size_ceil(crops->samples, t->micro_batch)};
    sd_simdino_result result;
    if (job.pieces == 1 || c->accumulation == SD_ACCUMULATE_WHOLE)
        SD_TRY(gradient_of_whole(&job, &result));
    else
        SD_TRY(gradient_of_pieces(&job, &result));
    SD_EXPECT(isfinite(result.loss), SD_ERR_NUMERIC, "the loss of step %llu is not finite",
              (unsigned long long)t->step);

    double norm;
    const sd_tensor_info *tensors = t->student->tensors;
    size_t tensor_count = t->student->tensor_count;
    SD_TRY(sd_gradient_norms(t->context, tensors, tensor_count, t->gradient, t->norms, &norm));
    SD_TRY(sd_check_cancel(t->context)); /* the last moment: from here on weights change */
    sd_clip_factors(tensors, tensor_count, (sd_clip_kind)c->clip, c->clip_limit, t->norms, t->clip);
    SD_TRY(sd_optimizer_step_fused(t->optimizer, t->student->parameters, t->gradient, t->clip, values.lr,
                                   values.weight_decay, t->teacher->parameters, values.momentum));

    bool collapse = has_collapsed(t, &result);
    if (collapse && !t->collapse_reported) {
        t->collapse_reported = true;
        sd_log(t->context, SD_LOG_WARNING,
               "step %llu: the features have collapsed (mean similarity %.4f, effective rank %.2f); try a larger "
               "batch, a smaller "
               "learning rate, or another eps_sq",
               (unsigned long long)t->step, result.similarity, result.effective_rank);
    }
    double seconds = sd_trainer_clock() - start;
    if (metrics != NULL) {
        sd_step_metrics filled = {
            .size = metrics->size,
            .step = t->step,
            .loss = result.loss,
            .compression = result.compression,
            .expansion = result.expansion,
            .rate = result.rate,
            .effective_rank = result.effective_rank,
            .similarity = result.similarity,
            .lr = values.lr,
            .weight_decay = values.weight_decay,
            .momentum = values.momentum,
            .gradient_norm = norm,
            .seconds = seconds,
            .images_per_second = seconds > 0.0 ? (double)crops->samples / seconds : 0.0,
            .collapse = collapse,
        };
        memcpy(metrics, &filled, sd_size_min(metrics->size, sizeof filled));
    }
    t->step++;
cleanup:
    return status;
}

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
