/* The GEMM façade: the only file that calls a BLAS. */
#include "math/math.h"
#include "config.h"

#include SD_CBLAS_HEADER

void sd_sgemm(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda, const float *b,
              size_t ldb, float beta, float *c, size_t ldc) {
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k,
                alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

void sd_dgemm(bool ta, bool tb, size_t m, size_t n, size_t k, double alpha, const double *a, size_t lda, const double *b,
              size_t ldb, double beta, double *c, size_t ldc) {
    cblas_dgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k,
                alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

void sd_ssyrk_lower(bool transposed, size_t n, size_t k, float alpha, const float *a, size_t lda, float beta, float *c,
                    size_t ldc) {
    cblas_ssyrk(CblasRowMajor, CblasLower, transposed ? CblasTrans : CblasNoTrans, (int)n, (int)k, alpha, a, (int)lda,
                beta, c, (int)ldc);
}

void sd_dsyrk_lower(bool transposed, size_t n, size_t k, double alpha, const double *a, size_t lda, double beta,
                    double *c, size_t ldc) {
    cblas_dsyrk(CblasRowMajor, CblasLower, transposed ? CblasTrans : CblasNoTrans, (int)n, (int)k, alpha, a, (int)lda,
                beta, c, (int)ldc);
}
