/* The safetensors writer and reader: round trip, hostile and damaged files, a full disk, failing allocations. */
#define _XOPEN_SOURCE 700
#include "io/checksum.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "failing_memory.h"
#include "scratch.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include <signal.h>

static const float weights[6] = {1.5f, -2.25f, 0.0f, 1e-38f, 3e38f, 7.0f};
static const float bias[3] = {-1.0f, 2.0f, 0.5f};

static const sd_tensor_source tensors[] = {
    {.name = "layer.weight", .dimensions = 2, .shape = {2, 3}, .data = weights},
    {.name = "empty", .dimensions = 1, .shape = {0}},
    {.name = "layer.\"bias\" \\ \xC3\xA4\x01", .dimensions = 1, .shape = {3}, .data = bias},
    {.name = "number", .dimensions = 0, .data = bias + 1},
};
enum { TENSORS = sizeof tensors / sizeof tensors[0] };

static const sd_metadata metadata[] = {{"format", "test"}, {"a key\n", "a \"value\" \xE2\x82\xAC"}};

static void write_example(const char *path) {
    assert_int_equal(sd_safetensors_write(NULL, path, tensors, TENSORS, metadata, 2), SD_OK);
}

/* ---- round trip ---------------------------------------------------------------------------- */

static void round_trip(void **state) {
    const char *path = scratch_path(*state, "round.safetensors");
    write_example(path);
    sd_safetensors *file = NULL;
    assert_int_equal(sd_safetensors_open(NULL, path, &file), SD_OK);
    assert_true(sd_safetensors_count(file) == TENSORS);
    for (size_t i = 0; i < TENSORS; i++) {
        const sd_tensor_entry *entry = sd_safetensors_find(file, tensors[i].name);
        assert_non_null(entry);
        assert_ptr_equal(entry, sd_safetensors_at(file, i));
        assert_string_equal(entry->dtype, "F32");
        assert_true(entry->dimensions == tensors[i].dimensions);
        uint64_t count = 1;
        for (size_t j = 0; j < entry->dimensions; j++) {
            assert_true(entry->shape[j] == tensors[i].shape[j]);
            count *= entry->shape[j];
        }
        float values[6];
        assert_true(entry->count == count);
        assert_int_equal(sd_safetensors_read_f32(file, entry, values, (size_t)count), SD_OK);
        if (count > 0)
            assert_memory_equal(values, tensors[i].data, (size_t)count * sizeof(float));
        assert_int_equal(sd_safetensors_read_f32(file, entry, values, (size_t)count + 1), SD_ERR_MISMATCH);
    }
    assert_null(sd_safetensors_at(file, TENSORS));
    assert_null(sd_safetensors_find(file, "layer"));
    assert_true(sd_safetensors_metadata_count(file) == 4);
    assert_string_equal(sd_safetensors_metadata(file, "format"), "test");
    assert_string_equal(sd_safetensors_metadata(file, metadata[1].key), metadata[1].value);
    assert_null(sd_safetensors_metadata(file, "formats"));
    assert_true(sd_safetensors_has_checksums(file));
    assert_int_equal(sd_safetensors_verify(file), SD_OK);
    sd_safetensors_close(file);
}

/* Byte for byte what the format's description asks for; the checksums are recomputed here by zlib's definition. */
static void text_form(void **state) {
    const char *path = scratch_path(*state, "text.safetensors");
    const sd_tensor_source one[] = {{.name = "w", .dimensions = 2, .shape = {1, 3}, .data = bias}};
    const sd_metadata pair[] = {{"k", "v"}};
    assert_int_equal(sd_safetensors_write(NULL, path, one, 1, pair, 1), SD_OK);
    char expected[512];
    int length = snprintf(expected, sizeof expected,
                          "{\"__metadata__\":{\"k\":\"v\",\"crc32_data\":\"%08x\",\"crc32_header\":\"00000000\"},"
                          "\"w\":{\"dtype\":\"F32\",\"shape\":[1,3],\"data_offsets\":[0,12]}}",
                          sd_crc32(0, bias, sizeof bias));
    while (length % 8)
        expected[length++] = ' ';
    char prefix[600] = {(char)length};
    memcpy(prefix + 8, expected, (size_t)length);
    char digits[9];
    snprintf(digits, sizeof digits, "%08x", sd_crc32(0, prefix, 8 + (size_t)length));
    memcpy(strstr(prefix + 8, "00000000"), digits, 8);

    size_t size;
    char *bytes = scratch_read(path, &size);
    assert_true(size == 8 + (size_t)length + sizeof bias);
    assert_memory_equal(bytes, prefix, 8 + (size_t)length);
    assert_memory_equal(bytes + 8 + length, bias, sizeof bias);
    assert_true(sd_crc32(0, "123456789", 9) == 0xCBF43926u); /* CRC-32's check value */
    free(bytes);
}

