/* Products in fp32 and in bf16, every way that this machine has, against sums in double over factors rounded by other
 * means; and with factors packed beforehand, and cut for threads, against the same products whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "ways.h"
#include "math/math.h"
#include "math/products.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static sd_gemm make_gemm_in(int32_t precision) {
    size_t bytes = sd_gemm_scratch(precision);
    void *scratch = bytes == 0 ? NULL : sd_allocate(NULL, bytes, 1);
    assert_true(bytes == 0 || scratch != NULL);
    return sd_gemm_of(precision, scratch);
}

static void drop_gemm(sd_gemm *gemm) { sd_release(NULL, gemm->scratch); }

/* Calls check with each way to multiply. */
static void (*check_gemm)(const sd_gemm *gemm, int32_t precision, const char *way);

static void with_gemm(int32_t precision, const char *way) {
    sd_gemm gemm = make_gemm_in(precision);
    check_gemm(&gemm, precision, way);
    drop_gemm(&gemm);
}

static void each_gemm(void (*check)(const sd_gemm *gemm, int32_t precision, const char *way)) {
    check_gemm = check;
    each_way(with_gemm);
}

static sd_gemm make_gemm(void) { return make_gemm_in(SD_PRECISION_BF16); }

/* The nearest number of 8 bits of significand, by arithmetic instead of by bits: rint rounds ties to even. */
static double rounded(double x) {
    int exponent;
    if (!isfinite(x) || x == 0.0)
        return x;
    double significand = frexp(x, &exponent);
    double result = ldexp(rint(ldexp(significand, 8)), exponent - 8);
    if (fabs(x) < (double)FLT_MIN)
        return copysign(0.0, x);
    return fabs(result) >= ldexp(1.0, 128) ? copysign((double)INFINITY, x) : result;
}

static float *random_floats(size_t count, uint64_t seed) {
    float *x = malloc(count * sizeof *x);
    assert_non_null(x);
    sd_random random;
    sd_random_init(&random, seed, 0, 0);
    for (size_t i = 0; i < count; i++)
        x[i] = (float)sd_random_normal(&random);
    return x;
}

/* ---- the rounding -------------------------------------------------------------------------- */

static float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* x * 1 + 0: what is left of x as either factor. */
static void check_number(const sd_gemm *gemm, float x) {
    const float one = 1.0f;
    float left = -1.0f, right = -1.0f;
    sd_multiply(gemm, false, false, 1, 1, 1, 1.0f, &x, 1, &one, 1, 0.0f, &left, 1);
    sd_multiply(gemm, false, true, 1, 1, 1, 1.0f, &one, 1, &x, 1, 0.0f, &right, 1);
    float expected = (float)rounded((double)x);
    if (isnan(x) ? !isnan(left) || !isnan(right) : !(left == expected) || !(right == expected))
        fail_msg("%a becomes %a and %a instead of %a", (double)x, (double)left, (double)right, (double)expected);
}

static void test_rounding(void **state) {
    (void)state;
    const char *ways[BF16_WAYS_MAX];
    size_t count = bf16_ways(ways);
    const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff}; /* of the half that is cut off */
    const uint32_t upper[] = {0x0000, 0x0001, 0x007f, 0x0080, 0x0081, 0x00ff, 0x3f7f, 0x3f80,
                              0x3f81, 0x3fff, 0x4000, 0x42aa, 0x7eff, 0x7f7e, 0x7f7f, 0x7f80};
    for (size_t way = 0; way < count; way++) {
        bf16_take(ways[way]);
        sd_gemm gemm = make_gemm();
        for (size_t i = 0; i < sizeof upper / sizeof *upper; i++)
            for (size_t j = 0; j < sizeof lower / sizeof *lower; j++)
                for (uint32_t sign = 0; sign < 2; sign++)
                    check_number(&gemm, of_bits(sign << 31 | upper[i] << 16 | lower[j]));
        check_number(&gemm, NAN);
        check_number(&gemm, of_bits(0x7f800001u)); /* a NaN whose upper half alone is infinity */
        float *x = random_floats(2000, 3);
        for (size_t i = 0; i < 2000; i++)
            check_number(&gemm, x[i]);
        free(x);
        drop_gemm(&gemm);
    }
    bf16_take(NULL);
}

