/* The coding rate without a Gram matrix. I + alpha Z'Z is S'S for the stacked matrix S = [I; sqrt(alpha) Z], so its
 * Cholesky factor is the R of S = QR. Forming Z'Z squares the condition number; this does not, and it cannot break
 * down. It is several times slower and only used where the Gram cannot carry the result: rank-deficient features at a
 * tiny eps_sq. */
#include "loss/rate.h"

#include <math.h>
#include <string.h>

void sd_rows_long(const sd_rows *z, size_t first, size_t count, double factor, double *out) {
    bool tall = z->d <= z->n;
    size_t k = tall ? z->d : z->n;

    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < k; j++) {
            size_t at = tall ? (first + i) * z->ld + j : j * z->ld + first + i;
            out[i * k + j] = factor * (z->f32 ? (double)z->f32[at] : z->f64[at]);
        }
    }
}

/* Eliminates the rows x (count x k) below the triangle r (k x k) by reflections, one for each column: r then is the
 * triangle of both. */
static void append_rows(size_t k, double *r, double *x, size_t count, double *w) {
    for (size_t j = 0; j < k; j++) {
        double below = 0.0;

        for (size_t i = 0; i < count; i++)
            below += x[i * k + j] * x[i * k + j];
        if (below == 0.0)
            continue;
        double pivot = r[j * k + j];
        double norm = sqrt(pivot * pivot + below);
        double head = pivot >= 0.0 ? pivot + norm : pivot - norm; /* of the reflection vector (head, x_j) */
        double tau = 2.0 / (head * head + below);

        for (size_t l = j + 1; l < k; l++)
            w[l] = head * r[j * k + l];
        for (size_t i = 0; i < count; i++) {
            double v = x[i * k + j];
            for (size_t l = j + 1; l < k; l++)
                w[l] += v * x[i * k + l];
        }
        for (size_t l = j + 1; l < k; l++)
            w[l] *= tau;
        for (size_t l = j + 1; l < k; l++)
            r[j * k + l] -= head * w[l];
        for (size_t i = 0; i < count; i++) {
            double v = x[i * k + j];
            for (size_t l = j + 1; l < k; l++)
                x[i * k + l] -= v * w[l];
        }
        r[j * k + j] = pivot >= 0.0 ? -norm : norm;
    }
}

double sd_rate_qr(const sd_rows *z, double alpha, double *r, double *chunk) {
    bool tall = z->d <= z->n;
    size_t k = tall ? z->d : z->n, length = tall ? z->n : z->d;
    size_t room = SD_RATE_CHUNK - 1; /* the last row is work */
    double *work = chunk + room * k;
    double rate = 0.0;

    memset(r, 0, k * k * sizeof(double));
    for (size_t i = 0; i < k; i++)
        r[i * k + i] = 1.0;
    for (size_t first = 0; first < length; first += room) {
        size_t count = sd_size_min(room, length - first);
        sd_rows_long(z, first, count, sqrt(alpha), chunk);
        append_rows(k, r, chunk, count, work);
    }
    for (size_t i = 0; i < k; i++)
        rate += log(fabs(r[i * k + i]));
    return rate;
}

void sd_rate_qr_invert(size_t k, double *r) {
    /* (R^-1)_il = -1/R_ii sum over i < t <= l of R_it (R^-1)_tl, from the last row up. */
    for (size_t i = k; i-- > 0;) {
        double *row = r + i * k;
        double pivot = 1.0 / row[i];

        /* From the right, because element l needs the coefficients R_it with t <= l as they were. */
        for (size_t l = k; l-- > i + 1;) {
            double sum = 0.0;
            for (size_t t = i + 1; t <= l; t++)
                sum += row[t] * r[t * k + l];
            row[l] = -sum * pivot;
        }
        row[i] = pivot;
    }
}
