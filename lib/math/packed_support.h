/* What all products with packed factors share, on any CPU: units, parts of nearly equal size, lines that are fetched ahead, and how
 * a way to multiply is made of its three functions. */
#ifndef SD_PACKED_SUPPORT_H
#define SD_PACKED_SUPPORT_H

#include "math/packed.h"

#define COLUMNS 32               /* of a panel of B */
#define FETCHED_ROWS ((size_t)8) /* of columns that are packed, at once: they stay in the first cache */

_Static_assert(COLUMNS == SD_PACKED_COLUMNS, "panels are as the header says");

/* Whatever lies in memory is read as units. */
typedef uint32_t __attribute__((may_alias)) unit;
#define UNIT_BYTES sizeof(unit)

/* X of each row of a tile, of which TILE_ROWS tells how many: 2, 4, 6 or 8. */
#define EACH_ROW(X) EACH_OF(TILE_ROWS)(X)
#define EACH_OF(rows) EACH_OF_(rows)
#define EACH_OF_(rows) EACH_OF_##rows
#define EACH_OF_2(X) X(0) X(1)
#define EACH_OF_4(X) EACH_OF_2(X) X(2) X(3)
#define EACH_OF_6(X) EACH_OF_4(X) X(4) X(5)
#define EACH_OF_8(X) EACH_OF_6(X) X(6) X(7)

#define PREFETCH_TO_WRITE(p) __builtin_prefetch(p, 1, 3)
#define PREFETCH_LATER(p) __builtin_prefetch(p, 0, 2) /* into the second cache */

/* C = alpha A B + beta C for up to ROWS x 32 numbers. Unit u of row r of A is at a[r*stride + u*step]. */
typedef void tile_function(size_t units, const unit *a, size_t stride, size_t step, const unit *b, float alpha, float beta,
                           float *c, size_t ldc, size_t rows, size_t columns);
/* The same with rows of A whose units are neighbours, and alpha = 1. B comes out of memory, as a part of something large that is
 * passed once: `next` is fetched meanwhile, next_step bytes for every UNITS_OF_FETCH units. Fetched at once, many lines would
 * hold up the loads of the sums. */
#define UNITS_OF_FETCH 4 /* the tiles count them out */
typedef void stream_function(size_t units, const unit *a, size_t stride, const unit *b, float beta, float *c, size_t ldc,
                             size_t rows, size_t columns, const char *next, size_t next_step);

/* The size of nearly equal parts of n of at most `most`, in multiples of `multiple`, which `most` is. */
static inline size_t even_part(size_t n, size_t most, size_t multiple) {
    size_t parts = sd_size_ceil(n, most);
    return sd_size_ceil(sd_size_ceil(n, parts), multiple) * multiple;
}

/* Fetches rectangles of matrices into the second cache, one after the other, some lines at each call. */
typedef struct rectangle {
    const char *next;  /* the row at hand */
    size_t row, lines; /* bytes from row to row; lines of a row */
    size_t line, rows; /* rows: those left */
} rectangle;

typedef struct ahead {
    rectangle first, second;
} ahead;

/* Rows of so many bytes, row_step bytes apart. */
static inline rectangle fetch_later(const void *x, size_t row_step, size_t rows, size_t bytes) {
    return (rectangle){x, row_step, sd_size_ceil(bytes, SD_ALIGNMENT), 0, rows};
}

static inline size_t lines_of(const ahead *a) { return a->first.lines * a->first.rows + a->second.lines * a->second.rows; }

static inline void fetch_some(ahead *a, size_t lines) {
    for (; lines > 0; lines--) {
        if (a->first.rows == 0) {
            a->first = a->second;
            a->second.rows = 0;
            if (a->first.rows == 0)
                return;
        }
        rectangle *r = &a->first;
        PREFETCH_LATER(r->next + r->line * SD_ALIGNMENT);
        if (++r->line == r->lines) {
            r->line = 0;
            r->rows--;
            r->next += r->row;
        }
    }
}

/* Of numbers of so many bytes. */
static inline const void *number_at(const void *x, size_t index, size_t bytes) { return (const char *)x + index * bytes; }

/* Defines a way to multiply, an sd_packed, by the file's product, pack and multiply of a kind; attributes: those of its functions;
 * more arguments: the members of sd_packed after the functions. */
#define PACKED_WAY(attributes, name, kind, ...)                                                                        \
    attributes static void name##_product(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, \
                                          size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc,    \
                                          void *scratch) {                                                             \
        product(kind, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, scratch);                                  \
    }                                                                                                                  \
    attributes static void name##_pack(bool tb, size_t n, size_t k, const float *b, size_t ldb, size_t first_panel,    \
                                       size_t count, void *packed) {                                                   \
        pack(kind, tb, n, k, b, ldb, first_panel, count, packed);                                                      \
    }                                                                                                                  \
    attributes static void name##_multiply(size_t m, size_t n, size_t k, const float *a, size_t lda,                   \
                                           const void *packed, size_t first_column, size_t columns, float *c,          \
                                           size_t ldc, const sd_finish *finish, void *scratch) {                       \
        multiply(kind, m, n, k, a, lda, packed, first_column, columns, c, ldc, finish, scratch);                       \
    }                                                                                                                  \
    const sd_packed name = {name##_product, name##_pack, name##_multiply, __VA_ARGS__};

/* Before it, where numbers are rounded: name##_gradient, by the file's product of a kind that reads bfloat16. */
#define PACKED_GRADIENT(attributes, name, kind)                                                                        \
    attributes static void name##_gradient(size_t m, size_t n, size_t k, const uint16_t *a, size_t lda,                \
                                           const uint16_t *b, size_t ldb, float beta, float *c, size_t ldc,            \
                                           void *scratch) {                                                            \
        product(kind, true, false, m, n, k, 1.0f, a, lda, b, ldb, beta, c, ldc, scratch);                              \
    }

#endif
