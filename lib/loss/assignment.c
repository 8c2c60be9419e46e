/* Cross-entropy of student rows against the teacher's assignments to prototypes, a tile of rows at a time.
 *
 *     teacher  q = softmax((Y W_t' - center) / temp), or Sinkhorn-Knopp over the rows of the whole evaluation
 *     student  CE = sum_k T_k (lse(l) - l_k), l = X W_s' / temp_s, T the sum of one or two q
 *     dl = weight (|T| softmax(l) - T),  dX = dl W_s / temp_s,  dW_s = dl' X / temp_s
 *
 * Threads take pieces of SD_LOGIT_PIECE prototypes: while the logits of a tile with these are in the cache, they are
 * made, looked at, and (in the last of three sections) turned into slopes and multiplied back. W is never formed (see
 * prototypes.h), and dW goes to its place at once, so that beside the parameters there are only the tile's logits. */
#include "loss/prototypes.h"
#include "math/math.h"

#include <math.h>
#include <string.h>

/* dX is a sum over prototypes: at most so many parts of it are summed on their own, so that threads can share the
 * work. */
#define MAX_PARTS ((size_t)16)
#define ROWS_OF_A_TASK ((size_t)16)

/* Of one row within one piece. */
typedef struct piece_sums {
    float largest, sum, dot;
} piece_sums;

struct sd_assignment {
    sd_context *context;
    const sd_kernels *kernels;
    sd_gemm *gemms; /* one for each thread */
    char *gemm_scratch;
    sd_dino_config config;
    size_t p, prototypes, ld; /* ld: distance of rows of logits */
    size_t max_teacher, max_student, all_teacher;
    size_t pieces, parts, pieces_of_a_part;
    float *teacher_logits, *student_logits; /* of a tile: then assignments, and slopes */
    piece_sums *teacher_sums, *student_sums; /* pieces x rows of a tile */
    float *row_largest, *row_share;         /* of a tile's student rows */
    float *teacher_rows, *student_rows, *dstudent, *dstudent_parts; /* of a tile; parts x max_student x p */
    size_t *teacher_numbers;
    sd_assigned_row *rows;
    double *losses;
    float *student_factors, *teacher_factors; /* K */
    double *inverse_lengths;                  /* K: 1/|v| of the student's */
    double *along;                            /* K: see sd_prototypes_backward */
    double *logit_sums, *target_sums;         /* K: of the teacher's <y, v> and assignments in this evaluation */
    float *center;                            /* K */
    double *pending;                          /* K: sum of the teacher's logits since the last commit */
    uint64_t pending_rows;
    float *scores; /* Sinkhorn: all_teacher x ld */
    double *row_factors, *column_factors;
    float *score_checks; /* pieces: 0, or NaN when a logit is not finite */
};

/* ---- create and destroy -------------------------------------------------------------------- */

static sd_status check_config(const sd_dino_config *config) {
    SD_REQUIRE(config->target == SD_TARGET_CENTER || config->target == SD_TARGET_SINKHORN, SD_ERR_ARGUMENT,
               "dino.target is %d: it must be one of sd_target_kind", config->target);
    SD_REQUIRE(config->sinkhorn_iterations >= 1 && config->sinkhorn_iterations <= 1000, SD_ERR_ARGUMENT,
               "dino.sinkhorn_iterations is %d: it must be 1 to 1000", config->sinkhorn_iterations);
    SD_REQUIRE(config->student_temp > 0.0 && isfinite(config->student_temp), SD_ERR_ARGUMENT,
               "dino.student_temp is %g: it must be above 0", config->student_temp);
    SD_REQUIRE(config->center_momentum >= 0.0 && config->center_momentum <= 1.0, SD_ERR_ARGUMENT,
               "dino.center_momentum is %g: it must be in [0, 1]", config->center_momentum);
    SD_REQUIRE(config->unused == 0, SD_ERR_ARGUMENT, "dino.unused is not 0: set by a newer header?");
    for (size_t i = 0; i < sizeof(config->reserved) / sizeof(*config->reserved); i++)
        SD_REQUIRE(config->reserved[i] == 0, SD_ERR_ARGUMENT, "dino.reserved[%zu] is not 0: set by a newer header?", i);
    return sd_precision_check(config->precision);
}

SD_API void sd_dino_config_init(sd_dino_config *config) {
    if (config != NULL)
        *config = (sd_dino_config){.size = sizeof *config,
                                   .target = SD_TARGET_CENTER,
                                   .sinkhorn_iterations = 3,
                                   .student_temp = 0.1,
                                   .center_momentum = 0.9};
}

