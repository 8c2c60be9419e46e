/* objective - what a method minimises, as a function of what the heads gave for a batch. */
#ifndef SD_OBJECTIVE_H
#define SD_OBJECTIVE_H

#include "base/base.h"
#include <simdino/train.h>

typedef struct sd_objective sd_objective;

/* B samples, V views, p the width of a feature, D that of the network, M masked patches. Rows are view after view. */
typedef struct sd_batch_features {
    size_t samples, views, patches;
    const float *student, *teacher;                 /* V B x p, 2 B x p */
    const float *student_patches, *teacher_patches; /* M x p */
    const float *patch_weights;                     /* M */
    const float *class_tokens;                      /* V B x D: the student's, before the head */
    float *dstudent, *dstudent_patches, *dclass_tokens; /* gradients, written; of class tokens only with KoLeo */
} sd_batch_features;

/* What changes from step to step. */
typedef struct sd_objective_values {
    double eps_sq, coeff, teacher_temp;
} sd_objective_values;

typedef struct sd_objective_result {
    double loss, compression, expansion, rate, effective_rank, similarity;
    double patch_loss, koleo, local_loss, global_loss, target_entropy;
} sd_objective_result;

/* For batches of up to max_samples samples and max_patches masked patches. */
sd_status sd_objective_create(sd_context *context, const sd_pretrainer_config *config, size_t max_samples,
                              size_t max_patches, sd_objective **objective);
void sd_objective_destroy(sd_objective *objective);

/* Value, gradients with respect to the features, and those of the student's prototypes, which are added into `gradient`,
 * an array of the model's layout. What the objective keeps between steps (centers) changes with commit only:
 * several evaluations before it count as the pieces of one batch. */
sd_status sd_objective_evaluate(sd_objective *objective, const sd_model *student, const sd_model *teacher,
                                const sd_objective_values *values, const sd_batch_features *features, float *gradient,
                                sd_objective_result *result);
void sd_objective_commit(sd_objective *objective);
void sd_objective_discard(sd_objective *objective);

/* Arrays that it keeps between steps, for checkpoints. */
typedef struct sd_objective_state {
    const char *name;
    float *values;
    size_t rows, columns;
} sd_objective_state;
size_t sd_objective_state_count(const sd_objective *objective);
sd_objective_state sd_objective_state_at(const sd_objective *objective, size_t index);

/* Whether the method has masks, prototypes, or KoLeo. */
bool sd_method_has_masks(const sd_pretrainer_config *config);
bool sd_method_has_prototypes(const sd_pretrainer_config *config);
bool sd_method_has_koleo(const sd_pretrainer_config *config);

#endif
