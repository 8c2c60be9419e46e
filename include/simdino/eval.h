/* eval.h - how good features are: nearest neighbours and the weighted k-NN classifier of DINO; and what they show:
 * attention, principal components and similarities of patches. */
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

/* ---- pictures of what the network sees ----------------------------------------------------- */

/* What the class token attends to: out of heads x T x T attentions (sd_token_outputs, T = 1 + registers + patches) the
 * row of the class token, patches only: heads x patches, not renormalised. Thread-safe. Errors: SD_ERR_ARGUMENT. */
SD_API sd_status sd_class_attention(const float *attention, size_t heads, size_t registers, size_t patches, float *out);

/* Which patches have the largest attentions that together make up `share` (0..1) of the sum, as in DINO's
 * visualize_attention.py: sorted upwards, divided by their sum and cumulated, those are kept whose cumulated sum is
 * above 1 - share. mask receives 1 (kept) or 0 for each patch of one head.
 * Thread-safe. Errors: SD_ERR_ARGUMENT, SD_ERR_NUMERIC (an attention is negative or not finite), SD_ERR_MEMORY. */
SD_API sd_status sd_attention_mask(const float *attention, size_t patches, double share, uint8_t *mask);

/* Principal components of n rows of width d, in double precision. All outputs may be NULL.
 *   mean      d
 *   axes      components x d: the directions of largest variance, largest first, of length 1; the entry of largest
 *             magnitude is positive
 *   variance  components: along each of them, with n - 1 in the denominator
 *   share     components: of the total variance
 *   scores    n x components: the centred rows along the axes
 * Memory: the centred rows, and a square matrix of the smaller of n and d. The context may be NULL.
 * Errors: SD_ERR_ARGUMENT (n < 2, components above n or d), SD_ERR_NUMERIC, SD_ERR_MEMORY. */
SD_API sd_status sd_pca(sd_context *context, const float *rows, size_t n, size_t d, size_t ld, size_t components,
                        double *mean, double *axes, double *variance, double *share, double *scores);

/* Patch tokens as colours, as DINOv2 shows them: the first three principal components of all n tokens (of one picture,
 * or of several that are to share their colours), each brought to 0..1 from its smallest to its largest value.
 *   colors      n x 3 (red, green, blue), 0..1; may be NULL
 *   foreground  n: 1 where the first component is positive, or not positive if that is more than half; may be NULL
 *   foreground_only  1: the components are those of the foreground alone, and the rest is 0
 * Errors: as sd_pca; SD_ERR_ARGUMENT also for fewer than 3 tokens, dimensions, or tokens in the foreground. */
SD_API sd_status sd_patch_colors(sd_context *context, const float *tokens, size_t n, size_t d, size_t ld,
                                 int32_t foreground_only, double *colors, uint8_t *foreground);

/* Cosine similarities of token `patch` to all n tokens; 0 with a token of zeros. Thread-safe.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_NUMERIC. */
SD_API sd_status sd_patch_similarity(const float *tokens, size_t n, size_t d, size_t ld, size_t patch,
                                     float *similarity);

#ifdef __cplusplus
}
#endif
#endif
