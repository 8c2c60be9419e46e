/* KoLeo and the patches' cosine by finite differences and at their edges; memory, failing allocations and refusals of
 * all losses with prototypes. */
#include "support/failing_memory.h"

#include <simdino/loss.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "random_floats.h"

static void refused(sd_status status, sd_status expected, const char *word) {
    assert_int_equal(status, expected);
    if (strstr(sd_last_error(), word) == NULL)
        fail_msg("\"%s\" does not name %s", sd_last_error(), word);
}

/* ---- slopes -------------------------------------------------------------------------------- */

typedef double value_of(const float *x, size_t rows, size_t dim, float *grad, void *with);

static void check_slope(value_of *value, void *with, float *x, size_t rows, size_t dim, double h) {
    static const double steps[] = {-2.0, -1.0, 1.0, 2.0}, factors[] = {1.0, -8.0, 8.0, -1.0};
    size_t count = rows * dim;
    float *grad = random_floats(count, 0), *moved = random_floats(count, 0);
    value(x, rows, dim, grad, with);
    double length = 0.0, sum = 0.0;
    for (size_t j = 0; j < count; j++)
        length += (double)grad[j] * (double)grad[j];
    length = sqrt(length);
    assert_true(length > 1e-3);
    for (int i = 0; i < 4; i++) {
        for (size_t j = 0; j < count; j++)
            moved[j] = (float)((double)x[j] + steps[i] * h * (double)grad[j] / length);
        sum += factors[i] * value(moved, rows, dim, NULL, with);
    }
    double found = sum / (12.0 * h);
    if (!(fabs(found - length) <= 1e-3 * length))
        fail_msg("the slope is %.7g, the gradient's length %.7g", found, length);
    free(moved);
    free(grad);
}

static double koleo_of(const float *x, size_t rows, size_t dim, float *grad, void *with) {
    double loss;
    assert_int_equal(sd_koleo_evaluate(with, x, rows, dim, grad, &loss), SD_OK);
    return loss;
}

static void test_koleo_slope(void **state) {
    (void)state;
    sd_koleo *koleo;
    assert_int_equal(sd_koleo_create(NULL, 150, 12, &koleo), SD_OK);
    static const size_t sizes[][2] = {{2, 3}, {9, 12}, {64, 8}, {65, 8}, {150, 12}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        float *x = random_floats(sizes[i][0] * sizes[i][1], 40 + i);
        check_slope(koleo_of, koleo, x, sizes[i][0], sizes[i][1], 1e-3);
        free(x);
    }
    sd_koleo_destroy(koleo);
}

