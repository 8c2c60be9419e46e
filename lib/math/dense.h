/* dense - matrix products of our own, for the shapes of the coding rate: a few hundred rows and columns, where a BLAS
 * spends much of its time on packing and calls, and where some BLAS run kernels far below the CPU (see sd_blas_advice).
 * One thread, no allocation. */
#ifndef SD_DENSE_H
#define SD_DENSE_H

#include "base/base.h"

typedef enum sd_dense_part {
    SD_DENSE_ALL,
    SD_DENSE_UPPER /* only C(i, j) with i <= j is needed: what lies below may be written or not */
} sd_dense_part;

/* Working memory of a product with an inner dimension of up to k and a result of n columns, in bytes. With less than
 * that the product goes by fewer columns at a time; never less than sd_dense_scratch(k, 1). */
size_t sd_dense_scratch(size_t k, size_t n);

/* C = alpha op(A) op(B) + beta C, row-major, as sd_sgemm and sd_dgemm. beta = 0 does not read C.
 * scratch: SD_ALIGNMENT-aligned, scratch_bytes of it. */
typedef struct sd_dense {
    const char *name; /* "avx512", "avx2", or "blas" where there are no kernels for the CPU */
    void (*sgemm)(bool ta, bool tb, sd_dense_part part, size_t m, size_t n, size_t k, float alpha, const float *a,
                  size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc, void *scratch,
                  size_t scratch_bytes);
    void (*dgemm)(bool ta, bool tb, sd_dense_part part, size_t m, size_t n, size_t k, double alpha, const double *a,
                  size_t lda, const double *b, size_t ldb, double beta, double *c, size_t ldc, void *scratch,
                  size_t scratch_bytes);
} sd_dense;

/* The best for this CPU: the same choice as that of the vector kernels. Reads the environment, so ask once for an
 * object. */
const sd_dense *sd_dense_get(void);

/* w_p = A v_p for `count` vectors of n, one after the other in v and w; A (n x n, distance n) is symmetric. */
void sd_dense_symmetric_times(size_t n, const float *a, size_t count, const float *v, float *w);

/* Cholesky A = U'U, U upper, in place on the upper triangle of a (n x n, row-major). Returns 0, or the 1-based pivot
 * that is not positive. The diagonal blocks of `inverse` (n x n, distance n) receive the transposed inverses of U's
 * diagonal blocks, for sd_dense_invert. */
size_t sd_dense_cholesky(const sd_dense *dense, size_t n, double *a, size_t lda, double *inverse, void *scratch,
                         size_t scratch_bytes);
/* From both: the inverse of A into the upper triangle of a. `inverse` is overwritten by (U^-1)'. Columns of blocks are shared
 * among the context's threads (NULL: none); scratch holds scratch_bytes for each of them, one after the other. */
void sd_dense_invert(const sd_dense *dense, sd_context *context, size_t n, double *a, size_t lda, double *inverse,
                     void *scratch, size_t scratch_bytes);

#endif
