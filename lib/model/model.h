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

/* The parameters at a place of sd_layout, in a function that has model, layout l and block. */
#define SD_PARAMETER(place) sd_block_parameter(model, l->place, block)

/* Sizes that follow from a configuration. */
typedef struct sd_geometry {
    size_t dim, depth, heads, hidden, patch, channels;
    size_t patch_values;  /* C p p */
    size_t grid;          /* native patches per side */
    size_t head_layers;
    size_t head_width[SD_HEAD_LAYERS_MAX + 1]; /* input of layer 0, output of each layer */
    double drop_path, interpolate_offset;
} sd_geometry;

/* Places of the tensors in the flat parameters. Blocks have all the same form: add block*block_stride. */
typedef struct sd_layout {
    size_t cls_token, position, patch_weight, patch_bias;
    size_t block_stride;
    size_t norm1_weight, norm1_bias, qkv_weight, qkv_bias, proj_weight, proj_bias;
    size_t norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias;
    size_t norm_weight, norm_bias;
    size_t head_weight[SD_HEAD_LAYERS_MAX], head_bias[SD_HEAD_LAYERS_MAX];
} sd_layout;

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
};

/* parameters.c: checks a configuration (SD_ERR_ARGUMENT names the setting) and tells its sizes. */
sd_status sd_geometry_of(const sd_model_config *config, sd_geometry *geometry);
/* The number of parameters, and of tensors, of a geometry. */
size_t sd_geometry_parameters(const sd_geometry *geometry);
size_t sd_geometry_tokens(const sd_geometry *geometry, size_t height, size_t width); /* 1 + patches */

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
    float scale;                /* 1 / probability of being kept */
} sd_branch;

/* What a block keeps for its backward pass. Rows: T. */
typedef struct sd_block_store {
    float *x;             /* T x D, the block's input */
    float *mean1, *rstd1; /* T */
    float *qkv;           /* T x 3D (class-token-only last block: T x 2D, key and value) */
    float *attention;     /* T x D, heads side by side, before the projection */
    float *middle;        /* T x D, after the attention branch */
    float *mean2, *rstd2; /* T */
    float *hidden;        /* T x F, before GELU */
} sd_block_store;

/* What one block's backward leaves for the weight gradients. Rows: T. */
typedef struct sd_layer_work {
    float *dx;         /* T x D: gradient of the residual stream, updated in place from block to block */
    float *normal1;    /* T x D: output of the first norm */
    float *dqkv;       /* T x 3D */
    float *dattention; /* T x D: gradient at the projection's output */
    float *normal2;    /* T x D */
    float *dhidden;    /* T x F */
    float *gelu;       /* T x F */
    float *dmlp;       /* T x D: gradient at fc2's output */
    float *patches;    /* T x C p p */
} sd_layer_work;

/* The class tokens' way after the last attention, and the head. Rows: S. */
typedef struct sd_tail {
    /* class-token-only last block */
    float *query, *normal1, *attention, *probabilities; /* S x D, S x D, S x D, sum over images of H x padded tokens */
    size_t *probability_start;                          /* [S+1] */
    float *x, *middle, *mean2, *rstd2, *normal2;        /* x: class rows of the last block's input */
    float *hidden, *gelu;                               /* S x F */
    float *branch;                                      /* S x D: output of a branch, before the residual */
    float *dquery, *dattention, *dproj, *dmlp, *dmiddle, *dnormal; /* S x D */
    float *dhidden;                                     /* S x F */
    /* final norm and head */
    float *out, *mean, *rstd, *normal;                  /* out: class tokens before the final norm */
    float *head_in[SD_HEAD_LAYERS_MAX + 1];             /* head_in[0] = normal; inputs of each layer after GELU */
    float *head_pre[SD_HEAD_LAYERS_MAX];                /* outputs of each layer before GELU or normalisation */
    float *features, *lengths;
    float *dhead[SD_HEAD_LAYERS_MAX + 1];               /* gradients of head_pre (index 1..) and of normal (index 0) */
    float *dout;
} sd_tail;

/* Working space of one thread. R: rows of the largest chunk. */
typedef struct sd_thread_work {
    float *normal;    /* R x D */
    float *branch;    /* R x D */
    float *gelu;      /* R x F */
    float *attention; /* sd_attention_work */
    float *patches;   /* R x C p p */
    sd_block_store inference; /* buffers of one chunk when nothing is stored */
} sd_thread_work;

struct sd_activations {
    sd_context *context;
    sd_geometry geometry;
    sd_activation_mode mode;
    bool all_tokens;
    size_t threads;
    const sd_kernels *kernels;

    size_t group_count;
    sd_image_group planned[SD_GROUPS_MAX];
    size_t max_images, max_rows, max_chunk_rows, max_chunks, max_tokens;

