/* simdino pretrain: settings, the length of the run, the loop, checkpoints. */
#define _DEFAULT_SOURCE /* _SC_PHYS_PAGES */
#include "pretrain.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "feature_rows.h"
#include "metrics.h"
#include "output.h"
#include "plot.h"
#include "program.h"
#include "progress.h"

#define SAVE_SECONDS 600.0
#define KNN_TRAIN    10000
#define KNN_TEST     2000
#define TIME_RESERVE 0.03 /* share of --minutes kept back: the speed varies, and the end saves */

typedef struct run {
    pretrain_settings settings;
    option_set options;
    sd_context *context;
    source data;
    uint64_t recipe_steps; /* length of the run that the recipe asks for */
    sd_loader *loader;
    sd_pretrainer *trainer;
    metrics *log;
    double begun;        /* of the program */
    double saved_at;     /* time of the last checkpoint */
    uint64_t saved_step; /* its step; UINT64_MAX: none was saved in this call */
} run;

/* ---- pieces -------------------------------------------------------------------------------- */

static int make_loader(run *r) {
    const sd_pretrainer_config *config = &r->settings.config;
    sd_loader_config loading;
    sd_loader_config_init(&loading);
    loading.seed = config->seed;
    loading.batch_size = config->batch_size;
    loading.channels = config->model.channels;
    sd_status status = sd_loader_create(r->context, r->data.train, &config->augment, &loading, &r->loader);
    return status == SD_OK ? EXIT_OK : failed("cannot prepare the crops", status);
}

static sd_step_metrics new_metrics(void) {
    sd_step_metrics m;
    memset(&m, 0, sizeof m);
    m.size = sizeof m;
    return m;
}

/* Accuracy of the teacher so far: weighted k-NN of some test images among some training images. NAN when it cannot be
 * told. */
static double knn_accuracy(run *r) {
    const int32_t *labels = sd_dataset_labels(r->data.train);
    const int32_t *test_labels = r->data.test != NULL ? sd_dataset_labels(r->data.test) : NULL;
    if (labels == NULL || test_labels == NULL) {
        return NAN;
    }
    int32_t classes = source_classes(r->data.train), test_classes = source_classes(r->data.test);
    classes = classes > test_classes ? classes : test_classes;
    features base = {0}, queries = {0};
    double accuracy = NAN;
    const sd_model *teacher = sd_pretrainer_teacher(r->trainer);
    const sd_pretrainer_config *config = &r->settings.config;
    if (features_of_model(r->context, teacher, config, r->data.train, KNN_TRAIN, SD_EMBED_CLASS, NULL, &base) == 0 &&
        features_of_model(r->context, teacher, config, r->data.test, KNN_TEST, SD_EMBED_CLASS, NULL, &queries) == 0 &&
        features_keep_readable(r->data.train, &base) == 0 && features_keep_readable(r->data.test, &queries) == 0 &&
        base.count > 0 && queries.count > 0) {
        sd_knn_result result;
        size_t k = base.count < 20 ? (size_t)base.count : 20;
        if (sd_normalize_rows(base.rows, (size_t)base.count, base.dim, base.dim, NULL) == SD_OK &&
            sd_normalize_rows(queries.rows, (size_t)queries.count, base.dim, base.dim, NULL) == SD_OK &&
            sd_knn_classify(r->context, base.rows, base.labels, (size_t)base.count, queries.rows, queries.labels,
                            (size_t)queries.count, base.dim, (size_t)classes, k, 0.07, NULL, &result) == SD_OK) {
            accuracy = result.top1;
        }
    }
    features_free(&base);
    features_free(&queries);
    return accuracy;
}

/* ---- length of the run --------------------------------------------------------------------- */

