/* eval.h - how good features are: nearest neighbours and the weighted k-NN classifier of DINO. */
#ifndef SIMDINO_EVAL_H
#define SIMDINO_EVAL_H

#include <simdino/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Subtracts `mean` (d numbers; NULL: nothing) from each row and divides the row by its length (rows of zeros stay). In
 * place.
 * Thread-safe. Errors: SD_ERR_ARGUMENT, SD_ERR_NUMERIC. */
SD_API sd_status sd_normalize_rows(float *rows, size_t n, size_t d, size_t ld, const float *mean);
/* The mean of n rows, accumulated in double. Errors: as above. */
SD_API sd_status sd_mean_row(const float *rows, size_t n, size_t d, size_t ld, float *mean);

/* For each of m queries the k rows of `base` (n rows of width d, both with leading dimension d) with the largest inner
 * product, best first; equal ones by lower index. indices and similarities receive m x k; either may be NULL.
 * Reports progress as "neighbours". Errors: SD_ERR_ARGUMENT (k above n), SD_ERR_NUMERIC (a feature is NaN or infinite),
 * SD_ERR_MEMORY, SD_ERR_CANCELLED (outputs are incomplete then). */
SD_API sd_status sd_nearest_neighbors(sd_context *context, const float *base, size_t n, const float *queries, size_t m,
                                      size_t d, size_t k, int64_t *indices, float *similarities);

typedef struct sd_knn_result {
    double top1; /* share of queries, 0..1 */
    double top5;
} sd_knn_result;

/* Weighted k-NN: each of a query's k nearest training rows (largest inner product; normalise rows first) votes for its
 * label with weight exp(similarity / temperature). DINO's setting: k = 20, temperature 0.07.
 *   predictions  m labels; may be NULL.   test_labels  NULL: then result must be NULL.
 * top5: share with the true label among the five classes of most votes (equal votes: lower class first); with k < 5 the
 * first k classes.
 * Reports progress as "knn".
 * Errors: SD_ERR_ARGUMENT (label outside [0, classes), k above n_train, temperature not positive), SD_ERR_NUMERIC (a
 * feature is NaN or infinite), SD_ERR_MEMORY, SD_ERR_CANCELLED (predictions are incomplete then). */
SD_API sd_status sd_knn_classify(sd_context *context, const float *train, const int32_t *train_labels, size_t n_train,
                                 const float *test, const int32_t *test_labels, size_t n_test, size_t d,
                                 size_t classes, size_t k, double temperature, int32_t *predictions,
                                 sd_knn_result *result);

#ifdef __cplusplus
}
#endif
#endif
