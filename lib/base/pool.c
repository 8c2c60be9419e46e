/* The default parallel runner: a fixed set of threads that take indices from a shared counter.
 *
 * A training step has a few dozen parallel sections of a millisecond to a second, so a worker spins briefly for the next section before it
 * sleeps: waking a thread costs more than the gap between sections. */
#include "base/context.h"

#if defined(__x86_64__) || defined(__i386__)
#define SD_PAUSE() __builtin_ia32_pause()
#else
#define SD_PAUSE() ((void)0)
#endif

#define SD_SPIN_COUNT 2000

typedef struct sd_worker {
    sd_pool *pool;
    size_t thread;
    pthread_t handle;
} sd_worker;

struct sd_pool {
    pthread_mutex_t occupied; /* held by the caller whose section runs */
    pthread_mutex_t lock;
    pthread_cond_t start, finish;
    atomic_uint_fast64_t section; /* number of the section that runs or ran last; guarded by lock for writing */
    atomic_size_t next;           /* index to take */
    atomic_size_t working;        /* workers that have not finished the section */
    sd_parallel_function function;
    void *work;
    size_t count;
    atomic_bool stop;
    size_t workers, started;
    sd_worker *worker;
};

static void take_indices(sd_pool *pool, size_t thread) {
    for (;;) {
        size_t index = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (index >= pool->count)
            return;
        pool->function(pool->work, index, thread);
    }
}

static void *worker_main(void *argument) {
    sd_worker *self = argument;
    sd_pool *pool = self->pool;
    uint64_t seen = 0;
    for (;;) {
        for (int spin = 0; spin < SD_SPIN_COUNT && atomic_load_explicit(&pool->section, memory_order_acquire) == seen;
             spin++)
            SD_PAUSE();
        if (atomic_load_explicit(&pool->section, memory_order_acquire) == seen) {
            pthread_mutex_lock(&pool->lock);
            while (atomic_load_explicit(&pool->section, memory_order_acquire) == seen)
                pthread_cond_wait(&pool->start, &pool->lock);
            pthread_mutex_unlock(&pool->lock);
        }
        seen++;
        if (atomic_load_explicit(&pool->stop, memory_order_acquire))
            return NULL;
        take_indices(pool, self->thread);
        if (atomic_fetch_sub_explicit(&pool->working, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->finish);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

static void begin_section(sd_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add_explicit(&pool->section, 1, memory_order_release);
    pthread_cond_broadcast(&pool->start);
    pthread_mutex_unlock(&pool->lock);
}

bool sd_pool_run(sd_pool *pool, sd_parallel_function function, void *work, size_t count) {
    if (pthread_mutex_trylock(&pool->occupied) != 0)
        return false;
    pool->function = function;
    pool->work = work;
    pool->count = count;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->working, pool->workers, memory_order_relaxed);
    begin_section(pool);
    take_indices(pool, 0);
    for (int spin = 0; spin < SD_SPIN_COUNT && atomic_load_explicit(&pool->working, memory_order_acquire) != 0; spin++)
        SD_PAUSE();
    if (atomic_load_explicit(&pool->working, memory_order_acquire) != 0) {
        pthread_mutex_lock(&pool->lock);
        while (atomic_load_explicit(&pool->working, memory_order_acquire) != 0)
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
    begin_section(pool);
    for (size_t i = 0; i < pool->started; i++)
        pthread_join(pool->worker[i].handle, NULL);
    pthread_cond_destroy(&pool->finish);
    pthread_cond_destroy(&pool->start);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->occupied);
    sd_release(context, pool->worker);
    sd_release(context, pool);
}
