/* The losses of the four methods, each a sum of parts of lib/loss. */
#include "train/objective.h"
#include "model/model.h"

#include <math.h>
#include <string.h>

struct sd_objective {
    sd_context *context;
    sd_pretrainer_config config;
    sd_simdino_loss *simdino;
    sd_dino_loss *dino;
    sd_patch_loss *patch;   /* iBOT */
    sd_koleo *koleo;
    size_t width;
};

bool sd_method_has_prototypes(const sd_pretrainer_config *config) {
    return config->method == SD_METHOD_DINO || config->method == SD_METHOD_DINOV2;
}

bool sd_method_has_masks(const sd_pretrainer_config *config) {
    bool v2 = config->method == SD_METHOD_SIMDINOV2 || config->method == SD_METHOD_DINOV2;
    return v2 && config->patch_weight > 0.0;
}

bool sd_method_has_koleo(const sd_pretrainer_config *config) {
    return config->method == SD_METHOD_DINOV2 && config->koleo_weight > 0.0;
}

/* ---- create and destroy -------------------------------------------------------------------- */

sd_status sd_objective_create(sd_context *context, const sd_pretrainer_config *config, size_t max_samples,
                              size_t max_patches, sd_objective **out) {
    size_t views = 2 + (size_t)config->augment.local_crops, width = (size_t)config->model.head_dim;
    sd_objective *objective = SD_NEW(context, sd_objective);
    if (objective == NULL)
        return SD_ERR_MEMORY;
    sd_status status = SD_OK;
    objective->context = context;
    objective->config = *config;
    objective->width = width;
    sd_dino_config dino = config->dino;
    dino.precision = config->precision;
    if (sd_method_has_prototypes(config)) {
        SD_TRY(sd_dino_loss_create(context, &dino, max_samples, views, width,
                                   (size_t)config->model.prototypes, &objective->dino));
        size_t prototypes =
            (size_t)(config->model.patch_head ? config->model.patch_prototypes : config->model.prototypes);
        if (sd_method_has_masks(config))
            SD_TRY(sd_patch_loss_create(context, &dino, max_patches, width, prototypes, &objective->patch));
    } else {
        SD_TRY(sd_simdino_loss_create(context, &config->loss, max_samples, views, width, &objective->simdino));
    }
    if (sd_method_has_koleo(config))
        SD_TRY(sd_koleo_create(context, max_samples, (size_t)config->model.dim, &objective->koleo));
    *out = objective;
    return SD_OK;
cleanup:
    sd_objective_destroy(objective);
    return status;
}

void sd_objective_destroy(sd_objective *objective) {
    if (objective == NULL)
        return;
    sd_koleo_destroy(objective->koleo);
    sd_patch_loss_destroy(objective->patch);
    sd_dino_loss_destroy(objective->dino);
    sd_simdino_loss_destroy(objective->simdino);
    sd_release(objective->context, objective);
}

/* ---- evaluation ---------------------------------------------------------------------------- */

static void scale_rows(float *rows, size_t count, double factor) {
    for (size_t i = 0; i < count; i++)
        rows[i] = (float)(factor * (double)rows[i]);
}

static sd_status evaluate_simdino(sd_objective *o, const sd_objective_values *values, const sd_batch_features *f,
                                  sd_objective_result *result) {
    sd_simdino_result part;
    sd_status status = sd_simdino_loss_set_weights(o->simdino, values->eps_sq, values->coeff);
    if (status != SD_OK)
        return status;
    SD_TRY(sd_simdino_loss_evaluate(o->simdino, f->student, f->teacher, f->samples, f->views, f->dstudent, &part));
    *result = (sd_objective_result){
        .loss = part.loss,
        .compression = part.compression,
        .expansion = part.expansion,
        .rate = part.rate,
        .effective_rank = part.effective_rank,
        .similarity = part.similarity,
    };
    if (sd_method_has_masks(&o->config)) {
        SD_TRY(sd_patch_cosine(f->student_patches, f->teacher_patches, f->patches, o->width, f->patch_weights,
                               2 * f->samples, f->dstudent_patches, &result->patch_loss));
        scale_rows(f->dstudent_patches, f->patches * o->width, o->config.patch_weight);
        result->loss += o->config.patch_weight * result->patch_loss;
    }
cleanup:
    return status;
}

