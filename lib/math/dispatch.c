#include "base/system.h"
#include "math/kernels.h"

const sd_kernels *sd_kernels_get(void) {
#if defined(SD_HAVE_X86_KERNELS)
    switch (sd_cpu_detect()) {
    case SD_CPU_AVX512: return &sd_kernels_avx512;
    case SD_CPU_AVX2: return &sd_kernels_avx2;
    case SD_CPU_GENERIC: break;
    }
#endif
    return &sd_kernels_generic;
}
