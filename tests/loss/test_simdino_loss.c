/* The SimDINO loss against the official code of both versions, in groups, by finite differences and by its properties. */
#include "support/failing_memory.h"
#include "support/golden.h"

#include <simdino/loss.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static float *floats(size_t count) {
    float *memory = calloc(count, sizeof(float));
    assert_non_null(memory);
    return memory;
}

static void random_rows(float *x, size_t rows, size_t dim, uint64_t seed, bool unit) {
    sd_random random;
    sd_random_init(&random, seed, 0, 0);
    for (size_t i = 0; i < rows; i++) {
        double sum = 0.0;
        for (size_t j = 0; j < dim; j++) {
            x[i * dim + j] = (float)sd_random_normal(&random);
            sum += (double)x[i * dim + j] * (double)x[i * dim + j];
        }
        for (size_t j = 0; unit && j < dim; j++)
            x[i * dim + j] = (float)((double)x[i * dim + j] / sqrt(sum));
    }
}

static void assert_near(double actual, double expected, double tolerance, const char *what) {
    if (!(fabs(actual - expected) <= tolerance))
        fail_msg("%s is %.9g, expected %.9g: off by %.3g, allowed %.3g", what, actual, expected, actual - expected,
                 tolerance);
}

static sd_simdino_loss *make(sd_context *context, const sd_simdino_config *config, size_t samples, size_t views,
                             size_t dim) {
    sd_simdino_loss *loss = NULL;
    if (sd_simdino_loss_create(context, config, samples, views, dim, &loss) != SD_OK)
        fail_msg("%s", sd_last_error());
    return loss;
}

/* ---- golden -------------------------------------------------------------------------------- */

static double tolerance(const golden *g, const char *set, int type, const char *what) {
    return golden_tolerance(g, "%s/expa%d/%s", set, type, what);
}

/* v2 with normalized=False divides the rows by their lengths first: so does this, and pulls the gradient back through
 * it, ds = (du - <du, u> u) / |s|. */
static void normalize_rows(const float *raw, size_t rows, size_t dim, float *unit, double *lengths) {
    for (size_t i = 0; i < rows; i++) {
        double sum = 0.0;
        for (size_t j = 0; j < dim; j++)
            sum += (double)raw[i * dim + j] * (double)raw[i * dim + j];
        lengths[i] = sqrt(sum);
        for (size_t j = 0; j < dim; j++)
            unit[i * dim + j] = (float)((double)raw[i * dim + j] / lengths[i]);
    }
}

static void pull_back(float *grad, const float *unit, const double *lengths, size_t rows, size_t dim) {
    for (size_t i = 0; i < rows; i++) {
        double along = 0.0;
        for (size_t j = 0; j < dim; j++)
            along += (double)grad[i * dim + j] * (double)unit[i * dim + j];
        for (size_t j = 0; j < dim; j++)
            grad[i * dim + j] = (float)(((double)grad[i * dim + j] - along * (double)unit[i * dim + j]) / lengths[i]);
    }
}

