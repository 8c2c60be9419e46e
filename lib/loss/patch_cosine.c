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
        double length_s = fmax(sqrt(sd_dot(s, s, dim)), NORM_FLOOR), length_t = fmax(sqrt(sd_dot(t, t, dim)), NORM_FLOOR);
        double cosine = sd_dot(s, t, dim) / (length_s * length_t), factor = -(double)weights[r] / (double)images;
        SD_REQUIRE(isfinite(cosine), SD_ERR_NUMERIC, "row %zu of the patches has a value that is not finite", r);
        SD_REQUIRE(isfinite(factor), SD_ERR_NUMERIC, "the weight of row %zu of the patches is %g", r, (double)weights[r]);
        sum += factor * cosine;
        if (grad == NULL)
            continue;
        /* d cos/ds = (t/|t| - cos s/|s|) / |s| */
        float along_t = (float)(factor / (length_s * length_t)), along_s = (float)(factor * cosine / (length_s * length_s));
        for (size_t j = 0; j < dim; j++)
            grad[r * dim + j] = along_t * t[j] - along_s * s[j];
    }
    *loss = sum;
    return SD_OK;
}
