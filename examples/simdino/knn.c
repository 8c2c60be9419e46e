/* simdino knn: weighted k-nearest-neighbour accuracy of the trained network, side by side with the untrained one and
 * with raw pixels. Nothing is learned from the labels: they are only looked up. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "feature_rows.h"
#include "neighbors.h"
#include "options.h"
#include "output.h"
#include "program.h"
#include "progress.h"
#include "sources.h"

typedef enum centering { CENTER_AUTO, CENTER_ON, CENTER_OFF, CENTER_BOTH } centering;

typedef struct knn_settings {
    const char *weights, *data, *test_data, *picture;
    int32_t k;
    double temperature;
    int32_t center;
    int32_t features; /* sd_embed_kind */
    bool student, head, only_trained;
    uint64_t train_limit, test_limit;
    int32_t threads;
} knn_settings;

typedef struct knn_run {
    const knn_settings *settings;
    sd_context *context;
    source data;
    int32_t classes;
    sd_pretrainer_config trained; /* of the checkpoint */
    sd_model *model;              /* its network */
} knn_run;

/* Accuracy of one kind of features, which are normalised in place (and centred first, when `center` is true); prints a
 * line of the table. */
static int measure(const knn_run *r, const char *name, features *train, features *test, bool center) {
    double begun = seconds_now();
    float *mean = NULL;
    sd_status status = SD_OK;
    if (center) {
        mean = malloc(train->dim * sizeof *mean);
        if (mean == NULL) {
            complain("out of memory");
            return EXIT_FAILED;
        }
        status = sd_mean_row(train->rows, (size_t)train->count, train->dim, train->dim, mean);
    }
    if (status == SD_OK) {
        status = sd_normalize_rows(train->rows, (size_t)train->count, train->dim, train->dim, mean);
    }
    if (status == SD_OK) {
        status = sd_normalize_rows(test->rows, (size_t)test->count, test->dim, test->dim, mean);
    }
    free(mean);
    sd_knn_result result = {0};
    if (status == SD_OK) {
        progress_begin("neighbours", 0, test->count);
        status = sd_knn_classify(r->context, train->rows, sd_dataset_labels(r->data.train), (size_t)train->count,
                                 test->rows, sd_dataset_labels(r->data.test), (size_t)test->count, train->dim,
                                 (size_t)r->classes, (size_t)r->settings->k, r->settings->temperature, NULL, &result);
        progress_end();
    }
    if (status != SD_OK) {
        return status == SD_ERR_CANCELLED ? EXIT_INTERRUPTED : failed(name, status);
    }
    char label[64];
    snprintf(label, sizeof label, "%s%s", name, center ? ", centred" : "");
    printf("  %-34s %5zu  %6.2f%%  %6.2f%%  %7.1f s\n", label, train->dim, 100 * result.top1, 100 * result.top5,
           seconds_now() - begun);
    fflush(stdout);
    return EXIT_OK;
}

static int copy(const features *from, features *to) {
    *to = *from;
    to->rows = malloc((size_t)from->count * from->dim * sizeof(float));
    if (to->rows == NULL) {
        *to = (features){0};
        complain("out of memory");
        return EXIT_FAILED;
    }
    memcpy(to->rows, from->rows, (size_t)from->count * from->dim * sizeof(float));
    return EXIT_OK;
}

/* Measures the features plain, centred, or both ways, as --center says. They are left normalised. */
static int measure_forms(const knn_run *r, const char *name, features *train, features *test, centering by_default) {
    centering form = (centering)r->settings->center;
    form = form == CENTER_AUTO ? by_default : form;
    if (form == CENTER_BOTH) {
        features train_copy = {0}, test_copy = {0};
        int result = copy(train, &train_copy);
        if (result == EXIT_OK) {
            result = copy(test, &test_copy);
        }
        if (result == EXIT_OK) {
            result = measure(r, name, &train_copy, &test_copy, by_default != CENTER_ON);
        }
        features_free(&train_copy);
        features_free(&test_copy);
        if (result != EXIT_OK) {
            return result;
        }
        form = by_default;
    }
    return measure(r, name, train, test, form == CENTER_ON);
}

/* ---- the three rows of the table ----------------------------------------------------------- */

static int measure_pixels(const knn_run *r) {
    features train = {0}, test = {0};
    int result = EXIT_FAILED;
    if (features_of_pixels(r->data.train, r->settings->train_limit, &train) == 0 &&
        features_of_pixels(r->data.test, r->settings->test_limit, &test) == 0) {
        result = measure_forms(r, "raw pixels", &train, &test, CENTER_ON);
    }
    features_free(&train);
    features_free(&test);
    return result;
}

