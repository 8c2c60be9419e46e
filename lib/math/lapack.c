/* Cholesky factorisations. A row-major lower triangle is a column-major upper one, so LAPACK works on the matrices as
 * they lie: nothing is transposed, and the _work functions of LAPACKE allocate nothing. */
#include "math/math.h"
#include "config.h"

#include SD_LAPACKE_HEADER

size_t sd_dpotrf_lower(size_t n, double *a, size_t lda) {
    lapack_int info = LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'U', (lapack_int)n, a, (lapack_int)lda);

    return info > 0 ? (size_t)info : 0;
}

size_t sd_dpotri_lower(size_t n, double *a, size_t lda) {
    lapack_int info = LAPACKE_dpotri_work(LAPACK_COL_MAJOR, 'U', (lapack_int)n, a, (lapack_int)lda);

    return info > 0 ? (size_t)info : 0;
}
