/* Sinkhorn-Knopp: assignments of the batch in which every prototype gets the same share (M. Caron et al., "Unsupervised
 * Learning of Visual Features by Contrasting Cluster Assignments", 2020). The matrix itself is left as it is: only the
 * factors of its rows and columns change. */
#include "loss/prototypes.h"

#include <float.h>
#include <math.h>

#define COLUMNS_OF_A_TASK ((size_t)512)
#define SMALLEST_FACTOR   1e-200 /* times the smallest exponential, and their inverse, are still numbers */

typedef struct sinkhorn_work {
    const sd_kernels *kernels;
    float *scores;
    size_t n, columns, ld;
    double *u, *v;
} sinkhorn_work;

/* Each row less its own maximum, which u_i takes over: exponentials in single precision span 87 units, and rows may lie
 * further apart. */
static void exponent_task(void *work, size_t row, size_t thread) {
    (void)thread;
    sinkhorn_work *job = work;
    float *scores = job->scores + row * job->ld, largest = -FLT_MAX;
    for (size_t j = 0; j < job->columns; j++)
        largest = scores[j] > largest ? scores[j] : largest;
    for (size_t j = 0; j < job->columns; j++)
        scores[j] -= largest;
    job->kernels->exp(scores, scores, job->columns);
    job->u[row] = (double)largest;
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
    sinkhorn_work job = {kernels, scores, n, K, ld, u, v};
    sd_status status;
    SD_TRY(sd_run(context, exponent_task, &job, n));
    double largest = -HUGE_VAL;
    for (size_t i = 0; i < n; i++) {
        SD_EXPECT(isfinite(u[i]), SD_ERR_NUMERIC, "row %zu of the teacher's logits is not finite", i);
        largest = fmax(largest, u[i]);
    }
    for (size_t i = 0; i < n; i++) /* the official code divides by the sum of all first, which the rounds undo */
        u[i] = fmax(exp(u[i] - largest), SMALLEST_FACTOR);
    for (int32_t round = 0; round < iterations; round++) {
        SD_TRY(sd_run(context, column_task, &job, sd_size_ceil(K, COLUMNS_OF_A_TASK)));
        SD_TRY(sd_run(context, row_task, &job, n));
    }
    for (size_t i = 0; i < n; i++)
        u[i] *= (double)n;
cleanup:
    return status;
}