/* --minutes: the number of steps belongs to the configuration of a pretrainer, so a throw-away one is timed first. */
static int steps_for_time(run *r, uint64_t *steps) {
    double limit = r->settings.minutes * 60;
    double trial = fmin(8.0, 0.04 * limit);
    sd_pretrainer_config config = r->settings.config;
    config.total_steps = 1000000;
    config.warmup_steps = 1000;
    sd_status status = sd_pretrainer_create(r->context, &config, &r->trainer);
    if (status != SD_OK) {
        return failed("cannot start training", status);
    }
    double start = 0, knn_seconds = 0;
    uint64_t timed = 0;
    for (uint64_t step = 0; status == SD_OK && (timed < 1 || seconds_now() - start < trial); step++) {
        status = sd_pretrainer_step_loader(r->trainer, r->loader, NULL);
        if (step == 0) {
            start = seconds_now(); /* the first step is slower than all others */
        } else {
            timed++;
        }
    }
    double step_seconds = (seconds_now() - start) / (double)(timed > 0 ? timed : 1);
    if (status == SD_OK && r->settings.knn_every > 0) {
        double before = seconds_now();
        knn_accuracy(r);
        knn_seconds = (seconds_now() - before) / (double)r->settings.knn_every;
    }
    sd_pretrainer_destroy(r->trainer);
    r->trainer = NULL;
    if (status != SD_OK) {
        return status == SD_ERR_CANCELLED ? EXIT_INTERRUPTED : failed("cannot measure the speed", status);
    }
    double left = limit * (1 - TIME_RESERVE) - (seconds_now() - r->begun);
    double count = floor(left / (step_seconds + knn_seconds));
    *steps = count >= 1 ? (uint64_t)count : 1;
    say("measured %.1f steps/s, %.0f images/s: %" PRIu64 " steps fit into %g minutes", 1 / step_seconds,
        (double)config.batch_size / step_seconds, *steps, r->settings.minutes);
    return EXIT_OK;
}

static int choose_length(run *r) {
    pretrain_settings *s = &r->settings;
    uint64_t steps = s->steps;
    if (s->minutes > 0) {
        int result = steps_for_time(r, &steps);
        if (result != EXIT_OK) {
            return result;
        }
    } else if (steps == 0) {
        steps = s->epochs > 0 ? (uint64_t)ceil(s->epochs * (double)sd_loader_batches_per_epoch(r->loader))
                              : r->recipe_steps;
    }
    return pretrain_set_steps(s, &r->options, steps);
}

/* ---- beginning ----------------------------------------------------------------------------- */

static int check_usage(const run *r) {
    const pretrain_settings *s = &r->settings;
    if (s->data == NULL) {
        return options_wrong(&r->options, "--data is missing: where are the images?");
    }
    if ((s->steps > 0) + (s->minutes > 0) + (s->epochs > 0) > 1) {
        return options_wrong(&r->options, "--epochs, --steps and --minutes exclude each other");
    }
    if (s->resume != NULL) {
        const option *conflict = pretrain_conflict_with_resume(&r->options);
        if (conflict != NULL) {
            return options_wrong(&r->options, "--%s cannot be changed by --resume: the checkpoint decides it",
                                 conflict->name);
        }
    } else if (access(s->out, F_OK) == 0 && !s->overwrite) {
        complain("%s exists already: go on from it with --resume %s, name another file with --out, or add --overwrite",
                 s->out, s->out);
        return EXIT_FAILED;
    }
    return EXIT_OK;
}

/* Reports where settings and images disagree, before anything is allocated, and says what will run. */
static int announce(run *r, bool resumed) {
    const sd_pretrainer_config *c = &r->settings.config;
    size_t bytes = 0;
    sd_status status = sd_pretrainer_memory(r->context, c, &bytes);
    if (status != SD_OK) {
        return failed("these settings cannot be trained", status);
    }
    say("method    %s", sd_method_name(c->method));
    say("data      %s, %" PRIu64 " images of %zu x %zu x %d", r->data.name, sd_dataset_count(r->data.train),
        r->data.width, r->data.height, r->data.channels);
    say("network   dim %d, depth %d, heads %d, patch %d; head %d, %d", c->model.dim, c->model.depth, c->model.heads,
        c->model.patch_size, c->model.head_hidden, c->model.head_dim);
    say("crops     2 of %d pixels, %d of %d pixels", c->augment.global_size, c->augment.local_crops,
        c->augment.local_size);
    say("training  batch %zu, peak lr %g, %d threads, %.0f MiB%s", c->batch_size, c->lr, sd_context_threads(r->context),
        (double)bytes / 1048576, resumed ? " (resumed)" : "");
    double available = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    if (available > 0 && (double)bytes > 0.9 * available) {
        complain("warning: this machine has %.0f MiB of memory; --micro-batch and --activations memory need less",
                 available / 1048576);
    }
    return EXIT_OK;
}

static int begin_new(run *r) {
    int result = pretrain_complete(&r->settings, &r->options, &r->data);
    r->recipe_steps = r->settings.config.total_steps;
    if (result == EXIT_OK) { /* checks --warmup before the speed is measured */
        result = pretrain_set_steps(&r->settings, &r->options, 1000000);
    }
    if (result == EXIT_OK) {
        result = announce(r, false);
    }
    if (result == EXIT_OK) {
        result = make_loader(r);
    }
    if (result == EXIT_OK) {
        result = choose_length(r);
    }
    if (result == EXIT_OK) {
        sd_status status = sd_pretrainer_create(r->context, &r->settings.config, &r->trainer);
        result = status == SD_OK ? EXIT_OK : failed("cannot start training", status);
    }
    return result;
}

