/* The default parallel runner: a fixed set of threads that claim indices of the present section.
 *
 * A training step has a few dozen parallel sections of a millisecond to a second, so a worker spins briefly for the
 * next section before it sleeps: waking a thread costs more than the gap between sections. The caller waits for the
 * work to be done, not for the workers: one that the operating system has not woken yet misses the section, and nobody
 * waits for it. */
#include "base/context.h"

#if defined(__x86_64__) || defined(__i386__)
#define SD_PAUSE() __builtin_ia32_pause()
#else
#define SD_PAUSE() ((void)0)
#endif

/* About a millisecond where a pause takes 140 cycles, as on Intel's servers: the sections of a coding rate follow each other
 * within a few hundred microseconds, and being woken takes as long as one of them. */
#define SD_SPIN_COUNT 16000
#define SD_COUNT_MAX ((size_t)UINT32_MAX)

typedef struct sd_worker {
    sd_pool *pool;
    size_t thread;
    pthread_t handle;
} sd_worker;

struct sd_pool {
    pthread_mutex_t occupied; /* held by the caller whose section runs */
    pthread_mutex_t lock;
    pthread_cond_t start, finish;
    /* Upper half: number of the section; lower half: indices that nobody has claimed yet. Both in one word, so that a
     * claim is always for the section that it was made in. function, work and count are written before a section begins
     * and stay until its last claimed index is done, so that whoever holds a claim may read them. */
    atomic_uint_fast64_t state;
    atomic_size_t done; /* indices that were run */
    sd_parallel_function function;
    void *work;
    size_t count;
    atomic_bool stop;
    size_t workers, started;
    sd_worker *worker;
};

static uint32_t section_of(uint64_t state) { return (uint32_t)(state >> 32); }

static void run_indices(sd_pool *pool, size_t thread) {
    uint64_t state = atomic_load_explicit(&pool->state, memory_order_acquire);
    for (;;) {
        uint64_t left = state & SD_COUNT_MAX;
        if (left == 0)
            return;
        if (!atomic_compare_exchange_weak_explicit(&pool->state, &state, state - 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        size_t count = pool->count;
        pool->function(pool->work, count - left, thread);
        if (atomic_fetch_add_explicit(&pool->done, 1, memory_order_acq_rel) + 1 == count) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->finish);
            pthread_mutex_unlock(&pool->lock);
        }
        state = atomic_load_explicit(&pool->state, memory_order_acquire);
    }
}

static void *worker_main(void *argument) {
    sd_worker *self = argument;
    sd_pool *pool = self->pool;
    uint32_t seen = 0;
    while (!atomic_load_explicit(&pool->stop, memory_order_acquire)) {
        uint64_t state = atomic_load_explicit(&pool->state, memory_order_acquire);
        for (int spin = 0; spin < SD_SPIN_COUNT && section_of(state) == seen; spin++) {
            SD_PAUSE();
            state = atomic_load_explicit(&pool->state, memory_order_acquire);
        }
        if (section_of(state) == seen) {
            pthread_mutex_lock(&pool->lock);
            while (section_of(state = atomic_load_explicit(&pool->state, memory_order_acquire)) == seen)
                pthread_cond_wait(&pool->start, &pool->lock);
            pthread_mutex_unlock(&pool->lock);
        }
        seen = section_of(state);
        run_indices(pool, self->thread);
    }
    return NULL;
}

static void begin_section(sd_pool *pool, size_t count) {
    pthread_mutex_lock(&pool->lock);
    uint64_t section = section_of(atomic_load_explicit(&pool->state, memory_order_relaxed)) + UINT64_C(1);
    atomic_store_explicit(&pool->state, (section & UINT32_MAX) << 32 | count, memory_order_release);
    pthread_cond_broadcast(&pool->start);
    pthread_mutex_unlock(&pool->lock);
}

static bool is_done(sd_pool *pool) { return atomic_load_explicit(&pool->done, memory_order_acquire) == pool->count; }

bool sd_pool_run(sd_pool *pool, sd_parallel_function function, void *work, size_t count) {
    if (count > SD_COUNT_MAX || pthread_mutex_trylock(&pool->occupied) != 0)
        return false;
    pool->function = function;
    pool->work = work;
    pool->count = count;
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    begin_section(pool, count);
    run_indices(pool, 0);
    for (int spin = 0; spin < SD_SPIN_COUNT && !is_done(pool); spin++)
        SD_PAUSE();
    if (!is_done(pool)) {
        pthread_mutex_lock(&pool->lock);
        while (!is_done(pool))
            pthread_cond_wait(&pool->finish, &pool->lock);
        pthread_mutex_unlock(&pool->lock);
    }
    pthread_mutex_unlock(&pool->occupied);
    return true;
}

sd_status sd_pool_create(sd_context *context, size_t threads, sd_pool **out) {
    sd_status status = SD_OK;
    sd_pool *pool = SD_NEW(context, sd_pool);
    if (pool == NULL)
        return SD_ERR_MEMORY;
    pool->workers = threads - 1;
    pthread_mutex_init(&pool->occupied, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->start, NULL);
    pthread_cond_init(&pool->finish, NULL);
    pool->worker = SD_NEW_ARRAY(context, sd_worker, pool->workers);
    SD_EXPECT(pool->worker != NULL, SD_ERR_MEMORY, "no memory for %zu threads", threads);
    for (; pool->started < pool->workers; pool->started++) {
        sd_worker *worker = &pool->worker[pool->started];
        worker->pool = pool;
        worker->thread = pool->started + 1;
        SD_EXPECT(pthread_create(&worker->handle, NULL, worker_main, worker) == 0, SD_ERR_THREAD,
                  "thread %zu of %zu could not be started", worker->thread + 1, threads);
    }
    *out = pool;
    pool = NULL;
cleanup:
    sd_pool_destroy(context, pool);
    return status;
}

void sd_pool_destroy(sd_context *context, sd_pool *pool) {
    if (pool == NULL)
        return;
    atomic_store_explicit(&pool->stop, true, memory_order_release);
    begin_section(pool, 0);
    for (size_t i = 0; i < pool->started; i++)
        pthread_join(pool->worker[i].handle, NULL);
    pthread_cond_destroy(&pool->finish);
    pthread_cond_destroy(&pool->start);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->occupied);
    sd_release(context, pool->worker);
    sd_release(context, pool);
}
