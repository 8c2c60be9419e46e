/* Which precisions there are, and which of them this process can compute in. */
#include "base/system.h"

#include <string.h>

static const char *const names[] = {"fp32", "bf16"};
#define PRECISIONS ((int32_t)(sizeof names / sizeof *names))

SD_API const char *sd_precision_name(int32_t precision) {
    return precision >= 0 && precision < PRECISIONS ? names[precision] : NULL;
}

SD_API sd_status sd_precision_from_name(const char *name, int32_t *precision) {
    SD_REQUIRE(name != NULL && precision != NULL, SD_ERR_ARGUMENT, "%s is NULL", name == NULL ? "name" : "precision");
    for (int32_t i = 0; i < PRECISIONS; i++)
        if (strcmp(name, names[i]) == 0) {
            *precision = i;
            return SD_OK;
        }
    return sd_fail(SD_ERR_ARGUMENT, "precision \"%.40s\" is unknown: use fp32 or bf16", name);
}

SD_API sd_status sd_precision_check(int32_t precision) {
    SD_REQUIRE(sd_precision_name(precision) != NULL, SD_ERR_ARGUMENT,
               "precision is %d: it must be one of sd_precision", precision);
    SD_REQUIRE(precision != SD_PRECISION_BF16 || sd_bf16_detect() != SD_BF16_NONE, SD_ERR_UNSUPPORTED,
               "precision is bf16, which needs a CPU with AVX512_BF16%s; this one has %s: use fp32",
               sd_cpu_detect() == SD_CPU_AVX512 ? "" : " (and SIMDINO_CPU not below avx512)", sd_cpu_features());
    return SD_OK;
}
