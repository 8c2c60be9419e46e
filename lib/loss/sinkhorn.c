/* Sinkhorn-Knopp: assignments of the batch in which every prototype gets the same share (M. Caron et al., "Unsupervised
 * Learning of Visual Features by Contrasting Cluster Assignments", 2020). The matrix itself is left as it is: only the
 * factors of its rows and columns change. */
#include "loss/prototypes.h"

#include <float.h>
#include <math.h>

#define COLUMNS_OF_A_TASK ((size_t)512)

typedef struct sinkhorn_work {
    const sd_kernels *kernels;
    float *scores;
    size_t n, columns, ld;
    double *u, *v;
    float largest;
} sinkhorn_work;

static void exponent_task(void *work, size_t row, size_t thread) {
    (void)thread;
    sinkhorn_work *job = work;
    float *scores = job->scores + row * job->ld;
    for (size_t j = 0; j < job->columns; j++)
        scores[j] -= job->largest;
    job->kernels->exp(scores, scores, job->columns);
}

/* v_j = 1 / (K sum_i u_i Q_ij) */
static void column_task(void *work, size_t index, size_t thread) {
    (void)thread;
    sinkhorn_work *job = work;
    size_t first = index * COLUMNS_OF_A_TASK, count = sd_size_min(COLUMNS_OF_A_TASK, job->columns - first);
    double sums[COLUMNS_OF_A_TASK] = {0};
    for (size_t i = 0; i < job->n; i++) {
        const float *row = job->scores + i * job->ld + first;
        double u = job->u[i];
        for (size_t j = 0; j < count; j++)
            sums[j] += u * (double)row[j];
    }
    for (size_t j = 0; j < count; j++)
        job->v[first + j] = 1.0 / ((double)job->columns * sums[j]);
}

/* u_i = 1 / (n sum_j v_j Q_ij) */
static void row_task(void *work, size_t i, size_t thread) {
    (void)thread;
    sinkhorn_work *job = work;
    const float *row = job->scores + i * job->ld;
    double sum = 0.0;
    for (size_t j = 0; j < job->columns; j++)
        sum += job->v[j] * (double)row[j];
    job->u[i] = 1.0 / ((double)job->n * sum);
}

sd_status sd_sinkhorn(sd_context *context, const sd_kernels *kernels, float *scores, size_t n, size_t K, size_t ld,
                      int32_t iterations, double *u, double *v) {
    sinkhorn_work job = {kernels, scores, n, K, ld, u, v, -FLT_MAX};
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < K; j++)
            job.largest = scores[i * ld + j] > job.largest ? scores[i * ld + j] : job.largest;
    SD_REQUIRE(isfinite(job.largest), SD_ERR_NUMERIC, "the teacher's logits are not finite");
    sd_status status;
    SD_TRY(sd_run(context, exponent_task, &job, n));
    for (size_t i = 0; i < n; i++)
        u[i] = 1.0; /* the official code divides by the sum of all first, which the rounds undo */
    for (int32_t round = 0; round < iterations; round++) {
        SD_TRY(sd_run(context, column_task, &job, sd_size_ceil(K, COLUMNS_OF_A_TASK)));
        SD_TRY(sd_run(context, row_task, &job, n));
    }
    for (size_t i = 0; i < n; i++)
        u[i] *= (double)n;
cleanup:
    return status;
}
