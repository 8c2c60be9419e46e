/* optim.h - optimizers, gradient clipping, the EMA teacher, and schedules. */
#ifndef SIMDINO_OPTIM_H
#define SIMDINO_OPTIM_H

#include <simdino/base.h>
#include <simdino/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- optimizer ----------------------------------------------------------------------------- */

typedef enum sd_optimizer_kind {
    SD_OPTIMIZER_ADAMW = 0, /* torch.optim.AdamW */
    SD_OPTIMIZER_SGD = 1,   /* torch.optim.SGD with momentum */
    SD_OPTIMIZER_LARS = 2   /* the official code's LARS */
} sd_optimizer_kind;

typedef struct sd_optimizer_config {
    size_t size;
    int32_t kind;            /* sd_optimizer_kind, default ADAMW */
    double beta1, beta2;     /* AdamW, default 0.9, 0.999 */
    double epsilon;          /* AdamW, default 1e-8 */
    double momentum;         /* SGD and LARS, default 0.9 */
    double trust;            /* LARS trust coefficient eta, default 0.001 */
    /* zero; room for later settings, because this struct is also part of sd_pretrainer_config */
    int64_t reserved[8];
} sd_optimizer_config;
SD_API void sd_optimizer_config_init(sd_optimizer_config *config);

/* The state (moments, step count) for the tensors of one layout. */
typedef struct sd_optimizer sd_optimizer;

/* For a layout given by tensors (copied): offsets and counts within a flat array of parameter_count floats.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_MEMORY. */
SD_API sd_status sd_optimizer_create(sd_context *context, const sd_optimizer_config *config,
                                     const sd_tensor_info *tensors, size_t tensor_count, size_t parameter_count,
                                     sd_optimizer **optimizer);
/* For the parameters of a model. */
SD_API sd_status sd_optimizer_create_for_model(sd_context *context, const sd_optimizer_config *config,
                                               const sd_model *model, sd_optimizer **optimizer);
SD_API void sd_optimizer_destroy(sd_optimizer *optimizer);

/* One step: parameters and state are updated in place with the learning rate `lr`; tensors with decay = 1 get
 * `weight_decay`, the others none. Multipliers and frozen tensors (below) change that.
 * Errors: SD_ERR_ARGUMENT (negative or not finite lr or weight_decay), SD_ERR_THREAD. */
SD_API sd_status sd_optimizer_step(sd_optimizer *optimizer, float *parameters, const float *gradient, double lr,
                                   double weight_decay);

/* From the next step on tensor i of the table has the learning rate lr[i]*`lr` and the weight decay
 * decay[i]*`weight_decay`; both arrays are copied.
 *   lr     one per tensor; NULL: 1. With 0 a tensor keeps its values while moments and step count advance, which is how
 *          DINOv2 freezes its last layer in the first epoch
 *   decay  one per tensor; NULL: the table's decay flags
 * Errors: SD_ERR_ARGUMENT (negative or not finite: names the tensor's number; nothing was changed). */
SD_API sd_status sd_optimizer_set_multipliers(sd_optimizer *optimizer, const double *lr, const double *decay);

/* Freezes (1) or frees (0) a tensor of the table. A frozen tensor is one without a gradient: its values, moments and
 * step count stay as they are, whatever `gradient` holds there. So DINO freezes its last layer in the first epoch.
 * Errors: SD_ERR_ARGUMENT (no such tensor). */
SD_API sd_status sd_optimizer_set_frozen(sd_optimizer *optimizer, size_t tensor, int32_t frozen);

/* The layer-wise learning rates of DINOv2 and SimDINOv2 (their get_params_groups_with_decay), for
 * sd_optimizer_set_multipliers. Each array has one element per tensor and may be NULL.
 *   lr          rate^(depth + 1 - layer), by the table's `layer`; that of the patch embedding times `patch_embed`
 *   decay       0 for biases, norms and LayerScale, told by their names, and where the table's decay is 0; else 1
 *   last_layer  1 for the prototypes ("last_layer" in the name), which have a learning rate schedule of their own
 * depth is the number of blocks. Official: rate 0.9, patch_embed 0.2; 1 and 1 leave all learning rates alike.
 * Thread-safe. Errors: SD_ERR_ARGUMENT (rate not positive, patch_embed negative, a layer outside 0 .. depth+1). */
SD_API sd_status sd_layer_multipliers(const sd_tensor_info *tensors, size_t tensor_count, int32_t depth, double rate,
                                      double patch_embed, double *lr, double *decay, uint8_t *last_layer);

/* The state as flat arrays: AdamW has 2 (exp_avg, exp_avg_sq), SGD and LARS 1 (momentum). Writable, for saving and
 * resuming. NULL for another index. */
