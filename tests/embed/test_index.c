/* The index against a plain search in double precision: metrics, shapes, ties, ids, removal, threads, memory, hooks. */
#include "base/system.h"
#include "embed/index.h"
#include "support/failing_memory.h"

#include <simdino/index.h>

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void *array(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    assert_non_null(memory);
    return memory;
}
#define ARRAY(type, count) ((type *)array((count), sizeof(type)))

static float *random_rows(size_t n, size_t d, uint64_t seed) {
    float *x = ARRAY(float, n * d);
    sd_random random;
    sd_random_init(&random, seed, 0, 0);
    for (size_t i = 0; i < n * d; i++)
        x[i] = (float)sd_random_normal(&random);
    return x;
}

static void expect_message(const char *part) {
    if (!strstr(sd_last_error(), part))
        fail_msg("message \"%s\" does not contain \"%s\"", sd_last_error(), part);
}

static sd_context *context_of(int32_t threads, failing_memory *memory) {
    sd_context_config config;
    sd_context *context = NULL;
    sd_context_config_init(&config);
    config.threads = threads;
    if (memory)
        failing_memory_install(memory, &config);
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    return context;
}

static sd_index *index_of(sd_context *context, sd_metric metric, const float *rows, const int64_t *ids, size_t n,
                          size_t d) {
    sd_index *index = NULL;
    assert_int_equal(sd_index_create(context, d, metric, &index), SD_OK);
    assert_int_equal(sd_index_add(index, ids, rows, n, d), SD_OK);
    assert_int_equal(sd_index_count(index), n);
    return index;
}

/* ---- plain search -------------------------------------------------------------------------- */

typedef struct candidate {
    double nearness;
    int64_t id;
} candidate;

static int by_nearness(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->nearness != y->nearness)
        return x->nearness < y->nearness ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

static double length_of(const float *row, size_t d) {
    double sum = 0.0;
    for (size_t j = 0; j < d; j++)
        sum += (double)row[j] * (double)row[j];
    return sqrt(sum);
}

/* What a score is by its definition. */
static double score_of(sd_metric metric, const float *q, const float *r, size_t d) {
    double dot = 0.0, distance = 0.0;
    for (size_t j = 0; j < d; j++) {
        double difference = (double)q[j] - (double)r[j];
        dot += (double)q[j] * (double)r[j];
        distance += difference * difference;
    }
    double lengths = length_of(q, d) * length_of(r, d);
    return metric == SD_METRIC_L2 ? distance : metric == SD_METRIC_COSINE ? (lengths > 0.0 ? dot / lengths : 0.0) : dot;
}

/* The best k by definition; `slack` is what rounding may change a score by. */
static void check_query(const sd_index *index, const float *rows, const int64_t *ids, size_t n, const float *q,
                        size_t d, size_t k, const int64_t *found, const float *scores, double slack) {
    sd_metric metric = sd_index_metric(index);
    double sign = metric == SD_METRIC_L2 ? -1.0 : 1.0;
    candidate *all = ARRAY(candidate, n);
    unsigned char *seen = ARRAY(unsigned char, n);
    for (size_t i = 0; i < n; i++)
        all[i] = (candidate){.nearness = sign * score_of(metric, q, rows + i * d, d), .id = ids ? ids[i] : (int64_t)i};
    qsort(all, n, sizeof *all, by_nearness);
    for (size_t i = 0; i < k; i++) {
        if (i >= n) {
            assert_int_equal(found[i], -1);
            assert_true(isinf(scores[i]) && (scores[i] > 0.0f) == (metric == SD_METRIC_L2));
            continue;
        }
        size_t at = 0;
        while (at < n && all[at].id != found[i])
            at++;
        assert_true(at < n);
        assert_int_equal(seen[at]++, 0);
        if (!(fabs((double)scores[i] - sign * all[at].nearness) <= slack))
            fail_msg("%s: place %zu has score %.9g, expected %.9g", sd_metric_name((int32_t)metric), i,
                     (double)scores[i], sign * all[at].nearness);
        if (!(all[at].nearness >= all[i].nearness - slack))
            fail_msg("%s: place %zu has id %lld with %.9g, but %.9g is nearer", sd_metric_name((int32_t)metric), i,
                     (long long)found[i], all[at].nearness, all[i].nearness);
        if (i > 0 && scores[i] == scores[i - 1])
            assert_true(found[i] > found[i - 1]);
        if (i > 0)
            assert_true(sign * (double)scores[i] <= sign * (double)scores[i - 1]);
    }
    free(all);
    free(seen);
}

