/* The queue of past features, and weights that change between evaluations, of the SimDINO loss. */
#include "support/failing_memory.h"

#include <simdino/loss.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { DIM = 6, VIEWS = 3, MOST = 5, QUEUE = 7 };

/* Unit rows of a batch: VIEWS x samples student rows, 2 x samples teacher rows. */
typedef struct batch {
    size_t samples;
    float student[VIEWS * MOST * DIM], teacher[2 * MOST * DIM];
} batch;

static void unit_rows(float *x, size_t rows, sd_random *random) {
    for (size_t i = 0; i < rows; i++) {
        double square = 0.0;
        for (size_t j = 0; j < DIM; j++) {
            x[i * DIM + j] = (float)sd_random_normal(random);
            square += (double)x[i * DIM + j] * (double)x[i * DIM + j];
        }
        for (size_t j = 0; j < DIM; j++)
            x[i * DIM + j] = (float)((double)x[i * DIM + j] / sqrt(square));
    }
}

static batch draw(size_t samples, uint64_t seed) {
    batch b = {.samples = samples};
    sd_random random;
    sd_random_init(&random, seed, 4, 4);
    unit_rows(b.student, VIEWS * samples, &random);
    unit_rows(b.teacher, 2 * samples, &random);
    return b;
}

static void assert_near(double actual, double expected, double tolerance, const char *what) {
    if (!(fabs(actual - expected) <= tolerance))
        fail_msg("%s is %.12g, expected %.12g: off by %.3g, allowed %.3g", what, actual, expected, actual - expected,
                 tolerance);
}

static sd_simdino_config config_of(int32_t type, uint64_t queue) {
    sd_simdino_config config;
    sd_simdino_config_init(&config);
    config.expa_type = type;
    config.queue = queue;
    return config;
}

static sd_simdino_loss *make(sd_context *context, const sd_simdino_config *config) {
    sd_simdino_loss *loss;
    if (sd_simdino_loss_create(context, config, MOST, VIEWS, DIM, &loss) != SD_OK)
        fail_msg("%s", sd_last_error());
    return loss;
}

static sd_status evaluate(sd_simdino_loss *loss, const batch *b, float *grad, sd_simdino_result *result) {
    return sd_simdino_loss_evaluate(loss, b->student, b->teacher, b->samples, VIEWS, grad, result);
}

/* ---- a plain queue in double ------------------------------------------------------------------ */

typedef struct plain_queue {
    double rows[2][1000 * DIM];
    size_t count; /* all that was ever put in; the last QUEUE count */
} plain_queue;

static double mixed(const batch *b, const double *student, int32_t type, size_t view, size_t i) {
    size_t at = view * b->samples * DIM + i;
    /* the library adds in float */
    return type == 1 ? 0.5 * (student[at] + (double)b->teacher[at]) : student[at];
}

/* loss and expansion in double, at `student` */
static double plain_loss(const batch *b, const double *student, const plain_queue *queue, int32_t type, double eps_sq,
                         double coeff, double *expansion) {
    size_t m = b->samples, past = queue->count < QUEUE ? queue->count : QUEUE, n = m + past;
    double compression = 0.0, gamma = (double)(DIM + n) / (double)(DIM * n);
    *expansion = 0.0;
    for (size_t view = 0; view < 2; view++) {
        double *w = calloc(n * DIM, sizeof *w), rate;
        for (size_t i = 0; i < m * DIM; i++)
            w[i] = mixed(b, student, type, view, i);
        for (size_t i = 0; i < past * DIM; i++)
            w[m * DIM + i] = queue->rows[view][(queue->count - past) * DIM + i];
        assert_int_equal(sd_coding_rate_f64(w, n, DIM, DIM, eps_sq, &rate, NULL, 0), SD_OK);
        *expansion += 0.5 * gamma * rate;
        free(w);
        for (size_t j = 0; j < VIEWS; j++)
            for (size_t i = 0; j != view && i < m * DIM; i++)
                compression += (double)b->teacher[view * m * DIM + i] * student[j * m * DIM + i];
    }
    return -coeff * compression / (double)((2 * VIEWS - 2) * m) - *expansion;
}

static void put(plain_queue *queue, const batch *b, int32_t type) {
    for (size_t view = 0; view < 2; view++)
        for (size_t i = 0; i < b->samples * DIM; i++) {
            size_t at = view * b->samples * DIM + i;
            float w = type == 1 ? 0.5f * (b->student[at] + b->teacher[at]) : b->student[at];
            queue->rows[view][queue->count * DIM + i] = (double)w;
        }
    queue->count += b->samples;
}

static void widen(const batch *b, double *student) {
    for (size_t i = 0; i < VIEWS * b->samples * DIM; i++)
        student[i] = (double)b->student[i];
}

