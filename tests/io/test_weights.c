/* Published weights into models: names, inferred configurations, embeddings, reports, and the way back. */
#define _XOPEN_SOURCE 700
#include "io/weights.h"
#include "train/pretrainer.h"

#include <simdino/io.h>
#include <simdino/train.h>

#include "failing_memory.h"
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

static const char *checkpoint(const char *name) {
    static char paths[4][512];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], CHECKPOINTS "%s", name);
    return path;
}

static sd_model *load(const char *path, const sd_weights_options *options, sd_weights_report *report) {
    sd_model *model = NULL;
    report->size = sizeof *report;
    if (sd_model_load_weights(NULL, path, options, &model, report) != SD_OK)
        fail_msg("%s", sd_last_error());
    return model;
}

static sd_model_config config_of(const sd_model *model) {
    sd_model_config config = {.size = sizeof config};
    assert_int_equal(sd_model_get_config(model, &config), SD_OK);
    return config;
}

static void assert_same_parameters(const sd_model *a, const sd_model *b) {
    assert_true(sd_model_parameter_count(a) == sd_model_parameter_count(b));
    assert_memory_equal(sd_model_parameters_const(a), sd_model_parameters_const(b),
                        sd_model_parameter_count(a) * sizeof(float));
}

/* ---- the first form of the network, end to end --------------------------------------------------- */

static void check_embedding(const sd_model *model, const golden *archive) {
    const golden_array *images = golden_get(archive, "test/images");
    const golden_array *expected = golden_get(archive, "test/embedding");
    sd_image_group group = {images->data, images->shape[0], images->shape[2], images->shape[3]};
    sd_activations *activations;
    assert_int_equal(sd_activations_create(model, &group, 1, SD_ACTIVATIONS_INFERENCE, 0, &activations), SD_OK);
    float *class_tokens = malloc(expected->count * sizeof *class_tokens);
    sd_forward_outputs outputs;
    sd_forward_options options;
    sd_forward_outputs_init(&outputs);
    sd_forward_options_init(&options);
    options.head = 0;
    outputs.class_tokens = class_tokens;
    assert_int_equal(sd_model_forward(model, activations, &group, 1, &options, &outputs), SD_OK);
    double largest = 0;
    for (size_t i = 0; i < expected->count; i++)
        largest = fmax(largest, fabs(golden_number(expected, i)));
    /* golden/README: without an err32 the tolerance is 2e-6 of the largest value */
    golden_compare_f32(archive, "test/embedding", class_tokens, expected->count, 2e-6 * largest);
    free(class_tokens);
    sd_activations_destroy(activations);
}

/* Every tensor of the model has the bits of the archive's array PREFIX + its name. */
static void check_bits(const sd_model *model, const golden *archive, const char *prefix) {
    for (size_t i = 0; i < sd_model_tensor_count(model); i++) {
        const sd_tensor_info *info = sd_model_tensor(model, i);
        const golden_array *expected = golden_get(archive, "%s%s", prefix, info->name);
        assert_true(expected->count == info->count);
        if (memcmp(sd_model_parameters_const(model) + info->offset, expected->data, info->count * sizeof(float)) != 0)
            fail_msg("%s differs", info->name);
    }
}

static void check_v1(const char *name, bool student, const char *prefix, size_t tensors, bool embeds) {
    char file[128];
    snprintf(file, sizeof file, "checkpoint/%s.npz", name);
    golden *archive = golden_open(file);
    snprintf(file, sizeof file, "%s.pth", name);
    sd_weights_options options;
    sd_weights_options_init(&options);
    options.student = student;
    sd_weights_report report;
    sd_model *model = load(checkpoint(file), &options, &report);
    assert_int_equal(report.loaded, tensors);
    assert_true(report.missing == 0 && report.unexpected == 0 && report.mismatched == 0 && report.text[0] == '\0');
    assert_true(report.names == SD_NAMES_OFFICIAL && report.student == student);
    sd_model_config config = config_of(model);
    assert_true(config.dim == 16 && config.patch_size == 4 && config.channels == 3 && config.image_size == 16);
    assert_true(config.depth == 3 && config.heads == 1 && config.mlp_ratio == 2.0 && config.registers == 0);
    assert_true(config.layer_scale == 0.0 && config.mask_token == 0 && config.qk_norm == 0 && config.patch_head == 0);
    assert_true(config.head_layers == 3 && config.head_hidden == 24 && config.head_dim == 12);
    assert_true(config.prototypes == (tensors == 50 ? 20 : 0) && config.prototype_scale == 0);
    assert_true(config.interpolate_offset == 0.1 && config.interpolate_antialias == 0);
    check_bits(model, archive, prefix);
    if (embeds) { /* made with two heads of attention, which no tensor tells */
        assert_true(golden_number(golden_get(archive, "test/hp"), 2) == 2);
        sd_model_destroy(model);
        options.heads = 2;
        model = load(checkpoint(file), &options, &report);
        assert_true(config_of(model).heads == 2);
        check_embedding(model, archive);
    }
    sd_model_destroy(model);
    golden_close(archive);
}

