#include "io/checksum.h"
#include "io/dtype.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"

#include <stdlib.h>
#include <string.h>

#define PIECE ((size_t)1 << 20) /* bytes that are summed and then written while they are in the cache */

typedef struct write_job {
    sd_context *context;
    const sd_tensor_source *tensors;
    size_t count;
    const sd_metadata *metadata;
    size_t metadata_count;
    uint64_t *bytes; /* of each tensor */
    char *prefix;    /* length and header as they stand in the file */
    size_t prefix_size;
    size_t data_digits, header_digits; /* where the checksums stand in the prefix */
} write_job;

/* ---- checks -------------------------------------------------------------------------------- */

static int by_text(const void *left, const void *right) {
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* Well-formed and no two alike. */
static sd_status check_names(const char **names, size_t count, const char *what) {
    for (size_t i = 0; i < count; i++) {
        SD_REQUIRE(names[i], SD_ERR_ARGUMENT, "%s %zu is NULL", what, i);
        SD_REQUIRE(sd_utf8_valid(names[i], strlen(names[i])), SD_ERR_ARGUMENT, "%s %zu is not UTF-8", what, i);
    }
    qsort(names, count, sizeof *names, by_text);
    for (size_t i = 1; i < count; i++)
        SD_REQUIRE(strcmp(names[i - 1], names[i]) != 0, SD_ERR_ARGUMENT, "two %ss are called %s", what, names[i]);
    return SD_OK;
}

static sd_status check_all_names(const write_job *job) {
    sd_status status;
    size_t room = sd_size_max(job->count, job->metadata_count) + 2;
    const char **names = SD_NEW_ARRAY(job->context, const char *, room);
    if (!names)
        return SD_ERR_MEMORY;
    for (size_t i = 0; i < job->count; i++)
        names[i] = job->tensors[i].name;
    names[job->count] = "__metadata__";
    SD_TRY(check_names(names, job->count + 1, "tensor"));
    for (size_t i = 0; i < job->metadata_count; i++) {
        const char *value = job->metadata[i].value;
        names[i] = job->metadata[i].key;
        SD_EXPECT(value && sd_utf8_valid(value, strlen(value)), SD_ERR_ARGUMENT, "metadata value %zu is %s", i,
                  value ? "not UTF-8" : "NULL");
    }
    names[job->metadata_count] = SD_CRC_DATA_KEY;
    names[job->metadata_count + 1] = SD_CRC_HEADER_KEY;
    SD_TRY(check_names(names, job->metadata_count + 2, "metadata key"));
cleanup:
    sd_release(job->context, names);
    return status;
}

static sd_status measure_tensors(write_job *job) {
    uint64_t total = 0;
    for (size_t i = 0; i < job->count; i++) {
        const sd_tensor_source *tensor = &job->tensors[i];
        SD_REQUIRE(tensor->dimensions <= SD_SAFETENSORS_DIMENSIONS, SD_ERR_ARGUMENT, "%s has %zu dimensions",
                   tensor->name, tensor->dimensions);
        uint64_t bytes = sd_dtype_size(tensor->dtype);
        SD_REQUIRE(bytes > 0, SD_ERR_ARGUMENT, "%s is of type %s, which safetensors files do not have", tensor->name,
                   sd_dtype_name(tensor->dtype));
        for (size_t j = 0; j < tensor->dimensions; j++)
            SD_REQUIRE(!__builtin_mul_overflow(bytes, tensor->shape[j], &bytes), SD_ERR_ARGUMENT,
                       "%s is too large", tensor->name);
        SD_REQUIRE(!__builtin_add_overflow(total, bytes, &total) && total <= INT64_MAX && bytes <= SIZE_MAX,
                   SD_ERR_ARGUMENT, "%s is too large", tensor->name);
        SD_REQUIRE(bytes == 0 || tensor->data, SD_ERR_ARGUMENT, "%s has no data", tensor->name);
        job->bytes[i] = bytes;
    }
    return SD_OK;
}

/* ---- header -------------------------------------------------------------------------------- */

static void put_pair(sd_text *text, const char *key, const char *value) {
    sd_text_put_json_string(text, key);
    sd_text_put(text, ":");
    sd_text_put_json_string(text, value);
}

static void put_header(write_job *job, sd_text *text) {
    sd_text_put(text, "{\"__metadata__\":{");
    for (size_t i = 0; i < job->metadata_count; i++) {
        put_pair(text, job->metadata[i].key, job->metadata[i].value);
        sd_text_put(text, ",");
    }
    put_pair(text, SD_CRC_DATA_KEY, SD_CRC_ZEROS);
    job->data_digits = text->length - 1 - SD_CRC_DIGITS;
    sd_text_put(text, ",");
    put_pair(text, SD_CRC_HEADER_KEY, SD_CRC_ZEROS);
    job->header_digits = text->length - 1 - SD_CRC_DIGITS;
    sd_text_put(text, "}");
    uint64_t begin = 0;
    for (size_t i = 0; i < job->count; i++) {
        const sd_tensor_source *tensor = &job->tensors[i];
        sd_text_put(text, ",");
        sd_text_put_json_string(text, tensor->name);
        sd_text_put(text, ":{\"dtype\":\"");
        sd_text_put(text, sd_dtype_safetensors_name(tensor->dtype));
        sd_text_put(text, "\",\"shape\":[");
        for (size_t j = 0; j < tensor->dimensions; j++) {
            sd_text_put(text, j > 0 ? "," : "");
            sd_text_put_unsigned(text, tensor->shape[j]);
        }
        sd_text_put(text, "],\"data_offsets\":[");
        sd_text_put_unsigned(text, begin);
        sd_text_put(text, ",");
        begin += job->bytes[i];
        sd_text_put_unsigned(text, begin);
        sd_text_put(text, "]}");
    }
    sd_text_put(text, "}");
    while ((text->length - 8) % 8 != 0)
        sd_text_put(text, " ");
}

/* The text starts after eight bytes of room for its length. */
static sd_status make_header(write_job *job) {
    sd_text text = {.buffer = NULL, .length = 8};
    put_header(job, &text);
    uint64_t length = text.length - 8;
    SD_REQUIRE(length <= SD_SAFETENSORS_HEADER_MAX, SD_ERR_ARGUMENT, "the header of %llu bytes is too large",
               (unsigned long long)length);
    job->prefix_size = text.length;
    job->prefix = SD_NEW_ARRAY(job->context, char, job->prefix_size);
    if (!job->prefix)
        return SD_ERR_MEMORY;
    text = (sd_text){.buffer = job->prefix, .length = 8};
    put_header(job, &text);
    for (int i = 0; i < 8; i++)
        job->prefix[i] = (char)(length >> (8 * i) & 255);
    return SD_OK;
}

/* ---- the file ------------------------------------------------------------------------------ */

static sd_status write_content(write_job *job, sd_atomic_file *file) {
    uint64_t position = job->prefix_size;
    uint32_t crc = 0;
    for (size_t i = 0; i < job->count; i++) {
        const char *bytes = job->tensors[i].data;
        for (size_t done = 0; done < job->bytes[i]; done += PIECE) {
            size_t piece = sd_size_min(PIECE, (size_t)job->bytes[i] - done);
            crc = sd_crc32(crc, bytes + done, piece);
            sd_status status = sd_atomic_file_write(file, position, bytes + done, piece);
            if (status != SD_OK)
                return status;
            position += piece;
        }
    }
    sd_crc32_print(crc, job->prefix + job->data_digits);
    sd_crc32_print(sd_crc32(0, job->prefix, job->prefix_size), job->prefix + job->header_digits);
    return sd_atomic_file_write(file, 0, job->prefix, job->prefix_size);
}

sd_status sd_safetensors_write(sd_context *context, const char *path, const sd_tensor_source *tensors, size_t count,
                               const sd_metadata *metadata, size_t metadata_count) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    SD_REQUIRE(false, SD_ERR_UNSUPPORTED, "safetensors files are little-endian, which this machine is not");
#endif
    sd_status status;
    sd_atomic_file *file = NULL;
    write_job job = {.context = context,
                     .tensors = tensors,
                     .count = count,
                     .metadata = metadata,
                     .metadata_count = metadata_count};
    SD_TRY(check_all_names(&job));
    job.bytes = SD_NEW_ARRAY(context, uint64_t, count);
    if (!job.bytes) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    SD_TRY(measure_tensors(&job));
    SD_TRY(make_header(&job));
    SD_TRY(sd_atomic_file_open(context, path, &file));
    SD_TRY(write_content(&job, file));
    status = sd_atomic_file_commit(file);
    file = NULL;
cleanup:
    sd_atomic_file_discard(file);
    sd_release(context, job.prefix);
    sd_release(context, job.bytes);
    return status;
}
