/* embedder.h - what the files of the embedder share: its state, how images are prepared (prepare.c), and passes of the
 * network (pass.c). */
#ifndef SD_EMBEDDER_H
#define SD_EMBEDDER_H

#include "base/base.h"

#include <simdino/embed.h>

/* Image sizes whose activations are kept, so that two or three sizes in turn do not plan anew each time. */
#define SD_EMBEDDER_PLANS 4

typedef struct sd_embed_plan {
    sd_activations *activations; /* NULL: unused */
    size_t height, width, count; /* planned for so many images of that size */
    bool all_tokens;
    uint64_t used;               /* when it was last used */
} sd_embed_plan;

/* One image of the present batch. */
typedef struct sd_embed_item {
    sd_image image;
    void *token;         /* of the dataset */
    bool acquired;
    size_t height, width; /* as the network sees it */
    size_t pixels;       /* where its tensor begins in `pixels` */
    sd_status status;
} sd_embed_item;

/* Grow-only memory. */
typedef struct sd_embed_buffer {
    void *data;
    size_t bytes;
} sd_embed_buffer;

struct sd_embedder {
    sd_context *context;
    const sd_model *model;
    sd_embed_config config;
    size_t channels, patch, dim, width, registers, depth;
    bool all_tokens;   /* the features need more than the last class token */
    sd_embed_buffer tokens;     /* blocks x tokens of some images */
    sd_embed_plan plans[SD_EMBEDDER_PLANS];
    uint64_t clock;
    sd_embed_item *items;       /* config.batch */
    float *features;   /* config.batch x dim */
    sd_embed_buffer pixels;
    sd_embed_buffer *scratch;   /* one per thread: an image before it is cropped to whole patches */
    size_t scratch_count;

    /* the batch that runs */
    const sd_dataset *dataset;
    uint64_t first;
};

/* ---- preparing images (prepare.c) ---------------------------------------------------------------- */

/* At least count x size bytes; what they held is lost. */
sd_status sd_embedder_reserve(sd_context *context, sd_embed_buffer *b, size_t count, size_t size);
/* Checks an image and tells its size as the network will see it. */
sd_status sd_embedder_measure(const sd_embedder *e, sd_embed_item *it);
/* The tensor of one image into its place: resized, cropped to whole patches, normalised. */
sd_status sd_embedder_prepare(sd_embedder *e, const sd_embed_item *it, size_t thread);
/* The same for the first `count` items in parallel: images of a dataset are acquired and all are measured; then their
 * tensors are made. The message is that of the first that fails. */
sd_status sd_embedder_take_items(sd_embedder *e, size_t count);
sd_status sd_embedder_prepare_items(sd_embedder *e, size_t count);
void sd_embedder_let_go(sd_embedder *e, size_t count);

/* ---- passes (pass.c) ----------------------------------------------------------------------------- */

#define SD_EMBEDDER_BLOCKS_MAX 1024

/* Activations for `count` images of one size: kept ones that are large enough, else new ones in the place used longest
 * ago. */
sd_status sd_embedder_plan(sd_embedder *e, size_t height, size_t width, size_t count, bool all_tokens,
                           sd_activations **activations);
size_t sd_embedder_tokens(const sd_embedder *e, const sd_embed_item *it);
/* Fills `numbers` with the last blocks of the network. */
void sd_embedder_last_blocks(const sd_embedder *e, int32_t numbers[SD_EMBEDDER_BLOCKS_MAX]);
/* Features of items first .. first+count-1, which have one size. */
sd_status sd_embedder_forward(sd_embedder *e, size_t first, size_t count);

#endif
