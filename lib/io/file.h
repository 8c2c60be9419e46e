/* Files: reading at a position, and replacing a file so that its former content is never lost. */
#ifndef SD_IO_FILE_H
#define SD_IO_FILE_H

#include "base/base.h"

/* Records "PATH: cannot WHAT: reason" for the errno value `code` and returns SD_ERR_IO. */
sd_status sd_fail_system(const char *path, const char *what, int code);

/* ---- reading (file.c) ---------------------------------------------------------------------- */

typedef struct sd_input_file sd_input_file;

/* Opens a regular file. Errors: SD_ERR_ARGUMENT, SD_ERR_IO, SD_ERR_MEMORY. */
sd_status sd_input_file_open(sd_context *context, const char *path, sd_input_file **file);
void sd_input_file_close(sd_input_file *file); /* NULL is fine */
uint64_t sd_input_file_size(const sd_input_file *file);
const char *sd_input_file_path(const sd_input_file *file);
/* Exactly `count` bytes from `position` on. Errors: SD_ERR_IO, SD_ERR_FORMAT (the file ends before). */
sd_status sd_input_file_read(const sd_input_file *file, uint64_t position, void *bytes, size_t count);

/* ---- replacing (atomic_file.c) ------------------------------------------------------------- */

/* A file under construction: it has a temporary name beside `path` ("PATH.tmp-...") until it is committed. */
typedef struct sd_atomic_file sd_atomic_file;

/* Errors: SD_ERR_ARGUMENT, SD_ERR_IO (also when `path` exists and is not a regular file), SD_ERR_MEMORY. */
sd_status sd_atomic_file_open(sd_context *context, const char *path, sd_atomic_file **file);
/* At a position of the caller's choice. Errors: SD_ERR_IO. */
sd_status sd_atomic_file_write(sd_atomic_file *file, uint64_t position, const void *bytes, size_t count);
/* Makes the content durable and gives it the name `path`: after SD_OK the file survives a power failure, after an error
 * the former file of that name is as it was (unless only the sync of the folder failed: then the new one is there, but
 * may not survive). The object is gone in both cases, and so is the temporary file. */
sd_status sd_atomic_file_commit(sd_atomic_file *file);
/* Removes the temporary file. NULL is fine. */
void sd_atomic_file_discard(sd_atomic_file *file);

#endif
