/* Status names, the last error of a thread, configuration structs of other versions, memory. */
#include "base/base.h"
#include "failing_memory.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void status_names(void **state) {
    (void)state;
    for (int i = SD_OK; i <= SD_END; i++) {
        const char *name = sd_status_string((sd_status)i);
        assert_true(strlen(name) > 1);
        assert_string_not_equal(name, sd_status_string((sd_status)1000));
        for (int j = SD_OK; j < i; j++)
            assert_string_not_equal(name, sd_status_string((sd_status)j));
    }
    assert_non_null(sd_status_string((sd_status)-1));
    /* fixed for ever */
    assert_int_equal(SD_OK, 0);
    assert_int_equal(SD_ERR_ARGUMENT, 1);
    assert_int_equal(SD_ERR_MEMORY, 2);
    assert_int_equal(SD_ERR_NUMERIC, 3);
    assert_int_equal(SD_ERR_IO, 4);
    assert_int_equal(SD_ERR_FORMAT, 5);
    assert_int_equal(SD_ERR_CHECKSUM, 6);
    assert_int_equal(SD_ERR_VERSION, 7);
    assert_int_equal(SD_ERR_CANCELLED, 8);
    assert_int_equal(SD_ERR_STATE, 9);
    assert_int_equal(SD_ERR_UNSUPPORTED, 10);
    assert_int_equal(SD_ERR_MISMATCH, 11);
    assert_int_equal(SD_ERR_THREAD, 12);
    assert_int_equal(SD_END, 13);
}

static void version(void **state) {
    (void)state;
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", SD_VERSION_MAJOR, SD_VERSION_MINOR, SD_VERSION_PATCH);
    assert_string_equal(sd_version_string(), text);
    assert_int_equal(sd_version(), SD_VERSION_MAJOR * 10000 + SD_VERSION_MINOR * 100 + SD_VERSION_PATCH);
}

static void *fail_elsewhere(void *result) {
    bool *fresh = result;
    *fresh = sd_last_error()[0] == '\0';
    sd_fail(SD_ERR_IO, "another thread's %s", "error");
    *fresh = *fresh && strcmp(sd_last_error(), "another thread's error") == 0;
    return NULL;
}

static void last_error_is_of_the_thread(void **state) {
    (void)state;
    pthread_t thread;
    bool fresh = false;
    assert_int_equal(sd_fail(SD_ERR_FORMAT, "value %d of %s", 7, "mine"), SD_ERR_FORMAT);
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &fresh), 0);
    pthread_join(thread, NULL);
    assert_true(fresh);
    assert_string_equal(sd_last_error(), "value 7 of mine");

    char longest[5000];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    sd_fail(SD_ERR_IO, "%s", longest);
    assert_true(strlen(sd_last_error()) > 100 && strlen(sd_last_error()) < sizeof longest);
}

/* ---- configuration structs ----------------------------------------------------------------- */

typedef struct example_config {
    size_t size;
    int32_t first;
    int32_t second;
    double third;
} example_config;

typedef struct newer_config {
    example_config known;
    int32_t fourth;
    int32_t fifth;
} newer_config;

static const example_config defaults = {sizeof(example_config), 1, 2, 3.0};

static void config_of_this_version(void **state) {
    (void)state;
    example_config out = defaults;
    assert_int_equal(sd_config_read(&out, sizeof out, NULL, "example"), SD_OK);
    assert_memory_equal(&out, &defaults, sizeof out);
    const example_config source = {sizeof source, 10, 20, 30.0};
    assert_int_equal(sd_config_read(&out, sizeof out, &source, "example"), SD_OK);
    assert_memory_equal(&out, &source, sizeof out);
}

