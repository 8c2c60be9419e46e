/* rate - the coding rate's inside: one evaluation on working space made before. The rest of the room is built on it. */
#ifndef SD_RATE_H
#define SD_RATE_H

#include "base/base.h"
#include "math/dense.h"
#include <simdino/loss.h>

/* n rows of d, of float or of double: exactly one of the pointers is set. The short side is k = min(n, d); M = I +
 * alpha G is k x k, with G = Z'Z when d <= n and ZZ' otherwise. The long side is cut into slices, of which G is the
 * sum. */
typedef struct sd_rows {
    const float *f32;
    const double *f64;
    size_t n, d, ld;
} sd_rows;

/* Where the gradient goes: as the rows. */
typedef struct sd_rows_out {
    float *f32;
    double *f64;
    size_t ld;
} sd_rows_out;

/* Columns or rows converted to double at once. */
#define SD_RATE_CHUNK ((size_t)128)
/* Partial Grams kept at once when several threads compute them. */
#define SD_RATE_PARTIALS ((size_t)4)

typedef struct sd_rate_space {
    sd_context *context; /* memory */
    sd_context *threads; /* the slices run on its threads; NULL: on this one */
    const sd_dense *dense; /* the products */
    size_t k_max;
    size_t partials;     /* room for so many partial Grams: 1 without threads */
    size_t workers;      /* room for so many threads' chunks */
    /* k x k of double, or twice k x k of float: M, then its factors. The one allocation: the others lie in it */
    double *matrix;
    /* partials x k x k of double, or twice as many of float: Grams of slices; then the inverse */
    double *partial;
    double *chunks;      /* workers x 2 x k x SD_RATE_CHUNK */
    char *scratch;       /* workers x scratch_bytes, for the products */
    size_t scratch_bytes;
    double *sums;        /* 2 x k: of rows; then squares and pivots */
} sd_rate_space;

/* How the Gram may be computed. */
typedef enum sd_rate_precision {
    SD_RATE_FLOAT_GRAM, /* in float where the error bound allows it */
    SD_RATE_DOUBLE_GRAM
} sd_rate_precision;

/* Working space for a short side up to k_max. `threads` may be NULL. On failure nothing is kept. */
sd_status sd_rate_space_create(sd_context *context, sd_context *threads, size_t k_max, sd_rate_space *space);
void sd_rate_space_destroy(sd_rate_space *space);

/* What went wrong, for a message with the caller's names: a number that is not finite, or a result that is not. */
typedef struct sd_rate_failure {
    bool bad_input;
    size_t row, column;
} sd_rate_failure;

/* R(Z) = 1/2 log det(I + alpha G) into *rate and scale * dR/dZ into `grad` (NULL: none). False when the result is not
 * finite; then *failure tells why and the outputs are as before. Does not allocate. */
bool sd_rate_evaluate(sd_rate_space *space, const sd_rows *z, double alpha, sd_rate_precision precision, double scale,
                      double *rate, const sd_rows_out *grad, sd_rate_failure *failure);

/* (tr G)^2 / tr(G^2) of float rows: how many directions they fill evenly; 0 for rows of zeros, NaN when they are not
 * finite. */
double sd_rate_effective_rank(sd_rate_space *space, const sd_rows *z);

/* sd_fail with the message for `failure`; `where` is put before ("" or "student view 1, group 3: "). */
sd_status sd_rate_fail(const sd_rate_failure *failure, const sd_rows *z, double alpha, const char *where);

/* The rows first .. first+count-1 of the long side as count x k doubles (ld k), times `factor`. */
void sd_rows_long(const sd_rows *z, size_t first, size_t count, double factor, double *out);

/* Upper triangular R (k x k, in place over the zeroed `r`) with R'R = I + alpha G by Householder reflections, never
 * forming G: for matrices whose condition number a Gram in double could not carry. chunk: k x SD_RATE_CHUNK. Returns
 * 1/2 log det = sum log R_ii. */
double sd_rate_qr(const sd_rows *z, double alpha, double *r, double *chunk);
/* R^-1 in place (upper triangle). */
void sd_rate_qr_invert(size_t k, double *r);

/* Checks what every public form checks. */
sd_status sd_rate_check(const void *z, size_t n, size_t d, size_t ldz, double eps_sq, const void *grad, size_t ldg);
double sd_rate_alpha(double n, size_t d, double eps_sq);

#endif
