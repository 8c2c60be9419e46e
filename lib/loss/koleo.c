/* KoLeo: the entropy of a batch by the distances of nearest neighbours (Kozachenko and Leonenko). */
#include "loss/features.h"
#include "math/math.h"
#include <simdino/loss.h>

#include <float.h>
#include <math.h>
#include <string.h>

#define EPSILON 1e-8 /* of lengths, distances and, as torch's PairwiseDistance does, of each difference */
#define BLOCK ((size_t)64)

struct sd_koleo {
    sd_context *context;
    size_t max_rows, max_dim;
    float *units, *products; /* rows of length 1; BLOCK x rows */
    double *dunits, *lengths;
    size_t *nearest;
};

SD_API sd_status sd_koleo_create(sd_context *context, size_t max_rows, size_t max_dim, sd_koleo **out) {
    size_t values;
    SD_REQUIRE(out != NULL, SD_ERR_ARGUMENT, "koleo is NULL");
    SD_REQUIRE(max_rows >= 1 && max_dim >= 1 && max_dim <= SD_BLAS_MAX && max_rows <= SD_BLAS_MAX &&
                   sd_size_mul(max_rows, max_dim, &values),
               SD_ERR_ARGUMENT, "%zu rows of %zu: too many, or none", max_rows, max_dim);
    sd_koleo *koleo = SD_NEW(context, sd_koleo);
    if (koleo == NULL)
        return SD_ERR_MEMORY;
    koleo->context = context;
    koleo->max_rows = max_rows;
    koleo->max_dim = max_dim;
    koleo->units = SD_NEW_ARRAY(context, float, values);
    koleo->products = SD_NEW_ARRAY(context, float, BLOCK *max_rows);
    koleo->dunits = SD_NEW_ARRAY(context, double, values);
    koleo->lengths = SD_NEW_ARRAY(context, double, max_rows);
    koleo->nearest = SD_NEW_ARRAY(context, size_t, max_rows);
    if (!koleo->units || !koleo->products || !koleo->dunits || !koleo->lengths || !koleo->nearest) {
        sd_koleo_destroy(koleo);
        return SD_ERR_MEMORY;
    }
    *out = koleo;
    return SD_OK;
}

SD_API void sd_koleo_destroy(sd_koleo *koleo) {
    if (koleo == NULL)
        return;
    sd_release(koleo->context, koleo->nearest);
    sd_release(koleo->context, koleo->lengths);
    sd_release(koleo->context, koleo->dunits);
    sd_release(koleo->context, koleo->products);
    sd_release(koleo->context, koleo->units);
    sd_release(koleo->context, koleo);
}

static void find_nearest(sd_koleo *koleo, size_t count, size_t dim) {
    for (size_t first = 0; first < count; first += BLOCK) {
        size_t n = sd_size_min(BLOCK, count - first);
        sd_sgemm(false, true, n, count, dim, 1.0f, koleo->units + first * dim, dim, koleo->units, dim, 0.0f,
                 koleo->products, count);
        for (size_t i = 0; i < n; i++) {
            float best = -FLT_MAX;
            for (size_t j = 0; j < count; j++)
                if (j != first + i && koleo->products[i * count + j] > best) {
                    best = koleo->products[i * count + j];
                    koleo->nearest[first + i] = j;
                }
        }
    }
}

/* Through u = x / max(|x|, e). */
static void normalize_backward(const sd_koleo *koleo, const float *rows, size_t count, size_t dim, float *grad) {
    for (size_t i = 0; i < count; i++) {
        const double *du = koleo->dunits + i * dim;
        const float *u = koleo->units + i * dim;
        double along = 0.0, length = koleo->lengths[i];
        bool clamped = sd_dot(rows + i * dim, rows + i * dim, dim) < EPSILON * EPSILON;
        for (size_t j = 0; j < dim && !clamped; j++)
            along += du[j] * (double)u[j];
        for (size_t j = 0; j < dim; j++)
            grad[i * dim + j] = (float)((du[j] - along * (double)u[j]) / length);
    }
}

SD_API sd_status sd_koleo_evaluate(sd_koleo *koleo, const float *rows, size_t count, size_t dim, float *grad,
                                   double *loss) {
    SD_REQUIRE(koleo != NULL && rows != NULL && loss != NULL, SD_ERR_ARGUMENT, "%s is NULL",
               koleo == NULL ? "koleo" : rows == NULL ? "rows" : "loss");
    SD_REQUIRE(count >= 1 && count <= koleo->max_rows && dim >= 1 && dim <= koleo->max_dim, SD_ERR_ARGUMENT,
               "%zu rows of %zu: created for at most %zu of %zu", count, dim, koleo->max_rows, koleo->max_dim);
    sd_status status = sd_check_finite("class tokens", rows, count, dim);
    if (status != SD_OK)
        return status;
    *loss = 0.0;
    if (count == 1) {
        if (grad != NULL)
            memset(grad, 0, dim * sizeof *grad);
        return SD_OK;
    }
    for (size_t i = 0; i < count; i++) {
        koleo->lengths[i] = fmax(sqrt(sd_dot(rows + i * dim, rows + i * dim, dim)), EPSILON);
        for (size_t j = 0; j < dim; j++)
            koleo->units[i * dim + j] = (float)((double)rows[i * dim + j] / koleo->lengths[i]);
    }
    find_nearest(koleo, count, dim);
    memset(koleo->dunits, 0, count * dim * sizeof *koleo->dunits);
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) {
        const float *a = koleo->units + i * dim, *b = koleo->units + koleo->nearest[i] * dim;
        double square = 0.0;
        for (size_t j = 0; j < dim; j++) {
            double difference = (double)a[j] - (double)b[j] + EPSILON;
            square += difference * difference;
        }
        double distance = sqrt(square);
        sum -= log(distance + EPSILON);
        double factor = -1.0 / ((double)count * (distance + EPSILON) * distance);
        double *da = koleo->dunits + i * dim, *db = koleo->dunits + koleo->nearest[i] * dim;
        for (size_t j = 0; j < dim && grad != NULL; j++) {
            double part = factor * ((double)a[j] - (double)b[j] + EPSILON);
            da[j] += part;
            db[j] -= part;
        }
    }
    *loss = sum / (double)count;
    if (grad != NULL)
        normalize_backward(koleo, rows, count, dim, grad);
    return SD_OK;
}
