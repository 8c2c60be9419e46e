/* Products whose factors are rounded to bfloat16 and packed, with AVX-512 (packed_product.h), in one of two ways:
 *   pairs     VDPBF16PS: each of 16 sums of floats gains a_0 b_0 + a_1 b_1, two neighbours along the inner dimension
 *   floats    products of two bfloat16 are exact in float, so that FMA of the rounded factors as floats does the same work as
 *             pairs; twice as fast as VDPBF16PS where the CPU takes several cycles for one (Intel's), half as fast where it
 *             does not (AMD's)
 * Gradients of weights may have factors that lie in memory as bfloat16. */
#include "base/system.h"

#if defined(SD_HAVE_PACKED_KERNELS)

#define TARGET __attribute__((target(AVX512 ",avx512bf16")))
#include "math/packed_avx512.h"

#define LEFT_AS_IT_IS 0
#define CHUNK_ROWS SD_PACKED_ROWS_FAST

/* rounded: in memory they are bfloat16. */
typedef struct factors {
    bool pairs, rounded;
} factors;
#define BF16_FLOATS ((factors){false, false})
#define BF16_PAIRS ((factors){true, false})
#define ROUNDED_FLOATS ((factors){false, true})
#define ROUNDED_PAIRS ((factors){true, true})

static inline size_t per_unit(factors kind) { return kind.pairs ? 2 : 1; }
static inline size_t number_bytes(factors kind) { return kind.rounded ? sizeof(uint16_t) : sizeof(float); }

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

static inline tile_function *tile_of(factors kind, bool panels, size_t rows, size_t columns) {
    (void)panels;
    return (kind.pairs ? pairs_tiles : floats_tiles)[columns > 16][rows > 4 ? 2 : rows > 2];
}

static inline stream_function *stream_of(factors kind, size_t rows, size_t columns) {
    return (kind.pairs ? pairs_streams : floats_streams)[columns > 16][rows > 4 ? 2 : rows > 2];
}

/* ---- packing ------------------------------------------------------------------------------- */

/* 16 floats as units of a float each. */
TARGET static inline __m512i units_of_floats(__m512 x) {
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
    return kind.pairs ? pairs_of_row(row + 2 * u, k - 2 * u) : units_of_floats(floats_of_row(row + u, k - u));
}

/* Rows of k floats, ld apart, as rows of units, `stride` apart; units up to the next multiple of 16 are written. */
TARGET static void pack_rows(factors kind, const float *x, size_t ld, size_t rows, size_t k, unit *out,
                             size_t stride) {
    const size_t units = sd_size_ceil(k, per_unit(kind));
    for (size_t r = 0; r < rows; r++)
        for (size_t u = 0; u < units; u += 16)
            _mm512_store_si512(out + r * stride + u, units_of_row(kind, x + r * ld, u, k));
}

/* 16 bfloat16, each in the lower half of a unit. */
TARGET static inline __m512i rounded_columns(const void *row, __mmask16 exist) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(exist, row));
}

/* 16 units of one column each: of row u, or of the pair of rows that becomes unit u. next: NULL when the pair has one. */
TARGET static inline __m512i units_of_columns(factors kind, const void *row, const void *next, __mmask16 exist) {
    if (kind.rounded) {
        const __m512i first = rounded_columns(row, exist);
        if (!kind.pairs)
            return _mm512_slli_epi32(first, 16);
        return next == NULL ? first : _mm512_or_si512(first, _mm512_slli_epi32(rounded_columns(next, exist), 16));
    }
    const __m512 low = _mm512_maskz_loadu_ps(exist, row);
    if (!kind.pairs)
        return units_of_floats(low);
    const __m512 high = next == NULL ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(exist, next);
    return rounded_pairs(low, high);
}

#include "math/packed_columns_avx512.h"
#include "math/packed_product.h"

TARGET void sd_packed_round(const float *x, size_t count, uint16_t *y) {
    for (size_t i = 0; i < count; i += 32) {
        const __m512i pairs = pairs_of_row(x + i, count - i);
        if (i + 32 <= count)
            _mm512_storeu_si512(y + i, pairs);
        else
            _mm512_mask_storeu_epi16(y + i, (1u << (count - i)) - 1u, pairs);
    }
}

TARGET void sd_packed_widen(const uint16_t *x, size_t count, float *y) {
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 exist = first_of(count - i);
        _mm512_mask_storeu_ps(y + i, exist, _mm512_castsi512_ps(_mm512_slli_epi32(rounded_columns(x + i, exist), 16)));
    }
}

PACKED_GRADIENT(TARGET, floats, ROUNDED_FLOATS)
PACKED_GRADIENT(TARGET, pairs, ROUNDED_PAIRS)
static const sd_packed_rounded rounded_floats = {floats_gradient, sd_packed_round, sd_packed_widen};
static const sd_packed_rounded rounded_pairs_of_numbers = {pairs_gradient, sd_packed_round, sd_packed_widen};
WAY(sd_packed_bf16_fma, BF16_FLOATS, &rounded_floats, 1)
WAY(sd_packed_bf16_dot, BF16_PAIRS, &rounded_pairs_of_numbers, 2)

#else

/* ISO C wants something in every file. */
typedef int sd_packed_bf16_nothing;

#endif
