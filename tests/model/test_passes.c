/* Properties of forward and backward passes that no golden file covers: stochastic depth, packing, threads, modes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "ways.h"
#include "model/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GLOBALS 5
#define LOCALS 7
#define GLOBAL_SIDE 16
#define LOCAL_SIDE 8
#define CHANNELS 2
#define IMAGES (GLOBALS + LOCALS)
#define FEATURES 6

typedef struct pass {
    sd_context *context;
    sd_model *model;
    sd_activations *activations;
    sd_image_group groups[2];
    float features[IMAGES * FEATURES], class_tokens[IMAGES * 12];
    float *gradient;
} pass;

static float pixels[GLOBALS * CHANNELS * GLOBAL_SIDE * GLOBAL_SIDE + LOCALS * CHANNELS * LOCAL_SIDE * LOCAL_SIDE];
static float weights[IMAGES * FEATURES];

static int fill_inputs(void **state) {
    (void)state;
    sd_random random;
    sd_random_init(&random, 5, 0, 0);
    for (size_t i = 0; i < sizeof pixels / sizeof *pixels; i++)
        pixels[i] = (float)sd_random_normal(&random);
    for (size_t i = 0; i < IMAGES * FEATURES; i++)
        weights[i] = (float)sd_random_normal(&random);
    return 0;
}

/* Forms of the network that the properties hold for. */
enum { FORM_V1, FORM_V2, FORM_SWIGLU, FORM_QK_NORM, FORMS };
static int form = FORM_V1;
static int32_t precision = SD_PRECISION_FP32;
static int32_t recomputed = 0; /* blocks */
static sd_cancel_function cancel = NULL; /* of contexts */

static sd_model_config small_config(double drop_path) {
    sd_model_config c;
    sd_model_config_init(&c);
    c.image_size = GLOBAL_SIDE;
    c.patch_size = 4;
    c.channels = CHANNELS;
    c.dim = 12;
    c.depth = 4;
    c.heads = 3;
    c.mlp_ratio = 2.0;
    c.drop_path = drop_path;
    c.head_layers = 2;
    c.head_hidden = 10;
    c.head_dim = FEATURES;
    if (form != FORM_V1) {
        c.registers = 2;
        c.mask_token = 1;
        c.layer_scale = 0.1;
        c.interpolate_antialias = 1;
        c.interpolate_offset = 0.0;
        c.drop_path_uniform = 1;
        c.drop_path_subset = 1;
    }
    c.feed_forward = form == FORM_SWIGLU ? SD_FEED_FORWARD_SWIGLU : SD_FEED_FORWARD_MLP;
    c.qk_norm = form == FORM_QK_NORM;
    return c;
}