static int begin_resumed(run *r) {
    sd_pretrainer_config *config = &r->settings.config;
    sd_status status = sd_pretrainer_resume(r->context, r->settings.resume, &r->trainer);
    if (status != SD_OK) {
        return failed("cannot resume", status);
    }
    config->size = sizeof *config;
    status = sd_pretrainer_get_config(r->trainer, config);
    if (status != SD_OK) {
        return failed("cannot resume", status);
    }
    if (config->model.channels != r->data.channels && !(config->model.channels == 3 && r->data.channels == 1)) {
        complain("%s was trained on images of %d channels; those of %s have %d", r->settings.resume,
                 config->model.channels, r->settings.data, r->data.channels);
        return EXIT_FAILED;
    }
    int result = announce(r, true);
    return result == EXIT_OK ? make_loader(r) : result;
}

/* ---- the loop ------------------------------------------------------------------------------ */

static int save(run *r) {
    sd_status status = sd_pretrainer_save(r->trainer, r->settings.out);
    r->saved_at = seconds_now();
    if (status != SD_OK) {
        return failed("cannot save the checkpoint", status);
    }
    r->saved_step = sd_pretrainer_position(r->trainer);
    return EXIT_OK;
}

static const char *method_title(int32_t method) {
    static const char *const titles[] = {"SimDINO", "SimDINOv2", "DINO", "DINOv2"};
    return titles[method];
}

static int draw_curve(const run *r) {
    if (r->settings.curve == NULL) {
        return EXIT_OK;
    }
    char title[96];
    snprintf(title, sizeof title, "%s pretraining: %s", method_title(r->settings.config.method), r->data.name);
    size_t count;
    const metrics_row *rows = metrics_rows(r->log, &count);
    return plot_write(r->settings.curve, title, rows, count) == 0 ? EXIT_OK : EXIT_FAILED;
}

static bool save_is_due(const run *r, uint64_t position) {
    if (r->settings.save_every > 0) {
        return position % r->settings.save_every == 0;
    }
    return seconds_now() - r->saved_at >= SAVE_SECONDS;
}

/* The command that goes on from the checkpoint. */
static void say_how_to_resume(const run *r) {
    const pretrain_settings *s = &r->settings;
    say("to go on:  simdino pretrain --resume %s --data %s%s%s%s%s", s->out, s->data,
        s->metrics != NULL ? " --metrics " : "", s->metrics != NULL ? s->metrics : "",
        s->curve != NULL ? " --curve " : "", s->curve != NULL ? s->curve : "");
}

static int report_broken_step(const run *r, sd_status status) {
    images_failed(r->data.train, "training stopped", status);
    if (status == SD_ERR_NUMERIC) {
        complain("a smaller --lr or a longer --warmup may help%s",
                 r->settings.config.method <= SD_METHOD_SIMDINOV2 ? ", or a larger --eps" : "");
    }
    if (r->saved_step != UINT64_MAX) {
        complain("%s holds the state after %" PRIu64 " steps", r->settings.out, r->saved_step);
    } else if (r->settings.resume != NULL) {
        complain("%s is as it was", r->settings.resume);
    }
    return EXIT_FAILED;
}

/* One step and what belongs to it. *last receives its metrics. */
static sd_status train_step(run *r, sd_step_metrics *last, double *speed) {
    *last = new_metrics();
    sd_status status = sd_pretrainer_step_loader(r->trainer, r->loader, last);
    if (status != SD_OK) {
        return status;
    }
    uint64_t position = sd_pretrainer_position(r->trainer);
    double knn = NAN;
    uint64_t every = r->settings.knn_every;
    if (every > 0 && (position % every == 0 || position == r->settings.config.total_steps)) {
        knn = knn_accuracy(r);
        if (isfinite(knn)) {
            say("step %" PRIu64 ": k-NN accuracy %.2f%%", position, 100 * knn);
        }
    }
    double epoch = (double)position / (double)sd_loader_batches_per_epoch(r->loader);
    metrics_add(r->log, last, epoch, knn);
    *speed = *speed > 0 ? 0.95 * *speed + 0.05 * last->images_per_second : last->images_per_second;
    char text[96];
    snprintf(text, sizeof text, "loss %.4f  %.0f images/s", last->loss, *speed);
    progress_update(position, text);
    return SD_OK;
}

