/* A library that was built with oneDNN: what follows a product is as without it, the host's OpenMP setting survives, in its
 * own threads and in the library's, and no threads are started but those of the context. */
#define _POSIX_C_SOURCE 200809L /* sched_yield */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "ways.h"
#include "math/math.h"
#include "math/products.h"
#include "small_runs.h"

#include <oneapi/dnnl/dnnl_config.h>

#include <dirent.h>
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP
/* Not from omp.h: see lib/math/onednn.c. */
int omp_get_max_threads(void);
void omp_set_num_threads(int threads);
#else
static int omp_get_max_threads(void) { return 1; }
static void omp_set_num_threads(int threads) { (void)threads; }
#endif

/* Threads of this process; 0: not known here. */
static size_t process_threads(void) {
    DIR *folder = opendir("/proc/self/task");
    if (folder == NULL)
        return 0;
    size_t count = 0;
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder))
        count += entry->d_name[0] != '.';
    closedir(folder);
    return count;
}

/* ---- one thread's products ------------------------------------------------------------------ */

/* Large enough that oneDNN takes all threads that it may. */
enum { SIDE = 320, VARIANTS = 4 };

typedef struct matrices {
    float *a, *b, *c;
    sd_gemm gemms[2]; /* fp32, and bf16 by oneDNN where it is possible (else fp32) */
} matrices;

static matrices make_matrices(void) {
    matrices m = {.gemms = {sd_gemm_fp32, sd_gemm_fp32}};
    float **all[] = {&m.a, &m.b, &m.c};
    for (size_t i = 0; i < 3; i++) {
        *all[i] = malloc((size_t)SIDE * SIDE * sizeof(float));
        assert_non_null(*all[i]);
        for (size_t j = 0; j < (size_t)SIDE * SIDE; j++)
            (*all[i])[j] = (float)(j % 7);
    }
    const char *ways[BF16_WAYS_MAX];
    size_t count = bf16_ways(ways);
    if (strcmp(ways[count - 1], "onednn") == 0) {
        bf16_take("onednn");
        void *scratch = sd_allocate(NULL, sd_gemm_scratch(SD_PRECISION_BF16), 1);
        assert_non_null(scratch);
        m.gemms[1] = sd_gemm_of(SD_PRECISION_BF16, scratch);
        bf16_take(NULL);
    }
    return m;
}

static void drop_matrices(matrices *m) {
    free(m->a);
    free(m->b);
    free(m->c);
    sd_release(NULL, m->gemms[1].scratch);
}

static void multiply_all(const matrices *m) {
    for (size_t i = 0; i < 2; i++)
        for (int variant = 0; variant < VARIANTS; variant++)
            sd_multiply(&m->gemms[i], variant & 1, variant & 2, SIDE, SIDE, SIDE, 1.0f, m->a, SIDE, m->b, SIDE,
                        i == 0 ? 0.0f : 1.0f, m->c, SIDE);
}

static void test_calling_thread(void **state) {
    (void)state;
    size_t before = process_threads();
    int former = omp_get_max_threads();
    matrices m = make_matrices();
    multiply_all(&m);
    assert_int_equal(omp_get_max_threads(), former); /* what the environment says */
    assert_int_equal(process_threads(), before);
#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP
    const int settings[] = {1, 3, 4};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        omp_set_num_threads(settings[i]);
        multiply_all(&m);
        assert_int_equal(omp_get_max_threads(), settings[i]);
    }
    assert_int_equal(process_threads(), before);
#endif
    omp_set_num_threads(former);
    drop_matrices(&m);
}

/* ---- what follows a product ------------------------------------------------------------------ */

/* A part of a product of WHOLE columns, from (ROW, COLUMN) on, as tiles are. */
enum { WHOLE = 600, ROW = 2, COLUMN = 11, MOST = 100 };

typedef struct follow {
    const char *name;
    bool gelu, factor, residual, elsewhere; /* elsewhere: GELU's into another matrix, which oneDNN cannot do */
} follow;

