/* The backbone against the official code: outputs and every parameter's gradient (golden/vit). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "golden.h"
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

typedef struct setup {
    golden *archive;
    sd_context *context;
    sd_model *model;
    sd_image_group images;
    size_t tokens, rows, dim;
} setup;

static setup begin(const char *file, int threads) {
    setup s = {0};
    s.archive = golden_open(file);
    const golden_array *images = golden_get(s.archive, "images");
    sd_context_config context_config;
    sd_context_config_init(&context_config);
    context_config.threads = threads;
    context_config.blas_threads = SD_BLAS_THREADS_ONE;
    assert_int_equal(sd_context_create(&context_config, &s.context), SD_OK);
    sd_model_config config;
    sd_model_config_init(&config);
    config.image_size = (int32_t)golden_scalar(s.archive, "hp/img_size");
    config.patch_size = (int32_t)golden_scalar(s.archive, "hp/patch_size");
    config.heads = (int32_t)golden_scalar(s.archive, "hp/num_heads");
    config.mlp_ratio = golden_scalar(s.archive, "hp/mlp_ratio");
    config.dim = (int32_t)golden_get(s.archive, "param/norm.weight")->shape[0];
    config.depth = 3;
    config.head_layers = 0;
    assert_int_equal(sd_model_create(s.context, &config, &s.model), SD_OK);
    for (size_t i = 0; i < sd_model_tensor_count(s.model); i++) {
        const sd_tensor_info *info = sd_model_tensor(s.model, i);
        const golden_array *array = golden_get(s.archive, "param/%s", info->name + strlen("backbone."));
        assert_int_equal(array->count, info->count);
        memcpy(sd_model_parameters(s.model) + info->offset, array->data, info->count * sizeof(float));
    }
    s.images = (sd_image_group){images->data, images->shape[0], images->shape[2], images->shape[3]};
    s.dim = (size_t)config.dim;
    s.tokens = golden_get(s.archive, "out/tokens_last")->shape[1];
    s.rows = s.images.count * s.tokens;
    return s;
}

static void end(setup *s) {
    sd_model_destroy(s->model);
    sd_context_destroy(s->context);
    golden_close(s->archive);
}

static void compare(const setup *s, const char *name, const float *actual, size_t count) {
    golden_compare_f32(s->archive, name, actual, count, golden_tolerance(s->archive, "%s", name));
}

static void check_outputs(const char *file, sd_activation_mode mode, int threads) {
    setup s = begin(file, threads);
    sd_activations *activations;
    assert_int_equal(sd_activations_create(s.model, &s.images, 1, mode, 1, &activations), SD_OK);
    float *class_tokens = malloc(s.images.count * s.dim * sizeof(float));
    float *tokens = malloc(s.rows * s.dim * sizeof(float));
    float *norm = malloc(2 * s.rows * s.dim * sizeof(float));
    sd_forward_outputs outputs;
    sd_forward_outputs_init(&outputs);
    outputs.class_tokens = class_tokens;
    outputs.tokens = tokens;
    outputs.tokens_norm = norm;
    size_t heads = (size_t)golden_scalar(s.archive, "hp/num_heads");
    float *attention = malloc(s.images.count * heads * s.tokens * s.tokens * sizeof(float));
    outputs.attention = attention;
    outputs.attention_block = 2;
    assert_int_equal(sd_model_forward(s.model, activations, &s.images, 1, NULL, &outputs), SD_OK);
    compare(&s, "out/attn_last", attention, heads * s.tokens * s.tokens);
    compare(&s, "out/cls", class_tokens, s.images.count * s.dim);
    compare(&s, "out/tokens_last", tokens, s.rows * s.dim);
    for (size_t i = 0; i < s.images.count; i++) /* the class row of all normalised tokens is the class token */
        assert_true(golden_difference_f32(norm + i * s.tokens * s.dim, class_tokens + i * s.dim, s.dim) == 0.0);
    if (mode == SD_ACTIVATIONS_SPEED) {
        assert_int_equal(sd_model_block_tokens(s.model, activations, 1, 1, norm), SD_OK);
        assert_int_equal(sd_model_block_tokens(s.model, activations, 2, 1, norm + s.rows * s.dim), SD_OK);
        compare(&s, "out/intermediate", norm, 2 * s.rows * s.dim);
        for (size_t i = 0; i < s.images.count; i++) { /* asked for afterwards: the same */
            float *one = malloc(heads * s.tokens * s.tokens * sizeof(float));
            assert_int_equal(sd_model_attention(s.model, activations, 2, i, one), SD_OK);
            assert_memory_equal(one, attention + i * heads * s.tokens * s.tokens,
                                heads * s.tokens * s.tokens * sizeof(float));
            free(one);
        }
    }
    free(attention);
    float *position = malloc(s.tokens * s.dim * sizeof(float));
    assert_int_equal(sd_model_position_embedding(s.model, s.images.height, s.images.width, position), SD_OK);
    compare(&s, "out/pos_embed_used", position, s.tokens * s.dim);
    free(position);
    free(norm);
    free(tokens);
    free(class_tokens);
    sd_activations_destroy(activations);
    end(&s);
}

