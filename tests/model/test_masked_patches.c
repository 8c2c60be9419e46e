/* Patches with outputs of their own, masked or not, through a shared head and one of their own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "model/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GLOBALS 4
#define LOCALS 3
#define IMAGES (GLOBALS + LOCALS)
#define SIDE 16
#define PATCHES 16 /* of a global image */
#define DIM 12
#define FEATURES 6
#define PICKED 7

static const size_t picked[PICKED] = {0, 3, 15, 16, 37, 50, 63};
static float pixels[GLOBALS * SIDE * SIDE + LOCALS * SIDE * SIDE / 4];
static float class_weights[IMAGES * FEATURES], patch_weights[PICKED * FEATURES], token_weights[PICKED * DIM];
static uint8_t mask[GLOBALS * PATCHES];

typedef struct pass {
    sd_context *context;
    sd_model *model;
    sd_activations *activations;
    sd_image_group groups[2];
    float features[IMAGES * FEATURES], patch_features[PICKED * FEATURES], patch_tokens[PICKED * DIM];
    float *gradient;
    float dpixels[sizeof pixels / sizeof *pixels];
} pass;

static int fill_inputs(void **state) {
    (void)state;
    sd_random random;
    sd_random_init(&random, 8, 0, 0);
    for (size_t i = 0; i < sizeof pixels / sizeof *pixels; i++)
        pixels[i] = (float)sd_random_normal(&random);
    for (size_t i = 0; i < IMAGES * FEATURES; i++)
        class_weights[i] = (float)sd_random_normal(&random);
    for (size_t i = 0; i < PICKED * FEATURES; i++)
        patch_weights[i] = (float)sd_random_normal(&random);
    for (size_t i = 0; i < PICKED * DIM; i++)
        token_weights[i] = 0.2f * (float)sd_random_normal(&random);
    for (size_t i = 0; i < PICKED; i++)
        mask[picked[i]] = 1;
    return 0;
}

static sd_model_config config_of(bool own_head) {
    sd_model_config c;
    sd_model_config_init(&c);
    c.image_size = SIDE;
    c.patch_size = 4;
    c.channels = 1;
    c.dim = DIM;
    c.depth = 2;
    c.heads = 2;
    c.mlp_ratio = 2.0;
    c.drop_path = 0.3;
    c.drop_path_uniform = c.drop_path_subset = 1;
    c.head_layers = 2;
    c.head_hidden = 10;
    c.head_dim = FEATURES;
    c.registers = 1;
    c.mask_token = 1;
    c.layer_scale = 0.1;
    c.prototypes = 5;
    c.prototype_scale = 1;
    c.patch_head = own_head;
    c.patch_prototypes = own_head ? 4 : 0;
    return c;
}

static pass begin(bool own_head, int threads, sd_activation_mode mode) {
    pass p = {0};
    sd_context_config hooks;
    sd_context_config_init(&hooks);
    hooks.threads = threads;
    hooks.blas_threads = SD_BLAS_THREADS_ONE;
    assert_int_equal(sd_context_create(&hooks, &p.context), SD_OK);
    sd_model_config config = config_of(own_head);
    assert_int_equal(sd_model_create(p.context, &config, &p.model), SD_OK);
    sd_model_initialize(p.model, 3);
    sd_random random;
    sd_random_init(&random, 2, 0, 0);
    for (size_t i = 0; i < p.model->parameter_count; i++)
        p.model->parameters[i] = 8.0f * p.model->parameters[i] + 0.1f * (float)sd_random_normal(&random);
    p.groups[0] = (sd_image_group){pixels, GLOBALS, SIDE, SIDE};
    p.groups[1] = (sd_image_group){pixels + GLOBALS * SIDE * SIDE, LOCALS, SIDE / 2, SIDE / 2};
    sd_activations_config plan;
    sd_activations_config_init(&plan);
    plan.mode = (int32_t)mode;
    plan.all_tokens = 1;
    plan.max_patches = PICKED;
    assert_int_equal(sd_activations_create_with(p.model, p.groups, 2, &plan, &p.activations), SD_OK);
    p.gradient = calloc(p.model->parameter_count, sizeof(float));
    return p;
}

