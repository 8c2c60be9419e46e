#include "base/system.h"

#include <string.h>

SD_API sd_status sd_system_info_get(sd_system_info *info) {
    SD_REQUIRE(info != NULL, SD_ERR_ARGUMENT, "info is NULL");
    SD_REQUIRE(info->size >= sizeof info->size, SD_ERR_ARGUMENT, "info->size is %zu: set it to sizeof(sd_system_info)",
               info->size);
    sd_system_info filled = {
        .size = info->size,
        .cpu = sd_cpu_features(),
        .kernels = sd_cpu_level_name(sd_cpu_detect()),
        .blas = sd_blas_name(),
        .blas_kernel = sd_blas_kernel(),
        .blas_threads = sd_blas_thread_count(),
        .advice = sd_blas_advice(),
        .fp32 = sd_fp32_level_name(sd_fp32_detect()),
        .bf16 = sd_bf16_level_name(sd_bf16_detect()),
    };
    memcpy(info, &filled, sd_size_min(info->size, sizeof filled));
    return SD_OK;
}
