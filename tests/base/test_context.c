/* Contexts: threads, the host's runner and memory, log, progress, cancel. */
#define _XOPEN_SOURCE 700
#include "base/base.h"
#include "failing_memory.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static sd_context *make_context(int32_t threads) {
    sd_context_config config;
    sd_context_config_init(&config);
    config.threads = threads;
    sd_context *context = NULL;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    return context;
}

/* ---- threads ------------------------------------------------------------------------------- */

#define TASKS 10000

/* Notes how often each index came, and whether two calls had the same thread number at the same time. */
typedef struct tally {
    atomic_int calls[TASKS];
    atomic_int inside[64];
    atomic_int clashes;
    size_t threads;
} tally;

static void note(void *work, size_t index, size_t thread) {
    tally *all = work;
    if (thread >= all->threads || atomic_fetch_add(&all->inside[thread], 1) != 0)
        atomic_fetch_add(&all->clashes, 1);
    atomic_fetch_add(&all->calls[index], 1);
    atomic_fetch_sub(&all->inside[thread], 1);
}

static void assert_each_once(const tally *all, size_t count) {
    for (size_t i = 0; i < TASKS; i++)
        if (atomic_load(&all->calls[i]) != (i < count))
            fail_msg("index %zu of %zu was called %d times", i, count, atomic_load(&all->calls[i]));
    assert_int_equal(atomic_load(&all->clashes), 0);
}

static void every_task_once(void **state) {
    (void)state;
    static tally all;
    for (int32_t threads = 1; threads <= 4; threads++) {
        sd_context *context = make_context(threads);
        assert_int_equal(sd_context_threads(context), threads);
        assert_true(sd_threads(context) == (size_t)threads);
        for (size_t count = 0; count <= TASKS; count = count < 9 ? count + 1 : count == 9 ? TASKS : TASKS + 1) {
            memset(&all, 0, sizeof all);
            all.threads = (size_t)threads;
            assert_int_equal(sd_run(context, note, &all, count), SD_OK);
            assert_each_once(&all, count);
        }
        sd_context_destroy(context);
    }
    memset(&all, 0, sizeof all);
    all.threads = 1;
    assert_int_equal(sd_run(NULL, note, &all, 100), SD_OK);
    assert_each_once(&all, 100);
    assert_true(sd_threads(NULL) == 1);
    assert_int_equal(sd_context_threads(NULL), 0);
}

static void count_up(void *work, size_t index, size_t thread) {
    (void)thread;
    atomic_fetch_add((atomic_size_t *)work, index + 1);
}

/* Short sections one after the other are where a pool loses a wake-up. */
static void many_short_sections(void **state) {
    (void)state;
    for (int32_t threads = 2; threads <= 4; threads++) {
        sd_context *context = make_context(threads);
        for (int i = 0; i < 10000; i++) {
            atomic_size_t sum = 0;
            size_t count = (size_t)(i % 5);
            assert_int_equal(sd_run(context, count_up, &sum, count), SD_OK);
            assert_true(sum == count * (count + 1) / 2);
        }
        sd_context_destroy(context);
    }
}

/* With two threads two tasks run at the same time: each waits for the other. */
typedef struct meeting {
    pthread_barrier_t barrier;
    size_t threads[2];
} meeting;

static void meet(void *work, size_t index, size_t thread) {
    meeting *both = work;
    both->threads[index] = thread;
    pthread_barrier_wait(&both->barrier);
}

static void tasks_run_at_the_same_time(void **state) {
    (void)state;
    sd_context *context = make_context(2);
    meeting both;
    pthread_barrier_init(&both.barrier, NULL, 2);
    assert_int_equal(sd_run(context, meet, &both, 2), SD_OK);
    assert_true(both.threads[0] + both.threads[1] == 1);
    pthread_barrier_destroy(&both.barrier);
    sd_context_destroy(context);
}

typedef struct nest {
    sd_context *context;
    atomic_size_t sum;
} nest;

static void run_inside(void *work, size_t index, size_t thread) {
    (void)index;
    (void)thread;
    nest *outer = work;
    if (sd_run(outer->context, count_up, &outer->sum, 10) != SD_OK)
        atomic_store(&outer->sum, 0);
}

static void nested_sections(void **state) {
    (void)state;
    for (int32_t threads = 1; threads <= 3; threads++) {
        nest outer = {.context = make_context(threads)};
        assert_int_equal(sd_run(outer.context, run_inside, &outer, 100), SD_OK);
        assert_true(outer.sum == 100 * 55);
        sd_context_destroy(outer.context);
    }
}

static void *host_thread(void *argument) {
    nest *shared = argument;
    for (int i = 0; i < 2000; i++) {
        atomic_size_t sum = 0;
        if (sd_run(shared->context, count_up, &sum, 20) == SD_OK && sum == 210)
            atomic_fetch_add(&shared->sum, 1);
    }
    return NULL;
}

/* Two threads of the host share one context: one gets the pool, the other computes by itself. */
static void two_host_threads(void **state) {
    (void)state;
    nest shared = {.context = make_context(3)};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, host_thread, &shared), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    assert_true(shared.sum == 4000);
    sd_context_destroy(shared.context);
}

