#include "io/tensor_file.h"

#include "io/checksum.h"
#include "io/dtype.h"

#include <stdlib.h>
#include <string.h>

#define PIECE        ((size_t)1 << 18)
#define EXPANDED_MAX ((uint64_t)1 << 28) /* elements of a tensor that repeats those of its storage */

/* ---- what all forms need --------------------------------------------------------------------- */

void sd_stored_set_strides(sd_stored *tensor, bool fortran) {
    uint64_t stride = 1;
    for (size_t i = 0; i < tensor->dimensions; i++) {
        size_t axis = fortran ? i : tensor->dimensions - 1 - i;
        tensor->stride[axis] = stride;
        if (tensor->shape[axis] > 0) /* what is empty may wrap around here: it is not read */
            stride *= tensor->shape[axis];
    }
}

sd_status sd_stored_check(const sd_tensor_file *file, sd_stored *tensor) {
    const char *path = sd_input_file_path(file->input);
    const sd_storage *storage = &file->storages[tensor->storage];
    uint64_t size = sd_dtype_size(tensor->dtype), last = 0, reach, end;
    tensor->count = 1;
    for (size_t i = 0; i < tensor->dimensions; i++)
        SD_REQUIRE(tensor->shape[i] <= INT64_MAX &&
                       !__builtin_mul_overflow(tensor->count, tensor->shape[i], &tensor->count),
                   SD_ERR_FORMAT, "%s: tensor %.300s is too large", path, tensor->name);
    if (tensor->dtype == SD_DTYPE_OTHER)
        return SD_OK; /* it is not read */
    SD_REQUIRE(!__builtin_mul_overflow(tensor->count, size, &tensor->bytes) && tensor->bytes <= INT64_MAX,
               SD_ERR_FORMAT, "%s: tensor %.300s is too large", path, tensor->name);
    if (tensor->count == 0)
        return SD_OK;
    bool fits = true;
    for (size_t i = 0; i < tensor->dimensions; i++)
        fits = fits && !__builtin_mul_overflow(tensor->shape[i] - 1, tensor->stride[i], &reach) &&
               !__builtin_add_overflow(last, reach, &last);
    fits = fits && !__builtin_mul_overflow(last, size, &end) && !__builtin_add_overflow(end, tensor->first, &end) &&
           !__builtin_add_overflow(end, size, &end) && end <= storage->bytes;
    SD_REQUIRE(fits, SD_ERR_FORMAT, "%s: tensor %.300s reaches beyond its storage %.200s of %llu bytes", path,
               tensor->name, storage->name, (unsigned long long)storage->bytes);
    SD_REQUIRE(tensor->count <= EXPANDED_MAX || tensor->count <= storage->bytes / size, SD_ERR_FORMAT,
               "%s: tensor %.300s has %llu elements, its storage %.200s only %llu bytes", path, tensor->name,
               (unsigned long long)tensor->count, storage->name, (unsigned long long)storage->bytes);
    return SD_OK;
}

uint64_t sd_tensor_file_bytes(const sd_tensor_file *file) {
    uint64_t sum = 0;
    for (size_t i = 0; i < file->storage_count; i++)
        if (__builtin_add_overflow(sum, file->storages[i].bytes, &sum))
            return UINT64_MAX;
    return sum;
}

/* ---- safetensors ----------------------------------------------------------------------------- */

static sd_status open_safetensors(sd_tensor_file *file, const char *path) {
    sd_status status = sd_safetensors_open(file->context, path, &file->safetensors);
    if (status != SD_OK)
        return status;
    size_t count = sd_safetensors_count(file->safetensors);
    file->input = sd_safetensors_input(file->safetensors);
    file->tensors = SD_NEW_ARRAY(file->context, sd_stored, count);
    file->storages = SD_NEW_ARRAY(file->context, sd_storage, count);
    if (!file->tensors || !file->storages)
        return SD_ERR_MEMORY;
    file->count = file->storage_count = count;
    for (size_t i = 0; i < count; i++) {
        const sd_tensor_entry *entry = sd_safetensors_at(file->safetensors, i);
        sd_stored *tensor = &file->tensors[i];
        *tensor = (sd_stored){.name = entry->name,
                              .dtype = sd_dtype_of_safetensors(entry->dtype),
                              .dimensions = entry->dimensions,
                              .storage = i};
        memcpy(tensor->shape, entry->shape, sizeof tensor->shape);
        sd_stored_set_strides(tensor, false);
        file->storages[i] = (sd_storage){
            .name = entry->name, .position = entry->begin, .packed_bytes = entry->bytes, .bytes = entry->bytes};
        status = sd_stored_check(file, tensor);
        if (status != SD_OK)
            return status;
    }
    return SD_OK;
}

