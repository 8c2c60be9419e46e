/* Matrix products in registers and cache, and the elimination of one block on the diagonal. The kernels are in
 * dense_kernel.h and dense_factor.h, once for each type and instruction set; the CPU decides at run time. */
#include "math/dense.h"

#include "math/kernels.h"
#include "math/math.h"
#include "math/packed.h"
#include "math/transpose.h"

#include <math.h>
#include <string.h>

#define DENSE_DEPTH ((size_t)256) /* of the inner dimension at once: a packed panel of B stays in the first cache */
#define BLOCK SD_DENSE_BLOCK
#define WIDEST ((size_t)32) /* columns of the widest tile */

#define EIGHT_ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define SIX_ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define FOUR_ROWS(X) X(0) X(1) X(2) X(3)

#if defined(SD_HAVE_X86_KERNELS)
#include <immintrin.h>

#define PREFETCH(p) _mm_prefetch((const char *)(p), _MM_HINT_T0)
#define TARGET_512 __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma,avx2")))
#define TARGET_2 __attribute__((target("avx2,fma")))

#define NAME(x) x##_f32_avx512
#define TARGET TARGET_512
#define REAL float
#define SQUARE_ROOT sqrtf
#define VECTOR __m512
#define WIDTH 16
#define ZERO _mm512_setzero_ps()
#define SPREAD(x) _mm512_set1_ps(x)
#define LOAD(p) _mm512_loadu_ps(p)
#define STORE(p, v) _mm512_storeu_ps(p, v)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define TRANSPOSE_FOUR SD_TRANSPOSE_FOUR_FLOATS
#define ROWS 8
#define EACH_ROW EIGHT_ROWS
#include "math/dense_kernel.h"

#include "math/dense_factor.h"

#define NAME(x) x##_f64_avx512
#define TARGET TARGET_512
#define REAL double
#define SQUARE_ROOT sqrt
#define VECTOR __m512d
#define WIDTH 8
#define ZERO _mm512_setzero_pd()
#define SPREAD(x) _mm512_set1_pd(x)
#define LOAD(p) _mm512_loadu_pd(p)
#define STORE(p, v) _mm512_storeu_pd(p, v)
#define FMA(a, b, c) _mm512_fmadd_pd(a, b, c)
#define TRANSPOSE_FOUR SD_TRANSPOSE_FOUR_DOUBLES
#define ROWS 8
#define EACH_ROW EIGHT_ROWS
#include "math/dense_kernel.h"

#include "math/dense_factor.h"

#define NAME(x) x##_f32_avx2
#define TARGET TARGET_2
#define REAL float
#define SQUARE_ROOT sqrtf
#define VECTOR __m256
#define WIDTH 8
#define ZERO _mm256_setzero_ps()
#define SPREAD(x) _mm256_set1_ps(x)
#define LOAD(p) _mm256_loadu_ps(p)
#define STORE(p, v) _mm256_storeu_ps(p, v)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define TRANSPOSE_FOUR SD_TRANSPOSE_FOUR_FLOATS
#define ROWS 6
#define EACH_ROW SIX_ROWS
#include "math/dense_kernel.h"

#include "math/dense_factor.h"

#define NAME(x) x##_f64_avx2
#define TARGET TARGET_2
#define REAL double
#define SQUARE_ROOT sqrt
#define VECTOR __m256d
#define WIDTH 4
#define ZERO _mm256_setzero_pd()
#define SPREAD(x) _mm256_set1_pd(x)
#define LOAD(p) _mm256_loadu_pd(p)
#define STORE(p, v) _mm256_storeu_pd(p, v)
#define FMA(a, b, c) _mm256_fmadd_pd(a, b, c)
#define TRANSPOSE_FOUR SD_TRANSPOSE_FOUR_DOUBLES
#define ROWS 6
#define EACH_ROW SIX_ROWS
#include "math/dense_kernel.h"

#include "math/dense_factor.h"

#endif

/* ---- without kernels: products by the BLAS, the blocks on the diagonal in plain vectors ---------------------- */

