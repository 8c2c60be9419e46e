/* Clipping by tensor (v1) and by module (v2) against the official code. */
#include "optim/optim.h"
#include "golden.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "failing_memory.h"

#define TENSORS_MAX 16

typedef struct gradient_table {
    golden *archive;
    sd_tensor_info tensors[TENSORS_MAX];
    char names[TENSORS_MAX][64]; /* as in the file */
    char paths[TENSORS_MAX][80]; /* with the module in front */
    size_t count, parameters;
    float *gradient;
} gradient_table;

static void table_begin(gradient_table *table, const char *file) {
    memset(table, 0, sizeof *table);
    table->archive = golden_open(file);
    const golden_array *names = golden_get(table->archive, "names");
    table->count = names->count;
    assert_in_range(table->count, 1, TENSORS_MAX);
    for (size_t i = 0; i < table->count; i++) {
        snprintf(table->names[i], sizeof table->names[i], "%s", golden_text(names, i));
        snprintf(table->paths[i], sizeof table->paths[i], "backbone.%s", table->names[i]);
        table->tensors[i].name = table->paths[i];
        table->tensors[i].offset = table->parameters;
        table->tensors[i].count = golden_get(table->archive, "before/%s", table->names[i])->count;
        table->parameters += table->tensors[i].count;
    }
    table->gradient = calloc(table->parameters, sizeof(float));
    for (size_t i = 0; i < table->count; i++)
        memcpy(table->gradient + table->tensors[i].offset,
               golden_f32(table->archive, "before/%s", table->names[i]), table->tensors[i].count * sizeof(float));
}

static void table_end(gradient_table *table) {
    free(table->gradient);
    golden_close(table->archive);
}

static void compare_after(const gradient_table *table) {
    for (size_t i = 0; i < table->count; i++) {
        char name[128];
        snprintf(name, sizeof name, "after/%s", table->names[i]);
        golden_compare_f32(table->archive, name, table->gradient + table->tensors[i].offset, table->tensors[i].count,
                           golden_tolerance(table->archive, "%s", name));
    }
}

static void by_tensor_equals_official(void **state) {
    (void)state;
    gradient_table table;
    table_begin(&table, "optim/clip_v1.npz");
    double norms[TENSORS_MAX], total = 0, square_sum = 0;
    assert_int_equal(sd_clip_gradient(NULL, table.tensors, table.count, table.gradient, SD_CLIP_TENSOR,
                                      golden_scalar(table.archive, "clip"), norms, &total),
                     SD_OK);
    compare_after(&table);
    float rounded[TENSORS_MAX];
    for (size_t i = 0; i < table.count; i++) {
        rounded[i] = (float)norms[i];
        square_sum += norms[i] * norms[i];
    }
    golden_compare_f32(table.archive, "norms", rounded, table.count, golden_tolerance(table.archive, "norms"));
    assert_true(fabs(total - sqrt(square_sum)) < 1e-12 * total);
    table_end(&table);
}

static void by_module_equals_official(void **state) {
    (void)state;
    gradient_table table;
    table_begin(&table, "optim/clip_v2.npz");
    double limit = golden_scalar(table.archive, "clip"), total = 0, small_total = 0;
    double expected = golden_number(golden_get(table.archive, "norms"), 0);
    double expected_small = golden_number(golden_get(table.archive, "norms"), 1);
    float *small = calloc(table.parameters, sizeof *small), *kept = calloc(table.parameters, sizeof *kept);
    for (size_t i = 0; i < table.parameters; i++)
        kept[i] = small[i] = table.gradient[i] / 1024;
    assert_int_equal(sd_clip_gradient(NULL, table.tensors, table.count, table.gradient, SD_CLIP_MODULE, limit, NULL,
                                      &total),
                     SD_OK);
    compare_after(&table);
    assert_true(fabs(total - expected) <= golden_tolerance(table.archive, "norms"));

    assert_int_equal(sd_clip_gradient(NULL, table.tensors, table.count, small, SD_CLIP_MODULE, limit, NULL,
                                      &small_total),
                     SD_OK);
    assert_true(fabs(small_total - expected_small) <= 1e-6 * expected_small);
    assert_memory_equal(small, kept, table.parameters * sizeof(float));
    free(small);
    free(kept);
    table_end(&table);
}

