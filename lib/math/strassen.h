/* strassen - products of floats by Strassen's formulas: with all matrices in quadrants
 *
 *     C11 C12   A11 A12   B11 B12
 *     C21 C22 = A21 A22 . B21 B22
 *
 * seven products of sums of quadrants give what eight products of quadrants do, in seven eighths of the time less that of the
 * sums; once, not recursively. Every number of C is a different sum then: its error is bounded by the largest numbers of both
 * factors (about twice that of the usual sum, for numbers of one size) rather than by those of its own row and column (Higham,
 * Accuracy and Stability of Numerical Algorithms, 23.2.2), and an infinity or NaN reaches other rows. No allocation. */
#ifndef SD_STRASSEN_H
#define SD_STRASSEN_H

#include "base/base.h"

/* Whether a right factor of k x n can be packed, and is large enough to gain; and C[m x n] += A' B, where A has k rows. */
static inline bool sd_strassen_fits(size_t n, size_t k) { return n % 64 == 0 && k % 32 == 0 && n >= 128 && k >= 128; }
static inline bool sd_strassen_fits_gradient(size_t m, size_t n, size_t k) {
    return m % 32 == 0 && n % 64 == 0 && m >= 128 && n >= 128 && k >= 256;
}

/* Packs the sums of quadrants of op(B), k x n, of which sd_strassen_fits: of `panels` panels from first_panel on, those of
 * columns [32 panel, 32 panel + 32) of each half. Memory: sd_strassen_bytes, SD_ALIGNMENT-aligned. */
typedef void sd_strassen_pack(bool tb, size_t n, size_t k, const float *b, size_t ldb, size_t first_panel, size_t panels,
                              float *packed);
static inline size_t sd_strassen_bytes(size_t n, size_t k) { return 7 * (n / 2) * (k / 2) * sizeof(float); }
/* C[m x n] = A op(B). The halves of A are its first and last rows; one that is missing counts as zeros. scratch:
 * SD_PACKED_SCRATCH bytes, SD_ALIGNMENT-aligned. */
typedef void sd_strassen_multiply(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *packed, float *c,
                                  size_t ldc, void *scratch);
/* C[m x n] = A' B + beta C, beta 0 or 1: rows [row, row + rows) and columns [column, column + columns) of all four quadrants,
 * multiples of 16 and 32; at most SD_STRASSEN_ROWS rows. The sums do not depend on how quadrants are cut. */
#define SD_STRASSEN_ROWS ((size_t)384)
typedef void sd_strassen_gradient(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb,
                                  float beta, float *c, size_t ldc, size_t row, size_t rows, size_t column, size_t columns,
                                  void *scratch);

typedef struct sd_strassen {
    sd_strassen_pack *pack;
    sd_strassen_multiply *multiply;
    sd_strassen_gradient *gradient;
} sd_strassen;

#if defined(SD_HAVE_FMA_KERNELS) /* for CPUs of SD_CPU_AVX512 */
extern const sd_strassen sd_strassen_avx512;
#endif

#endif
