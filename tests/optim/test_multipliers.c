/* Learning rates and weight decays of single tensors, and frozen ones. */
#include "golden.h"
#include "optim/optim.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- the official rule --------------------------------------------------------------------- */

/* From an official name: blocks.BLOCK., or blocks.CHUNK.BLOCK. with the number of the block in the whole. */
static int32_t layer_of(const char *name, int32_t depth) {
    static const char *const first[] = {"cls_token", "pos_embed", "register_tokens", "mask_token", "patch_embed"};
    for (size_t i = 0; i < sizeof first / sizeof first[0]; i++)
        if (strncmp(name, first[i], strlen(first[i])) == 0)
            return 0;
    int chunk, block;
    if (sscanf(name, "blocks.%d.%d.", &chunk, &block) == 2)
        return block + 1;
    if (sscanf(name, "blocks.%d.", &block) == 1)
        return block + 1;
    return depth + 1;
}

static void expect_close(double actual, double expected, const char *what, const char *name) {
    if (!(fabs(actual - expected) <= 1e-15))
        fail_msg("%s of %s is %.17g, expected %.17g", what, name, actual, expected);
}

static void layers_equal_the_official_ones(void **state) {
    (void)state;
    enum { TENSORS_MAX = 128 };
    static const struct {
        const char *name, *prefix;
        int32_t depth;
    } cases[] = {
        {"plain", "backbone.", 3}, {"chunked", "backbone.", 8},  {"swiglu", "backbone.", 3},
        {"head", "head.", 3},      {"head", "patch_head.", 12}, {"head_nolast", "head.", 8},
    };
    golden *archive = golden_open("optim/multipliers_v2.npz");
    double rate = golden_scalar(archive, "lr_decay_rate"), patch_embed = golden_scalar(archive, "patch_embed_lr_mult");
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        const golden_array *names = golden_get(archive, "%s/names", cases[c].name);
        sd_tensor_info tensors[TENSORS_MAX];
        char texts[TENSORS_MAX][64];
        double lr[TENSORS_MAX], decay[TENSORS_MAX];
        uint8_t last_layer[TENSORS_MAX];
        assert_in_range(names->count, 1, TENSORS_MAX);
        for (size_t i = 0; i < names->count; i++) {
            snprintf(texts[i], sizeof texts[i], "%s%s", cases[c].prefix, golden_text(names, i));
            tensors[i] = (sd_tensor_info){.name = texts[i], .decay = 1};
            tensors[i].layer = strcmp(cases[c].prefix, "backbone.") == 0
                                   ? layer_of(golden_text(names, i), cases[c].depth)
                                   : cases[c].depth + 1;
        }
        assert_int_equal(sd_layer_multipliers(tensors, names->count, cases[c].depth, rate, patch_embed, lr, decay,
                                              last_layer),
                         SD_OK);
        for (size_t i = 0; i < names->count; i++) {
            expect_close(lr[i], golden_f64(archive, "%s/lr_multiplier", cases[c].name)[i], "lr", texts[i]);
            expect_close(decay[i], golden_f64(archive, "%s/wd_multiplier", cases[c].name)[i], "decay", texts[i]);
            assert_int_equal(last_layer[i], golden_u8(archive, "%s/is_last_layer", cases[c].name)[i]);
        }
        /* each output alone; no difference between layers; the table's word against decay */
        for (size_t i = 0; i < names->count; i++)
            tensors[i].decay = 0;
        assert_int_equal(sd_layer_multipliers(tensors, names->count, cases[c].depth, 1, 1, lr, NULL, NULL), SD_OK);
        assert_int_equal(sd_layer_multipliers(tensors, names->count, cases[c].depth, 1, 1, NULL, decay, NULL), SD_OK);
        for (size_t i = 0; i < names->count; i++)
            assert_true(lr[i] == 1 && decay[i] == 0);
    }
    golden_close(archive);
}

