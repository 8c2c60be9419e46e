/* Strassen's products with AVX-512. The sums of B's quadrants are packed in panels of 32 columns, each [units][32], beforehand or
 * group by group; those of A's quadrants are made product by product. A tile of a product is added to the one or two quadrants
 * of C that it belongs to while it is in registers. */
#include "math/strassen.h"

#include "base/system.h"
#include "math/packed.h"

#if defined(SD_HAVE_FMA_KERNELS)

#include "math/packed_avx512.h"

#define UNITS ((size_t)384) /* of half a slice of the inner dimension, at most */
#define UNITS_TRANSPOSED ((size_t)192)
#define ROWS_AT_ONCE ((size_t)208) /* of a quadrant of A: B comes by once for all, from afar as a rule */
#define COLUMNS_AT_ONCE ((size_t)192) /* of a quadrant of B that are packed for a gradient */

/* ---- the formulas -------------------------------------------------------------------------- */

enum { Q11, Q12, Q21, Q22, NONE };
enum { PRODUCTS = 7 };

_Static_assert((ROWS_AT_ONCE + ROWS) * UNITS * sizeof(float) <= SD_PACKED_SCRATCH, "sums of rows fit into the scratch");
_Static_assert((SD_STRASSEN_ROWS + COLUMNS_AT_ONCE) * UNITS_TRANSPOSED * sizeof(float) <= SD_PACKED_SCRATCH,
               "the factors of a gradient fit into the scratch");

static inline size_t half_of_rows(int quadrant) { return (size_t)quadrant / 2; }
static inline size_t half_of_columns(int quadrant) { return (size_t)quadrant % 2; }

/* One or two quadrants with their signs: x + sign y of a factor; and where a product is added to, or written (first). */
typedef struct formula {
    struct {
        int x, y;
        float sign;
    } a, b;
    struct {
        int quadrant;
        float sign;
        bool first;
    } c[2];
    bool goes_on; /* what goes to c[1] goes with the next product, which goes nowhere else: one sum of both */
} formula;

static const formula formulas[PRODUCTS] = {
    {{Q11, Q22, 1.0f}, {Q11, Q22, 1.0f}, {{Q11, 1.0f, true}, {Q22, 1.0f, true}}, false},
    {{Q21, Q22, 1.0f}, {Q11, NONE, 0.0f}, {{Q21, 1.0f, true}, {Q22, -1.0f, false}}, false},
    {{Q11, NONE, 0.0f}, {Q12, Q22, -1.0f}, {{Q12, 1.0f, true}, {Q22, 1.0f, false}}, true},
    {{Q21, Q11, -1.0f}, {Q11, Q12, 1.0f}, {{Q22, 1.0f, false}, {NONE, 0.0f, false}}, false},
    {{Q22, NONE, 0.0f}, {Q21, Q11, -1.0f}, {{Q21, 1.0f, false}, {Q11, 1.0f, false}}, true},
    {{Q12, Q22, -1.0f}, {Q21, Q22, 1.0f}, {{Q11, 1.0f, false}, {NONE, 0.0f, false}}, false},
    {{Q11, Q12, 1.0f}, {Q22, NONE, 0.0f}, {{Q11, -1.0f, false}, {Q12, 1.0f, false}}, false},
};

/* ---- one tile ------------------------------------------------------------------------------ */

/* Where a product goes in a quadrant of C. */
typedef struct destination {
    float *c;    /* NULL: nowhere */
    float sign;
    bool add;
    size_t rows; /* of a tile there: fewer than ROWS in the last one alone */
} destination;

/* Rows of a left factor. */
typedef struct left_rows {
    const float *a; /* NULL: none */
    size_t stride;
} left_rows;

#define TILE_NAME tile_of_rows
#define TILE_ROWS 8
#define TILE_WHOLE 1
#define TILE_STEP 1
#include "math/strassen_tile.h"
#define TILE_NAME tile_of_panels
#define TILE_ROWS 8
#define TILE_WHOLE 1
#define TILE_STEP 16
#include "math/strassen_tile.h"
#define TILE_NAME tile_of_8
#define TILE_ROWS 8
#define TILE_WHOLE 0
#define TILE_STEP 1
#include "math/strassen_tile.h"
#define TILE_NAME tile_of_4
#define TILE_ROWS 4
#define TILE_WHOLE 0
#define TILE_STEP 1
#include "math/strassen_tile.h"
#define TILE_NAME tile_of_2
#define TILE_ROWS 2
#define TILE_WHOLE 0
#define TILE_STEP 1
#include "math/strassen_tile.h"