static void empty_file(void **state) {
    const char *path = scratch_path(*state, "empty.safetensors");
    assert_int_equal(sd_safetensors_write(NULL, path, NULL, 0, NULL, 0), SD_OK);
    sd_safetensors *file = NULL;
    assert_int_equal(sd_safetensors_open(NULL, path, &file), SD_OK);
    assert_true(sd_safetensors_count(file) == 0);
    assert_int_equal(sd_safetensors_verify(file), SD_OK);
    sd_safetensors_close(file);
}

static void wrong_arguments(void **state) {
    const char *path = scratch_path(*state, "wrong.safetensors");
    const float value = 1;
    sd_tensor_source pair[2] = {{.name = "a", .dimensions = 1, .shape = {1}, .data = &value},
                                {.name = "a", .dimensions = 1, .shape = {1}, .data = &value}};
    assert_int_equal(sd_safetensors_write(NULL, path, pair, 2, NULL, 0), SD_ERR_ARGUMENT);
    pair[1].name = "__metadata__";
    assert_int_equal(sd_safetensors_write(NULL, path, pair, 2, NULL, 0), SD_ERR_ARGUMENT);
    pair[1].name = "\xC0\xAF"; /* overlong */
    assert_int_equal(sd_safetensors_write(NULL, path, pair, 2, NULL, 0), SD_ERR_ARGUMENT);
    pair[1].name = NULL;
    assert_int_equal(sd_safetensors_write(NULL, path, pair, 2, NULL, 0), SD_ERR_ARGUMENT);
    pair[1].name = "b";
    pair[1].data = NULL;
    assert_int_equal(sd_safetensors_write(NULL, path, pair, 2, NULL, 0), SD_ERR_ARGUMENT);
    pair[1].data = &value;
    pair[1].dimensions = SD_SAFETENSORS_DIMENSIONS + 1;
    assert_int_equal(sd_safetensors_write(NULL, path, pair, 2, NULL, 0), SD_ERR_ARGUMENT);
    pair[1].dimensions = 2;
    pair[1].shape[0] = pair[1].shape[1] = (uint64_t)1 << 32;
    assert_int_equal(sd_safetensors_write(NULL, path, pair, 2, NULL, 0), SD_ERR_ARGUMENT);
    const sd_metadata twice[] = {{"k", "v"}, {"k", "w"}}, reserved = {SD_CRC_DATA_KEY, "0"}, none = {"k", NULL};
    assert_int_equal(sd_safetensors_write(NULL, path, pair, 1, twice, 2), SD_ERR_ARGUMENT);
    assert_int_equal(sd_safetensors_write(NULL, path, pair, 1, &reserved, 1), SD_ERR_ARGUMENT);
    assert_int_equal(sd_safetensors_write(NULL, path, pair, 1, &none, 1), SD_ERR_ARGUMENT);
    assert_int_equal(sd_safetensors_write(NULL, NULL, pair, 1, NULL, 0), SD_ERR_ARGUMENT);
    assert_int_equal(sd_safetensors_write(NULL, "", pair, 1, NULL, 0), SD_ERR_ARGUMENT);
    assert_int_equal(scratch_count(*state), 0);
    sd_safetensors *file = NULL;
    assert_int_equal(sd_safetensors_open(NULL, NULL, &file), SD_ERR_ARGUMENT);
    assert_int_equal(sd_safetensors_open(NULL, path, &file), SD_ERR_IO); /* there is no such file */
    assert_non_null(strstr(sd_last_error(), "wrong.safetensors"));
    assert_int_equal(sd_safetensors_open(NULL, scratch_path(*state, "."), &file), SD_ERR_IO);
    assert_int_equal(sd_safetensors_open(NULL, "/dev/zero", &file), SD_ERR_IO);
    assert_null(file);
}

