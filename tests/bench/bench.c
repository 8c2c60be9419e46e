/* bench - how fast the library is, as a share of the machine's own sgemm rate measured in the same run.
 *
 *     bench [step] [--dim N --depth N --heads N --patch N --image N --local N --locals N --batch N --steps N]
 *           [--threads N] [--memory] [--precision fp32|bf16] [--json FILE]
 *     bench embed [--dim N --depth N --heads N --patch N --image N --batch N --steps N --threads N --precision fp32|bf16]
 *     bench coding-rate [--n N --d N]
 *     bench augment [--width N --height N --image N --local N --locals N --steps ROUNDS --threads N]
 *     bench products [--m ROWS --n OUT --d IN]
 *     bench advice          the value that OPENBLAS_CORETYPE should have here, if any
 *
 * GFLOP/s counts the matrix products of a step (2mnk each; backward = 2 forward) of the whole network, also those that
 * the library leaves out because nobody reads them. */
#include "bench.h"

#include "base/system.h"
#include "math/math.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void check(sd_status status, const char *what) {
    if (status == SD_OK)
        return;
    fprintf(stderr, "bench: %s: %s: %s\n", what, sd_status_string(status), sd_last_error());
    exit(1);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double median(double *values, size_t count) {
    qsort(values, count, sizeof *values, by_value);
    return count % 2 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

/* ---- the ceiling --------------------------------------------------------------------------- */

#define SGEMM_SIZE 1024

typedef struct sgemm_work {
    float **a, **b, **c;
} sgemm_work;

static void sgemm_task(void *argument, size_t index, size_t thread) {
    (void)thread;
    const sgemm_work *work = argument;
    for (int i = 0; i < 4; i++)
        sd_sgemm(false, false, SGEMM_SIZE, SGEMM_SIZE, SGEMM_SIZE, 1.0f, work->a[index], SGEMM_SIZE, work->b[index],
                 SGEMM_SIZE, 0.0f, work->c[index], SGEMM_SIZE);
}

double sgemm_rate(sd_context *context) {
    size_t threads = (size_t)sd_context_threads(context), values = (size_t)SGEMM_SIZE * SGEMM_SIZE;
    float **matrices = calloc(3 * threads, sizeof *matrices);
    for (size_t i = 0; i < 3 * threads; i++) {
        matrices[i] = malloc(values * sizeof(float));
        for (size_t j = 0; j < values; j++)
            matrices[i][j] = (float)((j * 2654435761u + i) % 1000) * 0.001f;
    }
    sgemm_work work = {matrices, matrices + threads, matrices + 2 * threads};
    double times[9];
    check(sd_run(context, sgemm_task, &work, threads), "sgemm");
    for (size_t i = 0; i < 9; i++) {
        double start = now();
        check(sd_run(context, sgemm_task, &work, threads), "sgemm");
        times[i] = now() - start;
    }
    for (size_t i = 0; i < 3 * threads; i++)
        free(matrices[i]);
    free(matrices);
    return 4.0 * 2.0 * SGEMM_SIZE * SGEMM_SIZE * (double)SGEMM_SIZE * (double)threads / median(times, 9) * 1e-9;
}

/* ---- options ------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t offset;
} NUMBERS[] = {
    {"--dim", offsetof(options, dim)},       {"--depth", offsetof(options, depth)},
    {"--heads", offsetof(options, heads)},   {"--patch", offsetof(options, patch)},
    {"--image", offsetof(options, image)},   {"--local", offsetof(options, local)},
    {"--locals", offsetof(options, locals)}, {"--batch", offsetof(options, batch)},
    {"--steps", offsetof(options, steps)},   {"--threads", offsetof(options, threads)},
    {"--micro", offsetof(options, micro)},   {"--n", offsetof(options, n)},
    {"--d", offsetof(options, d)},           {"--m", offsetof(options, m)},
    {"--width", offsetof(options, width)},   {"--height", offsetof(options, height)},
    {"--head-dim", offsetof(options, head_dim)}, {"--head-hidden", offsetof(options, head_hidden)},
};

static void parse(options *o, int argc, char **argv) {
    for (int i = 0; i < argc; i++) {
        size_t k = 0, count = sizeof NUMBERS / sizeof *NUMBERS;
        while (k < count && strcmp(argv[i], NUMBERS[k].name) != 0)
            k++;
        if (k < count && i + 1 < argc) {
            *(long *)((char *)o + NUMBERS[k].offset) = strtol(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--memory") == 0) {
            o->memory = 1;
        } else if (strcmp(argv[i], "--precision") == 0 && i + 1 < argc) {
            check(sd_precision_from_name(argv[++i], &o->precision), "--precision");
        } else if (strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
            o->json = argv[++i];
        } else {
            fprintf(stderr, "bench: unknown option %s\n", argv[i]);
            exit(2);
        }
    }
}

/* ---- the training step --------------------------------------------------------------------- */

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

static void bench_step(const options *o, sd_context *context, FILE *json) {
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
    config.precision = o->precision;
    config.lr = 1e-4;
    size_t planned;
    check(sd_pretrainer_memory(context, &config, &planned), "memory");
    sd_pretrainer *trainer;
    check(sd_pretrainer_create(context, &config, &trainer), "create");
    size_t globals = (size_t)(2 * o->batch * 3 * o->image * o->image);
    size_t locals = (size_t)(o->locals * o->batch * 3 * o->local * o->local);
    float *pixels = malloc((globals + locals) * sizeof *pixels);
    sd_random random;
    sd_random_init(&random, 1, 0, 0);
    for (size_t i = 0; i < globals + locals; i++)
        pixels[i] = (float)(4.0 * sd_random_uniform(&random) - 2.0);
    sd_crop_batch crops = {(size_t)o->batch, 3, (int32_t)o->image, (int32_t)o->local, (int32_t)o->locals, pixels,
                           o->locals > 0 ? pixels + globals : NULL, NULL};
    sd_step_metrics metrics = {.size = sizeof metrics};
    check(sd_pretrainer_step_crops(trainer, &crops, &metrics), "step");
    double *times = calloc((size_t)o->steps, sizeof *times);
    for (long i = 0; i < o->steps; i++) {
        check(sd_pretrainer_step_crops(trainer, &crops, &metrics), "step");
        times[i] = metrics.seconds;
    }
    double seconds = median(times, (size_t)o->steps), flop = step_flop(o), ceiling = sgemm_rate(context);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("step  dim %ld depth %ld patch %ld, 2 x %ld + %ld x %ld, batch %ld, %d threads, %s%s\n", o->dim, o->depth,
           o->patch, o->image, o->locals, o->local, o->batch, sd_context_threads(context),
           sd_precision_name(o->precision), o->memory ? ", activations recomputed" : "");
    printf("  %.1f ms a step (median of %ld, fastest %.1f), %.2f images/s, loss %.4f\n", 1e3 * seconds, o->steps,
           1e3 * times[0], (double)o->batch / seconds, metrics.loss);
    printf("  %.1f GFLOP a step, %.1f GFLOP/s = %.1f%% of sgemm (%.1f GFLOP/s)\n", flop * 1e-9, flop / seconds * 1e-9,
           100.0 * flop / seconds * 1e-9 / ceiling, ceiling);
    printf("  memory foretold %.1f MiB, peak of the process %.1f MiB\n", (double)planned / 1048576.0,
           (double)usage.ru_maxrss / 1024.0);
    if (json != NULL)
        fprintf(
            json,
            "{\"mode\": \"step\", \"precision\": \"%s\", \"dim\": %ld, \"depth\": %ld, \"patch\": %ld, \"image\": %ld, \"local\": %ld, "
            "\"locals\": "
            "%ld, \"batch\": %ld, \"threads\": %d, \"seconds\": %.6f, \"images_per_second\": %.4f, \"gflops\": %.3f, "
            "\"sgemm_gflops\": %.3f, \"share\": %.4f, \"planned_bytes\": %zu, \"blas_kernel\": \"%s\"}\n",
            sd_precision_name(o->precision), o->dim, o->depth, o->patch, o->image, o->local, o->locals, o->batch,
            sd_context_threads(context), seconds,
            (double)o->batch / seconds, flop / seconds * 1e-9, ceiling, flop / seconds * 1e-9 / ceiling, planned,
            sd_blas_kernel());
    free(times);
    free(pixels);
    sd_pretrainer_destroy(trainer);
}

/* ---- the coding rate ----------------------------------------------------------------------- */

static void bench_coding_rate(const options *o, sd_context *context, FILE *json) {
    size_t n = (size_t)o->n, d = (size_t)o->d;
    float *z = malloc(n * d * sizeof *z), *grad = malloc(n * d * sizeof *grad);
    sd_random random;
    sd_random_init(&random, 1, 0, 0);
    for (size_t i = 0; i < n * d; i++)
        z[i] = (float)sd_random_normal(&random);
    check(sd_normalize_rows(z, n, d, d, NULL), "normalize");
    sd_coding_rate_plan *plan;
    check(sd_coding_rate_plan_create(context, n, d, &plan), "plan");
    double rate, times[201];
    size_t count = 0;
    for (double start = now(); count < 201 && (count < 5 || now() - start < 3.0); count++) {
        double begin = now();
        check(sd_coding_rate_plan_run(plan, z, n, d, d, 0.05, &rate, grad, d), "coding rate");
        times[count] = now() - begin;
    }
    double seconds = median(times, count);
    printf("coding rate and gradient, n %zu, d %zu, float, BLAS with %d threads: %.3f ms (median of %zu), R = %.6f\n",
           n, d, sd_blas_thread_count(), 1e3 * seconds, count, rate);
    if (json != NULL)
        fprintf(json, "{\"mode\": \"coding-rate\", \"n\": %zu, \"d\": %zu, \"seconds\": %.9f, \"blas_threads\": %d}\n",
                n, d, seconds, sd_blas_thread_count());
    sd_coding_rate_plan_destroy(plan);
    free(grad);
    free(z);
}

int main(int argc, char **argv) {
    options o = {.dim = 384, .depth = 12, .heads = 0, .patch = 16, .image = 224, .local = 96, .locals = 10, .batch = 8,
                 .steps = 5, .n = 512, .d = 256, .head_hidden = 2048, .head_dim = 256, .width = 500, .height = 375};
    const char *mode = argc > 1 && argv[1][0] != '-' ? argv[1] : "step";
    int skip = argc > 1 && argv[1][0] != '-' ? 2 : 1;
    if (strcmp(mode, "advice") == 0) { /* the kernel set that OPENBLAS_CORETYPE should name, or nothing */
        const char *name = strstr(sd_blas_advice(), "OPENBLAS_CORETYPE=");
        if (name != NULL)
            printf("%s\n", strchr(name, '=') + 1);
        return 0;
    }
    parse(&o, argc - skip, argv + skip);
    if (o.heads == 0)
        o.heads = o.dim >= 64 ? o.dim / 64 : 1;
    sd_context_config config;
    sd_context_config_init(&config);
    config.threads = (int32_t)o.threads;
    config.blas_threads = SD_BLAS_THREADS_ONE;
    sd_context *context;
    check(sd_context_create(&config, &context), "context");
    printf("BLAS %s, kernel %s; products by %s; own loops %s\n", sd_blas_name(), sd_blas_kernel(), sd_gemm_of(SD_PRECISION_FP32, NULL).name, sd_cpu_level_name(sd_cpu_detect()));
    FILE *json = o.json != NULL ? fopen(o.json, "a") : NULL;
    if (strcmp(mode, "step") == 0) {
        bench_step(&o, context, json);
    } else if (strcmp(mode, "embed") == 0) {
        bench_embed(&o, context, json);
    } else if (strcmp(mode, "products") == 0) {
        bench_products(&o, json);
    } else if (strcmp(mode, "augment") == 0) {
        bench_augment(&o, context, json);
    } else if (strcmp(mode, "coding-rate") == 0) {
        bench_coding_rate(&o, context, json);
    } else {
        fprintf(stderr, "bench: unknown mode %s (step, embed, augment, products, coding-rate)\n", mode);
        return 2;
    }
    if (json != NULL)
        fclose(json);
    sd_context_destroy(context);
    return 0;
}
