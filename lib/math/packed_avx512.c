/* Products whose factors are packed, with AVX-512, in one of three ways:
 *   floats         FMA, nothing is rounded
 *   bf16, pairs    VDPBF16PS: each of 16 sums of floats gains a_0 b_0 + a_1 b_1, two neighbours along the inner dimension
 *   bf16, floats   products of two bfloat16 are exact in float, so that FMA of the rounded factors as floats does the
 *                  same work as pairs; twice as fast as VDPBF16PS where the CPU takes several cycles for one (Intel's),
 *                  half as fast where it does not (AMD's)
 *
 * Packed factors are units of 32 bits: a pair or a float. With `units` of a slice of the inner dimension:
 *   B        panels of 32 columns, each [units][32]
 *   A        rows of units, `stride` apart: floats as they lie in memory, bfloat16 packed. Where op(A) is transposed,
 *            panels of 16 rows, each [units][16], as they come out of memory
 * A slice of A stays in the second cache while B comes by panel by panel, each of which is read by all rows of the slice:
 * each factor is packed once, as long as the rows fit. What is needed next is fetched meanwhile, for these products are
 * parts of something larger and find little of their factors in a cache.
 *
 * A B that was packed beforehand holds slice after slice, of each all panels. */
#include "math/packed.h"

#if defined(SD_HAVE_PACKED_KERNELS)

#include "math/packed_avx512.h"

#include <string.h>

/* Of a slice, at most. Long ones read and write C less often; short ones, where A is transposed (gradients of weights: C has
 * as many rows as A's slice), leave room for more rows, so that B is packed less often. */
#define UNITS ((size_t)384)
#define UNITS_TRANSPOSED ((size_t)128)
#define A_BYTES ((size_t)384 * 1024)
#define B_BYTES (SD_PACKED_SCRATCH - A_BYTES)
#define UNIT_BYTES sizeof(unit)

typedef enum factors { FLOATS, BF16_FLOATS, BF16_PAIRS } factors;

/* Neighbours along the inner dimension in a unit. */
static inline size_t per_unit(factors kind) { return kind == BF16_PAIRS ? 2 : 1; }

_Static_assert(UNITS * UNIT_BYTES * COLUMNS <= B_BYTES && UNITS * UNIT_BYTES * 16 <= A_BYTES,
               "a panel of each fits into the scratch");

/* ---- one tile ------------------------------------------------------------------------------ */

/* C = alpha A B + beta C for up to 8 x 32 numbers. Unit u of row r of A is at a[r*stride + u*step]. */
typedef void tile_function(size_t units, const unit *a, size_t stride, size_t step, const unit *b, float alpha, float beta,
                           float *c, size_t ldc, size_t rows, size_t columns);
/* The same with rows of A whose units are neighbours, and alpha = 1. B comes out of memory, as a part of something large that is
 * passed once: `next` is fetched meanwhile, next_step bytes for every UNITS_OF_FETCH units. Fetched at once, many lines would
 * hold up the loads of the sums. */
#define UNITS_OF_FETCH 4 /* the tiles count them out */
typedef void stream_function(size_t units, const unit *a, size_t stride, const unit *b, float beta, float *c, size_t ldc,
                             size_t rows, size_t columns, const char *next, size_t next_step);

#define WAY_NAME pairs
#define FACTORS __m512bh
#define FACTOR(x) ((__m512bh)(x))
#define ADD_PRODUCT(sum, x, y) _mm512_dpbf16_ps(sum, x, y)
#include "math/packed_tiles.h"

#define WAY_NAME floats
#define FACTORS __m512
#define FACTOR(x) _mm512_castsi512_ps(x)
#define ADD_PRODUCT(sum, x, y) _mm512_fmadd_ps(x, y, sum)
#include "math/packed_tiles.h"

/* ---- packing ------------------------------------------------------------------------------- */

/* 16 floats as units of a float each. */
TARGET static inline __m512i units_of_floats(factors kind, __m512 x) {
    if (kind == FLOATS)
        return _mm512_castps_si512(x);
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16);
}