static pass begin(double drop_path, int threads, sd_activation_mode mode, int all_tokens) {
    pass p = {0};
    sd_context_config hooks;
    sd_context_config_init(&hooks);
    hooks.threads = threads;
    hooks.blas_threads = SD_BLAS_THREADS_ONE;
    hooks.cancel = cancel;
    assert_int_equal(sd_context_create(&hooks, &p.context), SD_OK);
    sd_model_config config = small_config(drop_path);
    assert_int_equal(sd_model_create(p.context, &config, &p.model), SD_OK);
    sd_model_initialize(p.model, 3);
    /* larger weights than at the start, so that all parts matter */
    for (size_t i = 0; i < p.model->parameter_count; i++)
        p.model->parameters[i] *= form == FORM_V1 ? 8.0f : 3.0f;
    /* and none near 0: the norm of a token of deviation 1e-6 has slopes that float cannot follow */
    sd_random random;
    sd_random_init(&random, 4, 0, 0);
    for (size_t i = 0; i < p.model->parameter_count && form != FORM_V1; i++)
        p.model->parameters[i] += 0.15f * (float)sd_random_normal(&random);
    p.groups[0] = (sd_image_group){pixels, GLOBALS, GLOBAL_SIDE, GLOBAL_SIDE};
    p.groups[1] =
        (sd_image_group){pixels + GLOBALS * CHANNELS * GLOBAL_SIDE * GLOBAL_SIDE, LOCALS, LOCAL_SIDE, LOCAL_SIDE};
    sd_activations_config plan;
    sd_activations_config_init(&plan);
    plan.mode = (int32_t)mode;
    plan.all_tokens = all_tokens;
    plan.recomputed_blocks = recomputed;
    plan.precision = precision;
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

/* Memory of activations that compute everything again. */
static size_t recomputed_all(int all_tokens) {
    pass p = begin(0.4, 1, SD_ACTIVATIONS_MEMORY, all_tokens);
    size_t bytes = sd_activations_memory(p.activations);
    end(&p);
    return bytes;
}

static void forward(pass *p, int train, uint64_t step) {
    sd_forward_options options;
    sd_forward_outputs outputs;
    sd_forward_options_init(&options);
    sd_forward_outputs_init(&outputs);
    options.train = train;
    options.seed = 9;
    options.step = step;
    outputs.features = p->features;
    outputs.class_tokens = p->class_tokens;
    assert_int_equal(sd_model_forward(p->model, p->activations, p->groups, 2, &options, &outputs), SD_OK);
}

static void backward(pass *p) {
    sd_backward_inputs inputs;
    sd_backward_inputs_init(&inputs);
    inputs.features = weights;
    assert_int_equal(sd_model_backward(p->model, p->activations, &inputs, p->gradient, 0, NULL), SD_OK);
}

static double value_of(const pass *p) {
    double sum = 0.0;
    for (size_t i = 0; i < IMAGES * FEATURES; i++)
        sum += (double)p->features[i] * (double)weights[i];
    return sum;
}

static double largest_difference(const float *a, const float *b, size_t count) {
    double worst = 0.0;
    for (size_t i = 0; i < count; i++)
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
    return worst;
}

static double largest(const float *a, size_t count) {
    double worst = 0.0;
    for (size_t i = 0; i < count; i++)
        worst = fmax(worst, fabs((double)a[i]));
    return worst;
}

/* The last block computed for class tokens only gives what the full one gives. */
static void test_class_only(void **state) {
    (void)state;
    for (int drops = 0; drops < 2 * FORMS; drops++) {
        form = drops / 2;
        pass full = begin(drops % 2 ? 0.5 : 0.0, 1, SD_ACTIVATIONS_SPEED, 1);
        pass lean = begin(drops % 2 ? 0.5 : 0.0, 1, SD_ACTIVATIONS_SPEED, 0);
        forward(&full, 1, 4);
        forward(&lean, 1, 4);
        assert_true(largest_difference(full.features, lean.features, IMAGES * FEATURES) < 2e-6);
        assert_true(largest_difference(full.class_tokens, lean.class_tokens, IMAGES * 12) < 1e-5);
        backward(&full);
        backward(&lean);
        size_t count = full.model->parameter_count;
        assert_true(largest(full.gradient, count) > 0.1);
        assert_true(largest_difference(full.gradient, lean.gradient, count) < 1e-5 * largest(full.gradient, count));
        end(&lean);
        end(&full);
    }
}

/* Same bits for any number of threads, and whether activations are stored or computed again. */
static void check_same_bits(void) {
    for (form = 0; form < FORMS; form++) {
        pass reference = begin(0.4, 1, SD_ACTIVATIONS_SPEED, 0);
        forward(&reference, 1, 11);
        backward(&reference);
        for (int variant = 0; variant < 4; variant++) {
            pass other = begin(0.4, variant % 2 ? 4 : 1, variant < 2 ? SD_ACTIVATIONS_SPEED : SD_ACTIVATIONS_MEMORY, 0);
            forward(&other, 1, 11);
            backward(&other);
            assert_memory_equal(reference.features, other.features, sizeof other.features);
            assert_memory_equal(reference.gradient, other.gradient, reference.model->parameter_count * sizeof(float));
            end(&other);
        }
        end(&reference);
    }
}

static void in_both_precisions(void (*check)(void)) {
    check();
    bf16_take_any();
    precision = SD_PRECISION_BF16;
    check();
    precision = SD_PRECISION_FP32;
    bf16_take(NULL);
}

static void test_same_bits(void **state) {
    (void)state;
    in_both_precisions(check_same_bits);
}

/* Any number of blocks may be computed again: the same bits for less memory. */
static void check_recomputed_blocks(void) {
    for (form = 0; form < FORMS; form++)
        for (int all_tokens = 0; all_tokens < 2; all_tokens++) {
            recomputed = 0;
            pass reference = begin(0.4, 1, SD_ACTIVATIONS_SPEED, all_tokens);
            forward(&reference, 1, 11);
            backward(&reference);
            size_t depth = reference.model->geometry.depth, whole = depth - !reference.activations->all_tokens;
            size_t block = (sd_activations_memory(reference.activations) - recomputed_all(all_tokens)) / whole;
            pass stored = begin(0.4, 3, SD_ACTIVATIONS_SPEED, all_tokens);
            size_t before = sd_activations_memory(stored.activations);
            end(&stored);
            for (recomputed = 1; recomputed <= (int32_t)depth; recomputed++) {
                pass other = begin(0.4, 3, SD_ACTIVATIONS_SPEED, all_tokens);
                size_t memory = sd_activations_memory(other.activations);
                if (recomputed < (int32_t)whole) /* from the last one on there is nothing to share */
                    assert_true(memory < before && before - memory > block / 2);
                before = memory;
                forward(&other, 1, 11);
                backward(&other);
                assert_memory_equal(reference.features, other.features, sizeof other.features);
                assert_memory_equal(reference.gradient, other.gradient,
                                    reference.model->parameter_count * sizeof(float));
                sd_backward_inputs inputs;
                sd_backward_inputs_init(&inputs);
                inputs.features = weights;
                assert_int_equal(sd_model_backward(other.model, other.activations, &inputs, other.gradient, 0, NULL),
                                 SD_ERR_STATE);
                forward(&other, 1, 11);
                backward(&other);
                assert_memory_equal(reference.gradient, other.gradient,
                                    reference.model->parameter_count * sizeof(float));
                end(&other);
            }
            recomputed = 0;
            end(&reference);
        }
}

static void test_recomputed_blocks(void **state) {
    (void)state;
    in_both_precisions(check_recomputed_blocks);
}

/* Where what is kept is rounded, gradients are those of fp32 up to the roundings of bf16, which these networks of large weights
 * amplify to 4% to 17% of the gradient (as much, within 2% of that, as when floats are kept): numbers of wrong places would be off
 * by all of it. With paths dropped, too, when rows of branches begin elsewhere than those of x. */
static void test_rounded_activations(void **state) {
    (void)state;
    bf16_take_any();
    for (form = 0; form < FORM_QK_NORM; form++) /* whose norms read what is kept: floats */
        for (int drops = 0; drops < 2; drops++) {
            precision = SD_PRECISION_FP32;
            pass exact = begin(drops ? 0.4 : 0.0, 2, SD_ACTIVATIONS_SPEED, 1);
            precision = SD_PRECISION_BF16;
            pass near = begin(drops ? 0.4 : 0.0, 2, SD_ACTIVATIONS_SPEED, 1);
            assert_true(near.activations->keeps_bf16 && !exact.activations->keeps_bf16);
            forward(&exact, 1, 11);
            backward(&exact);
            forward(&near, 1, 11);
            backward(&near);
            double difference = 0.0, size = 0.0;
            for (size_t i = 0; i < exact.model->parameter_count; i++) {
                difference += pow((double)near.gradient[i] - (double)exact.gradient[i], 2.0);
                size += pow((double)exact.gradient[i], 2.0);
            }
            if (!(difference > 0.0 && sqrt(difference / size) < 0.3))
                fail_msg("form %d, drops %d: gradients differ by %.4f", form, drops, sqrt(difference / size));
            end(&near);
            end(&exact);
        }
    precision = SD_PRECISION_FP32;
    form = FORM_V1;
    bf16_take(NULL);
}

/* Inference has the same features as training with nothing dropped: up to rounding, because the few images here are cut
 * into other tiles in inference (wide.c), and with the same bits for any number of threads. */
static void test_inference(void **state) {
    (void)state;
    form = FORM_SWIGLU;
    pass training = begin(0.4, 2, SD_ACTIVATIONS_SPEED, 0), inference = begin(0.4, 2, SD_ACTIVATIONS_INFERENCE, 0);
    forward(&training, 0, 0);
    forward(&inference, 0, 0);
    size_t values = sizeof training.features / sizeof(float);
    const float *trained = (const float *)training.features, *inferred = (const float *)inference.features;
    assert_true(largest(trained, values) > 0.1);
    assert_true(largest_difference(trained, inferred, values) < 2e-6 * largest(trained, values));
    for (int32_t threads = 1; threads <= 4; threads += 3) {
        pass other = begin(0.4, threads, SD_ACTIVATIONS_INFERENCE, 0);
        forward(&other, 0, 0);
        assert_memory_equal(other.features, inference.features, sizeof other.features);
        end(&other);
    }
    sd_backward_inputs inputs;
    sd_backward_inputs_init(&inputs);
    inputs.features = weights;
    assert_int_equal(sd_model_backward(inference.model, inference.activations, &inputs, inference.gradient, 0, NULL),
                     SD_ERR_STATE);
    end(&inference);
    end(&training);
}

/* The slope of the value along the gradient, by central differences; with stochastic depth the same paths are dropped
 * each time. */
static void check_slope(double drop_path, sd_activation_mode mode, int all_tokens) {
    pass p = begin(drop_path, 2, mode, all_tokens);
    forward(&p, 1, 2);
    backward(&p);
    size_t count = p.model->parameter_count;
    double square = 0.0;
    for (size_t i = 0; i < count; i++)
        square += (double)p.gradient[i] * (double)p.gradient[i];
    double step = 1e-4 / sqrt(square);
    float *start = malloc(count * sizeof *start);
    memcpy(start, p.model->parameters, count * sizeof *start);
    double values[2];
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i < count; i++)
            p.model->parameters[i] = (float)((double)start[i] + (side ? 1.0 : -1.0) * step * (double)p.gradient[i]);
        forward(&p, 1, 2);
        values[side] = value_of(&p);
    }
    double slope = (values[1] - values[0]) / (2.0 * step);
    assert_true(fabs(slope / square - 1.0) < 1e-3);
    free(start);
    end(&p);
}

