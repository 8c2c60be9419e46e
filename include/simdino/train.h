/* train.h - pretraining with SimDINO, SimDINOv2, DINO or DINOv2: one call per step.
 *
 *     sd_pretrainer_config config;
 *     sd_pretrainer_config_init(&config);             SimDINO; or
 *     sd_recipe_apply("dinov2-vitb16", images, 0, 0, &config);
 *     config.total_steps = 10000;
 *     sd_pretrainer_create(context, &config, &trainer);
 *     while (sd_pretrainer_position(trainer) < config.total_steps) {
 *         sd_pretrainer_step_loader(trainer, loader, &metrics);
 *         ...
 *     }
 *     sd_pretrainer_save(trainer, "model.safetensors");
 *
 * A step makes or takes the crops, runs teacher and student, the loss, the backward pass, clipping, the optimizer and
 * the teacher's moving average. It is written with the calls of model.h, loss.h and optim.h, and a host can write its
 * own.
 */
#ifndef SIMDINO_TRAIN_H
#define SIMDINO_TRAIN_H

#include <simdino/base.h>
#include <simdino/data.h>
#include <simdino/image.h>
#include <simdino/loss.h>
#include <simdino/model.h>
#include <simdino/optim.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How a batch larger than micro_batch is computed. */
typedef enum sd_accumulation {
    SD_ACCUMULATE_WHOLE = 0, /* the loss, its coding rate included, is that of the whole batch: exact. Costs one more
                                forward pass of the student */
    /* each piece has a loss of its own (and a coding rate over fewer samples); their mean counts */
    SD_ACCUMULATE_PIECES = 1
} sd_accumulation;

/* What is minimised. All four have student and teacher, crops and schedules in common. */
typedef enum sd_method {
    /* class tokens: compression of views, expansion by the coding rate (SimDINO, SimDINOv2: Wu et al., ICML 2025) */
    SD_METHOD_SIMDINO = 0,
    /* the same, and the cosine of student and teacher at patches that the student does not see */
    SD_METHOD_SIMDINOV2 = 1,
    /* class tokens: cross-entropy of assignments to prototypes (M. Caron et al., ICCV 2021) */
    SD_METHOD_DINO = 2,
    /* the same, and for masked patches (iBOT), and KoLeo (M. Oquab et al., 2023) */
    SD_METHOD_DINOV2 = 3
} sd_method;

/* "simdino", "simdinov2", "dino", "dinov2"; NULL for another number. */
SD_API const char *sd_method_name(int32_t method);
/* Errors: SD_ERR_ARGUMENT for another name. */
SD_API sd_status sd_method_from_name(const char *name, int32_t *method);

typedef struct sd_pretrainer_config {
    size_t size;
    sd_model_config model;
    sd_simdino_config loss;  /* of SimDINO and SimDINOv2 */
    sd_augment_config augment;
    sd_optimizer_config optimizer;
    uint64_t seed;           /* of initialisation, augmentation and stochastic depth; default 0 */
    size_t batch_size;       /* largest batch of a step, default 64 */
    size_t micro_batch;      /* samples that are in memory at once; 0 (default): the whole batch */
    int32_t accumulation;    /* sd_accumulation */
    int32_t activations;     /* sd_activation_mode SPEED (default) or MEMORY */
    uint64_t total_steps;    /* length of the schedules, default 10000 */
    uint64_t warmup_steps;   /* of the learning rate, default 1000 */
    double lr;               /* peak learning rate as used (see sd_scale_lr_linear); default 5e-4 */
    double min_lr;           /* at the end, default 1e-6 */
    double weight_decay, weight_decay_end; /* default 0.04 -> 0.4 */
    double momentum, momentum_end;         /* of the teacher, default 0.996 -> 1 */
    int32_t clip;            /* sd_clip_kind, default SD_CLIP_TENSOR */
    int32_t method;          /* sd_method, default SD_METHOD_SIMDINO */
    double clip_limit;       /* default 3.0 */

    /* DINO and DINOv2 (model.prototypes must be set) */
    sd_dino_config dino;
    double teacher_temp_start, teacher_temp; /* temperature of the teacher, default 0.04 -> 0.07 */
    uint64_t teacher_temp_steps;             /* over which it rises in a straight line; default 0: at once */
    /* steps of an epoch, for what a recipe changes by epoch (DINO: the teacher's temperature); default 0: every step */
    uint64_t epoch_steps;
    /* the prototypes stay as they are for so many steps at the start; default 0. DINO: as if they had no gradient; DINOv2:
     * with a learning rate of 0 */
    uint64_t freeze_steps;

    /* SimDINOv2 and DINOv2 (model.mask_token must be set) */
    sd_mask_config mask;
    double patch_weight;     /* of the loss of masked patches, default 1; 0: no masks */
    double koleo_weight;     /* DINOv2: of KoLeo, default 0.1 */

    /* learning rates */
    double lr_start;         /* where the warm-up starts, default 0 */
    int32_t warmup_kind;     /* sd_warmup_kind */
    int32_t precision;       /* sd_precision of the networks' and prototypes' matrix products, default fp32 */
    /* learning rate of a layer relative to the next one (v2: 0.9), and of the patch embedding beyond that (v2: 0.2);
     * default 1 and 1 */
    double layer_decay, patch_embed_lr;

    uint64_t peak_steps;     /* steps at the peak learning rate between warm-up and descent, default 0 */

    /* SimDINO and SimDINOv2: values at the end, reached along half a cosine; negative (default): as at the start */
    double eps_sq_end, coeff_end;

    /* with SD_ACTIVATIONS_SPEED: blocks, from the first, of which only the input is stored (sd_activations_config): 0 to the
     * model's depth, or SD_RECOMPUTED_BLOCKS_AUTO (default): of a model of 12 blocks or more, as many, but not more than a half,
     * as make up for a quarter of what parameters, gradients, moments and teacher take: the fewer images a step has, the more
     * blocks. sd_pretrainer_memory tells what a number of them saves. The results are the same */
    int32_t recomputed_blocks;
    int32_t products; /* sd_products of the steps, default SD_PRODUCTS_STRASSEN */
} sd_pretrainer_config;

