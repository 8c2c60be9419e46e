/* The losses with prototypes beside a plain reference in double precision, and what must hold of them for any input. */
#include "loss/prototypes.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- a problem ----------------------------------------------------------------------------- */

/* Class tokens: `samples` and `views`. Patches: views 0, and as many rows as samples. */
typedef struct problem {
    size_t samples, views, p, K, student_rows, teacher_rows;
    int32_t target;
    double student_temp, teacher_temp;
    bool scaled;              /* weight_g is not NULL */
    float *student, *teacher; /* rows of p */
    float *v, *g, *teacher_v, *teacher_g;
    float *weights; /* of patches */
} problem;

/* What an evaluation gives; arrays of the problem's sizes. */
typedef struct outcome {
    double loss;
    float *student, *v, *g; /* gradients */
    float *center;
    sd_dino_result result;
} outcome;

static float *random_floats(size_t count, uint64_t seed, double size) {
    float *x = calloc(count + 1, sizeof *x);
    assert_non_null(x);
    sd_random random;
    sd_random_init(&random, seed, 0, 0);
    for (size_t i = 0; i < count; i++)
        x[i] = (float)(size * sd_random_normal(&random));
    return x;
}

static problem make(size_t samples, size_t views, size_t p, size_t K, int32_t target, bool scaled) {
    problem q = {.samples = samples,
                 .views = views,
                 .p = p,
                 .K = K,
                 .target = target,
                 .scaled = scaled,
                 .student_temp = 0.1,
                 .teacher_temp = 0.06};
    q.student_rows = views == 0 ? samples : views * samples;
    q.teacher_rows = views == 0 ? samples : 2 * samples;
    double size = 1.0 / sqrt((double)p);
    q.student = random_floats(q.student_rows * p, 11, size);
    q.teacher = random_floats(q.teacher_rows * p, 12, size);
    q.v = random_floats(K * p, 13, 0.3);
    q.teacher_v = random_floats(K * p, 14, 0.3);
    q.g = random_floats(K, 15, 0.2);
    q.teacher_g = random_floats(K, 16, 0.2);
    for (size_t j = 0; j < K; j++) {
        q.g[j] += 1.0f;
        q.teacher_g[j] += 1.0f;
    }
    q.weights = random_floats(samples, 17, 1.0);
    for (size_t i = 0; i < samples; i++)
        q.weights[i] = 0.1f + fabsf(q.weights[i]);
    return q;
}

static void unmake(problem *q) {
    float *arrays[] = {q->student, q->teacher, q->v, q->teacher_v, q->g, q->teacher_g, q->weights};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        free(arrays[i]);
}

static outcome make_outcome(const problem *q) {
    return (outcome){.student = random_floats(q->student_rows * q->p, 0, 0.0),
                     .v = random_floats(q->K * q->p, 0, 0.0),
                     .g = random_floats(q->K, 0, 0.0),
                     .center = random_floats(q->K, 0, 0.0)};
}

static void unmake_outcome(outcome *o) {
    float *arrays[] = {o->student, o->v, o->g, o->center};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        free(arrays[i]);
}

#define IMAGES       7
#define PATCH_WEIGHT 0.7

