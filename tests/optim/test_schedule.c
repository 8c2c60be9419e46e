/* Schedules against the official code's, value by value. */
#include "optim/optim.h"
#include "golden.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* Double precision throughout: equal to the last bits. */
static void compare(const golden *archive, const char *name, const sd_schedule *schedule, double scale) {
    const golden_array *values = golden_get(archive, "%s", name);
    assert_true(values->count > 0);
    for (size_t i = 0; i < values->count; i++) {
        double expected = golden_number(values, i), actual = sd_schedule_value(schedule, i);
        if (!(fabs(actual - expected) <= 1e-12 * scale))
            fail_msg("%s[%zu]: %.17g, expected %.17g", name, i, actual, expected);
    }
}

static void v1(void **state) {
    (void)state;
    golden *archive = golden_open("schedule/v1_cosine.npz");
    for (int i = 0; i < 4; i++) {
        const double *arguments = golden_f64(archive, "case%d/args", i);
        sd_schedule schedule = {.base = arguments[0], .final = arguments[1], .start = arguments[5]};
        schedule.total = (uint64_t)(arguments[2] * arguments[3]);
        schedule.warmup = (uint64_t)(arguments[4] * arguments[3]);
        char name[64];
        snprintf(name, sizeof name, "case%d/values", i);
        assert_true(golden_get(archive, "%s", name)->count == schedule.total);
        compare(archive, name, &schedule, fmax(schedule.base, schedule.final));
        if (schedule.warmup > 1) { /* the peak is there twice */
            assert_true(sd_schedule_value(&schedule, schedule.warmup - 1) == schedule.base);
            assert_true(sd_schedule_value(&schedule, schedule.warmup) == schedule.base);
        }
        assert_true(sd_schedule_value(&schedule, schedule.total) == schedule.final);
    }
    golden_close(archive);
}

static void v2(void **state) {
    (void)state;
    golden *archive = golden_open("schedule/v2_cosine.npz");
    for (int i = 0; i < 5; i++) {
        const double *arguments = golden_f64(archive, "case%d/args", i);
        sd_schedule schedule = {.base = arguments[0], .final = arguments[1], .start = arguments[4]};
        schedule.total = (uint64_t)arguments[2];
        schedule.warmup = (uint64_t)arguments[3];
        schedule.freeze = (uint64_t)arguments[5];
        char name[64];
        snprintf(name, sizeof name, "case%d/dinov2", i);
        compare(archive, name, &schedule, fmax(schedule.base, schedule.final));
        schedule.warmup_kind = SD_WARMUP_EXCLUSIVE;
        snprintf(name, sizeof name, "case%d/simdinov2", i);
        compare(archive, name, &schedule, fmax(schedule.base, schedule.final));
        sd_schedule linear = schedule;
        linear.kind = SD_SCHEDULE_LINEAR;
        snprintf(name, sizeof name, "case%d/simdinov2_linear", i);
        compare(archive, name, &linear, fmax(schedule.base, schedule.final));
        schedule.peak = (uint64_t)golden_scalar(archive, "peak_iters");
        schedule.cut = (uint64_t)golden_scalar(archive, "freeze_cut_iters");
        snprintf(name, sizeof name, "case%d/simdinov2_peak_cut", i);
        compare(archive, name, &schedule, fmax(schedule.base, schedule.final));
    }
    golden_close(archive);
}

/* DINO's goes by epoch: a schedule whose lengths are epochs, read at every step. */
static void teacher_temperature_by_epoch(void **state) {
    (void)state;
    golden *archive = golden_open("schedule/v1_cosine.npz");
    const double *arguments = golden_f64(archive, "teacher_temp/args");
    const golden_array *values = golden_get(archive, "teacher_temp/values");
    sd_schedule schedule = {.base = arguments[1], .final = arguments[1], .start = arguments[0]};
    schedule.warmup = (uint64_t)arguments[2];
    schedule.total = (uint64_t)arguments[3];
    assert_true(values->count == schedule.total);
    compare(archive, "teacher_temp/values", &schedule, 1);
    schedule.period = 1;
    compare(archive, "teacher_temp/values", &schedule, 1);
    schedule.period = 7;
    for (uint64_t step = 0; step < 7 * schedule.total; step++)
        assert_true(fabs(sd_schedule_value(&schedule, step) - golden_number(values, step / 7)) <= 1e-12);
    assert_true(sd_schedule_value(&schedule, 6) != sd_schedule_value(&schedule, 7));
    assert_true(sd_schedule_value(&schedule, 7 * schedule.total) == schedule.final);
    golden_close(archive);
}

