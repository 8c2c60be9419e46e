/* Passes whose blocks multiply by Strassen's formulas (SD_PRODUCTS_STRASSEN): near those with plain sums, the same to the last
 * bit for any number of threads and way to keep activations, and out of play where they are not wanted. Those that need them are
 * skipped where the library has no such products. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "math/math.h"
#include "model/model.h"
#include "ways.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* 65 and 17 tokens, v2: 69 and 21: chunks of odd and even numbers of rows, halved ones at the end. */
#define GLOBALS ((size_t)20)
#define LOCALS ((size_t)49)
#define GLOBAL_SIDE 32
#define LOCAL_SIDE 16
#define IMAGES (GLOBALS + LOCALS)
#define DIM 128

enum { FORM_V1, FORM_V2, FORMS };

typedef struct plan {
    int32_t form, products, mode, recomputed, threads, precision;
} plan;

typedef struct results {
    float class_tokens[IMAGES * DIM];
    float *gradient; /* NULL: none */
    sd_tensor_info *tensors;
    size_t tensor_count;
    bool strassen; /* was at work */
} results;

static float pixels[3 * (GLOBALS * GLOBAL_SIDE * GLOBAL_SIDE + LOCALS * LOCAL_SIDE * LOCAL_SIDE)];
static float weights[IMAGES * DIM];

static int fill_inputs(void **state) {
    (void)state;
    sd_random random;
    sd_random_init(&random, 5, 0, 0);
    for (size_t i = 0; i < sizeof pixels / sizeof *pixels; i++)
        pixels[i] = (float)sd_random_normal(&random);
    for (size_t i = 0; i < IMAGES * DIM; i++)
        weights[i] = (float)sd_random_normal(&random);
    return 0;
}

static sd_model *make_model(sd_context *context, int32_t form) {
    sd_model_config c;
    sd_model_config_init(&c);
    c.image_size = GLOBAL_SIDE;
    c.patch_size = 4;
    c.dim = DIM;
    c.depth = 3;
    c.heads = 2;
    c.head_layers = 0;
    c.drop_path = 0.0;
    if (form == FORM_V2) {
        c.registers = 4;
        c.mask_token = 1;
        c.layer_scale = 0.5;
        c.drop_path = 0.3;
        c.drop_path_subset = 1;
    }
    sd_model *model;
    assert_int_equal(sd_model_create(context, &c, &model), SD_OK);
    sd_model_initialize(model, 3);
    sd_random random;
    sd_random_init(&random, 4, 0, 0);
    for (size_t i = 0; i < model->parameter_count; i++)
        model->parameters[i] += 0.03f * (float)sd_random_normal(&random);
    return model;
}

/* One pass over `globals` images of the first group and all of the second, and its gradient unless it is for inference. */
static results run(plan p, size_t globals) {
    results r = {.gradient = NULL};
    sd_context_config hooks;
    sd_context *context;
    sd_context_config_init(&hooks);
    hooks.threads = p.threads;
    hooks.blas_threads = SD_BLAS_THREADS_ONE;
    assert_int_equal(sd_context_create(&hooks, &context), SD_OK);
    sd_model *model = make_model(context, p.form);
    sd_image_group groups[2] = {{pixels, globals, GLOBAL_SIDE, GLOBAL_SIDE},
                                {pixels + 3 * GLOBALS * GLOBAL_SIDE * GLOBAL_SIDE, LOCALS, LOCAL_SIDE, LOCAL_SIDE}};
    const size_t group_count = globals == GLOBALS ? 2 : 1;
    sd_activations_config config;
    sd_activations_config_init(&config);
    config.mode = p.mode;
    config.recomputed_blocks = p.recomputed;
    config.products = p.products;
    config.precision = p.precision;
    sd_activations *activations;
    assert_int_equal(sd_activations_create_with(model, groups, group_count, &config, &activations), SD_OK);
    sd_forward_options options;
    sd_forward_outputs outputs;
    sd_forward_options_init(&options);
    sd_forward_outputs_init(&outputs);
    options.train = p.mode != SD_ACTIVATIONS_INFERENCE;
    options.seed = 9;
    outputs.class_tokens = r.class_tokens;
    assert_int_equal(sd_model_forward(model, activations, groups, group_count, &options, &outputs), SD_OK);
    r.strassen = activations->strassen;
    if (p.mode != SD_ACTIVATIONS_INFERENCE) {
        r.gradient = calloc(model->parameter_count, sizeof *r.gradient);
        r.tensor_count = model->tensor_count;
        r.tensors = malloc(r.tensor_count * sizeof *r.tensors);
        assert_true(r.gradient != NULL && r.tensors != NULL);
        memcpy(r.tensors, model->tensors, r.tensor_count * sizeof *r.tensors);
        for (size_t i = 0; i < r.tensor_count; i++)
            r.tensors[i].name = ""; /* the model's */
        sd_backward_inputs inputs;
        sd_backward_inputs_init(&inputs);
        inputs.class_tokens = weights;
        assert_int_equal(sd_model_backward(model, activations, &inputs, r.gradient, 0, NULL), SD_OK);
    }
    sd_activations_destroy(activations);
    sd_model_destroy(model);
    sd_context_destroy(context);
    return r;
}

static void drop(results *r) {
    free(r->gradient);
    free(r->tensors);
}

static void need_strassen(void) {
    fp32_take("fma");
    sd_gemm gemm = sd_gemm_of(SD_PRECISION_FP32, NULL);
    sd_gemm_take_strassen(&gemm);
    if (gemm.strassen == NULL)
        skip();
}