static void check_file(const char *file, size_t samples, size_t dim, bool v2, const char *set, int type) {
    golden *g = golden_open(file);
    size_t views = (size_t)golden_scalar(g, "ncrops"), rows = views * samples;
    const float *student = golden_f32(g, "%s/student_feat", set), *teacher = golden_f32(g, "%s/teacher_feat", set);
    bool raw = strcmp(set, "raw") == 0;
    float *grad = floats(rows * dim), *unit = floats(rows * dim), *unit_teacher = floats(2 * samples * dim);
    double *lengths = calloc(rows, sizeof(double));
    sd_simdino_config config;
    sd_simdino_result result;
    char name[64];

    assert_int_equal(golden_get(g, "%s/student_feat", set)->count, rows * dim);
    sd_simdino_config_init(&config);
    config.eps_sq = golden_scalar(g, "eps");
    config.coeff = golden_scalar(g, "coeff");
    config.expa_type = type;
    if (raw && v2) {
        normalize_rows(student, rows, dim, unit, lengths);
        normalize_rows(teacher, 2 * samples, dim, unit_teacher, lengths);
        normalize_rows(student, rows, dim, unit, lengths);
        student = unit;
        teacher = unit_teacher;
    } else if (!v2) {
        config.normalized = 0; /* v1 always divides by the lengths */
    }
    sd_simdino_loss *loss = make(NULL, &config, samples, views, dim);
    assert_int_equal(sd_simdino_loss_evaluate(loss, student, teacher, samples, views, grad, &result), SD_OK);
    if (raw && v2)
        pull_back(grad, unit, lengths, rows, dim);
    assert_near(result.loss, golden_scalar(g, "%s/expa%d/loss", set, type), tolerance(g, set, type, "loss"), "loss");
    assert_near(result.compression, golden_scalar(g, "%s/expa%d/comp_loss", set, type),
                tolerance(g, set, type, "comp_loss"), "compression");
    assert_near(result.expansion, golden_scalar(g, "%s/expa%d/expa_loss", set, type),
                tolerance(g, set, type, "expa_loss"), "expansion");
    snprintf(name, sizeof(name), "%s/expa%d/grad_student", set, type);
    golden_compare_f32(g, name, grad, rows * dim, golden_tolerance(g, "%s", name));
    sd_simdino_loss_destroy(loss);
    free(grad);
    free(unit);
    free(unit_teacher);
    free(lengths);
    golden_close(g);
}

static void test_golden(void **state) {
    (void)state;
    const int counts[] = {2, 6, 12};
    for (int version = 1; version <= 2; version++) {
        for (size_t c = 0; c < 3; c++) {
            char file[64];
            snprintf(file, sizeof(file), "loss/mcr_v%d_ncrops%d.npz", version, counts[c]);
            for (int type = 0; type < 2; type++) {
                check_file(file, 8, 32, version == 2, "unit", type);
                check_file(file, 8, 32, version == 2, "raw", type);
            }
        }
    }
}

/* Two processes in one call. The gradient here is that of the mean of the groups' losses. Each process of the reference
 * stores the gradient of its own loss alone (reduce_cov 0), or, as the backward of its all_reduce sums, of the sum of
 * both losses (reduce_cov 1): with respect to its own features that is 2 times ours in either case. */
static void test_golden_groups(void **state) {
    (void)state;
    golden *g = golden_open("loss/mcr_v1_world2.npz");
    const golden_array *shape = golden_get(g, "student_feat");
    size_t world = shape->shape[0], views = shape->shape[1], m = shape->shape[2], p = shape->shape[3],
           samples = world * m;
    const float *s = golden_f32(g, "student_feat"), *t = golden_f32(g, "teacher_feat");
    float *student = floats(views * samples * p), *teacher = floats(2 * samples * p),
          *grad = floats(views * samples * p);
    float *of_process = floats(world * views * m * p);

    for (size_t w = 0; w < world; w++)
        for (size_t v = 0; v < views; v++) {
            memcpy(student + (v * samples + w * m) * p, s + (w * views + v) * m * p, m * p * sizeof(float));
            if (v < 2)
                memcpy(teacher + (v * samples + w * m) * p, t + (w * 2 + v) * m * p, m * p * sizeof(float));
        }
    for (int reduce = 0; reduce < 2; reduce++) {
        sd_simdino_config config;
        sd_simdino_result result;
        double means[3] = {0};
        const char *const names[] = {"loss", "comp_loss", "expa_loss"};
        char name[64];

        sd_simdino_config_init(&config);
        config.eps_sq = golden_scalar(g, "eps");
        config.coeff = golden_scalar(g, "coeff");
        config.groups = (int32_t)world;
        config.reduce_gram = reduce;
        config.normalized = 0;
        sd_simdino_loss *loss = make(NULL, &config, samples, views, p);
        assert_int_equal(sd_simdino_loss_evaluate(loss, student, teacher, samples, views, grad, &result), SD_OK);
        for (size_t k = 0; k < 3; k++)
            for (size_t w = 0; w < world; w++)
                means[k] += golden_number(golden_get(g, "reduce_cov%d/%s", reduce, names[k]), w) / (double)world;
        assert_near(result.loss, means[0], golden_tolerance(g, "reduce_cov%d/loss", reduce), "loss");
        assert_near(result.compression, means[1], golden_tolerance(g, "reduce_cov%d/comp_loss", reduce), "compression");
        assert_near(result.expansion, means[2], golden_tolerance(g, "reduce_cov%d/expa_loss", reduce), "expansion");
        for (size_t w = 0; w < world; w++)
            for (size_t v = 0; v < views; v++)
                for (size_t i = 0; i < m * p; i++)
                    of_process[(w * views + v) * m * p + i] = (float)world * grad[(v * samples + w * m) * p + i];
        snprintf(name, sizeof(name), "reduce_cov%d/grad_student", reduce);
        golden_compare_f32(g, name, of_process, world * views * m * p, golden_tolerance(g, "%s", name));
        sd_simdino_loss_destroy(loss);
    }
    free(student);
    free(teacher);
    free(grad);
    free(of_process);
    golden_close(g);
}