static void two_contexts(void **state) {
    (void)state;
    sd_context *first = make_context(2), *second = make_context(3);
    nest outer = {.context = second}; /* sections of the second within one of the first */
    assert_int_equal(sd_run(first, run_inside, &outer, 50), SD_OK);
    assert_true(outer.sum == 50 * 55);
    sd_context_destroy(first);
    atomic_size_t sum = 0;
    assert_int_equal(sd_run(second, count_up, &sum, 4), SD_OK);
    assert_true(sum == 10);
    sd_context_destroy(second);
}

/* ---- the host's runner --------------------------------------------------------------------- */

typedef struct host_runner {
    int calls, result;
    size_t tasks;
} host_runner;

static int run_backwards(void *opaque, sd_parallel_function function, void *work, size_t count) {
    host_runner *runner = opaque;
    runner->calls++;
    runner->tasks += count;
    if (runner->result != 0)
        return runner->result;
    for (size_t i = count; i-- > 0;)
        function(work, i, i % 2);
    return 0;
}

static void own_runner(void **state) {
    (void)state;
    static tally all;
    host_runner runner = {0};
    sd_context_config config;
    sd_context_config_init(&config);
    config.runner = run_backwards;
    config.runner_opaque = &runner;
    sd_context *context = NULL;
    assert_int_equal(sd_context_create(&config, &context), SD_ERR_ARGUMENT); /* how many threads has it? */
    assert_null(context);
    config.threads = 2;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    assert_int_equal(sd_context_threads(context), 2);
    memset(&all, 0, sizeof all);
    all.threads = 2;
    assert_int_equal(sd_run(context, note, &all, 1000), SD_OK);
    assert_each_once(&all, 1000);
    assert_true(runner.calls == 1 && runner.tasks == 1000);
    runner.result = 5;
    assert_int_equal(sd_run(context, note, &all, 10), SD_ERR_THREAD);
    assert_non_null(strstr(sd_last_error(), "5"));
    sd_context_destroy(context);
}

/* ---- memory -------------------------------------------------------------------------------- */

static void failed_allocations(void **state) {
    (void)state;
    sd_context_config config;
    failing_memory memory;
    sd_context *context = NULL;
    sd_status status = SD_ERR_MEMORY;
    for (long n = 0; status != SD_OK; n++) {
        sd_context_config_init(&config);
        config.threads = 3;
        failing_memory_install(&memory, &config);
        memory.fail_at = n;
        status = sd_context_create(&config, &context);
        if (status == SD_OK) {
            assert_true(n >= 2);
            sd_context_destroy(context);
        } else {
            assert_int_equal(status, SD_ERR_MEMORY);
            assert_null(context);
        }
        assert_int_equal(memory.live, 0);
    }
    config.release = NULL;
    assert_int_equal(sd_context_create(&config, &context), SD_ERR_ARGUMENT);
}

static void wrong_settings(void **state) {
    (void)state;
    sd_context *context = NULL;
    sd_context_config config;
    assert_int_equal(sd_context_create(NULL, NULL), SD_ERR_ARGUMENT);
    sd_context_config_init(&config);
    config.threads = -1;
    assert_int_equal(sd_context_create(&config, &context), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "threads is -1"));
    config.threads = 1000000;
    assert_int_equal(sd_context_create(&config, &context), SD_ERR_ARGUMENT);
    sd_context_config_init(&config);
    config.blas_threads = 7;
    assert_int_equal(sd_context_create(&config, &context), SD_ERR_ARGUMENT);
    memset(&config, 0, sizeof config); /* not initialised */
    assert_int_equal(sd_context_create(&config, &context), SD_ERR_ARGUMENT);
    assert_null(context);
    sd_context_destroy(NULL);
    assert_int_equal(sd_context_create(NULL, &context), SD_OK);
    assert_true(sd_context_threads(context) >= 1);
    sd_context_destroy(context);
}

/* ---- log, progress, cancel ----------------------------------------------------------------- */

typedef struct listener {
    int lines[4];
    char last[1024];
    uint64_t done, total;
    int cancel;
    atomic_int inside;
    int overlaps;
} listener;

static void hear(void *opaque, sd_log_level level, const char *message) {
    listener *ears = opaque;
    if (atomic_fetch_add(&ears->inside, 1) != 0)
        ears->overlaps++;
    ears->lines[level]++;
    snprintf(ears->last, sizeof ears->last, "%s", message);
    atomic_fetch_sub(&ears->inside, 1);
}

static void see(void *opaque, const char *what, uint64_t done, uint64_t total) {
    listener *eyes = opaque;
    assert_string_equal(what, "test");
    eyes->done = done;
    eyes->total = total;
}

static int stop(void *opaque) { return ((listener *)opaque)->cancel; }

static sd_context *make_listening(listener *host, int32_t level) {
    sd_context_config config;
    sd_context_config_init(&config);
    config.threads = 4;
    config.blas_threads = SD_BLAS_THREADS_ONE; /* else a warning about the BLAS may come */
    config.log = hear;
    config.log_opaque = config.progress_opaque = config.cancel_opaque = host;
    config.log_level = level;
    config.progress = see;
    config.cancel = stop;
    sd_context *context = NULL;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    return context;
}