    /* the current pass */
    sd_image_group groups[SD_GROUPS_MAX];
    size_t images, rows, chunk_count;
    size_t group_first[SD_GROUPS_MAX + 1]; /* first image of each group */
    size_t group_tokens[SD_GROUPS_MAX];
    size_t *image_row;                     /* [S+1] first token row of each image */
    size_t *identity;                      /* [S+1] 0, 1, 2, ... */
    size_t *compact;                       /* row_before and image_before of all branches, where paths may be dropped */
    sd_branch *branches;                   /* 2 x depth: attention, mlp */
    sd_chunk *chunks;
    sd_parallel_function side_function;    /* work of somebody else that the next forward runs beside its chunks */
    void *side_work;
    size_t side_count;
    bool side_done;
    bool has_forward;                      /* a backward is possible */
    bool has_head;                         /* the forward computed the head */

    void *arena;
    size_t arena_bytes;
    sd_block_store *blocks;                /* depth + 1 (the last: x only, the output) */
    sd_layer_work layer;
    sd_tail tail;
    sd_thread_work *thread_work;
    float *positions[SD_GROUPS_MAX];       /* interpolated position embedding of each group */
    float *dpositions[SD_GROUPS_MAX];
    float *partials;                       /* max_chunks x partial_count: sums over a chunk's rows */
    size_t partial_count;
    atomic_bool cancelled;
};

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

static inline const float *sd_block_parameter(const sd_model *model, size_t place, size_t block) {
    return model->parameters + place + block * model->layout.block_stride;
}

/* Hands the next forward pass `count` tasks of other work, which fill the threads while its last chunks run. side_done
 * tells afterwards whether they were run (they are not when the pass fails before it starts). */
void sd_activations_set_side_work(sd_activations *a, sd_parallel_function function, void *work, size_t count);
bool sd_activations_side_done(const sd_activations *a);

/* Bytes of the activations that sd_activations_create would make. */
sd_status sd_activations_bytes(const sd_model_config *config, const sd_image_group *shapes, size_t group_count,
                               sd_activation_mode mode, bool all_tokens, size_t threads, size_t *bytes);

/* drop_path.c: fills the branches for a pass. */
void sd_drop_paths(sd_activations *a, const sd_forward_options *options);

/* The buffers of block `block` for the rows of a chunk: pointers are moved to the chunk's first row (compact row of its
 * branch). */
sd_block_store sd_chunk_store(const sd_activations *a, size_t block, const sd_chunk *chunk, size_t thread,
                              bool in_forward);

/* ---- one block, one chunk (block.c) -------------------------------------------------------- */

/* x (store->x) -> out, both rows of the chunk. normal1, normal2, gelu: where those are to be left (rows of the chunk,
 * compact). */
void sd_block_forward(const sd_model *model, const sd_activations *a, size_t block, const sd_chunk *chunk,
                      const sd_block_store *store, float *out, float *normal1, float *normal2, float *gelu,
                      sd_thread_work *work);
/* From the layer work's dx at the block's output to its input; leaves what the weight gradients need in the layer work
 * and the sums over rows in `partial` (see block_partials). */
void sd_block_backward(const sd_model *model, const sd_activations *a, size_t block, const sd_chunk *chunk,
                       size_t thread, float *partial);
/* Keys, values and queries of the class tokens, and their attention, into the tail. */
void sd_class_block_forward(const sd_model *model, const sd_activations *a, const sd_chunk *chunk, size_t thread);
void sd_class_block_backward(const sd_model *model, const sd_activations *a, const sd_chunk *chunk, size_t thread,
                             float *partial);

/* Places of a block's sums over rows within a chunk's partial sums. */
typedef struct sd_partial_layout {
    size_t norm1_weight, norm1_bias, qkv_bias, proj_bias, norm2_weight, norm2_bias, fc1_bias, fc2_bias, patch_bias,
        count;
} sd_partial_layout;
sd_partial_layout sd_partials_of(const sd_geometry *geometry);

/* ---- class tokens after the blocks (tail.c) ------------------------------------------------- */

/* The head alone: tail.normal -> tail.features; and from dfeatures to tail.dhead[0], adding bias gradients to
 * `gradient`. */
sd_status sd_head_forward(const sd_model *model, sd_activations *a);
sd_status sd_head_backward(const sd_model *model, sd_activations *a, const float *dfeatures, float *gradient);
sd_status sd_tail_forward(const sd_model *model, sd_activations *a, bool head);
/* From gradients of class tokens and features (each may be NULL) to tail.dout, and head gradients into `gradient`. */
sd_status sd_tail_backward(const sd_model *model, sd_activations *a, const float *dclass, const float *dfeatures,
                           float *gradient);
/* The rest of a class-token-only last block: from tail.dout to tail.dattention and tail.dmiddle. Adds row sums to
 * `gradient`. */
sd_status sd_tail_block_backward(const sd_model *model, sd_activations *a, float *gradient);
/* The weight products of head (and class-only block) whose inputs the two calls above left; returns their number. */
size_t sd_tail_products(const sd_model *model, const sd_activations *a, bool head, float *gradient,
                        sd_product *products);

#endif