/* ---- by definition ------------------------------------------------------------------------- */

typedef struct problem {
    size_t samples, views, dim;
    float *student, *teacher;
} problem;

static problem pose(size_t samples, size_t views, size_t dim, bool unit) {
    problem q = {samples, views, dim, floats(views * samples * dim), floats(2 * samples * dim)};
    random_rows(q.student, views * samples, dim, 1, unit);
    random_rows(q.teacher, 2 * samples, dim, 2, unit);
    return q;
}

static void forget(problem *q) {
    free(q->student);
    free(q->teacher);
}

/* The loss written down plainly in double, from rows in double. */
static double plain_loss(const problem *q, const sd_simdino_config *config, const double *student) {
    size_t m = q->samples, p = q->dim, groups = (size_t)config->groups, rows = m / groups;
    double compression = 0.0, rates = 0.0;
    size_t pairs = 0;
    double *w = calloc(m * p, sizeof(double));

    for (size_t i = 0; i < 2; i++) {
        for (size_t j = 0; j < q->views; j++) {
            if (i == j)
                continue;
            for (size_t r = 0; r < m; r++) {
                double st = 0.0, ss = 0.0, tt = 0.0;
                for (size_t k = 0; k < p; k++) {
                    double s = student[(j * m + r) * p + k], t = (double)q->teacher[(i * m + r) * p + k];
                    st += s * t;
                    ss += s * s;
                    tt += t * t;
                }
                compression += config->normalized ? st : st / (fmax(sqrt(ss), 1e-8) * fmax(sqrt(tt), 1e-8));
                pairs++;
            }
        }
        for (size_t k = 0; k < m * p; k++) {
            double s = student[i * m * p + k], t = (double)q->teacher[i * m * p + k];
            w[k] = config->expa_type ? 0.5 * (s + t) : s;
        }
        size_t parts = config->reduce_gram ? 1 : groups, count = config->reduce_gram ? m : rows;
        for (size_t part = 0; part < parts; part++) {
            double rate;
            /* The scale p/(m N eps) on `count` rows: eps grows by m N / count. */
            assert_int_equal(sd_coding_rate_f64(w + part * count * p, count, p, p,
                                                config->eps_sq * (double)m / (double)count, &rate, NULL, 0), SD_OK);
            rates += rate / (2.0 * (double)parts);
        }
    }
    free(w);
    return -config->coeff * compression / (double)pairs - sd_coding_rate_gamma(m, p) * rates;
}