/* ---- sums of quadrants --------------------------------------------------------------------- */

/* x + sign y; y: NULL for x alone. Rows `ld` apart, of which some may be missing: those are zeros. */
typedef struct quadrant_sum {
    const float *x, *y;
    size_t x_rows, y_rows, ld;
    float sign;
} quadrant_sum;

/* 16 numbers of a row, from `column` on. */
TARGET static inline __m512 sum_at(const quadrant_sum *s, size_t row, size_t column) {
    const __m512 x = row < s->x_rows ? _mm512_loadu_ps(s->x + row * s->ld + column) : _mm512_setzero_ps();
    if (s->y == NULL || row >= s->y_rows)
        return x;
    return _mm512_fmadd_ps(_mm512_loadu_ps(s->y + row * s->ld + column), _mm512_set1_ps(s->sign), x);
}

/* k rows, `columns` of each: panels of `width` (16 or 32) columns, each [k][width]. Read row by row, as memory likes it. */
TARGET static inline __attribute__((always_inline)) void sum_columns(const quadrant_sum *s, size_t k, size_t columns,
                                                                     size_t width, float *out) {
    const size_t whole = sd_size_min(s->x_rows, s->y == NULL ? k : s->y_rows), ld = s->ld;
    const float *const x = s->x, *const y = s->y;
    const __m512 sign = _mm512_set1_ps(s->sign);
    for (size_t u0 = 0; u0 < whole; u0 += FETCHED_ROWS)
        for (size_t j = 0; j < columns; j += width)
            for (size_t u = u0; u < whole && u < u0 + FETCHED_ROWS; u++) {
                float *to = out + j * k + u * width;
                for (size_t h = 0; h < width; h += 16) {
                    __m512 sum = _mm512_loadu_ps(x + u * ld + j + h);
                    if (y != NULL)
                        sum = _mm512_fmadd_ps(_mm512_loadu_ps(y + u * ld + j + h), sign, sum);
                    _mm512_store_ps(to + h, sum);
                }
            }
    for (size_t u = whole; u < k; u++)
        for (size_t j = 0; j < columns; j += 16)
            _mm512_store_ps(out + j / width * width * k + u * width + j % width, sum_at(s, u, j));
}

/* A panel of 32 columns which are rows of memory: [k][32]. */
TARGET static void sum_transposed(const quadrant_sum *s, size_t k, float *out) {
    for (size_t j = 0; j < COLUMNS; j += 16)
        for (size_t u = 0; u < k; u += 16) {
            __m512i t[16];
            for (size_t r = 0; r < 16; r++)
                t[r] = _mm512_castps_si512(sum_at(s, j + r, u));
            transpose(t);
            for (size_t r = 0; r < 16; r++)
                _mm512_store_si512((unit *)(out + (u + r) * COLUMNS + j), t[r]);
        }
}

/* ---- products with a packed factor --------------------------------------------------------- */

/* Slices of the inner dimension, in multiples of 32: of each, both halves are multiplied at once. */
static size_t slice_of(size_t k) { return even_part(k, 2 * UNITS, 32); }

/* Where the panel of product p that begins with a column lies: slice by slice, in each product by product, of which two that
 * are one sum have their panels in turn. */
static size_t panel_place(size_t columns, size_t l, size_t units, size_t p, size_t column) {
    const size_t first = p > 0 && formulas[p - 1].goes_on ? p - 1 : p, count = formulas[first].goes_on ? 2 : 1;
    return PRODUCTS * (l / 2 * columns) + (first * columns + column * count + (p - first) * COLUMNS) * units;
}

TARGET static void pack(bool tb, size_t n, size_t k, const float *b, size_t ldb, size_t first_panel, size_t panels,
                        float *packed) {
    const size_t slice = slice_of(k), columns = n / 2;
    for (size_t l = 0; l < k; l += slice) {
        const size_t units = sd_size_min(slice, k - l) / 2;
        for (size_t p = 0; p < PRODUCTS; p++) {
            const formula *f = &formulas[p];
            const size_t x = l + half_of_rows(f->b.x) * units, x_column = half_of_columns(f->b.x) * columns;
            const size_t y = l + half_of_rows(f->b.y) * units, y_column = half_of_columns(f->b.y) * columns;
            for (size_t panel = first_panel; panel < first_panel + panels; panel++) {
                const size_t j = panel * COLUMNS;
                float *out = packed + panel_place(columns, l, units, p, j);
                quadrant_sum sum = {.x_rows = tb ? COLUMNS : units, .ld = ldb, .sign = f->b.sign};
                sum.y_rows = sum.x_rows;
                sum.x = tb ? b + (x_column + j) * ldb + x : b + x * ldb + x_column + j;
                if (f->b.y != NONE)
                    sum.y = tb ? b + (y_column + j) * ldb + y : b + y * ldb + y_column + j;
                if (tb)
                    sum_transposed(&sum, units, out);
                else
                    sum_columns(&sum, units, COLUMNS, COLUMNS, out);
            }
        }
    }
}

