/* The fused cross-entropy where it is cut: many prototypes (pieces and parts of them) and many rows (tiles) by finite
 * differences of a plain computation in double; which gradients are asked for, pieces of a batch, threads, memory, and
 * numbers that are not finite, one by one. */
#include "support/failing_memory.h"

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

static double *doubles(size_t count) {
    double *memory = calloc(count, sizeof(double));
    assert_non_null(memory);
    return memory;
}

static float *random_floats(size_t count, double scale, double shift, uint64_t seed) {
    sd_random random;
    sd_random_init(&random, seed, 0, 0);
    float *x = floats(count);
    for (size_t i = 0; i < count; i++)
        x[i] = (float)(shift + scale * sd_random_normal(&random));
    return x;
}

static void assert_near(double actual, double expected, double tolerance, const char *what) {
    if (!(fabs(actual - expected) <= tolerance))
        fail_msg("%s is %.9g, expected %.9g: off by %.3g, allowed %.3g", what, actual, expected, actual - expected,
                 tolerance);
}

static double largest(const float *x, size_t count) {
    double most = 0.0;
    for (size_t i = 0; i < count; i++)
        most = fmax(most, fabs((double)x[i]));
    return most;
}

/* ---- the plain computation in double ---------------------------------------------------------- */

/* A problem and its parameters in double, as they are varied. */
typedef struct problem {
    size_t samples, views, p, K;
    int32_t target;
    double student_temp, teacher_temp;
    float *student, *teacher, *student_v, *student_g, *teacher_v, *teacher_g;
    double *x, *v, *g;  /* the student's, in double */
    double *targets;    /* 2 samples x K: computed once */
} problem;

static double *widened(const float *x, size_t count) {
    double *y = doubles(count);
    for (size_t i = 0; i < count; i++)
        y[i] = (double)x[i];
    return y;
}

static void reference_logits(const double *x, size_t rows, size_t p, const double *v, const double *g, size_t K,
                             double temperature, double *logits) {
    for (size_t k = 0; k < K; k++) {
        double square = 0.0;
        for (size_t j = 0; j < p; j++)
            square += v[k * p + j] * v[k * p + j];
        double scale = square > 0.0 ? g[k] / (sqrt(square) * temperature) : 0.0;
        for (size_t i = 0; i < rows; i++) {
            double sum = 0.0;
            for (size_t j = 0; j < p; j++)
                sum += x[i * p + j] * v[k * p + j];
            logits[i * K + k] = scale * sum;
        }
    }
}

static double log_sum_exp(const double *x, size_t count, size_t stride) {
    double most = -INFINITY, sum = 0.0;
    for (size_t i = 0; i < count; i++)
        most = fmax(most, x[i * stride]);
    for (size_t i = 0; i < count; i++)
        sum += exp(x[i * stride] - most);
    return most + log(sum);
}

/* Logits to assignments, in place. Sinkhorn-Knopp on logarithms. */
static void reference_targets(double *logits, size_t rows, size_t K, int32_t target) {
    for (int round = 0; target == SD_TARGET_SINKHORN && round < 3; round++) {
        for (size_t k = 0; k < K; k++) {
            double all = log_sum_exp(logits + k, rows, K) + log((double)K);
            for (size_t i = 0; i < rows; i++)
                logits[i * K + k] -= all;
        }
        for (size_t i = 0; i < rows; i++) {
            double all = log_sum_exp(logits + i * K, K, 1) + log((double)rows);
            for (size_t k = 0; k < K; k++)
                logits[i * K + k] -= all;
        }
    }
    for (size_t i = 0; i < rows; i++) {
        double all = target == SD_TARGET_SINKHORN ? -log((double)rows) : log_sum_exp(logits + i * K, K, 1);
        for (size_t k = 0; k < K; k++)
            logits[i * K + k] = exp(logits[i * K + k] - all);
    }
}