static void test_finite_differences(void **state) {
    (void)state;
    for (int variant = 0; variant < 32; variant++) {
        problem q = pose(6, variant & 1 ? 2 : 4, variant & 2 ? 3 : 9, (variant & 4) != 0);
        size_t count = q.views * q.samples * q.dim;
        float *grad = floats(count);
        double *student = calloc(count, sizeof(double)), step = 1e-5;
        sd_simdino_config config;
        sd_simdino_result result;

        sd_simdino_config_init(&config);
        config.coeff = 0.7;
        config.eps_sq = 0.4;
        config.expa_type = (variant >> 3) & 1;
        config.normalized = (variant >> 2) & 1;
        config.groups = variant & 16 ? 3 : 1;
        config.reduce_gram = variant & 1;
        sd_simdino_loss *loss = make(NULL, &config, q.samples, q.views, q.dim);
        assert_int_equal(sd_simdino_loss_evaluate(loss, q.student, q.teacher, q.samples, q.views, grad, &result),
                         SD_OK);
        for (size_t i = 0; i < count; i++)
            student[i] = (double)q.student[i];
        assert_near(result.loss, plain_loss(&q, &config, student), 1e-6, "loss");
        for (size_t i = 0; i < count; i++) {
            double keep = student[i];
            student[i] = keep + step;
            double above = plain_loss(&q, &config, student);
            student[i] = keep - step;
            double below = plain_loss(&q, &config, student);
            student[i] = keep;
            assert_near((double)grad[i], (above - below) / (2.0 * step), 3e-7, "gradient");
        }
        sd_simdino_loss_destroy(loss);
        free(grad);
        free(student);
        forget(&q);
    }
}

/* ---- properties ---------------------------------------------------------------------------- */

static void test_diagnostics(void **state) {
    (void)state;
    enum { M = 12, P = 4 };
    float student[2 * M * P] = {0}, teacher[2 * M * P] = {0};
    sd_simdino_loss *loss = make(NULL, NULL, M, 2, P);
    sd_simdino_result result;

    for (size_t i = 0; i < 2 * M; i++) /* all alike */
        student[i * P] = teacher[i * P] = 1.0f;
    assert_int_equal(sd_simdino_loss_evaluate(loss, student, teacher, M, 2, NULL, &result), SD_OK);
    assert_near(result.effective_rank, 1.0, 1e-6, "effective rank of collapsed features");
    assert_near(result.similarity, 1.0, 1e-12, "similarity of collapsed features");
    assert_near(result.compression, 1.0, 1e-12, "compression of collapsed features");
    assert_near(result.rate, 0.5 * log1p(4.0 / 0.05), 1e-9, "rate of collapsed features");
    assert_near(result.expansion, result.rate * sd_coding_rate_gamma(M, P), 1e-12, "expansion");
    memset(student, 0, sizeof(student));
    for (size_t i = 0; i < 2 * M; i++) /* spread evenly over the axes */
        student[i * P + i % P] = 1.0f;
    assert_int_equal(sd_simdino_loss_evaluate(loss, student, student, M, 2, NULL, &result), SD_OK);
    assert_near(result.effective_rank, 4.0, 1e-6, "effective rank of spread features");
    /* 4*3*2 equal pairs of 12*11 */
    assert_near(result.similarity, 24.0 / 132.0, 1e-12, "similarity of spread features");
    assert_near(result.rate, 2.0 * log1p(1.0 / 0.05), 1e-9, "rate of spread features");
    memset(student, 0, sizeof(student));
    assert_int_equal(sd_simdino_loss_evaluate(loss, student, student, M, 2, NULL, &result), SD_OK);
    assert_true(result.effective_rank == 0.0 && result.similarity == 0.0 && result.rate == 0.0);
    assert_int_equal(sd_simdino_loss_evaluate(loss, teacher, teacher, 1, 2, NULL, &result), SD_OK);
    assert_true(result.similarity == 0.0);
    assert_near(result.effective_rank, 1.0, 1e-6, "effective rank of one row");
    sd_simdino_loss_destroy(loss);
}

