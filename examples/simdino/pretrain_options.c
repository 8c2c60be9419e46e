/* The options of "pretrain". See pretrain.h. */
#include "pretrain.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

static const char *const preset_names[] = {"tiny", "small", "base", "large", NULL};
static const char *const accumulation_names[] = {"whole", "pieces", NULL};   /* sd_accumulation */
static const char *const optimizer_names[] = {"adamw", "sgd", "lars", NULL}; /* sd_optimizer_kind */
static const char *const activation_names[] = {"speed", "memory", NULL};     /* sd_activation_mode from SPEED on */
static const char *const clip_names[] = {"none", "tensor", "module", NULL};  /* sd_clip_kind */
static const char *const off_on[] = {"0", "1", NULL};

#define MOST_OPTIONS 80
#define MOST_STEPS   1e15

/* Shorthands for the table below. */
/* clang-format off */
#define HEADING(text) {.kind = OPTION_HEADING, .name = text}
#define FREE(type, named, argument, where, words) \
    {.kind = type, .name = named, .value = argument, .target = where, .help = words}
#define TRAINING(type, named, argument, where, low, high, words) \
    {.kind = type, .name = named, .value = argument, .target = where, .least = low, .most = high, .help = words, \
     .fixed_by_checkpoint = true}
#define NUMBERS(named, argument, where, wanted, low, high, words) \
    {.kind = OPTION_REALS, .name = named, .value = argument, .target = where, .count = wanted, .fewest = wanted, \
     .least = low, .most = high, .help = words, .fixed_by_checkpoint = true}
#define WORD(named, argument, where, list, words) \
    {.kind = OPTION_CHOICE, .name = named, .value = argument, .target = where, .choices = list, .help = words, \
     .fixed_by_checkpoint = true}

/* clang-format on */

static option table[MOST_OPTIONS];