static sd_prototypes prototypes_of(const sd_model *model, size_t head) {
    const struct sd_head_layout *l = &model->layout.head[head];
    return (sd_prototypes){.weight_v = model->parameters + l->prototype_direction,
                           .weight_g = model->parameters + l->prototype_scale,
                           .count = model->geometry.prototypes[head]};
}

static sd_prototypes_gradient prototypes_gradient(const sd_model *model, size_t head, float *gradient) {
    const struct sd_head_layout *l = &model->layout.head[head];
    return (sd_prototypes_gradient){
        .weight_v = gradient + l->prototype_direction,
        .weight_g = model->config.prototype_scale ? gradient + l->prototype_scale : NULL,
    };
}

static sd_status evaluate_dino(sd_objective *o, const sd_model *student, const sd_model *teacher,
                               const sd_objective_values *values, const sd_batch_features *f, float *gradient,
                               sd_objective_result *result) {
    sd_status status;
    sd_dino_result part;
    sd_prototypes ours = prototypes_of(student, 0), theirs = prototypes_of(teacher, 0);
    sd_prototypes_gradient into = prototypes_gradient(student, 0, gradient);
    SD_TRY(sd_dino_loss_evaluate(o->dino, f->student, f->teacher, f->samples, f->views, &ours, &theirs,
                                 values->teacher_temp, f->dstudent, &into, &part));
    *result = (sd_objective_result){
        .loss = part.loss,
        .local_loss = part.local_loss,
        .global_loss = part.global_loss,
        .target_entropy = part.target_entropy,
        .effective_rank = part.effective_rank,
        .similarity = part.similarity,
    };
    if (sd_method_has_masks(&o->config)) {
        size_t head = o->config.model.patch_head ? 1 : 0;
        ours = prototypes_of(student, head);
        theirs = prototypes_of(teacher, head);
        into = prototypes_gradient(student, head, gradient);
        SD_TRY(sd_patch_loss_evaluate(o->patch, f->student_patches, f->teacher_patches, f->patches, f->patch_weights,
                                      2 * f->samples, &ours, &theirs, values->teacher_temp, o->config.patch_weight,
                                      f->dstudent_patches, &into, &result->patch_loss));
        result->loss += o->config.patch_weight * result->patch_loss;
    }
    if (sd_method_has_koleo(&o->config)) {
        size_t dim = (size_t)o->config.model.dim, values_of_view = f->samples * dim;
        for (size_t view = 0; view < 2; view++) {
            double koleo;
            SD_TRY(sd_koleo_evaluate(o->koleo, f->class_tokens + view * values_of_view, f->samples, dim,
                                     f->dclass_tokens + view * values_of_view, &koleo));
            result->koleo += koleo;
        }
        scale_rows(f->dclass_tokens, 2 * values_of_view, o->config.koleo_weight);
        memset(f->dclass_tokens + 2 * values_of_view, 0, (f->views - 2) * values_of_view * sizeof *f->dclass_tokens);
        result->loss += o->config.koleo_weight * result->koleo;
    }
cleanup:
    return status;
}

sd_status sd_objective_evaluate(sd_objective *o, const sd_model *student, const sd_model *teacher,
                                const sd_objective_values *values, const sd_batch_features *features, float *gradient,
                                sd_objective_result *result) {
    if (sd_method_has_prototypes(&o->config))
        return evaluate_dino(o, student, teacher, values, features, gradient, result);
    return evaluate_simdino(o, values, features, result);
}

/* ---- between steps ------------------------------------------------------------------------- */

void sd_objective_commit(sd_objective *objective) {
    sd_dino_loss_commit(objective->dino);
    sd_patch_loss_commit(objective->patch);
}

void sd_objective_discard(sd_objective *objective) {
    sd_dino_loss_discard(objective->dino);
    sd_patch_loss_discard(objective->patch);
}

size_t sd_objective_state_count(const sd_objective *objective) {
    bool centers = objective->config.dino.target == SD_TARGET_CENTER;
    return centers ? (size_t)(objective->dino != NULL) + (size_t)(objective->patch != NULL) : 0;
}

sd_objective_state sd_objective_state_at(const sd_objective *objective, size_t index) {
    const sd_model_config *model = &objective->config.model;
    if (index == 0)
        return (sd_objective_state){"center", sd_dino_loss_center(objective->dino), 1, (size_t)model->prototypes};
    return (sd_objective_state){"patch_center", sd_patch_loss_center(objective->patch), 1,
                                (size_t)(model->patch_head ? model->patch_prototypes : model->prototypes)};
}
