/* bench.h - what the parts of the bench share. */
#ifndef BENCH_H
#define BENCH_H

#include <simdino/simdino.h>
#include <stdio.h>

typedef struct options {
    long dim, depth, heads, patch, image, local, locals, batch, steps, threads, micro, n, d, m, head_hidden, head_dim;
    long width, height; /* of the images that are augmented */
    int memory;
    int32_t precision;
    const char *json;
} options;

double now(void);
/* Ends the program when the status is not SD_OK. */
void check(sd_status status, const char *what);
double median(double *values, size_t count);
/* GFLOP/s of all threads together, each with products of its own. */
double sgemm_rate(sd_context *context);
/* FLOP of the network's forward pass for one image. */
double vit_flop(const options *o, double side);

/* ---- products.c ---------------------------------------------------------------------------- */

void bench_products(const options *o, FILE *json);

/* ---- embed.c ------------------------------------------------------------------------------- */

void bench_embed(const options *o, sd_context *context, FILE *json);

/* ---- augment.c ----------------------------------------------------------------------------- */

void bench_augment(const options *o, sd_context *context, FILE *json);

#endif
