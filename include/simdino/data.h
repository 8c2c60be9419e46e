/* data.h - datasets of images, and the loader that turns them into augmented batches. */
#ifndef SIMDINO_DATA_H
#define SIMDINO_DATA_H

#include <simdino/base.h>
#include <simdino/image.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- datasets ------------------------------------------------------------------------------ */

/* A numbered collection of images, each with an optional label. A const sd_dataset may be read by many threads. */
typedef struct sd_dataset sd_dataset;

/* IDX files (MNIST, Fashion-MNIST, ...), plain or gzip (told by content, not by name): images u8 [n][h][w] or
 * [n][h][w][c], labels u8 [n]; labels_path may be NULL.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_IO, SD_ERR_FORMAT (truncated, trailing bytes, lying header), SD_ERR_MISMATCH (number
 * of labels), SD_ERR_MEMORY. */
SD_API sd_status sd_dataset_open_idx(sd_context *context, const char *images_path, const char *labels_path,
                                     sd_dataset **dataset);

/* CIFAR-10 binary files (1 label byte + 3072 planar bytes a record), concatenated in the order given.
 * Errors: as above; SD_ERR_FORMAT also for a size that is not a multiple of 3073 and for a label above 9. */
SD_API sd_status sd_dataset_open_cifar10(sd_context *context, const char *const *paths, size_t path_count,
                                         sd_dataset **dataset);

/* Images that the host holds: count views (the array is copied, the pixels are borrowed until destroy) and labels
 * (count values, copied) or NULL. Errors: SD_ERR_ARGUMENT, SD_ERR_MEMORY. */
SD_API sd_status sd_dataset_from_images(sd_context *context, const sd_image *images, size_t count,
                                        const int32_t *labels, sd_dataset **dataset);

/* Images that the host produces on demand.
 * acquire: fills *image with the view of image `index` and may set *token; the pixels must stay valid until
 * release(opaque, index, token) is called. Returns 0, or another value to make the reading call fail with SD_ERR_IO.
 * Both are called from any of the context's threads, several at once. */
typedef int (*sd_acquire_function)(void *opaque, uint64_t index, sd_image *image, void **token);
typedef void (*sd_release_image_function)(void *opaque, uint64_t index, void *token);
/* release may be NULL; labels as above. Errors: SD_ERR_ARGUMENT, SD_ERR_MEMORY. */
SD_API sd_status sd_dataset_from_callbacks(sd_context *context, uint64_t count, sd_acquire_function acquire,
                                           sd_release_image_function release, void *opaque, const int32_t *labels,
                                           sd_dataset **dataset);
SD_API void sd_dataset_destroy(sd_dataset *dataset);

SD_API uint64_t sd_dataset_count(const sd_dataset *dataset); /* 0 for NULL */
/* NULL when there are no labels. */
SD_API const int32_t *sd_dataset_labels(const sd_dataset *dataset);

/* Takes image `index`; *token must be handed to sd_dataset_release when the pixels are no longer needed.
 * Errors: SD_ERR_ARGUMENT (index), SD_ERR_IO (the host's callback failed, or gave an image of no pixels). */
SD_API sd_status sd_dataset_acquire(const sd_dataset *dataset, uint64_t index, sd_image *image, void **token);
SD_API void sd_dataset_release(const sd_dataset *dataset, uint64_t index, void *token);

/* ---- crops --------------------------------------------------------------------------------- */

/* Ready crops of a batch: what a training step takes. Borrowed views, channels x side x side floats a crop:
 *   globals  2 x samples crops, view after view: crop (v, i) at globals + (v*samples + i)*channels*global_size^2
 *   locals   local_crops x samples crops, likewise; NULL when local_crops is 0
 *   masks    2*samples x patches of a global crop, crops in the order of globals and patches row by row: not 0 where
 *            the student does not see the patch (SimDINOv2, DINOv2). NULL: the pretrainer draws them. It refuses masks
 *            where its method has none, and more masked patches than its mask settings leave room for (sd_masks_limit) */
typedef struct sd_crop_batch {
    size_t samples;
    int32_t channels;
    int32_t global_size;
    int32_t local_size;
    int32_t local_crops;
    const float *globals;
    const float *locals;
    const uint8_t *masks;
} sd_crop_batch;

/* ---- loader -------------------------------------------------------------------------------- */

typedef struct sd_loader_config {
    size_t size;
    uint64_t seed;      /* of order and augmentation */
    size_t batch_size;  /* default 64 */
    int32_t shuffle;    /* default 1: a new order each epoch */
    int32_t channels;   /* channels of the crops, default 3; a grey image is repeated for 3, any other difference is
                           SD_ERR_MISMATCH */
} sd_loader_config;

SD_API void sd_loader_config_init(sd_loader_config *config);

/* Draws shuffled batches from a dataset without end, and augments them on the context's threads. The
 * last, incomplete batch of an epoch is dropped, as the official code does. Batch number b of a seed is always the
 * same, for any number of threads. */
typedef struct sd_loader sd_loader;

/* dataset is borrowed until destroy. Errors: SD_ERR_ARGUMENT (batch_size 0 or larger than the dataset), SD_ERR_MEMORY. */
SD_API sd_status sd_loader_create(sd_context *context, const sd_dataset *dataset, const sd_augment_config *augment,
                                  const sd_loader_config *config, sd_loader **loader);
SD_API void sd_loader_destroy(sd_loader *loader);

SD_API uint64_t sd_loader_batches_per_epoch(const sd_loader *loader);

/* Makes batch number `batch` (0, 1, ...) the next one: used to resume. No errors. */
SD_API void sd_loader_seek(sd_loader *loader, uint64_t batch);
/* The number of the batch that sd_loader_next will give. */
SD_API uint64_t sd_loader_position(const sd_loader *loader);

/* Gives the next batch; it stays valid until the second call after this one, or until a step with this loader
 * augments ahead (the loader holds two batches).
 * A batch that sd_pretrainer_step_loader() has already augmented alongside a step is given at once.
 * Errors: SD_ERR_IO (a callback failed; names the image), SD_ERR_MISMATCH (channels), SD_ERR_MEMORY (a larger image
 * than before), SD_ERR_CANCELLED. The position does not move on failure. */
SD_API sd_status sd_loader_next(sd_loader *loader, sd_crop_batch *batch);

#ifdef __cplusplus
}
#endif
#endif