static problem pose(size_t samples, size_t views, size_t p, size_t K, int32_t target, uint64_t seed) {
    problem q = {.samples = samples, .views = views, .p = p, .K = K, .target = target, .student_temp = 0.3,
                 .teacher_temp = 0.2};
    q.student = random_floats(views * samples * p, 0.6, 0.0, seed);
    q.teacher = random_floats(2 * samples * p, 0.6, 0.0, seed + 1);
    q.student_v = random_floats(K * p, 0.4, 0.0, seed + 2);
    q.student_g = random_floats(K, 0.3, 1.0, seed + 3);
    q.teacher_v = random_floats(K * p, 0.4, 0.0, seed + 4);
    q.teacher_g = random_floats(K, 0.3, 1.0, seed + 5);
    q.x = widened(q.student, views * samples * p);
    q.v = widened(q.student_v, K * p);
    q.g = widened(q.student_g, K);
    q.targets = doubles(2 * samples * K);
    double *y = widened(q.teacher, 2 * samples * p), *v = widened(q.teacher_v, K * p), *g = widened(q.teacher_g, K);
    reference_logits(y, 2 * samples, p, v, g, K, q.teacher_temp, q.targets);
    reference_targets(q.targets, 2 * samples, K, target);
    free(y);
    free(v);
    free(g);
    return q;
}

static void forget(problem *q) {
    void *arrays[] = {q->student, q->teacher, q->student_v, q->student_g, q->teacher_v,
                      q->teacher_g, q->x, q->v, q->g, q->targets};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        free(arrays[i]);
}

static double cross_entropy(const problem *q, const double *target, const double *logits, double all) {
    double sum = 0.0;
    for (size_t k = 0; k < q->K; k++)
        sum -= target[k] * (logits[k] - all);
    return sum;
}

/* DINO's: pair by pair. local receives the part of local views. */
static double reference_dino(const problem *q, double *local) {
    size_t rows = q->views * q->samples;
    double *logits = doubles(rows * q->K), sum = 0.0, pairs = (double)(2 * q->views - 2);
    reference_logits(q->x, rows, q->p, q->v, q->g, q->K, q->student_temp, logits);
    *local = 0.0;
    for (size_t j = 0; j < q->views; j++)
        for (size_t n = 0; n < q->samples; n++) {
            const double *row = logits + (j * q->samples + n) * q->K;
            double all = log_sum_exp(row, q->K, 1);
            for (size_t i = 0; i < 2; i++) {
                double value = i == j ? 0.0 : cross_entropy(q, q->targets + (i * q->samples + n) * q->K, row, all);
                sum += value;
                *local += j >= 2 ? value : 0.0;
            }
        }
    free(logits);
    *local /= pairs * (double)q->samples;
    return sum / (pairs * (double)q->samples);
}

/* iBOT's: student row r (views = 1: rows = 2 samples) against teacher row r. */
static double reference_patch(const problem *q, const float *weights, size_t images) {
    size_t rows = 2 * q->samples;
    double *logits = doubles(rows * q->K), sum = 0.0;
    reference_logits(q->x, rows, q->p, q->v, q->g, q->K, q->student_temp, logits);
    for (size_t i = 0; i < rows; i++) {
        const double *row = logits + i * q->K;
        sum += (double)weights[i] * cross_entropy(q, q->targets + i * q->K, row, log_sum_exp(row, q->K, 1));
    }
    free(logits);
    return sum / (double)images;
}

static sd_prototypes student_layer(const problem *q) { return (sd_prototypes){q->student_v, q->student_g, q->K}; }
static sd_prototypes teacher_layer(const problem *q) { return (sd_prototypes){q->teacher_v, q->teacher_g, q->K}; }

static sd_dino_config config_of(const problem *q) {
    sd_dino_config config;
    sd_dino_config_init(&config);
    config.target = q->target;
    config.student_temp = q->student_temp;
    return config;
}

static sd_dino_loss *make_dino(sd_context *context, const problem *q) {
    sd_dino_config config = config_of(q);
    sd_dino_loss *loss;
    if (sd_dino_loss_create(context, &config, q->samples, q->views, q->p, q->K, &loss) != SD_OK)
        fail_msg("%s", sd_last_error());
    return loss;
}