static void product_f32_plain(bool ta, bool tb, sd_dense_part part, size_t m, size_t n, size_t k, float alpha,
                              const float *a, size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc,
                              void *scratch, size_t scratch_bytes) {
    (void)part, (void)scratch, (void)scratch_bytes;
    sd_sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

static void product_f64_plain(bool ta, bool tb, sd_dense_part part, size_t m, size_t n, size_t k, double alpha,
                              const double *a, size_t lda, const double *b, size_t ldb, double beta, double *c,
                              size_t ldc, void *scratch, size_t scratch_bytes) {
    (void)part, (void)scratch, (void)scratch_bytes;
    sd_dgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

#define PLAIN
#if defined(__GNUC__) /* vectors of 16 bytes, which the compiler maps to what the CPU has */
typedef float plain_f32 __attribute__((vector_size(16)));
typedef double plain_f64 __attribute__((vector_size(16)));
#define PLAIN_F32_WIDTH 4
#define PLAIN_F64_WIDTH 2
#else
typedef float plain_f32;
typedef double plain_f64;
#define PLAIN_F32_WIDTH 1
#define PLAIN_F64_WIDTH 1
#endif

static inline void store_f32(float *p, plain_f32 v) { memcpy(p, &v, sizeof v); }

static inline plain_f32 load_f32(const float *p) {
    plain_f32 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store_f64(double *p, plain_f64 v) { memcpy(p, &v, sizeof v); }

static inline plain_f64 load_f64(const double *p) {
    plain_f64 v;
    memcpy(&v, p, sizeof v);
    return v;
}

#define NAME(x) x##_f32_plain
#define TARGET
#define REAL float
#define SQUARE_ROOT sqrtf
#define VECTOR plain_f32
#define WIDTH PLAIN_F32_WIDTH
#define ZERO ((plain_f32){0})
#define SPREAD(x) ((x) - ZERO)
#define LOAD(p) load_f32(p)
#define STORE(p, v) store_f32(p, v)
#define FMA(a, b, c) ((a) * (b) + (c))
#define ROWS 4
#define EACH_ROW FOUR_ROWS
#include "math/dense_kernel.h"

#include "math/dense_factor.h"

#define NAME(x) x##_f64_plain
#define TARGET
#define REAL double
#define SQUARE_ROOT sqrt
#define VECTOR plain_f64
#define WIDTH PLAIN_F64_WIDTH
#define ZERO ((plain_f64){0})
#define SPREAD(x) ((x) - ZERO)
#define LOAD(p) load_f64(p)
#define STORE(p, v) store_f64(p, v)
#define FMA(a, b, c) ((a) * (b) + (c))
#define ROWS 4
#define EACH_ROW FOUR_ROWS
#include "math/dense_kernel.h"

#include "math/dense_factor.h"

/* ---- the choice ---------------------------------------------------------------------------- */

#if defined(SD_HAVE_TILE_KERNELS)

/* Large products by the tiles of AMX, which are twice as fast (packed_amx.c), where there is the memory for it. Of an upper part
 * the rows are taken some at a time, from the first column on that they need. */
#define LARGE ((size_t)1 << 21)
#define ROWS_OF_UPPER ((size_t)128)

static void product_f32_tiles(bool ta, bool tb, sd_dense_part part, size_t m, size_t n, size_t k, float alpha, const float *a,
                              size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc, void *scratch,
                              size_t scratch_bytes) {
    const bool upper = part == SD_DENSE_UPPER, large = (double)m * (double)n * (double)k >= (double)LARGE;
    if (!large || scratch_bytes < SD_TILES_SCRATCH || !(upper || part == SD_DENSE_ALL)) {
        product_f32_avx512(ta, tb, part, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, scratch, scratch_bytes);
        return;
    }
    const size_t most = upper ? ROWS_OF_UPPER : m;
    for (size_t i = 0; i < m; i += most) {
        const size_t first = upper && i + n > m ? (i + n - m) / WIDEST * WIDEST : 0;
        sd_packed_float_tiles.product(ta, tb, sd_size_min(most, m - i), n - first, k, alpha, a + (ta ? i : i * lda), lda,
                                      b + (tb ? first * ldb : first), ldb, beta, c + i * ldc + first, ldc, scratch);
    }
}

#endif

const sd_dense *sd_dense_get(void) {
    static const sd_dense blas = {"blas", product_f32_plain, product_f64_plain, factor_f32_plain, factor_f64_plain};
#if defined(SD_HAVE_X86_KERNELS)
    static const sd_dense avx512 = {"avx512", product_f32_avx512, product_f64_avx512, factor_f32_avx512,
                                    factor_f64_avx512};
    static const sd_dense avx2 = {"avx2", product_f32_avx2, product_f64_avx2, factor_f32_avx2, factor_f64_avx2};
    const sd_kernels *kernels = sd_kernels_get();

#if defined(SD_HAVE_TILE_KERNELS)
    static const sd_dense tiles = {"avx512", product_f32_tiles, product_f64_avx512, factor_f32_avx512, factor_f64_avx512};
    if (kernels == &sd_kernels_avx512 && sd_fp32_detect() == SD_FP32_TILES)
        return &tiles;
#endif
    if (kernels == &sd_kernels_avx512)
        return &avx512;
    if (kernels == &sd_kernels_avx2)
        return &avx2;
#endif
    return &blas;
}

size_t sd_dense_scratch(size_t k, size_t n) {
    size_t depth = sd_size_min(sd_size_max(k, 1), DENSE_DEPTH), columns = sd_size_ceil(n, WIDEST) * WIDEST;

    return depth * columns * sizeof(double);
}

size_t sd_dense_scratch_at_best(size_t k, size_t n) {
    const size_t bytes = sd_dense_scratch(k, n);
#if defined(SD_HAVE_TILE_KERNELS)
    if (n >= 128 && sd_fp32_detect() == SD_FP32_TILES) /* narrower products are not large */
        return sd_size_max(bytes, SD_TILES_SCRATCH);
#endif
    return bytes;
}
