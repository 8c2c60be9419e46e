/* One training step, written with the calls of model, loss and optim:
 *     teacher on the global crops, student on all, loss, backward, clip, optimizer, teacher <- moving average.
 * A batch larger than the micro-batch goes in pieces; then either each piece has its own loss, or (SD_ACCUMULATE_WHOLE)
 * a first round only collects features, the loss is that of the whole batch, and a second round runs backward from its
 * gradient (L. Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", 2021). Stochastic
 * depth repeats its decisions in the second round, because they are a function of the step and the image. */
#include "model/model.h"
#include "optim/optim.h"
#include "train/trainer.h"

#include <math.h>
#include <string.h>

typedef struct step_job {
    sd_pretrainer *trainer;
    const sd_crop_batch *crops;
    const sd_objective_values *values;
    size_t pieces;
    sd_side_work *side;
} step_job;

/* ---- forward and backward of a piece ------------------------------------------------------- */

static sd_status teacher_forward(const step_job *job, const sd_piece *piece) {
    sd_pretrainer *t = job->trainer;
    sd_forward_options options;
    sd_forward_outputs outputs;
    sd_forward_options_init(&options);
    sd_forward_outputs_init(&outputs);
    options.patches = piece->patch_numbers; /* the teacher sees what is masked from the student */
    options.patch_count = piece->features.patches;
    outputs.features = piece->teacher;
    outputs.patch_features = piece->teacher_patches;
    return sd_model_forward(t->teacher, t->teacher_activations, piece->groups, 1, &options, &outputs);
}

static sd_status student_forward(const step_job *job, const sd_piece *piece) {
    sd_pretrainer *t = job->trainer;
    sd_forward_options options;
    sd_forward_outputs outputs;
    sd_forward_options_init(&options);
    sd_forward_outputs_init(&outputs);
    options.train = 1;
    options.seed = t->config.seed;
    options.step = t->step;
    options.first_sample = piece->first * t->views;
    options.masks = piece->masks[0] == NULL ? NULL : piece->masks;
    options.patches = piece->patch_numbers;
    options.patch_count = piece->features.patches;
    outputs.features = piece->student;
    outputs.patch_features = piece->student_patches;
    outputs.class_tokens = piece->class_tokens;
    if (job->side != NULL && !job->side->done)
        sd_activations_set_side_work(t->student_activations, job->side->function, job->side->work, job->side->count);
    sd_status status =
        sd_model_forward(t->student, t->student_activations, piece->groups, piece->group_count, &options, &outputs);
    if (job->side != NULL)
        job->side->done = job->side->done || sd_activations_side_done(t->student_activations);
    return status;
}

static sd_status student_backward(const step_job *job, const sd_piece *piece) {
    sd_pretrainer *t = job->trainer;
    sd_backward_inputs inputs;
    sd_backward_inputs_init(&inputs);
    inputs.features = piece->features.dstudent;
    inputs.patch_features = piece->features.dstudent_patches;
    inputs.class_tokens = piece->features.dclass_tokens;
    return sd_model_backward(t->student, t->student_activations, &inputs, t->gradient, 1, NULL);
}

/* ---- the two ways through the pieces ------------------------------------------------------- */

static sd_status gradient_of_whole(const step_job *job, sd_objective_result *result) {
    sd_pretrainer *t = job->trainer;
    sd_status status = SD_OK;
    sd_piece piece;
    for (size_t i = 0; i < job->pieces; i++) {
        SD_TRY(sd_batch_piece(&t->batch, job->crops, i, &piece));
        SD_TRY(teacher_forward(job, &piece));
        sd_batch_scatter_teacher(&t->batch, &piece);
        SD_TRY(student_forward(job, &piece));
        sd_batch_scatter_student(&t->batch, &piece);
    }
    SD_TRY(sd_objective_evaluate(t->objective, t->student, t->teacher, job->values, &t->batch.whole, t->gradient,
                                 result));
    /* backwards: the last piece's activations are still there */
    for (size_t i = job->pieces; i-- > 0;) {
        if (i + 1 < job->pieces) {
            SD_TRY(sd_batch_piece(&t->batch, job->crops, i, &piece));
            SD_TRY(student_forward(job, &piece));
        }
        sd_batch_gather_gradients(&t->batch, &piece);
        SD_TRY(student_backward(job, &piece));
    }
cleanup:
    return status;
}

static void scale(float *values, size_t count, double factor) {
    for (size_t i = 0; values != NULL && i < count; i++)
        values[i] *= (float)factor;
}

static void add_results(sd_objective_result *mean, const sd_objective_result *one, double share) {
    const double *from = (const double *)one;
    double *to = (double *)mean;
    _Static_assert(sizeof *one % sizeof *from == 0, "the result consists of doubles");
    for (size_t i = 0; i < sizeof *one / sizeof *from; i++)
        to[i] += share * from[i];
}

