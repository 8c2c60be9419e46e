/* What more threads would bring: a training step by one thread, which counts the parallel sections and times their tasks, and
 * hands each task to the virtual thread that is free first, as a pool does. A section ends when its last thread does; between
 * sections one thread is alone. What is not in it: the caches and the memory that real threads share. */
#include "bench.h"

#include <stdlib.h>

#define MOST_THREADS 64

typedef struct schedule {
    size_t threads, sections, tasks;
    double busy, ends; /* seconds of all tasks, and of the sections if so many threads ran them */
} schedule;

static int run(void *opaque, sd_parallel_function function, void *work, size_t count) {
    schedule *s = opaque;
    double free_at[MOST_THREADS] = {0.0}, end = 0.0;
    for (size_t i = 0; i < count; i++) {
        size_t first = 0;
        for (size_t t = 1; t < s->threads; t++)
            if (free_at[t] < free_at[first])
                first = t;
        const double begin = now();
        function(work, i, first);
        const double seconds = now() - begin;
        s->busy += seconds;
        free_at[first] += seconds;
        end = free_at[first] > end ? free_at[first] : end;
    }
    s->ends += end;
    s->sections++;
    s->tasks += count;
    return 0;
}

/* Seconds of a step with so many threads, without what an answer of a thread takes; its sections and tasks. */
static double foretell(const options *o, size_t threads, schedule *of_step) {
    schedule s = {.threads = threads};
    sd_context_config config;
    sd_context_config_init(&config);
    config.threads = (int32_t)threads;
    config.blas_threads = SD_BLAS_THREADS_ONE;
    config.runner = run;
    config.runner_opaque = &s;
    sd_context *context;
    check(sd_context_create(&config, &context), "context");
    step_work step = make_step(o, context);
    double *times = take((size_t)o->steps, sizeof *times);
    run_step(&step); /* the first one touches its memory */
    schedule sum = {.threads = threads};
    for (long i = 0; i < o->steps; i++) {
        s = (schedule){.threads = threads};
        times[i] = run_step(&step);
        times[i] += s.ends - s.busy;
        sum.sections = s.sections;
        sum.tasks = s.tasks;
        sum.busy += s.busy;
        sum.ends += s.ends;
    }
    const double seconds = median(times, (size_t)o->steps);
    *of_step = sum;
    free(times);
    drop_step(&step);
    sd_context_destroy(context);
    return seconds;
}

void bench_sections(const options *o, FILE *json) {
    const double answer = 1e-9 * round_trip_ns();
    printf("sections of a step, batch %ld, foretold from one thread's times (two threads answer each other in %.0f ns)\n", o->batch,
           1e9 * answer);
    printf("  %7s %9s %7s %10s %9s %9s %22s\n", "threads", "sections", "tasks", "ms a step", "speed-up", "waiting",
           "answers, of the step");
    double one = 0.0;
    const size_t most = o->threads > 0 ? (size_t)o->threads : MOST_THREADS;
    for (size_t threads = 1; threads <= most && threads <= MOST_THREADS; threads *= 2) {
        schedule s;
        const double seconds = foretell(o, threads, &s);
        one = threads == 1 ? seconds : one;
        /* a section begins and ends with an answer */
        const double answers = threads == 1 ? 0.0 : 2.0 * answer * (double)s.sections;
        const double waiting = 1.0 - s.busy / ((double)threads * s.ends);
        printf("  %7zu %9zu %7zu %10.1f %9.2f %8.1f%% %21.3f%%\n", threads, s.sections, s.tasks, 1e3 * seconds, one / seconds,
               100.0 * waiting, 100.0 * answers / seconds);
        if (json != NULL)
            fprintf(json,
                    "{\"mode\": \"sections\", \"batch\": %ld, \"threads\": %zu, \"sections\": %zu, \"tasks\": %zu, \"ms\": %.3f, "
                    "\"waiting\": %.5f, \"answers_ms\": %.6f}\n",
                    o->batch, threads, s.sections, s.tasks, 1e3 * seconds, waiting, 1e3 * answers);
    }
}