static sd_status create_gemms(sd_assignment *a) {
    /* in fp32 those that need no scratch: with it, a head of the published size takes more than its prototypes */
    const bool bf16 = a->config.precision == SD_PRECISION_BF16;
    size_t threads = sd_threads(a->context), bytes = bf16 ? sd_gemm_scratch(SD_PRECISION_BF16) : 0;
    a->gemms = SD_NEW_ARRAY(a->context, sd_gemm, threads);
    a->gemm_scratch = sd_allocate(a->context, threads, bytes);
    if (a->gemms == NULL || a->gemm_scratch == NULL)
        return SD_ERR_MEMORY;
    for (size_t i = 0; i < threads; i++)
        a->gemms[i] = bf16 ? sd_gemm_of(SD_PRECISION_BF16, a->gemm_scratch + i * bytes) : sd_gemm_fp32;
    return SD_OK;
}

static sd_status allocate_all(sd_assignment *a) {
    sd_context *context = a->context;
    size_t K = a->prototypes, sums = a->pieces, scores;
    a->teacher_logits = SD_NEW_ARRAY(context, float, a->max_teacher *a->ld);
    a->student_logits = SD_NEW_ARRAY(context, float, a->max_student *a->ld);
    a->teacher_sums = SD_NEW_ARRAY(context, piece_sums, sums *a->max_teacher);
    a->student_sums = SD_NEW_ARRAY(context, piece_sums, sums *a->max_student);
    a->row_largest = SD_NEW_ARRAY(context, float, a->max_student);
    a->row_share = SD_NEW_ARRAY(context, float, a->max_student);
    a->teacher_rows = SD_NEW_ARRAY(context, float, a->max_teacher *a->p);
    a->student_rows = SD_NEW_ARRAY(context, float, a->max_student *a->p);
    a->dstudent = SD_NEW_ARRAY(context, float, a->max_student *a->p);
    a->dstudent_parts = SD_NEW_ARRAY(context, float, a->parts *a->max_student *a->p);
    a->teacher_numbers = SD_NEW_ARRAY(context, size_t, a->max_teacher);
    a->rows = SD_NEW_ARRAY(context, sd_assigned_row, a->max_student);
    a->losses = SD_NEW_ARRAY(context, double, a->max_student);
    a->student_factors = SD_NEW_ARRAY(context, float, K);
    a->teacher_factors = SD_NEW_ARRAY(context, float, K);
    a->inverse_lengths = SD_NEW_ARRAY(context, double, K);
    a->along = SD_NEW_ARRAY(context, double, K);
    a->logit_sums = SD_NEW_ARRAY(context, double, K);
    a->target_sums = SD_NEW_ARRAY(context, double, K);
    a->center = SD_NEW_ARRAY(context, float, K);
    a->pending = SD_NEW_ARRAY(context, double, K);
    if (!a->teacher_logits || !a->student_logits || !a->teacher_sums || !a->student_sums || !a->row_largest ||
        !a->row_share || !a->teacher_rows || !a->student_rows || !a->dstudent || !a->dstudent_parts ||
        !a->teacher_numbers || !a->rows || !a->losses || !a->student_factors || !a->teacher_factors ||
        !a->inverse_lengths || !a->along || !a->logit_sums || !a->target_sums || !a->center || !a->pending)
        return SD_ERR_MEMORY;
    if (a->config.target != SD_TARGET_SINKHORN)
        return SD_OK;
    SD_REQUIRE(sd_size_mul(a->all_teacher, a->ld, &scores), SD_ERR_MEMORY,
               "the logits of %zu rows do not fit into memory", a->all_teacher);
    a->scores = SD_NEW_ARRAY(context, float, scores);
    a->row_factors = SD_NEW_ARRAY(context, double, a->all_teacher);
    a->column_factors = SD_NEW_ARRAY(context, double, K);
    a->score_checks = SD_NEW_ARRAY(context, float, a->pieces);
    return a->scores && a->row_factors && a->column_factors && a->score_checks ? SD_OK : SD_ERR_MEMORY;
}