/* ---- opening --------------------------------------------------------------------------------- */

static sd_status open_zip(sd_tensor_file *file) {
    sd_status status = sd_zip_open(file->context, file->input, &file->zip);
    if (status != SD_OK)
        return status;
    if (sd_pth_find(&file->zip)) {
        file->form = SD_FORM_PTH;
        return sd_pth_open(file);
    }
    file->form = SD_FORM_NPZ;
    return sd_npz_open(file);
}

static sd_status open_form(sd_tensor_file *file, const char *path) {
    unsigned char start[9] = {0};
    uint64_t size = sd_input_file_size(file->owned);
    SD_REQUIRE(size > 0, SD_ERR_FORMAT, "%s: the file is empty", path);
    sd_status status = sd_input_file_read(file->owned, 0, start, size < sizeof start ? (size_t)size : sizeof start);
    if (status != SD_OK)
        return status;
    file->input = file->owned;
    if (memcmp(start, "PK\x03\x04", 4) == 0 || memcmp(start, "PK\x05\x06", 4) == 0)
        return open_zip(file);
    if (memcmp(start, "\x93NUMPY", 6) == 0) {
        file->form = SD_FORM_NPY;
        return sd_npy_open(file);
    }
    if (start[0] == 0x80 && start[1] >= 2 && start[1] <= 5 && start[8] != '{') {
        file->form = SD_FORM_PTH_LEGACY;
        return sd_pth_legacy_open(file);
    }
    SD_REQUIRE(start[8] == '{', SD_ERR_FORMAT,
               "%s: not a file of tensors: neither safetensors, nor PyTorch's, nor NumPy's", path);
    sd_input_file_close(file->owned);
    file->owned = NULL;
    file->form = SD_FORM_SAFETENSORS;
    return open_safetensors(file, path);
}

/* Merge sort by name would need memory of its own; qsort gets at the names through this. */
typedef struct named_index {
    const char *name;
    size_t index;
} named_index;

static int by_name(const void *left, const void *right) {
    const named_index *a = left, *b = right;
    int order = strcmp(a->name, b->name);
    return order != 0 ? order : a->index < b->index ? -1 : a->index > b->index;
}

static sd_status sort_names(sd_tensor_file *file) {
    named_index *named = SD_NEW_ARRAY(file->context, named_index, file->count);
    file->by_name = SD_NEW_ARRAY(file->context, size_t, file->count);
    if (named && file->by_name) {
        for (size_t i = 0; i < file->count; i++)
            named[i] = (named_index){file->tensors[i].name, i};
        qsort(named, file->count, sizeof *named, by_name);
        for (size_t i = 0; i < file->count; i++)
            file->by_name[i] = named[i].index;
    }
    sd_release(file->context, named);
    return named && file->by_name ? SD_OK : SD_ERR_MEMORY;
}

SD_API sd_status sd_tensor_file_open(sd_context *context, const char *path, sd_tensor_file **out) {
    SD_REQUIRE(out, SD_ERR_ARGUMENT, "file is NULL");
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    SD_REQUIRE(false, SD_ERR_UNSUPPORTED, "files of tensors are little-endian, which this machine is not");
#endif
    sd_status status;
    sd_tensor_file *file = SD_NEW(context, sd_tensor_file);
    if (!file)
        return SD_ERR_MEMORY;
    file->context = context;
    file->zip.context = context;
    SD_TRY(sd_input_file_open(context, path, &file->owned));
    SD_TRY(open_form(file, path));
    SD_TRY(sort_names(file));
    *out = file;
    return SD_OK;
cleanup:
    sd_tensor_file_close(file);
    return status;
}

