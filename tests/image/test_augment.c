/* Properties of the augmentation, and what it refuses. */
#include "base/base.h"
#include "failing_memory.h"
#include "image/image.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static failing_memory memory;

static sd_context *watched_context(void) {
    sd_context_config config;
    sd_context_config_init(&config);
    failing_memory_install(&memory, &config);
    config.threads = 1;
    sd_context *context;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    return context;
}

static void *take(size_t bytes) {
    void *result = calloc(1, bytes);
    assert_non_null(result);
    return result;
}

static sd_augment_config small_recipe(void) {
    sd_augment_config config;
    sd_augment_config_init(&config);
    config.global_size = 24;
    config.local_size = 11;
    config.local_crops = 3;
    return config;
}

static sd_augmenter *make_augmenter(sd_context *context, const sd_augment_config *config) {
    sd_augmenter *augmenter;
    assert_int_equal(sd_augmenter_create(context, config, &augmenter), SD_OK);
    return augmenter;
}

/* A smooth picture with some edges. */
static void paint(uint8_t *pixels, size_t width, size_t height, size_t channels) {
    for (size_t y = 0; y < height; y++)
        for (size_t x = 0; x < width; x++)
            for (size_t c = 0; c < channels; c++) {
                double value =
                    127.0 + 90.0 * sin(0.21 * (double)x + (double)c) * cos(0.17 * (double)y - 0.5 * (double)c);
                pixels[(y * width + x) * channels + c] = (uint8_t)(x > 12 && y > 9 ? value : 255.0 - 0.7 * value);
            }
}

/* Views of sd_augment, one after the other. */
static float *augment(sd_augmenter *augmenter, const sd_augment_config *config, const sd_image *image, uint64_t seed,
                      uint64_t sample) {
    size_t channels = (size_t)image->channels, global = channels * (size_t)(config->global_size * config->global_size);
    size_t local = channels * (size_t)(config->local_size * config->local_size);
    float *all = take((2 * global + (size_t)config->local_crops * local) * sizeof(float));
    float *globals[2] = {all, all + global}, *locals[SD_MAX_VIEWS];
    for (size_t i = 0; i < (size_t)config->local_crops; i++)
        locals[i] = all + 2 * global + i * local;
    assert_int_equal(sd_augment(augmenter, image, seed, sample, globals, locals), SD_OK);
    return all;
}

static size_t augmented_bytes(const sd_augment_config *config, size_t channels) {
    return channels * sizeof(float) *
           (size_t)(2 * config->global_size * config->global_size +
                    config->local_crops * config->local_size * config->local_size);
}

static void augment_is_choose_and_apply(void **state) {
    (void)state;
    sd_augment_config config = small_recipe();
    sd_augmenter *augmenter = make_augmenter(NULL, &config);
    uint8_t *pixels = take(40 * 30 * 3);
    paint(pixels, 40, 30, 3);
    sd_image image = {pixels, 40, 30, 0, 3, SD_PIXEL_U8};
    for (uint64_t sample = 0; sample < 30; sample++) {
        float *all = augment(augmenter, &config, &image, 8, sample), *at = all;
        for (int32_t view = 0; view < 5; view++) {
            sd_crop_choice choice;
            float tensor[3 * 24 * 24];
            assert_int_equal(sd_crop_choose(&config, 40, 30, 8, sample, view, &choice), SD_OK);
            assert_int_equal(sd_crop_apply(augmenter, &image, &choice, NULL, tensor), SD_OK);
            size_t values = (size_t)(3 * choice.size * choice.size);
            assert_memory_equal(at, tensor, values * sizeof(float));
            at += values;
        }
        free(all);
    }
    free(pixels);
    sd_augmenter_destroy(augmenter);
}

