/* The embedder against the same work done by hand: prepare each image, one forward pass each. */
#include "support/failing_memory.h"

#include <simdino/embed.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { DIM = 16, HEAD = 12, PATCH = 4, COUNT = 9, SIDE_MAX = 40 };

static unsigned char pixels[COUNT][SIDE_MAX * SIDE_MAX * 3];
static const size_t sizes[COUNT][2] = {{16, 16}, {16, 16}, {23, 17}, {23, 17}, {16, 16},
                                       {32, 8},  {9, 30},  {16, 16}, {16, 16}};

/* Widths and heights as above, of three channels or one. */
static void make_images(sd_image *images, int32_t channels) {
    sd_random random;
    sd_random_init(&random, 7, 0, 0);
    for (size_t i = 0; i < COUNT; i++) {
        for (size_t j = 0; j < sizeof(pixels[i]); j++)
            pixels[i][j] = (unsigned char)sd_random_below(&random, 256);
        images[i] = (sd_image){.pixels = pixels[i], .width = sizes[i][0], .height = sizes[i][1], .channels = channels};
    }
}

static sd_model *make_model(sd_context *context, int32_t channels) {
    sd_model_config config;
    sd_model *model = NULL;
    sd_model_config_init(&config);
    config.image_size = 16;
    config.patch_size = PATCH;
    config.channels = channels;
    config.dim = DIM;
    config.depth = 2;
    config.heads = 2;
    config.head_hidden = 20;
    config.head_dim = HEAD;
    if (sd_model_create(context, &config, &model) != SD_OK)
        fail_msg("%s", sd_last_error());
    sd_model_initialize(model, 3);
    float *parameters = sd_model_parameters(model); /* larger ones, so that images make a difference */
    for (size_t i = 0; i < sd_model_parameter_count(model); i++)
        parameters[i] *= 5.0f;
    return model;
}

static sd_context *make_context(int32_t threads) {
    sd_context_config config;
    sd_context *context = NULL;
    sd_context_config_init(&config);
    config.threads = threads;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    return context;
}

/* One image: prepared, cut to whole patches, forward alone. */
static void embed_by_hand(const sd_model *model, const sd_embed_config *config, const sd_image *image, int32_t channels,
                          float *out) {
    size_t width, height;
    assert_int_equal(sd_image_prepare(image, (size_t)config->resize, (size_t)config->crop, config->mean, config->std,
                                      NULL, &width, &height),
                     SD_OK);
    float *full = calloc(width * height * 3, sizeof(float)), *cut = calloc(width * height * 3, sizeof(float));
    for (int32_t c = 0; c < channels; c++) {
        if (image->channels == channels && c > 0)
            break;
        assert_int_equal(sd_image_prepare(image, (size_t)config->resize, (size_t)config->crop, config->mean + c,
                                          config->std + c, full + (size_t)c * width * height, NULL, NULL), SD_OK);
    }
    size_t w = width / PATCH * PATCH, h = height / PATCH * PATCH;
    size_t left = (size_t)lrint((double)(width - w) / 2.0), top = (size_t)lrint((double)(height - h) / 2.0);
    for (size_t c = 0; c < (size_t)channels; c++)
        for (size_t y = 0; y < h; y++)
            memcpy(cut + (c * h + y) * w, full + (c * height + top + y) * width + left, w * sizeof(float));
    sd_image_group group = {.pixels = cut, .count = 1, .height = h, .width = w};
    sd_activations *activations = NULL;
    sd_forward_outputs outputs;
    assert_int_equal(sd_activations_create(model, &group, 1, SD_ACTIVATIONS_INFERENCE, 0, &activations), SD_OK);
    sd_forward_outputs_init(&outputs);
    if (config->kind == SD_EMBED_HEAD)
        outputs.features = out;
    else
        outputs.class_tokens = out;
    assert_int_equal(sd_model_forward(model, activations, &group, 1, NULL, &outputs), SD_OK);
    sd_activations_destroy(activations);
    free(full);
    free(cut);
    if (config->normalize) {
        double sum = 0.0;
        for (size_t j = 0; j < DIM; j++)
            sum += (double)out[j] * (double)out[j];
        for (size_t j = 0; j < DIM; j++)
            out[j] = (float)((double)out[j] / sqrt(sum));
    }
}

