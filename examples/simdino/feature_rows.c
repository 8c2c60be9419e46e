/* Feature matrices. See feature_rows.h. */
#include "feature_rows.h"

#include <stdlib.h>
#include <string.h>

#include "image_folder.h"
#include "program.h"
#include "progress.h"

static int allocate(const sd_dataset *dataset, uint64_t limit, size_t dim, features *result) {
    uint64_t count = sd_dataset_count(dataset);
    count = limit > 0 && limit < count ? limit : count;
    *result = (features){.count = count, .dim = dim};
    if (count <= SIZE_MAX / sizeof(float) / dim) {
        result->rows = malloc((size_t)count * dim * sizeof(float));
    }
    if (result->rows == NULL) {
        complain("out of memory for %llu rows of %zu numbers", (unsigned long long)count, dim);
        return -1;
    }
    return 0;
}

void features_free(features *result) {
    free(result->rows);
    free(result->labels);
    free(result->images);
    *result = (features){0};
}

static void copy_pixels(const sd_image *image, float *row) {
    size_t width = image->width * (size_t)image->channels;
    size_t value = image->pixel_type == SD_PIXEL_U8 ? 1 : sizeof(float);
    size_t stride = image->row_stride != 0 ? image->row_stride : width * value;
    for (size_t y = 0; y < image->height; y++) {
        const char *from = (const char *)image->pixels + y * stride;
        if (image->pixel_type == SD_PIXEL_U8) {
            for (size_t i = 0; i < width; i++) {
                row[y * width + i] = (float)((const uint8_t *)from)[i] / 255.0f;
            }
        } else {
            memcpy(row + y * width, from, width * sizeof(float));
        }
    }
}

/* One image as a row: its pixels, or those of a smaller copy. 0 or -1. */
static int take_pixels(const sd_dataset *dataset, uint64_t number, const sd_image *image, uint64_t limit,
                       features *result) {
    bool resized = image_folder_of(dataset) != NULL;
    size_t side = PIXELS_SIDE, channels = (size_t)image->channels;
    size_t dim = resized ? side * side * channels : image->width * image->height * channels;
    if (number == 0 && allocate(dataset, limit, dim, result) != 0) {
        return -1;
    }
    if (dim != result->dim) {
        complain("image %llu has %zu values, the first one %zu: raw pixels can only be compared at equal size",
                 (unsigned long long)number, dim, result->dim);
        return -1;
    }
    if (!resized) {
        copy_pixels(image, result->rows + (size_t)number * dim);
        return 0;
    }
    uint8_t small[PIXELS_SIDE * PIXELS_SIDE * 3];
    sd_status status =
        sd_image_resize(image, 0, 0, image->height, image->width, SD_FILTER_BICUBIC, side, side, small);
    if (status != SD_OK) {
        failed("cannot resize an image", status);
        return -1;
    }
    sd_image view = {.pixels = small, .width = side, .height = side, .channels = image->channels};
    copy_pixels(&view, result->rows + (size_t)number * dim);
    return 0;
}

int features_of_pixels(const sd_dataset *dataset, uint64_t limit, features *result) {
    *result = (features){0};
    for (uint64_t i = 0; i == 0 || i < result->count; i++) {
        sd_image image;
        void *token = NULL;
        sd_status status = sd_dataset_acquire(dataset, i, &image, &token);
        int outcome = status == SD_OK ? 0 : images_failed(dataset, "cannot read the images", status);
        if (status == SD_OK) {
            outcome = take_pixels(dataset, i, &image, limit, result);
            sd_dataset_release(dataset, i, token);
        }
        if (i == 0 && outcome == 0) {
            progress_begin("pixels", 0, result->count);
        }
        if (outcome != 0 || interrupted()) {
            progress_end();
            features_free(result);
            return -1;
        }
        progress_update(i + 1, "");
    }
    progress_end();
    return 0;
}

void features_prepare(const sd_pretrainer_config *trained, const sd_dataset *dataset, sd_embed_config *config) {
    sd_embed_config_init(config);
    memcpy(config->mean, trained->augment.mean, sizeof config->mean);
    memcpy(config->std, trained->augment.std, sizeof config->std);
    if (image_folder_of(dataset) != NULL) {
        config->crop = trained->model.image_size;
        config->resize = (config->crop * 8 + 3) / 7; /* 256 for 224 */
        config->batch = 16;                          /* photographs are in memory as they are, all of a batch */
    }
}

int features_keep_readable(const sd_dataset *dataset, features *result) {
    const int32_t *labels = sd_dataset_labels(dataset);
    const image_folder *folder = image_folder_of(dataset);
    result->images = malloc((size_t)result->count * sizeof *result->images);
    result->labels = labels != NULL ? malloc((size_t)result->count * sizeof *result->labels) : NULL;
    if (result->images == NULL || (labels != NULL && result->labels == NULL)) {
        complain("out of memory");
        features_free(result);
        return -1;
    }
    uint64_t kept = 0;
    for (uint64_t i = 0; i < result->count; i++) {
        if (folder != NULL && image_folder_broken(folder, i)) {
            continue;
        }
        if (kept < i) {
            memcpy(result->rows + kept * result->dim, result->rows + i * result->dim, result->dim * sizeof(float));
        }
        result->images[kept] = i;
        if (labels != NULL) {
            result->labels[kept] = labels[i];
        }
        kept++;
    }
    result->count = kept;
    return 0;
}

int features_of_dataset(sd_context *context, const sd_model *model, const sd_embed_config *config,
                        const sd_dataset *dataset, uint64_t limit, const char *what, features *result) {
    *result = (features){0};
    sd_embedder *embedder = NULL;
    sd_status status = sd_embedder_create(context, model, config, &embedder);
    if (status != SD_OK) {
        failed("cannot prepare the network", status);
        return -1;
    }
    int outcome = allocate(dataset, limit, sd_embedder_dim(embedder), result);
    if (outcome == 0) {
        if (what != NULL) {
            progress_begin(what, 0, result->count);
        }
        status = sd_embed_dataset(embedder, dataset, 0, result->count, result->rows, result->dim);
        if (what != NULL) {
            progress_end();
        }
        if (status != SD_OK) {
            if (status != SD_ERR_CANCELLED) {
                images_failed(dataset, "cannot embed the images", status);
            }
            features_free(result);
            outcome = -1;
        }
    }
    sd_embedder_destroy(embedder);
    return outcome;
}

int features_of_model(sd_context *context, const sd_model *model, const sd_pretrainer_config *trained,
                      const sd_dataset *dataset, uint64_t limit, sd_embed_kind kind, const char *what,
                      features *result) {
    sd_embed_config config;
    features_prepare(trained, dataset, &config);
    config.kind = (int32_t)kind;
    return features_of_dataset(context, model, &config, dataset, limit, what, result);
}
