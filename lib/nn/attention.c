#include "math/math.h"
#include "nn/nn.h"

#include <math.h>

/* Rows of the T x T matrices are padded, so that the kernels need no remainder loops. */
size_t sd_attention_work(size_t tokens) { return 2 * tokens * sd_padded_row(tokens); }

/* Rows of P = softmax(scale Q K') from token `first` on; of padded T numbers. */
static void probabilities_of(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, size_t tokens, size_t dim, size_t heads,
                             size_t head, size_t first, size_t rows, float *p) {
    size_t size = dim / heads, ld = sd_padded_row(tokens);
    const float *q = qkv + head * size, *k = q + dim;
    float scale = 1.0f / sqrtf((float)size);
    sd_multiply(gemm, false, true, rows, tokens, size, scale, q + first * 3 * dim, 3 * dim, k, 3 * dim, 0.0f, p, ld);
    kernels->softmax(p, rows, tokens, ld);
}

static void forward_head(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, size_t tokens, size_t dim, size_t heads,
                         size_t head, size_t first, size_t rows, float *out, float *work) {
    size_t size = dim / heads, ld = sd_padded_row(tokens);
    probabilities_of(kernels, gemm, qkv, tokens, dim, heads, head, first, rows, work);
    const float *v = qkv + 2 * dim + head * size;
    sd_multiply(gemm, false, false, rows, size, tokens, 1.0f, work, ld, v, 3 * dim, 0.0f, out + head * size, dim);
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

/* dV = P' dO;  dP = dO V';  dS = scale P (dP - rowsum(P dP));  dQ = dS K;  dK = dS' Q. */
void sd_attention_backward(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, const float *dout, size_t tokens, size_t dim,
                           size_t heads, float *dqkv, float *work) {
    size_t size = dim / heads, ld = sd_padded_row(tokens);
    float scale = 1.0f / sqrtf((float)size);
    float *p = work, *dp = work + tokens * ld;
    for (size_t h = 0; h < heads; h++) {
        const float *q = qkv + h * size, *k = q + dim, *v = k + dim, *dout_head = dout + h * size;
        float *dq = dqkv + h * size, *dk = dq + dim, *dv = dk + dim;
        probabilities_of(kernels, gemm, qkv, tokens, dim, heads, h, 0, tokens, p);
        sd_multiply(gemm, true, false, tokens, size, tokens, 1.0f, p, ld, dout_head, dim, 0.0f, dv, 3 * dim);
        sd_multiply(gemm, false, true, tokens, tokens, size, 1.0f, dout_head, dim, v, 3 * dim, 0.0f, dp, ld);
        kernels->softmax_backward(p, dp, tokens, tokens, ld, scale);
        sd_multiply(gemm, false, false, tokens, size, tokens, 1.0f, dp, ld, k, 3 * dim, 0.0f, dq, 3 * dim);
        sd_multiply(gemm, true, false, tokens, size, tokens, 1.0f, dp, ld, q, 3 * dim, 0.0f, dk, 3 * dim);
    }
}

void sd_attention_probabilities(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, size_t tokens, size_t dim, size_t heads,
                                size_t head, float *probabilities, float *work) {
    probabilities_of(kernels, gemm, qkv, tokens, dim, heads, head, 0, tokens, work);
    for (size_t t = 0; t < tokens; t++)
        for (size_t u = 0; u < tokens; u++)
            probabilities[t * tokens + u] = work[t * sd_padded_row(tokens) + u];
}
