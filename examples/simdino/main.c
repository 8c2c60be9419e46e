/* simdino: the command line program of libsimdino, written with its public API only. */
#include <stdio.h>
#include <string.h>

#include "options.h"
#include "program.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *about;
} commands[] = {
    {"pretrain", command_pretrain, "train a vision transformer on images without labels"},
    {"embed", command_embed, "compute features of images, for NumPy"},
    {"knn", command_knn, "measure features by nearest neighbours, beside raw pixels and the untrained network"},
    {"index", command_index, "search among images by their features: index build, index query"},
    {"show", command_show, "pictures of what the network sees: attention, components, similarities"},
    {"coding-rate", command_coding_rate, "coding rate and effective rank of a matrix"},
    {"inspect", command_inspect, "what is in a file of weights, and which network"},
    {"convert", command_convert, "weights under other names: official, timm, Hugging Face"},
    {"recipe", command_recipe, "list the recipes, or print one"},
    {"info", command_info, "versions, CPU, BLAS, and what makes it faster"},
};
#define COMMAND_COUNT (sizeof commands / sizeof commands[0])

static void print_help(FILE *stream) {
    fprintf(stream, "Usage: simdino COMMAND [options]\n\n"
                    "Self-supervised pretraining of vision transformers by SimDINO, SimDINOv2, DINO and DINOv2.\n\nCommands:\n");
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        fprintf(stream, "  %-13s %s\n", commands[i].name, commands[i].about);
    }
    fprintf(stream, "\n  --help        this text; simdino COMMAND --help tells the options of a command\n"
                    "  --version     the version\n\n"
                    "Example:\n"
                    "  simdino pretrain --data /usr/share/datasets/fashion-mnist --out model.safetensors --minutes 7\n"
                    "  simdino knn --weights model.safetensors --data /usr/share/datasets/fashion-mnist\n\n"
                    "Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted (a checkpoint was saved).\n");
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : NULL;
    if (name == NULL) {
        print_help(stderr);
        return EXIT_WRONG_USAGE;
    }
    if (strcmp(name, "help") == 0 && argc > 2) { /* "simdino help knn" */
        static char help[] = "--help";
        argv[1] = argv[2];
        argv[2] = help;
        name = argv[1];
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help(stdout);
        return EXIT_OK;
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "version") == 0) {
        printf("simdino %s\n", sd_version_string());
        return EXIT_OK;
    }
    const char *names[COMMAND_COUNT];
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(name, commands[i].name) == 0) {
            int result = commands[i].run(argc - 1, argv + 1);
            /* A full disk under a redirected output is a failure too. */
            bool lost = fflush(stdout) != 0 || ferror(stdout);
            if (lost && result == EXIT_OK) {
                complain("cannot write to standard output");
                result = EXIT_FAILED;
            }
            return result;
        }
        names[i] = commands[i].name;
    }
    const char *near = nearest_word(name, names, COMMAND_COUNT);
    fprintf(stderr, "simdino: there is no command \"%s\"%s%s%s\nTry: simdino --help\n", name,
            near != NULL ? "; did you mean \"" : "", near != NULL ? near : "", near != NULL ? "\"?" : "");
    return EXIT_WRONG_USAGE;
}
