/* The coding rate R = 1/2 log det M, M = I + alpha G, and its gradient dR/dZ = alpha Z M^-1 (d <= n) or alpha M^-1 Z (n
 * < d), on the smaller Gram matrix G of Z.
 *
 * Where float is enough. Gram product and factorisation, in an arithmetic of unit roundoff u, give the result of
 * another matrix M + E. The rounding errors of a sum of products have random signs: of G's entries they are about 4 u
 * |G_ij|, of the elimination's 2 u |M_ij| (measured: less), so that |E|_F = u (4 alpha |G|_F + 2 |M|_F). The rate moves
 * by 1/2 tr(M^-1 E) <= 1/2 |M^-1|_F |E|_F. The gradient Y = alpha Z M^-1 moves by Y E M^-1; for an E of independent
 * entries of size |E|_F / k the expected norm of that is |Y|_F |M^-1|_F |E|_F / k, of which three times are taken.
 * |M^-1|_F comes with the inverse; before there is one, all eigenvalues of M being at least 1, it is at most sqrt(k).
 * Likewise the last product, Z times the inverse rounded to float, has the relative error u |Z|_F |M^-1|_F / |Z
 * M^-1|_F, where |Z|_F^2 = tr G and |Z M^-1|_F^2 = (tr M^-1 - |M^-1|_F^2) / alpha need no product. Too large a bound in
 * float means double; too large in double (rank-deficient rows at a tiny eps_sq), the QR form. */
#include "loss/rate_evaluation.h"

#include "math/math.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define UNIT_FLOAT (0.5 * (double)FLT_EPSILON)
#define UNIT_DOUBLE (0.5 * DBL_EPSILON)
#define ALLOWED_FLOAT_RATE 5e-6 /* bounds on relative errors: of the rate, of the gradient */
#define ALLOWED_FLOAT_GRADIENT 5e-6
#define ALLOWED_FLOAT_PRODUCT 5e-6
#define ALLOWED_FOR_FLOAT 1e-6 /* in double, before QR takes over: for float rows, for double rows */
#define ALLOWED_FOR_DOUBLE 2e-11
/* Below this trace of alpha G, 1/2 (tr A - tr A^2 / 2 + tr A^3 / 3) is exact to 1e-11 while Cholesky would lose digits
 * to the I. */
#define SERIES_TRACE 2e-4

/* ---- working space ------------------------------------------------------------------------- */

#define PAD ((size_t)8) /* doubles of SD_ALIGNMENT bytes */

static size_t padded(size_t count) { return (count + PAD - 1) / PAD * PAD; }

sd_status sd_rate_space_create(sd_context *context, sd_context *threads, size_t k_max, sd_rate_space *space) {
    size_t square, matrix, partials, chunks, sums, scratch, total;

    *space = (sd_rate_space){.context = context, .threads = threads, .k_max = k_max};
    space->workers = threads ? sd_threads(threads) : 1;
    space->partials = space->workers > 1 ? SD_RATE_PARTIALS : 1;
    space->dense = sd_dense_get();
    space->scratch_bytes = sd_dense_scratch_at_best(SIZE_MAX, k_max);
    /* In doubles. One block, so that malloc keeps it for the next call instead of handing its pages back. */
    SD_REQUIRE(k_max <= SD_BLAS_MAX && sd_size_mul(k_max, k_max, &square) &&
                   sd_size_mul(k_max, sd_dense_distance(k_max, sizeof(float)), &matrix) &&
                   sd_size_mul(square, space->partials, &partials) &&
                   sd_size_mul(k_max, 2 * SD_RATE_CHUNK, &chunks) && sd_size_mul(chunks, space->workers, &chunks) &&
                   sd_size_mul(k_max, 2, &sums) &&
                   sd_size_mul(space->scratch_bytes / sizeof(double), space->workers, &scratch) &&
                   sd_size_add(matrix, partials, &total) && sd_size_add(total, chunks, &total) &&
                   sd_size_add(total, scratch, &total) && sd_size_add(total, sums + 3 * PAD, &total),
               SD_ERR_MEMORY, "a coding rate of short side %zu does not fit into memory", k_max);
    space->matrix = SD_NEW_ARRAY(context, double, total);
    if (!space->matrix)
        return SD_ERR_MEMORY;
    space->scratch = (char *)(space->matrix + padded(matrix));
    space->partial = space->matrix + padded(matrix) + scratch;
    space->chunks = space->partial + padded(partials);
    space->sums = space->chunks + chunks;
    return SD_OK;
}

