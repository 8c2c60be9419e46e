/* Principal components, and patch tokens as colours by means of them (DINOv2, Oquab et al. 2023, figure 1). */
#include "base/base.h"
#include "math/math.h"

#include <simdino/eval.h>

#include <math.h>
#include <string.h>

#define COLORS ((size_t)3)

/* ---- components ---------------------------------------------------------------------------- */

typedef struct pca {
    sd_context *context;
    size_t n, d, components;
    double *centered; /* n x d */
    double *mean;     /* d */
    double *axes;     /* components x d */
    double *values;   /* components: eigenvalues of the scatter matrix X'X */
} pca;

static void release(pca *p) {
    sd_release(p->context, p->centered);
    sd_release(p->context, p->mean);
    sd_release(p->context, p->axes);
    sd_release(p->context, p->values);
}

static sd_status center(pca *p, const float *rows, size_t ld) {
    for (size_t i = 0; i < p->n; i++)
        for (size_t j = 0; j < p->d; j++) {
            float value = rows[i * ld + j];
            SD_REQUIRE(isfinite(value), SD_ERR_NUMERIC, "row %zu, column %zu is not finite", i, j);
            p->mean[j] += (double)value;
        }
    for (size_t j = 0; j < p->d; j++)
        p->mean[j] /= (double)p->n;
    for (size_t i = 0; i < p->n; i++)
        for (size_t j = 0; j < p->d; j++)
            p->centered[i * p->d + j] = (double)rows[i * ld + j] - p->mean[j];
    return SD_OK;
}

/* The axis gets length 1 and the sign that makes its largest entry positive. */
static void fix_axis(double *axis, size_t d) {
    double square = 0.0;
    size_t largest = 0;
    for (size_t j = 0; j < d; j++) {
        square += axis[j] * axis[j];
        if (fabs(axis[j]) > fabs(axis[largest]))
            largest = j;
    }
    double scale = square > 0.0 ? 1.0 / sqrt(square) : 0.0;
    if (axis[largest] < 0.0)
        scale = -scale;
    for (size_t j = 0; j < d; j++)
        axis[j] *= scale;
}

/* Eigenvectors of X'X (d x d), or of XX' (n x n), which has the same eigenvalues: X'u is an eigenvector of the first if
 * u is one of the second. */
static sd_status find_axes(pca *p) {
    sd_status status = SD_OK;
    bool wide = p->d > p->n;
    size_t side = wide ? p->n : p->d, count = p->components;
    double *vectors = NULL, *scatter = SD_NEW_ARRAY(p->context, double, side * side);
    if (wide)
        vectors = SD_NEW_ARRAY(p->context, double, count * side);
    if (!scatter || (wide && !vectors)) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    sd_dgemm(!wide, wide, side, side, wide ? p->d : p->n, 1.0, p->centered, p->d, p->centered, p->d, 0.0, scatter, side);
    SD_TRY(sd_dsyev_largest(p->context, side, scatter, side, count, p->values, wide ? vectors : p->axes));
    if (wide)
        sd_dgemm(false, false, count, p->d, side, 1.0, vectors, side, p->centered, p->d, 0.0, p->axes, p->d);
    for (size_t c = 0; c < count; c++) {
        /* What is only rounding of zero has no direction. */
        if (p->values[c] <= 1e-14 * p->values[0]) {
            p->values[c] = 0.0;
            if (wide)
                memset(p->axes + c * p->d, 0, p->d * sizeof *p->axes);
        }
        fix_axis(p->axes + c * p->d, p->d);
    }
cleanup:
    sd_release(p->context, scatter);
    sd_release(p->context, vectors);
    return status;
}

static sd_status run(pca *p, const float *rows, size_t ld) {
    size_t values;
    SD_REQUIRE(sd_size_mul(p->n, p->d, &values), SD_ERR_MEMORY, "%zu rows of %zu numbers do not fit into memory", p->n,
               p->d);
    p->centered = SD_NEW_ARRAY(p->context, double, values);
    p->mean = SD_NEW_ARRAY(p->context, double, p->d);
    p->axes = SD_NEW_ARRAY(p->context, double, p->components * p->d);
    p->values = SD_NEW_ARRAY(p->context, double, p->components);
    if (!p->centered || !p->mean || !p->axes || !p->values)
        return SD_ERR_MEMORY;
    sd_status status = center(p, rows, ld);
    return status == SD_OK ? find_axes(p) : status;
}