/* 32 floats of a row, of which `left` exist, as 16 pairs. */
TARGET static inline __m512i pairs_of_row(const float *p, size_t left) {
    if (left >= 32)
        return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(p + 16), _mm512_loadu_ps(p));
    const __m512 low = _mm512_maskz_loadu_ps(first_of(left), p);
    const __m512 high = left > 16 ? _mm512_maskz_loadu_ps(first_of(left - 16), p + 16) : _mm512_setzero_ps();
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* 16 units of a row of k floats, from unit u on. */
TARGET static inline __m512i units_of_row(factors kind, const float *row, size_t u, size_t k) {
    return kind == BF16_PAIRS ? pairs_of_row(row + 2 * u, k - 2 * u)
                              : units_of_floats(kind, floats_of_row(row + u, k - u));
}

/* Rows of k floats, ld apart, as rows of units, `stride` apart; units up to the next multiple of 16 are written. */
TARGET static void pack_rows(factors kind, const float *x, size_t ld, size_t rows, size_t k, unit *out,
                             size_t stride) {
    const size_t units = sd_size_ceil(k, per_unit(kind));
    for (size_t r = 0; r < rows; r++)
        for (size_t u = 0; u < units; u += 16)
            _mm512_store_si512(out + r * stride + u, units_of_row(kind, x + r * ld, u, k));
}

/* 16 units of one column each: of row u, or of the pair of rows that becomes unit u. next: NULL when the pair has one. */
TARGET static inline __m512i units_of_columns(factors kind, const float *row, const float *next, __mmask16 exist) {
    const __m512 low = _mm512_maskz_loadu_ps(exist, row);
    if (kind != BF16_PAIRS)
        return units_of_floats(kind, low);
    const __m512 high = next == NULL ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(exist, next);
    return rounded_pairs(low, high);
}

/* k rows of X, ld apart, `columns` of each: panels of `width` (16 or 32) columns, each [units][width]. Read row by row,
 * as memory likes it. Columns up to the end of the last panel become 0. */
TARGET static inline __attribute__((always_inline)) void pack_columns(factors kind, const float *x, size_t ld, size_t k,
                                                                      size_t columns, size_t width, unit *out) {
    const size_t each = per_unit(kind), units = sd_size_ceil(k, each);
    for (size_t u0 = 0; u0 < units; u0 += FETCHED_ROWS)
        for (size_t j = 0; j < columns; j += width)
            for (size_t u = u0; u < units && u < u0 + FETCHED_ROWS; u++) {
                const float *row = x + u * each * ld + j;
                const float *next = kind == BF16_PAIRS && 2 * u + 1 < k ? row + ld : NULL;
                unit *to = out + j * units + u * width;
                for (size_t h = 0; h < width; h += 16) {
                    const size_t left = j + h < columns ? columns - j - h : 0;
                    _mm512_store_si512(to + h, units_of_columns(kind, row + h, next == NULL ? NULL : next + h,
                                                                first_of(left)));
                }
            }
}

/* Panels of 32 columns of B where op(B) is transposed: column j is the row j of X, of k floats. */
TARGET static void pack_transposed(factors kind, const float *x, size_t ld, size_t k, size_t columns, unit *out) {
    const size_t units = sd_size_ceil(k, per_unit(kind)), padded = sd_size_ceil(columns, COLUMNS) * COLUMNS;
    for (size_t j = 0; j < padded; j += 16) {
        size_t count = j < columns ? sd_size_min(16, columns - j) : 0;
        unit *to = out + j / COLUMNS * COLUMNS * units + j % COLUMNS;
        for (size_t u = 0; u < units; u += 16) {
            __m512i t[16];
            size_t here = sd_size_min(16, units - u);
            /* 16 streams are too many for the CPU to foresee: the same part of the next 16 rows is fetched meanwhile */
            for (size_t r = 0; r < 16 && j + 16 + r < columns; r++) {
                const char *next = (const char *)(x + (j + 16 + r) * ld + per_unit(kind) * u);
                _mm_prefetch(next, _MM_HINT_T1);
                if (kind == BF16_PAIRS)
                    _mm_prefetch(next + SD_ALIGNMENT, _MM_HINT_T1);
            }
            for (size_t r = 0; r < 16; r++)
                t[r] = r < count ? units_of_row(kind, x + (j + r) * ld, u, k) : _mm512_setzero_si512();
            transpose(t);
            for (size_t r = 0; r < 16; r++)
                if (r < here)
                    _mm512_store_si512(to + (u + r) * COLUMNS, t[r]);
        }
    }
}

/* ---- the product --------------------------------------------------------------------------- */