static void end(pass *p) {
    free(p->gradient);
    sd_activations_destroy(p->activations);
    sd_model_destroy(p->model);
    sd_context_destroy(p->context);
}

static void forward(pass *p, int train, bool masked, size_t count) {
    const uint8_t *masks[2] = {mask, NULL};
    sd_forward_options options;
    sd_forward_options_init(&options);
    options.train = train;
    options.step = 5;
    options.masks = masked ? masks : NULL;
    options.patches = picked;
    options.patch_count = count;
    sd_forward_outputs outputs;
    sd_forward_outputs_init(&outputs);
    outputs.features = p->features;
    outputs.patch_features = p->patch_features;
    outputs.patch_tokens = p->patch_tokens;
    assert_int_equal(sd_model_forward(p->model, p->activations, p->groups, 2, &options, &outputs), SD_OK);
}

static void backward(pass *p) {
    sd_backward_inputs inputs;
    sd_backward_inputs_init(&inputs);
    inputs.features = class_weights;
    inputs.patch_features = patch_weights;
    inputs.patch_tokens = token_weights;
    float *const into[2] = {p->dpixels, p->dpixels + GLOBALS * SIDE * SIDE};
    assert_int_equal(sd_model_backward(p->model, p->activations, &inputs, p->gradient, 0, into), SD_OK);
}

