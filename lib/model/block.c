/* One transformer block on the rows of one chunk, forward and backward:
 *     x' = x + s1 * drop(gamma1 * proj(attention(qkv(norm1(x)))))
 *     out = x' + s2 * drop(gamma2 * fc2(gelu(fc1(norm2(x')))))
 * gamma being LayerScale's factors, and with SwiGLU in place of GELU where the model has it.
 * Images that a branch drops take no part in it: a branch works on the compact rows of the images that it keeps. */
#include "math/math.h"
#include "model/model.h"

#include <string.h>

/* Calls that treat runs of consecutive images with the same fate: [begin, end) of the chunk's images. */
static size_t run_end(const sd_branch *branch, size_t image, size_t last) {
    bool keeps = sd_branch_keeps(branch, image);
    size_t end = image + 1;
    while (end < last && sd_branch_keeps(branch, end) == keeps)
        end++;
    return end;
}

void sd_branch_norm(const sd_activations *a, const sd_branch *branch, const sd_chunk *chunk, const float *x,
                        const float *weight, const float *bias, float *y, float *mean, float *rstd) {
    size_t d = a->geometry.dim, start = a->image_row[chunk->first], compact = branch->row_before[chunk->first];
    for (size_t s = chunk->first, end; s < chunk->last; s = end) {
        end = run_end(branch, s, chunk->last);
        if (!sd_branch_keeps(branch, s))
            continue;
        size_t row = a->image_row[s] - start, to = branch->row_before[s] - compact;
        a->kernels->layer_norm(x + row * d, a->image_row[end] - a->image_row[s], d, weight, bias, y + to * d, mean + to,
                               rstd + to);
    }
}

static size_t branch_rows(const sd_branch *branch, const sd_chunk *chunk) {
    return branch->row_before[chunk->last] - branch->row_before[chunk->first];
}

/* out = x + scale*gamma*(y + bias) for kept images, out = x for the others; y compact. */
static void branch_residual(const sd_activations *a, const sd_branch *branch, const sd_chunk *chunk, const float *x,
                            const float *y, const float *bias, const float *gamma, float *out) {
    float scale = sd_branch_scale(a, branch, chunk->first);
    size_t d = a->geometry.dim, start = a->image_row[chunk->first], compact = branch->row_before[chunk->first];
    for (size_t s = chunk->first, end; s < chunk->last; s = end) {
        end = run_end(branch, s, chunk->last);
        size_t row = a->image_row[s] - start, rows = a->image_row[end] - a->image_row[s];
        if (sd_branch_keeps(branch, s))
            a->kernels->residual(out + row * d, x + row * d, y + (branch->row_before[s] - compact) * d, rows, d, bias,
                                 gamma, scale);
        else if (out != x)
            memcpy(out + row * d, x + row * d, rows * d * sizeof *out);
    }
}

/* dy (compact) = scale * dx of kept images. */
static void branch_gather(const sd_activations *a, const sd_branch *branch, const sd_chunk *chunk, const float *dx,
                          float *dy) {
    float scale = sd_branch_scale(a, branch, chunk->first);
    size_t d = a->geometry.dim, start = a->image_row[chunk->first], compact = branch->row_before[chunk->first];
    for (size_t s = chunk->first, end; s < chunk->last; s = end) {
        end = run_end(branch, s, chunk->last);
        if (sd_branch_keeps(branch, s))
            a->kernels->scaled_copy(dy + (branch->row_before[s] - compact) * d, dx + (a->image_row[s] - start) * d,
                                    (a->image_row[end] - a->image_row[s]) * d, scale);
    }
}

