/* The loader: the same batches whatever the threads, seeks and prefetching; errors that leave it usable. */
#include "data/loader.h"
#include "failing_memory.h"
#include "image/image.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define IMAGES 23
#define SIDE   14

static uint8_t pixels[IMAGES][SIDE * SIDE * 3];
static atomic_int cancel_now;

static int asked_to_cancel(void *opaque) {
    (void)opaque;
    return atomic_load(&cancel_now);
}

static failing_memory memory;

static sd_context *make_context(int32_t threads) {
    sd_context_config config;
    sd_context_config_init(&config);
    failing_memory_install(&memory, &config);
    config.threads = threads;
    config.cancel = asked_to_cancel;
    sd_context *context;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    return context;
}

static sd_dataset *make_dataset(sd_context *context, int32_t channels) {
    sd_image images[IMAGES];
    for (size_t i = 0; i < IMAGES; i++) {
        for (size_t k = 0; k < sizeof pixels[i]; k++)
            pixels[i][k] = (uint8_t)((i * 37 + k * (5 + i) + k / 9) % 256);
        images[i] = (sd_image){pixels[i], SIDE, SIDE, 0, channels, SD_PIXEL_U8};
    }
    sd_dataset *dataset;
    assert_int_equal(sd_dataset_from_images(context, images, IMAGES, NULL, &dataset), SD_OK);
    return dataset;
}

static sd_augment_config recipe(void) {
    sd_augment_config config;
    sd_augment_config_init(&config);
    config.global_size = 12;
    config.local_size = 7;
    config.local_crops = 3;
    return config;
}

static sd_loader *make_loader(sd_context *context, const sd_dataset *dataset, int32_t shuffle, int32_t channels) {
    sd_augment_config augment = recipe();
    sd_loader_config config;
    sd_loader_config_init(&config);
    config.seed = 7;
    config.batch_size = 5;
    config.shuffle = shuffle;
    config.channels = channels;
    sd_loader *loader;
    assert_int_equal(sd_loader_create(context, dataset, &augment, &config, &loader), SD_OK);
    return loader;
}

static size_t global_values(const sd_crop_batch *b) {
    return 2 * b->samples * (size_t)(b->channels * b->global_size * b->global_size);
}

static size_t local_values(const sd_crop_batch *b) {
    return (size_t)b->local_crops * b->samples * (size_t)(b->channels * b->local_size * b->local_size);
}

/* A copy of both arrays, globals first. */
static float *copy_batch(const sd_crop_batch *b) {
    float *copy = malloc((global_values(b) + local_values(b)) * sizeof(float));
    assert_non_null(copy);
    memcpy(copy, b->globals, global_values(b) * sizeof(float));
    memcpy(copy + global_values(b), b->locals, local_values(b) * sizeof(float));
    return copy;
}

static void expect_batch(const sd_crop_batch *b, const float *copy) {
    assert_memory_equal(b->globals, copy, global_values(b) * sizeof(float));
    assert_memory_equal(b->locals, copy + global_values(b), local_values(b) * sizeof(float));
}

/* ---- what a batch holds -------------------------------------------------------------------- */