SD_API size_t sd_optimizer_state_count(const sd_optimizer *optimizer);
SD_API float *sd_optimizer_state(sd_optimizer *optimizer, size_t index);
SD_API const char *sd_optimizer_state_name(const sd_optimizer *optimizer, size_t index);
/* How many steps were made. Setting it sets the counts of all tensors too. */
SD_API uint64_t sd_optimizer_steps(const sd_optimizer *optimizer);
SD_API void sd_optimizer_set_steps(sd_optimizer *optimizer, uint64_t steps);
/* The step count of one tensor, of which AdamW's bias correction is made: fewer than the above where the tensor was
 * frozen for a while. To resume, call sd_optimizer_set_steps, then this for the tensors that differ. 0 for no such
 * tensor.
 * Errors: SD_ERR_ARGUMENT (no such tensor). */
SD_API uint64_t sd_optimizer_tensor_steps(const sd_optimizer *optimizer, size_t tensor);
SD_API sd_status sd_optimizer_set_tensor_steps(sd_optimizer *optimizer, size_t tensor, uint64_t steps);

/* ---- clipping ------------------------------------------------------------------------------ */

typedef enum sd_clip_kind {
    SD_CLIP_NONE = 0,
    SD_CLIP_TENSOR = 1, /* each tensor by its own norm (SimDINO, DINO) */
    SD_CLIP_MODULE = 2  /* backbone, head and patch head each by the norm of the whole (v2) */
} sd_clip_kind;

/* Scales gradients down by limit/(norm + 1e-6) where that is below 1.
 *   norms  receives each tensor's norm before clipping (tensor_count doubles); may be NULL
 *   total  receives the norm of the whole gradient before clipping; may be NULL
 * SD_CLIP_NONE only measures. Modules are told by the tensors' names up to the first dot. Allocates nothing for up to
 * 512 tensors.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_NUMERIC (NaN or infinity in the gradient: names the tensor; nothing was scaled),
 * SD_ERR_MEMORY, SD_ERR_THREAD. */
SD_API sd_status sd_clip_gradient(sd_context *context, const sd_tensor_info *tensors, size_t tensor_count,
                                  float *gradient, sd_clip_kind kind, double limit, double *norms, double *total);

/* ---- EMA teacher --------------------------------------------------------------------------- */

/* teacher <- momentum * teacher + (1 - momentum) * student, over count floats.
 * Errors: SD_ERR_ARGUMENT (momentum outside [0, 1]). */
SD_API sd_status sd_ema_update(sd_context *context, float *teacher, const float *student, size_t count,
                               double momentum);

/* ---- schedules ----------------------------------------------------------------------------- */

typedef enum sd_warmup_kind {
    SD_WARMUP_INCLUSIVE = 0, /* DINO, SimDINO, DINOv2: linspace(start, base, warmup), end point included */
    SD_WARMUP_EXCLUSIVE = 1  /* SimDINOv2: base reached one step later */
} sd_warmup_kind;

typedef enum sd_schedule_kind {
    SD_SCHEDULE_COSINE = 0, /* half a cosine from base to final */
    SD_SCHEDULE_LINEAR = 1  /* a straight line from base to final */
} sd_schedule_kind;

/* `freeze` steps of 0, a linear warm-up from `start` to `base` over `warmup` steps, `peak` steps of base, then down (or
 * up) to `final` over the rest of `total` steps; `final` from then on. Neither curve reaches final before step `total`.
 * Set what is used and leave the rest 0. For instance, with E steps in an epoch:
 *     learning rate
 *         {.base = lr, .final = 1e-6, .total = 100*E, .warmup = 10*E}
 *     of a last layer that is frozen for an epoch (DINOv2)
 *         the same with .cut = E
 *     teacher temperature of DINO, by epoch
 *         {.base = 0.07, .final = 0.07, .start = 0.04, .total = 100, .warmup = 30, .period = E}
 *     teacher temperature of DINOv2, by step
 *         {.base = 0.07, .final = 0.07, .start = 0.04, .total = 30*E, .warmup = 30*E} */
typedef struct sd_schedule {
    double base, final, start;
    uint64_t total, warmup, freeze;
    int32_t warmup_kind; /* sd_warmup_kind */
    int32_t kind;        /* sd_schedule_kind */
    uint64_t peak;       /* steps at base between warm-up and descent */
    uint64_t cut;        /* the first `cut` steps are 0; unlike freeze, it moves nothing */
    uint64_t period;     /* the value changes every `period` steps only; all lengths above count such periods; 0: 1 */
} sd_schedule;

/* The value at step 0, 1, ... Thread-safe, no errors. */
SD_API double sd_schedule_value(const sd_schedule *schedule, uint64_t step);

/* base_lr scaled linearly by batch/256 (v1) or by sqrt(batch/1024) (v2). */
SD_API double sd_scale_lr_linear(double base_lr, size_t batch);
SD_API double sd_scale_lr_sqrt(double base_lr, size_t batch);

#ifdef __cplusplus
}
#endif
#endif
