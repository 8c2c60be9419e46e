/* What products with packed factors are made of, with AVX-512: for the files that have them (packed_avx512.c and
 * strassen_avx512.c). */
#ifndef SD_PACKED_AVX512_H
#define SD_PACKED_AVX512_H

#include "math/packed.h"

#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16")))

/* Of a tile: C in registers. */
#define ROWS 8
#define COLUMNS 32
#define FETCHED_ROWS ((size_t)8) /* of columns that are packed, at once: they stay in the first cache */

/* X of each row of a tile, of which TILE_ROWS tells how many: 2, 4 or 8. */
#define EACH_ROW(X) EACH_OF(TILE_ROWS)(X)
#define EACH_OF(rows) EACH_OF_(rows)
#define EACH_OF_(rows) EACH_OF_##rows
#define EACH_OF_2(X) X(0) X(1)
#define EACH_OF_4(X) EACH_OF_2(X) X(2) X(3)
#define EACH_OF_8(X) EACH_OF_4(X) X(4) X(5) X(6) X(7)

/* Whatever lies in memory is read as units. */
typedef uint32_t __attribute__((may_alias)) unit;

#define PREFETCH_TO_WRITE(p) __builtin_prefetch(p, 1, 3)

_Static_assert(COLUMNS == SD_PACKED_COLUMNS, "panels are as the header says");

/* The first `count` of 16. */
static inline __mmask16 first_of(size_t count) { return (__mmask16)(count >= 16 ? 0xffff : (1u << count) - 1u); }

/* 16 floats of a row, of which `left` exist. */
TARGET static inline __m512 floats_of_row(const float *p, size_t left) {
    return left >= 16 ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(first_of(left), p);
}

/* 16 units: the pairs of one bfloat16 each of low and high, rounded. */
TARGET static inline __m512i rounded_pairs(__m512 low, __m512 high) {
    const __m512i interleave =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
                         3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(high, low));
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

/* The size of nearly equal parts of n of at most `most`, in multiples of `multiple`, which `most` is. */
static inline size_t even_part(size_t n, size_t most, size_t multiple) {
    size_t parts = sd_size_ceil(n, most);
    return sd_size_ceil(sd_size_ceil(n, parts), multiple) * multiple;
}

/* Fetches a rectangle of a matrix into the second cache, some lines at each call. */
typedef struct ahead {
    const float *next; /* a line of the row at hand */
    size_t ld, lines;  /* of a row */
    size_t line, rows; /* rows: those left */
} ahead;

static inline ahead fetch_later(const float *x, size_t ld, size_t rows, size_t columns) {
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

/* Defines a way to multiply, an sd_packed, by the file's product, pack and multiply of a kind; attributes: those of its functions;
 * more arguments: the members of sd_packed after the functions. */
#define PACKED_WAY(attributes, name, kind, ...)                                                                        \
    attributes static void name##_product(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, \
                                          size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc,    \
                                          void *scratch) {                                                             \
        product(kind, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, scratch);                                  \
    }                                                                                                                  \
    attributes static void name##_pack(bool tb, size_t n, size_t k, const float *b, size_t ldb, size_t first_panel,    \
                                       size_t count, void *packed) {                                                   \
        pack(kind, tb, n, k, b, ldb, first_panel, count, packed);                                                      \
    }                                                                                                                  \
    attributes static void name##_multiply(size_t m, size_t n, size_t k, const float *a, size_t lda,                   \
                                           const void *packed, size_t first_column, size_t columns, float *c,          \
                                           size_t ldc, const sd_finish *finish, void *scratch) {                       \
        multiply(kind, m, n, k, a, lda, packed, first_column, columns, c, ldc, finish, scratch);                       \
    }                                                                                                                  \
    const sd_packed name = {name##_product, name##_pack, name##_multiply, __VA_ARGS__};

#endif
