/* AdamW, SGD and LARS against the official code, step by step; the fused step against the separate calls. */
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

/* The parameters of a golden file as one flat array. */
typedef struct layout {
    sd_tensor_info tensors[TENSORS_MAX];
    char names[TENSORS_MAX][64];
    size_t count, parameters;
} layout;

static layout read_layout(const golden *archive) {
    layout result = {0};
    const golden_array *names = golden_get(archive, "names");
    result.count = names->count;
    assert_in_range(result.count, 1, TENSORS_MAX);
    for (size_t i = 0; i < names->count; i++) {
        snprintf(result.names[i], sizeof result.names[i], "%s", golden_text(names, i));
        const golden_array *init = golden_get(archive, "init/%s", result.names[i]);
        sd_tensor_info *tensor = &result.tensors[i];
        tensor->dimensions = (int32_t)init->dimensions;
        for (size_t j = 0; j < init->dimensions; j++)
            tensor->shape[j] = (int64_t)init->shape[j];
        tensor->decay = golden_number(golden_get(archive, "group"), i) == 0;
        tensor->offset = result.parameters;
        tensor->count = init->count;
        result.parameters += init->count + 3; /* gaps, which must be left alone */
    }
    return result;
}

static void check_against_golden(const char *file, sd_optimizer_kind kind, const char *const *states,
                                 size_t state_count) {
    golden *archive = golden_open(file);
    layout table = read_layout(archive);
    for (size_t i = 0; i < table.count; i++)
        table.tensors[i].name = table.names[i];

    sd_optimizer_config config;
    sd_optimizer_config_init(&config);
    config.kind = (int32_t)kind;
    sd_optimizer *optimizer = NULL;
    assert_int_equal(sd_optimizer_create(NULL, &config, table.tensors, table.count, table.parameters, &optimizer),
                     SD_OK);
    float *parameters = calloc(table.parameters, sizeof *parameters);
    float *gradient = calloc(table.parameters, sizeof *gradient);
    for (size_t j = 0; j < table.parameters; j++)
        parameters[j] = gradient[j] = 7.0f;
    for (size_t i = 0; i < table.count; i++)
        memcpy(parameters + table.tensors[i].offset, golden_f32(archive, "init/%s", table.names[i]),
               table.tensors[i].count * sizeof(float));

    const double *lr = golden_f64(archive, "lr"), *wd = golden_f64(archive, "wd");
    size_t steps = golden_get(archive, "lr")->count;
    assert_true(steps == 10);
    for (size_t step = 0; step < steps; step++) {
        for (size_t i = 0; i < table.count; i++)
            memcpy(gradient + table.tensors[i].offset,
                   golden_f32(archive, "grad/%s", table.names[i]) + step * table.tensors[i].count,
                   table.tensors[i].count * sizeof(float));
        assert_int_equal(sd_optimizer_step(optimizer, parameters, gradient, lr[step], wd[step]), SD_OK);
        for (size_t i = 0; i < table.count; i++) {
            const sd_tensor_info *tensor = &table.tensors[i];
            double difference = golden_difference_f32(
                parameters + tensor->offset,
                golden_f32(archive, "after/%s", table.names[i]) + step * tensor->count, tensor->count);
            double tolerance = golden_tolerance(archive, "after/%s", table.names[i]);
            if (!(difference <= tolerance))
                fail_msg("%s: %s differs by %g after step %zu, tolerance %g", file, table.names[i], difference, step,
                         tolerance);
        }
    }
    assert_true(sd_optimizer_steps(optimizer) == steps);
    assert_true(sd_optimizer_state_count(optimizer) == state_count);
    assert_null(sd_optimizer_state(optimizer, state_count));
    for (size_t s = 0; s < state_count; s++)
        for (size_t i = 0; i < table.count; i++) {
            char name[128];
            snprintf(name, sizeof name, "state/%s/%s", table.names[i], states[s]);
            golden_compare_f32(archive, name, sd_optimizer_state(optimizer, s) + table.tensors[i].offset,
                               table.tensors[i].count, golden_tolerance(archive, "%s", name));
        }
    for (size_t i = 0; i < table.count; i++)
        for (size_t j = 0; j < 3; j++)
            assert_true(parameters[table.tensors[i].offset + table.tensors[i].count + j] == 7.0f);
    free(parameters);
    free(gradient);
    sd_optimizer_destroy(optimizer);
    golden_close(archive);
}