static const follow follows[] = {
    {"bias", false, false, false, false},          {"bias, GELU", true, false, false, false},
    {"bias, residual", false, false, true, false}, {"bias, factor, residual", false, true, true, false},
    {"bias, factor", false, true, false, false},   {"bias, GELU elsewhere", false, false, false, true},
};

typedef struct expected {
    size_t calls;
    float *c;
} expected;

static void count_call(const void *data, float *c, size_t ldc, size_t row, size_t rows, size_t column, size_t columns) {
    expected *const *e = data;
    assert_true(ldc == WHOLE && c == (*e)->c + row * ldc + column && rows > 0 && columns > 0);
    (*e)->calls++;
}

static float *filled(size_t count, uint64_t seed) {
    float *x = malloc(count * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < count; i++)
        x[i] = (float)((double)((i * 2654435761u + seed * 97u) % 1000u) / 500.0 - 1.0);
    return x;
}

static void check_follow(const sd_gemm *gemm, bool bf16, bool ta, bool tb, size_t m, size_t n, size_t k, const follow *f) {
    const size_t count = (ROW + MOST) * WHOLE, lda = (ta ? m : k) + 3, ldb = (tb ? k : n) + 1;
    float *a = filled((ta ? k : m) * lda, 1), *b = filled((tb ? n : k) * ldb, 2), *bias = filled(WHOLE, 3);
    float *factor = filled(WHOLE, 4), *residual = filled(count, 5), *plain = calloc(count, sizeof *plain);
    float *c = filled(count, 6), *out = filled(count, 7), *former_c = filled(count, 6), *former_out = filled(count, 7);
    expected e = {0, c}, *const data = &e;
    const sd_finish finish = {count_call, &data,
                              {.bias = bias,
                               .gelu = f->elsewhere ? out : f->gelu ? c : NULL,
                               .factor = f->factor ? factor : NULL,
                               .residual = f->residual ? residual : NULL,
                               .out = f->residual ? out : NULL}};
    assert_non_null(plain);
    sd_multiply(gemm, ta, tb, m, n, k, 1.0f, a, lda, b, ldb, 0.0f, plain + ROW * WHOLE + COLUMN, WHOLE);
    sd_multiply_finish(gemm, ta, tb, m, n, k, a, lda, b, ldb, c, WHOLE, ROW, COLUMN, &finish);
    /* version 2.6 has no fast code for a factor of each column in fp32: then plain products come, and calls */
    const bool called = e.calls > 0;
    if (called != f->elsewhere && !f->factor)
        fail_msg("%s, %s, %zu x %zu x %zu, ta %d, tb %d: %zu calls", bf16 ? "bf16" : "fp32", f->name, m, n, k, ta, tb, e.calls);
    const bool moved = f->residual && !called;
    const float *got = moved ? out : c, *before = moved ? former_out : former_c;
    for (size_t i = 0; i < ROW + MOST; i++)
        for (size_t j = 0; j < WHOLE; j++) {
            const size_t place = i * WHOLE + j;
            double wanted = (double)before[place];
            if (i >= ROW && i < ROW + m && j >= COLUMN && j < COLUMN + n) {
                wanted = (double)plain[place];
                if (!called) {
                    wanted += (double)bias[j];
                    wanted = f->gelu ? 0.5 * wanted * erfc(-wanted / sqrt(2.0)) : wanted;
                    wanted *= f->factor ? (double)factor[j] : 1.0;
                    wanted += f->residual ? (double)residual[place] : 0.0;
                }
            }
            if (!(fabs((double)got[place] - wanted) <= 2e-6 * (double)k))
                fail_msg("%s, %s, %zu x %zu x %zu, ta %d, tb %d: (%zu, %zu) is %.9g instead of %.9g", bf16 ? "bf16" : "fp32",
                         f->name, m, n, k, ta, tb, i, j, (double)got[place], wanted);
        }
    float *all[] = {a, b, bias, factor, residual, plain, c, out, former_c, former_out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* By one primitive with what follows as by a product and loops; more shapes than are kept, so that some are made again. */
static void test_follows(void **state) {
    (void)state;
    const size_t sizes[][3] = {{1, 1, 1}, {64, 48, 32}, {37, 5, 70}, {100, 500, 64}, {3, 400, 900}, {90, 33, 780}};
    matrices m = make_matrices();
    sd_gemm gemms[2] = {sd_gemm_of(SD_PRECISION_FP32, NULL), m.gemms[1]};
    assert_non_null(gemms[0].finish);
    gemms[0].finishes_gelu = gemms[1].finishes_gelu = true; /* whatever is faster here */
    for (size_t g = 0; g < (m.gemms[1].scratch == NULL ? 1 : 2); g++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (int variant = 0; variant < VARIANTS; variant++)
                for (size_t f = 0; f < sizeof follows / sizeof *follows; f++)
                    check_follow(&gemms[g], g == 1, variant & 1, variant & 2, sizes[s][0], sizes[s][1], sizes[s][2],
                                 &follows[f]);
    drop_matrices(&m);
}

/* ---- in the threads of a context ------------------------------------------------------------ */

enum { THREADS = 3 };

typedef struct section {
    atomic_size_t here; /* each thread waits for all, so that each takes one index */
    matrices matrices[THREADS];
    bool set; /* the thread has a setting of its own; else it is the environment's */
    int before[THREADS], after[THREADS];
} section;

static void multiply_task(void *argument, size_t index, size_t thread) {
    (void)index;
    section *s = argument;
    atomic_fetch_add(&s->here, 1);
    while (atomic_load(&s->here) < THREADS)
        sched_yield();
    if (s->set)
        omp_set_num_threads(2 + (int)thread);
    s->before[thread] = omp_get_max_threads();
    multiply_all(&s->matrices[thread]);
    s->after[thread] = omp_get_max_threads();
}

static void test_pool_threads(void **state) {
    (void)state;
    int former = omp_get_max_threads();
    sd_context *context = small_context(THREADS, NULL);
    section s = {.set = false};
    for (size_t i = 0; i < THREADS; i++)
        s.matrices[i] = make_matrices();
    size_t before = process_threads();
    for (int round = 0; round < 3; round++) {
        s.set = round > 0;
        atomic_store(&s.here, 0);
        assert_int_equal(sd_run(context, multiply_task, &s, THREADS), SD_OK);
        for (size_t i = 0; i < THREADS; i++)
            assert_int_equal(s.after[i], s.before[i]);
#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP
        for (size_t i = 0; s.set && i < THREADS; i++)
            assert_int_equal(s.after[i], 2 + (int)i);
#endif
    }
    assert_int_equal(process_threads(), before);
    omp_set_num_threads(former);
    for (size_t i = 0; i < THREADS; i++)
        drop_matrices(&s.matrices[i]);
    sd_context_destroy(context);
}

/* The whole of a training step, in whose sections the calling thread takes part. */
static void test_steps(void **state) {
    (void)state;
    int former = omp_get_max_threads();
    omp_set_num_threads(4);
    int setting = omp_get_max_threads();
    size_t before = process_threads();
    sd_context *context = small_context(THREADS, NULL);
    sd_pretrainer_config config = small_config(SMALL_SIMDINOV2);
    sd_pretrainer *trainer = small_trainer(context, &config);
    for (size_t step = 0; step < 2; step++)
        small_step(trainer, step * SMALL_BATCH);
    assert_int_equal(omp_get_max_threads(), setting);
    if (before > 0)
        assert_true(process_threads() <= before + THREADS - 1);
    sd_pretrainer_destroy(trainer);
    sd_context_destroy(context);
    assert_int_equal(omp_get_max_threads(), setting);
    omp_set_num_threads(former);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calling_thread),
        cmocka_unit_test(test_follows),
        cmocka_unit_test(test_pool_threads),
        cmocka_unit_test(test_steps),
    };
    return cmocka_run_group_tests_name("onednn", tests, NULL, NULL);
}