static void check(int32_t model_channels, int32_t image_channels, const sd_embed_config *config, size_t dim) {
    sd_context *context = make_context(3);
    sd_model *model = make_model(context, model_channels);
    sd_embedder *embedder = NULL;
    sd_image images[COUNT];
    float out[COUNT][DIM + 3], expected[DIM];
    size_t ld = dim + 3;

    make_images(images, image_channels);
    assert_int_equal(sd_embedder_create(context, model, config, &embedder), SD_OK);
    assert_int_equal(sd_embedder_dim(embedder), dim);
    for (int again = 0; again < 2; again++) {
        float *flat = &out[0][0];
        for (size_t i = 0; i < sizeof(out) / sizeof(float); i++)
            flat[i] = 77.0f;
        if (sd_embed_images(embedder, images, COUNT, flat, ld) != SD_OK)
            fail_msg("%s", sd_last_error());
        for (size_t i = 0; i < COUNT; i++) {
            embed_by_hand(model, config, &images[i], model_channels, expected);
            for (size_t j = 0; j < dim; j++)
                if (!(fabsf(flat[i * ld + j] - expected[j]) <= 2e-5f))
                    fail_msg("image %zu, number %zu: %g, expected %g", i, j, (double)flat[i * ld + j],
                             (double)expected[j]);
            for (size_t j = dim; j < ld; j++)
                assert_true(flat[i * ld + j] == 77.0f);
        }
        /* different images, different features */
        assert_true(fabsf(flat[0] - flat[ld]) + fabsf(flat[1] - flat[ld + 1]) > 1e-3f);
    }
    sd_embedder_destroy(embedder);
    sd_model_destroy(model);
    sd_context_destroy(context);
}

static void test_by_hand(void **state) {
    (void)state;
    sd_embed_config config;
    sd_embed_config_init(&config);
    assert_true(config.mean[1] == 0.456 && config.std[2] == 0.225 && config.mean[3] == 0.5 && config.batch == 64);
    check(3, 3, &config, DIM);
    config.batch = 4; /* several batches, and groups that end inside of them */
    check(3, 3, &config, DIM);
    config.batch = 1;
    check(1, 1, &config, DIM);
    config.batch = 64;
    check(3, 1, &config, DIM); /* grey images, a model of three channels */
    config.normalize = 1;
    check(3, 3, &config, DIM);
    config.normalize = 0;
    config.kind = SD_EMBED_HEAD;
    check(3, 3, &config, HEAD);
    config.kind = SD_EMBED_CLASS;
    config.resize = 11; /* then down to 8 and more */
    check(3, 3, &config, DIM);
    check(3, 1, &config, DIM);
    config.resize = 20;
    config.crop = 16;
    check(3, 3, &config, DIM);
    check(1, 1, &config, DIM);
}

static void test_features_of_the_head_have_length_one(void **state) {
    (void)state;
    sd_model *model = make_model(NULL, 3);
    sd_embedder *embedder = NULL;
    sd_embed_config config;
    sd_image images[COUNT];
    float out[COUNT * HEAD];
    make_images(images, 3);
    sd_embed_config_init(&config);
    config.kind = SD_EMBED_HEAD;
    assert_int_equal(sd_embedder_create(NULL, model, &config, &embedder), SD_OK);
    assert_int_equal(sd_embed_images(embedder, images, COUNT, out, HEAD), SD_OK);
    for (size_t i = 0; i < COUNT; i++) {
        double sum = 0.0;
        for (size_t j = 0; j < HEAD; j++)
            sum += (double)out[i * HEAD + j] * (double)out[i * HEAD + j];
        assert_true(fabs(sum - 1.0) < 1e-5);
    }
    sd_embedder_destroy(embedder);
    sd_model_destroy(model);
}

/* Bit for bit the same with any number of threads. */
static void test_threads(void **state) {
    (void)state;
    float first[COUNT * DIM], out[COUNT * DIM];
    sd_image images[COUNT];
    make_images(images, 3);
    for (int32_t threads = 1; threads <= 4; threads++) {
        sd_context *context = make_context(threads);
        sd_model *model = make_model(context, 3);
        sd_embedder *embedder = NULL;
        assert_int_equal(sd_embedder_create(context, model, NULL, &embedder), SD_OK);
        assert_int_equal(sd_embed_images(embedder, images, COUNT, threads == 1 ? first : out, DIM), SD_OK);
        if (threads > 1)
            assert_memory_equal(out, first, sizeof(out));
        sd_embedder_destroy(embedder);
        sd_model_destroy(model);
        sd_context_destroy(context);
    }
}

/* ---- datasets ------------------------------------------------------------------------------ */

typedef struct source {
    sd_image images[COUNT];
    long acquired, released;
    uint64_t fail_at;
    uint64_t done;
    int calls, cancel_after;
} source;

static int acquire(void *opaque, uint64_t index, sd_image *image, void **token) {
    source *s = opaque;
    if (index == s->fail_at)
        return 5;
    __atomic_fetch_add(&s->acquired, 1, __ATOMIC_RELAXED);
    *image = s->images[index];
    *token = s;
    return 0;
}

