/* PyTorch's files: a pickle that tells tensors, and their storages beside it. In the zip form each storage is a member
 * of its own; in the form before PyTorch 1.6 pickles and storages follow each other. */
#include "io/checksum.h"
#include "io/dtype.h"
#include "io/json.h"
#include "io/pickle.h"
#include "io/tensor_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_LENGTH ((size_t)1000)
#define DEPTH_MAX       64
#define TENSORS_MAX     ((size_t)1 << 20)
#define STEPS_MAX       ((size_t)1 << 22) /* values that are looked at, each as often as it is found */
#define NAMES_MAX       ((size_t)64 << 20)
#define PICKLE_RATIO    64 /* that a deflated pickle may unpack to, beyond the first MiB */

/* ---- from nested containers to a table -------------------------------------------------------- */

/* Walks twice: without arrays it only counts. */
typedef struct walker {
    const sd_pickle *pickle;
    sd_tensor_file *file;
    const size_t *storage_of; /* of the pickle's storages; SIZE_MAX: none in the file */
    bool fill;
    size_t count, names, steps;
    char path[NAME_MAX_LENGTH + 1];
} walker;

static sd_status add_entry(walker *w, size_t length, const sd_pickle_value *value) {
    const char *path = w->pickle->path;
    const char *name = length > 0 ? w->path : "array";
    size_t bytes = (length > 0 ? length : strlen(name)) + 1;
    sd_status status = SD_OK;
    SD_REQUIRE(w->count < TENSORS_MAX && w->names + bytes <= NAMES_MAX, SD_ERR_FORMAT, "%s: more than %zu tensors",
               path, w->count);
    if (w->fill) {
        sd_stored *tensor = &w->file->tensors[w->count];
        tensor->name = memcpy(w->file->names + w->names, name, bytes - 1);
        tensor->dtype = SD_DTYPE_NUMBER;
        tensor->count = 1;
        if (value->kind == SD_PICKLE_FLOAT) {
            tensor->number = value->real;
        } else if (value->kind != SD_PICKLE_TENSOR) {
            tensor->number = (double)value->integer;
        } else {
            const sd_pickle_tensor *found = &w->pickle->tensors[value->integer];
            uint64_t size = sd_dtype_size(found->dtype);
            tensor->storage = w->storage_of[found->storage];
            tensor->dtype = found->dtype;
            tensor->dimensions = found->dimensions;
            memcpy(tensor->shape, found->shape, sizeof tensor->shape);
            memcpy(tensor->stride, found->stride, sizeof tensor->stride);
            SD_REQUIRE(tensor->storage != SIZE_MAX, SD_ERR_FORMAT, "%s: the storage of tensor %.300s is missing", path,
                       tensor->name);
            SD_REQUIRE(!__builtin_mul_overflow(found->offset, size, &tensor->first), SD_ERR_FORMAT,
                       "%s: tensor %.300s reaches beyond its storage", path, tensor->name);
            status = sd_stored_check(w->file, tensor);
        }
    }
    w->count++;
    w->names += bytes;
    return status;
}

/* Appends "/KEY" to the path; 0: the key is not of a kind that has a name. */
static sd_status extend_path(walker *w, size_t length, const sd_pickle_value *key, size_t place, size_t *extended) {
    char digits[24];
    const char *text = digits;
    size_t size;
    if (key && key->kind == SD_PICKLE_TEXT) {
        text = (const char *)w->pickle->bytes + key->text.at;
        size = key->text.length;
        if (memchr(text, 0, size) || (size <= NAME_MAX_LENGTH && !sd_utf8_valid(text, size)))
            size = 0;
    } else if (key && key->kind != SD_PICKLE_INTEGER) {
        size = 0;
    } else {
        size = (size_t)(key ? snprintf(digits, sizeof digits, "%lld", (long long)key->integer)
                            : snprintf(digits, sizeof digits, "%zu", place));
    }
    *extended = 0;
    if (size == 0)
        return SD_OK;
    size_t slash = length > 0 ? 1 : 0;
    SD_REQUIRE(size <= NAME_MAX_LENGTH - slash && length <= NAME_MAX_LENGTH - slash - size, SD_ERR_FORMAT,
               "%s: a name of more than %zu bytes: %.100s...", w->pickle->path, NAME_MAX_LENGTH, w->path);
    if (slash)
        w->path[length] = '/';
    memcpy(w->path + length + slash, text, size);
    *extended = length + slash + size;
    w->path[*extended] = '\0';
    return SD_OK;
}

