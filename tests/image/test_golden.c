/* Pixel operations against what Pillow and torchvision gave, for each instruction set that this CPU has. */
#define _POSIX_C_SOURCE 200809L /* setenv */

#include "golden.h"

#include "image/image.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Every test runs once per instruction set; the library reads the variable when it chooses its kernels. */
static const char *const levels[] = {"generic", "avx2", "avx512"};
#define FOR_EACH_LEVEL for (size_t level = 0; level < 3 && setenv("SIMDINO_CPU", levels[level], 1) == 0; level++)

static void *take(size_t bytes) {
    void *memory = calloc(1, bytes);
    assert_non_null(memory);
    return memory;
}

static sd_image view_of(const golden_array *array) {
    int32_t channels = array->dimensions == 3 ? (int32_t)array->shape[2] : 1;
    return (sd_image){.pixels = array->data, .width = array->shape[1], .height = array->shape[0], .channels = channels};
}

/* How many bytes differ; the largest difference goes to *most. */
static size_t differing(const uint8_t *actual, const uint8_t *expected, size_t count, int *most) {
    size_t number = 0;
    *most = 0;
    for (size_t i = 0; i < count; i++) {
        int difference = abs((int)actual[i] - (int)expected[i]);
        number += difference != 0;
        *most = difference > *most ? difference : *most;
    }
    return number;
}

static void expect_bytes(const uint8_t *actual, const uint8_t *expected, size_t count, const char *what, size_t which) {
    int most;
    size_t number = differing(actual, expected, count, &most);
    if (number != 0)
        fail_msg("%s %zu: %zu of %zu bytes differ, by up to %d", what, which, number, count, most);
}

/* ---- resize -------------------------------------------------------------------------------- */

static void expect_resize(const sd_image *image, size_t top, size_t left, size_t height, size_t width, sd_filter filter,
                          const golden_array *expected, size_t which) {
    size_t out_height = expected->shape[0], out_width = expected->shape[1];
    uint8_t *out = take(expected->count);
    assert_int_equal(sd_image_resize(image, top, left, height, width, filter, out_width, out_height, out), SD_OK);
    expect_bytes(out, expected->data, expected->count, expected->name, which);
    free(out);
}

static void resize_equals_pillow(void **state) {
    (void)state;
    golden *archive = golden_open("image/resize.npz");
    const golden_array *cases = golden_get(archive, "cases");
    FOR_EACH_LEVEL {
        for (size_t i = 0; i < cases->shape[0]; i++) {
            size_t number[7];
            for (size_t k = 0; k < 7; k++)
                number[k] = (size_t)golden_number(cases, 7 * i + k);
            sd_image image = view_of(golden_get(archive, "img%zu", number[0]));
            expect_resize(&image, number[1], number[2], number[3], number[4],
                          number[6] ? SD_FILTER_BICUBIC : SD_FILTER_BILINEAR, golden_get(archive, "out_%02zu", i), i);
        }
        sd_image gray = view_of(golden_get(archive, "gray"));
        const golden_array *box = golden_get(archive, "gray_box");
        expect_resize(&gray, (size_t)golden_number(box, 0), (size_t)golden_number(box, 1),
                      (size_t)golden_number(box, 2), (size_t)golden_number(box, 3), SD_FILTER_BICUBIC,
                      golden_get(archive, "gray_out"), 0);
        for (size_t i = 0; i < 3; i++) {
            const golden_array *lanczos = golden_get(archive, "lanczos_case_%zu", i);
            sd_image image = view_of(golden_get(archive, "img%zu", (size_t)golden_number(lanczos, 0)));
            expect_resize(&image, 0, 0, image.height, image.width, SD_FILTER_LANCZOS,
                          golden_get(archive, "lanczos_out_%zu", i), i);
        }
        sd_image labels = view_of(golden_get(archive, "nearest_in"));
        for (size_t i = 0; i < 4; i++)
            expect_resize(&labels, 0, 0, labels.height, labels.width, SD_FILTER_NEAREST,
                          golden_get(archive, "nearest_out_%zu", i), i);
    }
    golden_close(archive);
}

