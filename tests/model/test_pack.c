/* Models that keep their weights packed: the same bits as without, for as long as the weights stay, and no longer. */
#define _POSIX_C_SOURCE 200809L /* setenv */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "ways.h"
#include "failing_memory.h"
#include "math/math.h"
#include "model/model.h"
#include "scratch.h"

#include <simdino/io.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* MANY: more chunks than are taken one after the other by all threads (forward.c). */
enum { SIDE = 32, PATCH = 4, CHANNELS = 1, DIM_MOST = 96, FEATURES = 8, MANY = 26 };
enum { TOKENS_MOST = 1 + 2 + (SIDE / PATCH) * (SIDE / PATCH) };

static float pixels[MANY * CHANNELS * SIDE * SIDE], slopes[MANY * FEATURES];

static int fill_inputs(void **state) {
    (void)state;
    sd_random random;
    sd_random_init(&random, 6, 0, 0);
    for (size_t i = 0; i < sizeof pixels / sizeof *pixels; i++)
        pixels[i] = (float)sd_random_normal(&random);
    for (size_t i = 0; i < sizeof slopes / sizeof *slopes; i++)
        slopes[i] = (float)sd_random_normal(&random);
    return 0;
}

/* Forms of the network. */
enum { FORM_V1, FORM_V2, FORM_SWIGLU, FORM_QK_NORM, FORMS };

static sd_model_config config_of(int form) {
    sd_model_config c;
    sd_model_config_init(&c);
    c.image_size = SIDE;
    c.patch_size = PATCH;
    c.channels = CHANNELS;
    c.dim = form % 2 ? DIM_MOST : 64;
    c.depth = form % 2 ? 2 : 3;
    c.heads = 2;
    c.mlp_ratio = 2.5;
    c.drop_path = 0.4;
    c.head_layers = 2;
    c.head_hidden = 24;
    c.head_dim = FEATURES;
    if (form != FORM_V1) {
        c.registers = 2;
        c.mask_token = 1;
        c.layer_scale = 0.1;
        c.drop_path_uniform = 1;
        c.drop_path_subset = 1;
    }
    c.feed_forward = form == FORM_SWIGLU ? SD_FEED_FORWARD_SWIGLU : SD_FEED_FORWARD_MLP;
    c.qk_norm = form == FORM_QK_NORM;
    return c;
}

static sd_context *make_context(int32_t threads, failing_memory *memory) {
    sd_context_config config;
    sd_context *context = NULL;
    sd_context_config_init(&config);
    config.threads = threads;
    config.blas_threads = SD_BLAS_THREADS_ONE;
    if (memory != NULL)
        failing_memory_install(memory, &config);
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    return context;
}

static sd_model *make_model(sd_context *context, int form, uint64_t seed) {
    sd_model_config config = config_of(form);
    sd_model *model = NULL;
    assert_int_equal(sd_model_create(context, &config, &model), SD_OK);
    sd_model_initialize(model, seed);
    for (size_t i = 0; i < model->parameter_count; i++) /* larger than at the start, so that all parts matter */
        model->parameters[i] *= 4.0f;
    return model;
}

/* Whether this precision has a packed form, on this CPU and in this way. */
static bool can_pack(int32_t precision) {
    const sd_gemm gemm = sd_gemm_of(precision, NULL);
    return sd_factor_bytes(&gemm, 1, 1) > 0;
}

static void pack(sd_model *model, int32_t precision) {
    assert_int_equal(sd_model_pack(model, precision), SD_OK);
    assert_true((model->packed != NULL) == can_pack(precision));
}

/* ---- features ------------------------------------------------------------------------------ */

typedef struct embedding {
    float class_tokens[MANY * DIM_MOST];
    float tokens[MANY * TOKENS_MOST * DIM_MOST]; /* zeros unless all are computed */
} embedding;