static void check_gradients(const char *file, sd_activation_mode mode, int threads) {
    setup s = begin(file, threads);
    sd_activations *activations;
    assert_int_equal(sd_activations_create(s.model, &s.images, 1, mode, 1, &activations), SD_OK);
    assert_int_equal(sd_model_forward(s.model, activations, &s.images, 1, NULL, NULL), SD_OK);
    sd_backward_inputs inputs;
    sd_backward_inputs_init(&inputs);
    inputs.class_tokens = golden_f32(s.archive, "w/cls");
    inputs.tokens = golden_f32(s.archive, "w/tokens_last");
    size_t values = golden_get(s.archive, "images")->count;
    float *gradient = malloc(sd_model_parameter_count(s.model) * sizeof(float));
    float *pixels = malloc(values * sizeof(float));
    assert_int_equal(sd_model_backward(s.model, activations, &inputs, gradient, 0, &pixels), SD_OK);
    for (size_t i = 0; i < sd_model_tensor_count(s.model); i++) {
        const sd_tensor_info *info = sd_model_tensor(s.model, i);
        char name[80] = "grad/";
        strcat(name, info->name + strlen("backbone."));
        compare(&s, name, gradient + info->offset, info->count);
    }
    compare(&s, "grad_images", pixels, values);
    free(pixels);
    free(gradient);
    sd_activations_destroy(activations);
    end(&s);
}

static void test_native(void **state) {
    (void)state;
    check_outputs("vit/v1_native.npz", SD_ACTIVATIONS_SPEED, 1);
    check_outputs("vit/v1_native.npz", SD_ACTIVATIONS_MEMORY, 2);
    check_outputs("vit/v1_native.npz", SD_ACTIVATIONS_INFERENCE, 2);
}

static void test_interpolated(void **state) {
    (void)state;
    check_outputs("vit/v1_interp.npz", SD_ACTIVATIONS_SPEED, 2);
    check_outputs("vit/v1_interp.npz", SD_ACTIVATIONS_MEMORY, 1);
    check_outputs("vit/v1_interp.npz", SD_ACTIVATIONS_INFERENCE, 1);
}

static void test_native_gradients(void **state) {
    (void)state;
    check_gradients("vit/v1_native.npz", SD_ACTIVATIONS_SPEED, 1);
    check_gradients("vit/v1_native.npz", SD_ACTIVATIONS_SPEED, 3);
    check_gradients("vit/v1_native.npz", SD_ACTIVATIONS_MEMORY, 2);
}

static void test_interpolated_gradients(void **state) {
    (void)state;
    check_gradients("vit/v1_interp.npz", SD_ACTIVATIONS_SPEED, 1);
    check_gradients("vit/v1_interp.npz", SD_ACTIVATIONS_MEMORY, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_native),
        cmocka_unit_test(test_interpolated),
        cmocka_unit_test(test_native_gradients),
        cmocka_unit_test(test_interpolated_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