/* The tensor path of torchvision does not clip between the passes, so its float results can be compared where nothing
 * is clipped: where weights are not negative. Float pixels here come from levels/255, as they do there. */
static void float_resize_equals_torchvision(void **state) {
    (void)state;
    golden *archive = golden_open("image/resize.npz");
    const golden_array *cases = golden_get(archive, "cases");
    size_t compared = 0;
    FOR_EACH_LEVEL for (size_t i = 0; i < cases->shape[0]; i++) {
        char name[32];
        snprintf(name, sizeof name, "float_out_%02zu", i);
        if (!golden_has(archive, name) || golden_number(cases, 7 * i + 6) != 0.0)
            continue;
        const golden_array *expected = golden_get(archive, "%s", name);
        const golden_array *source = golden_get(archive, "img%zu", (size_t)golden_number(cases, 7 * i));
        float *pixels = take(source->count * sizeof(float)), *out = take(expected->count * sizeof(float));
        for (size_t k = 0; k < source->count; k++)
            pixels[k] = (float)((const uint8_t *)source->data)[k] / 255.0f;
        sd_image image = view_of(source);
        image.pixels = pixels;
        image.pixel_type = SD_PIXEL_F32;
        assert_int_equal(
            sd_image_resize(&image, (size_t)golden_number(cases, 7 * i + 1), (size_t)golden_number(cases, 7 * i + 2),
                            (size_t)golden_number(cases, 7 * i + 3), (size_t)golden_number(cases, 7 * i + 4),
                            SD_FILTER_BILINEAR, expected->shape[1], expected->shape[0], out),
            SD_OK);
        golden_compare_f32(archive, name, out, expected->count, 1e-6);
        compared++;
        free(pixels);
        free(out);
    }
    assert_true(compared >= 3);
    golden_close(archive);
}

static void evaluation_transform_equals_torchvision(void **state) {
    (void)state;
    golden *archive = golden_open("image/resize.npz");
    FOR_EACH_LEVEL for (size_t i = 0; i < 3; i++) {
        const golden_array *setting = golden_get(archive, "eval_case_%zu", i);
        sd_image image = view_of(golden_get(archive, "img%zu", (size_t)golden_number(setting, 0)));
        for (size_t cropped = 0; cropped < 2; cropped++) {
            const golden_array *expected =
                cropped ? golden_get(archive, "eval_out_%zu", i) : golden_get(archive, "eval_resized_%zu", i);
            size_t resize = (size_t)golden_number(setting, 1), crop = cropped ? (size_t)golden_number(setting, 2) : 0;
            size_t width = 0, height = 0;
            assert_int_equal(sd_image_prepare(&image, resize, crop, NULL, NULL, NULL, &width, &height), SD_OK);
            assert_int_equal(height, expected->shape[0]);
            assert_int_equal(width, expected->shape[1]);
            float *tensor = take(expected->count * sizeof(float));
            assert_int_equal(sd_image_prepare(&image, resize, crop, NULL, NULL, tensor, &width, &height), SD_OK);
            uint8_t *levels_out = take(expected->count);
            for (size_t c = 0; c < 3; c++)
                for (size_t k = 0; k < width * height; k++)
                    levels_out[3 * k + c] = (uint8_t)lrintf(255.0f * tensor[c * width * height + k]);
            expect_bytes(levels_out, expected->data, expected->count, expected->name, i);
            free(levels_out);
            free(tensor);
        }
    }
    golden_close(archive);
}

/* ---- colour -------------------------------------------------------------------------------- */