static sd_status walk(walker *w, sd_pickle_id id, size_t length, int depth) {
    const sd_pickle *p = w->pickle;
    const sd_pickle_value *value = &p->values[id];
    SD_REQUIRE(++w->steps <= STEPS_MAX, SD_ERR_FORMAT, "%s: its containers hold each other too often", p->path);
    switch (value->kind) {
    case SD_PICKLE_BOOL:
    case SD_PICKLE_INTEGER:
    case SD_PICKLE_FLOAT:
    case SD_PICKLE_TENSOR: return add_entry(w, length, value);
    case SD_PICKLE_LIST:
    case SD_PICKLE_DICT: break;
    default: return SD_OK;
    }
    SD_REQUIRE(depth < DEPTH_MAX, SD_ERR_FORMAT, "%s: containers nested deeper than %d: %.100s...", p->path, DEPTH_MAX,
               w->path);
    size_t place = 0;
    for (uint32_t cell = value->list.first; cell != 0; cell = p->cells[cell].next) {
        const sd_pickle_value *key = value->kind == SD_PICKLE_DICT ? &p->values[p->cells[cell].key] : NULL;
        size_t extended;
        sd_status status = extend_path(w, length, key, place++, &extended);
        if (status == SD_OK && extended > 0)
            status = walk(w, p->cells[cell].value, extended, depth + 1);
        w->path[length] = '\0';
        if (status != SD_OK)
            return status;
    }
    return SD_OK;
}

static sd_status make_table(sd_tensor_file *file, const sd_pickle *pickle, sd_pickle_id root,
                            const size_t *storage_of) {
    walker w = {.pickle = pickle, .file = file, .storage_of = storage_of};
    sd_status status = walk(&w, root, 0, 0);
    if (status != SD_OK)
        return status;
    file->tensors = SD_NEW_ARRAY(file->context, sd_stored, w.count);
    file->names = SD_NEW_ARRAY(file->context, char, w.names);
    if (!file->tensors || !file->names)
        return SD_ERR_MEMORY;
    file->count = w.count;
    w = (walker){.pickle = pickle, .file = file, .storage_of = storage_of, .fill = true};
    return walk(&w, root, 0, 0);
}

/* ---- the zip form ------------------------------------------------------------------------------ */

static const char *const pickle_name = "data.pkl";

/* "FOLDER/data.pkl", the folder being named after the file when it was saved. */
const sd_zip_member *sd_pth_find(const sd_zip *zip) {
    for (size_t i = 0; i < zip->count; i++) {
        const char *name = zip->members[i].name, *slash = strchr(name, '/');
        if (strcmp(slash ? slash + 1 : name, pickle_name) == 0)
            return &zip->members[i];
    }
    return NULL;
}

static sd_status read_member(const sd_tensor_file *file, const sd_zip_member *member, unsigned char *bytes) {
    sd_unpacker *unpacker = NULL;
    sd_status status = sd_unpacker_open(file->context, file->input, member->name, member->position,
                                        member->packed_bytes, member->deflated, &unpacker);
    if (status == SD_OK)
        status = sd_unpacker_read(unpacker, bytes, member->bytes);
    if (status == SD_OK)
        status = sd_unpacker_finish(unpacker);
    sd_unpacker_close(unpacker);
    if (status != SD_OK)
        return status;
    /* 0 is what PyTorch writes when it is told to compute no checksums */
    SD_REQUIRE(member->crc == 0 || sd_crc32(0, bytes, (size_t)member->bytes) == member->crc, SD_ERR_CHECKSUM,
               "%s: %.300s is damaged: its checksum differs", sd_input_file_path(file->input), member->name);
    return SD_OK;
}

