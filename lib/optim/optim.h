/* optim - optimizers, clipping, the EMA teacher and schedules: plain loops over flat parameter memory.
 *
 * All loops run over blocks of a fixed size, whatever the number of threads, and sums over them are taken in a fixed
 * order, so that results do not depend on threads.
 */
#ifndef SD_OPTIM_H
#define SD_OPTIM_H

#include "base/base.h"
#include <simdino/optim.h>

/* Floats of a block: few enough that the arrays of one update stay in the cache from one loop to the next. */
#define SD_OPTIM_BLOCK ((size_t)8192)

/* ---- one call instead of three ------------------------------------------------------------- */

/* sd_clip_gradient, sd_optimizer_step and sd_ema_update in one walk through memory, with the same results to the bit
 * (the gradient itself is left as it is). Allocates nothing.
 *   tensor_scale  one factor per tensor of the layout, from sd_clip_factors; NULL: 1
 *   teacher       parameter_count floats that follow the parameters; NULL: none. Only floats of tensors are touched
 * Errors: as of the three. */
sd_status sd_optimizer_step_fused(sd_optimizer *optimizer, float *parameters, const float *gradient,
                                  const double *tensor_scale, double lr, double weight_decay, float *teacher,
                                  double momentum);

/* ---- clipping in two halves ---------------------------------------------------------------- */

/* Only measures. norms: tensor_count doubles, written also on failure; total may be NULL. Allocates nothing.
 * Errors: SD_ERR_NUMERIC (names the first tensor with NaN or infinity), SD_ERR_THREAD. */
sd_status sd_gradient_norms(sd_context *context, const sd_tensor_info *tensors, size_t tensor_count,
                            const float *gradient, double *norms, double *total);

/* The factor, at most 1, that clipping applies to each tensor. `factors` must not be `norms`. */
void sd_clip_factors(const sd_tensor_info *tensors, size_t tensor_count, sd_clip_kind kind, double limit,
                     const double *norms, double *factors);

/* ---- loops over one block (kernels.c) ------------------------------------------------------ */

/* What an optimizer does to one block of one tensor. `scale` multiplies the gradient first. */
typedef struct sd_adamw_numbers {
    float beta1, rest1;      /* beta1, 1 - beta1 */
    float beta2, rest2;      /* beta2, 1 - beta2 */
    float root_correction2;  /* sqrt(1 - beta2^t) */
    float epsilon;
    float step;              /* -lr / (1 - beta1^t) */
} sd_adamw_numbers;

void sd_adamw_block(const sd_adamw_numbers *numbers, float keep, float scale, float *parameters, const float *gradient,
                    float *average, float *average_square, size_t count);

/* velocity <- momentum velocity + ratio (scale gradient + decay parameter); parameter <- parameter + step velocity.
 * SGD has ratio 1. */
void sd_momentum_block(float momentum, float decay, float ratio, float step, float scale, float *parameters,
                       const float *gradient, float *velocity, size_t count);

void sd_ema_block(float momentum, float rest, float *teacher, const float *student, size_t count);
void sd_scale_block(float factor, float *values, size_t count);

/* Sum of squares, in double. */
double sd_square_sum(const float *values, size_t count);
/* Sum of squares of scale gradient + decay parameter, each rounded to float as the update rounds it. */
double sd_update_square_sum(float decay, float scale, const float *parameters, const float *gradient, size_t count);

#endif