static sd_status evaluate(sd_dino_loss *loss, const problem *q, float *grad, const sd_prototypes_gradient *into,
                          sd_dino_result *result) {
    const sd_prototypes ours = student_layer(q), theirs = teacher_layer(q);
    return sd_dino_loss_evaluate(loss, q->student, q->teacher, q->samples, q->views, &ours, &theirs, q->teacher_temp,
                                 grad, into, result);
}

typedef struct patch_setting {
    const float *weights; /* NULL: DINO's loss */
    size_t images;
} patch_setting;

static double reference(const problem *q, const patch_setting *patch) {
    double local;
    return patch->weights ? reference_patch(q, patch->weights, patch->images) : reference_dino(q, &local);
}

/* Some of `count` slopes, every `step`th and the steepest, against central differences of the reference in `values`. */
static void compare_slopes(const problem *q, const patch_setting *patch, double *values, const float *slopes,
                           size_t count, size_t checks, double factor, const char *what) {
    double most = largest(slopes, count), h = 1e-4;
    size_t step = count / checks + 1, steepest = 0;
    for (size_t i = 0; i < count; i++)
        steepest = fabs((double)slopes[i]) >= most ? i : steepest;
    for (size_t check = 0, i; check <= checks + 1; check++) {
        i = check == checks ? steepest : check == checks + 1 ? count - 1 : check * step;
        if (i >= count)
            continue;
        double kept = values[i];
        values[i] = kept + h;
        double above = reference(q, patch);
        values[i] = kept - h;
        double below = reference(q, patch);
        values[i] = kept;
        /* one prototype has no slope at all: what is there is rounding of slopes of order 1 */
        double tolerance = q->K == 1 ? 1e-7 : 1e-5 * most + 1e-9;
        assert_near((double)slopes[i], factor * (above - below) / (2.0 * h), tolerance, what);
    }
}

static void check_dino(size_t samples, size_t views, size_t p, size_t K, int32_t target, size_t checks) {
    problem q = pose(samples, views, p, K, target, 11 + K);
    size_t count = views * samples * p;
    float *grad = floats(count), *dv = floats(K * p), *dg = floats(K);
    const sd_prototypes_gradient into = {dv, dg};
    const patch_setting none = {0};
    sd_dino_result result;
    sd_dino_loss *loss = make_dino(NULL, &q);
    assert_int_equal(evaluate(loss, &q, grad, &into, &result), SD_OK);
    double local, expected = reference_dino(&q, &local), entropy = 0.0;
    assert_near(result.loss, expected, 2e-6 * (1.0 + expected), "loss");
    assert_near(result.local_loss, local, 2e-6 * (1.0 + local), "local loss");
    for (size_t k = 0; k < K; k++) {
        double mean = 0.0;
        for (size_t i = 0; i < 2 * samples; i++)
            mean += q.targets[i * K + k] / (double)(2 * samples);
        entropy -= mean > 0.0 ? mean * log(mean) : 0.0;
    }
    assert_near(result.target_entropy, entropy, 1e-5, "entropy of the mean target");
    compare_slopes(&q, &none, q.x, grad, count, checks, 1.0, "gradient of the features");
    compare_slopes(&q, &none, q.v, dv, K * p, checks, 1.0, "gradient of weight_v");
    compare_slopes(&q, &none, q.g, dg, K, checks, 1.0, "gradient of weight_g");
    sd_dino_loss_destroy(loss);
    free(grad);
    free(dv);
    free(dg);
    forget(&q);
}

static void test_dino_differences(void **state) {
    (void)state;
    for (int32_t target = SD_TARGET_CENTER; target <= SD_TARGET_SINKHORN; target++) {
        check_dino(3, 4, 6, 1, target, 4);
        check_dino(1, 2, 3, 7, target, 20);
        check_dino(3, 5, 6, 50, target, 40);
        check_dino(4, 3, 17, 1024, target, 12);
        check_dino(2, 4, 5, 1025, target, 12);
        check_dino(110, 4, 3, 20, target, 12); /* three tiles */
    }
    check_dino(2, 3, 4, 20000, SD_TARGET_CENTER, 6); /* parts of several pieces */
}