/* ---- damage -------------------------------------------------------------------------------- */

/* Opens and verifies; SD_OK only if all is well. */
static sd_status try_whole(const char *path) {
    sd_safetensors *file = NULL;
    sd_status status = sd_safetensors_open(NULL, path, &file);
    if (status == SD_OK)
        status = sd_safetensors_verify(file);
    sd_safetensors_close(file);
    return status;
}

static void every_truncation(void **state) {
    const char *path = scratch_path(*state, "whole.safetensors"), *cut = scratch_path(*state, "cut.safetensors");
    write_example(path);
    size_t size;
    char *bytes = scratch_read(path, &size);
    scratch_write(cut, bytes, size);
    for (size_t length = size; length-- > 0;) {
        assert_int_equal(truncate(cut, (off_t)length), 0);
        sd_status status = try_whole(cut);
        if (status != SD_ERR_FORMAT)
            fail_msg("cut to %zu of %zu bytes: status %d", length, size, (int)status);
    }
    char *longer = calloc(size + 1, 1);
    memcpy(longer, bytes, size);
    scratch_write(cut, longer, size + 1);
    assert_int_equal(try_whole(cut), SD_ERR_FORMAT);
    free(longer);
    free(bytes);
}

static void every_flipped_bit(void **state) {
    const char *path = scratch_path(*state, "flip.safetensors");
    write_example(path);
    size_t size;
    unsigned char *bytes = (unsigned char *)scratch_read(path, &size);
    FILE *file = fopen(path, "r+b");
    for (size_t bit = 0; bit < 8 * size; bit++) {
        fseek(file, (long)(bit / 8), SEEK_SET);
        fputc(bytes[bit / 8] ^ 1 << bit % 8, file);
        fflush(file);
        sd_status status = try_whole(path);
        bool without = status == SD_ERR_STATE; /* the name of a checksum was hit, so that there is none */
        if (status != SD_ERR_FORMAT && status != SD_ERR_CHECKSUM && !without)
            fail_msg("bit %zu of byte %zu flipped: status %d", bit % 8, bit / 8, (int)status);
        fseek(file, (long)(bit / 8), SEEK_SET);
        fputc(bytes[bit / 8], file);
        fflush(file);
    }
    fclose(file);
    assert_int_equal(try_whole(path), SD_OK);
    free(bytes);
}

/* ---- hostile headers ----------------------------------------------------------------------- */

static sd_status try_header(void **state, const char *header, size_t header_size, size_t data_size) {
    const char *path = scratch_path(*state, "hostile.safetensors");
    char *bytes = calloc(8 + header_size + data_size, 1);
    for (int i = 0; i < 8; i++)
        bytes[i] = (char)(header_size >> (8 * i));
    memcpy(bytes + 8, header, header_size);
    scratch_write(path, bytes, 8 + header_size + data_size);
    free(bytes);
    sd_safetensors *file = NULL;
    sd_status status = sd_safetensors_open(NULL, path, &file);
    assert_true((status == SD_OK) == (file != NULL));
    sd_safetensors_close(file);
    return status;
}

#define T(shape, begin, end) "{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