/* The views of an image do not depend on what the augmenter did before, nor on padding between rows. */
static void history_and_strides_do_not_matter(void **state) {
    (void)state;
    sd_augment_config config = small_recipe();
    sd_augmenter *used = make_augmenter(NULL, &config);
    for (size_t channels = 1; channels <= 4; channels++)
        for (int type = SD_PIXEL_U8; type <= SD_PIXEL_F32; type++) {
            size_t width = 37, height = 29, item = type == SD_PIXEL_U8 ? 1 : 4, row = width * channels * item;
            size_t stride = row + 12;
            uint8_t *bytes = take(width * height * channels), *packed = take(row * height),
                    *padded = take(stride * height);
            paint(bytes, width, height, channels);
            for (size_t i = 0; i < width * height * channels; i++)
                if (type == SD_PIXEL_U8)
                    packed[i] = bytes[i];
                else
                    ((float *)(void *)packed)[i] = (float)bytes[i] / 255.0f;
            memset(padded, 0x7f, stride * height);
            for (size_t y = 0; y < height; y++)
                memcpy(padded + y * stride, packed + y * row, row);
            sd_image first = {packed, width, height, 0, (int32_t)channels, type};
            sd_image second = {padded, width, height, stride, (int32_t)channels, type};
            sd_augmenter *fresh = make_augmenter(NULL, &config);
            float *a = augment(used, &config, &first, 1, channels), *b = augment(fresh, &config, &second, 1, channels);
            assert_memory_equal(a, b, augmented_bytes(&config, channels));
            free(a);
            free(b);
            free(bytes);
            free(packed);
            free(padded);
            sd_augmenter_destroy(fresh);
        }
    sd_augmenter_destroy(used);
}

/* Crops of u8 and of the same values as floats agree within the roundings: levels (0..255), of which there is one a
 * step. */
static void float_pixels_agree_with_bytes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int operation; /* 0..3 jitter, 4 gray, 5 blur, 6 solarize, 7 nothing */
        double amount, levels;
    } cases[] = {
        {"nothing", 7, 0.0, 1.3}, {"brightness", 0, 1.3, 2.7}, {"contrast", 1, 0.7, 2.5}, {"saturation", 2, 1.2, 3.0},
        {"gray", 4, 1.0, 1.8},    {"blur", 5, 1.2, 4.2},       {"blur", 5, 0.3, 4.2},
    };
    const size_t channel_counts[] = {1, 2, 3, 4, 16};
    for (size_t k = 0; k < 5; k++) {
        size_t channels = channel_counts[k], n = 50 * 44 * channels;
        uint8_t *bytes = take(n);
        float *floats = take(n * sizeof(float));
        paint(bytes, 50, 44, channels);
        for (size_t i = 0; i < n; i++)
            floats[i] = (float)bytes[i] / 255.0f;
        sd_image u8 = {bytes, 50, 44, 0, (int32_t)channels, SD_PIXEL_U8},
                 f32 = {floats, 50, 44, 0, (int32_t)channels, SD_PIXEL_F32};
        sd_augment_config config = small_recipe();
        sd_augmenter *augmenter = make_augmenter(NULL, &config);
        for (size_t t = 0; t < sizeof cases / sizeof cases[0]; t++)
            for (int32_t flip = 0; flip < 2; flip++) {
                sd_crop_choice choice = {.top = 2,
                                         .left = 3,
                                         .height = 37,
                                         .width = 41,
                                         .size = 20,
                                         .flip = flip,
                                         .jitter_order = {-1, -1, -1, -1}};
                if (cases[t].operation < 4) {
                    choice.jitter_order[0] = cases[t].operation;
                    choice.jitter_factor[cases[t].operation] = cases[t].amount;
                }
                choice.gray = cases[t].operation == 4;
                choice.blur = cases[t].operation == 5 ? cases[t].amount : 0.0;
                uint8_t *a = take(400 * channels);
                float *b = take(400 * channels * sizeof(float));
                assert_int_equal(sd_crop_apply(augmenter, &u8, &choice, a, NULL), SD_OK);
                assert_int_equal(sd_crop_apply(augmenter, &f32, &choice, b, NULL), SD_OK);
                double sum = 0.0;
                for (size_t i = 0; i < 400 * channels; i++) {
                    double difference = fabs(255.0 * (double)b[i] - (double)a[i]);
                    if (!(difference <= cases[t].levels))
                        fail_msg("%s, %zu channels: value %zu is %u and %g", cases[t].name, channels, i, a[i],
                                 255.0 * (double)b[i]);
                    sum += difference;
                }
                assert_true(sum / (double)(400 * channels) < 0.5 * cases[t].levels);
                free(a);
                free(b);
            }
        sd_augmenter_destroy(augmenter);
        free(bytes);
        free(floats);
    }
}