/* Where a product goes in quadrants of `rows` x `columns`. */
static inline void destinations_of(const formula *f, bool add, float *c, size_t ldc, size_t rows, size_t columns,
                                   destination to[2]) {
    for (size_t d = 0; d < 2; d++) {
        const int quadrant = f->c[d].quadrant;
        to[d].c = quadrant == NONE ? NULL : c + half_of_rows(quadrant) * rows * ldc + half_of_columns(quadrant) * columns;
        to[d].sign = f->c[d].sign;
        to[d].add = add || !f->c[d].first;
        to[d].rows = ROWS;
    }
}

/* `rows` rows of k numbers, one after the other; the next row is fetched meanwhile. */
TARGET static void sum_rows(const quadrant_sum *s, size_t rows, size_t k, float *out) {
    const size_t whole = sd_size_min(rows, sd_size_min(s->x_rows, s->y == NULL ? rows : s->y_rows)), ld = s->ld;
    const float *x = s->x, *y = s->y;
    const __m512 sign = _mm512_set1_ps(s->sign);
    for (size_t r = 0; r < whole; r++, x += ld, out += k) {
        const size_t next = r + 1 < whole ? ld : 0;
        for (size_t u = 0; u < k; u += 16) {
            __m512 sum = _mm512_loadu_ps(x + u);
            _mm_prefetch((const char *)(x + next + u), _MM_HINT_T0);
            if (y != NULL) {
                sum = _mm512_fmadd_ps(_mm512_loadu_ps(y + u), sign, sum);
                _mm_prefetch((const char *)(y + next + u), _MM_HINT_T0);
            }
            _mm512_store_ps(out + u, sum);
        }
        y = y == NULL ? NULL : y + ld;
    }
    for (size_t r = whole; r < rows; r++, out += k)
        for (size_t u = 0; u < k; u += 16)
            _mm512_store_ps(out + u, sum_at(s, r, u));
}

/* The left factor of a product, and the same for its last rows, up to 8: a copy where one of them is missing. */
typedef struct left_factor {
    left_rows all, last;
} left_factor;

/* Some rows of all quadrants, of which the last one may be missing in the lower ones. */
typedef struct rows_at_hand {
    const float *upper, *lower;
    size_t lda, rows, lower_rows;
} rows_at_hand;

TARGET static left_factor left_factor_of(const formula *f, const rows_at_hand *a, size_t units, float *sums, float *copy) {
    const float *const halves[2] = {a->upper, a->lower};
    const size_t there[2] = {a->rows, a->lower_rows}, last = (a->rows - 1) / ROWS * ROWS;
    const size_t half = half_of_rows(f->a.x), other = f->a.y == NONE ? 0 : half_of_rows(f->a.y);
    quadrant_sum sum = {.x = halves[half] + half_of_columns(f->a.x) * units,
                        .x_rows = there[half],
                        .ld = a->lda,
                        .sign = f->a.sign};
    if (f->a.y == NONE) {
        const left_rows all = {sum.x, a->lda};
        if (there[half] == a->rows)
            return (left_factor){all, {sum.x + last * a->lda, a->lda}};
        sum.x += last * a->lda;
        sum.x_rows -= last;
        sum_rows(&sum, a->rows - last, units, copy);
        return (left_factor){all, {copy, units}};
    }
    sum.y = halves[other] + half_of_columns(f->a.y) * units;
    sum.y_rows = there[other];
    sum_rows(&sum, a->rows, units, sums);
    return (left_factor){{sums, units}, {sums + last * units, units}};
}

/* The last rows, up to 8, of which one may be missing in the lower quadrants. */
TARGET static void last_tile(const formula *f, size_t units, const left_rows a[2], size_t rows, bool lower_misses,
                             const float *b, const destination to[2], size_t place, size_t ldc) {
    destination some[2] = {to[0], to[1]};
    for (size_t d = 0; d < 2; d++)
        some[d].rows = rows - (lower_misses && half_of_rows(f->c[d].quadrant) == 1 ? 1 : 0);
    (rows > 4 ? tile_of_8 : rows > 2 ? tile_of_4 : tile_of_2)(units, a, rows, b, some, place, ldc, (const char *)b, 0);
}

