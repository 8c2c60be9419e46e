/* Inside of a pretrainer, shared by its files. */
#ifndef SD_TRAINER_H
#define SD_TRAINER_H

#include "train/batch.h"
#include "train/objective.h"
#include "train/pretrainer.h"

struct sd_pretrainer {
    sd_context *context;
    sd_pretrainer_config config;
    uint64_t step;
    size_t views;         /* global and local */

    sd_model *student, *teacher;
    sd_optimizer *optimizer;
    double *rates, *last_layer_rates; /* learning rate multipliers of the tensors, and with the last layer frozen; NULL */
    float *gradient;      /* layout of the parameters */
    double *norms, *clip; /* one per tensor */
    sd_objective *objective;
    float *prototype_gradient; /* layout of the parameters: of one piece, where pieces have losses of their own */
    sd_activations *student_activations, *teacher_activations;
    sd_batch batch;

    sd_augmenter **augmenters; /* one per thread, for steps on images; made at the first such step */
    float *crop_pixels;        /* crops of such a step */
    bool collapse_reported;
};

/* Values of a global and of a local crop. */
size_t sd_trainer_global_values(const sd_pretrainer_config *config);
size_t sd_trainer_local_values(const sd_pretrainer_config *config);
/* Reads the host's configuration over the defaults, and checks the settings that no other room checks (settings.c). */
sd_status sd_trainer_read_config(const sd_pretrainer_config *source, sd_pretrainer_config *config);
/* The image groups of a piece of `samples` samples; returns their number (1 or 2). Pixels are left NULL. */
size_t sd_trainer_groups(const sd_pretrainer_config *config, size_t samples, sd_image_group groups[2]);
size_t sd_trainer_micro_batch(const sd_pretrainer_config *config);

/* What the schedules say for a step (schedules.c). */
typedef struct sd_step_values {
    double lr, weight_decay, momentum;
    bool frozen; /* the prototypes stay put */
    sd_objective_values objective;
} sd_step_values;
sd_step_values sd_trainer_values(const sd_pretrainer_config *config, uint64_t step);
/* Freezes or frees the prototypes as the step wants it. */
sd_status sd_trainer_freeze(sd_pretrainer *trainer, bool frozen);
/* How many steps the optimizer has made on tensor `info` when `steps` are done. */
uint64_t sd_trainer_tensor_steps(const sd_pretrainer_config *config, const sd_tensor_info *info, uint64_t steps);

/* One step whose crops are ready; `side` work runs beside the student's first forward pass. */
typedef struct sd_side_work {
    sd_parallel_function function;
    void *work;
    size_t count;
    bool done;
} sd_side_work;
sd_status sd_trainer_step(sd_pretrainer *trainer, const sd_crop_batch *crops, sd_side_work *side,
                          sd_step_metrics *metrics);

/* Seconds of a steady clock. */
double sd_trainer_clock(void);

#endif