/* By the library; the loss is made for more than the problem has. */
static outcome evaluate(sd_context *context, const problem *q, bool gradient) {
    outcome o = make_outcome(q);
    sd_dino_config config;
    sd_dino_config_init(&config);
    config.target = q->target;
    config.student_temp = q->student_temp;
    sd_prototypes ours = {q->v, q->scaled ? q->g : NULL, q->K};
    sd_prototypes theirs = {q->teacher_v, q->scaled ? q->teacher_g : NULL, q->K};
    sd_prototypes_gradient into = {o.v, o.g};
    float *grad = gradient ? o.student : NULL;
    if (q->views == 0) {
        sd_patch_loss *loss;
        assert_int_equal(sd_patch_loss_create(context, &config, q->samples + 5, q->p, q->K, &loss), SD_OK);
        memset(sd_patch_loss_center(loss), 0, q->K * sizeof(float));
        sd_status status = sd_patch_loss_evaluate(loss, q->student, q->teacher, q->samples, q->weights, IMAGES, &ours,
                                                  &theirs, q->teacher_temp, PATCH_WEIGHT, grad, &into, &o.loss);
        if (status != SD_OK)
            fail_msg("%s", sd_last_error());
        sd_patch_loss_commit(loss);
        memcpy(o.center, sd_patch_loss_center(loss), q->K * sizeof(float));
        sd_patch_loss_destroy(loss);
    } else {
        sd_dino_loss *loss;
        assert_int_equal(sd_dino_loss_create(context, &config, q->samples + 2, q->views + 1, q->p, q->K, &loss), SD_OK);
        sd_status status = sd_dino_loss_evaluate(loss, q->student, q->teacher, q->samples, q->views, &ours, &theirs,
                                                 q->teacher_temp, grad, &into, &o.result);
        if (status != SD_OK)
            fail_msg("%s", sd_last_error());
        o.loss = o.result.loss;
        sd_dino_loss_commit(loss);
        memcpy(o.center, sd_dino_loss_center(loss), q->K * sizeof(float));
        sd_dino_loss_destroy(loss);
    }
    return o;
}

/* ---- the reference ------------------------------------------------------------------------- */

static double dot(const float *a, const float *b, size_t n) {
    double sum = 0.0;
    for (size_t j = 0; j < n; j++)
        sum += (double)a[j] * (double)b[j];
    return sum;
}

