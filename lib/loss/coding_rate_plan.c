/* The public forms of the coding rate: one call, and a plan that allocates once. */
#include "loss/rate.h"

#include "math/math.h"

#include <math.h>

double sd_rate_alpha(double n, size_t d, double eps_sq) { return (double)d / n / eps_sq; }

SD_API double sd_coding_rate_gamma(size_t n, size_t d) {
    return n && d ? ((double)d + (double)n) / ((double)d * (double)n) : 0.0;
}

static sd_status check_eps(double eps_sq) {
    SD_REQUIRE(eps_sq > 0.0 && isfinite(eps_sq), SD_ERR_ARGUMENT, "eps_sq is %g: it must be positive and finite",
               eps_sq);
    return SD_OK;
}

sd_status sd_rate_check(const void *z, size_t n, size_t d, size_t ldz, double eps_sq, const void *grad, size_t ldg) {
    SD_REQUIRE(z, SD_ERR_ARGUMENT, "z is NULL");
    SD_REQUIRE(n > 0 && d > 0, SD_ERR_ARGUMENT, "z has %zu rows of %zu numbers: neither may be 0", n, d);
    SD_REQUIRE(n <= SD_BLAS_MAX && ldz <= SD_BLAS_MAX, SD_ERR_ARGUMENT,
               "z has %zu rows, ldz %zu: neither may be above %zu", n, ldz, SD_BLAS_MAX);
    SD_REQUIRE(ldz >= d, SD_ERR_ARGUMENT, "ldz is %zu: it must be at least d = %zu", ldz, d);
    SD_REQUIRE(!grad || (ldg >= d && ldg <= SD_BLAS_MAX), SD_ERR_ARGUMENT,
               "ldg is %zu: it must be between d = %zu and %zu", ldg, d, SD_BLAS_MAX);
    return check_eps(eps_sq);
}

sd_status sd_rate_fail(const sd_rate_failure *failure, const sd_rows *z, double alpha, const char *where) {
    if (failure->bad_input) {
        size_t at = failure->row * z->ld + failure->column;
        double value = z->f32 ? (double)z->f32[at] : z->f64[at];
        return sd_fail(SD_ERR_NUMERIC, "%srow %zu, column %zu is %s", where, failure->row, failure->column,
                       isnan(value) ? "NaN" : value > 0.0 ? "infinite" : "minus infinite");
    }
    return sd_fail(SD_ERR_NUMERIC, "%sthe coding rate or its gradient is not finite: rows too large for a scale of %g",
                   where, alpha);
}

/* ---- plan ---------------------------------------------------------------------------------- */

struct sd_coding_rate_plan {
    sd_context *context;
    size_t n_max, d_max;
    sd_rate_space rows; /* for Z: short side min(n_max, d_max) */
    double *gram;       /* d_max x d_max, for the Gram form: the matrix of `rows` when that is large enough */
    double *own_gram;
};

SD_API sd_status sd_coding_rate_plan_create(sd_context *context, size_t n_max, size_t d_max,
                                            sd_coding_rate_plan **plan) {
    sd_status status = SD_OK;
    sd_coding_rate_plan *p = NULL;

    SD_REQUIRE(plan, SD_ERR_ARGUMENT, "plan is NULL");
    SD_REQUIRE(n_max > 0 && d_max > 0, SD_ERR_ARGUMENT, "n_max is %zu and d_max %zu: neither may be 0", n_max, d_max);
    SD_REQUIRE(n_max <= SD_BLAS_MAX && d_max <= SD_BLAS_MAX, SD_ERR_ARGUMENT,
               "n_max is %zu and d_max %zu: neither may be above %zu", n_max, d_max, SD_BLAS_MAX);
    p = SD_NEW(context, sd_coding_rate_plan);
    if (!p)
        return SD_ERR_MEMORY;
    p->context = context;
    p->n_max = n_max;
    p->d_max = d_max;
    SD_TRY(sd_rate_space_create(context, context, sd_size_min(n_max, d_max), &p->rows));
    if (n_max < d_max) {
        size_t square;
        SD_EXPECT(sd_size_mul(d_max, d_max, &square), SD_ERR_MEMORY, "d_max is %zu: too large", d_max);
        p->own_gram = SD_NEW_ARRAY(context, double, square);
        SD_EXPECT(p->own_gram, SD_ERR_MEMORY, "no memory for a Gram matrix of %zu x %zu", d_max, d_max);
    }
    p->gram = p->own_gram ? p->own_gram : p->rows.matrix;
    *plan = p;
cleanup:
    if (status != SD_OK)
        sd_coding_rate_plan_destroy(p);
    return status;
}