/* Batches of different sizes fill the queue, flow over, and each is checked with its gradient. */
static void check_queue(int32_t type) {
    const size_t sizes[] = {3, 2, 4, 1, 5, 5, 2};
    const sd_simdino_config config = config_of(type, QUEUE);
    sd_simdino_loss *loss = make(NULL, &config);
    plain_queue *queue = calloc(1, sizeof *queue);
    for (size_t step = 0; step < sizeof sizes / sizeof *sizes; step++) {
        batch b = draw(sizes[step], 50 + step);
        double student[VIEWS * MOST * DIM], expansion, ignored;
        float grad[VIEWS * MOST * DIM];
        sd_simdino_result result;
        widen(&b, student);
        assert_int_equal(evaluate(loss, &b, grad, &result), SD_OK);
        double expected = plain_loss(&b, student, queue, type, config.eps_sq, config.coeff, &expansion);
        assert_near(result.loss, expected, 2e-6, "loss");
        assert_near(result.expansion, expansion, 2e-6, "expansion");
        for (size_t i = 0; i < VIEWS * b.samples * DIM; i += 5) {
            const double h = 1e-5, kept = student[i];
            student[i] = kept + h;
            double above = plain_loss(&b, student, queue, type, config.eps_sq, config.coeff, &ignored);
            student[i] = kept - h;
            double below = plain_loss(&b, student, queue, type, config.eps_sq, config.coeff, &ignored);
            student[i] = kept;
            assert_near((double)grad[i], (above - below) / (2.0 * h), 2e-6, "gradient");
        }
        put(queue, &b, type);
        sd_simdino_loss_commit(loss);
    }
    /* its state is what the plain one holds, the oldest first */
    for (size_t view = 0; view < 2; view++)
        for (size_t i = 0; i < QUEUE * DIM; i++)
            assert_true((double)sd_simdino_loss_queue(loss)[view * QUEUE * DIM + i] ==
                        queue->rows[view][(queue->count - QUEUE) * DIM + i]);
    free(queue);
    sd_simdino_loss_destroy(loss);
}

static void test_values_and_gradients(void **state) {
    (void)state;
    check_queue(0);
    check_queue(1);
}

static void test_no_queue(void **state) {
    (void)state;
    sd_simdino_config config;
    sd_simdino_config_init(&config);
    assert_true(config.queue == 0);
    sd_simdino_loss *loss = make(NULL, NULL);
    batch b = draw(4, 1);
    sd_simdino_result first, second;
    assert_null(sd_simdino_loss_queue(loss));
    assert_int_equal(evaluate(loss, &b, NULL, &first), SD_OK);
    sd_simdino_loss_commit(loss);
    sd_simdino_loss_discard(loss);
    assert_int_equal(evaluate(loss, &b, NULL, &second), SD_OK);
    assert_memory_equal(&first, &second, sizeof first);

    /* an empty queue is none */
    config.queue = QUEUE;
    sd_simdino_loss *with = make(NULL, &config);
    assert_int_equal(evaluate(with, &b, NULL, &second), SD_OK);
    assert_memory_equal(&first, &second, sizeof first);
    sd_simdino_loss_destroy(with);
    sd_simdino_loss_destroy(loss);
    sd_simdino_loss_commit(NULL);
    sd_simdino_loss_discard(NULL);
    assert_null(sd_simdino_loss_queue(NULL));
}