/* Solarised floats: the same pixels flip, and they become 1 - v. */
static void float_solarize_flips_the_same_levels(void **state) {
    (void)state;
    uint8_t bytes[256];
    float floats[256];
    for (size_t i = 0; i < 256; i++) {
        bytes[i] = (uint8_t)i;
        floats[i] = (float)i / 255.0f;
    }
    sd_image u8 = {bytes, 16, 16, 0, 1, SD_PIXEL_U8}, f32 = {floats, 16, 16, 0, 1, SD_PIXEL_F32};
    static const int32_t thresholds[] = {0, 1, 100, 128, 255, 256};
    for (size_t t = 0; t < 6; t++) {
        sd_augment_config config = small_recipe();
        config.solarize_threshold = thresholds[t];
        sd_augmenter *augmenter = make_augmenter(NULL, &config);
        sd_crop_choice choice = {.height = 16, .width = 16, .size = 16, .jitter_order = {-1}, .solarize = 1};
        uint8_t a[256];
        float b[256];
        assert_int_equal(sd_crop_apply(augmenter, &u8, &choice, a, NULL), SD_OK);
        assert_int_equal(sd_crop_apply(augmenter, &f32, &choice, b, NULL), SD_OK);
        for (size_t i = 0; i < 256; i++)
            assert_true(fabs(255.0 * (double)b[i] - (double)a[i]) < 1e-4);
        sd_augmenter_destroy(augmenter);
    }
}

/* Without three channels hue, saturation and grey do nothing, and the rest works. */
static void color_operations_need_three_channels(void **state) {
    (void)state;
    sd_augment_config config = small_recipe();
    sd_augmenter *augmenter = make_augmenter(NULL, &config);
    const size_t channel_counts[] = {1, 2, 4, 16};
    for (size_t k = 0; k < 4; k++) {
        size_t channels = channel_counts[k], n = 20 * 20 * channels;
        uint8_t *pixels = take(n), *plain = take(n), *adjusted = take(n);
        float *tensor = take(n * sizeof(float));
        paint(pixels, 20, 20, channels);
        sd_image image = {pixels, 20, 20, 0, (int32_t)channels, SD_PIXEL_U8};
        sd_crop_choice choice = {.height = 20, .width = 20, .size = 20, .jitter_order = {-1}};
        assert_int_equal(sd_crop_apply(augmenter, &image, &choice, plain, tensor), SD_OK);
        assert_memory_equal(plain, pixels, n); /* the whole picture at its size */
        for (size_t c = 0; c < channels; c++)
            for (size_t i = 0; i < 400; i++) {
                double expected = ((double)pixels[i * channels + c] / 255.0 - config.mean[c]) / config.std[c];
                assert_true(fabs((double)tensor[c * 400 + i] - expected) < 1e-6);
            }
        choice.jitter_order[0] = 2;
        choice.jitter_order[1] = 3;
        choice.jitter_order[2] = -1;
        choice.jitter_factor[2] = 0.1;
        choice.jitter_factor[3] = 0.4;
        choice.gray = 1;
        assert_int_equal(sd_crop_apply(augmenter, &image, &choice, adjusted, NULL), SD_OK);
        assert_memory_equal(adjusted, plain, n);
        choice.jitter_order[0] = 1; /* contrast 0: the mean of all values */
        choice.jitter_order[1] = -1;
        choice.jitter_factor[1] = 0.0;
        assert_int_equal(sd_crop_apply(augmenter, &image, &choice, adjusted, NULL), SD_OK);
        double sum = 0.0;
        for (size_t i = 0; i < n; i++)
            sum += pixels[i];
        for (size_t i = 0; i < n; i++)
            assert_int_equal(adjusted[i], (int)(sum / (double)n + 0.5));
        free(pixels);
        free(plain);
        free(adjusted);
        free(tensor);
    }
    sd_augmenter_destroy(augmenter);
}