/* How a product is cut. It must depend on k and ta alone that sums are the same however C is cut. */
typedef struct slices {
    size_t units, rows; /* at once; rows: of A */
} slices;

static slices slices_of(factors kind, bool ta, size_t m, size_t k) {
    const size_t units = even_part(sd_size_ceil(k, per_unit(kind)), ta ? UNITS_TRANSPOSED : UNITS, 16);
    return (slices){units, even_part(m, A_BYTES / (UNIT_BYTES * units * 16) * 16, 16)};
}

/* The rows of A that are multiplied: packed, or floats as they are. */
typedef struct left_rows {
    const unit *units;
    size_t count, stride;
    bool panels; /* of 16 rows */
} left_rows;

TARGET static inline __attribute__((always_inline)) left_rows take_rows(factors kind, bool ta, const float *a, size_t lda,
                                                                        size_t rows, size_t depth, size_t stride,
                                                                        unit *packed) {
    if (ta) {
        pack_columns(kind, a, lda, depth, rows, 16, packed);
        return (left_rows){packed, rows, 1, true};
    }
    if (kind == FLOATS)
        return (left_rows){(const unit *)a, rows, lda, false};
    pack_rows(kind, a, lda, rows, depth, packed, stride);
    return (left_rows){packed, rows, stride, false};
}

/* C = alpha A B + beta C for a slice of A and panels of B; meanwhile the lines of `later` are fetched. */
TARGET static inline __attribute__((always_inline)) void panels(factors kind, const left_rows *a, size_t units,
                                                                const unit *b, size_t columns, float alpha, float beta,
                                                                float *c, size_t ldc, ahead later) {
    tile_function *const (*tiles)[3] = kind == BF16_PAIRS ? pairs_tiles : floats_tiles;
    const size_t share = sd_size_ceil(later.lines * later.rows,
                                      sd_size_ceil(columns, COLUMNS) * sd_size_ceil(a->count, ROWS));
    for (size_t j = 0; j < columns; j += COLUMNS) {
        tile_function *const *of_rows = tiles[columns - j > 16];
        for (size_t i = 0; i < a->count; i += ROWS) {
            const size_t rows = sd_size_min(ROWS, a->count - i);
            const unit *from = a->units + (a->panels ? i / 16 * 16 * units + i % 16 : i * a->stride);
            fetch_some(&later, share);
            of_rows[rows > 4 ? 2 : rows > 2](units, from, a->stride, a->panels ? 16 : 1, b + j * units, alpha, beta,
                                             c + i * ldc + j, ldc, rows, sd_size_min(COLUMNS, columns - j));
        }
    }
}

TARGET static inline __attribute__((always_inline)) void product(factors kind, bool ta, bool tb, size_t m, size_t n,
                                                                 size_t k, float alpha, const float *a, size_t lda,
                                                                 const float *b, size_t ldb, float beta, float *c,
                                                                 size_t ldc, void *scratch) {
    unit *left = scratch, *right = left + A_BYTES / UNIT_BYTES;
    const slices cut = slices_of(kind, ta, m, k);
    const size_t each = per_unit(kind);
    const size_t columns_at_once = even_part(n, B_BYTES / (UNIT_BYTES * cut.units * COLUMNS) * COLUMNS, COLUMNS);

    for (size_t l = 0; l < k; l += cut.units * each) {
        const size_t depth = sd_size_min(cut.units * each, k - l), units = sd_size_ceil(depth, each);
        for (size_t i = 0; i < m; i += cut.rows) {
            const left_rows rows = take_rows(kind, ta, ta ? a + l * lda + i : a + i * lda + l, lda,
                                             sd_size_min(cut.rows, m - i), depth, cut.units, left);
            for (size_t j = 0; j < n; j += columns_at_once) {
                const size_t columns = sd_size_min(columns_at_once, n - j);
                if (tb)
                    pack_transposed(kind, b + j * ldb + l, ldb, depth, columns, right);
                else
                    pack_columns(kind, b + l * ldb + j, ldb, depth, columns, COLUMNS, right);
                /* the next columns of B come in while these are multiplied */
                const size_t done = j + columns, coming = sd_size_min(columns_at_once, n - done);
                const ahead later = tb ? fetch_later(b + done * ldb + l, ldb, coming, depth)
                                       : fetch_later(b + l * ldb + done, ldb, coming > 0 ? depth : 0, coming);
                panels(kind, &rows, units, right, columns, alpha, l == 0 ? beta : 1.0f, c + i * ldc + j, ldc, later);
            }
        }
    }
}

