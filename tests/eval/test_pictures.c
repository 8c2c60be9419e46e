/* Attention masks against DINO's visualize_attention.py, principal components against scikit-learn, similarities. */
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

#define TOLERANCE 1e-5 /* of the largest value: tests/golden has no other for these files */

static void *array(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    assert_non_null(memory);
    return memory;
}
#define ARRAY(type, count) ((type *)array((count), sizeof(type)))

static void expect_message(const char *part) {
    if (!strstr(sd_last_error(), part))
        fail_msg("message \"%s\" does not contain \"%s\"", sd_last_error(), part);
}

static void compare(const golden *g, const char *name, const double *actual, size_t count) {
    const double *expected = golden_f64(g, "%s", name);
    assert_int_equal(golden_get(g, "%s", name)->count, count);
    double largest = 0.0;
    for (size_t i = 0; i < count; i++)
        largest = fmax(largest, fabs(expected[i]));
    for (size_t i = 0; i < count; i++)
        if (!(fabs(actual[i] - expected[i]) <= TOLERANCE * largest))
            fail_msg("%s[%zu] is %.9g, expected %.9g", name, i, actual[i], expected[i]);
}

/* ---- attention ----------------------------------------------------------------------------- */

static void attention(void **state) {
    (void)state;
    golden *g = golden_open("eval/attention.npz");
    const golden_array *rows = golden_get(g, "cls_attention");
    const float *values = golden_f32(g, "cls_attention"), *expected = golden_f32(g, "attention");
    const golden_array *shares = golden_get(g, "thresholds");
    size_t heads = rows->shape[0], tokens = rows->shape[1], patches = tokens - 1;
    static const char *const names[] = {"mask_60", "mask_30", "mask_95"};
    /* The whole attention of which these are the first rows; all else is wrong on purpose. With two registers, too. */
    for (size_t registers = 0; registers <= 2; registers += 2) {
        size_t side = tokens + registers;
        float *all = ARRAY(float, heads * side * side), *out = ARRAY(float, heads * patches);
        memset(all, 0xA5, heads * side * side * sizeof *all);
        for (size_t h = 0; h < heads; h++)
            memcpy(all + h * side * side + 1 + registers, values + h * tokens + 1, patches * sizeof *all);
        assert_int_equal(sd_class_attention(all, heads, registers, patches, out), SD_OK);
        assert_memory_equal(out, expected, heads * patches * sizeof *out);
        free(all);
        free(out);
    }
    assert_int_equal(shares->count, 3);
    uint8_t *mask = ARRAY(uint8_t, patches);
    for (size_t s = 0; s < 3; s++)
        for (size_t h = 0; h < heads; h++) {
            assert_int_equal(sd_attention_mask(expected + h * patches, patches, golden_number(shares, s), mask), SD_OK);
            assert_memory_equal(mask, golden_u8(g, "%s", names[s]) + h * patches, patches);
        }
    free(mask);
    golden_close(g);
}

static void attention_edges(void **state) {
    (void)state;
    const float values[] = {0.1f, 0.4f, 0.2f, 0.3f}, zeros[2] = {0}, bad[] = {1.0f, NAN}, negative[] = {1.0f, -1.0f};
    uint8_t mask[4];
    assert_int_equal(sd_attention_mask(values, 4, 0.5, mask), SD_OK);
    assert_memory_equal(mask, ((const uint8_t[]){0, 1, 0, 1}), 4);
    assert_int_equal(sd_attention_mask(values, 4, 1.0, mask), SD_OK);
    assert_memory_equal(mask, ((const uint8_t[]){1, 1, 1, 1}), 4);
    assert_int_equal(sd_attention_mask(zeros, 2, 0.5, mask), SD_OK);
    assert_int_equal(sd_attention_mask(bad, 2, 0.5, mask), SD_ERR_NUMERIC);
    expect_message("attention[1]");
    assert_int_equal(sd_attention_mask(negative, 2, 0.5, mask), SD_ERR_NUMERIC);
    assert_int_equal(sd_attention_mask(values, 4, 1.5, mask), SD_ERR_ARGUMENT);
    expect_message("share is 1.5");
    assert_int_equal(sd_attention_mask(values, 4, (double)NAN, mask), SD_ERR_ARGUMENT);
    assert_int_equal(sd_attention_mask(values, 0, 0.5, mask), SD_ERR_ARGUMENT);
    assert_int_equal(sd_attention_mask(NULL, 4, 0.5, mask), SD_ERR_ARGUMENT);
    assert_int_equal(sd_class_attention(values, 1, 0, 0, (float[1]){0}), SD_ERR_ARGUMENT);
    assert_int_equal(sd_class_attention(NULL, 1, 0, 1, (float[1]){0}), SD_ERR_ARGUMENT);
}