/* The end of a branch: out = x + scale*gamma*(from W + bias) for kept images, out = x for the others; from compact. */
static void branch_product(const sd_activations *a, const sd_branch *branch, const sd_chunk *chunk, const float *from,
                           const sd_factor *weight, const float *x, const float *bias, const float *gamma, float *out,
                           const sd_thread_work *work) {
    const size_t images = chunk->last - chunk->first, rows = branch_rows(branch, chunk);
    const size_t kept = branch->image_before[chunk->last] - branch->image_before[chunk->first];
    if (kept == images && sd_branch_scale(a, branch, chunk->first) == 1.0f) {
        const sd_residual_finish residual = {a->kernels, bias, gamma, x, out};
        const sd_finish finish = sd_finish_residual(&residual);
        sd_multiply_rows(work->gemm, rows, from, weight, work->branch, &finish);
        return;
    }
    if (rows > 0)
        sd_multiply_rows(work->gemm, rows, from, weight, work->branch, NULL);
    branch_residual(a, branch, chunk, x, work->branch, bias, gamma, out);
}

void sd_branch_norm_backward(const sd_activations *a, const sd_branch *branch, const sd_chunk *chunk,
                                 const float *dy, const float *x, const float *mean, const float *rstd,
                                 const float *weight, const float *bias, float *dx, float *dweight, float *dbias,
                                 float *y) {
    size_t d = a->geometry.dim, start = a->image_row[chunk->first], compact = branch->row_before[chunk->first];
    for (size_t s = chunk->first, end; s < chunk->last; s = end) {
        end = run_end(branch, s, chunk->last);
        if (!sd_branch_keeps(branch, s))
            continue;
        size_t row = a->image_row[s] - start, from = branch->row_before[s] - compact;
        a->kernels->layer_norm_backward(dy + from * d, x + row * d, mean + from, rstd + from,
                                        a->image_row[end] - a->image_row[s], d, weight, bias, dx + row * d, dweight,
                                        dbias, y == NULL ? NULL : y + from * d);
    }
}

/* ---- norm of queries and keys --------------------------------------------------------------- */

/* The queries, keys and values that attention sees: those of image s as projected, or copied with a LayerNorm over each
 * head's part of queries and keys. */
const float *sd_normalized_qkv(const sd_model *model, const sd_activations *a, size_t block, size_t s,
                               const float *qkv, const sd_thread_work *work) {
    const sd_geometry *g = &a->geometry;
    if (!g->qk_norm)
        return qkv;
    const sd_layout *l = &model->layout;
    size_t d = g->dim, size = d / g->heads, tokens = sd_image_tokens(a, s);
    memcpy(work->qkv_norm, qkv, tokens * 3 * d * sizeof(float));
    for (size_t t = 0; t < tokens; t++)
        for (size_t h = 0; h < 2 * g->heads; h++) {
            float mean, rstd;
            size_t place = t * 3 * d + h * size;
            bool query = h < g->heads;
            a->kernels->layer_norm(qkv + place, 1, size,
                                   query ? SD_PARAMETER(q_norm_weight) : SD_PARAMETER(k_norm_weight),
                                   query ? SD_PARAMETER(q_norm_bias) : SD_PARAMETER(k_norm_bias),
                                   work->qkv_norm + place, &mean, &rstd);
        }
    return work->qkv_norm;
}

/* dqkv: from the gradient of the normalised queries and keys to that of the projected ones, in place. */
static void qk_norm_backward(const sd_model *model, const sd_activations *a, size_t block, size_t s, const float *qkv,
                             float *dqkv, const sd_thread_work *work, float *partial) {
    const sd_geometry *g = &a->geometry;
    const sd_layout *l = &model->layout;
    size_t d = g->dim, size = d / g->heads, tokens = sd_image_tokens(a, s);
    float *dx = work->qkv_norm; /* the normalised rows are done with */
    for (size_t t = 0; t < tokens; t++)
        for (size_t h = 0; h < 2 * g->heads; h++) {
            float mean, rstd;
            size_t place = t * 3 * d + h * size;
            bool query = h < g->heads;
            const float *weight = query ? SD_PARAMETER(q_norm_weight) : SD_PARAMETER(k_norm_weight);
            const float *bias = query ? SD_PARAMETER(q_norm_bias) : SD_PARAMETER(k_norm_bias);
            float *sums = partial + (query ? 0 : 2 * size);
            a->kernels->layer_norm(qkv + place, 1, size, weight, bias, dx, &mean, &rstd);
            memset(dx, 0, size * sizeof *dx);
            a->kernels->layer_norm_backward(dqkv + place, qkv + place, &mean, &rstd, 1, size, weight, bias, dx, sums,
                                            sums + size, NULL);
            memcpy(dqkv + place, dx, size * sizeof *dx);
        }
}