static void test_koleo_edges(void **state) {
    (void)state;
    enum { ROWS = 6, DIM = 5 };
    float *x = random_floats(ROWS * DIM, 3), grad[ROWS * DIM];
    sd_koleo *koleo;
    double loss, moved;
    assert_int_equal(sd_koleo_create(NULL, ROWS, DIM, &koleo), SD_OK);
    assert_int_equal(sd_koleo_evaluate(koleo, x, 1, DIM, grad, &loss), SD_OK);
    assert_true(loss == 0.0);
    for (size_t j = 0; j < DIM; j++)
        assert_true(grad[j] == 0.0f);
    memcpy(x + DIM, x, DIM * sizeof *x); /* the same row twice, and a row of zeros */
    memset(x + 4 * DIM, 0, DIM * sizeof *x);
    assert_int_equal(sd_koleo_evaluate(koleo, x, ROWS, DIM, grad, &loss), SD_OK);
    assert_true(isfinite(loss) && loss > 2.0); /* two of six logarithms are those of some 1e-8 */
    for (size_t j = 0; j < ROWS * DIM; j++)
        assert_true(isfinite(grad[j]));
    for (size_t j = 0; j < 2 * DIM; j++) /* lengths do not matter */
        x[j] *= 8.0f;
    assert_int_equal(sd_koleo_evaluate(koleo, x, ROWS, DIM, NULL, &moved), SD_OK);
    assert_true(fabs(moved - loss) < 1e-6);
    assert_int_equal(sd_koleo_evaluate(koleo, x, 3, 3, grad, &loss), SD_OK); /* narrower rows, too */

    refused(sd_koleo_evaluate(koleo, x, ROWS + 1, DIM, grad, &loss), SD_ERR_ARGUMENT, "7 rows");
    refused(sd_koleo_evaluate(koleo, x, 0, DIM, grad, &loss), SD_ERR_ARGUMENT, "0 rows");
    refused(sd_koleo_evaluate(koleo, x, 2, DIM + 1, grad, &loss), SD_ERR_ARGUMENT, "of 6");
    refused(sd_koleo_evaluate(NULL, x, 2, DIM, grad, &loss), SD_ERR_ARGUMENT, "koleo is NULL");
    refused(sd_koleo_evaluate(koleo, NULL, 2, DIM, grad, &loss), SD_ERR_ARGUMENT, "rows is NULL");
    refused(sd_koleo_evaluate(koleo, x, 2, DIM, grad, NULL), SD_ERR_ARGUMENT, "loss is NULL");
    x[2 * DIM + 1] = NAN;
    refused(sd_koleo_evaluate(koleo, x, ROWS, DIM, grad, &loss), SD_ERR_NUMERIC, "row 2");
    sd_koleo_destroy(koleo);
    sd_koleo_destroy(NULL);
    koleo = NULL;
    refused(sd_koleo_create(NULL, 0, 4, &koleo), SD_ERR_ARGUMENT, "0 rows");
    refused(sd_koleo_create(NULL, 4, 0, &koleo), SD_ERR_ARGUMENT, "of 0");
    refused(sd_koleo_create(NULL, SIZE_MAX / 2, SIZE_MAX / 2, &koleo), SD_ERR_ARGUMENT, "too many");
    refused(sd_koleo_create(NULL, 4, 4, NULL), SD_ERR_ARGUMENT, "NULL");
    assert_null(koleo);
    free(x);
}

typedef struct cosine_data {
    const float *teacher, *weights;
} cosine_data;

static double cosine_of(const float *x, size_t rows, size_t dim, float *grad, void *with) {
    const cosine_data *data = with;
    double loss;
    assert_int_equal(sd_patch_cosine(x, data->teacher, rows, dim, data->weights, 4, grad, &loss), SD_OK);
    return loss;
}