/* A picture as planes, with the kernels of the present level. */
static sd_planes planes_from(const uint8_t *interleaved, size_t width, size_t height) {
    sd_planes planes = {.kernels = sd_pixel_kernels_get(SD_PIXEL_U8),
                        .data = take(3 * width * height + SD_PIXEL_SLACK),
                        .width = width,
                        .height = height,
                        .channels = 3,
                        .pixel_type = SD_PIXEL_U8};
    for (size_t c = 0; c < 3; c++)
        planes.kernels->split(interleaved + c, width * height, 3, 0, sd_plane(&planes, c));
    return planes;
}

static void expect_planes(sd_planes *planes, const uint8_t *expected, const char *what, size_t which) {
    size_t n = planes->width * planes->height;
    uint8_t *out = take(3 * n);
    sd_interleave(SD_PIXEL_U8, planes->data, n, 3, out);
    free(planes->data);
    expect_bytes(out, expected, 3 * n, what, which);
    free(out);
}

typedef void (*adjustment)(const sd_planes *planes, double factor);

static void make_gray(const sd_planes *planes, double factor) {
    (void)factor;
    sd_make_gray(planes);
}

static void make_solarized(const sd_planes *planes, double threshold) { sd_make_solarized(planes, (int32_t)threshold); }

static void colors_equal_pillow(void **state) {
    (void)state;
    static const struct {
        const char *name, *factors;
        adjustment adjust;
    } operations[] = {
        {"brightness_out", "brightness_factors", sd_adjust_brightness},
        {"contrast_out", "contrast_factors", sd_adjust_contrast},
        {"saturation_out", "saturation_factors", sd_adjust_saturation},
        {"hue_out", "hue_factors", sd_adjust_hue},
        {"solarize_out", "solarize_thresholds", make_solarized},
        {"gray_out", NULL, make_gray},
        {"random_grayscale_out", NULL, make_gray},
    };
    golden *archive = golden_open("image/color.npz");
    const golden_array *images = golden_get(archive, "imgs");
    size_t height = images->shape[1], width = images->shape[2], size = height * width * 3;
    FOR_EACH_LEVEL for (size_t o = 0; o < sizeof operations / sizeof operations[0]; o++) {
        const golden_array *factors = operations[o].factors ? golden_get(archive, "%s", operations[o].factors) : NULL;
        const uint8_t *expected = golden_u8(archive, "%s", operations[o].name);
        size_t count = factors ? factors->count : 1;
        for (size_t i = 0; i < images->shape[0]; i++)
            for (size_t f = 0; f < count; f++) {
                sd_planes planes = planes_from((const uint8_t *)images->data + i * size, width, height);
                operations[o].adjust(&planes, factors ? golden_number(factors, f) : 0.0);
                expect_planes(&planes, expected + (i * count + f) * size, operations[o].name, i * count + f);
            }
    }
    golden_close(archive);
}

static void jitter_equals_torchvision(void **state) {
    (void)state;
    golden *archive = golden_open("image/color.npz");
    const golden_array *images = golden_get(archive, "imgs"), *orders = golden_get(archive, "jitter_order");
    const double *factors = golden_f64(archive, "jitter_factors");
    const uint8_t *expected = golden_u8(archive, "jitter_out");
    size_t height = images->shape[1], width = images->shape[2], size = height * width * 3;
    static const adjustment operations[] = {sd_adjust_brightness, sd_adjust_contrast, sd_adjust_saturation,
                                            sd_adjust_hue};
    FOR_EACH_LEVEL for (size_t j = 0; j < orders->shape[0]; j++) for (size_t i = 0; i < images->shape[0]; i++) {
        sd_planes planes = planes_from((const uint8_t *)images->data + i * size, width, height);
        for (size_t k = 0; k < 4; k++) {
            int operation = (int)golden_number(orders, 4 * j + k);
            if (operation >= 0)
                operations[operation](&planes, factors[4 * j + (size_t)operation]);
        }
        expect_planes(&planes, expected + (j * images->shape[0] + i) * size, "jitter_out", j);
    }
    golden_close(archive);
}