static void check_patch(size_t rows, size_t p, size_t K, int32_t target) {
    problem q = pose(rows / 2, 2, p, K, target, 23 + K);
    float *weights = random_floats(rows, 0.2, 0.7, 9), *grad = floats(rows * p), *dv = floats(K * p), *dg = floats(K);
    const sd_prototypes_gradient into = {dv, dg};
    const patch_setting patch = {weights, 7};
    const sd_prototypes ours = student_layer(&q), theirs = teacher_layer(&q);
    sd_dino_config config = config_of(&q);
    sd_patch_loss *loss;
    double value, expected = reference_patch(&q, weights, 7);
    assert_int_equal(sd_patch_loss_create(NULL, &config, rows + 3, p, K, &loss), SD_OK);
    assert_int_equal(sd_patch_loss_evaluate(loss, q.student, q.teacher, rows, weights, 7, &ours, &theirs,
                                            q.teacher_temp, 0.7, grad, &into, &value),
                     SD_OK);
    assert_near(value, expected, 2e-6 * (1.0 + fabs(expected)), "patch loss");
    compare_slopes(&q, &patch, q.x, grad, rows * p, 20, 0.7, "gradient of the features");
    compare_slopes(&q, &patch, q.v, dv, K * p, 20, 0.7, "gradient of weight_v");
    compare_slopes(&q, &patch, q.g, dg, K, 20, 0.7, "gradient of weight_g");
    /* the weight multiplies gradients only */
    assert_int_equal(sd_patch_loss_evaluate(loss, q.student, q.teacher, rows, weights, 7, &ours, &theirs,
                                            q.teacher_temp, 0.0, grad, NULL, &value),
                     SD_OK);
    assert_near(value, expected, 2e-6 * (1.0 + fabs(expected)), "patch loss of weight 0");
    assert_true(largest(grad, rows * p) == 0.0);
    /* no rows: nothing happens, and no center is taken from it */
    sd_patch_loss_discard(loss);
    assert_int_equal(sd_patch_loss_evaluate(loss, NULL, NULL, 0, NULL, 7, &ours, &theirs, q.teacher_temp, 1.0, NULL,
                                            &into, &value),
                     SD_OK);
    assert_true(value == 0.0);
    sd_patch_loss_commit(loss);
    assert_true(largest(sd_patch_loss_center(loss), K) == 0.0);
    sd_patch_loss_destroy(loss);
    free(weights);
    free(grad);
    free(dv);
    free(dg);
    forget(&q);
}

static void test_patch_differences(void **state) {
    (void)state;
    for (int32_t target = SD_TARGET_CENTER; target <= SD_TARGET_SINKHORN; target++) {
        check_patch(6, 5, 30, target);
        check_patch(2, 4, 2100, target);
        check_patch(200, 3, 12, target); /* three tiles */
    }
}