static void embed(const sd_model *model, int32_t precision, size_t images, int all_tokens, embedding *out) {
    sd_image_group group = {pixels, images, SIDE, SIDE};
    sd_activations *activations = NULL;
    sd_activations_config plan;
    sd_activations_config_init(&plan);
    plan.mode = SD_ACTIVATIONS_INFERENCE;
    plan.all_tokens = all_tokens;
    plan.precision = precision;
    assert_int_equal(sd_activations_create_with(model, &group, 1, &plan, &activations), SD_OK);
    sd_forward_options options;
    sd_forward_outputs outputs;
    sd_forward_options_init(&options);
    sd_forward_outputs_init(&outputs);
    memset(out, 0, sizeof *out);
    options.head = 0;
    outputs.class_tokens = out->class_tokens;
    outputs.tokens = all_tokens ? out->tokens : NULL;
    assert_int_equal(sd_model_forward(model, activations, &group, 1, &options, &outputs), SD_OK);
    assert_true(images < MANY || activations->chunk_count > 3);
    sd_activations_destroy(activations);
}

static void expect_same(const sd_model *model, int32_t precision, size_t images, int all_tokens, const embedding *expected,
                        const char *when) {
    static embedding actual;
    embed(model, precision, images, all_tokens, &actual);
    if (memcmp(&actual, expected, sizeof actual) != 0)
        fail_msg("%s: precision %d, %zu images, all tokens %d: other features", when, precision, images, all_tokens);
}

static void check_same_features(int32_t precision, const char *way) {
    const size_t batches[] = {1, 2, 5, MANY};
    const int32_t other = precision == SD_PRECISION_FP32 ? SD_PRECISION_BF16 : SD_PRECISION_FP32;
    static embedding before;
    for (int form = 0; form < FORMS; form++)
        for (int32_t threads = 1; threads <= 2; threads++) {
            sd_context *context = make_context(threads, NULL);
            sd_model *model = make_model(context, form, 3);
            for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
                int all_tokens = (int)i % 2;
                embed(model, precision, batches[i], all_tokens, &before);
                pack(model, precision);
                expect_same(model, precision, batches[i], all_tokens, &before, way);
                pack(model, other);
                expect_same(model, precision, batches[i], all_tokens, &before, "packed for the other precision");
                sd_model_unpack(model);
                assert_null(model->packed);
            }
            sd_model_destroy(model);
            sd_context_destroy(context);
        }
}

static void test_same_features(void **state) {
    (void)state;
    each_way(check_same_features);
}

/* The packed weights are what a pass of their precision multiplies with, and no other pass. */
static void check_used(int32_t precision, const char *way) {
    const int32_t other = precision == SD_PRECISION_FP32 ? SD_PRECISION_BF16 : SD_PRECISION_FP32;
    const size_t batches[] = {1, MANY};
    static embedding own, others, spoilt;
    if (!can_pack(precision))
        return;
    sd_model *model = make_model(NULL, FORM_V2, 3);
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        embed(model, precision, batches[i], 0, &own);
        embed(model, other, batches[i], 0, &others);
        pack(model, precision);
        memset(model->packed->memory, 0, 1000);
        expect_same(model, other, batches[i], 0, &others, way);
        embed(model, precision, batches[i], 0, &spoilt);
        assert_memory_not_equal(&own, &spoilt, sizeof own);
        pack(model, precision); /* anew */
        expect_same(model, precision, batches[i], 0, &own, way);
    }
    sd_model_destroy(model);
}

static void test_used(void **state) {
    (void)state;
    each_way(check_used);
}

/* What one way to multiply has packed is not given to another one, which a process can choose in between. */
static void test_other_way(void **state) {
    (void)state;
    const char *ways[BF16_WAYS_MAX];
    size_t count = bf16_ways(ways);
    static embedding expected;
    sd_model *model = make_model(NULL, FORM_V1, 3);
    for (size_t one = 0; one < count; one++)
        for (size_t other = 0; other < count; other++) {
            sd_model_unpack(model);
            bf16_take(ways[other]);
            embed(model, SD_PRECISION_BF16, 2, 0, &expected);
            bf16_take(ways[one]);
            pack(model, SD_PRECISION_BF16);
            bf16_take(ways[other]);
            expect_same(model, SD_PRECISION_BF16, 2, 0, &expected, ways[other]);
        }
    bf16_take(NULL);
    sd_model_destroy(model);
}

