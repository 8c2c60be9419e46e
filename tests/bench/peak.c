/* What the cores can do at best: multiply-adds on registers, without memory. The ceiling of any matrix product. */
#include "bench.h"

#include "base/system.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* The compiler must not know the numbers, or it computes less; x <- 0.999 x + 0.001 tends to 1. */
static volatile float factor = 0.999f, addend = 0.001f;
/* Where results go, so that they are computed. */
static _Thread_local volatile float result;

/* A function that does `rounds` times one step of as many independent sums as EACH names, each a variable, so that they
 * stay in registers at any level of optimisation. There must be enough for the latency of all units: 8 to 12. */
#define EACH12(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define EACH16(DO) EACH12(DO) DO(12) DO(13) DO(14) DO(15)
#define EACH24(DO) EACH16(DO) DO(16) DO(17) DO(18) DO(19) DO(20) DO(21) DO(22) DO(23)

/* Sums that began alike would be one to the compiler. */
#define BEGIN(i) sum sum##i = SPREAD(0.1f * (i));
#define STEP(i)  sum##i = MULTIPLY_ADD(sum##i, b, c);
#define END(i)   total = ADD(total, sum##i);

#define LOOP(EACH)                                                                                                     \
    EACH(BEGIN)                                                                                                        \
    for (long r = 0; r < rounds; r++) {                                                                                \
        EACH(STEP)                                                                                                     \
    }                                                                                                                  \
    sum total = sum0;                                                                                                  \
    EACH(END)

#if defined(__x86_64__) && defined(__GNUC__)

#define SPREAD                _mm256_set1_ps
#define ADD                   _mm256_add_ps
#define MULTIPLY_ADD(a, b, c) _mm256_fmadd_ps(a, b, c)
__attribute__((target("avx2,fma"))) static void fp32_avx2(long rounds) {
    typedef __m256 sum;
    const __m256 b = _mm256_set1_ps(factor), c = _mm256_set1_ps(addend);
    LOOP(EACH12)
    result = _mm256_cvtss_f32(total);
}
#undef SPREAD
#undef ADD
#undef MULTIPLY_ADD

#define SPREAD                _mm512_set1_ps
#define ADD                   _mm512_add_ps
#define MULTIPLY_ADD(a, b, c) _mm512_fmadd_ps(a, b, c)
__attribute__((target("avx512f"))) static void fp32_avx512(long rounds) {
    typedef __m512 sum;
    const __m512 b = _mm512_set1_ps(factor), c = _mm512_set1_ps(addend);
    LOOP(EACH16)
    result = _mm512_cvtss_f32(total);
}
#undef MULTIPLY_ADD

#if defined(SD_HAVE_PACKED_KERNELS)
#define MULTIPLY_ADD(a, b, c) _mm512_dpbf16_ps(a, b, c)
__attribute__((target("avx512f,avx512bw,avx512bf16"))) static void bf16_avx512(long rounds) {
    typedef __m512 sum;
    const __m512bh b = (__m512bh)_mm512_set1_epi16(0x3f80), c = (__m512bh)_mm512_set1_epi16(0x3c00); /* 1, 2^-7 */
    LOOP(EACH16)
    result = _mm512_cvtss_f32(total);
}
#undef MULTIPLY_ADD
#endif
#undef SPREAD
#undef ADD