/* Which gradients are asked for changes none of the others; they are added to what is there. */
static void test_gradients_wanted(void **state) {
    (void)state;
    problem q = pose(5, 4, 6, 1500, SD_TARGET_CENTER, 3);
    size_t count = q.views * q.samples * q.p;
    float *grad = floats(count), *dv = floats(q.K * q.p), *dg = floats(q.K), *again = floats(count);
    float *more_v = floats(q.K * q.p), *more_g = floats(q.K);
    const sd_prototypes_gradient both = {dv, dg}, only_v = {more_v, NULL}, only_g = {NULL, more_g};
    sd_dino_result result, other;
    sd_dino_loss *loss = make_dino(NULL, &q);
    assert_int_equal(evaluate(loss, &q, grad, &both, &result), SD_OK);
    assert_int_equal(evaluate(loss, &q, again, NULL, &other), SD_OK);
    assert_memory_equal(again, grad, count * sizeof *grad);
    assert_memory_equal(&other, &result, sizeof result);
    assert_int_equal(evaluate(loss, &q, again, &only_v, &other), SD_OK);
    assert_memory_equal(more_v, dv, q.K * q.p * sizeof *dv);
    assert_int_equal(evaluate(loss, &q, again, &only_g, &other), SD_OK);
    assert_memory_equal(more_g, dg, q.K * sizeof *dg);
    assert_int_equal(evaluate(loss, &q, NULL, &both, &other), SD_OK); /* without grad: none */
    assert_memory_equal(&other, &result, sizeof result);
    assert_memory_equal(more_v, dv, q.K * q.p * sizeof *dv);
    double most = largest(dv, q.K * q.p), most_g = largest(dg, q.K);
    assert_int_equal(evaluate(loss, &q, grad, &both, &result), SD_OK);
    for (size_t i = 0; i < q.K * q.p; i++)
        assert_near((double)dv[i], 2.0 * (double)more_v[i], 1e-6 * most, "twice weight_v's");
    for (size_t i = 0; i < q.K; i++)
        assert_near((double)dg[i], 2.0 * (double)more_g[i], 1e-6 * most_g, "twice weight_g's");

    /* weight_g NULL is weight_g of ones; a prototype of length 0 has no direction */
    memset(q.student_v + 3 * q.p, 0, q.p * sizeof(float));
    for (size_t k = 0; k < q.K; k++)
        q.student_g[k] = 1.0f;
    memset(dv, 0, q.K * q.p * sizeof *dv);
    memset(more_v, 0, q.K * q.p * sizeof *more_v);
    assert_int_equal(evaluate(loss, &q, grad, &only_v, &result), SD_OK);
    const sd_prototypes ones = {q.student_v, NULL, q.K}, theirs = teacher_layer(&q);
    const sd_prototypes_gradient plain = {dv, NULL};
    assert_int_equal(sd_dino_loss_evaluate(loss, q.student, q.teacher, q.samples, q.views, &ones, &theirs,
                                           q.teacher_temp, again, &plain, &other),
                     SD_OK);
    assert_memory_equal(again, grad, count * sizeof *grad);
    assert_memory_equal(dv, more_v, q.K * q.p * sizeof *dv);
    assert_true(largest(dv + 3 * q.p, q.p) == 0.0);
    sd_dino_loss_destroy(loss);
    void *arrays[] = {grad, dv, dg, again, more_v, more_g};
    for (size_t i = 0; i < 6; i++)
        free(arrays[i]);
    forget(&q);
}

/* ---- the center ---------------------------------------------------------------------------- */

