/* The product, and that with a factor packed beforehand, of a file that has tiles and packing: packed_avx512.c, packed_bf16.c and
 * packed_avx2.c include this one last. They define
 *   TARGET               the instruction set of all functions
 *   ROWS, PANEL_ROWS     of a tile; of a panel of A's rows where op(A) is transposed, a multiple of ROWS
 *   UNITS, UNITS_TRANSPOSED, A_BYTES, B_BYTES     of a slice, at most, and of its parts
 *   factors, per_unit    how numbers become units; how many neighbours along the inner dimension are in one
 *   number_bytes         of a number in memory. Where it is not a float, only the rows that pack_columns takes are read
 *   CHUNK_ROWS           see sd_gemm_rows
 *   LEFT_AS_IT_IS        1: rows of A are units as they lie in memory, 0: pack_rows
 *   pack_columns, pack_transposed, tile_of, stream_of
 *
 * Packed factors are units of 32 bits. With `units` of a slice of the inner dimension:
 *   B        panels of 32 columns, each [units][32]
 *   A        rows of units, `stride` apart: floats as they lie in memory, bfloat16 packed. Where op(A) is transposed,
 *            panels of PANEL_ROWS rows, each [units][PANEL_ROWS], as they come out of memory
 * A slice of A stays in the second cache while B comes by panel by panel, each of which is read by all rows of the slice:
 * each factor is packed once, as long as the rows fit. What is needed next is fetched meanwhile, for these products are
 * parts of something larger and find little of their factors in a cache.
 *
 * A B that was packed beforehand holds slice after slice, of each all panels. */
#define INLINE TARGET static inline __attribute__((always_inline))

_Static_assert(UNITS * UNIT_BYTES * COLUMNS <= B_BYTES && UNITS * UNIT_BYTES * PANEL_ROWS <= A_BYTES &&
                   A_BYTES + B_BYTES <= SD_PACKED_SCRATCH,
               "a panel of each fits into the scratch");
_Static_assert(PANEL_ROWS % ROWS == 0, "a tile lies in one panel");

/* How a product is cut. Units must depend on k and ta alone, so that sums are the same however C is cut. */
typedef struct slices {
    size_t units, rows, columns; /* at once; rows: of A, columns: of B */
} slices;

static slices slices_of(factors kind, bool ta, size_t m, size_t n, size_t k) {
    const size_t units = even_part(sd_size_ceil(k, per_unit(kind)), ta ? UNITS_TRANSPOSED : UNITS, 16);
    return (slices){units, even_part(m, A_BYTES / (UNIT_BYTES * units * PANEL_ROWS) * PANEL_ROWS, PANEL_ROWS),
                    even_part(n, B_BYTES / (UNIT_BYTES * units * COLUMNS) * COLUMNS, COLUMNS)};
}

/* The rows of A that are multiplied: packed, or floats as they are. */
typedef struct left_rows {
    const unit *units;
    size_t count, stride;
    bool panels; /* of PANEL_ROWS */
} left_rows;

INLINE left_rows take_rows(factors kind, bool ta, const void *a, size_t lda, size_t rows, size_t depth, size_t stride,
                           unit *packed) {
    if (ta) {
        pack_columns(kind, a, lda, depth, rows, PANEL_ROWS, packed);
        return (left_rows){packed, rows, 1, true};
    }
#if LEFT_AS_IT_IS
    (void)stride;
    return (left_rows){a, rows, lda, false};
#else
    pack_rows(kind, a, lda, rows, depth, packed, stride);
    return (left_rows){packed, rows, stride, false};
#endif
}

