/* Cross-entropy of student rows against the teacher's assignments to prototypes, a tile of rows at a time.
 *
 *     teacher  q = softmax((Y W_t' - center) / temp), or Sinkhorn-Knopp over the rows of the whole evaluation
 *     student  CE = sum_k T_k (lse(z/temp_s) - z_k/temp_s), z = X W_s', T the sum of one or two q
 *     dz = weight/temp_s (|T| softmax(z/temp_s) - T),  dX = dz W_s,  dW_s += dz' X
 *
 * Only logits of a tile exist, in one buffer, where they become assignments (teacher) and gradients (student). */
#include "loss/prototypes.h"
#include "math/products.h"

#include <math.h>
#include <string.h>

#define COLUMNS_OF_A_TASK ((size_t)1024)

struct sd_assignment {
    sd_context *context;
    const sd_kernels *kernels;
    sd_dino_config config;
    size_t p, prototypes, ld; /* ld: distance of rows of logits */
    size_t max_teacher, max_student, all_teacher;
    float *student_weights, *teacher_weights, *dweights; /* K x p */
    float *teacher_logits, *student_logits;
    float *teacher_rows, *student_rows, *dstudent;
    size_t *teacher_numbers;
    sd_assigned_row *rows;
    double *losses;
    float *center;
    double *pending;      /* sum of the teacher's logits since the last commit */
    double *teacher_sum;  /* of them in this evaluation; they count once it has succeeded */
    double *mean_target;  /* sum of its assignments in this evaluation */
    uint64_t pending_rows, target_rows;
    float *scores;        /* Sinkhorn: all teacher logits, then their exponentials */
    double *row_factors, *column_factors;
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
    return SD_OK;
}

SD_API void sd_dino_config_init(sd_dino_config *config) {
    if (config != NULL)
        *config = (sd_dino_config){.size = sizeof *config,
                                   .target = SD_TARGET_CENTER,
                                   .sinkhorn_iterations = 3,
                                   .student_temp = 0.1,
                                   .center_momentum = 0.9};
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
    size_t scores = 0;
    if (config.target == SD_TARGET_SINKHORN && !sd_size_mul(all_teacher, a->ld, &scores)) {
        status = sd_fail(SD_ERR_MEMORY, "the logits of %zu rows do not fit into memory", all_teacher);
        goto cleanup;
    }
    a->student_weights = SD_NEW_ARRAY(context, float, prototypes *p);
    a->teacher_weights = SD_NEW_ARRAY(context, float, prototypes *p);
    a->dweights = SD_NEW_ARRAY(context, float, prototypes *p);
    a->teacher_logits = SD_NEW_ARRAY(context, float, max_teacher *a->ld);
    a->student_logits = SD_NEW_ARRAY(context, float, max_student *a->ld);
    a->teacher_rows = SD_NEW_ARRAY(context, float, max_teacher *p);
    a->student_rows = SD_NEW_ARRAY(context, float, max_student *p);
    a->dstudent = SD_NEW_ARRAY(context, float, max_student *p);
    a->teacher_numbers = SD_NEW_ARRAY(context, size_t, max_teacher);
    a->rows = SD_NEW_ARRAY(context, sd_assigned_row, max_student);
    a->losses = SD_NEW_ARRAY(context, double, max_student);
    a->center = SD_NEW_ARRAY(context, float, prototypes);
    a->pending = SD_NEW_ARRAY(context, double, prototypes);
    a->teacher_sum = SD_NEW_ARRAY(context, double, prototypes);
    a->mean_target = SD_NEW_ARRAY(context, double, prototypes);
    bool complete = a->student_weights && a->teacher_weights && a->dweights && a->teacher_logits &&
                    a->student_logits && a->teacher_rows && a->student_rows && a->dstudent && a->teacher_numbers &&
                    a->rows && a->losses && a->center && a->pending && a->teacher_sum && a->mean_target;
    if (complete && config.target == SD_TARGET_SINKHORN) {
        a->scores = SD_NEW_ARRAY(context, float, scores);
        a->row_factors = SD_NEW_ARRAY(context, double, all_teacher);
        a->column_factors = SD_NEW_ARRAY(context, double, prototypes);
        complete = a->scores && a->row_factors && a->column_factors;
    }
    if (!complete) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    *out = a;
    return SD_OK;
cleanup:
    sd_assignment_destroy(a);
    return status;
}

