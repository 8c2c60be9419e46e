/* The v2 form of the backbone against the official code (golden/vit/v2_*): LayerScale, registers, mask token, SwiGLU,
 * antialiased position embedding, chunked block names; outputs and every parameter's gradient. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "golden.h"
#include "model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct setup {
    golden *archive;
    sd_context *context;
    sd_model *model;
    sd_image_group images;
    const uint8_t *masks;
    size_t tokens, extra, dim;
    int32_t depth, chunks;
} setup;

/* "backbone.blocks.5.x" -> "blocks.CHUNK.5.x" where the file's blocks lie in chunks, without "backbone.". */
static const char *official_name(const setup *s, const char *name, char *text, size_t size) {
    name += strlen("backbone.");
    int block, used = 0;
    if (s->chunks > 0 && sscanf(name, "blocks.%d.%n", &block, &used) == 1) {
        snprintf(text, size, "blocks.%d.%d.%s", block / (s->depth / s->chunks), block, name + used);
        return text;
    }
    return name;
}

static setup begin(const char *file, int threads) {
    setup s = {0};
    s.archive = golden_open(file);
    const golden_array *images = golden_get(s.archive, "images");
    sd_context_config context_config;
    sd_context_config_init(&context_config);
    context_config.threads = threads;
    context_config.blas_threads = SD_BLAS_THREADS_ONE;
    assert_int_equal(sd_context_create(&context_config, &s.context), SD_OK);
    bool swiglu = strstr(file, "swiglu") != NULL;
    sd_model_config config;
    sd_model_config_init(&config);
    config.image_size = (int32_t)golden_scalar(s.archive, "hp/img_size");
    config.patch_size = (int32_t)golden_scalar(s.archive, "hp/patch_size");
    config.heads = (int32_t)golden_scalar(s.archive, "hp/num_heads");
    config.mlp_ratio = golden_scalar(s.archive, "hp/mlp_ratio");
    config.registers = (int32_t)golden_scalar(s.archive, "hp/num_register_tokens");
    config.interpolate_antialias = (int32_t)golden_scalar(s.archive, "hp/interpolate_antialias");
    config.interpolate_offset = golden_scalar(s.archive, "hp/interpolate_offset");
    config.mask_token = 1;
    config.layer_scale = 1.0;
    config.feed_forward = swiglu ? SD_FEED_FORWARD_SWIGLU : SD_FEED_FORWARD_MLP;
    config.dim = (int32_t)golden_get(s.archive, "param/norm.weight")->shape[0];
    s.chunks = (int32_t)golden_scalar(s.archive, "hp/block_chunks");
    config.depth = s.depth = s.chunks > 0 ? 8 : 3;
    config.head_layers = 0;
    assert_int_equal(sd_model_create(s.context, &config, &s.model), SD_OK);
    for (size_t i = 0; i < sd_model_tensor_count(s.model); i++) {
        const sd_tensor_info *info = sd_model_tensor(s.model, i);
        char text[80];
        const golden_array *array = golden_get(s.archive, "param/%s", official_name(&s, info->name, text, sizeof text));
        assert_int_equal(array->count, info->count);
        memcpy(sd_model_parameters(s.model) + info->offset, array->data, info->count * sizeof(float));
    }
    s.images = (sd_image_group){images->data, images->shape[0], images->shape[2], images->shape[3]};
    s.masks = golden_get(s.archive, "masks")->data;
    s.dim = (size_t)config.dim;
    s.extra = 1 + (size_t)config.registers;
    s.tokens = golden_get(s.archive, "plain/x_prenorm")->shape[1];
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

/* Tokens first .. first+count-1 of every image, side by side. */
static float *cut(const setup *s, const float *tokens, size_t first, size_t count) {
    float *rows = malloc((s->images.count * count * s->dim + 1) * sizeof *rows);
    for (size_t i = 0; i < s->images.count; i++)
        memcpy(rows + i * count * s->dim, tokens + (i * s->tokens + first) * s->dim, count * s->dim * sizeof *rows);
    return rows;
}

static void compare_cut(const setup *s, const char *kind, const char *name, const float *tokens, size_t first,
                        size_t count) {
    char text[64];
    snprintf(text, sizeof text, "%s/%s", kind, name);
    float *rows = cut(s, tokens, first, count);
    compare(s, text, rows, s->images.count * count * s->dim);
    free(rows);
}

static void check_outputs(const char *file, sd_activation_mode mode, int threads) {
    setup s = begin(file, threads);
    size_t rows = s.images.count * s.tokens, patches = s.tokens - s.extra;
    sd_activations_config config;
    sd_activations_config_init(&config);
    config.mode = (int32_t)mode;
    config.all_tokens = 1;
    config.max_patches = s.images.count * patches;
    sd_activations *activations;
    assert_int_equal(sd_activations_create_with(s.model, &s.images, 1, &config, &activations), SD_OK);
    float *tokens = malloc(rows * s.dim * sizeof(float)), *norm = malloc(rows * s.dim * sizeof(float));
    float *class_tokens = malloc(s.images.count * s.dim * sizeof(float));
    float *picked = malloc(config.max_patches * s.dim * sizeof(float));
    size_t *numbers = malloc(config.max_patches * sizeof *numbers), count = 0;
    for (size_t i = 0; i < config.max_patches; i++)
        if (s.masks[i] != 0)
            numbers[count++] = i;
    assert_true(count > 0 && count < config.max_patches);
    sd_forward_options options;
    sd_forward_options_init(&options);
    sd_forward_outputs outputs;
    sd_forward_outputs_init(&outputs);
    outputs.tokens = tokens;
    outputs.tokens_norm = norm;
    outputs.class_tokens = class_tokens;
    outputs.patch_tokens = picked;
    options.patches = numbers;
    options.patch_count = count;
    const int32_t blocks[2] = {s.depth - 2, s.depth - 1};
    float *last_blocks = malloc(2 * rows * s.dim * sizeof *last_blocks);
    outputs.blocks = blocks;
    outputs.block_count = 2;
    outputs.block_norm = 1;
    outputs.block_tokens = last_blocks;
    for (int masked = 0; masked < 2; masked++) {
        const char *kind = masked ? "masked" : "plain";
        options.masks = masked ? &s.masks : NULL;
        assert_int_equal(sd_model_forward(s.model, activations, &s.images, 1, &options, &outputs), SD_OK);
        compare_cut(&s, kind, "x_prenorm", tokens, 0, s.tokens);
        compare_cut(&s, kind, "x_norm_clstoken", norm, 0, 1);
        if (s.extra > 1)
            compare_cut(&s, kind, "x_norm_regtokens", norm, 1, s.extra - 1);
        compare_cut(&s, kind, "x_norm_patchtokens", norm, s.extra, patches);
        for (size_t i = 0; i < s.images.count; i++)
            assert_true(golden_difference_f32(norm + i * s.tokens * s.dim, class_tokens + i * s.dim, s.dim) == 0.0);
        for (size_t i = 0; i < count; i++) {
            size_t row = numbers[i] / patches * s.tokens + s.extra + numbers[i] % patches;
            assert_true(golden_difference_f32(norm + row * s.dim, picked + i * s.dim, s.dim) == 0.0);
        }
        assert_true(golden_difference_f32(last_blocks + rows * s.dim, norm, rows * s.dim) == 0.0);
        if (!masked) {
            float *last = malloc(2 * config.max_patches * s.dim * sizeof *last);
            float *classes = malloc(2 * s.images.count * s.dim * sizeof *classes);
            for (int32_t n = 0; n < 2; n++) {
                const float *block = last_blocks + (size_t)n * rows * s.dim;
                if (mode == SD_ACTIVATIONS_SPEED) { /* asked for during the pass, or afterwards */
                    assert_int_equal(sd_model_block_tokens(s.model, activations, blocks[n], 1, norm), SD_OK);
                    assert_true(golden_difference_f32(norm, block, rows * s.dim) == 0.0);
                }
                float *part = cut(&s, block, s.extra, patches), *class_part = cut(&s, block, 0, 1);
                memcpy(last + (size_t)n * config.max_patches * s.dim, part,
                       config.max_patches * s.dim * sizeof *last);
                memcpy(classes + (size_t)n * s.images.count * s.dim, class_part,
                       s.images.count * s.dim * sizeof *last);
                free(class_part);
                free(part);
            }
            compare(&s, "intermediate/patch", last, 2 * config.max_patches * s.dim);
            compare(&s, "intermediate/cls", classes, 2 * s.images.count * s.dim);
            free(classes);
            free(last);
        }
    }
    float *position = malloc((1 + patches) * s.dim * sizeof(float));
    assert_int_equal(sd_model_position_embedding(s.model, s.images.height, s.images.width, position), SD_OK);
    compare(&s, "pos_embed_used", position, (1 + patches) * s.dim);
    free(position);
    free(last_blocks);
    free(numbers);
    free(picked);
    free(class_tokens);
    free(norm);
    free(tokens);
    sd_activations_destroy(activations);
    end(&s);
}

/* The functional's weights on the normalised tokens go in as those of all tokens, or class and patch tokens apart. */
static void check_gradients(const char *file, sd_activation_mode mode, int threads, bool apart) {
    setup s = begin(file, threads);
    size_t rows = s.images.count * s.tokens, patches = s.tokens - s.extra, all_patches = s.images.count * patches;
    sd_activations_config config;
    sd_activations_config_init(&config);
    config.mode = (int32_t)mode;
    config.all_tokens = 1;
    config.max_patches = all_patches;
    sd_activations *activations;
    assert_int_equal(sd_activations_create_with(s.model, &s.images, 1, &config, &activations), SD_OK);
    size_t *numbers = malloc(all_patches * sizeof *numbers);
    for (size_t i = 0; i < all_patches; i++)
        numbers[i] = i;
    float *weights = calloc(rows * s.dim, sizeof *weights);
    const float *class_weights = golden_f32(s.archive, "w/x_norm_clstoken");
    const float *patch_weights = golden_f32(s.archive, "w/x_norm_patchtokens");
    for (size_t i = 0; i < s.images.count; i++) {
        float *image = weights + i * s.tokens * s.dim;
        if (s.extra > 1 && golden_has(s.archive, "w/x_norm_regtokens"))
            memcpy(image + s.dim, golden_f32(s.archive, "w/x_norm_regtokens") + i * (s.extra - 1) * s.dim,
                   (s.extra - 1) * s.dim * sizeof *image);
        if (!apart) {
            memcpy(image, class_weights + i * s.dim, s.dim * sizeof *image);
            memcpy(image + s.extra * s.dim, patch_weights + i * patches * s.dim, patches * s.dim * sizeof *image);
        }
    }
    sd_forward_options options;
    sd_forward_options_init(&options);
    options.masks = &s.masks;
    options.patches = numbers;
    options.patch_count = apart ? all_patches : 0;
    assert_int_equal(sd_model_forward(s.model, activations, &s.images, 1, &options, NULL), SD_OK);
    sd_backward_inputs inputs;
    sd_backward_inputs_init(&inputs);
    inputs.tokens = golden_f32(s.archive, "w/x_prenorm");
    inputs.tokens_norm = weights;
    if (apart) {
        inputs.class_tokens = class_weights;
        inputs.patch_tokens = patch_weights;
    }
    size_t values = golden_get(s.archive, "images")->count;
    float *gradient = malloc(sd_model_parameter_count(s.model) * sizeof(float));
    float *pixels = malloc(values * sizeof(float));
    assert_int_equal(sd_model_backward(s.model, activations, &inputs, gradient, 0, &pixels), SD_OK);
    for (size_t i = 0; i < sd_model_tensor_count(s.model); i++) {
        const sd_tensor_info *info = sd_model_tensor(s.model, i);
        char text[80], name[96];
        snprintf(name, sizeof name, "grad/%s", official_name(&s, info->name, text, sizeof text));
        compare(&s, name, gradient + info->offset, info->count);
    }
    compare(&s, "grad_images", pixels, values);
    free(pixels);
    free(gradient);
    free(weights);
    free(numbers);
    sd_activations_destroy(activations);
    end(&s);
}

static const char *const files[] = {"vit/v2_native_masks.npz", "vit/v2_interp_antialias.npz", "vit/v2_interp_offset.npz",
                                    "vit/v2_swiglu.npz", "vit/v2_chunked.npz"};
#define FILES (sizeof files / sizeof *files)

static void test_outputs_stored(void **state) {
    (void)state;
    for (size_t i = 0; i < FILES; i++)
        check_outputs(files[i], SD_ACTIVATIONS_SPEED, 1);
}

static void test_outputs_recomputed(void **state) {
    (void)state;
    for (size_t i = 0; i < FILES; i++)
        check_outputs(files[i], SD_ACTIVATIONS_MEMORY, 2);
}

static void test_outputs_inference(void **state) {
    (void)state;
    for (size_t i = 0; i < FILES; i++)
        check_outputs(files[i], SD_ACTIVATIONS_INFERENCE, 3);
}

static void test_gradients_stored(void **state) {
    (void)state;
    for (size_t i = 0; i < FILES; i++)
        check_gradients(files[i], SD_ACTIVATIONS_SPEED, 1, false);
}

static void test_gradients_recomputed(void **state) {
    (void)state;
    for (size_t i = 0; i < FILES; i++)
        check_gradients(files[i], SD_ACTIVATIONS_MEMORY, 3, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outputs_stored),      cmocka_unit_test(test_outputs_recomputed),
        cmocka_unit_test(test_outputs_inference),   cmocka_unit_test(test_gradients_stored),
        cmocka_unit_test(test_gradients_recomputed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
