#include "base/system.h"
#include "image/kernels.h"
#include <simdino/image.h>

const sd_pixel_kernels *sd_pixel_kernels_get(int pixel_type) {
    int bytes = pixel_type == SD_PIXEL_U8;
#if defined(SD_HAVE_X86_PIXEL_KERNELS)
    switch (sd_cpu_detect()) {
    case SD_CPU_AVX512: return bytes ? &sd_pixels_u8_avx512 : &sd_pixels_f32_avx512;
    case SD_CPU_AVX2: return bytes ? &sd_pixels_u8_avx2 : &sd_pixels_f32_avx2;
    case SD_CPU_GENERIC: break;
    }
#endif
    return bytes ? &sd_pixels_u8_generic : &sd_pixels_f32_generic;
}
