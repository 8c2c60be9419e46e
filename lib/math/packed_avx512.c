/* Products whose factors are packed, with AVX-512, in one of three ways:
 *   floats         FMA, nothing is rounded
 *   bf16, pairs    VDPBF16PS: each of 16 sums of floats gains a_0 b_0 + a_1 b_1, two neighbours along the inner dimension
 *   bf16, floats   products of two bfloat16 are exact in float, so that FMA of the rounded factors as floats does the
 *                  same work as pairs; twice as fast as VDPBF16PS where the CPU takes several cycles for one (Intel's),
 *                  half as fast where it does not (AMD's)
 *
 * Packed factors are units of 32 bits: a pair or a float. With `units` of a slice of the inner dimension:
 *   B        panels of 32 columns, each [units][32]
 *   A        rows of units, `stride` apart; or, where op(A) is transposed, panels of 16 rows, each [units][16], as they
 *            come out of memory
 * A slice of A stays in the second cache while B comes by panel by panel, each of which stays in the first cache for all
 * rows of the slice: each factor is packed once, as long as the rows fit. What is needed next is fetched meanwhile, for
 * these products are parts of something larger and find little of their factors in a cache. */
#include "math/packed.h"

#if defined(SD_HAVE_PACKED_KERNELS)

#include <immintrin.h>
#include <string.h>

#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16")))

#define ROWS 8
#define COLUMNS 32
#define UNITS ((size_t)192)
#define A_BYTES ((size_t)320 * 1024)
#define B_BYTES (SD_PACKED_SCRATCH - A_BYTES)
#define UNIT_BYTES sizeof(uint32_t)
#define FETCHED_ROWS ((size_t)8) /* of columns that are packed, at once: they stay in the first cache */

#define PREFETCH_TO_WRITE(p) __builtin_prefetch(p, 1, 3)

#define EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

typedef enum factors { FLOATS, BF16_FLOATS, BF16_PAIRS } factors;

/* Neighbours along the inner dimension in a unit. */
static inline size_t per_unit(factors kind) { return kind == BF16_PAIRS ? 2 : 1; }

_Static_assert(UNITS * UNIT_BYTES * COLUMNS <= B_BYTES && UNITS * UNIT_BYTES * 16 <= A_BYTES,
               "a panel of each fits into the scratch");

/* ---- one tile ------------------------------------------------------------------------------ */

/* C = alpha A B + beta C for up to 8 x 32 numbers. a: unit u of row r at a[row[r] + u*step]. */
typedef void tile_function(size_t units, const uint32_t *a, const size_t row[ROWS], size_t step, const uint32_t *b,
                           float alpha, float beta, float *c, size_t ldc, size_t rows, size_t columns);

#define NAME tile_pairs
#define FACTORS __m512bh
#define FACTOR(x) ((__m512bh)(x))
#define ADD_PRODUCT(sum, x, y) _mm512_dpbf16_ps(sum, x, y)
#include "math/packed_tile.h"

#define NAME tile_floats
#define FACTORS __m512
#define FACTOR(x) _mm512_castsi512_ps(x)
#define ADD_PRODUCT(sum, x, y) _mm512_fmadd_ps(x, y, sum)
#include "math/packed_tile.h"

/* ---- packing ------------------------------------------------------------------------------- */

/* The first `count` of 16. */
static inline __mmask16 first_of(size_t count) { return (__mmask16)(count >= 16 ? 0xffff : (1u << count) - 1u); }

/* 16 floats as units of a float each. */
TARGET static inline __m512i units_of_floats(factors kind, __m512 x) {
    if (kind == FLOATS)
        return _mm512_castps_si512(x);
    return _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16);
}