/* C = alpha A B + beta C for a slice of A and panels of B; meanwhile the lines of `later` are fetched. */
INLINE void panels(factors kind, const left_rows *a, size_t units, const unit *b, size_t columns, float alpha, float beta,
                   float *c, size_t ldc, ahead later) {
    const size_t share = sd_size_ceil(lines_of(&later), sd_size_ceil(columns, COLUMNS) * sd_size_ceil(a->count, ROWS));
    for (size_t j = 0; j < columns; j += COLUMNS) {
        for (size_t i = 0; i < a->count; i += ROWS) {
            const size_t rows = sd_size_min(ROWS, a->count - i);
            const unit *from = a->units + (a->panels ? i / PANEL_ROWS * PANEL_ROWS * units + i % PANEL_ROWS : i * a->stride);
            fetch_some(&later, share);
            tile_function *tile = tile_of(kind, a->panels, rows, columns - j);
            tile(units, from, a->stride, a->panels ? PANEL_ROWS : 1, b + j * units, alpha, beta, c + i * ldc + j, ldc, rows,
                 sd_size_min(COLUMNS, columns - j));
        }
    }
}

/* Of some rows, while columns of a slice are multiplied: the columns that follow, from `done` on. While the last ones are, of a
 * gradient of weights (op(A) transposed), whose factors are long and come from memory: the rows that follow, or the next slice. */
INLINE ahead needed_next(factors kind, bool ta, bool tb, const slices *cut, size_t m, size_t n, size_t k, const void *a,
                         size_t lda, const void *b, size_t ldb, size_t l, size_t i, size_t done) {
    const size_t bytes = number_bytes(kind), slice = cut->units * per_unit(kind), depth = sd_size_min(slice, k - l);
    ahead later = {{0}, {0}};
    if (done < n) {
        const size_t columns = sd_size_min(cut->columns, n - done);
        const void *next = number_at(b, tb ? done * ldb + l : l * ldb + done, bytes);
        later.first = tb ? fetch_later(next, ldb * bytes, columns, depth * bytes)
                         : fetch_later(next, ldb * bytes, depth, columns * bytes);
    } else if (ta && i + cut->rows < m) {
        const size_t next = i + cut->rows, rows = sd_size_min(cut->rows, m - next);
        later.first = fetch_later(number_at(a, l * lda + next, bytes), lda * bytes, depth, rows * bytes);
    } else if (ta && !tb && l + depth < k) {
        const size_t next = l + depth, rows = sd_size_min(cut->rows, m), columns = sd_size_min(cut->columns, n);
        const size_t next_depth = sd_size_min(slice, k - next);
        later.first = fetch_later(number_at(a, next * lda, bytes), lda * bytes, next_depth, rows * bytes);
        later.second = fetch_later(number_at(b, next * ldb, bytes), ldb * bytes, next_depth, columns * bytes);
    }
    return later;
}

INLINE void product(factors kind, bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const void *a, size_t lda,
                    const void *b, size_t ldb, float beta, float *c, size_t ldc, void *scratch) {
    unit *left = scratch, *right = left + A_BYTES / UNIT_BYTES;
    const slices cut = slices_of(kind, ta, m, n, k);
    const size_t each = per_unit(kind), bytes = number_bytes(kind);

    for (size_t l = 0; l < k; l += cut.units * each) {
        const size_t depth = sd_size_min(cut.units * each, k - l), units = sd_size_ceil(depth, each);
        for (size_t i = 0; i < m; i += cut.rows) {
            const left_rows rows = take_rows(kind, ta, number_at(a, ta ? l * lda + i : i * lda + l, bytes), lda,
                                             sd_size_min(cut.rows, m - i), depth, cut.units, left);
            for (size_t j = 0; j < n; j += cut.columns) {
                const size_t columns = sd_size_min(cut.columns, n - j);
                const void *from = number_at(b, tb ? j * ldb + l : l * ldb + j, bytes);
                if (tb)
                    pack_transposed(kind, from, ldb, depth, columns, right);
                else
                    pack_columns(kind, from, ldb, depth, columns, COLUMNS, right);
                const ahead later = needed_next(kind, ta, tb, &cut, m, n, k, a, lda, b, ldb, l, i, j + columns);
                panels(kind, &rows, units, right, columns, alpha, l == 0 ? beta : 1.0f, c + i * ldc + j, ldc, later);
            }
        }
    }
}

