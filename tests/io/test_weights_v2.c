/* Published weights of the second form (DINOv2, SimDINOv2): outputs of the official models, and files that are written
 * being those that the other codes publish. */
#define _XOPEN_SOURCE 700
#include <simdino/io.h>

#include "golden.h"
#include "scratch.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define CHECKPOINTS SD_TEST_DATA "/checkpoint/"
#define DIM         16

static sd_model *load(const char *path, int32_t heads, int32_t names) {
    sd_weights_options options;
    sd_weights_options_init(&options);
    options.heads = heads;
    sd_weights_report report = {.size = sizeof report};
    sd_model *model = NULL;
    if (sd_model_load_weights(NULL, path, &options, &model, &report) != SD_OK)
        fail_msg("%s", sd_last_error());
    assert_int_equal(report.names, names);
    assert_true(report.missing == 0 && report.unexpected == 0 && report.mismatched == 0);
    assert_true((size_t)report.loaded == sd_model_tensor_count(model));
    return model;
}

static double largest_of(const golden_array *array) {
    double largest = 0;
    for (size_t i = 0; i < array->count; i++)
        largest = fmax(largest, fabs(golden_number(array, i)));
    return largest;
}

/* golden/README: without an err32 the tolerance is 2e-6 of the largest value. */
static void compare(const golden *archive, const char *name, const float *values, size_t count, double share) {
    golden_compare_f32(archive, name, values, count, share * largest_of(golden_get(archive, "%s", name)));
}

static void check_outputs(const sd_model *model, const golden *archive, const char *ending, double share) {
    char name[64];
    snprintf(name, sizeof name, "test/images%s", ending);
    const golden_array *images = golden_get(archive, "%s", name);
    sd_model_config config = {.size = sizeof config};
    assert_int_equal(sd_model_get_config(model, &config), SD_OK);
    size_t patch = (size_t)config.patch_size, registers = (size_t)config.registers;
    size_t patches = images->shape[2] / patch * (images->shape[3] / patch), tokens = 1 + registers + patches;
    size_t count = images->shape[0];
    sd_image_group group = {images->data, count, images->shape[2], images->shape[3]};
    sd_activations *activations;
    assert_int_equal(sd_activations_create(model, &group, 1, SD_ACTIVATIONS_INFERENCE, 1, &activations), SD_OK);
    float *class_tokens = malloc(count * DIM * sizeof(float)), *all = malloc(count * tokens * DIM * sizeof(float));
    float *patch_tokens = malloc(count * patches * DIM * sizeof(float)), *features = malloc(count * 64 * sizeof(float));
    sd_forward_outputs outputs;
    sd_forward_outputs_init(&outputs);
    outputs.class_tokens = class_tokens;
    outputs.tokens_norm = all;
    outputs.features = config.head_layers > 0 ? features : NULL;
    assert_int_equal(sd_model_forward(model, activations, &group, 1, NULL, &outputs), SD_OK);
    for (size_t i = 0; i < count; i++)
        memcpy(patch_tokens + i * patches * DIM, all + (i * tokens + 1 + registers) * DIM,
               patches * DIM * sizeof(float));
    snprintf(name, sizeof name, "test/x_norm_clstoken%s", ending);
    compare(archive, name, class_tokens, count * DIM, share);
    snprintf(name, sizeof name, "test/x_norm_patchtokens%s", ending);
    compare(archive, name, patch_tokens, count * patches * DIM, share);
    if (config.head_layers > 0)
        compare(archive, "test/head", features, count * (size_t)config.head_dim, share);
    free(features);
    free(patch_tokens);
    free(all);
    free(class_tokens);
    sd_activations_destroy(activations);
}

static void check_file(const char *name, const char *ending, int32_t names, bool other_size) {
    char path[512], file[128];
    snprintf(path, sizeof path, CHECKPOINTS "%s%s", name, ending);
    snprintf(file, sizeof file, "checkpoint/%s.npz", name);
    golden *archive = golden_open(file);
    const golden_array *hp = golden_get(archive, "test/hp"); /* patch_size, img_size, num_heads, depth */
    sd_model *model = load(path, (int32_t)golden_number(hp, 2), names);
    sd_model_config config = {.size = sizeof config};
    assert_int_equal(sd_model_get_config(model, &config), SD_OK);
    assert_true(config.patch_size == (int32_t)golden_number(hp, 0) &&
                config.image_size == (int32_t)golden_number(hp, 1));
    assert_true(config.depth == (int32_t)golden_number(hp, 3));
    check_outputs(model, archive, "", 2e-6);
    if (other_size)
        check_outputs(model, archive, "_other", 2e-6);
    sd_model_destroy(model);
    golden_close(archive);
}

