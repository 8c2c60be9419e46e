/* The SimDINO loss: -coeff * compression - expansion (Wu et al., "Simplifying DINO via Coding Rate Regularization",
 * ICML 2025).
 *
 *   compression = mean over (teacher view i in {0, 1}, student view j != i) and samples of cos(t_i, s_j)
 *   expansion   = gamma * mean over i in {0, 1} of R(W_i), W_i = s_i or (s_i + t_i)/2
 *
 * Compression costs one dot product for each student row, not one for each pair: with weighted rows, the sum over i !=
 * j of <t_i, s_j> is <T_j, s_j>, where T_0 = t_1, T_1 = t_0 and T_j = t_0 + t_1 for the local views. */
#include "loss/features.h"
#include "loss/rate.h"

#include "math/math.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define GLOBAL_VIEWS ((size_t)2)
#define NORM_FLOOR 1e-8   /* as torch's cosine_similarity */
#define BLOCK ((size_t)32) /* samples of one piece of the compression */

struct sd_simdino_loss {
    sd_context *context;
    sd_simdino_config config;
    size_t max_samples, max_views, dim;
    size_t space_count, task_count;
    sd_rate_space *spaces;     /* one for each rate task or each thread, whichever are fewer */
    double *rates;             /* of task view * rate groups + group */
    sd_rate_failure *failures;
    bool *failed;
    double *block_sums;        /* compression of each block of samples */
    float *mixed;              /* 2 x samples x dim: (s + t)/2, for expa_type 1 */
    float *expansion_grad;     /* 2 x samples x dim: -d expansion / d student */
};

/* What one evaluation hands to its tasks. */
typedef struct pass {
    sd_simdino_loss *loss;
    const float *student, *teacher;
    size_t samples, views;
    size_t groups;             /* of the rates: 1 when the Grams are summed */
    size_t rate_tasks, blocks;
    double alpha, rate_scale;  /* rate_scale: weight of dR/dW in the gradient */
    double pair_scale;         /* coeff / (pairs * samples) */
    double effective_rank;
    bool want_grad;
    float *grad;
} pass;

SD_API void sd_simdino_config_init(sd_simdino_config *config) {
    if (config)
        *config = (sd_simdino_config){.size = sizeof(*config),
                                      .eps_sq = 0.05,
                                      .coeff = 1.0,
                                      .expa_type = 1,
                                      .groups = 1,
                                      .reduce_gram = 0,
                                      .normalized = 1};
}

/* ---- create -------------------------------------------------------------------------------- */

static sd_status check_config(const sd_simdino_config *config) {
    SD_REQUIRE(config->eps_sq > 0.0 && isfinite(config->eps_sq), SD_ERR_ARGUMENT,
               "eps_sq is %g: it must be positive and finite", config->eps_sq);
    SD_REQUIRE(isfinite(config->coeff), SD_ERR_ARGUMENT, "coeff is %g: it must be finite", config->coeff);
    SD_REQUIRE(config->expa_type == 0 || config->expa_type == 1, SD_ERR_ARGUMENT, "expa_type is %d: it must be 0 or 1",
               (int)config->expa_type);
    SD_REQUIRE(config->groups >= 1, SD_ERR_ARGUMENT, "groups is %d: it must be at least 1", (int)config->groups);
    SD_REQUIRE(config->reduce_gram == 0 || config->reduce_gram == 1, SD_ERR_ARGUMENT,
               "reduce_gram is %d: it must be 0 or 1", (int)config->reduce_gram);
    SD_REQUIRE(config->normalized == 0 || config->normalized == 1, SD_ERR_ARGUMENT,
               "normalized is %d: it must be 0 or 1", (int)config->normalized);
    for (size_t i = 0; i < sizeof(config->reserved) / sizeof(*config->reserved); i++)
        SD_REQUIRE(config->reserved[i] == 0, SD_ERR_ARGUMENT, "reserved[%zu] is not 0: set by a newer header?", i);
    return SD_OK;
}

