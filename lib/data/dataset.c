/* Datasets in the host's hands, and the access to all kinds. */
#include "data/dataset.h"
#include "image/image.h"

#include <stdio.h>
#include <string.h>

/* Puts "what number: " in front of the present message. */
static sd_status fail_numbered(sd_status status, const char *what, uint64_t number) {
    char reason[512];
    snprintf(reason, sizeof reason, "%s", sd_last_error());
    return sd_fail(status, "%s %llu: %s", what, (unsigned long long)number, reason);
}

static sd_status copy_labels(sd_dataset *dataset, const int32_t *labels) {
    if (labels == NULL)
        return SD_OK;
    SD_REQUIRE(dataset->count <= SIZE_MAX / sizeof *labels, SD_ERR_MEMORY,
               "%llu labels do not fit into the address space", (unsigned long long)dataset->count);
    dataset->labels = SD_NEW_ARRAY(dataset->context, int32_t, (size_t)dataset->count);
    if (dataset->labels == NULL)
        return SD_ERR_MEMORY;
    memcpy(dataset->labels, labels, (size_t)dataset->count * sizeof *labels);
    return SD_OK;
}

SD_API sd_status sd_dataset_from_images(sd_context *context, const sd_image *images, size_t count,
                                        const int32_t *labels, sd_dataset **out) {
    sd_status status = SD_OK;
    sd_dataset *dataset = NULL;
    SD_EXPECT(out != NULL, SD_ERR_ARGUMENT, "dataset is NULL");
    SD_EXPECT(images != NULL, SD_ERR_ARGUMENT, "images is NULL");
    SD_EXPECT(count > 0, SD_ERR_ARGUMENT, "count is 0: a dataset has at least one image");
    for (size_t i = 0; i < count; i++)
        if ((status = sd_image_check(&images[i])) != SD_OK)
            return fail_numbered(status, "image", i);
    dataset = SD_NEW(context, sd_dataset);
    if (dataset == NULL)
        return SD_ERR_MEMORY;
    dataset->context = context;
    dataset->count = count;
    dataset->images = SD_NEW_ARRAY(context, sd_image, count);
    if (dataset->images == NULL) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    memcpy(dataset->images, images, count * sizeof *images);
    SD_TRY(copy_labels(dataset, labels));
    *out = dataset;
    dataset = NULL;
cleanup:
    sd_dataset_destroy(dataset);
    return status;
}

SD_API sd_status sd_dataset_from_callbacks(sd_context *context, uint64_t count, sd_acquire_function acquire,
                                           sd_release_image_function release, void *opaque, const int32_t *labels,
                                           sd_dataset **out) {
    sd_status status = SD_OK;
    sd_dataset *dataset = NULL;
    SD_EXPECT(out != NULL, SD_ERR_ARGUMENT, "dataset is NULL");
    SD_EXPECT(acquire != NULL, SD_ERR_ARGUMENT, "acquire is NULL");
    SD_EXPECT(count > 0, SD_ERR_ARGUMENT, "count is 0: a dataset has at least one image");
    dataset = SD_NEW(context, sd_dataset);
    if (dataset == NULL)
        return SD_ERR_MEMORY;
    dataset->context = context;
    dataset->count = count;
    dataset->acquire = acquire;
    dataset->release = release;
    dataset->opaque = opaque;
    SD_TRY(copy_labels(dataset, labels));
    *out = dataset;
    dataset = NULL;
cleanup:
    sd_dataset_destroy(dataset);
    return status;
}

SD_API void sd_dataset_destroy(sd_dataset *dataset) {
    if (dataset == NULL)
        return;
    sd_release(dataset->context, dataset->labels);
    sd_release(dataset->context, dataset->pixels);
    sd_release(dataset->context, dataset->images);
    sd_release(dataset->context, dataset);
}

SD_API uint64_t sd_dataset_count(const sd_dataset *dataset) { return dataset != NULL ? dataset->count : 0; }

SD_API const int32_t *sd_dataset_labels(const sd_dataset *dataset) { return dataset != NULL ? dataset->labels : NULL; }

SD_API sd_status sd_dataset_acquire(const sd_dataset *dataset, uint64_t index, sd_image *image, void **token) {
    SD_REQUIRE(dataset != NULL, SD_ERR_ARGUMENT, "dataset is NULL");
    SD_REQUIRE(image != NULL && token != NULL, SD_ERR_ARGUMENT, "%s is NULL", image == NULL ? "image" : "token");
    SD_REQUIRE(index < dataset->count, SD_ERR_ARGUMENT, "index is %llu: the dataset has %llu images",
               (unsigned long long)index, (unsigned long long)dataset->count);
    if (dataset->acquire != NULL) {
        sd_image view = {0};
        void *held = NULL;
        int result = dataset->acquire(dataset->opaque, index, &view, &held);
        SD_REQUIRE(result == 0, SD_ERR_IO, "image %llu: the host's acquire function failed with %d",
                   (unsigned long long)index, result);
        if (sd_image_check(&view) != SD_OK) {
            if (dataset->release != NULL)
                dataset->release(dataset->opaque, index, held);
            return fail_numbered(SD_ERR_IO, "image", index);
        }
        *image = view;
        *token = held;
        return SD_OK;
    }
    *token = NULL;
    if (dataset->images != NULL) {
        *image = dataset->images[index];
        return SD_OK;
    }
    size_t bytes = dataset->width * dataset->height * (size_t)dataset->channels;
    *image = (sd_image){.pixels = dataset->pixels + (size_t)index * bytes,
                        .width = dataset->width,
                        .height = dataset->height,
                        .channels = dataset->channels,
                        .pixel_type = SD_PIXEL_U8};
    return SD_OK;
}

SD_API void sd_dataset_release(const sd_dataset *dataset, uint64_t index, void *token) {
    if (dataset != NULL && dataset->release != NULL)
        dataset->release(dataset->opaque, index, token);
}