/* Class token and mean of the patches count alike, although a mean is shorter. */
static void normalize_halves(features *f) {
    size_t half = f->dim / 2;
    for (size_t i = 0; i < 2; i++) {
        sd_normalize_rows(f->rows + i * half, (size_t)f->count, half, f->dim, NULL);
    }
}

static int measure_model(const knn_run *r, const char *name, const sd_model *model, const char *picture) {
    const knn_settings *s = r->settings;
    sd_embed_kind kind = s->head ? SD_EMBED_HEAD : (sd_embed_kind)s->features;
    features train = {0}, test = {0};
    int result = EXIT_FAILED;
    if (features_of_model(r->context, model, &r->trained, r->data.train, s->train_limit, kind, "embed training images",
                          &train) == 0 &&
        features_of_model(r->context, model, &r->trained, r->data.test, s->test_limit, kind, "embed test images",
                          &test) == 0) {
        if (kind == SD_EMBED_CLASS_MEAN) {
            normalize_halves(&train);
            normalize_halves(&test);
        }
        result = measure_forms(r, name, &train, &test, CENTER_OFF);
    }
    if (result == EXIT_OK && picture != NULL) {
        char title[96];
        snprintf(title, sizeof title, "%s: nearest neighbours by SimDINO features", r->data.name);
        result = neighbors_write(r->context, picture, title, &r->data, &train, &test) == 0 ? EXIT_OK : EXIT_FAILED;
    }
    features_free(&train);
    features_free(&test);
    return result;
}

static int measure_untrained(const knn_run *r) {
    sd_model *model = NULL;
    sd_status status = sd_model_create(r->context, &r->trained.model, &model);
    if (status != SD_OK) {
        return failed("cannot make the untrained network", status);
    }
    sd_model_initialize(model, r->trained.seed);
    int result = measure_model(r, "untrained network", model, NULL);
    sd_model_destroy(model);
    return result;
}

/* ---- command ------------------------------------------------------------------------------- */

static uint64_t limited(const sd_dataset *dataset, uint64_t limit) {
    uint64_t count = sd_dataset_count(dataset);
    return limit > 0 && limit < count ? limit : count;
}

static int prepare(knn_run *r) {
    const knn_settings *s = r->settings;
    if (s->weights != NULL) {
        r->trained.size = sizeof r->trained;
        sd_status status = sd_checkpoint_info(r->context, s->weights, &r->trained, NULL);
        if (status == SD_OK) {
            status = sd_model_load(r->context, s->weights, s->student ? 0 : 1, &r->model);
        }
        if (status != SD_OK) {
            return failed("cannot load the network", status);
        }
    }
    if (source_open(r->context, s->data, s->test_data, &r->data) != 0) {
        return EXIT_FAILED;
    }
    if (r->data.test == NULL) {
        complain("%s brings no test images: name some with --test-data", s->data);
        return EXIT_FAILED;
    }
    if (sd_dataset_labels(r->data.train) == NULL || sd_dataset_labels(r->data.test) == NULL) {
        complain("%s has no labels, which are what k-NN is measured by", s->data);
        return EXIT_FAILED;
    }
    int32_t classes = source_classes(r->data.train), test_classes = source_classes(r->data.test);
    r->classes = classes > test_classes ? classes : test_classes;
    if ((uint64_t)s->k > limited(r->data.train, s->train_limit)) {
        complain("--k %d: there are only %llu training images", s->k,
                 (unsigned long long)limited(r->data.train, s->train_limit));
        return EXIT_FAILED;
    }
    return EXIT_OK;
}

static int run_knn(knn_run *r) {
    const knn_settings *s = r->settings;
    int result = prepare(r);
    if (result != EXIT_OK) {
        return result;
    }
    printf("%s: weighted k-NN, k = %d, T = %g; %llu training images, %llu test images\n", r->data.name, s->k,
           s->temperature, (unsigned long long)limited(r->data.train, s->train_limit),
           (unsigned long long)limited(r->data.test, s->test_limit));
    printf("  %-34s %5s  %7s  %7s  %9s\n", "features", "width", "top-1", "top-5", "search");
    fflush(stdout);
    if (!s->only_trained || s->weights == NULL) {
        result = measure_pixels(r);
    }
    if (result == EXIT_OK && s->weights != NULL && !s->only_trained) {
        result = measure_untrained(r);
    }
    if (result == EXIT_OK && s->weights != NULL) {
        const char *name = s->student ? "trained network (student)" : "trained network";
        result = measure_model(r, name, r->model, s->picture);
    }
    if (result == EXIT_OK && s->picture != NULL) {
        printf("saved %s\n", s->picture);
    }
    return result;
}

