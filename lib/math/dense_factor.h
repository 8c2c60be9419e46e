/* Cholesky factor and its inverse of one block on the diagonal, for one type and instruction set. dense.c includes this
 * file after dense_kernel.h with the same macros; they are undefined at its end.
 *
 * A = U'U and V = (U^-1)' = (U')^-1 come from one elimination of [A | I], by rows: what turns the left part into U turns
 * the right one into V. The left part is kept on and above the diagonal, the right one on and below it. */

#define LEAF ((size_t)16)

/* The elimination of LEAF rows: `u` (rows at a distance of BLOCK) holds A's upper triangle and is overwritten; v receives
 * LEAF x LEAF. 0, or the 1-based pivot. */
TARGET static size_t NAME(factor_leaf)(REAL *u, REAL *v, double *pivots) {
    memset(v, 0, LEAF * LEAF * sizeof(REAL));
    for (size_t j = 0; j < LEAF; j++)
        v[j * LEAF + j] = 1;
    for (size_t j = 0; j < LEAF; j++) {
        REAL *left = u + j * BLOCK, *right = v + j * LEAF, pivot = left[j];

        if (!(pivot > 0))
            return j + 1;
        REAL scale = 1 / SQUARE_ROOT(pivot);
        pivots[j] = (double)(pivot * scale);
        const VECTOR s = SPREAD(scale), z = ZERO;
        for (size_t c = 0; c < LEAF; c += WIDTH) {
            STORE(left + c, FMA(LOAD(left + c), s, z));
            STORE(right + c, FMA(LOAD(right + c), s, z));
        }
        for (size_t i = j + 1; i < LEAF; i++) {
            const VECTOR f = SPREAD(-left[i]);
            for (size_t c = 0; c < LEAF; c += WIDTH) {
                STORE(u + i * BLOCK + c, FMA(f, LOAD(left + c), LOAD(u + i * BLOCK + c)));
                STORE(v + i * LEAF + c, FMA(f, LOAD(right + c), LOAD(v + i * LEAF + c)));
            }
        }
    }
    return 0;
}

/* x = V x for LEAF rows (at a distance of BLOCK) of `columns`, in place from the last rows up, because V is lower
 * triangular. */
TARGET static void NAME(scale_rows)(const REAL *v, REAL *x, size_t columns) {
    for (size_t first = (LEAF - 1) / ROWS * ROWS;; first -= ROWS) {
        size_t rows = sd_size_min(ROWS, LEAF - first), row[ROWS];

        for (size_t r = 0; r < ROWS; r++)
            row[r] = sd_size_min(r, rows - 1) * LEAF;
        for (size_t j = 0; j < columns; j += 2 * WIDTH)
            NAME(edge)
            (rows, 2 * WIDTH, first + rows, v + first * LEAF, row, 1, x + j, BLOCK, 1, 0, x + first * BLOCK + j, BLOCK);
        if (first == 0)
            break;
    }
}

/* c -= P'x for `rows` rows of c, where P' has its element (r, l) at p[l*BLOCK + r]. */
TARGET static void NAME(subtract_rows)(size_t rows, const REAL *p, const REAL *x, REAL *c, size_t columns) {
    size_t row[ROWS];

    for (size_t r = 0; r < ROWS; r++)
        row[r] = sd_size_min(r, rows - 1);
    for (size_t j = 0; j < columns; j += 2 * WIDTH)
        NAME(edge)(rows, 2 * WIDTH, LEAF, p, row, BLOCK, x + j, BLOCK, -1, 1, c + j, BLOCK);
}

/* U and V of one block of up to BLOCK rows, both BLOCK x BLOCK in memory; `u` holds A's upper triangle, and the identity
 * from row n on, and is overwritten. Columns are taken in whole tiles: on the left, what is computed below the diagonal is
 * never read; on the right, V is zero above it. 0, or the 1-based pivot. */
