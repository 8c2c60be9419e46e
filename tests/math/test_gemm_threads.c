/* Products that are cut for threads, every way that this machine has: right, and the same with any number of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "every_gemm.h"
#include "math/products.h"
#include "small_runs.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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

/* |actual - exact| <= (k + 2) 2 u (sum |a b| + |c|), as check_product in test_gemm.c. Row by row, so that memory is read in order. */
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
        sd_context *context = small_context(threads[t], NULL);
        sd_gemm gemms[8];
        sd_product products[SHARED];
        assert_int_equal(sd_threads(context), threads[t]);
        for (int32_t i = 0; i < threads[t]; i++)
            gemms[i] = make_gemm(precision);
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
    sd_context *context = small_context(THREADS, NULL);
    sd_gemm gemms[THREADS];
    assert_non_null(c);
    for (size_t i = 0; i < THREADS; i++)
        gemms[i] = make_gemm(precision);
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
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_tiles_given),
    };
    return cmocka_run_group_tests_name("gemm threads", tests, NULL, NULL);
}
