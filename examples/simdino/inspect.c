/* simdino inspect: what is in a file of weights or arrays, and which network it holds. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "options.h"
#include "program.h"

static const char *const form_names[] = {"safetensors", "PyTorch (zip)", "PyTorch (old form)", "NumPy .npz", "NumPy .npy"};
static const char *const names_names[] = {"this library's", "official DINO / DINOv2", "timm", "Hugging Face"};

static void print_shape(const sd_stored_tensor *info) {
    char text[160] = "";
    size_t used = 0;
    for (int32_t i = 0; i < info->dimensions; i++) {
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%" PRId64, i > 0 ? " x " : "", info->shape[i]);
    }
    printf("%s", info->dimensions == 0 ? "scalar" : text);
}

static int list_tensors(const sd_tensor_file *file) {
    for (size_t i = 0; i < sd_tensor_file_count(file); i++) {
        sd_stored_tensor info = {.size = sizeof info};
        sd_status status = sd_tensor_file_info(file, i, &info);
        if (status != SD_OK) {
            return failed("cannot list the tensors", status);
        }
        printf("  %-60s %-9s ", info.name, sd_dtype_name(info.dtype));
        if (info.dtype == SD_DTYPE_NUMBER) {
            printf("%.9g\n", info.number);
        } else {
            print_shape(&info);
            printf("\n");
        }
    }
    return EXIT_OK;
}

static int summarize(sd_context *context, const char *path, bool tensors) {
    sd_tensor_file *file;
    sd_status status = sd_tensor_file_open(context, path, &file);
    if (status != SD_OK) {
        return failed("cannot open", status);
    }
    uint64_t elements = 0, bytes = 0;
    for (size_t i = 0; i < sd_tensor_file_count(file); i++) {
        sd_stored_tensor info = {.size = sizeof info};
        if (sd_tensor_file_info(file, i, &info) == SD_OK) {
            elements += info.dtype < SD_DTYPE_NUMBER ? info.count : 0;
            bytes += info.bytes;
        }
    }
    int32_t form = sd_tensor_file_format(file);
    printf("file      %s: %s, %zu tensors, %" PRIu64 " numbers, %.1f MiB\n", path,
           form >= 0 && form <= SD_FORM_NPY ? form_names[form] : "?", sd_tensor_file_count(file), elements,
           (double)bytes / 1048576);
    int result = tensors ? list_tensors(file) : EXIT_OK;
    sd_tensor_file_close(file);
    return result;
}

static void print_network(const sd_model_config *c) {
    printf("network   dim %d, depth %d, heads %d, patch %d, %d channels, position grid of %d x %d\n", c->dim, c->depth,
           c->heads, c->patch_size, c->channels, c->image_size / c->patch_size, c->image_size / c->patch_size);
    printf("          %s, hidden width %g x dim, %d registers%s%s%s\n",
           c->feed_forward == SD_FEED_FORWARD_SWIGLU ? "SwiGLU" : "MLP", c->mlp_ratio, c->registers,
           c->layer_scale != 0 ? ", LayerScale" : "", c->mask_token ? ", mask token" : "",
           c->qk_norm ? ", norm of queries and keys" : "");
    if (c->head_layers > 0) {
        printf("head      %d layers, hidden width %d, features of %d", c->head_layers, c->head_hidden, c->head_dim);
        if (c->prototypes > 0) {
            printf(", %d prototypes", c->prototypes);
        }
        printf("%s\n", c->patch_head ? "; patches have a head of their own" : "");
    } else {
        printf("head      none\n");
    }
}

/* A checkpoint of this library tells more. */
static void print_training(sd_context *context, const char *path) {
    sd_pretrainer_config config;
    uint64_t steps;
    sd_pretrainer_config_init(&config);
    if (sd_checkpoint_info(context, path, &config, &steps) == SD_OK) {
        printf("training  %s, step %" PRIu64 " of %" PRIu64 ", batch %zu, peak lr %g\n", sd_method_name(config.method),
               steps, config.total_steps, config.batch_size, config.lr);
    }
}

int command_inspect(int argc, char **argv) {
    const char *path = NULL;
    bool tensors = false, student = false;
    int32_t heads = 0;
    option table[] = {
        {.kind = OPTION_FLAG, .name = "tensors", .target = &tensors, .help = "list all tensors with type and shape"},
        {.kind = OPTION_FLAG, .name = "student", .target = &student,
         .help = "of a file that holds both, the student (default: the teacher)"},
        {.kind = OPTION_INT, .name = "heads", .value = "N", .target = &heads, .least = 1, .most = 1e4,
         .help = "attention heads, which published files do not tell (default: dim / 64)"},
    };
    option_set set = {
        .command = "inspect",
        .synopsis = "FILE [options]",
        .about = "Tells what is in a file of weights or arrays (safetensors, .pth, .pt, .npz, .npy), and which network.",
        .options = table,
        .count = sizeof table / sizeof table[0],
        .positional_name = "FILE",
        .positional = &path,
    };
    options_outcome outcome = options_parse(&set, argc, argv);
    if (outcome != OPTIONS_GO) {
        return outcome == OPTIONS_HELP ? EXIT_OK : EXIT_WRONG_USAGE;
    }
    options_apply(&set);
    if (path == NULL) {
        return options_wrong(&set, "which file?");
    }
    sd_context *context = open_context(1);
    int result = context != NULL ? summarize(context, path, tensors) : EXIT_FAILED;
    if (result == EXIT_OK) {
        sd_weights_options options;
        sd_weights_options_init(&options);
        options.student = student;
        options.heads = heads;
        options.strict = 0;
        sd_model_config config;
        sd_model_config_init(&config);
        if (sd_weights_config(context, path, &options, &config) != SD_OK) {
            printf("network   none of this family: %s\n", sd_last_error());
        } else {
            print_network(&config);
            sd_model *model = NULL;
            sd_weights_report report = {.size = sizeof report};
            if (sd_model_load_weights(context, path, &options, &model, &report) == SD_OK) {
                printf("names     %s; %s; %d tensors loaded, %d missing, %d unexpected, %d of another shape\n",
                       names_names[report.names], report.student ? "student" : "teacher or only network", report.loaded,
                       report.missing, report.unexpected, report.mismatched);
                printf("%s%s", report.text, report.text[0] != '\0' && report.text[strlen(report.text) - 1] != '\n' ? "\n" : "");
            }
            sd_model_destroy(model);
            print_training(context, path);
        }
    }
    sd_context_destroy(context);
    return result;
}
