/* A block of a pass of a few images whose token rows are divided among the threads: a strip of rows for each. Two parallel
 * sections for a block:
 *     norm1, queries, keys, values | attention, projection, norm2, MLP
 * A thread meets the rows of others only as keys and values; all else it finds in its own caches, which counts where two
 * cores do not share one. All threads read all weights, which must be packed for that: the rows are few.
 *
 * For inference with products that are the same however they are cut: the strips depend on the number of threads, and the
 * results do not. */
#include "model/model.h"

typedef struct strip_work {
    const sd_model *model;
    const sd_activations *a;
    size_t block, strips;
} strip_work;

static size_t strip_begin(const strip_work *job, size_t index) { return job->a->rows * index / job->strips; }

static void projection_task(void *argument, size_t index, size_t thread) {
    const strip_work *job = argument;
    const sd_model *model = job->model;
    const sd_activations *a = job->a;
    const sd_layout *l = &model->layout;
    const sd_thread_work *work = &a->thread_work[thread];
    size_t block = job->block, d = a->geometry.dim;
    size_t first = strip_begin(job, index), rows = strip_begin(job, index + 1) - first;
    float *qkv = a->shared_qkv + first * 3 * d;
    a->kernels->layer_norm(a->stream + first * d, rows, d, SD_PARAMETER(norm1_weight), SD_PARAMETER(norm1_bias),
                           work->normal, work->inference.mean1, work->inference.rstd1);
    const sd_bias_finish bias = {a->kernels, SD_PARAMETER(qkv_bias), NULL};
    const sd_finish finish = sd_finish_bias(&bias);
    sd_multiply_rows(work->gemm, rows, work->normal, &a->weights.qkv, qkv, &finish);
}

/* The strip's rows of attention, image by image. */
static void attend(const sd_activations *a, size_t first, size_t last, float *out, const sd_thread_work *work) {
    size_t d = a->geometry.dim, image = 0;
    while (a->image_row[image + 1] <= first)
        image++;
    for (size_t row = first; row < last; image++) {
        size_t start = a->image_row[image], end = sd_size_min(a->image_row[image + 1], last);
        sd_attention_forward_rows(a->kernels, work->gemm, a->shared_qkv + start * 3 * d, sd_image_tokens(a, image), d,
                                  a->geometry.heads, row - start, end - row, out + (row - first) * d, work->attention);
        row = end;
    }
}

static void rest_task(void *argument, size_t index, size_t thread) {
    const strip_work *job = argument;
    const sd_model *model = job->model;
    const sd_activations *a = job->a;
    const sd_geometry *g = &a->geometry;
    const sd_layout *l = &model->layout;
    const sd_thread_work *work = &a->thread_work[thread];
    const sd_block_store *store = &work->inference;
    size_t block = job->block, d = g->dim, f = g->hidden;
    size_t first = strip_begin(job, index), last = strip_begin(job, index + 1), rows = last - first;
    float *x = a->stream + first * d;
    attend(a, first, last, store->attention, work);
    sd_multiply_rows(work->gemm, rows, store->attention, &a->weights.proj, work->branch, NULL);
    a->kernels->residual(x, x, work->branch, rows, d, SD_PARAMETER(proj_bias), SD_GAMMA(gamma1), 1.0f);
    a->kernels->layer_norm(x, rows, d, SD_PARAMETER(norm2_weight), SD_PARAMETER(norm2_bias), work->normal, store->mean2,
                           store->rstd2);
    const sd_bias_finish bias = {a->kernels, SD_PARAMETER(fc1_bias), work->gelu};
    const sd_finish finish = sd_finish_bias(&bias);
    sd_multiply_rows(work->gemm, rows, work->normal, &a->weights.fc1, store->hidden, g->swiglu ? NULL : &finish);
    if (g->swiglu)
        a->kernels->bias_swiglu(store->hidden, rows, f, SD_PARAMETER(fc1_bias), work->gelu);
    sd_multiply_rows(work->gemm, rows, work->gelu, &a->weights.fc2, work->branch, NULL);
    a->kernels->residual(x, x, work->branch, rows, d, SD_PARAMETER(fc2_bias), SD_GAMMA(gamma2), 1.0f);
}

sd_status sd_block_forward_strips(const sd_model *model, const sd_activations *a, size_t block) {
    /* each fits into the working memory of a thread */
    size_t strips = sd_size_max(a->threads, sd_size_ceil(a->rows, a->max_chunk_rows));
    strip_work job = {model, a, block, sd_size_min(strips, a->rows)};
    sd_status status = sd_run(a->context, projection_task, &job, job.strips);
    return status == SD_OK ? sd_run(a->context, rest_task, &job, job.strips) : status;
}