/* For recomputed_blocks. */
#define SD_RECOMPUTED_BLOCKS_AUTO (-1)

/* SimDINO's recipe for ViT-S/16 with the defaults above. */
SD_API void sd_pretrainer_config_init(sd_pretrainer_config *config);

/* Sets what belongs to a method, from 10000 steps on: the form of network and head (registers, LayerScale, mask token,
 * prototypes), loss, temperatures, clipping, schedules and learning rates of its official code, all else as init sets it.
 * Sizes of network, crops and batch stay those of ViT-S/16 and are for the caller to choose.
 * Errors: SD_ERR_ARGUMENT. */
SD_API sd_status sd_pretrainer_config_method(sd_pretrainer_config *config, int32_t method);

/* ---- settings by name ---------------------------------------------------------------------- */

/* Every setting of sd_pretrainer_config by the path of its member, "loss.eps_sq" or "batch_size", as text: numbers with a
 * point whatever the locale, several with commas ("0.4,1"), and words where a number stands for one ("dinov2" for
 * method). For configuration files, command lines and logs. All functions here are thread-safe. */
SD_API size_t sd_setting_count(void);
/* NULL for an index out of range. */
SD_API const char *sd_setting_name(size_t index);
/* Writes the setting's text, at most `size` bytes with the final 0 (256 are enough for all but mean and std, 1024 for
 * those). Errors: SD_ERR_ARGUMENT (no such setting, too small). */
SD_API sd_status sd_setting_get(const sd_pretrainer_config *config, const char *name, char *text, size_t size);
/* Errors: SD_ERR_ARGUMENT (no such setting, or a text that is none of its values: config is unchanged). */
SD_API sd_status sd_setting_set(sd_pretrainer_config *config, const char *name, const char *text);

/* ---- recipes ------------------------------------------------------------------------------- */

/* A recipe is a text of lines "setting = value", with a # before comments. Beside the settings above it may say
 *     include = NAME              first all that another recipe says
 *     epochs, epoch_images        length of the run, and images of an epoch where that is not the data set
 *     base_lr, lr_rule            peak learning rate for a batch of 256 (lr_rule = linear) or 1024 (sqrt), to be scaled
 *     warmup_epochs, teacher_temp_epochs, freeze_epochs      what becomes a number of steps
 *     method = NAME               first of all: sd_pretrainer_config_method
 * Those of the official code are "simdino-vits16", "-vitb16", "-vitl16", "simdinov2-vitb16", "-vitl16", "dino-vits16",
 * "-vitb16", "dinov2-vitb16" and "-vitl16"; "METHOD-small-grey" and "METHOD-small-colour" are for images of 28 to 64
 * pixels on a few CPU cores. */
SD_API size_t sd_recipe_count(void);
/* NULL for an index out of range. */
SD_API const char *sd_recipe_name(size_t index);
/* The text of a recipe; NULL when there is none of that name. */
SD_API const char *sd_recipe_text(const char *name);

/* Fills `config` by a recipe for a data set of `images` images; batch_size 0 and epochs 0: the recipe's. Everything can be
 * changed afterwards. A length that is not a number of whole steps is rounded up.
 * Errors: SD_ERR_ARGUMENT (no such recipe; a text with a line that makes no sense, which sd_last_error() quotes). */
SD_API sd_status sd_recipe_apply(const char *name, uint64_t images, size_t batch_size, double epochs,
                                 sd_pretrainer_config *config);
SD_API sd_status sd_recipe_apply_text(const char *text, uint64_t images, size_t batch_size, double epochs,
                                      sd_pretrainer_config *config);