static double *doubles(size_t count) {
    double *x = calloc(count + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

/* rows x K */
static double *logits_of(const problem *q, const float *rows, size_t count, const float *v, const float *g) {
    double *logits = doubles(count * q->K);
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < q->K; k++)
            logits[i * q->K + k] = (q->scaled ? (double)g[k] : 1.0) * dot(rows + i * q->p, v + k * q->p, q->p) /
                                   sqrt(dot(v + k * q->p, v + k * q->p, q->p));
    return logits;
}

static double log_sum_exp(const double *z, size_t n, double factor) {
    double largest = -INFINITY, sum = 0.0;
    for (size_t k = 0; k < n; k++)
        largest = fmax(largest, factor * z[k]);
    for (size_t k = 0; k < n; k++)
        sum += exp(factor * z[k] - largest);
    return largest + log(sum);
}

/* Logits become assignments; the center is 0. */
static void assign(const problem *q, double *z, size_t n) {
    size_t K = q->K;
    if (q->target == SD_TARGET_CENTER) {
        for (size_t i = 0; i < n; i++) {
            double lse = log_sum_exp(z + i * K, K, 1.0 / q->teacher_temp);
            for (size_t k = 0; k < K; k++)
                z[i * K + k] = exp(z[i * K + k] / q->teacher_temp - lse);
        }
        return;
    }
    /* Sinkhorn-Knopp on logarithms, which nothing can leave */
    double *column = doubles(n);
    for (size_t i = 0; i < n * K; i++)
        z[i] /= q->teacher_temp;
    for (int round = 0; round < 3; round++) {
        for (size_t k = 0; k < K; k++) {
            for (size_t i = 0; i < n; i++)
                column[i] = z[i * K + k];
            double sum = log_sum_exp(column, n, 1.0);
            for (size_t i = 0; i < n; i++)
                z[i * K + k] -= sum;
        }
        for (size_t i = 0; i < n; i++) {
            double sum = log_sum_exp(z + i * K, K, 1.0);
            for (size_t k = 0; k < K; k++)
                z[i * K + k] -= sum;
        }
    }
    free(column);
    for (size_t i = 0; i < n * K; i++)
        z[i] = exp(z[i]);
}

/* dX = dz W, dg = <dW, v^>, dv = g/|v| (dW - v^ <dW, v^>). */
static void pull_back(const problem *q, const double *dz, outcome *o) {
    double *dw = doubles(q->p);
    for (size_t k = 0; k < q->K; k++) {
        const float *v = q->v + k * q->p;
        double length = sqrt(dot(v, v, q->p)), g = q->scaled ? (double)q->g[k] : 1.0, along = 0.0;
        memset(dw, 0, q->p * sizeof *dw);
        for (size_t i = 0; i < q->student_rows; i++)
            for (size_t j = 0; j < q->p; j++) {
                dw[j] += dz[i * q->K + k] * (double)q->student[i * q->p + j];
                o->student[i * q->p + j] += (float)(dz[i * q->K + k] * g * (double)v[j] / length);
            }
        for (size_t j = 0; j < q->p; j++)
            along += dw[j] * (double)v[j] / length;
        o->g[k] = (float)along;
        for (size_t j = 0; j < q->p; j++)
            o->v[k * q->p + j] = (float)(g / length * (dw[j] - along * (double)v[j] / length));
    }
    free(dw);
}

static outcome reference(const problem *q) {
    outcome o = make_outcome(q);
    size_t K = q->K, samples = q->samples;
    double *z = logits_of(q, q->student, q->student_rows, q->v, q->g), *dz = doubles(q->student_rows * K);
    double *t = logits_of(q, q->teacher, q->teacher_rows, q->teacher_v, q->teacher_g);
    for (size_t k = 0; k < K && q->target == SD_TARGET_CENTER; k++) {
        double sum = 0.0;
        for (size_t i = 0; i < q->teacher_rows; i++)
            sum += t[i * K + k];
        o.center[k] = (float)(0.1 * sum / (double)q->teacher_rows);
    }
    assign(q, t, q->teacher_rows);
    for (size_t k = 0; k < K; k++) {
        double mean = 0.0;
        for (size_t i = 0; i < q->teacher_rows; i++)
            mean += t[i * K + k] / (double)q->teacher_rows;
        o.result.target_entropy -= mean > 0.0 ? mean * log(mean) : 0.0;
    }
    for (size_t row = 0; row < q->student_rows; row++) {
        size_t view = row / samples, sample = row % samples;
        for (size_t i = 0; i < (q->views == 0 ? 1 : 2); i++) {
            if (q->views > 0 && view == i)
                continue;
            double weight =
                q->views == 0 ? (double)q->weights[sample] / IMAGES : 1.0 / (double)((2 * q->views - 2) * samples);
            double lse = log_sum_exp(z + row * K, K, 1.0 / q->student_temp), ce = 0.0;
            const double *target = t + (i * samples + sample) * K;
            for (size_t k = 0; k < K; k++) {
                double scaled = z[row * K + k] / q->student_temp;
                ce += target[k] * (lse - scaled);
                dz[row * K + k] +=
                    (q->views == 0 ? PATCH_WEIGHT : 1.0) * weight / q->student_temp * (exp(scaled - lse) - target[k]);
            }
            *(view < 2 ? &o.result.global_loss : &o.result.local_loss) += weight * ce;
            o.loss += weight * ce;
        }
    }
    pull_back(q, dz, &o);
    free(t);
    free(dz);
    free(z);
    return o;
}

static double largest_of(const float *x, size_t count) {
    double largest = 0.0;
    for (size_t i = 0; i < count; i++)
        largest = fmax(largest, fabs((double)x[i]));
    return largest;
}

static void near_arrays(const char *what, const float *actual, const float *expected, size_t count, double relative) {
    double allowed = relative * largest_of(expected, count) + 1e-9;
    for (size_t i = 0; i < count; i++)
        if (!(fabs((double)actual[i] - (double)expected[i]) <= allowed))
            fail_msg("%s[%zu] is %.9g, expected %.9g within %.3g", what, i, (double)actual[i], (double)expected[i],
                     allowed);
}

static void near(const char *what, double actual, double expected) {
    if (!(fabs(actual - expected) <= 3e-6 * fabs(expected) + 1e-6))
        fail_msg("%s is %.9g, expected %.9g", what, actual, expected);
}

static void test_reference(void **state) {
    (void)state;
    static const size_t shapes[][4] = {
        /* samples, views, p, K */
        {1, 2, 8, 1},   {1, 2, 8, 37},  {4, 2, 5, 16},   {1, 10, 8, 33},  {23, 5, 12, 100}, {97, 2, 7, 33},
        {3, 101, 4, 9}, {50, 3, 1, 5},  {2, 3, 6, 1},    {1, 0, 8, 1},    {1, 0, 8, 40},    {95, 0, 6, 17},
        {96, 0, 6, 17}, {97, 0, 6, 17}, {200, 0, 9, 64}, {3, 4, 5, 2100},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int form = 0; form < 4; form++) {
            problem q = make(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], form % 2, form / 2);
            outcome actual = evaluate(NULL, &q, true), expected = reference(&q), value = evaluate(NULL, &q, false);
            near("loss", actual.loss, expected.loss);
            assert_true(value.loss == actual.loss); /* without a gradient, the same */
            if (q.K == 1) { /* no slope at all: two equal terms of up to 1/temperature, each rounded, cancel */
                assert_true(largest_of(actual.student, q.student_rows * q.p) < 2e-7 / q.student_temp);
                assert_true(largest_of(actual.v, q.p) < 2e-7 / q.student_temp && fabsf(actual.g[0]) < 2e-6f);
            } else {
                near_arrays("dstudent", actual.student, expected.student, q.student_rows * q.p, 2e-5);
                /* a single number has no direction: rounding of what cancels */
                for (size_t k = 0; k < q.K && q.p == 1; k++)
                    assert_true(fabs((double)actual.v[k] * (double)q.v[k]) <= 2e-6 * largest_of(expected.g, q.K));
                if (q.p > 1)
                    near_arrays("dv", actual.v, expected.v, q.K * q.p, 2e-5);
                near_arrays("dg", actual.g, expected.g, q.K, 2e-5);
            }
            near_arrays("center", actual.center, expected.center, q.K, 2e-6);
            assert_true(largest_of(value.v, q.K * q.p) == 0.0);
            if (q.views > 0) {
                near("local loss", actual.result.local_loss, expected.result.local_loss);
                near("global loss", actual.result.global_loss, expected.result.global_loss);
                near("entropy", actual.result.target_entropy, expected.result.target_entropy);
            }
            unmake_outcome(&value);
            unmake_outcome(&expected);
            unmake_outcome(&actual);
            unmake(&q);
        }
}

