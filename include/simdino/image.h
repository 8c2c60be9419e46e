/* image.h - images as borrowed views, and the multi-crop augmentation of DINO and SimDINO.
 *
 * Pixel operations on 8-bit images equal Pillow and torchvision on PIL images byte for byte: resize with
 * antialias, colour jitter, grey, blur, solarise.
 */
#ifndef SIMDINO_IMAGE_H
#define SIMDINO_IMAGE_H

#include <simdino/base.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SD_MAX_CHANNELS 16

typedef enum sd_pixel_type {
    SD_PIXEL_U8 = 0, /* 0..255 */
    SD_PIXEL_F32 = 1 /* 0..1; values outside are clipped, NaN counts as 0 */
} sd_pixel_type;

/* A view of somebody else's pixels, channels interleaved: value (y, x, c) is element
 * c + channels*x of the row at (const char *)pixels + y*row_stride. */
typedef struct sd_image {
    const void *pixels;
    size_t width, height;
    size_t row_stride;  /* bytes from a row to the next; 0: rows are packed */
    int32_t channels;   /* 1 .. SD_MAX_CHANNELS */
    int32_t pixel_type; /* sd_pixel_type */
} sd_image;

/* ---- the recipe of the crops --------------------------------------------------------------- */

#define SD_MAX_VIEWS 64

typedef struct sd_augment_config {
    size_t size;
    int32_t global_size;        /* side of the 2 global crops, default 224 */
    int32_t local_size;         /* side of the local crops, default 96 */
    int32_t local_crops;        /* how many, default 10; 0 .. SD_MAX_VIEWS-2 */
    double global_scale[2];     /* share of the area, default 0.4 .. 1 */
    double local_scale[2];      /* default 0.05 .. 0.4 */
    double aspect_ratio[2];     /* default 3/4 .. 4/3 */
    double flip;                /* probability of a horizontal flip, default 0.5 */
    double jitter;              /* probability of colour jitter, default 0.8 */
    double brightness, contrast, saturation, hue; /* ranges, default 0.4, 0.4, 0.2, 0.1 */
    double gray;                /* probability, default 0.2 */
    double blur[3];             /* probability for global 1, global 2, local: 1.0, 0.1, 0.5; see the presets */
    double blur_radius[2];      /* default 0.1 .. 2.0 */
    double solarize[3];         /* probability for global 1, global 2, local: 0, 0.2, 0 */
    int32_t solarize_threshold; /* default 128 */
    int32_t blur_kind;          /* sd_blur_kind; default PIL's box approximation (DINO, SimDINO) */
    double mean[SD_MAX_CHANNELS]; /* of the 0..1 values; default ImageNet's 3, then 0.5 */
    double std[SD_MAX_CHANNELS];  /* default ImageNet's 3, then 0.5 */
    /* zero; room for later settings, because this struct is also part of sd_pretrainer_config */
    int64_t reserved[8];
} sd_augment_config;

typedef enum sd_blur_kind {
    SD_BLUR_PIL = 0,        /* PIL ImageFilter.GaussianBlur(radius) */
    SD_BLUR_TORCHVISION = 1 /* torchvision gaussian_blur, 9 taps, sigma = radius (SimDINOv2, DINOv2) */
} sd_blur_kind;

/* The defaults above. Operations on hue, saturation and grey apply to images of three channels and are
 * skipped for others; brightness, contrast, blur, solarise, flip and crop apply to any number. */
SD_API void sd_augment_config_init(sd_augment_config *config);

/* Sets what the official augmentations fix in their code (flip, jitter, grey, blur, solarise), and leaves sizes,
 * numbers, scales, mean and std as they are:
 *   "dino"              DINO and SimDINO: the defaults above
 *   "dinov2"            SimDINOv2, and what DINOv2 means: as DINO, with torchvision's blur
 *   "dinov2-published"  what DINOv2's code does: it takes the probability of blur for that of no blur, so that global 1
 *                       is never blurred and global 2 with 0.9 (local: 0.5 either way)
 * The order is fixed: crop, flip, jitter, grey, blur, solarise, normalise.
 * Errors: SD_ERR_ARGUMENT for another name. */
SD_API sd_status sd_augment_config_preset(sd_augment_config *config, const char *name);

/* ---- what was drawn for one crop ----------------------------------------------------------- */

typedef struct sd_crop_choice {
    int32_t top, left, height, width; /* the box in the source image */
    int32_t size;                     /* side of the square output */
    int32_t flip;                     /* 0 or 1 */
    int32_t jitter_order[4];          /* 0 brightness, 1 contrast, 2 saturation, 3 hue in the order applied;
                                         -1 ends the list; jitter_order[0] = -1: no jitter */
    double jitter_factor[4];          /* indexed by operation, not by order */
    int32_t gray;                     /* 0 or 1 */
    int32_t solarize;                 /* 0 or 1 */
    double blur;                      /* radius or sigma; 0: none */
} sd_crop_choice;

/* Draws the choices of one view (0, 1: global; 2 ..: local) of an image of the given size, from the stream
 * (seed, sample, view): the same arguments give the same choices always and everywhere.
 * Errors: SD_ERR_ARGUMENT. */
SD_API sd_status sd_crop_choose(const sd_augment_config *config, size_t width, size_t height, uint64_t seed,
                                uint64_t sample, int32_t view, sd_crop_choice *choice);

/* ---- applying them ------------------------------------------------------------------------- */

/* Working space of one thread for augmenting. It grows with the largest image seen, so that a steady
 * stream of images allocates nothing. */
typedef struct sd_augmenter sd_augmenter;

