/* model - the network: geometry, parameter table, activations, forward and backward.
 *
 * Letters in comments: S images (sequences) of a pass, T tokens of all of them, D width, F hidden width of the MLP, C
 * channels, p patch side. */
#ifndef SD_MODEL_INTERNAL_H
#define SD_MODEL_INTERNAL_H

#include "base/base.h"
#include "math/kernels.h"
#include "nn/nn.h"
#include <simdino/model.h>

#include <stdatomic.h>

#define SD_HEAD_LAYERS_MAX 8
#define SD_GROUPS_MAX 16
#define SD_REGISTERS_MAX 64
#define SD_PROTOTYPES_MAX (1 << 20)
#define SD_HEADS_MAX 2 /* projection heads: of class tokens (and patches that share it), of patches */

/* The parameters at a place of sd_layout, in a function that has model, layout l and block. */
#define SD_PARAMETER(place) sd_block_parameter(model, l->place, block)
/* The same of a LayerScale factor: NULL where the model has none. */
#define SD_GAMMA(place) (model->geometry.layer_scale ? SD_PARAMETER(place) : NULL)

/* Sizes that follow from a configuration. */
typedef struct sd_geometry {
    size_t dim, depth, heads, patch, channels;
    size_t registers;
    size_t hidden;        /* width of the feed-forward layer after its activation function */
    size_t hidden_in;     /* and before: twice that for SwiGLU */
    size_t patch_values;  /* C p p */
    size_t grid;          /* native patches per side */
    size_t head_layers;
    size_t head_width[SD_HEAD_LAYERS_MAX + 1]; /* input of layer 0, output of each layer */
    size_t prototypes[SD_HEADS_MAX];
    double drop_path;
    sd_position_map position;
    bool drop_uniform, drop_subset, mask_token, swiglu, qk_norm, layer_scale, patch_head;
} sd_geometry;

/* Places of the tensors in the flat parameters. Blocks have all the same form: add block*block_stride. */
typedef struct sd_layout {
    size_t cls_token, position, registers, mask_token, patch_weight, patch_bias;
    size_t block_stride;
    size_t norm1_weight, norm1_bias, qkv_weight, qkv_bias, proj_weight, proj_bias;
    size_t norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias; /* SwiGLU: w12 and w3 */
    size_t gamma1, gamma2; /* LayerScale of the two branches */
    size_t q_norm_weight, q_norm_bias, k_norm_weight, k_norm_bias;
    size_t norm_weight, norm_bias;
    struct sd_head_layout {
        size_t weight[SD_HEAD_LAYERS_MAX], bias[SD_HEAD_LAYERS_MAX];
        size_t prototype_scale, prototype_direction; /* weight_g, weight_v */
    } head[SD_HEADS_MAX];
} sd_layout;

/* The weights of a block as right factors of the products over tokens. Chunk after chunk meets them, so that they are packed
 * once for all where that helps (block_weights.c). */
typedef struct sd_block_weights {
    sd_factor qkv, proj, fc1, fc2;
} sd_block_weights;

/* Those of all blocks, packed for forward passes (pack.c). */
typedef struct sd_packed_model {
    const struct sd_packed *way; /* to multiply, which alone can read them */
    sd_block_weights *blocks;    /* depth */
    char *memory;
} sd_packed_model;
void sd_packed_model_destroy(sd_context *context, sd_packed_model *packed);

struct sd_model {
    sd_context *context;
    sd_model_config config;
    sd_geometry geometry;
    sd_layout layout;
    sd_tensor_info *tensors;
    char (*names)[64];
    size_t tensor_count;
    float *parameters;
    size_t parameter_count;
    sd_packed_model *packed; /* NULL: not packed */
};

/* parameters.c: checks a configuration (SD_ERR_ARGUMENT names the setting) and tells its sizes. */
sd_status sd_geometry_of(const sd_model_config *config, sd_geometry *geometry);
/* The number of parameters, and of tensors, of a geometry. */
size_t sd_geometry_parameters(const sd_geometry *geometry);
size_t sd_geometry_patches(const sd_geometry *geometry, size_t height, size_t width);
size_t sd_geometry_tokens(const sd_geometry *geometry, size_t height, size_t width); /* 1 + registers + patches */

/* ---- activations (activations.c) ----------------------------------------------------------- */

/* Consecutive images that one thread takes through the blocks. */
typedef struct sd_chunk {
    size_t first, last; /* images first .. last-1 */
} sd_chunk;

/* Which images pass a residual branch (stochastic depth drops the others), and where their rows lie in the branch's
 * compact buffers. */
