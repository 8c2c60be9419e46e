/* A file of weights with the names of the model: what the reader of weights and the guess of the configuration share.
 * */
#ifndef SD_IO_WEIGHTS_H
#define SD_IO_WEIGHTS_H

#include "io/names.h"
#include "io/tensor_file.h"

/* One tensor of the part of the file that is read. */
typedef struct sd_weight {
    char name[SD_NATIVE_NAME_MAX]; /* native; "": it has no place in a model */
    int piece;
    size_t index; /* in the file */
    bool used;
} sd_weight;

typedef struct sd_weights {
    sd_context *context;
    sd_tensor_file *file;
    const char *path; /* borrowed */
    int32_t names;    /* sd_names */
    bool student;
    bool v2_heads;          /* they were called dino_head. */
    bool no_class_position; /* timm: the class token's position is in the class token */
    sd_weight *list;        /* by name and piece */
    size_t count;
} sd_weights;

/* Opens the file, chooses teacher or student, and translates the names. `options` holds no defaults any more.
 * Errors: those of sd_weights_config. */
sd_status sd_weights_open(sd_context *context, const char *path, const sd_weights_options *options,
                          sd_weights *weights);
void sd_weights_close(sd_weights *weights); /* a zeroed one is fine */
/* By name and piece; NULL: none. */
sd_weight *sd_weights_find(const sd_weights *weights, const char *name, int piece);
const sd_stored *sd_weights_tensor(const sd_weights *weights, const sd_weight *weight);

/* weights_config.c: the configuration, checked, and not out of proportion to the file. */
sd_status sd_weights_infer(const sd_weights *weights, const sd_weights_options *options, sd_model_config *config);

#endif
