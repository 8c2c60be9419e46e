/* The Gram matrix of the coding rate, as a sum over slices of the long side. */
#include "loss/rate_evaluation.h"

#include <math.h>
#include <string.h>

#define ROWS_AT_ONCE ((size_t)16) /* of the sum over slices: one task */
/* Below this, threads cost more than the sum. */
#define SHARED_SUM ((size_t)128)

static size_t slice_count(const sd_rate_evaluation *e, size_t index) {
    return sd_size_min(e->slice, e->length - index * e->slice);
}

void sd_rate_load_chunk(const sd_rate_evaluation *e, size_t first, size_t count, double *out) {
    const sd_rows *z = e->z;
    size_t rows = e->tall ? count : z->n, columns = e->tall ? z->d : count;
    const float *from = z->f32 + (e->tall ? first * z->ld : first);

    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            out[i * columns + j] = (double)from[i * z->ld + j];
}

static float *float_part(const sd_rate_evaluation *e, size_t index) {
    return (float *)(void *)e->space->partial + index * e->k * e->k;
}

/* Upper triangle of the Gram of one slice. */
static void gram_task(void *work, size_t index, size_t thread) {
    const sd_rate_evaluation *e = work;
    const sd_dense *dense = e->space->dense;
    const sd_rows *z = e->z;
    size_t k = e->k, slice = e->first_slice + index, room = e->space->scratch_bytes;
    size_t first = slice * e->slice, count = slice_count(e, slice);
    size_t offset = e->tall ? first * z->ld : first;
    double *out = e->space->partial + index * k * k;
    void *scratch = sd_rate_scratch(e, thread);

    if (e->float_gram) {
        const float *from = z->f32 + offset;
        dense->sgemm(e->tall, !e->tall, SD_DENSE_UPPER, k, k, count, 1.0f, from, z->ld, from, z->ld, 0.0f,
                     float_part(e, index), k, scratch, room);
    } else if (z->f64) {
        const double *from = z->f64 + offset;
        dense->dgemm(e->tall, !e->tall, SD_DENSE_UPPER, k, k, count, 1.0, from, z->ld, from, z->ld, 0.0, out, k, scratch,
                     room);
    } else {
        double *chunk = e->space->chunks + thread * 2 * k * SD_RATE_CHUNK;
        for (size_t done = 0; done < count; done += SD_RATE_CHUNK) {
            size_t part = sd_size_min(SD_RATE_CHUNK, count - done), ld = e->tall ? k : part;
            sd_rate_load_chunk(e, first + done, part, chunk);
            dense->dgemm(e->tall, !e->tall, SD_DENSE_UPPER, k, k, part, 1.0, chunk, ld, chunk, ld, done ? 1.0 : 0.0, out,
                         k, scratch, room);
        }
    }
}

/* ---- in float ------------------------------------------------------------------------------ */

/* Some rows of the sum over the slices at hand: in double into space->matrix while more slices follow, at last rounded
 * into M, which takes the place of the first slice when space->matrix is in use. */
static void sum_task(void *work, size_t index, size_t thread) {
    const sd_rate_evaluation *e = work;
    size_t k = e->k, first = index * ROWS_AT_ONCE, end = sd_size_min(first + ROWS_AT_ONCE, k);
    bool single = e->first_group && e->last_group;

    (void)thread;
    sd_dense_norms norms =
        sd_dense_add_triangles(k, first, end, e->group, float_part(e, 0), single ? NULL : e->space->matrix,
                               e->first_group, e->alpha, e->last_group ? e->m32 : NULL, e->ld32);
    e->space->sums[index] = norms.trace;
    e->space->sums[k + index] = norms.squares;
}

static void float_gram(sd_rate_evaluation *e, bool keep) {
    sd_rate_space *space = e->space;
    size_t k = e->k, room = 2 * space->partials, tasks = sd_size_ceil(k, ROWS_AT_ONCE);

    e->m32 = NULL;
    if (keep) {
        bool several = e->slices > room;
        e->m32 = several ? float_part(e, 0) : (float *)(void *)space->matrix;
        e->ld32 = several ? k : sd_dense_distance(k, sizeof(float));
        e->inverse32 = e->m32 + k * e->ld32;
    }
    for (size_t first = 0; first < e->slices; first += room) {
        e->first_slice = first;
        e->group = sd_size_min(room, e->slices - first);
        e->first_group = first == 0;
        e->last_group = first + e->group == e->slices;
        sd_rate_run(e, gram_task, e->group);
        if (k >= SHARED_SUM && e->first_group && e->last_group) /* else it adds in place, and could not be repeated */
            sd_rate_run(e, sum_task, tasks);
        else
            for (size_t i = 0; i < tasks; i++)
                sum_task(e, i, 0);
    }
    double trace = 0.0, squares = 0.0;
    for (size_t i = 0; i < tasks; i++) {
        trace += space->sums[i];
        squares += space->sums[k + i];
    }
    e->trace = trace;
    e->frobenius = sqrt(squares);
}

void sd_rate_float_matrix(sd_rate_evaluation *e) { float_gram(e, true); }

/* ---- in double ----------------------------------------------------------------------------- */

/* Of unit * x; lanes, so that it can be vectorised without reordering. */
static double sum_of_squares(const double *x, size_t n, double unit) {
    double lane[8] = {0}, sum = 0.0;
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        for (size_t l = 0; l < 8; l++)
            lane[l] += (x[i + l] * unit) * (x[i + l] * unit);
    for (; i < n; i++)
        sum += (x[i] * unit) * (x[i] * unit);
    for (size_t l = 0; l < 8; l++)
        sum += lane[l];
    return sum;
}

void sd_rate_gram(sd_rate_evaluation *e) {
    sd_rate_space *space = e->space;
    size_t k = e->k;
    double *m = space->matrix;

    if (e->float_gram) {
        float_gram(e, false);
        return;
    }
    for (size_t first = 0; first < e->slices; first += space->partials) {
        size_t count = sd_size_min(space->partials, e->slices - first);
        e->first_slice = first;
        sd_rate_run(e, gram_task, count);
        for (size_t p = 0; p < count; p++) {
            const double *from = space->partial + p * k * k;

            for (size_t i = 0; i < k; i++) {
                double *row = m + i * k;
                if (first + p == 0)
                    memset(row + i, 0, (k - i) * sizeof(double));
                for (size_t j = i; j < k; j++)
                    row[j] += from[i * k + j];
            }
        }
    }
    double trace = 0.0, above = 0.0, diagonal = 0.0;
    for (size_t i = 0; i < k; i++)
        trace += m[i * k + i];
    double unit = trace > 0.0 ? 1.0 / trace : 0.0; /* no entry exceeds the trace: squares cannot overflow */
    for (size_t i = 0; i < k; i++) {
        const double *row = m + i * k;
        above += sum_of_squares(row + i + 1, k - i - 1, unit);
        diagonal += (row[i] * unit) * (row[i] * unit);
    }
    e->trace = trace;
    e->frobenius = trace * sqrt(2.0 * above + diagonal);
}
