/* The gradient of the coding rate: factor * Z M^-1 (tall) or factor * M^-1 Z (wide), by slices of the long side. */
#include "loss/rate_evaluation.h"

#include <float.h>
#include <math.h>

static void store(sd_rate_evaluation *e, double value, size_t at) {
    if (e->grad->f64) {
        e->grad->f64[at] = value;
    } else if (e->probe_only) {
        if (!(fabs(value) <= (double)FLT_MAX))
            atomic_store(&e->overflow, true);
    } else {
        e->grad->f32[at] = (float)value;
    }
}

/* Gradient of one chunk of the long side, float rows in double arithmetic. */
static void product_double(sd_rate_evaluation *e, size_t first, size_t count, double *in, void *scratch) {
    size_t k = e->k, ld = e->grad->ld, room = e->space->scratch_bytes;
    double *out = in + k * SD_RATE_CHUNK;
    const double *inverse = e->inverse64;
    size_t rows = e->tall ? count : k, columns = e->tall ? k : count;
    size_t offset = e->tall ? first * ld : first;

    sd_rate_load_chunk(e, first, count, in);
    if (e->tall)
        e->space->dense->dgemm(false, false, SD_DENSE_ALL, count, k, k, e->factor, in, k, inverse, k, 0.0, out, k,
                               scratch, room);
    else
        e->space->dense->dgemm(false, false, SD_DENSE_ALL, k, count, k, e->factor, inverse, k, in, count, 0.0, out,
                               count, scratch, room);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            store(e, out[i * columns + j], offset + i * ld + j);
}

/* The same from T = R^-1 of the QR form: M^-1 = T T'. */
static void product_qr(sd_rate_evaluation *e, size_t first, size_t count, double *in, void *scratch) {
    size_t k = e->k, ld = e->grad->ld, room = e->space->scratch_bytes;
    double *middle = in + k * SD_RATE_CHUNK;
    const double *t = e->space->matrix;

    sd_rows_long(e->z, first, count, 1.0, in);
    e->space->dense->dgemm(false, false, SD_DENSE_ALL, count, k, k, 1.0, in, k, t, k, 0.0, middle, k, scratch, room);
    e->space->dense->dgemm(false, true, SD_DENSE_ALL, count, k, k, e->factor, middle, k, t, k, 0.0, in, k, scratch,
                           room);
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < k; j++)
            store(e, in[i * k + j], e->tall ? (first + i) * ld + j : j * ld + first + i);
}

static void gradient_task(void *work, size_t index, size_t thread) {
    sd_rate_evaluation *e = work;
    const sd_rows *z = e->z;
    const sd_rows_out *out = e->grad;
    const sd_dense *dense = e->space->dense;
    size_t k = e->k, first = index * e->slice, count = sd_size_min(e->slice, e->length - first);
    size_t from = e->tall ? first * z->ld : first, to = e->tall ? first * out->ld : first;
    size_t room = e->space->scratch_bytes;
    double *chunk = e->space->chunks + thread * 2 * k * SD_RATE_CHUNK;
    void *scratch = sd_rate_scratch(e, thread);
    /* Z M^-1 by rows, or M^-1 Z by columns: the sizes of the result and where the factors lie. */
    size_t rows = e->tall ? count : k, columns = e->tall ? k : count;

    if (e->product == SD_RATE_PRODUCT_FLOAT) {
        const float *part = z->f32 + from, *inverse = e->inverse32;
        dense->sgemm(false, false, SD_DENSE_ALL, rows, columns, k, (float)e->factor, e->tall ? part : inverse,
                     e->tall ? z->ld : k, e->tall ? inverse : part, e->tall ? k : z->ld, 0.0f, out->f32 + to, out->ld,
                     scratch, room);
    } else if (e->product == SD_RATE_PRODUCT_DOUBLE && z->f64) {
        const double *part = z->f64 + from, *inverse = e->inverse64;
        dense->dgemm(false, false, SD_DENSE_ALL, rows, columns, k, e->factor, e->tall ? part : inverse,
                     e->tall ? z->ld : k, e->tall ? inverse : part, e->tall ? k : z->ld, 0.0, out->f64 + to, out->ld,
                     scratch, room);
    } else {
        for (size_t done = 0; done < count; done += SD_RATE_CHUNK) {
            size_t part = sd_size_min(SD_RATE_CHUNK, count - done);
            if (e->product == SD_RATE_PRODUCT_DOUBLE)
                product_double(e, first + done, part, chunk, scratch);
            else
                product_qr(e, first + done, part, chunk, scratch);
        }
    }
}

bool sd_rate_write_gradient(sd_rate_evaluation *e) {
    /* |dR/dZ|_2 <= sqrt(alpha)/2, but what is rounding error in a direction that Z lacks has the size of alpha |Z|:
     * only absurd scales can overflow. */
    if (e->grad->f32 && !(fabs(e->factor) * (1.0 / sqrt(e->alpha) + sqrt(e->trace)) <= 1e-2 * (double)FLT_MAX)) {
        e->probe_only = true;
        sd_rate_run(e, gradient_task, e->slices);
        e->probe_only = false;
        if (atomic_load(&e->overflow))
            return false;
    }
    sd_rate_run(e, gradient_task, e->slices);
    return true;
}
