/* Nearest neighbours and weighted k-NN against DINO's eval_knn.py, a plain double-precision search, and ties. */
#include "support/failing_memory.h"
#include "support/golden.h"

#include <simdino/eval.h>

#include <math.h>
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

static int32_t *labels_of(const golden *g, const char *name, int modulo) {
    const golden_array *a = golden_get(g, "%s", name);
    int32_t *labels = ARRAY(int32_t, a->count);
    for (size_t i = 0; i < a->count; i++)
        labels[i] = (int32_t)golden_number(a, i) % modulo;
    return labels;
}

static void assert_share(double share, double percent, double tolerance, const char *what) {
    if (!(fabs(100.0 * share - percent) <= tolerance))
        fail_msg("%s is %.4f %%, expected %.4f", what, 100.0 * share, percent);
}

/* ---- golden -------------------------------------------------------------------------------- */

static void test_golden_accuracy(void **state) {
    (void)state;
    golden *g = golden_open("eval/knn.npz");
    const float *train = golden_f32(g, "train_features"), *test = golden_f32(g, "test_features");
    size_t n = golden_get(g, "train_features")->shape[0], d = golden_get(g, "train_features")->shape[1];
    size_t m = golden_get(g, "test_features")->shape[0], classes = (size_t)golden_scalar(g, "num_classes");
    int32_t *train_labels = labels_of(g, "train_labels", 1000), *test_labels = labels_of(g, "test_labels", 1000);
    const golden_array *ks = golden_get(g, "ks"), *temperatures = golden_get(g, "temperatures");
    const golden_array *accuracy = golden_get(g, "accuracy"), *thousand = golden_get(g, "accuracy_1000_classes");
    const golden_array *grouped = golden_get(g, "group_accuracy");
    size_t group = (size_t)golden_scalar(g, "group_size");
    double one = 100.0 / (double)m + 1e-9; /* one sample */
    sd_knn_result result;

    for (size_t t = 0; t < temperatures->count; t++) {
        for (size_t i = 0; i < ks->count; i++) {
            size_t k = (size_t)golden_number(ks, i), at = (t * ks->count + i) * 2;
            assert_int_equal(sd_knn_classify(NULL, train, train_labels, n, test, test_labels, m, d, classes, k,
                                             golden_number(temperatures, t), NULL, &result), SD_OK);
            assert_share(result.top1, golden_number(accuracy, at), one, "top-1");
            assert_share(result.top5, golden_number(accuracy, at + 1), 1e-9, "top-5");
        }
    }
    for (size_t i = 0; i < ks->count; i++) {
        size_t k = (size_t)golden_number(ks, i);
        assert_int_equal(sd_knn_classify(NULL, train, train_labels, n, test, test_labels, m, d, 1000, k, 0.07, NULL,
                                         &result), SD_OK);
        assert_share(result.top1, golden_number(thousand, 2 * i), one, "top-1 of 1000 classes");
        assert_share(result.top5, golden_number(thousand, 2 * i + 1), 0.5, "top-5 of 1000 classes");
        for (size_t part = 0; part < grouped->shape[0]; part++) {
            size_t at = (part * ks->count + i) * 2;
            assert_int_equal(sd_knn_classify(NULL, train, train_labels, n, test + part * group * d,
                                             test_labels + part * group, group, d, classes, k, 0.07, NULL, &result),
                             SD_OK);
            assert_share(result.top1, golden_number(grouped, at), 100.0 / (double)group + 1e-9, "top-1 of a group");
            assert_share(result.top5, golden_number(grouped, at + 1), 1e-9, "top-5 of a group");
        }
    }
    free(train_labels);
    free(test_labels);
    /* Labels modulo 3: most classes have no vote at all. */
    train_labels = labels_of(g, "train_labels", 3);
    test_labels = labels_of(g, "test_labels", 3);
    const golden_array *three = golden_get(g, "accuracy_3_labels");
    for (size_t i = 0; i < ks->count; i++) {
        assert_int_equal(sd_knn_classify(NULL, train, train_labels, n, test, test_labels, m, d,
                                         (size_t)golden_scalar(g, "accuracy_3_labels_num_classes"),
                                         (size_t)golden_number(ks, i), 0.07, NULL, &result), SD_OK);
        assert_share(result.top1, golden_number(three, 2 * i), one, "top-1 of 3 labels");
        assert_share(result.top5, golden_number(three, 2 * i + 1), 1e-9, "top-5 of 3 labels");
    }
    free(train_labels);
    free(test_labels);
    golden_close(g);
}

