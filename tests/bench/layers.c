/* Where a step's time goes: the parts of one transformer block on one thread, forward and backward, each with the
 * GFLOP/s of its matrix products and the GB/s of the memory that it cannot do without. Rows are those of a chunk (images
 * of one size, as a pass groups them). Several chunks in turn, more than the caches hold, as in a step. */
#include "bench.h"

#include "base/system.h"
#include "math/kernels.h"
#include "math/math.h"
#include "nn/nn.h"

#include <stdlib.h>

#define CHUNKS 4
#define CHUNK_ROWS 400

enum { QKV, PROJ, FC1, FC2, WEIGHTS };

typedef struct chunk {
    float *x, *normal, *qkv, *attention, *branch, *middle, *hidden, *gelu, *mean, *rstd;
    float *dx, *dbranch;
} chunk;

typedef struct block {
    const sd_kernels *kernels;
    sd_gemm gemm;
    size_t d, f, heads, tokens, images, rows;
    sd_factor weights[WEIGHTS], weights_back[WEIGHTS];
    float *vector; /* of any bias or norm, F zeros */
    float *gradient, *sums, *work;
    float *upstream; /* a chunk's dL/dgelu, which every chunk overwrites */
    chunk chunks[CHUNKS];
} block;

/* ---- the parts; gradients of queries, keys, values and hidden numbers take their place, as in a backward pass --------------------------------------------------------------------------------- */

static void product(const block *b, const float *x, const sd_factor *weight, float *y) {
    sd_multiply_rows(&b->gemm, b->rows, x, weight, y, NULL);
}

static void weight_product(const block *b, const float *dy, size_t out, const float *x, size_t in) {
    sd_multiply(&b->gemm, true, false, out, in, b->rows, 1.0f, dy, out, x, in, 1.0f, b->gradient, in);
}

static void norm(block *b, chunk *c) {
    b->kernels->layer_norm(c->x, b->rows, b->d, b->vector, b->vector, c->normal, c->mean, c->rstd);
}

static void qkv(block *b, chunk *c) {
    product(b, c->normal, &b->weights[QKV], c->qkv);
    b->kernels->add_bias(c->qkv, b->rows, 3 * b->d, 3 * b->d, b->vector);
}

static void attention(block *b, chunk *c) {
    for (size_t i = 0; i < b->images; i++)
        sd_attention_forward(b->kernels, &b->gemm, c->qkv + i * b->tokens * 3 * b->d, b->tokens, b->d, b->heads,
                             c->attention + i * b->tokens * b->d, b->work);
}

static void projection(block *b, chunk *c) {
    product(b, c->attention, &b->weights[PROJ], c->branch);
    b->kernels->residual(c->middle, c->x, c->branch, b->rows, b->d, b->vector, NULL, 1.0f);
}

static void fc1(block *b, chunk *c) { product(b, c->normal, &b->weights[FC1], c->hidden); }

static void gelu(block *b, chunk *c) {
    b->kernels->bias_gelu(c->hidden, b->rows, b->f, b->f, b->vector, c->gelu, b->f);
}

static void fc2(block *b, chunk *c) {
    product(b, c->gelu, &b->weights[FC2], c->branch);
    b->kernels->residual(c->x, c->middle, c->branch, b->rows, b->d, b->vector, NULL, 1.0f);
}

static void fc2_backward(block *b, chunk *c) { product(b, c->dx, &b->weights_back[FC2], b->upstream); }

static void gelu_backward(block *b, chunk *c) {
    b->kernels->gelu_backward(c->hidden, b->upstream, b->rows, b->f, b->f, c->hidden, c->gelu, b->sums);
}

static void fc1_backward(block *b, chunk *c) { product(b, c->hidden, &b->weights_back[FC1], c->dbranch); }

static void norm_backward(block *b, chunk *c) {
    b->kernels->layer_norm_backward(c->dbranch, c->x, c->mean, c->rstd, b->rows, b->d, b->vector, b->vector, c->dx,
                                    b->sums, b->sums + b->d, c->normal);
}

static void projection_backward(block *b, chunk *c) { product(b, c->dx, &b->weights_back[PROJ], c->dbranch); }

static void attention_backward(block *b, chunk *c) {
    for (size_t i = 0; i < b->images; i++)
        sd_attention_backward(b->kernels, &b->gemm, c->qkv + i * b->tokens * 3 * b->d,
                              c->dbranch + i * b->tokens * b->d, b->tokens, b->d, b->heads,
                              c->qkv + i * b->tokens * 3 * b->d, c->attention + i * b->tokens * b->d, b->work);
}

