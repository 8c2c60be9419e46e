/* Vector kernels: plain C loops over rows, compiled once per instruction set (kernels.c) and chosen at run time
 * (dispatch.c).
 *
 * Rows of n elements; `ld` is the distance of rows where it may differ from n. Outputs may not overlap inputs unless a
 * comment says "in place". */
#ifndef SD_KERNELS_H
#define SD_KERNELS_H

#include <stddef.h>

/* Rows that softmax works on are padded to this many floats. */
#define SD_ROW_PAD 16

/* Sums of floats over more than this are taken in pieces, which are added up in double. */
#define SD_LOGIT_PIECE 1024

/* Floats of a row of `count` with its padding. */
static inline size_t sd_padded_row(size_t count) { return (count + SD_ROW_PAD - 1) / SD_ROW_PAD * SD_ROW_PAD; }

typedef struct sd_kernels {
    const char *name;

    /* y = (x - mean)/sqrt(var + 1e-6) * weight + bias, by row. mean and rstd receive one number per row. */
    void (*layer_norm)(const float *x, size_t rows, size_t n, const float *weight, const float *bias, float *y,
                       float *mean, float *rstd);
    /* dx += the gradient through layer_norm; dweight += , dbias += sums over rows. y, if not NULL, receives
     * layer_norm's output again (it needs bias then) and may be x. */
    void (*layer_norm_backward)(const float *dy, const float *x, const float *mean, const float *rstd, size_t rows,
                                size_t n, const float *weight, const float *bias, float *dx, float *dweight,
                                float *dbias, float *y);
    /* h += bias, in place; g = gelu(h) = h Phi(h). g may be NULL (then only the bias is added), or h itself. */
    void (*bias_gelu)(float *h, size_t rows, size_t n, size_t ld, const float *bias, float *g, size_t ldg);
    /* From d = dL/dg: dh receives dL/dh and may be h or d; g receives gelu(h) again, may be NULL, or d if dh is not; dbias +=
     * sums of dL/dh. All four have the row distance ld. */
    void (*gelu_backward)(const float *h, const float *d, size_t rows, size_t n, size_t ld, float *dh, float *g,
                          float *dbias);
    /* y += bias, in place. */
    void (*add_bias)(float *y, size_t rows, size_t n, size_t ld, const float *bias);
    /* h = [a, b], rows of 2n: h += bias, in place; g[n] = silu(a) b, silu(a) = a / (1 + e^-a). g's row distance is n. */
    void (*bias_swiglu)(float *h, size_t rows, size_t n, const float *bias, float *g);
    /* From d = dL/dg (row distance ldd): dh receives dL/dh, rows of 2n, and may be h, or d if ldd is 2n; g receives
     * silu(a) b again (row distance n), may be NULL, or d if ldd is n; dbias += sums of dL/dh. */
    void (*swiglu_backward)(const float *h, const float *d, size_t ldd, size_t rows, size_t n, float *dh, float *g,
                            float *dbias);
    /* out = x + scale*gamma*(y + bias), gamma NULL: all 1 (LayerScale); out may be x. */
    void (*residual)(float *out, const float *x, const float *y, size_t rows, size_t n, const float *bias,
                     const float *gamma, float scale);
    /* out = scale * x over count elements. */
    void (*scaled_copy)(float *out, const float *x, size_t count, float scale);
    /* sum += column sums of y. */
    void (*column_sum)(const float *y, size_t rows, size_t n, size_t ld, float *sum);
    /* Softmax of `scale` times the first n of each row, in place, scale > 0; elements n .. ld-1 are overwritten. ld is a multiple
     * of SD_ROW_PAD. */
    void (*softmax)(float *s, size_t rows, size_t n, size_t ld, float scale);
    /* dp <- scale * p (dp - <p, dp>) by row, in place. ld as above; elements from n on of both are ignored. */
    void (*softmax_backward)(const float *p, float *dp, size_t rows, size_t n, size_t ld, float scale);
    /* squares[i] = |x_i|^2. */
    void (*row_squares)(const float *x, size_t rows, size_t n, double *squares);

    /* Softmax and cross-entropy of rows too long for one visit, in pieces of at most SD_LOGIT_PIECE: a piece knows its
     * largest logit and the sum of exponentials less that, from which the caller finds those of the row. x holds
     * products that are not logits yet: factor[j] is to be multiplied into column j. */
    /* x *= factor. Returns 0, or NaN when a logit is not finite. */
    float (*scale_logits)(float *x, const float *factor, size_t n);
    /* l = factor x - inverse_temperature center; x <- e^(l - largest). */
    void (*softmax_piece)(float *x, const float *factor, const float *center, float inverse_temperature, size_t n,
                          float *largest, float *sum);
    /* l = factor x, which is left as it is; dot = sum_j T_j l_j with the targets T = q0 + q1 (q1 NULL: q0 alone). */
    void (*entropy_piece)(const float *x, const float *factor, const float *q0, const float *q1, size_t n,
                          float *largest, float *sum, float *dot);
    /* dl = share e^(factor x - largest) - weight T; along += dl x; x <- dl factor. */
    void (*entropy_slope)(float *x, const float *factor, const float *q0, const float *q1, size_t n, float largest,
                          float share, float weight, float *along);
    /* For tests: exp and the normal distribution function as the kernels compute them. */
    void (*exp)(const float *x, float *y, size_t count);
} sd_kernels;

/* The best set for this CPU. */
const sd_kernels *sd_kernels_get(void);

extern const sd_kernels sd_kernels_generic;
#if defined(__x86_64__) && defined(__GNUC__)
#define SD_HAVE_X86_KERNELS 1
extern const sd_kernels sd_kernels_avx2;
extern const sd_kernels sd_kernels_avx512;
#endif

#endif
