/* network.h - a trained network from a file, how images are prepared for it, and the options that commands share. */
#ifndef NETWORK_H
#define NETWORK_H

#include <simdino/simdino.h>
#include <stdbool.h>

#include "feature_rows.h"
#include "options.h"
#include "sources.h"

/* What the options below say. Zero: the defaults. */
typedef struct network_options {
    const char *weights;
    bool student, teacher;
    bool head;          /* another way to say features = head */
    int32_t features;   /* sd_embed_kind */
    int32_t blocks;     /* 0: 1 */
    int32_t resize;     /* -1: as for the kind of images; see network_prepare() */
    int32_t crop;       /* likewise */
    double mean[SD_MAX_CHANNELS], std[SD_MAX_CHANNELS]; /* of the channels; the first mean_count and std_count count */
    size_t mean_count, std_count;
    int32_t heads;      /* of the attention, of files that do not tell; 0: dim / 64 */
    bool lenient;
    int32_t precision;  /* sd_precision */
    int32_t threads;
} network_options;
#define NETWORK_OPTIONS_DEFAULT {.resize = -1, .crop = -1}

/* Entries of a table of options, for `o` of type network_options. */
#define WEIGHTS_OPTION(o)                                                                                              \
    {                                                                                                                  \
        .kind = OPTION_TEXT, .name = "weights", .letter = 'w', .value = "FILE", .target = &(o).weights,                \
        .help = "the network: a checkpoint of simdino pretrain, or published weights of DINO, DINOv2, SimDINO or "    \
                "SimDINOv2 (.safetensors, .pth, .npz; official, timm's or Hugging Face's names)"                      \
    }
#define NETWORK_CHOICE_OPTIONS(o)                                                                                      \
    {.kind = OPTION_FLAG, .name = "teacher", .target = &(o).teacher, .help = "use the teacher network (default)"},     \
    {.kind = OPTION_FLAG, .name = "student", .target = &(o).student, .help = "use the student network"},               \
    {.kind = OPTION_INT,                                                                                               \
     .name = "heads",                                                                                                  \
     .value = "N",                                                                                                     \
     .target = &(o).heads,                                                                                             \
     .least = 1,                                                                                                       \
     .most = 1e4,                                                                                                      \
     .help = "attention heads, which published files do not tell (default: dim / 64)"},                                \
    {                                                                                                                  \
        .kind = OPTION_FLAG, .name = "lenient", .target = &(o).lenient,                                                \
        .help = "use published weights even where tensors are missing, unexpected or of another shape; they are named" \
    }
#define HEAD_OPTION(o)                                                                                                 \
    {                                                                                                                  \
        .kind = OPTION_FLAG, .name = "head", .target = &(o).head,                                                      \
        .help = "the projection head's output, which the loss sees (default: the backbone's class token)"              \
    }
#define FEATURES_OPTIONS(o)                                                                                            \
    {.kind = OPTION_CHOICE,                                                                                            \
     .name = "features",                                                                                               \
     .value = "NAME",                                                                                                  \
     .target = &(o).features,                                                                                          \
     .choices = network_feature_names,                                                                                 \
     .help = "class (default: the class token), head, mean (of the patch tokens) or class-mean (both)"},               \
    {                                                                                                                  \
        .kind = OPTION_INT, .name = "blocks", .value = "N", .target = &(o).blocks, .least = 1, .most = 1000,           \
        .help = "class tokens of the last N blocks side by side (default: 1)"                                          \
    }
#define PREPARE_OPTIONS(o)                                                                                             \
    {.kind = OPTION_INT,                                                                                               \
     .name = "resize",                                                                                                 \
     .value = "N",                                                                                                     \
     .target = &(o).resize,                                                                                            \
     .least = 0,                                                                                                       \
     .most = 65536,                                                                                                    \
     .help = "bring the shorter side of images to N pixels, 0: leave it (default for folders of images: 8/7 of the "   \
             "size that the network was made for, else 0)"},                                                           \
    {                                                                                                                  \
        .kind = OPTION_INT, .name = "crop", .value = "N", .target = &(o).crop, .least = 0, .most = 65536,              \
        .help = "then take the N x N pixels in the middle, 0: all (default for folders of images: the size that the "  \
                "network was made for, at most 224 with published weights; else 0)"                                    \
    },                                                                                                                 \
    {                                                                                                                  \
        .kind = OPTION_CHOICE, .name = "precision", .value = "NAME", .target = &(o).precision,                         \
        .choices = network_precision_names,                                                                            \
        .help = "fp32 (default), or bf16: factors of matrix products rounded to bfloat16, where the CPU has it"        \
    },                                                                                                                 \
    MEAN_OPTIONS(o)
#define MEAN_OPTIONS(o)                                                                                                \
    {.kind = OPTION_REALS,                                                                                             \
     .name = "mean",                                                                                                   \
     .value = "X[,X...]",                                                                                              \
     .target = (o).mean,                                                                                               \
     .count = SD_MAX_CHANNELS,                                                                                         \
     .fewest = 1,                                                                                                      \
     .given_count = &(o).mean_count,                                                                                   \
     .help = "of the channels, of values 0..1 (default: as in training; ImageNet's with published weights)"},          \
    {                                                                                                                  \
        .kind = OPTION_REALS, .name = "std", .value = "X[,X...]", .target = (o).std, .count = SD_MAX_CHANNELS,         \
        .fewest = 1, .given_count = &(o).std_count, .least = 1e-6, .most = 1e6,                                        \
        .help = "deviation of the channels (default: likewise)"                                                        \
    }
#define THREADS_OPTION(target_)                                                                                        \
    {                                                                                                                  \
        .kind = OPTION_INT, .name = "threads", .value = "N", .target = &(target_), .least = 0, .most = 4096,           \
        .help = "threads to compute with (default: 0, all)"                                                            \
    }

extern const char *const network_feature_names[];
extern const char *const network_precision_names[];

typedef struct network {
    sd_model *model;
    sd_model_config shape;
    sd_pretrainer_config trained; /* as it was trained; of published weights what is known of it */
    bool published;
} network;

/* Ready to embed in the precision of the options. 0, or the exit code with the reason reported. */
int network_open(sd_context *context, const network_options *options, network *net);
void network_close(network *net);

/* How images of `dataset` (NULL: of files that are not prepared yet) are embedded: mean and deviation as in training,
 * and a size. */
void network_prepare(const network *net, const network_options *options, const sd_dataset *dataset,
                     sd_embed_config *config);

/* Features of one part of a source: network_prepare(), features_of_dataset() and features_keep_readable(). */
int network_features(sd_context *context, const network *net, const network_options *options,
                     const sd_dataset *dataset, uint64_t limit, const char *what, features *rows);

#endif