/* The layers in a model's own table are those that the names tell. */
static void tables_of_models_fit_the_rule(void **state) {
    (void)state;
    enum { TENSORS_MAX = 64, DEPTH = 3 };
    sd_model_config config;
    sd_model_config_init(&config);
    config.image_size = 16;
    config.patch_size = 8;
    config.dim = 8;
    config.heads = 2;
    config.depth = DEPTH;
    config.head_hidden = 16;
    config.head_dim = 8;
    sd_model *model;
    assert_int_equal(sd_model_create(NULL, &config, &model), SD_OK);
    size_t count = sd_model_tensor_count(model);
    double lr[TENSORS_MAX], decay[TENSORS_MAX];
    assert_in_range(count, 20, TENSORS_MAX);
    const sd_tensor_info *tensors = sd_model_tensor(model, 0);
    assert_int_equal(sd_layer_multipliers(tensors, count, DEPTH, 0.5, 0.2, lr, decay, NULL), SD_OK);
    for (size_t i = 0; i < count; i++) {
        const char *name = strchr(tensors[i].name, '.') + 1;
        double expected = pow(0.5, DEPTH + 1 - layer_of(name, DEPTH));
        expect_close(lr[i], strstr(name, "patch_embed") ? 0.2 * expected : expected, "lr", name);
        assert_true(decay[i] == tensors[i].decay); /* v1's rule and v2's agree on this network */
    }
    sd_model_destroy(model);
}

/* ---- single tensors ------------------------------------------------------------------------ */

enum { TENSORS = 5, STEPS = 9 };
#define BLOCK SD_OPTIM_BLOCK
#define VALUES (3 * BLOCK + 68)
/* Not in the order of memory, one of several blocks, and gaps. */
static const sd_tensor_info table[TENSORS] = {
    {.name = "head.last_layer.weight_v", .dimensions = 2, .decay = 1, .offset = 2 * BLOCK + 40, .count = BLOCK + 5},
    {.name = "backbone.a.weight", .dimensions = 2, .decay = 1, .offset = 0, .count = 2 * BLOCK + 9},
    {.name = "backbone.a.bias", .dimensions = 1, .decay = 0, .offset = 2 * BLOCK + 10, .count = 7},
    {.name = "head.b.weight", .dimensions = 3, .decay = 1, .offset = 2 * BLOCK + 20, .count = 11},
    {.name = "head.b.bias", .dimensions = 1, .decay = 0, .offset = 3 * BLOCK + 50, .count = 15},
};
static const double lr_multiplier[TENSORS] = {0.25, 0.9, 1, 0, 1.5};
static const double decay_multiplier[TENSORS] = {1, 0.5, 2, 1, 0};
/* In steps 0 to 2 and in step 5 the first tensor is frozen, in step 4 the third. */
static bool is_frozen(size_t tensor, int step) {
    return tensor == 0 ? step < 3 || step == 5 : tensor == 2 && step == 4;
}
static double lr_at(int step) { return 1e-3 * (step + 1); }
static double decay_at(int step) { return 0.04 + 0.1 * step; }

static float *noise(size_t count, uint64_t stream) {
    sd_random random;
    sd_random_init(&random, 23, stream, SD_RANDOM_HOST);
    float *values = malloc(count * sizeof *values);
    assert_non_null(values);
    for (size_t i = 0; i < count; i++)
        values[i] = (float)((double)sd_random_u32(&random) * 0x1p-31 - 1.0);
    return values;
}

static sd_optimizer *make_optimizer(sd_context *context, int kind, const sd_tensor_info *tensors, size_t count) {
    sd_optimizer_config config;
    sd_optimizer *optimizer;
    sd_optimizer_config_init(&config);
    config.kind = kind;
    assert_int_equal(sd_optimizer_create(context, &config, tensors, count, VALUES, &optimizer), SD_OK);
    return optimizer;
}

/* The whole table with multipliers and freezing, fused with clipping and teacher. */
typedef struct run {
    sd_optimizer *optimizer;
    float *parameters, *teacher;
} run;

static const double factors[TENSORS] = {1, 0.5, 0.75, 1, 0.125};

static void run_steps(run *one, int from, int to) {
    for (int step = from; step < to; step++) {
        float *gradient = noise(VALUES, 100 + (uint64_t)step);
        for (size_t i = 0; i < TENSORS; i++)
            assert_int_equal(sd_optimizer_set_frozen(one->optimizer, i, is_frozen(i, step)), SD_OK);
        assert_int_equal(sd_optimizer_step_fused(one->optimizer, one->parameters, gradient, factors, lr_at(step),
                                                 decay_at(step), one->teacher, 0.9),
                         SD_OK);
        free(gradient);
    }
}

static run run_begin(sd_context *context, int kind) {
    run one = {make_optimizer(context, kind, table, TENSORS), noise(VALUES, 1), noise(VALUES, 2)};
    assert_int_equal(sd_optimizer_set_multipliers(one.optimizer, lr_multiplier, decay_multiplier), SD_OK);
    return one;
}

static void run_end(run *one) {
    sd_optimizer_destroy(one->optimizer);
    free(one->parameters);
    free(one->teacher);
}

