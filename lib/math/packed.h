/* packed - matrix products of our own that pack both factors, in float or rounded to bfloat16; sums are floats. All
 * matrices are float in memory. No allocation. */
#ifndef SD_PACKED_H
#define SD_PACKED_H

#include "base/base.h"
#include "base/system.h"
#include "math/math.h"

/* sd_gemm_rows; fewer where products are fast and the cache small beside them: in bf16, and by AMX. */
#define SD_PACKED_ROWS ((size_t)400)
#define SD_PACKED_ROWS_FAST ((size_t)200)
#define SD_PACKED_SCRATCH ((size_t)448 * 1024) /* of all ways but */
#define SD_TILES_SCRATCH ((size_t)1664 * 1024) /* those by AMX */

/* C = alpha op(A) op(B) + beta C as sd_sgemm, k > 0. One thread; scratch: as the way wants it, SD_ALIGNMENT-aligned.
 * The result does not depend on how C is cut into products of multiples of 16 rows and columns.
 *
 * In bf16 each factor becomes the nearest bfloat16, ties to even; subnormal numbers become 0, too large ones infinity, NaN
 * stays NaN. */
typedef void sd_packed_product(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                               const float *b, size_t ldb, float beta, float *c, size_t ldc, void *scratch);

/* A right factor op(B), k x n, that is packed once for many products: in panels of SD_PACKED_COLUMNS columns, of which
 * `pack` writes some, so that threads can share the work. Memory: sd_packed_bytes, SD_ALIGNMENT-aligned. */
#define SD_PACKED_COLUMNS ((size_t)32)
typedef void sd_packed_pack(bool tb, size_t n, size_t k, const float *b, size_t ldb, size_t first_panel, size_t panels,
                            void *packed);
/* C = A op(B) for `columns` columns of B from first_column on, a multiple of SD_PACKED_COLUMNS; c is that of the first one.
 * To the last bit what sd_packed_product gives; finish may be NULL. */
typedef void sd_packed_multiply(size_t m, size_t n, size_t k, const float *a, size_t lda, const void *packed,
                                size_t first_column, size_t columns, float *c, size_t ldc, const sd_finish *finish,
                                void *scratch);
/* C = A' B + beta C, m x n, with A k x m and B k x n of bfloat16 in memory, k > 0: a gradient of weights, whose factors are
 * read once more for each tile. To the last bit what sd_packed_product gives for the same numbers as floats. */
typedef void sd_packed_gradient(size_t m, size_t n, size_t k, const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb,
                                float beta, float *c, size_t ldc, void *scratch);
/* What a way that rounds does with numbers that lie in memory as bfloat16. */
typedef struct sd_packed_rounded {
    sd_packed_gradient *gradient;
    void (*round)(const float *x, size_t count, uint16_t *y); /* as the products round */
    void (*widen)(const uint16_t *x, size_t count, float *y); /* exactly */
} sd_packed_rounded;
/* Columns that are finished at once, of some hundred rows: they are still in the second cache. */
#define SD_FINISHED_COLUMNS (2 * SD_PACKED_COLUMNS)

/* After the panel from column j on of some rows: when it was the last one of SD_FINISHED_COLUMNS, or of all. */
static inline void sd_finish_panel(const sd_finish *finish, float *c, size_t ldc, size_t row, size_t rows, size_t j,
                                   size_t columns) {
    const size_t done = sd_size_min(j + SD_PACKED_COLUMNS, columns), first = j / SD_FINISHED_COLUMNS * SD_FINISHED_COLUMNS;
    if (done == columns || done % SD_FINISHED_COLUMNS == 0)
        finish->function(finish->data, c + row * ldc + first, ldc, row, rows, first, done - first);
}

/* A way to multiply. */
typedef struct sd_packed {
    sd_packed_product *product;
    sd_packed_pack *pack; /* NULL: nothing can be packed beforehand */
    sd_packed_multiply *multiply;
    const sd_packed_rounded *rounded; /* NULL: only floats are read */
    size_t step, step_bytes; /* so many numbers along the inner dimension are packed together, into so many bytes */
    size_t scratch;          /* bytes of working memory */
    size_t rows;             /* see sd_gemm_rows */
} sd_packed;

static inline size_t sd_packed_bytes(const sd_packed *packed, size_t n, size_t k) {
    return sd_size_ceil(n, SD_PACKED_COLUMNS) * SD_PACKED_COLUMNS * sd_size_ceil(k, packed->step) * packed->step_bytes;
}

#if defined(SD_HAVE_FMA_KERNELS)
extern const sd_packed sd_packed_float;      /* for CPUs of SD_CPU_AVX512 */
extern const sd_packed sd_packed_float_avx2; /* for CPUs of SD_CPU_AVX2 and better */
#endif
#if defined(SD_HAVE_PACKED_KERNELS) /* for CPUs of which sd_cpu_has_bf16() */
extern const sd_packed sd_packed_bf16_dot; /* by VDPBF16PS */
extern const sd_packed sd_packed_bf16_fma; /* by FMA in float */
void sd_packed_round(const float *x, size_t count, uint16_t *y);
void sd_packed_widen(const uint16_t *x, size_t count, float *y);
#endif
#if defined(SD_HAVE_TILE_KERNELS) /* for CPUs of which sd_cpu_has_tiles() */
extern const sd_packed sd_packed_float_tiles; /* by AMX, of three bfloat16 for each float */
extern const sd_packed sd_packed_bf16_tiles;  /* by AMX */
#endif
/* The same roundings on any CPU, and then products by sd_sgemm: for tests. */
extern const sd_packed sd_packed_bf16_emulated;

#endif
