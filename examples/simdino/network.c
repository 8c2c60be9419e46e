/* Networks from files. See network.h. */
#include "network.h"

#include <string.h>

#include "program.h"

/* In the order of sd_embed_kind. */
const char *const network_feature_names[] = {"class", "head", "mean", "class-mean", NULL};

int network_open(sd_context *context, const network_options *options, network *net) {
    *net = (network){.trained = {.size = sizeof net->trained}, .shape = {.size = sizeof net->shape}};
    sd_status status = sd_checkpoint_info(context, options->weights, &net->trained, NULL);
    if (status == SD_OK) {
        status = sd_model_load(context, options->weights, options->student ? 0 : 1, &net->model);
    }
    if (status == SD_OK) {
        status = sd_model_get_config(net->model, &net->shape);
    }
    if (status != SD_OK) {
        network_close(net);
        return failed("cannot load the network", status);
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
    config->kind = options->head ? SD_EMBED_HEAD : options->features;
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