static void assert_same_run(const run *a, const run *b) {
    assert_memory_equal(a->parameters, b->parameters, VALUES * sizeof(float));
    assert_memory_equal(a->teacher, b->teacher, VALUES * sizeof(float));
    for (size_t s = 0; s < sd_optimizer_state_count(a->optimizer); s++)
        assert_memory_equal(sd_optimizer_state(a->optimizer, s), sd_optimizer_state(b->optimizer, s),
                            VALUES * sizeof(float));
    for (size_t i = 0; i < TENSORS; i++)
        assert_true(sd_optimizer_tensor_steps(a->optimizer, i) == sd_optimizer_tensor_steps(b->optimizer, i));
    assert_true(sd_optimizer_steps(a->optimizer) == sd_optimizer_steps(b->optimizer));
}

/* Each tensor goes as if it were alone, with its own rates, and as if the steps in which it is frozen did not exist. */
static void each_tensor_goes_its_own_way(void **state) {
    (void)state;
    for (int kind = SD_OPTIMIZER_ADAMW; kind <= SD_OPTIMIZER_LARS; kind++) {
        run all = run_begin(NULL, kind);
        float *before = noise(VALUES, 1);
        run_steps(&all, 0, STEPS);
        assert_true(sd_optimizer_steps(all.optimizer) == STEPS);
        for (size_t i = 0; i < TENSORS; i++) {
            sd_tensor_info alone = table[i];
            alone.decay = 1;
            sd_optimizer *optimizer = make_optimizer(NULL, kind, &alone, 1);
            float *parameters = noise(VALUES, 1), *teacher = noise(VALUES, 2);
            uint64_t steps = 0;
            for (int step = 0; step < STEPS; step++) {
                if (!is_frozen(i, step)) {
                    float *gradient = noise(VALUES, 100 + (uint64_t)step);
                    for (size_t k = alone.offset; k < alone.offset + alone.count; k++)
                        gradient[k] *= (float)factors[i];
                    assert_int_equal(sd_optimizer_step(optimizer, parameters, gradient, lr_at(step) * lr_multiplier[i],
                                                       decay_at(step) * decay_multiplier[i]),
                                     SD_OK);
                    free(gradient);
                    steps++;
                }
                assert_int_equal(sd_ema_update(NULL, teacher + alone.offset, parameters + alone.offset, alone.count,
                                               0.9),
                                 SD_OK);
            }
            size_t bytes = alone.count * sizeof(float);
            assert_memory_equal(all.parameters + alone.offset, parameters + alone.offset, bytes);
            assert_memory_equal(all.teacher + alone.offset, teacher + alone.offset, bytes);
            for (size_t s = 0; s < sd_optimizer_state_count(optimizer); s++)
                assert_memory_equal(sd_optimizer_state(all.optimizer, s) + alone.offset,
                                    sd_optimizer_state(optimizer, s) + alone.offset, bytes);
            assert_true(sd_optimizer_tensor_steps(all.optimizer, i) == steps);
            assert_true(steps == (uint64_t)(i == 0 ? STEPS - 4 : i == 2 ? STEPS - 1 : STEPS));
            /* lr 0: the values stay, the moments do not */
            bool same = memcmp(before + alone.offset, parameters + alone.offset, bytes) == 0;
            assert_true(same == (lr_multiplier[i] == 0));
            assert_true(sd_optimizer_state(optimizer, 0)[alone.offset] != 0);
            sd_optimizer_destroy(optimizer);
            free(parameters);
            free(teacher);
        }
        free(before);
        run_end(&all);
    }
}

/* AdamW written down once more, in double. */
static void adamw_equals_its_definition(void **state) {
    (void)state;
    run all = run_begin(NULL, SD_OPTIMIZER_ADAMW);
    float *start = noise(VALUES, 1), *teacher_start = noise(VALUES, 2), *gradients[STEPS];
    for (int step = 0; step < STEPS; step++)
        gradients[step] = noise(VALUES, 100 + (uint64_t)step);
    run_steps(&all, 0, STEPS);
    for (size_t i = 0; i < TENSORS; i++)
        for (size_t k = table[i].offset; k < table[i].offset + table[i].count; k += 1 + table[i].count / 50) {
            double p = (double)start[k], m = 0, v = 0, teacher = (double)teacher_start[k];
            int t = 0;
            for (int step = 0; step < STEPS; step++) {
                if (!is_frozen(i, step)) {
                    double g = factors[i] * (double)gradients[step][k], lr = lr_at(step) * lr_multiplier[i];
                    t++;
                    m = 0.9 * m + 0.1 * g;
                    v = 0.999 * v + 0.001 * g * g;
                    p -= lr * decay_at(step) * decay_multiplier[i] * p;
                    p -= lr * m / (1 - pow(0.9, t)) / (sqrt(v / (1 - pow(0.999, t))) + 1e-8);
                }
                teacher = 0.9 * teacher + 0.1 * p;
            }
            if (!(fabs((double)all.parameters[k] - p) <= 2e-6))
                fail_msg("%s, element %zu: %.9g, expected %.9g", table[i].name, k, (double)all.parameters[k], p);
            assert_true(fabs((double)all.teacher[k] - teacher) <= 2e-6);
        }
    for (int step = 0; step < STEPS; step++)
        free(gradients[step]);
    free(start);
    free(teacher_start);
    run_end(&all);
}