SD_API sd_status sd_pca(sd_context *context, const float *rows, size_t n, size_t d, size_t ld, size_t components,
                        double *mean, double *axes, double *variance, double *share, double *scores) {
    SD_REQUIRE(rows, SD_ERR_ARGUMENT, "rows is NULL");
    SD_REQUIRE(n >= 2 && n <= SD_BLAS_MAX, SD_ERR_ARGUMENT, "n is %zu: it must be at least 2", n);
    SD_REQUIRE(d > 0 && d <= SD_BLAS_MAX, SD_ERR_ARGUMENT, "d is %zu: it must be at least 1", d);
    SD_REQUIRE(ld >= d, SD_ERR_ARGUMENT, "ld is %zu: it must be at least d = %zu", ld, d);
    SD_REQUIRE(components > 0 && components <= n && components <= d, SD_ERR_ARGUMENT,
               "components is %zu: it must be 1 to the smaller of n = %zu and d = %zu", components, n, d);
    pca p = {.context = context, .n = n, .d = d, .components = components};
    sd_status status = run(&p, rows, ld);
    if (status == SD_OK) {
        double total = 0.0;
        for (size_t i = 0; share && i < n * d; i++)
            total += p.centered[i] * p.centered[i];
        for (size_t c = 0; c < components; c++) {
            if (variance)
                variance[c] = p.values[c] / (double)(n - 1);
            if (share)
                share[c] = total > 0.0 ? p.values[c] / total : 0.0;
        }
        if (mean)
            memcpy(mean, p.mean, d * sizeof *mean);
        if (axes)
            memcpy(axes, p.axes, components * d * sizeof *axes);
        if (scores)
            sd_dgemm(false, true, n, components, d, 1.0, p.centered, d, p.axes, d, 0.0, scores, components);
    }
    release(&p);
    return status;
}

/* ---- colours ------------------------------------------------------------------------------- */

/* Each column to 0..1; a column of equal values to 0. */
static void stretch(double *scores, size_t n) {
    for (size_t c = 0; c < COLORS; c++) {
        double least = scores[c], most = scores[c];
        for (size_t i = 1; i < n; i++) {
            least = fmin(least, scores[i * COLORS + c]);
            most = fmax(most, scores[i * COLORS + c]);
        }
        for (size_t i = 0; i < n; i++) {
            double *value = scores + i * COLORS + c;
            *value = most > least ? (*value - least) / (most - least) : 0.0;
        }
    }
}

static size_t find_foreground(const double *scores, size_t n, uint8_t *foreground) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += foreground[i] = scores[i * COLORS] > 0.0;
    if (2 * count <= n)
        return count;
    for (size_t i = 0; i < n; i++)
        foreground[i] = !foreground[i];
    return n - count;
}

SD_API sd_status sd_patch_colors(sd_context *context, const float *tokens, size_t n, size_t d, size_t ld,
                                 int32_t foreground_only, double *colors, uint8_t *foreground) {
    SD_REQUIRE(tokens, SD_ERR_ARGUMENT, "tokens is NULL");
    SD_REQUIRE(n >= COLORS && d >= COLORS, SD_ERR_ARGUMENT, "%zu tokens of width %zu: there must be three of both", n,
               d);
    SD_REQUIRE(foreground_only == 0 || foreground_only == 1, SD_ERR_ARGUMENT,
               "foreground_only is %d: it must be 0 or 1", (int)foreground_only);
    sd_status status;
    double *scores = SD_NEW_ARRAY(context, double, n * COLORS);
    uint8_t *mask = SD_NEW_ARRAY(context, uint8_t, n);
    float *some = NULL;
    if (!scores || !mask) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    SD_TRY(sd_pca(context, tokens, n, d, ld, COLORS, NULL, NULL, NULL, NULL, scores));
    size_t count = find_foreground(scores, n, mask);
    if (foreground_only && colors) {
        SD_EXPECT(count >= COLORS, SD_ERR_ARGUMENT, "only %zu tokens are in the foreground: there must be three", count);
        some = SD_NEW_ARRAY(context, float, count * d);
        if (!some) {
            status = SD_ERR_MEMORY;
            goto cleanup;
        }
        for (size_t i = 0, to = 0; i < n; i++)
            if (mask[i])
                memcpy(some + to++ * d, tokens + i * ld, d * sizeof *some);
        SD_TRY(sd_pca(context, some, count, d, d, COLORS, NULL, NULL, NULL, NULL, scores));
        stretch(scores, count);
        for (size_t i = 0, from = 0; i < n; i++)
            for (size_t c = 0; c < COLORS; c++)
                colors[i * COLORS + c] = mask[i] ? scores[from++] : 0.0;
    } else if (colors) {
        stretch(scores, n);
        memcpy(colors, scores, n * COLORS * sizeof *colors);
    }
    if (foreground)
        memcpy(foreground, mask, n);
cleanup:
    sd_release(context, scores);
    sd_release(context, mask);
    sd_release(context, some);
    return status;
}