static void hostile_headers(void **state) {
    static const struct {
        const char *header;
        size_t data; /* bytes after it */
        sd_status expected;
    } cases[] = {
        {"{}", 0, SD_OK},
        {"{\"a\":" T("[1]", "0", "4") "}  ", 4, SD_OK},
        {"{\"b\":" T("[1]", "4", "8") ",\"a\":" T("[1]", "0", "4") "}", 8, SD_OK}, /* order is free */
        {"{\"a\":" T("[]", "0", "4") ",\"b\":" T("[0]", "4", "4") "}", 4, SD_OK},
        {"{\"a\":{\"data_offsets\":[0,2],\"shape\":[1],\"dtype\":\"BF16\"}}", 2, SD_OK},
        {"{ \"a\" :\t" T(" [ 1 , 1 ] ", "0", "4") "\r\n}", 4, SD_OK},
        {"{\"__metadata__\":{}}", 0, SD_OK},
        {"{\"__metadata__\":{\"k\":\"\\ud83d\\ude00\\n\"}}", 0, SD_OK},
        {"", 0, SD_ERR_FORMAT},
        {" {}", 0, SD_ERR_FORMAT},
        {"[]", 0, SD_ERR_FORMAT},
        {"{", 0, SD_ERR_FORMAT},
        {"{}}", 0, SD_ERR_FORMAT},
        {"{},", 0, SD_ERR_FORMAT},
        {"{}", 1, SD_ERR_FORMAT},                                                     /* bytes of no tensor */
        {"{\"a\":" T("[1]", "0", "4") ",}", 4, SD_ERR_FORMAT},
        {"{\"a\":" T("[1]", "0", "4") "}", 5, SD_ERR_FORMAT},
        {"{\"a\":" T("[1]", "0", "4") "}", 3, SD_ERR_FORMAT},
        {"{\"a\":" T("[1]", "4", "8") "}", 8, SD_ERR_FORMAT},                         /* hole in front */
        {"{\"a\":" T("[1]", "0", "4") ",\"b\":" T("[1]", "8", "12") "}", 12, SD_ERR_FORMAT}, /* hole */
        {"{\"a\":" T("[2]", "0", "8") ",\"b\":" T("[2]", "4", "12") "}", 12, SD_ERR_FORMAT}, /* overlap */
        {"{\"a\":" T("[1]", "0", "4") ",\"b\":" T("[1]", "0", "4") "}", 4, SD_ERR_FORMAT},
        {"{\"a\":" T("[1]", "0", "4") ",\"a\":" T("[1]", "4", "8") "}", 8, SD_ERR_FORMAT},   /* one name twice */
        {"{\"a\":" T("[1]", "0", "4") ",\"\\u0061\":" T("[1]", "4", "8") "}", 8, SD_ERR_FORMAT},
        {"{\"a\":" T("[2]", "0", "4") "}", 4, SD_ERR_FORMAT},
        {"{\"a\":" T("[1]", "4", "0") "}", 4, SD_ERR_FORMAT},
        {"{\"a\":" T("[1]", "0", "18446744073709551616") "}", 4, SD_ERR_FORMAT},      /* 2^64 */
        {"{\"a\":" T("[1]", "18446744073709551612", "18446744073709551615") "}", 4, SD_ERR_FORMAT},
        {"{\"a\":" T("[4294967296,4294967297]", "0", "4") "}", 4, SD_ERR_FORMAT},     /* product overflows */
        {"{\"a\":" T("[4611686018427387905]", "0", "4") "}", 4, SD_ERR_FORMAT},       /* times 4 overflows to 4 */
        {"{\"a\":" T("[1,1,1,1,1,1,1,1,1]", "0", "4") "}", 4, SD_ERR_FORMAT},
        {"{\"a\":" T("[-1]", "0", "4") "}", 4, SD_ERR_FORMAT},
        {"{\"a\":" T("[1.0]", "0", "4") "}", 4, SD_ERR_FORMAT},
        {"{\"a\":" T("[1e0]", "0", "4") "}", 4, SD_ERR_FORMAT},
        {"{\"a\":" T("[01]", "0", "4") "}", 4, SD_ERR_FORMAT},
        {"{\"a\":" T("[[1]]", "0", "4") "}", 4, SD_ERR_FORMAT},
        {"{\"a\":" T("[1,]", "0", "4") "}", 4, SD_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, SD_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, SD_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, SD_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, SD_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, SD_ERR_FORMAT},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, SD_ERR_FORMAT},
        {"{\"a\":null}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":1}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"v\",\"k\":\"w\"}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"\\u0000\"}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"\\ud800\"}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"\\ude00\"}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"\\ud83d\\u0041\"}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"\\u00g0\"}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"\\x41\"}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"\\u00", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"\\", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"\n\"}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"\xC0\xAF\"}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"\xED\xA0\x80\"}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"\xF4\x90\x80\x80\"}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"k\":\"\xE2\x82", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"crc32_header\":\"0000000\"}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"crc32_header\":\"0000000A\"}}", 0, SD_ERR_FORMAT},
        {"{\"__metadata__\":{\"crc32_header\":\"00000000\"}}", 0, SD_ERR_CHECKSUM},
        {"{\"__metadata__\":{\"crc32_data\":\"000000000\"}}", 0, SD_ERR_FORMAT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        sd_status status = try_header(state, cases[i].header, strlen(cases[i].header), cases[i].data);
        if (status != cases[i].expected)
            fail_msg("%s with %zu bytes: status %d, expected %d (%s)", cases[i].header, cases[i].data, (int)status,
                     (int)cases[i].expected, status == SD_OK ? "" : sd_last_error());
    }
    assert_int_equal(try_header(state, "{}\0", 3, 0), SD_ERR_FORMAT);

    enum { DEEP = 200000 };
    char *deep = malloc(DEEP);
    memset(deep, '[', DEEP);
    memcpy(deep, "{\"a\":", 5);
    assert_int_equal(try_header(state, deep, DEEP, 0), SD_ERR_FORMAT);
    memset(deep, '{', DEEP);
    assert_int_equal(try_header(state, deep, DEEP, 0), SD_ERR_FORMAT);
    free(deep);
}

