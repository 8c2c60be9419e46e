/* nn - layers, forward and backward side by side. Shapes: T tokens of one sequence, D width, H heads, P patches. */
#ifndef SD_NN_H
#define SD_NN_H

#include "base/base.h"
#include "math/kernels.h"

/* ---- products over many threads (products.c) ----------------------------------------------- */

/* C[m x n] = op(A) op(B) + beta C, cut into tiles that threads take. */
typedef struct sd_product sd_product;
struct sd_product {
    bool ta, tb;
    size_t m, n, k;
    const float *a;
    size_t lda;
    const float *b;
    size_t ldb;
    float beta;
    float *c;
    size_t ldc;
    size_t tile_m, tile_n; /* 0: SD_PRODUCT_TILE */
    /* Called after each tile, while it is in the cache, for rows [row, row + rows) and columns [column, ...); may be
     * NULL. */
    void (*finish)(const sd_product *product, size_t row, size_t rows, size_t column, size_t columns);
    const void *finish_data;
};

#define SD_PRODUCT_TILE 384
#define SD_PRODUCTS_MAX 32

/* The three products of a linear layer, with W[out x in] as PyTorch stores it. */
/* Y[rows x out] = X[rows x in] W' */
sd_product sd_linear_forward(const float *x, size_t rows, size_t in, const float *weight, size_t out, float *y);
/* dX[rows x in] = dY[rows x out] W */
sd_product sd_linear_backward(const float *dy, size_t rows, size_t out, const float *weight, size_t in, float *dx);
/* dW[out x in] += dY' X */
sd_product sd_linear_weight(const float *dy, const float *x, size_t rows, size_t out, size_t in, float *dweight);

/* Runs all products, and extra(extra_data) as one more task if it is not NULL. The tiles do not depend on the number of
 * threads. */
sd_status sd_run_products(sd_context *context, const sd_product *products, size_t count, void (*extra)(void *),
                          void *extra_data);

/* ---- self-attention of one sequence (attention.c) ------------------------------------------ */

/* Floats of working space for sequences of T tokens. */
size_t sd_attention_work(size_t tokens);

/* qkv: T rows of 3D (query, key, value, each H heads of D/H); out: T rows of D, heads side by side.
 * out_h = softmax(Q_h K_h' / sqrt(D/H)) V_h. */
void sd_attention_forward(const sd_kernels *kernels, const float *qkv, size_t tokens, size_t dim, size_t heads,
                          float *out, float *work);
/* From qkv and dout, dqkv; the probabilities are computed again. */
void sd_attention_backward(const sd_kernels *kernels, const float *qkv, const float *dout, size_t tokens, size_t dim,
                           size_t heads, float *dqkv, float *work);
/* The probabilities of head h alone: T x T. work: sd_attention_work. */
void sd_attention_probabilities(const sd_kernels *kernels, const float *qkv, size_t tokens, size_t dim, size_t heads,
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