/* Numbers of all exponents and both signs that lie in memory as bfloat16, about ties and at the ends of the range; counts that
 * are no multiple of a vector. */
static void check_rounding_in_memory(const sd_gemm *gemm, int32_t precision, const char *way) {
    enum { UPPER = 0x10000, LOWER = 6 };
    const uint32_t lower[LOWER] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    (void)precision;
    if (!sd_gemm_reads_bf16(gemm))
        return;
    float *x = malloc(UPPER * sizeof *x), *wide = malloc((UPPER + 1) * sizeof *wide);
    uint16_t *y = malloc((UPPER + 1) * sizeof *y);
    assert_true(x != NULL && wide != NULL && y != NULL);
    for (size_t l = 0; l < LOWER; l++) {
        const size_t count = UPPER - 5 * l;
        for (uint32_t i = 0; i < UPPER; i++)
            x[i] = of_bits(i << 16 | lower[l]);
        y[count] = 0x1234;
        wide[count] = 1.5f;
        sd_bf16_round(gemm, x, count, y);
        sd_bf16_widen(gemm, y, count, wide);
        assert_true(y[count] == 0x1234 && wide[count] == 1.5f);
        for (size_t i = 0; i < count; i++) {
            const float expected = (float)rounded((double)x[i]);
            assert_true(of_bits((uint32_t)y[i] << 16) == wide[i] || isnan(x[i]));
            if (isnan(x[i]) ? !isnan(wide[i]) : !(wide[i] == expected) || signbit(wide[i]) != signbit(x[i]))
                fail_msg("%s: %a becomes %a instead of %a", way, (double)x[i], (double)wide[i], (double)expected);
        }
    }
    free(x);
    free(wide);
    free(y);
}

static void test_rounding_in_memory(void **state) {
    (void)state;
    each_gemm(check_rounding_in_memory);
}

/* ---- products ------------------------------------------------------------------------------ */

static double *copy_in(int32_t precision, const float *x, size_t count) {
    double *copy = malloc(count * sizeof *copy);
    assert_non_null(copy);
    for (size_t i = 0; i < count; i++)
        copy[i] = precision == SD_PRECISION_BF16 ? rounded((double)x[i]) : (double)x[i];
    return copy;
}

/* |computed - exact| <= (k + 2) u (|alpha| sum |a b| + |beta c|) (1 + a little), u = 2^-24: k products are added up
 * with one rounding each (VDPBF16PS and a BLAS without FMA: each product and each sum), and alpha and beta are applied.
 * Factors that were not rounded, or rounded in another way, would be off by about 2^-9 |a b|. */
static void check_product(const sd_gemm *gemm, int32_t precision, const char *way, size_t m, size_t n, size_t k, bool ta,
                          bool tb, float alpha, float beta) {
    size_t lda = (ta ? m : k) + 3, ldb = (tb ? k : n) + 1, ldc = n + 2;
    float *a = random_floats((ta ? k : m) * lda, 1), *b = random_floats((tb ? n : k) * ldb, 2);
    float *c = random_floats(m * ldc, 3), *before = random_floats(m * ldc, 3);
    double *ra = copy_in(precision, a, (ta ? k : m) * lda), *rb = copy_in(precision, b, (tb ? n : k) * ldb);
    for (size_t i = 0; beta == 0.0f && i < m; i++)
        for (size_t j = 0; j < n; j++)
            c[i * ldc + j] = NAN; /* must not be read */
    sd_multiply(gemm, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            double sum = 0.0, size = 0.0;
            for (size_t l = 0; l < k; l++) {
                double product = ra[ta ? l * lda + i : i * lda + l] * rb[tb ? j * ldb + l : l * ldb + j];
                sum += product;
                size += fabs(product);
            }
            double more = beta == 0.0f ? 0.0 : (double)beta * (double)before[i * ldc + j];
            double expected = (double)alpha * sum + more, actual = (double)c[i * ldc + j];
            double bound = 1.01 * (double)(2 * k + 2) * 0x1p-24 * (fabs((double)alpha) * size + fabs(more));
            if (!(fabs(actual - expected) <= bound))
                fail_msg("%s, %zu x %zu x %zu, ta %d, tb %d, beta %g: (%zu, %zu) is %.9g, expected %.9g within %.3g", way,
                         m, n, k, ta, tb, (double)beta, i, j, actual, expected, bound);
        }
        for (size_t j = n; j < ldc; j++) /* beyond the columns nothing is written */
            assert_true(c[i * ldc + j] == before[i * ldc + j]);
    }
    free(a);
    free(b);
    free(c);
    free(before);
    free(ra);
    free(rb);
}