static void adamw_equals_torch(void **state) {
    (void)state;
    check_against_golden("optim/adamw.npz", SD_OPTIMIZER_ADAMW, (const char *[]){"exp_avg", "exp_avg_sq"}, 2);
}

static void sgd_equals_torch(void **state) {
    (void)state;
    check_against_golden("optim/sgd.npz", SD_OPTIMIZER_SGD, (const char *[]){"momentum_buffer"}, 1);
}

static void lars_equals_official(void **state) {
    (void)state;
    check_against_golden("optim/lars.npz", SD_OPTIMIZER_LARS, (const char *[]){"mu"}, 1);
}

/* The golden gradients are too large to feel it: after one step from zero the change is lr g / (|g| + epsilon). */
static void adamw_epsilon(void **state) {
    (void)state;
    const sd_tensor_info tensor = {.name = "a", .dimensions = 1, .count = 4};
    const float gradient[4] = {1e-8f, -1e-8f, 3e-8f, 0.0f};
    float parameters[4] = {0};
    sd_optimizer *optimizer = NULL;
    assert_int_equal(sd_optimizer_create(NULL, NULL, &tensor, 1, 4, &optimizer), SD_OK);
    assert_int_equal(sd_optimizer_step(optimizer, parameters, gradient, 0.1, 0), SD_OK);
    const double expected[4] = {-0.05, 0.05, -0.075, 0.0};
    for (size_t i = 0; i < 4; i++)
        assert_true(fabs((double)parameters[i] - expected[i]) < 1e-6);
    sd_optimizer_destroy(optimizer);
}

/* ---- a larger layout, with tensors of several blocks ---------------------------------------- */

static const sd_tensor_info large_tensors[] = {
    {.name = "backbone.a", .dimensions = 2, .decay = 1, .offset = 0, .count = 3 * SD_OPTIM_BLOCK + 17},
    {.name = "backbone.b", .dimensions = 1, .decay = 0, .offset = 3 * SD_OPTIM_BLOCK + 17, .count = 5},
    {.name = "head.c", .dimensions = 2, .decay = 1, .offset = 3 * SD_OPTIM_BLOCK + 22, .count = SD_OPTIM_BLOCK},
    {.name = "head.d", .dimensions = 1, .decay = 0, .offset = 4 * SD_OPTIM_BLOCK + 22, .count = 1},
    {.name = "head.e", .dimensions = 3, .decay = 1, .offset = 4 * SD_OPTIM_BLOCK + 23, .count = 300 * SD_OPTIM_BLOCK},
};
enum { LARGE_TENSORS = sizeof large_tensors / sizeof large_tensors[0] };
#define LARGE_COUNT (304 * SD_OPTIM_BLOCK + 23)

typedef struct training {
    sd_context *context;
    sd_optimizer *optimizer;
    float *parameters, *teacher, *gradient;
} training;

static float *noise(size_t count, uint32_t stream) {
    sd_random random;
    sd_random_init(&random, 11, stream, SD_RANDOM_HOST);
    float *values = malloc(count * sizeof *values);
    for (size_t i = 0; i < count; i++)
        values[i] = (float)((double)sd_random_u32(&random) * 0x1p-31 - 1.0);
    return values;
}

static training training_begin(sd_optimizer_kind kind, int32_t threads) {
    training result;
    sd_context_config context_config;
    sd_context_config_init(&context_config);
    context_config.threads = threads;
    assert_int_equal(sd_context_create(&context_config, &result.context), SD_OK);
    sd_optimizer_config config;
    sd_optimizer_config_init(&config);
    config.kind = (int32_t)kind;
    assert_int_equal(sd_optimizer_create(result.context, &config, large_tensors, LARGE_TENSORS, LARGE_COUNT,
                                         &result.optimizer),
                     SD_OK);
    result.parameters = noise(LARGE_COUNT, 1);
    result.teacher = noise(LARGE_COUNT, 2);
    result.gradient = noise(LARGE_COUNT, 3);
    return result;
}

