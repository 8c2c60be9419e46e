/* Recipes and settings by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <simdino/simdino.h>

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void assert_near(double actual, double expected) { assert_true(fabs(actual - expected) <= 1e-15); }

/* Every recipe makes a pretrainer whose memory can be told, at its own size and for a small data set. */
static void test_every_recipe(void **state) {
    (void)state;
    assert_int_equal(sd_recipe_count(), 18);
    for (size_t i = 0; i < sd_recipe_count(); i++) {
        const char *name = sd_recipe_name(i);
        assert_non_null(sd_recipe_text(name));
        sd_pretrainer_config c;
        if (sd_recipe_apply(name, 50000, 16, 0, &c) != SD_OK)
            fail_msg("%s: %s", name, sd_last_error());
        assert_int_equal(c.batch_size, 16);
        assert_memory_equal(name, sd_method_name(c.method), strlen(sd_method_name(c.method)));
        assert_true(name[strlen(sd_method_name(c.method))] == '-');
        size_t bytes = 0;
        if (sd_pretrainer_memory(NULL, &c, &bytes) != SD_OK)
            fail_msg("%s: %s", name, sd_last_error());
        assert_true(bytes > 1000000);
    }
    assert_null(sd_recipe_name(sd_recipe_count()));
    assert_null(sd_recipe_text("dino-vits17"));
}

/* The official numbers, for ImageNet's 1,281,167 images. */
static void test_official_numbers(void **state) {
    (void)state;
    sd_pretrainer_config c;
    assert_int_equal(sd_recipe_apply("simdino-vits16", 1281167, 0, 0, &c), SD_OK);
    assert_int_equal(c.batch_size, 512);
    assert_int_equal(c.total_steps, 100 * 2502);
    assert_int_equal(c.warmup_steps, 10 * 2502);
    assert_near(c.lr, 0.001);
    assert_int_equal(c.loss.groups, 8);
    assert_int_equal(c.augment.local_crops, 10);
    assert_int_equal(c.model.dim, 384);

    assert_int_equal(sd_recipe_apply("simdinov2-vitb16", 1281167, 0, 0, &c), SD_OK);
    assert_int_equal(c.model.dim, 768); /* what follows an include goes before it */
    assert_int_equal(c.model.registers, 4);
    assert_near(c.lr, 0.004);
    assert_near(c.momentum, 0.9);
    assert_int_equal(c.clip, SD_CLIP_MODULE);
    assert_int_equal(c.warmup_kind, SD_WARMUP_EXCLUSIVE);

    assert_int_equal(sd_recipe_apply("dino-vitb16", 1281167, 0, 0, &c), SD_OK);
    assert_near(c.lr, 0.002);
    assert_int_equal(c.total_steps, 100 * 1251);
    assert_int_equal(c.freeze_steps, 1251);
    assert_int_equal(c.epoch_steps, 0); /* one temperature throughout */
    assert_int_equal(c.teacher_temp_steps, 0);
    assert_near(c.teacher_temp, 0.04);
    assert_int_equal(c.augment.local_crops, 8);
    assert_int_equal(c.model.prototypes, 65536);
    assert_int_equal(c.model.prototype_scale, 0);

    assert_int_equal(sd_recipe_apply("dino-vits16", 1281167, 0, 0, &c), SD_OK);
    assert_int_equal(c.total_steps, 300 * 1251);
    assert_int_equal(c.teacher_temp_steps, 30 * 1251);
    assert_int_equal(c.epoch_steps, 1251);
    assert_near(c.teacher_temp, 0.07);
    assert_int_equal(c.model.prototype_scale, 1);
    assert_near(c.clip_limit, 3.0);

    assert_int_equal(sd_recipe_apply("dinov2-vitl16", 1281167, 0, 0, &c), SD_OK);
    assert_int_equal(c.total_steps, 125000); /* its epochs have 1250 steps */
    assert_int_equal(c.teacher_temp_steps, 37500);
    assert_near(c.lr, 0.004 * sqrt(2.0));
    assert_near(c.model.layer_scale, 1e-5);

    /* half the epochs: the phases keep their share */
    assert_int_equal(sd_recipe_apply("simdino-vits16", 1281167, 0, 50, &c), SD_OK);
    assert_int_equal(c.total_steps, 50 * 2502);
    assert_int_equal(c.warmup_steps, 5 * 2502);
}

