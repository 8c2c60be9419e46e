/* Files of tensors: every golden checkpoint bit by bit, and what the writers write. */
#define _XOPEN_SOURCE 700
#include <simdino/io.h>

#include "failing_memory.h"
#include "golden.h"
#include "scratch.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define CHECKPOINTS SD_TEST_DATA "/checkpoint/"

static sd_tensor_file *open_file(const char *path) {
    sd_tensor_file *file = NULL;
    if (sd_tensor_file_open(NULL, path, &file) != SD_OK)
        fail_msg("%s", sd_last_error());
    return file;
}

static float *read_index(const sd_tensor_file *file, size_t index, sd_stored_tensor *info) {
    info->size = sizeof *info;
    assert_int_equal(sd_tensor_file_info(file, index, info), SD_OK);
    float *values = malloc((size_t)info->count * sizeof *values + 1);
    if (sd_tensor_file_read(file, index, values) != SD_OK)
        fail_msg("%s: %s", info->name, sd_last_error());
    return values;
}

/* ---- the golden checkpoints ------------------------------------------------------------------- */

/* Every array of the archive is a tensor or number of the file, with the same shape and bits, and the other way round.
 * */
static void compare_checkpoint(const char *name, const char *ending, int32_t form) {
    char path[512], archive_name[128];
    snprintf(path, sizeof path, CHECKPOINTS "%s%s", name, ending);
    snprintf(archive_name, sizeof archive_name, "checkpoint/%s.npz", name);
    golden *archive = golden_open(archive_name);
    sd_tensor_file *file = open_file(path);
    assert_int_equal(sd_tensor_file_format(file), form);
    size_t compared = 0;
    for (size_t i = 0; i < golden_array_count(archive); i++) {
        const golden_array *expected = golden_at(archive, i);
        if (strncmp(expected->name, "test/", 5) == 0 || expected->kind == 'S')
            continue;
        size_t index = sd_tensor_file_find(file, expected->name);
        if (index == sd_tensor_file_count(file))
            fail_msg("%s lacks %s", path, expected->name);
        sd_stored_tensor info;
        float *values = read_index(file, index, &info);
        assert_true(info.count == expected->count && (size_t)info.dimensions == expected->dimensions);
        for (size_t j = 0; j < expected->dimensions; j++)
            assert_true((size_t)info.shape[j] == expected->shape[j]);
        assert_true((info.dtype == SD_DTYPE_NUMBER) == (expected->item_size == 8));
        if (info.dtype == SD_DTYPE_NUMBER)
            assert_true(info.number == golden_number(expected, 0) && values[0] == (float)info.number);
        else if (memcmp(values, expected->data, expected->count * sizeof *values) != 0)
            fail_msg("%s: %s differs", path, expected->name);
        free(values);
        compared++;
    }
    if (compared != sd_tensor_file_count(file))
        fail_msg("%s has %zu tensors, compared %zu", path, sd_tensor_file_count(file), compared);
    assert_true(compared > 10);
    sd_tensor_file_close(file);
    golden_close(archive);
}

static void golden_checkpoints(void **state) {
    (void)state;
    static const char *const pth[] = {
        "tiny_simdino_v1_full", "tiny_simdino_v1_compiled", "tiny_dino_v1_full", "tiny_simdinov2_teacher",
        "tiny_dinov2_backbone", "tiny_dinov2_reg_backbone", "tiny_fp16"};
    static const char *const safetensors[] = {"tiny_dinov2_hf", "tiny_dinov2_timm", "tiny_dinov2_reg_hf",
                                              "tiny_dinov2_reg_timm"};
    for (size_t i = 0; i < sizeof pth / sizeof pth[0]; i++)
        compare_checkpoint(pth[i], ".pth", SD_FORM_PTH);
    for (size_t i = 0; i < sizeof safetensors / sizeof safetensors[0]; i++)
        compare_checkpoint(safetensors[i], ".safetensors", SD_FORM_SAFETENSORS);
    compare_checkpoint("tiny_legacy", ".pth", SD_FORM_PTH_LEGACY);
}

