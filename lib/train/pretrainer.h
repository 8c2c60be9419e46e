/* What the checkpoint reader and writer may touch of a pretrainer. */
#ifndef SD_PRETRAINER_INTERNAL_H
#define SD_PRETRAINER_INTERNAL_H

#include "base/base.h"
#include "train/objective.h"
#include <simdino/train.h>

sd_context *sd_pretrainer_context(const sd_pretrainer *trainer);
const sd_pretrainer_config *sd_pretrainer_config_of(const sd_pretrainer *trainer);
sd_model *sd_pretrainer_mutable_student(sd_pretrainer *trainer);
sd_model *sd_pretrainer_mutable_teacher(sd_pretrainer *trainer);
sd_optimizer *sd_pretrainer_optimizer(const sd_pretrainer *trainer);
sd_objective *sd_pretrainer_objective(const sd_pretrainer *trainer);
sd_status sd_pretrainer_set_position(sd_pretrainer *trainer, uint64_t step, uint64_t optimizer_steps);

#endif
