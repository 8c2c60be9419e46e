/* dense - matrix products, factorisation and inverse of our own, for the shapes of the coding rate: a few hundred rows
 * and columns, where a BLAS spends much of its time on packing and calls, and where some BLAS run kernels far below the
 * CPU (see sd_blas_advice). No allocation. */
#ifndef SD_DENSE_H
#define SD_DENSE_H

#include "base/base.h"

/* What a product may take into account, or not: flags. */
typedef enum sd_dense_part {
    SD_DENSE_ALL = 0,
    SD_DENSE_UPPER = 1,       /* only C(i, j) with i <= j + m - n is needed: what lies below may be written or not */
    SD_DENSE_LEFT_LOWER = 2,  /* A is not transposed, and A(i, l) = 0 where k - l < m - i: its last m columns are lower
                                 triangular */
    SD_DENSE_RIGHT_LOWER = 4  /* B is not transposed, and B(l, j) = 0 where l < j */
} sd_dense_part;

/* Rows of a block on the diagonal that is eliminated as a whole, and of the panels that threads share. */
#define SD_DENSE_BLOCK ((size_t)64)
#define SD_DENSE_PANEL (2 * SD_DENSE_BLOCK)

/* Working memory of a product with an inner dimension of up to k and a result of n columns, in bytes. With less than
 * that the product goes by fewer columns at a time; never less than sd_dense_scratch(k, 1). */
size_t sd_dense_scratch(size_t k, size_t n);
/* With this many the largest products of floats are faster where the CPU has AMX. */
size_t sd_dense_scratch_at_best(size_t k, size_t n);

typedef struct sd_dense {
    const char *name; /* "avx512", "avx2", or "blas" where there are no kernels for the CPU */
    /* C = alpha op(A) op(B) + beta C, row-major, as sd_sgemm and sd_dgemm. beta = 0 does not read C. One thread.
     * scratch: SD_ALIGNMENT-aligned, scratch_bytes of it. */
    void (*sgemm)(bool ta, bool tb, sd_dense_part part, size_t m, size_t n, size_t k, float alpha, const float *a,
                  size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc, void *scratch,
                  size_t scratch_bytes);
    void (*dgemm)(bool ta, bool tb, sd_dense_part part, size_t m, size_t n, size_t k, double alpha, const double *a,
                  size_t lda, const double *b, size_t ldb, double beta, double *c, size_t ldc, void *scratch,
                  size_t scratch_bytes);
    /* A = U'U for n <= SD_DENSE_PANEL rows, from A's upper triangle. Leaves V = (U')^-1 below the diagonal of each
     * SD_DENSE_BLOCK, zeros above it there, and U elsewhere; U's diagonal goes to `pivots`. 0, or the 1-based pivot
     * that is not positive. One thread; scratch as above, for k = n = SD_DENSE_PANEL. */
    size_t (*sfactor)(size_t n, float *a, size_t lda, double *pivots, void *scratch, size_t scratch_bytes);
    size_t (*dfactor)(size_t n, double *a, size_t lda, double *pivots, void *scratch, size_t scratch_bytes);
} sd_dense;

/* The best for this CPU: the same choice as that of the vector kernels. Reads the environment, so ask once for an
 * object. */
const sd_dense *sd_dense_get(void);

/* ---- passes over rows (dense_passes.c) ----------------------------------------------------- */

/* Sum of the squares of rows x columns numbers. */
double sd_dense_squares_f32(size_t rows, size_t columns, const float *x, size_t ld);
double sd_dense_squares_f64(size_t rows, size_t columns, const double *x, size_t ld);
/* to(j, i) = from(i, j) */
void sd_dense_transpose_f32(size_t rows, size_t columns, const float *from, size_t ld, float *to, size_t ldt);
void sd_dense_transpose_f64(size_t rows, size_t columns, const double *from, size_t ld, double *to, size_t ldt);

/* Sum of upper triangles (n x n, distance n), rows first .. end-1: of `parts` of float, one after the other, and of
 * what `sum` holds unless `begin` is set. It goes to `sum`, if that is not NULL, and as I + factor * sum to `out`
 * (distance ldo) if that is not NULL; `out` may be the first part where ldo is n. Returns the sum's trace and the
 * squares of its symmetric matrix. */
typedef struct sd_dense_norms {
    double trace, squares;
} sd_dense_norms;
sd_dense_norms sd_dense_add_triangles(size_t n, size_t first, size_t end, size_t parts, const float *from, double *sum,
                                      bool begin, double factor, float *out, size_t ldo);

/* ---- inverse (dense_invert.c) -------------------------------------------------------------- */

/* What an inverse works with. */
typedef struct sd_dense_room {
    sd_context *context; /* panels are shared among its threads; NULL: this thread alone */
    char *scratch; /* scratch_bytes, of at least sd_dense_scratch(SD_DENSE_PANEL, SD_DENSE_PANEL), for each thread */
    size_t scratch_bytes;
} sd_dense_room;

/* A distance of rows of at least n numbers of `item` bytes, such that the lines of a column spread over the cache. */
size_t sd_dense_distance(size_t n, size_t item);

/* The pivots U_ii of A = U'U, A symmetric and given by its upper triangle (n x n, distance lda: best
 * sd_dense_distance), and, where `inverse` is not NULL, all of A^-1 (n x n, distance n). `a` is overwritten. `squares`
 * (n elements, used with an inverse) receives numbers whose sum is |A^-1|_F^2, and zeros. Returns 0, the 1-based pivot
 * that is not positive, or SD_DENSE_NO_THREADS when the host's runner fails. The result does not depend on the number
 * of threads. */
#define SD_DENSE_NO_THREADS SIZE_MAX
size_t sd_dense_invert_f32(const sd_dense *dense, const sd_dense_room *room, size_t n, float *a, size_t lda,
                           float *inverse, double *pivots, double *squares);
size_t sd_dense_invert_f64(const sd_dense *dense, const sd_dense_room *room, size_t n, double *a, size_t lda,
                           double *inverse, double *pivots, double *squares);

#endif