/* The archives themselves, which NumPy deflated, through the reader of the library and through that of the tests. */
static void golden_archives(void **state) {
    (void)state;
    static const char *const names[] = {"tiny_simdino_v1_full", "tiny_fp16", "tiny_legacy", "tiny_dinov2_hf"};
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        char path[512], archive_name[128];
        snprintf(path, sizeof path, CHECKPOINTS "%s.npz", names[n]);
        snprintf(archive_name, sizeof archive_name, "checkpoint/%s.npz", names[n]);
        golden *archive = golden_open(archive_name);
        sd_tensor_file *file = open_file(path);
        assert_int_equal(sd_tensor_file_format(file), SD_FORM_NPZ);
        assert_true(sd_tensor_file_count(file) == golden_array_count(archive));
        for (size_t i = 0; i < golden_array_count(archive); i++) {
            const golden_array *expected = golden_at(archive, i);
            size_t index = sd_tensor_file_find(file, expected->name);
            assert_true(index < sd_tensor_file_count(file));
            sd_stored_tensor info = {.size = sizeof info};
            assert_int_equal(sd_tensor_file_info(file, index, &info), SD_OK);
            assert_true(info.count == expected->count && info.bytes == expected->count * expected->item_size);
            if (expected->kind == 'S') {
                float none;
                assert_int_equal(info.dtype, SD_DTYPE_OTHER);
                assert_int_equal(sd_tensor_file_read(file, index, &none), SD_ERR_UNSUPPORTED);
                continue;
            }
            float *values = read_index(file, index, &info);
            for (size_t j = 0; j < expected->count; j++)
                assert_true(values[j] == (float)golden_number(expected, j));
            free(values);
        }
        sd_tensor_file_close(file);
        golden_close(archive);
    }
}

static void metadata(void **state) {
    (void)state;
    sd_tensor_file *file = open_file(CHECKPOINTS "tiny_dinov2_hf.safetensors");
    assert_string_equal(sd_tensor_file_metadata(file, "format"), "pt");
    assert_null(sd_tensor_file_metadata(file, "formats"));
    sd_tensor_file_close(file);
    file = open_file(CHECKPOINTS "tiny_fp16.pth");
    assert_null(sd_tensor_file_metadata(file, "format"));
    sd_tensor_file_close(file);
}

/* ---- writing ---------------------------------------------------------------------------------- */

static const float floats[6] = {1.5f, -2.25f, 0.0f, 1e-38f, 3e38f, 7.0f};
static const double doubles[3] = {0.1, -1e300, 1e-320};
static const int8_t bytes8[4] = {-128, -1, 0, 127};
static const int16_t shorts[3] = {-32768, 5, 32767};
static const int32_t ints[2] = {-2147483647, 1 << 24};
static const int64_t longs[3] = {INT64_MIN, (1LL << 40) + 1, -3};
static const uint16_t halves[8] = {0x3C00, 0xC000, 0x0001, 0x7BFF, 0x7C00, 0x8000, 0x03FF, 0x0400};
static const uint16_t unsigned16[2] = {65535, 1};
static const uint32_t unsigned32[2] = {4294967295u, 16777217u};
static const uint64_t unsigned64[2] = {UINT64_MAX, 3};
static const uint8_t flags[3] = {1, 0, 1};

