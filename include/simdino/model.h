/* model.h - the network: a vision transformer and a projection head, forward and backward.
 *
 * This is the primitive level: a host that only wants to pretrain uses train.h, one that only wants features embed.h.
 *
 * All parameters of a model are one flat array of floats; a table tells name, shape and place of each tensor.
 * Gradients, a teacher and optimizer moments are arrays of the same layout.
 */
#ifndef SIMDINO_MODEL_H
#define SIMDINO_MODEL_H

#include <simdino/base.h>
#include <simdino/data.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- configuration ------------------------------------------------------------------------- */

typedef struct sd_model_config {
    size_t size;
    /* backbone: pre-norm vision transformer (LayerNorm eps 1e-6, exact GELU, biases everywhere) */
    int32_t image_size;     /* side whose patch grid the position embedding is learned for; default 224 */
    int32_t patch_size;     /* default 16 */
    int32_t channels;       /* 1..16, default 3 */
    int32_t dim;            /* width, default 384 */
    int32_t depth;          /* blocks, default 12 */
    int32_t heads;          /* default 6; must divide dim */
    double mlp_ratio;       /* hidden width of the MLP / dim, default 4 */
    double drop_path;       /* stochastic depth rate of the last block, growing linearly from 0; default 0.1 */
    /* added to the patch grid when the position embedding is interpolated; default 0.1 (DINO) */
    double interpolate_offset;
    /* projection head: Linear-GELU-...-Linear, then rows divided by their length */
    int32_t head_layers;    /* linear layers, default 3; 0: no head */
    int32_t head_hidden;    /* default 2048 */
    int32_t head_dim;       /* width of its output, default 256 */
    /* the forms of DINOv2 and SimDINOv2; 0 (default) everywhere: the form of DINO and SimDINO */
    int32_t registers;      /* register tokens after the class token, 0..64; they get no position embedding */
    int32_t mask_token;     /* 1: there is a mask token, so that masked patches can be given */
    int32_t feed_forward;   /* sd_feed_forward */
    int32_t qk_norm;        /* 1: queries and keys of each head pass a LayerNorm (eps 1e-6) before their product */
    int32_t interpolate_antialias; /* 1: the position embedding is interpolated with antialiasing */
    int32_t drop_path_uniform;     /* 1: drop_path is the rate of every block (v2); 0: of the last, growing from 0 */
    /* 1: each branch drops exactly the share drop_path of a group's images, at least one is kept (v2); 0: each image is
     * dropped with that probability */
    int32_t drop_path_subset;
    /* prototypes of DINO's heads: "head.last_layer" holds this many weight-normalised rows of head_dim; 0: none */
    int32_t prototypes;
    int32_t prototype_scale;       /* 1: their lengths (weight_g) are trained (DINOv2); 0: they stay 1 (DINO) */
    int32_t patch_head;            /* 1: masked patches have a head of their own ("patch_head."), of the same widths */
    int32_t patch_prototypes;      /* of that head; with patch_head 0, patches share "head." and its prototypes */
    int32_t unused;
    double layer_scale;            /* initial value of LayerScale's factors; 0: no LayerScale */
    /* zero; room for later settings, because this struct is also part of sd_pretrainer_config */
    int64_t reserved[1];
} sd_model_config;

typedef enum sd_feed_forward {
    SD_FEED_FORWARD_MLP = 0,   /* fc2(gelu(fc1(x))), hidden width mlp_ratio * dim */
    SD_FEED_FORWARD_SWIGLU = 1 /* w3(silu(a) * b), [a, b] = w12(x), hidden width 2/3 mlp_ratio dim rounded up to 8 */
} sd_feed_forward;

SD_API void sd_model_config_init(sd_model_config *config); /* ViT-S/16 with SimDINO's head */

/* Sets dim, depth and heads to those of "tiny" (192/12/3), "small" (384/12/6), "base" (768/12/12) or "large"
 * (1024/24/16).
 * Errors: SD_ERR_ARGUMENT for another name. */
SD_API sd_status sd_model_config_preset(sd_model_config *config, const char *name);

/* ---- model --------------------------------------------------------------------------------- */

typedef struct sd_model sd_model;

/* Makes a model whose parameters are all zero: call sd_model_initialize or fill sd_model_parameters.
 * Errors: SD_ERR_ARGUMENT (names the setting), SD_ERR_MEMORY. */
SD_API sd_status sd_model_create(sd_context *context, const sd_model_config *config, sd_model **model);
SD_API void sd_model_destroy(sd_model *model);

/* The official initialisation: weights and tokens truncated normal with deviation 0.02, biases 0, norm
 * weights 1; the patch projection uniform in +-1/sqrt(fan_in), as PyTorch's convolution; prototypes likewise, of length
 * 1; with a mask token (v2) that is 0, class and register tokens have deviation 1e-6. Same seed, same numbers. */
SD_API void sd_model_initialize(sd_model *model, uint64_t seed);

/* The configuration as created. `config->size` is set by the caller. Errors: SD_ERR_ARGUMENT. */
SD_API sd_status sd_model_get_config(const sd_model *model, sd_model_config *config);

