/* Features beyond the class token: pooled patches, several blocks, all tokens and attention of an image, padding; and
 * many threads on one network. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "small_runs.h"

#include <simdino/simdino.h>

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { DIM = 16, DEPTH = 4, HEADS = 2, PATCH = 4, REGISTERS = 3, COUNT = 7, SIDE_MAX = 32, EXTRA = 1 + REGISTERS };

static unsigned char pixels[COUNT][SIDE_MAX * SIDE_MAX * 3];
static sd_image images[COUNT];
static const size_t sizes[COUNT][2] = {{16, 16}, {16, 16}, {24, 12}, {16, 16}, {32, 8}, {24, 12}, {24, 12}};

static int make_images(void **state) {
    (void)state;
    sd_random random;
    sd_random_init(&random, 17, 0, 0);
    for (size_t i = 0; i < COUNT; i++) {
        for (size_t j = 0; j < sizeof pixels[i]; j++)
            pixels[i][j] = (unsigned char)sd_random_below(&random, 256);
        images[i] = (sd_image){.pixels = pixels[i], .width = sizes[i][0], .height = sizes[i][1], .channels = 3};
    }
    return 0;
}

static sd_model *make_model(sd_context *context) {
    sd_model_config config;
    sd_model *model = NULL;
    sd_model_config_init(&config);
    config.image_size = 16;
    config.patch_size = PATCH;
    config.dim = DIM;
    config.depth = DEPTH;
    config.heads = HEADS;
    config.registers = REGISTERS;
    config.mask_token = 1;
    config.layer_scale = 0.5;
    config.interpolate_antialias = 1;
    config.interpolate_offset = 0;
    config.head_layers = 0;
    assert_int_equal(sd_model_create(context, &config, &model), SD_OK);
    sd_model_initialize(model, 3);
    sd_random random;
    sd_random_init(&random, 4, 0, 0);
    for (size_t i = 0; i < sd_model_parameter_count(model); i++)
        sd_model_parameters(model)[i] += 0.1f * (float)sd_random_normal(&random);
    return model;
}

/* One image by hand: tokens of all blocks (norm applied or not) from a pass that stores everything. */
typedef struct by_hand {
    size_t tokens;
    float *blocks[DEPTH]; /* tokens x DIM */
    float *attention;     /* of block 1 */
} by_hand;

static by_hand compute(const sd_model *model, const sd_image *image, int32_t norm) {
    by_hand h = {0};
    sd_embed_config config;
    sd_embed_config_init(&config);
    size_t width, height;
    assert_int_equal(sd_image_prepare(image, 0, 0, config.mean, config.std, NULL, &width, &height), SD_OK);
    float *tensor = malloc(3 * width * height * sizeof *tensor);
    assert_int_equal(sd_image_prepare(image, 0, 0, config.mean, config.std, tensor, NULL, NULL), SD_OK);
    sd_image_group group = {.pixels = tensor, .count = 1, .height = height, .width = width};
    sd_activations *activations;
    assert_int_equal(sd_activations_create(model, &group, 1, SD_ACTIVATIONS_SPEED, 1, &activations), SD_OK);
    assert_int_equal(sd_model_forward(model, activations, &group, 1, NULL, NULL), SD_OK);
    h.tokens = EXTRA + height / PATCH * (width / PATCH);
    for (int32_t b = 0; b < DEPTH; b++) {
        h.blocks[b] = malloc(h.tokens * DIM * sizeof(float));
        assert_int_equal(sd_model_block_tokens(model, activations, b, norm, h.blocks[b]), SD_OK);
    }
    h.attention = malloc(HEADS * h.tokens * h.tokens * sizeof(float));
    assert_int_equal(sd_model_attention(model, activations, 1, 0, h.attention), SD_OK);
    sd_activations_destroy(activations);
    free(tensor);
    return h;
}

static void forget(by_hand *h) {
    for (size_t b = 0; b < DEPTH; b++)
        free(h->blocks[b]);
    free(h->attention);
}

static void expect_near(const float *actual, const float *expected, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!(fabs((double)actual[i] - (double)expected[i]) <= 1e-5))
            fail_msg("number %zu is %.9g, expected %.9g", i, (double)actual[i], (double)expected[i]);
}

static size_t expected_features(const by_hand *h, const sd_embed_config *config, float *out) {
    size_t used = 0;
    if (config->kind != SD_EMBED_MEAN)
        for (int32_t b = DEPTH - config->blocks; b < DEPTH; b++, used += DIM)
            memcpy(out + used, h->blocks[b], DIM * sizeof *out);
    if (config->kind == SD_EMBED_CLASS)
        return used;
    for (size_t j = 0; j < DIM; j++, used++) {
        double sum = 0.0;
        for (size_t t = EXTRA; t < h->tokens; t++)
            sum += (double)h->blocks[DEPTH - 1][t * DIM + j];
        out[used] = (float)(sum / (double)(h->tokens - EXTRA));
    }
    return used;
}