sd_status sd_assignment_create(sd_context *context, const sd_dino_config *source, size_t p, size_t prototypes,
                               size_t max_teacher, size_t max_student, size_t all_teacher, sd_assignment **out) {
    sd_dino_config config;
    sd_dino_config_init(&config);
    sd_status status = sd_config_read(&config, sizeof config, source, "sd_dino_config");
    if (status == SD_OK)
        status = check_config(&config);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(prototypes >= 1 && prototypes <= 1u << 24, SD_ERR_ARGUMENT, "prototypes is %zu: it must be 1 to %u",
               prototypes, 1u << 24);
    SD_REQUIRE(p >= 1 && p <= 1u << 16, SD_ERR_ARGUMENT, "dim is %zu: it must be 1 to %u", p, 1u << 16);
    sd_assignment *a = SD_NEW(context, sd_assignment);
    if (a == NULL)
        return SD_ERR_MEMORY;
    a->context = context;
    a->kernels = sd_kernels_get();
    a->config = config;
    a->p = p;
    a->prototypes = prototypes;
    a->ld = sd_padded_row(prototypes);
    a->max_teacher = max_teacher;
    a->max_student = max_student;
    a->all_teacher = all_teacher;
    a->pieces = sd_size_ceil(prototypes, SD_LOGIT_PIECE);
    a->pieces_of_a_part = sd_size_ceil(a->pieces, MAX_PARTS);
    a->parts = sd_size_ceil(a->pieces, a->pieces_of_a_part);
    SD_TRY(create_gemms(a));
    SD_TRY(allocate_all(a));
    *out = a;
cleanup:
    if (status != SD_OK)
        sd_assignment_destroy(a);
    return status;
}

void sd_assignment_destroy(sd_assignment *a) {
    if (a == NULL)
        return;
    void *arrays[] = {a->teacher_logits,  a->student_logits, a->teacher_sums,    a->student_sums,    a->row_largest,
                      a->row_share,       a->teacher_rows,   a->student_rows,    a->dstudent,        a->dstudent_parts,
                      a->teacher_numbers, a->rows,           a->losses,          a->student_factors, a->teacher_factors,
                      a->inverse_lengths, a->along,          a->logit_sums,      a->target_sums,     a->center,
                      a->pending,         a->scores,         a->row_factors,     a->column_factors,  a->score_checks,
                      a->gemms,           a->gemm_scratch};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        sd_release(a->context, arrays[i]);
    sd_release(a->context, a);
}

float *sd_assignment_center(sd_assignment *a) { return a->center; }

/* ---- the teacher --------------------------------------------------------------------------- */

/* What the tasks of a section get. */
typedef struct assignment_work {
    sd_assignment *a;
    const sd_assignment_pass *pass;
    const sd_assignment_tile *tile;
} assignment_work;

/* <x_i, v_k> of rows x with the prototypes of one piece into logits (rows, distance ld). Returns the piece's width. */
static size_t piece_products(const sd_assignment *a, size_t thread, size_t piece, const float *x, size_t rows,
                             const sd_prototypes *layer, float *logits) {
    size_t first = piece * SD_LOGIT_PIECE, width = sd_size_min(SD_LOGIT_PIECE, a->prototypes - first);
    sd_multiply(&a->gemms[thread], false, true, rows, width, a->p, 1.0f, x, a->p, layer->weight_v + first * a->p, a->p,
                0.0f, logits + first, a->ld);
    return width;
}

static void add_rows(const float *rows, size_t count, size_t ld, size_t width, double *sums) {
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < width; j++)
            sums[j] += (double)rows[i * ld + j];
}

static void score_task(void *work, size_t piece, size_t thread) {
    const assignment_work *job = work;
    sd_assignment *a = job->a;
    size_t first = piece * SD_LOGIT_PIECE, rows = job->pass->teacher_count;
    size_t width = piece_products(a, thread, piece, job->pass->teacher, rows, job->pass->teacher_layer, a->scores);
    a->score_checks[piece] = 0.0f;
    for (size_t i = 0; i < rows; i++)
        a->score_checks[piece] +=
            a->kernels->scale_logits(a->scores + i * a->ld + first, a->teacher_factors + first, width);
}

static sd_status begin_sinkhorn(sd_assignment *a, const sd_assignment_pass *pass) {
    assignment_work job = {a, pass, NULL};
    float nothing = 0.0f;
    sd_status status = sd_run(a->context, score_task, &job, a->pieces);
    if (status != SD_OK)
        return status;
    for (size_t piece = 0; piece < a->pieces; piece++)
        nothing += a->score_checks[piece];
    SD_REQUIRE(nothing == 0.0f, SD_ERR_NUMERIC, "the teacher's logits are not finite: its prototypes may not be");
    return sd_sinkhorn(a->context, a->kernels, a->scores, pass->teacher_count, a->prototypes, a->ld,
                       a->config.sinkhorn_iterations, a->row_factors, a->column_factors);
}

