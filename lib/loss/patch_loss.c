/* iBOT's loss of masked patches (J. Zhou et al., ICLR 2022): the student's assignment of a patch that it does not see
 * against the teacher's, who sees it. */
#include "loss/features.h"
#include "loss/prototypes.h"

#include <math.h>
#include <string.h>

/* As in dino_loss.c; here each student row has a teacher row of its own. */
#define TILE_ROWS ((size_t)96)

struct sd_patch_loss {
    sd_context *context;
    sd_assignment *assignment;
    size_t max_rows, tile_rows, dim;
};

SD_API sd_status sd_patch_loss_create(sd_context *context, const sd_dino_config *config, size_t max_rows, size_t dim,
                                      size_t prototypes, sd_patch_loss **out) {
    SD_REQUIRE(out != NULL, SD_ERR_ARGUMENT, "loss is NULL");
    SD_REQUIRE(max_rows >= 1 && max_rows <= 1u << 28, SD_ERR_ARGUMENT, "max_rows is %zu: it must be 1 to %u", max_rows,
               1u << 28);
    sd_patch_loss *loss = SD_NEW(context, sd_patch_loss);
    if (loss == NULL)
        return SD_ERR_MEMORY;
    loss->context = context;
    loss->max_rows = max_rows;
    loss->dim = dim;
    loss->tile_rows = sd_size_min(TILE_ROWS, max_rows);
    sd_status status = sd_assignment_create(context, config, dim, prototypes, loss->tile_rows, loss->tile_rows,
                                            max_rows, &loss->assignment);
    if (status != SD_OK) {
        sd_patch_loss_destroy(loss);
        return status;
    }
    *out = loss;
    return SD_OK;
}

SD_API void sd_patch_loss_destroy(sd_patch_loss *loss) {
    if (loss == NULL)
        return;
    sd_assignment_destroy(loss->assignment);
    sd_release(loss->context, loss);
}

SD_API sd_status sd_patch_loss_evaluate(sd_patch_loss *loss, const float *student, const float *teacher, size_t count,
                                        const float *weights, size_t images, const sd_prototypes *student_layer,
                                        const sd_prototypes *teacher_layer, double teacher_temp, double weight,
                                        float *grad, const sd_prototypes_gradient *into, double *result) {
    SD_REQUIRE(loss != NULL && result != NULL, SD_ERR_ARGUMENT, "%s is NULL", loss == NULL ? "loss" : "result");
    SD_REQUIRE(count <= loss->max_rows, SD_ERR_ARGUMENT, "count is %zu: it must be at most %zu", count, loss->max_rows);
    SD_REQUIRE(count == 0 || (student != NULL && teacher != NULL && weights != NULL), SD_ERR_ARGUMENT, "%s is NULL",
               student == NULL ? "student" : teacher == NULL ? "teacher" : "weights");
    SD_REQUIRE(images >= 1, SD_ERR_ARGUMENT, "images is 0");
    SD_REQUIRE(isfinite(weight), SD_ERR_ARGUMENT, "weight is %g: it must be finite", weight);
    if (count == 0) {
        *result = 0.0;
        return SD_OK;
    }
    sd_status status;
    SD_TRY(sd_check_finite("student's patches", student, count, loss->dim));
    SD_TRY(sd_check_finite("teacher's patches", teacher, count, loss->dim));
    double sum = 0.0, entropy;
    sd_assignment_pass pass = {.student_layer = student_layer,
                               .teacher_layer = teacher_layer,
                               .teacher_temp = teacher_temp,
                               .teacher = teacher,
                               .teacher_count = count,
                               .gradient = grad != NULL,
                               .gradient_weight = weight,
                               .into = into};
    SD_TRY(sd_assignment_begin(loss->assignment, &pass));
    size_t step = sd_size_ceil(count, sd_size_ceil(count, loss->tile_rows)), dim = loss->dim;
    for (size_t first = 0; first < count; first += step) {
        sd_assignment_tile tile = sd_assignment_tile_of(loss->assignment);
        size_t n = sd_size_min(step, count - first);
        tile.teacher_count = tile.student_count = n;
        memcpy(tile.teacher, teacher + first * dim, n * dim * sizeof *teacher);
        memcpy(tile.student, student + first * dim, n * dim * sizeof *student);
        for (size_t i = 0; i < n; i++) {
            tile.teacher_numbers[i] = first + i;
            tile.rows[i] = (sd_assigned_row){
                .target = {i, 0}, .targets = 1, .weight = (double)weights[first + i] / (double)images};
        }
        SD_TRY(sd_assignment_run(loss->assignment, &pass, &tile));
        for (size_t i = 0; i < n; i++)
            sum += tile.losses[i];
        if (grad != NULL)
            memcpy(grad + first * dim, tile.dstudent, n * dim * sizeof *grad);
    }
    SD_TRY(sd_assignment_end(loss->assignment, &pass, &entropy));
    *result = sum;
cleanup:
    return status;
}

SD_API void sd_patch_loss_commit(sd_patch_loss *loss) {
    if (loss != NULL)
        sd_assignment_commit(loss->assignment);
}

SD_API void sd_patch_loss_discard(sd_patch_loss *loss) {
    if (loss != NULL)
        sd_assignment_discard(loss->assignment);
}

SD_API float *sd_patch_loss_center(sd_patch_loss *loss) {
    return loss == NULL ? NULL : sd_assignment_center(loss->assignment);
}