static void check_shape(sd_metric metric, size_t n, size_t d, size_t m, size_t k) {
    float *rows = random_rows(n, d, n + 31 * d), *queries = random_rows(m, d, m + 7), *scores = ARRAY(float, m * k);
    int64_t *ids = ARRAY(int64_t, n), *found = ARRAY(int64_t, m * k);
    for (size_t i = 0; i < n; i++)
        ids[i] = (int64_t)((i * 7919 + 13) % 1000003); /* in no order */
    sd_context *context = context_of(2, NULL);
    sd_index *index = index_of(context, metric, rows, ids, n, d);
    assert_int_equal(sd_index_query(index, queries, m, d, k, found, scores), SD_OK);
    for (size_t q = 0; q < m; q++)
        check_query(index, rows, ids, n, queries + q * d, d, k, found + q * k, scores + q * k,
                    2e-7 * (metric == SD_METRIC_COSINE ? 1.0 : 8.0 * (double)d));
    sd_index_destroy(index);
    sd_context_destroy(context);
    free(rows);
    free(queries);
    free(scores);
    free(ids);
    free(found);
}

static void plain_search(void **state) {
    (void)state;
    for (int metric = SD_METRIC_COSINE; metric <= SD_METRIC_L2; metric++) {
        check_shape((sd_metric)metric, 1, 1, 1, 1);
        check_shape((sd_metric)metric, 3, 2, 5, 7);        /* fewer rows than k */
        check_shape((sd_metric)metric, 200, 17, 9, 200);   /* all rows, in order */
        check_shape((sd_metric)metric, 5000, 3, 2, 10);    /* more than one block of rows */
        check_shape((sd_metric)metric, 1300, 64, 1, 5);
        check_shape((sd_metric)metric, 1300, 33, 8, 3);
        check_shape((sd_metric)metric, 1025, 40, 300, 12); /* more than one block of queries, and of a tile */
    }
}

/* ---- equal rows, special rows -------------------------------------------------------------- */

/* Every row many times: which of them come first is decided by the id, wherever they lie. */
static void ties(void **state) {
    (void)state;
    const size_t kinds = 5, copies = 700, n = kinds * copies, d = 50, k = 20;
    float *rows = random_rows(kinds, d, 3), *all = ARRAY(float, n * d);
    int64_t *ids = ARRAY(int64_t, n), *found = ARRAY(int64_t, kinds * k);
    float *scores = ARRAY(float, kinds * k);
    for (size_t i = 0; i < n; i++) {
        memcpy(all + i * d, rows + i % kinds * d, d * sizeof(float));
        ids[i] = (int64_t)(n - i);
    }
    for (int metric = SD_METRIC_COSINE; metric <= SD_METRIC_L2; metric++) {
        sd_context *context = context_of(3, NULL);
        sd_index *index = index_of(context, (sd_metric)metric, all, ids, n, d);
        assert_int_equal(sd_index_query(index, rows, kinds, d, k, found, scores), SD_OK);
        for (size_t q = 0; q < kinds; q++)
            for (size_t i = 0; i < k; i++) {
                if (metric == SD_METRIC_INNER_PRODUCT && scores[q * k] > scores[q * k + i])
                    fail_msg("equal rows have scores %.9g and %.9g", (double)scores[q * k], (double)scores[q * k + i]);
                if (metric == SD_METRIC_L2)
                    assert_true(scores[q * k + i] == 0.0f && !signbit(scores[q * k + i]));
                if (metric != SD_METRIC_INNER_PRODUCT) /* the query's own copies, lowest ids first */
                    assert_int_equal(found[q * k + i], (int64_t)(kinds - q + kinds * i));
                else if (i > 0)
                    assert_true(found[q * k + i] == found[q * k + i - 1] + (int64_t)kinds);
            }
        sd_index_destroy(index);
        sd_context_destroy(context);
    }
    free(rows);
    free(all);
    free(ids);
    free(found);
    free(scores);
}