static void check_kind(const sd_model *model, sd_context *context, int32_t kind, int32_t blocks, int32_t batch) {
    sd_embed_config config;
    sd_embed_config_init(&config);
    config.kind = kind;
    config.blocks = blocks;
    config.batch = batch;
    sd_embedder *embedder;
    assert_int_equal(sd_embedder_create(context, model, &config, &embedder), SD_OK);
    float out[COUNT][DIM * (DEPTH + 1)], expected[DIM * (DEPTH + 1)];
    assert_int_equal(sd_embed_images(embedder, images, COUNT, &out[0][0], DIM * (DEPTH + 1)), SD_OK);
    for (size_t i = 0; i < COUNT; i++) {
        by_hand h = compute(model, &images[i], 1);
        assert_int_equal(expected_features(&h, &config, expected), sd_embedder_dim(embedder));
        expect_near(out[i], expected, sd_embedder_dim(embedder));
        forget(&h);
    }
    sd_embedder_destroy(embedder);
}

static void test_pooled(void **state) {
    (void)state;
    sd_context *context = small_context(2, NULL);
    sd_model *model = make_model(context);
    for (int32_t batch = 1; batch <= 64; batch *= 8) {
        check_kind(model, context, SD_EMBED_CLASS, 1, batch);
        check_kind(model, context, SD_EMBED_CLASS, 3, batch);
        check_kind(model, context, SD_EMBED_MEAN, 1, batch);
        check_kind(model, context, SD_EMBED_CLASS_MEAN, 1, batch);
        check_kind(model, context, SD_EMBED_CLASS_MEAN, DEPTH, batch);
    }
    sd_model_destroy(model);
    sd_context_destroy(context);
}

static void test_tokens(void **state) {
    (void)state;
    sd_context *context = small_context(2, NULL);
    sd_model *model = make_model(context);
    for (int32_t norm = 0; norm < 2; norm++) {
        sd_embed_config config;
        sd_embed_config_init(&config);
        config.blocks = 2;
        config.block_norm = norm;
        sd_embedder *embedder;
        assert_int_equal(sd_embedder_create(context, model, &config, &embedder), SD_OK);
        for (size_t i = 0; i < COUNT; i++) {
            by_hand h = compute(model, &images[i], norm);
            size_t rows, columns, patches;
            assert_int_equal(sd_embed_grid(embedder, &images[i], &rows, &columns), SD_OK);
            assert_int_equal(rows, sizes[i][1] / PATCH);
            assert_int_equal(columns, sizes[i][0] / PATCH);
            patches = rows * columns;
            float *class_tokens = malloc(2 * DIM * sizeof(float)), *registers = malloc(2 * REGISTERS * DIM * sizeof(float));
            float *patch_tokens = malloc(2 * patches * DIM * sizeof(float));
            float *attention = malloc(HEADS * h.tokens * h.tokens * sizeof(float));
            sd_token_outputs outputs;
            sd_token_outputs_init(&outputs);
            outputs.class_tokens = class_tokens;
            outputs.register_tokens = registers;
            outputs.patch_tokens = patch_tokens;
            outputs.attention = attention;
            outputs.attention_block = 1;
            assert_int_equal(sd_embed_tokens(embedder, &images[i], &outputs), SD_OK);
            for (size_t b = 0; b < 2; b++) {
                const float *block = h.blocks[DEPTH - 2 + b];
                expect_near(class_tokens + b * DIM, block, DIM);
                expect_near(registers + b * REGISTERS * DIM, block + DIM, REGISTERS * DIM);
                expect_near(patch_tokens + b * patches * DIM, block + EXTRA * DIM, patches * DIM);
            }
            expect_near(attention, h.attention, HEADS * h.tokens * h.tokens);
            free(attention);
            free(patch_tokens);
            free(registers);
            free(class_tokens);
            forget(&h);
        }
        sd_embedder_destroy(embedder);
    }
    sd_model_destroy(model);
    sd_context_destroy(context);
}

