/* A block whose one chunk all threads share. A pass of a few images has fewer chunks than the machine has threads, so that
 * its chunks go one after the other and their rows, columns and heads are divided instead:
 *     norm1 | qkv | attention, head by head | proj + residual | norm2 | fc1 + GELU | fc2 + residual
 * each a parallel section. For inference only: every image passes every branch, and nothing is kept. How the work is cut
 * does not depend on the number of threads, and so neither do the results. Where products can be packed, strips.c is faster. */
#include "model/model.h"

/* Columns of a product's tile: the weights of a tile are packed once, the rows are read by all tiles. Wide products have
 * tiles enough for larger ones. */
#define WIDE_COLUMNS 64
#define WIDE_MORE_COLUMNS 96
#define WIDE_ENOUGH 768
#define WIDE_ROWS 256
/* Rows of a task of the norms. */
#define WIDE_NORM_ROWS 32

typedef struct wide_block {
    const sd_activations *a;
    const sd_block_store *store;
    size_t first, rows; /* first: the chunk's first image */
    /* of the norm that runs */
    const float *x, *weight, *bias;
    float *y, *mean, *rstd;
    float *gelu; /* of SwiGLU */
} wide_block;

static void norm_task(void *argument, size_t index, size_t thread) {
    (void)thread;
    const wide_block *w = argument;
    size_t d = w->a->geometry.dim, row = index * WIDE_NORM_ROWS;
    w->a->kernels->layer_norm(w->x + row * d, sd_size_min(WIDE_NORM_ROWS, w->rows - row), d, w->weight, w->bias,
                              w->y + row * d, w->mean + row, w->rstd + row);
}

static sd_status wide_norm(wide_block *w, const float *x, const float *weight, const float *bias, float *y, float *mean,
                           float *rstd) {
    w->x = x;
    w->weight = weight;
    w->bias = bias;
    w->y = y;
    w->mean = mean;
    w->rstd = rstd;
    return sd_run(w->a->context, norm_task, w, sd_size_ceil(w->rows, WIDE_NORM_ROWS));
}

static void attention_task(void *argument, size_t index, size_t thread) {
    const wide_block *w = argument;
    const sd_activations *a = w->a;
    size_t d = a->geometry.dim, heads = a->geometry.heads, image = w->first + index / heads;
    size_t row = a->image_row[image] - a->image_row[w->first];
    sd_attention_forward_head(a->kernels, &a->gemms[thread], w->store->qkv + row * 3 * d, sd_image_tokens(a, image), d, heads,
                              index % heads, w->store->attention + row * d, a->thread_work[thread].attention);
}

static void swiglu_task(void *argument, size_t index, size_t thread) {
    (void)thread;
    const wide_block *w = argument;
    size_t f = w->a->geometry.hidden, in = w->a->geometry.hidden_in, row = index * WIDE_NORM_ROWS;
    w->a->kernels->bias_swiglu(w->store->hidden + row * in, sd_size_min(WIDE_NORM_ROWS, w->rows - row), f, w->bias,
                               w->gelu + row * f);
}

/* ---- products ------------------------------------------------------------------------------- */

static sd_status wide_product(const sd_activations *a, sd_product product, sd_finish finish) {
    product.tile_m = WIDE_ROWS;
    product.tile_n = product.n < WIDE_ENOUGH ? WIDE_COLUMNS : WIDE_MORE_COLUMNS;
    product.finish = finish;
    return sd_run_products(a->context, a->gemms, &product, 1, NULL, NULL);
}

sd_status sd_chunk_product(const sd_activations *a, const sd_gemm *gemm, sd_product product) {
    if (gemm == NULL)
        return wide_product(a, product, (sd_finish){0});
    sd_multiply(gemm, product.ta, product.tb, product.m, product.n, product.k, 1.0f, product.a, product.lda, product.b,
                product.ldb, product.beta, product.c, product.ldc);
    return SD_OK;
}

/* ---- the block ------------------------------------------------------------------------------ */

sd_status sd_block_forward_wide(const sd_model *model, const sd_activations *a, size_t block, const sd_chunk *chunk,
                                const sd_block_store *store, float *out) {
    const sd_layout *l = &model->layout;
    const sd_geometry *g = &a->geometry;
    const sd_thread_work *work = &a->thread_work[0];
    size_t d = g->dim, f = g->hidden, in = g->hidden_in;
    size_t rows = a->image_row[chunk->last] - a->image_row[chunk->first];
    wide_block w = {.a = a, .store = store, .first = chunk->first, .rows = rows};
    sd_status status;

    SD_TRY(wide_norm(&w, store->x, SD_PARAMETER(norm1_weight), SD_PARAMETER(norm1_bias), work->normal, store->mean1,
                     store->rstd1));
    sd_bias_finish qkv = {a->kernels, SD_PARAMETER(qkv_bias), NULL};
    SD_TRY(wide_product(a, sd_linear_forward(work->normal, rows, d, SD_PARAMETER(qkv_weight), 3 * d, store->qkv),
                        sd_finish_bias(&qkv)));
    SD_TRY(sd_run(a->context, attention_task, &w, (chunk->last - chunk->first) * g->heads));
    sd_residual_finish proj = {a->kernels, SD_PARAMETER(proj_bias), SD_GAMMA(gamma1), store->x, store->middle};
    SD_TRY(wide_product(a, sd_linear_forward(store->attention, rows, d, SD_PARAMETER(proj_weight), d, work->branch),
                        sd_finish_residual(&proj)));

    SD_TRY(wide_norm(&w, store->middle, SD_PARAMETER(norm2_weight), SD_PARAMETER(norm2_bias), work->normal, store->mean2,
                     store->rstd2));
    sd_bias_finish fc1 = {a->kernels, SD_PARAMETER(fc1_bias), work->gelu};
    SD_TRY(wide_product(a, sd_linear_forward(work->normal, rows, d, SD_PARAMETER(fc1_weight), in, store->hidden),
                        g->swiglu ? (sd_finish){0} : sd_finish_bias(&fc1)));
    if (g->swiglu) {
        w.bias = SD_PARAMETER(fc1_bias);
        w.gelu = work->gelu;
        SD_TRY(sd_run(a->context, swiglu_task, &w, sd_size_ceil(rows, WIDE_NORM_ROWS)));
    }
    sd_residual_finish fc2 = {a->kernels, SD_PARAMETER(fc2_bias), SD_GAMMA(gamma2), store->middle, out};
    SD_TRY(wide_product(a, sd_linear_forward(work->gelu, rows, f, SD_PARAMETER(fc2_weight), d, work->branch),
                        sd_finish_residual(&fc2)));
cleanup:
    return status;
}
