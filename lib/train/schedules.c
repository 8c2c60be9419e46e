/* What changes from step to step: learning rate, weight decay, momentum, temperature, weights of the loss, and when the
 * prototypes are frozen. */
#include "train/trainer.h"
#include "model/model.h"

#include <string.h>

static double along(double start, double end, const sd_pretrainer_config *c, uint64_t step) {
    sd_schedule schedule = {.base = start, .final = end, .total = c->total_steps};
    return sd_schedule_value(&schedule, step);
}

/* DINO raises the temperature once an epoch, linspace(start, end, epochs); DINOv2 at every step. */
static double teacher_temp_at(const sd_pretrainer_config *c, uint64_t step) {
    uint64_t period = c->epoch_steps > 0 ? c->epoch_steps : 1, count = c->teacher_temp_steps / period;
    if (count == 0)
        return c->teacher_temp;
    sd_schedule schedule = {.base = c->teacher_temp, .final = c->teacher_temp, .start = c->teacher_temp_start,
                            .total = count, .warmup = count, .period = period};
    return sd_schedule_value(&schedule, step);
}

sd_step_values sd_trainer_values(const sd_pretrainer_config *c, uint64_t step) {
    sd_schedule lr = {.base = c->lr, .final = c->min_lr, .start = c->lr_start, .total = c->total_steps,
                      .warmup = c->warmup_steps, .warmup_kind = c->warmup_kind, .peak = c->peak_steps};
    bool prototypes = sd_method_has_prototypes(c), frozen = prototypes && step < c->freeze_steps;
    return (sd_step_values){
        .lr = sd_schedule_value(&lr, step),
        .weight_decay = along(c->weight_decay, c->weight_decay_end, c, step),
        .momentum = along(c->momentum, c->momentum_end, c, step),
        .frozen = frozen,
        .objective =
            {
                .eps_sq = c->eps_sq_end > 0.0 ? along(c->loss.eps_sq, c->eps_sq_end, c, step) : c->loss.eps_sq,
                .coeff = c->coeff_end >= 0.0 ? along(c->loss.coeff, c->coeff_end, c, step) : c->loss.coeff,
                .teacher_temp = prototypes ? teacher_temp_at(c, step) : 0.0,
            },
    };
}

static bool is_last_layer(const sd_tensor_info *info) { return strstr(info->name, "last_layer.") != NULL; }

sd_status sd_trainer_freeze(sd_pretrainer *trainer, bool frozen) {
    const sd_pretrainer_config *c = &trainer->config;
    sd_status status = SD_OK;
    if (!sd_method_has_prototypes(c))
        return SD_OK;
    if (c->method == SD_METHOD_DINOV2)
        return sd_optimizer_set_multipliers(trainer->optimizer, frozen ? trainer->last_layer_rates : trainer->rates,
                                            NULL);
    for (size_t i = 0; i < trainer->student->tensor_count && status == SD_OK; i++)
        if (is_last_layer(&trainer->student->tensors[i]))
            status = sd_optimizer_set_frozen(trainer->optimizer, i, frozen);
    return status;
}

uint64_t sd_trainer_tensor_steps(const sd_pretrainer_config *c, const sd_tensor_info *info, uint64_t steps) {
    if (c->method != SD_METHOD_DINO || !is_last_layer(info))
        return steps;
    return steps > c->freeze_steps ? steps - c->freeze_steps : 0;
}