/* ---- B packed beforehand ------------------------------------------------------------------- */

/* Where the panel that begins with a column lies in the slice from l on: its `units` follow those of all slices before it
 * and of the panels before it. */
static size_t panel_place(factors kind, size_t n, size_t l, size_t units, size_t column) {
    return l / per_unit(kind) * sd_size_ceil(n, COLUMNS) * COLUMNS + column * units;
}

TARGET static inline __attribute__((always_inline)) void pack(factors kind, bool tb, size_t n, size_t k, const float *b,
                                                              size_t ldb, size_t first_panel, size_t count,
                                                              void *packed) {
    const slices cut = slices_of(kind, false, 1, k);
    const size_t each = per_unit(kind), first = first_panel * COLUMNS, columns = sd_size_min(count * COLUMNS, n - first);
    for (size_t l = 0; l < k; l += cut.units * each) {
        const size_t depth = sd_size_min(cut.units * each, k - l), units = sd_size_ceil(depth, each);
        unit *out = (unit *)packed + panel_place(kind, n, l, units, first);
        if (tb)
            pack_transposed(kind, b + first * ldb + l, ldb, depth, columns, out);
        else
            pack_columns(kind, b + l * ldb + first, ldb, depth, columns, COLUMNS, out);
    }
}

/* C = A B + beta C for a slice of A and a panel of B; meanwhile the panel `next` is fetched. */
TARGET static inline __attribute__((always_inline)) void stream_panel(factors kind, const left_rows *a, size_t units,
                                                                      const unit *b, size_t columns, float beta, float *c,
                                                                      size_t ldc, const unit *next) {
    stream_function *const *tiles = (kind == BF16_PAIRS ? pairs_streams : floats_streams)[columns > 16];
    const size_t share = units * COLUMNS * UNIT_BYTES / sd_size_ceil(a->count, ROWS);
    const size_t step = share * UNITS_OF_FETCH / units;
    const char *fetched = (const char *)next;
    for (size_t i = 0; i < a->count; i += ROWS, fetched += share) {
        const size_t rows = sd_size_min(ROWS, a->count - i);
        tiles[rows > 4 ? 2 : rows > 2](units, a->units + i * a->stride, a->stride, b, beta, c + i * ldc, ldc, rows, columns,
                                       fetched, step);
    }
}

TARGET static inline __attribute__((always_inline)) void multiply(factors kind, size_t m, size_t n, size_t k,
                                                                  const float *a, size_t lda, const void *packed,
                                                                  size_t first, size_t columns, float *c, size_t ldc,
                                                                  const sd_finish *finish, void *scratch) {
    const slices cut = slices_of(kind, false, m, k);
    const size_t each = per_unit(kind);
    for (size_t l = 0; l < k; l += cut.units * each) {
        const size_t depth = sd_size_min(cut.units * each, k - l), units = sd_size_ceil(depth, each);
        const unit *b = (const unit *)packed + panel_place(kind, n, l, units, first);
        const bool last = l + depth == k;
        for (size_t i = 0; i < m; i += cut.rows) {
            const left_rows rows = take_rows(kind, false, a + i * lda + l, lda, sd_size_min(cut.rows, m - i), depth,
                                             cut.units, scratch);
            for (size_t j = 0; j < columns; j += COLUMNS) {
                const unit *panel = b + j * units;
                stream_panel(kind, &rows, units, panel, sd_size_min(COLUMNS, columns - j), l == 0 ? 0.0f : 1.0f,
                             c + i * ldc + j, ldc, j + COLUMNS < columns ? panel + COLUMNS * units : panel);
                if (last && finish != NULL)
                    sd_finish_panel(finish, c, ldc, i, rows.count, j, columns);
            }
        }
    }
}

#define WAY(name, kind) PACKED_WAY(TARGET, name, kind, kind == BF16_PAIRS ? 2 : 1, UNIT_BYTES, SD_PACKED_SCRATCH, SD_PACKED_ROWS)

WAY(sd_packed_float, FLOATS)
WAY(sd_packed_bf16_fma, BF16_FLOATS)
WAY(sd_packed_bf16_dot, BF16_PAIRS)

#else

/* ISO C wants something in every file. */
typedef int sd_packed_nothing;

#endif