static void special_rows(void **state) {
    (void)state;
    const float rows[] = {0, 0, 3, 4, -1, 0}, zero[] = {0, 0}, query[] = {2, 0};
    int64_t found[3];
    float scores[3], row[2];
    sd_index *index = index_of(NULL, SD_METRIC_COSINE, rows, NULL, 3, 2);
    assert_int_equal(sd_index_query(index, query, 1, 2, 3, found, scores), SD_OK);
    assert_true(found[0] == 1 && found[1] == 0 && found[2] == 2); /* 0.6, 0 (zeros have no angle), -1 */
    assert_true(fabsf(scores[0] - 0.6f) < 1e-7f && scores[1] == 0.0f && scores[2] == -1.0f);
    assert_int_equal(sd_index_query(index, zero, 1, 2, 3, found, scores), SD_OK);
    assert_true(found[0] == 0 && found[1] == 1 && found[2] == 2 && scores[0] == 0.0f && scores[2] == 0.0f);
    assert_int_equal(sd_index_get(index, 1, row), SD_OK);
    assert_true(row[0] == 0.6f && row[1] == 0.8f);
    assert_int_equal(sd_index_get(index, 0, row), SD_OK);
    assert_true(row[0] == 0.0f && row[1] == 0.0f);

    /* Refused rows change nothing, wherever they are. */
    float bad[6] = {1, 2, 3, 4, 5, 6};
    const float wrong[] = {NAN, INFINITY, -INFINITY, 3e18f};
    for (size_t i = 0; i < 4; i++) {
        bad[3] = wrong[i];
        assert_int_equal(sd_index_add(index, NULL, bad, 3, 2), SD_ERR_NUMERIC);
        expect_message("row 1");
        assert_int_equal(sd_index_query(index, bad, 3, 2, 1, found, scores), SD_ERR_NUMERIC);
        expect_message("query 1");
        assert_int_equal(sd_index_count(index), 3);
    }
    sd_index_destroy(index);

    /* Large and tiny numbers are right, too. */
    const float extreme[] = {1e17f, 1e-20f, 9e17f, 0, -9e17f, 0, 1e-30f, 2e-30f, 0, 0}, near[] = {1e-30f, 2e-30f};
    index = index_of(NULL, SD_METRIC_COSINE, extreme, NULL, 5, 2);
    assert_int_equal(sd_index_query(index, near, 1, 2, 1, found, scores), SD_OK);
    assert_true(found[0] == 3 && fabsf(scores[0] - 1.0f) < 1e-6f);
    sd_index_destroy(index);
    index = index_of(NULL, SD_METRIC_L2, extreme, NULL, 5, 2);
    assert_int_equal(sd_index_query(index, extreme + 2, 1, 2, 3, found, scores), SD_OK);
    assert_true(found[0] == 1 && found[1] == 0 && found[2] == 3 && scores[0] == 0.0f && isfinite(scores[2]));
    sd_index_destroy(index);
}

