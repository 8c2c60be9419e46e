/* The coding rate R = 1/2 log det M, M = I + alpha G, and its gradient dR/dZ = alpha Z M^-1 (d <= n) or alpha M^-1 Z (n
 * < d), on the smaller Gram matrix G of Z.
 *
 * Where float is enough. With u the unit roundoff of the Gram's arithmetic, its rounding moves M by a matrix of norm
 * about
 *     noise = 8 u alpha |G|_F / sqrt(k)                          (random signs: |error| <= 4 u |G_ij|, norm 2 sqrt(k)
 *     of that)
 * and the gradient, relatively, by up to noise * |M^-1|. All eigenvalues of M are at least 1, so a small noise settles
 * it; else |M^-1| is estimated from the inverse at hand. Likewise the last product, Z times the inverse rounded to
 * float, has the relative error u |Z|_F |M^-1|_F / |Z M^-1|_F, where |Z|_F^2 = tr G and |Z M^-1|_F^2 = (tr M^-1 -
 * |M^-1|_F^2) / alpha need no product.
 * Too large a bound means double; too large in double (rank-deficient rows at a tiny eps_sq), the QR form. */
#include "loss/rate.h"

#include "math/dense.h"
#include "math/math.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#define SD_PROBES ((size_t)4)
#define UNIT_FLOAT (0.5 * (double)FLT_EPSILON)
#define UNIT_DOUBLE (0.5 * DBL_EPSILON)
#define ALLOWED_FLOAT_GRAM 1e-5  /* bound on the gradient's relative error */
#define ALLOWED_FLOAT_PRODUCT 5e-6
#define ALLOWED_FOR_FLOAT 1e-6   /* in double, before QR takes over: for float rows, for double rows */
#define ALLOWED_FOR_DOUBLE 2e-11
/* Below this trace of alpha G, 1/2 (tr A - tr A^2 / 2 + tr A^3 / 3) is exact to 1e-11 while Cholesky would lose digits
 * to the I. */
#define SERIES_TRACE 2e-4

/* ---- working space ------------------------------------------------------------------------- */

#define PAD ((size_t)8) /* doubles of SD_ALIGNMENT bytes */

static size_t padded(size_t count) { return (count + PAD - 1) / PAD * PAD; }

sd_status sd_rate_space_create(sd_context *context, sd_context *threads, size_t k_max, sd_rate_space *space) {
    size_t square, partials, chunks, probes, scratch, total;

    *space = (sd_rate_space){.context = context, .threads = threads, .k_max = k_max};
    space->workers = threads ? sd_threads(threads) : 1;
    space->partials = space->workers > 1 ? SD_RATE_PARTIALS : 1;
    space->dense = sd_dense_get();
    space->scratch_bytes = sd_dense_scratch(SIZE_MAX, k_max);
    /* In doubles. One block, so that malloc keeps it for the next call instead of handing its pages back. */
    SD_REQUIRE(k_max <= SD_BLAS_MAX && sd_size_mul(k_max, k_max, &square) &&
                   sd_size_mul(square, space->partials, &partials) &&
                   sd_size_mul(k_max, 2 * SD_RATE_CHUNK, &chunks) && sd_size_mul(chunks, space->workers, &chunks) &&
                   sd_size_mul(k_max, SD_PROBES, &probes) &&
                   sd_size_mul(space->scratch_bytes / sizeof(double), space->workers, &scratch) &&
                   sd_size_add(square, partials, &total) && sd_size_add(total, chunks, &total) &&
                   sd_size_add(total, scratch, &total) && sd_size_add(total, probes + 3 * PAD, &total),
               SD_ERR_MEMORY, "a coding rate of short side %zu does not fit into memory", k_max);
    space->matrix = SD_NEW_ARRAY(context, double, total);
    if (!space->matrix)
        return SD_ERR_MEMORY;
    space->scratch = (char *)(space->matrix + padded(square));
    space->partial = space->matrix + padded(square) + scratch;
    space->inverse = (float *)(void *)space->partial;
    space->chunks = space->partial + padded(partials);
    space->probe = (float *)(void *)(space->chunks + chunks);
    return SD_OK;
}

void sd_rate_space_destroy(sd_rate_space *space) {
    sd_release(space->context, space->matrix);
    *space = (sd_rate_space){.context = space->context};
}

/* ---- one evaluation ------------------------------------------------------------------------ */