/* Without shuffling, sample i of batch b is image b*batch + i, augmented by the key (seed, epoch * count + image). */
static void batches_hold_the_crops_of_sd_augment(void **state) {
    (void)state;
    sd_context *context = make_context(1);
    sd_dataset *dataset = make_dataset(context, 3);
    sd_loader *loader = make_loader(context, dataset, 0, 3);
    sd_augment_config config = recipe();
    sd_augmenter *augmenter;
    assert_int_equal(sd_augmenter_create(context, &config, &augmenter), SD_OK);
    assert_int_equal(sd_loader_batches_per_epoch(loader), 4);
    for (uint64_t number = 0; number < 9; number++) {
        sd_crop_batch batch;
        assert_int_equal(sd_loader_position(loader), number);
        assert_int_equal(sd_loader_next(loader, &batch), SD_OK);
        assert_true(batch.samples == 5 && batch.channels == 3 && batch.global_size == 12 && batch.local_size == 7 &&
                    batch.local_crops == 3);
        for (size_t i = 0; i < 5; i++) {
            float views[5][3 * 12 * 12];
            float *globals[2] = {views[0], views[1]}, *locals[3] = {views[2], views[3], views[4]};
            uint64_t index = number % 4 * 5 + i, epoch = number / 4;
            sd_image image = {pixels[index], SIDE, SIDE, 0, 3, SD_PIXEL_U8};
            assert_int_equal(sd_augment(augmenter, &image, 7, epoch * IMAGES + index, globals, locals), SD_OK);
            for (size_t v = 0; v < 2; v++)
                assert_memory_equal(batch.globals + (v * 5 + i) * 432, globals[v], 432 * sizeof(float));
            for (size_t v = 0; v < 3; v++)
                assert_memory_equal(batch.locals + (v * 5 + i) * 147, locals[v], 147 * sizeof(float));
        }
    }
    sd_augmenter_destroy(augmenter);
    sd_loader_destroy(loader);
    sd_dataset_destroy(dataset);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

#define BATCHES 10

static void batches_do_not_depend_on_threads_seeks_or_prefetching(void **state) {
    (void)state;
    float *expected[BATCHES] = {NULL};
    for (int32_t threads = 1; threads <= 3; threads += 2) {
        sd_context *context = make_context(threads);
        sd_dataset *dataset = make_dataset(context, 3);
        sd_loader *loader = make_loader(context, dataset, 1, 3);
        sd_crop_batch batch;
        for (uint64_t b = 0; b < BATCHES; b++) {
            assert_int_equal(sd_loader_next(loader, &batch), SD_OK);
            if (threads == 1)
                expected[b] = copy_batch(&batch);
            else
                expect_batch(&batch, expected[b]);
        }
        static const uint64_t order[] = {9, 0, 1, 1, 5, 4, 5, 0, 3, 4, 8};
        for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
            sd_loader_seek(loader, order[i]);
            if (i % 2 == 1) { /* augmented ahead, by tasks in reverse order on the last thread */
                size_t tasks = sd_loader_prefetch_begin(loader);
                for (size_t k = tasks; k > 0; k--)
                    sd_loader_prefetch_task(loader, k - 1, (size_t)threads - 1);
                if (i % 4 == 1) {
                    if (tasks > 0)
                        sd_loader_prefetch_end(loader);
                    assert_int_equal(sd_loader_prefetch_begin(loader), 0);
                } else {
                    sd_loader_prefetch_drop(loader);
                }
            }
            assert_int_equal(sd_loader_next(loader, &batch), SD_OK);
            expect_batch(&batch, expected[order[i]]);
            assert_int_equal(sd_loader_position(loader), order[i] + 1);
        }
        sd_loader_destroy(loader);
        sd_dataset_destroy(dataset);
        sd_context_destroy(context);
        assert_int_equal(memory.live, 0);
    }
    for (size_t b = 0; b < BATCHES; b++)
        free(expected[b]);
}

static void a_batch_outlives_the_next_one(void **state) {
    (void)state;
    sd_context *context = make_context(2);
    sd_dataset *dataset = make_dataset(context, 3);
    sd_loader *loader = make_loader(context, dataset, 1, 3);
    sd_crop_batch first, second;
    assert_int_equal(sd_loader_next(loader, &first), SD_OK);
    float *copy = copy_batch(&first);
    assert_int_equal(sd_loader_next(loader, &second), SD_OK);
    expect_batch(&first, copy);
    assert_ptr_not_equal(first.globals, second.globals);
    assert_true(memcmp(second.globals, copy, global_values(&second) * sizeof(float)) != 0);
    free(copy);
    sd_loader_destroy(loader);
    sd_dataset_destroy(dataset);
    sd_context_destroy(context);
}

/* ---- order --------------------------------------------------------------------------------- */