static void give_back(void *opaque, uint64_t index, void *token) {
    source *s = opaque;
    (void)index;
    if (token == s)
        __atomic_fetch_add(&s->released, 1, __ATOMIC_RELAXED);
}

static void on_progress(void *opaque, const char *what, uint64_t done, uint64_t total) {
    source *s = opaque;
    assert_string_equal(what, "embed");
    assert_true(done > s->done && done <= total);
    s->done = done;
    s->calls++;
}

static int on_cancel(void *opaque) {
    source *s = opaque;
    return s->cancel_after >= 0 && s->calls >= s->cancel_after;
}

static void test_dataset(void **state) {
    (void)state;
    source s = {.fail_at = UINT64_MAX, .cancel_after = -1};
    sd_context_config context_config;
    sd_context *context = NULL;
    sd_dataset *dataset = NULL;
    sd_embedder *embedder = NULL;
    sd_embed_config config;
    float out[COUNT * DIM] = {0}, expected[COUNT * DIM];

    make_images(s.images, 3);
    sd_context_config_init(&context_config);
    context_config.threads = 2;
    context_config.progress = on_progress;
    context_config.progress_opaque = &s;
    context_config.cancel = on_cancel;
    context_config.cancel_opaque = &s;
    assert_int_equal(sd_context_create(&context_config, &context), SD_OK);
    sd_model *model = make_model(context, 3);
    assert_int_equal(sd_dataset_from_callbacks(context, COUNT, acquire, give_back, &s, NULL, &dataset), SD_OK);
    sd_embed_config_init(&config);
    config.batch = 4;
    assert_int_equal(sd_embedder_create(context, model, &config, &embedder), SD_OK);
    assert_int_equal(sd_embed_images(embedder, s.images, COUNT, expected, DIM), SD_OK);
    assert_int_equal(sd_embed_dataset(embedder, dataset, 0, COUNT, out, DIM), SD_OK);
    assert_memory_equal(out, expected, sizeof(out));
    assert_int_equal(s.acquired, COUNT);
    assert_int_equal(s.released, COUNT);
    assert_true(s.done == COUNT && s.calls == 3);
    s.done = 0;
    assert_int_equal(sd_embed_dataset(embedder, dataset, 3, 2, out, DIM), SD_OK);
    for (size_t j = 0; j < 2 * DIM; j++)
        assert_true(fabsf(out[j] - expected[3 * DIM + j]) < 2e-5f);
    assert_int_equal(sd_embed_dataset(embedder, dataset, COUNT, 0, out, DIM), SD_OK);

    assert_int_equal(sd_embed_dataset(embedder, dataset, 5, 5, out, DIM), SD_ERR_ARGUMENT);
    assert_int_equal(sd_embed_dataset(embedder, dataset, UINT64_MAX, 2, out, DIM), SD_ERR_ARGUMENT);
    s.done = 0;
    s.fail_at = 6;
    assert_int_equal(sd_embed_dataset(embedder, dataset, 0, COUNT, out, DIM), SD_ERR_IO);
    assert_non_null(strstr(sd_last_error(), "image 6"));
    assert_int_equal(s.acquired, s.released);
    s.fail_at = UINT64_MAX;
    s.images[7].width = 3;
    s.done = 0;
    assert_int_equal(sd_embed_dataset(embedder, dataset, 0, COUNT, out, DIM), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "image 7"));
    assert_int_equal(s.acquired, s.released);
    s.images[7].width = 16;
    s.done = 0;
    s.calls = 0;
    s.cancel_after = 1;
    assert_int_equal(sd_embed_dataset(embedder, dataset, 0, COUNT, out, DIM), SD_ERR_CANCELLED);
    assert_int_equal(s.acquired, s.released);
    s.cancel_after = -1;
    s.done = 0;
    assert_int_equal(sd_embed_dataset(embedder, dataset, 0, COUNT, out, DIM), SD_OK);
    assert_memory_equal(out, expected, sizeof(out));
    sd_embedder_destroy(embedder);
    sd_dataset_destroy(dataset);
    sd_model_destroy(model);
    sd_context_destroy(context);
}

/* ---- errors -------------------------------------------------------------------------------- */

static void expect_message(const char *part) {
    if (!strstr(sd_last_error(), part))
        fail_msg("message \"%s\" does not contain \"%s\"", sd_last_error(), part);
}

