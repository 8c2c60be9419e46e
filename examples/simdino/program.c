/* Context, signals and messages. See program.h. */
#define _POSIX_C_SOURCE 200809L
#include "program.h"

#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "progress.h"

/* ---- messages ------------------------------------------------------------------------------ */

void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    progress_hide();
    flockfile(stderr); /* threads that read images complain at the same time */
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    funlockfile(stderr);
    va_end(arguments);
}

void complain(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    progress_hide();
    flockfile(stderr);
    fputs("simdino: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    funlockfile(stderr);
    va_end(arguments);
}

int failed(const char *what, sd_status status) {
    complain("%s: %s (%s)", what, sd_last_error(), sd_status_string(status));
    return EXIT_FAILED;
}

static void log_line(void *opaque, sd_log_level level, const char *message) {
    (void)opaque;
    if (level <= SD_LOG_WARNING) {
        complain("%s%s", level == SD_LOG_WARNING ? "warning: " : "", message);
    } else {
        say("%s", message);
    }
}

/* ---- signals ------------------------------------------------------------------------------- */

/* Lock-free atomics may be used in a signal handler and by the library's threads alike. */
static atomic_int signals_seen;
static atomic_int calls_must_stop;

static void on_signal(int number) {
    (void)number;
    if (atomic_fetch_add(&signals_seen, 1) > 0) {
        static const char text[] = "\nsimdino: ended at once; the last checkpoint that was saved is kept\n";
        ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
        (void)ignored;
        _exit(EXIT_INTERRUPTED);
    }
    atomic_store(&calls_must_stop, 1);
}

void catch_interrupts(void) {
    struct sigaction action = {0};
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool interrupted(void) {
    return atomic_load(&signals_seen) > 0;
}

void allow_calls_after_interrupt(void) {
    atomic_store(&calls_must_stop, 0);
}

static int must_stop(void *opaque) {
    (void)opaque;
    return atomic_load(&calls_must_stop);
}

/* ---- context ------------------------------------------------------------------------------- */

static void show_progress(void *opaque, const char *what, uint64_t done, uint64_t total) {
    (void)opaque;
    (void)total;
    progress_update_library(what, done);
}

sd_context *open_context(int32_t threads) {
    sd_context_config config;
    sd_context_config_init(&config);
    config.threads = threads;
    config.blas_threads = SD_BLAS_THREADS_ONE;
    config.log = log_line;
    config.progress = show_progress;
    config.cancel = must_stop;

    sd_context *context = NULL;
    sd_status status = sd_context_create(&config, &context);
    if (status != SD_OK) {
        failed("cannot start the library", status);
        return NULL;
    }
    return context;
}

double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
