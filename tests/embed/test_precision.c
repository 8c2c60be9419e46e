/* Embedding in bf16: near fp32, the same with any threads and batch, refused where the CPU cannot. */
#define _POSIX_C_SOURCE 200809L /* setenv */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "ways.h"
#include "failing_memory.h"
#include <simdino/embed.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE = 24, COUNT = 7, DIM = 48, DEPTH = 2 };

static uint8_t pixels[COUNT * SIDE * SIDE * 3];

static void make_images(sd_image images[COUNT]) {
    sd_random random;
    sd_random_init(&random, 4, 0, 0);
    for (size_t i = 0; i < sizeof pixels; i++)
        pixels[i] = (uint8_t)sd_random_u32(&random);
    for (size_t i = 0; i < COUNT; i++)
        images[i] = (sd_image){pixels + i * SIDE * SIDE * 3, SIDE, SIDE, 0, 3, SD_PIXEL_U8};
}

static sd_model *make_model(sd_context *context) {
    sd_model_config config;
    sd_model_config_init(&config);
    config.image_size = SIDE;
    config.patch_size = 4;
    config.dim = DIM;
    config.depth = DEPTH;
    config.heads = 3;
    config.head_layers = 0;
    sd_model *model = NULL;
    assert_int_equal(sd_model_create(context, &config, &model), SD_OK);
    sd_model_initialize(model, 2);
    return model;
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

static void embed(int32_t precision, int32_t kind, int32_t threads, int32_t batch, float *out) {
    sd_context *context = make_context(threads, NULL);
    sd_model *model = make_model(context);
    sd_image images[COUNT];
    sd_embedder *embedder = NULL;
    sd_embed_config config;
    make_images(images);
    sd_embed_config_init(&config);
    assert_int_equal(config.precision, SD_PRECISION_FP32);
    config.precision = precision;
    config.kind = kind;
    config.batch = batch;
    assert_int_equal(sd_embedder_create(context, model, &config, &embedder), SD_OK);
    assert_int_equal(sd_embed_images(embedder, images, COUNT, out, DIM), SD_OK);
    sd_embedder_destroy(embedder);
    sd_model_destroy(model);
    sd_context_destroy(context);
}

/* Within 2^-8 sqrt(P) of their length, P = 1 + 6 DEPTH products in a row (derived in tests/model/test_bf16.c), and not
 * equal. */
static void test_near_fp32(void **state) {
    (void)state;
    const char *ways[BF16_WAYS_MAX];
    size_t count = bf16_ways(ways);
    for (size_t way = 0; way < count; way++)
        for (int32_t kind = SD_EMBED_CLASS; kind <= SD_EMBED_MEAN; kind += SD_EMBED_MEAN - SD_EMBED_CLASS) {
            float exact[COUNT * DIM], rounded[COUNT * DIM], again[COUNT * DIM];
            bf16_take(ways[way]);
            embed(SD_PRECISION_FP32, kind, 1, 64, exact);
            embed(SD_PRECISION_BF16, kind, 1, 64, rounded);
            for (size_t i = 0; i < COUNT; i++) {
                double difference = 0.0, length = 0.0;
                for (size_t j = i * DIM; j < (i + 1) * DIM; j++) {
                    difference += pow((double)rounded[j] - (double)exact[j], 2.0);
                    length += pow((double)exact[j], 2.0);
                }
                double far = sqrt(difference / length);
                if (!(far <= 0x1p-8 * sqrt(1.0 + 6.0 * DEPTH)) || far < 0x1p-13)
                    fail_msg("%s, kind %d: image %zu is %.3g of its length away from fp32", ways[way], kind, i, far);
            }
            embed(SD_PRECISION_BF16, kind, 3, 64, again);
            assert_memory_equal(again, rounded, sizeof rounded);
        }
    bf16_take(NULL);
}

/* The kernels' results do not depend on what else is computed: images give the same alone. (The emulation leaves its
 * sums to the BLAS, which does not promise it.) */
static void test_batches(void **state) {
    (void)state;
    const char *ways[BF16_WAYS_MAX];
    size_t count = bf16_ways(ways);
    for (size_t way = 1; way < count; way++) {
        float together[COUNT * DIM], alone[COUNT * DIM];
        bf16_take(ways[way]);
        embed(SD_PRECISION_BF16, SD_EMBED_MEAN, 1, 64, together);
        embed(SD_PRECISION_BF16, SD_EMBED_MEAN, 2, 1, alone);
        assert_memory_equal(alone, together, sizeof alone);
    }
    bf16_take(NULL);
}

static void test_refused(void **state) {
    (void)state;
    failing_memory memory = {.fail_at = -1};
    sd_context *context = make_context(1, &memory);
    sd_model *model = make_model(context);
    sd_embedder *embedder = NULL;
    sd_embed_config config;
    long live = memory.live;
    sd_embed_config_init(&config);
    config.precision = 7;
    assert_int_equal(sd_embedder_create(context, model, &config, &embedder), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "precision is 7"));
    config.precision = SD_PRECISION_BF16;
    bf16_take(NULL);
    setenv("SIMDINO_CPU", "generic", 1);
    assert_int_equal(sd_embedder_create(context, model, &config, &embedder), SD_ERR_UNSUPPORTED);
    assert_non_null(strstr(sd_last_error(), "AVX512_BF16"));
    unsetenv("SIMDINO_CPU");
    assert_null(embedder);
    assert_int_equal(memory.live, live);
    sd_model_destroy(model);
    sd_context_destroy(context);
}

/* After the first batch of a size nothing is allocated. */
static void test_no_allocation(void **state) {
    (void)state;
    bf16_take_any();
    failing_memory memory = {.fail_at = -1};
    sd_context *context = make_context(2, &memory);
    sd_model *model = make_model(context);
    sd_image images[COUNT];
    float out[COUNT * DIM];
    sd_embedder *embedder = NULL;
    sd_embed_config config;
    make_images(images);
    sd_embed_config_init(&config);
    config.precision = SD_PRECISION_BF16;
    assert_int_equal(sd_embedder_create(context, model, &config, &embedder), SD_OK);
    assert_int_equal(sd_embed_images(embedder, images, COUNT, out, DIM), SD_OK);
    long after = memory.allocations;
    for (int i = 0; i < 3; i++)
        assert_int_equal(sd_embed_images(embedder, images, COUNT, out, DIM), SD_OK);
    assert_int_equal(memory.allocations, after);
    sd_embedder_destroy(embedder);
    sd_model_destroy(model);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
    bf16_take(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_near_fp32),
        cmocka_unit_test(test_batches),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_no_allocation),
    };
    return cmocka_run_group_tests_name("precision", tests, NULL, NULL);
}