static void test_slopes(void **state) {
    (void)state;
    for (form = 0; form < FORMS; form++) {
        check_slope(0.0, SD_ACTIVATIONS_SPEED, 0);
        check_slope(0.5, SD_ACTIVATIONS_SPEED, 0);
        check_slope(0.5, SD_ACTIVATIONS_SPEED, 1);
        check_slope(0.5, SD_ACTIVATIONS_MEMORY, 0);
    }
}

/* A fixed share: each group keeps the same number of images in every block, other images from step to step, each
 * equally often. */
static void test_drop_subset(void **state) {
    (void)state;
    form = FORM_V2;
    pass p = begin(0.5, 1, SD_ACTIVATIONS_SPEED, 0);
    size_t kept[IMAGES] = {0};
    enum { STEPS = 400 };
    for (uint64_t step = 0; step < STEPS; step++) {
        forward(&p, 1, step);
        for (size_t branch = 0; branch < 8; branch++) {
            const sd_branch *b = &p.activations->branches[branch];
            assert_int_equal(b->image_before[GLOBALS], GLOBALS / 2);
            assert_int_equal(b->image_before[IMAGES] - b->image_before[GLOBALS], LOCALS / 2);
            assert_true(b->scale[0] == (float)GLOBALS / (GLOBALS / 2));
            assert_true(b->scale[1] == (float)LOCALS / (LOCALS / 2));
        }
        for (size_t s = 0; s < IMAGES; s++)
            kept[s] += sd_branch_keeps(&p.activations->branches[3], s);
    }
    for (size_t s = 0; s < IMAGES; s++) {
        double rate = s < GLOBALS ? (double)(GLOBALS / 2) / GLOBALS : (double)(LOCALS / 2) / LOCALS;
        assert_true(fabs((double)kept[s] / STEPS - rate) < 5.0 * sqrt(rate * (1.0 - rate) / STEPS));
    }
    end(&p);
}

