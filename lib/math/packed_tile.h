/* One tile of a product, a tile_function or stream_function: packed_avx512.c and packed_bf16.c include this file, through
 * packed_tiles.h, with these macros set.
 *   TILE_NAME                name of the function
 *   TILE_ROWS                2, 4 or 8: of a whole tile
 *   TILE_WIDE                1: 32 columns, 0: 16
 *   TILE_STREAM              1: a stream_function
 *   FACTORS, FACTOR(x)       16 units of packed factors, and such out of 512 bits
 *   ADD_PRODUCT(sum, x, y)   sum + x y
 * Every number of C is the same sum in the same order, whichever tile it is in. */
#if TILE_WIDE
#define IF_WIDE(x) x
#else
#define IF_WIDE(x)
#endif

#if TILE_STREAM
TARGET static void TILE_NAME(size_t units, const unit *a, size_t stride, const unit *b, float beta, float *c, size_t ldc,
                             size_t rows, size_t columns, const char *next, size_t next_step) {
    const float alpha = 1.0f;
    const size_t step = 1;
#else
TARGET static void TILE_NAME(size_t units, const unit *a, size_t stride, size_t step, const unit *b, float alpha, float beta,
                             float *c, size_t ldc, size_t rows, size_t columns) {
#endif
#define DECLARE(r)                                              \
    __m512 c##r##0 = _mm512_setzero_ps();                       \
    IF_WIDE(__m512 c##r##1 = _mm512_setzero_ps();)              \
    const unit *a##r = a + (r < rows ? r : 0) * stride; /* a row that does not exist is not read */
    EACH_ROW(DECLARE)
#undef DECLARE
    /* C comes from memory as a rule; it is on its way while the sums are made, line by line in a stream */
#if TILE_STREAM
    const float *fetched = c, *const fetched_last = c + (rows - 1) * ldc;
    IF_WIDE(const size_t second_line = columns > 16 ? 16 : 0;)
#else
#define FETCH(r)                                                           \
    if (r < rows) {                                                        \
        PREFETCH_TO_WRITE(c + r * ldc);                                    \
        IF_WIDE(PREFETCH_TO_WRITE(c + r * ldc + (columns > 16 ? 16 : 0));) \
    }
    EACH_ROW(FETCH)
#undef FETCH
#endif
#define UPDATE(r)                                                                  \
    {                                                                              \
        const FACTORS x = FACTOR(_mm512_set1_epi32((int)a##r[u * step]));          \
        c##r##0 = ADD_PRODUCT(c##r##0, x, b0);                                     \
        IF_WIDE(c##r##1 = ADD_PRODUCT(c##r##1, x, b1);)                            \
    }
#define UNIT                                                                       \
    {                                                                              \
        const FACTORS b0 = FACTOR(_mm512_load_si512(b));                           \
        IF_WIDE(const FACTORS b1 = FACTOR(_mm512_load_si512(b + 16));)             \
        EACH_ROW(UPDATE)                                                           \
        b += COLUMNS;                                                              \
        u++;                                                                       \
    }
    size_t u = 0;
#if TILE_STREAM
    while (u + UNITS_OF_FETCH <= units) {
        _mm_prefetch(next, _MM_HINT_T1);
        next += next_step;
        PREFETCH_TO_WRITE(fetched);
        IF_WIDE(PREFETCH_TO_WRITE(fetched + second_line);)
        fetched += fetched < fetched_last ? ldc : 0;
        UNIT UNIT UNIT UNIT
    }
#endif
    while (u < units)
        UNIT
#undef UNIT
#undef UPDATE
    const __mmask16 first = first_of(columns);
    IF_WIDE(const __mmask16 second = columns > 16 ? first_of(columns - 16) : 0;)
    const __m512 s = _mm512_set1_ps(alpha), f = _mm512_set1_ps(beta);
    if (beta == 0.0f) { /* C is not read */
#define KEEP(r)                                                                                 \
    if (r < rows) {                                                                             \
        _mm512_mask_storeu_ps(c + r * ldc, first, _mm512_mul_ps(c##r##0, s));                   \
        IF_WIDE(_mm512_mask_storeu_ps(c + r * ldc + 16, second, _mm512_mul_ps(c##r##1, s));)    \
    }
        EACH_ROW(KEEP)
#undef KEEP
    } else {
#define ADD_HALF(r, h, mask)                                                                            \
    _mm512_mask_storeu_ps(c + r * ldc + 16 * h, mask,                                                   \
                          _mm512_fmadd_ps(c##r##h, s,                                                   \
                                          _mm512_mul_ps(f, _mm512_maskz_loadu_ps(mask, c + r * ldc + 16 * h))));
#define ADD(r)                              \
    if (r < rows) {                         \
        ADD_HALF(r, 0, first)               \
        IF_WIDE(ADD_HALF(r, 1, second))     \
    }
        EACH_ROW(ADD)
#undef ADD
#undef ADD_HALF
    }
}

#undef TILE_NAME
#undef TILE_ROWS
#undef TILE_WIDE
#undef TILE_STREAM
#undef IF_WIDE