/* Any number of threads gives the same bits. */
static void test_threads(void **state) {
    (void)state;
    problem q = pose(96, 5, 40, true);
    size_t count = q.views * q.samples * q.dim;
    float *first = floats(count), *grad = floats(count);
    sd_simdino_result result_first, result;
    sd_simdino_config config;

    sd_simdino_config_init(&config);
    for (int32_t groups = 1; groups <= 8; groups *= 2) {
        config.groups = groups;
        for (int32_t threads = 1; threads <= 7; threads += 2) {
            sd_context_config context_config;
            sd_context *context = NULL;
            sd_context_config_init(&context_config);
            context_config.threads = threads;
            assert_int_equal(sd_context_create(&context_config, &context), SD_OK);
            sd_simdino_loss *loss = make(context, &config, q.samples, q.views, q.dim);
            assert_int_equal(sd_simdino_loss_evaluate(loss, q.student, q.teacher, q.samples, q.views,
                                                      threads == 1 ? first : grad,
                                                      threads == 1 ? &result_first : &result),
                             SD_OK);
            if (threads > 1) {
                assert_memory_equal(grad, first, count * sizeof(float));
                assert_memory_equal(&result, &result_first, sizeof(result));
            }
            sd_simdino_loss_destroy(loss);
            sd_context_destroy(context);
        }
    }
    free(first);
    free(grad);
    forget(&q);
}

/* The published runs: eight groups whose local Gram meets the scale of all. The rate falls with the number of groups,
 * and summing the Grams gives the number of one group again. */
static void test_groups_lower_the_rate(void **state) {
    (void)state;
    problem q = pose(64, 2, 16, true);
    double previous = INFINITY, one = 0.0;
    for (int32_t groups = 1; groups <= 16; groups *= 2) {
        sd_simdino_config config;
        sd_simdino_result local, summed;
        sd_simdino_config_init(&config);
        config.groups = groups;
        sd_simdino_loss *loss = make(NULL, &config, q.samples, q.views, q.dim);
        assert_int_equal(sd_simdino_loss_evaluate(loss, q.student, q.teacher, q.samples, q.views, NULL, &local), SD_OK);
        sd_simdino_loss_destroy(loss);
        config.reduce_gram = 1;
        loss = make(NULL, &config, q.samples, q.views, q.dim);
        assert_int_equal(sd_simdino_loss_evaluate(loss, q.student, q.teacher, q.samples, q.views, NULL, &summed),
                         SD_OK);
        sd_simdino_loss_destroy(loss);
        if (groups == 1)
            one = local.expansion;
        assert_true(local.expansion < previous);
        assert_true(summed.expansion == one);
        assert_true(summed.compression == local.compression);
        previous = local.expansion;
    }
    forget(&q);
}

/* Collapsed features at a tiny eps, where the official factorisation fails or turns to NaN. */
static void test_collapsed_features(void **state) {
    (void)state;
    problem q = pose(64, 3, 256, true);
    const double eps[] = {0.5, 0.05, 1e-3, 1e-8, 1e-14};
    size_t count = q.views * q.samples * q.dim;
    float *grad = floats(count);
    for (size_t i = 0; i < count; i++)
        q.student[i] = q.student[i % q.dim];
    for (size_t i = 0; i < 2 * q.samples * q.dim; i++)
        q.teacher[i] = q.student[i % q.dim];
    for (size_t e = 0; e < sizeof(eps) / sizeof(*eps); e++) {
        sd_simdino_config config;
        sd_simdino_result result;
        sd_simdino_config_init(&config);
        config.eps_sq = eps[e];
        sd_simdino_loss *loss = make(NULL, &config, q.samples, q.views, q.dim);
        assert_int_equal(sd_simdino_loss_evaluate(loss, q.student, q.teacher, q.samples, q.views, grad, &result),
                         SD_OK);
        assert_near(result.rate, 0.5 * log1p(256.0 / eps[e]), 1e-5 * result.rate, "rate of collapsed features");
        assert_near(result.similarity, 1.0, 1e-6, "similarity");
        for (size_t i = 0; i < count; i++)
            assert_true(isfinite(grad[i]));
        sd_simdino_loss_destroy(loss);
    }
    free(grad);
    forget(&q);
}

