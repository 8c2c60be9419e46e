/* The safetensors format: 8 bytes with the length of a JSON header, the header, and the tensors' bytes without holes.
 * https://github.com/huggingface/safetensors tells the format.
 *
 * Files written here carry two checksums in their metadata, crc32_data (of all tensor bytes) and crc32_header (of the
 * length and the header, in which its own eight digits count as zeros), so that any damaged bit is found.
 */
#ifndef SD_IO_SAFETENSORS_H
#define SD_IO_SAFETENSORS_H

#include "base/base.h"
#include "io/file.h"

#define SD_SAFETENSORS_DIMENSIONS 8
#define SD_SAFETENSORS_HEADER_MAX ((uint64_t)100000000) /* as the format's own library */

/* ---- writing ------------------------------------------------------------------------------- */

typedef struct sd_metadata {
    const char *key, *value;
} sd_metadata;

/* A tensor to be written. */
typedef struct sd_tensor_source {
    const char *name;
    size_t dimensions; /* 0 .. SD_SAFETENSORS_DIMENSIONS */
    uint64_t shape[SD_SAFETENSORS_DIMENSIONS];
    const void *data;
    int32_t dtype;     /* sd_dtype; 0: F32 */
} sd_tensor_source;

/* Replaces the file `path` as file.h's sd_atomic_file does. Names, keys and values are UTF-8, and no name or key is
 * there twice; the keys of the checksums are added.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_IO, SD_ERR_MEMORY. */
sd_status sd_safetensors_write(sd_context *context, const char *path, const sd_tensor_source *tensors, size_t count,
                               const sd_metadata *metadata, size_t metadata_count);

/* ---- reading ------------------------------------------------------------------------------- */

typedef struct sd_safetensors sd_safetensors;

typedef struct sd_tensor_entry {
    const char *name;
    const char *dtype; /* "F32", "BF16", ... */
    size_t dimensions;
    uint64_t shape[SD_SAFETENSORS_DIMENSIONS];
    uint64_t count;    /* of elements */
    uint64_t begin;    /* position in the file */
    uint64_t bytes;
} sd_tensor_entry;

/* Reads and checks the header against the file's real size: tensors of known types that follow each other without hole
 * or overlap to the end of the file, no name twice. If the header carries a checksum it is compared. Memory is taken in
 * proportion to the header.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_IO, SD_ERR_FORMAT (names the place), SD_ERR_CHECKSUM, SD_ERR_MEMORY. */
sd_status sd_safetensors_open(sd_context *context, const char *path, sd_safetensors **file);
void sd_safetensors_close(sd_safetensors *file); /* NULL is fine */
const char *sd_safetensors_path(const sd_safetensors *file);
const sd_input_file *sd_safetensors_input(const sd_safetensors *file);

size_t sd_safetensors_count(const sd_safetensors *file);
const sd_tensor_entry *sd_safetensors_at(const sd_safetensors *file, size_t index); /* in the order of the bytes */
const sd_tensor_entry *sd_safetensors_find(const sd_safetensors *file, const char *name); /* NULL: none */

size_t sd_safetensors_metadata_count(const sd_safetensors *file);
const sd_metadata *sd_safetensors_metadata_at(const sd_safetensors *file, size_t index);
const char *sd_safetensors_metadata(const sd_safetensors *file, const char *key); /* NULL: none */

/* Whether the header carries both checksums. */
bool sd_safetensors_has_checksums(const sd_safetensors *file);
/* Reads all tensor bytes and compares their checksum.
 * Errors: SD_ERR_STATE (no checksums), SD_ERR_CHECKSUM, SD_ERR_IO, SD_ERR_FORMAT, SD_ERR_MEMORY. */
sd_status sd_safetensors_verify(const sd_safetensors *file);

/* The floats of a tensor of dtype F32.
 * Errors: SD_ERR_UNSUPPORTED (another dtype), SD_ERR_MISMATCH (count differs), SD_ERR_IO, SD_ERR_FORMAT. */
sd_status sd_safetensors_read_f32(const sd_safetensors *file, const sd_tensor_entry *entry, float *data, size_t count);

#endif