/* ---- principal components ------------------------------------------------------------------ */

static void components(void **state) {
    (void)state;
    golden *g = golden_open("eval/pca.npz");
    const float *features = golden_f32(g, "features");
    const uint8_t *expected_foreground = golden_u8(g, "foreground");
    size_t n = golden_get(g, "features")->shape[0], d = golden_get(g, "features")->shape[1], inside = 0;
    double *mean = ARRAY(double, d), *axes = ARRAY(double, 3 * d), variance[3], share[3];
    double *scores = ARRAY(double, 3 * n), *colors = ARRAY(double, 3 * n);
    uint8_t *foreground = ARRAY(uint8_t, n);
    for (int32_t threads = 1; threads <= 2; threads++) {
        sd_context_config config;
        sd_context *context = NULL;
        sd_context_config_init(&config);
        config.threads = threads;
        assert_int_equal(sd_context_create(&config, &context), SD_OK);
        assert_int_equal(sd_pca(context, features, n, d, d, 3, mean, axes, variance, share, scores), SD_OK);
        compare(g, "mean", mean, d);
        compare(g, "components", axes, 3 * d);
        compare(g, "explained_variance", variance, 3);
        compare(g, "explained_variance_ratio", share, 3);
        compare(g, "projection", scores, 3 * n);
        assert_int_equal(sd_patch_colors(context, features, n, d, d, 0, colors, foreground), SD_OK);
        compare(g, "rgb", colors, 3 * n);
        assert_memory_equal(foreground, expected_foreground, n);
        assert_int_equal(sd_patch_colors(context, features, n, d, d, 1, colors, foreground), SD_OK);
        compare(g, "fg_rgb", colors, 3 * n);
        assert_memory_equal(foreground, expected_foreground, n);
        sd_context_destroy(context);
    }
    /* The foreground alone, with rows further apart. */
    float *some = ARRAY(float, n * (d + 5));
    for (size_t i = 0; i < n; i++)
        if (expected_foreground[i])
            memcpy(some + inside++ * (d + 5), features + i * d, d * sizeof *some);
    assert_int_equal(sd_pca(NULL, some, inside, d, d + 5, 3, NULL, axes, NULL, NULL, scores), SD_OK);
    compare(g, "fg_components", axes, 3 * d);
    compare(g, "fg_projection", scores, 3 * inside);
    free(mean);
    free(axes);
    free(scores);
    free(colors);
    free(foreground);
    free(some);
    golden_close(g);
}

/* Fewer rows than columns: the other Gram matrix. The axes must be those of the first. */
static void wide(void **state) {
    (void)state;
    enum { N = 12, D = 40, K = 11 };
    float rows[N * D], tall[D * N];
    double mean[D], axes[K * D], variance[K], share[K], scores[N * K], total = 0.0;
    sd_random random;
    sd_random_init(&random, 3, 0, 0);
    for (size_t i = 0; i < N * D; i++)
        rows[i] = (float)sd_random_normal(&random) + 3.0f;
    assert_int_equal(sd_pca(NULL, rows, N, D, D, K, mean, axes, variance, share, scores), SD_OK);
    for (size_t a = 0; a < K; a++) {
        double largest = 0.0, square = 0.0;
        for (size_t b = 0; b < K; b++) {
            double product = 0.0;
            for (size_t j = 0; j < D; j++)
                product += axes[a * D + j] * axes[b * D + j];
            assert_true(fabs(product - (a == b)) < 1e-10);
        }
        for (size_t j = 0; j < D; j++)
            if (fabs(axes[a * D + j]) > fabs(largest))
                largest = axes[a * D + j];
        assert_true(largest > 0.0);
        for (size_t i = 0; i < N; i++)
            square += scores[i * K + a] * scores[i * K + a];
        assert_true(fabs(square / (N - 1) - variance[a]) < 1e-10);
        assert_true(a == 0 || variance[a] <= variance[a - 1]);
        total += share[a];
    }
    assert_true(fabs(total - 1.0) < 1e-12); /* N - 1 components hold all of it */
    for (size_t i = 0; i < N; i++) /* and the rows can be put together again */
        for (size_t j = 0; j < D; j++) {
            double value = mean[j];
            for (size_t a = 0; a < K; a++)
                value += scores[i * K + a] * axes[a * D + j];
            assert_true(fabs(value - (double)rows[i * D + j]) < 1e-6);
        }
    /* All of N components: the last has no variance and no direction. */
    double all[N * D], none[N];
    assert_int_equal(sd_pca(NULL, rows, N, D, D, N, NULL, all, none, NULL, NULL), SD_OK);
    assert_true(none[N - 1] == 0.0 && all[(N - 1) * D] == 0.0);
    for (size_t i = 0; i < D * N; i++)
        tall[i] = 2.5f;
    assert_int_equal(sd_pca(NULL, tall, D, N, N, 3, NULL, NULL, variance, share, NULL), SD_OK); /* all rows equal */
    assert_true(variance[0] == 0.0 && share[0] == 0.0);
    double colors[3 * D];
    assert_int_equal(sd_patch_colors(NULL, tall, D, N, N, 0, colors, NULL), SD_OK);
    assert_true(colors[0] == 0.0 && colors[3 * D - 1] == 0.0);
    assert_int_equal(sd_patch_colors(NULL, tall, D, N, N, 1, colors, NULL), SD_ERR_ARGUMENT);
    expect_message("foreground");
}