SD_API void sd_tensor_file_close(sd_tensor_file *file) {
    if (!file)
        return;
    sd_context *context = file->context;
    sd_release(context, file->by_name);
    sd_release(context, file->tensors);
    sd_release(context, file->storages);
    sd_release(context, file->names);
    sd_zip_close(&file->zip);
    sd_safetensors_close(file->safetensors);
    sd_input_file_close(file->owned);
    sd_release(context, file);
}

/* ---- asking ---------------------------------------------------------------------------------- */

SD_API int32_t sd_tensor_file_format(const sd_tensor_file *file) {
    return file ? file->form : -1;
}

SD_API size_t sd_tensor_file_count(const sd_tensor_file *file) {
    return file ? file->count : 0;
}

SD_API sd_status sd_tensor_file_info(const sd_tensor_file *file, size_t index, sd_stored_tensor *info) {
    SD_REQUIRE(file && info, SD_ERR_ARGUMENT, "%s is NULL", file ? "info" : "file");
    SD_REQUIRE(index < file->count, SD_ERR_ARGUMENT, "index is %zu: the file has %zu tensors", index, file->count);
    size_t size = info->size;
    SD_REQUIRE(size >= sizeof size, SD_ERR_ARGUMENT, "info->size is %zu: set it to sizeof(sd_stored_tensor)", size);
    const sd_stored *tensor = &file->tensors[index];
    sd_stored_tensor found = {.size = size,
                              .name = tensor->name,
                              .dtype = tensor->dtype,
                              .dimensions = (int32_t)tensor->dimensions,
                              .count = tensor->count,
                              .bytes = tensor->bytes,
                              .number = tensor->number};
    for (size_t i = 0; i < tensor->dimensions; i++)
        found.shape[i] = (int64_t)tensor->shape[i];
    memcpy(info, &found, sd_size_min(size, sizeof found));
    return SD_OK;
}

SD_API size_t sd_tensor_file_find(const sd_tensor_file *file, const char *name) {
    if (!file || !name)
        return 0;
    size_t low = 0, high = file->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(file->tensors[file->by_name[middle]].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < file->count && strcmp(file->tensors[file->by_name[low]].name, name) == 0)
        return file->by_name[low];
    return file->count;
}

