/* loss.h - the coding rate, rate reduction, and the losses of SimDINO, SimDINOv2, DINO and DINOv2, each with its
 * gradient.
 *
 * The coding rate of n rows z_i of d numbers,
 *     R(Z) = 1/2 log det( I + d/(n eps_sq) Z'Z ),
 * measures (in nats) how much room the rows take up: 0 for rows of zeros, small when they have
 * collapsed onto a few directions, largest when they fill all of them. SimDINO maximises it.
 *
 * `eps_sq` is the square of the paper's epsilon; the official code calls it --eps.
 * All functions here are thread-safe and use no context unless they take one.
 */
#ifndef SIMDINO_LOSS_H
#define SIMDINO_LOSS_H

#include <simdino/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- simple: one call ---------------------------------------------------------------------- */

/* Coding rate of Z (n rows of d floats, row r at z + r*ldz, ldz >= d) and its gradient.
 *   rate   receives R(Z); may be NULL.
 *   grad   receives dR/dZ, n rows of d at grad + r*ldg, ldg >= d; may be NULL (ldg is ignored then);
 *          must not overlap z.
 * Works on the smaller of Z'Z and ZZ', with a Cholesky factorisation in double precision; rank-deficient Z, n < d,
 * n = 1, d = 1 and tiny eps_sq are all fine. Relative accuracy 1e-5 or better.
 * Allocates its working space with malloc (see sd_coding_rate_plan to avoid that).
 * Errors: SD_ERR_ARGUMENT (n or d 0, ld too small, eps_sq not positive and finite),
 * SD_ERR_NUMERIC (NaN or infinity in Z, or a result that is not finite), SD_ERR_MEMORY. */
SD_API sd_status sd_coding_rate(const float *z, size_t n, size_t d, size_t ldz, double eps_sq,
                                double *rate, float *grad, size_t ldg);

/* The same in double precision throughout; relative accuracy 1e-10 or better. */
SD_API sd_status sd_coding_rate_f64(const double *z, size_t n, size_t d, size_t ldz, double eps_sq,
                                    double *rate, double *grad, size_t ldg);

/* The same from a second-moment matrix G = Z'Z (d x d, symmetric, both triangles filled, row r at gram + r*ldg) of
 * n_total rows, which may have been accumulated over batches or summed over processes.
 *   dgram  receives dR/dG (symmetric; dR/dZ = 2 Z dR/dG), row r at dgram + r*lddg; may be NULL.
 * Errors: as above; SD_ERR_NUMERIC also when G is not positive semi-definite: sd_last_error() tells the pivot. */
SD_API sd_status sd_coding_rate_gram(const double *gram, size_t d, size_t ldg, double n_total, double eps_sq,
                                     double *rate, double *dgram, size_t lddg);

/* The factor that balances expansion against compression, gamma = (d + n) / (d n), for n rows of width d (the
 * official code's (p + N m) / (p N m)). 0 when n or d is 0. */
SD_API double sd_coding_rate_gamma(size_t n, size_t d);

/* ---- a plan: no allocation per call -------------------------------------------------------- */

/* Working space for up to n_max rows of width up to d_max. One plan per thread. */
typedef struct sd_coding_rate_plan sd_coding_rate_plan;

/* context may be NULL: then memory comes from malloc.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_MEMORY. */
SD_API sd_status sd_coding_rate_plan_create(sd_context *context, size_t n_max, size_t d_max,
                                            sd_coding_rate_plan **plan);
SD_API void sd_coding_rate_plan_destroy(sd_coding_rate_plan *plan);

/* As the functions above, without allocating. SD_ERR_ARGUMENT when n or d exceeds the plan's. */
SD_API sd_status sd_coding_rate_plan_run(sd_coding_rate_plan *plan, const float *z, size_t n, size_t d, size_t ldz,
                                         double eps_sq, double *rate, float *grad, size_t ldg);
SD_API sd_status sd_coding_rate_plan_run_f64(sd_coding_rate_plan *plan, const double *z, size_t n, size_t d,
                                             size_t ldz, double eps_sq, double *rate, double *grad, size_t ldg);
SD_API sd_status sd_coding_rate_plan_run_gram(sd_coding_rate_plan *plan, const double *gram, size_t d, size_t ldg,
                                              double n_total, double eps_sq, double *rate, double *dgram,
                                              size_t lddg);