/* What one step did. `size` is set by the caller; members it does not know are not written. */
typedef struct sd_step_metrics {
    size_t size;
    uint64_t step;          /* its number, from 0 */
    double loss, compression, expansion, rate;
    double effective_rank;  /* of the student's features, see sd_simdino_result */
    double similarity;
    double lr, weight_decay, momentum;
    double gradient_norm;   /* of the whole gradient before clipping */
    double seconds;         /* of the call */
    double images_per_second;
    int32_t collapse;       /* 1: the features have collapsed (also logged as a warning, once) */
    int32_t reserved;
    /* parts of the loss that the method has not are 0 */
    double patch_loss;      /* of masked patches, without its weight */
    double koleo;           /* without its weight */
    double local_loss, global_loss; /* DINO, DINOv2: the pairs with a local, a global student view; they add up */
    double target_entropy;  /* DINO, DINOv2: of the teacher's mean assignment, in nats; ln K when all are alike */
    double teacher_temp;    /* DINO, DINOv2 */
    uint64_t masked_patches;
} sd_step_metrics;

typedef struct sd_pretrainer sd_pretrainer;

/* Errors: SD_ERR_ARGUMENT (names the setting and why), SD_ERR_UNSUPPORTED (precision, see sd_precision_check),
 * SD_ERR_MEMORY. */
SD_API sd_status sd_pretrainer_create(sd_context *context, const sd_pretrainer_config *config,
                                      sd_pretrainer **trainer);
SD_API void sd_pretrainer_destroy(sd_pretrainer *trainer);

/* Bytes that a pretrainer of this configuration takes from the context's memory hooks (weights, moments, gradients,
 * activations, and, with a loader of this batch size, its crops), without making one. Beyond it comes only what the
 * BLAS takes for itself.
 * Errors: as create. */
SD_API sd_status sd_pretrainer_memory(sd_context *context, const sd_pretrainer_config *config, size_t *bytes);

/* One training step on `count` images (<= batch_size): crops are drawn from (seed, step, index). Allocates nothing once
 * images of this size were seen. `metrics` may be NULL.
 * When a step fails, weights, moments and step number are as before it.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_MISMATCH (channels), SD_ERR_NUMERIC (loss or gradient not finite), SD_ERR_CANCELLED,
 * SD_ERR_STATE (the schedule is at its end), SD_ERR_MEMORY, SD_ERR_THREAD. */
SD_API sd_status sd_pretrainer_step(sd_pretrainer *trainer, const sd_image *images, size_t count,
                                    sd_step_metrics *metrics);
/* The same on crops that the host made. */
SD_API sd_status sd_pretrainer_step_crops(sd_pretrainer *trainer, const sd_crop_batch *crops,
                                          sd_step_metrics *metrics);
/* The same on the loader's next batch; while it computes, the following batch is augmented on the same threads. The
 * loader is moved to the batch of this step number first, so that a resumed run sees the same batches. Errors: also
 * those of sd_loader_next. */
SD_API sd_status sd_pretrainer_step_loader(sd_pretrainer *trainer, sd_loader *loader, sd_step_metrics *metrics);

/* The number of steps done, which is the number of the next step. */
SD_API uint64_t sd_pretrainer_position(const sd_pretrainer *trainer);

/* The networks, owned by the trainer. They change with every step. */
SD_API const sd_model *sd_pretrainer_student(const sd_pretrainer *trainer);
SD_API const sd_model *sd_pretrainer_teacher(const sd_pretrainer *trainer);

/* The configuration as created or resumed. `config->size` is set by the caller. */
SD_API sd_status sd_pretrainer_get_config(const sd_pretrainer *trainer, sd_pretrainer_config *config);

/* ---- checkpoints --------------------------------------------------------------------------- */

/* Writes everything that training needs to go on: configuration, student, teacher, moments, step number. The file is a
 * valid safetensors file (tensors "student.backbone...", "teacher...", "optimizer.exp_avg...") with checksums; it is
 * written under a temporary name, synced and renamed, so that a checkpoint of that name is never lost to a failure.
 * Errors: SD_ERR_IO (disk full, no permission), SD_ERR_MEMORY. */
SD_API sd_status sd_pretrainer_save(const sd_pretrainer *trainer, const char *path);

/* Makes a pretrainer from a checkpoint: its losses continue exactly as those of the run that was never stopped (same
 * threads not needed, same BLAS kernels needed).
 * A training takes the memory that its settings ask for, and a file may hold any settings: for one that comes from
 * elsewhere, look at sd_checkpoint_info() and sd_pretrainer_memory() first. (Loading a network asks for its weights
 * only, and those are in the file.)
 * Errors: SD_ERR_IO, SD_ERR_FORMAT, SD_ERR_CHECKSUM, SD_ERR_VERSION, SD_ERR_MEMORY, SD_ERR_UNSUPPORTED (its precision:
 * the networks in it can be loaded all the same). */
SD_API sd_status sd_pretrainer_resume(sd_context *context, const char *path, sd_pretrainer **trainer);

/* Reads only a network out of a checkpoint: the teacher's when teacher is 1, else the student's. Errors: as above. */
SD_API sd_status sd_model_load(sd_context *context, const char *path, int32_t teacher, sd_model **model);

/* Reads only the configuration, whose `config->size` the caller has set, and the number of steps done. Either output
 * may be NULL. Errors: as above. */
SD_API sd_status sd_checkpoint_info(sd_context *context, const char *path, sd_pretrainer_config *config,
                                    uint64_t *steps);

#ifdef __cplusplus
}
#endif
#endif