typedef struct sd_branch {
    const size_t *row_before;   /* [S+1] compact token rows before image s */
    const size_t *image_before; /* [S+1] kept images before image s */
    float scale[SD_GROUPS_MAX]; /* of the images of each group that are kept: 1 / share that is kept */
} sd_branch;

/* What a block keeps for its backward pass. Rows: T. Kept numbers (kept.c): floats, or bfloat16 if a->keeps_bf16. */
typedef struct sd_block_store {
    float *x;             /* T x D, the block's input */
    float *mean1, *rstd1; /* T */
    void *kept_qkv;       /* T x 3D kept numbers */
    float *middle;        /* T x D, after the attention branch */
    float *mean2, *rstd2; /* T */
    void *kept_hidden;    /* T x F_in kept numbers, before GELU or SwiGLU */
    /* of a chunk, where they are computed (sd_chunk_store): */
    float *qkv, *hidden;  /* in the place of kept floats, or memory of the thread */
    float *attention;     /* T x D, heads side by side, before the projection: computed again in the backward pass */
} sd_block_store;

/* What one block's backward leaves for the weight gradients. Rows: T. */
typedef struct sd_layer_work {
    float *dx;         /* T x D: gradient of the residual stream, updated in place from block to block */
    float *patches;    /* T x C p p */
    /* kept numbers: */
    void *dattention;  /* T x D: gradient at the projection's output */
    void *gelu;        /* T x F */
    void *dmlp;        /* T x D: gradient at fc2's output */
    /* where they cannot take the place of what the block stored (sd_layer_rows_of), else NULL: */
    float *normal1, *normal2; /* T x D, if paths may be dropped: then they have fewer rows than what they come from */
    float *dqkv;              /* T x 3D, if queries and keys have norms, whose gradient reads both */
} sd_layer_work;

/* Likewise, of the block at hand, in buffers that are free by then. All are kept numbers. Those that take the place of a row of
 * floats begin where it began, whatever their size: other rows there may not be free yet. */
typedef struct sd_layer_rows {
    float *normal1, *normal2; /* T x D: outputs of the norms; rows of floats */
    void *dqkv;               /* T x 3D */
    void *dhidden;            /* T x F_in */
    float *attention;         /* T x D: what attention gave, computed again; rows of floats */
} sd_layer_rows;

/* LayerScale, y = gamma * (W a + b), of one block's backward. With g = dL/dy: the products take diag(gamma) W as weight
 * and leave M = g' a and s = sum of g here, from which dW = diag(gamma) M, db = gamma * s and dgamma_i = <W_i, M_i> + b_i
 * s_i follow (scale.c), so that the branch's output need not be kept or computed again. */
typedef struct sd_scaled_weights {
    float *proj, *fc2;   /* D x D, D x F */
    float *dproj, *dfc2; /* M of both */
    float *dproj_bias, *dfc2_bias; /* s of both */
} sd_scaled_weights;

/* The class tokens' way after the last attention, and the head. Rows: S; from the final norm on S + M, the M patches
 * that were asked for following the class tokens. */
typedef struct sd_tail {
    /* class-token-only last block */
    float *query, *normal1, *attention;                 /* S x D */
    float *mixers;                                      /* S x B H x D (B: sd_mixer_sides): u of each head, then dm */
    float *mixed, *dmixers;                             /* S x H x D: m, du */
    float *probabilities;                               /* of each image B H x padded tokens: ds, then p */
    size_t *probability_start;                          /* [S+1] */
    float *x, *middle, *mean2, *rstd2, *normal2;        /* x: class rows of the last block's input */
    float *hidden, *gelu;                               /* S x F_in, S x F */
    float *branch;                                      /* S x D: output of a branch, before the residual */
    float *dquery, *dattention, *dproj, *dmlp, *dmiddle, *dnormal; /* S x D */
    float *dhidden;                                     /* S x F */
    /* final norm and head */
    size_t *patch_rows;                                 /* [M] token rows of the patches, ascending */
    size_t *patch_before;                               /* [S+1] patches before image s */
    size_t patch_count;                                 /* M */
    float *out, *mean, *rstd, *normal;                  /* out: class tokens before the final norm */
    float *head_in[SD_HEAD_LAYERS_MAX + 1];             /* head_in[0] = normal; inputs of each layer after GELU */
    float *head_pre[SD_HEAD_LAYERS_MAX];                /* outputs of each layer before GELU or normalisation */
    float *features, *lengths;
    float *dhead[SD_HEAD_LAYERS_MAX + 1];               /* gradients of head_pre (index 1..) and of normal (index 0) */
    float *dout;
} sd_tail;

