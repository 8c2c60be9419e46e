/* bf16 - matrix products of our own whose factors are rounded to bfloat16 while they are packed, and whose sums are
 * floats. All matrices are float in memory. No allocation. */
#ifndef SD_BF16_H
#define SD_BF16_H

#include "base/base.h"
#include "base/system.h"

/* C = alpha op(A) op(B) + beta C as sd_sgemm, k > 0. One thread; scratch: SD_BF16_SCRATCH bytes, SD_ALIGNMENT-aligned.
 *
 * Each factor becomes the nearest bfloat16, ties to even; subnormal numbers become 0, too large ones infinity, NaN stays
 * NaN. The result does not depend on how C is cut into products of multiples of 16 rows and columns. */
#define SD_BF16_SCRATCH ((size_t)448 * 1024)
typedef void sd_bf16_product(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                             const float *b, size_t ldb, float beta, float *c, size_t ldc, void *scratch);

#if defined(SD_HAVE_BF16_KERNELS)
sd_bf16_product sd_bf16_product_dot; /* by VDPBF16PS */
sd_bf16_product sd_bf16_product_fma; /* by FMA in float */
#endif
/* The same roundings on any CPU, and then products by sd_sgemm: for tests. */
sd_bf16_product sd_bf16_product_emulated;

#endif
