/* bench - how fast the library is.
 *
 *     bench [step] [--dim N --depth N --heads N --patch N --image N --local N --locals N --batch N --steps N]
 *           [--threads N] [--memory] [--recompute BLOCKS] [--plain] [--packed] [--precision fp32|bf16] [--json FILE] [--no-sgemm]
 *     bench embed [--dim N --depth N --heads N --patch N --image N --batch N --steps N --threads N]
 *                 [--precision fp32|bf16]
 *     bench sections [as step; --threads MOST]     what more threads would bring, and how often they meet
 *     bench coding-rate [--n N --d N]
 *     bench augment [--width N --height N --image N --local N --locals N --steps ROUNDS --threads N]
 *     bench products [--m ROWS --n OUT --d IN]
 *     bench peak [--steps ROUNDS --threads N]       what the cores can do at best, by loops over registers
 *     bench info                                    library, BLAS and instruction sets
 *     bench advice                                  the value that OPENBLAS_CORETYPE should have here, if any
 *
 * run.py measures with it, beside other programs. --json appends a line to FILE. GFLOP/s counts the matrix products
 * (2mnk each; backward = 2 forward) of the whole network, also those that the library leaves out because nobody reads
 * them; --no-sgemm leaves out the rate of sgemm, which takes a second. */
#include "bench.h"

#include "base/system.h"
#include "math/math.h"

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

void *take(size_t count, size_t size) {
    size_t bytes = sd_size_ceil((count > 0 ? count : 1) * size, SD_ALIGNMENT) * SD_ALIGNMENT;
    void *memory = aligned_alloc(SD_ALIGNMENT, bytes);
    if (memory == NULL) {
        fprintf(stderr, "bench: out of memory\n");
        exit(1);
    }
    return memset(memory, 0, bytes);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

float *random_floats(size_t count, uint64_t seed) {
    float *x = take(count, sizeof *x);
    sd_random random;
    sd_random_init(&random, seed, 0, 0);
    for (size_t i = 0; i < count; i++)
        x[i] = (float)(2.0 * sd_random_uniform(&random) - 1.0);
    return x;
}

double median(double *values, size_t count) {
    qsort(values, count, sizeof *values, by_value);
    return count % 2 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

double peak_mib(void) {
    /* Linux's own figure first: getrusage begins with what the program that started this one had held. */
    char line[256];
    double kib = 0.0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status != NULL && kib == 0.0 && fgets(line, sizeof line, status) != NULL)
        if (strncmp(line, "VmHWM:", 6) == 0)
            kib = strtod(line + 6, NULL);
    if (status != NULL)
        fclose(status);
    if (kib > 0.0)
        return kib / 1024.0;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#if defined(__APPLE__)
    return (double)usage.ru_maxrss / 1048576.0;
#else
    return (double)usage.ru_maxrss / 1024.0;
#endif
}

/* ---- the rate of the BLAS ------------------------------------------------------------------ */

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
    float **matrices = take(3 * threads, sizeof *matrices);
    for (size_t i = 0; i < 3 * threads; i++) {
        matrices[i] = take(values, sizeof(float));
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
    {"--dim", offsetof(options, dim)},
    {"--depth", offsetof(options, depth)},
    {"--heads", offsetof(options, heads)},
    {"--patch", offsetof(options, patch)},
    {"--image", offsetof(options, image)},
    {"--local", offsetof(options, local)},
    {"--locals", offsetof(options, locals)},
    {"--batch", offsetof(options, batch)},
    {"--steps", offsetof(options, steps)},
    {"--threads", offsetof(options, threads)},
    {"--micro", offsetof(options, micro)},
    {"--recompute", offsetof(options, recompute)},
    {"--n", offsetof(options, n)},
    {"--d", offsetof(options, d)},
    {"--m", offsetof(options, m)},
    {"--width", offsetof(options, width)},
    {"--height", offsetof(options, height)},
    {"--head-dim", offsetof(options, head_dim)},
    {"--head-hidden", offsetof(options, head_hidden)},
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
        } else if (strcmp(argv[i], "--packed") == 0) {
            o->packed = 1;
        } else if (strcmp(argv[i], "--plain") == 0) {
            o->plain = 1;
        } else if (strcmp(argv[i], "--no-sgemm") == 0) {
            o->no_sgemm = 1;
        } else if (strcmp(argv[i], "--precision") == 0 && i + 1 < argc) {
            check(sd_precision_from_name(argv[++i], &o->precision), "--precision");
        } else if (strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
            o->json = argv[++i];
        } else {
            fprintf(stderr, "bench: unknown option %s\n", argv[i]);
            exit(2);
        }
    }
    if (o->heads == 0)
        o->heads = o->dim >= 64 ? o->dim / 64 : 1;
    if (o->steps < 1 || o->batch < 1 || o->n < 1 || o->d < 1) {
        fprintf(stderr, "bench: --steps, --batch, --n and --d must be at least 1\n");
        exit(2);
    }
}

/* ---- results ------------------------------------------------------------------------------- */

figures figures_of(const options *o, sd_context *context, double *times, size_t count, double flop) {
    figures f = {.flop = flop, .peak_mib = peak_mib()};
    f.seconds = median(times, count);
    f.fastest = times[0];
    if (flop > 0.0 && !o->no_sgemm)
        f.sgemm = sgemm_rate(context);
    return f;
}

