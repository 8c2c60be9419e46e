/* One tile of a product, tile_function: packed_avx512.c includes this file with these macros set, which it undefines.
 *   NAME                     name of the function
 *   FACTORS, FACTOR(x)       16 units of packed factors, and such out of 512 bits
 *   ADD_PRODUCT(sum, x, y)   sum + x y */
TARGET static void NAME(size_t units, const uint32_t *a, const size_t row[ROWS], size_t step, const uint32_t *b,
                        float alpha, float beta, float *c, size_t ldc, size_t rows, size_t columns) {
#define DECLARE(r)                                                          \
    __m512 c##r##0 = _mm512_setzero_ps(), c##r##1 = _mm512_setzero_ps();    \
    const uint32_t *a##r = a + row[r];
    EACH_ROW(DECLARE)
#undef DECLARE
    /* C comes from memory as a rule; it is on its way while the sums are made */
#define FETCH(r)                                                   \
    if (r < rows) {                                                \
        PREFETCH_TO_WRITE(c + r * ldc);                            \
        PREFETCH_TO_WRITE(c + r * ldc + (columns > 16 ? 16 : 0));  \
    }
    EACH_ROW(FETCH)
#undef FETCH
    for (size_t u = 0; u < units; u++) {
        const FACTORS b0 = FACTOR(_mm512_load_si512(b)), b1 = FACTOR(_mm512_load_si512(b + 16));
        b += COLUMNS;
#define UPDATE(r)                                                               \
    {                                                                           \
        const FACTORS x = FACTOR(_mm512_set1_epi32((int)a##r[u * step]));       \
        c##r##0 = ADD_PRODUCT(c##r##0, x, b0);                                  \
        c##r##1 = ADD_PRODUCT(c##r##1, x, b1);                                  \
    }
        EACH_ROW(UPDATE)
#undef UPDATE
    }
    const __mmask16 first = (__mmask16)(columns >= 16 ? 0xffff : (1u << columns) - 1u);
    const __mmask16 second = (__mmask16)(columns >= 32 ? 0xffff : columns > 16 ? (1u << (columns - 16)) - 1u : 0);
    const __m512 s = _mm512_set1_ps(alpha), f = _mm512_set1_ps(beta);
    if (beta == 0.0f) { /* C is not read */
#define KEEP(r)                                                                        \
    if (r < rows) {                                                                    \
        _mm512_mask_storeu_ps(c + r * ldc, first, _mm512_mul_ps(c##r##0, s));          \
        _mm512_mask_storeu_ps(c + r * ldc + 16, second, _mm512_mul_ps(c##r##1, s));    \
    }
        EACH_ROW(KEEP)
#undef KEEP
    } else {
#define ADD(r)                                                                                     \
    if (r < rows) {                                                                                \
        const __m512 before0 = _mm512_mul_ps(f, _mm512_maskz_loadu_ps(first, c + r * ldc));        \
        const __m512 before1 = _mm512_mul_ps(f, _mm512_maskz_loadu_ps(second, c + r * ldc + 16));  \
        _mm512_mask_storeu_ps(c + r * ldc, first, _mm512_fmadd_ps(c##r##0, s, before0));           \
        _mm512_mask_storeu_ps(c + r * ldc + 16, second, _mm512_fmadd_ps(c##r##1, s, before1));     \
    }
        EACH_ROW(ADD)
#undef ADD
    }
}

#undef NAME
#undef FACTORS
#undef FACTOR
#undef ADD_PRODUCT
