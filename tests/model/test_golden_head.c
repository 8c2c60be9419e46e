/* The projection head against the official code (golden/head). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "golden.h"
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

static void check(const char *file, int32_t layers) {
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
    golden_compare_f32(archive, "y", a->tail.features, y->count, golden_tolerance(archive, "y"));

    float *gradient = calloc(sd_model_parameter_count(model), sizeof(float));
    memcpy(a->tail.dhead[layers], golden_f32(archive, "w"), y->count * sizeof(float));
    assert_int_equal(sd_head_backward(model, a, gradient), SD_OK);
    golden_compare_f32(archive, "grad_x", a->tail.dhead[0], x->count, golden_tolerance(archive, "grad_x"));
    sd_product products[SD_PRODUCTS_MAX];
    size_t count = sd_tail_products(model, a, true, gradient, products);
    assert_true(count >= (size_t)layers);
    assert_int_equal(sd_run_products(NULL, products, (size_t)layers, NULL, NULL), SD_OK);
    for (size_t i = 0; i < sd_model_tensor_count(model); i++) {
        const sd_tensor_info *info = sd_model_tensor(model, i);
        if (strncmp(info->name, "head.", 5) != 0)
            continue;
        char name[64] = "grad/";
        strcat(name, info->name + 5);
        golden_compare_f32(archive, name, gradient + info->offset, info->count, golden_tolerance(archive, "%s", name));
    }
    free(gradient);
    sd_activations_destroy(a);
    sd_model_destroy(model);
    golden_close(archive);
}

static void test_simdino(void **state) {
    (void)state;
    check("head/simdino_v1.npz", 3);
}

static void test_simdinov2(void **state) {
    (void)state;
    check("head/simdinov2_nolast.npz", 3);
}

static void test_one_layer(void **state) {
    (void)state;
    check("head/simdinov2_nolast_1layer.npz", 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_simdino),
        cmocka_unit_test(test_simdinov2),
        cmocka_unit_test(test_one_layer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