TARGET static void multiply(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *packed, float *c,
                            size_t ldc, void *scratch) {
    const size_t upper = sd_size_ceil(m, 2), columns = n / 2, slice = slice_of(k);
    const size_t rows_at_once = even_part(upper, ROWS_AT_ONCE, ROWS);
    float *copy = scratch, *sums = copy + ROWS * UNITS;
    for (size_t i = 0; i < upper; i += rows_at_once) {
        const size_t rows = sd_size_min(rows_at_once, upper - i), lower_rows = sd_size_min(rows, m - upper - i);
        for (size_t l = 0; l < k; l += slice) {
            const size_t units = sd_size_min(slice, k - l) / 2;
            const float *b = packed + l / 2 * PRODUCTS * columns;
            const rows_at_hand at_hand = {a + i * lda + l, a + (upper + i) * lda + l, lda, rows, lower_rows};
            for (size_t p = 0, count; p < PRODUCTS; p += count) {
                count = formulas[p].goes_on ? 2 : 1;
                const size_t panel = count * COLUMNS * units, share = panel * sizeof(float) * ROWS / rows;
                left_factor left[2] = {left_factor_of(&formulas[p], &at_hand, units, sums, copy)};
                if (count == 2) /* of two products that are one sum only the second has a sum of quadrants */
                    left[1] = left_factor_of(&formulas[p + 1], &at_hand, units, sums, copy);
                const left_rows last[2] = {left[0].last, left[1].last};
                destination to[2];
                destinations_of(&formulas[p], l > 0, c + i * ldc, ldc, upper, columns, to);
                for (size_t j = 0; j < columns; j += COLUMNS, b += panel) {
                    /* the panel that follows, of the next product too; the last one begins again */
                    const bool ends = p + count == PRODUCTS && j + COLUMNS == columns;
                    const char *next = (const char *)(ends ? packed : b + panel);
                    left_rows from[2] = {left[0].all, left[1].all};
                    for (size_t r = 0; r < rows; r += ROWS, next += share) {
                        if (r + ROWS <= lower_rows)
                            tile_of_rows(units, from, ROWS, b, to, r * ldc + j, ldc, next,
                                         share * UNITS_OF_FETCH / (count * units));
                        else
                            last_tile(&formulas[p], units, last, rows - r, lower_rows < rows, b, to, r * ldc + j, ldc);
                        from[0].a += ROWS * from[0].stride;
                        if (count == 2)
                            from[1].a += ROWS * from[1].stride;
                    }
                }
            }
        }
    }
}

/* ---- gradients of weights ------------------------------------------------------------------ */

/* The rows [l, l + units) of a slice are the first half of the inner dimension, those from l + units on the second, of which
 * one may be missing. */
typedef struct gradient_slice {
    size_t first, units, second_units;
} gradient_slice;

/* A sum of quadrants that are halves of rows and columns of X; `column` of each half. op(A) has X's columns as its rows. */
static quadrant_sum sum_of(const gradient_slice *s, const float *x, size_t ld, size_t half_columns, size_t column, int one,
                           int other, float sign, bool transposed) {
    const size_t one_row = transposed ? half_of_columns(one) : half_of_rows(one);
    const size_t one_column = transposed ? half_of_rows(one) : half_of_columns(one);
    const size_t other_row = transposed ? half_of_columns(other) : half_of_rows(other);
    const size_t other_column = transposed ? half_of_rows(other) : half_of_columns(other);
    quadrant_sum sum = {.x = x + (s->first + one_row * s->units) * ld + one_column * half_columns + column,
                        .x_rows = one_row == 0 ? s->units : s->second_units,
                        .ld = ld,
                        .sign = sign};
    if (other != NONE) {
        sum.y = x + (s->first + other_row * s->units) * ld + other_column * half_columns + column;
        sum.y_rows = other_row == 0 ? s->units : s->second_units;
    }
    return sum;
}

/* What is needed next, in columns of lines of 64 bytes, which tiles fetch one after the other: each goes down some rows. */
typedef struct lines_ahead {
    struct {
        const float *x;
        size_t ld, columns;
    } parts[4];
    size_t count, rows;
} lines_ahead;