static void simdino_v1(void **state) {
    (void)state;
    check_v1("tiny_simdino_v1_full", false, "teacher/", 48, true);
    check_v1("tiny_simdino_v1_full", true, "student/module.", 48, false);
    check_v1("tiny_simdino_v1_compiled", false, "teacher/_orig_mod.", 48, false);
    check_v1("tiny_simdino_v1_compiled", true, "student/_orig_mod.module.", 48, false);
    check_v1("tiny_legacy", false, "teacher/", 48, false);
}

/* With prototypes; without the heads they are neither read nor reported. */
static void dino_v1(void **state) {
    (void)state;
    check_v1("tiny_dino_v1_full", false, "teacher/", 50, true);
    check_v1("tiny_dino_v1_full", true, "student/module.", 50, false);
    sd_weights_options options;
    sd_weights_options_init(&options);
    options.backbone = 1;
    options.heads = 2;
    sd_weights_report report;
    sd_model *model = load(checkpoint("tiny_dino_v1_full.pth"), &options, &report);
    golden *archive = golden_open("checkpoint/tiny_dino_v1_full.npz");
    check_bits(model, archive, "teacher/");
    assert_true(config_of(model).head_layers == 0 && config_of(model).prototypes == 0 && report.unexpected == 0);
    check_embedding(model, archive);
    golden_close(archive);
    sd_model_destroy(model);
}

/* ---- names of the second form --------------------------------------------------------------------- */

static float *read_weight(const sd_weights *weights, const char *name, size_t *count) {
    const sd_weight *whole = sd_weights_find(weights, name, SD_WHOLE);
    const sd_weight *pieces[3] = {whole, NULL, NULL};
    if (!whole)
        for (int i = 0; i < 3; i++)
            pieces[i] = sd_weights_find(weights, name, i);
    size_t used = 0;
    float *values = malloc(1 << 16);
    for (int i = 0; i < 3 && pieces[i]; i++) {
        assert_int_equal(sd_tensor_file_read(weights->file, pieces[i]->index, values + used), SD_OK);
        used += (size_t)sd_weights_tensor(weights, pieces[i])->count;
    }
    *count = used;
    return values;
}

/* The same network under other names: each tensor has the same bits as the official one. */
static void check_same_network(const char *official, const char *other, int32_t names, bool folded) {
    sd_weights_options options;
    sd_weights_options_init(&options);
    sd_weights a, b;
    assert_int_equal(sd_weights_open(NULL, checkpoint(official), &options, &a), SD_OK);
    assert_int_equal(sd_weights_open(NULL, checkpoint(other), &options, &b), SD_OK);
    assert_int_equal(a.names, SD_NAMES_OFFICIAL);
    assert_int_equal(b.names, names);
    assert_true(b.no_class_position == folded);
    for (size_t i = 0; i < a.count; i++) {
        const char *name = a.list[i].name;
        size_t expected_count, count;
        assert_true(name[0] != '\0');
        if (names == SD_NAMES_TIMM || strstr(other, "timm")) /* has no mask token */
            if (strcmp(name, "backbone.mask_token") == 0)
                continue;
        float *expected = read_weight(&a, name, &expected_count), *values = read_weight(&b, name, &count);
        if (folded && strcmp(name, "backbone.cls_token") == 0) {
            float *position = read_weight(&a, "backbone.pos_embed", &expected_count);
            for (size_t j = 0; j < count; j++)
                assert_true(values[j] == expected[j] + position[j]);
            free(position);
        } else {
            size_t skipped = folded && strcmp(name, "backbone.pos_embed") == 0 ? 16 : 0;
            if (count != expected_count - skipped || count == 0)
                fail_msg("%s: %s has %zu values instead of %zu", other, name, count, expected_count - skipped);
            assert_memory_equal(values, expected + skipped, count * sizeof *values);
        }
        free(expected);
        free(values);
    }
    for (size_t i = 0; i < b.count; i++)
        if (!sd_weights_find(&a, b.list[i].name, SD_WHOLE))
            fail_msg("%s: %s is unknown", other, b.file->tensors[b.list[i].index].name);
    sd_weights_close(&a);
    sd_weights_close(&b);
}