/* Working space of one thread. R: rows of the largest chunk. */
typedef struct sd_thread_work {
    const sd_gemm *gemm;
    float *normal;    /* R x D */
    float *branch;    /* R x D */
    float *gelu;      /* R x F, and its gradient */
    float *heads;     /* R x D: what attention gives, before the projection */
    float *attention; /* sd_attention_work */
    float *patches;   /* R x C p p */
    float *qkv_norm;  /* tokens of one image x 3D: queries and keys after their norm */
    float *qkv, *hidden; /* R x 3D, R x F_in, of which bfloat16 is kept; else NULL */
    sd_block_store inference; /* buffers of one chunk but x, when nothing is stored */
} sd_thread_work;

struct sd_activations {
    sd_context *context;
    sd_geometry geometry;
    sd_activation_mode mode;
    size_t recomputed; /* blocks, from the first, of which only the input is stored; all with SD_ACTIVATIONS_MEMORY */
    bool all_tokens;
    size_t threads;
    const sd_kernels *kernels;
    int32_t precision;
    bool allows_strassen; /* sd_products */
    bool keeps_bf16;      /* what only products read is kept rounded (kept.c) */
    sd_gemm *gemms;   /* one for each thread */

    size_t group_count;
    sd_image_group planned[SD_GROUPS_MAX];
    size_t max_images, max_rows, max_chunk_rows, max_chunks, max_tokens, max_patches;

    /* the current pass */
    sd_image_group groups[SD_GROUPS_MAX];
    size_t images, rows, chunk_count;
    size_t group_first[SD_GROUPS_MAX + 1]; /* first image of each group */
    size_t group_tokens[SD_GROUPS_MAX];
    const uint8_t *masks[SD_GROUPS_MAX];   /* images x patches of each group, or NULL */
    size_t *image_row;                     /* [S+1] first token row of each image */
    size_t *identity;                      /* [S+1] 0, 1, 2, ... */
    size_t *compact;                       /* row_before and image_before of all branches, where paths may be dropped */
    sd_branch *branches;                   /* 2 x depth: attention, mlp */
    sd_chunk *chunks;
    sd_parallel_function side_function;    /* work of somebody else that the next forward runs beside its chunks */
    void *side_work;
    size_t side_count;
    bool side_done;
    bool strassen;                         /* the blocks' weights are packed for Strassen's formulas */
    bool has_forward;                      /* a backward is possible */
    bool has_head;                         /* the forward computed the head */

    void *arena;
    size_t arena_bytes;
    sd_block_store *blocks;                /* depth + 1 (the last: x only, the output) */
    sd_layer_work layer;
    sd_scaled_weights scaled;
    sd_tail tail;
    sd_thread_work *thread_work;
    float *stream;                         /* rows x D: the residual stream when nothing is stored */
    float *shared_qkv;                     /* rows x 3D, of a pass in strips; NULL: none can be */
    void *packed;                          /* weights of one block, in one direction; NULL: they are not packed */
    sd_block_weights weights, weights_back; /* of the block at hand */
    float *positions[SD_GROUPS_MAX];       /* interpolated position embedding of each group */
    float *dpositions[SD_GROUPS_MAX];
    float *partials;                       /* max_chunks x partial_count: sums over a chunk's rows */
    size_t partial_count;
    atomic_bool cancelled;
};

/* Rows of D for each head of the class tokens (class_block.c): 1, and one more for the backward pass. */
static inline size_t sd_mixer_sides(sd_activation_mode mode) { return mode == SD_ACTIVATIONS_INFERENCE ? 1 : 2; }

static inline size_t sd_group_of(const sd_activations *a, size_t image) {
    size_t group = 0;
    while (image >= a->group_first[group + 1])
        group++;
    return group;
}

static inline size_t sd_image_tokens(const sd_activations *a, size_t image) {
    return a->image_row[image + 1] - a->image_row[image];
}

static inline bool sd_branch_keeps(const sd_branch *branch, size_t image) {
    return branch->image_before[image + 1] > branch->image_before[image];
}

/* The mask of image s, which belongs to `group`: one byte per patch, or NULL. */
static inline const uint8_t *sd_image_mask(const sd_activations *a, size_t group, size_t s) {
    if (a->masks[group] == NULL)
        return NULL;
    size_t patches = a->group_tokens[group] - 1 - a->geometry.registers;
    return a->masks[group] + (s - a->group_first[group]) * patches;
}

static inline float sd_branch_scale(const sd_activations *a, const sd_branch *branch, size_t image) {
    return branch->scale[sd_group_of(a, image)];
}