/* A program that knows fewer members: the others keep their defaults. */
static void config_of_an_older_version(void **state) {
    (void)state;
    example_config out = defaults;
    struct {
        size_t size;
        int32_t first;
        int32_t beyond; /* not a part of the older struct */
    } source = {offsetof(example_config, second), 10, 99};
    assert_int_equal(sd_config_read(&out, sizeof out, &source, "example"), SD_OK);
    assert_true(out.first == 10 && out.second == 2 && out.third == 3.0);
    assert_true(out.size == sizeof out);
    source.size = sizeof source.size;
    assert_int_equal(sd_config_read(&out, sizeof out, &source, "example"), SD_OK);
}

/* A program that knows more members: fine as long as it does not set them. */
static void config_of_a_newer_version(void **state) {
    (void)state;
    example_config out = defaults;
    newer_config source = {{sizeof source, 10, 20, 30.0}, 0, 0};
    assert_int_equal(sd_config_read(&out, sizeof out, &source, "example"), SD_OK);
    assert_true(out.first == 10 && out.third == 30.0 && out.size == sizeof out);
    source.fifth = 1;
    out = defaults;
    assert_int_equal(sd_config_read(&out, sizeof out, &source, "example"), SD_ERR_ARGUMENT);
    assert_memory_equal(&out, &defaults, sizeof out);
    assert_non_null(strstr(sd_last_error(), "example"));
}

static void config_without_size(void **state) {
    (void)state;
    example_config out = defaults, source = {0};
    assert_int_equal(sd_config_read(&out, sizeof out, &source, "example"), SD_ERR_ARGUMENT);
    source.size = sizeof source.size - 1;
    assert_int_equal(sd_config_read(&out, sizeof out, &source, "example"), SD_ERR_ARGUMENT);
    assert_memory_equal(&out, &defaults, sizeof out);
}

/* ---- memory -------------------------------------------------------------------------------- */

static void memory_is_aligned_and_zero(void **state) {
    (void)state;
    sd_context_config config;
    failing_memory memory;
    sd_context_config_init(&config);
    config.threads = 1;
    failing_memory_install(&memory, &config); /* gives memory that is not zero */
    sd_context *context;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    sd_context *const contexts[] = {NULL, context};
    for (int i = 0; i < 2; i++)
        for (size_t bytes = 0; bytes < 200; bytes += 7) {
            unsigned char *block = sd_allocate(contexts[i], bytes, 1);
            assert_non_null(block);
            assert_true((uintptr_t)block % SD_ALIGNMENT == 0);
            for (size_t j = 0; j < bytes; j++)
                assert_true(block[j] == 0);
            memset(block, 0xFF, bytes);
            sd_release(contexts[i], block);
        }
    sd_release(context, NULL);
    char *copy = sd_copy_text(context, "text");
    assert_string_equal(copy, "text");
    sd_release(context, copy);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
    assert_true(memory.allocations > 20);
}

static void sizes_that_overflow(void **state) {
    (void)state;
    assert_null(sd_allocate(NULL, SIZE_MAX / 2, 3));
    assert_true(strlen(sd_last_error()) > 0);
    assert_null(sd_allocate(NULL, SIZE_MAX, 1));
    assert_null(sd_allocate(NULL, SIZE_MAX - SD_ALIGNMENT, 1));
    size_t out = 5;
    assert_false(sd_size_mul(SIZE_MAX, 2, &out));
    assert_false(sd_size_add(SIZE_MAX, 1, &out));
    assert_true(sd_size_mul(6, 7, &out) && out == 42);
    assert_true(sd_size_add(6, 7, &out) && out == 13);
    assert_true(sd_size_ceil(9, 4) == 3 && sd_size_ceil(8, 4) == 2 && sd_size_ceil(0, 4) == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(status_names),
        cmocka_unit_test(version),
        cmocka_unit_test(last_error_is_of_the_thread),
        cmocka_unit_test(config_of_this_version),
        cmocka_unit_test(config_of_an_older_version),
        cmocka_unit_test(config_of_a_newer_version),
        cmocka_unit_test(config_without_size),
        cmocka_unit_test(memory_is_aligned_and_zero),
        cmocka_unit_test(sizes_that_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