SD_API const char *sd_tensor_file_metadata(const sd_tensor_file *file, const char *key) {
    return file && key && file->safetensors ? sd_safetensors_metadata(file->safetensors, key) : NULL;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Bytes of a storage from front to back. When a range reaches from its beginning to its end the checksum is compared.
 * */
typedef struct range_reader {
    const sd_tensor_file *file;
    const sd_storage *storage;
    sd_unpacker *unpacker;
    uint64_t at;
    uint32_t crc;
    bool sums;
} range_reader;

static sd_status range_read(range_reader *reader, void *bytes, size_t count) {
    sd_status status = sd_unpacker_read(reader->unpacker, bytes, count);
    if (status == SD_OK && reader->sums)
        reader->crc = sd_crc32(reader->crc, bytes, count);
    reader->at += count;
    return status;
}

static sd_status range_begin(range_reader *reader, uint64_t first, uint64_t bytes) {
    const sd_storage *storage = reader->storage;
    sd_status status = sd_unpacker_open(reader->file->context, reader->file->input, storage->name, storage->position,
                                        storage->packed_bytes, storage->deflated, &reader->unpacker);
    if (status != SD_OK)
        return status;
    unsigned char head[512]; /* the header of an .npy array */
    reader->sums = storage->has_crc && first + bytes == storage->bytes && first <= 1 << 17;
    while (reader->sums && status == SD_OK && reader->at < first)
        status =
            range_read(reader, head, first - reader->at < sizeof head ? (size_t)(first - reader->at) : sizeof head);
    if (status == SD_OK && reader->at < first)
        status = sd_unpacker_read(reader->unpacker, NULL, first - reader->at);
    return status;
}

static sd_status range_end(range_reader *reader) {
    const sd_storage *storage = reader->storage;
    if (!reader->sums)
        return SD_OK;
    SD_REQUIRE(reader->crc == storage->crc, SD_ERR_CHECKSUM, "%s: %.300s is damaged: its checksum differs",
               sd_input_file_path(reader->file->input), storage->name);
    return sd_unpacker_finish(reader->unpacker);
}

static bool is_contiguous(const sd_stored *tensor) {
    uint64_t stride = 1;
    for (size_t i = tensor->dimensions; i-- > 0;) {
        if (tensor->shape[i] != 1 && tensor->stride[i] != stride)
            return false;
        stride *= tensor->shape[i];
    }
    return true;
}

static sd_status read_contiguous(range_reader *reader, const sd_stored *tensor, float *out) {
    size_t size = sd_dtype_size(tensor->dtype), count = (size_t)tensor->count, step = PIECE / size;
    sd_context *context = reader->file->context;
    bool plain = tensor->dtype == SD_DTYPE_F32 && !tensor->swapped;
    unsigned char *piece = plain ? NULL : SD_NEW_ARRAY(context, unsigned char, PIECE);
    if (!plain && !piece)
        return SD_ERR_MEMORY;
    sd_status status;
    SD_TRY(range_begin(reader, tensor->first, tensor->bytes));
    for (size_t done = 0; done < count;) {
        size_t here = sd_size_min(count - done, step);
        SD_TRY(range_read(reader, plain ? (void *)(out + done) : piece, here * size));
        if (!plain)
            sd_dtype_to_float(tensor->dtype, tensor->swapped, piece, (ptrdiff_t)size, here, out + done);
        done += here;
    }
    status = range_end(reader);
cleanup:
    sd_release(context, piece);
    return status;
}

/* All that the tensor spans is read, and its rows are gathered from there. */
static sd_status read_strided(range_reader *reader, const sd_stored *tensor, float *out) {
    sd_context *context = reader->file->context;
    size_t size = sd_dtype_size(tensor->dtype), span = 1, index[SD_STORED_DIMENSIONS] = {0};
    size_t last = tensor->dimensions - 1, row = (size_t)tensor->shape[last];
    for (size_t i = 0; i < tensor->dimensions; i++)
        span += (size_t)((tensor->shape[i] - 1) * tensor->stride[i]);
    unsigned char *bytes = SD_NEW_ARRAY(context, unsigned char, span * size);
    if (!bytes)
        return SD_ERR_MEMORY;
    sd_status status;
    SD_TRY(range_begin(reader, tensor->first, span * size));
    for (size_t done = 0; done < span * size;) {
        size_t here = sd_size_min(span * size - done, PIECE);
        SD_TRY(range_read(reader, bytes + done, here));
        done += here;
    }
    SD_TRY(range_end(reader));
    for (size_t done = 0; done < tensor->count; done += row) {
        size_t at = 0;
        for (size_t i = 0; i < last; i++)
            at += index[i] * (size_t)tensor->stride[i];
        sd_dtype_to_float(tensor->dtype, tensor->swapped, bytes + at * size,
                          (ptrdiff_t)((size_t)tensor->stride[last] * size), row, out + done);
        for (size_t i = last; i-- > 0;) {
            if (++index[i] < tensor->shape[i])
                break;
            index[i] = 0;
        }
    }
cleanup:
    sd_release(context, bytes);
    return status;
}

SD_API sd_status sd_tensor_file_read(const sd_tensor_file *file, size_t index, float *out) {
    SD_REQUIRE(file && out, SD_ERR_ARGUMENT, "%s is NULL", file ? "out" : "file");
    SD_REQUIRE(index < file->count, SD_ERR_ARGUMENT, "index is %zu: the file has %zu tensors", index, file->count);
    const sd_stored *tensor = &file->tensors[index];
    if (tensor->dtype == SD_DTYPE_NUMBER) {
        *out = (float)tensor->number;
        return SD_OK;
    }
    SD_REQUIRE(tensor->dtype != SD_DTYPE_OTHER, SD_ERR_UNSUPPORTED, "%s: %.300s does not hold real numbers",
               sd_input_file_path(file->input), tensor->name);
    if (tensor->count == 0)
        return SD_OK;
    range_reader reader = {.file = file, .storage = &file->storages[tensor->storage]};
    sd_status status =
        is_contiguous(tensor) ? read_contiguous(&reader, tensor, out) : read_strided(&reader, tensor, out);
    sd_unpacker_close(reader.unpacker);
    return status;
}
