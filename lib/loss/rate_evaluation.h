/* rate_evaluation - one evaluation of the coding rate, as its three parts share it: the Gram (rate_gram.c), the
 * factorisation (coding_rate.c) and the gradient (rate_gradient.c). */
#ifndef SD_RATE_EVALUATION_H
#define SD_RATE_EVALUATION_H

#include "loss/rate.h"

#include <stdatomic.h>

typedef struct sd_rate_evaluation {
    sd_rate_space *space;
    const sd_rows *z;
    bool tall;            /* d <= n: G = Z'Z, and slices are rows; else columns */
    size_t k, length;     /* short and long side */
    size_t slice, slices; /* the long side is cut by sizes alone, so that results do not depend on threads */
    double alpha;
    double trace, frobenius; /* of G */

    bool float_gram;
    /* Of the float Gram: the slices computed at once, and whether they are the first and the last ones. */
    size_t first_slice, group;
    bool first_group, last_group;
    float *m32; /* M = I + alpha G in float, its upper triangle: k rows at a distance of ld32 */
    size_t ld32;

    /* M^-1, whole (k x k), in one type or both. */
    float *inverse32;
    double *inverse64;
    double inverse_trace, inverse_frobenius;

    double factor; /* alpha * scale, for the gradient */
    const sd_rows_out *grad;
    enum { SD_RATE_PRODUCT_FLOAT, SD_RATE_PRODUCT_DOUBLE, SD_RATE_PRODUCT_QR } product;
    bool probe_only; /* look for overflow, write nothing */
    atomic_bool overflow;
} sd_rate_evaluation;

/* Runs task(e, i, thread) for i < count on the space's threads. */
void sd_rate_run(sd_rate_evaluation *e, sd_parallel_function task, size_t count);

static inline void *sd_rate_scratch(const sd_rate_evaluation *e, size_t thread) {
    return e->space->scratch + thread * e->space->scratch_bytes;
}

/* G in double into the upper triangle of space->matrix, from products in float or in double as e->float_gram tells, with
 * its trace and norm. */
void sd_rate_gram(sd_rate_evaluation *e);
/* M = I + alpha G rounded to float into e->m32, from products in float, with trace and norm of G; e->inverse32 is set to
 * room for its inverse. */
void sd_rate_float_matrix(sd_rate_evaluation *e);
/* Columns first .. first+count-1 of Z as n x count (wide), or those rows as count x d (tall), in double. */
void sd_rate_load_chunk(const sd_rate_evaluation *e, size_t first, size_t count, double *out);

/* False when the gradient does not fit into float: nothing is written then. */
bool sd_rate_write_gradient(sd_rate_evaluation *e);

#endif