static void test_center(void **state) {
    (void)state;
    problem q = pose(6, 3, 5, 1100, SD_TARGET_CENTER, 5);
    const sd_prototypes ours = student_layer(&q), theirs = teacher_layer(&q);
    sd_dino_result result;
    sd_dino_loss *whole = make_dino(NULL, &q), *pieces = make_dino(NULL, &q);
    float *center = sd_dino_loss_center(whole), *kept = floats(q.K);
    assert_true(largest(center, q.K) == 0.0);
    sd_dino_loss_commit(whole); /* nothing to commit */
    assert_true(largest(center, q.K) == 0.0);

    double *logits = doubles(2 * q.samples * q.K), *y = widened(q.teacher, 2 * q.samples * q.p);
    double *v = widened(q.teacher_v, q.K * q.p), *g = widened(q.teacher_g, q.K);
    reference_logits(y, 2 * q.samples, q.p, v, g, q.K, 1.0, logits);
    for (size_t k = 0; k < q.K; k++)
        center[k] = 0.25f;
    assert_int_equal(evaluate(whole, &q, NULL, NULL, &result), SD_OK);
    assert_true(center[7] == 0.25f); /* after the commit only */
    sd_dino_loss_commit(whole);
    for (size_t k = 0; k < q.K; k++) {
        double mean = 0.0;
        for (size_t i = 0; i < 2 * q.samples; i++)
            mean += logits[i * q.K + k] / (double)(2 * q.samples);
        assert_near((double)center[k], 0.9 * 0.25 + 0.1 * mean, 1e-6, "center");
    }

    /* three samples at a time are the same batch */
    size_t half = q.samples / 2;
    float *teacher = floats(2 * half * q.p), *student = floats(q.views * half * q.p);
    for (size_t k = 0; k < q.K; k++)
        sd_dino_loss_center(pieces)[k] = 0.25f;
    for (size_t piece = 0; piece < 2; piece++) {
        for (size_t view = 0; view < q.views; view++)
            memcpy(student + view * half * q.p, q.student + (view * q.samples + piece * half) * q.p,
                   half * q.p * sizeof *student);
        for (size_t view = 0; view < 2; view++)
            memcpy(teacher + view * half * q.p, q.teacher + (view * q.samples + piece * half) * q.p,
                   half * q.p * sizeof *teacher);
        assert_int_equal(sd_dino_loss_evaluate(pieces, student, teacher, half, q.views, &ours, &theirs, q.teacher_temp,
                                               NULL, NULL, &result),
                         SD_OK);
    }
    sd_dino_loss_commit(pieces);
    for (size_t k = 0; k < q.K; k++)
        assert_near((double)sd_dino_loss_center(pieces)[k], (double)center[k], 1e-7, "center of two pieces");

    /* what is discarded does not count; what failed did not happen */
    memcpy(kept, center, q.K * sizeof *kept);
    assert_int_equal(evaluate(whole, &q, NULL, NULL, &result), SD_OK);
    sd_dino_loss_discard(whole);
    sd_dino_loss_commit(whole);
    assert_memory_equal(center, kept, q.K * sizeof *kept);
    memcpy(sd_dino_loss_center(pieces), kept, q.K * sizeof *kept);
    assert_int_equal(evaluate(whole, &q, NULL, NULL, &result), SD_OK);
    assert_int_equal(evaluate(pieces, &q, NULL, NULL, &result), SD_OK);
    q.student_v[(q.K - 1) * q.p] = NAN;
    assert_int_equal(evaluate(pieces, &q, NULL, NULL, &result), SD_ERR_NUMERIC);
    sd_dino_loss_commit(whole);
    sd_dino_loss_commit(pieces);
    assert_memory_equal(center, sd_dino_loss_center(pieces), q.K * sizeof *kept);
    sd_dino_loss_destroy(whole);
    sd_dino_loss_destroy(pieces);
    void *arrays[] = {kept, logits, y, v, g, teacher, student};
    for (size_t i = 0; i < 7; i++)
        free(arrays[i]);
    forget(&q);
}

/* Equal targets everywhere, the two ways to collapse: the loss is ln K, and the entropy tells which. */
static void test_collapse(void **state) {
    (void)state;
    problem q = pose(4, 3, 5, 64, SD_TARGET_CENTER, 6);
    sd_dino_result result;
    sd_dino_loss *loss = make_dino(NULL, &q);
    memset(q.student, 0, q.views * q.samples * q.p * sizeof(float));
    assert_int_equal(evaluate(loss, &q, NULL, NULL, &result), SD_OK);
    assert_near(result.loss, log(64.0), 1e-6, "loss of a uniform student");
    memset(q.teacher, 0, 2 * q.samples * q.p * sizeof(float));
    assert_int_equal(evaluate(loss, &q, NULL, NULL, &result), SD_OK);
    assert_near(result.target_entropy, log(64.0), 1e-6, "entropy of uniform targets");
    sd_dino_loss_center(loss)[9] = -1000.0f; /* all to one prototype */
    assert_int_equal(evaluate(loss, &q, NULL, NULL, &result), SD_OK);
    assert_near(result.target_entropy, 0.0, 1e-6, "entropy of one prototype");
    sd_dino_loss_destroy(loss);
    forget(&q);
}

/* ---- Sinkhorn-Knopp with logits that are far apart --------------------------------------------- */