/* ---- rate reduction (MCR2) ----------------------------------------------------------------- */

/* Delta R = R(Z) - sum_k (n_k / n) R(Z_k) over the classes k of `labels` (n values in [0, classes)), R(Z_k) with the
 * scale d/(n_k eps_sq) of its own n_k rows; empty classes count nothing (Yu et al., NeurIPS 2020).
 *   reduction, whole, parts   receive Delta R, R(Z), and the weighted sum; each may be NULL.
 *   grad                      receives d(Delta R)/dZ; may be NULL.
 * Errors: as sd_coding_rate; SD_ERR_ARGUMENT also for a label outside [0, classes). */
SD_API sd_status sd_rate_reduction(const float *z, size_t n, size_t d, size_t ldz, const int32_t *labels,
                                   size_t classes, double eps_sq, double *reduction, double *whole, double *parts,
                                   float *grad, size_t ldg);
SD_API sd_status sd_rate_reduction_f64(const double *z, size_t n, size_t d, size_t ldz, const int32_t *labels,
                                       size_t classes, double eps_sq, double *reduction, double *whole, double *parts,
                                       double *grad, size_t ldg);

/* ---- the SimDINO loss ---------------------------------------------------------------------- */

typedef struct sd_simdino_config {
    size_t size;
    double eps_sq;      /* default 0.05 */
    double coeff;       /* weight of compression, default 1 */
    int32_t expa_type;  /* expansion of W = student's global view (0), or (student + teacher)/2 (1, default) */
    int32_t groups;     /* N: the batch is split into this many equal groups of consecutive samples, as
                           N processes would hold it; default 1 */
    int32_t reduce_gram;/* 1: the Grams of the groups are summed before the determinant (the official
                           reduce_cov=1); 0 (default): each group has its own rate, and the mean counts. With
                           groups = 1 both are the same. In both cases N m rows enter scale and gamma, as
                           in the official code. */
    int32_t normalized; /* 1 (default): compression uses the plain dot product, rows being of length 1 already;
                           0: it divides by the norms (clamped at 1e-8), as SimDINO's cosine_similarity does */
    /* zero; room for later settings, because this struct is also part of sd_pretrainer_config */
    int64_t reserved[8];
} sd_simdino_config;

SD_API void sd_simdino_config_init(sd_simdino_config *config);

typedef struct sd_simdino_result {
    double loss;           /* -coeff * compression - expansion */
    double compression;    /* mean cosine of (teacher global view, student view) pairs of different views */
    double expansion;      /* gamma * mean of R(W_i) over the two global views */
    double rate;           /* mean of R(W_i) without gamma */
    double effective_rank; /* (tr G)^2 / tr(G^2), G = S'S of the student's first global view: between 1 and min(m, p);
                              0 when all its features are 0 */
    /* mean cosine between different samples of that view: near 1 when collapsed; 0 for one sample */
    double similarity;
} sd_simdino_result;

typedef struct sd_simdino_loss sd_simdino_loss;

/* A loss for batches of up to max_samples (m), of max_views views (2 global first, then local), with features of
 * width dim (p). Owns all working space: evaluating allocates nothing.
 * context may be NULL: then memory comes from malloc.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_MEMORY. */
SD_API sd_status sd_simdino_loss_create(sd_context *context, const sd_simdino_config *config, size_t max_samples,
                                        size_t max_views, size_t dim, sd_simdino_loss **loss);
SD_API void sd_simdino_loss_destroy(sd_simdino_loss *loss);

/* Other weights from the next evaluation on, for recipes that schedule them. Errors: SD_ERR_ARGUMENT (as creation). */
SD_API sd_status sd_simdino_loss_set_weights(sd_simdino_loss *loss, double eps_sq, double coeff);

/* Value and gradient (design: compression = mean over teacher global view i, student view j, i != j).
 *   student  views*samples rows of dim, view after view, rows contiguous (leading dimension dim)
 *   teacher  2*samples rows of dim; carries no gradient
 *   grad     receives d loss / d student, same shape; may be NULL. With groups > 1: the gradient of
 *            the mean of the groups' losses, which is what data-parallel training averages to.
 * result     the means over groups.
 * views >= 2; with views = 2 compression pairs the two global views with each other.
 * Errors: SD_ERR_ARGUMENT (sizes beyond those of creation, samples not a multiple of groups), SD_ERR_NUMERIC (NaN or
 * infinity in a feature, or a factorisation that failed: sd_last_error() names view, group and pivot). */
