/* Multi-crop augmentation of 8-bit images in memory: what a training step takes of each, normalised float crops. Every
 * thread has images and an augmenter of its own. Each round draws the same crops, so that rounds differ in time only.
 * The time is that of an image on a core. */
#include "bench.h"

#include "base/system.h"

#include <stdlib.h>

/* Images differ, as in training; so few of them stay in the cache, as a decoder leaves them. */
#define SOURCES           8
#define IMAGES_PER_THREAD 128

typedef struct augment_thread {
    sd_augmenter *augmenter;
    float *crops[SD_MAX_VIEWS];
} augment_thread;

typedef struct augment_work {
    const sd_image *sources;
    augment_thread *threads;
} augment_work;

static void augment_task(void *argument, size_t index, size_t thread) {
    augment_work *work = argument;
    augment_thread *own = &work->threads[thread];
    for (uint64_t i = 0; i < IMAGES_PER_THREAD; i++)
        check(sd_augment(own->augmenter, &work->sources[i % SOURCES], 1, index * IMAGES_PER_THREAD + i, own->crops,
                         own->crops + 2),
              "augment");
}

/* Smooth colours with some grain, as photographs have. */
static void paint(unsigned char *pixels, size_t width, size_t height, sd_random *random) {
    enum { GRID = 12 };
    double knots[GRID + 1][GRID + 1][3];
    for (size_t i = 0; i < sizeof knots / sizeof(double); i++)
        ((double *)knots)[i] = 255.0 * sd_random_uniform(random);
    for (size_t y = 0; y < height; y++)
        for (size_t x = 0; x < width; x++)
            for (size_t c = 0; c < 3; c++) {
                double v = (double)(GRID * y) / (double)height, u = (double)(GRID * x) / (double)width;
                size_t row = (size_t)v, column = (size_t)u;
                v -= (double)row;
                u -= (double)column;
                double above = knots[row][column][c] * (1.0 - u) + knots[row][column + 1][c] * u;
                double below = knots[row + 1][column][c] * (1.0 - u) + knots[row + 1][column + 1][c] * u;
                double value = above * (1.0 - v) + below * v + 10.0 * sd_random_normal(random);
                value = value < 0.0 ? 0.0 : value > 255.0 ? 255.0 : value;
                pixels[(y * width + x) * 3 + c] = (unsigned char)value;
            }
}

void bench_augment(const options *o, sd_context *context, FILE *json) {
    size_t width = (size_t)o->width, height = (size_t)o->height, threads = (size_t)sd_context_threads(context);
    sd_augment_config config;
    sd_augment_config_init(&config);
    config.global_size = (int32_t)o->image;
    config.local_size = (int32_t)o->local;
    config.local_crops = (int32_t)o->locals;

    sd_random random;
    sd_random_init(&random, 1, 0, 0);
    unsigned char *pixels = take(SOURCES, width * height * 3);
    sd_image sources[SOURCES];
    for (size_t i = 0; i < SOURCES; i++) {
        paint(pixels + i * width * height * 3, width, height, &random);
        sources[i] = (sd_image){.pixels = pixels + i * width * height * 3,
                                .width = width,
                                .height = height,
                                .channels = 3,
                                .pixel_type = SD_PIXEL_U8};
    }
    augment_work work = {.sources = sources, .threads = take(threads, sizeof(augment_thread))};
    for (size_t t = 0; t < threads; t++) {
        check(sd_augmenter_create(context, &config, &work.threads[t].augmenter), "augmenter");
        for (long v = 0; v < 2 + o->locals; v++) {
            size_t side = (size_t)(v < 2 ? o->image : o->local);
            work.threads[t].crops[v] = take(3 * side * side, sizeof(float));
        }
    }

    double *times = take((size_t)o->steps, sizeof *times);
    check(sd_run(context, augment_task, &work, threads), "augment");
    for (long i = 0; i < o->steps; i++) {
        double begin = now();
        check(sd_run(context, augment_task, &work, threads), "augment");
        times[i] = now() - begin;
    }
    for (long i = 0; i < o->steps; i++)
        times[i] /= IMAGES_PER_THREAD;
    figures f = figures_of(o, context, times, (size_t)o->steps, 0.0);
    printf("augment %ld x %ld pixels, 2 x %ld + %ld x %ld, %zu threads\n", o->width, o->height, o->image, o->locals,
           o->local, threads);
    printf("  %.2f images/s per core (median of %ld rounds of %d images a thread, fastest %.2f), %.1f images/s\n",
           1.0 / f.seconds, o->steps, IMAGES_PER_THREAD, 1.0 / f.fastest, (double)threads / f.seconds);
    char extra[128];
    snprintf(extra, sizeof extra,
             ", \"images_per_second\": %.3f, \"images_per_second_per_core\": %.3f, \"cpu_level\": \"%s\"",
             (double)threads / f.seconds, 1.0 / f.seconds, sd_cpu_level_name(sd_cpu_detect()));
    write_json(json, o, context, "augment", &f, extra);
    free(times);
    for (size_t t = 0; t < threads; t++) {
        for (long v = 0; v < 2 + o->locals; v++)
            free(work.threads[t].crops[v]);
        sd_augmenter_destroy(work.threads[t].augmenter);
    }
    free(work.threads);
    free(pixels);
}
