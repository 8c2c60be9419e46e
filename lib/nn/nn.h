/* nn - layers, forward and backward side by side. Shapes: T tokens of one sequence, D width, H heads, P patches. */
#ifndef SD_NN_H
#define SD_NN_H

#include "base/base.h"
#include "math/kernels.h"
#include "math/products.h"

/* ---- self-attention of one sequence (attention.c) ------------------------------------------ */

/* Floats of working space for sequences of T tokens and heads of that size, a multiple of SD_ALIGNMENT bytes. */
size_t sd_attention_work(const sd_gemm *gemm, size_t tokens, size_t size);

/* gemm: what the calling thread multiplies with.
 * qkv: T rows of 3D (query, key, value, each H heads of D/H); out: T rows of D, heads side by side.
 * out_h = softmax(Q_h K_h' / sqrt(D/H)) V_h. */
void sd_attention_forward(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, size_t tokens, size_t dim, size_t heads,
                          float *out, float *work);
/* The rows of out of the tokens first .. first+rows-1 alone, which out begins with; qkv: of all tokens. */
void sd_attention_forward_rows(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, size_t tokens, size_t dim,
                               size_t heads, size_t first, size_t rows, float *out, float *work);
/* Head `head` alone, into its columns of out. */
void sd_attention_forward_head(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, size_t tokens, size_t dim,
                               size_t heads, size_t head, float *out, float *work);
/* From qkv and dout, dqkv, which may be qkv itself; the probabilities are computed again, and where out is not NULL what
 * sd_attention_forward gave. */
void sd_attention_backward(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, const float *dout, size_t tokens, size_t dim,
                           size_t heads, float *dqkv, float *out, float *work);
/* The probabilities of head h alone: T x T. work: sd_attention_work. */
void sd_attention_probabilities(const sd_kernels *kernels, const sd_gemm *gemm, const float *qkv, size_t tokens, size_t dim, size_t heads,
                                size_t head, float *probabilities, float *work);

/* ---- patches (patch.c) --------------------------------------------------------------------- */

/* image: channels x height x width. rows: one row of channels*patch*patch values per patch, row-major over the grid;
 * the order within a row is that of a convolution kernel [channel][y][x]. */
void sd_patches_gather(const float *image, size_t channels, size_t height, size_t width, size_t patch, float *rows);
void sd_patches_scatter(const float *rows, size_t channels, size_t height, size_t width, size_t patch, float *image);

/* ---- position embedding (position.c) ------------------------------------------------------- */

typedef struct sd_position_map {
    double offset;  /* PyTorch's interpolate(scale_factor = (size + offset)/native); 0: by the ratio of the sizes */
    bool antialias;
} sd_position_map;

/* embedding: (1 + native*native) x dim, as learned. out: (1 + rows*columns) x dim, bicubic. A grid of the native shape is
 * copied. */
void sd_position_forward(const float *embedding, size_t native, size_t dim, size_t rows, size_t columns,
                         const sd_position_map *map, float *out);
/* dembedding += the transposed map of dout. */
void sd_position_backward(const float *dout, size_t native, size_t dim, size_t rows, size_t columns,
                          const sd_position_map *map, float *dembedding);

/* ---- rows of length 1 (unit_rows.c) -------------------------------------------------------- */

/* y = x / max(|x|, 1e-12) by row; lengths receives that denominator. */
void sd_unit_rows_forward(const float *x, size_t rows, size_t n, float *y, float *lengths);
/* dx = (dy - y <y, dy>) / length. */
void sd_unit_rows_backward(const float *dy, const float *y, const float *lengths, size_t rows, size_t n, float *dx);

#endif
