/* One tile of one of Strassen's products: strassen_avx512.c includes this file with these macros set.
 *   TILE_NAME     name of the function
 *   TILE_ROWS     2, 4 or 8
 *   TILE_WHOLE    1: all rows exist; 0: `rows` of A, and as many of each destination as it tells
 *   TILE_STEP     numbers from one unit of a row of A to the next: 1, or 16 in panels of 16 rows
 * A B for so many rows and 32 columns, `place` numbers further in both destinations. Unit u of row r of A is at
 * a[r*stride + u*TILE_STEP]. With each four units a line is fetched of `next`, next_step bytes further, and of a row of C.
 * Not inlined: inside of `gradient` GCC 12 kept some of the sums in memory, which took 12 to 20% of its time. */
TARGET static __attribute__((noinline)) void TILE_NAME(size_t units, const left_rows left[2], size_t rows, const float *b,
                                                       const destination to[2], size_t place, size_t ldc,
                                                       const char *next, size_t next_step) {
#define ZERO(r) __m512 c##r##0 = _mm512_setzero_ps(), c##r##1 = _mm512_setzero_ps();
    EACH_ROW(ZERO)
#undef ZERO
    const float *first = to[0].c + place, *second = to[1].c == NULL ? first : to[1].c + place;
    const float *const last = first + ((TILE_WHOLE ? TILE_ROWS : rows) - 1) * ldc;
#define UPDATE(r)                                               \
    {                                                           \
        const __m512 x = _mm512_set1_ps(a##r[u * TILE_STEP]);   \
        c##r##0 = _mm512_fmadd_ps(x, b0, c##r##0);              \
        c##r##1 = _mm512_fmadd_ps(x, b1, c##r##1);              \
    }
#define UNIT                                                                        \
    {                                                                               \
        const __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);           \
        EACH_ROW(UPDATE)                                                            \
        b += COLUMNS;                                                               \
        u++;                                                                        \
    }
#define ROW(r) const float *a##r = from->a + (TILE_WHOLE || r < rows ? r : 0) * from->stride; /* that does exist */
#define PRODUCT(i)                                          \
    {                                                       \
        const left_rows *from = &left[i];                   \
        EACH_ROW(ROW)                                       \
        size_t u = 0;                                       \
        while (u + UNITS_OF_FETCH <= units) {               \
            _mm_prefetch(next, _MM_HINT_T1);                \
            next += next_step;                              \
            PREFETCH_TO_WRITE(first);                       \
            PREFETCH_TO_WRITE(first + 16);                  \
            PREFETCH_TO_WRITE(second);                      \
            PREFETCH_TO_WRITE(second + 16);                 \
            if (first < last) {                             \
                first += ldc;                               \
                second += ldc;                              \
            }                                               \
            UNIT UNIT UNIT UNIT                             \
        }                                                   \
        while (u < units)                                   \
            UNIT                                            \
    }
    /* twice the same: a loop over destinations would not keep the sums in registers */
#define WRITE(r)                                                                \
    if (TILE_WHOLE || r < there) {                                              \
        _mm512_storeu_ps(c + r * ldc, _mm512_mul_ps(c##r##0, sign));            \
        _mm512_storeu_ps(c + r * ldc + 16, _mm512_mul_ps(c##r##1, sign));       \
    }
#define ADD(r)                                                                                                  \
    if (TILE_WHOLE || r < there) {                                                                              \
        _mm512_storeu_ps(c + r * ldc, _mm512_fmadd_ps(c##r##0, sign, _mm512_loadu_ps(c + r * ldc)));            \
        _mm512_storeu_ps(c + r * ldc + 16, _mm512_fmadd_ps(c##r##1, sign, _mm512_loadu_ps(c + r * ldc + 16)));  \
    }
#define STORE(d)                                                \
    {                                                           \
        float *c = to[d].c + place;                             \
        const __m512 sign = _mm512_set1_ps(to[d].sign);         \
        const size_t there = to[d].rows < rows ? to[d].rows : rows; \
        (void)there;                                            \
        if (to[d].add) {                                        \
            EACH_ROW(ADD)                                       \
        } else {                                                \
            EACH_ROW(WRITE)                                     \
        }                                                       \
    }
    PRODUCT(0)
    STORE(0)
    if (left[1].a != NULL)
        PRODUCT(1)
    if (to[1].c != NULL)
        STORE(1)
#undef STORE
#undef PRODUCT
#undef ROW
#undef UNIT
#undef UPDATE
#undef ADD
#undef WRITE
}

#undef TILE_NAME
#undef TILE_ROWS
#undef TILE_WHOLE
#undef TILE_STEP
