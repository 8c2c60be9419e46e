/* Inside of a pretrainer, shared by its files. */
#ifndef SD_TRAINER_H
#define SD_TRAINER_H

#include "train/pretrainer.h"

struct sd_pretrainer {
    sd_context *context;
    sd_pretrainer_config config;
    uint64_t step;
    size_t micro_batch; /* samples of a piece */
    size_t views;       /* global and local */
    size_t dim;         /* of a feature */

    sd_model *student, *teacher;
    sd_optimizer *optimizer;
    float *gradient;      /* layout of the parameters */
    double *norms, *clip; /* one per tensor */
    sd_simdino_loss *loss;
    sd_activations *student_activations, *teacher_activations;
    float *student_features, *teacher_features, *dfeatures; /* rows: view after view, samples of the whole batch */
    /* the same of one piece; NULL when the batch is one piece */
    float *piece_features, *piece_dfeatures;
    float *piece_pixels;                                    /* crops of one piece side by side; NULL likewise */

    sd_augmenter **augmenters; /* one per thread, for steps on images; made at the first such step */
    float *crop_pixels;        /* crops of such a step */
    bool collapse_reported;
};

/* Values of a global and of a local crop. */
size_t sd_trainer_global_values(const sd_pretrainer_config *config);
size_t sd_trainer_local_values(const sd_pretrainer_config *config);
/* Checks the settings that no other room checks. */
sd_status sd_trainer_check(const sd_pretrainer_config *config);
/* The image groups of a piece of `samples` samples; returns their number (1 or 2). Pixels are left NULL. */
size_t sd_trainer_groups(const sd_pretrainer_config *config, size_t samples, sd_image_group groups[2]);
size_t sd_trainer_micro_batch(const sd_pretrainer_config *config);

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