TARGET static size_t NAME(factor_block)(size_t n, REAL *u, REAL *v, double *pivots) {
    const size_t width = 2 * WIDTH, padded = sd_size_ceil(n, LEAF) * LEAF;
    _Alignas(SD_ALIGNMENT) REAL leaf[LEAF * LEAF];

    memset(v, 0, BLOCK * BLOCK * sizeof(REAL));
    for (size_t b = 0; b < padded; b += LEAF) {
        size_t pivot = NAME(factor_leaf)(u + b * BLOCK + b, leaf, pivots + b);
        if (pivot)
            return b + pivot;
        size_t next = b + LEAF, from = next / width * width;
        if (next < padded)
            NAME(scale_rows)(leaf, u + b * BLOCK + from, padded - from);
        if (b > 0) /* its own columns of v are still zero */
            NAME(scale_rows)(leaf, v + b * BLOCK, b);
        for (size_t i = 0; i < LEAF; i++)
            memcpy(v + (b + i) * BLOCK + b, leaf + i * LEAF, LEAF * sizeof(REAL));
        for (size_t i = next; i < padded; i += ROWS) {
            size_t rows = sd_size_min(ROWS, padded - i), start = i / width * width;
            const REAL *p = u + b * BLOCK + i;
            NAME(subtract_rows)(rows, p, u + b * BLOCK + start, u + i * BLOCK + start, padded - start);
            NAME(subtract_rows)(rows, p, v + b * BLOCK, v + i * BLOCK, next);
        }
    }
    return 0;
}

/* The block at `a` replaced by V, zeros above the diagonal included. */
TARGET static size_t NAME(factor_in_place)(size_t n, REAL *a, size_t lda, REAL *v, double *pivots) {
    _Alignas(SD_ALIGNMENT) REAL u[BLOCK * BLOCK];
    double pivot_room[BLOCK];

    memset(u, 0, sizeof(u));
    for (size_t i = 0; i < n; i++)
        memcpy(u + i * BLOCK + i, a + i * lda + i, (n - i) * sizeof(REAL));
    for (size_t i = n; i < BLOCK; i++)
        u[i * BLOCK + i] = 1;
    size_t pivot = NAME(factor_block)(n, u, v, pivot_room);
    if (pivot)
        return pivot;
    memcpy(pivots, pivot_room, n * sizeof(double));
    for (size_t i = 0; i < n; i++)
        memcpy(a + i * lda, v + i * BLOCK, n * sizeof(REAL));
    return 0;
}

/* See sd_dense: two blocks. */
TARGET static size_t NAME(factor)(size_t n, REAL *a, size_t lda, double *pivots, void *scratch, size_t scratch_bytes) {
    _Alignas(SD_ALIGNMENT) REAL v[BLOCK * BLOCK], x[BLOCK * BLOCK];
    size_t n0 = sd_size_min(n, BLOCK), n1 = n - n0;
    size_t pivot = NAME(factor_in_place)(n0, a, lda, v, pivots);

    if (pivot || n1 == 0)
        return pivot;
    REAL *right = a + n0, *below = a + n0 * lda, *last = below + n0;
    NAME(product)
    (false, false, SD_DENSE_LEFT_LOWER, n0, n1, n0, 1, v, BLOCK, right, lda, 0, x, BLOCK, scratch, scratch_bytes);
    for (size_t i = 0; i < n0; i++)
        memcpy(right + i * lda, x + i * BLOCK, n1 * sizeof(REAL));
    NAME(product)
    (true, false, SD_DENSE_UPPER, n1, n1, n0, -1, x, BLOCK, x, BLOCK, 1, last, lda, scratch, scratch_bytes);
    NAME(product)
    (true, false, SD_DENSE_RIGHT_LOWER, n1, n0, n0, -1, right, lda, v, BLOCK, 0, x, BLOCK, scratch, scratch_bytes);
    pivot = NAME(factor_in_place)(n1, last, lda, v, pivots + n0);
    if (pivot)
        return n0 + pivot;
    NAME(product)
    (false, false, SD_DENSE_LEFT_LOWER, n1, n0, n1, 1, v, BLOCK, x, BLOCK, 0, below, lda, scratch, scratch_bytes);
    return 0;
}

#undef LEAF
#undef NAME
#undef TARGET
#undef REAL
#undef SQUARE_ROOT
#undef VECTOR
#undef WIDTH
#undef ZERO
#undef SPREAD
#undef LOAD
#undef STORE
#undef FMA
#undef TRANSPOSE_FOUR
#undef ROWS
#undef EACH_ROW
