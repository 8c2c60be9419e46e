/* MCR2: Delta R = R(Z) - sum_k (n_k/n) R(Z_k), what rows gain by being spread over classes while each class stays
 * together (Yu et al., "Learning Diverse and Discriminative Representations via the Principle of Maximal Coding Rate
 * Reduction", NeurIPS 2020). */
#include "loss/rate.h"

#include <stdio.h>
#include <string.h>

typedef struct reduction_work {
    sd_rate_space space;
    size_t *order;   /* row numbers, class after class */
    size_t *starts;  /* classes + 1: where each begins in `order` */
    void *sorted;    /* the rows in that order, packed */
    void *gradient;  /* of the whole, then of the parts: packed, in the order of Z and of `sorted` */
    void *part_gradient;
} reduction_work;

static void release(reduction_work *r) {
    sd_rate_space_destroy(&r->space);
    sd_release(NULL, r->order);
    sd_release(NULL, r->starts);
    sd_release(NULL, r->sorted);
    sd_release(NULL, r->gradient);
    sd_release(NULL, r->part_gradient);
}

/* Counting sort of the rows by class. */
static sd_status sort_rows(reduction_work *r, const sd_rows *z, size_t item, const int32_t *labels, size_t classes) {
    const char *from = z->f32 ? (const char *)z->f32 : (const char *)z->f64;

    for (size_t i = 0; i < z->n; i++) {
        SD_REQUIRE(labels[i] >= 0 && (size_t)labels[i] < classes, SD_ERR_ARGUMENT,
                   "labels[%zu] is %d: it must be between 0 and %zu", i, (int)labels[i], classes - 1);
        r->starts[(size_t)labels[i] + 1]++;
    }
    for (size_t k = 0; k < classes; k++)
        r->starts[k + 1] += r->starts[k];
    for (size_t i = 0; i < z->n; i++) {
        size_t to = r->starts[labels[i]]++;
        r->order[to] = i;
        memcpy((char *)r->sorted + to * z->d * item, from + i * z->ld * item, z->d * item);
    }
    for (size_t k = classes; k > 0; k--)
        r->starts[k] = r->starts[k - 1];
    r->starts[0] = 0;
    return SD_OK;
}

static sd_rows_out out_at(const sd_rows *z, void *base, size_t row) {
    if (!base)
        return (sd_rows_out){.ld = z->d};
    return z->f32 ? (sd_rows_out){.f32 = (float *)base + row * z->d, .ld = z->d}
                  : (sd_rows_out){.f64 = (double *)base + row * z->d, .ld = z->d};
}

static sd_status reduce(const sd_rows *z, const int32_t *labels, size_t classes, double eps_sq, double *reduced,
                        double *whole, double *parts, const sd_rows_out *grad) {
    sd_status status = SD_OK;
    reduction_work r = {0};
    size_t item = z->f32 ? sizeof(float) : sizeof(double), count;
    double total = 0.0, sum = 0.0;
    sd_rate_failure failure;

    SD_REQUIRE(labels, SD_ERR_ARGUMENT, "labels is NULL");
    SD_REQUIRE(classes > 0, SD_ERR_ARGUMENT, "classes is 0: it must be at least 1");
    SD_EXPECT(sd_size_mul(z->n, z->d, &count) && classes < SIZE_MAX, SD_ERR_MEMORY, "%zu rows of %zu are too many",
              z->n, z->d);
    r.order = SD_NEW_ARRAY(NULL, size_t, z->n);
    r.starts = SD_NEW_ARRAY(NULL, size_t, classes + 1);
    r.sorted = sd_allocate(NULL, count, item);
    r.gradient = grad ? sd_allocate(NULL, count, item) : NULL;
    r.part_gradient = grad ? sd_allocate(NULL, count, item) : NULL;
    if (!r.order || !r.starts || !r.sorted || (grad && (!r.gradient || !r.part_gradient))) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    SD_TRY(sd_rate_space_create(NULL, NULL, sd_size_min(z->n, z->d), &r.space));
    SD_TRY(sort_rows(&r, z, item, labels, classes));

    sd_rows_out out = out_at(z, r.gradient, 0);
    double alpha = sd_rate_alpha((double)z->n, z->d, eps_sq);
    if (!sd_rate_evaluate(&r.space, z, alpha, SD_RATE_FLOAT_GRAM, 1.0, &total, grad ? &out : NULL, &failure)) {
        status = sd_rate_fail(&failure, z, alpha, "");
        goto cleanup;
    }
    for (size_t k = 0; k < classes; k++) {
        size_t first = r.starts[k], rows = r.starts[k + 1] - first;
        double weight = (double)rows / (double)z->n, rate;
        sd_rows part = {.n = rows, .d = z->d, .ld = z->d};

        if (rows == 0)
            continue;
        if (z->f32)
            part.f32 = (const float *)r.sorted + first * z->d;
        else
            part.f64 = (const double *)r.sorted + first * z->d;
        out = out_at(z, r.part_gradient, first);
        alpha = sd_rate_alpha((double)rows, z->d, eps_sq);
        if (!sd_rate_evaluate(&r.space, &part, alpha, SD_RATE_FLOAT_GRAM, weight, &rate, grad ? &out : NULL,
                              &failure)) {
            char where[64];
            snprintf(where, sizeof(where), "class %zu: ", k);
            status = sd_rate_fail(&failure, &part, alpha, where);
            goto cleanup;
        }
        sum += weight * rate;
    }
    if (grad) {
        for (size_t i = 0; i < z->n; i++) {
            size_t row = r.order[i];
            for (size_t j = 0; j < z->d; j++) {
                if (z->f32)
                    grad->f32[row * grad->ld + j] =
                        ((const float *)r.gradient)[row * z->d + j] - ((const float *)r.part_gradient)[i * z->d + j];
                else
                    grad->f64[row * grad->ld + j] =
                        ((const double *)r.gradient)[row * z->d + j] - ((const double *)r.part_gradient)[i * z->d + j];
            }
        }
    }
    if (reduced)
        *reduced = total - sum;
    if (whole)
        *whole = total;
    if (parts)
        *parts = sum;
cleanup:
    release(&r);
    return status;
}

SD_API sd_status sd_rate_reduction(const float *z, size_t n, size_t d, size_t ldz, const int32_t *labels,
                                   size_t classes, double eps_sq, double *reduction, double *whole, double *parts,
                                   float *grad, size_t ldg) {
    const sd_rows rows = {.f32 = z, .n = n, .d = d, .ld = ldz};
    const sd_rows_out out = {.f32 = grad, .ld = ldg};
    sd_status status = sd_rate_check(z, n, d, ldz, eps_sq, grad, ldg);

    return status == SD_OK ? reduce(&rows, labels, classes, eps_sq, reduction, whole, parts, grad ? &out : NULL)
                           : status;
}

SD_API sd_status sd_rate_reduction_f64(const double *z, size_t n, size_t d, size_t ldz, const int32_t *labels,
                                       size_t classes, double eps_sq, double *reduction, double *whole, double *parts,
                                       double *grad, size_t ldg) {
    const sd_rows rows = {.f64 = z, .n = n, .d = d, .ld = ldz};
    const sd_rows_out out = {.f64 = grad, .ld = ldg};
    sd_status status = sd_rate_check(z, n, d, ldz, eps_sq, grad, ldg);

    return status == SD_OK ? reduce(&rows, labels, classes, eps_sq, reduction, whole, parts, grad ? &out : NULL)
                           : status;
}