/* Largest difference, as a share of the largest number. */
static double difference(const float *a, const float *b, size_t count) {
    double largest = 0.0, most = 0.0;
    for (size_t i = 0; i < count; i++) {
        largest = fmax(largest, fabs((double)a[i] - (double)b[i]));
        most = fmax(most, fabs((double)b[i]));
    }
    return largest == 0.0 ? 0.0 : largest / most;
}

static bool same(const results *a, const results *b) {
    size_t count = 0;
    for (size_t i = 0; i < a->tensor_count; i++)
        count += a->tensors[i].count;
    return memcmp(a->class_tokens, b->class_tokens, sizeof a->class_tokens) == 0 &&
           (a->gradient == NULL || memcmp(a->gradient, b->gradient, count * sizeof(float)) == 0);
}

/* Tensor by tensor. The gradient of the keys' bias is rounding errors alone, whatever computes it: the whole tensor's largest
 * number is the measure. */
static void test_near_plain(void **state) {
    (void)state;
    need_strassen();
    for (int32_t form = 0; form < FORMS; form++) {
        results plain = run((plan){.form = form, .mode = SD_ACTIVATIONS_SPEED, .threads = 2}, GLOBALS);
        results fast = run(
            (plan){.form = form, .mode = SD_ACTIVATIONS_SPEED, .threads = 2, .products = SD_PRODUCTS_STRASSEN}, GLOBALS);
        assert_true(fast.strassen && !plain.strassen);
        assert_false(same(&fast, &plain));
        double tokens = difference(fast.class_tokens, plain.class_tokens, IMAGES * DIM);
        if (!(tokens <= 2e-6))
            fail_msg("form %d: class tokens differ by %g of the largest", form, tokens);
        for (size_t i = 0; i < plain.tensor_count; i++) {
            const sd_tensor_info *tensor = &plain.tensors[i];
            double d = difference(fast.gradient + tensor->offset, plain.gradient + tensor->offset, tensor->count);
            if (!(d <= 3e-6))
                fail_msg("form %d: the gradient of tensor %zu differs by %g of the largest", form, i, d);
        }
        drop(&plain);
        drop(&fast);
    }
}

/* For any number of threads, activations stored or computed again, and a forward pass for inference. */
static void test_same_bits(void **state) {
    (void)state;
    need_strassen();
    for (int32_t form = 0; form < FORMS; form++) {
        plan p = {.form = form, .mode = SD_ACTIVATIONS_SPEED, .threads = 1, .products = SD_PRODUCTS_STRASSEN};
        results first = run(p, GLOBALS);
        assert_true(first.strassen);
        for (int i = 0; i < 4; i++) {
            plan q = p;
            q.threads = i == 0 ? 2 : 3;
            q.mode = i == 2 ? SD_ACTIVATIONS_MEMORY : SD_ACTIVATIONS_SPEED;
            q.recomputed = i == 3 ? 1 : 0;
            results other = run(q, GLOBALS);
            assert_true(other.strassen && same(&first, &other));
            drop(&other);
        }
        if (form == FORM_V1) { /* the other one drops paths in training */
            plan q = p;
            q.mode = SD_ACTIVATIONS_INFERENCE;
            q.threads = 2;
            results inference = run(q, GLOBALS);
            assert_true(inference.strassen);
            assert_memory_equal(inference.class_tokens, first.class_tokens, sizeof first.class_tokens);
        }
        drop(&first);
    }
}

/* A few images are divided by rows among the threads, and do not have the formulas. */
static void test_few_images(void **state) {
    (void)state;
    plan p = {.mode = SD_ACTIVATIONS_INFERENCE, .threads = 2, .products = SD_PRODUCTS_STRASSEN};
    results few = run(p, 3);
    assert_false(few.strassen);
    p.products = SD_PRODUCTS_PLAIN;
    results plain = run(p, 3);
    assert_memory_equal(few.class_tokens, plain.class_tokens, 3 * DIM * sizeof(float));
}

static void test_other_precision(void **state) {
    (void)state;
    if (sd_precision_check(SD_PRECISION_BF16) != SD_OK)
        skip();
    plan p = {.mode = SD_ACTIVATIONS_SPEED, .threads = 2, .precision = SD_PRECISION_BF16};
    results plain = run(p, GLOBALS);
    p.products = SD_PRODUCTS_STRASSEN;
    results bf16 = run(p, GLOBALS);
    assert_true(!bf16.strassen && same(&bf16, &plain));
    drop(&plain);
    drop(&bf16);
}

static void test_refusal(void **state) {
    (void)state;
    sd_model *model = make_model(NULL, FORM_V1);
    sd_image_group group = {pixels, 2, GLOBAL_SIDE, GLOBAL_SIDE};
    sd_activations_config config;
    sd_activations_config_init(&config);
    assert_int_equal(config.products, SD_PRODUCTS_PLAIN);
    config.products = 2;
    sd_activations *activations = NULL;
    assert_int_equal(sd_activations_create_with(model, &group, 1, &config, &activations), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "products is 2"));
    assert_null(activations);
    sd_model_destroy(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_near_plain),      cmocka_unit_test(test_same_bits), cmocka_unit_test(test_few_images),
        cmocka_unit_test(test_other_precision), cmocka_unit_test(test_refusal),
    };
    return cmocka_run_group_tests_name("model_strassen", tests, fill_inputs, NULL);
}