void sd_assignment_destroy(sd_assignment *a) {
    if (a == NULL)
        return;
    void *arrays[] = {a->student_weights, a->teacher_weights, a->dweights, a->teacher_logits, a->student_logits,
                      a->teacher_rows, a->student_rows, a->dstudent, a->teacher_numbers, a->rows, a->losses,
                      a->center, a->pending, a->teacher_sum, a->mean_target, a->scores, a->row_factors,
                      a->column_factors};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        sd_release(a->context, arrays[i]);
    sd_release(a->context, a);
}

float *sd_assignment_center(sd_assignment *a) { return a->center; }
size_t sd_assignment_max_student(const sd_assignment *a) { return a->max_student; }

/* ---- an evaluation ------------------------------------------------------------------------- */

static float inverse(double temperature) { return (float)(1.0 / temperature); }

typedef struct scale_work {
    sd_assignment *a;
    float factor;
} scale_work;

static void scale_task(void *work, size_t row, size_t thread) {
    (void)thread;
    const scale_work *job = work;
    job->a->kernels->center_logits(job->a->scores + row * job->a->ld, NULL, job->a->prototypes, job->factor);
}

/* The factors of all rows and columns, from all teacher rows. */
static sd_status begin_sinkhorn(sd_assignment *a, const sd_assignment_pass *pass) {
    sd_product product = sd_linear_forward(pass->teacher, pass->teacher_count, a->p, a->teacher_weights, a->prototypes,
                                           a->scores);
    product.ldc = a->ld;
    scale_work job = {a, inverse(pass->teacher_temp)};
    sd_status status;
    SD_TRY(sd_run_products(a->context, &product, 1, NULL, NULL));
    SD_TRY(sd_run(a->context, scale_task, &job, pass->teacher_count));
    SD_TRY(sd_sinkhorn(a->context, a->kernels, a->scores, pass->teacher_count, a->prototypes, a->ld,
                       a->config.sinkhorn_iterations, a->row_factors, a->column_factors));
cleanup:
    return status;
}

sd_status sd_assignment_begin(sd_assignment *a, const sd_assignment_pass *pass) {
    SD_REQUIRE(pass->student_layer != NULL && pass->teacher_layer != NULL, SD_ERR_ARGUMENT, "the prototypes are NULL");
    SD_REQUIRE(pass->student_layer->weight_v != NULL && pass->teacher_layer->weight_v != NULL, SD_ERR_ARGUMENT,
               "weight_v of the prototypes is NULL");
    SD_REQUIRE(pass->student_layer->count == a->prototypes && pass->teacher_layer->count == a->prototypes,
               SD_ERR_ARGUMENT, "%zu and %zu prototypes: the loss was created for %zu", pass->student_layer->count,
               pass->teacher_layer->count, a->prototypes);
    SD_REQUIRE(pass->teacher_temp > 0.0 && isfinite(pass->teacher_temp), SD_ERR_ARGUMENT,
               "teacher_temp is %g: it must be above 0", pass->teacher_temp);
    sd_status status;
    memset(a->mean_target, 0, a->prototypes * sizeof *a->mean_target);
    memset(a->teacher_sum, 0, a->prototypes * sizeof *a->teacher_sum);
    a->target_rows = 0;
    if (pass->gradient)
        memset(a->dweights, 0, a->prototypes * a->p * sizeof *a->dweights);
    SD_TRY(sd_prototypes_weights(a->context, pass->student_layer, a->p, a->student_weights));
    SD_TRY(sd_prototypes_weights(a->context, pass->teacher_layer, a->p, a->teacher_weights));
    if (a->config.target == SD_TARGET_SINKHORN)
        SD_TRY(begin_sinkhorn(a, pass));
cleanup:
    return status;
}

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

typedef struct tile_work {
    sd_assignment *a;
    const sd_assignment_pass *pass;
    const sd_assignment_tile *tile;
} tile_work;

/* teacher_sum += sum over rows of the logits */
static void teacher_sum_task(void *work, size_t index, size_t thread) {
    (void)thread;
    const tile_work *job = work;
    sd_assignment *a = job->a;
    size_t first = index * COLUMNS_OF_A_TASK, last = sd_size_min(first + COLUMNS_OF_A_TASK, a->prototypes);
    for (size_t i = 0; i < job->tile->teacher_count; i++) {
        const float *row = a->teacher_logits + i * a->ld;
        for (size_t j = first; j < last; j++)
            a->teacher_sum[j] += (double)row[j];
    }
}

