/* recipe.h - the numbers that pretraining starts from, by the kind of images. */
#ifndef RECIPE_H
#define RECIPE_H

#include <simdino/simdino.h>

#include "sources.h"

typedef struct recipe {
    const char *name;
    const char *meant_for;
    /* network */
    int32_t patch, dim, depth, heads;
    double mlp_ratio, drop_path;
    int32_t head_hidden, head_dim;
    /* crops */
    int32_t global_size, local_size, locals;
    double global_scale[2], local_scale[2];
    double flip, jitter, brightness, contrast, saturation, hue, gray;
    double blur[3], blur_radius[2], solarize[3];
    double mean[3], std[3];
    /* training */
    uint64_t batch;
    double epochs;
    double lr_256; /* peak learning rate for a batch of 256; scaled linearly with the batch */
    double min_lr;
    double warmup; /* share of all steps */
    double weight_decay, weight_decay_end;
    double momentum, momentum_end;
    double eps, coeff;
    double clip_limit;
} recipe;

extern const recipe recipes[];
extern const size_t recipe_count;

const recipe *recipe_find(const char *name);  /* NULL: no such recipe */
const recipe *recipe_for(const source *data); /* by channels and size */
const char *const *recipe_names(void);        /* ends with NULL */
void recipe_apply(const recipe *r, int32_t channels, sd_pretrainer_config *config);
void recipe_print_table(void);

#endif