static void test_commit_and_discard(void **state) {
    (void)state;
    const sd_simdino_config config = config_of(1, QUEUE);
    sd_simdino_loss *loss = make(NULL, &config), *other = make(NULL, &config);
    batch a = draw(2, 1), b = draw(3, 2), c = draw(4, 3);
    sd_simdino_result first, second;
    const size_t bytes = 2 * QUEUE * DIM * sizeof(float);

    /* pieces of a batch do not see each other; together they are taken */
    assert_int_equal(evaluate(loss, &c, NULL, &first), SD_OK);
    sd_simdino_loss_discard(loss);
    assert_int_equal(evaluate(loss, &a, NULL, &second), SD_OK);
    assert_int_equal(evaluate(loss, &c, NULL, &second), SD_OK);
    assert_memory_equal(&first, &second, sizeof first);
    sd_simdino_loss_commit(loss);
    assert_int_equal(evaluate(other, &a, NULL, &second), SD_OK);
    sd_simdino_loss_commit(other);
    assert_int_equal(evaluate(other, &c, NULL, &second), SD_OK);
    sd_simdino_loss_commit(other);
    assert_memory_equal(sd_simdino_loss_queue(loss), sd_simdino_loss_queue(other), bytes);
    sd_simdino_loss_commit(other); /* nothing new */
    assert_memory_equal(sd_simdino_loss_queue(loss), sd_simdino_loss_queue(other), bytes);

    /* what is discarded or failed leaves it as it was */
    assert_int_equal(evaluate(other, &b, NULL, &second), SD_OK);
    sd_simdino_loss_discard(other);
    sd_simdino_loss_commit(other);
    batch bad = b;
    bad.student[3] = NAN;
    assert_int_equal(evaluate(other, &bad, NULL, &second), SD_ERR_NUMERIC);
    sd_simdino_loss_commit(other);
    assert_memory_equal(sd_simdino_loss_queue(loss), sd_simdino_loss_queue(other), bytes);

    /* more pieces than there is room for: the last ones stay */
    for (uint64_t piece = 0; piece < 4; piece++) {
        batch p = draw(5, 20 + piece);
        assert_int_equal(evaluate(loss, &p, NULL, &first), SD_OK);
        if (piece == 2)
            sd_simdino_loss_commit(other);
        if (piece >= 2)
            assert_int_equal(evaluate(other, &p, NULL, &second), SD_OK);
    }
    sd_simdino_loss_commit(loss);
    sd_simdino_loss_commit(other);
    assert_memory_equal(sd_simdino_loss_queue(loss), sd_simdino_loss_queue(other), bytes);
    sd_simdino_loss_destroy(loss);
    sd_simdino_loss_destroy(other);
}

/* A batch larger than the queue leaves its last samples there. */
static void test_short_queue(void **state) {
    (void)state;
    enum { SHORT = 3 };
    const sd_simdino_config config = config_of(0, SHORT);
    sd_simdino_loss *loss = make(NULL, &config);
    sd_simdino_result result;
    for (uint64_t step = 0; step < 3; step++) {
        batch b = draw(step == 1 ? 2 : MOST, 60 + step);
        assert_int_equal(evaluate(loss, &b, NULL, &result), SD_OK);
        sd_simdino_loss_commit(loss);
        for (size_t view = 0; view < 2; view++) {
            const float *rows = sd_simdino_loss_queue(loss) + view * SHORT * DIM;
            size_t taken = b.samples < SHORT ? b.samples : SHORT;
            assert_memory_equal(rows + (SHORT - taken) * DIM, b.student + ((view + 1) * b.samples - taken) * DIM,
                                taken * DIM * sizeof(float));
        }
    }
    sd_simdino_loss_destroy(loss);
}

/* The array alone is the state, filled in part or wholly. */
static void test_resume(void **state) {
    (void)state;
    const sd_simdino_config config = config_of(1, QUEUE);
    sd_simdino_loss *loss = make(NULL, &config);
    for (uint64_t step = 0; step < 4; step++) {
        batch b = draw(3, step), next = draw(5, step + 100);
        sd_simdino_result first, second;
        assert_int_equal(evaluate(loss, &b, NULL, &first), SD_OK);
        sd_simdino_loss_commit(loss);
        sd_simdino_loss *resumed = make(NULL, &config);
        memcpy(sd_simdino_loss_queue(resumed), sd_simdino_loss_queue(loss), 2 * QUEUE * DIM * sizeof(float));
        assert_int_equal(evaluate(loss, &next, NULL, &first), SD_OK);
        assert_int_equal(evaluate(resumed, &next, NULL, &second), SD_OK);
        assert_memory_equal(&first, &second, sizeof first);
        sd_simdino_loss_discard(loss);
        sd_simdino_loss_destroy(resumed);
    }
    sd_simdino_loss_queue(loss)[DIM + 2] = NAN; /* what a damaged file might hold */
    batch b = draw(3, 9);
    sd_simdino_result result;
    assert_int_equal(evaluate(loss, &b, NULL, &result), SD_ERR_NUMERIC);
    assert_non_null(strstr(sd_last_error(), "queue: feature 2 of row 1"));
    sd_simdino_loss_destroy(loss);
}

static void test_summed_groups(void **state) {
    (void)state;
    sd_simdino_config config = config_of(1, QUEUE);
    sd_simdino_loss *one = make(NULL, &config);
    config.groups = 2;
    config.reduce_gram = 1;
    sd_simdino_loss *two = make(NULL, &config);
    for (uint64_t step = 0; step < 3; step++) {
        batch b = draw(4, step);
        sd_simdino_result first, second;
        assert_int_equal(evaluate(one, &b, NULL, &first), SD_OK);
        assert_int_equal(evaluate(two, &b, NULL, &second), SD_OK);
        assert_near(second.loss, first.loss, 1e-12, "loss of summed groups");
        sd_simdino_loss_commit(one);
        sd_simdino_loss_commit(two);
    }
    sd_simdino_loss_destroy(one);
    sd_simdino_loss_destroy(two);
}

