/* base - status, context, memory, threads, log: the bottom row of the house. Every other room includes this. */
#ifndef SD_BASE_INTERNAL_H
#define SD_BASE_INTERNAL_H

#include <simdino/base.h>

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#if defined(__GNUC__)
#define SD_PRINTF(format_index, first) __attribute__((format(printf, format_index, first)))
#else
#define SD_PRINTF(format_index, first)
#endif

/* ---- errors: one way to report ------------------------------------------------------------- */

/* Records the message for sd_last_error() of this thread and returns `status`. */
sd_status sd_fail(sd_status status, const char *format, ...) SD_PRINTF(2, 3);

/* In a function with a `cleanup:` label and a variable `status`. */
#define SD_TRY(call)                           \
    do {                                       \
        if ((status = (call)) != SD_OK)        \
            goto cleanup;                      \
    } while (0)

/* Fails with a message unless `condition` holds. For functions that have nothing to clean up. */
#define SD_REQUIRE(condition, code, ...)       \
    do {                                       \
        if (!(condition))                      \
            return sd_fail(code, __VA_ARGS__); \
    } while (0)

/* The same inside a function with `status` and `cleanup:`. */
#define SD_EXPECT(condition, code, ...)             \
    do {                                            \
        if (!(condition)) {                         \
            status = sd_fail(code, __VA_ARGS__);    \
            goto cleanup;                           \
        }                                           \
    } while (0)

/* ---- configuration structs ----------------------------------------------------------------- */

/* Reads a caller's config (first member: its size as the caller's header knew it) into `out`, which holds the
 * defaults and whose size is `out_size`. A smaller one leaves the rest at the defaults; a larger one is accepted when
 * its unknown tail is zero. `source` NULL: the defaults. `name` is for the message. */
sd_status sd_config_read(void *out, size_t out_size, const void *source, const char *name);

/* ---- sizes --------------------------------------------------------------------------------- */

/* a*b and a+b into *out; false when they overflow. */
static inline bool sd_size_mul(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool sd_size_add(size_t a, size_t b, size_t *out) { return !__builtin_add_overflow(a, b, out); }
static inline size_t sd_size_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t sd_size_max(size_t a, size_t b) { return a > b ? a : b; }
static inline size_t sd_size_ceil(size_t a, size_t b) { return (a + b - 1) / b; } /* a / b rounded up */

/* ---- memory -------------------------------------------------------------------------------- */

#define SD_ALIGNMENT 64

/* count*size zeroed bytes aligned to SD_ALIGNMENT by the context's hooks (malloc when context is NULL). NULL on
 * failure, with the message for sd_last_error() set: the caller returns SD_ERR_MEMORY. count*size = 0 gives a valid
 * pointer. */
void *sd_allocate(sd_context *context, size_t count, size_t size);
void sd_release(sd_context *context, void *address); /* NULL is fine */

#define SD_NEW(context, type) ((type *)sd_allocate((context), 1, sizeof(type)))
#define SD_NEW_ARRAY(context, type, count) ((type *)sd_allocate((context), (count), sizeof(type)))

char *sd_copy_text(sd_context *context, const char *text); /* NULL on failure */

/* ---- threads ------------------------------------------------------------------------------- */

/* Runs function(work, i, thread) for i in [0, count) on the context's threads and waits for all. thread <
 * sd_threads(context).
 * context NULL, or its threads busy for another caller: all on this thread, as thread 0.
 * Work must be safe when run by any number of threads; its result must not depend on their number. */
sd_status sd_run(sd_context *context, sd_parallel_function function, void *work, size_t count);
size_t sd_threads(const sd_context *context); /* 1 for NULL */

/* ---- hooks --------------------------------------------------------------------------------- */

void sd_log(sd_context *context, sd_log_level level, const char *format, ...) SD_PRINTF(3, 4);
void sd_progress(sd_context *context, const char *what, uint64_t done, uint64_t total);
bool sd_cancelled(sd_context *context);
/* SD_ERR_CANCELLED with its message when the host wants to stop, else SD_OK. */
sd_status sd_check_cancel(sd_context *context);

/* ---- random numbers ------------------------------------------------------------------------ */

/* What a stream is for: the upper byte of the `b` of sd_random_init, so that uses never share a stream. */
enum sd_random_purpose {
    SD_RANDOM_HOST = 0,
    SD_RANDOM_INIT = 1u << 24,      /* parameter initialisation: b adds the tensor's index */
    SD_RANDOM_CROP = 2u << 24,      /* crop choices: b adds the view */
    SD_RANDOM_ORDER = 3u << 24,     /* order of an epoch */
    SD_RANDOM_DROP_PATH = 4u << 24, /* stochastic depth: b adds the block */
    SD_RANDOM_MASK = 5u << 24       /* masked patches: b adds 0 for which crops, 1 + crop for its mask */
};

#endif