static void training_end(training *one) {
    free(one->parameters);
    free(one->teacher);
    free(one->gradient);
    sd_optimizer_destroy(one->optimizer);
    sd_context_destroy(one->context);
}

static void assert_same_training(training *a, training *b) {
    assert_memory_equal(a->parameters, b->parameters, LARGE_COUNT * sizeof(float));
    assert_memory_equal(a->teacher, b->teacher, LARGE_COUNT * sizeof(float));
    for (size_t i = 0; i < sd_optimizer_state_count(a->optimizer); i++)
        assert_memory_equal(sd_optimizer_state(a->optimizer, i), sd_optimizer_state(b->optimizer, i),
                            LARGE_COUNT * sizeof(float));
    assert_true(sd_optimizer_steps(a->optimizer) == sd_optimizer_steps(b->optimizer));
}

static void fused_step(training *one, sd_clip_kind clip, double *total) {
    double norms[LARGE_TENSORS], factors[LARGE_TENSORS];
    assert_int_equal(sd_gradient_norms(one->context, large_tensors, LARGE_TENSORS, one->gradient, norms, total),
                     SD_OK);
    sd_clip_factors(large_tensors, LARGE_TENSORS, clip, 3.0, norms, factors);
    assert_int_equal(sd_optimizer_step_fused(one->optimizer, one->parameters, one->gradient, factors, 1e-3, 0.04,
                                             one->teacher, 0.996),
                     SD_OK);
}

static void fused_equals_separate(void **state) {
    (void)state;
    for (int kind = SD_OPTIMIZER_ADAMW; kind <= SD_OPTIMIZER_LARS; kind++)
        for (int clip = SD_CLIP_NONE; clip <= SD_CLIP_MODULE; clip++) {
            training fused = training_begin((sd_optimizer_kind)kind, 2);
            training separate = training_begin((sd_optimizer_kind)kind, 1);
            float *original = noise(LARGE_COUNT, 3);
            double total = 0, expected_total = 0, norms[LARGE_TENSORS];
            for (int step = 0; step < 3; step++) {
                memcpy(separate.gradient, original, LARGE_COUNT * sizeof(float));
                assert_int_equal(sd_clip_gradient(separate.context, large_tensors, LARGE_TENSORS, separate.gradient,
                                                  (sd_clip_kind)clip, 3.0, norms, &expected_total),
                                 SD_OK);
                assert_int_equal(sd_optimizer_step(separate.optimizer, separate.parameters, separate.gradient, 1e-3,
                                                   0.04),
                                 SD_OK);
                assert_int_equal(sd_ema_update(separate.context, separate.teacher, separate.parameters, LARGE_COUNT,
                                               0.996),
                                 SD_OK);
                fused_step(&fused, (sd_clip_kind)clip, &total);
                assert_true(total == expected_total && total > 3.0);
            }
            assert_same_training(&fused, &separate);
            assert_memory_equal(fused.gradient, original, LARGE_COUNT * sizeof(float));
            free(original);
            training_end(&fused);
            training_end(&separate);
        }
}

static void threads_do_not_matter(void **state) {
    (void)state;
    for (int kind = SD_OPTIMIZER_ADAMW; kind <= SD_OPTIMIZER_LARS; kind++) {
        training one = training_begin((sd_optimizer_kind)kind, 1);
        training four = training_begin((sd_optimizer_kind)kind, 4);
        double total_one, total_four;
        for (int step = 0; step < 2; step++) {
            fused_step(&one, SD_CLIP_MODULE, &total_one);
            fused_step(&four, SD_CLIP_MODULE, &total_four);
            assert_true(total_one == total_four);
        }
        assert_same_training(&one, &four);
        training_end(&one);
        training_end(&four);
    }
}