sd_status sd_assignment_begin(sd_assignment *a, const sd_assignment_pass *pass) {
    const sd_prototypes *layers[] = {pass->student_layer, pass->teacher_layer};
    for (size_t i = 0; i < 2; i++) {
        const char *whose = i == 0 ? "student" : "teacher";
        SD_REQUIRE(layers[i] != NULL, SD_ERR_ARGUMENT, "the %s's prototypes are NULL", whose);
        SD_REQUIRE(layers[i]->weight_v != NULL, SD_ERR_ARGUMENT, "weight_v of the %s's prototypes is NULL", whose);
        SD_REQUIRE(layers[i]->count == a->prototypes, SD_ERR_ARGUMENT,
                   "the %s has %zu prototypes: the loss was created for %zu", whose, layers[i]->count, a->prototypes);
    }
    SD_REQUIRE(pass->teacher_temp > 0.0 && isfinite(pass->teacher_temp), SD_ERR_ARGUMENT,
               "teacher_temp is %g: it must be above 0", pass->teacher_temp);
    sd_status status;
    memset(a->logit_sums, 0, a->prototypes * sizeof *a->logit_sums);
    memset(a->target_sums, 0, a->prototypes * sizeof *a->target_sums);
    memset(a->along, 0, a->prototypes * sizeof *a->along);
    SD_TRY(sd_prototypes_factors(a->context, pass->student_layer, a->p, a->config.student_temp, a->student_factors,
                                 a->inverse_lengths));
    SD_TRY(sd_prototypes_factors(a->context, pass->teacher_layer, a->p, pass->teacher_temp, a->teacher_factors, NULL));
    if (a->config.target == SD_TARGET_SINKHORN)
        SD_TRY(begin_sinkhorn(a, pass));
cleanup:
    return status;
}

/* Exponentials of the teacher's logits with one piece's prototypes. */
static void teacher_task(void *work, size_t piece, size_t thread) {
    const assignment_work *job = work;
    sd_assignment *a = job->a;
    size_t first = piece * SD_LOGIT_PIECE, rows = job->tile->teacher_count;
    size_t width = piece_products(a, thread, piece, job->tile->teacher, rows, job->pass->teacher_layer, a->teacher_logits);
    add_rows(a->teacher_logits + first, rows, a->ld, width, a->logit_sums + first);
    for (size_t i = 0; i < rows; i++) {
        piece_sums *sums = &a->teacher_sums[piece * a->max_teacher + i];
        a->kernels->softmax_piece(a->teacher_logits + i * a->ld + first, a->teacher_factors + first, a->center + first,
                                  (float)(1.0 / job->pass->teacher_temp), width, &sums->largest, &sums->sum);
    }
}

/* The sum of a row's exponentials less its largest logit, from those of its pieces. */
static double row_sum(const piece_sums *sums, size_t pieces, size_t stride, float *largest) {
    double sum = 0.0;
    *largest = sums[0].largest;
    for (size_t piece = 1; piece < pieces; piece++)
        *largest = fmaxf(*largest, sums[piece * stride].largest);
    for (size_t piece = 0; piece < pieces; piece++)
        sum += (double)sums[piece * stride].sum * exp((double)sums[piece * stride].largest - (double)*largest);
    return sum;
}

/* Each piece's sum becomes what its exponentials have to be multiplied with. */
static sd_status finish_teacher(sd_assignment *a, const sd_assignment_tile *tile) {
    for (size_t i = 0; i < tile->teacher_count; i++) {
        float largest;
        double sum = row_sum(a->teacher_sums + i, a->pieces, a->max_teacher, &largest);
        for (size_t piece = 0; piece < a->pieces; piece++) {
            piece_sums *sums = &a->teacher_sums[piece * a->max_teacher + i];
            sums->sum = (float)(exp((double)sums->largest - (double)largest) / sum);
        }
    }
    double nothing = 0.0;
    for (size_t j = 0; j < a->prototypes; j++) {
        double logit = a->logit_sums[j] * (double)a->teacher_factors[j] - (double)a->center[j];
        nothing += logit - logit; /* 0, or NaN */
    }
    SD_REQUIRE(nothing == 0.0, SD_ERR_NUMERIC,
               "the teacher's logits are not finite: its prototypes or the center may not be");
    return SD_OK;
}