static void test_golden_neighbours(void **state) {
    (void)state;
    golden *g = golden_open("eval/knn.npz");
    const float *train = golden_f32(g, "train_features"), *test = golden_f32(g, "test_features");
    const float *expected = golden_f32(g, "similarities20");
    const golden_array *neighbours = golden_get(g, "neighbours20");
    size_t n = golden_get(g, "train_features")->shape[0], d = golden_get(g, "train_features")->shape[1];
    size_t m = neighbours->shape[0], k = neighbours->shape[1], swapped = 0;
    int64_t *indices = ARRAY(int64_t, m * k);
    float *similarities = ARRAY(float, m * k);

    assert_int_equal(sd_nearest_neighbors(NULL, train, n, test, m, d, k, indices, similarities), SD_OK);
    assert_true(golden_difference_f32(similarities, expected, m * k) <= 1e-6);
    for (size_t i = 0; i < m * k; i++)
        swapped += indices[i] != (int64_t)golden_number(neighbours, i);
    assert_true(swapped <= m * k / 1000); /* similarities may differ by as little as 3e-9, which float cannot order */
    free(indices);
    free(similarities);
    golden_close(g);
}

/* ---- plain search -------------------------------------------------------------------------- */

static void check_shape(size_t n, size_t m, size_t d, size_t k) {
    float *base = random_rows(n, d, n + d), *queries = random_rows(m, d, m + 7), *similarities = ARRAY(float, m * k);
    int64_t *indices = ARRAY(int64_t, m * k);
    unsigned char *seen = ARRAY(unsigned char, n);

    assert_int_equal(sd_nearest_neighbors(NULL, base, n, queries, m, d, k, indices, similarities), SD_OK);
    for (size_t q = 0; q < m; q++) {
        double last = 0.0, scale = 0.0;
        memset(seen, 0, n);
        for (size_t i = 0; i < k; i++) {
            int64_t at = indices[q * k + i];
            double sum = 0.0;
            assert_in_range(at, 0, n - 1);
            assert_int_equal(seen[at]++, 0);
            for (size_t j = 0; j < d; j++)
                sum += (double)queries[q * d + j] * (double)base[(size_t)at * d + j];
            scale = fmax(scale, fabs(sum));
            assert_true(fabs(sum - (double)similarities[q * k + i]) <= 1e-5 * (1.0 + scale));
            assert_true(i == 0 || similarities[q * k + i] <= similarities[q * k + i - 1]);
            last = sum;
        }
        for (size_t i = 0; i < n; i++) { /* nothing better was missed */
            double sum = 0.0;
            for (size_t j = 0; j < d; j++)
                sum += (double)queries[q * d + j] * (double)base[i * d + j];
            assert_true(seen[i] || sum <= last + 1e-5 * (1.0 + scale));
        }
    }
    free(base);
    free(queries);
    free(similarities);
    free(indices);
    free(seen);
}

static void test_plain_search(void **state) {
    (void)state;
    const size_t shapes[][4] = {{1, 1, 1, 1},   {5, 3, 4, 5},    {63, 9, 7, 4},      {64, 9, 7, 64},  {65, 300, 5, 3},
                                {100, 7, 3, 9}, {1023, 5, 8, 2}, {1025, 260, 6, 10}, {2500, 3, 9, 30}};
    for (size_t s = 0; s < sizeof(shapes) / sizeof(*shapes); s++)
        check_shape(shapes[s][0], shapes[s][1], shapes[s][2], shapes[s][3]);
}