/* ---- B packed beforehand ------------------------------------------------------------------- */

/* Where the panel that begins with a column lies in the slice from l on: its `units` follow those of all slices before it
 * and of the panels before it. */
static size_t panel_place(factors kind, size_t n, size_t l, size_t units, size_t column) {
    return l / per_unit(kind) * sd_size_ceil(n, COLUMNS) * COLUMNS + column * units;
}

INLINE void pack(factors kind, bool tb, size_t n, size_t k, const float *b, size_t ldb, size_t first_panel, size_t count,
                 void *packed) {
    const slices cut = slices_of(kind, false, 1, n, k);
    const size_t each = per_unit(kind), first = first_panel * COLUMNS, columns = sd_size_min(count * COLUMNS, n - first);
    for (size_t l = 0; l < k; l += cut.units * each) {
        const size_t depth = sd_size_min(cut.units * each, k - l), units = sd_size_ceil(depth, each);
        unit *out = (unit *)packed + panel_place(kind, n, l, units, first);
        if (tb)
            pack_transposed(kind, b + first * ldb + l, ldb, depth, columns, out);
        else
            pack_columns(kind, b + l * ldb + first, ldb, depth, columns, COLUMNS, out);
    }
}

/* C = A B + beta C for a slice of A and a panel of B; meanwhile the panel `next` is fetched. */
INLINE void stream_panel(factors kind, const left_rows *a, size_t units, const unit *b, size_t columns, float beta, float *c,
                         size_t ldc, const unit *next) {
    const size_t share = units * COLUMNS * UNIT_BYTES / sd_size_ceil(a->count, ROWS);
    const size_t step = share * UNITS_OF_FETCH / units;
    const char *fetched = (const char *)next;
    for (size_t i = 0; i < a->count; i += ROWS, fetched += share) {
        const size_t rows = sd_size_min(ROWS, a->count - i);
        stream_of(kind, rows, columns)(units, a->units + i * a->stride, a->stride, b, beta, c + i * ldc, ldc, rows, columns,
                                       fetched, step);
    }
}

INLINE void multiply(factors kind, size_t m, size_t n, size_t k, const float *a, size_t lda, const void *packed, size_t first,
                     size_t columns, float *c, size_t ldc, const sd_finish *finish, void *scratch) {
    const slices cut = slices_of(kind, false, m, n, k);
    const size_t each = per_unit(kind);
    for (size_t l = 0; l < k; l += cut.units * each) {
        const size_t depth = sd_size_min(cut.units * each, k - l), units = sd_size_ceil(depth, each);
        const unit *b = (const unit *)packed + panel_place(kind, n, l, units, first);
        const bool last = l + depth == k;
        for (size_t i = 0; i < m; i += cut.rows) {
            const left_rows rows = take_rows(kind, false, a + i * lda + l, lda, sd_size_min(cut.rows, m - i), depth,
                                             cut.units, scratch);
            for (size_t j = 0; j < columns; j += COLUMNS) {
                const unit *panel = b + j * units;
                stream_panel(kind, &rows, units, panel, sd_size_min(COLUMNS, columns - j), l == 0 ? 0.0f : 1.0f,
                             c + i * ldc + j, ldc, j + COLUMNS < columns ? panel + COLUMNS * units : panel);
                if (last && finish != NULL)
                    sd_finish_panel(finish, c, ldc, i, rows.count, j, columns);
            }
        }
    }
}

#define WAY(name, kind, rounded, numbers_of_unit)                                                                      \
    PACKED_WAY(TARGET, name, kind, rounded, numbers_of_unit, UNIT_BYTES, SD_PACKED_SCRATCH, CHUNK_ROWS)