static void threads_do_not_matter(void **state) {
    (void)state;
    for (int kind = SD_OPTIMIZER_ADAMW; kind <= SD_OPTIMIZER_LARS; kind++) {
        sd_context_config config;
        sd_context *context;
        sd_context_config_init(&config);
        config.threads = 4;
        assert_int_equal(sd_context_create(&config, &context), SD_OK);
        run one = run_begin(NULL, kind), four = run_begin(context, kind);
        run_steps(&one, 0, STEPS);
        run_steps(&four, 0, STEPS);
        assert_same_run(&one, &four);
        run_end(&one);
        run_end(&four);
        sd_context_destroy(context);
    }
}

/* Saved and restored in the middle: values, moments, and the step counts of all tensors. */
static void state_can_be_moved(void **state) {
    (void)state;
    run whole = run_begin(NULL, SD_OPTIMIZER_ADAMW), second = run_begin(NULL, SD_OPTIMIZER_ADAMW);
    run_steps(&whole, 0, 5);
    memcpy(second.parameters, whole.parameters, VALUES * sizeof(float));
    memcpy(second.teacher, whole.teacher, VALUES * sizeof(float));
    for (size_t s = 0; s < 2; s++)
        memcpy(sd_optimizer_state(second.optimizer, s), sd_optimizer_state(whole.optimizer, s),
               VALUES * sizeof(float));
    sd_optimizer_set_steps(second.optimizer, sd_optimizer_steps(whole.optimizer));
    for (size_t i = 0; i < TENSORS; i++) {
        assert_true(sd_optimizer_tensor_steps(second.optimizer, i) == 5);
        uint64_t steps = sd_optimizer_tensor_steps(whole.optimizer, i);
        assert_int_equal(sd_optimizer_set_tensor_steps(second.optimizer, i, steps), SD_OK);
    }
    assert_true(sd_optimizer_tensor_steps(second.optimizer, 0) == 2);
    run_steps(&whole, 5, STEPS);
    run_steps(&second, 5, STEPS);
    assert_same_run(&whole, &second);
    run_end(&whole);
    run_end(&second);
}

/* Ones, and the table's decay flags, are what there is without multipliers; and one can go back to that. */
static void ones_change_nothing(void **state) {
    (void)state;
    static const double ones[TENSORS] = {1, 1, 1, 1, 1};
    double flags[TENSORS];
    for (size_t i = 0; i < TENSORS; i++)
        flags[i] = table[i].decay;
    for (int kind = SD_OPTIMIZER_ADAMW; kind <= SD_OPTIMIZER_LARS; kind++) {
        run plain = run_begin(NULL, kind), set = run_begin(NULL, kind);
        sd_optimizer_destroy(plain.optimizer);
        plain.optimizer = make_optimizer(NULL, kind, table, TENSORS);
        assert_int_equal(sd_optimizer_set_multipliers(set.optimizer, ones, flags), SD_OK);
        run_steps(&plain, 0, 2);
        run_steps(&set, 0, 2);
        assert_same_run(&plain, &set);
        assert_int_equal(sd_optimizer_set_multipliers(set.optimizer, lr_multiplier, decay_multiplier), SD_OK);
        assert_int_equal(sd_optimizer_set_multipliers(set.optimizer, NULL, NULL), SD_OK);
        run_steps(&plain, 2, 4);
        run_steps(&set, 2, 4);
        assert_same_run(&plain, &set);
        run_end(&plain);
        run_end(&set);
    }
}