/* ---- what is kept --------------------------------------------------------------------------- */

/* Rows of n numbers from `row` on: x, and the place where they are kept, begin with row 0. */
static void keep_rows(const sd_activations *a, const float *x, size_t row, size_t rows, size_t n, void *kept) {
    sd_keep(a, x + row * n, rows * n, sd_kept_at(a, kept, row * n));
}

static void recall_rows(const sd_activations *a, const void *kept, size_t row, size_t rows, size_t n, float *x) {
    sd_recall(a, sd_kept_at(a, (void *)kept, row * n), rows * n, x + row * n);
}

/* Rows of a chunk that are left for the gradients of weights: where they are kept, and where their floats are computed. */
typedef struct left_rows {
    void *kept;
    float *x;
} left_rows;

static left_rows left_at(const sd_activations *a, void *kept, size_t index, float *work) {
    void *place = sd_kept_at(a, kept, index);
    return (left_rows){place, sd_kept_floats(a, place, work)};
}

/* Of D numbers each, which begin where rows of floats began. */
static left_rows left_in_place(const sd_activations *a, float *kept, float *work) {
    return (left_rows){kept, sd_kept_floats(a, kept, work)};
}

/* ---- the MLP's activation function ----------------------------------------------------------- */

/* It goes over all rows at once, or what is kept of some is rounded while it is in the first cache. */
static size_t rows_at_once(const sd_activations *a, size_t rows) { return a->keeps_bf16 ? 2 : rows; }

/* From the product to what is kept of it, and to work->gelu. */
static void activation_forward(const sd_activations *a, const sd_block_store *store, size_t rows, const float *bias,
                               const sd_thread_work *work) {
    const size_t f = a->geometry.hidden, in = a->geometry.hidden_in, step = rows_at_once(a, rows);
    for (size_t row = 0; row < rows; row += step) {
        const size_t here = sd_size_min(step, rows - row);
        float *hidden = store->hidden + row * in, *gelu = work->gelu + row * f;
        if (a->geometry.swiglu)
            a->kernels->bias_swiglu(hidden, here, f, bias, gelu);
        else
            a->kernels->bias_gelu(hidden, here, f, f, bias, gelu, f);
        keep_rows(a, store->hidden, row, here, in, store->kept_hidden);
    }
}

/* From what was kept and the gradient in work->gelu. */
static void activation_backward(const sd_activations *a, const sd_block_store *store, size_t rows, const left_rows *dhidden,
                                const left_rows *gelu, float *dbias, const sd_thread_work *work) {
    const size_t f = a->geometry.hidden, in = a->geometry.hidden_in, step = rows_at_once(a, rows);
    for (size_t row = 0; row < rows; row += step) {
        const size_t here = sd_size_min(step, rows - row);
        const float *hidden = store->hidden + row * in, *dgelu = work->gelu + row * f;
        recall_rows(a, store->kept_hidden, row, here, in, store->hidden);
        if (a->geometry.swiglu)
            a->kernels->swiglu_backward(hidden, dgelu, f, here, f, dhidden->x + row * in, gelu->x + row * f, dbias);
        else
            a->kernels->gelu_backward(hidden, dgelu, here, f, f, dhidden->x + row * in, gelu->x + row * f, dbias);
        keep_rows(a, gelu->x, row, here, f, gelu->kept);
        keep_rows(a, dhidden->x, row, here, in, dhidden->kept);
    }
}

/* ---- the block ------------------------------------------------------------------------------ */

