/* NumPy's .npy form: ten or twelve bytes, a header that is the text of a Python dictionary, the elements. */
#ifndef SD_IO_NPY_H
#define SD_IO_NPY_H

#include "base/base.h"
#include <simdino/io.h>

#define SD_NPY_PREFIX     ((size_t)12) /* enough bytes to know the header's size */
#define SD_NPY_HEADER_MAX ((size_t)65535)

typedef struct sd_npy {
    int32_t dtype;    /* SD_DTYPE_OTHER: text, complex, records, objects */
    bool swapped;     /* big-endian */
    bool fortran;     /* the first index runs fastest */
    size_t item_size; /* 0 for objects */
    size_t dimensions;
    uint64_t shape[SD_STORED_DIMENSIONS];
    uint64_t count, bytes;
} sd_npy;

/* Bytes before the elements, from the file's first `size` (up to SD_NPY_PREFIX); 0: not an .npy file, or of a version
 * or size that is not known. *header: where the dictionary begins. */
size_t sd_npy_data_offset(const void *prefix, size_t size, size_t *header);
/* `text`: the dictionary, `size` bytes. NULL, or what is wrong with it. */
const char *sd_npy_parse(const char *text, size_t size, sd_npy *npy);

/* Everything before the elements of an array, at most SD_NPY_PRINT_MAX bytes; returns their number, a multiple of 64,
 * or 0 for a type that NumPy does not have. */
#define SD_NPY_PRINT_MAX ((size_t)512)
size_t sd_npy_print(const sd_tensor_data *tensor, char *out);

#endif