static void qkv_backward(block *b, chunk *c) {
    b->kernels->column_sum(c->qkv, b->rows, 3 * b->d, 3 * b->d, b->sums);
    product(b, c->qkv, &b->weights_back[QKV], c->dbranch);
}

static void weights(block *b, chunk *c) {
    weight_product(b, c->qkv, 3 * b->d, c->normal, b->d);
    weight_product(b, c->dx, b->d, c->attention, b->d);
    weight_product(b, c->hidden, b->f, c->normal, b->d);
    weight_product(b, c->dx, b->d, c->gelu, b->f);
}

/* In the order of a step. times: how often in a block. flop and floats (read and written, weights not counted): of one row,
 * in units of D; linear in D, or in the tokens of an image. */
typedef struct part {
    const char *name;
    void (*run)(block *, chunk *);
    double times, flop_d, flop_tokens, floats;
} part;

static const part parts[] = {
    {"norm (two of them)", norm, 2, 0, 0, 2},
    {"queries, keys, values", qkv, 1, 6, 0, 4},
    {"attention", attention, 1, 0, 4, 4},
    {"projection, residual", projection, 1, 2, 0, 3},
    {"fc1", fc1, 1, 8, 0, 5},
    {"bias, GELU", gelu, 1, 0, 0, 12},
    {"fc2, residual", fc2, 1, 8, 0, 6},
    {"fc2 backward", fc2_backward, 1, 8, 0, 5},
    {"GELU backward", gelu_backward, 1, 0, 0, 16},
    {"fc1 backward", fc1_backward, 1, 8, 0, 5},
    {"norm backward (two)", norm_backward, 2, 0, 0, 5},
    {"projection backward", projection_backward, 1, 2, 0, 2},
    {"attention backward", attention_backward, 1, 0, 12, 8},
    {"qkv backward", qkv_backward, 1, 6, 0, 4},
    {"gradients of weights", weights, 1, 24, 0, 16},
};
enum { PARTS = sizeof parts / sizeof *parts };

/* ---- the bench --------------------------------------------------------------------------------- */

static sd_factor with_memory(const sd_gemm *gemm, sd_factor factor) {
    size_t bytes = sd_factor_bytes(gemm, factor.n, factor.k);
    factor.packed = bytes > 0 ? take(bytes, 1) : NULL;
    return factor;
}

/* Seconds to pack the weights for both directions, as a pass does once for all its chunks. */
static double pack_weights(const block *b) {
    double begin = now();
    for (size_t i = 0; i < WEIGHTS; i++) {
        const sd_factor *factors[] = {&b->weights[i], &b->weights_back[i]};
        for (size_t k = 0; k < 2; k++)
            if (factors[k]->packed != NULL)
                sd_factor_pack(&b->gemm, factors[k], 0, factors[k]->n);
    }
    return now() - begin;
}

static block make_block(const options *o) {
    block b = {.kernels = sd_kernels_get(), .d = (size_t)o->dim, .f = 4 * (size_t)o->dim};
    b.heads = (size_t)(o->heads > 0 ? o->heads : o->dim / 64 > 0 ? o->dim / 64 : 1);
    size_t side = (size_t)(o->image / o->patch), d = b.d, f = b.f;
    b.tokens = side * side + 1;
    b.images = sd_size_max(CHUNK_ROWS / b.tokens, 1);
    b.rows = b.images * b.tokens;
    size_t scratch = sd_gemm_scratch(o->precision);
    b.gemm = sd_gemm_of(o->precision, scratch > 0 ? sd_allocate(NULL, scratch, 1) : NULL);
    const size_t out[WEIGHTS] = {3 * d, d, f, d}, in[WEIGHTS] = {d, d, d, f};
    for (size_t i = 0; i < WEIGHTS; i++) {
        const float *weight = random_floats(out[i] * in[i], 1 + i);
        b.weights[i] = with_memory(&b.gemm, (sd_factor){true, out[i], in[i], weight, in[i], NULL, false});
        b.weights_back[i] = with_memory(&b.gemm, (sd_factor){false, in[i], out[i], weight, in[i], NULL, false});
    }
    b.vector = take(f, sizeof(float));
    b.gradient = take(d * f, sizeof(float));
    b.sums = take(f, sizeof(float));
    b.upstream = take(b.rows * f, sizeof(float));
    b.work = take(sd_attention_work(&b.gemm, b.tokens, b.d / b.heads), sizeof(float));
    for (size_t i = 0; i < CHUNKS; i++) {
        chunk *c = &b.chunks[i];
        const struct {
            float **place;
            size_t width;
        } rows[] = {{&c->x, d},         {&c->normal, d},  {&c->qkv, 3 * d}, {&c->attention, d}, {&c->branch, d},
                    {&c->middle, d},    {&c->hidden, f},  {&c->gelu, f},    {&c->mean, 1},      {&c->rstd, 1},
                    {&c->dx, d},        {&c->dbranch, d}};
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
            *rows[r].place = random_floats(b.rows * rows[r].width, 10 + i * 20 + r);
    }
    return b;
}

