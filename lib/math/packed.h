/* packed - matrix products of our own that pack both factors, in float or rounded to bfloat16; sums are floats. All
 * matrices are float in memory. No allocation. */
#ifndef SD_PACKED_H
#define SD_PACKED_H

#include "base/base.h"
#include "base/system.h"

/* C = alpha op(A) op(B) + beta C as sd_sgemm, k > 0. One thread; scratch: SD_PACKED_SCRATCH bytes, SD_ALIGNMENT-aligned.
 * The result does not depend on how C is cut into products of multiples of 16 rows and columns.
 *
 * In bf16 each factor becomes the nearest bfloat16, ties to even; subnormal numbers become 0, too large ones infinity, NaN
 * stays NaN. */
#define SD_PACKED_SCRATCH ((size_t)448 * 1024)
typedef void sd_packed_product(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                               const float *b, size_t ldb, float beta, float *c, size_t ldc, void *scratch);

#if defined(SD_HAVE_PACKED_KERNELS) /* for CPUs of which sd_cpu_has_packed_products() */
sd_packed_product sd_packed_float;
sd_packed_product sd_packed_bf16_dot; /* by VDPBF16PS */
sd_packed_product sd_packed_bf16_fma; /* by FMA in float */
#endif
/* The same roundings on any CPU, and then products by sd_sgemm: for tests. */
sd_packed_product sd_packed_bf16_emulated;

#endif