static int train(run *r) {
    uint64_t total = r->settings.config.total_steps, first = sd_pretrainer_position(r->trainer), position = first;
    uint64_t stop = total, stop_after = r->settings.stop_after;
    if (stop_after > 0 && stop_after < total - first) {
        stop = first + stop_after;
    }
    sd_step_metrics last = new_metrics();
    double begun = seconds_now(), speed = 0;
    sd_status status = SD_OK;
    r->saved_at = begun;
    say("steps     %" PRIu64 " to %" PRIu64 " (%.1f epochs)", first, total,
        (double)total / (double)sd_loader_batches_per_epoch(r->loader));
    progress_begin("pretrain", first, total);
    while (position < stop && !interrupted()) {
        status = train_step(r, &last, &speed);
        if (status != SD_OK) {
            break;
        }
        position = sd_pretrainer_position(r->trainer);
        if (position < stop && save_is_due(r, position)) {
            save(r); /* a failure is reported; training goes on, and the older checkpoint is still there */
            draw_curve(r);
        }
    }
    progress_end();
    bool stopped = interrupted();
    allow_calls_after_interrupt();
    if (status != SD_OK && !(stopped && status == SD_ERR_CANCELLED)) {
        report_broken_step(r, status);
        draw_curve(r);
        return EXIT_FAILED;
    }
    int saved = save(r), drawn = draw_curve(r);
    if (saved != EXIT_OK || drawn != EXIT_OK) {
        return EXIT_FAILED;
    }
    char duration[24];
    format_duration(seconds_now() - begun, duration);
    if (position > first) {
        printf("%s after %" PRIu64 " of %" PRIu64 " steps (%s, %.0f images/s): loss %.4f, ",
               position == total ? "finished" : "stopped", position, total, duration,
               (double)(position - first) * (double)r->settings.config.batch_size / (seconds_now() - begun), last.loss);
        if (r->settings.config.method <= SD_METHOD_SIMDINOV2) {
            printf("compression %.4f, expansion %.4f, ", last.compression, last.expansion);
        } else {
            printf("target entropy %.3f, ", last.target_entropy);
        }
        printf("effective rank %.1f\n", last.effective_rank);
    }
    printf("saved %s\n", r->settings.out);
    if (position < total) {
        say_how_to_resume(r);
    }
    return stopped && position < total ? EXIT_INTERRUPTED : EXIT_OK;
}

/* ---- command ------------------------------------------------------------------------------- */

static int prepare(run *r) {
    pretrain_settings *s = &r->settings;
    if (s->out == NULL) {
        s->out = s->resume != NULL ? s->resume : "model.safetensors";
    }
    int result = check_usage(r);
    if (result != EXIT_OK) {
        return result;
    }
    if (output_probe(s->out) != 0 || (s->curve != NULL && output_probe(s->curve) != 0)) {
        return EXIT_FAILED;
    }
    r->context = open_context(s->threads);
    if (r->context == NULL || source_open(r->context, s->data, s->test_data, &r->data) != 0) {
        return EXIT_FAILED;
    }
    if (s->knn_every > 0 &&
        (r->data.test == NULL || sd_dataset_labels(r->data.test) == NULL || sd_dataset_labels(r->data.train) == NULL)) {
        return options_wrong(&r->options, "--knn-every needs training and test images with labels");
    }
    result = s->resume != NULL ? begin_resumed(r) : begin_new(r);
    if (result == EXIT_OK) {
        r->log = metrics_open(s->metrics, sd_pretrainer_position(r->trainer));
        result = r->log != NULL ? EXIT_OK : EXIT_FAILED;
    }
    return result;
}

int command_pretrain(int argc, char **argv) {
    run r = {.begun = seconds_now(), .saved_step = UINT64_MAX};
    options_outcome outcome = pretrain_parse(argc, argv, &r.settings, &r.options);
    if (outcome != OPTIONS_GO) {
        return outcome == OPTIONS_HELP ? EXIT_OK : EXIT_WRONG_USAGE;
    }
    catch_interrupts();
    int result = prepare(&r);
    if (result == EXIT_OK) {
        result = train(&r);
    } else if (interrupted()) {
        say("interrupted before the first step: nothing was written");
        result = EXIT_INTERRUPTED;
    }
    if (metrics_close(r.log) != 0 && result == EXIT_OK) {
        result = EXIT_FAILED;
    }
    free(r.settings.recipe_file);
    sd_loader_destroy(r.loader);
    sd_pretrainer_destroy(r.trainer);
    source_close(&r.data);
    sd_context_destroy(r.context);
    return result;
}
