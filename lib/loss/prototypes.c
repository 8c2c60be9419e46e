/* Weight normalisation (T. Salimans and D. Kingma, 2016) of the prototypes. */
#include "loss/prototypes.h"
#include "loss/features.h"

#include <math.h>
#include <string.h>

#define ROWS_OF_A_TASK ((size_t)128)

typedef struct prototypes_work {
    const sd_prototypes *layer;
    size_t p;
    float *weights;        /* forward */
    const float *dweights; /* backward */
    const sd_prototypes_gradient *into;
} prototypes_work;

static void weights_row(const prototypes_work *job, size_t row) {
    const float *v = job->layer->weight_v + row * job->p;
    double length = sqrt(sd_dot(v, v, job->p)), g = job->layer->weight_g == NULL ? 1.0 : (double)job->layer->weight_g[row];
    float scale = length > 0.0 ? (float)(g / length) : 0.0f;
    for (size_t j = 0; j < job->p; j++)
        job->weights[row * job->p + j] = scale * v[j];
}

/* With v^ = v/|v|: dg = <dW, v^>, dv = g/|v| (dW - v^ <dW, v^>). */
static void backward_row(const prototypes_work *job, size_t row) {
    const float *v = job->layer->weight_v + row * job->p, *dw = job->dweights + row * job->p;
    double length = sqrt(sd_dot(v, v, job->p)), g = job->layer->weight_g == NULL ? 1.0 : (double)job->layer->weight_g[row];
    if (length == 0.0)
        return;
    double along = sd_dot(dw, v, job->p) / length;
    if (job->into->weight_g != NULL)
        job->into->weight_g[row] += (float)along;
    if (job->into->weight_v == NULL)
        return;
    float *dv = job->into->weight_v + row * job->p;
    float scale = (float)(g / length), part = (float)(along / length);
    for (size_t j = 0; j < job->p; j++)
        dv[j] += scale * (dw[j] - part * v[j]);
}

static void prototypes_task(void *work, size_t index, size_t thread) {
    (void)thread;
    const prototypes_work *job = work;
    size_t first = index * ROWS_OF_A_TASK, last = sd_size_min(first + ROWS_OF_A_TASK, job->layer->count);
    for (size_t row = first; row < last; row++) {
        if (job->weights != NULL)
            weights_row(job, row);
        else
            backward_row(job, row);
    }
}

sd_status sd_prototypes_weights(sd_context *context, const sd_prototypes *layer, size_t p, float *weights) {
    prototypes_work job = {.layer = layer, .p = p, .weights = weights};
    return sd_run(context, prototypes_task, &job, sd_size_ceil(layer->count, ROWS_OF_A_TASK));
}

sd_status sd_prototypes_backward(sd_context *context, const sd_prototypes *layer, size_t p, const float *dweights,
                                 const sd_prototypes_gradient *into) {
    prototypes_work job = {.layer = layer, .p = p, .dweights = dweights, .into = into};
    return sd_run(context, prototypes_task, &job, sd_size_ceil(layer->count, ROWS_OF_A_TASK));
}