static void component_errors(void **state) {
    (void)state;
    enum { N = 6, D = 5 };
    float rows[N * D];
    double colors[3 * N];
    for (size_t i = 0; i < N * D; i++)
        rows[i] = (float)((i * i) % 7);
    assert_int_equal(sd_pca(NULL, NULL, N, D, D, 1, NULL, NULL, NULL, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_pca(NULL, rows, 1, D, D, 1, NULL, NULL, NULL, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_pca(NULL, rows, N, D, 4, 1, NULL, NULL, NULL, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_pca(NULL, rows, N, D, D, 6, NULL, NULL, NULL, NULL, NULL), SD_ERR_ARGUMENT);
    expect_message("components is 6");
    assert_int_equal(sd_patch_colors(NULL, rows, 2, D, D, 0, colors, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_patch_colors(NULL, rows, N, D, D, 2, colors, NULL), SD_ERR_ARGUMENT);
    failing_memory memory;
    sd_context_config config;
    sd_context *context = NULL;
    sd_context_config_init(&config);
    config.threads = 1;
    failing_memory_install(&memory, &config);
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    long live = memory.live, failures = 0;
    for (sd_status status = SD_ERR_MEMORY; status != SD_OK; failures++) {
        memory.fail_at = memory.allocations + failures;
        status = sd_patch_colors(context, rows, N, D, D, 1, colors, NULL);
        assert_true(status == SD_OK || status == SD_ERR_MEMORY);
        assert_int_equal(memory.live, live);
    }
    assert_true(failures > 15);
    memory.fail_at = -1;
    rows[7] = INFINITY;
    assert_int_equal(sd_pca(context, rows, N, D, D, 1, NULL, NULL, NULL, NULL, NULL), SD_ERR_NUMERIC);
    expect_message("row 1, column 2");
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

/* ---- similarity ---------------------------------------------------------------------------- */

static void similarity(void **state) {
    (void)state;
    float tokens[] = {3, 4, 9, 0, 0, 9, -6, -8, 9, 4, -3, 9}, out[4];
    assert_int_equal(sd_patch_similarity(tokens, 4, 2, 3, 0, out), SD_OK);
    assert_true(fabsf(out[0] - 1.0f) < 1e-6f && out[1] == 0.0f && fabsf(out[2] + 1.0f) < 1e-6f && out[3] == 0.0f);
    assert_int_equal(sd_patch_similarity(tokens, 4, 2, 3, 1, out), SD_OK);
    assert_true(out[0] == 0.0f && out[1] == 0.0f);
    assert_int_equal(sd_patch_similarity(tokens, 4, 2, 3, 4, out), SD_ERR_ARGUMENT);
    expect_message("patch is 4");
    assert_int_equal(sd_patch_similarity(tokens, 4, 4, 3, 0, out), SD_ERR_ARGUMENT);
    assert_int_equal(sd_patch_similarity(NULL, 4, 2, 3, 0, out), SD_ERR_ARGUMENT);
    assert_int_equal(sd_patch_similarity(tokens, 0, 2, 3, 0, out), SD_ERR_ARGUMENT);
    tokens[4] = NAN;
    assert_int_equal(sd_patch_similarity(tokens, 4, 2, 3, 0, out), SD_ERR_NUMERIC);
    expect_message("token 1, column 1");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention),  cmocka_unit_test(attention_edges),  cmocka_unit_test(components),
        cmocka_unit_test(wide),       cmocka_unit_test(component_errors), cmocka_unit_test(similarity),
    };
    return cmocka_run_group_tests_name("pictures", tests, NULL, NULL);
}