typedef struct evaluation {
    sd_rate_space *space;
    const sd_rows *z;
    bool tall;             /* d <= n: G = Z'Z, and slices are rows; else columns */
    size_t k, length;      /* short and long side */
    size_t slice, slices;  /* the long side is cut by sizes alone, so that results do not depend on threads */
    double alpha;
    double trace, frobenius; /* of G */
    double inverse_trace, inverse_frobenius;

    bool float_gram;
    size_t first_slice;    /* of the partial Grams computed at once */

    double factor;         /* alpha * scale, for the gradient */
    const sd_rows_out *grad;
    enum { PRODUCT_FLOAT, PRODUCT_DOUBLE, PRODUCT_QR } product;
    bool probe_only;       /* look for overflow, write nothing */
    atomic_bool overflow;
} evaluation;

static size_t slice_count(const evaluation *e, size_t index) {
    return sd_size_min(e->slice, e->length - index * e->slice);
}

/* Columns first .. first+count-1 of Z as n x count (wide), or those rows as count x d (tall), in double. */
static void load_chunk(const evaluation *e, size_t first, size_t count, double *out) {
    const sd_rows *z = e->z;
    size_t rows = e->tall ? count : z->n, columns = e->tall ? z->d : count;
    const float *from = z->f32 + (e->tall ? first * z->ld : first);

    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            out[i * columns + j] = (double)from[i * z->ld + j];
}

static void *scratch_of(const evaluation *e, size_t thread) {
    return e->space->scratch + thread * e->space->scratch_bytes;
}

/* Upper triangle of the Gram of one slice. */
static void gram_task(void *work, size_t index, size_t thread) {
    const evaluation *e = work;
    const sd_rows *z = e->z;
    size_t k = e->k, slice = e->first_slice + index, room = e->space->scratch_bytes;
    size_t first = slice * e->slice, count = slice_count(e, slice);
    size_t offset = e->tall ? first * z->ld : first;
    double *out = e->space->partial + index * k * k;
    void *scratch = scratch_of(e, thread);

    if (e->float_gram) {
        const float *from = z->f32 + offset;
        e->space->dense->sgemm(e->tall, !e->tall, SD_DENSE_UPPER, k, k, count, 1.0f, from, z->ld, from, z->ld, 0.0f,
                       (float *)(void *)out, k, scratch, room);
    } else if (z->f64) {
        const double *from = z->f64 + offset;
        e->space->dense->dgemm(e->tall, !e->tall, SD_DENSE_UPPER, k, k, count, 1.0, from, z->ld, from, z->ld, 0.0, out,
                               k, scratch, room);
    } else {
        double *chunk = e->space->chunks + thread * 2 * k * SD_RATE_CHUNK;
        for (size_t done = 0; done < count; done += SD_RATE_CHUNK) {
            size_t part = sd_size_min(SD_RATE_CHUNK, count - done), ld = e->tall ? k : part;
            load_chunk(e, first + done, part, chunk);
            e->space->dense->dgemm(e->tall, !e->tall, SD_DENSE_UPPER, k, k, part, 1.0, chunk, ld, chunk, ld,
                                   done ? 1.0 : 0.0, out, k, scratch, room);
        }
    }
}

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

