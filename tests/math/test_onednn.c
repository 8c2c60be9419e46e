/* A library that was built with oneDNN: the host's OpenMP setting survives, in its own threads and in the library's, and
 * no threads are started but those of the context. */
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
        cmocka_unit_test(test_pool_threads),
        cmocka_unit_test(test_steps),
    };
    return cmocka_run_group_tests_name("onednn", tests, NULL, NULL);
}
