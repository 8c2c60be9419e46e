/* base.h - status codes, contexts and random numbers: what every other header of libsimdino uses.
 *
 * libsimdino learns image representations (SimDINO, "Simplifying DINO via Coding Rate
 * Regularization") inside a host program. The host owns memory, threads, log and the decision to
 * stop; it hands them over in an sd_context, and each of them has a default.
 *
 * Rules that hold in all headers, and are not repeated there:
 *   - A function that can fail returns sd_status. On failure its outputs are untouched unless its
 *     comment says otherwise, and sd_last_error() tells in words what was wrong.
 *   - Objects are opaque. sd_X_create() makes one, sd_X_destroy() ends it and accepts NULL.
 *     An object must be destroyed before the context that it was made with.
 *   - Arrays passed in are borrowed for the length of the call. Pointers handed out belong to the
 *     object that handed them out and live until it is destroyed or changed.
 *   - Matrices are row-major. Sizes are counted in elements, never in bytes, unless said.
 *   - One object is used by one thread at a time. `const` objects may be used by many at once.
 *   - Configuration structs begin with `size`. Fill them with their sd_X_config_init() and then
 *     change members (NULL in place of one means its defaults): a program compiled against an
 *     older header keeps working with a newer library, which takes the members that the program
 *     does not know at their defaults.
 *   - The library never prints, exits, installs signal handlers or depends on the locale.
 */
#ifndef SIMDINO_BASE_H
#define SIMDINO_BASE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(SD_BUILDING_LIBRARY)
#define SD_API __declspec(dllexport)
#elif !defined(SD_STATIC)
#define SD_API __declspec(dllimport)
#else
#define SD_API
#endif
#elif defined(__GNUC__)
#define SD_API __attribute__((visibility("default")))
#else
#define SD_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- version ------------------------------------------------------------------------------- */

#define SD_VERSION_MAJOR 0
#define SD_VERSION_MINOR 1
#define SD_VERSION_PATCH 0

/* The version of the library that runs, as major*10000 + minor*100 + patch, and as text "0.1.0".
 * It may differ from the macros above, which tell what the program was compiled against. */
SD_API int32_t sd_version(void);
SD_API const char *sd_version_string(void);

/* ---- status -------------------------------------------------------------------------------- */

/* Values are fixed for ever; new ones are appended. */
typedef enum sd_status {
    SD_OK = 0,
    SD_ERR_ARGUMENT = 1,    /* NULL, zero size, wrong shape, impossible setting */
    SD_ERR_MEMORY = 2,      /* an allocation failed, or a size does not fit into size_t */
    SD_ERR_NUMERIC = 3,     /* NaN or infinity, or a matrix that is not positive definite */
    SD_ERR_IO = 4,          /* the operating system refused: open, read, write, sync, rename */
    SD_ERR_FORMAT = 5,      /* a file is not of the expected kind, is truncated or contradicts itself */
    SD_ERR_CHECKSUM = 6,    /* a file has the right form but its content was damaged */
    SD_ERR_VERSION = 7,     /* a file is of a version that this library does not know */
    SD_ERR_CANCELLED = 8,   /* the context's cancel hook asked to stop */
    SD_ERR_STATE = 9,       /* the call is not possible in the object's present state */
    SD_ERR_UNSUPPORTED = 10,/* the build or the CPU lacks what was asked for */
    SD_ERR_MISMATCH = 11,   /* two things that must fit do not: a checkpoint and a configuration, say */
    SD_ERR_THREAD = 12,     /* a thread could not be started, or the host's runner failed */
    SD_END = 13             /* not an error: nothing is left to read */
} sd_status;

/* The name of a status in words, such as "invalid argument". Never NULL. Thread-safe. */
SD_API const char *sd_status_string(sd_status status);

/* What the last failing call in this thread found, in words: which argument and its value, which
 * file, which tensor. An empty string when no call of this thread has failed yet. The text stays
 * until the next failing call in the same thread. Never NULL. */
SD_API const char *sd_last_error(void);

/* ---- context ------------------------------------------------------------------------------- */

/* Carries the host's memory, threads, log, progress and cancel hooks. Contexts are independent of
 * each other. A context may be used by many threads at once; while one of them occupies its
 * threads, the others compute on their own thread. */
typedef struct sd_context sd_context;

typedef enum sd_log_level {
    SD_LOG_ERROR = 0,
    SD_LOG_WARNING = 1,
    SD_LOG_INFO = 2,
    SD_LOG_DEBUG = 3
} sd_log_level;

/* One piece of work: called with every index in [0, count) exactly once, by any thread, in any
 * order. `thread` is in [0, threads) and no two calls that run at the same time have the same. */
typedef void (*sd_parallel_function)(void *work, size_t index, size_t thread);