static void names_of_dinov2(void **state) {
    (void)state;
    check_same_network("tiny_dinov2_backbone.pth", "tiny_dinov2_hf.safetensors", SD_NAMES_HUGGING_FACE, false);
    check_same_network("tiny_dinov2_backbone.pth", "tiny_dinov2_timm.safetensors", SD_NAMES_OFFICIAL, false);
    check_same_network("tiny_dinov2_reg_backbone.pth", "tiny_dinov2_reg_hf.safetensors", SD_NAMES_HUGGING_FACE, false);
    check_same_network("tiny_dinov2_reg_backbone.pth", "tiny_dinov2_reg_timm.safetensors", SD_NAMES_TIMM, true);
}

static sd_model_config infer(const char *name) {
    sd_model_config config = {.size = sizeof config};
    if (sd_weights_config(NULL, checkpoint(name), NULL, &config) != SD_OK)
        fail_msg("%s", sd_last_error());
    return config;
}

static void configurations(void **state) {
    (void)state;
    sd_model_config c = infer("tiny_simdinov2_teacher.pth");
    assert_true(c.dim == 16 && c.depth == 4 && c.patch_size == 4 && c.image_size == 16 && c.registers == 3);
    assert_true(c.mask_token == 1 && c.layer_scale != 0.0 && c.mlp_ratio == 2.0 &&
                c.feed_forward == SD_FEED_FORWARD_MLP);
    assert_true(c.head_layers == 3 && c.head_hidden == 24 && c.head_dim == 12 && c.prototypes == 0 &&
                c.patch_head == 0);
    assert_true(c.interpolate_antialias == 1 && c.interpolate_offset == 0.0);
    static const char *const plain[] = {"tiny_dinov2_backbone.pth", "tiny_dinov2_hf.safetensors",
                                        "tiny_dinov2_timm.safetensors"};
    static const char *const registers[] = {"tiny_dinov2_reg_backbone.pth", "tiny_dinov2_reg_hf.safetensors",
                                            "tiny_dinov2_reg_timm.safetensors"};
    for (int i = 0; i < 3; i++) {
        c = infer(plain[i]);
        assert_true(c.dim == 16 && c.depth == 2 && c.image_size == 16 && c.registers == 0 && c.head_layers == 0);
        assert_true(c.layer_scale != 0.0 && c.mask_token == (i < 2) && c.heads == 1);
        assert_true(c.interpolate_antialias == 0 && c.interpolate_offset == 0.1);
        c = infer(registers[i]);
        assert_true(c.dim == 16 && c.depth == 2 && c.image_size == 16 && c.registers == 3 && c.head_layers == 0);
        assert_true(c.layer_scale != 0.0 && c.mask_token == (i < 2) && c.interpolate_antialias == 1);
    }
}

/* ---- made-up files ---------------------------------------------------------------------------------- */

#define FILE_TENSORS 64
typedef struct made_file {
    sd_tensor_data tensors[FILE_TENSORS];
    char names[FILE_TENSORS][96];
    size_t count;
} made_file;

static float values_of_files[1 << 16];

static void put(made_file *file, const char *name, int32_t dimensions, int64_t a, int64_t b, int64_t c, int64_t d) {
    sd_tensor_data *tensor = &file->tensors[file->count];
    snprintf(file->names[file->count], sizeof file->names[0], "%s", name);
    *tensor = (sd_tensor_data){
        .name = file->names[file->count], .dimensions = dimensions, .shape = {a, b, c, d}, .data = values_of_files};
    file->count++;
}