/* An image of 13 x 10 pixels padded to 16 x 12: the same as a larger image whose border has the mean colour. */
static void test_padding(void **state) {
    (void)state;
    sd_context *context = small_context(1, NULL);
    sd_model *model = make_model(context);
    static float small[10][13][3], large[12][16][3];
    sd_embed_config config;
    sd_embed_config_init(&config);
    sd_random random;
    sd_random_init(&random, 9, 0, 0);
    for (size_t y = 0; y < 12; y++)
        for (size_t x = 0; x < 16; x++)
            for (size_t c = 0; c < 3; c++)
                large[y][x][c] = (float)config.mean[c];
    for (size_t y = 0; y < 10; y++)
        for (size_t x = 0; x < 13; x++)
            for (size_t c = 0; c < 3; c++)
                large[y + 1][x + 1][c] = small[y][x][c] = (float)sd_random_uniform(&random);
    sd_image narrow = {.pixels = small, .width = 13, .height = 10, .channels = 3, .pixel_type = SD_PIXEL_F32};
    sd_image wide = {.pixels = large, .width = 16, .height = 12, .channels = 3, .pixel_type = SD_PIXEL_F32};
    config.fit = SD_FIT_PAD;
    config.kind = SD_EMBED_CLASS_MEAN;
    sd_embedder *embedder;
    float padded[2 * DIM], expected[2 * DIM];
    assert_int_equal(sd_embedder_create(context, model, &config, &embedder), SD_OK);
    assert_int_equal(sd_embed_images(embedder, &narrow, 1, padded, 2 * DIM), SD_OK);
    assert_int_equal(sd_embed_images(embedder, &wide, 1, expected, 2 * DIM), SD_OK);
    expect_near(padded, expected, 2 * DIM);
    sd_embedder_destroy(embedder);
    sd_model_destroy(model);
    sd_context_destroy(context);
}

/* Four threads, each with an embedder and a context of its own, on one network. */
typedef struct worker {
    const sd_model *model;
    float out[COUNT][2 * DIM];
    sd_status status;
} worker;

static void *work(void *argument) {
    worker *w = argument;
    sd_embed_config config;
    sd_embed_config_init(&config);
    config.kind = SD_EMBED_CLASS_MEAN;
    sd_embedder *embedder = NULL;
    w->status = sd_embedder_create(NULL, w->model, &config, &embedder);
    for (int round = 0; round < 20 && w->status == SD_OK; round++)
        w->status = sd_embed_images(embedder, images, COUNT, &w->out[0][0], 2 * DIM);
    sd_embedder_destroy(embedder);
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    sd_model *model = make_model(NULL);
    static worker alone, workers[4];
    pthread_t threads[4];
    alone.model = model;
    work(&alone);
    assert_int_equal(alone.status, SD_OK);
    for (size_t i = 0; i < 4; i++) {
        workers[i].model = model;
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    for (size_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(workers[i].status, SD_OK);
        assert_memory_equal(workers[i].out, alone.out, sizeof alone.out);
    }
    sd_model_destroy(model);
}

static void test_refusals(void **state) {
    (void)state;
    sd_model *model = make_model(NULL);
    sd_embedder *embedder = NULL;
    const struct {
        int32_t kind, blocks, norm, fit;
        const char *word;
    } wrong[] = {{4, 1, 1, 0, "kind"}, {0, 0, 1, 0, "blocks"}, {0, DEPTH + 1, 1, 0, "blocks"}, {0, 1, 2, 0, "block_norm"},
                 {0, 1, 1, 2, "fit"}, {SD_EMBED_HEAD, 1, 1, 0, "head"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        sd_embed_config config;
        sd_embed_config_init(&config);
        config.kind = wrong[i].kind;
        config.blocks = wrong[i].blocks;
        config.block_norm = wrong[i].norm;
        config.fit = wrong[i].fit;
        assert_int_equal(sd_embedder_create(NULL, model, &config, &embedder), SD_ERR_ARGUMENT);
        assert_non_null(strstr(sd_last_error(), wrong[i].word));
        assert_null(embedder);
    }
    sd_embed_config config;
    sd_embed_config_init(&config);
    assert_int_equal(sd_embed_config_preset(&config, "dinov2"), SD_OK);
    assert_int_equal(config.crop, 224);
    assert_int_equal(sd_embed_config_preset(&config, "clip"), SD_ERR_ARGUMENT);
    sd_embed_config_init(&config);
    assert_int_equal(sd_embedder_create(NULL, model, &config, &embedder), SD_OK);
    sd_token_outputs outputs;
    sd_token_outputs_init(&outputs);
    float attention[1];
    outputs.attention = attention;
    outputs.attention_block = DEPTH;
    assert_int_equal(sd_embed_tokens(embedder, &images[0], &outputs), SD_ERR_ARGUMENT);
    sd_image tiny = images[0];
    tiny.width = 3;
    assert_int_equal(sd_embed_tokens(embedder, &tiny, NULL), SD_ERR_ARGUMENT);
    sd_embedder_destroy(embedder);
    sd_model_destroy(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pooled),  cmocka_unit_test(test_tokens),   cmocka_unit_test(test_padding),
        cmocka_unit_test(test_threads), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, make_images, NULL);
}