static void official_outputs(void **state) {
    (void)state;
    check_file("tiny_simdinov2_teacher", ".pth", SD_NAMES_OFFICIAL, false);
    check_file("tiny_dinov2_backbone", ".pth", SD_NAMES_OFFICIAL, true);
    check_file("tiny_dinov2_reg_backbone", ".pth", SD_NAMES_OFFICIAL, true);
}

static void outputs_under_other_names(void **state) {
    (void)state;
    check_file("tiny_dinov2_hf", ".safetensors", SD_NAMES_HUGGING_FACE, false);
    check_file("tiny_dinov2_timm", ".safetensors", SD_NAMES_OFFICIAL, false);
    check_file("tiny_dinov2_reg_hf", ".safetensors", SD_NAMES_HUGGING_FACE, false);
    check_file("tiny_dinov2_reg_timm", ".safetensors", SD_NAMES_TIMM, false);
}

/* ---- writing ------------------------------------------------------------------------------------- */

/* Two files with the same tensors: names, shapes, bits. */
static void assert_same_file(const char *a, const char *b) {
    sd_tensor_file *first = NULL, *second = NULL;
    assert_int_equal(sd_tensor_file_open(NULL, a, &first), SD_OK);
    assert_int_equal(sd_tensor_file_open(NULL, b, &second), SD_OK);
    assert_true(sd_tensor_file_count(first) == sd_tensor_file_count(second));
    for (size_t i = 0; i < sd_tensor_file_count(first); i++) {
        sd_stored_tensor info = {.size = sizeof info}, other = {.size = sizeof other};
        assert_int_equal(sd_tensor_file_info(first, i, &info), SD_OK);
        size_t index = sd_tensor_file_find(second, info.name);
        if (index == sd_tensor_file_count(second))
            fail_msg("%s lacks %s", b, info.name);
        assert_int_equal(sd_tensor_file_info(second, index, &other), SD_OK);
        assert_true(info.dimensions == other.dimensions && info.count == other.count && info.dtype == other.dtype);
        assert_memory_equal(info.shape, other.shape, sizeof info.shape);
        float *x = malloc((size_t)info.count * sizeof *x), *y = malloc((size_t)info.count * sizeof *y);
        assert_int_equal(sd_tensor_file_read(first, i, x), SD_OK);
        assert_int_equal(sd_tensor_file_read(second, index, y), SD_OK);
        assert_memory_equal(x, y, (size_t)info.count * sizeof *x);
        free(x);
        free(y);
    }
    sd_tensor_file_close(first);
    sd_tensor_file_close(second);
}

/* From the official file to each of the other published ones. */
static void published_files(void **state) {
    static const struct {
        const char *from, *to;
        sd_names names;
    } cases[] = {{"tiny_dinov2_backbone.pth", "tiny_dinov2_hf.safetensors", SD_NAMES_HUGGING_FACE},
                 {"tiny_dinov2_backbone.pth", "tiny_dinov2_timm.safetensors", SD_NAMES_TIMM},
                 {"tiny_dinov2_reg_backbone.pth", "tiny_dinov2_reg_hf.safetensors", SD_NAMES_HUGGING_FACE},
                 {"tiny_dinov2_reg_backbone.pth", "tiny_dinov2_reg_timm.safetensors", SD_NAMES_TIMM},
                 {"tiny_dinov2_hf.safetensors", "tiny_dinov2_backbone.pth", SD_NAMES_OFFICIAL},
                 {"tiny_dinov2_reg_hf.safetensors", "tiny_dinov2_reg_backbone.pth", SD_NAMES_OFFICIAL}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char from[512], to[512];
        snprintf(from, sizeof from, CHECKPOINTS "%s", cases[i].from);
        snprintf(to, sizeof to, CHECKPOINTS "%s", cases[i].to);
        int32_t names = strstr(cases[i].from, "_hf") ? SD_NAMES_HUGGING_FACE : SD_NAMES_OFFICIAL;
        sd_model *model = load(from, 0, names);
        static const char *const files[] = {"w.safetensors", "w.npz"};
        for (int form = 0; form < 2; form++) {
            const char *path = scratch_path(*state, files[form]);
            assert_int_equal(sd_model_save_weights(model, path, cases[i].names, 0), SD_OK);
            assert_same_file(path, to);
        }
        sd_model_destroy(model);
    }
}