SD_API sd_status sd_simdino_loss_evaluate(sd_simdino_loss *loss, const float *student, const float *teacher,
                                          size_t samples, size_t views, float *grad, sd_simdino_result *result);

/* ---- masked patches: SimDINOv2 -------------------------------------------------------------- */

/* -sum_r weights[r] cos(student_r, teacher_r) / images: the loss of SimDINOv2's masked patches.
 *   student, teacher  count rows of dim; the norms are clamped at 1e-8
 *   weights           count; official: 1/(masked patches of the row's image)
 *   images            all global crops of the batch, masked or not
 *   grad              receives its gradient with respect to the student rows; may be NULL
 *   loss              receives the value; 0 rows have 0
 * Thread-safe. Errors: SD_ERR_ARGUMENT, SD_ERR_NUMERIC (NaN or infinity). */
SD_API sd_status sd_patch_cosine(const float *student, const float *teacher, size_t count, size_t dim,
                                 const float *weights, size_t images, float *grad, double *loss);

/* ---- prototypes: DINO, DINOv2 --------------------------------------------------------------- */

/* The last layer of DINO's head, W_k = g_k v_k/|v_k|, logits = features W'. It is part of the losses here, because they
 * compute it for a few samples at a time: all logits of a batch with 65,536 prototypes would take gigabytes. A v_k of
 * length 0 has the logit 0 and no gradient. */
typedef struct sd_prototypes {
    const float *weight_v; /* count x dim, as stored: not normalised */
    const float *weight_g; /* count; NULL: 1 everywhere */
    size_t count;          /* K */
} sd_prototypes;

/* Arrays to which gradients are added, shaped like the weights; NULL: not wanted, and not
 * computed. */
typedef struct sd_prototypes_gradient {
    float *weight_v, *weight_g;
} sd_prototypes_gradient;

typedef enum sd_target_kind {
    SD_TARGET_CENTER = 0,  /* softmax((teacher logits - center) / temperature), the center a moving average of logits */
    SD_TARGET_SINKHORN = 1 /* Sinkhorn-Knopp: all prototypes are used alike within the batch (M. Caron et al., 2020) */
} sd_target_kind;

typedef struct sd_dino_config {
    size_t size;
    int32_t target;              /* sd_target_kind, default SD_TARGET_CENTER */
    int32_t sinkhorn_iterations; /* default 3 */
    double student_temp;         /* default 0.1 */
    double center_momentum;      /* default 0.9 */
    /* sd_precision of the products with prototypes, default SD_PRECISION_FP32. Within sd_pretrainer_config it is not
     * read: its own precision counts */
    int32_t precision;
    int32_t unused;
    /* zero; room for later settings, because this struct is also part of sd_pretrainer_config */
    int64_t reserved[7];
} sd_dino_config;
SD_API void sd_dino_config_init(sd_dino_config *config);

/* The loss of class tokens: the mean over pairs of teacher global view i and student view j, i != j, of the mean
 * cross-entropy of the teacher's assignment against softmax(student logits / student_temp). That is DINO's loss, the
 * sum of DINOv2's local and global one, and, times the number of pairs (2 views - 2), what SimDINOv2's DINOLoss
 * returns. */
typedef struct sd_dino_loss sd_dino_loss;

typedef struct sd_dino_result {
    double loss;
    double local_loss, global_loss; /* its parts with a local and with a global student view */
    double target_entropy;          /* of the teacher's mean assignment, in nats: ln K when all prototypes serve alike */
    double effective_rank;          /* of the student's first global view, as in sd_simdino_result */
    double similarity;
} sd_dino_result;

/* For up to max_samples samples, max_views views, features of width dim and `prototypes` prototypes. Owns all working
 * space, evaluating allocates nothing: logits of some samples at a time (about 240 K floats; 57 MB with K = 65,536 and
 * dim 256, whatever the batch) and, with SD_TARGET_SINKHORN, one copy of the teacher's logits (2 max_samples K floats).
 * The context (its memory and threads) may be NULL. One loss per thread; its results do not depend on the number of the
 * context's threads. Errors: SD_ERR_ARGUMENT (names the setting), SD_ERR_MEMORY. */
SD_API sd_status sd_dino_loss_create(sd_context *context, const sd_dino_config *config, size_t max_samples,
                                     size_t max_views, size_t dim, size_t prototypes, sd_dino_loss **loss);
