/* Schedules of learning rate, weight decay, momentum and temperature. */
#include "optim/optim.h"

#include <math.h>

static const double pi = 3.14159265358979323846;

/* Step i of the warm-up. */
static double warmup_value(const sd_schedule *schedule, uint64_t i) {
    if (schedule->warmup_kind == SD_WARMUP_EXCLUSIVE)
        return schedule->start + (schedule->base - schedule->start) * (double)i / (double)schedule->warmup;
    /* numpy.linspace: a single point is the start, the last of several is the base exactly */
    if (schedule->warmup == 1)
        return schedule->start;
    if (i + 1 == schedule->warmup)
        return schedule->base;
    return (double)i * ((schedule->base - schedule->start) / (double)(schedule->warmup - 1)) + schedule->start;
}

SD_API double sd_schedule_value(const sd_schedule *schedule, uint64_t step) {
    if (!schedule)
        return 0;
    if (schedule->period > 1)
        step /= schedule->period;
    if (step >= schedule->total)
        return schedule->final;
    if (step < schedule->freeze || step < schedule->cut)
        return 0;
    uint64_t i = step - schedule->freeze, length = schedule->total - schedule->freeze;
    if (i < schedule->warmup)
        return warmup_value(schedule, i);
    i -= schedule->warmup;
    length -= schedule->warmup; /* > 0, since step < total is beyond the warm-up; likewise below */
    if (i < schedule->peak)
        return schedule->base;
    double share = (double)(i - schedule->peak) / (double)(length - schedule->peak);
    if (schedule->kind == SD_SCHEDULE_LINEAR)
        return schedule->base + (schedule->final - schedule->base) * share;
    return schedule->final + 0.5 * (schedule->base - schedule->final) * (1 + cos(pi * share));
}

SD_API double sd_scale_lr_linear(double base_lr, size_t batch) { return base_lr * (double)batch / 256.0; }

SD_API double sd_scale_lr_sqrt(double base_lr, size_t batch) { return base_lr * sqrt((double)batch / 1024.0); }