void sd_block_forward(const sd_model *model, const sd_activations *a, size_t block, const sd_chunk *chunk,
                      const sd_block_store *store, float *out, sd_thread_work *work) {
    const sd_layout *l = &model->layout;
    const sd_branch *attention = &a->branches[2 * block], *mlp = attention + 1;
    size_t d = a->geometry.dim;
    size_t rows1 = branch_rows(attention, chunk), rows2 = branch_rows(mlp, chunk);
    size_t compact = attention->row_before[chunk->first];
    sd_branch_norm(a, attention, chunk, store->x, SD_PARAMETER(norm1_weight), SD_PARAMETER(norm1_bias), work->normal,
                store->mean1, store->rstd1);
    if (rows1 > 0) {
        const sd_bias_finish bias = {a->kernels, SD_PARAMETER(qkv_bias), NULL};
        const sd_finish finish = sd_finish_bias(&bias);
        sd_multiply_rows(work->gemm, rows1, work->normal, &a->weights.qkv, store->qkv, &finish);
        for (size_t s = chunk->first; s < chunk->last; s++)
            if (sd_branch_keeps(attention, s)) {
                size_t row = attention->row_before[s] - compact;
                const float *qkv = sd_normalized_qkv(model, a, block, s, store->qkv + row * 3 * d, work);
                sd_attention_forward(a->kernels, work->gemm, qkv, sd_image_tokens(a, s), d, a->geometry.heads,
                                     store->attention + row * d, work->attention);
                keep_rows(a, store->qkv, row, sd_image_tokens(a, s), 3 * d, store->kept_qkv);
            }
    }
    branch_product(a, attention, chunk, store->attention, &a->weights.proj, store->x, SD_PARAMETER(proj_bias),
                   SD_GAMMA(gamma1), store->middle, work);

    sd_branch_norm(a, mlp, chunk, store->middle, SD_PARAMETER(norm2_weight), SD_PARAMETER(norm2_bias), work->normal,
                store->mean2, store->rstd2);
    if (rows2 > 0) {
        /* GELU into another matrix goes row by row, as memory likes it; gates need both halves of a row */
        const bool in_place = work->gelu == store->hidden;
        const sd_bias_finish bias = {a->kernels, SD_PARAMETER(fc1_bias), in_place ? work->gelu : NULL};
        const sd_finish finish = sd_finish_bias(&bias);
        const bool bias_alone = out == NULL;
        sd_multiply_rows(work->gemm, rows2, work->normal, &a->weights.fc1, store->hidden,
                         in_place || bias_alone ? &finish : NULL);
        if (bias_alone)
            keep_rows(a, store->hidden, 0, rows2, a->geometry.hidden_in, store->kept_hidden);
        else if (!in_place)
            activation_forward(a, store, rows2, SD_PARAMETER(fc1_bias), work);
    }
    if (out == NULL)
        return;
    branch_product(a, mlp, chunk, work->gelu, &a->weights.fc2, store->middle, SD_PARAMETER(fc2_bias), SD_GAMMA(gamma2), out,
                   work);
}