/* One pixel, enlarged and blurred, keeps its colour. */
static void one_pixel_is_enough(void **state) {
    (void)state;
    for (int32_t kind = SD_BLUR_PIL; kind <= SD_BLUR_TORCHVISION; kind++) {
        sd_augment_config config = small_recipe();
        config.blur_kind = kind;
        config.jitter = config.gray = 0.0;
        config.solarize[1] = 0.0;
        sd_augmenter *augmenter = make_augmenter(NULL, &config);
        const uint8_t pixel[3] = {200, 10, 77};
        sd_image image = {pixel, 1, 1, 0, 3, SD_PIXEL_U8};
        for (uint64_t sample = 0; sample < 10; sample++) {
            float *all = augment(augmenter, &config, &image, 1, sample);
            for (size_t c = 0; c < 3; c++)
                for (size_t i = 0; i < 24 * 24; i++)
                    assert_true(fabs((double)all[c * 576 + i] - (pixel[c] / 255.0 - config.mean[c]) / config.std[c]) <
                                1e-5);
            free(all);
        }
        /* And the smallest output, which is smaller than the kernels. */
        sd_crop_choice choice = {.height = 1, .width = 1, .size = 1, .jitter_order = {-1}, .blur = 2.0};
        uint8_t out[3];
        assert_int_equal(sd_crop_apply(augmenter, &image, &choice, out, NULL), SD_OK);
        assert_memory_equal(out, pixel, 3);
        sd_augmenter_destroy(augmenter);
    }
}

/* Values outside of 0..1 are clipped and NaN becomes 0: nothing that is not a number reaches a network. */
static void wild_floats_are_tamed(void **state) {
    (void)state;
    float pixels[12 * 12 * 3];
    for (size_t i = 0; i < 432; i++)
        pixels[i] = i % 7 == 0 ? NAN : i % 7 == 1 ? INFINITY : i % 7 == 2 ? -INFINITY : i % 7 == 3 ? 1e30f : -3.0f;
    sd_image image = {pixels, 12, 12, 0, 3, SD_PIXEL_F32};
    sd_augment_config config = small_recipe();
    sd_augmenter *augmenter = make_augmenter(NULL, &config);
    for (uint64_t sample = 0; sample < 50; sample++) {
        float *all = augment(augmenter, &config, &image, 1, sample);
        for (size_t i = 0; i < augmented_bytes(&config, 3) / sizeof(float); i++)
            assert_true(fabsf(all[i]) < 3.0f);
        free(all);
    }
    sd_augmenter_destroy(augmenter);
}