/* ---- finite differences -------------------------------------------------------------------- */

/* Fourth order along `direction`, which has length 1. */
static double slope(const problem *q, float *x, size_t count, const double *direction, double h) {
    static const double steps[] = {-2.0, -1.0, 1.0, 2.0}, factors[] = {1.0, -8.0, 8.0, -1.0};
    float *kept = random_floats(count, 0, 0.0);
    double sum = 0.0;
    memcpy(kept, x, count * sizeof *x);
    for (int i = 0; i < 4; i++) {
        for (size_t j = 0; j < count; j++)
            x[j] = (float)((double)kept[j] + steps[i] * h * direction[j]);
        outcome o = evaluate(NULL, q, false);
        sum += factors[i] * o.loss;
        unmake_outcome(&o);
    }
    memcpy(x, kept, count * sizeof *x);
    free(kept);
    return sum / (12.0 * h);
}

static void check_slopes(const char *what, const problem *q, float *x, const float *grad, size_t count, double h) {
    double *direction = doubles(count), length = 0.0, factor = q->views == 0 ? PATCH_WEIGHT : 1.0;
    for (size_t j = 0; j < count; j++)
        length += (double)grad[j] * (double)grad[j];
    length = sqrt(length);
    assert_true(length > 1e-3);
    for (size_t j = 0; j < count; j++)
        direction[j] = (double)grad[j] / length;
    double found = factor * slope(q, x, count, direction, h);
    if (!(fabs(found - length) <= 1e-3 * length))
        fail_msg("the slope along the gradient of %s is %.7g, its length %.7g", what, found, length);
    /* half gradient, half noise */
    float *noise = random_floats(count, 91, 1.0 / sqrt((double)count));
    double norm = 0.0, along = 0.0;
    for (size_t j = 0; j < count; j++) {
        direction[j] += (double)noise[j];
        norm += direction[j] * direction[j];
    }
    for (size_t j = 0; j < count; j++) {
        direction[j] /= sqrt(norm);
        along += direction[j] * (double)grad[j];
    }
    found = factor * slope(q, x, count, direction, h);
    if (!(fabs(found - along) <= 1e-3 * length))
        fail_msg("the slope of %s along a direction is %.7g, expected %.7g", what, found, along);
    free(noise);
    free(direction);
}