static void flip_equals_torchvision(void **state) {
    (void)state;
    golden *archive = golden_open("image/color.npz");
    const golden_array *images = golden_get(archive, "imgs");
    const uint8_t *expected = golden_u8(archive, "hflip_out");
    size_t height = images->shape[1], width = images->shape[2], size = height * width * 3;
    FOR_EACH_LEVEL for (size_t i = 0; i < images->shape[0]; i++) {
        sd_image image = {(const uint8_t *)images->data + i * size, width, height, 0, 3, SD_PIXEL_U8};
        sd_planes planes = planes_from(image.pixels, width, height);
        sd_resizer resizer = {0};
        sd_resize_job job = {.height = height,
                             .width = width,
                             .out_width = width,
                             .out_height = height,
                             .columns = width,
                             .rows = height,
                             .flip = true,
                             .filter = SD_FILTER_BICUBIC};
        assert_int_equal(sd_resize_planes(NULL, &resizer, planes.kernels, &image, &job, planes.data), SD_OK);
        sd_resizer_release(NULL, &resizer);
        expect_planes(&planes, expected + i * size, "hflip_out", i);
    }
    golden_close(archive);
}

/* The grey values of many colours; and hue with factor 0, which goes to HSV and back. */
static void conversions_equal_pillow(void **state) {
    (void)state;
    golden *archive = golden_open("image/color.npz");
    const golden_array *colors = golden_get(archive, "rgb_in");
    const uint8_t *gray = golden_u8(archive, "rgb_to_l");
    FOR_EACH_LEVEL {
        sd_planes planes = planes_from(colors->data, colors->shape[0], 1);
        sd_make_gray(&planes);
        for (size_t c = 0; c < 3; c++)
            expect_bytes(sd_plane(&planes, c), gray, colors->shape[0], "rgb_to_l", c);
        free(planes.data);
    }
    golden_close(archive);
}

/* ---- blur ---------------------------------------------------------------------------------- */

static void blur_planes(sd_planes *planes, sd_blur_kind kind, double radius) {
    size_t room;
    assert_int_equal(sd_blur_room(planes->width, planes->height, radius, &room), SD_OK);
    void *work = take((room + SD_PIXEL_SLACK) * sizeof(float));
    sd_blur(planes, kind, radius, work);
    free(work);
}

static void box_blur_equals_pillow(void **state) {
    (void)state;
    static const char *const inputs[] = {"imgs", "small", "step"};
    static const char *const outputs[] = {"pil_out", "pil_small_out", "pil_step_out"};
    golden *archive = golden_open("image/blur.npz");
    const golden_array *radii = golden_get(archive, "pil_radii");
    FOR_EACH_LEVEL for (size_t k = 0; k < 3; k++) {
        const golden_array *in = golden_get(archive, "%s", inputs[k]);
        const uint8_t *expected = golden_u8(archive, "%s", outputs[k]);
        size_t several = in->dimensions == 4, images = several ? in->shape[0] : 1;
        size_t height = in->shape[several], width = in->shape[several + 1], size = height * width * 3;
        for (size_t i = 0; i < images; i++)
            for (size_t r = 0; r < radii->count; r++) {
                sd_planes planes = planes_from((const uint8_t *)in->data + i * size, width, height);
                blur_planes(&planes, SD_BLUR_PIL, golden_number(radii, r));
                expect_planes(&planes, expected + (i * radii->count + r) * size, outputs[k], i * radii->count + r);
            }
    }
    golden_close(archive);
}

/* At most one level in a thousandth of the values: float sums in another order. */
static void expect_nearly(const uint8_t *actual, const uint8_t *expected, size_t count, const char *what,
                          size_t which) {
    int most;
    size_t number = differing(actual, expected, count, &most);
    if (most > 1 || number * 1000 > count)
        fail_msg("%s %zu: %zu of %zu bytes differ, by up to %d", what, which, number, count, most);
}