static void test_wide_sinkhorn(void **state) {
    (void)state;
    /* around the width where logarithms take over, and where exponentials would overflow in floats */
    const double scales[] = {1.0, 8.0, 12.0, 60.0, 2000.0};
    for (size_t s = 0; s < sizeof scales / sizeof *scales; s++) {
        problem q = pose(8, 3, 6, 30, SD_TARGET_SINKHORN, 31);
        for (size_t i = 0; i < 2 * q.samples * q.p; i++)
            q.teacher[i] *= (float)scales[s];
        double *y = widened(q.teacher, 2 * q.samples * q.p), *v = widened(q.teacher_v, q.K * q.p);
        double *g = widened(q.teacher_g, q.K), local;
        reference_logits(y, 2 * q.samples, q.p, v, g, q.K, q.teacher_temp, q.targets);
        reference_targets(q.targets, 2 * q.samples, q.K, q.target);
        sd_dino_loss *loss = make_dino(NULL, &q);
        sd_dino_result result;
        assert_int_equal(evaluate(loss, &q, NULL, NULL, &result), SD_OK);
        assert_near(result.loss, reference_dino(&q, &local), 2e-6 * (1.0 + scales[s]), "loss of wide logits");
        sd_dino_loss_destroy(loss);
        free(y);
        free(v);
        free(g);
        forget(&q);
    }
}

/* ---- threads ------------------------------------------------------------------------------- */

static sd_context *make_context(int32_t threads, failing_memory *memory) {
    sd_context_config config;
    sd_context *context;
    sd_context_config_init(&config);
    config.threads = threads;
    if (memory)
        failing_memory_install(memory, &config);
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    return context;
}

static void test_threads(void **state) {
    (void)state;
    for (int32_t target = SD_TARGET_CENTER; target <= SD_TARGET_SINKHORN; target++) {
        problem q = pose(60, 4, 9, 5000, target, 8);
        size_t count = q.views * q.samples * q.p;
        float *grad[2] = {floats(count), floats(count)}, *dv[2], *dg[2], *center = floats(q.K);
        sd_dino_result result[2];
        for (int32_t threads = 1; threads <= 5; threads += 2) {
            size_t which = threads > 1;
            sd_context *context = make_context(threads, NULL);
            sd_dino_loss *loss = make_dino(context, &q);
            dv[which] = floats(q.K * q.p);
            dg[which] = floats(q.K);
            const sd_prototypes_gradient into = {dv[which], dg[which]};
            for (int round = 0; round < 2; round++) {
                assert_int_equal(evaluate(loss, &q, grad[which], &into, &result[which]), SD_OK);
                sd_dino_loss_commit(loss);
            }
            if (threads == 1) {
                memcpy(center, sd_dino_loss_center(loss), q.K * sizeof *center);
            } else {
                assert_memory_equal(grad[1], grad[0], count * sizeof(float));
                assert_memory_equal(dv[1], dv[0], q.K * q.p * sizeof(float));
                assert_memory_equal(dg[1], dg[0], q.K * sizeof(float));
                assert_memory_equal(&result[1], &result[0], sizeof result[0]);
                assert_memory_equal(sd_dino_loss_center(loss), center, q.K * sizeof *center);
                free(dv[1]);
                free(dg[1]);
            }
            sd_dino_loss_destroy(loss);
            sd_context_destroy(context);
        }
        void *arrays[] = {grad[0], grad[1], dv[0], dg[0], center};
        for (size_t i = 0; i < 5; i++)
            free(arrays[i]);
        forget(&q);
    }
}

/* ---- memory -------------------------------------------------------------------------------- */

static size_t bytes_of_dino(int32_t target, size_t samples, size_t views) {
    failing_memory memory;
    sd_context *context = make_context(1, &memory);
    size_t before = memory.live_bytes;
    sd_dino_config config;
    sd_dino_config_init(&config);
    config.target = target;
    sd_dino_loss *loss;
    assert_int_equal(sd_dino_loss_create(context, &config, samples, views, 256, 65536, &loss), SD_OK);
    size_t bytes = memory.live_bytes - before;
    sd_dino_loss_destroy(loss);
    sd_context_destroy(context);
    return bytes;
}

