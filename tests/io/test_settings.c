/* The configuration as text in a checkpoint: complete, exact, strict, whatever the locale. */
#include "train/config_text.h"

#include <locale.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Whoever appends a member to a configuration must add it to the settings. */
static void every_member_is_a_setting(void **state) {
    (void)state;
    enum { COVERED = sizeof(sd_pretrainer_config) };
    unsigned char seen[COVERED] = {0};
    for (size_t i = 0; i < sd_setting_count(); i++) {
        size_t offset, bytes = sd_setting_bytes(i, &offset);
        for (size_t j = offset; j < offset + bytes; j++)
            assert_int_equal(seen[j]++, 0);
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(sd_setting_name(i), sd_setting_name(k));
    }
    size_t uncovered = 0;
    for (size_t j = 0; j < COVERED; j++)
        uncovered += seen[j] == 0;
    /* seven size members, the reserved room of six structs (model: 12 bytes, mask: 4 more; dino's precision is the
     * trainer's), and four bytes of padding in each of model, augment and optimizer */
    if (sizeof(size_t) == 8 && uncovered != 7 * 8 + 3 * 4 + 5 * 64 + 12 + 4)
        fail_msg("%zu bytes of sd_pretrainer_config belong to no setting", uncovered);
}

static void settings_round_trip(void **state) {
    (void)state;
    sd_random random;
    sd_random_init(&random, 1, 2, 3);
    for (int round = 0; round < 50; round++) {
        sd_pretrainer_config one, other;
        unsigned char *bytes = (unsigned char *)&one;
        for (size_t i = 0; i < sizeof one; i++)
            bytes[i] = (unsigned char)sd_random_u32(&random);
        if (round == 0)
            memset(bytes, 0, sizeof one);
        memset(&other, 0x3C, sizeof other);
        for (size_t i = 0; i < sd_setting_count(); i++) {
            char text[SD_SETTING_MAX];
            size_t offset, length = sd_setting_bytes(i, &offset);
            int32_t lowest = INT32_MIN;
            if (length == sizeof lowest && memcmp(bytes + offset, &lowest, length) == 0)
                continue;
            sd_setting_print(&one, i, text);
            assert_true(strlen(text) < SD_SETTING_MAX);
            assert_true(sd_setting_parse(&other, i, text));
            assert_memory_equal((char *)&other + offset, bytes + offset, length);
        }
    }
    sd_pretrainer_config config;
    sd_pretrainer_config_init(&config);
    for (size_t i = 0; i < sd_setting_count(); i++) {
        char text[SD_SETTING_MAX];
        sd_setting_print(&config, i, text);
        if (strcmp(sd_setting_name(i), "lr") == 0)
            assert_string_equal(text, "0.0005 (3f40624dd2f1a9fc)");
        if (strcmp(sd_setting_name(i), "augment.global_scale") == 0)
            assert_string_equal(text, "0.4 1 (3fd999999999999a 3ff0000000000000)");
        if (strcmp(sd_setting_name(i), "model.dim") == 0)
            assert_string_equal(text, "384");
    }
}

static void malformed_settings(void **state) {
    (void)state;
    static const struct {
        const char *key, *text;
    } cases[] = {
        {"model.dim", ""},           {"model.dim", " 8"},         {"model.dim", "8 "},
        {"model.dim", "08"},         {"model.dim", "8.0"},        {"model.dim", "+8"},
        {"model.dim", "-"},          {"model.dim", "2147483648"}, {"model.dim", "eight"},
        {"seed", "-1"},              {"seed", "18446744073709551616"}, {"seed", "0x10"},
        {"batch_size", "99999999999999999999"},
        {"lr", ""},                  {"lr", "0.5"},               {"lr", "(3f40624dd2f1a9f)"},
        {"lr", "(3f40624dd2f1a9fc"}, {"lr", "(3F40624DD2F1A9FC)"}, {"lr", "(3f40624dd2f1a9fc) "},
        {"lr", "(3f40624dd2f1a9fc 3f40624dd2f1a9fc)"},            {"lr", "(3f40624dd2f1a9fg)"},
        {"augment.global_scale", "(3f40624dd2f1a9fc)"},           {"lr", "("},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t index = 0;
        while (strcmp(sd_setting_name(index), cases[i].key) != 0)
            index++;
        sd_pretrainer_config config;
        sd_pretrainer_config_init(&config);
        if (sd_setting_parse(&config, index, cases[i].text))
            fail_msg("%s \"%s\" was accepted", cases[i].key, cases[i].text);
    }
}

/* A comma as decimal point changes nothing. */
static void locale_does_not_matter(void **state) {
    static const char *const names[] = {"de_DE.UTF-8", "de_DE", "fr_FR.UTF-8", "nl_NL.UTF-8", "ru_RU.UTF-8"};
    char *former = sd_copy_text(NULL, setlocale(LC_ALL, NULL));
    size_t found = 0;
    while (found < 5 && !setlocale(LC_ALL, names[found]))
        found++;
    if (found == 5) {
        sd_release(NULL, former);
        skip();
    }
    settings_round_trip(state);
    setlocale(LC_ALL, former);
    sd_release(NULL, former);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_member_is_a_setting),
        cmocka_unit_test(settings_round_trip),
        cmocka_unit_test(malformed_settings),
        cmocka_unit_test(locale_does_not_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
