/* The reader trusts nothing: the header is parsed strictly, and all its numbers are held against the size of the file.
 * */
#include "io/checksum.h"
#include "io/dtype.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"

#include <stdlib.h>
#include <string.h>

#define PIECE ((size_t)1 << 20)

struct sd_safetensors {
    sd_context *context;
    sd_input_file *input;
    char *prefix; /* the length and the header, as in the file */
    size_t header_size;
    uint64_t data_size;
    char *strings; /* decoded names, keys and values */
    sd_tensor_entry *entries; /* in the order of the bytes */
    size_t count;
    const sd_tensor_entry **by_name;
    sd_metadata *metadata; /* by key */
    size_t metadata_count;
    bool has_data_crc, has_header_crc;
    uint32_t data_crc, header_crc;
    size_t header_crc_at; /* of its digits, in the prefix */
};

/* ---- header -------------------------------------------------------------------------------- */

/* What the parser finds. Parsed twice: without arrays it only counts. */
typedef struct header_parser {
    sd_json json;
    sd_safetensors *file;
    sd_tensor_entry *entries;
    sd_metadata *metadata;
    size_t count, metadata_count;
    bool has_metadata;
} header_parser;

static bool problem(header_parser *parser, const char *text) {
    parser->json.problem = text;
    return false;
}

/* [1, 2, 3] of at most `most` numbers. */
static bool parse_numbers(header_parser *parser, uint64_t *numbers, size_t most, size_t *count) {
    sd_json *json = &parser->json;
    *count = 0;
    if (!sd_json_expect(json, '['))
        return false;
    if (sd_json_take(json, ']'))
        return true;
    do {
        if (*count == most)
            return problem(parser, "too many numbers");
        if (!sd_json_get_unsigned(json, &numbers[(*count)++]))
            return false;
    } while (sd_json_take(json, ','));
    return sd_json_expect(json, ']');
}

/* {"dtype":"F32","shape":[2,3],"data_offsets":[0,24]} in any order. */
static bool parse_tensor(header_parser *parser, sd_tensor_entry *entry) {
    sd_json *json = &parser->json;
    enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4 };
    unsigned seen = 0;
    uint64_t offsets[2] = {0, 0};
    size_t offset_count = 0;
    if (!sd_json_expect(json, '{'))
        return false;
    do {
        sd_json_string key, value;
        if (!sd_json_get_string(json, &key) || !sd_json_expect(json, ':'))
            return false;
        unsigned member = strcmp(key.text, "dtype") == 0          ? DTYPE
                          : strcmp(key.text, "shape") == 0        ? SHAPE
                          : strcmp(key.text, "data_offsets") == 0 ? OFFSETS
                                                                  : 0;
        if (member == 0 || (seen & member))
            return problem(parser, member ? "member given twice" : "unknown member of a tensor");
        seen |= member;
        if (member == DTYPE) {
            if (!sd_json_get_string(json, &value))
                return false;
            entry->dtype = value.text;
        } else if (member == SHAPE) {
            if (!parse_numbers(parser, entry->shape, SD_SAFETENSORS_DIMENSIONS, &entry->dimensions))
                return false;
        } else if (!parse_numbers(parser, offsets, 2, &offset_count)) {
            return false;
        }
    } while (sd_json_take(json, ','));
    if (!sd_json_expect(json, '}'))
        return false;
    if (seen != (DTYPE | SHAPE | OFFSETS) || offset_count != 2)
        return problem(parser, "a tensor needs dtype, shape and two data_offsets");
    if (offsets[0] > offsets[1] || offsets[1] > parser->file->data_size)
        return problem(parser, "a tensor lies outside of the file");

    uint64_t bytes = sd_dtype_size(sd_dtype_of_safetensors(entry->dtype));
    if (bytes == 0)
        return problem(parser, "unknown dtype");
    entry->count = 1;
    for (size_t i = 0; i < entry->dimensions; i++)
        if (__builtin_mul_overflow(entry->count, entry->shape[i], &entry->count))
            return problem(parser, "a tensor is too large");
    if (__builtin_mul_overflow(entry->count, bytes, &bytes) || bytes != offsets[1] - offsets[0])
        return problem(parser, "dtype, shape and data_offsets contradict each other");
    entry->begin = 8 + parser->file->header_size + offsets[0];
    entry->bytes = bytes;
    return true;
}

