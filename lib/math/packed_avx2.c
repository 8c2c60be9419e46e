/* Products of floats whose factors are packed, with AVX2: FMA, nothing is rounded (packed_product.h). */
#include "base/system.h"

#if defined(SD_HAVE_FMA_KERNELS)

#include "math/packed_support.h"

#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma")))
#define ROWS 6
#define PANEL_ROWS 24
#define LEFT_AS_IT_IS 1
#define CHUNK_ROWS SD_PACKED_ROWS

#define UNITS ((size_t)384)
#define UNITS_TRANSPOSED ((size_t)128)
#define A_BYTES ((size_t)192 * 1024) /* CPUs without AVX-512 have second caches of 256 and 512 KiB */
#define B_BYTES ((size_t)128 * 1024)

typedef enum factors { FLOATS } factors;

static inline size_t per_unit(factors kind) { return kind == FLOATS ? 1 : 0; }
static inline size_t number_bytes(factors kind) { return kind == FLOATS ? sizeof(float) : 0; }

/* EACH_ROW with one more argument. */
#define EACH_ROW_AT(X, i) EACH_AT(TILE_ROWS)(X, i)
#define EACH_AT(rows) EACH_AT_(rows)
#define EACH_AT_(rows) EACH_AT_##rows
#define EACH_AT_2(X, i) X(0, i) X(1, i)
#define EACH_AT_4(X, i) EACH_AT_2(X, i) X(2, i) X(3, i)
#define EACH_AT_6(X, i) EACH_AT_4(X, i) X(4, i) X(5, i)

/* ---- eight numbers, or fewer ---------------------------------------------------------------- */

static inline size_t after(size_t count) { return count > 8 ? count - 8 : 0; }

/* The first `count` of 8. */
TARGET static inline __m256i first_of(size_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

TARGET static inline __m256 load_some(const float *p, size_t count) {
    return count >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first_of(count));
}

TARGET static inline void store_some(float *p, __m256 x, size_t count) {
    if (count >= 8)
        _mm256_storeu_ps(p, x);
    else if (count > 0)
        _mm256_maskstore_ps(p, first_of(count), x);
}

/* ---- tiles ----------------------------------------------------------------------------------- */

#define TILE_NAME rows_6
#define TILE_ROWS 6
#define TILE_STREAM 0
#define TILE_PANELS 0
#include "math/packed_tile_avx2.h"
#define TILE_NAME rows_4
#define TILE_ROWS 4
#define TILE_STREAM 0
#define TILE_PANELS 0
#include "math/packed_tile_avx2.h"
#define TILE_NAME rows_2
#define TILE_ROWS 2
#define TILE_STREAM 0
#define TILE_PANELS 0
#include "math/packed_tile_avx2.h"
#define TILE_NAME panels_6
#define TILE_ROWS 6
#define TILE_STREAM 0
#define TILE_PANELS 1
#include "math/packed_tile_avx2.h"
#define TILE_NAME panels_4
#define TILE_ROWS 4
#define TILE_STREAM 0
#define TILE_PANELS 1
#include "math/packed_tile_avx2.h"
#define TILE_NAME panels_2
#define TILE_ROWS 2
#define TILE_STREAM 0
#define TILE_PANELS 1
#include "math/packed_tile_avx2.h"
#define TILE_NAME stream_6
#define TILE_ROWS 6
#define TILE_STREAM 1
#define TILE_PANELS 0
#include "math/packed_tile_avx2.h"
#define TILE_NAME stream_4
#define TILE_ROWS 4
#define TILE_STREAM 1
#define TILE_PANELS 0
#include "math/packed_tile_avx2.h"
#define TILE_NAME stream_2
#define TILE_ROWS 2
#define TILE_STREAM 1
#define TILE_PANELS 0
#include "math/packed_tile_avx2.h"