/* Every row stands three times in the base, far apart: equal similarities come in the order of their indices. */
static void test_ties(void **state) {
    (void)state;
    const size_t sizes[] = {7, 21, 50, 700, 1111};
    for (size_t s = 0; s < 5; s++) {
        size_t third = sizes[s], n = 3 * third, m = 40, d = 33, k = 7;
        float *rows = random_rows(third, d, 3), *base = ARRAY(float, n * d), *queries = random_rows(m, d, 5);
        float *similarities = ARRAY(float, m * k);
        int64_t *indices = ARRAY(int64_t, m * k);
        for (size_t copy = 0; copy < 3; copy++)
            memcpy(base + copy * third * d, rows, third * d * sizeof(float));
        assert_int_equal(sd_nearest_neighbors(NULL, base, n, queries, m, d, k, indices, similarities), SD_OK);
        for (size_t q = 0; q < m; q++) {
            for (size_t i = 0; i + 1 < k; i++) {
                assert_true(similarities[q * k + i] >= similarities[q * k + i + 1]);
                if (similarities[q * k + i] == similarities[q * k + i + 1])
                    assert_true(indices[q * k + i] < indices[q * k + i + 1]);
            }
            for (size_t i = 0; i < 6; i++) { /* ranks 0-2 and 3-5: one row, in all its copies */
                assert_int_equal(indices[q * k + i] % (int64_t)third, indices[q * k + i - i % 3] % (int64_t)third);
                assert_int_equal(indices[q * k + i] / (int64_t)third, i % 3);
            }
            assert_true(indices[q * k + 6] < (int64_t)third);
        }
        free(rows);
        free(base);
        free(queries);
        free(similarities);
        free(indices);
    }
}

static void test_threads(void **state) {
    (void)state;
    const size_t n = 1300, m = 900, d = 20, k = 11;
    float *base = random_rows(n, d, 1), *queries = random_rows(m, d, 2);
    int64_t *first = ARRAY(int64_t, m * k), *indices = ARRAY(int64_t, m * k);
    int32_t *labels = ARRAY(int32_t, n), *truth = ARRAY(int32_t, m), *voted = ARRAY(int32_t, m),
            *again = ARRAY(int32_t, m);
    sd_knn_result result_first, result;
    for (size_t i = 0; i < n; i++)
        labels[i] = (int32_t)(i % 9);
    for (size_t i = 0; i < m; i++)
        truth[i] = (int32_t)(i % 9);
    assert_int_equal(sd_nearest_neighbors(NULL, base, n, queries, m, d, k, first, NULL), SD_OK);
    assert_int_equal(sd_knn_classify(NULL, base, labels, n, queries, truth, m, d, 9, k, 0.1, voted, &result_first),
                     SD_OK);
    for (int32_t threads = 1; threads < 6; threads += 2) {
        sd_context_config config;
        sd_context *context = NULL;
        sd_context_config_init(&config);
        config.threads = threads;
        assert_int_equal(sd_context_create(&config, &context), SD_OK);
        assert_int_equal(sd_nearest_neighbors(context, base, n, queries, m, d, k, indices, NULL), SD_OK);
        assert_memory_equal(indices, first, m * k * sizeof(int64_t));
        assert_int_equal(sd_knn_classify(context, base, labels, n, queries, truth, m, d, 9, k, 0.1, again, &result),
                         SD_OK);
        assert_memory_equal(again, voted, m * sizeof(int32_t));
        assert_true(result.top1 == result_first.top1 && result.top5 == result_first.top5);
        sd_context_destroy(context);
    }
    free(base);
    free(queries);
    free(first);
    free(indices);
    free(labels);
    free(truth);
    free(voted);
    free(again);
}

/* Votes by hand: two near neighbours of one class against a nearer one of another; and temperatures that would overflow
 * exp. */
static void test_votes(void **state) {
    (void)state;
    const float train[] = {1.0f, 0.9f, 0.9f, 0.1f, 0.0f}, test[] = {1.0f};
    const int32_t labels[] = {2, 1, 1, 0, 3}, truth[] = {1};
    int32_t vote;
    sd_knn_result result;
    assert_int_equal(sd_knn_classify(NULL, train, labels, 5, test, truth, 1, 1, 6, 5, 1.0, &vote, &result), SD_OK);
    assert_int_equal(vote, 1); /* 2 exp(-0.1) > 1 */
    assert_true(result.top1 == 1.0 && result.top5 == 1.0);
    assert_int_equal(sd_knn_classify(NULL, train, labels, 5, test, truth, 1, 1, 6, 5, 0.05, &vote, &result), SD_OK);
    assert_int_equal(vote, 2); /* 2 exp(-2) < 1 */
    assert_true(result.top1 == 0.0 && result.top5 == 1.0);
    assert_int_equal(sd_knn_classify(NULL, train, labels, 5, test, truth, 1, 1, 6, 5, 1e-6, &vote, NULL), SD_OK);
    assert_int_equal(vote, 2);
    assert_int_equal(sd_knn_classify(NULL, train, labels, 5, test, truth, 1, 1, 6, 1, 1.0, &vote, &result), SD_OK);
    assert_true(result.top5 == 0.0); /* with k = 1 only the first class is looked at */
    const float equal[] = {1.0f, 1.0f};
    const int32_t swapped[] = {4, 3};
    assert_int_equal(sd_knn_classify(NULL, equal, swapped, 2, test, NULL, 1, 1, 6, 2, 1.0, &vote, NULL), SD_OK);
    assert_int_equal(vote, 3); /* equal votes: lower class */
}

