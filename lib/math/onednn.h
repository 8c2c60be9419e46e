/* onednn - products by oneDNN, where the library was built with it. Only the GEMM façade calls these.
 *
 * Each computes in the calling thread alone and leaves the host's number of OpenMP threads as it was. false: oneDNN
 * refused (memory, a CPU that it has no code for) and C is as before: the caller takes another way.
 *
 * oneDNN compiles code for each shape when it meets it first and allocates memory of its own then, and a little in each
 * call of a product in bf16; it knows nothing of the memory hooks of a context. */
#ifndef SD_ONEDNN_H
#define SD_ONEDNN_H

#include "base/base.h"
#include "base/system.h"
#include "math/math.h"

/* As sd_sgemm. */
bool sd_onednn_sgemm(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                     const float *b, size_t ldb, float beta, float *c, size_t ldc);

/* C = op(A) op(B), and then its epilogue. Sizes from 1 on. */
bool sd_onednn_fp32(bool ta, bool tb, size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b,
                    size_t ldb, float *c, size_t ldc, const sd_epilogue *then);

#if defined(SD_HAVE_PACKED_KERNELS)
/* C = op(A) op(B), plus C itself if `add`, in bf16 as sd_packed_product, and then its epilogue, for sizes from
 * 1 to SD_ONEDNN_SIDE and SD_ONEDNN_DEPTH. Needs AVX512_BF16, which rounds the factors. scratch: SD_ONEDNN_SCRATCH bytes,
 * SD_ALIGNMENT-aligned. */
#define SD_ONEDNN_SIDE ((size_t)384)
#define SD_ONEDNN_DEPTH ((size_t)768)
#define SD_ONEDNN_SCRATCH (2 * SD_ONEDNN_SIDE * SD_ONEDNN_DEPTH * sizeof(uint16_t))
bool sd_onednn_bf16(bool ta, bool tb, size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b,
                    size_t ldb, bool add, float *c, size_t ldc, const sd_epilogue *then, void *scratch);
#endif

#endif