static const sd_tensor_data arrays[] = {
    {.name = "floats", .dtype = SD_DTYPE_F32, .dimensions = 2, .shape = {2, 3}, .data = floats},
    {.name = "deep/doubles", .dtype = SD_DTYPE_F64, .dimensions = 1, .shape = {3}, .data = doubles},
    {.name = "int8", .dtype = SD_DTYPE_I8, .dimensions = 1, .shape = {4}, .data = bytes8},
    {.name = "int16", .dtype = SD_DTYPE_I16, .dimensions = 1, .shape = {3}, .data = shorts},
    {.name = "int32", .dtype = SD_DTYPE_I32, .dimensions = 1, .shape = {2}, .data = ints},
    {.name = "int64", .dtype = SD_DTYPE_I64, .dimensions = 1, .shape = {3}, .data = longs},
    {.name = "half", .dtype = SD_DTYPE_F16, .dimensions = 3, .shape = {2, 2, 2}, .data = halves},
    {.name = "uint16", .dtype = SD_DTYPE_U16, .dimensions = 1, .shape = {2}, .data = unsigned16},
    {.name = "uint32", .dtype = SD_DTYPE_U32, .dimensions = 1, .shape = {2}, .data = unsigned32},
    {.name = "uint64", .dtype = SD_DTYPE_U64, .dimensions = 1, .shape = {2}, .data = unsigned64},
    {.name = "flags", .dtype = SD_DTYPE_BOOL, .dimensions = 1, .shape = {3}, .data = flags},
    {.name = "\xC3\xA4 scalar", .dtype = SD_DTYPE_F32, .dimensions = 0, .data = floats},
    {.name = "empty", .dtype = SD_DTYPE_F32, .dimensions = 2, .shape = {0, 4}, .data = NULL},
};
enum { ARRAYS = sizeof arrays / sizeof arrays[0] };

/* The value of element i, by C's own conversions. */
static float value_of(const sd_tensor_data *array, size_t i) {
    static const float half_values[8] = {1.0f, -2.0f, 0x1p-24f, 65504.0f, INFINITY, -0.0f, 0x1.ff8p-15f, 0x1p-14f};
    switch (array->dtype) {
    case SD_DTYPE_F32: return floats[i];
    case SD_DTYPE_F64: return i == 1 ? -INFINITY : (float)doubles[i];
    case SD_DTYPE_I8: return (float)bytes8[i];
    case SD_DTYPE_I16: return (float)shorts[i];
    case SD_DTYPE_I32: return (float)ints[i];
    case SD_DTYPE_I64: return (float)longs[i];
    case SD_DTYPE_F16: return half_values[i];
    case SD_DTYPE_U16: return (float)unsigned16[i];
    case SD_DTYPE_U32: return (float)unsigned32[i];
    case SD_DTYPE_U64: return (float)unsigned64[i];
    default: return (float)flags[i];
    }
}

static void check_arrays(const char *path, size_t count) {
    sd_tensor_file *file = open_file(path);
    assert_true(sd_tensor_file_count(file) == count);
    for (size_t i = 0; i < count; i++) {
        size_t index = count == 1 ? 0 : sd_tensor_file_find(file, arrays[i].name);
        assert_true(index < count);
        sd_stored_tensor info;
        float *values = read_index(file, index, &info);
        assert_int_equal(info.dtype, arrays[i].dtype);
        assert_int_equal(info.dimensions, arrays[i].dimensions);
        for (int32_t j = 0; j < info.dimensions; j++)
            assert_true(info.shape[j] == arrays[i].shape[j]);
        for (size_t j = 0; j < info.count; j++)
            if (values[j] != value_of(&arrays[i], j))
                fail_msg("%s: %s[%zu] is %g, not %g", path, arrays[i].name, j, (double)values[j],
                         (double)value_of(&arrays[i], j));
        free(values);
    }
    sd_tensor_file_close(file);
}

static void written_files(void **state) {
    static const char *const names[] = {"a.npz", "a.safetensors", "a.npy"};
    for (int i = 0; i < 3; i++) {
        const char *path = scratch_path(*state, names[i]);
        size_t count = i == 2 ? 1 : ARRAYS;
        for (int32_t compress = 0; compress < 2; compress++) {
            assert_int_equal(sd_tensor_file_write(NULL, path, arrays, count, compress), SD_OK);
            check_arrays(path, count);
        }
    }
    assert_int_equal(sd_tensor_file_write(NULL, scratch_path(*state, "none.npz"), NULL, 0, 0), SD_OK);
    sd_tensor_file *file = open_file(scratch_path(*state, "none.npz"));
    assert_true(sd_tensor_file_count(file) == 0 && sd_tensor_file_find(file, "x") == 0);
    sd_tensor_file_close(file);
}