/* A network of width 8, patches of 2 x 2, a grid of 2 x 2, one block. */
static void make_network(made_file *file, const char *prefix) {
    static const char *const vectors[] = {"norm1.weight", "norm1.bias",     "norm2.weight",
                                          "norm2.bias",   "attn.proj.bias", "mlp.fc2.bias"};
    char name[96];
    *file = (made_file){0};
#define NAME(text) (snprintf(name, sizeof name, "%s" text, prefix), name)
    put(file, NAME("cls_token"), 3, 1, 1, 8, 0);
    put(file, NAME("pos_embed"), 3, 1, 5, 8, 0);
    put(file, NAME("patch_embed.proj.weight"), 4, 8, 3, 2, 2);
    put(file, NAME("patch_embed.proj.bias"), 1, 8, 0, 0, 0);
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        snprintf(name, sizeof name, "%sblocks.0.%s", prefix, vectors[i]);
        put(file, name, 1, 8, 0, 0, 0);
    }
    put(file, NAME("blocks.0.attn.qkv.weight"), 2, 24, 8, 0, 0);
    put(file, NAME("blocks.0.attn.qkv.bias"), 1, 24, 0, 0, 0);
    put(file, NAME("blocks.0.attn.proj.weight"), 2, 8, 8, 0, 0);
    put(file, NAME("blocks.0.mlp.fc1.weight"), 2, 12, 8, 0, 0);
    put(file, NAME("blocks.0.mlp.fc1.bias"), 1, 12, 0, 0, 0);
    put(file, NAME("blocks.0.mlp.fc2.weight"), 2, 8, 12, 0, 0);
    put(file, NAME("norm.weight"), 1, 8, 0, 0, 0);
    put(file, NAME("norm.bias"), 1, 8, 0, 0, 0);
#undef NAME
}

static sd_tensor_data *find(made_file *file, const char *ending) {
    for (size_t i = 0; i < file->count; i++) {
        size_t length = strlen(file->names[i]), wanted = strlen(ending);
        if (length >= wanted && strcmp(file->names[i] + length - wanted, ending) == 0)
            return &file->tensors[i];
    }
    fail_msg("no %s", ending);
    return NULL;
}

static const char *write_made(void **state, const made_file *file) {
    const char *path = scratch_path(*state, "made.npz");
    for (size_t i = 0; i < sizeof values_of_files / sizeof values_of_files[0]; i++)
        values_of_files[i] = (float)i;
    assert_int_equal(sd_tensor_file_write(NULL, path, file->tensors, file->count, 0), SD_OK);
    return path;
}

static void reports(void **state) {
    sd_weights_options lenient;
    sd_weights_options_init(&lenient);
    lenient.strict = 0;
    made_file file;
    make_network(&file, "model/module.");
    sd_weights_report report = {.size = sizeof report};
    sd_model *model = load(write_made(state, &file), NULL, &report);
    assert_true(report.loaded == 18 && report.format == SD_FORM_NPZ);
    sd_model_config config = config_of(model);
    assert_true(config.mlp_ratio == 1.5 && config.image_size == 4 && config.depth == 1 && config.head_layers == 0);
    sd_model_destroy(model);
    model = NULL;

    find(&file, "norm1.bias")->name = "model/module.blocks.0.norm1.beta";
    find(&file, "fc1.bias")->shape[0] = 13;
    put(&file, "model/module.head.weight", 2, 5, 8, 0, 0);
    put(&file, "other/x", 1, 3, 0, 0, 0); /* of another part: nobody's business */
    const char *path = write_made(state, &file);
    assert_int_equal(sd_model_load_weights(NULL, path, NULL, &model, &report), SD_ERR_MISMATCH);
    assert_null(model);
    assert_true(report.missing == 1 && report.unexpected == 2 && report.mismatched == 1 && report.loaded == 16);
    assert_string_equal(report.text, "missing: backbone.blocks.0.norm1.bias\n"
                                     "unexpected: model/module.blocks.0.norm1.beta, model/module.head.weight\n"
                                     "of another shape: backbone.blocks.0.mlp.fc1.bias");
    assert_non_null(strstr(sd_last_error(), "made.npz"));
    assert_non_null(strstr(sd_last_error(), "backbone.blocks.0.norm1.bias"));
    memset(&report, 0, sizeof report);
    model = load(path, &lenient, &report);
    assert_true(report.missing == 1 && report.unexpected == 2 && report.mismatched == 1);
    const float *parameters = sd_model_parameters_const(model);
    assert_true(parameters[sd_model_find_tensor(model, "backbone.blocks.0.norm1.bias")->offset] == 0.0f);
    assert_true(parameters[sd_model_find_tensor(model, "backbone.norm.weight")->offset + 7] == 7.0f);

    sd_model_config larger = config;
    sd_model *other = NULL; /* into a model that exists, of another form */
    larger.depth = 2;
    larger.image_size = 6;
    assert_int_equal(sd_model_create(NULL, &larger, &other), SD_OK);
    sd_model_initialize(other, 3);
    const sd_tensor_info *kept = sd_model_find_tensor(other, "backbone.pos_embed");
    float before = sd_model_parameters(other)[kept->offset];
    assert_int_equal(sd_model_read_weights(other, path, NULL, &report), SD_ERR_MISMATCH);
    assert_int_equal(sd_model_read_weights(other, path, &lenient, &report), SD_OK);
    assert_true(report.missing == 13 && report.unexpected == 2 && report.mismatched == 2 && report.loaded == 15);
    assert_true(sd_model_parameters(other)[kept->offset] == before);
    assert_true(sd_model_parameters(other)[sd_model_find_tensor(other, "backbone.norm.weight")->offset + 7] == 7.0f);
    sd_model_destroy(other);
    sd_model_destroy(model);
}

