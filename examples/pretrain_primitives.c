/* The training step taken apart: crops, teacher, student, loss, backward, clipping, optimizer, moving average, one call
 * each. This is what sd_pretrainer_step() does, for hosts that want to change something in between.
 *
 *     cc pretrain_primitives.c $(pkg-config --cflags --libs simdino) -lm
 */
#include <simdino/simdino.h>
#include <stdio.h>
#include <stdlib.h>

enum { IMAGES = 256, SIDE = 28, BATCH = 16, STEPS = 25 };
enum { GLOBAL = 28, LOCAL = 14, LOCALS = 2, VIEWS = 2 + LOCALS, FEATURES = 64 };
enum { GLOBAL_CROP = GLOBAL * GLOBAL, LOCAL_CROP = LOCAL * LOCAL }; /* floats of a crop of one channel */

static void check(sd_status status, const char *what) {
    if (status != SD_OK) {
        fprintf(stderr, "%s: %s (%s)\n", what, sd_last_error(), sd_status_string(status));
        exit(1);
    }
}

/* A disc of some size and place on a dark ground. */
static void draw_image(unsigned char *pixels, sd_random *random) {
    double x0 = 6 + 16 * sd_random_uniform(random), y0 = 6 + 16 * sd_random_uniform(random);
    double radius = 2 + 8 * sd_random_uniform(random);
    for (int i = 0; i < SIDE * SIDE; i++) {
        double x = i % SIDE - x0, y = i / SIDE - y0;
        pixels[i] = (unsigned char)((x * x + y * y < radius * radius ? 180 : 30) + sd_random_below(random, 40));
    }
}