/* Every edge of tiles, panels and slices; the last shape has more rows, columns and depth than are packed at once. */
static void check_products(const sd_gemm *gemm, int32_t precision, const char *way) {
    const size_t shapes[][3] = {{1, 1, 1},    {8, 32, 2},   {7, 31, 3},    {9, 33, 17},    {16, 64, 32},  {15, 47, 31},
                                {17, 16, 33}, {70, 65, 64}, {20, 70, 257}, {40, 50, 512}, {33, 100, 513}, {2, 5, 1030},
                                {97, 101, 97}, {90, 500, 40}, {430, 170, 390}};
    const float factors[3][2] = {{1.0f, 1.0f}, {1.0f, 0.0f}, {-0.3f, 0.7f}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int variant = 0; variant < 4; variant++)
            for (int form = 0; form < (shapes[s][0] > 400 ? 1 : 3); form++)
                check_product(gemm, precision, way, shapes[s][0], shapes[s][1], shapes[s][2], variant & 1, variant & 2,
                              factors[form][0], factors[form][1]);
}

static void test_products(void **state) {
    (void)state;
    each_gemm(check_products);
}

/* Numbers that lie in memory as bfloat16: to the last bit the product of the same numbers as floats. */
static void check_gradient(const sd_gemm *gemm, const char *way, size_t m, size_t n, size_t k, float beta) {
    const size_t lda = m + 5, ldb = n + 1, ldc = n + 2;
    float *a = random_floats(k * lda, 1), *b = random_floats(k * ldb, 2);
    float *c = random_floats(m * ldc, 3), *expected = random_floats(m * ldc, 3);
    uint16_t *ra = malloc(k * lda * sizeof *ra), *rb = malloc(k * ldb * sizeof *rb);
    assert_true(ra != NULL && rb != NULL);
    sd_bf16_round(gemm, a, k * lda, ra);
    sd_bf16_round(gemm, b, k * ldb, rb);
    sd_multiply(gemm, true, false, m, n, k, 1.0f, a, lda, b, ldb, beta, expected, ldc);
    sd_multiply_bf16(gemm, m, n, k, ra, lda, rb, ldb, beta, c, ldc);
    for (size_t i = 0; i < m * ldc; i++)
        if (memcmp(&c[i], &expected[i], sizeof *c) != 0)
            fail_msg("%s, %zu x %zu x %zu: (%zu, %zu) is %.9g instead of %.9g", way, m, n, k, i / ldc, i % ldc, (double)c[i],
                     (double)expected[i]);
    free(a);
    free(b);
    free(c);
    free(expected);
    free(ra);
    free(rb);
}

static void check_gradients(const sd_gemm *gemm, int32_t precision, const char *way) {
    const size_t shapes[][3] = {{1, 1, 1},    {8, 32, 2},   {7, 31, 3},     {16, 64, 32},  {15, 47, 31},   {17, 16, 33},
                                {70, 65, 64}, {33, 100, 513}, {97, 101, 97}, {90, 500, 40}, {430, 170, 390}, {5, 7, 0}};
    /* floats are never read rounded, and what multiplies with a library's products reads floats alone */
    assert_int_equal(sd_gemm_reads_bf16(gemm), precision == SD_PRECISION_BF16 && strcmp(way, "onednn") != 0);
    for (size_t s = 0; sd_gemm_reads_bf16(gemm) && s < sizeof shapes / sizeof *shapes; s++)
        for (int more = 0; more < 2; more++)
            check_gradient(gemm, way, shapes[s][0], shapes[s][1], shapes[s][2], (float)more);
}