/* What lies in the gradient of a frozen tensor is not looked at. */
static void frozen_tensors_have_no_gradient(void **state) {
    (void)state;
    for (int kind = SD_OPTIMIZER_ADAMW; kind <= SD_OPTIMIZER_LARS; kind++) {
        run one = run_begin(NULL, kind);
        float *gradient = noise(VALUES, 3), *before = noise(VALUES, 1);
        const sd_tensor_info *frozen = &table[0];
        for (size_t k = 0; k < frozen->count; k++)
            gradient[frozen->offset + k] = (float)NAN;
        assert_int_equal(sd_optimizer_set_frozen(one.optimizer, 0, 1), SD_OK);
        assert_int_equal(sd_optimizer_step(one.optimizer, one.parameters, gradient, 0.1, 0.1), SD_OK);
        assert_memory_equal(one.parameters + frozen->offset, before + frozen->offset, frozen->count * sizeof(float));
        for (size_t k = 0; k < VALUES; k++)
            assert_true(isfinite(one.parameters[k]));
        assert_true(sd_optimizer_tensor_steps(one.optimizer, 0) == 0);
        assert_true(sd_optimizer_tensor_steps(one.optimizer, 1) == 1);
        free(gradient);
        free(before);
        run_end(&one);
    }
}

static void wrong_arguments(void **state) {
    (void)state;
    run one = run_begin(NULL, SD_OPTIMIZER_ADAMW), other = run_begin(NULL, SD_OPTIMIZER_ADAMW);
    const double bad[] = {-0.1, NAN, INFINITY};
    for (size_t b = 0; b < 3; b++) {
        double values[TENSORS] = {2, 2, 2, bad[b], 2};
        assert_int_equal(sd_optimizer_set_multipliers(one.optimizer, values, NULL), SD_ERR_ARGUMENT);
        assert_non_null(strstr(sd_last_error(), "lr multiplier of tensor 3"));
        assert_int_equal(sd_optimizer_set_multipliers(one.optimizer, NULL, values), SD_ERR_ARGUMENT);
        assert_non_null(strstr(sd_last_error(), "decay multiplier of tensor 3"));
    }
    assert_int_equal(sd_optimizer_set_multipliers(NULL, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_optimizer_set_frozen(one.optimizer, TENSORS, 1), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "tensor is 5"));
    assert_int_equal(sd_optimizer_set_frozen(NULL, 0, 1), SD_ERR_ARGUMENT);
    assert_int_equal(sd_optimizer_set_tensor_steps(one.optimizer, SIZE_MAX, 1), SD_ERR_ARGUMENT);
    assert_int_equal(sd_optimizer_set_tensor_steps(NULL, 0, 1), SD_ERR_ARGUMENT);
    assert_true(sd_optimizer_tensor_steps(one.optimizer, TENSORS) == 0);
    assert_true(sd_optimizer_tensor_steps(NULL, 0) == 0);
    sd_optimizer_set_steps(NULL, 3);
    run_steps(&one, 0, 1); /* nothing of that has changed anything */
    run_steps(&other, 0, 1);
    assert_same_run(&one, &other);
    run_end(&one);
    run_end(&other);

    double lr[TENSORS] = {0};
    sd_tensor_info tensors[2] = {{.name = "a", .layer = 1}, {.name = "b", .layer = 5}};
    assert_int_equal(sd_layer_multipliers(tensors, 2, 4, 0.9, 0.2, lr, NULL, NULL), SD_OK);
    assert_int_equal(sd_layer_multipliers(tensors, 2, 3, 0.9, 0.2, lr, NULL, NULL), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "(b) is 5"));
    tensors[1].layer = -1;
    assert_int_equal(sd_layer_multipliers(tensors, 2, 4, 0.9, 0.2, lr, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_layer_multipliers(NULL, 2, 4, 0.9, 0.2, lr, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_layer_multipliers(tensors, 1, -1, 0.9, 0.2, lr, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_layer_multipliers(tensors, 1, 4, 0, 0.2, lr, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_layer_multipliers(tensors, 1, 4, NAN, 0.2, lr, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_layer_multipliers(tensors, 1, 4, 0.9, -0.2, lr, NULL, NULL), SD_ERR_ARGUMENT);
    tensors[0].name = NULL;
    assert_int_equal(sd_layer_multipliers(tensors, 1, 4, 0.9, 0.2, lr, NULL, NULL), SD_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_equal_the_official_ones), cmocka_unit_test(tables_of_models_fit_the_rule),
        cmocka_unit_test(each_tensor_goes_its_own_way),   cmocka_unit_test(adamw_equals_its_definition),
        cmocka_unit_test(threads_do_not_matter),          cmocka_unit_test(state_can_be_moved),
        cmocka_unit_test(ones_change_nothing),            cmocka_unit_test(frozen_tensors_have_no_gradient),
        cmocka_unit_test(wrong_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