/* A header that claims to be huge takes no memory. */
static void huge_header(void **state) {
    const char *path = scratch_path(*state, "huge.safetensors");
    sd_context_config config;
    failing_memory memory;
    sd_context_config_init(&config);
    config.threads = 1;
    failing_memory_install(&memory, &config);
    sd_context *context;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    static const unsigned char lengths[][8] = {
        {0, 225, 245, 5}, {1, 225, 245, 5}, {255, 255, 255, 255, 255, 255, 255, 255}};
    for (size_t i = 0; i < 3; i++) {
        char bytes[64] = {0};
        memcpy(bytes, lengths[i], 8);
        scratch_write(path, bytes, sizeof bytes);
        sd_safetensors *file = NULL;
        assert_int_equal(sd_safetensors_open(context, path, &file), SD_ERR_FORMAT);
        assert_true(memory.peak_bytes < 10000);
    }
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

/* ---- a full disk --------------------------------------------------------------------------- */

static void limit_file_size(rlim_t bytes) {
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* The system refuses files of more than n bytes, for many n: the former file stays as it was and no other is left. */
static void full_disk(void **state) {
    const char *path = scratch_path(*state, "precious.safetensors");
    static const float large[1000] = {1};
    const sd_tensor_source other[] = {{.name = "large", .dimensions = 1, .shape = {1000}, .data = large}};
    write_example(path);
    size_t size, size_after;
    char *bytes = scratch_read(path, &size);
    signal(SIGXFSZ, SIG_IGN);
    rlim_t limit = 0;
    sd_status status;
    for (;; limit += 97) {
        limit_file_size(limit);
        status = sd_safetensors_write(NULL, path, other, 1, metadata, 2);
        limit_file_size(RLIM_INFINITY);
        if (status == SD_OK)
            break;
        assert_int_equal(status, SD_ERR_IO);
        assert_non_null(strstr(sd_last_error(), "precious.safetensors"));
        assert_int_equal(scratch_count(*state), 1);
        char *after = scratch_read(path, &size_after);
        assert_true(size_after == size);
        assert_memory_equal(after, bytes, size);
        free(after);
    }
    assert_true(limit > sizeof large);
    assert_int_equal(scratch_count(*state), 1);
    assert_int_equal(try_whole(path), SD_OK);
    free(bytes);
}

/* What is no file is not replaced by one; a missing folder is named. */
static void impossible_targets(void **state) {
    struct stat about;
    assert_int_equal(sd_safetensors_write(NULL, "/dev/full", tensors, TENSORS, NULL, 0), SD_ERR_IO);
    assert_int_equal(stat("/dev/full", &about), 0);
    assert_true(S_ISCHR(about.st_mode));
    char path[600];
    snprintf(path, sizeof path, "%s/x", scratch_path(*state, "missing"));
    assert_int_equal(sd_safetensors_write(NULL, path, tensors, TENSORS, NULL, 0), SD_ERR_IO);
    assert_non_null(strstr(sd_last_error(), "missing/x"));
    assert_non_null(strstr(sd_last_error(), "no such file"));
    assert_int_equal(sd_safetensors_write(NULL, scratch_path(*state, "."), tensors, TENSORS, NULL, 0), SD_ERR_IO);
    assert_int_equal(scratch_count(*state), 0);
}

static void links_and_permissions(void **state) {
    struct stat about;
    char *target = strdup(scratch_path(*state, "target")), *link = strdup(scratch_path(*state, "link"));
    write_example(target);
    assert_int_equal(chmod(target, 0640), 0);
    assert_int_equal(symlink("target", link), 0);
    assert_int_equal(sd_safetensors_write(NULL, link, tensors, 1, NULL, 0), SD_OK);
    assert_int_equal(lstat(link, &about), 0);
    assert_true(S_ISLNK(about.st_mode));
    assert_int_equal(lstat(target, &about), 0);
    assert_true(S_ISREG(about.st_mode) && (about.st_mode & 0777) == 0640);
    sd_safetensors *file = NULL;
    assert_int_equal(sd_safetensors_open(NULL, link, &file), SD_OK);
    assert_true(sd_safetensors_count(file) == 1);
    sd_safetensors_close(file);
    assert_int_equal(scratch_count(*state), 2);
    free(target);
    free(link);
}

/* ---- failing allocations ------------------------------------------------------------------- */

static void failed_allocations(void **state) {
    char *path = strdup(scratch_path(*state, "memory.safetensors"));
    write_example(path);
    sd_context_config config;
    failing_memory memory;
    sd_context_config_init(&config);
    config.threads = 1;
    failing_memory_install(&memory, &config);
    sd_context *context;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    long base = memory.allocations, live = memory.live;
    for (int sticky = 0; sticky < 2; sticky++) {
        sd_status status = SD_ERR_MEMORY;
        memory.sticky = sticky;
        for (long n = 0; status != SD_OK; n++) {
            memory.allocations = base;
            memory.fail_at = base + n;
            status = sd_safetensors_write(context, path, tensors, 1, NULL, 0);
            assert_true(status == SD_OK ? n >= 5 : status == SD_ERR_MEMORY);
            assert_int_equal(memory.live, live);
            assert_int_equal(scratch_count(*state), 1);
            assert_int_equal(try_whole(path), SD_OK);
        }
        status = SD_ERR_MEMORY;
        for (long n = 0; status != SD_OK; n++) {
            memory.allocations = base;
            memory.fail_at = base + n;
            sd_safetensors *file = NULL;
            status = sd_safetensors_open(context, path, &file);
            assert_true((status == SD_OK) == (file != NULL));
            if (status == SD_OK)
                status = sd_safetensors_verify(file);
            sd_safetensors_close(file);
            assert_true(status == SD_OK ? n >= 8 : status == SD_ERR_MEMORY);
            assert_int_equal(memory.live, live);
        }
    }
    memory.fail_at = -1;
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
    free(path);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, scratch_begin, scratch_end)
    const struct CMUnitTest tests[] = {
        TEST(round_trip),        TEST(text_form),          TEST(empty_file),
        TEST(wrong_arguments),   TEST(every_truncation),   TEST(every_flipped_bit),
        TEST(hostile_headers),   TEST(huge_header),        TEST(full_disk),
        TEST(impossible_targets), TEST(links_and_permissions), TEST(failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
