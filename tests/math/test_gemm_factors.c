/* Products with factors that were packed beforehand, every way that this machine has, against the same without. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "every_gemm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool packs(const sd_gemm *gemm) { return sd_factor_bytes(gemm, 1, 1) > 0; }

/* Rows of `columns` random floats, ld apart, and NaN between them, which must not get into any sum. */
static float *rows_with_gaps(size_t rows, size_t columns, size_t ld, uint64_t seed) {
    float *x = random_floats(rows * ld, seed);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = columns; j < ld; j++)
            x[i * ld + j] = NAN;
    return x;
}

#define GUARD ((size_t)128)
#define GUARD_BYTE 0x5A

static char *guarded_memory(size_t bytes) {
    char *memory = sd_allocate(NULL, bytes + 2 * GUARD, 1);
    assert_non_null(memory);
    memset(memory, GUARD_BYTE, bytes + 2 * GUARD);
    return memory;
}

static void check_guards(const char *memory, size_t bytes) {
    for (size_t i = 0; i < GUARD; i++)
        assert_true(memory[i] == GUARD_BYTE && memory[GUARD + bytes + i] == GUARD_BYTE);
}

/* Some panels at a time, the last ones first. */
static void pack_backwards(const sd_gemm *gemm, const sd_factor *factor, size_t panels) {
    size_t step = panels * SD_FACTOR_COLUMNS;
    for (size_t end = sd_size_ceil(factor->n, step) * step; end > 0; end -= step)
        sd_factor_pack(gemm, factor, end - step, sd_size_min(step, factor->n - (end - step)));
}

/* No two panels write to the same memory, so that threads can share the work. */
static void check_panels_apart(const sd_gemm *gemm, const char *way, sd_factor factor, size_t bytes) {
    unsigned char *taken = calloc(bytes, 1);
    assert_non_null(taken);
    for (size_t first = 0; first < factor.n; first += SD_FACTOR_COLUMNS) {
        char *memory = guarded_memory(bytes);
        factor.packed = memory + GUARD;
        sd_factor_pack(gemm, &factor, first, sd_size_min(SD_FACTOR_COLUMNS, factor.n - first));
        check_guards(memory, bytes);
        for (size_t i = 0; i < bytes; i++)
            if (memory[GUARD + i] != GUARD_BYTE && taken[i]++ != 0)
                fail_msg("%s, %zu x %zu, tb %d: the columns from %zu on write over others", way, factor.k, factor.n,
                         factor.tb, first);
        sd_release(NULL, memory);
    }
    free(taken);
}

/* Rows of results lie so far apart. Those of `whole` too: oneDNN's sums depend on it. */
static size_t stride_of(size_t n) { return n + 2; }

/* What follows must meet each number once, and final: it takes its sign away, which shows both. */
typedef struct negation {
    size_t next_row[512]; /* of each column */
} negation;

static void negate(const void *data, float *c, size_t ldc, size_t row, size_t rows, size_t column, size_t columns) {
    negation *n = *(negation *const *)data;
    for (size_t j = 0; j < columns; j++) {
        assert_int_equal(n->next_row[column + j], row); /* in order */
        n->next_row[column + j] = row + rows;
    }
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            c[i * ldc + j] = -c[i * ldc + j];
}

/* Rows [row, row + rows) and columns [first, first + columns) by the factor are those of the whole product with what follows it,
 * and nothing else is written. */
static void check_range(const sd_gemm *gemm, const char *way, size_t m, const float *a, size_t lda, const sd_factor *factor,
                        size_t row, size_t rows, size_t first, size_t columns, const float *whole) {
    const float guard = 12345.0f;
    const size_t ldc = stride_of(factor->n);
    float *c = malloc((m + 1) * ldc * sizeof *c);
    assert_non_null(c);
    for (size_t i = 0; i < (m + 1) * ldc; i++)
        c[i] = guard;
    negation memory = {{0}}, *const data = &memory;
    const sd_finish finish = {.function = negate, .data = &data};
    const bool follows = (rows + columns) % 3 != 0;
    assert_true(columns <= sizeof memory.next_row / sizeof *memory.next_row);
    sd_multiply_factor(gemm, rows, a + row * lda, lda, factor, first, columns, c + row * ldc + first, ldc,
                       follows ? &finish : NULL);
    for (size_t i = 0; i <= m; i++)
        for (size_t j = 0; j < ldc; j++) {
            bool within = i >= row && i < row + rows && j >= first && j < first + columns;
            float expected = !within ? guard : follows ? -whole[i * ldc + j] : whole[i * ldc + j];
            if (memcmp(&c[i * ldc + j], &expected, sizeof expected) != 0)
                fail_msg("%s, %zu x %zu x %zu, tb %d, packed %d, rows %zu + %zu, columns %zu + %zu: (%zu, %zu) is %.9g "
                         "instead of %.9g",
                         way, m, factor->n, factor->k, factor->tb, factor->packed != NULL, row, rows, first, columns, i, j,
                         (double)c[i * ldc + j], (double)expected);
        }
    free(c);
}