/* 16 floats of a row, of which `left` exist. */
TARGET static inline __m512 floats_of_row(const float *p, size_t left) {
    return left >= 16 ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(first_of(left), p);
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
TARGET static void pack_rows(factors kind, const float *x, size_t ld, size_t rows, size_t k, uint32_t *out,
                             size_t stride) {
    const size_t units = sd_size_ceil(k, per_unit(kind));
    for (size_t r = 0; r < rows; r++)
        for (size_t u = 0; u < units; u += 16)
            _mm512_store_si512(out + r * stride + u, units_of_row(kind, x + r * ld, u, k));
}

/* 16 units of one column each: of row u, or of the pair of rows that becomes unit u. next: NULL when the pair has one. */
TARGET static inline __m512i units_of_columns(factors kind, const float *row, const float *next, __mmask16 exist) {
    const __m512i interleave =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
                         3, 18, 2, 17, 1, 16, 0);
    const __m512 low = _mm512_maskz_loadu_ps(exist, row);
    if (kind != BF16_PAIRS)
        return units_of_floats(kind, low);
    const __m512 high = next == NULL ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(exist, next);
    return _mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

/* k rows of X, ld apart, `columns` of each: panels of `width` (16 or 32) columns, each [units][width]. Read row by row,
 * as memory likes it. Columns up to the end of the last panel become 0. */
TARGET static inline __attribute__((always_inline)) void pack_columns(factors kind, const float *x, size_t ld, size_t k,
                                                                      size_t columns, size_t width, uint32_t *out) {
    const size_t each = per_unit(kind), units = sd_size_ceil(k, each);
    for (size_t u0 = 0; u0 < units; u0 += FETCHED_ROWS)
        for (size_t j = 0; j < columns; j += width)
            for (size_t u = u0; u < units && u < u0 + FETCHED_ROWS; u++) {
                const float *row = x + u * each * ld + j;
                const float *next = kind == BF16_PAIRS && 2 * u + 1 < k ? row + ld : NULL;
                uint32_t *to = out + j * units + u * width;
                for (size_t h = 0; h < width; h += 16) {
                    const size_t left = j + h < columns ? columns - j - h : 0;
                    _mm512_store_si512(to + h, units_of_columns(kind, row + h, next == NULL ? NULL : next + h,
                                                                first_of(left)));
                }
            }
}

/* out(j, i) = in(i, j) for 16 x 16 units. */
TARGET static inline void transpose(__m512i t[16]) {
    __m512i u[16];
    for (size_t i = 0; i < 16; i += 2) {
        u[i] = _mm512_unpacklo_epi32(t[i], t[i + 1]);
        u[i + 1] = _mm512_unpackhi_epi32(t[i], t[i + 1]);
    }
    for (size_t i = 0; i < 16; i += 4)
        for (size_t h = 0; h < 2; h++) {
            t[i + 2 * h] = _mm512_unpacklo_epi64(u[i + h], u[i + 2 + h]);
            t[i + 2 * h + 1] = _mm512_unpackhi_epi64(u[i + h], u[i + 2 + h]);
        }
    /* t[4 g + c]: in its four parts the columns c, c + 4, c + 8, c + 12 of rows 4 g ... 4 g + 3 */
    for (size_t c = 0; c < 4; c++) {
        u[c] = _mm512_shuffle_i32x4(t[c], t[4 + c], 0x88);
        u[4 + c] = _mm512_shuffle_i32x4(t[c], t[4 + c], 0xdd);
        u[8 + c] = _mm512_shuffle_i32x4(t[8 + c], t[12 + c], 0x88);
        u[12 + c] = _mm512_shuffle_i32x4(t[8 + c], t[12 + c], 0xdd);
    }
    for (size_t c = 0; c < 4; c++) {
        t[c] = _mm512_shuffle_i32x4(u[c], u[8 + c], 0x88);
        t[8 + c] = _mm512_shuffle_i32x4(u[c], u[8 + c], 0xdd);
        t[4 + c] = _mm512_shuffle_i32x4(u[4 + c], u[12 + c], 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(u[4 + c], u[12 + c], 0xdd);
    }
}

/* Panels of 32 columns of B where op(B) is transposed: column j is the row j of X, of k floats. */
TARGET static void pack_transposed(factors kind, const float *x, size_t ld, size_t k, size_t columns, uint32_t *out) {
    const size_t units = sd_size_ceil(k, per_unit(kind)), padded = sd_size_ceil(columns, COLUMNS) * COLUMNS;
    for (size_t j = 0; j < padded; j += 16) {
        size_t count = j < columns ? sd_size_min(16, columns - j) : 0;
        uint32_t *to = out + j / COLUMNS * COLUMNS * units + j % COLUMNS;
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

/* Fetches a rectangle of a matrix into the second cache, some lines at each call. */
typedef struct ahead {
    const float *next; /* a line of the row at hand */
    size_t ld, lines;  /* of a row */
    size_t line, rows; /* rows: those left */
} ahead;

static ahead fetch_later(const float *x, size_t ld, size_t rows, size_t columns) {
    return (ahead){x, ld, sd_size_ceil(columns * sizeof *x, SD_ALIGNMENT), 0, rows};
}

TARGET static inline void fetch_some(ahead *a, size_t lines) {
    const size_t step = SD_ALIGNMENT / sizeof *a->next;
    for (; lines > 0 && a->rows > 0; lines--) {
        _mm_prefetch((const char *)(a->next + a->line * step), _MM_HINT_T1);
        if (++a->line == a->lines) {
            a->line = 0;
            a->rows--;
            a->next += a->ld;
        }
    }
}

/* ---- the product --------------------------------------------------------------------------- */

/* The size of nearly equal parts of n of at most `most`, in multiples of `unit`, which `most` is. */
static size_t even_part(size_t n, size_t most, size_t unit) {
    size_t parts = sd_size_ceil(n, most);
    return sd_size_ceil(sd_size_ceil(n, parts), unit) * unit;
}

TARGET static inline __attribute__((always_inline)) void product(factors kind, bool ta, bool tb, size_t m, size_t n,
                                                                 size_t k, float alpha, const float *a, size_t lda,
                                                                 const float *b, size_t ldb, float beta, float *c,
                                                                 size_t ldc, void *scratch) {
    tile_function *tile = kind == BF16_PAIRS ? tile_pairs : tile_floats;
    uint32_t *left = scratch, *right = left + A_BYTES / UNIT_BYTES;
    const size_t each = per_unit(kind), units_at_once = even_part(sd_size_ceil(k, each), UNITS, 16);
    const size_t columns_at_once = even_part(n, B_BYTES / (UNIT_BYTES * units_at_once * COLUMNS) * COLUMNS, COLUMNS);
    const size_t rows_at_once = even_part(m, A_BYTES / (UNIT_BYTES * units_at_once * 16) * 16, 16);

    for (size_t l = 0; l < k; l += units_at_once * each) {
        const size_t depth = sd_size_min(units_at_once * each, k - l), units = sd_size_ceil(depth, each);
        const size_t stride = units_at_once;
        const float scale = l == 0 ? beta : 1.0f;
        for (size_t i0 = 0; i0 < m; i0 += rows_at_once) {
            const size_t rows = sd_size_min(rows_at_once, m - i0);
            if (ta)
                pack_columns(kind, a + l * lda + i0, lda, depth, rows, 16, left);
            else
                pack_rows(kind, a + i0 * lda + l, lda, rows, depth, left, stride);
            for (size_t j0 = 0; j0 < n; j0 += columns_at_once) {
                const size_t columns = sd_size_min(columns_at_once, n - j0);
                if (tb)
                    pack_transposed(kind, b + j0 * ldb + l, ldb, depth, columns, right);
                else
                    pack_columns(kind, b + l * ldb + j0, ldb, depth, columns, COLUMNS, right);
                /* the next columns of B come in while these are multiplied */
                const size_t done = j0 + columns, coming = sd_size_min(columns_at_once, n - done);
                ahead later = tb ? fetch_later(b + done * ldb + l, ldb, coming, depth)
                                 : fetch_later(b + l * ldb + done, ldb, coming > 0 ? depth : 0, coming);
                const size_t share = sd_size_ceil(later.lines * later.rows,
                                                  sd_size_ceil(columns, COLUMNS) * sd_size_ceil(rows, ROWS));
                for (size_t j = 0; j < columns; j += COLUMNS)
                    for (size_t i = 0; i < rows; i += ROWS) {
                        size_t count = sd_size_min(ROWS, rows - i), row[ROWS];
                        for (size_t r = 0; r < ROWS; r++)
                            row[r] = ta ? i / 16 * 16 * units + i % 16 + r : (i + sd_size_min(r, count - 1)) * stride;
                        fetch_some(&later, share);
                        tile(units, left, row, ta ? 16 : 1, right + j * units, alpha, scale,
                             c + (i0 + i) * ldc + j0 + j, ldc, count, sd_size_min(COLUMNS, columns - j));
                    }
            }
        }
    }
}

#define PRODUCT(name, kind)                                                                                            \
    TARGET void name(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,          \
                     const float *b, size_t ldb, float beta, float *c, size_t ldc, void *scratch) {                    \
        product(kind, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, scratch);                                  \
    }

PRODUCT(sd_packed_float, FLOATS)
PRODUCT(sd_packed_bf16_fma, BF16_FLOATS)
PRODUCT(sd_packed_bf16_dot, BF16_PAIRS)

#else

/* ISO C wants something in every file. */
typedef int sd_packed_nothing;

#endif
