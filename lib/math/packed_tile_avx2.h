/* One tile of a product with AVX2, a tile_function or stream_function: packed_avx2.c includes this file with these macros set.
 *   TILE_NAME      name of the function
 *   TILE_ROWS      2, 4 or 6: of a whole tile
 *   TILE_STREAM    1: a stream_function
 *   TILE_PANELS    1: A lies in panels of PANEL_ROWS rows, filled up with zeros, 0: in rows of units
 * A panel of 32 columns is multiplied half by half: 6 x 16 sums are twelve of sixteen registers. Every number of C is the same sum
 * in the same order, whichever tile it is in. */
#if TILE_STREAM
TARGET static void TILE_NAME(size_t units, const unit *a, size_t stride, const unit *b, float beta, float *c, size_t ldc,
                             size_t rows, size_t columns, const char *next, size_t next_step) {
    const float alpha = 1.0f;
#else
TARGET static void TILE_NAME(size_t units, const unit *a, size_t stride, size_t step, const unit *b, float alpha, float beta,
                             float *c, size_t ldc, size_t rows, size_t columns) {
    (void)step;
#endif
    for (size_t half = 0; half < columns; half += 16, c += 16) {
        const float *right = (const float *)b + half;
        const size_t left = columns - half;
        const float *fetched = c, *const last = c + (rows - 1) * ldc; /* C is on its way while the sums are made */
#if TILE_PANELS
        const float *panel = (const float *)a;
        (void)stride;
#define LEFT(r, i) (panel + (i)*PANEL_ROWS + r)
#define LEFT_ON(r)
#else
#define LEFT(r, i) (a##r + (i))
#define LEFT_ON(r) a##r += UNITS_OF_FETCH;
#define ROW(r) const float *a##r = (const float *)a + (r < rows ? r : 0) * stride; /* a row that does not exist is not read */
        EACH_ROW(ROW)
#undef ROW
#endif
#define ZERO(r) __m256 c##r##0 = _mm256_setzero_ps(), c##r##1 = _mm256_setzero_ps();
        EACH_ROW(ZERO)
#undef ZERO
#define UPDATE(r, i)                                                    \
    {                                                                   \
        const __m256 x = _mm256_broadcast_ss(LEFT(r, i));               \
        c##r##0 = _mm256_fmadd_ps(x, b0, c##r##0);                      \
        c##r##1 = _mm256_fmadd_ps(x, b1, c##r##1);                      \
    }
#define UNIT(i)                                                                         \
    {                                                                                   \
        const __m256 b0 = _mm256_load_ps(right + (i)*COLUMNS);                          \
        const __m256 b1 = _mm256_load_ps(right + (i)*COLUMNS + 8);                      \
        EACH_ROW_AT(UPDATE, i)                                                          \
    }
        size_t todo = units;
        for (; todo >= UNITS_OF_FETCH; todo -= UNITS_OF_FETCH) {
            PREFETCH_TO_WRITE(fetched);
            fetched += fetched < last ? ldc : 0;
#if TILE_STREAM
            PREFETCH_LATER(next);
            next += half == 0 ? next_step : 0;
#endif
            UNIT(0) UNIT(1) UNIT(2) UNIT(3)
            right += UNITS_OF_FETCH * COLUMNS;
#if TILE_PANELS
            panel += UNITS_OF_FETCH * PANEL_ROWS;
#else
            EACH_ROW(LEFT_ON)
#endif
        }
        for (size_t u = 0; u < todo; u++)
            UNIT(u)
#undef UNIT
#undef UPDATE
#undef LEFT
#undef LEFT_ON
        const __m256 s = _mm256_set1_ps(alpha), f = _mm256_set1_ps(beta);
        if (beta == 0.0f) { /* C is not read */
#define KEEP(r)                                                                 \
    if (r < rows) {                                                             \
        store_some(c + r * ldc, _mm256_mul_ps(c##r##0, s), left);               \
        store_some(c + r * ldc + 8, _mm256_mul_ps(c##r##1, s), after(left));    \
    }
            EACH_ROW(KEEP)
#undef KEEP
        } else {
#define ADD_EIGHT(p, sum, count) store_some(p, _mm256_fmadd_ps(sum, s, _mm256_mul_ps(f, load_some(p, count))), count);
#define ADD(r)                                                      \
    if (r < rows) {                                                 \
        ADD_EIGHT(c + r * ldc, c##r##0, left)                       \
        ADD_EIGHT(c + r * ldc + 8, c##r##1, after(left))            \
    }
            EACH_ROW(ADD)
#undef ADD
#undef ADD_EIGHT
        }
    }
}

#undef TILE_NAME
#undef TILE_ROWS
#undef TILE_STREAM
#undef TILE_PANELS
