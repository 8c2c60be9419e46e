/* A training step: teacher on two global crops, student on all, loss, backward, clipping, AdamW, moving average. Crops
 * are ready. */
#include "bench.h"

#include <math.h>
#include <stdlib.h>

double vit_flop(const options *o, double side) {
    double patches = (side / (double)o->patch) * (side / (double)o->patch), tokens = patches + 1.0, d = (double)o->dim;
    double block = 24.0 * tokens * d * d + 4.0 * tokens * tokens * d;
    return 2.0 * patches * 3.0 * (double)(o->patch * o->patch) * d + (double)o->depth * block;
}

static double step_flop(const options *o) {
    double h = (double)o->head_hidden, p = (double)o->head_dim, n = (double)o->batch;
    double head = 2.0 * ((double)o->dim * h + h * h + h * p);
    double gram = 2.0 * n * p * fmin(n, p);
    double global = vit_flop(o, (double)o->image) + head;
    double local = o->locals > 0 ? vit_flop(o, (double)o->local) + head : 0.0;
    double student = n * (2.0 * global + (double)o->locals * local) + 2.0 * gram;
    return 2.0 * n * global + 3.0 * student;
}

step_work make_step(const options *o, sd_context *context) {
    step_work step;
    sd_pretrainer_config config;
    sd_pretrainer_config_init(&config);
    config.model.image_size = (int32_t)o->image;
    config.model.patch_size = (int32_t)o->patch;
    config.model.dim = (int32_t)o->dim;
    config.model.depth = (int32_t)o->depth;
    config.model.heads = (int32_t)o->heads;
    config.model.head_hidden = (int32_t)o->head_hidden;
    config.model.head_dim = (int32_t)o->head_dim;
    config.model.drop_path = 0.0; /* the same work on both sides of a comparison */
    config.augment.global_size = (int32_t)o->image;
    config.augment.local_size = (int32_t)o->local;
    config.augment.local_crops = (int32_t)o->locals;
    config.batch_size = (size_t)o->batch;
    config.micro_batch = (size_t)o->micro;
    config.activations = o->memory ? SD_ACTIVATIONS_MEMORY : SD_ACTIVATIONS_SPEED;
    config.recomputed_blocks = (int32_t)o->recompute;
    config.precision = o->precision;
    config.products = o->plain ? SD_PRODUCTS_PLAIN : SD_PRODUCTS_STRASSEN;
    config.lr = 1e-4;
    check(sd_pretrainer_memory(context, &config, &step.planned), "memory");
    check(sd_pretrainer_create(context, &config, &step.trainer), "create");
    size_t globals = (size_t)(2 * o->batch * 3 * o->image * o->image);
    size_t locals = (size_t)(o->locals * o->batch * 3 * o->local * o->local);
    step.pixels = take(globals + locals, sizeof *step.pixels);
    sd_random random;
    sd_random_init(&random, 1, 0, 0);
    for (size_t i = 0; i < globals + locals; i++)
        step.pixels[i] = (float)(4.0 * sd_random_uniform(&random) - 2.0);
    step.crops = (sd_crop_batch){(size_t)o->batch,
                                 3,
                                 (int32_t)o->image,
                                 (int32_t)o->local,
                                 (int32_t)o->locals,
                                 step.pixels,
                                 o->locals > 0 ? step.pixels + globals : NULL,
                                 NULL};
    return step;
}

double run_step(step_work *step) {
    step->metrics = (sd_step_metrics){.size = sizeof step->metrics};
    check(sd_pretrainer_step_crops(step->trainer, &step->crops, &step->metrics), "step");
    return step->metrics.seconds;
}

void drop_step(step_work *step) {
    free(step->pixels);
    sd_pretrainer_destroy(step->trainer);
}

void bench_step(const options *o, sd_context *context, FILE *json) {
    step_work step = make_step(o, context);
    run_step(&step); /* not counted: it touches its memory */
    double *times = take((size_t)o->steps, sizeof *times);
    for (long i = 0; i < o->steps; i++)
        times[i] = run_step(&step);
    figures f = figures_of(o, context, times, (size_t)o->steps, step_flop(o));
    size_t parameters = sd_model_parameter_count(sd_pretrainer_student(step.trainer));
    printf("step  dim %ld depth %ld patch %ld, 2 x %ld + %ld x %ld, batch %ld, %d threads, %s%s; %zu parameters\n",
           o->dim, o->depth, o->patch, o->image, o->locals, o->local, o->batch, sd_context_threads(context),
           sd_precision_name(o->precision), o->memory ? ", activations recomputed" : "", parameters);
    printf("  %.1f ms a step (median of %ld, fastest %.1f), %.2f images/s, loss %.4f\n  ", 1e3 * f.seconds, o->steps,
           1e3 * f.fastest, (double)o->batch / f.seconds, step.metrics.loss);
    print_rate(&f);
    printf("  memory foretold %.1f MiB, peak of the process %.1f MiB\n", (double)step.planned / 1048576.0, f.peak_mib);
    char extra[256];
    snprintf(
        extra, sizeof extra,
        ", \"memory\": %d, \"images_per_second\": %.4f, \"planned_mib\": %.1f, \"parameters\": %zu, \"loss\": %.9f",
        o->memory, (double)o->batch / f.seconds, (double)step.planned / 1048576.0, parameters, step.metrics.loss);
    write_json(json, o, context, "step", &f, extra);
    free(times);
    drop_step(&step);
}