/* The flat parameters, sd_model_parameter_count floats, and a copy between two models of equal layout. */
SD_API size_t sd_model_parameter_count(const sd_model *model);
SD_API float *sd_model_parameters(sd_model *model);
SD_API const float *sd_model_parameters_const(const sd_model *model);
SD_API sd_status sd_model_copy(sd_model *to, const sd_model *from); /* SD_ERR_MISMATCH */

/* Packs the weights of all blocks for the matrix products of forward passes in this precision (sd_precision), once instead of
 * in every pass: faster where a pass has a few images (an embedder's batch of one: by about a tenth in fp32, a seventh in
 * bf16), for memory of about the parameters' size in fp32 and half of it in bf16. Every pass of that precision uses them, to
 * the same features. Nothing is packed where the CPU has no use for it.
 * They are dropped by sd_model_unpack, by whatever changes the model through the library, and by sd_model_parameters, since
 * its caller may write: whoever keeps that pointer and writes later calls sd_model_unpack or sd_model_pack afterwards, else
 * passes mix old and new numbers. Like all changes of a model, not while others use it.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_UNSUPPORTED (precision), SD_ERR_MEMORY; the model is not packed then. */
SD_API sd_status sd_model_pack(sd_model *model, int32_t precision);
SD_API void sd_model_unpack(sd_model *model);

typedef struct sd_tensor_info {
    const char *name;   /* official state-dict name with "backbone.", "head." or "patch_head." before it */
    int64_t shape[4];
    int32_t dimensions; /* 1..4 */
    int32_t decay;      /* 1: weight decay applies; 0: bias or one-dimensional */
    size_t offset;      /* of its first element in the flat array */
    size_t count;       /* of its elements */
    int32_t layer;      /* 0: tokens and patch embedding, 1..depth: blocks, depth+1: final norm and head */
} sd_tensor_info;

SD_API size_t sd_model_tensor_count(const sd_model *model);
/* `index` in [0, tensor count): else NULL. The table is one array: tensor 0 is followed by all others. */
SD_API const sd_tensor_info *sd_model_tensor(const sd_model *model, size_t index);
/* By name, e.g. "backbone.blocks.0.attn.qkv.weight". NULL when there is none. */
SD_API const sd_tensor_info *sd_model_find_tensor(const sd_model *model, const char *name);

/* ---- forward and backward ------------------------------------------------------------------ */

/* A group of images of one size: count x channels x height x width floats, normalised. Height and width must be
 * multiples of the patch size. */
typedef struct sd_image_group {
    const float *pixels;
    size_t count, height, width;
} sd_image_group;

/* What an activations object must be able to hold. */
typedef enum sd_activation_mode {
    SD_ACTIVATIONS_INFERENCE = 0, /* forward only; memory for one piece of work per thread. The threads share a few images;
                                     features then differ by roundings from those of a larger batch or of training */
    SD_ACTIVATIONS_SPEED = 1,     /* backward possible, everything that it needs is stored */
    /* backward possible; only the input of each block is stored, the rest is computed again: about half of the memory of a
     * step, for a fifth more of its time (between the two: sd_activations_config's recomputed_blocks) */
    SD_ACTIVATIONS_MEMORY = 2
} sd_activation_mode;

/* Working memory for one forward (and backward) pass of a batch, planned once. One pass at a time. */
typedef struct sd_activations sd_activations;

/* Room for batches of up to group_count groups, group g of up to shapes[g].count images of its size (pixels are
 * ignored).
 *   all_tokens  1: the last block is computed for all tokens, so that sd_forward_outputs' tokens may be asked for; 0:
 *               only for the class tokens, which is faster.
 * The model is borrowed until destroy. Errors: SD_ERR_ARGUMENT, SD_ERR_MEMORY. */
SD_API sd_status sd_activations_create(const sd_model *model, const sd_image_group *shapes, size_t group_count,
                                       sd_activation_mode mode, int32_t all_tokens, sd_activations **activations);

/* The same with all settings. Errors: also SD_ERR_UNSUPPORTED (sd_precision_check). */
typedef struct sd_activations_config {
    size_t size;
    int32_t mode;       /* sd_activation_mode, default SPEED */
    int32_t all_tokens; /* as above, default 0 */
    size_t max_patches; /* most patches whose own outputs a pass may ask for (sd_forward_options' patches); default 0 */
    int32_t precision;  /* sd_precision of the passes' matrix products, default SD_PRECISION_FP32 */
    /* with SD_ACTIVATIONS_SPEED: so many blocks, from the first, are treated as with SD_ACTIVATIONS_MEMORY, each for about
     * nine tenths of the memory of a block (in bf16 eight); 0 (default) to depth */
    int32_t recomputed_blocks;
    /* sd_products of the blocks, for their passes over many images; default SD_PRODUCTS_PLAIN, with which the results for an
     * image do not depend on the others of a pass */
    int32_t products;
    int32_t reserved;
} sd_activations_config;
SD_API void sd_activations_config_init(sd_activations_config *config);
SD_API sd_status sd_activations_create_with(const sd_model *model, const sd_image_group *shapes, size_t group_count,
                                            const sd_activations_config *config, sd_activations **activations);
