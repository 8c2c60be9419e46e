/* The three products of a linear layer on one thread, in fp32 and in bf16 in turn: m rows, k numbers in, n out. Time is
 * that of the thread, which other work on the machine does not add to. */
#define _POSIX_C_SOURCE 200809L
#include "bench.h"

#include "base/system.h"
#include "math/math.h"

#include <stdlib.h>
#include <time.h>

typedef struct product_shape {
    size_t m, n, k;
} product_shape;

static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One product: 0 forward Y = X W', 1 backward dX = dY W, 2 weights dW = dY' X. */
static void multiply(const sd_gemm *gemm, int which, const product_shape *s, const float *x, const float *w,
                     const float *y, float *out) {
    if (which == 0)
        sd_multiply(gemm, false, true, s->m, s->n, s->k, 1.0f, x, s->k, w, s->k, 0.0f, out, s->n);
    else if (which == 1)
        sd_multiply(gemm, false, false, s->m, s->k, s->n, 1.0f, y, s->n, w, s->k, 0.0f, out, s->k);
    else
        sd_multiply(gemm, true, false, s->n, s->k, s->m, 1.0f, y, s->n, x, s->k, 0.0f, out, s->k);
}

static void bench_shape(const product_shape *s, FILE *json) {
    static const char *const names[] = {"forward", "backward", "weights"};
    void *scratch = sd_allocate(NULL, sd_size_max(sd_gemm_scratch(SD_PRECISION_FP32), sd_gemm_scratch(SD_PRECISION_BF16)), 1);
    const sd_gemm gemms[] = {sd_gemm_of(SD_PRECISION_FP32, scratch), sd_gemm_of(SD_PRECISION_BF16, scratch)};
    float *x = random_floats(s->m * s->k, 1), *w = random_floats(s->n * s->k, 2), *y = random_floats(s->m * s->n, 3);
    float *out = random_floats(s->m * s->n + s->m * s->k + s->n * s->k, 4);
    double flop = 2.0 * (double)s->m * (double)s->n * (double)s->k;
    printf("  %5zu %5zu %5zu  ", s->m, s->n, s->k);
    for (int which = 0; which < 3; which++) {
        double times[2][31];
        size_t count = 0;
        for (double start = now(); count < 31 && (count < 3 || now() - start < 0.35); count++)
            for (int precision = 0; precision < 2; precision++) {
                double begin = thread_seconds();
                multiply(&gemms[precision], which, s, x, w, y, out);
                times[precision][count] = thread_seconds() - begin;
            }
        double fp32 = flop / median(times[0], count) * 1e-9, bf16 = flop / median(times[1], count) * 1e-9;
        printf("  %7.1f %7.1f %5.2f", fp32, bf16, bf16 / fp32);
        if (json != NULL)
            fprintf(json,
                    "{\"mode\": \"products\", \"product\": \"%s\", \"m\": %zu, \"n\": %zu, \"k\": %zu, "
                    "\"fp32_gflops\": %.3f, \"bf16_gflops\": %.3f}\n",
                    names[which], s->m, s->n, s->k, fp32, bf16);
    }
    printf("\n");
    free(out);
    free(y);
    free(w);
    free(x);
    sd_release(NULL, scratch);
}

void bench_products(const options *o, FILE *json) {
    static const product_shape shapes[] = {{394, 1152, 384}, {394, 384, 384}, {394, 1536, 384}, {394, 384, 1536},
                                           {1600, 576, 192}, {1600, 192, 192}, {1600, 768, 192}, {1600, 192, 768},
                                           {197, 2304, 768}, {197, 197, 64}};
    check(sd_precision_check(SD_PRECISION_BF16), "bf16");
    printf("products of linear layers, one thread, fp32 (%s) and bf16 (%s): GFLOP/s and ratio\n", sd_gemm_of(SD_PRECISION_FP32, NULL).name,
           sd_gemm_of(SD_PRECISION_BF16, NULL).name);
    printf("   rows   out    in   %22s %22s %22s\n", "Y = X W'", "dX = dY W", "dW = dY' X");
    if (o->m > 0) {
        bench_shape(&(product_shape){(size_t)o->m, (size_t)o->n, (size_t)o->d}, json);
        return;
    }
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        bench_shape(&shapes[i], json);
}