static void momentum_one_leaves_the_teacher(void **state) {
    (void)state;
    training one = training_begin(SD_OPTIMIZER_ADAMW, 1);
    float *teacher = noise(LARGE_COUNT, 2);
    assert_int_equal(sd_optimizer_step_fused(one.optimizer, one.parameters, one.gradient, NULL, 1e-3, 0, one.teacher,
                                             1.0),
                     SD_OK);
    assert_memory_equal(one.teacher, teacher, LARGE_COUNT * sizeof(float));
    assert_int_equal(sd_ema_update(one.context, one.teacher, one.parameters, LARGE_COUNT, 1.0), SD_OK);
    assert_memory_equal(one.teacher, teacher, LARGE_COUNT * sizeof(float));
    assert_int_equal(sd_ema_update(one.context, one.teacher, one.parameters, LARGE_COUNT, 0.0), SD_OK);
    assert_memory_equal(one.teacher, one.parameters, LARGE_COUNT * sizeof(float));
    free(teacher);
    training_end(&one);
}

/* An optimizer whose state and step count were copied goes on like the one that they came from. */
static void state_can_be_moved(void **state) {
    (void)state;
    training first = training_begin(SD_OPTIMIZER_ADAMW, 1), second = training_begin(SD_OPTIMIZER_ADAMW, 1);
    for (int step = 0; step < 3; step++)
        fused_step(&first, SD_CLIP_TENSOR, NULL);
    for (size_t i = 0; i < sd_optimizer_state_count(first.optimizer); i++)
        memcpy(sd_optimizer_state(second.optimizer, i), sd_optimizer_state(first.optimizer, i),
               LARGE_COUNT * sizeof(float));
    sd_optimizer_set_steps(second.optimizer, sd_optimizer_steps(first.optimizer));
    memcpy(second.parameters, first.parameters, LARGE_COUNT * sizeof(float));
    memcpy(second.teacher, first.teacher, LARGE_COUNT * sizeof(float));
    fused_step(&first, SD_CLIP_TENSOR, NULL);
    fused_step(&second, SD_CLIP_TENSOR, NULL);
    assert_same_training(&first, &second);
    training_end(&first);
    training_end(&second);
}

static void wrong_arguments(void **state) {
    (void)state;
    sd_optimizer *optimizer = NULL;
    sd_optimizer_config config;
    sd_tensor_info tensors[2] = {{.name = "a", .dimensions = 1, .offset = 0, .count = 4},
                                 {.name = "b", .dimensions = 1, .offset = 4, .count = 4}};
    assert_int_equal(sd_optimizer_create(NULL, NULL, NULL, 1, 8, &optimizer), SD_ERR_ARGUMENT);
    assert_int_equal(sd_optimizer_create(NULL, NULL, tensors, 0, 8, &optimizer), SD_ERR_ARGUMENT);
    assert_int_equal(sd_optimizer_create(NULL, NULL, tensors, 2, 0, &optimizer), SD_ERR_ARGUMENT);
    assert_int_equal(sd_optimizer_create(NULL, NULL, tensors, 2, 7, &optimizer), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "(b)"));
    assert_int_equal(sd_optimizer_create(NULL, NULL, tensors, 2, 8, NULL), SD_ERR_ARGUMENT);
    tensors[1].offset = 3;
    assert_int_equal(sd_optimizer_create(NULL, NULL, tensors, 2, 8, &optimizer), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "overlap"));
    tensors[1].offset = SIZE_MAX - 1;
    assert_int_equal(sd_optimizer_create(NULL, NULL, tensors, 2, 8, &optimizer), SD_ERR_ARGUMENT);
    tensors[1].offset = 4;
    tensors[1].count = 0;
    assert_int_equal(sd_optimizer_create(NULL, NULL, tensors, 2, 8, &optimizer), SD_ERR_ARGUMENT);
    tensors[1].count = 4;

    sd_optimizer_config_init(&config);
    config.kind = 3;
    assert_int_equal(sd_optimizer_create(NULL, &config, tensors, 2, 8, &optimizer), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "kind is 3"));
    double *const members[] = {&config.beta1, &config.beta2, &config.epsilon, &config.momentum, &config.trust};
    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
        sd_optimizer_config_init(&config);
        *members[i] = -0.5;
        assert_int_equal(sd_optimizer_create(NULL, &config, tensors, 2, 8, &optimizer), SD_ERR_ARGUMENT);
        *members[i] = (double)NAN;
        assert_int_equal(sd_optimizer_create(NULL, &config, tensors, 2, 8, &optimizer), SD_ERR_ARGUMENT);
    }
    assert_null(optimizer);

    assert_int_equal(sd_optimizer_create(NULL, NULL, tensors, 2, 8, &optimizer), SD_OK);
    float values[8] = {1, 2, 3, 4, 5, 6, 7, 8}, gradient[8] = {0};
    const float before[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    assert_int_equal(sd_optimizer_step(NULL, values, gradient, 0.1, 0), SD_ERR_ARGUMENT);
    assert_int_equal(sd_optimizer_step(optimizer, NULL, gradient, 0.1, 0), SD_ERR_ARGUMENT);
    assert_int_equal(sd_optimizer_step(optimizer, values, NULL, 0.1, 0), SD_ERR_ARGUMENT);
    assert_int_equal(sd_optimizer_step(optimizer, values, gradient, -0.1, 0), SD_ERR_ARGUMENT);
    assert_int_equal(sd_optimizer_step(optimizer, values, gradient, (double)NAN, 0), SD_ERR_ARGUMENT);
    assert_int_equal(sd_optimizer_step(optimizer, values, gradient, 0.1, -1), SD_ERR_ARGUMENT);
    assert_int_equal(sd_optimizer_step(optimizer, values, gradient, 0.1, (double)INFINITY), SD_ERR_ARGUMENT);
    assert_int_equal(sd_ema_update(NULL, values, gradient, 8, 1.5), SD_ERR_ARGUMENT);
    assert_int_equal(sd_ema_update(NULL, values, gradient, 8, -0.1), SD_ERR_ARGUMENT);
    assert_int_equal(sd_ema_update(NULL, values, gradient, 8, (double)NAN), SD_ERR_ARGUMENT);
    assert_int_equal(sd_ema_update(NULL, NULL, gradient, 8, 0.5), SD_ERR_ARGUMENT);
    assert_int_equal(sd_ema_update(NULL, values, NULL, 8, 0.5), SD_ERR_ARGUMENT);
    assert_memory_equal(values, before, sizeof values);
    assert_true(sd_optimizer_steps(optimizer) == 0);
    sd_optimizer_destroy(optimizer);
    sd_optimizer_destroy(NULL);
}

