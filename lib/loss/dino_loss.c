/* DINO's loss of class tokens: pairs of a teacher's global view and another student view of the same sample. */
#include "loss/features.h"
#include "loss/prototypes.h"

#include <string.h>

/* Student rows of a tile: enough that the products run at their rate, few enough that their logits stay small (48 MiB
 * with 65,536 prototypes). */
#define TILE_ROWS ((size_t)192)
#define GLOBAL_VIEWS ((size_t)2)

struct sd_dino_loss {
    sd_context *context;
    sd_assignment *assignment;
    size_t max_samples, max_views, dim, tile_samples;
};

SD_API sd_status sd_dino_loss_create(sd_context *context, const sd_dino_config *config, size_t max_samples,
                                     size_t max_views, size_t dim, size_t prototypes, sd_dino_loss **out) {
    SD_REQUIRE(out != NULL, SD_ERR_ARGUMENT, "loss is NULL");
    SD_REQUIRE(max_samples >= 1 && max_samples <= 1u << 20, SD_ERR_ARGUMENT, "max_samples is %zu: it must be 1 to %u",
               max_samples, 1u << 20);
    SD_REQUIRE(max_views >= GLOBAL_VIEWS && max_views <= 4096, SD_ERR_ARGUMENT,
               "max_views is %zu: it must be 2 to 4096", max_views);
    sd_dino_loss *loss = SD_NEW(context, sd_dino_loss);
    if (loss == NULL)
        return SD_ERR_MEMORY;
    loss->context = context;
    loss->max_samples = max_samples;
    loss->max_views = max_views;
    loss->dim = dim;
    loss->tile_samples = sd_size_min(sd_size_max(TILE_ROWS / max_views, 1), max_samples);
    sd_status status = sd_assignment_create(context, config, dim, prototypes, GLOBAL_VIEWS * loss->tile_samples,
                                            max_views * loss->tile_samples, GLOBAL_VIEWS * max_samples,
                                            &loss->assignment);
    if (status != SD_OK) {
        sd_dino_loss_destroy(loss);
        return status;
    }
    *out = loss;
    return SD_OK;
}

SD_API void sd_dino_loss_destroy(sd_dino_loss *loss) {
    if (loss == NULL)
        return;
    sd_assignment_destroy(loss->assignment);
    sd_release(loss->context, loss);
}

/* The rows of samples first .. first+n-1: teacher row view*n + i, student row view*n + i. */
static sd_assignment_tile fill_tile(sd_dino_loss *loss, const float *student, const float *teacher, size_t samples,
                                    size_t views, size_t first, size_t n) {
    sd_assignment_tile tile = sd_assignment_tile_of(loss->assignment);
    size_t dim = loss->dim;
    tile.teacher_count = GLOBAL_VIEWS * n;
    tile.student_count = views * n;
    for (size_t view = 0; view < GLOBAL_VIEWS; view++) {
        memcpy(tile.teacher + view * n * dim, teacher + (view * samples + first) * dim, n * dim * sizeof *teacher);
        for (size_t i = 0; i < n; i++)
            tile.teacher_numbers[view * n + i] = view * samples + first + i;
    }
    double weight = 1.0 / ((double)(GLOBAL_VIEWS * views - GLOBAL_VIEWS) * (double)samples);
    for (size_t view = 0; view < views; view++) {
        memcpy(tile.student + view * n * dim, student + (view * samples + first) * dim, n * dim * sizeof *student);
        for (size_t i = 0; i < n; i++) {
            bool global = view < GLOBAL_VIEWS;
            /* a global view is compared with the other one, a local view with both */
            tile.rows[view * n + i] = (sd_assigned_row){
                .target = {global ? (1 - view) * n + i : i, n + i}, .targets = global ? 1 : 2, .weight = weight};
        }
    }
    return tile;
}

SD_API sd_status sd_dino_loss_evaluate(sd_dino_loss *loss, const float *student, const float *teacher, size_t samples,
                                       size_t views, const sd_prototypes *student_layer,
                                       const sd_prototypes *teacher_layer, double teacher_temp, float *grad,
                                       const sd_prototypes_gradient *into, sd_dino_result *result) {
    SD_REQUIRE(loss != NULL && student != NULL && teacher != NULL && result != NULL, SD_ERR_ARGUMENT, "%s is NULL",
               loss == NULL ? "loss" : student == NULL ? "student" : teacher == NULL ? "teacher" : "result");
    SD_REQUIRE(samples >= 1 && samples <= loss->max_samples, SD_ERR_ARGUMENT, "samples is %zu: it must be 1 to %zu",
               samples, loss->max_samples);
    SD_REQUIRE(views >= GLOBAL_VIEWS && views <= loss->max_views, SD_ERR_ARGUMENT, "views is %zu: it must be 2 to %zu",
               views, loss->max_views);
    sd_status status;
    SD_TRY(sd_check_finite("student's features", student, views * samples, loss->dim));
    SD_TRY(sd_check_finite("teacher's features", teacher, GLOBAL_VIEWS * samples, loss->dim));
    sd_dino_result values = {0};
    sd_assignment_pass pass = {.student_layer = student_layer,
                               .teacher_layer = teacher_layer,
                               .teacher_temp = teacher_temp,
                               .teacher = teacher,
                               .teacher_count = GLOBAL_VIEWS * samples,
                               .gradient = grad != NULL,
                               .gradient_weight = 1.0,
                               .into = into};
    SD_TRY(sd_assignment_begin(loss->assignment, &pass));
    /* tiles of nearly equal size, because each reads all prototypes */
    size_t step = sd_size_ceil(samples, sd_size_ceil(samples, loss->tile_samples)), dim = loss->dim;
    for (size_t first = 0; first < samples; first += step) {
        size_t n = sd_size_min(step, samples - first);
        sd_assignment_tile tile = fill_tile(loss, student, teacher, samples, views, first, n);
        SD_TRY(sd_assignment_run(loss->assignment, &pass, &tile));
        for (size_t row = 0; row < tile.student_count; row++)
            *(row < GLOBAL_VIEWS * n ? &values.global_loss : &values.local_loss) += tile.losses[row];
        for (size_t view = 0; grad != NULL && view < views; view++)
            memcpy(grad + (view * samples + first) * dim, tile.dstudent + view * n * dim, n * dim * sizeof *grad);
    }
    SD_TRY(sd_assignment_end(loss->assignment, &pass, &values.target_entropy));
    values.loss = values.local_loss + values.global_loss;
    values.effective_rank = sd_effective_rank(student, samples, dim);
    values.similarity = sd_mean_similarity(student, samples, dim);
    *result = values;
cleanup:
    return status;
}

SD_API void sd_dino_loss_commit(sd_dino_loss *loss) {
    if (loss != NULL)
        sd_assignment_commit(loss->assignment);
}

SD_API void sd_dino_loss_discard(sd_dino_loss *loss) {
    if (loss != NULL)
        sd_assignment_discard(loss->assignment);
}

SD_API float *sd_dino_loss_center(sd_dino_loss *loss) {
    return loss == NULL ? NULL : sd_assignment_center(loss->assignment);
}
