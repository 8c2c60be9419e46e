/* Detection of the CPU's instruction sets; the only place that asks. */
#include "base/system.h"
#include "config.h"

#include <stdlib.h>
#include <string.h>

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

/* VDPBF16PS does the work of two FMA. AMD's CPUs (Zen 4 and later) start as many of them in a cycle as FMA; Intel's
 * (measured: Emerald Rapids) a quarter of that, so that FMA is faster. A rule and not a measurement, for the choice
 * changes the last digits of what is computed. */
static bool fast_bf16_dot(void) {
#if defined(SD_HAVE_PACKED_KERNELS)
    return __builtin_cpu_is("amd");
#else
    return false;
#endif
}

/* Measured on Zen 4: a training step takes 5% less time than with OpenBLAS, the embedding of one image a quarter less. A
 * rule and not a measurement, for the same reason. */
bool sd_cpu_prefers_packed_products(void) { return sd_cpu_has_packed_products() && __builtin_cpu_is("amd"); }

const char *sd_cpu_features(void) {
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
static bool fast_bf16_dot(void) { return false; }
bool sd_cpu_prefers_packed_products(void) { return false; }

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

bool sd_cpu_has_packed_products(void) { return sd_cpu_detect() == SD_CPU_AVX512 && hardware_has_bf16(); }

sd_bf16_level sd_bf16_detect(void) {
    const char *wish = getenv("SIMDINO_BF16");
    if (wish != NULL && strcmp(wish, "emulate") == 0)
        return SD_BF16_EMULATED;
    if (!sd_cpu_has_packed_products())
        return SD_BF16_NONE;
    if (wish != NULL && strcmp(wish, "fma") == 0)
        return SD_BF16_FMA;
    if (wish != NULL && strcmp(wish, "dot") == 0)
        return SD_BF16_DOT;
#if defined(SD_HAVE_ONEDNN)
    if (wish != NULL && strcmp(wish, "onednn") == 0)
        return SD_BF16_ONEDNN;
#endif
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
    case SD_BF16_DOT: return "avx512_bf16 dot";
    case SD_BF16_FMA: return "avx512_bf16 fma";
    case SD_BF16_EMULATED: return "emulated";
    case SD_BF16_NONE: break;
    }
    return "";
}