static inline const float *sd_block_parameter(const sd_model *model, size_t place, size_t block) {
    return model->parameters + place + block * model->layout.block_stride;
}

/* Hands the next forward pass `count` tasks of other work, which fill the threads while its last chunks run. side_done
 * tells afterwards whether they were run (they are not when the pass fails before it starts). */
void sd_activations_set_side_work(sd_activations *a, sd_parallel_function function, void *work, size_t count);
bool sd_activations_side_done(const sd_activations *a);

/* A pass of inference of up to so many chunks would leave threads idle, whatever their number: its chunks are divided (wide.c,
 * strips.c). */
#define SD_WIDE_CHUNKS 3

/* So many chunks at the end of a larger pass are halved: threads that end with chunks of one size would wait for up to the time
 * of a whole one. */
#define SD_HALVED_CHUNKS 2

/* Bytes of the activations that sd_activations_create would make. */
sd_status sd_activations_bytes(const sd_model_config *model, const sd_image_group *shapes, size_t group_count,
                               const sd_activations_config *config, size_t threads, size_t *bytes);

/* drop_path.c: fills the branches for a pass. */
void sd_drop_paths(sd_activations *a, const sd_forward_options *options);

sd_layer_rows sd_layer_rows_of(const sd_activations *a, size_t block);

/* kept.c: the place of a kept number; where the floats are computed that will be kept there: in place, or in `work`; keeping them
 * (nothing happens in place), also as rows of D numbers, each in the place of a row of floats; and what was kept as floats x,
 * which is sd_kept_floats of it. */
void *sd_kept_at(const sd_activations *a, void *kept, size_t index);
float *sd_kept_floats(const sd_activations *a, void *kept, float *work);
void sd_keep(const sd_activations *a, const float *x, size_t count, void *kept);
void sd_keep_rows(const sd_activations *a, const float *x, size_t rows, float *kept);
void sd_recall(const sd_activations *a, const void *kept, size_t count, float *x);

/* The buffers of block `block` for the rows of a chunk: pointers are moved to the chunk's first row (compact row of its
 * branch). */
sd_block_store sd_chunk_store(const sd_activations *a, size_t block, const sd_chunk *chunk, size_t thread);

/* ---- the weights of a block (block_weights.c) ----------------------------------------------- */

/* Bytes of their packed form, for one direction; 0 where there is none. */
size_t sd_block_weights_bytes(const sd_geometry *g, const sd_gemm *gemm, bool back);
/* Those of a forward pass, not packed; and packed into memory of so many bytes. Not within a parallel section. */
sd_block_weights sd_block_weights_of(const sd_model *model, size_t block);
sd_status sd_block_weights_pack(sd_context *context, const sd_gemm *gemm, sd_block_weights *weights, void *memory);
/* Sets a->weights up for the forward pass of a block, or a->weights_back for its backward pass (after sd_scale_begin), packed
 * where that helps. Not within a parallel section. */
sd_status sd_block_weights_forward(const sd_model *model, sd_activations *a, size_t block);
sd_status sd_block_weights_backward(const sd_model *model, sd_activations *a, size_t block);

/* ---- LayerScale in the backward pass (scale.c); nothing happens in models without it -------- */

/* Sets a->scaled up for the backward pass of a block; then, after its products, adds what follows from it to `gradient`. */
sd_status sd_scale_begin(const sd_model *model, sd_activations *a, size_t block);
sd_status sd_scale_end(const sd_model *model, sd_activations *a, size_t block, float *gradient);

/* ---- what follows a product (finish.c) ------------------------------------------------------- */

/* Each finish keeps the pointer to its data. */
typedef struct sd_bias_finish {
    const sd_kernels *kernels;
    const float *bias;
    float *gelu; /* receives gelu(c + bias), and may be the product's C itself, of which then nothing else is left; NULL: only the
                    bias is added */
} sd_bias_finish;
sd_finish sd_finish_bias(const sd_bias_finish *data);
/* From dL/dgelu to dL/dhidden; dbias += sums over rows: tiles of rows must not be shared by threads. */
typedef struct sd_gelu_finish {
    const sd_kernels *kernels;
    const float *hidden;
    float *dbias;
} sd_gelu_finish;
sd_finish sd_finish_gelu_backward(const sd_gelu_finish *data);
/* out = x + gamma (c + bias); gamma NULL: 1; out may be x. */
typedef struct sd_residual_finish {
    const sd_kernels *kernels;
    const float *bias, *gamma, *x;
    float *out;
} sd_residual_finish;
sd_finish sd_finish_residual(const sd_residual_finish *data);