/* A parallel runner of the host. It calls function(work, i, thread) for all i in [0, count),
 * returns when all have returned, and gives 0, or another value when it could not run them (the
 * library then fails with SD_ERR_THREAD). It must allow calls from several threads. Example of a
 * sequential one:
 *     int run(void *opaque, sd_parallel_function function, void *work, size_t count) {
 *         for (size_t i = 0; i < count; i++) function(work, i, 0);
 *         return 0;
 *     }                                                                                          */
typedef int (*sd_parallel_runner)(void *opaque, sd_parallel_function function, void *work, size_t count);

/* Memory of the host. allocate() gives memory aligned for any type, or NULL; release() is never
 * called with NULL. Both may be called from any thread. */
typedef void *(*sd_allocate_function)(void *opaque, size_t bytes);
typedef void (*sd_release_function)(void *opaque, void *address);

/* Receives one line without a newline. May be called from any thread, one call at a time. */
typedef void (*sd_log_function)(void *opaque, sd_log_level level, const char *message);

/* Called now and then during long calls, from the thread that made the call: `done` of `total` units of
 * `what` ("embed", "knn", ...). */
typedef void (*sd_progress_function)(void *opaque, const char *what, uint64_t done, uint64_t total);

/* Asked often, from any thread: a value other than 0 makes the running call stop soon with
 * SD_ERR_CANCELLED. The objects involved stay usable; weights are as before the call. */
typedef int (*sd_cancel_function)(void *opaque);

/* What the context may do to the thread count of the BLAS, which is global to the process.
 * The library computes fastest when the BLAS uses one thread inside each of the library's own. */
typedef enum sd_blas_threads {
    SD_BLAS_THREADS_KEEP = 0, /* leave the BLAS as the host set it up; warn once by the log if it
                                 is multi-threaded while the context has several threads */
    SD_BLAS_THREADS_ONE = 1   /* set the BLAS of this process to one thread; the former number is
                                 restored when the last such context is destroyed */
} sd_blas_threads;

typedef struct sd_context_config {
    size_t size;
    int32_t threads;                /* threads of the default pool, the caller's included; 0 (default):
                                       as many as the process may use. With `runner`: how many it has */
    int32_t blas_threads;           /* sd_blas_threads; default SD_BLAS_THREADS_KEEP */
    sd_allocate_function allocate;  /* NULL (default): malloc; of blocks of 4 MiB and more posix_memalign on Linux, which is
                                       then asked for huge pages (madvise) */
    sd_release_function release;    /* NULL (default): free; set both or neither */
    void *memory_opaque;
    sd_parallel_runner runner;      /* NULL (default): a pool of threads of the library's own */
    void *runner_opaque;
    sd_log_function log;            /* NULL (default): messages are dropped */
    void *log_opaque;
    int32_t log_level;              /* sd_log_level; messages above it are dropped; default INFO */
    sd_progress_function progress;  /* NULL (default): none */
    void *progress_opaque;
    sd_cancel_function cancel;      /* NULL (default): never */
    void *cancel_opaque;
} sd_context_config;

SD_API void sd_context_config_init(sd_context_config *config);

/* Makes a context. `config` may be NULL for the defaults.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_MEMORY, SD_ERR_THREAD. */
SD_API sd_status sd_context_create(const sd_context_config *config, sd_context **context);
SD_API void sd_context_destroy(sd_context *context);

/* The number of threads that the context computes with. 0 for NULL. */
SD_API int32_t sd_context_threads(const sd_context *context);

/* ---- what runs here ------------------------------------------------------------------------ */

typedef struct sd_system_info {
    size_t size;
    const char *cpu;            /* e.g. "x86-64 avx2 fma avx512f"; what the library detected */
    const char *kernels;        /* the instruction set of the library's own loops: "avx512", "avx2", "generic" */
    const char *blas;           /* e.g. "OpenBLAS 0.3.21 NO_AFFINITY ..." or the name known at build time */
    const char *blas_kernel;    /* e.g. "SkylakeX"; "" where the BLAS does not tell */
    int32_t blas_threads;       /* its present number of threads; 0 where it does not tell */
    const char *advice;         /* "" or what to change: a BLAS that runs kernels below what the CPU can, ... */
    /* what computes SD_PRECISION_BF16: "amx_bf16 tiles" (TDPBF16PS), "avx512_bf16 dot" (VDPBF16PS), "avx512_bf16 fma" (FMA of
     * the rounded factors, where that is faster), "onednn" (built with it), "emulated" (see sd_precision_check); "" where it is
     * refused */
    const char *bf16;
    /* what computes SD_PRECISION_FP32 in networks: "amx_bf16 tiles, three for a float" (each number as the sum of three
     * bfloat16, exactly; results are no further from exact ones than with FMA), "avx512 fma" and "avx2 fma" (the library's own),
     * "onednn", "blas" (or what stands in for it: see advice) */
    const char *fp32;
} sd_system_info;

