/* The inverse of one type; dense_invert.c includes this file with REAL, NAME, GEMM and FACTOR set, and it undefines them.
 *
 * The elimination of [A | I] by panels of rows turns A into U and I into V = (U')^-1. Both lie in one square: A and U above
 * the diagonal, V below it, and of the panels' own blocks on the diagonal only V is kept. A panel p, once its block is
 * factorised, is multiplied by V_pp over its whole width; then all rows r below lose U_pr' times it. While the other
 * threads do that, one already factorises the next block, which is the only part that cannot be shared. Last,
 * A^-1 = V'V. */

typedef struct NAME(inversion) {
    const sd_dense *dense;
    const sd_dense_room *room;
    size_t n, lda;
    REAL *a, *inverse;
    double *pivots, *squares;
    size_t panel;        /* the first row of the present one */
    size_t bad;          /* 1-based pivot of the block that was factorised last, or 0 */
    bool triangle_only;  /* no inverse is wanted: nothing left of the diagonal */
} NAME(inversion);

static void *NAME(scratch_of)(const NAME(inversion) *w, size_t thread) {
    return w->room->scratch + thread * w->room->scratch_bytes;
}

static void NAME(factor_panel)(NAME(inversion) *w, size_t first, size_t thread) {
    size_t count = sd_size_min(PANEL, w->n - first);
    size_t bad = w->dense->FACTOR(count, w->a + first * w->lda + first, w->lda, w->pivots + first,
                                  NAME(scratch_of)(w, thread), w->room->scratch_bytes);
    w->bad = bad ? first + bad : 0;
}

/* One strip of columns of the panel, left or right of its block on the diagonal, times V_pp. */
static void NAME(scale_task)(void *work, size_t index, size_t thread) {
    _Alignas(SD_ALIGNMENT) REAL product[PANEL * BLOCK];
    const NAME(inversion) *w = work;
    size_t n = w->n, ld = w->lda, p = w->panel, rows = sd_size_min(PANEL, n - p);
    size_t column = w->triangle_only ? p + PANEL + index * BLOCK : index * BLOCK;

    if (!w->triangle_only && column >= p)
        column += PANEL;
    size_t columns = sd_size_min(BLOCK, n - column);
    const REAL *v = w->a + p * ld + p;
    REAL *strip = w->a + p * ld + column;
    for (size_t r = 0; r < rows; r += BLOCK) { /* by blocks: above those on the diagonal there is U */
        size_t count = sd_size_min(BLOCK, rows - r);
        w->dense->GEMM(false, false, SD_DENSE_LEFT_LOWER, count, columns, r + count, 1, v + r * ld, ld, strip, ld, 0,
                       product + r * BLOCK, BLOCK, NAME(scratch_of)(w, thread), w->room->scratch_bytes);
    }
    for (size_t r = 0; r < rows; r++)
        memcpy(strip + r * ld, product + r * BLOCK, columns * sizeof(REAL));
}

/* Rows r .. of a strip of columns lose U_pr' times the panel. */
static void NAME(subtract)(const NAME(inversion) *w, size_t row, size_t column, size_t thread) {
    size_t n = w->n, ld = w->lda, p = w->panel, rows = sd_size_min(PANEL, n - row), columns = sd_size_min(BLOCK, n - column);
    bool own = column >= p && column < p + PANEL; /* V_pp, which is lower triangular */
    size_t skip = own ? column - p : 0;
    const REAL *u = w->a + (p + skip) * ld + row, *panel = w->a + (p + skip) * ld + column;

    w->dense->GEMM(true, false, own ? SD_DENSE_RIGHT_LOWER : SD_DENSE_ALL, rows, columns, PANEL - skip, -1, u, ld, panel, ld,
                   own ? 0 : 1, w->a + row * ld + column, ld, NAME(scratch_of)(w, thread),
                   w->room->scratch_bytes);
}

/* Task 0 makes the next block on the diagonal and factorises it; the others take the strips of the panels below, each up
 * to the present panel's own columns (V) and from its own on (A). */