/* Far from the origin the products say little about distances: all the same the right ones are found. */
static void far_away(void **state) {
    (void)state;
    const size_t n = 500, d = 24, k = 10;
    float *rows = random_rows(n, d, 5), *queries = random_rows(4, d, 6), scores[40];
    int64_t found[40];
    for (size_t i = 0; i < n * d; i++)
        rows[i] += 1000.0f;
    for (size_t i = 0; i < 4 * d; i++)
        queries[i] += 1000.0f;
    sd_index *index = index_of(NULL, SD_METRIC_L2, rows, NULL, n, d);
    assert_int_equal(sd_index_query(index, queries, 4, d, k, found, scores), SD_OK);
    for (size_t q = 0; q < 4; q++)
        check_query(index, rows, NULL, n, queries + q * d, d, k, found + q * k, scores + q * k, 1e-5);
    sd_index_destroy(index);
    free(rows);
    free(queries);
}

/* ---- batches and threads ------------------------------------------------------------------- */

static void batches_and_threads(void **state) {
    (void)state;
    const size_t n = 9000, d = 96, m = 300, k = 15;
    float *rows = random_rows(n, d, 11), *queries = random_rows(m, d, 12);
    int64_t *expected = ARRAY(int64_t, m * k), *found = ARRAY(int64_t, m * k);
    float *expected_scores = ARRAY(float, m * k), *scores = ARRAY(float, m * k);
    for (int metric = SD_METRIC_COSINE; metric <= SD_METRIC_L2; metric++) {
        for (int32_t threads = 1; threads <= 5; threads += 2) {
            sd_context *context = context_of(threads, NULL);
            sd_index *index = index_of(context, (sd_metric)metric, rows, NULL, n, d);
            static const size_t steps[] = {300, 1, 8, 129, 256}; /* to both sides of SD_INDEX_FEW */
            for (size_t s = 0; s < 5; s++) {
                size_t some = steps[s] == 1 ? 20 : m; /* enough of them one by one */
                for (size_t q = 0; q < some; q += steps[s])
                    assert_int_equal(sd_index_query(index, queries + q * d, steps[s] < m - q ? steps[s] : m - q, d, k,
                                                    found + q * k, scores + q * k), SD_OK);
                if (threads == 1 && s == 0) {
                    memcpy(expected, found, m * k * sizeof *found);
                    memcpy(expected_scores, scores, m * k * sizeof *scores);
                }
                assert_memory_equal(found, expected, some * k * sizeof *found);
                assert_memory_equal(scores, expected_scores, some * k * sizeof *scores);
                memset(found, 0, m * k * sizeof *found);
            }
            sd_index_destroy(index);
            sd_context_destroy(context);
        }
    }
    free(rows);
    free(queries);
    free(expected);
    free(found);
    free(expected_scores);
    free(scores);
}

typedef struct reader {
    const sd_index *index;
    const float *queries;
    const int64_t *expected;
    size_t m, d, k;
    int wrong;
} reader;

static void *read_index(void *argument) {
    reader *r = argument;
    int64_t *found = calloc(r->m * r->k, sizeof *found);
    for (int round = 0; round < 5; round++) {
        if (!found || sd_index_query(r->index, r->queries, r->m, r->d, r->k, found, NULL) != SD_OK ||
            memcmp(found, r->expected, r->m * r->k * sizeof *found) != 0)
            r->wrong++;
    }
    free(found);
    return NULL;
}

static void many_readers(void **state) {
    (void)state;
    const size_t n = 3000, d = 40, m = 12, k = 6;
    float *rows = random_rows(n, d, 1), *queries = random_rows(m, d, 2);
    int64_t *expected = ARRAY(int64_t, m * k);
    sd_context *context = context_of(2, NULL);
    sd_index *index = index_of(context, SD_METRIC_COSINE, rows, NULL, n, d);
    assert_int_equal(sd_index_query(index, queries, m, d, k, expected, NULL), SD_OK);
    pthread_t threads[6];
    reader readers[6];
    for (size_t i = 0; i < 6; i++) {
        readers[i] = (reader){.index = index, .queries = queries, .expected = expected, .m = m, .d = d, .k = k};
        assert_int_equal(pthread_create(&threads[i], NULL, read_index, &readers[i]), 0);
    }
    for (size_t i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(readers[i].wrong, 0);
    }
    sd_index_destroy(index);
    sd_context_destroy(context);
    free(rows);
    free(queries);
    free(expected);
}

