/* products - matrix products cut into tiles that many threads take, and the three products of a linear layer. */
#ifndef SD_PRODUCTS_H
#define SD_PRODUCTS_H

#include "base/base.h"
#include "math/math.h"

/* C[m x n] = op(A) op(B) + beta C, cut into tiles that threads take. */
typedef struct sd_product sd_product;
struct sd_product {
    bool ta, tb;
    bool bf16; /* A and B are bfloat16 in memory, which gemms must read: then ta, not tb, no copies and no finish */
    size_t m, n, k;
    const void *a;
    size_t lda;
    const void *b;
    size_t ldb;
    float beta;
    float *c;
    size_t ldc;
    size_t tile_m, tile_n; /* 0: as sd_run_products finds best */
    bool strassen;         /* by Strassen's formulas where gemms and sizes allow */
    size_t copies;         /* of the same shape, whose factors and result lie next_... floats apart; 0: one */
    size_t next_a, next_b, next_c;
    sd_finish finish; /* of each tile; its function may be NULL, and is with copies and where beta is not 0 */
};

#define SD_PRODUCTS_MAX 32

/* The three products of a linear layer, with W[out x in] as PyTorch stores it. */
/* Y[rows x out] = X[rows x in] W' */
sd_product sd_linear_forward(const float *x, size_t rows, size_t in, const float *weight, size_t out, float *y);
/* dX[rows x in] = dY[rows x out] W */
sd_product sd_linear_backward(const float *dy, size_t rows, size_t out, const float *weight, size_t in, float *dx);
/* dW[out x in] += dY' X */
sd_product sd_linear_weight(const float *dy, const float *x, size_t rows, size_t out, size_t in, float *dweight);
/* The same of bfloat16; rows of x are x_step apart. */
sd_product sd_linear_weight_bf16(const uint16_t *dy, const uint16_t *x, size_t x_step, size_t rows, size_t out, size_t in,
                                 float *dweight);

/* Runs all products, and extra(extra_data) as one more task if it is not NULL. gemms: what each thread multiplies with;
 * NULL: in fp32. The results do not depend on the number of threads: tiles do only where they are the same however products
 * are cut. */
sd_status sd_run_products(sd_context *context, const sd_gemm *gemms, const sd_product *products, size_t count,
                          void (*extra)(void *), void *extra_data);

#endif