/* The checksums are noted while parsing, as the place of their digits in the raw text counts. */
static bool note_checksum(header_parser *parser, const char *key, const sd_json_string *value) {
    sd_safetensors *file = parser->file;
    bool data = strcmp(key, SD_CRC_DATA_KEY) == 0, header = strcmp(key, SD_CRC_HEADER_KEY) == 0;
    if (!data && !header)
        return true;
    uint32_t crc;
    if (!sd_crc32_parse(parser->json.text + value->raw_at, value->raw_length, &crc))
        return problem(parser, "a checksum is not eight hexadecimal digits");
    if (data) {
        file->has_data_crc = true;
        file->data_crc = crc;
    } else {
        file->has_header_crc = true;
        file->header_crc = crc;
        file->header_crc_at = 8 + value->raw_at;
    }
    return true;
}

static bool parse_metadata(header_parser *parser) {
    sd_json *json = &parser->json;
    if (parser->has_metadata)
        return problem(parser, "__metadata__ given twice");
    parser->has_metadata = true;
    if (!sd_json_expect(json, '{'))
        return false;
    if (sd_json_take(json, '}'))
        return true;
    do {
        sd_json_string key, value;
        if (!sd_json_get_string(json, &key) || !sd_json_expect(json, ':') || !sd_json_get_string(json, &value) ||
            !note_checksum(parser, key.text, &value))
            return false;
        if (parser->metadata)
            parser->metadata[parser->metadata_count] = (sd_metadata){key.text, value.text};
        parser->metadata_count++;
    } while (sd_json_take(json, ','));
    return sd_json_expect(json, '}');
}

static bool parse_header(header_parser *parser) {
    sd_json *json = &parser->json;
    if (json->size == 0 || json->text[0] != '{')
        return problem(parser, "it does not begin with {");
    sd_json_expect(json, '{');
    if (sd_json_take(json, '}'))
        return sd_json_expect_end(json);
    do {
        sd_json_string name;
        if (!sd_json_get_string(json, &name) || !sd_json_expect(json, ':'))
            return false;
        if (strcmp(name.text, "__metadata__") == 0) {
            if (!parse_metadata(parser))
                return false;
            continue;
        }
        sd_tensor_entry entry = {.name = name.text};
        if (!parse_tensor(parser, &entry))
            return false;
        if (parser->entries)
            parser->entries[parser->count] = entry;
        parser->count++;
    } while (sd_json_take(json, ','));
    return sd_json_expect(json, '}') && sd_json_expect_end(json);
}

static sd_status parse(header_parser *parser, sd_safetensors *file) {
    parser->file = file;
    parser->json.text = file->prefix + 8;
    parser->json.size = file->header_size;
    parser->json.strings = file->strings;
    SD_REQUIRE(parse_header(parser), SD_ERR_FORMAT, "%s: header, byte %zu: %s", sd_input_file_path(file->input),
               parser->json.at, parser->json.problem);
    return SD_OK;
}

/* ---- what holds between tensors ------------------------------------------------------------ */

static int by_position(const void *left, const void *right) {
    const sd_tensor_entry *a = left, *b = right;
    if (a->begin != b->begin)
        return a->begin < b->begin ? -1 : 1;
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes; /* an empty one before the one that begins there */
}

static int by_name(const void *left, const void *right) {
    const sd_tensor_entry *const *a = left, *const *b = right;
    return strcmp((*a)->name, (*b)->name);
}

static int by_key(const void *left, const void *right) {
    return strcmp(((const sd_metadata *)left)->key, ((const sd_metadata *)right)->key);
}

