/* Schedules of learning rate, weight decay and momentum. */
#include "optim/optim.h"

#include <math.h>

static const double pi = 3.14159265358979323846;

SD_API double sd_schedule_value(const sd_schedule *schedule, uint64_t step) {
    if (!schedule)
        return 0;
    if (step >= schedule->total)
        return schedule->final;
    if (step < schedule->freeze)
        return 0;
    uint64_t i = step - schedule->freeze;
    if (i < schedule->warmup) {
        if (schedule->warmup_kind == SD_WARMUP_EXCLUSIVE)
            return schedule->start + (schedule->base - schedule->start) * (double)i / (double)schedule->warmup;
        /* numpy.linspace: a single point is the start, the last of several is the base exactly */
        if (schedule->warmup == 1)
            return schedule->start;
        if (i + 1 == schedule->warmup)
            return schedule->base;
        return (double)i * ((schedule->base - schedule->start) / (double)(schedule->warmup - 1)) + schedule->start;
    }
    uint64_t length = schedule->total - schedule->freeze - schedule->warmup; /* > 0, since step < total is in it */
    double angle = pi * (double)(i - schedule->warmup) / (double)length;
    return schedule->final + 0.5 * (schedule->base - schedule->final) * (1 + cos(angle));
}

SD_API double sd_scale_lr_linear(double base_lr, size_t batch) { return base_lr * (double)batch / 256.0; }

SD_API double sd_scale_lr_sqrt(double base_lr, size_t batch) { return base_lr * sqrt((double)batch / 1024.0); }
