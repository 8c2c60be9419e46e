#define _POSIX_C_SOURCE 200809L /* setenv */
#include "bf16.h"

#include <simdino/base.h>

#include <stdlib.h>
#include <string.h>

void bf16_take(const char *way) {
    if (way != NULL)
        setenv("SIMDINO_BF16", way, 1);
    else
        unsetenv("SIMDINO_BF16");
}

size_t bf16_ways(const char *ways[BF16_WAYS_MAX]) {
    size_t count = 0;
    ways[count++] = "emulate";
    bf16_take(NULL);
    if (sd_precision_check(SD_PRECISION_BF16) == SD_OK) {
        ways[count++] = "fma";
        ways[count++] = "dot";
        /* it need not be the library's own choice where it was built with it */
        sd_system_info info = {.size = sizeof info};
        bf16_take("onednn");
        if (sd_system_info_get(&info) == SD_OK && strcmp(info.bf16, "onednn") == 0)
            ways[count++] = "onednn";
        bf16_take(NULL);
    }
    return count;
}

void bf16_take_any(void) {
    bf16_take(NULL);
    if (sd_precision_check(SD_PRECISION_BF16) != SD_OK)
        bf16_take("emulate");
}