int main(void) {
    static unsigned char pixels[IMAGES][SIDE * SIDE];
    static float globals[2 * BATCH * GLOBAL_CROP], locals[LOCALS * BATCH * LOCAL_CROP]; /* view after view */
    static float student_features[VIEWS * BATCH * FEATURES], teacher_features[2 * BATCH * FEATURES];
    static float feature_gradient[VIEWS * BATCH * FEATURES];
    sd_random random;
    sd_random_init(&random, 1, 0, 0);
    for (int i = 0; i < IMAGES; i++) {
        draw_image(pixels[i], &random);
    }

    sd_context *context;
    check(sd_context_create(NULL, &context), "context"); /* NULL: the defaults */

    /* Student and teacher: the same network, equal at the start. */
    sd_model_config model_config;
    sd_model_config_init(&model_config);
    model_config.image_size = GLOBAL, model_config.patch_size = 7, model_config.channels = 1;
    model_config.dim = 64, model_config.depth = 2, model_config.heads = 4;
    model_config.head_hidden = 128, model_config.head_dim = FEATURES;
    sd_model *student, *teacher;
    check(sd_model_create(context, &model_config, &student), "student");
    check(sd_model_create(context, &model_config, &teacher), "teacher");
    sd_model_initialize(student, 1);
    check(sd_model_copy(teacher, student), "copy");
    size_t parameters = sd_model_parameter_count(student);
    const sd_tensor_info *tensors = sd_model_tensor(student, 0); /* the first of a contiguous table */
    size_t tensor_count = sd_model_tensor_count(student);

    /* All crops of a step are computed in one pass: one group of large ones, one of small ones. */
    sd_image_group groups[2] = {{globals, 2 * BATCH, GLOBAL, GLOBAL}, {locals, LOCALS * BATCH, LOCAL, LOCAL}};
    sd_activations *student_memory, *teacher_memory;
    check(sd_activations_create(student, groups, 2, SD_ACTIVATIONS_SPEED, 0, &student_memory), "activations");
    check(sd_activations_create(teacher, groups, 1, SD_ACTIVATIONS_INFERENCE, 0, &teacher_memory), "activations");

    sd_augment_config augment;
    sd_augment_config_init(&augment);
    augment.global_size = GLOBAL, augment.local_size = LOCAL, augment.local_crops = LOCALS;
    sd_augmenter *augmenter;
    check(sd_augmenter_create(context, &augment, &augmenter), "augmenter");

    sd_simdino_config loss_config;
    sd_simdino_loss *loss;
    sd_simdino_config_init(&loss_config);
    check(sd_simdino_loss_create(context, &loss_config, BATCH, VIEWS, FEATURES, &loss), "loss");
    sd_optimizer_config optimizer_config; /* AdamW by default */
    sd_optimizer *optimizer;
    sd_optimizer_config_init(&optimizer_config);
    check(sd_optimizer_create_for_model(context, &optimizer_config, student, &optimizer), "optimizer");

    float *gradient = malloc(parameters * sizeof *gradient);
    check(gradient != NULL ? SD_OK : SD_ERR_MEMORY, "gradient");
    sd_schedule lr = {.base = 5e-4, .final = 1e-5, .total = STEPS, .warmup = 2};
    sd_schedule momentum = {.base = 0.9, .final = 1, .total = STEPS};

    for (uint64_t step = 0; step < STEPS; step++) {
        /* 1. Crops, drawn from the seed, the step and the number of the sample. */
        for (size_t i = 0; i < BATCH; i++) {
            float *large[2] = {globals + i * GLOBAL_CROP, globals + (BATCH + i) * GLOBAL_CROP}, *small[LOCALS];
            for (size_t v = 0; v < LOCALS; v++) {
                small[v] = locals + (v * BATCH + i) * LOCAL_CROP;
            }
            sd_image image = {pixels[sd_random_below(&random, IMAGES)], SIDE, SIDE, 0, 1, SD_PIXEL_U8};
            check(sd_augment(augmenter, &image, 1, step * BATCH + i, large, small), "crops");
        }

        /* 2. The teacher sees the large crops, the student all of them. */
        sd_forward_options options;
        sd_forward_outputs outputs;
        sd_forward_options_init(&options);
        sd_forward_outputs_init(&outputs);
        outputs.features = teacher_features;
        check(sd_model_forward(teacher, teacher_memory, groups, 1, &options, &outputs), "teacher");
        options.train = 1; /* stochastic depth, decided by seed, step and sample */
        options.seed = 1;
        options.step = step;
        outputs.features = student_features;
        check(sd_model_forward(student, student_memory, groups, 2, &options, &outputs), "student");

        /* 3. SimDINO's loss, its gradient by the features, and from there by the parameters. */
        sd_simdino_result result;
        check(
            sd_simdino_loss_evaluate(loss, student_features, teacher_features, BATCH, VIEWS, feature_gradient, &result),
            "loss");
        sd_backward_inputs inputs;
        sd_backward_inputs_init(&inputs);
        inputs.features = feature_gradient;
        check(sd_model_backward(student, student_memory, &inputs, gradient, 0, NULL), "backward");

        /* 4. Clip, step, and let the teacher follow. */
        double norm;
        check(sd_clip_gradient(context, tensors, tensor_count, gradient, SD_CLIP_TENSOR, 3.0, NULL, &norm), "clip");
        check(sd_optimizer_step(optimizer, sd_model_parameters(student), gradient, sd_schedule_value(&lr, step), 0.04),
              "optimizer");
        check(sd_ema_update(context, sd_model_parameters(teacher), sd_model_parameters(student), parameters,
                            sd_schedule_value(&momentum, step)),
              "teacher");
        if (step % 8 == 0 || step == STEPS - 1) {
            printf("step %2d  loss %7.4f  compression %.4f  expansion %.4f  gradient norm %.3f\n", (int)step,
                   result.loss, result.compression, result.expansion, norm);
        }
    }

    free(gradient);
    sd_optimizer_destroy(optimizer);
    sd_simdino_loss_destroy(loss);
    sd_augmenter_destroy(augmenter);
    sd_activations_destroy(teacher_memory);
    sd_activations_destroy(student_memory);
    sd_model_destroy(teacher);
    sd_model_destroy(student);
    sd_context_destroy(context);
    return 0;
}