/* ---- one block, one chunk (block.c) -------------------------------------------------------- */

/* x (store->x) -> out, both rows of the chunk; NULL: only what the backward pass needs, up to `hidden`. */
void sd_block_forward(const sd_model *model, const sd_activations *a, size_t block, const sd_chunk *chunk,
                      const sd_block_store *store, float *out, sd_thread_work *work);
/* From the layer work's dx at the block's output to its input; leaves what the weight gradients need in the layer work
 * and the sums over rows in `partial` (see block_partials). */
void sd_block_backward(const sd_model *model, const sd_activations *a, size_t block, const sd_chunk *chunk,
                       size_t thread, float *partial);
/* The queries, keys and values that attention sees in image s: as projected, or with their norms. */
const float *sd_normalized_qkv(const sd_model *model, const sd_activations *a, size_t block, size_t s,
                               const float *qkv, const sd_thread_work *work);
/* y = norm(x) for the images that the branch keeps; x in rows of the chunk, y, mean and rstd compact. */
void sd_branch_norm(const sd_activations *a, const sd_branch *branch, const sd_chunk *chunk, const float *x,
                    const float *weight, const float *bias, float *y, float *mean, float *rstd);
/* dx += the gradient through the branch's norm; y, if not NULL, receives the norm's output again. */
void sd_branch_norm_backward(const sd_activations *a, const sd_branch *branch, const sd_chunk *chunk, const float *dy,
                             const float *x, const float *mean, const float *rstd, const float *weight,
                             const float *bias, float *dx, float *dweight, float *dbias, float *y);

/* The attention of the class tokens of a last block of which only they are read, into the tail; its gradient from
 * tail.dattention (class_block.c). */
void sd_class_block_forward(const sd_model *model, const sd_activations *a, const sd_chunk *chunk, size_t thread);
void sd_class_block_backward(const sd_model *model, const sd_activations *a, const sd_chunk *chunk, size_t thread,
                             float *partial);

/* ---- one block, one chunk, all threads (wide.c) ---------------------------------------------- */

/* As sd_block_forward in inference, without norms of queries and keys; out may be store->x. Not within a parallel
 * section. */
sd_status sd_block_forward_wide(const sd_model *model, const sd_activations *a, size_t block, const sd_chunk *chunk,
                                const sd_block_store *store, float *out);
/* The same for all images of the pass, in place on a->stream, queries, keys and values in a->shared_qkv, by threads that have a
 * strip of rows each (strips.c). */
sd_status sd_block_forward_strips(const sd_model *model, const sd_activations *a, size_t block);
/* A product over the rows of a chunk: by the calling thread with `gemm`, or with NULL by all threads, which cannot be
 * within a parallel section. Fails only so. */
sd_status sd_chunk_product(const sd_activations *a, const sd_gemm *gemm, sd_product product);

/* Places of a block's sums over rows within a chunk's partial sums. */
typedef struct sd_partial_layout {
    size_t norm1_weight, norm1_bias, qkv_bias, proj_bias, norm2_weight, norm2_bias, fc1_bias, fc2_bias, patch_bias;
    size_t qk_norm; /* 4 x D/H: weight and bias of queries, of keys */
    size_t mask_token;
    size_t count;
} sd_partial_layout;
sd_partial_layout sd_partials_of(const sd_geometry *geometry);

/* ---- class tokens after the blocks (tail.c) ------------------------------------------------- */

/* The heads alone: tail.normal -> tail.features; and from the gradient of the features in tail.dhead[head_layers] to
 * tail.dhead[0], adding bias gradients to `gradient`. */
sd_status sd_head_forward(const sd_model *model, sd_activations *a);
sd_status sd_head_backward(const sd_model *model, sd_activations *a, float *gradient);
sd_status sd_tail_forward(const sd_model *model, sd_activations *a, bool head);
/* From gradients of class tokens, patches and their features (each may be NULL) to tail.dout, and head gradients into
 * `gradient`. */
sd_status sd_tail_backward(const sd_model *model, sd_activations *a, const sd_backward_inputs *inputs, float *gradient);
/* The rest of a class-token-only last block: from tail.dout to tail.dattention and tail.dmiddle. Adds row sums to
 * `gradient`. */
sd_status sd_tail_block_backward(const sd_model *model, sd_activations *a, float *gradient);
/* The weight products of head (and class-only block) whose inputs the two calls above left; returns their number. */
size_t sd_tail_products(const sd_model *model, const sd_activations *a, bool head, float *gradient,
                        sd_product *products);

#endif