/* A large head does not shrink the backbone's gradient; tensors of a module need not be neighbours. */
static void modules_are_apart(void **state) {
    (void)state;
    const sd_tensor_info tensors[] = {
        {.name = "backbone.a", .offset = 0, .count = 2},
        {.name = "head.b", .offset = 2, .count = 2},
        {.name = "backbone.c", .offset = 4, .count = 2},
        {.name = "backbonewards", .offset = 6, .count = 1},
    };
    float gradient[] = {1, 2, 30, 40, 2, 0, 1};
    double norms[4], total;
    assert_int_equal(sd_clip_gradient(NULL, tensors, 4, gradient, SD_CLIP_MODULE, 6.0, norms, &total), SD_OK);
    const float expected[] = {1, 2, 3.6f, 4.8f, 2, 0, 1};
    for (size_t i = 0; i < 7; i++)
        assert_true(fabsf(gradient[i] - expected[i]) < 1e-6f);
    assert_true(fabs(norms[1] - 50) < 1e-12 && fabs(norms[2] - 2) < 1e-12);
    assert_true(fabs(total - sqrt(2510)) < 1e-12);

    float again[] = {1, 2, 30, 40, 2, 0, 1};
    assert_int_equal(sd_clip_gradient(NULL, tensors, 4, again, SD_CLIP_MODULE, 1.5, NULL, NULL), SD_OK);
    assert_true(fabsf(again[0] - 0.5f) < 1e-6f && fabsf(again[4] - 1.0f) < 1e-6f); /* norm 3 over a and c together */
    assert_true(again[6] == 1.0f);
}

/* iBOT's own head is no part of "head.", though its tensors have the same names behind the dot. */
static void patch_head_is_a_module(void **state) {
    (void)state;
    const sd_tensor_info tensors[] = {
        {.name = "head.mlp.0.weight", .offset = 0, .count = 1},
        {.name = "patch_head.mlp.0.weight", .offset = 1, .count = 1},
        {.name = "head.last_layer.weight_v", .offset = 2, .count = 1},
        {.name = "patch_head.last_layer.weight_v", .offset = 3, .count = 1},
    };
    float gradient[] = {3, 30, 4, 40};
    assert_int_equal(sd_clip_gradient(NULL, tensors, 4, gradient, SD_CLIP_MODULE, 10, NULL, NULL), SD_OK);
    const float expected[] = {3, 6, 4, 8};
    for (size_t i = 0; i < 4; i++)
        assert_true(fabsf(gradient[i] - expected[i]) < 1e-5f);
}

static void only_measures(void **state) {
    (void)state;
    gradient_table table;
    table_begin(&table, "optim/clip_v1.npz");
    float *kept = malloc(table.parameters * sizeof *kept);
    memcpy(kept, table.gradient, table.parameters * sizeof *kept);
    double total = 0;
    assert_int_equal(sd_clip_gradient(NULL, table.tensors, table.count, table.gradient, SD_CLIP_NONE, 0, NULL, &total),
                     SD_OK);
    assert_true(total > 4);
    assert_memory_equal(kept, table.gradient, table.parameters * sizeof *kept);
    free(kept);
    table_end(&table);
}

