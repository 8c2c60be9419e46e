/* pretrain.h - the settings of the command "pretrain", and where they come from. */
#ifndef PRETRAIN_H
#define PRETRAIN_H

#include <simdino/simdino.h>
#include <stdbool.h>

#include "options.h"
#include "recipe.h"
#include "sources.h"

typedef struct pretrain_settings {
    const char *data, *test_data, *out, *resume, *metrics, *curve;
    const char *warmup; /* "500" steps or "10%" of all */
    const char *recipe, *set;       /* name or file; "NAME=VALUE NAME=VALUE" */
    const char *recipe_text;        /* what is in force */
    char *recipe_file;              /* its text, when it came from a file */
    uint64_t images;                /* of the data set */
    int32_t method, preset, activations;
    bool overwrite;
    double minutes, epochs;
    uint64_t steps, stop_after, save_every, knn_every;
    uint64_t batch, micro_batch;
    int32_t threads;
    sd_pretrainer_config config;
    double mean[SD_MAX_CHANNELS], std[SD_MAX_CHANNELS];
    double mask_ratio[2];
    size_t mean_count, std_count;
} pretrain_settings;

/* Reads the command line into settings that still lack what the recipe says. */
options_outcome pretrain_parse(int argc, char **argv, pretrain_settings *settings, option_set *set);

/* The option that a checkpoint already decides and that was given nevertheless; NULL when there is none. */
const option *pretrain_conflict_with_resume(const option_set *set);

/* Completes settings->config for the images: recipe, preset, then what was given. total_steps and warmup_steps stay
 * open. EXIT_OK, or the exit code of an error that was reported. */
int pretrain_complete(pretrain_settings *settings, const option_set *set, const source *data);

/* Sets total_steps, and the phases of the run by the recipe's shares (warm-up as --warmup says). EXIT_OK or
 * EXIT_WRONG_USAGE. */
int pretrain_set_steps(pretrain_settings *settings, const option_set *set, uint64_t steps);

#endif