static sd_status allocate_all(sd_simdino_loss *loss) {
    sd_status status = SD_OK;
    sd_context *context = loss->context;
    size_t threads = sd_threads(context), count, rows;

    loss->task_count = GLOBAL_VIEWS * (loss->config.reduce_gram ? 1 : (size_t)loss->config.groups);
    /* One task more, the effective rank, may run at the same time. */
    loss->space_count = sd_size_min(threads, loss->task_count + 1);
    SD_EXPECT(sd_size_mul(GLOBAL_VIEWS, loss->max_samples, &count) && sd_size_mul(count, loss->dim, &count) &&
                  sd_size_mul(loss->max_samples, loss->max_views, &rows) && sd_size_mul(rows, loss->dim, &rows),
              SD_ERR_MEMORY, "%zu samples of %zu views of %zu features do not fit into memory", loss->max_samples,
              loss->max_views, loss->dim);
    loss->rates = SD_NEW_ARRAY(context, double, loss->task_count);
    loss->failures = SD_NEW_ARRAY(context, sd_rate_failure, loss->task_count);
    loss->failed = SD_NEW_ARRAY(context, bool, loss->task_count);
    loss->block_sums = SD_NEW_ARRAY(context, double, sd_size_ceil(loss->max_samples, BLOCK));
    loss->expansion_grad = SD_NEW_ARRAY(context, float, count);
    loss->spaces = SD_NEW_ARRAY(context, sd_rate_space, loss->space_count);
    if (!loss->rates || !loss->failures || !loss->failed || !loss->block_sums || !loss->expansion_grad || !loss->spaces)
        return SD_ERR_MEMORY;
    if (loss->config.expa_type == 1) {
        loss->mixed = SD_NEW_ARRAY(context, float, count);
        if (!loss->mixed)
            return SD_ERR_MEMORY;
    }
    for (size_t i = 0; i < loss->space_count; i++)
        SD_TRY(sd_rate_space_create(context, NULL, sd_size_min(loss->max_samples, loss->dim), &loss->spaces[i]));
cleanup:
    return status;
}

SD_API sd_status sd_simdino_loss_create(sd_context *context, const sd_simdino_config *config, size_t max_samples,
                                        size_t max_views, size_t dim, sd_simdino_loss **loss) {
    sd_status status = SD_OK;
    sd_simdino_loss *l = NULL;
    sd_simdino_config read;

    SD_REQUIRE(loss, SD_ERR_ARGUMENT, "loss is NULL");
    sd_simdino_config_init(&read);
    status = sd_config_read(&read, sizeof(read), config, "sd_simdino_config");
    if (status == SD_OK)
        status = check_config(&read);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(dim > 0 && dim <= SD_BLAS_MAX, SD_ERR_ARGUMENT, "dim is %zu: it must be between 1 and %zu", dim,
               SD_BLAS_MAX);
    SD_REQUIRE(max_views >= GLOBAL_VIEWS, SD_ERR_ARGUMENT, "max_views is %zu: it must be at least 2", max_views);
    SD_REQUIRE(max_samples >= (size_t)read.groups && max_samples <= SD_BLAS_MAX, SD_ERR_ARGUMENT,
               "max_samples is %zu: it must be between the %d groups and %zu", max_samples, (int)read.groups,
               SD_BLAS_MAX);
    l = SD_NEW(context, sd_simdino_loss);
    if (!l)
        return SD_ERR_MEMORY;
    l->context = context;
    l->config = read;
    l->max_samples = max_samples;
    l->max_views = max_views;
    l->dim = dim;
    SD_TRY(allocate_all(l));
    *loss = l;
cleanup:
    if (status != SD_OK)
        sd_simdino_loss_destroy(l);
    return status;
}

SD_API sd_status sd_simdino_loss_set_weights(sd_simdino_loss *loss, double eps_sq, double coeff) {
    SD_REQUIRE(loss, SD_ERR_ARGUMENT, "loss is NULL");
    sd_simdino_config config = loss->config;
    config.eps_sq = eps_sq;
    config.coeff = coeff;
    sd_status status = check_config(&config);
    if (status == SD_OK)
        loss->config = config;
    return status;
}

SD_API void sd_simdino_loss_destroy(sd_simdino_loss *loss) {
    if (!loss)
        return;
    sd_context *context = loss->context;
    if (loss->spaces)
        for (size_t i = 0; i < loss->space_count; i++)
            sd_rate_space_destroy(&loss->spaces[i]);
    sd_release(context, loss->spaces);
    sd_release(context, loss->rates);
    sd_release(context, loss->failures);
    sd_release(context, loss->failed);
    sd_release(context, loss->block_sums);
    sd_release(context, loss->mixed);
    sd_release(context, loss->expansion_grad);
    sd_release(context, loss);
}

/* ---- expansion ----------------------------------------------------------------------------- */

