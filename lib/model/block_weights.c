/* The weights of a block as right factors: W' of each linear layer y = W x + b in the forward pass, W in the backward pass.
 * All chunks of a pass go through a block before any goes through the next, so that one block's weights are packed once for
 * all of them, into memory that stays in the cache that cores share; unless the model keeps them packed (pack.c). */
#include "model/model.h"

enum { WEIGHTS = 4 };

#define COLUMNS_OF_TASK ((size_t)128)

_Static_assert(COLUMNS_OF_TASK % SD_FACTOR_COLUMNS == 0, "a task packs whole panels");

static sd_factor factor_of(const float *weight, size_t out, size_t in, bool back) {
    return (sd_factor){.tb = !back, .n = back ? in : out, .k = back ? out : in, .b = weight, .ldb = in};
}

static sd_block_weights weights_of(const sd_geometry *g, const float *qkv, const float *proj, const float *fc1,
                                   const float *fc2, bool back) {
    return (sd_block_weights){.qkv = factor_of(qkv, 3 * g->dim, g->dim, back),
                              .proj = factor_of(proj, g->dim, g->dim, back),
                              .fc1 = factor_of(fc1, g->hidden_in, g->dim, back),
                              .fc2 = factor_of(fc2, g->dim, g->hidden, back)};
}

/* The four of a block in the order of sd_block_weights. */
static void list(sd_block_weights *weights, sd_factor *factors[WEIGHTS]) {
    factors[0] = &weights->qkv;
    factors[1] = &weights->proj;
    factors[2] = &weights->fc1;
    factors[3] = &weights->fc2;
}

static size_t packed_bytes(const sd_gemm *gemm, const sd_factor *factor) {
    return sd_size_ceil(sd_factor_bytes(gemm, factor->n, factor->k), SD_ALIGNMENT) * SD_ALIGNMENT;
}

size_t sd_block_weights_bytes(const sd_geometry *g, const sd_gemm *gemm, bool back) {
    sd_block_weights weights = weights_of(g, NULL, NULL, NULL, NULL, back);
    sd_factor *factors[WEIGHTS];
    size_t bytes = 0;
    list(&weights, factors);
    for (size_t i = 0; i < WEIGHTS; i++)
        bytes += packed_bytes(gemm, factors[i]);
    return bytes;
}

sd_block_weights sd_block_weights_of(const sd_model *model, size_t block) {
    const sd_layout *l = &model->layout;
    return weights_of(&model->geometry, SD_PARAMETER(qkv_weight), SD_PARAMETER(proj_weight), SD_PARAMETER(fc1_weight),
                      SD_PARAMETER(fc2_weight), false);
}

/* ---- packing ------------------------------------------------------------------------------- */

typedef struct pack_work {
    const sd_gemm *gemm;
    sd_factor *factors[WEIGHTS];
} pack_work;

static size_t tasks_of(const sd_factor *factor) { return sd_size_ceil(factor->n, COLUMNS_OF_TASK); }

static void pack_task(void *argument, size_t index, size_t thread) {
    (void)thread;
    const pack_work *job = argument;
    size_t i = 0;
    for (; index >= tasks_of(job->factors[i]); i++)
        index -= tasks_of(job->factors[i]);
    const sd_factor *factor = job->factors[i];
    size_t column = index * COLUMNS_OF_TASK;
    sd_factor_pack(job->gemm, factor, column, sd_size_min(COLUMNS_OF_TASK, factor->n - column));
}

sd_status sd_block_weights_pack(sd_context *context, const sd_gemm *gemm, sd_block_weights *weights, void *memory) {
    pack_work job = {.gemm = gemm};
    char *place = memory;
    size_t tasks = 0;
    list(weights, job.factors);
    for (size_t i = 0; i < WEIGHTS; i++) {
        job.factors[i]->packed = place;
        place += packed_bytes(gemm, job.factors[i]);
        tasks += tasks_of(job.factors[i]);
    }
    return sd_run(context, pack_task, &job, tasks);
}

static void take_strassen(const sd_gemm *gemm, sd_block_weights *weights) {
    sd_factor *factors[WEIGHTS];
    list(weights, factors);
    for (size_t i = 0; i < WEIGHTS; i++)
        sd_factor_take_strassen(gemm, factors[i]);
}

/* ---- in a pass ----------------------------------------------------------------------------- */

/* One chunk alone would pack as much by itself, unless threads divide it. */
static bool packs(const sd_activations *a) {
    return a->packed != NULL && (a->chunk_count > 1 || a->mode == SD_ACTIVATIONS_INFERENCE);
}

sd_status sd_block_weights_forward(const sd_model *model, sd_activations *a, size_t block) {
    const sd_packed_model *kept = model->packed;
    if (kept != NULL && kept->way == a->gemms[0].packed && !a->strassen) {
        a->weights = kept->blocks[block];
        return SD_OK;
    }
    a->weights = sd_block_weights_of(model, block);
    if (a->strassen)
        take_strassen(a->gemms, &a->weights);
    return packs(a) ? sd_block_weights_pack(a->context, a->gemms, &a->weights, a->packed) : SD_OK;
}

sd_status sd_block_weights_backward(const sd_model *model, sd_activations *a, size_t block) {
    const sd_layout *l = &model->layout;
    bool scaled = a->geometry.layer_scale;
    a->weights_back = weights_of(&a->geometry, SD_PARAMETER(qkv_weight),
                                 scaled ? a->scaled.proj : SD_PARAMETER(proj_weight), SD_PARAMETER(fc1_weight),
                                 scaled ? a->scaled.fc2 : SD_PARAMETER(fc2_weight), true);
    if (a->strassen)
        take_strassen(a->gemms, &a->weights_back);
    return packs(a) ? sd_block_weights_pack(a->context, a->gemms, &a->weights_back, a->packed) : SD_OK;
}