static void mean_target_task(void *work, size_t index, size_t thread) {
    (void)thread;
    const tile_work *job = work;
    sd_assignment *a = job->a;
    size_t first = index * COLUMNS_OF_A_TASK, last = sd_size_min(first + COLUMNS_OF_A_TASK, a->prototypes);
    for (size_t i = 0; i < job->tile->teacher_count; i++) {
        const float *row = a->teacher_logits + i * a->ld;
        for (size_t j = first; j < last; j++)
            a->mean_target[j] += (double)row[j];
    }
}

/* The assignments of one teacher row, in place of its logits. */
static void teacher_task(void *work, size_t i, size_t thread) {
    (void)thread;
    const tile_work *job = work;
    sd_assignment *a = job->a;
    float *row = a->teacher_logits + i * a->ld;
    if (a->config.target == SD_TARGET_CENTER) {
        a->kernels->center_logits(row, a->center, a->prototypes, inverse(job->pass->teacher_temp));
        a->kernels->softmax(row, 1, a->prototypes, a->ld);
        return;
    }
    size_t number = job->tile->teacher_numbers[i];
    const float *scores = a->scores + number * a->ld;
    double factor = a->row_factors[number];
    for (size_t j = 0; j < a->prototypes; j++)
        row[j] = (float)(factor * a->column_factors[j] * (double)scores[j]);
}

static void student_task(void *work, size_t i, size_t thread) {
    (void)thread;
    const tile_work *job = work;
    sd_assignment *a = job->a;
    const sd_assigned_row *row = &job->tile->rows[i];
    const float *q0 = a->teacher_logits + row->target[0] * a->ld;
    const float *q1 = row->targets == 2 ? a->teacher_logits + row->target[1] * a->ld : NULL;
    float temperature = inverse(a->config.student_temp);
    a->losses[i] = (double)row->weight * a->kernels->cross_entropy(a->student_logits + i * a->ld, q0, q1, a->prototypes,
                                                                   a->ld, temperature, (float)row->targets,
                                                                   job->pass->gradient_weight * row->weight *
                                                                       temperature);
}

sd_status sd_assignment_run(sd_assignment *a, const sd_assignment_pass *pass, const sd_assignment_tile *tile) {
    tile_work job = {a, pass, tile};
    size_t columns = sd_size_ceil(a->prototypes, COLUMNS_OF_A_TASK), K = a->prototypes, p = a->p;
    sd_product products[2];
    sd_status status;
    products[0] = sd_linear_forward(tile->student, tile->student_count, p, a->student_weights, K, a->student_logits);
    products[1] = sd_linear_forward(tile->teacher, tile->teacher_count, p, a->teacher_weights, K, a->teacher_logits);
    products[0].ldc = products[1].ldc = a->ld;
    SD_TRY(sd_run_products(a->context, products, a->config.target == SD_TARGET_CENTER ? 2 : 1, NULL, NULL));
    if (a->config.target == SD_TARGET_CENTER)
        SD_TRY(sd_run(a->context, teacher_sum_task, &job, columns));
    SD_TRY(sd_run(a->context, teacher_task, &job, tile->teacher_count));
    SD_TRY(sd_run(a->context, mean_target_task, &job, columns));
    SD_TRY(sd_run(a->context, student_task, &job, tile->student_count));
    a->target_rows += tile->teacher_count;
    if (!pass->gradient)
        goto cleanup;
    products[0] = sd_linear_backward(a->student_logits, tile->student_count, K, a->student_weights, p, tile->dstudent);
    products[0].lda = a->ld;
    products[1] = sd_linear_weight(a->student_logits, tile->student, tile->student_count, K, p, a->dweights);
    products[1].lda = a->ld;
    SD_TRY(sd_run_products(a->context, products, 2, NULL, NULL));
cleanup:
    return status;
}

sd_status sd_assignment_end(sd_assignment *a, const sd_assignment_pass *pass, const sd_prototypes_gradient *into,
                            double *entropy) {
    *entropy = 0.0;
    a->pending_rows += a->target_rows;
    for (size_t j = 0; j < a->prototypes; j++)
        a->pending[j] += a->teacher_sum[j];
    for (size_t j = 0; j < a->prototypes && a->target_rows > 0; j++) {
        double share = a->mean_target[j] / (double)a->target_rows;
        *entropy -= share > 0.0 ? share * log(share) : 0.0;
    }
    if (!pass->gradient || into == NULL || (into->weight_v == NULL && into->weight_g == NULL))
        return SD_OK;
    return sd_prototypes_backward(a->context, pass->student_layer, a->p, a->dweights, into);
}

/* ---- the center ---------------------------------------------------------------------------- */

void sd_assignment_commit(sd_assignment *a) {
    if (a->config.target == SD_TARGET_CENTER && a->pending_rows > 0) {
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
