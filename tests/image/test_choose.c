/* What is drawn for a crop: boxes distributed as torchvision's, the recipe's probabilities, and streams that depend on
 * nothing else. */
#include "golden.h"

#include <simdino/image.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define DRAWS 10000

static sd_augment_config defaults(void) {
    sd_augment_config config;
    sd_augment_config_init(&config);
    return config;
}

/* ---- boxes --------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Two-sample Kolmogorov-Smirnov statistic; sorts both. */
static double kolmogorov_smirnov(double *a, size_t n, double *b, size_t m) {
    qsort(a, n, sizeof *a, ascending);
    qsort(b, m, sizeof *b, ascending);
    double largest = 0.0;
    for (size_t i = 0, j = 0; i < n && j < m;) {
        double value = a[i] < b[j] ? a[i] : b[j];
        while (i < n && a[i] <= value)
            i++;
        while (j < m && b[j] <= value)
            j++;
        largest = fmax(largest, fabs((double)i / (double)n - (double)j / (double)m));
    }
    return largest;
}

/* Area, log aspect, top, left of a box in 0..1; false where there is no room to move. */
static int feature(int which, double top, double left, double height, double width, double image_height,
                   double image_width, double *value) {
    switch (which) {
    case 0: *value = height * width / (image_height * image_width); return 1;
    case 1: *value = log(width / height); return 1;
    case 2: *value = top / (image_height - height); return height < image_height;
    default: *value = left / (image_width - width); return width < image_width;
    }
}

static void boxes_are_distributed_as_in_torchvision(void **state) {
    (void)state;
    golden *archive = golden_open("image/rrc_params.npz");
    const golden_array *configs = golden_get(archive, "configs"), *samples = golden_get(archive, "samples");
    const int16_t *theirs = samples->data;
    assert_true(samples->kind == 'i' && samples->item_size == 2 && samples->shape[1] == DRAWS);
    double *a = malloc(DRAWS * sizeof *a), *b = malloc(DRAWS * sizeof *b);
    sd_crop_choice *choice = malloc(DRAWS * sizeof *choice);
    assert_true(a && b && choice);
    for (size_t c = 0; c < configs->shape[0]; c++) {
        const double height = golden_number(configs, 4 * c), width = golden_number(configs, 4 * c + 1);
        sd_augment_config config = defaults();
        config.global_scale[0] = golden_number(configs, 4 * c + 2);
        config.global_scale[1] = golden_number(configs, 4 * c + 3);
        for (size_t i = 0; i < DRAWS; i++)
            assert_int_equal(sd_crop_choose(&config, (size_t)width, (size_t)height, 1234 + c, i, 0, &choice[i]), SD_OK);
        for (int which = 0; which < 4; which++) {
            size_t n = 0, m = 0;
            for (size_t i = 0; i < DRAWS; i++) {
                const int16_t *box = theirs + (c * DRAWS + i) * 4;
                n += (size_t)feature(which, choice[i].top, choice[i].left, choice[i].height, choice[i].width, height,
                                     width, &a[n]);
                m += (size_t)feature(which, box[0], box[1], box[2], box[3], height, width, &b[m]);
            }
            assert_true((n == 0) == (m == 0));
            /* 0.032 is for 10,000 draws each; fewer (those with room to move) scatter more. */
            double bound =
                n == 0 ? 1.0 : 0.032 * sqrt((double)DRAWS * ((double)n + (double)m) / (2.0 * (double)n * (double)m));
            double statistic = n == 0 ? 0.0 : kolmogorov_smirnov(a, n, b, m);
            if (statistic >= bound)
                fail_msg("configuration %zu, feature %d: statistic %g (bound %g)", c, which, statistic, bound);
        }
        /* All ten tries failed: the central box, which is one and the same. */
        const golden_array *tries = golden_get(archive, "tries");
        double expected = golden_number(golden_get(archive, "fallback_rate"), c), central = 0.0;
        const int16_t *fallback = NULL;
        for (size_t i = 0; i < DRAWS && fallback == NULL; i++)
            if (golden_number(tries, c * DRAWS + i) == 11.0)
                fallback = theirs + (c * DRAWS + i) * 4;
        for (size_t i = 0; i < DRAWS && fallback != NULL; i++)
            central += choice[i].top == fallback[0] && choice[i].left == fallback[1] &&
                       choice[i].height == fallback[2] && choice[i].width == fallback[3];
        if (fallback != NULL && expected > 0.01) {
            double bound = 5.0 * sqrt(expected * (1.0 - expected) / 5000.0);
            if (fabs(central / DRAWS - expected) > bound)
                fail_msg("configuration %zu: central box in %g of draws, expected %g", c, central / DRAWS, expected);
        }
    }
    free(a);
    free(b);
    free(choice);
    golden_close(archive);
}