static double dot(const float *a, const float *b, size_t count) {
    double sum = 0.0;
    for (size_t i = 0; i < count; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

static double value_of(const pass *p) {
    return dot(p->features, class_weights, IMAGES * FEATURES) + dot(p->patch_features, patch_weights, PICKED * FEATURES) +
           dot(p->patch_tokens, token_weights, PICKED * DIM);
}

/* The slope of the value along the gradient, by central differences. */
static void test_slopes(void **state) {
    (void)state;
    for (int variant = 0; variant < 4; variant++) {
        pass p = begin(variant % 2, 2, variant < 2 ? SD_ACTIVATIONS_SPEED : SD_ACTIVATIONS_MEMORY);
        forward(&p, 1, true, PICKED);
        backward(&p);
        size_t count = p.model->parameter_count;
        double square = dot(p.gradient, p.gradient, count), step = 1e-4 / sqrt(square), values[2];
        float *start = malloc(count * sizeof *start);
        memcpy(start, p.model->parameters, count * sizeof *start);
        for (int side = 0; side < 2; side++) {
            for (size_t i = 0; i < count; i++)
                p.model->parameters[i] = (float)((double)start[i] + (side ? step : -step) * (double)p.gradient[i]);
            forward(&p, 1, true, PICKED);
            values[side] = value_of(&p);
        }
        assert_true(fabs((values[1] - values[0]) / (2.0 * step) / square - 1.0) < 1e-3);
        free(start);
        end(&p);
    }
}

/* A tensor without part in the value has a gradient of exactly 0; the others have not. */
static void test_who_gets_a_gradient(void **state) {
    (void)state;
    for (int own_head = 0; own_head < 2; own_head++) {
        pass p = begin(own_head, 1, SD_ACTIVATIONS_SPEED);
        forward(&p, 0, true, PICKED);
        backward(&p);
        for (size_t i = 0; i < p.model->tensor_count; i++) {
            const sd_tensor_info *info = &p.model->tensors[i];
            double square = dot(p.gradient + info->offset, p.gradient + info->offset, info->count);
            bool prototype = strstr(info->name, "last_layer") != NULL;
            assert_true(prototype ? square == 0.0 : square > 0.0);
        }
        forward(&p, 0, false, PICKED);
        backward(&p);
        const sd_tensor_info *token = sd_model_find_tensor(p.model, "backbone.mask_token");
        assert_true(dot(p.gradient + token->offset, p.gradient + token->offset, token->count) == 0.0);
        end(&p);
    }
}

/* What lies under a mask is not seen: neither do outputs depend on it, nor has it a gradient. */
static void test_masked_pixels(void **state) {
    (void)state;
    pass p = begin(false, 1, SD_ACTIVATIONS_SPEED);
    forward(&p, 0, true, PICKED);
    backward(&p);
    double before = value_of(&p);
    for (size_t image = 0; image < GLOBALS; image++)
        for (size_t y = 0; y < SIDE; y++)
            for (size_t x = 0; x < SIDE; x++) {
                size_t place = (image * SIDE + y) * SIDE + x;
                bool hidden = mask[image * PATCHES + y / 4 * 4 + x / 4] != 0;
                assert_true((p.dpixels[place] == 0.0f) == hidden);
                pixels[place] += hidden ? 1.0f : 0.0f;
            }
    forward(&p, 0, true, PICKED);
    assert_true(value_of(&p) == before);
    forward(&p, 0, false, PICKED);
    assert_true(value_of(&p) != before);
    fill_inputs(NULL);
    end(&p);
}

/* Patches share the head, or have their own: with equal weights both give the same. */
static void test_own_head(void **state) {
    (void)state;
    pass shared = begin(false, 1, SD_ACTIVATIONS_INFERENCE), own = begin(true, 2, SD_ACTIVATIONS_INFERENCE);
    for (size_t i = 0; i < own.model->tensor_count; i++) {
        const sd_tensor_info *info = &own.model->tensors[i];
        const char *name = strncmp(info->name, "patch_", 6) == 0 ? info->name + 6 : info->name;
        const sd_tensor_info *source = sd_model_find_tensor(shared.model, name);
        assert_non_null(source);
        if (source->count == info->count)
            memcpy(own.model->parameters + info->offset, shared.model->parameters + source->offset,
                   info->count * sizeof(float));
    }
    forward(&shared, 0, true, PICKED);
    forward(&own, 0, true, PICKED);
    for (size_t i = 0; i < PICKED * FEATURES; i++)
        assert_float_equal(shared.patch_features[i], own.patch_features[i], 1e-6);
    /* asking for fewer patches, or none, does not change what comes out */
    float first = own.patch_features[0], features = own.features[3];
    forward(&own, 0, true, 1);
    assert_float_equal(own.patch_features[0], first, 1e-6);
    forward(&own, 0, true, 0);
    assert_float_equal(own.features[3], features, 1e-6);
    end(&own);
    end(&shared);
}

static void test_refusals(void **state) {
    (void)state;
    pass p = begin(false, 1, SD_ACTIVATIONS_SPEED);
    sd_forward_options options;
    sd_forward_options_init(&options);
    const size_t repeated[] = {3, 3}, descending[] = {20, 3}, outside[] = {3, GLOBALS * PATCHES}, many[PICKED + 1] = {0};
    const struct {
        const size_t *patches;
        size_t count;
    } wrong[] = {{repeated, 2}, {descending, 2}, {outside, 2}, {many, PICKED + 1}, {NULL, 1}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        options.patches = wrong[i].patches;
        options.patch_count = wrong[i].count;
        assert_int_equal(sd_model_forward(p.model, p.activations, p.groups, 2, &options, NULL), SD_ERR_ARGUMENT);
        assert_non_null(strstr(sd_last_error(), "patch"));
    }
    sd_activations_config plan;
    sd_activations_config_init(&plan);
    plan.max_patches = 3;
    sd_activations *none = NULL;
    assert_int_equal(sd_activations_create_with(p.model, p.groups, 2, &plan, &none), SD_ERR_ARGUMENT);
    assert_null(none);
    end(&p);

    sd_model_config config = config_of(false);
    config.mask_token = 0;
    sd_model *model;
    sd_activations *activations;
    assert_int_equal(sd_model_create(NULL, &config, &model), SD_OK);
    assert_int_equal(sd_activations_create(model, p.groups, 2, SD_ACTIVATIONS_SPEED, 0, &activations), SD_OK);
    const uint8_t *masks[2] = {mask, NULL};
    sd_forward_options_init(&options);
    options.masks = masks;
    assert_int_equal(sd_model_forward(model, activations, p.groups, 2, &options, NULL), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "mask token"));
    sd_activations_destroy(activations);
    sd_model_destroy(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slopes),   cmocka_unit_test(test_who_gets_a_gradient), cmocka_unit_test(test_masked_pixels),
        cmocka_unit_test(test_own_head), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, fill_inputs, NULL);
}
