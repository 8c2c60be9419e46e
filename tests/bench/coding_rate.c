/* The coding rate and its gradient. GFLOP counts the least work, by the smaller side k: a triangle of the Gram matrix
 * (n d k), factorisation and inverse (k^3), gradient (2 n d k). */
#include "bench.h"

#include "base/system.h"

#include <stdlib.h>

#define MOST    201
#define SECONDS 3.0

void bench_coding_rate(const options *o, sd_context *context, FILE *json) {
    size_t n = (size_t)o->n, d = (size_t)o->d;
    float *z = take(n * d, sizeof *z), *grad = take(n * d, sizeof *grad);
    sd_random random;
    sd_random_init(&random, 1, 0, 0);
    for (size_t i = 0; i < n * d; i++)
        z[i] = (float)sd_random_normal(&random);
    check(sd_normalize_rows(z, n, d, d, NULL), "normalize");
    sd_coding_rate_plan *plan;
    check(sd_coding_rate_plan_create(context, n, d, &plan), "plan");
    double rate, times[MOST], side = n < d ? (double)n : (double)d;
    check(sd_coding_rate_plan_run(plan, z, n, d, d, 0.05, &rate, grad, d), "coding rate");
    size_t count = 0;
    for (double start = now(); count < MOST && (count < 5 || now() - start < SECONDS); count++) {
        double begin = now();
        check(sd_coding_rate_plan_run(plan, z, n, d, d, 0.05, &rate, grad, d), "coding rate");
        times[count] = now() - begin;
    }
    figures f = {.flop = 3.0 * (double)n * (double)d * side + side * side * side, .peak_mib = peak_mib()};
    f.seconds = median(times, count);
    f.fastest = times[0];
    printf("coding rate and gradient, n %zu, d %zu, float, %d threads: %.4f ms (median of %zu), R = %.6f\n  ", n, d,
           sd_context_threads(context), 1e3 * f.seconds, count, rate);
    print_rate(&f);
    char extra[96];
    snprintf(extra, sizeof extra, ", \"rate\": %.9f, \"blas_threads\": %d", rate, sd_blas_thread_count());
    write_json(json, o, context, "coding-rate", &f, extra);
    sd_coding_rate_plan_destroy(plan);
    free(grad);
    free(z);
}
