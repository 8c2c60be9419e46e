#include "loss/features.h"

#include "math/math.h"

#include <math.h>

#define LANES ((size_t)8)

/* In lanes, so that it can be vectorised without reordering. */
double sd_dot(const float *a, const float *b, size_t n) {
    double lane[LANES] = {0}, sum = 0.0;
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++)
            lane[l] += (double)a[i + l] * (double)b[i + l];
    for (; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    for (size_t l = 0; l < LANES; l++)
        sum += lane[l];
    return sum;
}

/* Mean cosine between different rows: (|sum u|^2 - sum |u|^2) / (m (m - 1)) with u the rows divided by their lengths. */
double sd_mean_similarity(const float *rows, size_t m, size_t dim) {
    double total = 0.0, own = 0.0;

    if (m < 2)
        return 0.0;
    /* |sum u|^2 column by column would stride; the columns are taken in bands that fit on the stack. */
    double lengths_squared = 0.0;
    for (size_t j0 = 0; j0 < dim; j0 += 64) {
        size_t width = sd_size_min(64, dim - j0);
        double sum[64] = {0};
        for (size_t r = 0; r < m; r++) {
            const float *row = rows + r * dim;
            lengths_squared = sd_dot(row, row, dim);
            if (lengths_squared > 0.0) {
                double scale = 1.0 / sqrt(lengths_squared);
                for (size_t j = 0; j < width; j++)
                    sum[j] += scale * (double)row[j0 + j];
                own += j0 == 0 ? 1.0 : 0.0;
            }
        }
        for (size_t j = 0; j < width; j++)
            total += sum[j] * sum[j];
    }
    return (total - own) / ((double)m * (double)(m - 1));
}

#define BLOCK ((size_t)32)

/* tr(G^2) is also the sum of the squared products of all pairs of rows, taken in blocks of 32 x 32. */
double sd_effective_rank(const float *rows, size_t m, size_t dim) {
    double trace = 0.0, squares = 0.0;
    for (size_t i = 0; i < m; i++)
        trace += sd_dot(rows + i * dim, rows + i * dim, dim);
    for (size_t i0 = 0; i0 < m; i0 += BLOCK)
        for (size_t j0 = 0; j0 <= i0; j0 += BLOCK) {
            float products[BLOCK * BLOCK];
            size_t i_count = sd_size_min(BLOCK, m - i0), j_count = sd_size_min(BLOCK, m - j0);
            double sum = 0.0;
            sd_sgemm(false, true, i_count, j_count, dim, 1.0f, rows + i0 * dim, dim, rows + j0 * dim, dim, 0.0f,
                     products, BLOCK);
            for (size_t i = 0; i < i_count; i++)
                for (size_t j = 0; j < j_count; j++)
                    sum += (double)products[i * BLOCK + j] * (double)products[i * BLOCK + j];
            squares += i0 == j0 ? sum : 2.0 * sum;
        }
    /* products are rounded to single precision: rows of one direction must not give 0.9999999 */
    return squares > 0.0 ? fmax(trace * trace / squares, 1.0) : 0.0;
}

sd_status sd_check_finite(const char *what, const float *rows, size_t m, size_t dim) {
    for (size_t i = 0; i < m; i++) {
        float sum = 0.0f; /* x - x is 0, or NaN when x is NaN or infinite */
        for (size_t j = 0; j < dim; j++)
            sum += rows[i * dim + j] - rows[i * dim + j];
        SD_REQUIRE(sum == 0.0f, SD_ERR_NUMERIC, "row %zu of the %s has a value that is not finite", i, what);
    }
    return SD_OK;
}
