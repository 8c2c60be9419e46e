#define _POSIX_C_SOURCE 200809L /* setenv */
#include "ways.h"

#include <simdino/base.h>

#include <stdlib.h>
#include <string.h>

static void take(const char *variable, const char *way) {
    if (way != NULL)
        setenv(variable, way, 1);
    else
        unsetenv(variable);
}

void fp32_take(const char *way) { take("SIMDINO_FP32", way); }

void bf16_take(const char *way) { take("SIMDINO_BF16", way); }

/* Whether it is not another one that the library takes then. */
static int has(int32_t precision, const char *way, const char *name) {
    sd_system_info info = {.size = sizeof info};
    void (*take_it)(const char *) = precision == SD_PRECISION_FP32 ? fp32_take : bf16_take;
    take_it(way);
    int found = sd_system_info_get(&info) == SD_OK &&
                strcmp(precision == SD_PRECISION_FP32 ? info.fp32 : info.bf16, name) == 0;
    take_it(NULL);
    return found;
}

size_t fp32_ways(const char *ways[FP32_WAYS_MAX]) {
    size_t count = 0;
    ways[count++] = "blas";
    if (has(SD_PRECISION_FP32, "fma", "avx512 fma") || has(SD_PRECISION_FP32, "fma", "avx2 fma"))
        ways[count++] = "fma";
    if (has(SD_PRECISION_FP32, "tiles", "amx_bf16 tiles, three for a float"))
        ways[count++] = "tiles";
    return count;
}

size_t bf16_ways(const char *ways[BF16_WAYS_MAX]) {
    size_t count = 0;
    ways[count++] = "emulate";
    if (has(SD_PRECISION_BF16, "fma", "avx512_bf16 fma"))
        ways[count++] = "fma";
    if (has(SD_PRECISION_BF16, "dot", "avx512_bf16 dot"))
        ways[count++] = "dot";
    if (has(SD_PRECISION_BF16, "tiles", "amx_bf16 tiles"))
        ways[count++] = "tiles";
    if (has(SD_PRECISION_BF16, "onednn", "onednn"))
        ways[count++] = "onednn";
    return count;
}

void bf16_take_any(void) {
    bf16_take(NULL);
    if (sd_precision_check(SD_PRECISION_BF16) != SD_OK)
        bf16_take("emulate");
}

void each_way(void (*check)(int32_t precision, const char *way)) {
    const char *fp32[FP32_WAYS_MAX], *bf16[BF16_WAYS_MAX];
    const size_t fp32_count = fp32_ways(fp32), bf16_count = bf16_ways(bf16);
    bf16_take_any(); /* a check may look at the other precision too */
    for (size_t i = 0; i < fp32_count; i++) {
        fp32_take(fp32[i]);
        check(SD_PRECISION_FP32, fp32[i]);
    }
    fp32_take(NULL);
    for (size_t i = 0; i < bf16_count; i++) {
        bf16_take(bf16[i]);
        check(SD_PRECISION_BF16, bf16[i]);
    }
    bf16_take(NULL);
}
