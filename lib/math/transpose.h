/* to(j, i) = from(i, j) for 4 x 4 numbers: SD_TRANSPOSE_FOUR_FLOATS and SD_TRANSPOSE_FOUR_DOUBLES (from, ld, to, ldt). */
#ifndef SD_TRANSPOSE_H
#define SD_TRANSPOSE_H

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define SD_TRANSPOSE_FOUR_FLOATS(from, ld, to, ldt)                                          \
    do {                                                                                     \
        __m128 r0 = _mm_loadu_ps(from), r1 = _mm_loadu_ps((from) + (ld)),                    \
               r2 = _mm_loadu_ps((from) + 2 * (ld)), r3 = _mm_loadu_ps((from) + 3 * (ld));   \
        _MM_TRANSPOSE4_PS(r0, r1, r2, r3);                                                   \
        _mm_storeu_ps(to, r0);                                                               \
        _mm_storeu_ps((to) + (ldt), r1);                                                     \
        _mm_storeu_ps((to) + 2 * (ldt), r2);                                                 \
        _mm_storeu_ps((to) + 3 * (ldt), r3);                                                 \
    } while (0)
#define SD_TRANSPOSE_TWO_DOUBLES(from, ld, to, ldt)                        \
    do {                                                                   \
        __m128d r0 = _mm_loadu_pd(from), r1 = _mm_loadu_pd((from) + (ld)); \
        _mm_storeu_pd(to, _mm_unpacklo_pd(r0, r1));                        \
        _mm_storeu_pd((to) + (ldt), _mm_unpackhi_pd(r0, r1));              \
    } while (0)
#define SD_TRANSPOSE_FOUR_DOUBLES(from, ld, to, ldt)                                      \
    do {                                                                                  \
        SD_TRANSPOSE_TWO_DOUBLES(from, ld, to, ldt);                                      \
        SD_TRANSPOSE_TWO_DOUBLES((from) + 2, ld, (to) + 2 * (ldt), ldt);                  \
        SD_TRANSPOSE_TWO_DOUBLES((from) + 2 * (ld), ld, (to) + 2, ldt);                   \
        SD_TRANSPOSE_TWO_DOUBLES((from) + 2 * (ld) + 2, ld, (to) + 2 * (ldt) + 2, ldt);   \
    } while (0)

#else

#define SD_TRANSPOSE_FOUR_FLOATS(from, ld, to, ldt)                    \
    do {                                                               \
        for (size_t four_r = 0; four_r < 4; four_r++)                  \
            for (size_t four_c = 0; four_c < 4; four_c++)              \
                (to)[four_c * (ldt) + four_r] = (from)[four_r * (ld) + four_c]; \
    } while (0)
#define SD_TRANSPOSE_FOUR_DOUBLES SD_TRANSPOSE_FOUR_FLOATS

#endif
#endif