static void test_threads_and_memory(void **state) {
    (void)state;
    const sd_simdino_config config = config_of(1, QUEUE);
    float first[VIEWS * MOST * DIM];
    for (int32_t threads = 1; threads <= 4; threads += 3) {
        failing_memory memory;
        sd_context_config context_config;
        sd_context *context;
        sd_context_config_init(&context_config);
        context_config.threads = threads;
        failing_memory_install(&memory, &context_config);
        assert_int_equal(sd_context_create(&context_config, &context), SD_OK);
        long before = memory.live, tries = 0;
        sd_simdino_loss *loss = NULL;
        for (;; tries++) {
            memory.fail_at = memory.allocations + tries;
            sd_status status = sd_simdino_loss_create(context, &config, MOST, VIEWS, DIM, &loss);
            if (status == SD_OK)
                break;
            assert_int_equal(status, SD_ERR_MEMORY);
            assert_int_equal(memory.live, before);
            assert_true(tries < 100);
        }
        long made = memory.allocations;
        float grad[VIEWS * MOST * DIM];
        for (uint64_t step = 0; step < 4; step++) {
            batch b = draw(MOST, step);
            assert_int_equal(evaluate(loss, &b, grad, NULL), SD_OK);
            sd_simdino_loss_commit(loss);
        }
        assert_int_equal(memory.allocations, made);
        if (threads == 1)
            memcpy(first, grad, sizeof grad);
        assert_memory_equal(grad, first, sizeof grad);
        sd_simdino_loss_destroy(loss);
        assert_int_equal(memory.live, before);
        sd_context_destroy(context);
    }
}

static void test_refused(void **state) {
    (void)state;
    sd_simdino_loss *loss = NULL;
    sd_simdino_config config = config_of(1, (1u << 24) + 1);
    assert_int_equal(sd_simdino_loss_create(NULL, &config, MOST, VIEWS, DIM, &loss), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "queue is 16777217"));
    config.queue = QUEUE;
    config.groups = 2;
    assert_int_equal(sd_simdino_loss_create(NULL, &config, MOST, VIEWS, DIM, &loss), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "queue is 7 with 2 groups"));
    config.groups = 1;
    config.reserved[6] = 1;
    assert_int_equal(sd_simdino_loss_create(NULL, &config, MOST, VIEWS, DIM, &loss), SD_ERR_ARGUMENT);
    assert_null(loss);
}

/* ---- weights that change ----------------------------------------------------------------------- */

static void test_set_weights(void **state) {
    (void)state;
    sd_simdino_config config = config_of(1, 0);
    sd_simdino_loss *scheduled = make(NULL, &config);
    batch b = draw(5, 77);
    for (int step = 0; step < 3; step++) {
        sd_simdino_result first, second;
        float grad[2][VIEWS * MOST * DIM];
        config.eps_sq = 0.05 + 0.1 * step;
        config.coeff = 1.0 + step;
        sd_simdino_loss *fresh = make(NULL, &config);
        assert_int_equal(sd_simdino_loss_set_weights(scheduled, config.eps_sq, config.coeff), SD_OK);
        assert_int_equal(evaluate(fresh, &b, grad[0], &first), SD_OK);
        assert_int_equal(evaluate(scheduled, &b, grad[1], &second), SD_OK);
        assert_memory_equal(&first, &second, sizeof first);
        assert_memory_equal(grad[0], grad[1], sizeof grad[0]);
        /* those refused change nothing */
        assert_int_equal(sd_simdino_loss_set_weights(scheduled, 0.0, 3.0), SD_ERR_ARGUMENT);
        assert_int_equal(sd_simdino_loss_set_weights(scheduled, NAN, 3.0), SD_ERR_ARGUMENT);
        assert_int_equal(sd_simdino_loss_set_weights(scheduled, 1.0, INFINITY), SD_ERR_ARGUMENT);
        assert_int_equal(evaluate(scheduled, &b, NULL, &second), SD_OK);
        assert_memory_equal(&first, &second, sizeof first);
        sd_simdino_loss_destroy(fresh);
    }
    assert_int_equal(sd_simdino_loss_set_weights(NULL, 1.0, 1.0), SD_ERR_ARGUMENT);
    sd_simdino_loss_destroy(scheduled);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_and_gradients), cmocka_unit_test(test_no_queue),
        cmocka_unit_test(test_commit_and_discard),   cmocka_unit_test(test_resume),
        cmocka_unit_test(test_summed_groups),        cmocka_unit_test(test_threads_and_memory),
        cmocka_unit_test(test_refused),              cmocka_unit_test(test_set_weights),
        cmocka_unit_test(test_short_queue),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