static void boxes_lie_in_the_image(void **state) {
    (void)state;
    static const size_t sizes[][2] = {{1, 1}, {1, 2}, {2, 1},          {1, 100},      {100, 1},
                                      {3, 2}, {7, 5}, {2000000000, 1}, {40000, 50000}};
    sd_augment_config config = defaults();
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
        for (int scale = 0; scale < 3; scale++) {
            config.global_scale[0] = scale == 0 ? 1e-6 : 0.4;
            config.global_scale[1] = scale == 1 ? 0.4 : 1.0;
            for (uint64_t i = 0; i < 300; i++) {
                sd_crop_choice c;
                assert_int_equal(sd_crop_choose(&config, sizes[s][0], sizes[s][1], 5, i, (int32_t)(i % 2), &c), SD_OK);
                assert_true(c.width >= 1 && c.height >= 1 && c.top >= 0 && c.left >= 0);
                assert_true((size_t)c.left + (size_t)c.width <= sizes[s][0]);
                assert_true((size_t)c.top + (size_t)c.height <= sizes[s][1]);
            }
        }
}

/* ---- the rest of the recipe ---------------------------------------------------------------- */

/* Number of draws in which something of probability p may happen, to five standard errors. */
static void expect_rate(size_t hits, size_t n, double p, const char *what, int32_t view) {
    double rate = (double)hits / (double)n, bound = 5.0 * sqrt(p * (1.0 - p) / (double)n);
    if (!(fabs(rate - p) <= bound))
        fail_msg("%s in view %d: rate %g instead of %g", what, view, rate, p);
}

static void rates_are_those_of(const golden *archive, const char *preset, const char *official_rates) {
    sd_augment_config config = defaults();
    assert_int_equal(sd_augment_config_preset(&config, preset), SD_OK);
    const double *measured = golden_f64(archive, "%s", official_rates); /* flip, jitter, grey, blur, solarise */
    size_t theirs = (size_t)golden_scalar(archive, "rates_n");
    for (int32_t view = 0; view < 3; view++) {
        size_t flip = 0, jitter = 0, gray = 0, blur = 0, solarize = 0, first[4] = {0}, orders[256] = {0};
        for (uint64_t i = 0; i < DRAWS; i++) {
            sd_crop_choice c;
            assert_int_equal(sd_crop_choose(&config, 300, 200, 99, i, view, &c), SD_OK);
            assert_int_equal(c.size, view < 2 ? 224 : 96);
            flip += (size_t)c.flip;
            gray += (size_t)c.gray;
            solarize += (size_t)c.solarize;
            if (c.blur != 0.0) {
                blur++;
                assert_true(c.blur >= 0.1 && c.blur < 2.0);
            }
            if (c.jitter_order[0] < 0)
                continue;
            jitter++;
            int mask = 0, code = 0;
            for (int k = 0; k < 4; k++) {
                mask |= 1 << c.jitter_order[k];
                code = code * 4 + c.jitter_order[k];
            }
            assert_int_equal(mask, 15);
            orders[code]++;
            first[c.jitter_order[0]]++;
            assert_true(c.jitter_factor[0] >= 0.6 && c.jitter_factor[0] <= 1.4);
            assert_true(c.jitter_factor[1] >= 0.6 && c.jitter_factor[1] <= 1.4);
            assert_true(c.jitter_factor[2] >= 0.8 && c.jitter_factor[2] <= 1.2);
            assert_true(fabs(c.jitter_factor[3]) <= 0.1);
        }
        const size_t hits[5] = {flip, jitter, gray, blur, solarize};
        const double rates[5] = {config.flip, config.jitter, config.gray, config.blur[view], config.solarize[view]};
        static const char *const names[5] = {"flip", "jitter", "gray", "blur", "solarize"};
        for (size_t k = 0; k < 5; k++) {
            expect_rate(hits[k], DRAWS, rates[k], names[k], view);
            double p = rates[k], official = measured[5 * view + (int)k];
            if (k == 3 && strstr(preset, "published")) /* measured after the correction */
                official = 1.0 - official;
            assert_true(fabs(official - p) <=
                        5.0 * sqrt(p * (1.0 - p) / (double)theirs)); /* so the recipe is the official one */
        }
        for (size_t k = 0; k < 4; k++)
            expect_rate(first[k], jitter, 0.25, "first operation", view);
        for (size_t k = 0; k < 256; k++)
            if (orders[k] > 0)
                expect_rate(orders[k], jitter, 1.0 / 24.0, "order", view);
    }
}

static void probabilities_are_those_of_the_recipes(void **state) {
    (void)state;
    golden *archive = golden_open("image/pipeline.npz");
    rates_are_those_of(archive, "dino", "v1_rates");
    rates_are_those_of(archive, "dinov2", "v2_rates");
    rates_are_those_of(archive, "dinov2-published", "v2_rates");
    golden_close(archive);
}