/* ---- training ------------------------------------------------------------------------------ */

static void train(const sd_model *model, int32_t precision, int32_t mode, float *features, float *gradient) {
    sd_image_group group = {pixels, MANY, SIDE, SIDE};
    sd_activations *activations = NULL;
    sd_activations_config plan;
    sd_activations_config_init(&plan);
    plan.mode = mode;
    plan.precision = precision;
    assert_int_equal(sd_activations_create_with(model, &group, 1, &plan, &activations), SD_OK);
    sd_forward_options options;
    sd_forward_outputs outputs;
    sd_backward_inputs inputs;
    sd_forward_options_init(&options);
    sd_forward_outputs_init(&outputs);
    sd_backward_inputs_init(&inputs);
    options.train = 1;
    options.seed = 9;
    options.step = 4;
    outputs.features = features;
    inputs.features = slopes;
    assert_int_equal(sd_model_forward(model, activations, &group, 1, &options, &outputs), SD_OK);
    assert_int_equal(sd_model_backward(model, activations, &inputs, gradient, 0, NULL), SD_OK);
    sd_activations_destroy(activations);
}

static void check_training(int32_t precision, const char *way) {
    sd_context *context = make_context(2, NULL);
    for (int form = 0; form < FORMS; form++)
        for (int32_t mode = SD_ACTIVATIONS_SPEED; mode <= SD_ACTIVATIONS_MEMORY; mode++) {
            static float features[2][MANY * FEATURES];
            sd_model *model = make_model(context, form, 3);
            size_t count = sd_model_parameter_count(model);
            float *plain = malloc(count * sizeof *plain), *packed = malloc(count * sizeof *packed);
            assert_true(plain != NULL && packed != NULL);
            train(model, precision, mode, features[0], plain);
            pack(model, precision);
            train(model, precision, mode, features[1], packed);
            assert_memory_equal(features[0], features[1], sizeof features[0]);
            if (memcmp(plain, packed, count * sizeof *plain) != 0)
                fail_msg("%s, form %d, mode %d: other gradients", way, form, mode);
            free(plain);
            free(packed);
            sd_model_destroy(model);
        }
    sd_context_destroy(context);
}

static void test_training(void **state) {
    (void)state;
    each_way(check_training);
}

/* ---- dropped ------------------------------------------------------------------------------- */

typedef void change_function(sd_model *model, const char *path);

/* A weight of the second block, which has a packed form. */
static void write_weight(sd_model *model, const char *path) {
    (void)path;
    const sd_tensor_info *info = sd_model_find_tensor(model, "backbone.blocks.1.mlp.fc1.weight");
    assert_non_null(info);
    sd_model_parameters(model)[info->offset + 5] = 3.0f;
}

static void initialize(sd_model *model, const char *path) {
    (void)path;
    sd_model_initialize(model, 77);
}

static void copy(sd_model *model, const char *path) {
    (void)path;
    sd_model *from = make_model(NULL, FORM_V1, 78);
    assert_int_equal(sd_model_copy(model, from), SD_OK);
    sd_model_destroy(from);
}

static void read_weights(sd_model *model, const char *path) {
    sd_model *from = make_model(NULL, FORM_V1, 79);
    assert_int_equal(sd_model_save_weights(from, path, SD_NAMES_OFFICIAL, 1), SD_OK);
    sd_model_destroy(from);
    assert_int_equal(sd_model_read_weights(model, path, NULL, NULL), SD_OK);
}