static void gaussian_blur_equals_torchvision(void **state) {
    (void)state;
    golden *archive = golden_open("image/blur.npz");
    const golden_array *sigmas = golden_get(archive, "tv_sigmas"), *images = golden_get(archive, "imgs");
    const golden_array *step = golden_get(archive, "step");
    const float *kernels = golden_f32(archive, "tv_kernel1d"), *floats = golden_f32(archive, "tv_float_out");
    size_t height = images->shape[1], width = images->shape[2], size = height * width * 3;
    FOR_EACH_LEVEL for (size_t s = 0; s < sigmas->count; s++) {
        double sigma = golden_number(sigmas, s);
        float taps[SD_GAUSS_TAPS];
        sd_gauss_taps(sigma, taps);
        assert_true(golden_difference_f32(taps, kernels + SD_GAUSS_TAPS * s, SD_GAUSS_TAPS) <= 1e-7);
        for (size_t i = 0; i <= images->shape[0]; i++) { /* the last one: the step */
            bool last = i == images->shape[0];
            size_t w = last ? step->shape[1] : width, h = last ? step->shape[0] : height;
            const uint8_t *in = last ? step->data : (const uint8_t *)images->data + i * size;
            const uint8_t *expected = last ? golden_u8(archive, "tv_step_out") + s * w * h * 3
                                           : golden_u8(archive, "tv_out") + (i * sigmas->count + s) * size;
            sd_planes planes = planes_from(in, w, h);
            blur_planes(&planes, SD_BLUR_TORCHVISION, sigma);
            uint8_t *out = take(3 * w * h);
            sd_interleave(SD_PIXEL_U8, planes.data, w * h, 3, out);
            expect_nearly(out, expected, 3 * w * h, "tv_out", i * sigmas->count + s);
            free(planes.data);
            free(out);
        }
        /* The same on 0..1 floats. */
        sd_planes planes = {sd_pixel_kernels_get(SD_PIXEL_F32),
                            take((size + SD_PIXEL_SLACK) * sizeof(float)),
                            width,
                            height,
                            3,
                            SD_PIXEL_F32};
        float *values = planes.data, *out = take(size * sizeof(float));
        for (size_t c = 0; c < 3; c++)
            for (size_t k = 0; k < width * height; k++)
                values[c * width * height + k] = (float)((const uint8_t *)images->data)[3 * k + c] / 255.0f;
        blur_planes(&planes, SD_BLUR_TORCHVISION, sigma);
        sd_interleave(SD_PIXEL_F32, planes.data, width * height, 3, out);
        double difference = golden_difference_f32(out, floats + s * size, size);
        if (!(difference <= 1e-6))
            fail_msg("tv_float_out %zu: differs by %g", s, difference);
        free(planes.data);
        free(out);
    }
    golden_close(archive);
}

/* ---- normalise ----------------------------------------------------------------------------- */

static void normalize_equals_torchvision(void **state) {
    (void)state;
    golden *archive = golden_open("image/normalize.npz");
    const double *mean = golden_f64(archive, "mean"), *std = golden_f64(archive, "std");
    static const double half[1] = {0.5};
    static const struct {
        const char *in, *out;
        int kind; /* 0: not normalised, 1: mean and std, 2: one half */
    } cases[] = {
        {"img", "to_tensor", 0}, {"img", "out", 1}, {"every_value", "every_value_out", 1}, {"gray", "gray_out", 2}};
    FOR_EACH_LEVEL for (size_t i = 0; i < 4; i++) {
        sd_image image = view_of(golden_get(archive, "%s", cases[i].in));
        const golden_array *expected = golden_get(archive, "%s", cases[i].out);
        float *tensor = take(expected->count * sizeof(float));
        assert_int_equal(sd_image_prepare(&image, 0, 0,
                                          cases[i].kind == 0   ? NULL
                                          : cases[i].kind == 1 ? mean
                                                               : half,
                                          cases[i].kind == 0   ? NULL
                                          : cases[i].kind == 1 ? std
                                                               : half,
                                          tensor, NULL, NULL),
                         SD_OK);
        golden_compare_f32(archive, cases[i].out, tensor, expected->count, 1e-6);
        free(tensor);
    }
    golden_close(archive);
}

