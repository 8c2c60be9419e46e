/* The GEMM façade: the only file that calls a BLAS for products, and the one that decides whether to.
 *
 * A BLAS that is older than the CPU may run kernels far below it (OpenBLAS 0.3.21 takes SSE ones on CPUs that it does
 * not know, a quarter of the speed and less), and a host that has loaded it cannot change that any more. Then the
 * products of dense.h are used, which equal a BLAS with the right kernels. Networks multiply with those of packed.h, which need
 * working memory of their thread and are faster than a fit BLAS, wherever the CPU has AVX2.
 *
 * A library that is built with oneDNN asks that first for products of floats; what it refuses goes the ways above. */
#include "math/math.h"

#include "base/system.h"
#include "config.h"
#include "math/dense.h"
#include "math/onednn.h"
#include "math/packed.h"
#include "math/strassen.h"

#include <stdatomic.h>
#include <string.h>

#include SD_CBLAS_HEADER

/* Working memory of an own product, on the stack: a product of more columns goes group by group. */
#define OWN_SCRATCH ((size_t)128 * 1024)

/* The products of dense.h where they are to be used, else NULL. What is asked for the first time is kept: it is the
 * same in the whole process. */
static const sd_dense *own_products(void) {
    enum { UNKNOWN, BLAS, OWN };
    static atomic_int choice = UNKNOWN;
    int known = atomic_load_explicit(&choice, memory_order_relaxed);
    if (known == BLAS)
        return NULL;
    const sd_dense *dense = sd_dense_get();
    if (known == UNKNOWN) {
        known = sd_blas_advice()[0] != '\0' && strcmp(dense->name, "blas") != 0 ? OWN : BLAS;
        atomic_store_explicit(&choice, known, memory_order_relaxed);
    }
    return known == OWN ? dense : NULL;
}

const char *sd_gemm_name(void) {
#if defined(SD_HAVE_ONEDNN)
    return "onednn";
#endif
    const sd_dense *own = own_products();
    return own != NULL ? own->name : "blas";
}

/* With which of packed.h networks multiply floats; NULL: by sd_sgemm. */
static const sd_packed *packed_floats(sd_fp32_level level) {
    switch (level) {
#if defined(SD_HAVE_TILE_KERNELS)
    case SD_FP32_TILES: return &sd_packed_float_tiles;
#endif
#if defined(SD_HAVE_FMA_KERNELS)
    case SD_FP32_FMA: return sd_cpu_detect() == SD_CPU_AVX512 ? &sd_packed_float : &sd_packed_float_avx2;
#endif
    default: return NULL;
    }
}

/* With which they multiply rounded factors, except for oneDNN. */
static const sd_packed *packed_bf16(sd_bf16_level level) {
    switch (level) {
#if defined(SD_HAVE_TILE_KERNELS)
    case SD_BF16_TILES: return &sd_packed_bf16_tiles;
#endif
#if defined(SD_HAVE_PACKED_KERNELS)
    case SD_BF16_DOT: return &sd_packed_bf16_dot;
    case SD_BF16_FMA: return &sd_packed_bf16_fma;
#endif
    default: return &sd_packed_bf16_emulated;
    }
}

void sd_sgemm(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda, const float *b,
              size_t ldb, float beta, float *c, size_t ldc) {
#if defined(SD_HAVE_ONEDNN)
    if (m > 0 && n > 0 && k > 0 && sd_onednn_sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc))
        return;
#endif
    const sd_dense *own = own_products();
    if (own != NULL && k > 0) {
        _Alignas(SD_ALIGNMENT) char scratch[OWN_SCRATCH];
        own->sgemm(ta, tb, SD_DENSE_ALL, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, scratch, sizeof scratch);
        return;
    }
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k,
                alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