/* Every path of the last block is dropped with the configured probability, and decisions differ between steps and
 * images. */
static void test_drop_rates(void **state) {
    (void)state;
    form = FORM_V1;
    pass p = begin(0.5, 1, SD_ACTIVATIONS_SPEED, 0);
    size_t kept[4] = {0}, same = 0;
    bool former[IMAGES] = {false};
    enum { STEPS = 400 };
    for (uint64_t step = 0; step < STEPS; step++) {
        forward(&p, 1, step);
        for (size_t block = 0; block < 4; block++)
            for (size_t s = 0; s < IMAGES; s++)
                kept[block] += sd_branch_keeps(&p.activations->branches[2 * block], s);
        for (size_t s = 0; s < IMAGES; s++) {
            bool now = sd_branch_keeps(&p.activations->branches[7], s);
            same += now == former[s];
            former[s] = now;
        }
    }
    for (size_t block = 0; block < 4; block++) {
        double rate = 0.5 * (double)block / 3.0, share = 1.0 - (double)kept[block] / (IMAGES * STEPS);
        assert_true(fabs(share - rate) < 5.0 * sqrt(rate * (1.0 - rate) / (IMAGES * STEPS)) + 1e-12);
    }
    assert_true(same > IMAGES * STEPS * 4 / 10 && same < IMAGES * STEPS * 6 / 10);
    end(&p);
}