/* Presets set what the official code fixes, and nothing else. */
static void presets(void **state) {
    (void)state;
    sd_augment_config config = defaults(), expected = defaults();
    assert_int_equal(sd_augment_config_preset(&config, "dino"), SD_OK);
    assert_memory_equal(&config, &expected, sizeof config);
    expected.global_size = config.global_size = 28;
    expected.local_size = config.local_size = 12;
    expected.local_crops = config.local_crops = 3;
    expected.global_scale[0] = config.global_scale[0] = 0.32;
    expected.local_scale[1] = config.local_scale[1] = 0.32;
    expected.aspect_ratio[0] = config.aspect_ratio[0] = 0.5;
    expected.mean[1] = config.mean[1] = 0.3;
    expected.std[2] = config.std[2] = 0.3;
    config.flip = config.jitter = config.brightness = config.contrast = config.saturation = config.hue = 0.5;
    config.gray = config.blur[0] = config.blur[1] = config.blur[2] = config.blur_radius[0] = 0.25;
    config.solarize[0] = config.solarize[1] = config.solarize[2] = config.blur_radius[1] = 0.75;
    config.solarize_threshold = 3;
    expected.blur_kind = SD_BLUR_TORCHVISION;
    assert_int_equal(sd_augment_config_preset(&config, "dinov2"), SD_OK);
    assert_memory_equal(&config, &expected, sizeof config);
    assert_int_equal(sd_augment_config_preset(&config, "dinov2-published"), SD_OK);
    expected.blur[0] = 0.0;
    expected.blur[1] = 0.9;
    assert_memory_equal(&config, &expected, sizeof config);
    assert_int_equal(sd_augment_config_preset(&config, "dinov3"), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "dinov3"));
    assert_int_equal(sd_augment_config_preset(&config, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_augment_config_preset(NULL, "dino"), SD_ERR_ARGUMENT);
    assert_memory_equal(&config, &expected, sizeof config);
}

static void blur_radii_are_uniform(void **state) {
    (void)state;
    sd_augment_config config = defaults();
    double *a = malloc(DRAWS * sizeof *a), *b = malloc(DRAWS * sizeof *b);
    for (uint64_t i = 0; i < DRAWS; i++) {
        sd_crop_choice c;
        assert_int_equal(sd_crop_choose(&config, 300, 200, 3, i, 0, &c), SD_OK);
        a[i] = c.blur;
        b[i] = 0.1 + 1.9 * ((double)i + 0.5) / DRAWS;
    }
    assert_true(kolmogorov_smirnov(a, DRAWS, b, DRAWS) < 0.032);
    free(a);
    free(b);
}

/* torchvision leaves out the operations whose range is zero; hue with factor 0 would change bytes. */
static void operations_without_a_range_are_left_out(void **state) {
    (void)state;
    sd_augment_config config = defaults();
    config.jitter = 1.0;
    config.hue = 0.0;
    config.contrast = 0.0;
    for (uint64_t i = 0; i < 50; i++) {
        sd_crop_choice c;
        assert_int_equal(sd_crop_choose(&config, 30, 20, 3, i, 0, &c), SD_OK);
        assert_true(c.jitter_order[0] + c.jitter_order[1] == 2 && c.jitter_order[0] * c.jitter_order[1] == 0);
        assert_int_equal(c.jitter_order[2], -1);
        assert_int_equal(c.jitter_order[3], -1);
    }
    config.brightness = 3.0; /* factors do not go below zero */
    for (uint64_t i = 0; i < 50; i++) {
        sd_crop_choice c;
        assert_int_equal(sd_crop_choose(&config, 30, 20, 3, i, 0, &c), SD_OK);
        assert_true(c.jitter_factor[0] >= 0.0);
    }
}

static void choices_depend_on_seed_sample_and_view_only(void **state) {
    (void)state;
    sd_augment_config config = defaults();
    sd_crop_choice first, again, other;
    assert_int_equal(sd_crop_choose(&config, 300, 200, 1, 2, 3, &first), SD_OK);
    for (uint64_t i = 0; i < 20; i++)
        assert_int_equal(sd_crop_choose(&config, 30, 20, i, i, 1, &again), SD_OK);
    assert_int_equal(sd_crop_choose(&config, 300, 200, 1, 2, 3, &again), SD_OK);
    assert_memory_equal(&first, &again, sizeof first);
    assert_int_equal(sd_crop_choose(&config, 300, 200, 2, 2, 3, &other), SD_OK);
    assert_true(memcmp(&first, &other, sizeof first) != 0);
    assert_int_equal(sd_crop_choose(&config, 300, 200, 1, 3, 3, &other), SD_OK);
    assert_true(memcmp(&first, &other, sizeof first) != 0);
    assert_int_equal(sd_crop_choose(&config, 300, 200, 1, 2, 4, &other), SD_OK);
    assert_true(memcmp(&first, &other, sizeof first) != 0);
    assert_int_equal(sd_crop_choose(NULL, 300, 200, 1, 2, 3, &again), SD_OK); /* NULL: the defaults */
    assert_memory_equal(&first, &again, sizeof first);
}