static void expect_mismatch(void **state, const made_file *file, const char *reason) {
    sd_model *model = NULL;
    sd_weights_options lenient;
    sd_weights_options_init(&lenient);
    lenient.strict = 0;
    sd_status status = sd_model_load_weights(NULL, write_made(state, file), &lenient, &model, NULL);
    if (status != SD_ERR_MISMATCH || !strstr(sd_last_error(), reason) || !strstr(sd_last_error(), "made.npz"))
        fail_msg("status %d, \"%s\", expected: %s", (int)status, sd_last_error(), reason);
    assert_null(model);
}

static void impossible_networks(void **state) {
    made_file file;
    make_network(&file, "");
    find(&file, "pos_embed")->shape[1] = 7;
    expect_mismatch(state, &file, "7 tokens");
    make_network(&file, "");
    find(&file, "patch_embed.proj.weight")->shape[3] = 3;
    expect_mismatch(state, &file, "not square");
    make_network(&file, "");
    find(&file, "patch_embed.proj.weight")->name = "patch_embed.weight";
    expect_mismatch(state, &file, "no vision transformer");
    make_network(&file, "");
    find(&file, "pos_embed")->name = "position";
    expect_mismatch(state, &file, "position embedding");
    make_network(&file, "");
    find(&file, "fc2.weight")->name = "blocks.0.mlp.out.weight";
    expect_mismatch(state, &file, "MLP");
    make_network(&file, ""); /* a small file that declares a deep network */
    put(&file, "blocks.1023.norm1.weight", 1, 8, 0, 0, 0);
    expect_mismatch(state, &file, "too small");
    make_network(&file, "");
    put(&file, "blocks.99999.norm1.weight", 1, 8, 0, 0, 0);
    expect_mismatch(state, &file, "depth");
    make_network(&file, "");
    find(&file, "patch_embed.proj.weight")->shape[0] = 0;
    expect_mismatch(state, &file, "possible size");
    make_network(&file, "teacher/backbone.");
    sd_weights_options options;
    sd_weights_options_init(&options);
    options.student = 1;
    sd_model *model = NULL;
    const char *path = write_made(state, &file);
    assert_int_equal(sd_model_load_weights(NULL, path, &options, &model, NULL), SD_ERR_MISMATCH);
    options.student = 2;
    assert_int_equal(sd_model_load_weights(NULL, path, &options, &model, NULL), SD_ERR_ARGUMENT);
    options.student = 0;
    options.heads = 3; /* does not divide 8 */
    assert_int_equal(sd_model_load_weights(NULL, path, &options, &model, NULL), SD_ERR_MISMATCH);
    assert_int_equal(sd_model_load_weights(NULL, path, NULL, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_model_load_weights(NULL, NULL, NULL, &model, NULL), SD_ERR_ARGUMENT);
    assert_null(model);
}

/* Hugging Face's ViTModel, as which the networks of DINO are published there. */
static void vit_model_names(void **state) {
    static const struct {
        const char *ours, *theirs;
    } names[] = {{"blocks.0.norm1.weight", "vit.encoder.layer.0.layernorm_before.weight"},
                 {"blocks.0.norm1.bias", "vit.encoder.layer.0.layernorm_before.bias"},
                 {"blocks.0.norm2.weight", "vit.encoder.layer.0.layernorm_after.weight"},
                 {"blocks.0.norm2.bias", "vit.encoder.layer.0.layernorm_after.bias"},
                 {"blocks.0.attn.proj.weight", "vit.encoder.layer.0.attention.output.dense.weight"},
                 {"blocks.0.attn.proj.bias", "vit.encoder.layer.0.attention.output.dense.bias"},
                 {"blocks.0.mlp.fc1.weight", "vit.encoder.layer.0.intermediate.dense.weight"},
                 {"blocks.0.mlp.fc1.bias", "vit.encoder.layer.0.intermediate.dense.bias"},
                 {"blocks.0.mlp.fc2.weight", "vit.encoder.layer.0.output.dense.weight"},
                 {"blocks.0.mlp.fc2.bias", "vit.encoder.layer.0.output.dense.bias"},
                 {"blocks.0.attn.qkv.weight", "vit.encoder.layer.0.attention.attention.query.weight"},
                 {"blocks.0.attn.qkv.bias", "vit.encoder.layer.0.attention.attention.query.bias"},
                 {"cls_token", "vit.embeddings.cls_token"},
                 {"pos_embed", "vit.embeddings.position_embeddings"},
                 {"patch_embed.proj.weight", "vit.embeddings.patch_embeddings.projection.weight"},
                 {"patch_embed.proj.bias", "vit.embeddings.patch_embeddings.projection.bias"},
                 {"norm.weight", "vit.layernorm.weight"},
                 {"norm.bias", "vit.layernorm.bias"}};
    made_file file;
    make_network(&file, "");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        find(&file, names[i].ours)->name = names[i].theirs;
    for (size_t i = 0; i < file.count; i++)
        if (strstr(file.tensors[i].name, "attention.query"))
            file.tensors[i].shape[0] = 8;
    static const char *const more[] = {"key", "value"};
    for (int i = 0; i < 2; i++) {
        char name[96];
        snprintf(name, sizeof name, "vit.encoder.layer.0.attention.attention.%s.weight", more[i]);
        put(&file, name, 2, 8, 8, 0, 0);
        snprintf(name, sizeof name, "vit.encoder.layer.0.attention.attention.%s.bias", more[i]);
        put(&file, name, 1, 8, 0, 0, 0);
    }
    sd_weights_report report;
    sd_model *model = load(write_made(state, &file), NULL, &report);
    assert_true(report.names == SD_NAMES_HUGGING_FACE && report.loaded == 18);
    const sd_tensor_info *qkv = sd_model_find_tensor(model, "backbone.blocks.0.attn.qkv.weight");
    const float *values = sd_model_parameters_const(model) + qkv->offset;
    assert_true(values[63] == 63.0f && values[64] == 0.0f && values[191] == 63.0f);
    const char *path = scratch_path(*state, "vit.safetensors");
    assert_int_equal(sd_model_save_weights(model, path, SD_NAMES_HUGGING_FACE, 0), SD_OK);
    sd_tensor_file *written = NULL;
    assert_int_equal(sd_tensor_file_open(NULL, path, &written), SD_OK);
    assert_true(sd_tensor_file_count(written) == 22);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        assert_true(sd_tensor_file_find(written, names[i].theirs + strlen("vit.")) < 22);
    sd_tensor_file_close(written);
    sd_model_destroy(model);
}

/* timm's packed SwiGLU, a width that the usual ratio does not give, and half precision. */
static void other_forms(void **state) {
    made_file file;
    make_network(&file, "");
    find(&file, "fc1.weight")->shape[0] = 32;
    find(&file, "fc1.bias")->shape[0] = 32;
    find(&file, "fc2.weight")->shape[1] = 16;
    sd_model_config c = {.size = sizeof c};
    assert_int_equal(sd_weights_config(NULL, write_made(state, &file), NULL, &c), SD_OK);
    assert_true(c.feed_forward == SD_FEED_FORWARD_SWIGLU && (int)(((int)(c.mlp_ratio * 8) * 2 / 3 + 7) / 8 * 8) == 16);
    make_network(&file, "backbone.");
    put(&file, "backbone.blocks.0.attn.q_norm.weight", 1, 4, 0, 0, 0);
    put(&file, "dino_head.mlp.weight", 2, 6, 8, 0, 0);
    put(&file, "dino_head.mlp.bias", 1, 6, 0, 0, 0);
    put(&file, "dino_head.last_layer.parametrizations.weight.original0", 2, 9, 1, 0, 0);
    put(&file, "dino_head.last_layer.parametrizations.weight.original1", 2, 9, 6, 0, 0);
    put(&file, "ibot_head.mlp.weight", 2, 6, 8, 0, 0);
    put(&file, "ibot_head.mlp.bias", 1, 6, 0, 0, 0);
    put(&file, "ibot_head.last_layer.weight_g", 2, 7, 1, 0, 0);
    put(&file, "ibot_head.last_layer.weight_v", 2, 7, 6, 0, 0);
    assert_int_equal(sd_weights_config(NULL, write_made(state, &file), NULL, &c), SD_OK);
    assert_true(c.qk_norm == 1 && c.heads == 2 && c.head_layers == 1 && c.head_dim == 6 && c.prototypes == 9);
    assert_true(c.patch_head == 1 && c.patch_prototypes == 7 && c.prototype_scale == 1);
    find(&file, "ibot_head.mlp.weight")->shape[0] = 5;
    assert_int_equal(sd_weights_config(NULL, write_made(state, &file), NULL, &c), SD_ERR_MISMATCH);
}

/* ---- our own files ------------------------------------------------------------------------------------ */

static void own_checkpoints(void **state) {
    const char *path = scratch_path(*state, "run.safetensors");
    sd_pretrainer_config config;
    sd_pretrainer_config_init(&config);
    config.model.image_size = 9; /* not a multiple of the patch size */
    config.model.patch_size = 4;
    config.model.channels = 2;
    config.model.dim = 12;
    config.model.depth = 2;
    config.model.heads = 3;
    config.model.mlp_ratio = 1.7;
    config.model.interpolate_offset = 0.25;
    config.model.drop_path = 0.3;
    config.model.head_hidden = 8;
    config.model.head_dim = 4;
    config.augment.global_size = 8;
    config.augment.local_size = 4;
    config.batch_size = 4;
    config.warmup_steps = 2;
    config.total_steps = 20;
    sd_pretrainer *trainer = NULL;
    if (sd_pretrainer_create(NULL, &config, &trainer) != SD_OK)
        fail_msg("%s", sd_last_error());
    sd_model_initialize(sd_pretrainer_mutable_student(trainer), 77); /* so that the two differ */
    assert_int_equal(sd_pretrainer_save(trainer, path), SD_OK);
    for (int32_t student = 0; student < 2; student++) {
        sd_weights_options options;
        sd_weights_options_init(&options);
        options.student = student;
        sd_weights_report report;
        sd_model *model = load(path, &options, &report), *expected = NULL;
        assert_int_equal(sd_model_load(NULL, path, !student, &expected), SD_OK);
        assert_same_parameters(model, expected);
        sd_model_config found = config_of(model), wanted = config_of(expected);
        assert_memory_equal(&found, &wanted, sizeof found);
        assert_true(report.student == student && report.names == SD_NAMES_NATIVE);
        sd_model_destroy(model);
        sd_model_destroy(expected);
    }
    size_t size;
    char *bytes = scratch_read(path, &size);
    bytes[size - 1000] ^= 1; /* somewhere in the tensors */
    scratch_write(path, bytes, size);
    free(bytes);
    sd_model *model = NULL;
    assert_int_equal(sd_model_load_weights(NULL, path, NULL, &model, NULL), SD_ERR_CHECKSUM);
    assert_null(model);
    sd_pretrainer_destroy(trainer);
}

/* Written under any names and in any form, a model comes back as it was. */
static void written_weights(void **state) {
    sd_model_config config;
    sd_model_config_init(&config);
    config.image_size = 12;
    config.patch_size = 4;
    config.dim = 16;
    config.depth = 2;
    config.heads = 4;
    config.mlp_ratio = 2.0;
    config.head_hidden = 10;
    config.head_dim = 6;
    sd_model *model = NULL;
    assert_int_equal(sd_model_create(NULL, &config, &model), SD_OK);
    sd_model_initialize(model, 5);
    static const char *const files[] = {"w.safetensors", "w.npz"};
    for (int names = SD_NAMES_NATIVE; names <= SD_NAMES_HUGGING_FACE; names++)
        for (int form = 0; form < 2; form++)
            for (int32_t heads = 0; heads < (names <= SD_NAMES_OFFICIAL ? 2 : 1); heads++) {
                const char *path = scratch_path(*state, files[form]);
                assert_int_equal(sd_model_save_weights(model, path, (sd_names)names, heads), SD_OK);
                sd_weights_options options;
                sd_weights_options_init(&options);
                options.heads = form == 1 ? 4 : 0; /* .npz has no metadata */
                sd_weights_report report;
                sd_model *back = load(path, &options, &report);
                assert_true(config_of(back).heads == 4 && config_of(back).head_layers == (heads ? 3 : 0));
                assert_true(report.missing + report.unexpected + report.mismatched == 0);
                for (size_t i = 0; i < sd_model_tensor_count(back); i++) {
                    const sd_tensor_info *info = sd_model_tensor(back, i),
                                         *from = sd_model_find_tensor(model, info->name);
                    assert_memory_equal(sd_model_parameters_const(back) + info->offset,
                                        sd_model_parameters_const(model) + from->offset, info->count * sizeof(float));
                }
                sd_model_destroy(back);
            }
    const char *path = scratch_path(*state, "x.safetensors");
    assert_int_equal(sd_model_save_weights(model, path, SD_NAMES_TIMM, 1), SD_ERR_ARGUMENT);
    assert_int_equal(sd_model_save_weights(model, path, SD_NAMES_HUGGING_FACE, 1), SD_ERR_ARGUMENT);
    assert_int_equal(sd_model_save_weights(model, path, (sd_names)4, 0), SD_ERR_ARGUMENT);
    assert_int_equal(sd_model_save_weights(model, path, SD_NAMES_NATIVE, 2), SD_ERR_ARGUMENT);
    assert_int_equal(sd_model_save_weights(model, scratch_path(*state, "x.pth"), SD_NAMES_NATIVE, 0), SD_ERR_ARGUMENT);
    assert_int_equal(sd_model_save_weights(NULL, path, SD_NAMES_NATIVE, 0), SD_ERR_ARGUMENT);
    assert_int_equal(scratch_count(*state), 2);
    sd_model_destroy(model);
}

/* ---- failing allocations -------------------------------------------------------------------------------- */

static void failed_allocations(void **state) {
    sd_context_config config;
    failing_memory memory;
    sd_context_config_init(&config);
    config.threads = 1;
    failing_memory_install(&memory, &config);
    sd_context *context;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    long base = memory.allocations, live = memory.live;
    sd_weights_options lenient;
    sd_weights_options_init(&lenient);
    lenient.strict = 0;
    static const char *const files[] = {"tiny_simdino_v1_full.pth", "tiny_legacy.pth", "tiny_dinov2_hf.safetensors"};
    const char *path = scratch_path(*state, "m.safetensors"), *archive = scratch_path(*state, "m.npz");
    for (size_t i = 0; i < 3; i++) {
        sd_status status = SD_ERR_MEMORY;
        for (long n = 0; status != SD_OK; n++) {
            memory.allocations = base;
            memory.fail_at = base + n;
            sd_model *model = NULL;
            status = sd_model_load_weights(context, checkpoint(files[i]), &lenient, &model, NULL);
            if (status == SD_OK)
                status = sd_model_save_weights(model, path, SD_NAMES_OFFICIAL, 0);
            if (status == SD_OK)
                status = sd_model_save_weights(model, archive, SD_NAMES_HUGGING_FACE, 0);
            sd_model_destroy(model);
            assert_true(status == SD_OK ? n > 10 : status == SD_ERR_MEMORY);
            assert_int_equal(memory.live, live);
        }
    }
    memory.fail_at = -1;
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, scratch_begin, scratch_end)
    const struct CMUnitTest tests[] = {
        TEST(simdino_v1),
        TEST(dino_v1),
        TEST(names_of_dinov2),
        TEST(configurations),
        TEST(reports),
        TEST(impossible_networks),
        TEST(vit_model_names),
        TEST(other_forms),
        TEST(own_checkpoints),
        TEST(written_weights),
        TEST(failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
