/* Matrix products in registers and cache, and Cholesky and inverse in blocks on top of them. The kernels are in
 * dense_kernel.h, once for each type and instruction set; the CPU decides at run time. */
#include "math/dense.h"

#include "math/kernels.h"
#include "math/math.h"

#include <math.h>
#include <string.h>

#define DENSE_DEPTH ((size_t)256) /* of the inner dimension at once: a packed panel of B stays in the first cache */
#define BLOCK ((size_t)64)        /* of the factorisation */
#define WIDEST ((size_t)32)       /* columns of the widest tile */

#if defined(SD_HAVE_X86_KERNELS)
#define HAVE_KERNELS 1
#include <immintrin.h>

#define EIGHT_ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define SIX_ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define TARGET_512 __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma,avx2")))
#define TARGET_2 __attribute__((target("avx2,fma")))

#define NAME(x) x##_f32_avx512
#define TARGET TARGET_512
#define REAL float
#define VECTOR __m512
#define WIDTH 16
#define ZERO _mm512_setzero_ps()
#define SPREAD(x) _mm512_set1_ps(x)
#define LOAD(p) _mm512_loadu_ps(p)
#define STORE(p, v) _mm512_storeu_ps(p, v)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define ROWS 8
#define EACH_ROW EIGHT_ROWS
#include "math/dense_kernel.h"

#define NAME(x) x##_f64_avx512
#define TARGET TARGET_512
#define REAL double
#define VECTOR __m512d
#define WIDTH 8
#define ZERO _mm512_setzero_pd()
#define SPREAD(x) _mm512_set1_pd(x)
#define LOAD(p) _mm512_loadu_pd(p)
#define STORE(p, v) _mm512_storeu_pd(p, v)
#define FMA(a, b, c) _mm512_fmadd_pd(a, b, c)
#define ROWS 8
#define EACH_ROW EIGHT_ROWS
#include "math/dense_kernel.h"

#define NAME(x) x##_f32_avx2
#define TARGET TARGET_2
#define REAL float
#define VECTOR __m256
#define WIDTH 8
#define ZERO _mm256_setzero_ps()
#define SPREAD(x) _mm256_set1_ps(x)
#define LOAD(p) _mm256_loadu_ps(p)
#define STORE(p, v) _mm256_storeu_ps(p, v)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define ROWS 6
#define EACH_ROW SIX_ROWS
#include "math/dense_kernel.h"

#define NAME(x) x##_f64_avx2
#define TARGET TARGET_2
#define REAL double
#define VECTOR __m256d
#define WIDTH 4
#define ZERO _mm256_setzero_pd()
#define SPREAD(x) _mm256_set1_pd(x)
#define LOAD(p) _mm256_loadu_pd(p)
#define STORE(p, v) _mm256_storeu_pd(p, v)
#define FMA(a, b, c) _mm256_fmadd_pd(a, b, c)
#define ROWS 6
#define EACH_ROW SIX_ROWS
#include "math/dense_kernel.h"

#endif