#if defined(SD_HAVE_TILE_KERNELS)
/* Four tiles of sums, as products have them. */
__attribute__((target("amx-tile,amx-bf16"))) static void bf16_tiles(long rounds) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (size_t i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ volatile("" ::: "memory"); /* the compiler does not know that it is read */
    _tile_loadconfig(&config);
    for (long i = 0; i < rounds; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}
#endif

#endif

/* Any other CPU: the compiler's vectors of 16 bytes where it has them, else single numbers. */
#if defined(__GNUC__)
typedef float sum __attribute__((vector_size(16)));
#define SPREAD(x)                                                                                                      \
    { x, x, x, x }
#define FIRST(v) (v)[0]
#else
typedef float sum;
#define SPREAD(x) (x)
#define FIRST(v)  (v)
#endif
#define ADD(a, b)             ((a) + (b))
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
static void fp32_portable(long rounds) {
    const float f = factor, g = addend;
    const sum b = SPREAD(f), c = SPREAD(g);
#if defined(__x86_64__)
    LOOP(EACH12)
    result = FIRST(total);
#else
    LOOP(EACH24)
    result = FIRST(total);
#endif
}

/* ---- measuring ----------------------------------------------------------------------------- */

typedef struct peak_kernel {
    const char *name;
    void (*run)(long rounds);
    double flop; /* of a round */
} peak_kernel;

typedef struct peak_work {
    const peak_kernel *kernel;
    long rounds;
} peak_work;

static void peak_task(void *argument, size_t index, size_t thread) {
    (void)index;
    (void)thread;
    const peak_work *work = argument;
    work->kernel->run(work->rounds);
}

/* GFLOP/s of that many threads: the best of some rounds of 40 ms, because a ceiling is wanted. */
static double rate_of(sd_context *context, const peak_kernel *kernel, size_t threads, long rounds) {
    peak_work work = {kernel, 400000};
    check(sd_run(context, peak_task, &work, threads), "peak"); /* wakes the cores up */
    double start = now();
    check(sd_run(context, peak_task, &work, 1), "peak");
    work.rounds = (long)(0.04 * (double)work.rounds / (now() - start)) + 1;
    double best = 0.0;
    for (long i = 0; i < rounds; i++) {
        start = now();
        check(sd_run(context, peak_task, &work, threads), "peak");
        double rate = kernel->flop * (double)work.rounds * (double)threads / (now() - start) * 1e-9;
        best = rate > best ? rate : best;
    }
    return best;
}

static peak_kernel fp32_kernel(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    const sd_cpu_level level = sd_cpu_detect(); /* as the library is told to take it */
    if (level == SD_CPU_AVX512)
        return (peak_kernel){"AVX-512", fp32_avx512, 16 * 16 * 2};
    if (level == SD_CPU_AVX2)
        return (peak_kernel){"AVX2", fp32_avx2, 12 * 8 * 2};
    return (peak_kernel){"16-byte vectors", fp32_portable, 12 * (sizeof(sum) / sizeof(float)) * 2};
#elif defined(__x86_64__)
    return (peak_kernel){"portable", fp32_portable, 12 * (sizeof(sum) / sizeof(float)) * 2};
#else
    return (peak_kernel){"16-byte vectors", fp32_portable, 24 * (sizeof(sum) / sizeof(float)) * 2};
#endif
}

void bench_peak(const options *o, sd_context *context, FILE *json) {
    size_t threads = (size_t)sd_context_threads(context);
    const peak_kernel fp32 = fp32_kernel();
    double one = rate_of(context, &fp32, 1, o->steps), all = rate_of(context, &fp32, threads, o->steps), one_bf16 = 0.0,
           all_bf16 = 0.0;
#if defined(__x86_64__) && defined(SD_HAVE_PACKED_KERNELS)
    if (sd_bf16_detect() > SD_BF16_EMULATED) { /* which is told for CPUs with AVX512_BF16 only */
        peak_kernel bf16 = {"AVX512_BF16", bf16_avx512, 16 * 32 * 2};
#if defined(SD_HAVE_TILE_KERNELS)
        if (sd_cpu_has_tiles())
            bf16 = (peak_kernel){"AMX", bf16_tiles, 4 * 16 * 16 * 32 * 2};
#endif
        one_bf16 = rate_of(context, &bf16, 1, o->steps);
        all_bf16 = rate_of(context, &bf16, threads, o->steps);
    }
#endif
    double round_trip = threads > 1 ? round_trip_ns() : 0.0;
    printf("peak, GFLOP/s: fp32 (%s) %.1f on one thread, %.1f on %zu", fp32.name, one, all, threads);
    if (all_bf16 > 0.0)
        printf("; bf16 %.1f and %.1f", one_bf16, all_bf16);
    if (round_trip > 0.0)
        printf("; two threads answer each other in %.0f ns", round_trip);
    printf("\n");
    if (json != NULL)
        fprintf(json,
                "{\"mode\": \"peak\", \"threads\": %zu, \"instructions\": \"%s\", \"fp32_one\": %.3f, \"fp32_all\": "
                "%.3f, \"bf16_one\": %.3f, \"bf16_all\": %.3f, \"round_trip_ns\": %.1f}\n",
                threads, fp32.name, one, all, one_bf16, all_bf16, round_trip);
}