static void test_gradients_of_bf16(void **state) {
    (void)state;
    each_gemm(check_gradients);
}

/* No inner dimension: beta C. */
static void test_empty(void **state) {
    (void)state;
    bf16_take_any();
    sd_gemm gemm = make_gemm();
    float c[2] = {3.14159f, NAN}, a = 1.0f;
    sd_multiply(&gemm, false, false, 1, 1, 0, 1.0f, &a, 1, &a, 1, 1.0f, c, 1);
    assert_true(c[0] == 3.14159f);
    sd_multiply(&gemm, false, false, 1, 2, 0, 1.0f, &a, 1, &a, 2, 0.0f, c, 2);
    assert_true(c[0] == 0.0f && c[1] == 0.0f);
    drop_gemm(&gemm);
    bf16_take(NULL);
}

/* An infinite or NaN factor spoils its row or column and nothing else, at the edges of tiles too. */
static void check_not_finite(const sd_gemm *gemm, int32_t precision, const char *way) {
    (void)precision;
    enum { M = 19, N = 45, K = 37 };
    float *a = random_floats(M * K, 1), *b = random_floats(K * N, 2), *c = random_floats(M * N, 3);
    a[18 * K + 36] = INFINITY;
    b[36 * N + 44] = NAN;
    sd_multiply(gemm, false, false, M, N, K, 1.0f, a, K, b, N, 0.0f, c, N);
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++)
            if ((isfinite(c[i * N + j]) != 0) != (i != 18 && j != 44))
                fail_msg("%s: (%zu, %zu) is %g", way, i, j, (double)c[i * N + j]);
    free(a);
    free(b);
    free(c);
}

static void test_not_finite(void **state) {
    (void)state;
    each_gemm(check_not_finite);
}

/* The same number comes out whichever part of the product is computed: so threads may cut it. */
static void check_parts(const sd_gemm *gemm, int32_t precision, const char *way) {
    if (gemm->packed == NULL || strcmp(way, "emulate") == 0) /* sd_sgemm does not promise it, nor does oneDNN */
        return;
    (void)precision;
    enum { M = 100, N = 90, K = 530 };
    float *a = random_floats(M * K, 1), *b = random_floats(N * K, 2), *whole = random_floats(M * N, 3);
    float *parts = random_floats(M * N, 3);
    sd_multiply(gemm, false, true, M, N, K, 1.0f, a, K, b, K, 1.0f, whole, N);
    for (size_t i = 0; i < M; i += 32)
        for (size_t j = 0; j < N; j += 48)
            sd_multiply(gemm, false, true, sd_size_min(32, M - i), sd_size_min(48, N - j), K, 1.0f, a + i * K, K,
                        b + j * K, K, 1.0f, parts + i * N + j, N);
    assert_memory_equal(parts, whole, M * N * sizeof *whole);
    free(a);
    free(b);
    free(whole);
    free(parts);
}

static void test_parts(void **state) {
    (void)state;
    each_gemm(check_parts);
}

/* ---- factors that are packed beforehand ------------------------------------------------------ */

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

/* ---- products that threads share ------------------------------------------------------------- */

/* Small ones among large ones, which are cut and ordered by their share of the work. */
typedef struct shared_shape {
    bool ta, tb;
    size_t m, n, k, copies;
} shared_shape;
static const shared_shape shared[] = {{false, true, 200, 30, 64, 1},   {true, false, 1536, 384, 700, 1},
                                      {false, false, 7, 5, 3, 1},      {true, false, 384, 1536, 197, 1},
                                      {false, true, 1152, 384, 100, 1}, {false, true, 33, 65, 40, 3},
                                      {false, false, 1, 1000, 384, 1}, {false, true, 70, 200, 385, 1}};