static sd_status read_pickle(const sd_tensor_file *file, const sd_zip_member *member, sd_pickle *pickle) {
    SD_REQUIRE(member->bytes <= SD_PICKLE_BYTES_MAX &&
                   member->bytes <= ((uint64_t)1 << 20) + PICKLE_RATIO * member->packed_bytes,
               SD_ERR_FORMAT, "%s: %.300s: a pickle of %llu bytes", pickle->path, member->name,
               (unsigned long long)member->bytes);
    pickle->bytes = SD_NEW_ARRAY(file->context, unsigned char, (size_t)member->bytes);
    if (!pickle->bytes)
        return SD_ERR_MEMORY;
    pickle->size = (size_t)member->bytes;
    return read_member(file, member, pickle->bytes);
}

static sd_status check_byte_order(const sd_tensor_file *file, const char *folder, size_t folder_length) {
    char name[NAME_MAX_LENGTH + 16];
    snprintf(name, sizeof name, "%.*sbyteorder", (int)folder_length, folder);
    const sd_zip_member *member = sd_zip_find(&file->zip, name);
    unsigned char text[8] = {0};
    if (!member || member->bytes >= sizeof text)
        return SD_OK;
    sd_status status = read_member(file, member, text);
    if (status == SD_OK && strcmp((const char *)text, "big") == 0)
        return sd_fail(SD_ERR_UNSUPPORTED, "%s: its numbers are big-endian", sd_input_file_path(file->input));
    return status;
}

/* Each storage of the pickle is the member "FOLDER/data/KEY". */
static sd_status find_members(sd_tensor_file *file, const sd_pickle *pickle, const char *folder, size_t folder_length,
                              size_t *storage_of) {
    file->storages = SD_NEW_ARRAY(file->context, sd_storage, file->zip.count);
    if (!file->storages)
        return SD_ERR_MEMORY;
    file->storage_count = file->zip.count;
    for (size_t i = 0; i < file->zip.count; i++) {
        const sd_zip_member *member = &file->zip.members[i];
        file->storages[i] = (sd_storage){.name = member->name,
                                         .position = member->position,
                                         .packed_bytes = member->packed_bytes,
                                         .bytes = member->bytes,
                                         .deflated = member->deflated,
                                         .has_crc = member->crc != 0,
                                         .crc = member->crc};
    }
    for (size_t i = 0; i < pickle->storage_count; i++) {
        sd_pickle_text key = pickle->storages[i].key;
        char name[2 * NAME_MAX_LENGTH];
        storage_of[i] = SIZE_MAX;
        if (key.length > NAME_MAX_LENGTH - 16)
            continue;
        snprintf(name, sizeof name, "%.*sdata/%.*s", (int)folder_length, folder, (int)key.length,
                 (const char *)pickle->bytes + key.at);
        const sd_zip_member *member = sd_zip_find(&file->zip, name);
        if (member)
            storage_of[i] = (size_t)(member - file->zip.members);
    }
    return SD_OK;
}

