/* math - matrix products, factorisations and vector kernels. The GEMM façade is the only place that knows which BLAS
 * runs. */
#ifndef SD_MATH_H
#define SD_MATH_H

#include "base/base.h"

/* ---- products (gemm.c). All row-major; sizes fit into int (checked where objects are created, SD_BLAS_MAX)
 * ------------- */

#define SD_BLAS_MAX ((size_t)INT32_MAX)

/* C[m x n] = alpha op(A) op(B) + beta C; op(A) is m x k, op(B) is k x n; transposed when ta / tb.
 * beta = 0 does not read C. One thread (when the BLAS is set to one). */
void sd_sgemm(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda, const float *b,
              size_t ldb, float beta, float *c, size_t ldc);
void sd_dgemm(bool ta, bool tb, size_t m, size_t n, size_t k, double alpha, const double *a, size_t lda,
              const double *b, size_t ldb, double beta, double *c, size_t ldc);
/* What computes them (in float): "onednn" where the library was built with it, "blas", or the instruction set of the own
 * products, where those are used. */
const char *sd_gemm_name(void);

/* ---- products of floats in a precision ------------------------------------------------------ */

/* What a library that multiplies can do while it stores C: out = residual + factor * act(C + bias). Matrices have rows as far
 * apart as C's. */
typedef struct sd_epilogue {
    const float *bias;     /* of each column; NULL: there is none, and nothing of this is to be done */
    const float *gelu;     /* C itself: act is GELU; NULL: nothing. Another matrix, which is to receive it: not for a library */
    const float *factor;   /* of each column; NULL: 1 */
    const float *residual; /* NULL: 0; not `out` */
    float *out;            /* NULL: C itself; else C is undefined afterwards */
} sd_epilogue;

/* What follows a product while its numbers are in a near cache: called for parts of C that are final, each once; c: that of
 * (row, column). Parts of the same columns come in the order of their rows, from one thread unless tiles of rows are shared. */
typedef struct sd_finish {
    void (*function)(const void *data, float *c, size_t ldc, size_t row, size_t rows, size_t column, size_t columns);
    const void *data;
    sd_epilogue same; /* by which a library may do it in place of the function */
} sd_finish;

/* How one thread multiplies: as sd_sgemm, or the same with factors rounded to bf16 (sd_precision). It is settled when it is
 * made: make it once for an object, after sd_precision_check. */
typedef struct sd_gemm sd_gemm;
struct sd_gemm {
    void (*multiply)(const sd_gemm *gemm, bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a,
                     size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc);
    void *scratch;
    const char *name; /* of what multiplies; of sd_gemm_fp32 "sgemm", whatever sd_gemm_name() says */
    const struct sd_packed *packed;     /* the products of packed.h that multiply; NULL: others do */
    const struct sd_strassen *strassen; /* those of strassen.h for large ones (sd_gemm_take_strassen); NULL: not */
    /* sd_multiply_finish where something can do both at once; NULL: one after the other */
    void (*finish)(const sd_gemm *gemm, bool ta, bool tb, size_t m, size_t n, size_t k, const float *a, size_t lda,
                   const float *b, size_t ldb, float *c, size_t ldc, size_t row, size_t column,
                   const sd_finish *finish);
    bool finishes_gelu; /* GELU too */
};
/* scratch: sd_gemm_scratch(precision) bytes for this thread alone, SD_ALIGNMENT-aligned; NULL where that is 0. */
sd_gemm sd_gemm_of(int32_t precision, void *scratch);
size_t sd_gemm_scratch(int32_t precision);
/* Lets large products of packed factors, and gradients of weights, be computed by Strassen's formulas where there is a way. */
void sd_gemm_take_strassen(sd_gemm *gemm);
/* Rows that a chain of products best takes at once: with fewer the right factors come too often, with more what is in between
 * leaves the cache. */
size_t sd_gemm_rows(const sd_gemm *gemm);
/* In fp32, by sd_sgemm. */
extern const sd_gemm sd_gemm_fp32;