/* Images computed alone and in a packed batch have equal features; a smaller batch than planned is fine. */
static void test_packing(void **state) {
    (void)state;
    form = FORM_V2;
    pass p = begin(0.0, 2, SD_ACTIVATIONS_SPEED, 0);
    forward(&p, 0, 0);
    for (size_t image = 0; image < IMAGES; image++) {
        sd_image_group groups[2] = {p.groups[0], p.groups[1]};
        size_t group = image < GLOBALS ? 0 : 1, place = group ? image - GLOBALS : image;
        groups[group].pixels += place * CHANNELS * groups[group].height * groups[group].width;
        groups[group].count = 1;
        groups[1 - group].count = 0;
        float alone[FEATURES];
        sd_forward_outputs outputs;
        sd_forward_outputs_init(&outputs);
        outputs.features = alone;
        assert_int_equal(sd_model_forward(p.model, p.activations, groups, 2, NULL, &outputs), SD_OK);
        assert_true(largest_difference(alone, p.features + image * FEATURES, FEATURES) < 1e-6);
    }
    end(&p);
}

static void test_accumulate(void **state) {
    (void)state;
    form = FORM_V2;
    pass p = begin(0.0, 1, SD_ACTIVATIONS_SPEED, 0);
    forward(&p, 0, 0);
    backward(&p);
    size_t count = p.model->parameter_count;
    float *once = malloc(count * sizeof *once);
    memcpy(once, p.gradient, count * sizeof *once);
    sd_backward_inputs inputs;
    sd_backward_inputs_init(&inputs);
    inputs.features = weights;
    /* gradients lie where the forward pass had stored something */
    assert_int_equal(sd_model_backward(p.model, p.activations, &inputs, p.gradient, 1, NULL), SD_ERR_STATE);
    assert_memory_equal(once, p.gradient, count * sizeof *once);
    forward(&p, 0, 0);
    assert_int_equal(sd_model_backward(p.model, p.activations, &inputs, p.gradient, 1, NULL), SD_OK);
    for (size_t i = 0; i < count; i++)
        once[i] *= 2.0f;
    assert_true(largest_difference(once, p.gradient, count) < 1e-5 * largest(once, count));
    free(once);
    end(&p);
}

/* ---- a pass that is cancelled ---------------------------------------------------------------- */

static int stop_after; /* questions; negative: never */

static int asked(void *opaque) {
    (void)opaque;
    return stop_after >= 0 && stop_after-- == 0;
}

/* What a forward pass stored is not whole any more, wherever the backward pass was stopped; a new one starts afresh. */
static void test_cancelled_backward(void **state) {
    (void)state;
    form = FORM_V2;
    stop_after = -1;
    cancel = asked;
    pass p = begin(0.0, 1, SD_ACTIVATIONS_SPEED, 1);
    cancel = NULL;
    forward(&p, 0, 0);
    backward(&p);
    size_t count = p.model->parameter_count, stopped = 0;
    float *once = malloc(count * sizeof *once);
    memcpy(once, p.gradient, count * sizeof *once);
    sd_backward_inputs inputs;
    sd_backward_inputs_init(&inputs);
    inputs.features = weights;
    for (int questions = 0; questions < 12; questions += 3) {
        forward(&p, 0, 0);
        stop_after = questions;
        sd_status status = sd_model_backward(p.model, p.activations, &inputs, p.gradient, 0, NULL);
        stop_after = -1;
        assert_true(status == SD_OK || status == SD_ERR_CANCELLED);
        stopped += status == SD_ERR_CANCELLED;
        assert_int_equal(sd_model_backward(p.model, p.activations, &inputs, p.gradient, 0, NULL), SD_ERR_STATE);
        forward(&p, 0, 0);
        backward(&p);
        assert_memory_equal(once, p.gradient, count * sizeof *once);
    }
    assert_true(stopped > 1);
    free(once);
    end(&p);
}

