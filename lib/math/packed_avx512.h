/* What products with packed factors are made of, with AVX-512: for the files that have them (packed_avx512.c, packed_bf16.c,
 * packed_amx.c and strassen_avx512.c). */
#ifndef SD_PACKED_AVX512_H
#define SD_PACKED_AVX512_H

#include "math/packed_support.h"

#include <immintrin.h>

#define AVX512 "avx512f,avx512vl,avx512dq,avx512bw"
#if !defined(TARGET)
#define TARGET __attribute__((target(AVX512)))
#endif

#define ROWS 8 /* of a tile: C in registers */

/* The first `count` of 16. */
static inline __mmask16 first_of(size_t count) { return (__mmask16)(count >= 16 ? 0xffff : (1u << count) - 1u); }

/* 16 floats of a row, of which `left` exist. */
TARGET static inline __m512 floats_of_row(const float *p, size_t left) {
    return left >= 16 ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(first_of(left), p);
}

#if defined(SD_HAVE_PACKED_KERNELS)
/* 16 units: the pairs of one bfloat16 each of low and high, rounded. */
__attribute__((target(AVX512 ",avx512bf16"))) static inline __m512i rounded_pairs(__m512 low, __m512 high) {
    const __m512i interleave =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19,
                         3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
#endif

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

#endif