/* A host that notes which images are asked for, and fails for some. */
typedef struct recorder {
    uint64_t asked[256];
    size_t count;
    uint64_t fail_from; /* images from this one on cannot be had */
    int32_t channels;
    atomic_int held;
} recorder;

static int record(void *opaque, uint64_t index, sd_image *image, void **token) {
    recorder *r = opaque;
    (void)token;
    if (index >= r->fail_from)
        return 3;
    atomic_fetch_add(&r->held, 1);
    if (r->count < 256)
        r->asked[r->count++] = index;
    *image = (sd_image){pixels[index % IMAGES], SIDE, SIDE, 0, r->channels, SD_PIXEL_U8};
    return 0;
}

static void give_back(void *opaque, uint64_t index, void *token) {
    recorder *r = opaque;
    (void)index;
    (void)token;
    atomic_fetch_sub(&r->held, 1);
}

static void epochs_are_permutations(void **state) {
    (void)state;
    sd_context *context = make_context(1);
    recorder r = {.fail_from = UINT64_MAX, .channels = 3};
    sd_dataset *dataset;
    assert_int_equal(sd_dataset_from_callbacks(context, IMAGES, record, give_back, &r, NULL, &dataset), SD_OK);
    sd_loader *loader = make_loader(context, dataset, 1, 3);
    sd_crop_batch batch;
    for (size_t b = 0; b < 12; b++)
        assert_int_equal(sd_loader_next(loader, &batch), SD_OK);
    assert_int_equal(r.count, 60);
    size_t same = 0;
    for (size_t epoch = 0; epoch < 3; epoch++) {
        int seen[IMAGES] = {0};
        for (size_t i = 0; i < 20; i++) {
            assert_int_equal(seen[r.asked[epoch * 20 + i]]++, 0); /* each at most once; three are dropped */
            same += epoch > 0 && r.asked[epoch * 20 + i] == r.asked[i];
        }
    }
    assert_true(same < 15); /* of 40; 2 are expected by chance */
    assert_int_equal(r.held, 0);
    sd_loader_destroy(loader);
    sd_dataset_destroy(dataset);
    sd_context_destroy(context);
}

/* Each image comes to each place of the epoch equally often: chi-square over many epochs. */
static void order_is_uniform(void **state) {
    (void)state;
    enum { COUNT = 6, EPOCHS = 3000 };
    sd_context *context = make_context(1);
    recorder r = {.fail_from = UINT64_MAX, .channels = 1};
    sd_dataset *dataset;
    assert_int_equal(sd_dataset_from_callbacks(context, COUNT, record, give_back, &r, NULL, &dataset), SD_OK);
    sd_augment_config augment = recipe();
    augment.global_size = 1;
    augment.local_crops = 0;
    sd_loader_config config;
    sd_loader_config_init(&config);
    config.batch_size = COUNT;
    config.channels = 1;
    sd_loader *loader;
    assert_int_equal(sd_loader_create(context, dataset, &augment, &config, &loader), SD_OK);
    unsigned hits[COUNT][COUNT] = {{0}};
    for (size_t e = 0; e < EPOCHS; e++) {
        sd_crop_batch batch;
        r.count = 0;
        assert_int_equal(sd_loader_next(loader, &batch), SD_OK);
        assert_null(batch.locals);
        assert_null(batch.masks);
        for (size_t place = 0; place < COUNT; place++)
            hits[place][r.asked[place]]++;
    }
    double chi_square = 0.0, mean = (double)EPOCHS / COUNT;
    for (size_t p = 0; p < COUNT; p++)
        for (size_t i = 0; i < COUNT; i++)
            chi_square += ((double)hits[p][i] - mean) * ((double)hits[p][i] - mean) / mean;
    assert_true(chi_square < 60.1); /* 25 degrees of freedom: exceeded once in 10,000 */
    sd_loader_destroy(loader);
    sd_dataset_destroy(dataset);
    sd_context_destroy(context);
}

/* ---- channels ------------------------------------------------------------------------------ */