/* context may be NULL. Errors: SD_ERR_ARGUMENT (an impossible setting, which sd_last_error() names), SD_ERR_MEMORY. */
SD_API sd_status sd_augmenter_create(sd_context *context, const sd_augment_config *config, sd_augmenter **augmenter);
SD_API void sd_augmenter_destroy(sd_augmenter *augmenter);

/* Applies one choice.
 *   pixels   receives the picture before normalisation: size*size*channels of the image's own pixel type, packed;
 *            may be NULL.
 *   tensor   receives the normalised crop, channels x size x size floats; may be NULL.
 * Errors: SD_ERR_ARGUMENT (box outside the image, an image of no pixels, more than SD_MAX_CHANNELS), SD_ERR_MEMORY. */
SD_API sd_status sd_crop_apply(sd_augmenter *augmenter, const sd_image *image, const sd_crop_choice *choice,
                               void *pixels, float *tensor);

/* All views of one image: choose and apply for views 0, 1 and each local.
 *   globals  view 0 and 1: channels x global_size x global_size floats at globals[v]
 *   locals   view 2+i at locals[i]; may be NULL when local_crops is 0
 * Errors: as above. */
SD_API sd_status sd_augment(sd_augmenter *augmenter, const sd_image *image, uint64_t seed, uint64_t sample,
                            float *const *globals, float *const *locals);

/* ---- masks --------------------------------------------------------------------------------- */

/* Which patches of the global crops the student does not see: blocks, as in iBOT, DINOv2 and SimDINOv2 (H. Bao et al.,
 * "BEiT", 2021). Of a batch of B crops n = int(B*probability), chosen at random, have masks; the i-th of them is asked
 * to mask a share drawn from the i-th of n equal parts of ratio_min .. ratio_max, so that every batch has the whole
 * range. */
typedef struct sd_mask_config {
    size_t size;
    double ratio_min, ratio_max; /* share of the patches that are masked, default 0.1 .. 0.5 */
    double probability;          /* share of the crops that have masks, default 0.5 */
    double block_share;          /* a block covers at most this share of the patches, default 0.5 */
    double block_aspect;         /* height/width of blocks is in block_aspect .. 1/block_aspect, default 0.3 */
    int32_t block_patches;       /* a block is drawn to have at least this many patches, default 4 */
    int32_t reserved_word;
    /* zero; room for later settings, because this struct is also part of sd_pretrainer_config */
    int64_t reserved[8];
} sd_mask_config;
SD_API void sd_mask_config_init(sd_mask_config *config);

/* The largest number of patches that sd_masks_draw can mask in `images` crops of rows x columns patches, which smaller
 * numbers of crops do not exceed. It says whether such crops can be masked at all, too: a block is lower and narrower
 * than the crop, so that a crop of one row or column cannot.
 * Errors: SD_ERR_ARGUMENT (an impossible setting or grid, which sd_last_error() names). */
SD_API sd_status sd_masks_limit(const sd_mask_config *config, size_t images, size_t rows, size_t columns,
                                size_t *limit);

/* Draws the masks of a batch: masks[i*rows*columns + row*columns + column] is 1 where patch (row, column) of crop i is
 * masked, else 0; counts[i] tells how many are. That may be fewer than were asked for: a mask ends when ten blocks in a
 * row did not fit. A function of the arguments: the same seed, step and number of images give the same masks, with any
 * number of threads. Allocates nothing. The context (its threads) may be NULL.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_THREAD. */
SD_API sd_status sd_masks_draw(sd_context *context, const sd_mask_config *config, uint64_t seed, uint64_t step,
                               size_t images, size_t rows, size_t columns, uint8_t *masks, size_t *counts);

/* The masked patches of a batch as the losses take them. masks: images x patches, masked where not 0.
 *   indices  image*patches + patch of each masked patch, rising; may be NULL
 *   weights  1/(masked patches of its image) of each; may be NULL
 *   count    their number
 * Thread-safe. Errors: SD_ERR_ARGUMENT (also when there are more than `capacity`, the length of both arrays, unless
 * both are NULL; indices and weights are undefined then). */
SD_API sd_status sd_masks_collate(const uint8_t *masks, size_t images, size_t patches, size_t capacity, size_t *indices,
                                  float *weights, size_t *count);

/* ---- single operations --------------------------------------------------------------------- */

typedef enum sd_filter {
    SD_FILTER_NEAREST = 0,
    SD_FILTER_BILINEAR = 1,
    SD_FILTER_BICUBIC = 2, /* a = -0.5 */
    SD_FILTER_LANCZOS = 3
} sd_filter;

/* Crops the box (top, left, height, width) out of `image` and resizes it to out_width x out_height with antialias, as
 * PIL does. `out` receives out_height rows of out_width*channels of the image's pixel type, packed.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_MEMORY (working space comes from malloc). */
SD_API sd_status sd_image_resize(const sd_image *image, size_t top, size_t left, size_t height, size_t width,
                                 sd_filter filter, size_t out_width, size_t out_height, void *out);

/* Evaluation transform: the shorter side resized to `resize` (bicubic; 0: no resize), then the centre crop x crop (0:
 * none) taken, then normalised by mean and std of the 0..1 values, one of each per channel (NULL: 0 and 1). `tensor`
 * receives channels x height x width floats; out_width and out_height (may be NULL) receive its size. With tensor NULL
 * only the size is told. Thread-safe.
 * Errors: SD_ERR_ARGUMENT (the crop does not fit, std 0), SD_ERR_MEMORY. */
SD_API sd_status sd_image_prepare(const sd_image *image, size_t resize, size_t crop, const double *mean,
                                  const double *std, float *tensor, size_t *out_width, size_t *out_height);

#ifdef __cplusplus
}
#endif
#endif