static void failed_allocations(void **state) {
    (void)state;
    sd_context_config config;
    failing_memory memory;
    sd_context_config_init(&config);
    config.threads = 1;
    failing_memory_install(&memory, &config);
    sd_context *context;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    long base = memory.allocations, live = memory.live;
    sd_optimizer *optimizer = NULL;
    sd_status status = SD_ERR_MEMORY;
    for (long n = 0; status != SD_OK; n++) {
        assert_true(n < 100);
        memory.allocations = base;
        memory.fail_at = base + n;
        status = sd_optimizer_create(context, NULL, large_tensors, LARGE_TENSORS, LARGE_COUNT, &optimizer);
        if (status != SD_OK) {
            assert_int_equal(status, SD_ERR_MEMORY);
            assert_null(optimizer);
            assert_int_equal(memory.live, live);
        } else {
            assert_true(n >= 5);
        }
    }
    memory.fail_at = 0; /* steps allocate nothing */
    memory.sticky = 1;
    float *parameters = noise(LARGE_COUNT, 1), *gradient = noise(LARGE_COUNT, 2);
    long allocations = memory.allocations;
    assert_int_equal(sd_clip_gradient(context, large_tensors, LARGE_TENSORS, gradient, SD_CLIP_TENSOR, 3.0, NULL, NULL),
                     SD_OK);
    assert_int_equal(sd_optimizer_step(optimizer, parameters, gradient, 0.1, 0), SD_OK);
    assert_int_equal(memory.allocations, allocations);
    free(parameters);
    free(gradient);
    sd_optimizer_destroy(optimizer);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adamw_equals_torch),
        cmocka_unit_test(sgd_equals_torch),
        cmocka_unit_test(lars_equals_official),
        cmocka_unit_test(adamw_epsilon),
        cmocka_unit_test(fused_equals_separate),
        cmocka_unit_test(threads_do_not_matter),
        cmocka_unit_test(momentum_one_leaves_the_teacher),
        cmocka_unit_test(state_can_be_moved),
        cmocka_unit_test(wrong_arguments),
        cmocka_unit_test(failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
