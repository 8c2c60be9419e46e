/* Sinkhorn-Knopp: assignments of the batch in which every prototype gets the same share (M. Caron et al., "Unsupervised
 * Learning of Visual Features by Contrasting Cluster Assignments", 2020).
 *
 * The official code divides the matrix itself; here only factors of its rows and columns change. It exponentiates the
 * scores as they are, which overflows above 88; here their largest is subtracted first, which the first round undoes.
 * Scores that are further apart than floats can tell go by logarithms. */
#include "loss/prototypes.h"

#include <math.h>

#define COLUMNS_OF_A_TASK ((size_t)512)
#define LANES ((size_t)8)
/* e^-80 is a normal float, and so are its products with what the rounds give. */
#define WIDEST_RANGE 80.0

typedef struct sinkhorn_work {
    const sd_kernels *kernels;
    float *scores;
    size_t n, columns, ld;
    double *u, *v; /* factors, or their logarithms */
    float largest;
} sinkhorn_work;

/* u_i = the largest, or less the smallest, score of the row. */
static void largest_task(void *work, size_t i, size_t thread) {
    (void)thread;
    sinkhorn_work *job = work;
    const float *row = job->scores + i * job->ld;
    float largest = row[0];
    for (size_t j = 1; j < job->columns; j++)
        largest = row[j] > largest ? row[j] : largest;
    job->u[i] = (double)largest;
}

static void smallest_task(void *work, size_t i, size_t thread) {
    (void)thread;
    sinkhorn_work *job = work;
    const float *row = job->scores + i * job->ld;
    float smallest = row[0];
    for (size_t j = 1; j < job->columns; j++)
        smallest = row[j] < smallest ? row[j] : smallest;
    job->u[i] = -(double)smallest;
}

static double highest_factor(const sinkhorn_work *job) {
    double highest = job->u[0];
    for (size_t i = 1; i < job->n; i++)
        highest = fmax(highest, job->u[i]);
    return highest;
}

/* ---- factors of exponentials ---------------------------------------------------------------- */

static void exponential_task(void *work, size_t row, size_t thread) {
    (void)thread;
    sinkhorn_work *job = work;
    float *scores = job->scores + row * job->ld;
    for (size_t j = 0; j < job->columns; j++)
        scores[j] -= job->largest;
    job->kernels->exp(scores, scores, job->columns);
    job->u[row] = 1.0; /* the official code divides by the sum of all first, which the first round undoes */
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
    double lane[LANES] = {0}, sum = 0.0;
    size_t j = 0;
    for (; j + LANES <= job->columns; j += LANES)
        for (size_t l = 0; l < LANES; l++)
            lane[l] += job->v[j + l] * (double)row[j + l];
    for (; j < job->columns; j++)
        sum += job->v[j] * (double)row[j];
    for (size_t l = 0; l < LANES; l++)
        sum += lane[l];
    job->u[i] = 1.0 / ((double)job->n * sum);
}

/* ---- logarithms of factors ------------------------------------------------------------------ */

/* v_j = -log K - log sum_i e^(u_i + s_ij) */
static void log_column_task(void *work, size_t index, size_t thread) {
    (void)thread;
    sinkhorn_work *job = work;
    size_t first = index * COLUMNS_OF_A_TASK, count = sd_size_min(COLUMNS_OF_A_TASK, job->columns - first);
    double sums[COLUMNS_OF_A_TASK] = {0}, highest[COLUMNS_OF_A_TASK];
    for (size_t j = 0; j < count; j++)
        highest[j] = -INFINITY;
    for (size_t i = 0; i < job->n; i++)
        for (size_t j = 0; j < count; j++)
            highest[j] = fmax(highest[j], job->u[i] + (double)job->scores[i * job->ld + first + j]);
    for (size_t i = 0; i < job->n; i++)
        for (size_t j = 0; j < count; j++)
            sums[j] += exp(job->u[i] + (double)job->scores[i * job->ld + first + j] - highest[j]);
    for (size_t j = 0; j < count; j++)
        job->v[first + j] = -log((double)job->columns) - highest[j] - log(sums[j]);
}

/* u_i = -log n - log sum_j e^(v_j + s_ij) */
static void log_row_task(void *work, size_t i, size_t thread) {
    (void)thread;
    sinkhorn_work *job = work;
    const float *row = job->scores + i * job->ld;
    double highest = -INFINITY, sum = 0.0;
    for (size_t j = 0; j < job->columns; j++) { /* not by fmax, on which gcc 12 breaks down for AArch64 */
        double score = job->v[j] + (double)row[j];
        highest = score > highest ? score : highest;
    }
    for (size_t j = 0; j < job->columns; j++)
        sum += exp(job->v[j] + (double)row[j] - highest);
    job->u[i] = -log((double)job->n) - highest - log(sum);
}

/* The scores become n e^(u_i + v_j + s_ij), the factor of the row 1. */
static void log_finish_task(void *work, size_t i, size_t thread) {
    (void)thread;
    sinkhorn_work *job = work;
    float *row = job->scores + i * job->ld;
    for (size_t j = 0; j < job->columns; j++)
        row[j] = (float)((double)job->n * exp(job->u[i] + job->v[j] + (double)row[j]));
    job->u[i] = 1.0;
}

/* --------------------------------------------------------------------------------------------- */

sd_status sd_sinkhorn(sd_context *context, const sd_kernels *kernels, float *scores, size_t n, size_t K, size_t ld,
                      int32_t iterations, double *u, double *v) {
    sinkhorn_work job = {.kernels = kernels, .scores = scores, .n = n, .columns = K, .ld = ld, .u = u, .v = v};
    size_t column_tasks = sd_size_ceil(K, COLUMNS_OF_A_TASK);
    sd_status status;
    SD_TRY(sd_run(context, largest_task, &job, n));
    double largest = highest_factor(&job);
    SD_TRY(sd_run(context, smallest_task, &job, n));
    bool wide = largest + highest_factor(&job) > WIDEST_RANGE;
    job.largest = (float)largest;
    if (!wide)
        SD_TRY(sd_run(context, exponential_task, &job, n));
    for (size_t i = 0; wide && i < n; i++)
        u[i] = 0.0;
    for (int32_t round = 0; round < iterations; round++) {
        SD_TRY(sd_run(context, wide ? log_column_task : column_task, &job, column_tasks));
        SD_TRY(sd_run(context, wide ? log_row_task : row_task, &job, n));
    }
    if (wide)
        SD_TRY(sd_run(context, log_finish_task, &job, n));
    for (size_t i = 0; !wide && i < n; i++)
        u[i] *= (double)n;
    for (size_t j = 0; wide && j < K; j++)
        v[j] = 1.0;
cleanup:
    return status;
}