/* G into the upper triangle of space->matrix, with its trace and norm. */
static void compute_gram(evaluation *e) {
    sd_rate_space *space = e->space;
    size_t k = e->k;
    double *m = space->matrix;

    for (size_t first = 0; first < e->slices; first += space->partials) {
        size_t count = sd_size_min(space->partials, e->slices - first);
        e->first_slice = first;
        if (count == 1 || !space->threads || sd_run(space->threads, gram_task, e, count) != SD_OK)
            for (size_t i = 0; i < count; i++)
                gram_task(e, i, 0);
        for (size_t p = 0; p < count; p++) {
            const double *from = space->partial + p * k * k;
            const float *from_float = (const float *)(const void *)from;
            bool add = first + p > 0;

            for (size_t i = 0; i < k; i++) {
                double *row = m + i * k;
                if (!add)
                    memset(row + i, 0, (k - i) * sizeof(double));
                if (e->float_gram)
                    for (size_t j = i; j < k; j++)
                        row[j] += (double)from_float[i * k + j];
                else
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

/* 1/2 (tr A - tr A^2/2 + tr A^3/3), A = alpha G of small trace; uses space->partial. */
static double series(evaluation *e) {
    size_t k = e->k;
    const double *g = e->space->matrix;
    double *full = e->space->partial;
    double a = e->alpha * e->trace, f = e->alpha * e->frobenius, cube = 0.0;

    if (a > 1e-6) { /* tr A^3 = sum of A_ij (A^2)_ij, row by row with A full */
        for (size_t i = 0; i < k; i++)
            for (size_t j = i; j < k; j++)
                full[i * k + j] = full[j * k + i] = e->alpha * g[i * k + j];
        for (size_t i = 0; i < k; i++) {
            double *row = e->space->chunks;
            memset(row, 0, k * sizeof(double));
            for (size_t t = 0; t < k; t++)
                for (size_t j = 0; j < k; j++)
                    row[j] += full[i * k + t] * full[t * k + j];
            for (size_t j = 0; j < k; j++)
                cube += row[j] * full[i * k + j];
        }
    }
    return 0.5 * (a - 0.5 * f * f + cube / 3.0);
}

/* space->matrix holds the inverse (upper): fills its lower triangle, space->inverse, trace and norm. */
static void spread_inverse(evaluation *e) {
    size_t k = e->k, block = 16;
    double *m = e->space->matrix, trace = 0.0, above = 0.0, diagonal = 0.0;
    float *f = e->space->inverse;

    for (size_t i = 0; i < k; i++) {
        const double *row = m + i * k;
        above += sum_of_squares(row + i + 1, k - i - 1, 1.0);
        trace += row[i];
        diagonal += row[i] * row[i];
    }
    for (size_t i0 = 0; i0 < k; i0 += block)
        for (size_t j0 = i0; j0 < k; j0 += block)
            for (size_t j = j0; j < sd_size_min(j0 + block, k); j++)
                for (size_t i = i0; i < sd_size_min(i0 + block, j); i++)
                    m[j * k + i] = m[i * k + j];
    for (size_t i = 0; i < k * k; i++)
        f[i] = (float)m[i];
    e->inverse_trace = trace;
    e->inverse_frobenius = sqrt(2.0 * above + diagonal);
}

static double sum_of_float_squares(const float *values, size_t count) {
    double sums[4] = {0.0};
    size_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (size_t l = 0; l < 4; l++)
            sums[l] += (double)values[i + l] * (double)values[i + l];
    for (; i < count; i++)
        sums[0] += (double)values[i] * (double)values[i];
    return sums[0] + sums[1] + sums[2] + sums[3];
}

/* An estimate of |M^-1|_2 from below, good to some ten percent: power iteration on a few vectors at once. */
static double inverse_norm(evaluation *e) {
    size_t k = e->k;
    float *v = e->space->probe, *w = v + SD_PROBES * k;
    uint32_t state = 1u;
    double norm = 0.0;

    for (size_t i = 0; i < SD_PROBES * k; i++) {
        state = state * 1664525u + 1013904223u;
        v[i] = (float)(state >> 8) * 0x1p-23f - 1.0f;
    }
    for (int round = 0; round < 5; round++) {
        sd_dense_symmetric_times(k, e->space->inverse, SD_PROBES, v, w);
        for (size_t p = 0; p < SD_PROBES; p++) {
            double before = sum_of_float_squares(v + p * k, k), after = sum_of_float_squares(w + p * k, k);
            double growth = before > 0.0 ? sqrt(after / before) : 0.0;
            float scale = after > 0.0 ? (float)(1.0 / sqrt(after)) : 0.0f;
            norm = growth > norm ? growth : norm;
            for (size_t i = 0; i < k; i++)
                v[p * k + i] = w[p * k + i] * scale;
        }
    }
    return norm;
}

/* ---- the gradient -------------------------------------------------------------------------- */

static void store(evaluation *e, double value, size_t at) {
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
static void product_double(evaluation *e, size_t first, size_t count, double *in, void *scratch) {
    size_t k = e->k, ld = e->grad->ld, room = e->space->scratch_bytes;
    double *out = in + k * SD_RATE_CHUNK;
    const double *m = e->space->matrix;
    size_t rows = e->tall ? count : k, columns = e->tall ? k : count;
    size_t offset = e->tall ? first * ld : first;

    load_chunk(e, first, count, in);
    if (e->tall)
        e->space->dense->dgemm(false, false, SD_DENSE_ALL, count, k, k, e->factor, in, k, m, k, 0.0, out, k, scratch,
                               room);
    else
        e->space->dense->dgemm(false, false, SD_DENSE_ALL, k, count, k, e->factor, m, k, in, count, 0.0, out, count,
                               scratch, room);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            store(e, out[i * columns + j], offset + i * ld + j);
}

/* The same from T = R^-1 of the QR form: M^-1 = T T'. */
static void product_qr(evaluation *e, size_t first, size_t count, double *in, void *scratch) {
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
    evaluation *e = work;
    const sd_rows *z = e->z;
    const sd_rows_out *out = e->grad;
    size_t k = e->k, first = index * e->slice, count = slice_count(e, index), room = e->space->scratch_bytes;
    size_t from = e->tall ? first * z->ld : first, to = e->tall ? first * out->ld : first;
    double *chunk = e->space->chunks + thread * 2 * k * SD_RATE_CHUNK;

    void *scratch = scratch_of(e, thread);
    /* Z M^-1 by rows, or M^-1 Z by columns: the sizes of the result and where the factors lie. */
    size_t rows = e->tall ? count : k, columns = e->tall ? k : count;

    if (e->product == PRODUCT_FLOAT) {
        const float *part = z->f32 + from, *inverse = e->space->inverse;
        e->space->dense->sgemm(false, false, SD_DENSE_ALL, rows, columns, k, (float)e->factor, e->tall ? part : inverse,
                       e->tall ? z->ld : k, e->tall ? inverse : part, e->tall ? k : z->ld, 0.0f, out->f32 + to, out->ld,
                       scratch, room);
    } else if (e->product == PRODUCT_DOUBLE && z->f64) {
        const double *part = z->f64 + from, *inverse = e->space->matrix;
        e->space->dense->dgemm(false, false, SD_DENSE_ALL, rows, columns, k, e->factor, e->tall ? part : inverse,
                       e->tall ? z->ld : k, e->tall ? inverse : part, e->tall ? k : z->ld, 0.0, out->f64 + to, out->ld,
                       scratch, room);
    } else {
        for (size_t done = 0; done < count; done += SD_RATE_CHUNK) {
            size_t part = sd_size_min(SD_RATE_CHUNK, count - done);
            if (e->product == PRODUCT_DOUBLE)
                product_double(e, first + done, part, chunk, scratch);
            else
                product_qr(e, first + done, part, chunk, scratch);
        }
    }
}

static void run_gradient(evaluation *e) {
    sd_rate_space *space = e->space;

    if (e->slices == 1 || !space->threads || sd_run(space->threads, gradient_task, e, e->slices) != SD_OK)
        for (size_t i = 0; i < e->slices; i++)
            gradient_task(e, i, 0);
}

/* False when the gradient does not fit into float: nothing is written then. */
static bool write_gradient(evaluation *e) {
    /* |dR/dZ|_2 <= sqrt(alpha)/2, but what is rounding error in a direction that Z lacks has the size of alpha |Z|:
     * only absurd scales can overflow. */
    if (e->grad->f32 && !(fabs(e->factor) * (1.0 / sqrt(e->alpha) + sqrt(e->trace)) <= 1e-2 * (double)FLT_MAX)) {
        e->probe_only = true;
        run_gradient(e);
        e->probe_only = false;
        if (atomic_load(&e->overflow))
            return false;
    }
    run_gradient(e);
    return true;
}

/* May Z times the rounded inverse be formed in float? See the top of the file. */
static bool float_product_allowed(const evaluation *e) {
    double length = sqrt(e->trace), inverse = e->inverse_frobenius;
    double gradient_squared = (e->inverse_trace - inverse * inverse) / e->alpha;

    if (!e->z->f32 || length > 1e30 || length < 1e-30 || fabs(e->factor) > 1e25 || fabs(e->factor) < 1e-25)
        return false;
    if (e->alpha * e->trace < 1e-3) /* M is nearly I: nothing cancels */
        return true;
    return gradient_squared > 0.0 && UNIT_FLOAT * length * inverse <= ALLOWED_FLOAT_PRODUCT * sqrt(gradient_squared);
}

/* ---- all together -------------------------------------------------------------------------- */

typedef enum attempt { ATTEMPT_OK, ATTEMPT_IMPRECISE, ATTEMPT_NOT_FINITE } attempt;

/* Gram, factor and, where it is needed, the inverse, in the precision that e->float_gram tells. */
static attempt factorize(evaluation *e, double *rate) {
    size_t k = e->k;
    double *m = e->space->matrix;
    bool small;

    compute_gram(e);
    double scaled = e->alpha * e->trace;
    if (!isfinite(scaled) || !isfinite(e->alpha * e->frobenius))
        return ATTEMPT_NOT_FINITE;
    /* What underflow to float may have swallowed must not matter. */
    if (e->float_gram && e->alpha * (double)e->length * (double)FLT_MIN > 1e-8 * (scaled < 1.0 ? scaled : 1.0))
        return ATTEMPT_IMPRECISE;
    small = scaled < SERIES_TRACE;
    if (small)
        *rate = series(e);

    double unit = e->float_gram ? UNIT_FLOAT : UNIT_DOUBLE;
    double allowed = e->float_gram ? ALLOWED_FLOAT_GRAM : e->z->f32 ? ALLOWED_FOR_FLOAT : ALLOWED_FOR_DOUBLE;
    double noise = 8.0 * unit * e->alpha * e->frobenius / sqrt((double)k);
    bool sure = noise <= allowed;

    if (e->float_gram && !sure && !e->grad)
        return ATTEMPT_IMPRECISE; /* the inverse, only to be sure, would cost more than double */
    for (size_t i = 0; i < k; i++) {
        double *row = m + i * k;
        for (size_t j = i; j < k; j++)
            row[j] *= e->alpha;
        row[i] += 1.0;
    }
    sd_rate_space *space = e->space;
    if (sd_dense_cholesky(space->dense, k, m, k, space->partial, space->scratch, space->scratch_bytes) != 0)
        return ATTEMPT_IMPRECISE;
    double sum = 0.0, least = INFINITY;
    for (size_t i = 0; i < k; i++) {
        double pivot = m[i * k + i];
        sum += log(pivot);
        least = pivot < least ? pivot : least;
    }
    if (!isfinite(sum))
        return ATTEMPT_IMPRECISE;
    if (!small)
        *rate = sum;
    if (noise > allowed * least * least) /* the least eigenvalue is at most the least pivot */
        return ATTEMPT_IMPRECISE;
    if (e->grad || !sure) {
        sd_dense_invert(space->dense, space->threads, k, m, k, space->partial, space->scratch, space->scratch_bytes);
        spread_inverse(e);
        if (!sure && 1.5 * noise * inverse_norm(e) > allowed)
            return ATTEMPT_IMPRECISE;
    }
    return ATTEMPT_OK;
}

static void explain(const evaluation *e, sd_rate_failure *failure) {
    const sd_rows *z = e->z;

    *failure = (sd_rate_failure){0};
    for (size_t i = 0; i < z->n; i++) {
        for (size_t j = 0; j < z->d; j++) {
            if (!isfinite(z->f32 ? (double)z->f32[i * z->ld + j] : z->f64[i * z->ld + j])) {
                *failure = (sd_rate_failure){.bad_input = true, .row = i, .column = j};
                return;
            }
        }
    }
}

static evaluation begin(sd_rate_space *space, const sd_rows *z) {
    evaluation e = {.space = space, .z = z, .tall = z->d <= z->n};

    e.k = e.tall ? z->d : z->n;
    e.length = e.tall ? z->n : z->d;
    /* Four slices or more, of 256 to 1024: small enough to share, large enough for the BLAS. */
    size_t quarter = sd_size_ceil(sd_size_ceil(e.length, 4), 64) * 64;
    e.slice = sd_size_min(sd_size_max(quarter, 256), 1024);
    e.slices = sd_size_ceil(e.length, e.slice);
    return e;
}

double sd_rate_effective_rank(sd_rate_space *space, const sd_rows *z) {
    evaluation e = begin(space, z);

    e.float_gram = true;
    compute_gram(&e);
    if (!isfinite(e.frobenius) || e.trace < 1e-20) {
        e.float_gram = false;
        compute_gram(&e);
    }
    if (e.trace == 0.0)
        return 0.0;
    double ratio = e.trace / e.frobenius;
    return ratio * ratio;
}

bool sd_rate_evaluate(sd_rate_space *space, const sd_rows *z, double alpha, sd_rate_precision precision, double scale,
                      double *rate, const sd_rows_out *grad, sd_rate_failure *failure) {
    evaluation e = begin(space, z);
    attempt result = ATTEMPT_IMPRECISE;
    double value = 0.0;

    e.alpha = alpha;
    e.grad = grad;
    e.factor = alpha * scale;
    atomic_init(&e.overflow, false);

    if (z->f32 && precision == SD_RATE_FLOAT_GRAM) {
        e.float_gram = true;
        result = factorize(&e, &value);
        e.float_gram = false;
    }
    if (result != ATTEMPT_OK)
        result = factorize(&e, &value);
    if (result == ATTEMPT_IMPRECISE) {
        value = sd_rate_qr(z, alpha, space->matrix, space->chunks);
        result = isfinite(value) ? ATTEMPT_OK : ATTEMPT_NOT_FINITE;
        e.product = PRODUCT_QR;
        if (grad && result == ATTEMPT_OK)
            sd_rate_qr_invert(e.k, space->matrix);
    } else if (grad) {
        e.product = float_product_allowed(&e) ? PRODUCT_FLOAT : PRODUCT_DOUBLE;
    }
    if (result != ATTEMPT_OK || !isfinite(e.factor) || (grad && !write_gradient(&e))) {
        explain(&e, failure);
        return false;
    }
    if (rate)
        *rate = value;
    return true;
}