/* ---- rows ---------------------------------------------------------------------------------- */

static void test_rows(void **state) {
    (void)state;
    float rows[3 * 4] = {3, 4, 0, 99, 0, 0, 0, 99, 1, 2, 2, 99}, mean[3];
    assert_int_equal(sd_mean_row(rows, 3, 3, 4, mean), SD_OK);
    assert_true(fabsf(mean[0] - 4.0f / 3.0f) < 1e-6f && mean[1] == 2.0f && fabsf(mean[2] - 2.0f / 3.0f) < 1e-6f);
    assert_int_equal(sd_normalize_rows(rows, 3, 3, 4, NULL), SD_OK);
    const float unit[] = {0.6f, 0.8f, 0, 99, 0, 0, 0, 99, 1.0f / 3, 2.0f / 3, 2.0f / 3, 99};
    for (size_t i = 0; i < 12; i++)
        assert_true(fabsf(rows[i] - unit[i]) < 1e-6f);
    float moved[2] = {5, 6};
    const float center[2] = {2, 2};
    assert_int_equal(sd_normalize_rows(moved, 1, 2, 2, center), SD_OK);
    assert_true(fabsf(moved[0] - 0.6f) < 1e-6f && fabsf(moved[1] - 0.8f) < 1e-6f);
    float same[2] = {2, 2};
    assert_int_equal(sd_normalize_rows(same, 1, 2, 2, center), SD_OK);
    assert_true(same[0] == 0.0f && same[1] == 0.0f);
    float large[200];
    for (size_t i = 0; i < 200; i++)
        large[i] = 1e30f;
    assert_int_equal(sd_normalize_rows(large, 1, 200, 200, NULL), SD_OK);
    assert_true(fabs((double)large[7] - 1.0 / sqrt(200.0)) < 1e-7);
    float many[200];
    assert_int_equal(sd_mean_row(large, 2, 100, 100, many), SD_OK);
    assert_true(many[99] == large[0]);

    float bad[4] = {1, 2, NAN, 3};
    assert_int_equal(sd_normalize_rows(bad, 2, 2, 2, NULL), SD_ERR_NUMERIC);
    assert_non_null(strstr(sd_last_error(), "row 1, column 0"));
    assert_true(bad[0] == 1.0f);
    assert_int_equal(sd_mean_row(bad, 2, 2, 2, mean), SD_ERR_NUMERIC);
    assert_int_equal(sd_normalize_rows(same, 1, 2, 2, bad + 2), SD_ERR_NUMERIC);
    assert_int_equal(sd_normalize_rows(NULL, 1, 2, 2, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_normalize_rows(same, 0, 2, 2, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_normalize_rows(same, 1, 2, 1, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_mean_row(same, 1, 2, 2, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_mean_row(same, 1, 0, 2, mean), SD_ERR_ARGUMENT);
}

/* ---- errors -------------------------------------------------------------------------------- */

static void expect_message(const char *part) {
    if (!strstr(sd_last_error(), part))
        fail_msg("message \"%s\" does not contain \"%s\"", sd_last_error(), part);
}

static void test_arguments(void **state) {
    (void)state;
    float x[6] = {1, 2, 3, 4, 5, 6};
    int32_t labels[3] = {0, 1, 2};
    int64_t indices[9];
    sd_knn_result result;
    assert_int_equal(sd_nearest_neighbors(NULL, NULL, 3, x, 3, 2, 2, indices, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_nearest_neighbors(NULL, x, 3, NULL, 3, 2, 2, indices, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_nearest_neighbors(NULL, x, 0, x, 3, 2, 2, indices, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_nearest_neighbors(NULL, x, 3, x, 3, 0, 2, indices, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_nearest_neighbors(NULL, x, 3, x, 3, 2, 4, indices, NULL), SD_ERR_ARGUMENT);
    expect_message("k is 4");
    assert_int_equal(sd_nearest_neighbors(NULL, x, 3, x, 3, 2, 0, indices, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_nearest_neighbors(NULL, x, 3, x, 3, 2, 2, NULL, NULL), SD_OK);
#define CLASSIFY(train_labels, test_labels, classes, k, temperature, result) \
    sd_knn_classify(NULL, x, train_labels, 3, x, test_labels, 3, 2, classes, k, temperature, NULL, result)
    assert_int_equal(CLASSIFY(labels, labels, 3, 2, 0.1, &result), SD_OK);
    assert_int_equal(CLASSIFY(NULL, labels, 3, 2, 0.1, &result), SD_ERR_ARGUMENT);
    assert_int_equal(CLASSIFY(labels, NULL, 3, 2, 0.1, &result), SD_ERR_ARGUMENT);
    expect_message("test_labels");
    assert_int_equal(CLASSIFY(labels, NULL, 3, 2, 0.1, NULL), SD_OK);
    assert_int_equal(CLASSIFY(labels, labels, 2, 2, 0.1, &result), SD_ERR_ARGUMENT);
    expect_message("train_labels[2] is 2");
    assert_int_equal(CLASSIFY(labels, labels, 0, 2, 0.1, &result), SD_ERR_ARGUMENT);
    assert_int_equal(CLASSIFY(labels, labels, 3, 9, 0.1, &result), SD_ERR_ARGUMENT);
    assert_int_equal(CLASSIFY(labels, labels, 3, 2, 0.0, &result), SD_ERR_ARGUMENT);
    assert_int_equal(CLASSIFY(labels, labels, 3, 2, (double)NAN, &result), SD_ERR_ARGUMENT);
    expect_message("temperature");
    x[3] = NAN;
    assert_int_equal(CLASSIFY(labels, labels, 3, 2, 0.1, &result), SD_ERR_NUMERIC);
    expect_message("row 1, column 1");
    assert_int_equal(sd_nearest_neighbors(NULL, x, 3, x, 3, 2, 2, indices, NULL), SD_ERR_NUMERIC);
}

typedef struct watch {
    uint64_t last;
    int calls, cancel_after;
} watch;

static void on_progress(void *opaque, const char *what, uint64_t done, uint64_t total) {
    watch *w = opaque;
    assert_string_equal(what, "neighbours");
    assert_true(done > w->last && done <= total);
    w->last = done;
    w->calls++;
}

static int on_cancel(void *opaque) {
    watch *w = opaque;
    return w->cancel_after >= 0 && w->calls >= w->cancel_after;
}

static void test_hooks_and_memory(void **state) {
    (void)state;
    const size_t n = 70, m = 5000, d = 3, k = 2;
    float *base = random_rows(n, d, 1), *queries = random_rows(m, d, 2);
    int64_t *indices = ARRAY(int64_t, m * k);
    int32_t *labels = ARRAY(int32_t, n), *truth = ARRAY(int32_t, m);
    failing_memory memory = {.fail_at = -1};
    watch w = {.cancel_after = -1};
    sd_context_config config;
    sd_context *context = NULL;
    sd_knn_result result;

    sd_context_config_init(&config);
    config.threads = 2;
    failing_memory_install(&memory, &config);
    config.progress = on_progress;
    config.progress_opaque = &w;
    config.cancel = on_cancel;
    config.cancel_opaque = &w;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    long before = memory.live;
    assert_int_equal(sd_nearest_neighbors(context, base, n, queries, m, d, k, indices, NULL), SD_OK);
    assert_true(w.last == m && w.calls > 1);
    w = (watch){.cancel_after = 1};
    assert_int_equal(sd_nearest_neighbors(context, base, n, queries, m, d, k, indices, NULL), SD_ERR_CANCELLED);
    assert_int_equal(memory.live, before);
    sd_context_destroy(context);

    config.progress = NULL;
    config.cancel = NULL;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    before = memory.live;
    long fail = 0;
    for (;; fail++) {
        memory.fail_at = memory.allocations + fail;
        sd_status status = sd_knn_classify(context, base, labels, n, queries, truth, m, d, 3, k, 0.1, NULL, &result);
        assert_int_equal(memory.live, before);
        if (status == SD_OK)
            break;
        assert_int_equal(status, SD_ERR_MEMORY);
    }
    assert_int_equal(fail, 4);
    memory.fail_at = -1;
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
    free(base);
    free(queries);
    free(indices);
    free(labels);
    free(truth);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_accuracy),
        cmocka_unit_test(test_golden_neighbours),
        cmocka_unit_test(test_plain_search),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_votes),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_hooks_and_memory),
    };
    return cmocka_run_group_tests_name("k-NN", tests, NULL, NULL);
}
