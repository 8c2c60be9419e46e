/* The fuzzers' corpora through the same functions, and changed in many places: each file cut off everywhere and with
 * single bits flipped. A file named "hostile-..." must be refused, before memory is taken for what it claims. */
#define _XOPEN_SOURCE 700
#include "entries.h"

#include "scratch.h"

#include <simdino/train.h>

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define CORPUS         SD_TEST_DATA "/../fuzz/corpus"
#define FILES_MAX      128
#define HOSTILE_MEMORY ((size_t)3 << 20)
#define CHANGES        200 /* of each kind and file; where a file has fewer places all are taken */

typedef struct corpus {
    char names[FILES_MAX][128];
    size_t count;
} corpus;

static int by_name(const void *left, const void *right) {
    return strcmp(left, right);
}

static corpus list(const char *format) {
    corpus found = {.count = 0};
    char folder[512];
    snprintf(folder, sizeof folder, CORPUS "/%s", format);
    DIR *directory = opendir(folder);
    if (!directory)
        fail_msg("cannot open %s", folder);
    for (const struct dirent *entry; directory && (entry = readdir(directory));)
        if (entry->d_name[0] != '.' && found.count < FILES_MAX)
            snprintf(found.names[found.count++], sizeof found.names[0], "%.120s", entry->d_name);
    if (directory)
        closedir(directory);
    qsort(found.names, found.count, sizeof found.names[0], by_name);
    return found;
}

/* Cut off everywhere, and with bits flipped. */
static void change(const fuzz_entry *entry, uint8_t *data, size_t size, size_t first) {
    size_t step = size / CHANGES + 1, bits = 8 * size;
    for (size_t length = 0; length < size; length += step)
        entry->run(data, length);
    step = bits / CHANGES + 1;
    for (size_t bit = first % step; bit < bits; bit += step) {
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        entry->run(data, size);
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static void replay(const fuzz_entry *entry) {
    corpus files = list(entry->format);
    for (size_t i = 0; i < files.count; i++) {
        char name[700];
        snprintf(name, sizeof name, CORPUS "/%s/%s", entry->format, files.names[i]);
        size_t size;
        uint8_t *data = (uint8_t *)scratch_read(name, &size);
        fuzz_result result = entry->run(data, size);
        bool hostile = strncmp(files.names[i], "hostile-", 8) == 0, fine = strncmp(files.names[i], "good-", 5) == 0;
        if (hostile && (result.status == SD_OK || result.peak_bytes > HOSTILE_MEMORY))
            fail_msg("%s: status %d, %zu bytes of memory", name, (int)result.status, result.peak_bytes);
        if (fine && result.status != SD_OK)
            fail_msg("%s: %s", name, entry->of_program ? "cannot be read" : sd_last_error());
        if (hostile && !entry->of_program && !strstr(sd_last_error(), fuzz_path()))
            fail_msg("%s: the message does not name the file: %s", name, sd_last_error());
        change(entry, data, size, i);
        free(data);
    }
    assert_true(files.count > 0);
}

#define FORMAT(name)                                                                                                   \
    static void name(void **state) {                                                                                   \
        (void)state;                                                                                                   \
        const fuzz_entry *entry = fuzz_find(#name);                                                                    \
        assert_non_null(entry);                                                                                        \
        if (entry)                                                                                                     \
            replay(entry);                                                                                             \
    }
FORMAT(safetensors)
FORMAT(pth)
FORMAT(pth_legacy)
FORMAT(npz)
FORMAT(npy)
FORMAT(idx)
FORMAT(cifar)

/* Readers that the build may lack. */
static void images(const char *format) {
    const fuzz_entry *entry = fuzz_find(format);
    if (!entry)
        skip();
    else
        replay(entry);
}

static void jpeg(void **state) {
    (void)state;
    images("jpeg");
}

static void png(void **state) {
    (void)state;
    images("png");
}

/* Beside the corpus one of today's form, as new settings join those that a checkpoint tells. */
static void checkpoint(void **state) {
    const fuzz_entry *entry = fuzz_find("checkpoint");
    const char *path = scratch_path(*state, "run.safetensors");
    sd_pretrainer_config config;
    sd_pretrainer_config_init(&config);
    config.model.image_size = config.augment.global_size = 4;
    config.model.patch_size = config.augment.local_size = 2;
    config.model.channels = 1;
    config.model.dim = config.model.head_hidden = config.model.head_dim = 4;
    config.model.depth = config.model.heads = 1;
    config.model.mlp_ratio = 1;
    config.batch_size = 2;
    config.total_steps = 3;
    config.warmup_steps = 1;
    sd_pretrainer *trainer = NULL;
    assert_int_equal(sd_pretrainer_create(NULL, &config, &trainer), SD_OK);
    assert_int_equal(sd_pretrainer_save(trainer, path), SD_OK);
    sd_pretrainer_destroy(trainer);
    size_t size;
    uint8_t *data = (uint8_t *)scratch_read(path, &size);
    fuzz_result result = entry->run(data, size);
    if (result.status != SD_OK)
        fail_msg("%s", sd_last_error());
    change(entry, data, size, 0);
    free(data);
    replay(entry);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(safetensors), cmocka_unit_test(pth),
        cmocka_unit_test(pth_legacy),  cmocka_unit_test(npz),
        cmocka_unit_test(npy),         cmocka_unit_test(idx),
        cmocka_unit_test(cifar),       cmocka_unit_test_setup_teardown(checkpoint, scratch_begin, scratch_end),
        cmocka_unit_test(jpeg),        cmocka_unit_test(png),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