static void a_steady_stream_allocates_nothing(void **state) {
    (void)state;
    sd_context *context = watched_context();
    sd_augment_config config = small_recipe();
    size_t before = memory.live_bytes;
    sd_augmenter *augmenter = make_augmenter(context, &config);
    uint8_t *pixels = take(60 * 50 * 3);
    paint(pixels, 60, 50, 3);
    sd_image image = {pixels, 60, 50, 0, 3, SD_PIXEL_U8};
    free(augment(augmenter, &config, &image, 1, 0));
    long allocations = memory.allocations;
    for (uint64_t sample = 1; sample < 200; sample++) {
        image.width = 60 - sample % 50;
        free(augment(augmenter, &config, &image, 1, sample));
    }
    assert_int_equal(memory.allocations, allocations);
    double told = (double)sd_augmenter_memory(augmenter), real = (double)(memory.live_bytes - before);
    assert_true(told <= real && told > 0.9 * real);
    free(pixels);
    sd_augmenter_destroy(augmenter);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

static void failed_allocations_are_survived(void **state) {
    (void)state;
    sd_context *context = watched_context();
    long before = memory.live;
    sd_augment_config config = small_recipe();
    config.blur[0] = 1.0;
    uint8_t *pixels = take(60 * 50 * 3);
    paint(pixels, 60, 50, 3);
    sd_image image = {pixels, 60, 50, 0, 3, SD_PIXEL_U8};
    sd_crop_choice choice;
    assert_int_equal(sd_crop_choose(&config, 60, 50, 1, 1, 0, &choice), SD_OK);
    float tensor[2][3 * 24 * 24];
    sd_augmenter *reference = make_augmenter(NULL, &config);
    assert_int_equal(sd_crop_apply(reference, &image, &choice, NULL, tensor[0]), SD_OK);
    float *views = augment(reference, &config, &image, 1, 1);
    bool whole = false;
    for (long i = 0; !whole; i++) {
        assert_true(i < 100);
        memory.allocations = 0;
        memory.fail_at = i;
        sd_augmenter *augmenter = NULL;
        sd_status status = sd_augmenter_create(context, &config, &augmenter);
        if (status == SD_OK) {
            status = sd_crop_apply(augmenter, &image, &choice, NULL, tensor[1]);
            whole = memory.allocations <= i;
            assert_int_equal(status, whole ? SD_OK : SD_ERR_MEMORY);
            memory.fail_at = -1;
            float *again = augment(augmenter, &config, &image, 1, 1); /* works after the failure */
            assert_memory_equal(again, views, augmented_bytes(&config, 3));
            free(again);
        } else {
            assert_int_equal(status, SD_ERR_MEMORY);
            assert_null(augmenter);
        }
        memory.fail_at = -1;
        sd_augmenter_destroy(augmenter);
        assert_int_equal(memory.live, before);
    }
    assert_memory_equal(tensor[0], tensor[1], sizeof tensor[0]);
    free(views);
    free(pixels);
    sd_augmenter_destroy(reference);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

/* ---- wrong arguments ----------------------------------------------------------------------- */

static void impossible_images_are_refused(void **state) {
    (void)state;
    static float pixels[64];
    const sd_image good = {pixels, 4, 4, 0, 1, SD_PIXEL_F32};
    sd_image bad[11];
    for (size_t i = 0; i < 11; i++)
        bad[i] = good;
    bad[0].pixels = NULL;
    bad[1].width = 0;
    bad[2].height = 0;
    bad[3].channels = 0;
    bad[4].channels = SD_MAX_CHANNELS + 1;
    bad[5].pixel_type = 2;
    bad[6].row_stride = 15;
    bad[7].row_stride = 18;
    bad[8].pixels = (const char *)pixels + 1;
    bad[9].width = (size_t)INT32_MAX + 1;
    bad[10].row_stride = SIZE_MAX - 3;
    sd_augment_config config = small_recipe();
    sd_augmenter *augmenter = make_augmenter(NULL, &config);
    sd_crop_choice choice = {.height = 4, .width = 4, .size = 4, .jitter_order = {-1}};
    float out[64], *globals[2] = {out, out}, *locals[3] = {out, out, out};
    for (size_t i = 0; i < 11; i++) {
        assert_int_equal(sd_crop_apply(augmenter, &bad[i], &choice, NULL, out), SD_ERR_ARGUMENT);
        assert_int_equal(sd_augment(augmenter, &bad[i], 1, 1, globals, locals), SD_ERR_ARGUMENT);
        assert_int_equal(sd_image_resize(&bad[i], 0, 0, 1, 1, SD_FILTER_BICUBIC, 2, 2, out), SD_ERR_ARGUMENT);
        assert_int_equal(sd_image_prepare(&bad[i], 0, 0, NULL, NULL, out, NULL, NULL), SD_ERR_ARGUMENT);
    }
    assert_int_equal(sd_crop_apply(augmenter, NULL, &choice, NULL, out), SD_ERR_ARGUMENT);
    assert_int_equal(sd_crop_apply(NULL, &good, &choice, NULL, out), SD_ERR_ARGUMENT);
    assert_int_equal(sd_crop_apply(augmenter, &good, NULL, NULL, out), SD_ERR_ARGUMENT);
    assert_int_equal(sd_augment(NULL, &good, 1, 1, globals, locals), SD_ERR_ARGUMENT);
    assert_int_equal(sd_augment(augmenter, &good, 1, 1, NULL, locals), SD_ERR_ARGUMENT);
    assert_int_equal(sd_augment(augmenter, &good, 1, 1, globals, NULL), SD_ERR_ARGUMENT);
    locals[2] = NULL;
    assert_int_equal(sd_augment(augmenter, &good, 1, 1, globals, locals), SD_ERR_ARGUMENT);
    sd_augmenter_destroy(augmenter);
}

static void impossible_choices_are_refused(void **state) {
    (void)state;
    uint8_t pixels[64] = {0};
    sd_image image = {pixels, 8, 8, 0, 1, SD_PIXEL_U8};
    sd_augment_config config = small_recipe();
    sd_augmenter *augmenter = make_augmenter(NULL, &config);
    const sd_crop_choice good = {.top = 1,
                                 .left = 1,
                                 .height = 7,
                                 .width = 7,
                                 .size = 4,
                                 .jitter_order = {0, 3, -1, 0},
                                 .jitter_factor = {1.0, 1.0, 1.0, 0.1}};
    float out[16];
    assert_int_equal(sd_crop_apply(augmenter, &image, &good, NULL, out), SD_OK);
    assert_int_equal(sd_crop_apply(augmenter, &image, &good, NULL, NULL), SD_OK);
#define REFUSE(member, value)                                                                                          \
    do {                                                                                                               \
        sd_crop_choice choice = good;                                                                                  \
        choice.member = value;                                                                                         \
        assert_int_equal(sd_crop_apply(augmenter, &image, &choice, NULL, out), SD_ERR_ARGUMENT);                       \
    } while (0)
    REFUSE(top, -1);
    REFUSE(left, -1);
    REFUSE(top, 2);
    REFUSE(left, INT32_MAX);
    REFUSE(height, 0);
    REFUSE(width, INT32_MAX);
    REFUSE(size, 0);
    REFUSE(jitter_order[1], 4);
    REFUSE(jitter_order[0], -2);
    REFUSE(jitter_factor[0], NAN);
    REFUSE(jitter_factor[0], -0.5);
    REFUSE(jitter_factor[3], 0.6);
    REFUSE(blur, NAN);
    REFUSE(blur, -1.0);
    REFUSE(blur, INFINITY);
    sd_augmenter_destroy(augmenter);
}

static void impossible_sizes_are_refused(void **state) {
    (void)state;
    uint8_t pixels[6] = {0}, out[64];
    float tensor[64];
    sd_image image = {pixels, 3, 2, 0, 1, SD_PIXEL_U8};
    assert_int_equal(sd_image_resize(&image, 0, 0, 2, 3, SD_FILTER_BICUBIC, 4, 4, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_image_resize(&image, 0, 0, 3, 3, SD_FILTER_BICUBIC, 4, 4, out), SD_ERR_ARGUMENT);
    assert_int_equal(sd_image_resize(&image, 1, 0, 2, 3, SD_FILTER_BICUBIC, 4, 4, out), SD_ERR_ARGUMENT);
    assert_int_equal(sd_image_resize(&image, 0, SIZE_MAX, 2, 2, SD_FILTER_BICUBIC, 4, 4, out), SD_ERR_ARGUMENT);
    assert_int_equal(sd_image_resize(&image, 0, 0, 0, 2, SD_FILTER_BICUBIC, 4, 4, out), SD_ERR_ARGUMENT);
    assert_int_equal(sd_image_resize(&image, 0, 0, 2, 3, SD_FILTER_BICUBIC, 0, 4, out), SD_ERR_ARGUMENT);
    assert_int_equal(sd_image_resize(&image, 0, 0, 2, 3, SD_FILTER_BICUBIC, SIZE_MAX, 4, out), SD_ERR_ARGUMENT);
    assert_int_equal(sd_image_resize(&image, 0, 0, 2, 3, (sd_filter)4, 4, 4, out), SD_ERR_ARGUMENT);
    for (int filter = SD_FILTER_NEAREST; filter <= SD_FILTER_LANCZOS; filter++)
        assert_int_equal(sd_image_resize(&image, 0, 0, 2, 3, (sd_filter)filter, 8, 8, out), SD_OK);

    const double zero[1] = {0.0}, nan_value[1] = {NAN}, one[1] = {1.0};
    size_t width = 99;
    assert_int_equal(sd_image_prepare(&image, 0, 3, NULL, NULL, tensor, &width, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_image_prepare(&image, 4, 5, NULL, NULL, tensor, &width, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_image_prepare(&image, SIZE_MAX, 0, NULL, NULL, NULL, &width, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_image_prepare(&image, 0, 0, NULL, zero, tensor, &width, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_image_prepare(&image, 0, 0, nan_value, one, tensor, &width, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(width, 99);
    assert_int_equal(sd_image_prepare(&image, 4, 4, NULL, one, tensor, &width, NULL), SD_OK);
    assert_int_equal(width, 4);
}

/* The centre crop alone equals the part of the whole. */
static void a_center_crop_is_a_part_of_the_whole(void **state) {
    (void)state;
    uint8_t *pixels = take(70 * 43 * 2);
    paint(pixels, 70, 43, 2);
    sd_image image = {pixels, 70, 43, 0, 2, SD_PIXEL_U8};
    for (size_t crop = 1; crop <= 25; crop += 4) {
        size_t width, height;
        float *whole = take(2 * 50 * 40 * sizeof(float)), *part = take(2 * crop * crop * sizeof(float));
        assert_int_equal(sd_image_prepare(&image, 25, 0, NULL, NULL, whole, &width, &height), SD_OK);
        assert_true(height == 25 && width == 40);
        assert_int_equal(sd_image_prepare(&image, 25, crop, NULL, NULL, part, NULL, NULL), SD_OK);
        size_t top = (size_t)nearbyint((25.0 - (double)crop) / 2.0),
               left = (size_t)nearbyint((40.0 - (double)crop) / 2.0);
        for (size_t c = 0; c < 2; c++)
            for (size_t y = 0; y < crop; y++)
                assert_memory_equal(part + (c * crop + y) * crop, whole + (c * 25 + top + y) * 40 + left,
                                    crop * sizeof(float));
        free(whole);
        free(part);
    }
    free(pixels);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(augment_is_choose_and_apply),
        cmocka_unit_test(history_and_strides_do_not_matter),
        cmocka_unit_test(float_pixels_agree_with_bytes),
        cmocka_unit_test(float_solarize_flips_the_same_levels),
        cmocka_unit_test(color_operations_need_three_channels),
        cmocka_unit_test(one_pixel_is_enough),
        cmocka_unit_test(wild_floats_are_tamed),
        cmocka_unit_test(a_steady_stream_allocates_nothing),
        cmocka_unit_test(failed_allocations_are_survived),
        cmocka_unit_test(impossible_images_are_refused),
        cmocka_unit_test(impossible_choices_are_refused),
        cmocka_unit_test(impossible_sizes_are_refused),
        cmocka_unit_test(a_center_crop_is_a_part_of_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
