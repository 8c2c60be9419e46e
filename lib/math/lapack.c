/* Cholesky factorisations and eigenvectors. A row-major lower triangle is a column-major upper one, so LAPACK works on the matrices as
 * they lie: nothing is transposed, and the _work functions of LAPACKE allocate nothing. */
#include "math/math.h"
#include "config.h"

#include SD_LAPACKE_HEADER

#include <string.h>

size_t sd_dpotrf_lower(size_t n, double *a, size_t lda) {
    lapack_int info = LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'U', (lapack_int)n, a, (lapack_int)lda);

    return info > 0 ? (size_t)info : 0;
}

size_t sd_dpotri_lower(size_t n, double *a, size_t lda) {
    lapack_int info = LAPACKE_dpotri_work(LAPACK_COL_MAJOR, 'U', (lapack_int)n, a, (lapack_int)lda);

    return info > 0 ? (size_t)info : 0;
}

sd_status sd_dsyev_largest(sd_context *context, size_t n, double *a, size_t lda, size_t count, double *values,
                           double *vectors) {
    sd_status status = SD_OK;
    lapack_int order = (lapack_int)n, first = (lapack_int)(n - count + 1), found = 0, integers = 0, info;
    double *work = NULL, *all = NULL, *columns = NULL, room = 0.0;
    lapack_int *integer_work = NULL, *support = NULL;

    all = SD_NEW_ARRAY(context, double, n);
    columns = SD_NEW_ARRAY(context, double, n * count);
    support = SD_NEW_ARRAY(context, lapack_int, 2 * n);
    if (!all || !columns || !support) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    /* First asked for the working memory that it wants. */
    info = LAPACKE_dsyevr_work(LAPACK_COL_MAJOR, 'V', 'I', 'U', order, a, (lapack_int)lda, 0.0, 0.0, first, order, 0.0,
                               &found, all, columns, order, support, &room, -1, &integers, -1);
    SD_EXPECT(info == 0, SD_ERR_NUMERIC, "LAPACK's dsyevr gave %d", (int)info);
    work = SD_NEW_ARRAY(context, double, (size_t)room);
    integer_work = SD_NEW_ARRAY(context, lapack_int, (size_t)integers);
    if (!work || !integer_work) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    info = LAPACKE_dsyevr_work(LAPACK_COL_MAJOR, 'V', 'I', 'U', order, a, (lapack_int)lda, 0.0, 0.0, first, order, 0.0,
                               &found, all, columns, order, support, work, (lapack_int)room, integer_work, integers);
    SD_EXPECT(info == 0 && (size_t)found == count, SD_ERR_NUMERIC, "LAPACK's dsyevr gave %d", (int)info);
    for (size_t i = 0; i < count; i++) { /* they come smallest first */
        values[i] = all[count - 1 - i];
        memcpy(vectors + i * n, columns + (count - 1 - i) * n, n * sizeof *vectors);
    }
cleanup:
    sd_release(context, all);
    sd_release(context, columns);
    sd_release(context, support);
    sd_release(context, work);
    sd_release(context, integer_work);
    return status;
}
