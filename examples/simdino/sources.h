/* sources.h - opens the data set that --data names. */
#ifndef SOURCES_H
#define SOURCES_H

#include <simdino/simdino.h>

#include "image_folder.h"

typedef struct source {
    sd_dataset *train;
    sd_dataset *test;               /* NULL when there is none */
    const char *name;               /* "Fashion-MNIST", "CIFAR-10", "IDX images" */
    const char *const *class_names; /* NULL when unknown */
    int32_t channels;
    size_t width, height;           /* of the first image; those of a folder of images differ */
    image_folder *train_images, *test_images; /* where the data set is made of image files; else NULL */
    const char **own_class_names;             /* of class folders */
} source;

/* `path` is a folder with the four files of MNIST or Fashion-MNIST (plain or .gz), a folder with CIFAR-10's binary
 * files, one IDX file of images (its labels and test images are looked for beside it), CIFAR-10 files with commas
 * between them, one JPEG or PNG file, or a folder of them: in it, or in a folder for each class, or in folders train and
 * test (or val) that hold such folders.
 * `test_path` (or NULL) names another place for the test images. Returns 0, or -1 with the reason reported. */
int source_open(sd_context *context, const char *path, const char *test_path, source *data);
void source_close(source *data);

/* Images of a folder are brought to the channels of a network; other data sets stay as they are. */
void source_set_channels(source *data, int32_t channels);

/* Number of classes: the largest label + 1; 0 without labels. */
int32_t source_classes(const sd_dataset *dataset);

#define SOURCE_PATH_HELP                                                                                               \
    "the images: a folder with the IDX files of MNIST or Fashion-MNIST (plain or .gz), a folder with CIFAR-10's "      \
    "binary files, one IDX file, CIFAR-10 files with commas between them, or a folder of JPEG and PNG files (with a "    \
    "folder for each class, if any, and all of that in folders train and test, if any)"

#endif
