/* Packing with AVX-512: for packed_avx512.c and packed_bf16.c, which define units_of_row and units_of_columns of their kinds;
 * and how their products are cut (packed_product.h). */

/* Long slices read and write C less often; short ones, where A is transposed (gradients of weights: C has as many rows as A's
 * slice), leave room for more rows, so that B is packed less often. */
#define UNITS ((size_t)384)
#define UNITS_TRANSPOSED ((size_t)128)
#define A_BYTES ((size_t)384 * 1024)
#define B_BYTES (SD_PACKED_SCRATCH - A_BYTES)
#define PANEL_ROWS 16

/* k rows of X, ld apart, of numbers as kind has them, `columns` of each: panels of `width` (16 or 32) columns, each
 * [units][width]. Read row by row, as memory likes it. Columns up to the end of the last panel become 0. */
TARGET static inline __attribute__((always_inline)) void pack_columns(factors kind, const void *x, size_t ld, size_t k,
                                                                      size_t columns, size_t width, unit *out) {
    const size_t each = per_unit(kind), units = sd_size_ceil(k, each), bytes = number_bytes(kind);
    for (size_t u0 = 0; u0 < units; u0 += FETCHED_ROWS)
        for (size_t j = 0; j < columns; j += width)
            for (size_t u = u0; u < units && u < u0 + FETCHED_ROWS; u++) {
                const void *row = number_at(x, u * each * ld + j, bytes);
                const void *next = each == 2 && 2 * u + 1 < k ? number_at(row, ld, bytes) : NULL;
                unit *to = out + j * units + u * width;
                for (size_t h = 0; h < width; h += 16) {
                    const size_t left = j + h < columns ? columns - j - h : 0;
                    const void *next_here = next == NULL ? NULL : number_at(next, h, bytes);
                    _mm512_store_si512(to + h, units_of_columns(kind, number_at(row, h, bytes), next_here, first_of(left)));
                }
            }
}

/* Panels of 32 columns of B where op(B) is transposed: column j is the row j of X, of k floats. */
TARGET static void pack_transposed(factors kind, const float *x, size_t ld, size_t k, size_t columns, unit *out) {
    const size_t units = sd_size_ceil(k, per_unit(kind)), padded = sd_size_ceil(columns, COLUMNS) * COLUMNS;
    for (size_t j = 0; j < padded; j += 16) {
        size_t count = j < columns ? sd_size_min(16, columns - j) : 0;
        unit *to = out + j / COLUMNS * COLUMNS * units + j % COLUMNS;
        for (size_t u = 0; u < units; u += 16) {
            __m512i t[16];
            size_t here = sd_size_min(16, units - u);
            /* 16 streams are too many for the CPU to foresee: the same part of the next 16 rows is fetched meanwhile */
            for (size_t r = 0; r < 16 && j + 16 + r < columns; r++) {
                const char *next = (const char *)(x + (j + 16 + r) * ld + per_unit(kind) * u);
                _mm_prefetch(next, _MM_HINT_T1);
                if (per_unit(kind) == 2)
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