static sd_status check_order(sd_safetensors *file) {
    const char *path = sd_input_file_path(file->input);
    uint64_t position = 8 + file->header_size;
    for (size_t i = 0; i < file->count; i++) {
        const sd_tensor_entry *entry = &file->entries[i];
        SD_REQUIRE(entry->begin == position, SD_ERR_FORMAT, "%s: %s of bytes before tensor %s", path,
                   entry->begin > position ? "a hole" : "an overlap", entry->name);
        position += entry->bytes;
    }
    SD_REQUIRE(position == sd_input_file_size(file->input), SD_ERR_FORMAT, "%s: bytes after the last tensor", path);
    for (size_t i = 1; i < file->count; i++)
        SD_REQUIRE(by_name(&file->by_name[i - 1], &file->by_name[i]) != 0, SD_ERR_FORMAT,
                   "%s: tensor %s is there twice", path, file->by_name[i]->name);
    for (size_t i = 1; i < file->metadata_count; i++)
        SD_REQUIRE(by_key(&file->metadata[i - 1], &file->metadata[i]) != 0, SD_ERR_FORMAT,
                   "%s: metadata key %s is there twice", path, file->metadata[i].key);
    return SD_OK;
}

static sd_status check_header_crc(sd_safetensors *file) {
    if (!file->has_header_crc)
        return SD_OK;
    size_t after = file->header_crc_at + SD_CRC_DIGITS;
    uint32_t crc = sd_crc32(0, file->prefix, file->header_crc_at);
    crc = sd_crc32(crc, SD_CRC_ZEROS, SD_CRC_DIGITS);
    crc = sd_crc32(crc, file->prefix + after, 8 + file->header_size - after);
    SD_REQUIRE(crc == file->header_crc, SD_ERR_CHECKSUM, "%s: the header is damaged: its checksum differs",
               sd_input_file_path(file->input));
    return SD_OK;
}

/* ---- opening ------------------------------------------------------------------------------- */

/* The header's size is compared with the file's before memory is taken for it. */
static sd_status read_prefix(sd_safetensors *file) {
    const char *path = sd_input_file_path(file->input);
    uint64_t file_size = sd_input_file_size(file->input), size = 0;
    unsigned char length[8];
    SD_REQUIRE(file_size >= 8, SD_ERR_FORMAT, "%s: truncated: %llu bytes", path, (unsigned long long)file_size);
    sd_status status = sd_input_file_read(file->input, 0, length, sizeof length);
    if (status != SD_OK)
        return status;
    for (int i = 7; i >= 0; i--)
        size = size << 8 | length[i];
    SD_REQUIRE(size <= SD_SAFETENSORS_HEADER_MAX, SD_ERR_FORMAT,
               "%s: not a safetensors file: its header would have %llu bytes", path, (unsigned long long)size);
    SD_REQUIRE(size <= file_size - 8, SD_ERR_FORMAT, "%s: truncated: the header has %llu bytes, the file %llu", path,
               (unsigned long long)size, (unsigned long long)file_size);
    file->header_size = (size_t)size;
    file->data_size = file_size - 8 - size;
    file->prefix = SD_NEW_ARRAY(file->context, char, 8 + file->header_size);
    file->strings = SD_NEW_ARRAY(file->context, char, file->header_size + 1);
    if (!file->prefix || !file->strings)
        return SD_ERR_MEMORY;
    return sd_input_file_read(file->input, 0, file->prefix, 8 + file->header_size);
}

static sd_status read_header(sd_safetensors *file) {
    header_parser counting = {0}, filling = {0};
    sd_status status = parse(&counting, file);
    if (status != SD_OK)
        return status;
    status = check_header_crc(file);
    if (status != SD_OK)
        return status;
    file->entries = SD_NEW_ARRAY(file->context, sd_tensor_entry, counting.count);
    file->by_name = SD_NEW_ARRAY(file->context, const sd_tensor_entry *, counting.count);
    file->metadata = SD_NEW_ARRAY(file->context, sd_metadata, counting.metadata_count);
    if (!file->entries || !file->by_name || !file->metadata)
        return SD_ERR_MEMORY;
    filling.entries = file->entries;
    filling.metadata = file->metadata;
    status = parse(&filling, file);
    if (status != SD_OK)
        return status;
    file->count = filling.count;
    file->metadata_count = filling.metadata_count;
    qsort(file->entries, file->count, sizeof *file->entries, by_position);
    for (size_t i = 0; i < file->count; i++)
        file->by_name[i] = &file->entries[i];
    qsort(file->by_name, file->count, sizeof *file->by_name, by_name);
    qsort(file->metadata, file->metadata_count, sizeof *file->metadata, by_key);
    return check_order(file);
}