static void refuses_nan(void **state) {
    (void)state;
    const float bad[] = {(float)NAN, (float)INFINITY, -(float)INFINITY};
    gradient_table table;
    table_begin(&table, "optim/clip_v1.npz");
    for (size_t b = 0; b < 3; b++)
        for (size_t i = 0; i < table.parameters; i += 5) {
            float kept = table.gradient[i], first = table.gradient[i == 0];
            double norms[TENSORS_MAX] = {-1}, total = -1;
            table.gradient[i] = bad[b];
            assert_int_equal(sd_clip_gradient(NULL, table.tensors, table.count, table.gradient, SD_CLIP_TENSOR, 0.01,
                                              norms, &total),
                             SD_ERR_NUMERIC);
            assert_true(total == -1 && norms[0] == -1);
            assert_true(table.gradient[i == 0] == first);
            size_t tensor = 0;
            while (i >= table.tensors[tensor].offset + table.tensors[tensor].count)
                tensor++;
            assert_non_null(strstr(sd_last_error(), table.paths[tensor]));
            table.gradient[i] = kept;
        }
    table_end(&table);
}

static void wrong_arguments(void **state) {
    (void)state;
    const sd_tensor_info tensor = {.name = "a", .offset = 0, .count = 1};
    float gradient[1] = {5};
    assert_int_equal(sd_clip_gradient(NULL, NULL, 1, gradient, SD_CLIP_TENSOR, 1, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_clip_gradient(NULL, &tensor, 0, gradient, SD_CLIP_TENSOR, 1, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_clip_gradient(NULL, &tensor, 1, NULL, SD_CLIP_TENSOR, 1, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_clip_gradient(NULL, &tensor, 1, gradient, (sd_clip_kind)3, 1, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_clip_gradient(NULL, &tensor, 1, gradient, SD_CLIP_TENSOR, 0, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_clip_gradient(NULL, &tensor, 1, gradient, SD_CLIP_MODULE, (double)NAN, NULL, NULL),
                     SD_ERR_ARGUMENT);
    assert_true(gradient[0] == 5);
}

/* More tensors than fit on the stack: memory comes from the context, and its failure is reported. */
static void many_tensors(void **state) {
    (void)state;
    enum { COUNT = 2000 };
    sd_context_config config;
    failing_memory memory;
    sd_context_config_init(&config);
    config.threads = 2;
    failing_memory_install(&memory, &config);
    sd_context *context;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    long live = memory.live;
    sd_tensor_info *tensors = calloc(COUNT, sizeof *tensors);
    float *gradient = calloc(COUNT, 2 * sizeof *gradient);
    for (size_t i = 0; i < COUNT; i++) {
        tensors[i] = (sd_tensor_info){.name = i % 2 ? "a.b" : "c.d", .offset = 2 * i, .count = 2};
        gradient[2 * i] = 3;
        gradient[2 * i + 1] = 4;
    }
    memory.fail_at = memory.allocations;
    assert_int_equal(sd_clip_gradient(context, tensors, COUNT, gradient, SD_CLIP_TENSOR, 1, NULL, NULL),
                     SD_ERR_MEMORY);
    assert_true(gradient[0] == 3);
    memory.fail_at = -1;
    double *norms = calloc(COUNT, sizeof *norms), total;
    assert_int_equal(sd_clip_gradient(context, tensors, COUNT, gradient, SD_CLIP_TENSOR, 1, norms, &total), SD_OK);
    assert_true(fabs(total - 5 * sqrt(COUNT)) < 1e-9);
    for (size_t i = 0; i < COUNT; i++) {
        assert_true(norms[i] == 5);
        assert_true(fabsf(gradient[2 * i] - 0.6f) < 1e-6f && fabsf(gradient[2 * i + 1] - 0.8f) < 1e-6f);
    }
    assert_int_equal(memory.live, live);
    free(norms);
    free(gradient);
    free(tensors);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_tensor_equals_official), cmocka_unit_test(by_module_equals_official),
        cmocka_unit_test(modules_are_apart),         cmocka_unit_test(only_measures),
        cmocka_unit_test(refuses_nan),               cmocka_unit_test(wrong_arguments),
        cmocka_unit_test(many_tensors),              cmocka_unit_test(patch_head_is_a_module),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