/* ---- the whole augmentation ---------------------------------------------------------------- */

static void pipeline(const golden *archive, const char *version, const char *preset, bool exact) {
    sd_augment_config config;
    sd_augment_config_init(&config);
    assert_int_equal(sd_augment_config_preset(&config, preset), SD_OK);
    sd_augmenter *augmenter;
    assert_int_equal(sd_augmenter_create(NULL, &config, &augmenter), SD_OK);
    const golden_array *size = golden_get(archive, "%s_size", version), *box = golden_get(archive, "%s_box", version);
    const golden_array *order = golden_get(archive, "%s_jitter_order", version);
    const double *factors = golden_f64(archive, "%s_jitter_factors", version);
    for (size_t i = 0; i < size->count; i++) {
        sd_image image =
            view_of(golden_get(archive, "img%d", (int)golden_number(golden_get(archive, "%s_img", version), i)));
        sd_crop_choice choice = {
            .top = (int32_t)golden_number(box, 4 * i),
            .left = (int32_t)golden_number(box, 4 * i + 1),
            .height = (int32_t)golden_number(box, 4 * i + 2),
            .width = (int32_t)golden_number(box, 4 * i + 3),
            .size = (int32_t)golden_number(size, i),
            .flip = golden_u8(archive, "%s_flip", version)[i],
            .gray = golden_u8(archive, "%s_gray", version)[i],
            .solarize = golden_u8(archive, "%s_solarize", version)[i],
            .blur = golden_f64(archive, "%s_blur", version)[i],
        };
        for (size_t k = 0; k < 4; k++) {
            choice.jitter_order[k] = (int32_t)golden_number(order, 4 * i + k);
            choice.jitter_factor[k] = factors[4 * i + k];
        }
        const golden_array *expected = golden_get(archive, "%s_out_%02zu", version, i);
        uint8_t *pixels = take(expected->count);
        float *tensor = take(expected->count * sizeof(float));
        assert_int_equal(sd_crop_apply(augmenter, &image, &choice, pixels, tensor), SD_OK);
        if (exact)
            expect_bytes(pixels, expected->data, expected->count, version, i);
        else
            expect_nearly(pixels, expected->data, expected->count, version, i);
        if (i + 1 == size->count) {
            char name[32];
            snprintf(name, sizeof name, "%s_tensor_last", version);
            golden_compare_f32(archive, name, tensor, expected->count, 1e-6);
        }
        free(pixels);
        free(tensor);
    }
    sd_augmenter_destroy(augmenter);
}

static void pipelines_equal_the_official_ones(void **state) {
    (void)state;
    golden *archive = golden_open("image/pipeline.npz");
    FOR_EACH_LEVEL {
        pipeline(archive, "v1", "dino", true);
        pipeline(archive, "v2", "dinov2", false); /* torchvision's blur sums floats */
    }
    golden_close(archive);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resize_equals_pillow),
        cmocka_unit_test(float_resize_equals_torchvision),
        cmocka_unit_test(evaluation_transform_equals_torchvision),
        cmocka_unit_test(colors_equal_pillow),
        cmocka_unit_test(jitter_equals_torchvision),
        cmocka_unit_test(flip_equals_torchvision),
        cmocka_unit_test(conversions_equal_pillow),
        cmocka_unit_test(box_blur_equals_pillow),
        cmocka_unit_test(gaussian_blur_equals_torchvision),
        cmocka_unit_test(normalize_equals_torchvision),
        cmocka_unit_test(pipelines_equal_the_official_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
