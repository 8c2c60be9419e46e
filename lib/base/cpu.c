/* Detection of the CPU's instruction sets; the only place that asks. */
#define _GNU_SOURCE /* syscall */
#include "base/system.h"
#include "config.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(SD_HAVE_TILE_KERNELS)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

const char *sd_cpu_level_name(sd_cpu_level level) {
    return level == SD_CPU_AVX512 ? "avx512" : level == SD_CPU_AVX2 ? "avx2" : "generic";
}

#if defined(__x86_64__) && defined(__GNUC__)

/* The compiler's run-time checks the operating system's support (XCR0) as well as CPUID. */
static sd_cpu_level hardware_level(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return SD_CPU_GENERIC;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return SD_CPU_AVX512;
    return SD_CPU_AVX2;
}

static bool hardware_has_bf16(void) {
#if defined(SD_HAVE_PACKED_KERNELS)
    return hardware_level() == SD_CPU_AVX512 && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

static bool runs_on_amd(void) { return __builtin_cpu_is("amd"); }

/* VDPBF16PS does the work of two FMA. AMD's CPUs (Zen 4 and later) start as many of them in a cycle as FMA; Intel's
 * (measured: Emerald Rapids) a quarter of that, so that FMA is faster. A rule and not a measurement, for the choice
 * changes the last digits of what is computed. */
static bool fast_bf16_dot(void) { return runs_on_amd(); }

#if defined(SD_HAVE_TILE_KERNELS)

/* AMX for bfloat16, by CPUID; that the operating system keeps tiles across switches, by XCR0 (bits 17 and 18); and that it lets
 * this process have them. Linux wants to be asked (arch_prctl, ARCH_REQ_XCOMP_PERM), since they enlarge the frames of signals; it
 * says no when an alternate signal stack of the host is too small for them. */
static bool ask_for_tiles(void) {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & 1u << 22) || !(edx & 1u << 24))
        return false;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & 1u << 27)) /* XGETBV */
        return false;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const unsigned tiles = 3u << 17;
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
    return (low & tiles) == tiles && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}

/* The answer is kept: it is the same in the whole process. */
static bool hardware_has_tiles(void) {
    enum { UNKNOWN, NO, YES };
    static atomic_int answer = UNKNOWN;
    int known = atomic_load_explicit(&answer, memory_order_relaxed);
    if (known == UNKNOWN) {
        known = hardware_has_bf16() && ask_for_tiles() ? YES : NO;
        atomic_store_explicit(&answer, known, memory_order_relaxed);
    }
    return known == YES;
}

#else

static bool hardware_has_tiles(void) { return false; }

#endif

const char *sd_cpu_features(void) {
    if (hardware_has_tiles())
        return "x86-64 avx2 fma avx512f avx512bw avx512dq avx512vl avx512_bf16 amx_bf16";
    if (hardware_has_bf16())
        return "x86-64 avx2 fma avx512f avx512bw avx512dq avx512vl avx512_bf16";
    switch (hardware_level()) {
    case SD_CPU_AVX512: return "x86-64 avx2 fma avx512f avx512bw avx512dq avx512vl";
    case SD_CPU_AVX2: return "x86-64 avx2 fma";
    case SD_CPU_GENERIC: break;
    }
    return "x86-64";
}

#else

static sd_cpu_level hardware_level(void) { return SD_CPU_GENERIC; }
static bool hardware_has_bf16(void) { return false; }
static bool hardware_has_tiles(void) { return false; }
static bool runs_on_amd(void) { return false; }
static bool fast_bf16_dot(void) { return false; }

const char *sd_cpu_features(void) {
#if defined(__aarch64__)
    return "aarch64 neon";
#else
    return "generic";
#endif
}

#endif

sd_cpu_level sd_cpu_detect(void) {
    sd_cpu_level level = hardware_level();
    const char *wish = getenv("SIMDINO_CPU");
    if (wish != NULL)
        for (int lower = SD_CPU_GENERIC; lower < (int)level; lower++)
            if (strcmp(wish, sd_cpu_level_name((sd_cpu_level)lower)) == 0)
                return (sd_cpu_level)lower;
    return level;
}

bool sd_cpu_has_bf16(void) { return sd_cpu_detect() == SD_CPU_AVX512 && hardware_has_bf16(); }

bool sd_cpu_has_tiles(void) { return sd_cpu_has_bf16() && hardware_has_tiles(); }

static bool wished(const char *wish, const char *name) { return wish != NULL && strcmp(wish, name) == 0; }

/* A training step takes 16% (Granite Rapids) and 5% (Zen 4) less time with own products by FMA than with OpenBLAS, and 8% less by
 * AVX2 (Emerald Rapids without its AVX-512); the embedding of one image a quarter less; with tiles half of the time. A rule and not
 * a measurement, for the choice changes the last digits of what is computed. */
sd_fp32_level sd_fp32_detect(void) {
#if defined(SD_HAVE_ONEDNN)
    return SD_FP32_ONEDNN;
#else
    const char *wish = getenv("SIMDINO_FP32");
    if (wished(wish, "blas") || sd_cpu_detect() == SD_CPU_GENERIC)
        return SD_FP32_BLAS;
    return !wished(wish, "fma") && sd_cpu_has_tiles() ? SD_FP32_TILES : SD_FP32_FMA;
#endif
}

/* Measured: a step of ViT-S takes 8% less time on Zen 4, 5% on Zen 5. On Granite Rapids it takes as long as with plain sums and
 * that of a small network longer, so that there is nothing to pay digits for. */
bool sd_cpu_prefers_strassen(void) { return runs_on_amd() || wished(getenv("SIMDINO_FP32"), "fma"); }

const char *sd_fp32_level_name(sd_fp32_level level) {
    switch (level) {
    case SD_FP32_TILES: return "amx_bf16 tiles, three for a float";
    case SD_FP32_FMA: return sd_cpu_detect() == SD_CPU_AVX512 ? "avx512 fma" : "avx2 fma";
    case SD_FP32_ONEDNN: return "onednn";
    case SD_FP32_BLAS: break;
    }
    return "blas";
}

sd_bf16_level sd_bf16_detect(void) {
    const char *wish = getenv("SIMDINO_BF16");
    if (wished(wish, "emulate"))
        return SD_BF16_EMULATED;
    if (!sd_cpu_has_bf16())
        return SD_BF16_NONE;
    if (wished(wish, "fma"))
        return SD_BF16_FMA;
    if (wished(wish, "dot"))
        return SD_BF16_DOT;
#if defined(SD_HAVE_ONEDNN)
    if (wished(wish, "onednn"))
        return SD_BF16_ONEDNN;
#endif
    if (sd_cpu_has_tiles())
        return SD_BF16_TILES;
    if (fast_bf16_dot()) /* by 5% faster in a training step than oneDNN 2.6, which packs what is rounded once more */
        return SD_BF16_DOT;
#if defined(SD_HAVE_ONEDNN)
    return SD_BF16_ONEDNN;
#else
    return SD_BF16_FMA;
#endif
}

const char *sd_bf16_level_name(sd_bf16_level level) {
    switch (level) {
    case SD_BF16_ONEDNN: return "onednn";
    case SD_BF16_TILES: return "amx_bf16 tiles";
    case SD_BF16_DOT: return "avx512_bf16 dot";
    case SD_BF16_FMA: return "avx512_bf16 fma";
    case SD_BF16_EMULATED: return "emulated";
    case SD_BF16_NONE: break;
    }
    return "";
}