static void test_finite_differences(void **state) {
    (void)state;
    for (int form = 0; form < 4; form++) {
        problem q = make(5, form / 2 ? 0 : 4, 6, 19, form % 2, true);
        outcome o = evaluate(NULL, &q, true);
        check_slopes("features", &q, q.student, o.student, q.student_rows * q.p, 2e-2);
        check_slopes("weight_v", &q, q.v, o.v, q.K * q.p, 2e-2);
        check_slopes("weight_g", &q, q.g, o.g, q.K, 2e-2);
        unmake_outcome(&o);
        unmake(&q);
    }
}

/* ---- threads ------------------------------------------------------------------------------- */

static sd_context *threads_of(int32_t threads) {
    sd_context_config hooks;
    sd_context_config_init(&hooks);
    hooks.threads = threads;
    hooks.blas_threads = SD_BLAS_THREADS_ONE;
    sd_context *context = NULL;
    assert_int_equal(sd_context_create(&hooks, &context), SD_OK);
    return context;
}

static void test_threads(void **state) {
    (void)state;
    static const int32_t threads[] = {1, 2, 5};
    for (int form = 0; form < 4; form++) {
        problem q = make(form / 2 ? 250 : 23, form / 2 ? 0 : 6, 24, 2501, form % 2, true);
        outcome first = {0};
        for (size_t i = 0; i < 3; i++) {
            sd_context *context = threads_of(threads[i]);
            outcome o = evaluate(context, &q, true);
            if (i > 0) {
                assert_true(o.loss == first.loss);
                assert_memory_equal(&o.result, &first.result, sizeof o.result);
                assert_memory_equal(o.student, first.student, q.student_rows * q.p * sizeof(float));
                assert_memory_equal(o.v, first.v, q.K * q.p * sizeof(float));
                assert_memory_equal(o.g, first.g, q.K * sizeof(float));
                assert_memory_equal(o.center, first.center, q.K * sizeof(float));
                unmake_outcome(&o);
            } else {
                first = o;
            }
            sd_context_destroy(context);
        }
        unmake_outcome(&first);
        unmake(&q);
    }
}

/* ---- assignments --------------------------------------------------------------------------- */

static void sinkhorn_sums(const float *scores, const double *u, const double *v, size_t n, size_t K, double *rows,
                          double *columns) {
    memset(rows, 0, n * sizeof *rows);
    memset(columns, 0, K * sizeof *columns);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < K; k++) {
            double share = u[i] * v[k] * (double)scores[i * K + k];
            assert_true(share >= 0.0);
            rows[i] += share;
            columns[k] += share;
        }
}

static void test_sinkhorn_sums(void **state) {
    (void)state;
    const size_t n = 41, K = 23;
    double *u = doubles(n), *v = doubles(K), *rows = doubles(n), *columns = doubles(K);
    for (int32_t rounds = 1; rounds <= 300; rounds += 299) {
        float *scores = random_floats(n * K, 5, 2.0);
        assert_int_equal(sd_sinkhorn(NULL, sd_kernels_get(), scores, n, K, K, rounds, u, v), SD_OK);
        sinkhorn_sums(scores, u, v, n, K, rows, columns);
        double worst = 0.0;
        for (size_t i = 0; i < n; i++)
            assert_true(fabs(rows[i] - 1.0) < 1e-12);
        for (size_t k = 0; k < K; k++)
            worst = fmax(worst, fabs(columns[k] * (double)K / (double)n - 1.0));
        assert_true(rounds > 1 ? worst < 1e-9 : worst > 1e-3);
        free(scores);
    }
    free(columns);
    free(rows);
    free(v);
    free(u);
}

