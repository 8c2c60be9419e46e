#define _GNU_SOURCE
#include "base/context.h"
#include "base/system.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SD_THREADS_MAX 1024

static int32_t available_cores(void) {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return (int32_t)CPU_COUNT(&set);
#endif
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (int32_t)count : 1;
}

SD_API void sd_context_config_init(sd_context_config *config) {
    if (config == NULL)
        return;
    memset(config, 0, sizeof *config);
    config->size = sizeof *config;
    config->log_level = SD_LOG_INFO;
}

SD_API sd_status sd_context_create(const sd_context_config *source, sd_context **out) {
    SD_REQUIRE(out != NULL, SD_ERR_ARGUMENT, "context is NULL");
    sd_context_config config;
    sd_context_config_init(&config);
    sd_status status = sd_config_read(&config, sizeof config, source, "sd_context_config");
    if (status != SD_OK)
        return status;
    SD_REQUIRE(config.threads >= 0 && config.threads <= SD_THREADS_MAX, SD_ERR_ARGUMENT,
               "threads is %d: it must be 0 (all cores) to %d", config.threads, SD_THREADS_MAX);
    SD_REQUIRE((config.allocate == NULL) == (config.release == NULL), SD_ERR_ARGUMENT,
               "allocate and release must be set both or neither");
    SD_REQUIRE(config.blas_threads == SD_BLAS_THREADS_KEEP || config.blas_threads == SD_BLAS_THREADS_ONE,
               SD_ERR_ARGUMENT, "blas_threads is %d: it must be one of sd_blas_threads", config.blas_threads);
    SD_REQUIRE(config.runner == NULL || config.threads > 0, SD_ERR_ARGUMENT,
               "threads is 0: with a runner of the host, it must tell how many threads the runner has");

    sd_context bootstrap = {.config = config}; /* carries the memory hooks for the first allocation */
    sd_context *context = SD_NEW(&bootstrap, sd_context);
    if (context == NULL)
        return SD_ERR_MEMORY;
    context->config = config;
    context->threads = (size_t)(config.threads > 0 ? config.threads : available_cores());
    pthread_mutex_init(&context->log_lock, NULL);
    if (config.runner == NULL && context->threads > 1)
        SD_TRY(sd_pool_create(context, context->threads, &context->pool));
    if (config.blas_threads == SD_BLAS_THREADS_ONE) {
        sd_blas_hold_one_thread();
        context->holds_blas = true;
    } else if (context->threads > 1 && sd_blas_thread_count() > 1) {
        sd_log(context, SD_LOG_WARNING,
               "the BLAS runs %d threads inside each of the %zu threads of this context, which is slow: create the "
               "context with SD_BLAS_THREADS_ONE or set the BLAS to one thread",
               sd_blas_thread_count(), context->threads);
    }
    if (sd_blas_advice()[0] != '\0')
        sd_log(context, SD_LOG_WARNING, "%s", sd_blas_advice());
    *out = context;
    return SD_OK;
cleanup:
    pthread_mutex_destroy(&context->log_lock);
    sd_release(&bootstrap, context);
    return status;
}

SD_API void sd_context_destroy(sd_context *context) {
    if (context == NULL)
        return;
    if (context->holds_blas)
        sd_blas_release_one_thread();
    sd_pool_destroy(context, context->pool);
    pthread_mutex_destroy(&context->log_lock);
    sd_context bootstrap = {.config = context->config};
    sd_release(&bootstrap, context);
}

SD_API int32_t sd_context_threads(const sd_context *context) {
    return context == NULL ? 0 : (int32_t)context->threads;
}

size_t sd_threads(const sd_context *context) { return context == NULL ? 1 : context->threads; }

sd_status sd_run(sd_context *context, sd_parallel_function function, void *work, size_t count) {
    if (context != NULL && context->config.runner != NULL) {
        int code = context->config.runner(context->config.runner_opaque, function, work, count);
        SD_REQUIRE(code == 0, SD_ERR_THREAD, "the host's parallel runner returned %d", code);
        return SD_OK;
    }
    if (context != NULL && context->pool != NULL && count > 1 && sd_pool_run(context->pool, function, work, count))
        return SD_OK;
    for (size_t i = 0; i < count; i++)
        function(work, i, 0);
    return SD_OK;
}

void sd_log(sd_context *context, sd_log_level level, const char *format, ...) {
    if (context == NULL || context->config.log == NULL || (int32_t)level > context->config.log_level)
        return;
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    pthread_mutex_lock(&context->log_lock);
    context->config.log(context->config.log_opaque, level, message);
    pthread_mutex_unlock(&context->log_lock);
}

void sd_progress(sd_context *context, const char *what, uint64_t done, uint64_t total) {
    if (context != NULL && context->config.progress != NULL)
        context->config.progress(context->config.progress_opaque, what, done, total);
}

bool sd_cancelled(sd_context *context) {
    return context != NULL && context->config.cancel != NULL &&
           context->config.cancel(context->config.cancel_opaque) != 0;
}

sd_status sd_check_cancel(sd_context *context) {
    return sd_cancelled(context) ? sd_fail(SD_ERR_CANCELLED, "the host asked to stop") : SD_OK;
}