void sd_dgemm(bool ta, bool tb, size_t m, size_t n, size_t k, double alpha, const double *a, size_t lda,
              const double *b, size_t ldb, double beta, double *c, size_t ldc) {
    const sd_dense *own = own_products();
    if (own != NULL && k > 0) {
        _Alignas(SD_ALIGNMENT) char scratch[OWN_SCRATCH];
        own->dgemm(ta, tb, SD_DENSE_ALL, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, scratch, sizeof scratch);
        return;
    }
    cblas_dgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k,
                alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

/* ---- in a precision ------------------------------------------------------------------------ */

static void multiply_fp32(const sd_gemm *gemm, bool ta, bool tb, size_t m, size_t n, size_t k, float alpha,
                          const float *a, size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc) {
    (void)gemm;
    sd_sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

const sd_gemm sd_gemm_fp32 = {.multiply = multiply_fp32, .name = "sgemm"};

/* Without an inner dimension only beta C is left, in which nothing is rounded. */
static void multiply_packed(const sd_gemm *gemm, bool ta, bool tb, size_t m, size_t n, size_t k, float alpha,
                            const float *a, size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc) {
    if (k > 0)
        gemm->packed->product(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, gemm->scratch);
    else
        sd_sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

#if defined(SD_HAVE_ONEDNN)
/* The epilogue of the rows and columns from `place` on of a product that begins with c. false: it is not for oneDNN. */
static bool epilogue_at(const sd_gemm *gemm, const sd_epilogue *whole, const float *c, size_t place, size_t column,
                        sd_epilogue *part) {
    if (whole->bias == NULL || (whole->gelu != NULL && (whole->gelu != c || !gemm->finishes_gelu)))
        return false;
    *part = (sd_epilogue){.bias = whole->bias + column,
                          .gelu = whole->gelu == NULL ? NULL : c + place,
                          .factor = whole->factor == NULL ? NULL : whole->factor + column,
                          .residual = whole->residual == NULL ? NULL : whole->residual + place,
                          .out = whole->out == NULL ? NULL : whole->out + place};
    return part->residual == NULL || part->residual != part->out;
}

/* Its GELU takes as long as a loop of ours after the product with AVX2 or less, and longer than one with AVX-512. */
static bool onednn_finishes_gelu(void) { return sd_cpu_detect() < SD_CPU_AVX512; }

static void finish_onednn(const sd_gemm *gemm, bool ta, bool tb, size_t m, size_t n, size_t k, const float *a, size_t lda,
                          const float *b, size_t ldb, float *c, size_t ldc, size_t row, size_t column,
                          const sd_finish *finish) {
    const size_t place = row * ldc + column;
    sd_epilogue here;
    if (epilogue_at(gemm, &finish->same, c, place, column, &here) &&
        sd_onednn_fp32(ta, tb, m, n, k, a, lda, b, ldb, c + place, ldc, &here))
        return;
    sd_sgemm(ta, tb, m, n, k, 1.0f, a, lda, b, ldb, 0.0f, c + place, ldc);
    finish->function(finish->data, c + place, ldc, row, m, column, n);
}
#endif

#if defined(SD_HAVE_ONEDNN) && defined(SD_HAVE_PACKED_KERNELS)
static const sd_epilogue nothing = {0};

/* Piece by piece, such that the rounded factors of one fit into the scratch. Scaled products (the scores of attention)
 * are small, and not worth their rounding beforehand. */
static void multiply_onednn(const sd_gemm *gemm, bool ta, bool tb, size_t m, size_t n, size_t k, float alpha,
                            const float *a, size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc) {
    if (k == 0) {
        sd_sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    if (alpha != 1.0f || (beta != 0.0f && beta != 1.0f)) {
        sd_packed_bf16_dot.product(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, gemm->scratch);
        return;
    }
    for (size_t l = 0; l < k; l += SD_ONEDNN_DEPTH)
        for (size_t i = 0; i < m; i += SD_ONEDNN_SIDE)
            for (size_t j = 0; j < n; j += SD_ONEDNN_SIDE) {
                const size_t depth = sd_size_min(SD_ONEDNN_DEPTH, k - l), rows = sd_size_min(SD_ONEDNN_SIDE, m - i);
                const size_t columns = sd_size_min(SD_ONEDNN_SIDE, n - j);
                const float *left = a + (ta ? l * lda + i : i * lda + l);
                const float *right = b + (tb ? j * ldb + l : l * ldb + j);
                const float scale = l == 0 ? beta : 1.0f;
                float *out = c + i * ldc + j;
                if (!sd_onednn_bf16(ta, tb, rows, columns, depth, left, lda, right, ldb, scale != 0.0f, out, ldc, &nothing,
                                    gemm->scratch))
                    sd_packed_bf16_dot.product(ta, tb, rows, columns, depth, 1.0f, left, lda, right, ldb, scale, out, ldc,
                                               gemm->scratch);
            }
}

/* The same, where the last piece of the depth takes what follows with it. */
static void finish_onednn_bf16(const sd_gemm *gemm, bool ta, bool tb, size_t m, size_t n, size_t k, const float *a, size_t lda,
                               const float *b, size_t ldb, float *c, size_t ldc, size_t row, size_t column,
                               const sd_finish *finish) {
    const size_t before = (sd_size_ceil(k, SD_ONEDNN_DEPTH) - 1) * SD_ONEDNN_DEPTH, depth = k - before;
    float *part = c + row * ldc + column;
    sd_epilogue here;
    if (!epilogue_at(gemm, &finish->same, c, row * ldc + column, column, &here)) {
        multiply_onednn(gemm, ta, tb, m, n, k, 1.0f, a, lda, b, ldb, 0.0f, part, ldc);
        finish->function(finish->data, part, ldc, row, m, column, n);
        return;
    }
    if (before > 0)
        multiply_onednn(gemm, ta, tb, m, n, before, 1.0f, a, lda, b, ldb, 0.0f, part, ldc);
    a += ta ? before * lda : before;
    b += tb ? before : before * ldb;
    for (size_t i = 0; i < m; i += SD_ONEDNN_SIDE)
        for (size_t j = 0; j < n; j += SD_ONEDNN_SIDE) {
            const size_t rows = sd_size_min(SD_ONEDNN_SIDE, m - i), columns = sd_size_min(SD_ONEDNN_SIDE, n - j);
            const float *left = a + (ta ? i : i * lda), *right = b + (tb ? j * ldb : j);
            const size_t place = (row + i) * ldc + column + j;
            (void)epilogue_at(gemm, &finish->same, c, place, column + j, &here);
            if (sd_onednn_bf16(ta, tb, rows, columns, depth, left, lda, right, ldb, before > 0, c + place, ldc, &here,
                               gemm->scratch))
                continue;
            multiply_onednn(gemm, ta, tb, rows, columns, depth, 1.0f, left, lda, right, ldb, before > 0 ? 1.0f : 0.0f,
                            c + place, ldc);
            finish->function(finish->data, c + place, ldc, row + i, rows, column + j, columns);
        }
}
#endif

sd_gemm sd_gemm_of(int32_t precision, void *scratch) {
    if (precision != SD_PRECISION_BF16) {
        const sd_fp32_level level = sd_fp32_detect();
        const sd_packed *packed = packed_floats(level);
        if (packed != NULL)
            return (sd_gemm){.multiply = multiply_packed, .scratch = scratch, .name = sd_fp32_level_name(level), .packed = packed};
        sd_gemm gemm = {.multiply = multiply_fp32, .name = sd_gemm_name()};
#if defined(SD_HAVE_ONEDNN)
        gemm.finish = finish_onednn;
        gemm.finishes_gelu = onednn_finishes_gelu();
#endif
        return gemm;
    }
    const sd_bf16_level level = sd_bf16_detect();
#if defined(SD_HAVE_ONEDNN) && defined(SD_HAVE_PACKED_KERNELS)
    if (level == SD_BF16_ONEDNN)
        return (sd_gemm){.multiply = multiply_onednn, .scratch = scratch, .name = sd_bf16_level_name(level),
                         .finish = finish_onednn_bf16, .finishes_gelu = onednn_finishes_gelu()};
#endif
    return (sd_gemm){.multiply = multiply_packed, .scratch = scratch, .name = sd_bf16_level_name(level),
                     .packed = packed_bf16(level)};
}

void sd_gemm_take_strassen(sd_gemm *gemm) {
#if defined(SD_HAVE_FMA_KERNELS)
    if (gemm->packed == &sd_packed_float && sd_cpu_prefers_strassen())
        gemm->strassen = &sd_strassen_avx512;
#else
    (void)gemm;
#endif
}

size_t sd_gemm_scratch(int32_t precision) {
    if (precision != SD_PRECISION_BF16) {
        const sd_packed *packed = packed_floats(sd_fp32_detect());
        return packed != NULL ? packed->scratch : 0;
    }
    const sd_bf16_level level = sd_bf16_detect();
#if defined(SD_HAVE_ONEDNN) && defined(SD_HAVE_PACKED_KERNELS)
    if (level == SD_BF16_ONEDNN)
        return SD_ONEDNN_SCRATCH;
#endif
    return packed_bf16(level)->scratch;
}

size_t sd_gemm_rows(const sd_gemm *gemm) { return gemm->packed != NULL ? gemm->packed->rows : SD_PACKED_ROWS; }

#if defined(SD_HAVE_ONEDNN) && defined(SD_HAVE_PACKED_KERNELS)
_Static_assert(SD_ONEDNN_SCRATCH >= SD_PACKED_SCRATCH, "the own product can stand in for a refused one");
#endif

/* ---- products and what follows ----------------------------------------------------------- */

void sd_multiply_finish(const sd_gemm *gemm, bool ta, bool tb, size_t m, size_t n, size_t k, const float *a, size_t lda,
                        const float *b, size_t ldb, float *c, size_t ldc, size_t row, size_t column,
                        const sd_finish *finish) {
    if (gemm->finish != NULL && m > 0 && n > 0 && k > 0) {
        gemm->finish(gemm, ta, tb, m, n, k, a, lda, b, ldb, c, ldc, row, column, finish);
        return;
    }
    sd_multiply(gemm, ta, tb, m, n, k, 1.0f, a, lda, b, ldb, 0.0f, c + row * ldc + column, ldc);
    finish->function(finish->data, c + row * ldc + column, ldc, row, m, column, n);
}

/* ---- numbers that are bfloat16 in memory --------------------------------------------------- */

bool sd_gemm_reads_bf16(const sd_gemm *gemm) { return gemm->packed != NULL && gemm->packed->rounded != NULL; }

void sd_bf16_round(const sd_gemm *gemm, const float *x, size_t count, uint16_t *y) {
    gemm->packed->rounded->round(x, count, y);
}

void sd_bf16_widen(const sd_gemm *gemm, const uint16_t *x, size_t count, float *y) {
    gemm->packed->rounded->widen(x, count, y);
}

void sd_multiply_bf16(const sd_gemm *gemm, size_t m, size_t n, size_t k, const uint16_t *a, size_t lda, const uint16_t *b,
                      size_t ldb, float beta, float *c, size_t ldc) {
    if (k > 0)
        gemm->packed->rounded->gradient(m, n, k, a, lda, b, ldb, beta, c, ldc, gemm->scratch);
    else
        sd_sgemm(true, false, m, n, 0, 1.0f, NULL, m, NULL, n, beta, c, ldc);
}

/* ---- factors of many products -------------------------------------------------------------- */

size_t sd_factor_bytes(const sd_gemm *gemm, size_t n, size_t k) {
    if (gemm->packed == NULL || gemm->packed->pack == NULL)
        return 0;
    const size_t bytes = sd_packed_bytes(gemm->packed, n, k);
    return gemm->strassen != NULL && sd_strassen_fits(n, k) ? sd_size_max(bytes, sd_strassen_bytes(n, k)) : bytes;
}

void sd_factor_take_strassen(const sd_gemm *gemm, sd_factor *factor) {
    factor->strassen = gemm->strassen != NULL && sd_strassen_fits(factor->n, factor->k);
}

void sd_factor_pack(const sd_gemm *gemm, const sd_factor *factor, size_t first_column, size_t count) {
    if (factor->strassen) {
        const size_t columns = 2 * SD_FACTOR_COLUMNS; /* a panel of each half */
        gemm->strassen->pack(factor->tb, factor->n, factor->k, factor->b, factor->ldb, first_column / columns,
                             sd_size_ceil(count, columns), factor->packed);
        return;
    }
    gemm->packed->pack(factor->tb, factor->n, factor->k, factor->b, factor->ldb, first_column / SD_FACTOR_COLUMNS,
                       sd_size_ceil(count, SD_FACTOR_COLUMNS), factor->packed);
}

void sd_multiply_factor(const sd_gemm *gemm, size_t m, const float *a, size_t lda, const sd_factor *factor,
                        size_t first_column, size_t columns, float *c, size_t ldc, const sd_finish *finish) {
    if (factor->packed != NULL && !factor->strassen) {
        gemm->packed->multiply(m, factor->n, factor->k, a, lda, factor->packed, first_column, columns, c, ldc, finish,
                               gemm->scratch);
        return;
    }
    if (factor->packed != NULL) {
        gemm->strassen->multiply(m, factor->n, factor->k, a, lda, factor->packed, c, ldc, gemm->scratch);
        if (finish != NULL)
            finish->function(finish->data, c, ldc, 0, m, 0, columns);
        return;
    }
    const float *b = factor->b + (factor->tb ? first_column * factor->ldb : first_column);
    if (finish != NULL)
        sd_multiply_finish(gemm, false, factor->tb, m, columns, factor->k, a, lda, b, factor->ldb, c, ldc, 0, 0, finish);
    else
        sd_multiply(gemm, false, factor->tb, m, columns, factor->k, 1.0f, a, lda, b, factor->ldb, 0.0f, c, ldc);
}

_Static_assert(SD_FACTOR_COLUMNS == SD_PACKED_COLUMNS, "factors are packed in panels");