sd_status sd_safetensors_open(sd_context *context, const char *path, sd_safetensors **out) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    SD_REQUIRE(false, SD_ERR_UNSUPPORTED, "safetensors files are little-endian, which this machine is not");
#endif
    sd_status status;
    sd_safetensors *file = SD_NEW(context, sd_safetensors);
    if (!file)
        return SD_ERR_MEMORY;
    file->context = context;
    SD_TRY(sd_input_file_open(context, path, &file->input));
    SD_TRY(read_prefix(file));
    SD_TRY(read_header(file));
    *out = file;
    return SD_OK;
cleanup:
    sd_safetensors_close(file);
    return status;
}

void sd_safetensors_close(sd_safetensors *file) {
    if (!file)
        return;
    sd_context *context = file->context;
    sd_release(context, file->metadata);
    sd_release(context, file->by_name);
    sd_release(context, file->entries);
    sd_release(context, file->strings);
    sd_release(context, file->prefix);
    sd_input_file_close(file->input);
    sd_release(context, file);
}

/* ---- look-up ------------------------------------------------------------------------------- */

const char *sd_safetensors_path(const sd_safetensors *file) { return sd_input_file_path(file->input); }

const sd_input_file *sd_safetensors_input(const sd_safetensors *file) { return file->input; }

size_t sd_safetensors_count(const sd_safetensors *file) { return file->count; }

const sd_tensor_entry *sd_safetensors_at(const sd_safetensors *file, size_t index) {
    return index < file->count ? &file->entries[index] : NULL;
}

const sd_tensor_entry *sd_safetensors_find(const sd_safetensors *file, const char *name) {
    const sd_tensor_entry key = {.name = name}, *wanted = &key;
    const sd_tensor_entry **found = bsearch(&wanted, file->by_name, file->count, sizeof *file->by_name, by_name);
    return found ? *found : NULL;
}

size_t sd_safetensors_metadata_count(const sd_safetensors *file) { return file->metadata_count; }

const sd_metadata *sd_safetensors_metadata_at(const sd_safetensors *file, size_t index) {
    return index < file->metadata_count ? &file->metadata[index] : NULL;
}

const char *sd_safetensors_metadata(const sd_safetensors *file, const char *key) {
    const sd_metadata wanted = {.key = key};
    const sd_metadata *found = bsearch(&wanted, file->metadata, file->metadata_count, sizeof *file->metadata, by_key);
    return found ? found->value : NULL;
}

/* ---- content ------------------------------------------------------------------------------- */

bool sd_safetensors_has_checksums(const sd_safetensors *file) { return file->has_data_crc && file->has_header_crc; }

sd_status sd_safetensors_verify(const sd_safetensors *file) {
    const char *path = sd_input_file_path(file->input);
    SD_REQUIRE(sd_safetensors_has_checksums(file), SD_ERR_STATE, "%s carries no checksums", path);
    char *piece = SD_NEW_ARRAY(file->context, char, PIECE);
    if (!piece)
        return SD_ERR_MEMORY;
    sd_status status = SD_OK;
    uint32_t crc = 0;
    for (uint64_t done = 0; done < file->data_size; done += PIECE) {
        uint64_t left = file->data_size - done;
        size_t count = left < PIECE ? (size_t)left : PIECE;
        SD_TRY(sd_input_file_read(file->input, 8 + file->header_size + done, piece, count));
        crc = sd_crc32(crc, piece, count);
    }
    SD_EXPECT(crc == file->data_crc, SD_ERR_CHECKSUM, "%s: the tensors are damaged: their checksum differs", path);
cleanup:
    sd_release(file->context, piece);
    return status;
}

sd_status sd_safetensors_read_f32(const sd_safetensors *file, const sd_tensor_entry *entry, float *data, size_t count) {
    SD_REQUIRE(strcmp(entry->dtype, "F32") == 0, SD_ERR_UNSUPPORTED, "%s: tensor %s is of type %s, not F32",
               sd_input_file_path(file->input), entry->name, entry->dtype);
    SD_REQUIRE(entry->count == count, SD_ERR_MISMATCH, "%s: tensor %s has %llu elements, not %zu",
               sd_input_file_path(file->input), entry->name, (unsigned long long)entry->count, count);
    return sd_input_file_read(file->input, entry->begin, data, count * sizeof *data);
}