/* ---- the student --------------------------------------------------------------------------- */

/* Assignments of the tile's teacher rows to one piece. */
static void piece_targets(sd_assignment *a, const sd_assignment_tile *tile, size_t piece, size_t width) {
    size_t first = piece * SD_LOGIT_PIECE;
    for (size_t i = 0; i < tile->teacher_count; i++) {
        float *q = a->teacher_logits + i * a->ld + first;
        if (a->config.target == SD_TARGET_CENTER) {
            float factor = a->teacher_sums[piece * a->max_teacher + i].sum;
            for (size_t j = 0; j < width; j++)
                q[j] *= factor;
        } else {
            const float *scores = a->scores + tile->teacher_numbers[i] * a->ld + first;
            const double *v = a->column_factors + first, u = a->row_factors[tile->teacher_numbers[i]];
            for (size_t j = 0; j < width; j++)
                q[j] = (float)(u * v[j] * (double)scores[j]);
        }
    }
    add_rows(a->teacher_logits + first, tile->teacher_count, a->ld, width, a->target_sums + first);
}

typedef struct row_targets {
    const float *q0, *q1;
} row_targets;

static row_targets targets_of(const sd_assignment *a, const sd_assigned_row *row, size_t first) {
    const float *q = a->teacher_logits + first;
    return (row_targets){q + row->target[0] * a->ld, row->targets == 2 ? q + row->target[1] * a->ld : NULL};
}

static void student_task(void *work, size_t piece, size_t thread) {
    const assignment_work *job = work;
    sd_assignment *a = job->a;
    size_t first = piece * SD_LOGIT_PIECE, rows = job->tile->student_count;
    size_t width = piece_products(a, thread, piece, job->tile->student, rows, job->pass->student_layer, a->student_logits);
    piece_targets(a, job->tile, piece, width);
    for (size_t i = 0; i < rows; i++) {
        piece_sums *sums = &a->student_sums[piece * a->max_student + i];
        row_targets targets = targets_of(a, &job->tile->rows[i], first);
        a->kernels->entropy_piece(a->student_logits + i * a->ld + first, a->student_factors + first, targets.q0,
                                  targets.q1, width, &sums->largest, &sums->sum, &sums->dot);
    }
}

/* The losses, and what each row's softmax needs. */
static sd_status finish_student(sd_assignment *a, const sd_assignment_pass *pass, const sd_assignment_tile *tile) {
    for (size_t i = 0; i < tile->student_count; i++) {
        const sd_assigned_row *row = &tile->rows[i];
        double total = (double)row->targets, dot = 0.0;
        double sum = row_sum(a->student_sums + i, a->pieces, a->max_student, &a->row_largest[i]);
        for (size_t piece = 0; piece < a->pieces; piece++)
            dot += (double)a->student_sums[piece * a->max_student + i].dot;
        tile->losses[i] = row->weight * (total * ((double)a->row_largest[i] + log(sum)) - dot);
        a->row_share[i] = (float)(pass->gradient_weight * row->weight * total / sum);
        /* Before any of it reaches a gradient; `dot` has every logit in it. */
        SD_REQUIRE(isfinite(tile->losses[i]), SD_ERR_NUMERIC,
                   "the cross-entropy is not finite: the prototypes or weights may not be");
    }
    return SD_OK;
}

/* dl in place of the logits, a part of dX, and dV of the part's prototypes. */
static void slope_task(void *work, size_t part, size_t thread) {
    const assignment_work *job = work;
    sd_assignment *a = job->a;
    const sd_assignment_tile *tile = job->tile;
    const sd_prototypes_gradient *into = job->pass->into;
    size_t begin = part * a->pieces_of_a_part, end = sd_size_min(begin + a->pieces_of_a_part, a->pieces);
    size_t p = a->p, rows = tile->student_count;
    for (size_t piece = begin; piece < end; piece++) {
        size_t first = piece * SD_LOGIT_PIECE, width = sd_size_min(SD_LOGIT_PIECE, a->prototypes - first);
        float *logits = a->student_logits + first, along[SD_LOGIT_PIECE] = {0};
        for (size_t i = 0; i < rows; i++) {
            row_targets targets = targets_of(a, &tile->rows[i], first);
            a->kernels->entropy_slope(logits + i * a->ld, a->student_factors + first, targets.q0, targets.q1, width,
                                      a->row_largest[i], a->row_share[i],
                                      (float)(job->pass->gradient_weight * tile->rows[i].weight), along);
        }
        for (size_t j = 0; j < width; j++)
            a->along[first + j] += (double)along[j];
        sd_multiply(&a->gemms[thread], false, false, rows, p, width, 1.0f, logits, a->ld, job->pass->student_layer->weight_v + first * p, p,
                 piece == begin ? 0.0f : 1.0f, a->dstudent_parts + part * a->max_student * p, p);
        if (into != NULL && into->weight_v != NULL)
            sd_multiply(&a->gemms[thread], true, false, width, p, rows, 1.0f, logits, a->ld, tile->student, p, 1.0f,
                     into->weight_v + first * p, p);
    }
}