SD_API void sd_coding_rate_plan_destroy(sd_coding_rate_plan *plan) {
    if (!plan)
        return;
    sd_rate_space_destroy(&plan->rows);
    sd_release(plan->context, plan->own_gram);
    sd_release(plan->context, plan);
}

static sd_status check_room(const sd_coding_rate_plan *plan, size_t n, size_t d) {
    SD_REQUIRE(plan, SD_ERR_ARGUMENT, "plan is NULL");
    SD_REQUIRE(n <= plan->n_max && d <= plan->d_max, SD_ERR_ARGUMENT,
               "z has %zu rows of %zu numbers: the plan has room for %zu of %zu", n, d, plan->n_max, plan->d_max);
    return SD_OK;
}

static sd_status run_rows(sd_rate_space *space, const sd_rows *z, double eps_sq, double *rate,
                          const sd_rows_out *grad) {
    double alpha = sd_rate_alpha((double)z->n, z->d, eps_sq);
    sd_rate_failure failure;

    if (!sd_rate_evaluate(space, z, alpha, SD_RATE_FLOAT_GRAM, 1.0, rate, grad, &failure))
        return sd_rate_fail(&failure, z, alpha, "");
    return SD_OK;
}

SD_API sd_status sd_coding_rate_plan_run(sd_coding_rate_plan *plan, const float *z, size_t n, size_t d, size_t ldz,
                                         double eps_sq, double *rate, float *grad, size_t ldg) {
    sd_status status = sd_rate_check(z, n, d, ldz, eps_sq, grad, ldg);

    if (status == SD_OK)
        status = check_room(plan, n, d);
    if (status != SD_OK)
        return status;
    const sd_rows rows = {.f32 = z, .n = n, .d = d, .ld = ldz};
    const sd_rows_out out = {.f32 = grad, .ld = ldg};
    return run_rows(&plan->rows, &rows, eps_sq, rate, grad ? &out : NULL);
}

SD_API sd_status sd_coding_rate_plan_run_f64(sd_coding_rate_plan *plan, const double *z, size_t n, size_t d,
                                             size_t ldz, double eps_sq, double *rate, double *grad, size_t ldg) {
    sd_status status = sd_rate_check(z, n, d, ldz, eps_sq, grad, ldg);

    if (status == SD_OK)
        status = check_room(plan, n, d);
    if (status != SD_OK)
        return status;
    const sd_rows rows = {.f64 = z, .n = n, .d = d, .ld = ldz};
    const sd_rows_out out = {.f64 = grad, .ld = ldg};
    return run_rows(&plan->rows, &rows, eps_sq, rate, grad ? &out : NULL);
}

/* ---- from a Gram matrix -------------------------------------------------------------------- */

static sd_status check_gram(const double *gram, size_t d, size_t ldg, double n_total, double eps_sq,
                            const double *dgram, size_t lddg) {
    SD_REQUIRE(gram, SD_ERR_ARGUMENT, "gram is NULL");
    SD_REQUIRE(d > 0 && d <= SD_BLAS_MAX, SD_ERR_ARGUMENT, "d is %zu: it must be between 1 and %zu", d, SD_BLAS_MAX);
    SD_REQUIRE(ldg >= d, SD_ERR_ARGUMENT, "ldg is %zu: it must be at least d = %zu", ldg, d);
    SD_REQUIRE(!dgram || lddg >= d, SD_ERR_ARGUMENT, "lddg is %zu: it must be at least d = %zu", lddg, d);
    SD_REQUIRE(n_total > 0.0 && isfinite(n_total), SD_ERR_ARGUMENT, "n_total is %g: it must be positive and finite",
               n_total);
    return check_eps(eps_sq);
}

