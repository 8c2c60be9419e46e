/* feature_rows.h - a data set as a matrix of features: raw pixels, or embeddings of a network. */
#ifndef FEATURE_ROWS_H
#define FEATURE_ROWS_H

#include <simdino/simdino.h>

typedef struct features {
    float *rows; /* count rows of width dim */
    uint64_t count;
    size_t dim;
} features;

/* Both read the first `limit` images (0: all). 0, or -1 with the reason reported (but nothing about an interrupt).
 * A progress bar is shown with the name `what`, which begins with "embed"; NULL: none. */
int features_of_pixels(const sd_dataset *dataset, uint64_t limit, features *result);
/* `trained` gives geometry, mean and std as in training. */
int features_of_model(sd_context *context, const sd_model *model, const sd_pretrainer_config *trained,
                      const sd_dataset *dataset, uint64_t limit, sd_embed_kind kind, const char *what,
                      features *result);
void features_free(features *result);

/* The words of an option --features, in the order of sd_embed_kind; ends with NULL. */
extern const char *const feature_words[];
#define FEATURES_HELP "class (default: the class token), mean (of the patch tokens), class-mean (both), head (its output)"

#endif
