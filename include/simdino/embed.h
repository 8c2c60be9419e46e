/* embed.h - features of images from a trained network. */
#ifndef SIMDINO_EMBED_H
#define SIMDINO_EMBED_H

#include <simdino/base.h>
#include <simdino/data.h>
#include <simdino/image.h>
#include <simdino/model.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum sd_embed_kind {
    SD_EMBED_CLASS = 0, /* the class token after the final norm: dim numbers */
    SD_EMBED_HEAD = 1   /* the head's output: head_dim numbers of length 1 */
} sd_embed_kind;

typedef struct sd_embed_config {
    size_t size;
    int32_t kind;           /* sd_embed_kind, default SD_EMBED_CLASS */
    /* shorter side resized to this (bicubic, antialiased); 0 (default): images keep their size */
    int32_t resize;
    int32_t crop;           /* centre crop of this side; 0 (default): down to the nearest multiple of the patch size */
    int32_t normalize;      /* 1: rows are divided by their length; default 0 */
    int32_t batch;          /* images computed together, default 64 */
    double mean[SD_MAX_CHANNELS]; /* as in training; default ImageNet's 3, then 0.5 */
    double std[SD_MAX_CHANNELS];
} sd_embed_config;
SD_API void sd_embed_config_init(sd_embed_config *config);

/* An embedder owns its working memory; several may share one const model, one thread each.
 * The model is borrowed until destroy. Errors: SD_ERR_ARGUMENT, SD_ERR_MEMORY. */
typedef struct sd_embedder sd_embedder;
SD_API sd_status sd_embedder_create(sd_context *context, const sd_model *model, const sd_embed_config *config,
                                    sd_embedder **embedder);
SD_API void sd_embedder_destroy(sd_embedder *embedder);

/* Numbers per image. */
SD_API size_t sd_embedder_dim(const sd_embedder *embedder);

/* Features of count images of any sizes: row i at out + i*ld, ld >= sd_embedder_dim(). A grey image is repeated for a
 * model of three channels.
 * Errors: SD_ERR_ARGUMENT (an image smaller than a patch: names it), SD_ERR_MISMATCH (channels), SD_ERR_MEMORY,
 * SD_ERR_CANCELLED. The rows of the batches before the failing one are written then. */
SD_API sd_status sd_embed_images(sd_embedder *embedder, const sd_image *images, size_t count, float *out, size_t ld);

/* The same for images first .. first+count-1 of a dataset; reports progress as "embed". Errors: also SD_ERR_IO. */
SD_API sd_status sd_embed_dataset(sd_embedder *embedder, const sd_dataset *dataset, uint64_t first, uint64_t count,
                                  float *out, size_t ld);

#ifdef __cplusplus
}
#endif
#endif
