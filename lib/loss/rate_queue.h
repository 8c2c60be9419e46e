/* rate_queue - features of past steps, beside which the coding rate sees those of a small batch. */
#ifndef SD_LOSS_RATE_QUEUE_H
#define SD_LOSS_RATE_QUEUE_H

#include "base/base.h"

#define SD_RATE_QUEUE_VIEWS ((size_t)2)

/* For each global view up to `capacity` rows of dim, oldest first. Places that are not filled yet are zeros at the
 * end, so that the array alone is the whole state. */
typedef struct sd_rate_queue {
    size_t capacity, dim;
    float *rows;    /* 2 x capacity x dim */
    float *pending; /* the same: rows since the last commit */
    size_t pending_count;
} sd_rate_queue;

/* On failure nothing is kept. */
sd_status sd_rate_queue_create(sd_context *context, size_t capacity, size_t dim, sd_rate_queue *queue);
void sd_rate_queue_destroy(sd_context *context, sd_rate_queue *queue);

/* How many rows each view has: those up to the last one that is not zero in either view. */
size_t sd_rate_queue_filled(const sd_rate_queue *queue);
const float *sd_rate_queue_view(const sd_rate_queue *queue, size_t view);

/* `count` more rows of each view, to be taken by commit or forgotten by discard. */
void sd_rate_queue_add(sd_rate_queue *queue, const float *const views[SD_RATE_QUEUE_VIEWS], size_t count);
void sd_rate_queue_commit(sd_rate_queue *queue);
void sd_rate_queue_discard(sd_rate_queue *queue);

#endif