static void NAME(subtract_task)(void *work, size_t index, size_t thread) {
    NAME(inversion) *w = work;
    size_t n = w->n, ld = w->lda, p = w->panel, next = p + PANEL, left = w->triangle_only ? 0 : next / BLOCK;

    if (index == 0) {
        size_t count = sd_size_min(PANEL, n - next);
        const REAL *u = w->a + p * ld + next;
        w->dense->GEMM(true, false, SD_DENSE_UPPER, count, count, PANEL, -1, u, ld, u, ld, 1, w->a + next * ld + next, ld,
                       NAME(scratch_of)(w, thread), w->room->scratch_bytes);
        NAME(factor_panel)(w, next, thread);
        return;
    }
    index--;
    for (size_t row = next; row < n; row += PANEL) {
        size_t start = row == next ? row + PANEL : row; /* the block of task 0 is not among them */
        size_t right = start < n ? sd_size_ceil(n - start, BLOCK) : 0;

        if (index < left) {
            NAME(subtract)(w, row, index * BLOCK, thread);
            return;
        }
        if (index < left + right) {
            NAME(subtract)(w, row, start + (index - left) * BLOCK, thread);
            return;
        }
        index -= left + right;
    }
}

static size_t NAME(subtract_count)(const NAME(inversion) *w) {
    size_t n = w->n, next = w->panel + PANEL, left = w->triangle_only ? 0 : next / BLOCK, count = 1;

    for (size_t row = next; row < n; row += PANEL) {
        size_t start = row == next ? row + PANEL : row;
        count += left + (start < n ? sd_size_ceil(n - start, BLOCK) : 0);
    }
    return count;
}

/* One strip of columns of A^-1 = V'V down to the diagonal, and its mirror image. */
static void NAME(square_task)(void *work, size_t index, size_t thread) {
    const NAME(inversion) *w = work;
    size_t n = w->n, ld = w->lda, j = index * BLOCK, columns = sd_size_min(BLOCK, n - j);
    const REAL *rows = w->a + j * ld;
    REAL *x = w->inverse;

    w->dense->GEMM(true, false, SD_DENSE_UPPER | SD_DENSE_RIGHT_LOWER, j + columns, columns, n - j, 1, rows, ld, rows + j,
                   ld, 0, x + j, n, NAME(scratch_of)(w, thread), w->room->scratch_bytes);
    NAME(sd_dense_transpose)(j, columns, x + j, n, x + j * n, n);
    for (size_t c = 1; c < columns; c++) /* below the diagonal, in the block on it */
        for (size_t i = 0; i < c; i++)
            x[(j + c) * n + j + i] = x[(j + i) * n + j + c];
    w->squares[index] =
        2.0 * NAME(sd_dense_squares)(j, columns, x + j, n) + NAME(sd_dense_squares)(columns, columns, x + j * n + j, n);
}

/* A host's runner that fails may have run some of the tasks, and they work in place: the matrix is lost then. */
static void NAME(run)(NAME(inversion) *w, sd_parallel_function task, size_t count) {
    if (count > 1 && w->room->context) {
        if (sd_run(w->room->context, task, w, count) != SD_OK)
            w->bad = SD_DENSE_NO_THREADS;
        return;
    }
    for (size_t i = 0; i < count; i++)
        task(w, i, 0);
}

size_t NAME(sd_dense_invert)(const sd_dense *dense, const sd_dense_room *room, size_t n, REAL *a, size_t lda,
                             REAL *inverse, double *pivots, double *squares) {
    NAME(inversion) w = {.dense = dense, .room = room, .n = n, .lda = lda, .a = a, .inverse = inverse, .pivots = pivots,
                         .squares = squares, .triangle_only = inverse == NULL};

    NAME(factor_panel)(&w, 0, 0);
    for (; w.bad == 0 && w.panel < n; w.panel += PANEL) {
        size_t p = w.panel, left = w.triangle_only ? 0 : p / BLOCK;
        size_t right = p + PANEL < n ? sd_size_ceil(n - p - PANEL, BLOCK) : 0;

        NAME(run)(&w, NAME(scale_task), left + right);
        if (right > 0 && w.bad == 0)
            NAME(run)(&w, NAME(subtract_task), NAME(subtract_count)(&w));
    }
    if (w.bad == 0 && inverse) {
        memset(squares, 0, n * sizeof(double));
        NAME(run)(&w, NAME(square_task), sd_size_ceil(n, BLOCK));
    }
    return w.bad;
}

#undef REAL
#undef NAME
#undef GEMM
#undef FACTOR
