/* What all forms of tensor files come to: a table of tensors, and the places of their bytes. */
#ifndef SD_IO_TENSOR_FILE_H
#define SD_IO_TENSOR_FILE_H

#include "base/base.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "io/zip.h"
#include <simdino/io.h>

/* A range of the file that tensors share. */
typedef struct sd_storage {
    const char *name;      /* for messages */
    uint64_t position;     /* in the file */
    uint64_t packed_bytes; /* there */
    uint64_t bytes;        /* unpacked */
    bool deflated, has_crc;
    uint32_t crc; /* of all unpacked bytes */
} sd_storage;

typedef struct sd_stored {
    const char *name;
    int32_t dtype;
    bool swapped;
    size_t dimensions;
    uint64_t shape[SD_STORED_DIMENSIONS];
    uint64_t stride[SD_STORED_DIMENSIONS]; /* in elements */
    uint64_t count;
    uint64_t first; /* byte of the storage where element 0 is */
    uint64_t bytes; /* count times the size of an element */
    size_t storage;
    double number; /* of SD_DTYPE_NUMBER, which has no storage */
} sd_stored;

struct sd_tensor_file {
    sd_context *context;
    int32_t form;
    sd_input_file *owned; /* NULL for safetensors */
    const sd_input_file *input;
    sd_safetensors *safetensors; /* of that form, else NULL */
    sd_zip zip;
    sd_storage *storages;
    size_t storage_count;
    sd_stored *tensors;
    size_t count;
    size_t *by_name; /* indices */
    char *names;     /* those that are not texts of the parts above */
};

/* Checks a tensor that has strides against its storage, and fills in its bytes. Errors: SD_ERR_FORMAT. */
sd_status sd_stored_check(const sd_tensor_file *file, sd_stored *tensor);
void sd_stored_set_strides(sd_stored *tensor, bool fortran); /* of one without gaps */

/* The forms: each fills storages and tensors of a file whose `input` is open. What they leave when they fail is
 * released by sd_tensor_file_close. `npz.c`, `torch_file.c`. */
sd_status sd_npz_open(sd_tensor_file *file); /* file->zip is open */
sd_status sd_npy_open(sd_tensor_file *file);
sd_status sd_pth_open(sd_tensor_file *file); /* file->zip is open */
sd_status sd_pth_legacy_open(sd_tensor_file *file);
const sd_zip_member *sd_pth_find(const sd_zip *zip); /* its data.pkl; NULL: no such archive */

/* Bytes that the file's storages have, unpacked; at most UINT64_MAX. */
uint64_t sd_tensor_file_bytes(const sd_tensor_file *file);

#endif