/* ---- adding and removing ------------------------------------------------------------------- */

/* Random additions and removals, compared with a plain list after each of them. */
static void changes(void **state) {
    (void)state;
    enum { MOST = 600, DIM = 6 };
    float *rows = ARRAY(float, MOST * DIM);
    int64_t *ids = ARRAY(int64_t, MOST), *listed = ARRAY(int64_t, MOST);
    size_t n = 0;
    sd_random random;
    sd_random_init(&random, 4, 0, 0);
    sd_index *index = NULL;
    assert_int_equal(sd_index_create(NULL, DIM, SD_METRIC_L2, &index), SD_OK);
    for (int round = 0; round < 400; round++) {
        if (n < MOST - 30 && sd_random_below(&random, 5) < 3) {
            size_t count = 1 + (size_t)sd_random_below(&random, 30), new = 0;
            for (size_t i = 0; i < count; i++) {
                int64_t id = (int64_t)sd_random_below(&random, 2000);
                size_t at = 0;
                while (at < n + new && ids[at] != id)
                    at++;
                if (at < n + new)
                    continue;
                ids[n + new] = id;
                for (size_t j = 0; j < DIM; j++)
                    rows[(n + new) * DIM + j] = (float)sd_random_normal(&random);
                new ++;
            }
            assert_int_equal(sd_index_add(index, ids + n, rows + n * DIM, new, DIM), SD_OK);
            n += new;
        } else {
            int64_t gone[40];
            uint64_t removed, expected = 0;
            size_t count = (size_t)sd_random_below(&random, 40);
            for (size_t i = 0; i < count; i++) {
                gone[i] = (int64_t)sd_random_below(&random, 2000);
                for (size_t at = 0; at < n; at++)
                    if (ids[at] == gone[i]) {
                        n--;
                        ids[at] = ids[n];
                        memcpy(rows + at * DIM, rows + n * DIM, DIM * sizeof(float));
                        expected++;
                        break;
                    }
            }
            assert_int_equal(sd_index_remove(index, gone, count, &removed), SD_OK);
            assert_int_equal(removed, expected);
        }
        assert_int_equal(sd_index_count(index), n);
        float query[DIM], row[DIM], scores[5];
        int64_t found[5];
        for (size_t j = 0; j < DIM; j++)
            query[j] = (float)sd_random_normal(&random);
        assert_int_equal(sd_index_query(index, query, 1, DIM, 5, found, scores), SD_OK);
        check_query(index, rows, ids, n, query, DIM, 5, found, scores, 1e-5);
        assert_int_equal(sd_index_ids(index, listed), SD_OK);
        for (size_t i = 0; i < n; i++) {
            assert_true(i == 0 || listed[i] > listed[i - 1]);
            assert_int_equal(sd_index_get(index, ids[i], row), SD_OK);
            assert_memory_equal(row, rows + i * DIM, sizeof row);
        }
    }
    sd_index_destroy(index);
    free(rows);
    free(ids);
    free(listed);
}

