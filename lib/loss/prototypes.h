/* prototypes - the weight-normalised last layer of DINO's head, and assignments of features to it.
 *
 * K prototypes, p the width of a feature, n rows. */
#ifndef SD_LOSS_PROTOTYPES_H
#define SD_LOSS_PROTOTYPES_H

#include "base/base.h"
#include "math/kernels.h"
#include <simdino/loss.h>

/* ---- weight norm (prototypes.c) ------------------------------------------------------------ */

/* logits_k = <x, W_k>, W_k = g_k v_k/|v_k|. W itself is never formed: the products are made with v, and column k is
 * multiplied by factors[k] = g_k / (|v_k| temperature). inverse_lengths (NULL: not wanted) receives 1/|v_k|. A v_k of
 * length 0 has both 0. */
sd_status sd_prototypes_factors(sd_context *context, const sd_prototypes *layer, size_t p, double temperature,
                                float *factors, double *inverse_lengths);

/* With l = factors_k <x, v_k> and dl its gradient, `into` has been given sum_rows factors_k dl x by the caller. Adds
 * what flows through the factors, from along[k] = sum_rows dl <x, v_k>:
 *     dv_k -= g_k/(|v_k|^3 temperature) along_k v_k,    dg_k += along_k / (|v_k| temperature). */
sd_status sd_prototypes_backward(sd_context *context, const sd_prototypes *layer, size_t p, double temperature,
                                 const double *inverse_lengths, const double *along,
                                 const sd_prototypes_gradient *into);

/* ---- Sinkhorn-Knopp (sinkhorn.c) ------------------------------------------------------------ */

/* scores: n rows of K finite logits divided by the temperature, row distance ld. On return Q_ij = u_i v_j scores_ij
 * with u[n] and v[K]: rows that sum to 1, columns nearly alike, after `iterations` rounds of the official code
 * (columns first, rows last). */
sd_status sd_sinkhorn(sd_context *context, const sd_kernels *kernels, float *scores, size_t n, size_t K, size_t ld,
                      int32_t iterations, double *u, double *v);

/* ---- assignments (assignment.c) -------------------------------------------------------------- */

/* Cross-entropies of student rows against the assignments of teacher rows, computed a tile at a time: the logits of all
 * rows never exist together. One evaluation is begin, run for each tile, end. */
typedef struct sd_assignment sd_assignment;

/* A tile has up to max_teacher teacher rows and max_student student rows; all_teacher: teacher rows of a whole
 * evaluation (Sinkhorn keeps their logits). */
sd_status sd_assignment_create(sd_context *context, const sd_dino_config *config, size_t p, size_t prototypes,
                               size_t max_teacher, size_t max_student, size_t all_teacher, sd_assignment **assignment);
void sd_assignment_destroy(sd_assignment *assignment);

/* What an evaluation is about. */
typedef struct sd_assignment_pass {
    const sd_prototypes *student_layer, *teacher_layer;
    double teacher_temp;
    const float *teacher;               /* all teacher rows, teacher_count x p */
    size_t teacher_count;
    bool gradient;                      /* wanted: of the features, and of what `into` names */
    double gradient_weight;             /* of all gradients, not of the losses */
    const sd_prototypes_gradient *into; /* may be NULL */
} sd_assignment_pass;

/* One student row of a tile: its target is the sum of one or two teacher rows, its loss and gradient are multiplied by
 * `weight`. */
typedef struct sd_assigned_row {
    size_t target[2]; /* teacher rows of the tile */
    size_t targets;   /* 1 or 2 */
    double weight;
} sd_assigned_row;

/* A tile's rows, in arrays of the assignment that the caller fills. */
typedef struct sd_assignment_tile {
    size_t teacher_count, student_count;
    float *teacher, *student; /* teacher_count x p, student_count x p */
    size_t *teacher_numbers;  /* of each teacher row within pass->teacher */
    sd_assigned_row *rows;    /* student_count */
    double *losses;           /* student_count, weighted: written by run */
    float *dstudent;          /* student_count x p: written by run */
} sd_assignment_tile;

sd_status sd_assignment_begin(sd_assignment *a, const sd_assignment_pass *pass);
sd_assignment_tile sd_assignment_tile_of(sd_assignment *a);
sd_status sd_assignment_run(sd_assignment *a, const sd_assignment_pass *pass, const sd_assignment_tile *tile);
/* Completes the prototypes' gradient, tells the entropy of the mean assignment, and remembers the logits for commit. */
sd_status sd_assignment_end(sd_assignment *a, const sd_assignment_pass *pass, double *entropy);

void sd_assignment_commit(sd_assignment *a);
void sd_assignment_discard(sd_assignment *a);
float *sd_assignment_center(sd_assignment *a);

#endif
