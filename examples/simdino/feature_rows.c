/* Feature matrices. See feature_rows.h. */
#include "feature_rows.h"

#include <stdlib.h>
#include <string.h>

#include "program.h"
#include "progress.h"

const char *const feature_words[] = {
    [SD_EMBED_CLASS] = "class", [SD_EMBED_HEAD] = "head", [SD_EMBED_MEAN] = "mean", [SD_EMBED_CLASS_MEAN] = "class-mean",
    NULL};

static int allocate(const sd_dataset *dataset, uint64_t limit, size_t dim, features *result) {
    uint64_t count = sd_dataset_count(dataset);
    count = limit > 0 && limit < count ? limit : count;
    *result = (features){NULL, count, dim};
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

int features_of_pixels(const sd_dataset *dataset, uint64_t limit, features *result) {
    *result = (features){0};
    for (uint64_t i = 0; i == 0 || i < result->count; i++) {
        sd_image image;
        void *token = NULL;
        sd_status status = sd_dataset_acquire(dataset, i, &image, &token);
        if (status != SD_OK) {
            failed("cannot read an image", status);
            features_free(result);
            return -1;
        }
        size_t dim = image.width * image.height * (size_t)image.channels;
        int outcome = 0;
        if (i == 0) {
            outcome = allocate(dataset, limit, dim, result);
        } else if (dim != result->dim) {
            complain("image %llu has %zu values, the first one %zu: raw pixels can only be compared at equal size",
                     (unsigned long long)i, dim, result->dim);
            outcome = -1;
        }
        if (outcome == 0) {
            copy_pixels(&image, result->rows + (size_t)i * dim);
        }
        sd_dataset_release(dataset, i, token);
        if (outcome != 0) {
            features_free(result);
            return -1;
        }
    }
    return 0;
}

int features_of_model(sd_context *context, const sd_model *model, const sd_pretrainer_config *trained,
                      const sd_dataset *dataset, uint64_t limit, sd_embed_kind kind, const char *what,
                      features *result) {
    *result = (features){0};
    sd_embed_config config;
    sd_embed_config_init(&config);
    config.kind = (int32_t)kind;
    memcpy(config.mean, trained->augment.mean, sizeof config.mean);
    memcpy(config.std, trained->augment.std, sizeof config.std);

    sd_embedder *embedder = NULL;
    sd_status status = sd_embedder_create(context, model, &config, &embedder);
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
                failed("cannot embed the images", status);
            }
            features_free(result);
            outcome = -1;
        }
    }
    sd_embedder_destroy(embedder);
    return outcome;
}
