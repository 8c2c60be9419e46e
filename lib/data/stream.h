/* Bytes of a file, unpacked when it is gzip (told by its first two bytes). Nothing in the file is believed: who reads
 * says how many bytes must come, and that nothing may follow. */
#ifndef SD_DATA_STREAM_H
#define SD_DATA_STREAM_H

#include "base/base.h"

typedef struct sd_stream sd_stream;

/* Errors: SD_ERR_IO, SD_ERR_MEMORY. */
sd_status sd_stream_open(sd_context *context, const char *path, sd_stream **stream);
void sd_stream_close(sd_stream *stream);

uint64_t sd_stream_file_size(const sd_stream *stream); /* bytes in the file, packed or not */
/* Fails unless the content can have `count` more bytes, so that a lying header is found before memory is taken for it:
 * a plain file must have exactly that many, a gzip file so many compressed ones that they could unpack to them. Errors:
 * SD_ERR_FORMAT. */
sd_status sd_stream_expect(const sd_stream *stream, uint64_t count);
/* Errors: SD_ERR_FORMAT (ends too early, damaged), SD_ERR_IO, SD_ERR_MEMORY. */
sd_status sd_stream_read(sd_stream *stream, void *bytes, size_t count);
/* Fails when anything follows, or when the checksum at the end of a gzip file is wrong or missing. Errors: as above. */
sd_status sd_stream_finish(sd_stream *stream);

#endif
