/* bench-index - how fast a search is, as a share of the machine's own sgemm rate and of its memory's.
 *
 *     bench-index [--n N --d N --k N --threads N --metric 0|1|2 --seconds S]
 *
 * Prints, for batches of 1, 8, 64 and 256 queries: queries per second, GFLOP/s (2 n d for a query), their share of sgemm
 * with 1024 x 1024 matrices on as many threads, and how often the rows were read per second as GB/s. */
#include "math/math.h"
#include <simdino/simdino.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SIDE 1024

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void check(sd_status status, const char *what) {
    if (status == SD_OK)
        return;
    fprintf(stderr, "bench-index: %s: %s: %s\n", what, sd_status_string(status), sd_last_error());
    exit(1);
}

static float *numbers(size_t count, uint64_t seed) {
    float *x = malloc(count * sizeof *x);
    if (!x) {
        fprintf(stderr, "bench-index: out of memory\n");
        exit(1);
    }
    uint64_t state = seed;
    for (size_t i = 0; i < count; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        x[i] = (float)(int32_t)(state >> 32) / 2147483648.0f;
    }
    return x;
}

typedef struct ceiling {
    float *a, *b, *c; /* SIDE x SIDE for each thread; a and b are shared */
} ceiling;

static void sgemm_task(void *work, size_t index, size_t thread) {
    const ceiling *w = work;
    (void)index;
    for (int i = 0; i < 4; i++)
        sd_sgemm(false, true, SIDE, SIDE, SIDE, 1.0f, w->a, SIDE, w->b, SIDE, 0.0f, w->c + thread * SIDE * SIDE, SIDE);
}

/* GFLOP/s of all threads together, the best of some tries. */
static double sgemm_rate(sd_context *context) {
    size_t threads = sd_threads(context);
    ceiling w = {numbers(SIDE * SIDE, 1), numbers(SIDE * SIDE, 2), numbers(threads * SIDE * SIDE, 3)};
    double best = 0.0;
    for (int round = 0; round < 6; round++) {
        double begun = now();
        check(sd_run(context, sgemm_task, &w, 2 * threads), "sgemm");
        double rate = 2.0 * SIDE * SIDE * SIDE * 8.0 * (double)threads / (now() - begun) / 1e9;
        best = rate > best ? rate : best;
    }
    free(w.a);
    free(w.b);
    free(w.c);
    return best;
}

static double number_of(int argc, char **argv, const char *name, double otherwise) {
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return atof(argv[i + 1]);
    return otherwise;
}

int main(int argc, char **argv) {
    size_t n = (size_t)number_of(argc, argv, "--n", 200000), d = (size_t)number_of(argc, argv, "--d", 384);
    size_t k = (size_t)number_of(argc, argv, "--k", 10);
    double seconds = number_of(argc, argv, "--seconds", 1.0);
    sd_metric metric = (sd_metric)(int)number_of(argc, argv, "--metric", SD_METRIC_COSINE);
    sd_context_config config;
    sd_context *context = NULL;
    sd_index *index = NULL;
    sd_context_config_init(&config);
    config.threads = (int32_t)number_of(argc, argv, "--threads", 0);
    config.blas_threads = SD_BLAS_THREADS_ONE;
    check(sd_context_create(&config, &context), "context");
    check(sd_index_create(context, d, metric, &index), "create");
    const size_t step = 10000;
    double adding = 0.0;
    for (size_t done = 0; done < n; done += step) {
        size_t part = n - done < step ? n - done : step;
        float *rows = numbers(part * d, 17 + done);
        double begun = now();
        check(sd_index_add(index, NULL, rows, part, d), "add");
        adding += now() - begun;
        free(rows);
    }
    double peak = sgemm_rate(context);
    printf("%zu x %zu, %s, k %zu, %d threads, products by %s; added at %.0f rows/s\n", n, d,
           sd_metric_name((int32_t)metric), k, (int)sd_context_threads(context), sd_gemm_name(), (double)n / adding);
    printf("sgemm: %.1f GFLOP/s\n%8s %12s %10s %8s %10s\n", peak, "batch", "queries/s", "GFLOP/s", "share", "GB/s read");
    static const size_t batches[] = {1, 8, 64, 256};
    float *queries = numbers(256 * d, 5), *scores = numbers(256 * k, 6);
    int64_t *ids = malloc(256 * k * sizeof *ids);
    for (size_t i = 0; i < 4 && ids; i++) {
        size_t batch = batches[i];
        double best = 1e30, begun = now();
        for (int round = 0; round < 3 || now() - begun < seconds; round++) {
            double start = now();
            check(sd_index_query(index, queries, batch, d, k, ids, scores), "query");
            best = now() - start < best ? now() - start : best;
        }
        double rate = 2.0 * (double)n * (double)d * (double)batch / best / 1e9;
        printf("%8zu %12.0f %10.1f %7.0f%% %10.1f\n", batch, (double)batch / best, rate, 100.0 * rate / peak,
               (double)n * (double)d * 4.0 / best / 1e9);
    }
    free(queries);
    free(scores);
    free(ids);
    sd_index_destroy(index);
    sd_context_destroy(context);
    return 0;
}