static void test_arguments(void **state) {
    (void)state;
    sd_model *model = make_model(NULL, 3);
    sd_embedder *embedder = NULL;
    sd_embed_config config;
    sd_image images[COUNT];
    float out[COUNT * DIM] = {9};

    sd_embed_config_init(&config);
    assert_int_equal(sd_embedder_create(NULL, NULL, &config, &embedder), SD_ERR_ARGUMENT);
    assert_int_equal(sd_embedder_create(NULL, model, &config, NULL), SD_ERR_ARGUMENT);
#define REFUSE(member, value)                                                                     \
    do {                                                                                          \
        sd_embed_config bad = config;                                                             \
        bad.member = value;                                                                       \
        assert_int_equal(sd_embedder_create(NULL, model, &bad, &embedder), SD_ERR_ARGUMENT);      \
    } while (0)
    REFUSE(kind, 4);
    REFUSE(resize, -1);
    REFUSE(crop, -4);
    REFUSE(crop, 18);
    expect_message("crop is 18");
    REFUSE(normalize, 2);
    REFUSE(batch, 0);
    REFUSE(mean[2], (double)NAN);
    REFUSE(std[0], 0.0);
    assert_null(embedder);
    assert_int_equal(sd_embedder_create(NULL, model, &config, &embedder), SD_OK);
    make_images(images, 3);
    assert_int_equal(sd_embed_images(NULL, images, COUNT, out, DIM), SD_ERR_ARGUMENT);
    assert_int_equal(sd_embed_images(embedder, NULL, COUNT, out, DIM), SD_ERR_ARGUMENT);
    assert_int_equal(sd_embed_images(embedder, images, COUNT, NULL, DIM), SD_ERR_ARGUMENT);
    assert_int_equal(sd_embed_images(embedder, images, COUNT, out, DIM - 1), SD_ERR_ARGUMENT);
    expect_message("ld is 15");
    images[4].channels = 2;
    assert_int_equal(sd_embed_images(embedder, images, COUNT, out, DIM), SD_ERR_MISMATCH);
    expect_message("image 4");
    images[4].channels = 3;
    images[5].height = 3;
    assert_int_equal(sd_embed_images(embedder, images, COUNT, out, DIM), SD_ERR_ARGUMENT);
    expect_message("image 5");
    images[5].height = 8;
    images[8].pixels = NULL;
    assert_int_equal(sd_embed_images(embedder, images, COUNT, out, DIM), SD_ERR_ARGUMENT);
    expect_message("image 8");
    assert_true(out[0] == 9.0f);
    assert_int_equal(sd_embed_images(embedder, images, 0, out, DIM), SD_OK);
    sd_embedder_destroy(embedder);
    sd_embedder_destroy(NULL);
    assert_int_equal(sd_embedder_dim(NULL), 0);
    sd_model_destroy(model);
}

static void test_memory(void **state) {
    (void)state;
    failing_memory memory = {.fail_at = -1};
    sd_context_config context_config;
    sd_context *context = NULL;
    sd_image images[COUNT];
    sd_embed_config config;
    float out[COUNT * DIM], expected[COUNT * DIM];

    make_images(images, 3);
    sd_context_config_init(&context_config);
    context_config.threads = 2;
    failing_memory_install(&memory, &context_config);
    assert_int_equal(sd_context_create(&context_config, &context), SD_OK);
    sd_model *model = make_model(context, 3);
    sd_embed_config_init(&config);
    config.resize = 15;
    long before = memory.live, fail;
    for (fail = 0;; fail++) {
        sd_embedder *embedder = NULL;
        memory.fail_at = memory.allocations + fail;
        sd_status status = sd_embedder_create(context, model, &config, &embedder);
        if (status == SD_OK) {
            status = sd_embed_images(embedder, images, COUNT, out, DIM);
            if (status != SD_OK) { /* usable afterwards */
                memory.fail_at = -1;
                assert_int_equal(status, SD_ERR_MEMORY);
                assert_int_equal(sd_embed_images(embedder, images, COUNT, expected, DIM), SD_OK);
            }
        } else {
            assert_null(embedder);
        }
        sd_embedder_destroy(embedder);
        assert_int_equal(memory.live, before);
        if (status == SD_OK)
            break;
        assert_int_equal(status, SD_ERR_MEMORY);
        assert_true(fail < 200);
    }
    assert_true(fail > 5);
    assert_memory_equal(out, expected, sizeof(out));
    memory.fail_at = -1;
    /* A second run over the same images allocates nothing of the embedder's own. */
    sd_embedder *embedder = NULL;
    assert_int_equal(sd_embedder_create(context, model, NULL, &embedder), SD_OK);
    for (size_t i = 0; i < COUNT; i++)
        images[i].width = images[i].height = 8;
    assert_int_equal(sd_embed_images(embedder, images, COUNT, out, DIM), SD_OK);
    long made = memory.allocations;
    assert_int_equal(sd_embed_images(embedder, images, COUNT, out, DIM), SD_OK);
    assert_int_equal(memory.allocations, made);
    sd_embedder_destroy(embedder);
    sd_model_destroy(model);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_features_of_the_head_have_length_one),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_dataset),
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests_name("embedder", tests, NULL, NULL);
}
