/* The attention of a last block of which only the class tokens are read, without keys and values of the other tokens.
 *
 * With n_t the rows after the block's first norm, n_0 the class token's, and W_q, W_k, W_v the parts of one head:
 *     q = W_q n_0 + b_q              u = W_k' q           scores s_t = scale (u . n_t)
 *     p = softmax(s)                 m = sum_t p_t n_t    out = W_v m + b_v
 * for q . (W_k n_t + b_k) = u . n_t + q . b_k, whose last term softmax takes away (the gradient of b_k is 0), and
 * sum_t p_t (W_v n_t + b_v) = W_v m + b_v. Backward, from g = dL/dout:
 *     dW_v = g m'        db_v = g             dm = W_v' g
 *     ds_t = scale p_t (dm . n_t - sum_r p_r dm . n_r)
 *     du = sum_t ds_t n_t                     dn_t = p_t dm + ds_t u
 *     dW_k = q du'       dq = W_k du
 * Products with W_k and W_v take one row for each image and head instead of one for each token. So little is left that it
 * is multiplied in fp32 whatever the precision of the rest: m and u have no sum over tokens after them, in which errors
 * of rounding would cancel. */
#include "math/math.h"
#include "model/model.h"

#include <string.h>

/* What one head of all images of a chunk takes part in: rows of an image lie `heads` rows of D apart. */
typedef struct class_chunk {
    const sd_branch *branch;
    size_t first, images; /* kept images */
    size_t rows, compact; /* their token rows */
    const float *query_weight, *key_weight, *value_weight, *bias;
} class_chunk;

static class_chunk chunk_of(const sd_model *model, const sd_activations *a, const sd_chunk *chunk) {
    const sd_layout *l = &model->layout;
    size_t block = a->geometry.depth - 1, d = a->geometry.dim;
    const sd_branch *branch = &a->branches[2 * block];
    const float *weight = SD_PARAMETER(qkv_weight);
    return (class_chunk){.branch = branch,
                         .first = branch->image_before[chunk->first],
                         .images = branch->image_before[chunk->last] - branch->image_before[chunk->first],
                         .rows = branch->row_before[chunk->last] - branch->row_before[chunk->first],
                         .compact = branch->row_before[chunk->first],
                         .query_weight = weight,
                         .key_weight = weight + d * d,
                         .value_weight = weight + 2 * d * d,
                         .bias = SD_PARAMETER(qkv_bias)};
}

/* For each head: its part of rows[images x D] by its rows of weight[D x D], to rows of D. */
static void heads_to_rows(const sd_geometry *g, size_t images, const float *rows, const float *weight, float *out,
                          size_t out_stride) {
    size_t d = g->dim, size = d / g->heads;
    for (size_t h = 0; h < g->heads; h++)
        sd_sgemm(false, false, images, d, size, 1.0f, rows + h * size, d, weight + h * size * d, d, 0.0f, out + h * d,
                 out_stride);
}

/* The way back: of each head a row of D, by the transposed weight, to its part of out[images x D]. */
static void rows_to_heads(const sd_geometry *g, size_t images, const float *rows, const float *weight, float *out) {
    size_t d = g->dim, size = d / g->heads;
    for (size_t h = 0; h < g->heads; h++)
        sd_sgemm(false, true, images, size, d, 1.0f, rows + h * d, g->heads * d, weight + h * size * d, d, 0.0f,
                 out + h * size, d);
}

void sd_class_block_forward(const sd_model *model, const sd_activations *a, const sd_chunk *chunk, size_t thread) {
    const sd_layout *l = &model->layout;
    const sd_geometry *g = &a->geometry;
    const sd_tail *tail = &a->tail;
    size_t block = g->depth - 1, d = g->dim, heads = g->heads, sides = sd_mixer_sides(a->mode);
    sd_thread_work *work = &a->thread_work[thread];
    sd_block_store store = sd_chunk_store(a, block, chunk, thread);
    const class_chunk c = chunk_of(model, a, chunk);

    for (size_t s = chunk->first; s < chunk->last; s++)
        memcpy(tail->x + s * d, store.x + (a->image_row[s] - a->image_row[chunk->first]) * d, d * sizeof(float));
    if (c.images == 0)
        return;
    sd_branch_norm(a, c.branch, chunk, store.x, SD_PARAMETER(norm1_weight), SD_PARAMETER(norm1_bias), work->normal,
                   store.mean1, store.rstd1);
    float *query = tail->query + c.first * d, *attention = tail->attention + c.first * d;
    for (size_t s = chunk->first; s < chunk->last; s++)
        if (sd_branch_keeps(c.branch, s))
            memcpy(tail->normal1 + c.branch->image_before[s] * d,
                   work->normal + (c.branch->row_before[s] - c.compact) * d, d * sizeof(float));
    sd_multiply(work->gemm, false, true, c.images, d, d, 1.0f, tail->normal1 + c.first * d, d, c.query_weight, d, 0.0f,
                query, d);
    a->kernels->add_bias(query, c.images, d, d, c.bias);
    heads_to_rows(g, c.images, query, c.key_weight, tail->mixers + c.first * sides * heads * d, sides * heads * d);
    float scale = 1.0f / __builtin_sqrtf((float)(d / heads));
    for (size_t s = chunk->first; s < chunk->last; s++) {
        if (!sd_branch_keeps(c.branch, s))
            continue;
        const float *normal = work->normal + (c.branch->row_before[s] - c.compact) * d;
        size_t tokens = sd_image_tokens(a, s), stride = sd_padded_row(tokens), image = c.branch->image_before[s];
        float *p = tail->probabilities + tail->probability_start[s] + (sides - 1) * heads * stride;
        sd_sgemm(false, true, heads, tokens, d, scale, tail->mixers + image * sides * heads * d, d, normal, d, 0.0f, p,
                 stride);
        a->kernels->softmax(p, heads, tokens, stride, 1.0f);
        sd_sgemm(false, false, heads, d, tokens, 1.0f, p, stride, normal, d, 0.0f, tail->mixed + image * heads * d, d);
    }
    rows_to_heads(g, c.images, tail->mixed + c.first * heads * d, c.value_weight, attention);
    a->kernels->add_bias(attention, c.images, d, d, c.bias + 2 * d);
}