static void product_f32_blas(bool ta, bool tb, sd_dense_part part, size_t m, size_t n, size_t k, float alpha,
                             const float *a, size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc,
                             void *scratch, size_t scratch_bytes) {
    (void)part, (void)scratch, (void)scratch_bytes;
    sd_sgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

static void product_f64_blas(bool ta, bool tb, sd_dense_part part, size_t m, size_t n, size_t k, double alpha,
                             const double *a, size_t lda, const double *b, size_t ldb, double beta, double *c,
                             size_t ldc, void *scratch, size_t scratch_bytes) {
    (void)part, (void)scratch, (void)scratch_bytes;
    sd_dgemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

const sd_dense *sd_dense_get(void) {
    static const sd_dense blas = {"blas", product_f32_blas, product_f64_blas};
#if defined(HAVE_KERNELS)
    static const sd_dense avx512 = {"avx512", product_f32_avx512, product_f64_avx512};
    static const sd_dense avx2 = {"avx2", product_f32_avx2, product_f64_avx2};
    const sd_kernels *kernels = sd_kernels_get();

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

#if defined(HAVE_KERNELS) && defined(__GLIBC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

FOR_EACH_CPU
void sd_dense_symmetric_times(size_t n, const float *a, size_t count, const float *v, float *w) {
    memset(w, 0, count * n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        const float *restrict row = a + i * n;
        for (size_t p = 0; p < count; p++) {
            const float factor = v[p * n + i];
            float *restrict to = w + p * n;
            for (size_t j = 0; j < n; j++)
                to[j] += factor * row[j];
        }
    }
}

/* ---- blocks on the diagonal ---------------------------------------------------------------- */

/* U of one block in place, row by row, and v = (U^-1)' (lower triangular, zeros above). Rows are padded to BLOCK, so
 * that the loops have a fixed length from the diagonal's vector on. 0, or the 1-based pivot. */
FOR_EACH_CPU
static size_t factor_block(size_t n, double *u) {
    for (size_t j = 0; j < n; j++) {
        double *row = u + j * BLOCK, pivot = row[j];

        if (!(pivot > 0.0))
            return j + 1;
        double scale = 1.0 / sqrt(pivot);
        for (size_t c = j & ~(size_t)7; c < BLOCK; c++)
            row[c] *= scale;
        row[j] = pivot * scale;
        for (size_t i = j + 1; i < n; i++) {
            double *to = u + i * BLOCK, factor = row[i];
            for (size_t c = i & ~(size_t)7; c < BLOCK; c++)
                to[c] -= factor * row[c];
        }
    }
    return 0;
}

/* v = (U^-1)' by forward substitution in U'v = I: row i of v = (e_i - sum over l < i of U_li v_l) / U_ii. */
FOR_EACH_CPU
static void invert_block(size_t n, const double *u, double *v) {
    for (size_t i = 0; i < n; i++) {
        double *row = v + i * BLOCK, pivot = 1.0 / u[i * BLOCK + i];
        size_t used = sd_size_min((i + 8) & ~(size_t)7, BLOCK);

        memset(row, 0, BLOCK * sizeof(double));
        for (size_t l = 0; l < i; l++) {
            double factor = u[l * BLOCK + i];
            const double *from = v + l * BLOCK;
            for (size_t c = 0; c < used; c++)
                row[c] -= factor * from[c];
        }
        for (size_t c = 0; c < used; c++)
            row[c] *= pivot;
        row[i] = pivot;
    }
}

/* ---- Cholesky and inverse ------------------------------------------------------------------ */

size_t sd_dense_cholesky(const sd_dense *dense, size_t n, double *a, size_t lda, double *inverse, void *scratch,
                         size_t scratch_bytes) {
    _Alignas(SD_ALIGNMENT) double u[BLOCK * BLOCK], v[BLOCK * BLOCK];

    for (size_t j = 0; j < n; j += BLOCK) {
        size_t nj = sd_size_min(BLOCK, n - j), right = n - j - nj;
        double *diagonal = a + j * lda + j;

        memset(u, 0, sizeof(u));
        for (size_t i = 0; i < nj; i++)
            memcpy(u + i * BLOCK + i, diagonal + i * lda + i, (nj - i) * sizeof(double));
        size_t pivot = factor_block(nj, u);
        if (pivot)
            return j + pivot;
        invert_block(nj, u, v);
        for (size_t i = 0; i < nj; i++) {
            memcpy(diagonal + i * lda + i, u + i * BLOCK + i, (nj - i) * sizeof(double));
            memcpy(inverse + (j + i) * n + j, v + i * BLOCK, nj * sizeof(double));
        }
        if (right == 0)
            break;
        /* U(j, right) = (U(j, j)')^-1 A(j, right), by columns so that it can be done in place; then the rest loses U(j,
         * right)'U(j, right). */
        double *beside = diagonal + nj;
        for (size_t c = 0; c < right; c += BLOCK) {
            size_t nc = sd_size_min(BLOCK, right - c);
            dense->dgemm(false, false, SD_DENSE_ALL, nj, nc, nj, 1.0, v, BLOCK, beside + c, lda, 0.0, u, BLOCK, scratch,
                           scratch_bytes);
            for (size_t i = 0; i < nj; i++)
                memcpy(beside + i * lda + c, u + i * BLOCK, nc * sizeof(double));
        }
        dense->dgemm(true, false, SD_DENSE_UPPER, right, right, nj, -1.0, beside, lda, beside, lda, 1.0,
                       diagonal + nj * lda + nj, lda, scratch, scratch_bytes);
    }
    return 0;
}

typedef struct invert_work {
    const sd_dense *dense;
    size_t n, lda;
    double *a, *inverse;
    char *scratch;
    size_t scratch_bytes;
} invert_work;

/* V = (U')^-1 below its diagonal block in one column j of blocks: V(i, j) = -V(i, i) sum over j <= p < i of
 * U(p, i)' V(p, j). */
static void substitute_task(void *work, size_t index, size_t thread) {
    _Alignas(SD_ALIGNMENT) double sum[BLOCK * BLOCK];
    const invert_work *w = work;
    size_t n = w->n, j = index * BLOCK;
    void *scratch = w->scratch + thread * w->scratch_bytes;

    for (size_t i = j + BLOCK; i < n; i += BLOCK) {
        size_t ni = sd_size_min(BLOCK, n - i);
        w->dense->dgemm(true, false, SD_DENSE_ALL, ni, BLOCK, i - j, 1.0, w->a + j * w->lda + i, w->lda,
                        w->inverse + j * n + j, n, 0.0, sum, BLOCK, scratch, w->scratch_bytes);
        w->dense->dgemm(false, false, SD_DENSE_ALL, ni, BLOCK, ni, -1.0, w->inverse + i * n + i, n, sum, BLOCK, 0.0,
                        w->inverse + i * n + j, n, scratch, w->scratch_bytes);
    }
}

/* A^-1 = V'V; block (i, j), i <= j, needs the rows of V from block j on. */
static void square_task(void *work, size_t index, size_t thread) {
    const invert_work *w = work;
    size_t n = w->n, j = index * BLOCK, nj = sd_size_min(BLOCK, n - j);
    const double *rows = w->inverse + j * n;

    w->dense->dgemm(true, false, SD_DENSE_ALL, j + nj, nj, n - j, 1.0, rows, n, rows + j, n, 0.0, w->a + j, w->lda,
                    w->scratch + thread * w->scratch_bytes, w->scratch_bytes);
}

void sd_dense_invert(const sd_dense *dense, sd_context *context, size_t n, double *a, size_t lda, double *inverse,
                     void *scratch, size_t scratch_bytes) {
    invert_work work = {dense, n, lda, a, inverse, scratch, scratch_bytes};
    sd_parallel_function tasks[] = {substitute_task, square_task};
    size_t columns = sd_size_ceil(n, BLOCK);

    for (size_t t = 0; t < 2; t++)
        if (context == NULL || columns == 1 || sd_run(context, tasks[t], &work, columns) != SD_OK)
            for (size_t j = 0; j < columns; j++)
                tasks[t](&work, j, 0);
}
