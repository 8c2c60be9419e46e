/* bench.h - what the parts of the bench share. */
#ifndef BENCH_H
#define BENCH_H

#include <simdino/simdino.h>
#include <stdio.h>

typedef struct options {
    long dim, depth, heads, patch, image, local, locals, batch, steps, threads, micro, n, d, m, head_hidden, head_dim;
    long width, height; /* of the images that are augmented */
    int memory, packed, plain, no_sgemm;
    long recompute; /* blocks */
    int32_t precision;
    const char *json;
} options;

/* What was measured of one piece of work. */
typedef struct figures {
    double seconds, fastest; /* median, and the least */
    double flop;             /* of its matrix products; 0: not counted */
    double sgemm;            /* GFLOP/s of sgemm_rate; 0: not measured */
    double peak_mib;         /* most memory that the process has held, without what sgemm_rate takes */
} figures;

double now(void);
/* Ends the program when the status is not SD_OK. */
void check(sd_status status, const char *what);
/* calloc that ends the program when there is no memory. */
void *take(size_t count, size_t size);
/* Between -1 and 1; the caller frees them. */
float *random_floats(size_t count, uint64_t seed);
/* The middle of the values, which are sorted by it. */
double median(double *values, size_t count);
/* Median, least and peak memory; then the sgemm rate, unless --no-sgemm. */
figures figures_of(const options *o, sd_context *context, double *times, size_t count, double flop);
/* GFLOP/s of all threads together, each with products of its own. */
double sgemm_rate(sd_context *context);
/* Most MiB that the process has held so far. */
double peak_mib(void);
/* Nanoseconds until another thread has answered (round_trip.c); 0 where there is none. */
double round_trip_ns(void);
/* FLOP of the network's forward pass for one image. */
double vit_flop(const options *o, double side);
/* "12.3 GFLOP/s = 45.6% of sgemm (...)" */
void print_rate(const figures *f);
/* One line of JSON with all options and figures; extra: more members, "" or ", \"name\": value...". */
void write_json(FILE *json, const options *o, sd_context *context, const char *mode, const figures *f,
                const char *extra);

/* A training step (step.c): a pretrainer, and crops that are ready. */
typedef struct step_work {
    sd_pretrainer *trainer;
    sd_crop_batch crops;
    float *pixels;
    size_t planned; /* bytes that were foretold */
    sd_step_metrics metrics;
} step_work;
step_work make_step(const options *o, sd_context *context);
/* Its seconds. */
double run_step(step_work *step);
void drop_step(step_work *step);

/* ---- the modes, a file each ------------------------------------------------------------------ */

void bench_step(const options *o, sd_context *context, FILE *json);
void bench_sections(const options *o, FILE *json);
void bench_embed(const options *o, sd_context *context, FILE *json);
void bench_coding_rate(const options *o, sd_context *context, FILE *json);
void bench_augment(const options *o, sd_context *context, FILE *json);
void bench_products(const options *o, FILE *json);
void bench_layers(const options *o, FILE *json);
void bench_peak(const options *o, sd_context *context, FILE *json);

#endif