/* As sd_sgemm. */
static inline void sd_multiply(const sd_gemm *gemm, bool ta, bool tb, size_t m, size_t n, size_t k, float alpha,
                               const float *a, size_t lda, const float *b, size_t ldb, float beta, float *c,
                               size_t ldc) {
    gemm->multiply(gemm, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

/* C = op(A) op(B), m x n, for the rows and columns from (row, column) on of a larger product, with which c begins, and what
 * follows. */
void sd_multiply_finish(const sd_gemm *gemm, bool ta, bool tb, size_t m, size_t n, size_t k, const float *a, size_t lda,
                        const float *b, size_t ldb, float *c, size_t ldc, size_t row, size_t column,
                        const sd_finish *finish);

/* Whether it multiplies numbers that lie in memory as bfloat16: where factors are rounded to them anyway, keeping them so takes
 * half of the memory and gives the same products. */
bool sd_gemm_reads_bf16(const sd_gemm *gemm);
/* Only where sd_gemm_reads_bf16: numbers as its products round them, and exactly back. */
void sd_bf16_round(const sd_gemm *gemm, const float *x, size_t count, uint16_t *y);
void sd_bf16_widen(const sd_gemm *gemm, const uint16_t *x, size_t count, float *y);
/* C = A' B + beta C, m x n, with A k x m and B k x n of such numbers. */
void sd_multiply_bf16(const sd_gemm *gemm, size_t m, size_t n, size_t k, const uint16_t *a, size_t lda, const uint16_t *b,
                      size_t ldb, float beta, float *c, size_t ldc);

/* The right factor op(B), k x n, of products that differ in their left one: packed once for all of them where the way to
 * multiply has use for that. */
typedef struct sd_factor {
    bool tb;
    size_t n, k;
    const float *b;
    size_t ldb;
    void *packed; /* sd_factor_bytes, SD_ALIGNMENT-aligned; NULL: not packed */
    bool strassen; /* packed for Strassen's formulas (sd_factor_take_strassen) */
} sd_factor;
/* Memory for the packed form, whichever; 0 where there is none. */
size_t sd_factor_bytes(const sd_gemm *gemm, size_t n, size_t k);
/* Before it is packed: the products will be Strassen's where gemm and the factor's size allow. */
void sd_factor_take_strassen(const sd_gemm *gemm, sd_factor *factor);
/* Packs `count` columns from first_column on, multiples of 2 SD_FACTOR_COLUMNS but for the last; into memory that it does not
 * share with other columns. */
#define SD_FACTOR_COLUMNS 32
void sd_factor_pack(const sd_gemm *gemm, const sd_factor *factor, size_t first_column, size_t count);
/* C[m x columns] = A op(B) for the columns of B from first_column on, a multiple of SD_FACTOR_COLUMNS; for all of them where
 * they are packed for Strassen's formulas. Else the same to the last bit whether the factor is packed or not. finish: NULL or
 * what follows, with columns counted from c. */
void sd_multiply_factor(const sd_gemm *gemm, size_t m, const float *a, size_t lda, const sd_factor *factor,
                        size_t first_column, size_t columns, float *c, size_t ldc, const sd_finish *finish);
/* All columns, and rows without gaps. */
static inline void sd_multiply_rows(const sd_gemm *gemm, size_t rows, const float *a, const sd_factor *factor, float *c,
                                    const sd_finish *finish) {
    sd_multiply_factor(gemm, rows, a, factor->k, factor, 0, factor->n, c, factor->n, finish);
}

/* ---- factorisations (lapack.c) ------------------------------------------------------------- */

/* Cholesky A = L L' in place on the lower triangle of a row-major matrix (the upper one is not read or written).
 * Returns 0, or the 1-based pivot that is not positive. No allocation. */
size_t sd_dpotrf_lower(size_t n, double *a, size_t lda);
/* From that factor, the inverse of A: its lower triangle in place. Returns 0, or a 1-based zero pivot. */
size_t sd_dpotri_lower(size_t n, double *a, size_t lda);
/* The `count` largest eigenvalues, largest first, and their eigenvectors (count rows of n, of length 1) of the symmetric
 * matrix whose lower triangle is given; the matrix is destroyed. Errors: SD_ERR_MEMORY, SD_ERR_NUMERIC. */
sd_status sd_dsyev_largest(sd_context *context, size_t n, double *a, size_t lda, size_t count, double *values,
                           double *vectors);

#endif