SD_API void sd_dino_loss_destroy(sd_dino_loss *loss);

/* Value and gradients.
 *   student  views*samples rows of dim, view after view, 2 global views first
 *   teacher  2*samples rows; carries no gradient
 *   grad     receives d loss / d student; may be NULL, and then no gradient is computed
 *   into     receives the gradient of the student's prototypes; may be NULL
 * The center is not changed until sd_dino_loss_commit. Sinkhorn-Knopp is computed on logits less their maximum, and on
 * logarithms where they are more than 80 temperatures apart: where the official code's exponentials stay finite both
 * agree, where they overflow (above 88 temperatures: NaN) ours goes on.
 * When it fails, `result` and what commit would do are as before; grad and the arrays of `into` hold nothing of use.
 * Errors: SD_ERR_ARGUMENT (sizes beyond those of creation, no prototypes, temperature not positive), SD_ERR_NUMERIC
 * (NaN or infinity in features, prototypes or center), SD_ERR_THREAD. */
SD_API sd_status sd_dino_loss_evaluate(sd_dino_loss *loss, const float *student, const float *teacher, size_t samples,
                                       size_t views, const sd_prototypes *student_layer,
                                       const sd_prototypes *teacher_layer, double teacher_temp, float *grad,
                                       const sd_prototypes_gradient *into, sd_dino_result *result);

/* center <- m center + (1-m) mean of the teacher's logits of all evaluations since the last commit; or forgets those.
 * Without an evaluation between, commit does nothing. DINO commits at the end of a step, DINOv2 before the next use:
 * the same numbers. */
SD_API void sd_dino_loss_commit(sd_dino_loss *loss);
SD_API void sd_dino_loss_discard(sd_dino_loss *loss);
/* The center, K floats, zeros at first, writable, for saving and resuming. Not used by SD_TARGET_SINKHORN. */
SD_API float *sd_dino_loss_center(sd_dino_loss *loss);

/* The loss of masked patches (iBOT): sum_r weights[r] CE_r / images over `count` rows, targets and center as above.
 *   student, teacher  count rows of dim: the same patches, which the student did not see
 *   weights           count; official: 1/(masked patches of the row's image)
 *   images            all global crops of the batch, masked or not
 * Memory: logits of some rows at a time (192 K floats) and, with SD_TARGET_SINKHORN, max_rows K floats. */
typedef struct sd_patch_loss sd_patch_loss;
SD_API sd_status sd_patch_loss_create(sd_context *context, const sd_dino_config *config, size_t max_rows, size_t dim,
                                      size_t prototypes, sd_patch_loss **loss);
SD_API void sd_patch_loss_destroy(sd_patch_loss *loss);
/* `weight` multiplies the gradients, not the value that `result` receives. 0 rows: 0, and the center does not change.
 * Else as sd_dino_loss_evaluate. */
SD_API sd_status sd_patch_loss_evaluate(sd_patch_loss *loss, const float *student, const float *teacher, size_t count,
                                        const float *weights, size_t images, const sd_prototypes *student_layer,
                                        const sd_prototypes *teacher_layer, double teacher_temp, double weight,
                                        float *grad, const sd_prototypes_gradient *into, double *result);
SD_API void sd_patch_loss_commit(sd_patch_loss *loss);
SD_API void sd_patch_loss_discard(sd_patch_loss *loss);
SD_API float *sd_patch_loss_center(sd_patch_loss *loss);

/* ---- KoLeo: DINOv2 -------------------------------------------------------------------------- */

/* KoLeo (A. Sablayrolles et al., ICLR 2019): -mean log |u_i - u_n(i)|, u the rows divided by their lengths, n(i) the
 * row nearest to i. The gradient reaches both rows of a pair. */
typedef struct sd_koleo sd_koleo;
SD_API sd_status sd_koleo_create(sd_context *context, size_t max_rows, size_t max_dim, sd_koleo **koleo);
SD_API void sd_koleo_destroy(sd_koleo *koleo);
/* rows: count >= 2 of dim. grad receives the gradient; may be NULL. One row has the value 0.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_NUMERIC. */
SD_API sd_status sd_koleo_evaluate(sd_koleo *koleo, const float *rows, size_t count, size_t dim, float *grad,
                                   double *loss);

#ifdef __cplusplus
}
#endif
#endif