/* Fills `info`, whose `size` the caller has set to sizeof(sd_system_info). The texts are constants.
 * Thread-safe. Errors: SD_ERR_ARGUMENT. */
SD_API sd_status sd_system_info_get(sd_system_info *info);

/* ---- precision ----------------------------------------------------------------------------- */

/* What the matrix products of a network are computed in. All that a caller sees is float either way. */
typedef enum sd_precision {
    /* as sums of floats. Where the CPU has AMX each number goes into them as three bfloat16 whose sum it is, exactly: results are
     * closer to the exact ones than those of FMA; infinite numbers, and finite ones above 3.39e38, give NaN, products below 1.2e-38
     * give 0 (docs/performance.md). The first object that computes so, or sd_system_info_get, asks Linux for AMX, for the whole
     * process: frames of signals grow by 8 KiB. Where an alternate signal stack is too small for that, Linux refuses and FMA is
     * used. With SIMDINO_FP32=fma and SIMDINO_BF16=fma in the environment nothing that computes asks */
    SD_PRECISION_FP32 = 0,
    /* both factors of a product are rounded to bfloat16 (8 bits of significand, the exponents of float; round to
     * nearest even, subnormal numbers are 0), their products are added up in float: what PyTorch's autocast does to
     * linear layers, attention and prototypes. Weights, norms, softmax, losses, coding rate and optimizer stay as
     * they are. A training pass keeps the numbers that only products read rounded beforehand, which changes nothing, and
     * those before the activation function of the MLP too, so that its derivative is taken at the rounded ones (as under
     * autocast, where they never were anything else): about two fifths less memory for a block's activations. */
    SD_PRECISION_BF16 = 1
} sd_precision;

/* "fp32", "bf16"; NULL for another number. */
SD_API const char *sd_precision_name(int32_t precision);
/* Errors: SD_ERR_ARGUMENT for another name. */
SD_API sd_status sd_precision_from_name(const char *name, int32_t *precision);
/* SD_OK when this process can compute in `precision`. bf16 needs a CPU with AVX512_BF16 (and SIMDINO_CPU not below
 * avx512). For tests the environment variable SIMDINO_BF16=emulate allows it anywhere: the same roundings, slower than
 * fp32. What takes a precision makes this check when it is created.
 * Thread-safe. Errors: SD_ERR_ARGUMENT (none of sd_precision), SD_ERR_UNSUPPORTED (says what is missing). */
SD_API sd_status sd_precision_check(int32_t precision);

/* By which formulas large matrix products of a network in fp32 are computed. */
typedef enum sd_products {
    SD_PRODUCTS_PLAIN = 0, /* each number as the sum that defines it */
    /* seven products in place of eight (Strassen, 1969; once, not recursively), where that was measured to be faster: on AMD's
     * CPUs with AVX-512, where a training step takes 5 to 8% less time. Elsewhere it has no effect. Rounding errors are then
     * bounded by the largest numbers of a matrix rather than by those of a row and a column: for numbers of one size about 1.6
     * times those of plain sums, 1e-6 to 4e-6 of the largest of a tensor; where parts of a matrix differ by 100 times in size, the
     * small part is that much less exact (docs/performance.md has figures). A gradient that would be 0 can be such an error. The
     * results for an image depend, in their last digits, on the others of a pass, and its infinity or NaN may reach them. Has no
     * effect in bf16 */
    SD_PRODUCTS_STRASSEN = 1
} sd_products;

/* ---- random numbers ------------------------------------------------------------------------ */

/* The library's generator is counter-based (Philox 4x32-10, Salmon et al., SC 2011): the numbers of one stream are a
 * pure function of its key, so that results do not depend on threads or on the order of calls.
 * A stream is a plain value that the caller may keep anywhere. */
typedef struct sd_random {
    uint32_t key[2];
    uint32_t counter[4];
    uint32_t buffer[4];
    uint32_t left;
    uint32_t reserved;
} sd_random;

/* Starts the stream (seed, a, b): for instance seed, step and sample. Every such triple gives an
 * independent stream. Here and below: thread-safe for different `random`; no errors. */
SD_API void sd_random_init(sd_random *random, uint64_t seed, uint64_t a, uint32_t b);
SD_API uint32_t sd_random_u32(sd_random *random);
/* Uniform in [0, 1) with 53 bits (one call takes two 32-bit numbers). */
SD_API double sd_random_uniform(sd_random *random);
/* Uniform in 0..n-1 without bias; 0 for n = 0. */
SD_API uint64_t sd_random_below(sd_random *random, uint64_t n);
/* Normal with mean 0 and deviation 1. */
SD_API double sd_random_normal(sd_random *random);

#ifdef __cplusplus
}
#endif
#endif