sd_status sd_pth_open(sd_tensor_file *file) {
    const char *path = sd_input_file_path(file->input);
    const sd_zip_member *member = sd_pth_find(&file->zip);
    size_t folder_length = strlen(member->name) - strlen(pickle_name), *storage_of = NULL;
    sd_pickle_id root;
    sd_status status;
    sd_pickle pickle;
    sd_pickle_init(&pickle, file->context, path, NULL, 0);
    SD_EXPECT(folder_length <= NAME_MAX_LENGTH - 16, SD_ERR_FORMAT, "%s: a member with a name of %zu bytes", path,
              strlen(member->name));
    SD_TRY(check_byte_order(file, member->name, folder_length));
    SD_TRY(read_pickle(file, member, &pickle));
    SD_TRY(sd_pickle_run(&pickle, &root));
    storage_of = SD_NEW_ARRAY(file->context, size_t, pickle.storage_count);
    if (!storage_of) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    SD_TRY(find_members(file, &pickle, member->name, folder_length, storage_of));
    status = make_table(file, &pickle, root, storage_of);
cleanup:
    sd_release(file->context, storage_of);
    sd_pickle_clear(&pickle);
    return status;
}

/* ---- the old form ------------------------------------------------------------------------------ */

/* A number, a version, what is known of the machine, the object, the keys of the storages; then for each key the number
 * of its elements (eight bytes) and the elements. */
static const unsigned char magic[10] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};

static sd_status run_heads(sd_pickle *pickle) {
    sd_pickle_id id;
    sd_status status = sd_pickle_run(pickle, &id);
    if (status != SD_OK)
        return status;
    const sd_pickle_value *value = &pickle->values[id];
    SD_REQUIRE(value->kind == SD_PICKLE_BIG && value->text.length == sizeof magic &&
                   memcmp(pickle->bytes + value->text.at, magic, sizeof magic) == 0,
               SD_ERR_FORMAT, "%s: a pickle, but not a file of PyTorch", pickle->path);
    status = sd_pickle_run(pickle, &id);
    if (status != SD_OK)
        return status;
    value = &pickle->values[id];
    SD_REQUIRE(value->kind == SD_PICKLE_INTEGER && value->integer == 1001, SD_ERR_VERSION,
               "%s: a file of PyTorch in a form other than 1001", pickle->path);
    status = sd_pickle_run(pickle, &id);
    if (status != SD_OK)
        return status;
    value = &pickle->values[id];
    SD_REQUIRE(value->kind == SD_PICKLE_DICT, SD_ERR_FORMAT, "%s: its third pickle is not a dictionary", pickle->path);
    for (uint32_t cell = value->list.first; cell != 0; cell = pickle->cells[cell].next)
        if (sd_pickle_is(pickle, &pickle->values[pickle->cells[cell].key], "little_endian"))
            SD_REQUIRE(pickle->values[pickle->cells[cell].value].integer != 0, SD_ERR_UNSUPPORTED,
                       "%s: its numbers are big-endian", pickle->path);
    return SD_OK;
}

/* The keys of the pickle's storages in order, so that those of the file find theirs. */
typedef struct keyed {
    const unsigned char *text;
    size_t length, index;
} keyed;

static int by_key(const void *left, const void *right) {
    const keyed *a = left, *b = right;
    if (a->length != b->length)
        return a->length < b->length ? -1 : 1;
    return memcmp(a->text, b->text, a->length);
}