SD_API void sd_activations_destroy(sd_activations *activations);
/* Bytes that it holds. */
SD_API size_t sd_activations_memory(const sd_activations *activations);

typedef struct sd_forward_options {
    size_t size;
    int32_t train;    /* 1: stochastic depth is active; default 0 */
    int32_t head;     /* 1 (default): the head is computed where the model has one */
    uint64_t seed;    /* of stochastic depth: with step and sample it decides which paths are dropped */
    uint64_t step;
    uint64_t first_sample; /* number of the first image of group 0; the images are numbered through */
    /* NULL, or one pointer per group: NULL, or images x patches bytes, row-major over the grid. Where a byte is not 0, the
     * mask token takes the place of the patch's embedding (its position embedding is added all the same). Needs a model
     * with a mask token. */
    const uint8_t *const *masks;
    /* Patches of group 0 that also get outputs of their own: patch_count (at most max_patches) numbers image * patches +
     * patch, ascending. Borrowed during the call. */
    const size_t *patches;
    size_t patch_count;
} sd_forward_options;
SD_API void sd_forward_options_init(sd_forward_options *options);

/* Where results go; every member may be NULL. S images in total, in the order of the groups; D = dim. */
typedef struct sd_forward_outputs {
    size_t size;
    float *class_tokens; /* S x D, after the final norm */
    float *features;     /* S x head_dim, rows of length 1; needs a head */
    /* all tokens of all images, packed (class token, registers, patches), x D, before the final norm; needs all_tokens */
    float *tokens;
    float *tokens_norm;  /* the same after the final norm; needs all_tokens */
    float *patch_tokens;   /* patch_count x D: the options' patches after the final norm */
    float *patch_features; /* patch_count x head_dim: through the head (patch_head, where the model has one) */
    /* outputs of blocks (0-based, ascending, block_count of them), for all tokens: block after block, each packed as
     * `tokens`; with the final norm applied when block_norm is 1. Needs all_tokens. */
    const int32_t *blocks;
    size_t block_count;
    float *block_tokens;
    int32_t block_norm;
    /* softmax attention of one block (0-based) in all images: image after image, heads x T x T; needs all_tokens */
    int32_t attention_block;
    float *attention;
} sd_forward_outputs;
SD_API void sd_forward_outputs_init(sd_forward_outputs *outputs);

/* Forward pass. `model` may be another model of the same configuration than the one of `activations`.
 * `options` NULL: defaults. Threads: the context's. Several threads may run forward on one const model, each with its
 * own activations.
 * Errors: SD_ERR_ARGUMENT (a group larger than planned or of another size), SD_ERR_CANCELLED, SD_ERR_THREAD. */
SD_API sd_status sd_model_forward(const sd_model *model, sd_activations *activations, const sd_image_group *groups,
                                  size_t group_count, const sd_forward_options *options,
                                  const sd_forward_outputs *outputs);

/* Gradients of a scalar with respect to the outputs; each may be NULL (zero), shapes as above. */
typedef struct sd_backward_inputs {
    size_t size;
    const float *class_tokens;
    const float *features;
    const float *tokens; /* with respect to `tokens` (before the final norm); needs all_tokens */
    const float *tokens_norm;
    const float *patch_tokens;
    const float *patch_features;
} sd_backward_inputs;
SD_API void sd_backward_inputs_init(sd_backward_inputs *inputs);

/* Backward pass of the last forward with these activations; parameters must not have changed since. It takes the place of
 * what the forward pass stored: one backward pass for each forward.
 *   gradient  parameter_count floats, to which the gradient is added when accumulate is 1, else it is overwritten
 *   pixels    NULL, or one pointer per group (each may be NULL) that receives the gradient of its pixels
 * Errors: SD_ERR_STATE (inference activations, or no forward since the last backward pass), SD_ERR_CANCELLED,
 * SD_ERR_THREAD: gradient is undefined then. */
SD_API sd_status sd_model_backward(const sd_model *model, sd_activations *activations, const sd_backward_inputs *inputs,
                                   float *gradient, int32_t accumulate, float *const *pixels);

/* Between a forward with SD_ACTIVATIONS_SPEED (no recomputed_blocks) and all_tokens and its backward pass: tokens of block
 * `block` (0-based; its output) of all images, packed; with the final norm applied when norm is 1.
 * Errors: SD_ERR_STATE, SD_ERR_ARGUMENT. */
SD_API sd_status sd_model_block_tokens(const sd_model *model, const sd_activations *activations, int32_t block,
                                       int32_t norm, float *tokens);
/* Likewise: softmax attention of one block and one image (numbered through the groups), heads x T x T. */
SD_API sd_status sd_model_attention(const sd_model *model, const sd_activations *activations, int32_t block,
                                    size_t image, float *attention);
/* The position embedding as added to images of height x width pixels: (1 + patches) x dim floats. Thread-safe.
 * Errors: SD_ERR_ARGUMENT. */
SD_API sd_status sd_model_position_embedding(const sd_model *model, size_t height, size_t width, float *embedding);

#ifdef __cplusplus
}
#endif
#endif