/* ---- errors -------------------------------------------------------------------------------- */

static void expect_message(const char *part) {
    if (!strstr(sd_last_error(), part))
        fail_msg("message \"%s\" does not contain \"%s\"", sd_last_error(), part);
}

static void test_not_finite(void **state) {
    (void)state;
    problem q = pose(8, 4, 5, true);
    size_t count = q.views * q.samples * q.dim;
    float *grad = floats(count);
    for (int type = 0; type < 2; type++) {
        sd_simdino_config config;
        sd_simdino_result result = {.loss = 9.0};
        sd_simdino_config_init(&config);
        config.groups = 2;
        config.expa_type = type;
        sd_simdino_loss *loss = make(NULL, &config, q.samples, q.views, q.dim);
        for (size_t i = 0; i < count; i += 3) {
            char where[160];
            float keep = q.student[i];
            size_t row = i / q.dim, sample = row % q.samples;
            q.student[i] = i & 1 ? NAN : INFINITY;
            grad[i] = 9.0f;
            assert_int_equal(sd_simdino_loss_evaluate(loss, q.student, q.teacher, q.samples, q.views, grad, &result),
                             SD_ERR_NUMERIC);
            snprintf(where, sizeof(where), "student view %zu, group %zu: feature %zu of sample %zu", row / q.samples,
                     sample / 4, i % q.dim, sample);
            expect_message(where);
            assert_true(grad[i] == 9.0f && result.loss == 9.0);
            q.student[i] = keep;
        }
        q.teacher[57] = -INFINITY;
        assert_int_equal(sd_simdino_loss_evaluate(loss, q.student, q.teacher, q.samples, q.views, grad, &result),
                         SD_ERR_NUMERIC);
        expect_message("teacher view 1, group 0: feature 2 of sample 3");
        q.teacher[57] = 0.1f;
        assert_int_equal(sd_simdino_loss_evaluate(loss, q.student, q.teacher, q.samples, q.views, grad, &result),
                         SD_OK);
        sd_simdino_loss_destroy(loss);
    }
    free(grad);
    forget(&q);
}

