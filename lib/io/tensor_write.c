/* Arrays to files: the ending of the name tells the form. */
#include "io/dtype.h"
#include "io/npy.h"
#include "io/tensor_file.h"

#include <string.h>

/* Bytes of an array; checks it. */
static sd_status measure(const sd_tensor_data *tensor, size_t *bytes) {
    SD_REQUIRE(tensor->name, SD_ERR_ARGUMENT, "the name of an array is NULL");
    SD_REQUIRE(tensor->dimensions >= 0 && tensor->dimensions <= SD_STORED_DIMENSIONS, SD_ERR_ARGUMENT,
               "%s has %d dimensions", tensor->name, (int)tensor->dimensions);
    *bytes = sd_dtype_size(tensor->dtype);
    SD_REQUIRE(*bytes > 0, SD_ERR_ARGUMENT, "%s: dtype %d cannot be written", tensor->name, (int)tensor->dtype);
    for (int32_t i = 0; i < tensor->dimensions; i++)
        SD_REQUIRE(tensor->shape[i] >= 0 && sd_size_mul(*bytes, (size_t)tensor->shape[i], bytes), SD_ERR_ARGUMENT,
                   "%s: shape[%d] is %lld", tensor->name, (int)i, (long long)tensor->shape[i]);
    SD_REQUIRE(tensor->data || *bytes == 0, SD_ERR_ARGUMENT, "%s has no data", tensor->name);
    return SD_OK;
}

static sd_status print_header(const sd_tensor_data *tensor, char *header, size_t *size) {
    *size = sd_npy_print(tensor, header);
    SD_REQUIRE(*size > 0, SD_ERR_ARGUMENT, "%s: NumPy has no type %s", tensor->name, sd_dtype_name(tensor->dtype));
    return SD_OK;
}

static sd_status write_npy(sd_context *context, const char *path, const sd_tensor_data *tensor) {
    char header[SD_NPY_PRINT_MAX];
    size_t header_size, bytes;
    sd_atomic_file *file = NULL;
    sd_status status;
    SD_TRY(measure(tensor, &bytes));
    SD_TRY(print_header(tensor, header, &header_size));
    SD_TRY(sd_atomic_file_open(context, path, &file));
    SD_TRY(sd_atomic_file_write(file, 0, header, header_size));
    SD_TRY(sd_atomic_file_write(file, header_size, tensor->data, bytes));
    status = sd_atomic_file_commit(file);
    file = NULL;
cleanup:
    sd_atomic_file_discard(file);
    return status;
}

static sd_status put_array(sd_context *context, sd_zip_writer *writer, const sd_tensor_data *tensor) {
    char header[SD_NPY_PRINT_MAX], *name = NULL;
    size_t header_size, bytes, length = strlen(tensor->name);
    sd_status status;
    SD_TRY(measure(tensor, &bytes));
    SD_TRY(print_header(tensor, header, &header_size));
    name = SD_NEW_ARRAY(context, char, length + 5);
    if (!name) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    memcpy(name, tensor->name, length);
    memcpy(name + length, ".npy", 5);
    SD_TRY(sd_zip_writer_begin(writer, name));
    SD_TRY(sd_zip_writer_put(writer, header, header_size));
    SD_TRY(sd_zip_writer_put(writer, tensor->data, bytes));
    status = sd_zip_writer_end(writer);
cleanup:
    sd_release(context, name);
    return status;
}

static sd_status write_npz(sd_context *context, const char *path, const sd_tensor_data *tensors, size_t count,
                           bool compress) {
    sd_atomic_file *file = NULL;
    sd_zip_writer *writer = NULL;
    sd_status status;
    SD_TRY(sd_atomic_file_open(context, path, &file));
    SD_TRY(sd_zip_writer_create(context, file, compress, &writer));
    for (size_t i = 0; i < count; i++)
        SD_TRY(put_array(context, writer, &tensors[i]));
    SD_TRY(sd_zip_writer_finish(writer));
    status = sd_atomic_file_commit(file);
    file = NULL;
cleanup:
    sd_zip_writer_destroy(writer);
    sd_atomic_file_discard(file);
    return status;
}

static sd_status write_safetensors(sd_context *context, const char *path, const sd_tensor_data *tensors, size_t count) {
    sd_tensor_source *sources = SD_NEW_ARRAY(context, sd_tensor_source, count);
    if (!sources)
        return SD_ERR_MEMORY;
    sd_status status = SD_OK;
    for (size_t i = 0; i < count; i++) {
        size_t bytes;
        SD_TRY(measure(&tensors[i], &bytes));
        sources[i] = (sd_tensor_source){.name = tensors[i].name,
                                        .dimensions = (size_t)tensors[i].dimensions,
                                        .data = tensors[i].data,
                                        .dtype = tensors[i].dtype};
        for (size_t j = 0; j < sources[i].dimensions; j++)
            sources[i].shape[j] = (uint64_t)tensors[i].shape[j];
    }
    status = sd_safetensors_write(context, path, sources, count, NULL, 0);
cleanup:
    sd_release(context, sources);
    return status;
}

/* No two alike; the other forms check that themselves. */
static sd_status check_names(const sd_tensor_data *tensors, size_t count) {
    for (size_t i = 0; i < count; i++) {
        SD_REQUIRE(tensors[i].name && tensors[i].name[0], SD_ERR_ARGUMENT, "the name of array %zu is %s", i,
                   tensors[i].name ? "empty" : "NULL");
        for (size_t j = 0; j < i; j++)
            SD_REQUIRE(strcmp(tensors[i].name, tensors[j].name) != 0, SD_ERR_ARGUMENT, "two arrays are called %s",
                       tensors[i].name);
    }
    return SD_OK;
}

static bool ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), wanted = strlen(ending);
    return length > wanted && strcmp(text + length - wanted, ending) == 0;
}

SD_API sd_status sd_tensor_file_write(sd_context *context, const char *path, const sd_tensor_data *tensors,
                                      size_t count, int32_t compress) {
    SD_REQUIRE(path, SD_ERR_ARGUMENT, "path is NULL");
    SD_REQUIRE(tensors || count == 0, SD_ERR_ARGUMENT, "tensors is NULL");
    SD_REQUIRE(compress == 0 || compress == 1, SD_ERR_ARGUMENT, "compress is %d: it must be 0 or 1", (int)compress);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    SD_REQUIRE(false, SD_ERR_UNSUPPORTED, "files of tensors are little-endian, which this machine is not");
#endif
    if (ends_with(path, ".safetensors"))
        return write_safetensors(context, path, tensors, count);
    if (ends_with(path, ".npz")) {
        sd_status status = check_names(tensors, count);
        return status == SD_OK ? write_npz(context, path, tensors, count, compress == 1) : status;
    }
    SD_REQUIRE(ends_with(path, ".npy"), SD_ERR_ARGUMENT, "%s: its name must end in .safetensors, .npz or .npy", path);
    SD_REQUIRE(count == 1, SD_ERR_ARGUMENT, "%s: an .npy file holds one array, not %zu", path, count);
    return write_npy(context, path, tensors);
}