/* ---- bad input ----------------------------------------------------------------------------- */

static void expect_refusal(void (*spoil)(sd_model_config *), const char *word) {
    sd_model_config config = small_config(0.0);
    spoil(&config);
    sd_model *model = NULL;
    assert_int_equal(sd_model_create(NULL, &config, &model), SD_ERR_ARGUMENT);
    assert_null(model);
    assert_non_null(strstr(sd_last_error(), word));
}

static void no_patch(sd_model_config *c) { c->patch_size = 0; }
static void big_patch(sd_model_config *c) { c->patch_size = 32; }
static void many_channels(sd_model_config *c) { c->channels = 17; }
static void odd_heads(sd_model_config *c) { c->heads = 5; }
static void no_depth(sd_model_config *c) { c->depth = 0; }
static void no_dim(sd_model_config *c) { c->dim = 0; }
static void sure_drop(sd_model_config *c) { c->drop_path = 1.0; }
static void nan_ratio(sd_model_config *c) { c->mlp_ratio = NAN; }
static void no_features(sd_model_config *c) { c->head_dim = 0; }
static void many_registers(sd_model_config *c) { c->registers = 65; }
static void negative_registers(sd_model_config *c) { c->registers = -1; }
static void strange_feed_forward(sd_model_config *c) { c->feed_forward = 2; }
static void nan_scale(sd_model_config *c) { c->layer_scale = NAN; }
static void negative_prototypes(sd_model_config *c) { c->prototypes = -1; }
static void prototypes_without_head(sd_model_config *c) {
    c->head_layers = 0;
    c->prototypes = 8;
}
static void patch_prototypes_without_head(sd_model_config *c) { c->patch_prototypes = 8; }
static void unsized(sd_model_config *c) { c->size = 0; }

static void test_refusals(void **state) {
    (void)state;
    form = FORM_V1;
    expect_refusal(no_patch, "patch_size");
    expect_refusal(big_patch, "image_size");
    expect_refusal(many_channels, "channels");
    expect_refusal(odd_heads, "heads");
    expect_refusal(no_depth, "depth");
    expect_refusal(no_dim, "dim");
    expect_refusal(sure_drop, "drop_path");
    expect_refusal(nan_ratio, "mlp_ratio");
    expect_refusal(no_features, "head_dim");
    expect_refusal(many_registers, "registers");
    expect_refusal(negative_registers, "registers");
    expect_refusal(strange_feed_forward, "feed_forward");
    expect_refusal(nan_scale, "layer_scale");
    expect_refusal(negative_prototypes, "prototypes");
    expect_refusal(prototypes_without_head, "prototypes");
    expect_refusal(patch_prototypes_without_head, "patch_prototypes");
    expect_refusal(unsized, "size");

    pass p = begin(0.0, 1, SD_ACTIVATIONS_SPEED, 0);
    sd_image_group tiny = {pixels, 1, 2, 2}, odd = {pixels, 1, 16, 18};
    sd_activations *none = NULL;
    assert_int_equal(sd_activations_create(p.model, &tiny, 1, SD_ACTIVATIONS_SPEED, 0, &none), SD_ERR_ARGUMENT);
    assert_int_equal(sd_activations_create(p.model, &odd, 1, SD_ACTIVATIONS_SPEED, 0, &none), SD_ERR_ARGUMENT);
    assert_int_equal(sd_activations_create(p.model, p.groups, 0, SD_ACTIVATIONS_SPEED, 0, &none), SD_ERR_ARGUMENT);
    assert_int_equal(sd_activations_create(p.model, p.groups, 2, (sd_activation_mode)7, 0, &none), SD_ERR_ARGUMENT);
    sd_image_group many = p.groups[0];
    many.count = (size_t)1 << 40;
    assert_int_equal(sd_activations_create(p.model, &many, 1, SD_ACTIVATIONS_SPEED, 0, &none), SD_ERR_ARGUMENT);
    assert_null(none);
    sd_activations_config plan;
    sd_activations_config_init(&plan);
    plan.recomputed_blocks = -1;
    assert_int_equal(sd_activations_create_with(p.model, p.groups, 2, &plan, &none), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "recomputed_blocks is -1"));
    plan.recomputed_blocks = 5;
    assert_int_equal(sd_activations_create_with(p.model, p.groups, 2, &plan, &none), SD_ERR_ARGUMENT);
    assert_null(none);
    sd_backward_inputs inputs;
    sd_backward_inputs_init(&inputs);
    assert_int_equal(sd_model_backward(p.model, p.activations, &inputs, p.gradient, 0, NULL), SD_ERR_STATE);
    sd_image_group more[2] = {p.groups[0], p.groups[1]};
    more[0].count++;
    assert_int_equal(sd_model_forward(p.model, p.activations, more, 2, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_model_forward(p.model, p.activations, p.groups, 1, NULL, NULL), SD_ERR_ARGUMENT);
    sd_forward_outputs outputs;
    sd_forward_outputs_init(&outputs);
    outputs.tokens = p.gradient;
    assert_int_equal(sd_model_forward(p.model, p.activations, p.groups, 2, NULL, &outputs), SD_ERR_ARGUMENT);
    assert_int_equal(sd_model_config_preset(&p.model->config, "enormous"), SD_ERR_ARGUMENT);
    end(&p);
}