static void add_parts_task(void *work, size_t index, size_t thread) {
    (void)thread;
    const assignment_work *job = work;
    const sd_assignment *a = job->a;
    size_t first = index * ROWS_OF_A_TASK, rows = sd_size_min(ROWS_OF_A_TASK, job->tile->student_count - first);
    float *sum = job->tile->dstudent + first * a->p;
    memcpy(sum, a->dstudent_parts + first * a->p, rows * a->p * sizeof *sum);
    for (size_t part = 1; part < a->parts; part++) {
        const float *more = a->dstudent_parts + (part * a->max_student + first) * a->p;
        for (size_t j = 0; j < rows * a->p; j++)
            sum[j] += more[j];
    }
}

/* ---- a tile, and the end ------------------------------------------------------------------- */

sd_assignment_tile sd_assignment_tile_of(sd_assignment *a) {
    return (sd_assignment_tile){
        .teacher = a->teacher_rows,
        .student = a->student_rows,
        .teacher_numbers = a->teacher_numbers,
        .rows = a->rows,
        .losses = a->losses,
        .dstudent = a->dstudent,
    };
}

sd_status sd_assignment_run(sd_assignment *a, const sd_assignment_pass *pass, const sd_assignment_tile *tile) {
    assignment_work job = {a, pass, tile};
    sd_status status;
    if (a->config.target == SD_TARGET_CENTER) {
        SD_TRY(sd_run(a->context, teacher_task, &job, a->pieces));
        SD_TRY(finish_teacher(a, tile));
    }
    SD_TRY(sd_run(a->context, student_task, &job, a->pieces));
    SD_TRY(finish_student(a, pass, tile));
    if (pass->gradient) {
        SD_TRY(sd_run(a->context, slope_task, &job, a->parts));
        SD_TRY(sd_run(a->context, add_parts_task, &job, sd_size_ceil(tile->student_count, ROWS_OF_A_TASK)));
    }
cleanup:
    return status;
}

sd_status sd_assignment_end(sd_assignment *a, const sd_assignment_pass *pass, double *entropy) {
    const sd_prototypes_gradient *into = pass->into;
    *entropy = 0.0;
    for (size_t j = 0; j < a->prototypes; j++) {
        double share = a->target_sums[j] / (double)pass->teacher_count;
        *entropy -= share > 0.0 ? share * log(share) : 0.0;
    }
    if (pass->gradient && into != NULL && (into->weight_v != NULL || into->weight_g != NULL)) {
        sd_status status = sd_prototypes_backward(a->context, pass->student_layer, a->p, a->config.student_temp,
                                                  a->inverse_lengths, a->along, into);
        if (status != SD_OK)
            return status;
    }
    if (a->config.target == SD_TARGET_CENTER) {
        for (size_t j = 0; j < a->prototypes; j++)
            a->pending[j] += a->logit_sums[j] * (double)a->teacher_factors[j] * pass->teacher_temp;
        a->pending_rows += pass->teacher_count;
    }
    return SD_OK;
}

/* ---- the center ---------------------------------------------------------------------------- */

void sd_assignment_commit(sd_assignment *a) {
    if (a->pending_rows > 0) {
        double keep = a->config.center_momentum, rows = (double)a->pending_rows;
        for (size_t j = 0; j < a->prototypes; j++)
            a->center[j] = (float)(keep * (double)a->center[j] + (1.0 - keep) * (a->pending[j] / rows));
    }
    sd_assignment_discard(a);
}

void sd_assignment_discard(sd_assignment *a) {
    memset(a->pending, 0, a->prototypes * sizeof *a->pending);
    a->pending_rows = 0;
}