/* ---- wrong arguments ----------------------------------------------------------------------- */

static void expect_refusal(sd_augment_config config, const char *culprit) {
    sd_crop_choice choice;
    sd_augmenter *augmenter = NULL;
    assert_int_equal(sd_crop_choose(&config, 30, 20, 1, 1, 0, &choice), SD_ERR_ARGUMENT);
    if (strstr(sd_last_error(), culprit) == NULL)
        fail_msg("\"%s\" does not name %s", sd_last_error(), culprit);
    assert_int_equal(sd_augmenter_create(NULL, &config, &augmenter), SD_ERR_ARGUMENT);
    assert_null(augmenter);
}

#define REFUSE(member, value)                                                                                          \
    do {                                                                                                               \
        sd_augment_config config = defaults();                                                                         \
        config.member = value;                                                                                         \
        expect_refusal(config, culprit);                                                                               \
    } while (0)

static void impossible_settings_are_refused(void **state) {
    (void)state;
    const char *culprit = "global_size";
    REFUSE(global_size, 0);
    REFUSE(global_size, 1 << 20);
    culprit = "local_size";
    REFUSE(local_size, -1);
    culprit = "local_crops";
    REFUSE(local_crops, -1);
    REFUSE(local_crops, SD_MAX_VIEWS - 1);
    culprit = "global_scale";
    REFUSE(global_scale[0], 0.0);
    REFUSE(global_scale[0], NAN);
    REFUSE(global_scale[1], 1.5);
    REFUSE(global_scale[1], 0.1);
    culprit = "local_scale";
    REFUSE(local_scale[0], -1.0);
    culprit = "aspect_ratio";
    REFUSE(aspect_ratio[0], 0.0);
    REFUSE(aspect_ratio[1], INFINITY);
    culprit = "flip";
    REFUSE(flip, 1.01);
    REFUSE(flip, NAN);
    culprit = "jitter";
    REFUSE(jitter, -0.1);
    culprit = "brightness";
    REFUSE(brightness, -0.1);
    culprit = "contrast";
    REFUSE(contrast, INFINITY);
    culprit = "saturation";
    REFUSE(saturation, NAN);
    culprit = "hue";
    REFUSE(hue, 0.51);
    culprit = "gray";
    REFUSE(gray, 2.0);
    culprit = "blur of global 2";
    REFUSE(blur[1], 2.0);
    culprit = "blur_radius";
    REFUSE(blur_radius[0], -1.0);
    REFUSE(blur_radius[1], 1e9);
    culprit = "solarize of local";
    REFUSE(solarize[2], -1.0);
    culprit = "solarize_threshold";
    REFUSE(solarize_threshold, 257);
    culprit = "blur_kind";
    REFUSE(blur_kind, 2);
    culprit = "mean of channel 15";
    REFUSE(mean[15], NAN);
    culprit = "std of channel 0";
    REFUSE(std[0], 0.0);
    culprit = "size";
    REFUSE(size, 0);

    sd_augment_config config = defaults();
    sd_crop_choice choice;
    assert_int_equal(sd_crop_choose(&config, 0, 20, 1, 1, 0, &choice), SD_ERR_ARGUMENT);
    assert_int_equal(sd_crop_choose(&config, 20, (size_t)INT32_MAX + 1, 1, 1, 0, &choice), SD_ERR_ARGUMENT);
    assert_int_equal(sd_crop_choose(&config, 20, 20, 1, 1, -1, &choice), SD_ERR_ARGUMENT);
    assert_int_equal(sd_crop_choose(&config, 20, 20, 1, 1, 12, &choice), SD_ERR_ARGUMENT);
    assert_int_equal(sd_crop_choose(&config, 20, 20, 1, 1, 0, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_augmenter_create(NULL, &config, NULL), SD_ERR_ARGUMENT);
    sd_augment_config_init(NULL);
    sd_augmenter_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(boxes_are_distributed_as_in_torchvision),
        cmocka_unit_test(boxes_lie_in_the_image),
        cmocka_unit_test(probabilities_are_those_of_the_recipes),
        cmocka_unit_test(presets),
        cmocka_unit_test(blur_radii_are_uniform),
        cmocka_unit_test(operations_without_a_range_are_left_out),
        cmocka_unit_test(choices_depend_on_seed_sample_and_view_only),
        cmocka_unit_test(impossible_settings_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