static void test_own_text(void **state) {
    (void)state;
    sd_pretrainer_config c;
    const char *text = "# mine\r\n  method = simdinov2 \n\ninclude=simdinov2-small-grey\nmodel.dim=48\n model.heads = 2\n"
                       "augment.global_scale = 0.3,0.9\nbase_lr = 0.002";
    assert_int_equal(sd_recipe_apply_text(text, 640, 32, 2, &c), SD_OK);
    assert_int_equal(c.method, SD_METHOD_SIMDINOV2);
    assert_int_equal(c.model.dim, 48);
    assert_int_equal(c.total_steps, 40);
    assert_near(c.augment.global_scale[0], 0.3);
    assert_near(c.lr, 0.002 * 32 / 256);
    sd_pretrainer_config before = c;
    const char *wrong[] = {"model.wings = 2", "lr", "lr =", "= 3", "include = nothing", "lr_rule = cubic",
                           "method = moco", "epochs = -1", "batch_size = 1.5", "clip = sometimes", "epochs = 0"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(sd_recipe_apply_text(wrong[i], 640, 0, 0, &c), SD_ERR_ARGUMENT);
        assert_memory_equal(&c, &before, sizeof c);
    }
    assert_int_equal(sd_recipe_apply("simdino-vits17", 640, 0, 0, &c), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "vits17"));
    assert_int_equal(sd_recipe_apply("simdino-vits16", 0, 0, 0, &c), SD_ERR_ARGUMENT);
    assert_int_equal(sd_recipe_apply(NULL, 1, 0, 0, &c), SD_ERR_ARGUMENT);
}

/* Every setting's text, set again, gives the same setting; in another locale too. */
static void round_trip(void) {
    for (size_t recipe = 0; recipe < sd_recipe_count(); recipe++) {
        sd_pretrainer_config from, to;
        assert_int_equal(sd_recipe_apply(sd_recipe_name(recipe), 1281167, 0, 0, &from), SD_OK);
        sd_pretrainer_config_init(&to);
        for (size_t i = 0; i < sd_setting_count(); i++) {
            char text[1024], again[1024];
            assert_int_equal(sd_setting_get(&from, sd_setting_name(i), text, sizeof text), SD_OK);
            if (sd_setting_set(&to, sd_setting_name(i), text) != SD_OK)
                fail_msg("%s = %s: %s", sd_setting_name(i), text, sd_last_error());
            assert_int_equal(sd_setting_get(&to, sd_setting_name(i), again, sizeof again), SD_OK);
            assert_string_equal(text, again);
        }
        assert_memory_equal(&from, &to, sizeof from);
    }
}

static void test_settings_round_trip(void **state) {
    (void)state;
    round_trip();
    if (setlocale(LC_NUMERIC, "de_DE.UTF-8") != NULL || setlocale(LC_NUMERIC, "de_DE.utf8") != NULL)
        round_trip();
    setlocale(LC_NUMERIC, "C");
}

static void test_setting_texts(void **state) {
    (void)state;
    sd_pretrainer_config c;
    sd_pretrainer_config_init(&c);
    char text[64];
    assert_int_equal(sd_setting_get(&c, "method", text, sizeof text), SD_OK);
    assert_string_equal(text, "simdino");
    assert_int_equal(sd_setting_get(&c, "lr", text, sizeof text), SD_OK);
    assert_string_equal(text, "0.0005");
    assert_int_equal(sd_setting_get(&c, "augment.global_scale", text, sizeof text), SD_OK);
    assert_string_equal(text, "0.4,1");
    assert_int_equal(sd_setting_get(&c, "augment.global_scale", text, 5), SD_ERR_ARGUMENT);
    assert_int_equal(sd_setting_get(&c, "no.such", text, sizeof text), SD_ERR_ARGUMENT);
    assert_int_equal(sd_setting_set(&c, "clip", "module"), SD_OK);
    assert_int_equal(c.clip, SD_CLIP_MODULE);
    assert_int_equal(sd_setting_set(&c, "clip", "0"), SD_OK);
    assert_int_equal(c.clip, SD_CLIP_NONE);
    assert_int_equal(sd_setting_set(&c, "augment.mean", "0.25"), SD_OK);
    assert_true(c.augment.mean[0] == 0.25 && c.augment.mean[1] != 0.25);
    const char *wrong[][2] = {{"lr", "fast"}, {"lr", "1,5"}, {"lr", "nan"}, {"lr", ""}, {"lr", "0.1.2"}, {"seed", "-1"},
                              {"model.dim", "3e10"}, {"model.dim", "2.5"}, {"augment.blur", "1,2"},
                              {"augment.blur", "1,2,3,4"}, {"augment.blur", "1,2,"}, {"method", "moco"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        sd_pretrainer_config before = c;
        assert_int_equal(sd_setting_set(&c, wrong[i][0], wrong[i][1]), SD_ERR_ARGUMENT);
        assert_non_null(strstr(sd_last_error(), wrong[i][0]));
        assert_memory_equal(&before, &c, sizeof c);
    }
    assert_null(sd_setting_name(sd_setting_count()));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_recipe),        cmocka_unit_test(test_official_numbers),
        cmocka_unit_test(test_own_text),            cmocka_unit_test(test_settings_round_trip),
        cmocka_unit_test(test_setting_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