static void ids(void **state) {
    (void)state;
    const float rows[] = {1, 2, 3, 4, 5};
    int64_t found[5], twice[] = {70, 7, 71, 7}, negative[] = {70, -1}, last[] = {INT64_MAX};
    uint64_t removed;
    sd_index *index = NULL;
    assert_int_equal(sd_index_create(NULL, 1, SD_METRIC_L2, &index), SD_OK);
    assert_int_equal(sd_index_query(index, rows, 1, 1, 3, found, NULL), SD_OK); /* empty */
    assert_true(found[0] == -1 && found[2] == -1);
    assert_int_equal(sd_index_add(index, NULL, rows, 2, 1), SD_OK);
    assert_int_equal(sd_index_add(index, twice, rows, 2, 1), SD_OK);
    assert_int_equal(sd_index_add(index, NULL, rows, 1, 1), SD_OK);
    assert_int_equal(sd_index_ids(index, found), SD_OK);
    assert_true(found[0] == 0 && found[1] == 1 && found[2] == 7 && found[3] == 70 && found[4] == 71);
    assert_int_equal(sd_index_remove(index, found + 3, 2, &removed), SD_OK);
    assert_int_equal(removed, 2);
    assert_int_equal(sd_index_remove(index, found + 3, 2, NULL), SD_OK); /* gone already */
    assert_int_equal(sd_index_add(index, NULL, rows, 1, 1), SD_OK);     /* ids are not given twice */
    assert_int_equal(sd_index_ids(index, found), SD_OK);
    assert_true(sd_index_count(index) == 4 && found[3] == 72);

    twice[1] = 8;
    twice[3] = 8;
    assert_int_equal(sd_index_add(index, twice, rows, 4, 1), SD_ERR_ARGUMENT);
    expect_message("ids[3] is 8");
    assert_int_equal(sd_index_add(index, negative, rows, 2, 1), SD_ERR_ARGUMENT);
    expect_message("ids[1] is -1");
    assert_int_equal(sd_index_count(index), 4);
    assert_int_equal(sd_index_add(index, twice, rows, 3, 1), SD_OK); /* none of them was left behind */
    assert_int_equal(sd_index_add(index, last, rows, 1, 1), SD_OK);
    assert_int_equal(sd_index_add(index, NULL, rows, 1, 1), SD_ERR_ARGUMENT);
    expect_message("ids are left");
    float row;
    assert_int_equal(sd_index_get(index, 5, &row), SD_ERR_ARGUMENT);
    expect_message("id is 5");
    sd_index_destroy(index);
}

/* ---- arguments ----------------------------------------------------------------------------- */