static void test_patch_cosine(void **state) {
    (void)state;
    enum { ROWS = 9, DIM = 7 };
    float *x = random_floats(ROWS * DIM, 8), *teacher = random_floats(ROWS * DIM, 9);
    float *weights = random_floats(ROWS, 10);
    cosine_data data = {teacher, weights};
    float grad[ROWS * DIM];
    double loss;
    check_slope(cosine_of, &data, x, ROWS, DIM, 1e-2);
    memset(x, 0, DIM * sizeof *x); /* a row of length 0 on either side */
    memset(teacher + DIM, 0, DIM * sizeof *teacher);
    assert_int_equal(sd_patch_cosine(x, teacher, ROWS, DIM, weights, 4, grad, &loss), SD_OK);
    for (size_t j = 0; j < ROWS * DIM; j++)
        assert_true(isfinite(grad[j]));
    assert_int_equal(sd_patch_cosine(NULL, NULL, 0, DIM, NULL, 4, NULL, &loss), SD_OK);
    assert_true(loss == 0.0);
    for (size_t i = 0; i < ROWS; i++)
        weights[i] = 1.0f;
    assert_int_equal(sd_patch_cosine(teacher + 2 * DIM, teacher + 2 * DIM, 5, DIM, weights, 5, grad, &loss), SD_OK);
    assert_true(fabs(loss + 1.0) < 1e-12); /* a row and itself */
    /* shorter than the clamp of 1e-8, a row's length is a constant: the cosine's slope is -w t/(|t| 1e-8) / images */
    const float short_row[3] = {1e-9f, 0.0f, 0.0f}, other[3] = {1.0f, 2.0f, 2.0f};
    assert_int_equal(sd_patch_cosine(short_row, other, 1, 3, weights, 4, grad, &loss), SD_OK);
    assert_true(fabs(loss + 0.25 * 0.1 / 3.0) < 1e-8);
    for (size_t j = 0; j < 3; j++)
        assert_true(fabs((double)grad[j] + 0.25 * (double)other[j] / 3.0 * 1e8) < 10.0);
    refused(sd_patch_cosine(NULL, teacher, 2, DIM, weights, 4, grad, &loss), SD_ERR_ARGUMENT, "student is NULL");
    refused(sd_patch_cosine(x, NULL, 2, DIM, weights, 4, grad, &loss), SD_ERR_ARGUMENT, "teacher is NULL");
    refused(sd_patch_cosine(x, teacher, 2, DIM, NULL, 4, grad, &loss), SD_ERR_ARGUMENT, "weights is NULL");
    refused(sd_patch_cosine(x, teacher, 2, DIM, weights, 4, grad, NULL), SD_ERR_ARGUMENT, "loss is NULL");
    refused(sd_patch_cosine(x, teacher, 2, DIM, weights, 0, grad, &loss), SD_ERR_ARGUMENT, "images is 0");
    refused(sd_patch_cosine(x, teacher, 2, 0, weights, 4, grad, &loss), SD_ERR_ARGUMENT, "dim is 0");
    teacher[3 * DIM] = INFINITY;
    refused(sd_patch_cosine(x, teacher, ROWS, DIM, weights, 4, grad, &loss), SD_ERR_NUMERIC, "row 3");
    teacher[3 * DIM] = 1.0f;
    weights[6] = NAN;
    refused(sd_patch_cosine(x, teacher, ROWS, DIM, weights, 4, grad, &loss), SD_ERR_NUMERIC, "weight");
    free(weights);
    free(teacher);
    free(x);
}

/* ---- memory -------------------------------------------------------------------------------- */

static sd_context *hooked(failing_memory *memory) {
    sd_context_config hooks;
    sd_context_config_init(&hooks);
    hooks.threads = 2;
    failing_memory_install(memory, &hooks);
    sd_context *context = NULL;
    assert_int_equal(sd_context_create(&hooks, &context), SD_OK);
    return context;
}