/* Everything that a network can have, under all names that have it. */
static void round_trips(void **state) {
    sd_model_config config;
    sd_model_config_init(&config);
    config.image_size = 8;
    config.patch_size = 4;
    config.channels = 2;
    config.dim = 24;
    config.depth = 3;
    config.heads = 3;
    config.mlp_ratio = 3.1;
    config.head_hidden = 10;
    config.head_dim = 6;
    config.prototypes = 9;
    config.prototype_scale = 1;
    config.patch_head = 1;
    config.patch_prototypes = 7;
    config.layer_scale = 0.1;
    config.interpolate_offset = 0.0;
    config.interpolate_antialias = 1;
    config.drop_path_uniform = 1;
    config.drop_path_subset = 1;
    for (int variant = 0; variant < 8; variant++) {
        config.feed_forward = variant & 1;
        config.registers = variant & 2 ? 5 : 0;
        config.mask_token = variant & 4 ? 1 : 0;
        sd_model *model = NULL;
        assert_int_equal(sd_model_create(NULL, &config, &model), SD_OK);
        sd_model_initialize(model, (uint64_t)variant);
        for (int names = SD_NAMES_NATIVE; names <= SD_NAMES_HUGGING_FACE; names++)
            for (int32_t heads = 0; heads < (names <= SD_NAMES_OFFICIAL ? 2 : 1); heads++) {
                const char *path = scratch_path(*state, "r.safetensors");
                assert_int_equal(sd_model_save_weights(model, path, (sd_names)names, heads), SD_OK);
                sd_weights_options options;
                sd_weights_options_init(&options);
                sd_model *back = NULL;
                if (sd_model_load_weights(NULL, path, &options, &back, NULL) != SD_OK)
                    fail_msg("%s", sd_last_error());
                sd_model_config found = {.size = sizeof found};
                assert_int_equal(sd_model_get_config(back, &found), SD_OK);
                if (names == SD_NAMES_NATIVE && heads)
                    assert_memory_equal(&found, &config, sizeof config);
                assert_true(found.heads == 3 && found.layer_scale == 0.1 && found.drop_path_subset == 1);
                assert_true(found.feed_forward == config.feed_forward && found.registers == config.registers);
                for (size_t i = 0; i < sd_model_tensor_count(model); i++) {
                    const sd_tensor_info *info = sd_model_tensor(model, i),
                                         *to = sd_model_find_tensor(back, info->name);
                    bool in_backbone = strncmp(info->name, "backbone.", 9) == 0;
                    bool masks = strcmp(info->name, "backbone.mask_token") == 0 && names == SD_NAMES_TIMM;
                    bool expected = in_backbone ? !masks : heads;
                    assert_true((to != NULL) == expected);
                    bool folded = names == SD_NAMES_TIMM && config.registers > 0 &&
                                  (strstr(info->name, "cls_token") || strstr(info->name, "pos_embed"));
                    if (to && !folded)
                        assert_memory_equal(sd_model_parameters(back) + to->offset,
                                            sd_model_parameters(model) + info->offset, info->count * sizeof(float));
                }
                sd_model_destroy(back);
            }
        sd_model_destroy(model);
    }
    config.qk_norm = 1; /* Hugging Face has no names for it */
    sd_model *model = NULL;
    assert_int_equal(sd_model_create(NULL, &config, &model), SD_OK);
    assert_int_equal(sd_model_save_weights(model, scratch_path(*state, "q.npz"), SD_NAMES_HUGGING_FACE, 0),
                     SD_ERR_UNSUPPORTED);
    assert_non_null(strstr(sd_last_error(), "norm"));
    assert_int_equal(sd_model_save_weights(model, scratch_path(*state, "q.npz"), SD_NAMES_TIMM, 0), SD_OK);
    sd_model *back = load(scratch_path(*state, "q.npz"), 0, SD_NAMES_TIMM); /* heads: told by the norm's width */
    sd_model_config found = {.size = sizeof found};
    assert_int_equal(sd_model_get_config(back, &found), SD_OK);
    assert_true(found.heads == 3 && found.qk_norm == 1);
    sd_model_destroy(back);
    sd_model_destroy(model);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, scratch_begin, scratch_end)
    const struct CMUnitTest tests[] = {TEST(official_outputs), TEST(outputs_under_other_names), TEST(published_files),
                                       TEST(round_trips)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