static inline void fetch_sum(lines_ahead *lines, const quadrant_sum *s, size_t columns) {
    const float *const sources[2] = {s->x, s->y};
    for (size_t i = 0; i < 2 && sources[i] != NULL; i++) {
        lines->parts[lines->count].x = sources[i];
        lines->parts[lines->count].ld = s->ld;
        lines->parts[lines->count++].columns = sd_size_ceil(columns, 16);
    }
}

/* Where tile number `index` of a product with so many units begins, and how far its lines are apart. */
static inline const char *fetch_of_tile(const lines_ahead *lines, size_t units, size_t index, size_t *step) {
    const size_t rows = units / UNITS_OF_FETCH;
    const size_t tiles = rows == 0 ? 1 : sd_size_ceil(lines->rows, rows); /* for a column of lines */
    size_t column = index / tiles, i = 0;
    while (i < lines->count && column >= lines->parts[i].columns)
        column -= lines->parts[i++].columns;
    *step = 0;
    if (i == lines->count)
        return NULL;
    *step = lines->parts[i].ld * sizeof(float);
    return (const char *)(lines->parts[i].x + index % tiles * rows * lines->parts[i].ld + column * 16);
}

TARGET static void gradient(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float beta,
                            float *c, size_t ldc, size_t row, size_t rows, size_t column, size_t columns, void *scratch) {
    const size_t units = even_part(sd_size_ceil(k, 2), UNITS_TRANSPOSED, 8);
    const size_t columns_at_once = even_part(columns, COLUMNS_AT_ONCE, COLUMNS);
    float *left = scratch, *right = left + SD_STRASSEN_ROWS * UNITS_TRANSPOSED;
    for (size_t l = 0; l < k; l += 2 * units) {
        const size_t depth = sd_size_min(2 * units, k - l);
        const gradient_slice slice = {l, sd_size_ceil(depth, 2), depth / 2};
        for (size_t p = 0; p < PRODUCTS; p++) {
            const formula *f = &formulas[p], *next = &formulas[(p + 1) % PRODUCTS];
            const quadrant_sum a_sum = sum_of(&slice, a, lda, m / 2, row, f->a.x, f->a.y, f->a.sign, true);
            sum_columns(&a_sum, slice.units, rows, 16, left);
            destination to[2];
            destinations_of(f, l > 0 || beta != 0.0f, c + row * ldc + column, ldc, m / 2, n / 2, to);
            for (size_t j = 0; j < columns; j += columns_at_once) {
                const size_t here = sd_size_min(columns_at_once, columns - j), after = j + here;
                const quadrant_sum b_sum = sum_of(&slice, b, ldb, n / 2, column + j, f->b.x, f->b.y, f->b.sign, false);
                sum_columns(&b_sum, slice.units, here, COLUMNS, right);
                lines_ahead lines = {.rows = slice.units};
                const gradient_slice later = {p + 1 == PRODUCTS ? l + 2 * units : l, slice.units, slice.second_units};
                if (after < columns) {
                    const quadrant_sum s = sum_of(&slice, b, ldb, n / 2, column + after, f->b.x, f->b.y, f->b.sign, false);
                    fetch_sum(&lines, &s, sd_size_min(columns_at_once, columns - after));
                } else if (later.first < k) {
                    const quadrant_sum a_next =
                        sum_of(&later, a, lda, m / 2, row, next->a.x, next->a.y, next->a.sign, true);
                    const quadrant_sum b_next =
                        sum_of(&later, b, ldb, n / 2, column, next->b.x, next->b.y, next->b.sign, false);
                    fetch_sum(&lines, &b_next, columns_at_once);
                    fetch_sum(&lines, &a_next, rows);
                }
                size_t tiles = 0;
                for (size_t h = 0; h < here; h += COLUMNS)
                    for (size_t r = 0; r < rows; r += ROWS) {
                        const float *panel = left + r / 16 * 16 * slice.units + r % 16;
                        size_t step;
                        const char *fetched = fetch_of_tile(&lines, slice.units, tiles++, &step);
                        const left_rows from[2] = {{panel, 1}, {NULL, 0}};
                        tile_of_panels(slice.units, from, ROWS, right + h * slice.units, to, r * ldc + j + h, ldc,
                                       fetched == NULL ? (const char *)panel : fetched, step);
                    }
            }
        }
    }
}

const sd_strassen sd_strassen_avx512 = {pack, multiply, gradient};

#else

/* ISO C wants something in every file. */
typedef int sd_strassen_nothing;

#endif
