/* What a context holds. */
#ifndef SD_CONTEXT_INTERNAL_H
#define SD_CONTEXT_INTERNAL_H

#include "base/base.h"

#include <pthread.h>
#include <stdatomic.h>

typedef struct sd_pool sd_pool;

struct sd_context {
    sd_context_config config;
    size_t threads;
    sd_pool *pool; /* NULL with the host's runner, or with one thread */
    pthread_mutex_t log_lock;
    bool holds_blas; /* sd_blas_hold_one_thread was called for it */
};

/* pool.c: `threads` counts the caller, so threads - 1 are started. */
sd_status sd_pool_create(sd_context *context, size_t threads, sd_pool **pool);
void sd_pool_destroy(sd_context *context, sd_pool *pool);
/* False when another caller occupies the pool: nothing was run then. */
bool sd_pool_run(sd_pool *pool, sd_parallel_function function, void *work, size_t count);

#endif