/* Larger than the pieces in which things are read and written, so that they must fit together. */
static void large_arrays(void **state) {
    const char *path = scratch_path(*state, "large.npz");
    enum { COUNT = 300000 };
    uint16_t *values = malloc(COUNT * sizeof *values);
    for (size_t i = 0; i < COUNT; i++)
        values[i] = (uint16_t)(i * i >> 3);
    const sd_tensor_data one = {.name = "x", .dtype = SD_DTYPE_U16, .dimensions = 1, .shape = {COUNT}, .data = values};
    for (int32_t compress = 0; compress < 2; compress++) {
        assert_int_equal(sd_tensor_file_write(NULL, path, &one, 1, compress), SD_OK);
        sd_tensor_file *file = open_file(path);
        sd_stored_tensor info;
        float *read = read_index(file, 0, &info);
        for (size_t i = 0; i < COUNT; i++)
            assert_true(read[i] == (float)values[i]);
        free(read);
        sd_tensor_file_close(file);
        size_t size;
        char *bytes = scratch_read(path, &size);
        assert_true(compress ? size < sizeof *values * COUNT : size > sizeof *values * COUNT);
        bytes[size / 2] ^= 4; /* a damaged byte is found by the checksum */
        scratch_write(path, bytes, size);
        free(bytes);
        file = open_file(path);
        read = malloc(COUNT * sizeof *read);
        sd_status status = sd_tensor_file_read(file, 0, read);
        assert_true(status == SD_ERR_CHECKSUM || (compress && status == SD_ERR_FORMAT));
        assert_non_null(strstr(sd_last_error(), "large.npz"));
        free(read);
        sd_tensor_file_close(file);
    }
    free(values);
}