static size_t fill_table(pretrain_settings *s) {
    sd_model_config *model = &s->config.model;
    sd_augment_config *augment = &s->config.augment;
    sd_pretrainer_config *config = &s->config;
    /* clang-format off */
    const option all[] = {
        HEADING("Data and results"),
        FREE(OPTION_TEXT, "data", "PATH", &s->data, SOURCE_PATH_HELP),
        {.kind = OPTION_TEXT, .name = "out", .letter = 'o', .value = "FILE", .target = &s->out,
         .help = "the checkpoint, a safetensors file (default: model.safetensors; with --resume: the file resumed)"},
        FREE(OPTION_FLAG, "overwrite", NULL, &s->overwrite, "let a new run replace an existing checkpoint"),
        FREE(OPTION_TEXT, "resume", "FILE", &s->resume,
             "go on from this checkpoint, exactly as if the run had not been stopped; its settings are kept"),
        {.kind = OPTION_COUNT, .name = "save-every", .value = "STEPS", .target = &s->save_every, .least = 1,
         .most = MOST_STEPS, .help =
             "steps between checkpoints (default: every 10 minutes); one is always written at the end"},
        FREE(OPTION_TEXT, "metrics", "FILE", &s->metrics,
             "numbers of every step, as .csv or, when the name ends so, .jsonl"),
        FREE(OPTION_TEXT, "curve", "FILE.png", &s->curve, "picture of the loss curve"),
        {.kind = OPTION_COUNT, .name = "knn-every", .value = "STEPS", .target = &s->knn_every, .least = 1,
         .most = MOST_STEPS, .help =
             "measure k-NN accuracy every so many steps, on 10000 training and 2000 test images (default: never)"},
        FREE(OPTION_TEXT, "test-data", "PATH", &s->test_data,
             "test images for --knn-every, where --data does not bring them"),

        HEADING("Length (one of the three; default: the recipe's epochs)"),
        TRAINING(OPTION_REAL, "epochs", "N", &s->epochs, 1e-6, 1e9, "passes over the images"),
        TRAINING(OPTION_COUNT, "steps", "N", &s->steps, 1, MOST_STEPS, "training steps"),
        TRAINING(OPTION_REAL, "minutes", "N", &s->minutes, 0.01, 1e6,
                 "time: the speed is measured first, and the schedule is laid out to end in time"),
        {.kind = OPTION_COUNT, .name = "stop-after", .value = "STEPS", .target = &s->stop_after, .least = 1,
         .most = MOST_STEPS, .help =
             "stop early after so many steps of this call and save, to be resumed; the schedule stays as it is"},

        HEADING("Network"),
        WORD("recipe", "NAME", &s->recipe, recipe_names(), "where defaults come from (see below)"),
        WORD("preset", "NAME", &s->preset, preset_names,
             "dim/depth/heads: tiny 192/12/3, small 384/12/6, base 768/12/12, large 1024/24/16"),
        TRAINING(OPTION_INT, "dim", "N", &model->dim, 1, 1e6, "width (recipe)"),
        TRAINING(OPTION_INT, "depth", "N", &model->depth, 1, 1e4, "blocks (recipe)"),
        TRAINING(OPTION_INT, "heads", "N", &model->heads, 1, 1e4, "attention heads; must divide dim (recipe)"),
        TRAINING(OPTION_INT, "patch", "PIXELS", &model->patch_size, 1, 1e4, "side of a patch (recipe)"),
        TRAINING(OPTION_INT, "image-size", "PIXELS", &model->image_size, 1, 1e5,
                 "side that the position embedding is learned for (default: --global-size)"),
        TRAINING(OPTION_REAL, "mlp-ratio", "X", &model->mlp_ratio, 1e-3, 1e3,
                 "hidden width of the MLP / dim (recipe)"),
        TRAINING(OPTION_REAL, "drop-path", "P", &model->drop_path, 0, 0.99,
                 "stochastic depth of the last block (recipe)"),
        TRAINING(OPTION_INT, "head-hidden", "N", &model->head_hidden, 1, 1e6, "hidden width of the head (recipe)"),
        TRAINING(OPTION_INT, "head-dim", "N", &model->head_dim, 1, 1e6, "width of the features in the loss (recipe)"),

        HEADING("Crops"),
        TRAINING(OPTION_INT, "global-size", "PIXELS", &augment->global_size, 1, 1e5,
                 "side of the 2 global crops (recipe)"),
        TRAINING(OPTION_INT, "local-size", "PIXELS", &augment->local_size, 1, 1e5, "side of the local crops (recipe)"),
        TRAINING(OPTION_INT, "locals", "N", &augment->local_crops, 0, SD_MAX_VIEWS - 2,
                 "number of local crops (recipe)"),
        NUMBERS("global-scale", "LOW,HIGH", augment->global_scale, 2, 1e-6, 1, "share of the area (recipe)"),
        NUMBERS("local-scale", "LOW,HIGH", augment->local_scale, 2, 1e-6, 1, "share of the area (recipe)"),
        TRAINING(OPTION_REAL, "flip", "P", &augment->flip, 0, 1, "probability of a mirrored crop (recipe)"),
        TRAINING(OPTION_REAL, "jitter", "P", &augment->jitter, 0, 1, "probability of colour jitter (recipe)"),
        TRAINING(OPTION_REAL, "brightness", "X", &augment->brightness, 0, 1, "range of the jitter (recipe)"),
        TRAINING(OPTION_REAL, "contrast", "X", &augment->contrast, 0, 1, "range of the jitter (recipe)"),
        TRAINING(OPTION_REAL, "saturation", "X", &augment->saturation, 0, 1,
                 "range of the jitter; colour only (recipe)"),
        TRAINING(OPTION_REAL, "hue", "X", &augment->hue, 0, 0.5, "range of the jitter; colour only (recipe)"),
        TRAINING(OPTION_REAL, "gray", "P", &augment->gray, 0, 1, "probability of a grey crop; colour only (recipe)"),
        NUMBERS("blur", "P,P,P", augment->blur, 3, 0, 1, "probability for global crop 1, 2, local crops (recipe)"),
        NUMBERS("blur-radius", "LOW,HIGH", augment->blur_radius, 2, 0, 100, "pixels (recipe)"),
        NUMBERS("solarize", "P,P,P", augment->solarize, 3, 0, 1,
                 "probability for global crop 1, 2, local crops (recipe)"),
        {.kind = OPTION_REALS, .name = "mean", .value = "X[,X...]", .target = s->mean, .count = SD_MAX_CHANNELS,
         .fewest = 1, .given_count = &s->mean_count, .help = "of the channels, of values 0..1 (recipe)",
         .fixed_by_checkpoint = true},
        {.kind = OPTION_REALS, .name = "std", .value = "X[,X...]", .target = s->std, .count = SD_MAX_CHANNELS,
         .fewest = 1, .given_count = &s->std_count, .least = 1e-6, .most = 1e6,
         .help = "deviation of the channels (recipe)", .fixed_by_checkpoint = true},

        HEADING("Loss"),
        TRAINING(OPTION_REAL, "eps", "X", &config->loss.eps_sq, 1e-12, 1e6,
                 "eps of the coding rate, the paper's epsilon squared (recipe)"),
        TRAINING(OPTION_REAL, "coeff", "X", &config->loss.coeff, 0, 1e6, "weight of compression (recipe)"),
        WORD("expa-type", "0|1", &config->loss.expa_type, off_on,
             "expansion of the student's view (0) or of the mean of student and teacher (1, default)"),
        TRAINING(OPTION_INT, "groups", "N", &config->loss.groups, 1, 1e6,
                 "groups that the batch is split into for the coding rate (default: 1; published runs: 8)"),
        WORD("reduce-gram", "0|1", &config->loss.reduce_gram, off_on,
             "1: the groups' Gram matrices are summed before the determinant (default: 0)"),

        HEADING("Optimization"),
        TRAINING(OPTION_COUNT, "batch", "N", &s->batch, 1, 1e9, "images of a step (recipe)"),
        TRAINING(OPTION_COUNT, "micro-batch", "N", &s->micro_batch, 0, 1e9,
                 "images that are in memory at once (default: the whole batch)"),
        WORD("accumulation", "HOW", &config->accumulation, accumulation_names,
             "with --micro-batch: whole (default; coding rate of the whole batch) or pieces (of each piece; faster)"),
        WORD("optimizer", "NAME", &config->optimizer.kind, optimizer_names, "adamw (default), sgd, lars"),
        TRAINING(OPTION_REAL, "lr", "X", &config->lr, 0, 1e38,
                 "peak learning rate, as used (default: the recipe's, scaled linearly with the batch)"),
        TRAINING(OPTION_REAL, "min-lr", "X", &config->min_lr, 0, 1e6, "learning rate at the end (recipe)"),
        {.kind = OPTION_TEXT, .name = "warmup", .value = "STEPS|P%", .target = &s->warmup, .fixed_by_checkpoint = true,
         .help = "steps in which the learning rate rises, or a share of the run (default: 10%)"},
        TRAINING(OPTION_REAL, "weight-decay", "X", &config->weight_decay, 0, 1e6, "at the start (recipe)"),
        TRAINING(OPTION_REAL, "weight-decay-end", "X", &config->weight_decay_end, 0, 1e6, "at the end (recipe)"),
        TRAINING(OPTION_REAL, "momentum", "X", &config->momentum, 0, 1, "of the teacher, at the start (recipe)"),
        TRAINING(OPTION_REAL, "momentum-end", "X", &config->momentum_end, 0, 1, "of the teacher, at the end (recipe)"),
        WORD("clip", "KIND", &config->clip, clip_names,
             "gradient clipping: tensor (default; each by its norm), module (backbone and head), none"),
        TRAINING(OPTION_REAL, "clip-limit", "X", &config->clip_limit, 1e-9, 1e9, "largest norm (recipe)"),

        HEADING("Running"),
        WORD("activations", "HOW", &s->activations, activation_names,
             "speed (default), or memory: computes parts of the forward pass twice to need less of it"),
        TRAINING(OPTION_COUNT, "seed", "N", &config->seed, 0, MOST_STEPS,
                 "of weights, order and crops (default: 0); equal seeds give equal runs"),
        {.kind = OPTION_INT, .name = "threads", .value = "N", .target = &s->threads, .least = 0, .most = 4096,
         .help = "threads to compute with (default: 0, all)"},
    };
    /* clang-format on */
    size_t count = sizeof all / sizeof all[0];
    _Static_assert(sizeof all / sizeof all[0] <= MOST_OPTIONS, "the table of options is full");
    memcpy(table, all, sizeof all);
    return count;
}

