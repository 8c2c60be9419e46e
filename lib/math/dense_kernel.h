/* The product of one type for one instruction set: dense.c includes this file with these macros set; dense_factor.h, which
 * it includes next, undefines them.
 *   NAME(x)      names of this type and set          TARGET     function attribute that allows the instructions
 *   REAL         float or double                     VECTOR, WIDTH   a vector register and its number of elements
 *   ZERO, SPREAD(x), LOAD(p), STORE(p, v), FMA(a, b, c) = a*b + c
 *   ROWS, EACH_ROW(X)   rows of a tile: X(0) X(1) ...   A tile is ROWS x 2 WIDTH, held in registers. */

/* C = alpha A B + beta C for one tile: A's element (r, l) at a[row[r] + l*step], B's rows of 2 WIDTH at a distance of ldb.
 * All of A and B is read before C is written. */
TARGET static void NAME(tile)(size_t k, const REAL *a, const size_t *row, size_t step, const REAL *b, size_t ldb,
                              REAL alpha, REAL beta, REAL *c, size_t ldc) {
#define DECLARE(r)              \
    VECTOR c##r##0 = ZERO, c##r##1 = ZERO; \
    const REAL *a##r = a + row[r];
    EACH_ROW(DECLARE)
#undef DECLARE
    for (size_t l = 0; l < k; l++) {
        VECTOR b0 = LOAD(b), b1 = LOAD(b + WIDTH);
        b += ldb;
#define UPDATE(r)                            \
    {                                        \
        VECTOR x = SPREAD(a##r[l * step]);   \
        c##r##0 = FMA(x, b0, c##r##0);       \
        c##r##1 = FMA(x, b1, c##r##1);       \
    }
        EACH_ROW(UPDATE)
#undef UPDATE
    }
    const VECTOR s = SPREAD(alpha), z = ZERO;
    if (beta == 0) {
#define KEEP(r)                                              \
    STORE(c + r * ldc, FMA(c##r##0, s, z));                  \
    STORE(c + r * ldc + WIDTH, FMA(c##r##1, s, z));
        EACH_ROW(KEEP)
#undef KEEP
    } else {
        const VECTOR f = SPREAD(beta);
#define ADD(r)                                                                           \
    STORE(c + r * ldc, FMA(c##r##0, s, FMA(f, LOAD(c + r * ldc), z)));                   \
    STORE(c + r * ldc + WIDTH, FMA(c##r##1, s, FMA(f, LOAD(c + r * ldc + WIDTH), z)));
        EACH_ROW(ADD)
#undef ADD
    }
}

/* The same where only some rows and columns of the tile exist. */
TARGET static void NAME(edge)(size_t rows, size_t columns, size_t k, const REAL *a, const size_t *row, size_t step,
                              const REAL *b, size_t ldb, REAL alpha, REAL beta, REAL *c, size_t ldc) {
    _Alignas(SD_ALIGNMENT) REAL tile[ROWS * 2 * WIDTH] = {0};

    if (rows == ROWS && columns == 2 * WIDTH) {
        NAME(tile)(k, a, row, step, b, ldb, alpha, beta, c, ldc);
        return;
    }
    NAME(tile)(k, a, row, step, b, ldb, alpha, 0, tile, 2 * WIDTH);
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < columns; j++)
            c[r * ldc + j] = tile[r * 2 * WIDTH + j] + (beta == 0 ? 0 : beta * c[r * ldc + j]);
}

#if !defined(PLAIN)

/* k rows of B, `columns` in whole tiles, each tile as k x 2 WIDTH after the other; read row by row, as memory likes it. */
TARGET static void NAME(pack_rows)(const REAL *b, size_t ldb, size_t k, size_t columns, REAL *out) {
    const size_t width = 2 * WIDTH;

    for (size_t i = 0; i < k; i++) {
        const REAL *from = b + i * ldb;
        for (size_t j = 0; j < columns; j += width) {
            REAL *to = out + j * k + i * width;
            STORE(to, LOAD(from + j));
            STORE(to + WIDTH, LOAD(from + j + WIDTH));
        }
    }
}

/* Columns j .. j+count-1 of op(B), rows l .. l+k-1, as k x 2 WIDTH, padded with zeros. */
TARGET static void NAME(pack)(bool tb, const REAL *b, size_t ldb, size_t l, size_t k, size_t j, size_t count,
                              REAL *out) {
    const size_t width = 2 * WIDTH;

    if (count < width)
        memset(out, 0, k * width * sizeof(REAL));
    if (!tb) {
        for (size_t i = 0; i < k; i++)
            memcpy(out + i * width, b + (l + i) * ldb + j, count * sizeof(REAL));
    } else {
        size_t c = 0;
        for (; c + 4 <= count; c += 4) {
            const REAL *from = b + (j + c) * ldb + l;
            size_t i = 0;
            for (; i + 4 <= k; i += 4)
                TRANSPOSE_FOUR(from + i, ldb, out + i * width + c, width);
            for (; i < k; i++)
                for (size_t r = 0; r < 4; r++)
                    out[i * width + c + r] = from[r * ldb + i];
        }
        for (; c < count; c++)
            for (size_t i = 0; i < k; i++)
                out[i * width + c] = b[(j + c) * ldb + l + i];
    }
}

TARGET static void NAME(product)(bool ta, bool tb, sd_dense_part part, size_t m, size_t n, size_t k, REAL alpha,
                                 const REAL *a, size_t lda, const REAL *b, size_t ldb, REAL beta, REAL *c, size_t ldc,
                                 void *scratch, size_t scratch_bytes) {
    const size_t width = 2 * WIDTH;
    /* Z'Z: the packed columns of the right factor serve as those of the left one. */
    const bool same = ta && !tb && a == b && lda == ldb && width % ROWS == 0;
    REAL *packed = scratch;
    _Alignas(SD_ALIGNMENT) REAL panel[ROWS * DENSE_DEPTH];

    for (size_t l = 0; l < k; l += DENSE_DEPTH) {
        size_t depth = sd_size_min(DENSE_DEPTH, k - l),
               at_once = scratch_bytes / (depth * width * sizeof(REAL)) * width;
        REAL scale = l == 0 ? beta : 1;

        for (size_t j0 = 0; j0 < n; j0 += at_once) {
            size_t columns = sd_size_min(at_once, n - j0);
            size_t whole = tb ? 0 : columns / width * width;
            NAME(pack_rows)(b + l * ldb + j0, ldb, depth, whole, packed);
            for (size_t j = whole; j < columns; j += width)
                NAME(pack)(tb, b, ldb, l, depth, j0 + j, sd_size_min(width, columns - j), packed + j * depth);
            for (size_t i = 0; i < m; i += ROWS) {
                size_t rows = sd_size_min(ROWS, m - i), row[ROWS], step = 1;
                const REAL *from = a + i * lda + l;

                if (ta) {
                    for (size_t r = 0; r < ROWS; r++)
                        row[r] = r;
                    if (same && i >= j0 && i < j0 + columns) {
                        from = packed + (i - j0) / width * width * depth + (i - j0) % width;
                        step = width;
                    } else { /* columns of A: gathered, or each step would touch another page */
                        const REAL *columns_of_a = a + l * lda + i;
                        if (rows == ROWS)
                            for (size_t d = 0; d < depth; d++)
                                memcpy(panel + d * ROWS, columns_of_a + d * lda, ROWS * sizeof(REAL));
                        else
                            for (size_t d = 0; d < depth; d++)
                                for (size_t r = 0; r < ROWS; r++)
                                    panel[d * ROWS + r] = columns_of_a[d * lda + sd_size_min(r, rows - 1)];
                        from = panel;
                        step = ROWS;
                    }
                } else {
                    for (size_t r = 0; r < ROWS; r++)
                        row[r] = sd_size_min(r, rows - 1) * lda;
                }
                size_t first = part & SD_DENSE_UPPER && i + n > m + j0 ? (i + n - m - j0) / width * width : 0, end = depth;
                if (part & SD_DENSE_LEFT_LOWER) { /* up to column k - m + i of the last row, of the whole A */
                    size_t used = k - m + i + rows;
                    end = used > l ? sd_size_min(depth, used - l) : 0;
                }
                size_t ahead = !ta && i + 2 * ROWS <= m ? 0 : ROWS, share = sd_size_ceil(ROWS * width, columns);
                for (size_t j = first; j < columns; j += width) {
                    /* the next rows of A, some with each tile */
                    for (size_t to = sd_size_min(ahead + share, ROWS); ahead < to; ahead++)
                        for (size_t d = 0; d < depth; d += SD_ALIGNMENT / sizeof(REAL))
                            PREFETCH(a + (i + ROWS + ahead) * lda + l + d);
                    /* B's columns begin at row j0 + j. */
                    size_t begin = part & SD_DENSE_RIGHT_LOWER && j0 + j > l ? sd_size_min(j0 + j - l, end) : 0;
                    NAME(edge)
                    (rows, sd_size_min(width, columns - j), end - begin, from + begin * step, row, step,
                     packed + j * depth + begin * width, width, alpha, scale, c + i * ldc + j0 + j, ldc);
                }
            }
        }
    }
}

#endif