static void check_factor(const sd_gemm *gemm, const char *way, size_t m, size_t n, size_t k, bool tb) {
    const size_t lda = k + 3, ldb = (tb ? k : n) + 5, bytes = sd_factor_bytes(gemm, n, k);
    float *a = rows_with_gaps(m, k, lda, 1), *whole = malloc(m * stride_of(n) * sizeof *whole);
    float *b = tb ? rows_with_gaps(n, k, ldb, 2) : rows_with_gaps(k, n, ldb, 2);
    assert_non_null(whole);
    sd_multiply(gemm, false, tb, m, n, k, 1.0f, a, lda, b, ldb, 0.0f, whole, stride_of(n));
    sd_factor factor = {.tb = tb, .n = n, .k = k, .b = b, .ldb = ldb};
    check_range(gemm, way, m, a, lda, &factor, 0, m, 0, n, whole); /* not packed */
    if (bytes > 0) {
        char *memory = guarded_memory(bytes), *other = guarded_memory(bytes);
        if (m == 1)
            check_panels_apart(gemm, way, factor, bytes);
        factor.packed = other + GUARD;
        pack_backwards(gemm, &factor, 1 + k % 2);
        factor.packed = memory + GUARD;
        sd_factor_pack(gemm, &factor, 0, n);
        assert_memory_equal(memory, other, bytes + 2 * GUARD); /* whatever the pieces and their order */
        check_guards(memory, bytes);
        factor.b = NULL; /* not needed any more */
        check_range(gemm, way, m, a, lda, &factor, 0, m, 0, n, whole);
        for (size_t first = 0; first < n && m % 5 <= 1; first += SD_FACTOR_COLUMNS) {
            check_range(gemm, way, m, a, lda, &factor, 0, m, first, n - first, whole);
            check_range(gemm, way, m, a, lda, &factor, 0, m, first, sd_size_min(17, n - first), whole);
            check_range(gemm, way, m, a, lda, &factor, 0, m, first, sd_size_min(SD_FACTOR_COLUMNS, n - first), whole);
        }
        check_guards(memory, bytes);
        assert_memory_equal(memory, other, bytes + 2 * GUARD); /* products only read it */
        sd_release(NULL, memory);
        sd_release(NULL, other);
    }
    free(a);
    free(b);
    free(whole);
}

/* Every edge of tiles, panels and slices. Ways without a packed form take the other path alone, in a few sizes. */
static void check_factors(const sd_gemm *gemm, int32_t precision, const char *way) {
    (void)precision;
    const size_t widths[] = {1, 5, 16, 17, 31, 32, 33, 64, 70, 197}, depths[] = {1, 2, 15, 33, 192, 384, 385, 769, 1000};
    const size_t step = packs(gemm) ? 4 : 20; /* of all combinations, such that each size meets each other one's neighbours */
    for (size_t m = 1; m <= 20; m++)
        for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
            for (size_t j = 0; j < sizeof depths / sizeof *depths; j++)
                if ((m + i + j) % step == 0)
                    for (int tb = 0; tb < 2; tb++)
                        check_factor(gemm, way, m, widths[i], depths[j], tb);
    for (size_t m = 397; m <= 403; m += 3) /* more rows than are packed at once where depth is long */
        for (int tb = 0; tb < 2; tb++) {
            check_factor(gemm, way, m, 197, 769, tb);
            check_factor(gemm, way, m, 70, 385, tb);
            check_factor(gemm, way, m, 33, 15, tb);
        }
}

static void test_factors(void **state) {
    (void)state;
    each_gemm(check_factors);
}

/* A row comes out the same alone, with some others, and with all, by a packed factor and without. */
static void check_rows(const sd_gemm *gemm, int32_t precision, const char *way) {
    (void)precision;
    enum { M = 413, N = 101, K = 801 };
    if (!packs(gemm)) /* a BLAS does not promise it */
        return;
    for (int tb = 0; tb < 2; tb++) {
        float *a = random_floats(M * K, 1), *b = random_floats(N * K, 2), *whole = malloc(M * stride_of(N) * sizeof *whole);
        char *memory = guarded_memory(sd_factor_bytes(gemm, N, K));
        assert_non_null(whole);
        sd_factor factor = {.tb = tb, .n = N, .k = K, .b = b, .ldb = tb ? K : N};
        sd_multiply(gemm, false, tb, M, N, K, 1.0f, a, K, b, factor.ldb, 0.0f, whole, stride_of(N));
        for (int packed = 0; packed < 2; packed++) {
            factor.packed = packed ? memory + GUARD : NULL;
            if (packed)
                sd_factor_pack(gemm, &factor, 0, N);
            for (size_t row = 0; row < M; row += 48)
                check_range(gemm, way, M, a, K, &factor, row, sd_size_min(48, M - row), 0, N, whole);
            for (size_t row = 0; row < M; row += 16)
                check_range(gemm, way, M, a, K, &factor, row, sd_size_min(16, M - row), 64, N - 64, whole);
            for (size_t row = 0; row < M; row += row < 20 || row > M - 5 ? 1 : 37)
                check_range(gemm, way, M, a, K, &factor, row, 1, 0, N, whole);
        }
        free(a);
        free(b);
        free(whole);
        sd_release(NULL, memory);
    }
}

static void test_rows(void **state) {
    (void)state;
    each_gemm(check_rows);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_factors),
        cmocka_unit_test(test_rows),
    };
    return cmocka_run_group_tests_name("gemm factors", tests, NULL, NULL);
}