static sd_status gradient_of_pieces(const step_job *job, sd_objective_result *mean) {
    sd_pretrainer *t = job->trainer;
    sd_status status = SD_OK;
    memset(mean, 0, sizeof *mean);
    for (size_t i = 0; i < job->pieces; i++) {
        sd_piece piece;
        sd_objective_result result;
        SD_TRY(sd_batch_piece(&t->batch, job->crops, i, &piece));
        SD_TRY(teacher_forward(job, &piece));
        SD_TRY(student_forward(job, &piece));
        if (t->prototype_gradient != NULL)
            memset(t->prototype_gradient, 0, t->student->parameter_count * sizeof(float));
        SD_TRY(sd_objective_evaluate(t->objective, t->student, t->teacher, job->values, &piece.features,
                                     t->prototype_gradient, &result));
        double share = (double)piece.samples / (double)job->crops->samples;
        size_t rows = t->views * piece.samples;
        scale(piece.features.dstudent, rows * t->batch.shape.width, share);
        scale(piece.features.dstudent_patches, piece.features.patches * t->batch.shape.width, share);
        scale(piece.features.dclass_tokens, rows * t->batch.shape.dim, share);
        for (size_t j = 0; t->prototype_gradient != NULL && j < t->student->parameter_count; j++)
            t->gradient[j] += (float)share * t->prototype_gradient[j];
        SD_TRY(student_backward(job, &piece));
        add_results(mean, &result, share);
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
    SD_REQUIRE(crops->masks == NULL || sd_method_has_masks(c), SD_ERR_ARGUMENT,
               "the crops have masks, but %s with patch_weight %g has no use for them", sd_method_name(c->method),
               c->patch_weight);
    SD_REQUIRE(t->step < c->total_steps, SD_ERR_STATE, "all %llu steps of the schedule are done",
               (unsigned long long)c->total_steps);
    return SD_OK;
}

/* Collapsed features lie on one line: all similar to each other, and of rank 1. Untrained networks look alike, so the
 * start of a run is let pass. */
static bool has_collapsed(const sd_pretrainer *t, const sd_objective_result *result) {
    uint64_t start = t->config.warmup_steps > t->config.total_steps / 10 ? t->config.warmup_steps
                                                                         : t->config.total_steps / 10;
    return t->step >= start && t->step >= 20 && result->similarity > 0.995 && result->effective_rank < 1.05 &&
           t->config.batch_size > 1;
}

static void report_collapse(sd_pretrainer *t, const sd_objective_result *result) {
    if (t->collapse_reported)
        return;
    t->collapse_reported = true;
    sd_log(t->context, SD_LOG_WARNING,
           "step %llu: the features have collapsed (mean similarity %.4f, effective rank %.2f); try a larger batch, a "
           "smaller learning rate, %s",
           (unsigned long long)t->step, result->similarity, result->effective_rank,
           sd_method_has_prototypes(&t->config) ? "or another teacher temperature" : "or another eps_sq");
}

static void fill_metrics(const sd_pretrainer *t, const sd_step_values *values, const sd_objective_result *result,
                         double norm, bool collapse, double seconds, size_t samples, sd_step_metrics *metrics) {
    sd_step_metrics filled = {
        .size = metrics->size,
        .step = t->step,
        .loss = result->loss,
        .compression = result->compression,
        .expansion = result->expansion,
        .rate = result->rate,
        .effective_rank = result->effective_rank,
        .similarity = result->similarity,
        .lr = values->lr,
        .weight_decay = values->weight_decay,
        .momentum = values->momentum,
        .gradient_norm = norm,
        .seconds = seconds,
        .images_per_second = seconds > 0.0 ? (double)samples / seconds : 0.0,
        .collapse = collapse,
        .patch_loss = result->patch_loss,
        .koleo = result->koleo,
        .local_loss = result->local_loss,
        .global_loss = result->global_loss,
        .target_entropy = result->target_entropy,
        .teacher_temp = values->objective.teacher_temp,
        .masked_patches = t->batch.whole.patches,
    };
    memcpy(metrics, &filled, sd_size_min(metrics->size, sizeof filled));
}

sd_status sd_trainer_step(sd_pretrainer *t, const sd_crop_batch *crops, sd_side_work *side, sd_step_metrics *metrics) {
    double start = sd_trainer_clock();
    sd_status status = check_crops(t, crops);
    if (status != SD_OK)
        return status;
    const sd_pretrainer_config *c = &t->config;
    sd_step_values values = sd_trainer_values(c, t->step);
    step_job job = {.trainer = t, .crops = crops, .values = &values.objective, .side = side,
                    .pieces = sd_size_ceil(crops->samples, t->batch.shape.micro)};
    sd_objective_result result;
    SD_TRY(sd_batch_set_masks(&t->batch, &c->mask, crops->masks, crops->samples, c->seed, t->step));
    memset(t->gradient, 0, t->student->parameter_count * sizeof *t->gradient);
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
    SD_TRY(sd_trainer_freeze(t, values.frozen));
    SD_TRY(sd_optimizer_step_fused(t->optimizer, t->student->parameters, t->gradient, t->clip, values.lr,
                                   values.weight_decay, t->teacher->parameters, values.momentum));
    sd_objective_commit(t->objective);

    bool collapse = has_collapsed(t, &result);
    if (collapse)
        report_collapse(t, &result);
    if (metrics != NULL)
        fill_metrics(t, &values, &result, norm, collapse, sd_trainer_clock() - start, crops->samples, metrics);
    t->step++;
cleanup:
    if (status != SD_OK)
        sd_objective_discard(t->objective);
    return status;
}