static void drop_block(block *b) {
    sd_release(NULL, b->gemm.scratch);
    for (size_t i = 0; i < WEIGHTS; i++) {
        free((float *)b->weights[i].b);
        free(b->weights[i].packed);
        free(b->weights_back[i].packed);
    }
    float *owned[] = {b->vector, b->gradient, b->sums, b->work, b->upstream};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
    for (size_t i = 0; i < CHUNKS; i++) {
        chunk *c = &b->chunks[i];
        float *rows[] = {c->x,    c->normal, c->qkv,  c->attention, c->branch, c->middle,  c->hidden,
                         c->gelu, c->mean,   c->rstd, c->dx,        c->dbranch};
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
            free(rows[r]);
    }
}

void bench_layers(const options *o, FILE *json) {
    check(sd_precision_check(o->precision), "precision");
    block b = make_block(o);
    (void)pack_weights(&b); /* touches its memory */
    const double packing = pack_weights(&b);
    size_t steps = (size_t)o->steps * CHUNKS;
    double *times[PARTS], medians[PARTS], total = 0.0;
    for (size_t p = 0; p < PARTS; p++)
        times[p] = take(steps, sizeof(double));
    /* chunk after chunk passes all parts, as in a step; the first round is not counted */
    for (size_t i = 0; i < steps + CHUNKS; i++)
        for (size_t p = 0; p < PARTS; p++) {
            double begin = now();
            parts[p].run(&b, &b.chunks[i % CHUNKS]);
            if (i >= CHUNKS)
                times[p][i - CHUNKS] = now() - begin;
        }
    for (size_t p = 0; p < PARTS; p++) {
        medians[p] = parts[p].times * median(times[p], steps);
        total += medians[p];
    }
    printf("layers: dim %zu, %zu images of %zu tokens, one thread, %s (%s)\n", b.d, b.images, b.tokens,
           o->precision == SD_PRECISION_BF16 ? "bf16" : "fp32", b.gemm.name);
    printf("  %-22s %9s %7s %8s %7s %9s %7s\n", "part", "ms", "share", "GFLOP", "MB", "GFLOP/s", "GB/s");
    for (size_t p = 0; p < PARTS; p++) {
        double rows = (double)b.rows, d = (double)b.d;
        double flop = rows * d * (parts[p].flop_d * d + parts[p].flop_tokens * (double)b.tokens);
        double bytes = parts[p].times * 4.0 * rows * d * parts[p].floats;
        printf("  %-22s %9.3f %6.1f%% %8.3f %7.1f %9.1f %7.1f\n", parts[p].name, 1e3 * medians[p],
               100.0 * medians[p] / total, 1e-9 * flop, 1e-6 * bytes, 1e-9 * flop / medians[p], 1e-9 * bytes / medians[p]);
        if (json != NULL)
            fprintf(json,
                    "{\"mode\": \"layers\", \"dim\": %zu, \"tokens\": %zu, \"rows\": %zu, \"precision\": \"%s\", \"part\": "
                    "\"%s\", \"ms\": %.6f, \"gflop\": %.6f, \"mb\": %.3f}\n",
                    b.d, b.tokens, b.rows, o->precision == SD_PRECISION_BF16 ? "bf16" : "fp32", parts[p].name,
                    1e3 * medians[p], 1e-9 * flop, 1e-6 * bytes);
        free(times[p]);
    }
    printf("  %-22s %9.3f\n", "a block of one chunk", 1e3 * total);
    if (b.weights[QKV].packed != NULL)
        printf("  %-22s %9.3f, once for all chunks of a step\n", "packing its weights", 1e3 * packing);
    drop_block(&b);
}
