#include "math/math.h"
#include "nn/nn.h"

#include <math.h>
#include <string.h>

/* Rows of P are computed some at a time, which stay in the cache, where keys and values can be packed for all of them. */
#define ROWS_AT_ONCE ((size_t)64)

/* The right factors of a head, as parts of the rows of qkv, packed where the products have use for it. */
typedef struct head_factors {
    sd_factor keys, values;
    bool packed;
} head_factors;

static size_t factor_floats(const sd_gemm *gemm, size_t n, size_t k) {
    return sd_size_ceil(sd_factor_bytes(gemm, n, k), SD_ALIGNMENT) * (SD_ALIGNMENT / sizeof(float));
}

/* Rows of the T x T matrices are padded, so that the kernels need no remainder loops. */
size_t sd_attention_work(const sd_gemm *gemm, size_t tokens, size_t size) {
    /* dQ of a head takes the place of P for a while */
    const size_t ld = sd_padded_row(tokens);
    return tokens * (ld + sd_size_max(ld, sd_padded_row(size))) + factor_floats(gemm, tokens, size) + factor_floats(gemm, size, tokens);
}

static head_factors factors_of(const sd_gemm *gemm, const float *qkv, size_t tokens, size_t dim, size_t size, size_t head,
                               float *memory) {
    const float *k = qkv + dim + head * size, *v = k + dim;
    head_factors f = {{.tb = true, .n = tokens, .k = size, .b = k, .ldb = 3 * dim},
                      {.n = size, .k = tokens, .b = v, .ldb = 3 * dim},
                      sd_factor_bytes(gemm, tokens, size) > 0};
    if (f.packed) {
        f.keys.packed = memory;
        f.values.packed = memory + factor_floats(gemm, tokens, size);
        sd_factor_pack(gemm, &f.keys, 0, tokens);
        sd_factor_pack(gemm, &f.values, 0, size);
    }
    return f;
}

static float scale_of(size_t size) { return 1.0f / sqrtf((float)size); }

/* Rows of P = softmax(scale Q K'), of padded T numbers. */
static void probabilities_of(const sd_kernels *kernels, const sd_gemm *gemm, const sd_factor *keys, const float *q, size_t dim,
                             size_t rows, float *p) {
    const size_t tokens = keys->n, ld = sd_padded_row(tokens);
    sd_multiply_factor(gemm, rows, q, 3 * dim, keys, 0, tokens, p, ld, NULL);
    kernels->softmax(p, rows, tokens, ld, scale_of(keys->k));
}

static void forward_head(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, size_t tokens, size_t dim, size_t heads,
                         size_t head, size_t first, size_t rows, float *out, float *work) {
    const size_t size = dim / heads, ld = sd_padded_row(tokens);
    const head_factors f = factors_of(gemm, qkv, tokens, dim, size, head, work + 2 * tokens * ld);
    const size_t most = f.packed ? ROWS_AT_ONCE : rows;
    for (size_t row = 0; row < rows; row += most) {
        const size_t here = sd_size_min(most, rows - row);
        probabilities_of(kernels, gemm, &f.keys, qkv + (first + row) * 3 * dim + head * size, dim, here, work);
        sd_multiply_factor(gemm, here, work, ld, &f.values, 0, size, out + row * dim + head * size, dim, NULL);
    }
}

void sd_attention_forward_head(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, size_t tokens, size_t dim,
                               size_t heads, size_t head, float *out, float *work) {
    forward_head(kernels, gemm, qkv, tokens, dim, heads, head, 0, tokens, out, work);
}

void sd_attention_forward_rows(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, size_t tokens, size_t dim,
                               size_t heads, size_t first, size_t rows, float *out, float *work) {
    for (size_t h = 0; h < heads; h++)
        forward_head(kernels, gemm, qkv, tokens, dim, heads, h, first, rows, out, work);
}

void sd_attention_forward(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, size_t tokens, size_t dim, size_t heads,
                          float *out, float *work) {
    sd_attention_forward_rows(kernels, gemm, qkv, tokens, dim, heads, 0, tokens, out, work);
}

/* dP = dO V';  dV = P' dO;  dS = scale P (dP - rowsum(P dP));  dQ = dS K;  dK = dS' Q: in this order each of V, K and Q may be
 * overwritten by its gradient, but for dQ, which waits until Q is not needed any more. */
void sd_attention_backward(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, const float *dout, size_t tokens, size_t dim,
                           size_t heads, float *dqkv, float *out, float *work) {
    const size_t size = dim / heads, ld = sd_padded_row(tokens);
    const bool in_place = dqkv == qkv;
    float *dp = work, *p = work + tokens * ld;
    for (size_t h = 0; h < heads; h++) {
        const float *q = qkv + h * size, *k = q + dim, *v = k + dim, *dout_head = dout + h * size;
        float *dq = dqkv + h * size, *dk = dq + dim, *dv = dk + dim;
        const sd_factor keys = {.tb = true, .n = tokens, .k = size, .b = k, .ldb = 3 * dim};
        probabilities_of(kernels, gemm, &keys, q, dim, tokens, p);
        if (out != NULL)
            sd_multiply(gemm, false, false, tokens, size, tokens, 1.0f, p, ld, v, 3 * dim, 0.0f, out + h * size, dim);
        sd_multiply(gemm, false, true, tokens, tokens, size, 1.0f, dout_head, dim, v, 3 * dim, 0.0f, dp, ld);
        sd_multiply(gemm, true, false, tokens, size, tokens, 1.0f, p, ld, dout_head, dim, 0.0f, dv, 3 * dim);
        kernels->softmax_backward(p, dp, tokens, tokens, ld, scale_of(size));
        float *to = in_place ? p : dq;
        sd_multiply(gemm, false, false, tokens, size, tokens, 1.0f, dp, ld, k, 3 * dim, 0.0f, to, in_place ? size : 3 * dim);
        sd_multiply(gemm, true, false, tokens, size, tokens, 1.0f, dp, ld, q, 3 * dim, 0.0f, dk, 3 * dim);
        for (size_t t = 0; in_place && t < tokens; t++)
            memcpy(dq + t * 3 * dim, to + t * size, size * sizeof *to);
    }
}

void sd_attention_probabilities(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, size_t tokens, size_t dim, size_t heads,
                                size_t head, float *probabilities, float *work) {
    const size_t size = dim / heads, ld = sd_padded_row(tokens);
    const sd_factor keys = {.tb = true, .n = tokens, .k = size, .b = qkv + dim + head * size, .ldb = 3 * dim};
    probabilities_of(kernels, gemm, &keys, qkv + head * size, dim, tokens, work);
    for (size_t t = 0; t < tokens; t++)
        for (size_t u = 0; u < tokens; u++)
            probabilities[t * tokens + u] = work[t * ld + u];
}
