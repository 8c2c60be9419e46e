/* feature_rows.h - a data set as a matrix of features: raw pixels, or embeddings of a network. */
#ifndef FEATURE_ROWS_H
#define FEATURE_ROWS_H

#include <simdino/simdino.h>

typedef struct features {
    float *rows; /* count rows of width dim */
    uint64_t count;
    size_t dim;
    /* both NULL until features_keep_readable() */
    int32_t *labels;  /* NULL where the data set has none */
    uint64_t *images; /* which image of the data set each row is of */
} features;

/* How a network that was trained so sees images of `dataset`: mean and std as in training; a data set that is made of
 * image files is resized so that the shorter side is 8/7 of the network's image size, and cropped to that. */
void features_prepare(const sd_pretrainer_config *trained, const sd_dataset *dataset, sd_embed_config *config);

/* All read the first `limit` images (0: all). 0, or -1 with the reason reported (but nothing about an interrupt).
 * A progress bar is shown with the name `what`, which begins with "embed"; NULL: none. */
int features_of_dataset(sd_context *context, const sd_model *model, const sd_embed_config *config,
                        const sd_dataset *dataset, uint64_t limit, const char *what, features *result);
/* Images of image files are first brought to PIXELS_SIDE x PIXELS_SIDE; others must have one size. */
#define PIXELS_SIDE 32
int features_of_pixels(const sd_dataset *dataset, uint64_t limit, features *result);
/* features_prepare() and features_of_dataset(). */
int features_of_model(sd_context *context, const sd_model *model, const sd_pretrainer_config *trained,
                      const sd_dataset *dataset, uint64_t limit, sd_embed_kind kind, const char *what,
                      features *result);
/* Fills labels and images, and takes out the rows of images that could not be read (perhaps all of them). 0, or -1 with
 * the reason reported. */
int features_keep_readable(const sd_dataset *dataset, features *result);
void features_free(features *result);

#endif