void sd_rate_space_destroy(sd_rate_space *space) {
    sd_release(space->context, space->matrix);
    *space = (sd_rate_space){.context = space->context};
}

/* ---- one evaluation ------------------------------------------------------------------------ */

void sd_rate_run(sd_rate_evaluation *e, sd_parallel_function task, size_t count) {
    if (count == 1 || !e->space->threads || sd_run(e->space->threads, task, e, count) != SD_OK)
        for (size_t i = 0; i < count; i++)
            task(e, i, 0);
}

/* 1/2 (tr A - tr A^2/2 + tr A^3/3), A = alpha G of small trace; uses space->partial. */
static double series(sd_rate_evaluation *e) {
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

/* May Z times the rounded inverse be formed in float? See the top of the file. */
static bool float_product_allowed(const sd_rate_evaluation *e) {
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

/* |E|_F, see the top of the file. */
static double rounding(const sd_rate_evaluation *e, double unit) {
    double gram = e->alpha * e->frobenius, m = sqrt((double)e->k + 2.0 * e->alpha * e->trace + gram * gram);

    return unit * (4.0 * gram + 2.0 * m);
}

/* Of the gradient, given |E|_F and |M^-1|_F. */
static double gradient_error(const sd_rate_evaluation *e, double error, double inverse) {
    return 3.0 * error * inverse / (double)e->k;
}

static double sum_of_logs(const double *pivots, size_t k) {
    double sum = 0.0;

    for (size_t i = 0; i < k; i++)
        sum += log(pivots[i]);
    return sum;
}

static double root_of_sum(const double *squares, size_t k) {
    double sum = 0.0;

    for (size_t i = 0; i < k; i++)
        sum += squares[i];
    return sqrt(sum);
}

/* Gram, factor and inverse in float. */
static attempt factorize_float(sd_rate_evaluation *e, double *rate) {
    sd_rate_space *space = e->space;
    const sd_dense_room room = {space->threads, space->scratch, space->scratch_bytes};
    size_t k = e->k;
    double *squares = space->sums, *pivots = space->sums + k, root = sqrt((double)k);

    sd_rate_float_matrix(e);
    double scaled = e->alpha * e->trace, gram = e->alpha * e->frobenius;
    /* NaN too; and what underflow to float may have swallowed must not matter. */
    if (!(scaled <= 1e30) || !(gram <= 1e30) ||
        e->alpha * (double)e->length * (double)FLT_MIN > 1e-8 * (scaled < 1.0 ? scaled : 1.0))
        return ATTEMPT_IMPRECISE;
    /* R <= 1/2 tr(alpha G), |M^-1|_F >= k / |M|_F: what is hopeless is not begun. */
    double error = rounding(e, UNIT_FLOAT);
    if (0.5 * error * (double)k / (root + gram) > ALLOWED_FLOAT_RATE * 0.5 * scaled)
        return ATTEMPT_IMPRECISE;
    if (sd_dense_invert_f32(space->dense, &room, k, e->m32, e->ld32, e->grad ? e->inverse32 : NULL, pivots, squares) !=
        0)
        return ATTEMPT_IMPRECISE;
    *rate = sum_of_logs(pivots, k);
    e->inverse_frobenius = e->grad ? root_of_sum(squares, k) : root;
    if (!(0.5 * e->inverse_frobenius * error <= ALLOWED_FLOAT_RATE * *rate))
        return ATTEMPT_IMPRECISE;
    if (!e->grad)
        return ATTEMPT_OK;
    e->inverse_trace = 0.0;
    for (size_t i = 0; i < k; i++)
        e->inverse_trace += (double)e->inverse32[i * k + i];
    if (!(gradient_error(e, error, e->inverse_frobenius) <= ALLOWED_FLOAT_GRADIENT) || !float_product_allowed(e))
        return ATTEMPT_IMPRECISE;
    e->product = SD_RATE_PRODUCT_FLOAT;
    return ATTEMPT_OK;
}

/* The same in double. */
static attempt factorize(sd_rate_evaluation *e, double *rate) {
    sd_rate_space *space = e->space;
    const sd_dense_room room = {space->threads, space->scratch, space->scratch_bytes};
    size_t k = e->k;
    double *m = space->matrix, *squares = space->sums, *pivots = space->sums + k;

    sd_rate_gram(e);
    double scaled = e->alpha * e->trace;
    if (!isfinite(scaled) || !isfinite(e->alpha * e->frobenius))
        return ATTEMPT_NOT_FINITE;
    bool small = scaled < SERIES_TRACE;
    if (small)
        *rate = series(e);

    double allowed = e->z->f32 ? ALLOWED_FOR_FLOAT : ALLOWED_FOR_DOUBLE;
    double error = rounding(e, UNIT_DOUBLE);
    bool sure = gradient_error(e, error, sqrt((double)k)) <= allowed;
    for (size_t i = 0; i < k; i++) {
        double *row = m + i * k;
        for (size_t j = i; j < k; j++)
            row[j] *= e->alpha;
        row[i] += 1.0;
    }
    bool inverse = e->grad || !sure;
    e->inverse64 = space->partial;
    if (sd_dense_invert_f64(space->dense, &room, k, m, k, inverse ? e->inverse64 : NULL, pivots, squares) != 0)
        return ATTEMPT_IMPRECISE;
    double sum = sum_of_logs(pivots, k);
    if (!isfinite(sum))
        return ATTEMPT_IMPRECISE;
    if (!small)
        *rate = sum;
    if (!inverse)
        return ATTEMPT_OK;
    e->inverse_frobenius = root_of_sum(squares, k);
    if (!(gradient_error(e, error, e->inverse_frobenius) <= allowed))
        return ATTEMPT_IMPRECISE;
    e->inverse_trace = 0.0;
    for (size_t i = 0; i < k; i++)
        e->inverse_trace += e->inverse64[i * k + i];
    e->product = SD_RATE_PRODUCT_DOUBLE;
    if (e->grad && float_product_allowed(e)) {
        e->product = SD_RATE_PRODUCT_FLOAT;
        e->inverse32 = (float *)(void *)m;
        for (size_t i = 0; i < k * k; i++)
            e->inverse32[i] = (float)e->inverse64[i];
    }
    return ATTEMPT_OK;
}

static void explain(const sd_rate_evaluation *e, sd_rate_failure *failure) {
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

static sd_rate_evaluation begin(sd_rate_space *space, const sd_rows *z) {
    sd_rate_evaluation e = {.space = space, .z = z, .tall = z->d <= z->n};

    e.k = e.tall ? z->d : z->n;
    e.length = e.tall ? z->n : z->d;
    /* Four slices or more, of 256 to 1024: small enough to share, large enough to keep the products busy; two of what
     * is no longer than 256. */
    size_t quarter = sd_size_ceil(sd_size_ceil(e.length, 4), 64) * 64;
    e.slice = sd_size_min(sd_size_max(quarter, e.length > 256 ? 256 : 128), 1024);
    e.slices = sd_size_ceil(e.length, e.slice);
    return e;
}

double sd_rate_effective_rank(sd_rate_space *space, const sd_rows *z) {
    sd_rate_evaluation e = begin(space, z);

    e.float_gram = true;
    sd_rate_gram(&e);
    if (!isfinite(e.frobenius) || e.trace < 1e-20) {
        e.float_gram = false;
        sd_rate_gram(&e);
    }
    if (e.trace == 0.0)
        return 0.0;
    double ratio = e.trace / e.frobenius;
    return ratio * ratio;
}

bool sd_rate_evaluate(sd_rate_space *space, const sd_rows *z, double alpha, sd_rate_precision precision, double scale,
                      double *rate, const sd_rows_out *grad, sd_rate_failure *failure) {
    sd_rate_evaluation e = begin(space, z);
    attempt result = ATTEMPT_IMPRECISE;
    double value = 0.0;

    e.alpha = alpha;
    e.grad = grad;
    e.factor = alpha * scale;
    atomic_init(&e.overflow, false);

    if (z->f32 && precision == SD_RATE_FLOAT_GRAM) {
        e.float_gram = true;
        result = factorize_float(&e, &value);
        e.float_gram = false;
    }
    if (result != ATTEMPT_OK)
        result = factorize(&e, &value);
    if (result == ATTEMPT_IMPRECISE) {
        value = sd_rate_qr(z, alpha, space->matrix, space->chunks);
        result = isfinite(value) ? ATTEMPT_OK : ATTEMPT_NOT_FINITE;
        e.product = SD_RATE_PRODUCT_QR;
        if (grad && result == ATTEMPT_OK)
            sd_rate_qr_invert(e.k, space->matrix);
    }
    if (result != ATTEMPT_OK || !isfinite(e.factor) || (grad && !sd_rate_write_gradient(&e))) {
        explain(&e, failure);
        return false;
    }
    if (rate)
        *rate = value;
    return true;
}