/* R of one group of one global view, and its part of the gradient. W: group rows x dim. */
static void rate_task(pass *p, size_t task, size_t thread) {
    sd_simdino_loss *loss = p->loss;
    size_t view = task / p->groups, group = task % p->groups, rows = p->samples / p->groups, dim = loss->dim;
    size_t offset = (view * p->samples + group * rows) * dim;
    const float *w = p->student + offset;

    if (loss->config.expa_type == 1) {
        float *mixed = loss->mixed + offset;
        const float *t = p->teacher + offset;
        for (size_t i = 0; i < rows * dim; i++)
            mixed[i] = 0.5f * (w[i] + t[i]);
        w = mixed;
    }
    const sd_rows z = {.f32 = w, .n = rows, .d = dim, .ld = dim};
    const sd_rows_out out = {.f32 = loss->expansion_grad + offset, .ld = dim};
    size_t slot = loss->space_count > loss->task_count ? task : thread;
    loss->failed[task] = !sd_rate_evaluate(&loss->spaces[slot], &z, p->alpha, SD_RATE_DOUBLE_GRAM, p->rate_scale,
                                           &loss->rates[task], p->want_grad ? &out : NULL, &loss->failures[task]);
}

/* ---- compression --------------------------------------------------------------------------- */

static double inverse_length(const pass *p, const float *row, bool *clamped) {
    *clamped = true;
    if (p->loss->config.normalized)
        return 1.0;
    double length = sqrt(sd_dot(row, row, p->loss->dim));
    *clamped = !(length > NORM_FLOOR);
    return 1.0 / (*clamped ? NORM_FLOOR : length);
}

/* Sum over teacher views i != j of cos(t_i, s_j) for sample r, and its gradient with respect to s_j times -pair_scale
 * into `grad`. */
static double compress_row(const pass *p, size_t view, size_t r, const double teacher_scale[2], float *grad) {
    size_t dim = p->loss->dim;
    const float *s = p->student + (view * p->samples + r) * dim;
    const float *t0 = p->teacher + r * dim, *t1 = p->teacher + (p->samples + r) * dim;
    double a0 = view == 0 ? 0.0 : teacher_scale[0], a1 = view == 1 ? 0.0 : teacher_scale[1];
    bool clamped;
    double scale = inverse_length(p, s, &clamped);
    double product = (view == 0 ? 0.0 : a0 * sd_dot(t0, s, dim)) + (view == 1 ? 0.0 : a1 * sd_dot(t1, s, dim));

    if (grad) {
        /* d/ds of scale*<T, s>: scale*T, and through the length -scale^3 <T, s> s. */
        const float *global = view < GLOBAL_VIEWS ? p->loss->expansion_grad + (view * p->samples + r) * dim : NULL;
        float c0 = (float)(-p->pair_scale * scale * a0), c1 = (float)(-p->pair_scale * scale * a1);
        float own = clamped ? 0.0f : (float)(p->pair_scale * scale * scale * scale * product);
        for (size_t i = 0; i < dim; i++)
            grad[i] = c0 * t0[i] + c1 * t1[i] + own * s[i];
        if (global)
            for (size_t i = 0; i < dim; i++)
                grad[i] += global[i];
    }
    return scale * product;
}

static double compress_block(const pass *p, size_t block, bool with_grad) {
    size_t first = block * BLOCK, last = sd_size_min(first + BLOCK, p->samples), dim = p->loss->dim;
    double sum = 0.0;
    bool ignored;

    for (size_t r = first; r < last; r++) {
        const double teacher_scale[2] = {inverse_length(p, p->teacher + r * dim, &ignored),
                                         inverse_length(p, p->teacher + (p->samples + r) * dim, &ignored)};
        for (size_t view = 0; view < p->views; view++)
            sum += compress_row(p, view, r, teacher_scale,
                                with_grad ? p->grad + (view * p->samples + r) * dim : NULL);
    }
    return sum;
}

/* ---- evaluate ------------------------------------------------------------------------------ */

/* Tasks: the rates, the effective rank, the blocks of the compression. */
static void value_task(void *work, size_t index, size_t thread) {
    pass *p = work;
    sd_simdino_loss *loss = p->loss;

    if (index < p->rate_tasks) {
        rate_task(p, index, thread);
    } else if (index == p->rate_tasks) {
        const sd_rows z = {.f32 = p->student, .n = p->samples, .d = loss->dim, .ld = loss->dim};
        size_t slot = loss->space_count > loss->task_count ? loss->task_count : thread;
        p->effective_rank = sd_rate_effective_rank(&loss->spaces[slot], &z);
    } else {
        size_t block = index - p->rate_tasks - 1;
        loss->block_sums[block] = compress_block(p, block, false);
    }
}

static void gradient_task(void *work, size_t index, size_t thread) {
    (void)thread;
    (void)compress_block(work, index, true);
}