options_outcome pretrain_parse(int argc, char **argv, pretrain_settings *settings, option_set *set) {
    *settings = (pretrain_settings){.recipe = -1, .preset = -1};
    *set = (option_set){
        .command = "pretrain",
        .synopsis = "--data PATH [options]",
        .about = "Trains a vision transformer with SimDINO on images without using their labels, and saves it.\n"
                 "Ctrl-C saves a checkpoint and ends; --resume goes on from it.",
        .options = table,
        .count = fill_table(settings),
        .more_help = recipe_print_table,
    };
    options_outcome outcome = options_parse(set, argc, argv);
    if (outcome == OPTIONS_GO) {
        options_apply(set);
    }
    return outcome;
}

const option *pretrain_conflict_with_resume(const option_set *set) {
    for (size_t i = 0; i < set->count; i++) {
        if (set->options[i].fixed_by_checkpoint && set->options[i].text != NULL) {
            return &set->options[i];
        }
    }
    return NULL;
}

static int complete_normalisation(pretrain_settings *s, const option_set *set, int32_t channels) {
    if ((s->mean_count > 0 && s->mean_count != (size_t)channels) ||
        (s->std_count > 0 && s->std_count != (size_t)channels)) {
        return options_wrong(set, "--mean and --std need one number for each of the %d channels", channels);
    }
    for (size_t c = 0; c < s->mean_count; c++) {
        s->config.augment.mean[c] = s->mean[c];
    }
    for (size_t c = 0; c < s->std_count; c++) {
        s->config.augment.std[c] = s->std[c];
    }
    return EXIT_OK;
}