void sd_class_block_backward(const sd_model *model, const sd_activations *a, const sd_chunk *chunk, size_t thread,
                             float *partial) {
    const sd_layout *l = &model->layout;
    const sd_geometry *g = &a->geometry;
    const sd_tail *tail = &a->tail;
    size_t block = g->depth - 1, d = g->dim, heads = g->heads, start = a->image_row[chunk->first];
    sd_thread_work *work = &a->thread_work[thread];
    sd_block_store store = sd_chunk_store(a, block, chunk, thread);
    const class_chunk c = chunk_of(model, a, chunk);
    sd_partial_layout sums = sd_partials_of(g);
    float *dx = a->layer.dx + start * d, *normal1 = work->normal;

    memset(dx, 0, (a->image_row[chunk->last] - start) * d * sizeof *dx);
    for (size_t s = chunk->first; s < chunk->last; s++)
        memcpy(dx + (a->image_row[s] - start) * d, tail->dmiddle + s * d, d * sizeof *dx);
    if (c.images == 0)
        return;
    const float *dattention = tail->dattention + c.first * d;
    float *dquery = tail->dquery + c.first * d, *mixers = tail->mixers + c.first * 2 * heads * d;
    sd_branch_norm(a, c.branch, chunk, store.x, SD_PARAMETER(norm1_weight), SD_PARAMETER(norm1_bias), normal1,
                   store.mean1, store.rstd1);
    heads_to_rows(g, c.images, dattention, c.value_weight, mixers + heads * d, 2 * heads * d);
    float scale = 1.0f / __builtin_sqrtf((float)(d / heads));
    for (size_t s = chunk->first; s < chunk->last; s++) {
        if (!sd_branch_keeps(c.branch, s))
            continue;
        size_t row = c.branch->row_before[s] - c.compact, image = c.branch->image_before[s];
        size_t tokens = sd_image_tokens(a, s), stride = sd_padded_row(tokens);
        const float *normal = normal1 + row * d, *mixer = tail->mixers + image * 2 * heads * d;
        float *ds = tail->probabilities + tail->probability_start[s], *p = ds + heads * stride;
        sd_sgemm(false, true, heads, tokens, d, 1.0f, mixer + heads * d, d, normal, d, 0.0f, ds, stride);
        a->kernels->softmax_backward(p, ds, heads, tokens, stride, scale);
        sd_sgemm(false, false, heads, d, tokens, 1.0f, ds, stride, normal, d, 0.0f, tail->dmixers + image * heads * d,
                 d);
        /* [ds; p]' [u; dm] */
        sd_sgemm(true, false, tokens, d, 2 * heads, 1.0f, ds, stride, mixer, d, 0.0f, work->branch + row * d, d);
    }
    rows_to_heads(g, c.images, tail->dmixers + c.first * heads * d, c.key_weight, dquery);
    a->kernels->column_sum(dquery, c.images, d, d, partial + sums.qkv_bias);
    a->kernels->column_sum(dattention, c.images, d, d, partial + sums.qkv_bias + 2 * d);
    /* the queries' part reaches the class rows only */
    sd_multiply(work->gemm, false, false, c.images, d, d, 1.0f, dquery, d, c.query_weight, d, 0.0f, work->normal, d);
    for (size_t s = chunk->first; s < chunk->last; s++)
        if (sd_branch_keeps(c.branch, s)) {
            float *row = work->branch + (c.branch->row_before[s] - c.compact) * d;
            const float *from = work->normal + (c.branch->image_before[s] - c.first) * d;
            for (size_t j = 0; j < d; j++)
                row[j] += from[j];
        }
    sd_branch_norm_backward(a, c.branch, chunk, work->branch, store.x, store.mean1, store.rstd1,
                            SD_PARAMETER(norm1_weight), SD_PARAMETER(norm1_bias), dx, partial + sums.norm1_weight,
                            partial + sums.norm1_bias, NULL);
}