/* After a change of the weights nothing is left of the pack, and passes give what a model gives that never had one. */
static void test_dropped(void **state) {
    change_function *const changes[] = {write_weight, initialize, copy, read_weights};
    const char *path = scratch_path(*state, "weights.safetensors");
    static embedding expected, former;
    bf16_take_any();
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++)
        for (int32_t precision = SD_PRECISION_FP32; precision <= SD_PRECISION_BF16; precision++) {
            sd_model *model = make_model(NULL, FORM_V1, 3), *fresh = make_model(NULL, FORM_V1, 4);
            embed(model, precision, 2, 0, &former);
            pack(model, precision);
            expect_same(model, precision, 2, 0, &former, "packed");
            changes[i](model, path);
            assert_null(model->packed);
            memcpy(fresh->parameters, sd_model_parameters_const(model), fresh->parameter_count * sizeof(float));
            embed(fresh, precision, 2, 0, &expected);
            assert_memory_not_equal(&expected, &former, sizeof expected);
            expect_same(model, precision, 2, 0, &expected, "changed");
            pack(model, precision);
            expect_same(model, precision, 2, 0, &expected, "changed and packed again");
            assert_non_null(sd_model_parameters_const(model)); /* whoever only reads leaves it */
            assert_true((model->packed != NULL) == can_pack(precision));
            sd_model_unpack(model);
            assert_null(model->packed);
            sd_model_unpack(model);
            expect_same(model, precision, 2, 0, &expected, "unpacked twice");
            sd_model_destroy(fresh);
            sd_model_destroy(model);
        }
    sd_model_unpack(NULL);
    bf16_take(NULL);
}

/* ---- refusals ------------------------------------------------------------------------------ */

static void test_refused(void **state) {
    (void)state;
    static embedding expected;
    assert_int_equal(sd_model_pack(NULL, SD_PRECISION_FP32), SD_ERR_ARGUMENT);
    sd_model *model = make_model(NULL, FORM_V1, 3);
    embed(model, SD_PRECISION_FP32, 1, 0, &expected);
    pack(model, SD_PRECISION_FP32);
    assert_int_equal(sd_model_pack(model, 7), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "precision is 7"));
    assert_null(model->packed); /* nor is the former pack left */
    expect_same(model, SD_PRECISION_FP32, 1, 0, &expected, "refused");
    pack(model, SD_PRECISION_FP32);
    char *wish = getenv("SIMDINO_CPU");
    wish = wish != NULL ? strdup(wish) : NULL;
    bf16_take(NULL);
    setenv("SIMDINO_CPU", "generic", 1);
    assert_int_equal(sd_model_pack(model, SD_PRECISION_BF16), SD_ERR_UNSUPPORTED);
    assert_non_null(strstr(sd_last_error(), "AVX512_BF16"));
    assert_null(model->packed);
    unsetenv("SIMDINO_CPU");
    if (wish != NULL)
        setenv("SIMDINO_CPU", wish, 1);
    free(wish);
    expect_same(model, SD_PRECISION_FP32, 1, 0, &expected, "refused");
    sd_model_destroy(model);
}

/* Each allocation fails in turn: the model is as it was, and not packed. */
static void check_memory(int32_t precision, const char *way) {
    static embedding expected;
    failing_memory memory;
    sd_context *context = make_context(2, &memory);
    sd_model *model = make_model(context, FORM_SWIGLU, 3);
    embed(model, precision, 2, 0, &expected);
    long live = memory.live, tries = 0;
    for (sd_status status = SD_ERR_MEMORY; status != SD_OK; tries++) {
        for (int packed = 0; packed < 2; packed++) { /* a former pack is gone then */
            if (packed)
                pack(model, precision);
            memory.fail_at = memory.allocations + tries;
            status = sd_model_pack(model, precision);
            memory.fail_at = -1;
            if (status == SD_OK)
                break;
            assert_int_equal(status, SD_ERR_MEMORY);
            assert_null(model->packed);
            assert_int_equal(memory.live, live);
            expect_same(model, precision, 2, 0, &expected, way);
        }
    }
    assert_true((tries > 1) == can_pack(precision));
    assert_true((model->packed != NULL) == can_pack(precision));
    expect_same(model, precision, 2, 0, &expected, way);
    long packed = memory.live;
    pack(model, precision); /* takes the place of the former pack */
    assert_int_equal(memory.live, packed);
    sd_model_destroy(model); /* and what is packed goes with the model */
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

static void test_memory(void **state) {
    (void)state;
    each_way(check_memory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_features),
        cmocka_unit_test(test_used),
        cmocka_unit_test(test_other_way),
        cmocka_unit_test(test_training),
        cmocka_unit_test_setup_teardown(test_dropped, scratch_begin, scratch_end),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests_name("pack", tests, fill_inputs, NULL);
}
