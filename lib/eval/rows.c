/* Centring and normalising rows of features before they are compared. */
#include "base/base.h"

#include <simdino/eval.h>

#include <math.h>

#define BAND ((size_t)64) /* columns accumulated at once, on the stack */

static sd_status check_rows(const float *rows, size_t n, size_t d, size_t ld) {
    SD_REQUIRE(rows, SD_ERR_ARGUMENT, "rows is NULL");
    SD_REQUIRE(n > 0 && d > 0, SD_ERR_ARGUMENT, "there are %zu rows of %zu numbers: neither may be 0", n, d);
    SD_REQUIRE(ld >= d, SD_ERR_ARGUMENT, "ld is %zu: it must be at least d = %zu", ld, d);
    return SD_OK;
}

SD_API sd_status sd_normalize_rows(float *rows, size_t n, size_t d, size_t ld, const float *mean) {
    sd_status status = check_rows(rows, n, d, ld);

    if (status != SD_OK)
        return status;
    for (size_t j = 0; mean && j < d; j++)
        SD_REQUIRE(isfinite(mean[j]), SD_ERR_NUMERIC, "mean: number %zu is not finite", j);
    for (size_t i = 0; i < n; i++) /* before anything is changed */
        for (size_t j = 0; j < d; j++)
            SD_REQUIRE(isfinite(rows[i * ld + j]), SD_ERR_NUMERIC, "row %zu, column %zu is not finite", i, j);
    for (size_t i = 0; i < n; i++) {
        float *row = rows + i * ld;
        double sum = 0.0;

        for (size_t j = 0; j < d; j++) {
            double value = (double)row[j] - (mean ? (double)mean[j] : 0.0);
            sum += value * value;
        }
        double scale = sum > 0.0 ? 1.0 / sqrt(sum) : 0.0;
        for (size_t j = 0; j < d; j++)
            row[j] = (float)(((double)row[j] - (mean ? (double)mean[j] : 0.0)) * scale);
    }
    return SD_OK;
}

SD_API sd_status sd_mean_row(const float *rows, size_t n, size_t d, size_t ld, float *mean) {
    sd_status status = check_rows(rows, n, d, ld);

    if (status != SD_OK)
        return status;
    SD_REQUIRE(mean, SD_ERR_ARGUMENT, "mean is NULL");
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < d; j++)
            SD_REQUIRE(isfinite(rows[i * ld + j]), SD_ERR_NUMERIC, "row %zu, column %zu is not finite", i, j);
    for (size_t first = 0; first < d; first += BAND) {
        size_t width = sd_size_min(BAND, d - first);
        double sum[BAND] = {0};

        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < width; j++)
                sum[j] += (double)rows[i * ld + first + j];
        for (size_t j = 0; j < width; j++)
            mean[first + j] = (float)(sum[j] / (double)n);
    }
    return SD_OK;
}
