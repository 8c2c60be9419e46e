/* The elementwise loops, written so that the compiler vectorises them. Every product and sum is a statement of its own:
 * it is rounded to float where PyTorch rounds it, and no compiler may contract two of them. */
#include "optim/optim.h"

#include <math.h>

/* AdamW (Loshchilov and Hutter 2019, algorithm 2, in torch.optim.AdamW's order):
 *     p <- keep p                                keep = 1 - lr weight_decay
 *     m <- beta1 m + (1-beta1) g
 *     v <- beta2 v + (1-beta2) g^2
 *     p <- p - lr/(1-beta1^t) m / (sqrt(v)/sqrt(1-beta2^t) + epsilon)                               */
void sd_adamw_block(const sd_adamw_numbers *numbers, float keep, float scale, float *restrict parameters,
                    const float *restrict gradient, float *restrict average, float *restrict average_square,
                    size_t count) {
    const float beta1 = numbers->beta1, rest1 = numbers->rest1;
    const float beta2 = numbers->beta2, rest2 = numbers->rest2;
    const float root_correction2 = numbers->root_correction2, epsilon = numbers->epsilon, step = numbers->step;
    for (size_t i = 0; i < count; i++) {
        float g = gradient[i] * scale;
        float kept = average[i] * beta1;
        float fresh = g * rest1;
        float m = kept + fresh;
        float kept_square = average_square[i] * beta2;
        float fresh_square = g * rest2;
        fresh_square = fresh_square * g;
        float v = kept_square + fresh_square;
        float denominator = sqrtf(v) / root_correction2;
        denominator = denominator + epsilon;
        float change = m * step;
        change = change / denominator;
        float p = parameters[i] * keep;
        average[i] = m;
        average_square[i] = v;
        parameters[i] = p + change;
    }
}

void sd_momentum_block(float momentum, float decay, float ratio, float step, float scale, float *restrict parameters,
                       const float *restrict gradient, float *restrict velocity, size_t count) {
    for (size_t i = 0; i < count; i++) {
        float g = gradient[i] * scale;
        float pull = parameters[i] * decay;
        float update = g + pull;
        update = update * ratio;
        float kept = velocity[i] * momentum;
        float v = kept + update;
        float change = v * step;
        velocity[i] = v;
        parameters[i] = parameters[i] + change;
    }
}

void sd_ema_block(float momentum, float rest, float *restrict teacher, const float *restrict student, size_t count) {
    for (size_t i = 0; i < count; i++) {
        float kept = teacher[i] * momentum;
        float fresh = student[i] * rest;
        teacher[i] = kept + fresh;
    }
}

void sd_scale_block(float factor, float *values, size_t count) {
    for (size_t i = 0; i < count; i++)
        values[i] *= factor;
}

/* Eight running sums: their order of addition is fixed here, so that vectorising does not change the result. */
#define LANES 8

static double lane_total(const double *lanes) {
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

double sd_square_sum(const float *values, size_t count) {
    double lanes[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++) {
            double value = (double)values[i + lane];
            double square = value * value;
            lanes[lane] += square;
        }
    for (size_t lane = 0; i < count; i++, lane++) {
        double value = (double)values[i];
        double square = value * value;
        lanes[lane] += square;
    }
    return lane_total(lanes);
}

double sd_update_square_sum(float decay, float scale, const float *parameters, const float *gradient, size_t count) {
    double lanes[LANES] = {0};
    for (size_t i = 0; i < count; i++) {
        float g = gradient[i] * scale;
        float pull = parameters[i] * decay;
        float update = g + pull;
        double square = (double)update * (double)update;
        lanes[i % LANES] += square;
    }
    return lane_total(lanes);
}