static void arguments(void **state) {
    (void)state;
    sd_index *index = NULL;
    const float rows[4] = {1, 2, 3, 4};
    int64_t found[4];
    assert_int_equal(sd_index_create(NULL, 0, SD_METRIC_L2, &index), SD_ERR_ARGUMENT);
    expect_message("dim is 0");
    assert_int_equal(sd_index_create(NULL, 2, (sd_metric)3, &index), SD_ERR_ARGUMENT);
    expect_message("metric is 3");
    assert_int_equal(sd_index_create(NULL, 2, SD_METRIC_L2, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_index_create(NULL, 2, SD_METRIC_INNER_PRODUCT, &index), SD_OK);
    assert_true(sd_index_dim(index) == 2 && sd_index_metric(index) == SD_METRIC_INNER_PRODUCT);
    assert_int_equal(sd_index_add(NULL, NULL, rows, 1, 2), SD_ERR_ARGUMENT);
    assert_int_equal(sd_index_add(index, NULL, NULL, 1, 2), SD_ERR_ARGUMENT);
    assert_int_equal(sd_index_add(index, NULL, rows, 1, 1), SD_ERR_ARGUMENT);
    expect_message("ld is 1");
    assert_int_equal(sd_index_add(index, NULL, NULL, 0, 2), SD_OK);
    assert_int_equal(sd_index_add(index, NULL, rows, 2, 2), SD_OK);
    assert_int_equal(sd_index_query(NULL, rows, 1, 2, 1, found, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_index_query(index, NULL, 1, 2, 1, found, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_index_query(index, rows, 1, 2, 1, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_index_query(index, rows, 1, 1, 1, found, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_index_query(index, rows, 1, 2, 0, found, NULL), SD_ERR_ARGUMENT);
    expect_message("k is 0");
    assert_int_equal(sd_index_query(index, NULL, 0, 2, 1, NULL, NULL), SD_OK);
    assert_int_equal(sd_index_remove(NULL, found, 1, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_index_remove(index, NULL, 1, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_index_ids(index, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_index_get(NULL, 1, NULL), SD_ERR_ARGUMENT);
    assert_true(sd_index_count(NULL) == 0 && sd_index_dim(NULL) == 0 && sd_index_metric(NULL) == SD_METRIC_COSINE);
    assert_string_equal(sd_metric_name(SD_METRIC_INNER_PRODUCT), "inner-product");
    assert_string_equal(sd_metric_name(9), "?");
    sd_index_destroy(index);
    sd_index_destroy(NULL);
}

/* ---- memory and hooks ---------------------------------------------------------------------- */

static void failed_allocations(void **state) {
    (void)state;
    const size_t n = 60, d = 20000, m = 3, k = 2; /* wide, so that there is more than one block */
    float *rows = random_rows(n, d, 1);
    int64_t found[6];
    failing_memory memory;
    sd_context *context = context_of(2, &memory);
    long live = memory.live;
    for (int sticky = 0; sticky < 2; sticky++) {
        long n_failures = 0;
        memory.sticky = sticky;
        for (long fail = 0;; fail++) {
            sd_index *index = NULL;
            memory.fail_at = memory.allocations + fail;
            sd_status status = sd_index_create(context, d, SD_METRIC_L2, &index);
            if (status == SD_OK)
                status = sd_index_add(index, NULL, rows, n / 2, d);
            if (status == SD_OK)
                status = sd_index_add(index, NULL, rows + n / 2 * d, n / 2, d);
            if (status == SD_OK)
                status = sd_index_query(index, rows, m, d, k, found, NULL);
            memory.fail_at = -1;
            uint64_t count = sd_index_count(index);
            assert_true(count == 0 || count == n / 2 || count == n);
            if (index) { /* the index is whole and can be used */
                assert_int_equal(sd_index_query(index, rows, m, d, k, found, NULL), SD_OK);
                assert_int_equal(found[0], count == 0 ? -1 : 0);
                if (count < n) {
                    assert_int_equal(sd_index_add(index, NULL, rows + count * d, (size_t)(n - count), d), SD_OK);
                    assert_int_equal(sd_index_count(index), n);
                }
            }
            sd_index_destroy(index);
            assert_int_equal(memory.live, live);
            if (status == SD_OK)
                break;
            assert_int_equal(status, SD_ERR_MEMORY);
            n_failures++;
        }
        assert_true(n_failures >= 15);
    }
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
    free(rows);
}

/* Growing copies no rows: at no time is there more than what is kept and one block. */
static void growth(void **state) {
    (void)state;
    const size_t d = 512, step = 1000, steps = 20;
    float *rows = random_rows(step, d, 1);
    failing_memory memory;
    sd_context *context = context_of(1, &memory);
    sd_index *index = NULL;
    assert_int_equal(sd_index_create(context, d, SD_METRIC_COSINE, &index), SD_OK);
    for (size_t i = 0; i < steps; i++)
        assert_int_equal(sd_index_add(index, NULL, rows, step, d), SD_OK);
    assert_true(memory.peak_bytes < steps * step * (d * sizeof(float) + 64) + ((size_t)5 << 20));
    sd_index_destroy(index);
    sd_context_destroy(context);
    free(rows);
}

typedef struct watch {
    uint64_t last;
    int calls, cancel_after;
} watch;

static void on_progress(void *opaque, const char *what, uint64_t done, uint64_t total) {
    watch *w = opaque;
    assert_string_equal(what, "search");
    assert_true(done > w->last && done <= total);
    w->last = done;
    w->calls++;
}

static int on_cancel(void *opaque) {
    watch *w = opaque;
    return w->cancel_after >= 0 && w->calls >= w->cancel_after;
}

static void hooks(void **state) {
    (void)state;
    const size_t n = 50, d = 4, m = 6000, k = 3;
    float *rows = random_rows(n, d, 1), *queries = random_rows(m, d, 2);
    int64_t *found = ARRAY(int64_t, m * k);
    watch w = {.cancel_after = -1};
    sd_context_config config;
    sd_context *context = NULL;
    sd_context_config_init(&config);
    config.threads = 2;
    config.progress = on_progress;
    config.progress_opaque = &w;
    config.cancel = on_cancel;
    config.cancel_opaque = &w;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    sd_index *index = index_of(context, SD_METRIC_COSINE, rows, NULL, n, d);
    assert_int_equal(sd_index_query(index, queries, m, d, k, found, NULL), SD_OK);
    assert_true(w.last == m && w.calls > 1);
    w = (watch){.cancel_after = 1};
    assert_int_equal(sd_index_query(index, queries, m, d, k, found, NULL), SD_ERR_CANCELLED);
    sd_index_destroy(index);
    sd_context_destroy(context);
    free(rows);
    free(queries);
    free(found);
}

/* ---- the loops of each instruction set ----------------------------------------------------- */

static void check_kernels(const sd_index_kernels *kernels) {
    for (size_t d = 1; d < 140; d += d < 20 ? 1 : 17) {
        enum { ROWS = 37, QUERIES = 9, LD = 40 };
        float *rows = random_rows(ROWS, d, d), *queries = random_rows(QUERIES, d, d + 1), out[QUERIES * LD];
        for (size_t m = 1; m <= QUERIES; m++)
            for (size_t n = 1; n <= ROWS; n += n < 8 ? 1 : 5) {
                kernels->products(queries, m, rows, n, d, out, LD);
                for (size_t q = 0; q < m; q++)
                    for (size_t r = 0; r < n; r++) {
                        double exact = score_of(SD_METRIC_INNER_PRODUCT, queries + q * d, rows + r * d, d);
                        assert_true(fabs((double)out[q * LD + r] - exact) <=
                                    6e-8 * (double)d * length_of(queries + q * d, d) * length_of(rows + r * d, d));
                    }
            }
        double dot = score_of(SD_METRIC_INNER_PRODUCT, queries, rows, d), far = score_of(SD_METRIC_L2, queries, rows, d);
        assert_true(fabs(kernels->dot(queries, rows, d) - dot) <= 1e-13 * (double)d);
        assert_true(fabs(kernels->distance(queries, rows, d) - far) <= 1e-13 * far * (double)d);
        free(rows);
        free(queries);
    }
    float x[300], y[300];
    for (size_t i = 0; i < 300; i++) {
        x[i] = (float)i;
        y[i] = 1.0f;
    }
    for (size_t n = 0; n <= 300; n += 7)
        for (size_t from = 0; from <= n; from += 11) {
            assert_int_equal(kernels->next(x, NULL, from, n, 170.0f), n < 170 ? n : from < 170 ? 170 : from);
            assert_int_equal(kernels->next(x, y, from, n, 170.0f), n < 171 ? n : from < 171 ? 171 : from);
        }
    x[40] = NAN;
    assert_int_equal(kernels->next(x, NULL, 0, 300, 170.0f), 40);
}

static void kernels(void **state) {
    (void)state;
    check_kernels(&sd_index_kernels_generic);
#if defined(__x86_64__) && defined(__GNUC__)
    if (sd_cpu_detect() >= SD_CPU_AVX2)
        check_kernels(&sd_index_kernels_avx2);
    if (sd_cpu_detect() >= SD_CPU_AVX512)
        check_kernels(&sd_index_kernels_avx512);
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_search),
        cmocka_unit_test(ties),
        cmocka_unit_test(special_rows),
        cmocka_unit_test(far_away),
        cmocka_unit_test(batches_and_threads),
        cmocka_unit_test(many_readers),
        cmocka_unit_test(changes),
        cmocka_unit_test(ids),
        cmocka_unit_test(arguments),
        cmocka_unit_test(failed_allocations),
        cmocka_unit_test(growth),
        cmocka_unit_test(hooks),
        cmocka_unit_test(kernels),
    };
    return cmocka_run_group_tests_name("index", tests, NULL, NULL);
}
