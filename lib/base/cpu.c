/* Detection of the CPU's instruction sets; the only place that asks. */
#include "base/system.h"

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

const char *sd_cpu_features(void) {
    switch (hardware_level()) {
    case SD_CPU_AVX512: return "x86-64 avx2 fma avx512f avx512bw avx512dq avx512vl";
    case SD_CPU_AVX2: return "x86-64 avx2 fma";
    case SD_CPU_GENERIC: break;
    }
    return "x86-64";
}

#else

static sd_cpu_level hardware_level(void) { return SD_CPU_GENERIC; }

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