/* The prototype layer of the official recipes: less than one copy of its 67 MB of weights, whatever the batch. */
static void test_memory(void **state) {
    (void)state;
    size_t small = bytes_of_dino(SD_TARGET_CENTER, 16, 10), large = bytes_of_dino(SD_TARGET_CENTER, 512, 10);
    assert_true(small < 60u * 1000 * 1000);
    assert_true(large < 70u * 1000 * 1000);
    /* Sinkhorn: one copy of the teacher's logits more */
    size_t logits = 2 * 16 * 65536 * sizeof(float), sinkhorn = bytes_of_dino(SD_TARGET_SINKHORN, 16, 10);
    assert_true(sinkhorn >= small + logits && sinkhorn < small + logits + 2 * 1000 * 1000);

    failing_memory memory;
    sd_context *context = make_context(1, &memory);
    sd_patch_loss *patch;
    size_t before = memory.live_bytes;
    assert_int_equal(sd_patch_loss_create(context, NULL, 100000, 256, 65536, &patch), SD_OK);
    assert_true(memory.live_bytes - before < 70u * 1000 * 1000);
    sd_patch_loss_destroy(patch);
    sd_context_destroy(context);
}

/* ---- bad input ----------------------------------------------------------------------------- */

/* One number at a time is NaN or infinite: a status, the result and the next evaluation as before. */
static void test_not_finite(void **state) {
    (void)state;
    for (int32_t target = SD_TARGET_CENTER; target <= SD_TARGET_SINKHORN; target++) {
        problem q = pose(3, 4, 5, 1040, target, 12);
        float *grad = floats(q.views * q.samples * q.p), *again = floats(q.views * q.samples * q.p);
        sd_dino_loss *loss = make_dino(NULL, &q);
        sd_dino_result good, result;
        assert_int_equal(evaluate(loss, &q, grad, NULL, &good), SD_OK);
        float *center = target == SD_TARGET_CENTER ? sd_dino_loss_center(loss) + 1030 : q.teacher_g;
        float *places[] = {q.student + 7, q.teacher + 29, q.student_v + 1035 * q.p, q.teacher_v + 1035 * q.p,
                           q.student_g + 1039, q.teacher_g + 3, center};
        uint32_t odd_bits = 0x7fc00001u; /* a NaN that is not the usual one */
        float odd;
        memcpy(&odd, &odd_bits, sizeof odd);
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            const float bad[] = {NAN, INFINITY, -INFINITY, odd}, kept = *places[i];
            for (size_t b = 0; b < 4; b++) {
                *places[i] = bad[b];
                result = good;
                if (evaluate(loss, &q, again, NULL, &result) != SD_ERR_NUMERIC)
                    fail_msg("target %d: number %zu was %g, and no error", target, i, (double)bad[b]);
                assert_memory_equal(&result, &good, sizeof good);
            }
            *places[i] = kept;
            assert_int_equal(evaluate(loss, &q, again, NULL, &result), SD_OK);
            assert_memory_equal(&result, &good, sizeof good);
            assert_memory_equal(again, grad, q.views * q.samples * q.p * sizeof *grad);
        }
        sd_dino_loss_destroy(loss);
        free(grad);
        free(again);
        forget(&q);
    }
    const sd_prototypes layer = {(const float[]){1.0f}, NULL, 1};
    const float x[1] = {1.0f}, weight[1] = {NAN};
    double value = 5.0;
    sd_patch_loss *patch;
    assert_int_equal(sd_patch_loss_create(NULL, NULL, 1, 1, 1, &patch), SD_OK);
    assert_int_equal(sd_patch_loss_evaluate(patch, x, x, 1, weight, 1, &layer, &layer, 0.1, 1.0, NULL, NULL, &value),
                     SD_ERR_NUMERIC);
    assert_true(value == 5.0);
    sd_patch_loss_destroy(patch);
}

static void test_room_for_settings(void **state) {
    (void)state;
    sd_dino_config config;
    sd_dino_loss *loss = NULL;
    sd_dino_config_init(&config);
    config.reserved[3] = 1;
    assert_int_equal(sd_dino_loss_create(NULL, &config, 4, 3, 5, 6, &loss), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "reserved[3]"));
    assert_null(loss);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dino_differences), cmocka_unit_test(test_patch_differences),
        cmocka_unit_test(test_gradients_wanted), cmocka_unit_test(test_center),
        cmocka_unit_test(test_collapse),         cmocka_unit_test(test_wide_sinkhorn),
        cmocka_unit_test(test_threads),          cmocka_unit_test(test_memory),
        cmocka_unit_test(test_not_finite),       cmocka_unit_test(test_room_for_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
