/* Weight normalisation (T. Salimans and D. Kingma, 2016) of the prototypes. */
#include "loss/prototypes.h"

#include <math.h>

#define ROWS_OF_A_TASK ((size_t)256)

typedef struct prototypes_work {
    const sd_prototypes *layer;
    size_t p;
    double temperature;
    const sd_kernels *kernels; /* of the factors */
    float *factors;
    double *lengths_out;
    const double *inverse_lengths, *along; /* of the backward */
    const sd_prototypes_gradient *into;
} prototypes_work;

static double scale_of(const sd_prototypes *layer, size_t row) {
    return layer->weight_g == NULL ? 1.0 : (double)layer->weight_g[row];
}

static void factors_task(void *work, size_t index, size_t thread) {
    (void)thread;
    const prototypes_work *job = work;
    size_t first = index * ROWS_OF_A_TASK, count = sd_size_min(ROWS_OF_A_TASK, job->layer->count - first);
    double squares[ROWS_OF_A_TASK];
    job->kernels->row_squares(job->layer->weight_v + first * job->p, count, job->p, squares);
    for (size_t i = 0; i < count; i++) {
        /* Not "> 0": a NaN is to reach the logits, where it is found. */
        double inverse = squares[i] == 0.0 ? 0.0 : 1.0 / sqrt(squares[i]);
        job->factors[first + i] = (float)(scale_of(job->layer, first + i) * inverse / job->temperature);
        if (job->lengths_out != NULL)
            job->lengths_out[first + i] = inverse;
    }
}

static void backward_task(void *work, size_t index, size_t thread) {
    (void)thread;
    const prototypes_work *job = work;
    size_t first = index * ROWS_OF_A_TASK, last = sd_size_min(first + ROWS_OF_A_TASK, job->layer->count), p = job->p;
    for (size_t row = first; row < last; row++) {
        double inverse = job->inverse_lengths[row], dscale = job->along[row] * inverse / job->temperature;
        if (job->into->weight_g != NULL)
            job->into->weight_g[row] += (float)dscale;
        if (job->into->weight_v == NULL)
            continue;
        const float *v = job->layer->weight_v + row * p;
        float *dv = job->into->weight_v + row * p;
        float part = (float)(scale_of(job->layer, row) * dscale * inverse * inverse);
        for (size_t j = 0; j < p; j++)
            dv[j] -= part * v[j];
    }
}

sd_status sd_prototypes_factors(sd_context *context, const sd_prototypes *layer, size_t p, double temperature,
                                float *factors, double *inverse_lengths) {
    prototypes_work job = {.layer = layer,
                           .p = p,
                           .temperature = temperature,
                           .kernels = sd_kernels_get(),
                           .factors = factors,
                           .lengths_out = inverse_lengths};
    return sd_run(context, factors_task, &job, sd_size_ceil(layer->count, ROWS_OF_A_TASK));
}

sd_status sd_prototypes_backward(sd_context *context, const sd_prototypes *layer, size_t p, double temperature,
                                 const double *inverse_lengths, const double *along,
                                 const sd_prototypes_gradient *into) {
    prototypes_work job = {.layer = layer,
                           .p = p,
                           .temperature = temperature,
                           .inverse_lengths = inverse_lengths,
                           .along = along,
                           .into = into};
    return sd_run(context, backward_task, &job, sd_size_ceil(layer->count, ROWS_OF_A_TASK));
}