/* Logits a thousand temperatures apart, within rows, from row to row, and from column to column. */
static void test_spread_logits(void **state) {
    (void)state;
    for (int form = 0; form < 12; form++) {
        problem q = make(6, form / 2 % 2 ? 0 : 3, 20, 20, form % 2, false);
        q.student_temp = 1.0;
        q.teacher_temp = 1.0;
        memset(q.v, 0, q.K * q.p * sizeof(float)); /* features are logits */
        memset(q.teacher_v, 0, q.K * q.p * sizeof(float));
        for (size_t k = 0; k < q.K; k++)
            q.v[k * q.p + k] = q.teacher_v[k * q.p + k] = 1.0f;
        for (size_t i = 0; i < q.student_rows * q.p; i++)
            q.student[i] *= 1000.0f;
        for (size_t i = 0; i < q.teacher_rows * q.p; i++) {
            size_t row = i / q.p, column = i % q.p;
            float shift = form / 4 == 0 ? q.teacher[i] : form / 4 == 1 ? (float)row : 0.3f * (float)column;
            q.teacher[i] = 1000.0f * shift + (form / 4 == 1 ? 20.0f : 1.0f) * q.teacher[i];
        }
        outcome o = evaluate(NULL, &q, true);
        if (form / 4 == 1) { /* rows far from each other are as good as others */
            outcome expected = reference(&q);
            near("loss", o.loss, expected.loss);
            near_arrays("dstudent", o.student, expected.student, q.student_rows * q.p, 1e-4);
            unmake_outcome(&expected);
        }
        assert_true(isfinite(o.loss) && o.loss > 0.0);
        double sum = 0.0;
        for (size_t i = 0; i < q.student_rows * q.p; i++) {
            assert_true(isfinite(o.student[i]));
            sum += (double)o.student[i];
        }
        assert_true(fabs(sum) < 1e-4); /* every row of assignments sums to 1, as the student's does */
        unmake_outcome(&o);
        unmake(&q);
    }
}

/* ---- the center ---------------------------------------------------------------------------- */

static void check_center(const float *center, const float *before, const float *a, size_t rows_a, const float *b,
                         size_t rows_b, size_t K, double keep) {
    for (size_t k = 0; k < K; k++) {
        double sum = 0.0;
        for (size_t i = 0; i < rows_a; i++)
            sum += (double)a[i * K + k];
        for (size_t i = 0; i < rows_b; i++)
            sum += (double)b[i * K + k];
        double expected = keep * (double)before[k] + (1.0 - keep) * sum / (double)(rows_a + rows_b);
        assert_true(fabs((double)center[k] - expected) < 1e-6);
    }
}

static sd_status evaluate_three(sd_dino_loss *loss, const float *student, const float *teacher, size_t samples,
                                const sd_prototypes *ours, const sd_prototypes *theirs, sd_dino_result *result) {
    return sd_dino_loss_evaluate(loss, student, teacher, samples, 3, ours, theirs, 0.05, NULL, NULL, result);
}

