#include "loss/rate_queue.h"

#include <string.h>

sd_status sd_rate_queue_create(sd_context *context, size_t capacity, size_t dim, sd_rate_queue *queue) {
    size_t values;
    *queue = (sd_rate_queue){.capacity = capacity, .dim = dim};
    SD_REQUIRE(sd_size_mul(SD_RATE_QUEUE_VIEWS * capacity, dim, &values), SD_ERR_MEMORY,
               "a queue of %zu rows of %zu does not fit into memory", capacity, dim);
    queue->rows = SD_NEW_ARRAY(context, float, values);
    queue->pending = SD_NEW_ARRAY(context, float, values);
    if (queue->rows == NULL || queue->pending == NULL) {
        sd_rate_queue_destroy(context, queue);
        return SD_ERR_MEMORY;
    }
    return SD_OK;
}

void sd_rate_queue_destroy(sd_context *context, sd_rate_queue *queue) {
    sd_release(context, queue->rows);
    sd_release(context, queue->pending);
    *queue = (sd_rate_queue){0};
}

const float *sd_rate_queue_view(const sd_rate_queue *queue, size_t view) {
    return queue->rows + view * queue->capacity * queue->dim;
}

size_t sd_rate_queue_filled(const sd_rate_queue *queue) {
    for (size_t filled = queue->capacity; filled > 0; filled--)
        for (size_t view = 0; view < SD_RATE_QUEUE_VIEWS; view++) {
            const float *row = sd_rate_queue_view(queue, view) + (filled - 1) * queue->dim;
            for (size_t j = 0; j < queue->dim; j++)
                if (row[j] != 0.0f)
                    return filled;
        }
    return 0;
}

/* Appends to one view of `rows`, which has `filled`; the oldest make room. */
static void append(const sd_rate_queue *queue, float *rows, size_t filled, const float *more, size_t count) {
    size_t bytes = queue->dim * sizeof(float), taken = sd_size_min(count, queue->capacity);
    size_t kept = sd_size_min(filled, queue->capacity - taken);
    memmove(rows, rows + (filled - kept) * queue->dim, kept * bytes);
    memcpy(rows + kept * queue->dim, more + (count - taken) * queue->dim, taken * bytes);
}

void sd_rate_queue_add(sd_rate_queue *queue, const float *const views[SD_RATE_QUEUE_VIEWS], size_t count) {
    for (size_t view = 0; view < SD_RATE_QUEUE_VIEWS; view++)
        append(queue, queue->pending + view * queue->capacity * queue->dim, queue->pending_count, views[view], count);
    queue->pending_count = sd_size_min(queue->pending_count + count, queue->capacity);
}

void sd_rate_queue_commit(sd_rate_queue *queue) {
    size_t filled = sd_rate_queue_filled(queue), view_values = queue->capacity * queue->dim;
    for (size_t view = 0; view < SD_RATE_QUEUE_VIEWS; view++)
        append(queue, queue->rows + view * view_values, filled, queue->pending + view * view_values,
               queue->pending_count);
    sd_rate_queue_discard(queue);
}

void sd_rate_queue_discard(sd_rate_queue *queue) { queue->pending_count = 0; }