static void log_level(void **state) {
    (void)state;
    for (int32_t level = SD_LOG_ERROR; level <= SD_LOG_DEBUG; level++) {
        listener host = {0};
        sd_context *context = make_listening(&host, level);
        memset(host.lines, 0, sizeof host.lines); /* advice about the BLAS may have come */
        for (int i = SD_LOG_ERROR; i <= SD_LOG_DEBUG; i++)
            sd_log(context, (sd_log_level)i, "line %d", i);
        for (int i = SD_LOG_ERROR; i <= SD_LOG_DEBUG; i++)
            assert_int_equal(host.lines[i], i <= level);
        char expected[16];
        snprintf(expected, sizeof expected, "line %d", (int)level);
        assert_string_equal(host.last, expected);
        sd_context_destroy(context);
    }
    sd_context_config config;
    sd_context_config_init(&config);
    assert_int_equal(config.log_level, SD_LOG_INFO);
    sd_log(NULL, SD_LOG_ERROR, "nobody hears this");
}

static void speak(void *work, size_t index, size_t thread) {
    (void)thread;
    sd_log(work, SD_LOG_INFO, "task %zu", index);
}

static void log_lines_come_one_at_a_time(void **state) {
    (void)state;
    listener host = {0};
    sd_context *context = make_listening(&host, SD_LOG_INFO);
    assert_int_equal(sd_run(context, speak, context, 2000), SD_OK);
    assert_int_equal(host.lines[SD_LOG_INFO], 2000);
    assert_int_equal(host.overlaps, 0);
    sd_context_destroy(context);
}

static void progress_and_cancel(void **state) {
    (void)state;
    listener host = {0};
    sd_context *context = make_listening(&host, SD_LOG_INFO);
    sd_progress(context, "test", 3, 7);
    assert_true(host.done == 3 && host.total == 7);
    assert_false(sd_cancelled(context));
    assert_int_equal(sd_check_cancel(context), SD_OK);
    host.cancel = 1;
    assert_true(sd_cancelled(context));
    assert_int_equal(sd_check_cancel(context), SD_ERR_CANCELLED);
    sd_context_destroy(context);
    sd_progress(NULL, "test", 0, 0);
    assert_false(sd_cancelled(NULL));
    assert_int_equal(sd_check_cancel(NULL), SD_OK);
}

/* ---- what runs here ------------------------------------------------------------------------ */

static int32_t blas_threads(void) {
    sd_system_info info = {.size = sizeof info};
    assert_int_equal(sd_system_info_get(&info), SD_OK);
    return info.blas_threads;
}

/* The number of threads of the BLAS comes back when the last context that changed it is gone. */
static void blas_threads_are_restored(void **state) {
    (void)state;
    int32_t before = blas_threads();
    sd_context_config config;
    sd_context_config_init(&config);
    config.threads = 1;
    config.blas_threads = SD_BLAS_THREADS_ONE;
    sd_context *first = NULL, *second = NULL;
    assert_int_equal(sd_context_create(&config, &first), SD_OK);
    assert_int_equal(sd_context_create(&config, &second), SD_OK);
    assert_true(blas_threads() <= 1); /* 0: the BLAS does not tell */
    sd_context_destroy(first);
    assert_true(blas_threads() <= 1);
    sd_context_destroy(second);
    assert_int_equal(blas_threads(), before);
}

static void system_info(void **state) {
    (void)state;
    sd_system_info info = {.size = sizeof info};
    assert_int_equal(sd_system_info_get(&info), SD_OK);
    assert_true(strlen(info.cpu) > 0 && strlen(info.kernels) > 0 && strlen(info.blas) > 0);
    assert_non_null(info.blas_kernel);
    assert_non_null(info.advice);
    assert_int_equal(sd_system_info_get(NULL), SD_ERR_ARGUMENT);
    info.size = 0;
    assert_int_equal(sd_system_info_get(&info), SD_ERR_ARGUMENT);
    memset(&info, 0x55, sizeof info); /* an older program's shorter struct */
    info.size = offsetof(sd_system_info, blas);
    assert_int_equal(sd_system_info_get(&info), SD_OK);
    assert_true(strlen(info.kernels) > 0 && (uintptr_t)info.blas % 256 == 0x55);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_once),
        cmocka_unit_test(many_short_sections),
        cmocka_unit_test(tasks_run_at_the_same_time),
        cmocka_unit_test(nested_sections),
        cmocka_unit_test(two_host_threads),
        cmocka_unit_test(two_contexts),
        cmocka_unit_test(own_runner),
        cmocka_unit_test(failed_allocations),
        cmocka_unit_test(wrong_settings),
        cmocka_unit_test(log_level),
        cmocka_unit_test(log_lines_come_one_at_a_time),
        cmocka_unit_test(progress_and_cancel),
        cmocka_unit_test(blas_threads_are_restored),
        cmocka_unit_test(system_info),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
