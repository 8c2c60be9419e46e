/* Element types of stored tensors: sizes, names, and the conversion to float. */
#ifndef SD_IO_DTYPE_H
#define SD_IO_DTYPE_H

#include "base/base.h"
#include <simdino/io.h>

/* Bytes of one element; 0 for SD_DTYPE_NUMBER, SD_DTYPE_OTHER and values that are no sd_dtype. */
size_t sd_dtype_size(int32_t dtype);
/* The type of a safetensors name ("BF16"); -1: none. */
int32_t sd_dtype_of_safetensors(const char *name);
const char *sd_dtype_safetensors_name(int32_t dtype);

/* `count` elements at `source`, `stride` bytes from one to the next, little-endian or with their bytes `swapped`, to
 * float: rounded to nearest, beyond its range infinite. */
void sd_dtype_to_float(int32_t dtype, bool swapped, const void *source, ptrdiff_t stride, size_t count, float *out);
double sd_dtype_to_double(int32_t dtype, bool swapped, const void *source);

#endif
