/* The options of "pretrain". See pretrain.h. */
#include "pretrain.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

static const char *const method_names[] = {"simdino", "simdinov2", "dino", "dinov2", NULL}; /* sd_method */
static const char *const target_names[] = {"center", "sinkhorn", NULL};      /* sd_target_kind */
static const char *const preset_names[] = {"tiny", "small", "base", "large", NULL};
static const char *const accumulation_names[] = {"whole", "pieces", NULL};   /* sd_accumulation */
static const char *const optimizer_names[] = {"adamw", "sgd", "lars", NULL}; /* sd_optimizer_kind */
static const char *const activation_names[] = {"speed", "memory", NULL};     /* sd_activation_mode from SPEED on */
static const char *const clip_names[] = {"none", "tensor", "module", NULL};  /* sd_clip_kind */
static const char *const precision_names[] = {"fp32", "bf16", NULL};         /* sd_precision */
static const char *const product_names[] = {"plain", "strassen", NULL};      /* sd_products */
static const char *const off_on[] = {"0", "1", NULL};

#define MOST_OPTIONS 100
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
        ON_ERROR_OPTION,
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

        HEADING("Method"),
        WORD("method", "NAME", &s->method, method_names, "simdino (default), simdinov2, dino, dinov2"),
        {.kind = OPTION_TEXT, .name = "recipe", .value = "NAME|FILE", .target = &s->recipe, .fixed_by_checkpoint = true,
         .help = "where defaults come from (default: the method's recipe for such images; see below)"},
        {.kind = OPTION_TEXT, .name = "set", .value = "NAME=VALUE ...", .target = &s->set, .fixed_by_checkpoint = true,
         .help = "any setting of \"simdino recipe NAME --all\", several with spaces between; the last word"},

        HEADING("Network"),
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
        TRAINING(OPTION_INT, "registers", "N", &model->registers, 0, 64, "register tokens (recipe)"),
        TRAINING(OPTION_REAL, "layer-scale", "X", &model->layer_scale, -1e6, 1e6,
                 "initial value of LayerScale, 0 for none (recipe)"),
        TRAINING(OPTION_INT, "prototypes", "N", &model->prototypes, 1, 1e6, "of DINO and DINOv2 (recipe)"),

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
        TRAINING(OPTION_REAL, "teacher-temp", "X", &config->teacher_temp, 1e-6, 1e6,
                 "DINO, DINOv2: temperature of the teacher after its warm-up (recipe)"),
        TRAINING(OPTION_REAL, "teacher-temp-start", "X", &config->teacher_temp_start, 1e-6, 1e6,
                 "and before (recipe)"),
        WORD("targets", "HOW", &config->dino.target, target_names,
             "DINO, DINOv2: center (default) or sinkhorn keeps the teacher's assignments spread"),
        TRAINING(OPTION_REAL, "center-momentum", "X", &config->dino.center_momentum, 0, 1,
                 "DINO, DINOv2: of the center; 1 leaves it at 0, no centering (recipe)"),
        TRAINING(OPTION_REAL, "patch-weight", "X", &config->patch_weight, 0, 1e6,
                 "SimDINOv2, DINOv2: weight of masked patches, 0 for no masks (recipe)"),
        NUMBERS("mask-ratio", "LOW,HIGH", s->mask_ratio, 2, 0, 1, "SimDINOv2, DINOv2: share of masked patches (recipe)"),
        TRAINING(OPTION_REAL, "koleo", "X", &config->koleo_weight, 0, 1e6, "DINOv2: weight of KoLeo (recipe)"),
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
        {.kind = OPTION_INT, .name = "recompute-blocks", .value = "N", .target = &config->recomputed_blocks, .least = -1,
         .most = 4096, .help = "the same for the first N blocks alone (default: -1, up to a third of 12 and more)"},
        WORD("precision", "NAME", &config->precision, precision_names,
             "fp32 (default), or bf16: factors of matrix products rounded to bfloat16, where the CPU has it"),
        WORD("products", "NAME", &config->products, product_names,
             "in fp32: strassen (default; faster where the CPU has a way), or plain"),
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
    *settings = (pretrain_settings){.method = -1, .preset = -1};
    *set = (option_set){
        .command = "pretrain",
        .synopsis = "--data PATH [options]",
        .about = "Trains a vision transformer on images without using their labels, and saves it.\n"
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

/* --set "a=1 b=2": the last word on every setting. */
static int apply_set(pretrain_settings *s, const option_set *set) {
    const char *at = s->set;
    while (at != NULL && *at != '\0') {
        size_t length = strcspn(at, " ");
        char name[128], *value;
        if (length >= sizeof name) {
            return options_wrong(set, "--set: \"%.40s...\" is too long", at);
        }
        memcpy(name, at, length);
        name[length] = '\0';
        value = strchr(name, '=');
        if (length > 0 && value == NULL) {
            return options_wrong(set, "--set: expected NAME=VALUE, not \"%s\"", name);
        }
        if (length > 0) {
            *value++ = '\0';
            if (sd_setting_set(&s->config, name, value) != SD_OK) {
                return options_wrong(set, "--set: %s", sd_last_error());
            }
        }
        at += length + (at[length] == ' ');
    }
    return EXIT_OK;
}

/* Which recipe is in force, and its settings for these images. */
static int start_from_recipe(pretrain_settings *s, const option_set *set, const source *data) {
    int32_t method = s->method >= 0 ? s->method : SD_METHOD_SIMDINO;
    s->images = sd_dataset_count(data->train);
    s->recipe_text = recipe_load(s->recipe != NULL ? s->recipe : recipe_name_for(method, data), &s->recipe_file);
    if (s->recipe_text == NULL) {
        return EXIT_WRONG_USAGE;
    }
    sd_status status = sd_recipe_apply_text(s->recipe_text, s->images, (size_t)s->batch, 0, &s->config);
    if (status != SD_OK) {
        return failed("--recipe", status);
    }
    if (s->method >= 0 && s->config.method != s->method) {
        return options_wrong(set, "--recipe %s is of method %s, not %s", s->recipe, sd_method_name(s->config.method),
                             sd_method_name(s->method));
    }
    return EXIT_OK;
}

int pretrain_complete(pretrain_settings *s, const option_set *set, const source *data) {
    sd_pretrainer_config *config = &s->config;
    /* The library's defaults, then the recipe, then the preset, then what the command line says. */
    int result = start_from_recipe(s, set, data);
    if (result != EXIT_OK) {
        return result;
    }
    config->model.channels = data->channels;
    s->batch = config->batch_size;
    s->mask_ratio[0] = config->mask.ratio_min;
    s->mask_ratio[1] = config->mask.ratio_max;
    if (s->preset >= 0) {
        sd_status status = sd_model_config_preset(&config->model, preset_names[s->preset]);
        if (status != SD_OK) {
            return failed("--preset", status);
        }
    }
    options_apply(set);
    config->activations = SD_ACTIVATIONS_SPEED + s->activations;
    config->batch_size = (size_t)s->batch;
    config->micro_batch = (size_t)s->micro_batch;
    config->mask.ratio_min = s->mask_ratio[0];
    config->mask.ratio_max = s->mask_ratio[1];
    if (!option_given(set, "image-size")) {
        config->model.image_size = config->augment.global_size;
    }
    result = complete_normalisation(s, set, data->channels);
    return result == EXIT_OK ? apply_set(s, set) : result;
}

/* Steps of warm-up, temperature and freezing, by the shares that the recipe gives them. */
static int set_phases(pretrain_settings *s, uint64_t steps) {
    sd_pretrainer_config phases;
    size_t batch = s->config.batch_size;
    sd_status status = sd_recipe_apply_text(s->recipe_text, s->images, batch, 1, &phases);
    if (status == SD_OK) { /* phases.total_steps: those of one of the recipe's epochs */
        double epochs = (double)steps / (double)phases.total_steps;
        status = sd_recipe_apply_text(s->recipe_text, s->images, batch, epochs, &phases);
    }
    if (status != SD_OK) {
        return failed("--recipe", status);
    }
    s->config.warmup_steps = phases.warmup_steps;
    s->config.teacher_temp_steps = phases.teacher_temp_steps;
    s->config.freeze_steps = phases.freeze_steps;
    s->config.epoch_steps = phases.epoch_steps;
    return EXIT_OK;
}

int pretrain_set_steps(pretrain_settings *s, const option_set *set, uint64_t steps) {
    s->config.total_steps = steps > 0 ? steps : 1;
    double share = -1, number = 0;
    int result = set_phases(s, s->config.total_steps);
    if (result != EXIT_OK) {
        return result;
    }
    if (s->warmup != NULL) {
        char *end = NULL;
        number = strtod(s->warmup, &end);
        if (end == s->warmup || !(number >= 0) || (strcmp(end, "%") != 0 && *end != '\0') ||
            (*end == '%' && number > 100) || (*end == '\0' && number > 9e15)) {
            return options_wrong(set, "--warmup %s: expected steps (\"500\") or a share (\"10%%\")", s->warmup);
        }
        share = *end == '%' ? number : -1;
        s->config.warmup_steps = share >= 0 ? (uint64_t)(share / 100 * (double)s->config.total_steps) : (uint64_t)number;
    }
    if (s->config.warmup_steps > s->config.total_steps && s->warmup == NULL) {
        s->config.warmup_steps = s->config.total_steps;
    }
    if (s->config.warmup_steps > s->config.total_steps) {
        return options_wrong(set, "--warmup %s: the run has only %llu steps", s->warmup,
                             (unsigned long long)s->config.total_steps);
    }
    return apply_set(s, set); /* which may name steps, too */
}