void print_rate(const figures *f) {
    double rate = f->flop / f->seconds * 1e-9;
    printf("%.4g GFLOP, %.1f GFLOP/s", f->flop * 1e-9, rate);
    if (f->sgemm > 0.0)
        printf(" = %.1f%% of sgemm (%.1f)", 100.0 * rate / f->sgemm, f->sgemm);
    printf("\n");
}

void write_json(FILE *json, const options *o, sd_context *context, const char *mode, const figures *f,
                const char *extra) {
    if (json == NULL)
        return;
    fprintf(json, "{\"mode\": \"%s\", \"precision\": \"%s\"", mode, sd_precision_name(o->precision));
    for (size_t k = 0; k < sizeof NUMBERS / sizeof *NUMBERS; k++) {
        long value = *(const long *)((const char *)o + NUMBERS[k].offset);
        fprintf(json, ", \"");
        for (const char *c = NUMBERS[k].name + 2; *c != '\0'; c++)
            fputc(*c == '-' ? '_' : *c, json);
        /* all threads, where the option leaves it open */
        fprintf(json, "\": %ld", strcmp(NUMBERS[k].name, "--threads") == 0 ? sd_context_threads(context) : value);
    }
    fprintf(json, ", \"ms\": %.6f, \"ms_fastest\": %.6f, \"gflop\": %.6f, \"gflops\": %.3f, \"peak_rss_mib\": %.1f",
            1e3 * f->seconds, 1e3 * f->fastest, f->flop * 1e-9, f->flop / f->seconds * 1e-9, f->peak_mib);
    if (f->sgemm > 0.0)
        fprintf(json, ", \"sgemm_gflops\": %.3f", f->sgemm);
    fprintf(json, ", \"blas_kernel\": \"%s\"%s}\n", sd_blas_kernel(), extra);
}

static void info(FILE *json) {
    int has_bf16 = sd_precision_check(SD_PRECISION_BF16) == SD_OK;
    const char *why = has_bf16 ? "" : sd_last_error();
    printf("libsimdino %s; bf16 %s%s\n", sd_version_string(),
           has_bf16 ? sd_bf16_level_name(sd_bf16_detect()) : "no: ", why);
    if (json != NULL)
        fprintf(json,
                "{\"mode\": \"info\", \"version\": \"%s\", \"blas\": \"%s\", \"blas_kernel\": \"%s\", \"products\": "
                "\"%s\", \"cpu_level\": \"%s\", \"bf16\": \"%s\", \"no_bf16\": \"%s\", \"advice\": \"%s\"}\n",
                sd_version_string(), sd_blas_name(), sd_blas_kernel(), sd_gemm_of(SD_PRECISION_FP32, NULL).name,
                sd_cpu_level_name(sd_cpu_detect()), has_bf16 ? sd_bf16_level_name(sd_bf16_detect()) : "", why,
                sd_blas_advice());
}

int main(int argc, char **argv) {
    options o = {.recompute = SD_RECOMPUTED_BLOCKS_AUTO,
                 .dim = 384,
                 .depth = 12,
                 .patch = 16,
                 .image = 224,
                 .local = 96,
                 .locals = 10,
                 .batch = 8,
                 .steps = 5,
                 .n = 512,
                 .d = 256,
                 .head_hidden = 2048,
                 .head_dim = 256,
                 .width = 500,
                 .height = 375};
    const char *mode = argc > 1 && argv[1][0] != '-' ? argv[1] : "step";
    int skip = argc > 1 && argv[1][0] != '-' ? 2 : 1;
    if (strcmp(mode, "advice") == 0) { /* the kernel set that OPENBLAS_CORETYPE should name, or nothing */
        const char *name = strstr(sd_blas_advice(), "OPENBLAS_CORETYPE=");
        if (name != NULL)
            printf("%s\n", strchr(name, '=') + 1);
        return 0;
    }
    parse(&o, argc - skip, argv + skip);
    sd_context_config config;
    sd_context_config_init(&config);
    config.threads = (int32_t)o.threads;
    config.blas_threads = SD_BLAS_THREADS_ONE;
    sd_context *context;
    check(sd_context_create(&config, &context), "context");
    printf("BLAS %s, kernel %s; products by %s; own loops %s\n", sd_blas_name(), sd_blas_kernel(),
           sd_gemm_of(SD_PRECISION_FP32, NULL).name, sd_cpu_level_name(sd_cpu_detect()));
    FILE *json = o.json != NULL ? fopen(o.json, "a") : NULL;
    if (o.json != NULL && json == NULL) {
        fprintf(stderr, "bench: cannot write %s\n", o.json);
        return 1;
    }
    if (strcmp(mode, "step") == 0) {
        bench_step(&o, context, json);
    } else if (strcmp(mode, "sections") == 0) {
        bench_sections(&o, json);
    } else if (strcmp(mode, "embed") == 0) {
        bench_embed(&o, context, json);
    } else if (strcmp(mode, "products") == 0) {
        bench_products(&o, json);
    } else if (strcmp(mode, "layers") == 0) {
        bench_layers(&o, json);
    } else if (strcmp(mode, "augment") == 0) {
        bench_augment(&o, context, json);
    } else if (strcmp(mode, "coding-rate") == 0) {
        bench_coding_rate(&o, context, json);
    } else if (strcmp(mode, "peak") == 0) {
        bench_peak(&o, context, json);
    } else if (strcmp(mode, "info") == 0) {
        info(json);
    } else {
        fprintf(stderr, "bench: unknown mode %s (step, sections, layers, embed, augment, products, coding-rate, peak, info, advice)\n",
                mode);
        return 2;
    }
    if (json != NULL)
        fclose(json);
    sd_context_destroy(context);
    return 0;
}
