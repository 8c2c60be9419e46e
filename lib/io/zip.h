/* ZIP archives: the directory is read and checked when an archive is opened, members are read by position. Stored and
 * deflated members, with the 64-bit extension (APPNOTE.TXT 6.3.10 tells the format). */
#ifndef SD_IO_ZIP_H
#define SD_IO_ZIP_H

#include "base/base.h"
#include "io/file.h"

typedef struct sd_zip_member {
    const char *name;      /* without zeros in it */
    uint64_t position;     /* of its bytes in the file */
    uint64_t packed_bytes; /* in the file */
    uint64_t bytes;        /* unpacked; at most 1032 times the packed ones, which is all that deflate can do */
    uint32_t crc;
    bool deflated;
} sd_zip_member;

typedef struct sd_zip {
    sd_context *context;
    const sd_input_file *input; /* borrowed */
    sd_zip_member *members;     /* by name */
    size_t count;
    char *names;
} sd_zip;

/* Checks the directory against the file: members lie inside of it, one after the other without overlap, no name twice.
 * Memory is taken in proportion to the directory.
 * Errors: SD_ERR_FORMAT (names the member), SD_ERR_UNSUPPORTED (encrypted, several disks, another compression),
 * SD_ERR_IO, SD_ERR_MEMORY. */
sd_status sd_zip_open(sd_context *context, const sd_input_file *input, sd_zip *zip);
void sd_zip_close(sd_zip *zip);                                        /* a zeroed one is fine */
const sd_zip_member *sd_zip_find(const sd_zip *zip, const char *name); /* NULL: none */

/* ---- bytes that are perhaps deflated, from front to back (zip_read.c) ----------------------- */

typedef struct sd_unpacker sd_unpacker;

/* The bytes [0, bytes) of a range of a file, stored or deflated. `what` names the range in messages; it is borrowed, as
 * the file is. */
sd_status sd_unpacker_open(sd_context *context, const sd_input_file *input, const char *what, uint64_t position,
                           uint64_t packed_bytes, bool deflated, sd_unpacker **unpacker);
void sd_unpacker_close(sd_unpacker *unpacker); /* NULL is fine */
/* Exactly `count` bytes; out NULL: they are skipped. The caller asks for no more than the range has. Errors:
 * SD_ERR_FORMAT (the deflate stream ends before or is damaged), SD_ERR_IO. */
sd_status sd_unpacker_read(sd_unpacker *unpacker, void *out, uint64_t count);
/* After all bytes were read: that the deflate stream ends here. */
sd_status sd_unpacker_finish(sd_unpacker *unpacker);

/* ---- writing (zip_write.c) ------------------------------------------------------------------ */

typedef struct sd_zip_writer sd_zip_writer;

/* Writes into a file of file.h, which stays the caller's. */
sd_status sd_zip_writer_create(sd_context *context, sd_atomic_file *file, bool compress, sd_zip_writer **writer);
void sd_zip_writer_destroy(sd_zip_writer *writer); /* NULL is fine */
/* A member: begin, its bytes in any pieces, end. Errors: SD_ERR_IO, SD_ERR_MEMORY, SD_ERR_ARGUMENT (a long name). */
sd_status sd_zip_writer_begin(sd_zip_writer *writer, const char *name);
sd_status sd_zip_writer_put(sd_zip_writer *writer, const void *bytes, size_t count);
sd_status sd_zip_writer_end(sd_zip_writer *writer);
/* The directory. Nothing can follow. */
sd_status sd_zip_writer_finish(sd_zip_writer *writer);

#endif