/* The first number that is not finite among the features, in words. */
static sd_status fail_features(const pass *p) {
    size_t dim = p->loss->dim, per_group = p->samples / (size_t)p->loss->config.groups;

    for (int which = 0; which < 2; which++) {
        const float *features = which ? p->teacher : p->student;
        size_t count = (which ? GLOBAL_VIEWS : p->views) * p->samples * dim;
        for (size_t i = 0; i < count; i++) {
            size_t row = i / dim, sample = row % p->samples;
            if (!isfinite(features[i]))
                return sd_fail(SD_ERR_NUMERIC, "%s view %zu, group %zu: feature %zu of sample %zu is %s",
                               which ? "teacher" : "student", row / p->samples, sample / per_group, i % dim, sample,
                               isnan(features[i]) ? "NaN" : "infinite");
        }
    }
    return SD_OK;
}

static sd_status check_values(const pass *p, double compression) {
    const sd_simdino_loss *loss = p->loss;
    sd_status status = SD_OK;

    for (size_t task = 0; task < p->rate_tasks; task++) {
        if (loss->failed[task]) {
            size_t rows = p->samples / p->groups;
            const sd_rows z = {.f32 = p->student, .n = rows, .d = loss->dim, .ld = loss->dim};
            const sd_rate_failure scale = {0};
            char where[64];

            status = fail_features(p);
            snprintf(where, sizeof(where), "student view %zu, group %zu: ", task / p->groups, task % p->groups);
            return status != SD_OK ? status : sd_rate_fail(&scale, &z, p->alpha, where);
        }
    }
    if (!isfinite(compression)) {
        status = fail_features(p);
        return status != SD_OK ? status : sd_fail(SD_ERR_NUMERIC, "the compression is not finite: features too large");
    }
    return SD_OK;
}

SD_API sd_status sd_simdino_loss_evaluate(sd_simdino_loss *loss, const float *student, const float *teacher,
                                          size_t samples, size_t views, float *grad, sd_simdino_result *result) {
    SD_REQUIRE(loss && student && teacher, SD_ERR_ARGUMENT, "%s is NULL",
               !loss      ? "loss"
               : !student ? "student"
                          : "teacher");
    const sd_simdino_config *config = &loss->config;
    size_t groups = (size_t)config->groups;
    SD_REQUIRE(samples > 0 && samples <= loss->max_samples, SD_ERR_ARGUMENT,
               "samples is %zu: it must be between 1 and %zu", samples, loss->max_samples);
    SD_REQUIRE(samples % groups == 0, SD_ERR_ARGUMENT, "samples is %zu: it must be a multiple of the %zu groups",
               samples, groups);
    SD_REQUIRE(views >= GLOBAL_VIEWS && views <= loss->max_views, SD_ERR_ARGUMENT,
               "views is %zu: it must be between 2 and %zu", views, loss->max_views);

    double gamma = sd_coding_rate_gamma(samples, loss->dim);
    double pairs = (double)(GLOBAL_VIEWS * views - GLOBAL_VIEWS);
    pass p = {.loss = loss, .student = student, .teacher = teacher, .samples = samples, .views = views, .grad = grad};
    p.groups = config->reduce_gram ? 1 : groups;
    p.rate_tasks = GLOBAL_VIEWS * p.groups;
    p.blocks = sd_size_ceil(samples, BLOCK);
    /* All N m samples enter the scale, whether or not the Gram holds all of them. */
    p.alpha = sd_rate_alpha((double)samples, loss->dim, config->eps_sq);
    p.rate_scale = -gamma / (double)p.rate_tasks * (config->expa_type == 1 ? 0.5 : 1.0);
    p.pair_scale = config->coeff / (pairs * (double)samples);
    p.want_grad = grad != NULL;

    sd_status status = sd_run(loss->context, value_task, &p, p.rate_tasks + 1 + p.blocks);
    if (status != SD_OK)
        return status;
    double rate = 0.0, compression = 0.0;
    for (size_t i = 0; i < p.rate_tasks; i++)
        rate += loss->rates[i];
    for (size_t i = 0; i < p.blocks; i++)
        compression += loss->block_sums[i];
    rate /= (double)p.rate_tasks;
    compression /= pairs * (double)samples;
    status = check_values(&p, compression);
    if (status == SD_OK && grad)
        status = sd_run(loss->context, gradient_task, &p, p.blocks);
    if (status == SD_OK && result)
        *result = (sd_simdino_result){.loss = -config->coeff * compression - gamma * rate,
                                      .compression = compression,
                                      .expansion = gamma * rate,
                                      .rate = rate,
                                      .effective_rank = p.effective_rank,
                                      .similarity = sd_mean_similarity(student, samples, loss->dim)};
    return status;
}