void sd_block_backward(const sd_model *model, const sd_activations *a, size_t block, const sd_chunk *chunk,
                       size_t thread, float *partial) {
    const sd_layout *l = &model->layout;
    const sd_layer_work *layer = &a->layer;
    const sd_branch *attention = &a->branches[2 * block], *mlp = attention + 1;
    sd_thread_work *work = &a->thread_work[thread];
    size_t d = a->geometry.dim, f = a->geometry.hidden, in = a->geometry.hidden_in;
    size_t rows1 = branch_rows(attention, chunk), rows2 = branch_rows(mlp, chunk);
    size_t compact1 = attention->row_before[chunk->first], compact2 = mlp->row_before[chunk->first];
    sd_partial_layout p = sd_partials_of(&a->geometry);
    sd_block_store store = sd_chunk_store(a, block, chunk, thread);
    float *dx = layer->dx + a->image_row[chunk->first] * d;
    const sd_layer_rows left = sd_layer_rows_of(a, block);
    /* those of D numbers use the same memory of the thread one after the other */
    const left_rows dmlp = left_at(a, layer->dmlp, compact2 * d, work->normal);
    const left_rows gelu = left_at(a, layer->gelu, compact2 * f, work->gelu);
    const left_rows dhidden = left_at(a, left.dhidden, compact2 * in, work->hidden);
    const left_rows normal2 = left_in_place(a, left.normal2 + compact2 * d, work->normal);
    const left_rows dattention = left_at(a, layer->dattention, compact1 * d, work->normal);
    const left_rows heads = left_in_place(a, left.attention + compact1 * d, work->heads);
    const left_rows dqkv = left_at(a, left.dqkv, compact1 * 3 * d, work->qkv);
    const left_rows normal1 = left_in_place(a, left.normal1 + compact1 * d, work->normal);
    const bool recomputed = block < a->recomputed; /* then attention's output is there already */

    branch_gather(a, mlp, chunk, dx, dmlp.x);
    if (rows2 > 0) {
        sd_keep(a, dmlp.x, rows2 * d, dmlp.kept);
        a->kernels->column_sum(dmlp.x, rows2, d, d, partial + p.fc2_bias);
        sd_multiply_rows(work->gemm, rows2, dmlp.x, &a->weights_back.fc2, work->gelu, NULL);
        activation_backward(a, &store, rows2, &dhidden, &gelu, partial + p.fc1_bias, work);
        sd_multiply_rows(work->gemm, rows2, dhidden.x, &a->weights_back.fc1, work->branch, NULL);
    }
    sd_branch_norm_backward(a, mlp, chunk, work->branch, store.middle, store.mean2, store.rstd2,
                         SD_PARAMETER(norm2_weight), SD_PARAMETER(norm2_bias), dx, partial + p.norm2_weight,
                         partial + p.norm2_bias, normal2.x);
    sd_keep_rows(a, normal2.x, rows2, normal2.kept);

    branch_gather(a, attention, chunk, dx, dattention.x);
    if (rows1 > 0) {
        sd_keep(a, dattention.x, rows1 * d, dattention.kept);
        a->kernels->column_sum(dattention.x, rows1, d, d, partial + p.proj_bias);
        sd_multiply_rows(work->gemm, rows1, dattention.x, &a->weights_back.proj, work->branch, NULL);
        for (size_t s = chunk->first; s < chunk->last; s++)
            if (sd_branch_keeps(attention, s)) {
                size_t row = attention->row_before[s] - compact1;
                recall_rows(a, store.kept_qkv, row, sd_image_tokens(a, s), 3 * d, store.qkv);
                const float *qkv = sd_normalized_qkv(model, a, block, s, store.qkv + row * 3 * d, work);
                sd_attention_backward(a->kernels, work->gemm, qkv, work->branch + row * d, sd_image_tokens(a, s), d,
                                      a->geometry.heads, dqkv.x + row * 3 * d, recomputed ? NULL : heads.x + row * d,
                                      work->attention);
                if (a->geometry.qk_norm)
                    qk_norm_backward(model, a, block, s, store.qkv + row * 3 * d, dqkv.x + row * 3 * d, work,
                                     partial + p.qk_norm);
                keep_rows(a, dqkv.x, row, sd_image_tokens(a, s), 3 * d, dqkv.kept);
            }
        if (!recomputed)
            sd_keep_rows(a, heads.x, rows1, heads.kept);
        a->kernels->column_sum(dqkv.x, rows1, 3 * d, 3 * d, partial + p.qkv_bias);
        sd_multiply_rows(work->gemm, rows1, dqkv.x, &a->weights_back.qkv, work->branch, NULL);
    }
    sd_branch_norm_backward(a, attention, chunk, work->branch, store.x, store.mean1, store.rstd1,
                         SD_PARAMETER(norm1_weight), SD_PARAMETER(norm1_bias), dx, partial + p.norm1_weight,
                         partial + p.norm1_bias, normal1.x);
    sd_keep_rows(a, normal1.x, rows1, normal1.kept);
}