/* All schedules of whole configurations; the learning rates scaled by the batch. */
static void v2_build(void **state) {
    (void)state;
    golden *archive = golden_open("schedule/v2_build.npz");
    uint64_t epoch = (uint64_t)golden_scalar(archive, "hp/epoch_len");
    uint64_t total = epoch * (uint64_t)golden_scalar(archive, "hp/epochs");
    uint64_t warmup = epoch * (uint64_t)golden_scalar(archive, "hp/warmup_epochs");
    const char *const methods[] = {"dinov2", "simdinov2"};
    const double momentum[] = {0.992, 0.9};
    for (int i = 0; i < 2; i++) {
        char name[64];
        const double *scaled = golden_f64(archive, "%s/scaled_lr", methods[i]);
        double lr = sd_scale_lr_sqrt(scaled[0], (size_t)scaled[1]);
        assert_true(fabs(lr - scaled[2]) <= 1e-15);
        sd_schedule schedule = {.base = lr, .final = 1e-6, .total = total, .warmup = warmup};
        if (i == 1) {
            schedule.start = 1e-6;
            schedule.warmup_kind = SD_WARMUP_EXCLUSIVE;
        }
        snprintf(name, sizeof name, "%s/lr", methods[i]);
        compare(archive, name, &schedule, lr);
        schedule.cut = epoch; /* the last layer is frozen in the first epoch */
        snprintf(name, sizeof name, "%s/last_layer_lr", methods[i]);
        compare(archive, name, &schedule, lr);
        uint64_t heating = epoch * (uint64_t)golden_scalar(archive, "hp/temp_epochs");
        schedule = (sd_schedule){.base = 0.07, .final = 0.07, .start = 0.04, .total = heating, .warmup = heating,
                                 .warmup_kind = schedule.warmup_kind};
        snprintf(name, sizeof name, "%s/teacher_temp", methods[i]);
        compare(archive, name, &schedule, 0.07);
        schedule = (sd_schedule){.base = 0.04, .final = 0.4, .total = total};
        snprintf(name, sizeof name, "%s/wd", methods[i]);
        compare(archive, name, &schedule, 0.4);
        schedule = (sd_schedule){.base = momentum[i], .final = 1, .total = total};
        snprintf(name, sizeof name, "%s/momentum", methods[i]);
        compare(archive, name, &schedule, 1);
    }
    golden_close(archive);
}

static void scaling(void **state) {
    (void)state;
    assert_true(sd_scale_lr_linear(5e-4, 256) == 5e-4);
    assert_true(fabs(sd_scale_lr_linear(5e-4, 1024) - 2e-3) < 1e-18);
    assert_true(sd_scale_lr_sqrt(4e-3, 1024) == 4e-3);
    assert_true(fabs(sd_scale_lr_sqrt(4e-3, 256) - 2e-3) < 1e-18);
}

/* Lengths that leave no room for a part of the schedule. */
static void odd_lengths(void **state) {
    (void)state;
    sd_schedule schedule = {.base = 2, .final = 1, .start = 0.5};
    assert_true(sd_schedule_value(&schedule, 0) == 1); /* total 0: at the end at once */
    schedule.total = 4;
    schedule.warmup = 1;
    assert_true(sd_schedule_value(&schedule, 0) == 0.5); /* numpy.linspace of one point */
    assert_true(sd_schedule_value(&schedule, 1) == 2);
    schedule.warmup = 4;
    assert_true(sd_schedule_value(&schedule, 3) == 2 && sd_schedule_value(&schedule, 4) == 1);
    schedule.warmup = 100; /* longer than all: it is cut */
    for (uint64_t i = 0; i < 4; i++)
        assert_true(sd_schedule_value(&schedule, i) < 0.6);
    assert_true(sd_schedule_value(&schedule, 4) == 1);
    schedule.freeze = 2;
    assert_true(sd_schedule_value(&schedule, 1) == 0 && sd_schedule_value(&schedule, 2) == 0.5);
    schedule.freeze = 50;
    assert_true(sd_schedule_value(&schedule, 3) == 0 && sd_schedule_value(&schedule, UINT64_MAX) == 1);
    assert_true(sd_schedule_value(NULL, 0) == 0);

    schedule = (sd_schedule){.base = 2, .final = 1, .start = 2, .total = 10, .warmup = 2, .peak = 3};
    schedule.kind = SD_SCHEDULE_LINEAR;
    assert_true(sd_schedule_value(&schedule, 4) == 2 && sd_schedule_value(&schedule, 5) == 2);
    assert_true(fabs(sd_schedule_value(&schedule, 6) - 1.8) < 1e-15);
    schedule.peak = 8; /* to the end */
    assert_true(sd_schedule_value(&schedule, 9) == 2 && sd_schedule_value(&schedule, 10) == 1);
    schedule.peak = UINT64_MAX;
    assert_true(sd_schedule_value(&schedule, 9) == 2 && sd_schedule_value(&schedule, 10) == 1);
    schedule.cut = 10;
    assert_true(sd_schedule_value(&schedule, 9) == 0 && sd_schedule_value(&schedule, 10) == 1);
    schedule.period = UINT64_MAX;
    assert_true(sd_schedule_value(&schedule, UINT64_MAX - 1) == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(v1),       cmocka_unit_test(v2),      cmocka_unit_test(teacher_temperature_by_epoch),
        cmocka_unit_test(v2_build), cmocka_unit_test(scaling), cmocka_unit_test(odd_lengths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