static void test_failing_allocations(void **state) {
    (void)state;
    failing_memory memory;
    sd_context *context = hooked(&memory);
    long before = memory.live;
    for (int form = 0; form < 5; form++) {
        sd_dino_config config;
        sd_dino_config_init(&config);
        config.target = form % 2;
        bool made = false;
        int failures = 0;
        while (!made) {
            memory.allocations = 0;
            memory.fail_at = failures;
            sd_dino_loss *dino = NULL;
            sd_patch_loss *patch = NULL;
            sd_koleo *koleo = NULL;
            sd_status status = form < 2   ? sd_dino_loss_create(context, &config, 5, 4, 8, 40, &dino)
                               : form < 4 ? sd_patch_loss_create(context, &config, 5, 8, 40, &patch)
                                          : sd_koleo_create(context, 9, 8, &koleo);
            made = status == SD_OK;
            if (!made) {
                assert_int_equal(status, SD_ERR_MEMORY);
                assert_true(dino == NULL && patch == NULL && koleo == NULL);
                assert_int_equal(memory.live, before);
                failures++;
            }
            memory.fail_at = -1;
            sd_dino_loss_destroy(dino);
            sd_patch_loss_destroy(patch);
            sd_koleo_destroy(koleo);
            assert_int_equal(memory.live, before);
        }
        assert_true(failures >= 5);
    }
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

/* DINO at its published size: 65,536 prototypes, ten views of 64 samples. All its logits would take 160 MiB; less than
 * one copy of the prototypes (64 MiB) has to do, whatever the batch. */
static void test_memory_of_dino(void **state) {
    (void)state;
    const size_t prototypes = 65536, dim = 256;
    failing_memory memory;
    sd_context *context = hooked(&memory);
    size_t before = memory.live_bytes;
    sd_dino_loss *loss;
    assert_int_equal(sd_dino_loss_create(context, NULL, 64, 10, dim, prototypes, &loss), SD_OK);
    size_t taken = memory.peak_bytes - before, allowed = prototypes * dim * 4;
    if (taken >= allowed)
        fail_msg("%zu bytes were taken, %zu are allowed", taken, allowed);
    sd_dino_loss_destroy(loss);
    assert_int_equal(memory.live_bytes, before);
    sd_context_destroy(context);
}

/* Gradients of features are written, those of prototypes are added; an evaluation leaves nothing behind but that. */
static void test_repeated_evaluations(void **state) {
    (void)state;
    float *x = random_floats(24 * 8, 1), *v = random_floats(50 * 8, 2), *teacher = random_floats(12 * 8, 3);
    sd_prototypes layer = {v, NULL, 50};
    for (int target = 0; target < 2; target++) {
        float *grad[2], *dv[2];
        sd_dino_config config;
        sd_dino_config_init(&config);
        config.target = target;
        sd_dino_loss *dino;
        sd_dino_result results[2];
        assert_int_equal(sd_dino_loss_create(NULL, &config, 6, 4, 8, 50, &dino), SD_OK);
        for (int i = 0; i < 2; i++) {
            grad[i] = random_floats(24 * 8, 4);
            dv[i] = random_floats(50 * 8, 0);
            memset(dv[i], 0, 50 * 8 * sizeof(float));
            sd_prototypes_gradient into = {dv[i], NULL};
            for (int times = 0; times <= i; times++)
                assert_int_equal(
                    sd_dino_loss_evaluate(dino, x, teacher, 6, 4, &layer, &layer, 0.05, grad[i], &into, &results[i]),
                    SD_OK);
        }
        assert_memory_equal(&results[0], &results[1], sizeof results[0]);
        assert_memory_equal(grad[0], grad[1], 24 * 8 * sizeof(float));
        double most = 0.0; /* products are added to what is there: equal but for rounding */
        for (size_t j = 0; j < 50 * 8; j++)
            most = fmax(most, fabs((double)dv[0][j]));
        for (size_t j = 0; j < 50 * 8; j++)
            assert_true(fabs((double)dv[1][j] - 2.0 * (double)dv[0][j]) <= 1e-6 * most);
        for (int i = 0; i < 2; i++) {
            free(dv[i]);
            free(grad[i]);
        }
        sd_dino_loss_destroy(dino);
    }
    free(teacher);
    free(v);
    free(x);
}

static void test_no_allocation_in_an_evaluation(void **state) {
    (void)state;
    failing_memory memory;
    sd_context *context = hooked(&memory);
    float *x = random_floats(40 * 8, 1), *v = random_floats(50 * 8, 2), *grad = random_floats(40 * 8, 0);
    float *dv = random_floats(50 * 8, 0), weights[20];
    for (int i = 0; i < 20; i++)
        weights[i] = 1.0f;
    sd_prototypes layer = {v, NULL, 50};
    sd_prototypes_gradient into = {dv, NULL};
    for (int target = 0; target < 2; target++) {
        sd_dino_config config;
        sd_dino_config_init(&config);
        config.target = target;
        sd_dino_loss *dino;
        sd_patch_loss *patch;
        sd_koleo *koleo;
        sd_dino_result result;
        double value;
        assert_int_equal(sd_dino_loss_create(context, &config, 10, 4, 8, 50, &dino), SD_OK);
        assert_int_equal(sd_patch_loss_create(context, &config, 20, 8, 50, &patch), SD_OK);
        assert_int_equal(sd_koleo_create(context, 20, 8, &koleo), SD_OK);
        long after = memory.allocations;
        assert_int_equal(sd_dino_loss_evaluate(dino, x, x, 10, 4, &layer, &layer, 0.05, grad, &into, &result), SD_OK);
        assert_int_equal(
            sd_patch_loss_evaluate(patch, x, x, 20, weights, 3, &layer, &layer, 0.05, 1.0, grad, &into, &value), SD_OK);
        assert_int_equal(sd_koleo_evaluate(koleo, x, 20, 8, grad, &value), SD_OK);
        sd_dino_loss_commit(dino);
        sd_patch_loss_commit(patch);
        assert_int_equal(memory.allocations, after);
        sd_koleo_destroy(koleo);
        sd_patch_loss_destroy(patch);
        sd_dino_loss_destroy(dino);
    }
    free(dv);
    free(grad);
    free(v);
    free(x);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

/* ---- refusals ------------------------------------------------------------------------------ */

static void test_refused_configurations(void **state) {
    (void)state;
    const struct {
        int32_t target, iterations;
        double temp, momentum;
        const char *word;
    } cases[] = {
        {2, 3, 0.1, 0.9, "target"},
        {-1, 3, 0.1, 0.9, "target"},
        {1, 0, 0.1, 0.9, "sinkhorn_iterations"},
        {1, -2, 0.1, 0.9, "sinkhorn_iterations"},
        {1, 100000, 0.1, 0.9, "sinkhorn_iterations"},
        {0, 3, 0.0, 0.9, "student_temp"},
        {0, 3, -0.1, 0.9, "student_temp"},
        {0, 3, NAN, 0.9, "student_temp"},
        {0, 3, INFINITY, 0.9, "student_temp"},
        {0, 3, 0.1, 2.0, "center_momentum"},
        {0, 3, 0.1, -0.1, "center_momentum"},
        {0, 3, 0.1, NAN, "center_momentum"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sd_dino_config config;
        sd_dino_config_init(&config);
        config.target = cases[i].target;
        config.sinkhorn_iterations = cases[i].iterations;
        config.student_temp = cases[i].temp;
        config.center_momentum = cases[i].momentum;
        sd_dino_loss *dino = NULL;
        sd_patch_loss *patch = NULL;
        refused(sd_dino_loss_create(NULL, &config, 4, 4, 4, 4, &dino), SD_ERR_ARGUMENT, cases[i].word);
        refused(sd_patch_loss_create(NULL, &config, 4, 4, 4, &patch), SD_ERR_ARGUMENT, cases[i].word);
        assert_true(dino == NULL && patch == NULL);
    }
    sd_dino_loss *dino = NULL;
    sd_patch_loss *patch = NULL;
    refused(sd_dino_loss_create(NULL, NULL, 0, 4, 4, 4, &dino), SD_ERR_ARGUMENT, "max_samples is 0");
    refused(sd_dino_loss_create(NULL, NULL, 4, 1, 4, 4, &dino), SD_ERR_ARGUMENT, "max_views is 1");
    refused(sd_dino_loss_create(NULL, NULL, 4, 4, 0, 4, &dino), SD_ERR_ARGUMENT, "dim is 0");
    refused(sd_dino_loss_create(NULL, NULL, 4, 4, 4, 0, &dino), SD_ERR_ARGUMENT, "prototypes is 0");
    refused(sd_dino_loss_create(NULL, NULL, 4, 4, 4, SIZE_MAX, &dino), SD_ERR_ARGUMENT, "prototypes is");
    refused(sd_dino_loss_create(NULL, NULL, 4, 4, 4, 4, NULL), SD_ERR_ARGUMENT, "NULL");
    refused(sd_patch_loss_create(NULL, NULL, 0, 4, 4, &patch), SD_ERR_ARGUMENT, "max_rows is 0");
    refused(sd_patch_loss_create(NULL, NULL, SIZE_MAX, 4, 4, &patch), SD_ERR_ARGUMENT, "max_rows is");
    refused(sd_patch_loss_create(NULL, NULL, 4, 0, 4, &patch), SD_ERR_ARGUMENT, "dim is 0");
    refused(sd_patch_loss_create(NULL, NULL, 4, 4, 0, &patch), SD_ERR_ARGUMENT, "prototypes is 0");
    refused(sd_patch_loss_create(NULL, NULL, 4, 4, 4, NULL), SD_ERR_ARGUMENT, "NULL");
    assert_true(dino == NULL && patch == NULL);
}

#define SAMPLES 4
#define VIEWS   3
#define P       6
#define K       10

typedef struct fixture {
    float student[VIEWS * SAMPLES * P], teacher[2 * SAMPLES * P], v[K * P], weights[SAMPLES];
    sd_prototypes layer, other;
    sd_dino_loss *dino;
    sd_patch_loss *patch;
} fixture;

static sd_status dino_of(fixture *f, size_t samples, size_t views, double temp) {
    sd_dino_result result;
    return sd_dino_loss_evaluate(f->dino, f->student, f->teacher, samples, views, &f->layer, &f->other, temp, NULL,
                                 NULL, &result);
}

static sd_status patch_of(fixture *f, size_t rows, size_t images, double temp, double weight) {
    double result;
    return sd_patch_loss_evaluate(f->patch, f->student, f->teacher, rows, f->weights, images, &f->layer, &f->other,
                                  temp, weight, NULL, NULL, &result);
}

static void test_refused_evaluations(void **state) {
    (void)state;
    fixture f = {.weights = {1.0f, 1.0f, 1.0f, 1.0f}};
    float *x = random_floats(VIEWS * SAMPLES * P, 2);
    memcpy(f.student, x, sizeof f.student);
    memcpy(f.teacher, x, sizeof f.teacher);
    memcpy(f.v, x, sizeof f.v);
    f.layer = f.other = (sd_prototypes){f.v, NULL, K};
    sd_dino_result result;
    double value;
    assert_int_equal(sd_dino_loss_create(NULL, NULL, SAMPLES, VIEWS, P, K, &f.dino), SD_OK);
    assert_int_equal(sd_patch_loss_create(NULL, NULL, SAMPLES, P, K, &f.patch), SD_OK);
    static const double wrong[] = {0.0, -0.07, NAN, INFINITY};
    for (size_t i = 0; i < 4; i++) {
        refused(dino_of(&f, SAMPLES, VIEWS, wrong[i]), SD_ERR_ARGUMENT, "teacher_temp");
        refused(patch_of(&f, SAMPLES, 2, wrong[i], 1.0), SD_ERR_ARGUMENT, "teacher_temp");
    }
    refused(dino_of(&f, SAMPLES + 1, VIEWS, 0.05), SD_ERR_ARGUMENT, "samples is 5");
    refused(dino_of(&f, 0, VIEWS, 0.05), SD_ERR_ARGUMENT, "samples is 0");
    refused(dino_of(&f, SAMPLES, VIEWS + 1, 0.05), SD_ERR_ARGUMENT, "views is 4");
    refused(dino_of(&f, SAMPLES, 1, 0.05), SD_ERR_ARGUMENT, "views is 1");
    refused(patch_of(&f, SAMPLES + 1, 2, 0.05, 1.0), SD_ERR_ARGUMENT, "count is 5");
    refused(patch_of(&f, SAMPLES, 0, 0.05, 1.0), SD_ERR_ARGUMENT, "images is 0");
    refused(patch_of(&f, SAMPLES, 2, 0.05, NAN), SD_ERR_ARGUMENT, "weight is");
    f.other.count = K - 1;
    refused(dino_of(&f, SAMPLES, VIEWS, 0.05), SD_ERR_ARGUMENT, "9 prototypes");
    refused(patch_of(&f, SAMPLES, 2, 0.05, 1.0), SD_ERR_ARGUMENT, "9 prototypes");
    f.other.count = K;
    f.layer.weight_v = NULL;
    refused(dino_of(&f, SAMPLES, VIEWS, 0.05), SD_ERR_ARGUMENT, "weight_v");
    refused(patch_of(&f, SAMPLES, 2, 0.05, 1.0), SD_ERR_ARGUMENT, "weight_v");
    f.layer.weight_v = f.v;
    refused(sd_dino_loss_evaluate(NULL, f.student, f.teacher, 1, 2, &f.layer, &f.other, 0.1, NULL, NULL, &result),
            SD_ERR_ARGUMENT, "loss is NULL");
    refused(sd_dino_loss_evaluate(f.dino, NULL, f.teacher, 1, 2, &f.layer, &f.other, 0.1, NULL, NULL, &result),
            SD_ERR_ARGUMENT, "student is NULL");
    refused(sd_dino_loss_evaluate(f.dino, f.student, NULL, 1, 2, &f.layer, &f.other, 0.1, NULL, NULL, &result),
            SD_ERR_ARGUMENT, "teacher is NULL");
    refused(sd_dino_loss_evaluate(f.dino, f.student, f.teacher, 1, 2, &f.layer, &f.other, 0.1, NULL, NULL, NULL),
            SD_ERR_ARGUMENT, "result is NULL");
    refused(sd_dino_loss_evaluate(f.dino, f.student, f.teacher, 1, 2, NULL, &f.other, 0.1, NULL, NULL, &result),
            SD_ERR_ARGUMENT, "prototypes are NULL");
    refused(sd_patch_loss_evaluate(f.patch, NULL, f.teacher, 1, f.weights, 2, &f.layer, &f.other, 0.1, 1.0, NULL, NULL,
                                   &value),
            SD_ERR_ARGUMENT, "student is NULL");
    refused(sd_patch_loss_evaluate(f.patch, f.student, f.teacher, 1, NULL, 2, &f.layer, &f.other, 0.1, 1.0, NULL, NULL,
                                   &value),
            SD_ERR_ARGUMENT, "weights is NULL");
    refused(sd_patch_loss_evaluate(f.patch, f.student, f.teacher, 1, f.weights, 2, &f.layer, NULL, 0.1, 1.0, NULL, NULL,
                                   &value),
            SD_ERR_ARGUMENT, "prototypes are NULL");
    float kept = f.student[P + 1];
    f.student[P + 1] = NAN;
    refused(dino_of(&f, SAMPLES, VIEWS, 0.05), SD_ERR_NUMERIC, "row 1 of the student's features");
    refused(patch_of(&f, SAMPLES, 2, 0.05, 1.0), SD_ERR_NUMERIC, "row 1 of the student's patches");
    f.student[P + 1] = kept;
    f.teacher[2 * P] = INFINITY;
    refused(dino_of(&f, SAMPLES, VIEWS, 0.05), SD_ERR_NUMERIC, "row 2 of the teacher's features");
    refused(patch_of(&f, SAMPLES, 2, 0.05, 1.0), SD_ERR_NUMERIC, "row 2 of the teacher's patches");
    f.teacher[2 * P] = 0.5f;
    f.weights[1] = NAN;
    refused(patch_of(&f, SAMPLES, 2, 0.05, 1.0), SD_ERR_NUMERIC, "not finite");
    f.weights[1] = 1.0f;
    assert_int_equal(dino_of(&f, SAMPLES, VIEWS, 0.05), SD_OK); /* and it works after all that */
    assert_int_equal(patch_of(&f, SAMPLES, 2, 0.05, 1.0), SD_OK);
    sd_dino_loss_destroy(f.dino);
    sd_patch_loss_destroy(f.patch);
    sd_dino_loss_destroy(NULL);
    sd_patch_loss_destroy(NULL);
    sd_dino_loss_commit(NULL);
    sd_dino_loss_discard(NULL);
    sd_patch_loss_commit(NULL);
    sd_patch_loss_discard(NULL);
    assert_null(sd_dino_loss_center(NULL));
    assert_null(sd_patch_loss_center(NULL));
    free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_koleo_slope),
        cmocka_unit_test(test_koleo_edges),
        cmocka_unit_test(test_patch_cosine),
        cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_memory_of_dino),
        cmocka_unit_test(test_repeated_evaluations),
        cmocka_unit_test(test_no_allocation_in_an_evaluation),
        cmocka_unit_test(test_refused_configurations),
        cmocka_unit_test(test_refused_evaluations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