static void gray_images_equal_their_rgb_copies(void **state) {
    (void)state;
    sd_context *context = make_context(2);
    sd_dataset *gray = make_dataset(context, 1);
    static uint8_t repeated[IMAGES][SIDE * SIDE * 3];
    sd_image images[IMAGES];
    for (size_t i = 0; i < IMAGES; i++) {
        for (size_t k = 0; k < SIDE * SIDE; k++)
            repeated[i][3 * k] = repeated[i][3 * k + 1] = repeated[i][3 * k + 2] = pixels[i][k];
        images[i] = (sd_image){repeated[i], SIDE, SIDE, 0, 3, SD_PIXEL_U8};
    }
    sd_dataset *color;
    assert_int_equal(sd_dataset_from_images(context, images, IMAGES, NULL, &color), SD_OK);
    sd_loader *from_gray = make_loader(context, gray, 1, 3), *from_color = make_loader(context, color, 1, 3);
    for (size_t b = 0; b < 12; b++) {
        sd_crop_batch first, second;
        assert_int_equal(sd_loader_next(from_gray, &first), SD_OK);
        assert_int_equal(sd_loader_next(from_color, &second), SD_OK);
        assert_memory_equal(first.globals, second.globals, global_values(&first) * sizeof(float));
        assert_memory_equal(first.locals, second.locals, local_values(&first) * sizeof(float));
    }
    sd_loader_destroy(from_gray);
    sd_loader_destroy(from_color);
    sd_dataset_destroy(gray);
    sd_dataset_destroy(color);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

static void other_channels_are_a_mismatch(void **state) {
    (void)state;
    sd_context *context = make_context(2);
    static const int32_t wrong[][2] = {{3, 1}, {2, 3}, {1, 2}, {3, 4}}; /* the dataset's, the loader's */
    for (size_t i = 0; i < 4; i++) {
        sd_dataset *dataset = make_dataset(context, wrong[i][0]);
        sd_loader *loader = make_loader(context, dataset, 1, wrong[i][1]);
        sd_crop_batch batch;
        assert_int_equal(sd_loader_next(loader, &batch), SD_ERR_MISMATCH);
        assert_non_null(strstr(sd_last_error(), "channels"));
        sd_loader_destroy(loader);
        sd_dataset_destroy(dataset);
    }
    sd_context_destroy(context);
}

/* ---- failures ------------------------------------------------------------------------------ */

static void failing_callbacks_leave_the_loader_usable(void **state) {
    (void)state;
    char first_message[512] = "";
    for (int32_t threads = 1; threads <= 3; threads++) {
        sd_context *context = make_context(threads);
        recorder r = {.fail_from = UINT64_MAX, .channels = 3};
        r.count = 256; /* several threads: no notes */
        sd_dataset *dataset;
        assert_int_equal(sd_dataset_from_callbacks(context, IMAGES, record, give_back, &r, NULL, &dataset), SD_OK);
        sd_loader *loader = make_loader(context, dataset, 1, 3);
        sd_crop_batch batch;
        assert_int_equal(sd_loader_next(loader, &batch), SD_OK);
        float *kept = copy_batch(&batch);
        assert_int_equal(sd_loader_next(loader, &batch), SD_OK);
        float *expected = copy_batch(&batch);
        sd_loader_seek(loader, 0);
        assert_int_equal(sd_loader_next(loader, &batch), SD_OK);
        expect_batch(&batch, kept);

        r.fail_from = 2; /* nearly all fail: the first in the batch is reported */
        sd_loader_seek(loader, 5);
        for (int again = 0; again < 2; again++) {
            sd_crop_batch untouched = {.samples = 99};
            assert_int_equal(sd_loader_next(loader, &untouched), SD_ERR_IO);
            assert_int_equal(untouched.samples, 99);
            assert_int_equal(sd_loader_position(loader), 5);
            if (first_message[0] == '\0')
                snprintf(first_message, sizeof first_message, "%s", sd_last_error());
            assert_string_equal(sd_last_error(), first_message);
        }
        assert_non_null(strstr(first_message, "image "));
        expect_batch(&batch, kept);

        /* Met while prefetching: told by the call that would give the batch, once. */
        sd_loader_seek(loader, 1);
        size_t tasks = sd_loader_prefetch_begin(loader);
        assert_int_equal(tasks, 5);
        for (size_t k = 0; k < tasks; k++)
            sd_loader_prefetch_task(loader, k, k % (size_t)threads);
        sd_loader_prefetch_end(loader);
        r.fail_from = UINT64_MAX;
        assert_int_equal(sd_loader_next(loader, &batch), SD_ERR_IO);
        assert_int_equal(sd_loader_position(loader), 1);
        assert_int_equal(sd_loader_next(loader, &batch), SD_OK);
        expect_batch(&batch, expected);
        assert_int_equal(r.held, 0);
        free(kept);
        free(expected);
        sd_loader_destroy(loader);
        sd_dataset_destroy(dataset);
        sd_context_destroy(context);
        assert_int_equal(memory.live, 0);
    }
}

static void cancel_stops_and_continues(void **state) {
    (void)state;
    sd_context *context = make_context(2);
    sd_dataset *dataset = make_dataset(context, 3);
    sd_loader *loader = make_loader(context, dataset, 1, 3);
    sd_crop_batch batch;
    atomic_store(&cancel_now, 1);
    assert_int_equal(sd_loader_next(loader, &batch), SD_ERR_CANCELLED);
    size_t tasks = sd_loader_prefetch_begin(loader);
    for (size_t k = 0; k < tasks; k++)
        sd_loader_prefetch_task(loader, k, 0);
    sd_loader_prefetch_end(loader);
    assert_int_equal(sd_loader_next(loader, &batch), SD_ERR_CANCELLED);
    assert_int_equal(sd_loader_position(loader), 0);
    atomic_store(&cancel_now, 0);
    assert_int_equal(sd_loader_next(loader, &batch), SD_OK);
    sd_loader_destroy(loader);
    sd_dataset_destroy(dataset);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

static void failed_allocations_are_survived(void **state) {
    (void)state;
    for (int32_t threads = 1; threads <= 2; threads++) {
        sd_context *context = make_context(threads);
        long before = memory.live;
        bool created = false, given = false;
        for (long i = 0; !given; i++) {
            assert_true(i < 200);
            sd_augment_config augment = recipe();
            sd_loader_config config;
            sd_loader_config_init(&config);
            config.batch_size = 6;
            sd_loader *loader = NULL;
            recorder r = {.fail_from = UINT64_MAX, .channels = 3, .count = 256};
            sd_dataset *dataset; /* its images are not known beforehand: the first batch allocates too */
            assert_int_equal(sd_dataset_from_callbacks(context, IMAGES, record, give_back, &r, NULL, &dataset), SD_OK);
            memory.allocations = 0;
            memory.fail_at = i;
            sd_status status = sd_loader_create(context, dataset, &augment, &config, &loader);
            created = status == SD_OK;
            if (!created) {
                assert_int_equal(status, SD_ERR_MEMORY);
                assert_null(loader);
            } else {
                sd_crop_batch batch;
                status = sd_loader_next(loader, &batch);
                given = memory.allocations <= i;
                assert_int_equal(status, given ? SD_OK : SD_ERR_MEMORY);
                memory.fail_at = -1;
                assert_int_equal(sd_loader_next(loader, &batch), SD_OK); /* and goes on */
                assert_int_equal(sd_loader_position(loader), given ? 2 : 1);
            }
            memory.fail_at = -1;
            sd_loader_destroy(loader);
            sd_dataset_destroy(dataset);
            assert_int_equal(memory.live, before);
        }
        sd_context_destroy(context);
        assert_int_equal(memory.live, 0);
    }
}

static void a_steady_stream_allocates_nothing_and_tells_its_memory(void **state) {
    (void)state;
    sd_context *context = make_context(2);
    sd_dataset *dataset = make_dataset(context, 3);
    size_t before = memory.live_bytes;
    sd_loader *loader = make_loader(context, dataset, 1, 3);
    sd_crop_batch batch;
    long allocations = memory.allocations; /* the dataset's images are known, so not even the first batch allocates */
    for (size_t b = 0; b < 20; b++)
        assert_int_equal(sd_loader_next(loader, &batch), SD_OK);
    assert_int_equal(memory.allocations, allocations);
    double told = (double)sd_loader_memory(loader), real = (double)(memory.live_bytes - before);
    assert_true(told <= real && told > 0.9 * real);
    assert_int_equal(sd_loader_batch_size(loader), 5);
    assert_int_equal(sd_loader_augment_config(loader)->local_crops, 3);
    sd_loader_destroy(loader);
    sd_dataset_destroy(dataset);
    sd_context_destroy(context);
}

static void impossible_settings_are_refused(void **state) {
    (void)state;
    sd_context *context = make_context(1);
    sd_dataset *dataset = make_dataset(context, 3);
    sd_augment_config augment = recipe();
    sd_loader_config config;
    sd_loader *loader = NULL;
    sd_loader_config_init(&config);
    config.batch_size = 0;
    assert_int_equal(sd_loader_create(context, dataset, &augment, &config, &loader), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "batch_size is 0"));
    config.batch_size = IMAGES + 1;
    assert_int_equal(sd_loader_create(context, dataset, &augment, &config, &loader), SD_ERR_ARGUMENT);
    config.batch_size = IMAGES;
    config.channels = 17;
    assert_int_equal(sd_loader_create(context, dataset, &augment, &config, &loader), SD_ERR_ARGUMENT);
    config.channels = 3;
    augment.global_size = 0;
    assert_int_equal(sd_loader_create(context, dataset, &augment, &config, &loader), SD_ERR_ARGUMENT);
    augment.global_size = 12;
    assert_int_equal(sd_loader_create(context, NULL, &augment, &config, &loader), SD_ERR_ARGUMENT);
    assert_int_equal(sd_loader_create(context, dataset, &augment, &config, NULL), SD_ERR_ARGUMENT);
    assert_null(loader);

    /* More images than a shuffle or memory can take. */
    recorder r = {.fail_from = 0, .channels = 3};
    sd_dataset *vast;
    assert_int_equal(sd_dataset_from_callbacks(context, UINT64_MAX, record, NULL, &r, NULL, &vast), SD_OK);
    assert_int_equal(sd_loader_create(context, vast, &augment, &config, &loader), SD_ERR_ARGUMENT);
    config.batch_size = SIZE_MAX / 4;
    config.shuffle = 0;
    assert_int_equal(sd_loader_create(context, vast, &augment, &config, &loader), SD_ERR_MEMORY);
    config.batch_size = 5;
    assert_int_equal(sd_loader_create(context, vast, &augment, &config, &loader), SD_OK);
    sd_loader_destroy(loader);
    sd_dataset_destroy(vast);

    assert_int_equal(sd_loader_next(NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_loader_batches_per_epoch(NULL), 0);
    assert_int_equal(sd_loader_position(NULL), 0);
    sd_loader_seek(NULL, 1);
    sd_loader_destroy(NULL);
    sd_dataset_destroy(dataset);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batches_hold_the_crops_of_sd_augment),
        cmocka_unit_test(batches_do_not_depend_on_threads_seeks_or_prefetching),
        cmocka_unit_test(a_batch_outlives_the_next_one),
        cmocka_unit_test(epochs_are_permutations),
        cmocka_unit_test(order_is_uniform),
        cmocka_unit_test(gray_images_equal_their_rgb_copies),
        cmocka_unit_test(other_channels_are_a_mismatch),
        cmocka_unit_test(failing_callbacks_leave_the_loader_usable),
        cmocka_unit_test(cancel_stops_and_continues),
        cmocka_unit_test(failed_allocations_are_survived),
        cmocka_unit_test(a_steady_stream_allocates_nothing_and_tells_its_memory),
        cmocka_unit_test(impossible_settings_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