static sd_status run_gram(double *m, const double *gram, size_t d, size_t ldg, double n_total, double eps_sq,
                          double *rate, double *dgram, size_t lddg) {
    double alpha = sd_rate_alpha(n_total, d, eps_sq), value = 0.0;

    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j <= i; j++) {
            double entry = gram[i * ldg + j];
            SD_REQUIRE(isfinite(entry), SD_ERR_NUMERIC, "gram: row %zu, column %zu is not finite", i, j);
            m[i * d + j] = alpha * entry + (i == j ? 1.0 : 0.0);
            SD_REQUIRE(isfinite(m[i * d + j]), SD_ERR_NUMERIC,
                       "gram: row %zu, column %zu is %g, too large for a scale of %g", i, j, entry, alpha);
        }
    }
    size_t pivot = sd_dpotrf_lower(d, m, d);
    SD_REQUIRE(pivot == 0, SD_ERR_NUMERIC, "gram is not positive semi-definite: I + %g gram fails at pivot %zu of %zu",
               alpha, pivot, d);
    for (size_t i = 0; i < d; i++)
        value += log(m[i * d + i]);
    SD_REQUIRE(isfinite(value), SD_ERR_NUMERIC, "the coding rate is not finite: I + %g gram cannot be factorised",
               alpha);
    if (dgram) {
        pivot = sd_dpotri_lower(d, m, d);
        SD_REQUIRE(pivot == 0, SD_ERR_NUMERIC, "I + %g gram cannot be inverted: pivot %zu is 0", alpha, pivot);
        for (size_t i = 0; i < d; i++)
            for (size_t j = 0; j <= i; j++)
                dgram[i * lddg + j] = dgram[j * lddg + i] = 0.5 * alpha * m[i * d + j];
    }
    if (rate)
        *rate = value;
    return SD_OK;
}

SD_API sd_status sd_coding_rate_plan_run_gram(sd_coding_rate_plan *plan, const double *gram, size_t d, size_t ldg,
                                              double n_total, double eps_sq, double *rate, double *dgram, size_t lddg) {
    sd_status status = check_gram(gram, d, ldg, n_total, eps_sq, dgram, lddg);

    if (status == SD_OK)
        status = check_room(plan, 0, d);
    return status == SD_OK ? run_gram(plan->gram, gram, d, ldg, n_total, eps_sq, rate, dgram, lddg) : status;
}

/* ---- one call ------------------------------------------------------------------------------ */

static sd_status run_once(const sd_rows *z, double eps_sq, double *rate, const sd_rows_out *grad) {
    sd_rate_space space;
    sd_status status = sd_rate_space_create(NULL, NULL, sd_size_min(z->n, z->d), &space);

    if (status != SD_OK)
        return status;
    status = run_rows(&space, z, eps_sq, rate, grad);
    sd_rate_space_destroy(&space);
    return status;
}

SD_API sd_status sd_coding_rate(const float *z, size_t n, size_t d, size_t ldz, double eps_sq, double *rate,
                                float *grad, size_t ldg) {
    const sd_rows rows = {.f32 = z, .n = n, .d = d, .ld = ldz};
    const sd_rows_out out = {.f32 = grad, .ld = ldg};
    sd_status status = sd_rate_check(z, n, d, ldz, eps_sq, grad, ldg);

    return status == SD_OK ? run_once(&rows, eps_sq, rate, grad ? &out : NULL) : status;
}

SD_API sd_status sd_coding_rate_f64(const double *z, size_t n, size_t d, size_t ldz, double eps_sq, double *rate,
                                    double *grad, size_t ldg) {
    const sd_rows rows = {.f64 = z, .n = n, .d = d, .ld = ldz};
    const sd_rows_out out = {.f64 = grad, .ld = ldg};
    sd_status status = sd_rate_check(z, n, d, ldz, eps_sq, grad, ldg);

    return status == SD_OK ? run_once(&rows, eps_sq, rate, grad ? &out : NULL) : status;
}

SD_API sd_status sd_coding_rate_gram(const double *gram, size_t d, size_t ldg, double n_total, double eps_sq,
                                     double *rate, double *dgram, size_t lddg) {
    sd_status status = check_gram(gram, d, ldg, n_total, eps_sq, dgram, lddg);
    size_t square;

    if (status != SD_OK)
        return status;
    SD_REQUIRE(sd_size_mul(d, d, &square), SD_ERR_MEMORY, "d is %zu: too large", d);
    double *m = SD_NEW_ARRAY(NULL, double, square);
    if (!m)
        return SD_ERR_MEMORY;
    status = run_gram(m, gram, d, ldg, n_total, eps_sq, rate, dgram, lddg);
    sd_release(NULL, m);
    return status;
}