/* Goes through the storages that lie in the file one after the other. */
static sd_status find_storages(sd_tensor_file *file, const sd_pickle *pickle, sd_pickle_id list, keyed *sorted,
                               size_t *storage_of) {
    const char *path = pickle->path;
    const sd_pickle_value *keys = &pickle->values[list];
    uint64_t position = pickle->position + pickle->at, size = sd_input_file_size(file->input);
    SD_REQUIRE(keys->kind == SD_PICKLE_LIST, SD_ERR_FORMAT, "%s: its last pickle is not a list of storages", path);
    SD_REQUIRE(keys->list.count <= (size - position) / 8, SD_ERR_FORMAT, "%s: truncated: %u storages in %llu bytes",
               path, keys->list.count, (unsigned long long)(size - position));
    file->storages = SD_NEW_ARRAY(file->context, sd_storage, keys->list.count);
    if (!file->storages)
        return SD_ERR_MEMORY;
    for (size_t i = 0; i < pickle->storage_count; i++) {
        sd_pickle_text key = pickle->storages[i].key;
        sorted[i] = (keyed){pickle->bytes + key.at, key.length, i};
        storage_of[i] = SIZE_MAX;
    }
    qsort(sorted, pickle->storage_count, sizeof *sorted, by_key);
    for (uint32_t cell = keys->list.first; cell != 0; cell = pickle->cells[cell].next) {
        const sd_pickle_value *key = &pickle->values[pickle->cells[cell].value];
        SD_REQUIRE(key->kind == SD_PICKLE_TEXT, SD_ERR_FORMAT, "%s: the key of a storage is not text", path);
        const keyed wanted = {pickle->bytes + key->text.at, key->text.length, 0};
        keyed *found = bsearch(&wanted, sorted, pickle->storage_count, sizeof *sorted, by_key);
        SD_REQUIRE(found, SD_ERR_FORMAT, "%s: storage %.*s belongs to no tensor", path,
                   (int)sd_size_min(wanted.length, 100), (const char *)wanted.text);
        while (found > sorted && by_key(found - 1, &wanted) == 0)
            found--;
        SD_REQUIRE(storage_of[found->index] == SIZE_MAX, SD_ERR_FORMAT, "%s: storage %.*s is there twice", path,
                   (int)sd_size_min(wanted.length, 100), (const char *)wanted.text);
        const sd_pickle_storage *storage = &pickle->storages[found->index];
        uint64_t item = sd_dtype_size(storage->dtype), bytes, elements = 0;
        unsigned char count[8];
        SD_REQUIRE(item > 0, SD_ERR_UNSUPPORTED, "%s: storage %.*s does not hold real numbers", path,
                   (int)sd_size_min(wanted.length, 100), (const char *)wanted.text);
        SD_REQUIRE(size - position >= sizeof count, SD_ERR_FORMAT, "%s: truncated", path);
        sd_status status = sd_input_file_read(file->input, position, count, sizeof count);
        if (status != SD_OK)
            return status;
        for (size_t i = sizeof count; i-- > 0;)
            elements = elements << 8 | count[i];
        position += sizeof count;
        SD_REQUIRE(!__builtin_mul_overflow(elements, item, &bytes) && bytes <= size - position, SD_ERR_FORMAT,
                   "%s: storage %.*s of %llu elements reaches beyond the file", path,
                   (int)sd_size_min(wanted.length, 100), (const char *)wanted.text, (unsigned long long)elements);
        file->storages[file->storage_count] =
            (sd_storage){.name = "a storage", .position = position, .packed_bytes = bytes, .bytes = bytes};
        for (; found < sorted + pickle->storage_count && by_key(found, &wanted) == 0; found++)
            storage_of[found->index] = file->storage_count;
        file->storage_count++;
        position += bytes;
    }
    return SD_OK;
}

sd_status sd_pth_legacy_open(sd_tensor_file *file) {
    sd_pickle_id root, keys;
    size_t *storage_of = NULL;
    keyed *sorted = NULL;
    sd_status status;
    sd_pickle pickle;
    sd_pickle_init(&pickle, file->context, sd_input_file_path(file->input), file->input, 0);
    SD_TRY(run_heads(&pickle));
    SD_TRY(sd_pickle_run(&pickle, &root));
    SD_TRY(sd_pickle_run(&pickle, &keys));
    storage_of = SD_NEW_ARRAY(file->context, size_t, pickle.storage_count);
    sorted = SD_NEW_ARRAY(file->context, keyed, pickle.storage_count);
    if (!storage_of || !sorted) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    SD_TRY(find_storages(file, &pickle, keys, sorted, storage_of));
    status = make_table(file, &pickle, root, storage_of);
cleanup:
    sd_release(file->context, sorted);
    sd_release(file->context, storage_of);
    sd_pickle_clear(&pickle);
    return status;
}