enum { SHARED = sizeof shared / sizeof *shared };

/* |actual - exact| <= (k + 2) 2 u (sum |a b| + |c|), as in check_product. Row by row, so that memory is read in order. */
static void check_shared(const shared_shape *s, int32_t precision, const char *way, const float *a, const float *b,
                         const float *before, const float *c) {
    double *ra = copy_in(precision, a, s->m * s->k), *rb = copy_in(precision, b, s->n * s->k);
    double *sums = malloc(2 * s->n * sizeof *sums), *sizes = sums + s->n;
    assert_non_null(sums);
    for (size_t i = 0; i < s->m; i++) {
        for (size_t j = 0; j < s->n; j++) {
            sums[j] = before != NULL ? (double)before[i * s->n + j] : 0.0;
            sizes[j] = fabs(sums[j]);
        }
        for (size_t l = 0; l < s->k; l++)
            for (size_t j = 0; j < s->n; j++) {
                double product = ra[s->ta ? l * s->m + i : i * s->k + l] * rb[s->tb ? j * s->k + l : l * s->n + j];
                sums[j] += product;
                sizes[j] += fabs(product);
            }
        for (size_t j = 0; j < s->n; j++)
            if (!(fabs((double)c[i * s->n + j] - sums[j]) <= 1.01 * (double)(2 * s->k + 2) * 0x1p-24 * sizes[j]))
                fail_msg("%s, %zu x %zu x %zu: (%zu, %zu) is %.9g instead of %.9g", way, s->m, s->n, s->k, i, j,
                         (double)c[i * s->n + j], sums[j]);
    }
    free(ra);
    free(rb);
    free(sums);
}

static sd_context *context_of(int32_t threads) {
    sd_context_config config;
    sd_context *context = NULL;
    sd_context_config_init(&config);
    config.threads = threads;
    config.blas_threads = SD_BLAS_THREADS_ONE;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    return context;
}

/* With any number of threads the same bits, and right. */
static void check_threads(const sd_gemm *gemm, int32_t precision, const char *way) {
    (void)gemm;
    const int32_t threads[] = {1, 2, 3, 8};
    float *a[SHARED], *b[SHARED], *c[SHARED], *reference[SHARED];
    for (size_t i = 0; i < SHARED; i++) {
        const shared_shape *s = &shared[i];
        a[i] = random_floats(s->copies * s->m * s->k, 3 * i + 1);
        b[i] = random_floats(s->copies * s->n * s->k, 3 * i + 2);
        c[i] = malloc(s->copies * s->m * s->n * sizeof *c[i]);
        reference[i] = malloc(s->copies * s->m * s->n * sizeof *c[i]);
        assert_true(c[i] != NULL && reference[i] != NULL);
    }
    for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
        sd_context *context = context_of(threads[t]);
        sd_gemm gemms[8];
        sd_product products[SHARED];
        assert_int_equal(sd_threads(context), threads[t]);
        for (int32_t i = 0; i < threads[t]; i++)
            gemms[i] = make_gemm_in(precision);
        for (size_t i = 0; i < SHARED; i++) {
            const shared_shape *s = &shared[i];
            float *start = random_floats(s->copies * s->m * s->n, 3 * i + 3);
            memcpy(c[i], start, s->copies * s->m * s->n * sizeof *start);
            products[i] = (sd_product){.ta = s->ta, .tb = s->tb, .m = s->m, .n = s->n, .k = s->k, .a = a[i],
                                       .lda = s->ta ? s->m : s->k, .b = b[i], .ldb = s->tb ? s->k : s->n, .c = c[i],
                                       .ldc = s->n, .beta = s->ta ? 1.0f : 0.0f, .copies = s->copies,
                                       .next_a = s->m * s->k, .next_b = s->n * s->k, .next_c = s->m * s->n};
            free(start);
        }
        assert_int_equal(sd_run_products(context, gemms, products, SHARED, NULL, NULL), SD_OK);
        for (size_t i = 0; i < SHARED; i++) {
            const shared_shape *s = &shared[i];
            size_t values = s->m * s->n;
            float *start = random_floats(s->copies * values, 3 * i + 3);
            if (t == 0)
                memcpy(reference[i], c[i], s->copies * values * sizeof *c[i]);
            else if (memcmp(reference[i], c[i], s->copies * values * sizeof *c[i]) != 0)
                fail_msg("%s, %zu x %zu x %zu: %d threads give other bits than one", way, s->m, s->n, s->k, threads[t]);
            for (size_t copy = 0; t == 0 && copy < s->copies; copy++)
                check_shared(s, precision, way, a[i] + copy * s->m * s->k, b[i] + copy * s->n * s->k,
                             s->ta ? start + copy * values : NULL, c[i] + copy * values);
            free(start);
        }
        for (int32_t i = 0; i < threads[t]; i++)
            drop_gemm(&gemms[i]);
        sd_context_destroy(context);
    }
    for (size_t i = 0; i < SHARED; i++) {
        free(a[i]);
        free(b[i]);
        free(c[i]);
        free(reference[i]);
    }
}