static inline tile_function *tile_of(factors kind, bool panels, size_t rows, size_t columns) {
    (void)kind;
    (void)columns;
    if (panels)
        return rows > 4 ? panels_6 : rows > 2 ? panels_4 : panels_2;
    return rows > 4 ? rows_6 : rows > 2 ? rows_4 : rows_2;
}

static inline stream_function *stream_of(factors kind, size_t rows, size_t columns) {
    (void)kind;
    (void)columns;
    return rows > 4 ? stream_6 : rows > 2 ? stream_4 : stream_2;
}

/* ---- packing --------------------------------------------------------------------------------- */

/* k rows of X, ld apart, `columns` of each: panels of `width` (24 or 32) columns, each [k][width]. Read row by row, as memory
 * likes it. Columns up to the end of the last panel become 0. */
TARGET static inline __attribute__((always_inline)) void pack_columns(factors kind, const float *x, size_t ld, size_t k,
                                                                      size_t columns, size_t width, unit *out) {
    (void)kind;
    for (size_t u0 = 0; u0 < k; u0 += FETCHED_ROWS)
        for (size_t j = 0; j < columns; j += width)
            for (size_t u = u0; u < k && u < u0 + FETCHED_ROWS; u++) {
                float *to = (float *)out + j * k + u * width;
                for (size_t h = 0; h < width; h += 8) {
                    const size_t left = j + h < columns ? columns - j - h : 0;
                    _mm256_store_ps(to + h, load_some(x + u * ld + j + (left > 0 ? h : 0), left));
                }
            }
}

/* out(j, i) = in(i, j) for 8 x 8 numbers. */
TARGET static inline void transpose(__m256 t[8]) {
    __m256 u[8];
    for (size_t i = 0; i < 8; i += 2) {
        u[i] = _mm256_unpacklo_ps(t[i], t[i + 1]);
        u[i + 1] = _mm256_unpackhi_ps(t[i], t[i + 1]);
    }
    for (size_t i = 0; i < 8; i += 4)
        for (size_t h = 0; h < 2; h++) {
            t[i + 2 * h] = _mm256_shuffle_ps(u[i + h], u[i + 2 + h], 0x44);
            t[i + 2 * h + 1] = _mm256_shuffle_ps(u[i + h], u[i + 2 + h], 0xee);
        }
    /* t[4 g + c]: in its two parts the columns c and c + 4 of rows 4 g ... 4 g + 3 */
    for (size_t c = 0; c < 4; c++) {
        u[c] = _mm256_permute2f128_ps(t[c], t[4 + c], 0x20);
        u[4 + c] = _mm256_permute2f128_ps(t[c], t[4 + c], 0x31);
    }
    for (size_t c = 0; c < 8; c++)
        t[c] = u[c];
}

/* Panels of 32 columns of B where op(B) is transposed: column j is the row j of X, of k floats. */
TARGET static void pack_transposed(factors kind, const float *x, size_t ld, size_t k, size_t columns, unit *out) {
    (void)kind;
    const size_t padded = sd_size_ceil(columns, COLUMNS) * COLUMNS;
    for (size_t j = 0; j < padded; j += 8) {
        const size_t count = j < columns ? sd_size_min(8, columns - j) : 0;
        float *to = (float *)out + j / COLUMNS * COLUMNS * k + j % COLUMNS;
        for (size_t u = 0; u < k; u += 8) {
            __m256 t[8];
            for (size_t r = 0; r < 8; r++)
                t[r] = r < count ? load_some(x + (j + r) * ld + u, k - u) : _mm256_setzero_ps();
            transpose(t);
            for (size_t r = 0; r < 8 && u + r < k; r++)
                _mm256_store_ps(to + (u + r) * COLUMNS, t[r]);
        }
    }
}

#include "math/packed_product.h"

WAY(sd_packed_float_avx2, FLOATS, NULL, 1)

#else

/* ISO C wants something in every file. */
typedef int sd_packed_avx2_nothing;

#endif
