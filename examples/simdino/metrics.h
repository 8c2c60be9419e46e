/* metrics.h - the numbers of every step: kept for the loss curve, and written to a CSV or JSON-lines file. */
#ifndef METRICS_H
#define METRICS_H

#include <simdino/simdino.h>

typedef struct metrics_row {
    double step, loss, compression, expansion;
    double knn; /* NAN where it was not measured */
    double cross_entropy, target_entropy; /* of DINO and DINOv2; NAN or 0 otherwise */
} metrics_row;

typedef struct metrics metrics;

/* `path` (NULL: only kept) ends in .csv, or .jsonl or .json for JSON lines. With first_step above 0 (a resumed run) the
 * rows of earlier steps are taken over from the file, and later ones removed. NULL with the reason reported. */
metrics *metrics_open(const char *path, uint64_t first_step);
/* knn: accuracy measured after this step, else NAN. A failure is reported once, and later rows are left out: a full
 * disk should not end a training. metrics_close() tells of it. */
void metrics_add(metrics *m, const sd_step_metrics *step, double epoch, double knn);
/* 0, or -1 with the reason reported: a full disk, for instance. Accepts NULL. */
int metrics_close(metrics *m);

const metrics_row *metrics_rows(const metrics *m, size_t *count);

#endif