static void test_threads(void **state) {
    (void)state;
    each_gemm(check_threads);
}

/* A side that the caller has cut stays so, whatever becomes of the other one: sums over the rows of a tile rely on it. */
enum { TALL = 1700, NARROW = 100 };
static unsigned char finished[TALL * NARROW];

static void mark_finished(const void *data, float *c, size_t ldc, size_t row, size_t rows, size_t column, size_t columns) {
    const bool whole = data == NULL ? row == 0 && rows == TALL : column == 0 && columns == NARROW;
    assert_true(c != NULL && ldc == NARROW);
    for (size_t i = row; i < row + rows; i++)
        for (size_t j = column; j < column + columns; j++)
            finished[i * NARROW + j] = (unsigned char)(finished[i * NARROW + j] + (whole ? 1 : 100));
}

static void check_tiles_given(const sd_gemm *gemm, int32_t precision, const char *way) {
    enum { K = 70, THREADS = 4 };
    (void)gemm;
    float *a = random_floats(TALL * K, 1), *b = random_floats(NARROW * K, 2), *c = malloc(TALL * NARROW * sizeof *c);
    sd_context *context = context_of(THREADS);
    sd_gemm gemms[THREADS];
    assert_non_null(c);
    for (size_t i = 0; i < THREADS; i++)
        gemms[i] = make_gemm_in(precision);
    for (int side = 0; side < 2; side++) {
        sd_product product = sd_linear_forward(a, TALL, K, b, NARROW, c);
        product.tile_m = side == 0 ? SD_BLAS_MAX : 0;
        product.tile_n = side == 1 ? SD_BLAS_MAX : 0;
        product.finish = (sd_finish){.function = mark_finished, .data = side == 0 ? NULL : a};
        memset(finished, 0, sizeof finished);
        assert_int_equal(sd_run_products(context, gemms, &product, 1, NULL, NULL), SD_OK);
        for (size_t i = 0; i < sizeof finished; i++)
            if (finished[i] != 1)
                fail_msg("%s: %s are cut, or (%zu, %zu) is not finished once", way, side == 0 ? "rows" : "columns",
                         i / NARROW, i % NARROW);
    }
    for (size_t i = 0; i < THREADS; i++)
        drop_gemm(&gemms[i]);
    sd_context_destroy(context);
    free(a);
    free(b);
    free(c);
}

static void test_tiles_given(void **state) {
    (void)state;
    each_gemm(check_tiles_given);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rounding),   cmocka_unit_test(test_products), cmocka_unit_test(test_rounding_in_memory),
        cmocka_unit_test(test_gradients_of_bf16),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_parts),    
        cmocka_unit_test(test_factors),    cmocka_unit_test(test_rows),     cmocka_unit_test(test_threads),
        cmocka_unit_test(test_tiles_given),
    };
    return cmocka_run_group_tests_name("gemm", tests, NULL, NULL);
}
