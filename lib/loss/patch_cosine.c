/* SimDINOv2's loss of masked patches. */
#include "loss/features.h"
#include <simdino/loss.h>

#include <math.h>

#define NORM_FLOOR 1e-8 /* as torch's cosine_similarity */

SD_API sd_status sd_patch_cosine(const float *student, const float *teacher, size_t count, size_t dim,
                                 const float *weights, size_t images, float *grad, double *loss) {
    SD_REQUIRE(loss != NULL, SD_ERR_ARGUMENT, "loss is NULL");
    SD_REQUIRE(count == 0 || (student != NULL && teacher != NULL && weights != NULL), SD_ERR_ARGUMENT, "%s is NULL",
               student == NULL ? "student" : teacher == NULL ? "teacher" : "weights");
    SD_REQUIRE(images >= 1 && dim >= 1, SD_ERR_ARGUMENT, "%s is 0", images == 0 ? "images" : "dim");
    double sum = 0.0;
    for (size_t r = 0; r < count; r++) {
        const float *s = student + r * dim, *t = teacher + r * dim;
        double length = sqrt(sd_dot(s, s, dim)), length_t = fmax(sqrt(sd_dot(t, t, dim)), NORM_FLOOR);
        double length_s = fmax(length, NORM_FLOOR), cosine = sd_dot(s, t, dim) / (length_s * length_t);
        double factor = -(double)weights[r] / (double)images;
        SD_REQUIRE(isfinite(length + factor * cosine), SD_ERR_NUMERIC,
                   "row %zu of the patches has a value or weight that is not finite", r);
        sum += factor * cosine;
        if (grad == NULL)
            continue;
        /* d cos/ds = (t/|t| - cos s/|s|) / |s|; a length that was clamped is a constant */
        float along_t = (float)(factor / (length_s * length_t));
        float along_s = length > NORM_FLOOR ? (float)(factor * cosine / (length_s * length_s)) : 0.0f;
        for (size_t j = 0; j < dim; j++)
            grad[r * dim + j] = along_t * t[j] - along_s * s[j];
    }
    *loss = sum;
    return SD_OK;
}
