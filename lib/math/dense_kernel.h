/* The product of one type for one instruction set: dense.c includes this file with these macros set, and it undefines
 * them.
 *   NAME(x)      names of this type and set          TARGET     function attribute that allows the instructions
 *   REAL         float or double                     VECTOR, WIDTH   a vector register and its number of elements
 *   ZERO, SPREAD(x), LOAD(p), STORE(p, v), FMA(a, b, c) = a*b + c
 *   ROWS, EACH_ROW(X)   rows of a tile: X(0) X(1) ...   A tile is ROWS x 2 WIDTH, held in registers. */

/* Tile = A B over k: A's element (r, l) at a[r*row + l*step] (rows past the end repeat the last), B packed k x 2 WIDTH. */
TARGET static void NAME(tile)(size_t k, const REAL *a, const size_t *row, size_t step, const REAL *b, REAL *tile) {
#define DECLARE(r)              \
    VECTOR c##r##0 = ZERO, c##r##1 = ZERO; \
    const REAL *a##r = a + row[r];
    EACH_ROW(DECLARE)
#undef DECLARE
    for (size_t l = 0; l < k; l++) {
        VECTOR b0 = LOAD(b), b1 = LOAD(b + WIDTH);
        b += 2 * WIDTH;
#define UPDATE(r)                            \
    {                                        \
        VECTOR x = SPREAD(a##r[l * step]);   \
        c##r##0 = FMA(x, b0, c##r##0);       \
        c##r##1 = FMA(x, b1, c##r##1);       \
    }
        EACH_ROW(UPDATE)
#undef UPDATE
    }
#define KEEP(r)                                  \
    STORE(tile + r * 2 * WIDTH, c##r##0);        \
    STORE(tile + r * 2 * WIDTH + WIDTH, c##r##1);
    EACH_ROW(KEEP)
#undef KEEP
}

/* Columns j .. j+count-1 of op(B), rows l .. l+k-1, as k x 2 WIDTH, padded with zeros. */
TARGET static void NAME(pack)(bool tb, const REAL *b, size_t ldb, size_t l, size_t k, size_t j, size_t count,
                              REAL *out) {
    const size_t width = 2 * WIDTH;

    if (count < width)
        memset(out, 0, k * width * sizeof(REAL));
    if (!tb && count == width) {
        for (size_t i = 0; i < k; i++) {
            const REAL *from = b + (l + i) * ldb + j;
            STORE(out + i * width, LOAD(from));
            STORE(out + i * width + WIDTH, LOAD(from + WIDTH));
        }
    } else if (!tb) {
        for (size_t i = 0; i < k; i++)
            memcpy(out + i * width, b + (l + i) * ldb + j, count * sizeof(REAL));
    } else {
        /* Four rows of B at a time, so that each write fills a run of the packed row. */
        size_t c = 0;
        for (; c + 4 <= count; c += 4) {
            const REAL *b0 = b + (j + c) * ldb + l, *b1 = b0 + ldb, *b2 = b1 + ldb, *b3 = b2 + ldb;
            for (size_t i = 0; i < k; i++) {
                REAL *to = out + i * width + c;
                to[0] = b0[i];
                to[1] = b1[i];
                to[2] = b2[i];
                to[3] = b3[i];
            }
        }
        for (; c < count; c++)
            for (size_t i = 0; i < k; i++)
                out[i * width + c] = b[(j + c) * ldb + l + i];
    }
}

TARGET static void NAME(add_tile)(size_t rows, size_t columns, REAL alpha, const REAL *tile, REAL beta, REAL *c,
                                  size_t ldc) {
    for (size_t r = 0; r < rows; r++) {
        const REAL *from = tile + r * 2 * WIDTH;
        REAL *to = c + r * ldc;

        if (columns == 2 * WIDTH) {
            VECTOR t0 = LOAD(from), t1 = LOAD(from + WIDTH), s = SPREAD(alpha), z = ZERO;
            if (beta == 0) {
                STORE(to, FMA(t0, s, z));
                STORE(to + WIDTH, FMA(t1, s, z));
            } else {
                VECTOR f = SPREAD(beta);
                STORE(to, FMA(t0, s, FMA(f, LOAD(to), z)));
                STORE(to + WIDTH, FMA(t1, s, FMA(f, LOAD(to + WIDTH), z)));
            }
        } else {
            for (size_t j = 0; j < columns; j++)
                to[j] = alpha * from[j] + (beta == 0 ? 0 : beta * to[j]);
        }
    }
}

TARGET static void NAME(product)(bool ta, bool tb, sd_dense_part part, size_t m, size_t n, size_t k, REAL alpha,
                                 const REAL *a, size_t lda, const REAL *b, size_t ldb, REAL beta, REAL *c, size_t ldc,
                                 void *scratch, size_t scratch_bytes) {
    const size_t width = 2 * WIDTH;
    REAL *packed = scratch;
    _Alignas(SD_ALIGNMENT) REAL tile[ROWS * 2 * WIDTH], panel[ROWS * DENSE_DEPTH];

    for (size_t l = 0; l < k; l += DENSE_DEPTH) {
        size_t depth = sd_size_min(DENSE_DEPTH, k - l),
               at_once = scratch_bytes / (depth * width * sizeof(REAL)) * width;
        REAL scale = l == 0 ? beta : 1;

        for (size_t j0 = 0; j0 < n; j0 += at_once) {
            size_t columns = sd_size_min(at_once, n - j0);
            for (size_t j = 0; j < columns; j += width)
                NAME(pack)(tb, b, ldb, l, depth, j0 + j, sd_size_min(width, columns - j), packed + j * depth);
            for (size_t i = 0; i < m; i += ROWS) {
                size_t rows = sd_size_min(ROWS, m - i), row[ROWS], step = 1;
                const REAL *from = a + i * lda + l;

                for (size_t r = 0; r < ROWS; r++)
                    row[r] = sd_size_min(r, rows - 1) * lda;
                if (ta) { /* columns of A: gathered, or each step would touch another page */
                    for (size_t d = 0; d < depth; d++)
                        for (size_t r = 0; r < ROWS; r++)
                            panel[d * ROWS + r] = a[(l + d) * lda + i + sd_size_min(r, rows - 1)];
                    for (size_t r = 0; r < ROWS; r++)
                        row[r] = r;
                    from = panel;
                    step = ROWS;
                }
                for (size_t j = 0; j < columns; j += width) {
                    if (part == SD_DENSE_UPPER && j0 + j + width <= i)
                        continue;
                    NAME(tile)(depth, from, row, step, packed + j * depth, tile);
                    NAME(add_tile)
                    (rows, sd_size_min(width, columns - j), alpha, tile, scale, c + i * ldc + j0 + j, ldc);
                }
            }
        }
    }
}

#undef NAME
#undef TARGET
#undef REAL
#undef VECTOR
#undef WIDTH
#undef ZERO
#undef SPREAD
#undef LOAD
#undef STORE
#undef FMA
#undef ROWS
#undef EACH_ROW
