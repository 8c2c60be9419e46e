/* Networks from files. See network.h. */
#include "network.h"

#include <string.h>

#include "program.h"

#define PUBLISHED_CROP 224

/* In the order of sd_embed_kind. */
const char *const network_feature_names[] = {"class", "head", "mean", "class-mean", NULL};
const char *const network_precision_names[] = {"fp32", "bf16", NULL}; /* sd_precision */

/* Prints what does not fit, line by line. */
static void print_report(const char *path, const sd_weights_report *report) {
    for (const char *line = report->text; *line != '\0';) {
        int length = (int)strcspn(line, "\n");
        complain("warning: %s: %.*s", path, length, line);
        line += length + (line[length] == '\n');
    }
}

static sd_status open_published(sd_context *context, const network_options *options, network *net) {
    sd_weights_options how;
    sd_weights_report report = {.size = sizeof report};
    sd_weights_options_init(&how);
    how.heads = options->heads;
    how.student = options->student;
    how.strict = !options->lenient;
    sd_pretrainer_config_init(&net->trained); /* its mean and deviation are ImageNet's */
    net->published = true;
    sd_status status = sd_model_load_weights(context, options->weights, &how, &net->model, &report);
    if (status == SD_OK) {
        print_report(options->weights, &report);
    }
    return status;
}

/* 0, or -1: there are too few or too many numbers for the network's channels. One number stands for all. */
static int override(const char *name, const double *given, size_t count, int32_t channels, double *numbers) {
    if (count > 1 && count != (size_t)channels) {
        complain("--%s gives %zu numbers, the network has %d channels", name, count, channels);
        return -1;
    }
    for (size_t c = 0; count > 0 && c < (size_t)channels; c++) {
        numbers[c] = given[count > 1 ? c : 0];
    }
    return 0;
}

int network_open(sd_context *context, const network_options *options, network *net) {
    *net = (network){.trained = {.size = sizeof net->trained}, .shape = {.size = sizeof net->shape}};
    sd_status status = sd_checkpoint_info(context, options->weights, &net->trained, NULL);
    if (status == SD_OK) {
        status = sd_model_load(context, options->weights, options->student ? 0 : 1, &net->model);
    } else if (status == SD_ERR_FORMAT) { /* not one of our own */
        status = open_published(context, options, net);
    }
    if (status == SD_OK) {
        status = sd_model_get_config(net->model, &net->shape);
    }
    if (status != SD_OK) {
        network_close(net);
        return failed("cannot load the network", status);
    }
    net->trained.model = net->shape;
    sd_augment_config *seen = &net->trained.augment;
    if (override("mean", options->mean, options->mean_count, net->shape.channels, seen->mean) != 0 ||
        override("std", options->std, options->std_count, net->shape.channels, seen->std) != 0) {
        network_close(net);
        return EXIT_WRONG_USAGE;
    }
    status = sd_model_pack(net->model, options->precision); /* the weights stay: once instead of in every batch */
    if (status != SD_OK) {
        network_close(net);
        return failed("cannot prepare the network", status);
    }
    return EXIT_OK;
}

void network_close(network *net) {
    sd_model_destroy(net->model);
    net->model = NULL;
}

void network_prepare(const network *net, const network_options *options, const sd_dataset *dataset,
                     sd_embed_config *config) {
    features_prepare(&net->trained, dataset, config);
    if (net->published && config->crop >= PUBLISHED_CROP) { /* DINOv2's grid is of 518 pixels, and it is used at 224 */
        config->crop = PUBLISHED_CROP;
        config->resize = 256;
    }
    config->kind = options->head ? SD_EMBED_HEAD : options->features;
    config->precision = options->precision;
    config->blocks = options->blocks > 0 ? options->blocks : 1;
    if (options->resize >= 0) {
        config->resize = options->resize;
    }
    if (options->crop >= 0) {
        config->crop = options->crop;
    }
}

int network_features(sd_context *context, const network *net, const network_options *options,
                     const sd_dataset *dataset, uint64_t limit, const char *what, features *rows) {
    sd_embed_config config;
    network_prepare(net, options, dataset, &config);
    int result = features_of_dataset(context, net->model, &config, dataset, limit, what, rows);
    return result == 0 ? features_keep_readable(dataset, rows) : result;
}
