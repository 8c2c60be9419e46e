/* features - what metrics tell about a view's features, and what losses share about rows. */
#ifndef SD_LOSS_FEATURES_H
#define SD_LOSS_FEATURES_H

#include "base/base.h"

/* <a, b> in double. */
double sd_dot(const float *a, const float *b, size_t n);
/* Mean cosine between different rows of m. 0 for one row. */
double sd_mean_similarity(const float *rows, size_t m, size_t dim);
/* (tr G)^2 / tr(G^2) with G the second moments of m rows: between 1 and min(m, dim); 0 when all are 0. */
double sd_effective_rank(const float *rows, size_t m, size_t dim);
/* SD_ERR_NUMERIC, naming `what` and the row, when a value is NaN or infinite. */
sd_status sd_check_finite(const char *what, const float *rows, size_t m, size_t dim);

#endif