/* One block, one head, one patch, sixteen channels; and a wide patch. */
static void test_odd_shapes(void **state) {
    (void)state;
    form = FORM_V1;
    const struct {
        int32_t image, patch, channels, dim, depth, heads;
    } shapes[] = {{2, 2, 16, 7, 1, 1}, {32, 32, 1, 64, 1, 2}, {9, 3, 5, 10, 2, 5}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        sd_model_config c = small_config(0.3);
        c.image_size = shapes[i].image;
        c.patch_size = shapes[i].patch;
        c.channels = shapes[i].channels;
        c.dim = shapes[i].dim;
        c.depth = shapes[i].depth;
        c.heads = shapes[i].heads;
        sd_model *model;
        assert_int_equal(sd_model_create(NULL, &c, &model), SD_OK);
        sd_model_initialize(model, 1);
        sd_image_group group = {pixels, 2, (size_t)c.image_size, (size_t)c.image_size};
        sd_activations *a;
        assert_int_equal(sd_activations_create(model, &group, 1, SD_ACTIVATIONS_SPEED, 0, &a), SD_OK);
        sd_forward_outputs outputs;
        sd_forward_outputs_init(&outputs);
        float features[2 * FEATURES];
        outputs.features = features;
        assert_int_equal(sd_model_forward(model, a, &group, 1, NULL, &outputs), SD_OK);
        float *gradient = malloc(sd_model_parameter_count(model) * sizeof *gradient);
        sd_backward_inputs inputs;
        sd_backward_inputs_init(&inputs);
        inputs.features = weights;
        assert_int_equal(sd_model_backward(model, a, &inputs, gradient, 0, NULL), SD_OK);
        assert_true(isfinite(largest(gradient, sd_model_parameter_count(model))));
        double length = 0.0;
        for (size_t j = 0; j < FEATURES; j++)
            length += (double)features[j] * (double)features[j];
        assert_float_equal(length, 1.0, 1e-5);
        free(gradient);
        sd_activations_destroy(a);
        sd_model_destroy(model);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_class_only), cmocka_unit_test(test_same_bits),  cmocka_unit_test(test_inference),
        cmocka_unit_test(test_slopes),     cmocka_unit_test(test_drop_rates), cmocka_unit_test(test_packing),
        cmocka_unit_test(test_accumulate), cmocka_unit_test(test_cancelled_backward),
        cmocka_unit_test(test_refusals),   cmocka_unit_test(test_odd_shapes),
        cmocka_unit_test(test_drop_subset), cmocka_unit_test(test_recomputed_blocks), cmocka_unit_test(test_rounded_activations),
    };
    return cmocka_run_group_tests(tests, fill_inputs, NULL);
}