static void wrong_arguments(void **state) {
    const char *npz = scratch_path(*state, "w.npz");
    sd_tensor_data pair[2] = {arrays[0], arrays[0]};
    assert_int_equal(sd_tensor_file_write(NULL, npz, pair, 2, 0), SD_ERR_ARGUMENT); /* one name twice */
    pair[1].name = NULL;
    assert_int_equal(sd_tensor_file_write(NULL, npz, pair, 2, 0), SD_ERR_ARGUMENT);
    pair[1].name = "b";
    pair[1].dtype = SD_DTYPE_BF16;
    assert_int_equal(sd_tensor_file_write(NULL, npz, pair, 2, 0), SD_ERR_ARGUMENT);
    pair[1].dtype = SD_DTYPE_NUMBER;
    assert_int_equal(sd_tensor_file_write(NULL, npz, pair, 2, 0), SD_ERR_ARGUMENT);
    pair[1] = (sd_tensor_data){.name = "b", .dimensions = 1, .shape = {-1}, .data = floats};
    assert_int_equal(sd_tensor_file_write(NULL, npz, pair, 2, 0), SD_ERR_ARGUMENT);
    pair[1] = (sd_tensor_data){.name = "b", .dimensions = 1, .shape = {1}, .data = NULL};
    assert_int_equal(sd_tensor_file_write(NULL, npz, pair, 2, 0), SD_ERR_ARGUMENT);
    pair[1] = (sd_tensor_data){.name = "b", .dimensions = 2, .shape = {INT64_MAX, 2}, .data = floats};
    assert_int_equal(sd_tensor_file_write(NULL, npz, pair, 2, 0), SD_ERR_ARGUMENT);
    assert_int_equal(sd_tensor_file_write(NULL, scratch_path(*state, "w.txt"), arrays, 1, 0), SD_ERR_ARGUMENT);
    assert_int_equal(sd_tensor_file_write(NULL, scratch_path(*state, "w.npy"), arrays, 2, 0), SD_ERR_ARGUMENT);
    assert_int_equal(sd_tensor_file_write(NULL, npz, arrays, 1, 2), SD_ERR_ARGUMENT);
    assert_int_equal(scratch_count(*state), 0);
    sd_tensor_file *file = NULL;
    assert_int_equal(sd_tensor_file_open(NULL, NULL, &file), SD_ERR_ARGUMENT);
    assert_int_equal(sd_tensor_file_open(NULL, npz, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_tensor_file_open(NULL, npz, &file), SD_ERR_IO);
    static const char text[] = "just text, and long enough";
    scratch_write(npz, text, sizeof text);
    assert_int_equal(sd_tensor_file_open(NULL, npz, &file), SD_ERR_FORMAT);
    scratch_write(npz, text, 0);
    assert_int_equal(sd_tensor_file_open(NULL, npz, &file), SD_ERR_FORMAT);
    assert_null(file);
    sd_tensor_file_close(NULL);
    file = open_file(CHECKPOINTS "tiny_fp16.pth");
    sd_stored_tensor info = {.size = sizeof info};
    float value;
    assert_int_equal(sd_tensor_file_info(file, sd_tensor_file_count(file), &info), SD_ERR_ARGUMENT);
    assert_int_equal(sd_tensor_file_read(file, sd_tensor_file_count(file), &value), SD_ERR_ARGUMENT);
    info.size = 0;
    assert_int_equal(sd_tensor_file_info(file, 0, &info), SD_ERR_ARGUMENT);
    sd_tensor_file_close(file);
}

/* ---- failing allocations ----------------------------------------------------------------------- */

static sd_status read_everything(sd_context *context, const char *path) {
    sd_tensor_file *file = NULL;
    sd_status status = sd_tensor_file_open(context, path, &file);
    assert_true((status == SD_OK) == (file != NULL));
    for (size_t i = 0; status == SD_OK && i < sd_tensor_file_count(file); i++) {
        sd_stored_tensor info = {.size = sizeof info};
        assert_int_equal(sd_tensor_file_info(file, i, &info), SD_OK);
        float *values = malloc((size_t)info.count * sizeof *values + 1);
        status = info.dtype == SD_DTYPE_OTHER ? SD_OK : sd_tensor_file_read(file, i, values);
        free(values);
    }
    sd_tensor_file_close(file);
    return status;
}

static void failed_allocations(void **state) {
    static const char *const names[] = {"tiny_fp16.pth", "tiny_legacy.pth", "tiny_fp16.npz",
                                        "tiny_dinov2_hf.safetensors"};
    sd_context_config config;
    failing_memory memory;
    sd_context_config_init(&config);
    config.threads = 1;
    failing_memory_install(&memory, &config);
    sd_context *context;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    long base = memory.allocations, live = memory.live;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[512];
        snprintf(path, sizeof path, CHECKPOINTS "%s", names[i]);
        sd_status status = SD_ERR_MEMORY;
        for (long n = 0; status != SD_OK; n++) {
            memory.allocations = base;
            memory.fail_at = base + n;
            status = read_everything(context, path);
            assert_true(status == SD_OK ? n > 5 : status == SD_ERR_MEMORY);
            assert_int_equal(memory.live, live);
        }
    }
    const char *npz = scratch_path(*state, "m.npz");
    for (int32_t compress = 0; compress < 2; compress++) {
        sd_status status = SD_ERR_MEMORY;
        for (long n = 0; status != SD_OK; n++) {
            memory.allocations = base;
            memory.fail_at = base + n;
            status = sd_tensor_file_write(context, npz, arrays, ARRAYS, compress);
            assert_true(status == SD_OK ? n > 5 : status == SD_ERR_MEMORY);
            assert_int_equal(memory.live, live);
            assert_int_equal(scratch_count(*state), status == SD_OK || compress ? 1 : 0);
        }
    }
    memory.fail_at = -1;
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, scratch_begin, scratch_end)
    const struct CMUnitTest tests[] = {
        TEST(golden_checkpoints), TEST(golden_archives), TEST(metadata),           TEST(written_files),
        TEST(large_arrays),       TEST(wrong_arguments), TEST(failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
