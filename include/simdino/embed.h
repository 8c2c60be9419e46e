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
    SD_EMBED_HEAD = 1,  /* the head's output: head_dim numbers of length 1 */
    SD_EMBED_MEAN = 2,  /* the mean of the patch tokens after the final norm: dim numbers */
    /* the class token, or those of the last `blocks` blocks in their order, and then that mean */
    SD_EMBED_CLASS_MEAN = 3
} sd_embed_kind;

/* What happens to an image whose sides (after resize and crop) are not multiples of the patch size. */
typedef enum sd_embed_fit {
    SD_FIT_CROP = 0, /* the centre that is one */
    SD_FIT_PAD = 1   /* zeros (the mean colour) on all four sides up to the next one */
} sd_embed_fit;

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
    /* class tokens of so many last blocks side by side, for SD_EMBED_CLASS and SD_EMBED_CLASS_MEAN; default 1. Linear
     * probes of DINO take 4, of DINOv2 1 or 4 with the mean */
    int32_t blocks;
    int32_t block_norm;     /* 1 (default): with the final norm applied to every block's output */
    int32_t fit;            /* sd_embed_fit, default SD_FIT_CROP */
    int32_t precision;      /* sd_precision of the network's matrix products, default SD_PRECISION_FP32 */
} sd_embed_config;
SD_API void sd_embed_config_init(sd_embed_config *config);

/* Sets resize, crop, mean and std as the published models were evaluated with: "dino", "dinov2", "simdino", "simdinov2":
 * shorter side 256, bicubic, centre crop 224, ImageNet's mean and deviation. Errors: SD_ERR_ARGUMENT for another name. */
SD_API sd_status sd_embed_config_preset(sd_embed_config *config, const char *name);

/* An embedder owns its working memory; several may share one const model, one thread each.
 * The model is borrowed until destroy. Errors: SD_ERR_ARGUMENT, SD_ERR_UNSUPPORTED (precision, see sd_precision_check),
 * SD_ERR_MEMORY. */
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

/* ---- all tokens of one image --------------------------------------------------------------- */

/* The patches that an image has after resize, crop and fit. Errors: as sd_embed_images. */
SD_API sd_status sd_embed_grid(const sd_embedder *embedder, const sd_image *image, size_t *rows, size_t *columns);

/* Where the tokens of an image go; each may be NULL. With n = the config's `blocks`, block after block, the last of the
 * network last; after the final norm where block_norm is 1. */
typedef struct sd_token_outputs {
    size_t size;
    float *class_tokens;    /* n x dim */
    float *register_tokens; /* n x registers x dim */
    float *patch_tokens;    /* n x (rows * columns) x dim, row by row over the grid */
    int32_t attention_block;/* 0-based */
    int32_t reserved;
    /* softmax attention of that block: heads x T x T, T = 1 + registers + rows * columns, in this order */
    float *attention;
} sd_token_outputs;
SD_API void sd_token_outputs_init(sd_token_outputs *outputs);

/* Errors: as sd_embed_images; SD_ERR_ARGUMENT (attention_block). */
SD_API sd_status sd_embed_tokens(sd_embedder *embedder, const sd_image *image, const sd_token_outputs *outputs);

#ifdef __cplusplus
}
#endif
#endif
