/* .npz archives and .npy files. */
#include "io/dtype.h"
#include "io/npy.h"
#include "io/tensor_file.h"

#include <string.h>

/* What both forms do once the header is at hand; `offset` bytes come before the elements. */
static sd_status take_array(sd_tensor_file *file, size_t index, const char *text, size_t text_size, size_t offset) {
    const char *path = sd_input_file_path(file->input);
    sd_storage *storage = &file->storages[index];
    sd_stored *tensor = &file->tensors[index];
    sd_npy npy;
    const char *problem = sd_npy_parse(text, text_size, &npy);
    SD_REQUIRE(!problem, SD_ERR_FORMAT, "%s: %.300s: npy header: %s", path, tensor->name, problem);
    SD_REQUIRE(npy.dtype == SD_DTYPE_OTHER || npy.bytes == storage->bytes - offset, SD_ERR_FORMAT,
               "%s: %.300s: its header tells of %llu bytes, there are %llu", path, tensor->name,
               (unsigned long long)npy.bytes, (unsigned long long)(storage->bytes - offset));
    tensor->dtype = npy.dtype;
    tensor->swapped = npy.swapped;
    tensor->dimensions = npy.dimensions;
    memcpy(tensor->shape, npy.shape, sizeof tensor->shape);
    tensor->storage = index;
    tensor->first = offset;
    sd_stored_set_strides(tensor, npy.fortran);
    sd_status status = sd_stored_check(file, tensor);
    if (npy.dtype == SD_DTYPE_OTHER)
        tensor->bytes = storage->bytes - offset;
    return status;
}

/* Reads only the header. */
static sd_status read_array(sd_tensor_file *file, size_t index) {
    const sd_storage *storage = &file->storages[index];
    const char *path = sd_input_file_path(file->input);
    unsigned char prefix[SD_NPY_PREFIX];
    size_t known = storage->bytes < sizeof prefix ? (size_t)storage->bytes : sizeof prefix, header = 0;
    sd_unpacker *unpacker = NULL;
    char *text = NULL;
    sd_status status;
    SD_TRY(sd_unpacker_open(file->context, file->input, storage->name, storage->position, storage->packed_bytes,
                            storage->deflated, &unpacker));
    SD_TRY(sd_unpacker_read(unpacker, prefix, known));
    size_t offset = sd_npy_data_offset(prefix, known, &header);
    SD_EXPECT(offset > 0 && offset <= storage->bytes && known == sizeof prefix, SD_ERR_FORMAT,
              "%s: %.300s: not an npy array, or truncated", path, file->tensors[index].name);
    size_t size = sd_size_max(offset, known);
    text = SD_NEW_ARRAY(file->context, char, size);
    if (!text) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    memcpy(text, prefix, known);
    SD_TRY(sd_unpacker_read(unpacker, text + known, size - known));
    status = take_array(file, index, text + header, offset - header, offset);
cleanup:
    sd_release(file->context, text);
    sd_unpacker_close(unpacker);
    return status;
}

static sd_status make_room(sd_tensor_file *file, size_t count, size_t names) {
    file->tensors = SD_NEW_ARRAY(file->context, sd_stored, count);
    file->storages = SD_NEW_ARRAY(file->context, sd_storage, count);
    file->names = SD_NEW_ARRAY(file->context, char, names);
    if (!file->tensors || !file->storages || !file->names)
        return SD_ERR_MEMORY;
    file->count = file->storage_count = count;
    return SD_OK;
}

sd_status sd_npz_open(sd_tensor_file *file) {
    size_t names = 1, used = 0;
    for (size_t i = 0; i < file->zip.count; i++)
        names += strlen(file->zip.members[i].name) + 1;
    sd_status status = make_room(file, file->zip.count, names);
    if (status != SD_OK)
        return status;
    for (size_t i = 0; i < file->zip.count; i++) {
        const sd_zip_member *member = &file->zip.members[i];
        size_t length = strlen(member->name);
        SD_REQUIRE(length > 4 && strcmp(member->name + length - 4, ".npy") == 0, SD_ERR_FORMAT,
                   "%s: a zip archive that is neither PyTorch's nor NumPy's: it holds %.300s",
                   sd_input_file_path(file->input), member->name);
        file->tensors[i].name = memcpy(file->names + used, member->name, length - 4); /* the memory is zeroed */
        used += length - 3;
        file->storages[i] = (sd_storage){.name = member->name,
                                         .position = member->position,
                                         .packed_bytes = member->packed_bytes,
                                         .bytes = member->bytes,
                                         .deflated = member->deflated,
                                         .has_crc = true,
                                         .crc = member->crc};
        status = read_array(file, i);
        if (status != SD_OK)
            return status;
    }
    return SD_OK;
}

sd_status sd_npy_open(sd_tensor_file *file) {
    sd_status status = make_room(file, 1, 1);
    if (status != SD_OK)
        return status;
    uint64_t size = sd_input_file_size(file->input);
    file->tensors[0].name = "array";
    file->storages[0] = (sd_storage){.name = "the array", .packed_bytes = size, .bytes = size};
    return read_array(file, 0);
}