static void test_arguments(void **state) {
    (void)state;
    sd_simdino_config config;
    sd_simdino_loss *loss = NULL;
    sd_simdino_result result;
    float x[2 * 4 * 3] = {0};

    sd_simdino_config_init(&config);
    assert_int_equal(sd_simdino_loss_create(NULL, &config, 4, 2, 3, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_simdino_loss_create(NULL, &config, 0, 2, 3, &loss), SD_ERR_ARGUMENT);
    expect_message("max_samples is 0");
    assert_int_equal(sd_simdino_loss_create(NULL, &config, 4, 1, 3, &loss), SD_ERR_ARGUMENT);
    expect_message("max_views is 1");
    assert_int_equal(sd_simdino_loss_create(NULL, &config, 4, 2, 0, &loss), SD_ERR_ARGUMENT);
    expect_message("dim is 0");
    assert_int_equal(sd_simdino_loss_create(NULL, &config, 1u << 30, SIZE_MAX / 2, 3, &loss), SD_ERR_MEMORY);
#define REFUSE(member, value)                                                                    \
    do {                                                                                         \
        sd_simdino_config bad = config;                                                          \
        bad.member = value;                                                                      \
        assert_int_equal(sd_simdino_loss_create(NULL, &bad, 4, 2, 3, &loss), SD_ERR_ARGUMENT);   \
        expect_message(#member);                                                                 \
    } while (0)
    REFUSE(eps_sq, 0.0);
    REFUSE(eps_sq, (double)NAN);
    REFUSE(coeff, (double)INFINITY);
    REFUSE(expa_type, 2);
    REFUSE(groups, 0);
    REFUSE(groups, 5);
    REFUSE(reduce_gram, -1);
    REFUSE(normalized, 3);
    assert_null(loss);
    config.groups = 2;
    loss = make(NULL, &config, 4, 2, 3);
    assert_int_equal(sd_simdino_loss_evaluate(NULL, x, x, 4, 2, NULL, &result), SD_ERR_ARGUMENT);
    assert_int_equal(sd_simdino_loss_evaluate(loss, NULL, x, 4, 2, NULL, &result), SD_ERR_ARGUMENT);
    assert_int_equal(sd_simdino_loss_evaluate(loss, x, NULL, 4, 2, NULL, &result), SD_ERR_ARGUMENT);
    assert_int_equal(sd_simdino_loss_evaluate(loss, x, x, 0, 2, NULL, &result), SD_ERR_ARGUMENT);
    assert_int_equal(sd_simdino_loss_evaluate(loss, x, x, 6, 2, NULL, &result), SD_ERR_ARGUMENT);
    expect_message("samples is 6");
    assert_int_equal(sd_simdino_loss_evaluate(loss, x, x, 3, 2, NULL, &result), SD_ERR_ARGUMENT);
    expect_message("multiple of the 2 groups");
    assert_int_equal(sd_simdino_loss_evaluate(loss, x, x, 4, 1, NULL, &result), SD_ERR_ARGUMENT);
    assert_int_equal(sd_simdino_loss_evaluate(loss, x, x, 4, 3, NULL, &result), SD_ERR_ARGUMENT);
    expect_message("views is 3");
    assert_int_equal(sd_simdino_loss_evaluate(loss, x, x, 2, 2, NULL, NULL), SD_OK);
    sd_simdino_loss_destroy(loss);
    sd_simdino_loss_destroy(NULL);
}

static void test_memory(void **state) {
    (void)state;
    failing_memory memory = {.fail_at = -1};
    sd_context_config context_config;
    sd_context *context = NULL;
    sd_simdino_loss *loss = NULL;
    sd_simdino_result result;
    problem q = pose(8, 4, 5, true);
    float *grad = floats(q.views * q.samples * q.dim);

    sd_context_config_init(&context_config);
    context_config.threads = 2;
    failing_memory_install(&memory, &context_config);
    assert_int_equal(sd_context_create(&context_config, &context), SD_OK);
    long before = memory.live, tries = 0;
    for (long fail = 0;; fail++, tries++) {
        memory.fail_at = memory.allocations + fail;
        sd_status status = sd_simdino_loss_create(context, NULL, q.samples, q.views, q.dim, &loss);
        if (status == SD_OK)
            break;
        assert_int_equal(status, SD_ERR_MEMORY);
        assert_null(loss);
        assert_int_equal(memory.live, before);
        assert_true(tries < 100);
    }
    assert_true(tries > 8);
    memory.fail_at = memory.allocations; /* evaluating needs none */
    memory.sticky = 1;
    long made = memory.allocations;
    assert_int_equal(sd_simdino_loss_evaluate(loss, q.student, q.teacher, q.samples, q.views, grad, &result), SD_OK);
    assert_int_equal(memory.allocations, made);
    memory.fail_at = -1;
    sd_simdino_loss_destroy(loss);
    assert_int_equal(memory.live, before);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
    free(grad);
    forget(&q);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_golden_groups),
        cmocka_unit_test(test_finite_differences),
        cmocka_unit_test(test_diagnostics),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_groups_lower_the_rate),
        cmocka_unit_test(test_collapsed_features),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests_name("simdino loss", tests, NULL, NULL);
}