int pretrain_complete(pretrain_settings *s, const option_set *set, const source *data) {
    sd_pretrainer_config *config = &s->config;
    const recipe *r = s->recipe >= 0 ? &recipes[s->recipe] : recipe_for(data);

    /* The library's defaults, then the recipe, then the preset, then what the command line says. */
    sd_pretrainer_config_init(config);
    recipe_apply(r, data->channels, config);
    if (s->preset >= 0) {
        sd_status status = sd_model_config_preset(&config->model, preset_names[s->preset]);
        if (status != SD_OK) {
            return failed("--preset", status);
        }
    }
    s->batch = r->batch;
    options_apply(set);
    config->activations = SD_ACTIVATIONS_SPEED + s->activations;
    config->batch_size = (size_t)s->batch;
    config->micro_batch = (size_t)s->micro_batch;
    if (!option_given(set, "image-size")) {
        config->model.image_size = config->augment.global_size;
    }
    if (!option_given(set, "lr")) {
        config->lr = sd_scale_lr_linear(r->lr_256, config->batch_size);
    }
    if (!option_given(set, "epochs")) {
        s->epochs = r->epochs;
    }
    return complete_normalisation(s, set, data->channels);
}

int pretrain_set_steps(pretrain_settings *s, const option_set *set, uint64_t steps) {
    s->config.total_steps = steps > 0 ? steps : 1;
    double share = 10, number = 0;
    if (s->warmup != NULL) {
        char *end = NULL;
        number = strtod(s->warmup, &end);
        if (end == s->warmup || !(number >= 0) || (strcmp(end, "%") != 0 && *end != '\0') ||
            (*end == '%' && number > 100) || (*end == '\0' && number > 9e15)) {
            return options_wrong(set, "--warmup %s: expected steps (\"500\") or a share (\"10%%\")", s->warmup);
        }
        share = *end == '%' ? number : -1;
    }
    s->config.warmup_steps = share >= 0 ? (uint64_t)(share / 100 * (double)s->config.total_steps) : (uint64_t)number;
    if (s->config.warmup_steps > s->config.total_steps) {
        return options_wrong(set, "--warmup %s: the run has only %llu steps", s->warmup,
                             (unsigned long long)s->config.total_steps);
    }
    return EXIT_OK;
}