int command_knn(int argc, char **argv) {
    static const char *const centerings[] = {"auto", "on", "off", "both", NULL};
    knn_settings s = {.k = 20, .temperature = 0.07};
    option options[] = {
        {.kind = OPTION_TEXT,
         .name = "weights",
         .letter = 'w',
         .value = "FILE",
         .target = &s.weights,
         .help = "the checkpoint of simdino pretrain; without it only raw pixels are measured"},
        {.kind = OPTION_TEXT, .name = "data", .value = "PATH", .target = &s.data, .help = SOURCE_PATH_HELP},
        {.kind = OPTION_TEXT,
         .name = "test-data",
         .value = "PATH",
         .target = &s.test_data,
         .help = "test images, where --data does not bring them"},
        {.kind = OPTION_TEXT,
         .name = "neighbors",
         .value = "FILE.png",
         .target = &s.picture,
         .help = "picture of some test images and their nearest training images"},
        {.kind = OPTION_INT,
         .name = "k",
         .letter = 'k',
         .value = "N",
         .target = &s.k,
         .least = 1,
         .most = 1e6,
         .help = "neighbours that vote (default: 20)"},
        {.kind = OPTION_REAL,
         .name = "temperature",
         .value = "T",
         .target = &s.temperature,
         .least = 1e-6,
         .most = 1e6,
         .help = "a neighbour's vote is exp(similarity / T) (default: 0.07)"},
        {.kind = OPTION_CHOICE,
         .name = "center",
         .value = "WHEN",
         .target = &s.center,
         .choices = centerings,
         .help = "subtract the mean of the training images' features first: on, off, both (two lines), or auto "
                 "(default: on for pixels, off for networks)"},
        {.kind = OPTION_FLAG,
         .name = "student",
         .target = &s.student,
         .help = "the student network (default: teacher)"},
        {.kind = OPTION_CHOICE,
         .name = "features",
         .value = "WHICH",
         .target = &s.features,
         .choices = feature_words,
         .help = FEATURES_HELP},
        {.kind = OPTION_FLAG, .name = "head", .target = &s.head, .help = "the same as --features head"},
        {.kind = OPTION_FLAG,
         .name = "only-trained",
         .target = &s.only_trained,
         .help = "leave out raw pixels and the untrained network"},
        {.kind = OPTION_COUNT,
         .name = "train-limit",
         .value = "N",
         .target = &s.train_limit,
         .least = 0,
         .most = 1e15,
         .help = "only the first N training images (default: 0, all)"},
        {.kind = OPTION_COUNT,
         .name = "test-limit",
         .value = "N",
         .target = &s.test_limit,
         .least = 0,
         .most = 1e15,
         .help = "only the first N test images (default: 0, all)"},
        {.kind = OPTION_INT,
         .name = "threads",
         .value = "N",
         .target = &s.threads,
         .least = 0,
         .most = 4096,
         .help = "threads to compute with (default: 0, all)"},
    };
    option_set set = {
        .command = "knn",
        .synopsis = "--weights FILE --data PATH [options]",
        .about = "Measures features by how often the nearest training images of a test image have its class:\n"
                 "raw pixels, the same network before training, and the trained one, side by side.",
        .options = options,
        .count = sizeof options / sizeof options[0],
    };
    options_outcome outcome = options_parse(&set, argc, argv);
    if (outcome != OPTIONS_GO) {
        return outcome == OPTIONS_HELP ? EXIT_OK : EXIT_WRONG_USAGE;
    }
    options_apply(&set);
    if (s.data == NULL) {
        return options_wrong(&set, "--data is missing: where are the images?");
    }
    if (s.picture != NULL && s.weights == NULL) {
        return options_wrong(&set, "--neighbors needs --weights");
    }
    if (s.picture != NULL && output_probe(s.picture) != 0) {
        return EXIT_FAILED;
    }
    catch_interrupts();
    knn_run r = {.settings = &s};
    r.context = open_context(s.threads);
    int result = r.context != NULL ? run_knn(&r) : EXIT_FAILED;
    sd_model_destroy(r.model);
    source_close(&r.data);
    sd_context_destroy(r.context);
    return interrupted() ? EXIT_INTERRUPTED : result;
}