static void test_commit_and_discard(void **state) {
    (void)state;
    static const double momenta[] = {0.9, 0.0, 1.0};
    for (size_t m = 0; m < 3; m++) {
        problem q = make(7, 3, 18, 18, SD_TARGET_CENTER, false);
        memset(q.teacher_v, 0, q.K * q.p * sizeof(float));
        for (size_t k = 0; k < q.K; k++)
            q.teacher_v[k * q.p + k] = 1.0f;
        sd_prototypes ours = {q.v, NULL, q.K}, theirs = {q.teacher_v, NULL, q.K};
        sd_dino_config config;
        sd_dino_config_init(&config);
        config.center_momentum = momenta[m];
        sd_dino_loss *loss;
        sd_dino_result result, again;
        assert_int_equal(sd_dino_loss_create(NULL, &config, 7, 3, q.p, q.K, &loss), SD_OK);
        float *center = sd_dino_loss_center(loss), before[18], zeros[18] = {0};
        assert_memory_equal(center, zeros, sizeof zeros);
        sd_dino_loss_commit(loss); /* nothing to commit */
        assert_memory_equal(center, zeros, sizeof zeros);
#define EVALUATE(rows, count, into)                                                                                    \
    assert_int_equal(evaluate_three(loss, q.student, rows, count, &ours, &theirs, into), SD_OK)
        EVALUATE(q.teacher, 7, &result);
        assert_memory_equal(center, zeros, sizeof zeros);
        sd_dino_loss_discard(loss);
        sd_dino_loss_commit(loss);
        assert_memory_equal(center, zeros, sizeof zeros);
        for (size_t k = 0; k < q.K; k++) /* the host may write it, when it resumes */
            before[k] = center[k] = 0.01f * (float)k;
        EVALUATE(q.teacher, 7, &again);
        assert_true(again.loss != result.loss);
        sd_dino_loss_discard(loss);
        EVALUATE(q.teacher, 4, &again);
        EVALUATE(q.teacher + 8 * q.p, 3, &again);
        sd_dino_loss_commit(loss);
        check_center(center, before, q.teacher, 8, q.teacher + 8 * q.p, 6, q.K, momenta[m]);
        memcpy(before, center, sizeof before);
        sd_dino_loss_commit(loss);
        assert_memory_equal(center, before, sizeof before);
        /* an evaluation that fails counts nothing, and takes nothing from the one before */
        EVALUATE(q.teacher, 5, &again);
        q.v[3] = NAN;
        assert_int_equal(evaluate_three(loss, q.student, q.teacher, 7, &ours, &theirs, &again), SD_ERR_NUMERIC);
        q.teacher_v[3] = INFINITY;
        assert_int_equal(evaluate_three(loss, q.student, q.teacher, 7, &ours, &theirs, &again), SD_ERR_NUMERIC);
        sd_dino_loss_commit(loss);
        check_center(center, before, q.teacher, 10, NULL, 0, q.K, momenta[m]);
        sd_dino_loss_destroy(loss);
        unmake(&q);
    }
}

/* Of patches; weights of 0 and below do as well as others. */
static void test_patch_weights(void **state) {
    (void)state;
    problem q = make(12, 0, 8, 30, SD_TARGET_CENTER, false);
    sd_prototypes ours = {q.v, NULL, q.K}, theirs = {q.teacher_v, NULL, q.K};
    sd_patch_loss *loss;
    double value, other;
    float *grad = random_floats(12 * q.p, 0, 0.0), *twice = random_floats(12 * q.p, 0, 0.0);
    assert_int_equal(sd_patch_loss_create(NULL, NULL, 12, q.p, q.K, &loss), SD_OK);
#define PATCHES(count, weight, into, result)                                                                           \
    assert_int_equal(sd_patch_loss_evaluate(loss, q.student, q.teacher, count, q.weights, IMAGES, &ours, &theirs,      \
                                            0.05, weight, into, NULL, &result),                                        \
                     SD_OK)
    PATCHES(12, 1.0, grad, value);
    assert_true(value > 0.0);
    PATCHES(12, 2.0, twice, other);
    assert_true(other == value);
    for (size_t i = 0; i < 12 * q.p; i++)
        assert_true(twice[i] == 2.0f * grad[i]);
    PATCHES(12, 0.0, twice, other); /* the value is told all the same */
    assert_true(other == value && largest_of(twice, 12 * q.p) == 0.0);
    PATCHES(0, 1.0, NULL, other);
    assert_true(other == 0.0);
    q.weights[5] = 0.0f;
    PATCHES(12, 1.0, grad, other);
    assert_true(other < value && largest_of(grad + 5 * q.p, q.p) == 0.0);
    sd_patch_loss_destroy(loss);
    free(twice);
    free(grad);
    unmake(&q);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),     cmocka_unit_test(test_finite_differences),
        cmocka_unit_test(test_threads),       cmocka_unit_test(test_sinkhorn_sums),
        cmocka_unit_test(test_spread_logits), cmocka_unit_test(test_commit_and_discard),
        cmocka_unit_test(test_patch_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
