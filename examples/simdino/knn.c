/* simdino knn: weighted k-nearest-neighbour accuracy of the trained network, side by side with the untrained one and
 * with raw pixels. Nothing is learned from the labels: they are only looked up. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "neighbors.h"
#include "network.h"
#include "options.h"
#include "output.h"
#include "program.h"
#include "progress.h"

typedef enum centering { CENTER_AUTO, CENTER_ON, CENTER_OFF, CENTER_BOTH } centering;

typedef struct knn_settings {
    network_options net;
    const char *data, *test_data, *picture;
    int32_t k;
    double temperature;
    int32_t center;
    bool only_trained;
    uint64_t train_limit, test_limit;
} knn_settings;

typedef struct knn_run {
    const knn_settings *settings;
    sd_context *context;
    source data;
    int32_t classes;
    network net;
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
        status = sd_knn_classify(r->context, train->rows, train->labels, (size_t)train->count,
                                 test->rows, test->labels, (size_t)test->count, train->dim,
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
    *to = (features){.count = from->count, .dim = from->dim};
    to->rows = malloc((size_t)from->count * from->dim * sizeof(float));
    to->labels = malloc((size_t)from->count * sizeof *to->labels);
    if (to->rows == NULL || to->labels == NULL) {
        features_free(to);
        complain("out of memory");
        return EXIT_FAILED;
    }
    memcpy(to->rows, from->rows, (size_t)from->count * from->dim * sizeof(float));
    memcpy(to->labels, from->labels, (size_t)from->count * sizeof *to->labels);
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

/* Whether images that cannot be read have left what k-NN needs. */
static bool enough(const knn_run *r, const features *train, const features *test) {
    if (train->count >= (uint64_t)r->settings->k && test->count > 0) {
        return true;
    }
    complain("only %llu training and %llu test images can be read", (unsigned long long)train->count,
             (unsigned long long)test->count);
    return false;
}

/* ---- the three rows of the table ----------------------------------------------------------- */

static int measure_pixels(const knn_run *r) {
    features train = {0}, test = {0};
    int result = EXIT_FAILED;
    const char *name = r->data.train_images != NULL ? "raw pixels, 32 x 32" : "raw pixels";
    if (features_of_pixels(r->data.train, r->settings->train_limit, &train) == 0 &&
        features_of_pixels(r->data.test, r->settings->test_limit, &test) == 0 &&
        features_keep_readable(r->data.train, &train) == 0 && features_keep_readable(r->data.test, &test) == 0 &&
        enough(r, &train, &test)) {
        result = measure_forms(r, name, &train, &test, CENTER_ON);
    }
    features_free(&train);
    features_free(&test);
    return result;
}

/* Class tokens and the mean of the patches count alike, although a mean is shorter. */
static void normalize_parts(features *f, size_t class_width) {
    sd_normalize_rows(f->rows, (size_t)f->count, class_width, f->dim, NULL);
    sd_normalize_rows(f->rows + class_width, (size_t)f->count, f->dim - class_width, f->dim, NULL);
}

static int measure_model(const knn_run *r, const char *name, sd_model *model, const char *picture) {
    const knn_settings *s = r->settings;
    features train = {0}, test = {0};
    network net = r->net;
    net.model = model;
    int result = EXIT_FAILED;
    if (network_features(r->context, &net, &s->net, r->data.train, s->train_limit, "embed training images", &train) ==
            0 &&
        network_features(r->context, &net, &s->net, r->data.test, s->test_limit, "embed test images", &test) == 0 &&
        enough(r, &train, &test)) {
        if (!s->net.head && s->net.features == SD_EMBED_CLASS_MEAN) {
            size_t class_width = train.dim - (size_t)net.shape.dim;
            normalize_parts(&train, class_width);
            normalize_parts(&test, class_width);
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
    sd_status status = sd_model_create(r->context, &r->net.shape, &model);
    if (status != SD_OK) {
        return failed("cannot make the untrained network", status);
    }
    sd_model_initialize(model, r->net.trained.seed);
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
    if (s->net.weights != NULL) {
        int result = network_open(r->context, &s->net, &r->net);
        if (result != EXIT_OK) {
            return result;
        }
    }
    if (source_open(r->context, s->data, s->test_data, &r->data) != 0) {
        return EXIT_FAILED;
    }
    source_set_channels(&r->data, s->net.weights != NULL ? r->net.shape.channels : r->data.channels);
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
    if (!s->only_trained || s->net.weights == NULL) {
        result = measure_pixels(r);
    }
    if (result == EXIT_OK && s->net.weights != NULL && !s->only_trained) {
        result = measure_untrained(r);
    }
    if (result == EXIT_OK && s->net.weights != NULL) {
        const char *name = s->net.student ? "trained network (student)" : "trained network";
        result = measure_model(r, name, r->net.model, s->picture);
    }
    if (result == EXIT_OK && s->picture != NULL) {
        printf("saved %s\n", s->picture);
    }
    return result;
}

int command_knn(int argc, char **argv) {
    static const char *const centerings[] = {"auto", "on", "off", "both", NULL};
    knn_settings s = {.net = NETWORK_OPTIONS_DEFAULT, .k = 20, .temperature = 0.07};
    option options[] = {
        {.kind = OPTION_TEXT,
         .name = "weights",
         .letter = 'w',
         .value = "FILE",
         .target = &s.net.weights,
         .help = "a checkpoint of simdino pretrain or published weights; without it only raw pixels are measured"},
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
        ON_ERROR_OPTION,
        NETWORK_CHOICE_OPTIONS(s.net),
        HEAD_OPTION(s.net),
        FEATURES_OPTIONS(s.net),
        PREPARE_OPTIONS(s.net),
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
        THREADS_OPTION(s.net.threads),
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
    if (s.picture != NULL && s.net.weights == NULL) {
        return options_wrong(&set, "--neighbors needs --weights");
    }
    if (s.picture != NULL && output_probe(s.picture) != 0) {
        return EXIT_FAILED;
    }
    catch_interrupts();
    knn_run r = {.settings = &s};
    r.context = open_context(s.net.threads);
    int result = r.context != NULL ? run_knn(&r) : EXIT_FAILED;
    network_close(&r.net);
    source_close(&r.data);
    sd_context_destroy(r.context);
    return interrupted() ? EXIT_INTERRUPTED : result;
}
