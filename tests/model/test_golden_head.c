/* The projection head against the official code (golden/head). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "golden.h"
#include "loss/prototypes.h"
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

/* y = features W', W_k = factors_k v_k the weight-normalised prototypes, which belong to lib/loss; L = sum(w y) has dW
 * = w' features. Leaves the gradient of the features in tail.dhead. */
static void check_prototypes(const golden *archive, const sd_model *model, sd_activations *a, float *gradient) {
    const struct sd_head_layout *l = &model->layout.head[0];
    size_t p = (size_t)model->config.head_dim, K = (size_t)model->config.prototypes, rows = a->images;
    sd_prototypes layer = {model->parameters + l->prototype_direction, model->parameters + l->prototype_scale, K};
    sd_prototypes_gradient into = {gradient + l->prototype_direction, gradient + l->prototype_scale};
    float *weights = calloc(K * p, sizeof(float)), *dweights = calloc(K * p, sizeof(float));
    float *y = calloc(rows * K, sizeof(float)), *factors = calloc(K, sizeof(float));
    double *inverse_lengths = calloc(K, sizeof(double)), *along = calloc(K, sizeof(double));
    const float *w = golden_f32(archive, "w");
    assert_int_equal(sd_prototypes_factors(NULL, &layer, p, 1.0, factors, inverse_lengths), SD_OK);
    for (size_t i = 0; i < K * p; i++)
        weights[i] = factors[i / p] * layer.weight_v[i];
    sd_product forward = sd_linear_forward(a->tail.features, rows, p, weights, K, y);
    assert_int_equal(sd_run_products(NULL, NULL, &forward, 1, NULL, NULL), SD_OK);
    golden_compare_f32(archive, "y", y, rows * K, golden_tolerance(archive, "y"));
    double sum = 0.0;
    for (size_t i = 0; i < rows * K; i++)
        sum += (double)w[i] * (double)y[i];
    assert_float_equal(sum, golden_scalar(archive, "L"), golden_tolerance(archive, "L"));
    sd_product backward[] = {
        sd_linear_backward(w, rows, K, weights, p, a->tail.dhead[model->config.head_layers]),
        sd_linear_weight(w, a->tail.features, rows, K, p, dweights),
    };
    assert_int_equal(sd_run_products(NULL, NULL, backward, 2, NULL, NULL), SD_OK);
    for (size_t i = 0; i < K * p; i++) {
        along[i / p] += (double)dweights[i] * (double)layer.weight_v[i];
        into.weight_v[i] += factors[i / p] * dweights[i];
    }
    assert_int_equal(sd_prototypes_backward(NULL, &layer, p, 1.0, inverse_lengths, along, &into), SD_OK);
    free(along);
    free(inverse_lengths);
    free(factors);
    free(y);
    free(dweights);
    free(weights);
}

static void check(const char *file, int32_t layers, bool prototypes, bool scale) {
    golden *archive = golden_open(file);
    const golden_array *x = golden_get(archive, "x"), *y = golden_get(archive, "y");
    sd_model_config config;
    sd_model_config_init(&config);
    config.image_size = config.patch_size = 2;
    config.channels = 1;
    config.dim = (int32_t)x->shape[1];
    config.depth = config.heads = 1;
    config.head_layers = layers;
    config.head_hidden = 64;
    config.head_dim = (int32_t)y->shape[1];
    if (prototypes) {
        config.prototypes = config.head_dim;
        config.prototype_scale = scale;
        config.head_dim = (int32_t)golden_get(archive, "param/last_layer.weight_v")->shape[1];
    }
    sd_model *model;
    assert_int_equal(sd_model_create(NULL, &config, &model), SD_OK);
    for (size_t i = 0; i < sd_model_tensor_count(model); i++) {
        const sd_tensor_info *info = sd_model_tensor(model, i);
        if (strncmp(info->name, "head.", 5) == 0)
            memcpy(sd_model_parameters(model) + info->offset, golden_f32(archive, "param/%s", info->name + 5),
                   info->count * sizeof(float));
    }
    sd_image_group shape = {NULL, x->shape[0], 2, 2};
    sd_activations *a;
    assert_int_equal(sd_activations_create(model, &shape, 1, SD_ACTIVATIONS_SPEED, 1, &a), SD_OK);
    a->images = x->shape[0];
    memcpy(a->tail.normal, x->data, x->count * sizeof(float));
    assert_int_equal(sd_head_forward(model, a), SD_OK);
    float *gradient = calloc(sd_model_parameter_count(model), sizeof(float));
    if (prototypes) {
        check_prototypes(archive, model, a, gradient);
    } else {
        golden_compare_f32(archive, "y", a->tail.features, y->count, golden_tolerance(archive, "y"));
        memcpy(a->tail.dhead[layers], golden_f32(archive, "w"), y->count * sizeof(float));
    }
    assert_int_equal(sd_head_backward(model, a, gradient), SD_OK);
    golden_compare_f32(archive, "grad_x", a->tail.dhead[0], x->count, golden_tolerance(archive, "grad_x"));
    sd_product products[SD_PRODUCTS_MAX];
    size_t count = sd_tail_products(model, a, true, gradient, products);
    assert_true(count >= (size_t)layers);
    assert_int_equal(sd_run_products(NULL, NULL, products, (size_t)layers, NULL, NULL), SD_OK);
    for (size_t i = 0; i < sd_model_tensor_count(model); i++) {
        const sd_tensor_info *info = sd_model_tensor(model, i);
        if (strncmp(info->name, "head.", 5) != 0)
            continue;
        char name[64] = "grad/";
        strcat(name, info->name + 5);
        if (strcmp(name, "grad/last_layer.weight_g") == 0 && !scale)
            continue; /* fixed at 1 */
        golden_compare_f32(archive, name, gradient + info->offset, info->count, golden_tolerance(archive, "%s", name));
    }
    free(gradient);
    sd_activations_destroy(a);
    sd_model_destroy(model);
    golden_close(archive);
}

static void test_simdino(void **state) {
    (void)state;
    check("head/simdino_v1.npz", 3, false, false);
}

static void test_simdinov2(void **state) {
    (void)state;
    check("head/simdinov2_nolast.npz", 3, false, false);
}

static void test_one_layer(void **state) {
    (void)state;
    check("head/simdinov2_nolast_1layer.npz", 1, false, false);
}

static void test_dino(void **state) {
    (void)state;
    check("head/dino_v1.npz", 3, true, false);
}

static void test_dinov2(void **state) {
    (void)state;
    check("head/dinov2.npz", 3, true, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_simdino),
        cmocka_unit_test(test_simdinov2),
        cmocka_unit_test(test_one_layer),
        cmocka_unit_test(test_dino),
        cmocka_unit_test(test_dinov2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
