/* prototypes - the weight-normalised last layer of DINO's head, and assignments of features to it.
 *
 * K prototypes, p the width of a feature. */
#ifndef SD_LOSS_PROTOTYPES_H
#define SD_LOSS_PROTOTYPES_H

#include "base/base.h"
#include "math/kernels.h"
#include <simdino/loss.h>

/* ---- weight norm (prototypes.c) ------------------------------------------------------------ */

/* W_k = g_k v_k/|v_k|. weights: K x p. A v_k of length 0 gives a row of zeros. */
sd_status sd_prototypes_weights(sd_context *context, const sd_prototypes *layer, size_t p, float *weights);
/* Adds the gradients of v and g that follow from dW. */
sd_status sd_prototypes_backward(sd_context *context, const sd_prototypes *layer, size_t p, const float *dweights,
                                 const sd_prototypes_gradient *into);

/* ---- Sinkhorn-Knopp (sinkhorn.c) ------------------------------------------------------------ */

/* scores: n rows of K logits, row distance ld, each times inverse_temperature; on return e^(score - largest of its row).
 * Finds u[n] and v[K] so that Q_ij = u_i v_j scores_ij has rows that sum to 1 and columns that are alike after `iterations` rounds of
 * the official code (columns first, rows last). */
sd_status sd_sinkhorn(sd_context *context, const sd_kernels *kernels, float *scores, size_t n, size_t K, size_t ld,
                      int32_t iterations, double *u, double *v);

/* ---- assignments (assignment.c) -------------------------------------------------------------- */

/* Cross-entropies of student rows against the assignments of teacher rows, computed a tile at a time: the logits of all
 * rows never exist together. */
typedef struct sd_assignment sd_assignment;

/* A tile has up to max_teacher teacher rows and max_student student rows; all_teacher: teacher rows of a whole evaluation
 * (Sinkhorn keeps their logits). */
sd_status sd_assignment_create(sd_context *context, const sd_dino_config *config, size_t p, size_t prototypes,
                               size_t max_teacher, size_t max_student, size_t all_teacher, sd_assignment **assignment);
void sd_assignment_destroy(sd_assignment *assignment);

/* One student row of a tile: its target is the sum of one or two teacher rows, its loss and gradient are multiplied by
 * `weight`. */
typedef struct sd_assigned_row {
    size_t target[2]; /* teacher rows of the tile */
    size_t targets;   /* 1 or 2 */
    float weight;
} sd_assigned_row;

/* Sizes and arrays of one evaluation. */
typedef struct sd_assignment_pass {
    const sd_prototypes *student_layer, *teacher_layer;
    double teacher_temp;
    bool gradient;              /* wanted: of the features and the prototypes */
    float gradient_weight;      /* multiplies it, but not the losses */
    const float *teacher;       /* all teacher rows, count x p (Sinkhorn) */
    size_t teacher_count;
} sd_assignment_pass;

sd_status sd_assignment_begin(sd_assignment *a, const sd_assignment_pass *pass);
/* The tile's rows, to be filled by the caller: first_teacher is the number of the tile's first teacher row within
 * pass->teacher when the rows are consecutive there; teacher_numbers NULL then, else the number of each. */
typedef struct sd_assignment_tile {
    size_t teacher_count, student_count;
    float *teacher, *student;       /* teacher_count x p, student_count x p */
    size_t *teacher_numbers;        /* of each teacher row within pass->teacher */
    sd_assigned_row *rows;          /* student_count */
    double *losses;                 /* student_count, weighted, on return */
    float *dstudent;                /* student_count x p, on return */
} sd_assignment_tile;
/* The arrays of the next tile. */
sd_assignment_tile sd_assignment_tile_of(sd_assignment *a);
sd_status sd_assignment_run(sd_assignment *a, const sd_assignment_pass *pass, const sd_assignment_tile *tile);
/* Adds the prototypes' gradient of all tiles to `into`, and tells the entropy of the mean assignment. Only now do the
 * teacher's logits count for the center: an evaluation that failed before it leaves no trace. */
sd_status sd_assignment_end(sd_assignment *a, const sd_assignment_pass *pass, const sd_prototypes_gradient *into,
                            double *entropy);

void sd_assignment_commit(sd_assignment *a);
void sd_assignment_discard(sd_assignment *a);
float *sd_assignment_center(sd_assignment *a);
/* Most teacher and student rows of a tile. */
size_t sd_assignment_max_student(const sd_assignment *a);

#endif
