/* LayerScale in the backward pass: see sd_scaled_weights. */
#include "model/model.h"

#include <string.h>

typedef struct scale_work {
    const sd_model *model;
    sd_activations *a;
    size_t block;
    float *gradient; /* NULL: begin */
} scale_work;

/* What belongs to one of the two branches. Rows: D; columns: D or F. */
typedef struct scaled_branch {
    const float *gamma, *weight, *bias;
    float *scaled, *product, *sum; /* diag(gamma) W, M, s */
    float *dgamma, *dweight, *dbias;
    size_t columns;
} scaled_branch;

static scaled_branch branch_of(const scale_work *job, size_t index) {
    const sd_model *model = job->model;
    const sd_layout *l = &model->layout;
    const sd_scaled_weights *scaled = &job->a->scaled;
    size_t block = job->block, d = job->a->geometry.dim;
    float *gradient = job->gradient == NULL ? NULL : job->gradient + block * l->block_stride;
    scaled_branch branch = {.columns = d};
    if (index == 0) {
        branch = (scaled_branch){.gamma = SD_PARAMETER(gamma1), .weight = SD_PARAMETER(proj_weight),
                                 .bias = SD_PARAMETER(proj_bias), .scaled = scaled->proj, .product = scaled->dproj,
                                 .sum = scaled->dproj_bias, .columns = d};
        if (gradient != NULL) {
            branch.dgamma = gradient + l->gamma1;
            branch.dweight = gradient + l->proj_weight;
            branch.dbias = gradient + l->proj_bias;
        }
    } else {
        branch = (scaled_branch){.gamma = SD_PARAMETER(gamma2), .weight = SD_PARAMETER(fc2_weight),
                                 .bias = SD_PARAMETER(fc2_bias), .scaled = scaled->fc2, .product = scaled->dfc2,
                                 .sum = scaled->dfc2_bias, .columns = job->a->geometry.hidden};
        if (gradient != NULL) {
            branch.dgamma = gradient + l->gamma2;
            branch.dweight = gradient + l->fc2_weight;
            branch.dbias = gradient + l->fc2_bias;
        }
    }
    return branch;
}

#define SD_SCALE_ROWS 32 /* of a task */

static void begin_row(const scaled_branch *branch, size_t row) {
    const float *weight = branch->weight + row * branch->columns;
    float *scaled = branch->scaled + row * branch->columns, gamma = branch->gamma[row];
    for (size_t j = 0; j < branch->columns; j++)
        scaled[j] = gamma * weight[j];
    memset(branch->product + row * branch->columns, 0, branch->columns * sizeof(float));
    branch->sum[row] = 0.0f;
}

static void end_row(const scaled_branch *branch, size_t row) {
    const float *weight = branch->weight + row * branch->columns, *product = branch->product + row * branch->columns;
    float *dweight = branch->dweight + row * branch->columns, gamma = branch->gamma[row];
    double dot = (double)branch->bias[row] * (double)branch->sum[row];
    for (size_t j = 0; j < branch->columns; j++) {
        dot += (double)weight[j] * (double)product[j];
        dweight[j] += gamma * product[j];
    }
    branch->dgamma[row] += (float)dot;
    branch->dbias[row] += gamma * branch->sum[row];
}

static void scale_task(void *argument, size_t index, size_t thread) {
    (void)thread;
    const scale_work *job = argument;
    size_t d = job->a->geometry.dim, tasks = sd_size_ceil(d, SD_SCALE_ROWS);
    scaled_branch branch = branch_of(job, index / tasks);
    size_t first = index % tasks * SD_SCALE_ROWS, last = sd_size_min(first + SD_SCALE_ROWS, d);
    for (size_t row = first; row < last; row++) {
        if (job->gradient == NULL)
            begin_row(&branch, row);
        else
            end_row(&branch, row);
    }
}

sd_status sd_scale_begin(const sd_model *model, sd_activations *a, size_t block) {
    if (!a->geometry.layer_scale)
        return SD_OK;
    scale_work job = {model, a, block, NULL};
    return sd_run(a->context, scale_task, &job, 2 * sd_size_ceil(a->geometry.dim, SD_SCALE_ROWS));
}

sd_status sd_scale_end(const sd_model *model, sd_activations *a, size_t block, float *gradient) {
    if (!a->geometry.layer_scale)
        return SD_OK;
    scale_work job = {model, a, block, gradient};
    return sd_run(a->context, scale_task, &job, 2 * sd_size_ceil(a->geometry.dim, SD_SCALE_ROWS));
}
