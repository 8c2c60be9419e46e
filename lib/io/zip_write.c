#include "io/checksum.h"
#include "io/zip.h"

#include <string.h>
#include <zlib.h>

#define PIECE          ((size_t)1 << 16)
#define LOCAL_SIZE     ((size_t)30)
#define LOCAL_EXTRA    ((size_t)20) /* both sizes in 64 bits: they are not known when the header's room is left */
#define ENTRY_EXTRA    ((size_t)28) /* and the position */
#define NAME_MAX_BYTES ((size_t)65535)

typedef struct written {
    char *name;
    uint64_t position, bytes, packed_bytes;
    uint32_t crc;
} written;

struct sd_zip_writer {
    sd_context *context;
    sd_atomic_file *file;
    bool compress, started;
    uint64_t at; /* in the file */
    written *members;
    size_t count, room;
    z_stream stream;
    unsigned char *packed;
};

static void *writer_allocate(void *opaque, uInt count, uInt size) {
    return sd_allocate(((sd_zip_writer *)opaque)->context, count, size);
}

static void writer_release(void *opaque, void *address) {
    sd_release(((sd_zip_writer *)opaque)->context, address);
}

sd_status sd_zip_writer_create(sd_context *context, sd_atomic_file *file, bool compress, sd_zip_writer **out) {
    sd_zip_writer *writer = SD_NEW(context, sd_zip_writer);
    if (!writer)
        return SD_ERR_MEMORY;
    writer->context = context;
    writer->file = file;
    writer->compress = compress;
    if (compress) {
        writer->packed = SD_NEW_ARRAY(context, unsigned char, PIECE);
        writer->stream.zalloc = writer_allocate;
        writer->stream.zfree = writer_release;
        writer->stream.opaque = writer;
        writer->started = writer->packed && deflateInit2(&writer->stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -MAX_WBITS,
                                                         8, Z_DEFAULT_STRATEGY) == Z_OK;
        if (!writer->started) {
            sd_zip_writer_destroy(writer);
            return SD_ERR_MEMORY;
        }
    }
    *out = writer;
    return SD_OK;
}

void sd_zip_writer_destroy(sd_zip_writer *writer) {
    if (!writer)
        return;
    if (writer->started)
        deflateEnd(&writer->stream);
    for (size_t i = 0; i < writer->count; i++)
        sd_release(writer->context, writer->members[i].name);
    sd_release(writer->context, writer->members);
    sd_release(writer->context, writer->packed);
    sd_release(writer->context, writer);
}

static unsigned char *put(unsigned char *at, uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        at[i] = (unsigned char)(value >> 8 * i & 255);
    return at + bytes;
}

sd_status sd_zip_writer_begin(sd_zip_writer *writer, const char *name) {
    SD_REQUIRE(strlen(name) <= NAME_MAX_BYTES, SD_ERR_ARGUMENT, "the name %.40s... is too long for a zip archive",
               name);
    if (writer->count == writer->room) {
        size_t room = writer->room * 2 + 16;
        written *members = SD_NEW_ARRAY(writer->context, written, room);
        if (!members)
            return SD_ERR_MEMORY;
        if (writer->count > 0)
            memcpy(members, writer->members, writer->count * sizeof *members);
        sd_release(writer->context, writer->members);
        writer->members = members;
        writer->room = room;
    }
    char *copy = sd_copy_text(writer->context, name);
    if (!copy)
        return SD_ERR_MEMORY;
    writer->members[writer->count++] = (written){.name = copy, .position = writer->at};
    writer->at += LOCAL_SIZE + strlen(name) + LOCAL_EXTRA;
    if (writer->compress)
        deflateReset(&writer->stream);
    return SD_OK;
}

static sd_status put_packed(sd_zip_writer *writer, const void *bytes, size_t count) {
    sd_status status = sd_atomic_file_write(writer->file, writer->at, bytes, count);
    writer->at += count;
    writer->members[writer->count - 1].packed_bytes += count;
    return status;
}

static sd_status deflate_bytes(sd_zip_writer *writer, const unsigned char *bytes, size_t count, int flush) {
    z_stream *stream = &writer->stream;
    int result;
    stream->next_in = (Bytef *)(uintptr_t)bytes;
    stream->avail_in = (uInt)count;
    do {
        stream->next_out = writer->packed;
        stream->avail_out = (uInt)PIECE;
        result = deflate(stream, flush);
        sd_status status = put_packed(writer, writer->packed, PIECE - stream->avail_out);
        if (status != SD_OK)
            return status;
    } while (flush == Z_FINISH ? result != Z_STREAM_END : stream->avail_out == 0);
    return SD_OK;
}

sd_status sd_zip_writer_put(sd_zip_writer *writer, const void *bytes, size_t count) {
    written *member = &writer->members[writer->count - 1];
    const unsigned char *at = bytes;
    for (size_t done = 0; done < count;) {
        size_t piece = sd_size_min(count - done, PIECE); /* summed and written while they are in the cache */
        member->crc = sd_crc32(member->crc, at + done, piece);
        sd_status status = writer->compress ? deflate_bytes(writer, at + done, piece, Z_NO_FLUSH)
                                            : put_packed(writer, at + done, piece);
        if (status != SD_OK)
            return status;
        done += piece;
    }
    member->bytes += count;
    return SD_OK;
}

/* The fields that a local header and an entry of the directory share (sections 4.3.7 and 4.3.12). */
static unsigned char *put_common(const sd_zip_writer *writer, unsigned char *at, const written *member, size_t extra,
                                 bool wide) {
    at = put(at, wide ? 45 : 20, 2); /* version needed: 4.5 has the 64-bit extension */
    at = put(at, 0x0800, 2);         /* names are UTF-8 */
    at = put(at, writer->compress ? 8 : 0, 2);
    at = put(at, 0, 2); /* time, and date: 1 January 1980, so that equal content gives equal files */
    at = put(at, 0x0021, 2);
    at = put(at, member->crc, 4);
    at = put(at, wide ? 0xFFFFFFFFu : member->packed_bytes, 4);
    at = put(at, wide ? 0xFFFFFFFFu : member->bytes, 4);
    at = put(at, strlen(member->name), 2);
    return put(at, extra, 2);
}

/* Without need the sizes stay in 32 bits, as the oldest readers know them. */
static bool is_wide(const written *member) {
    return member->bytes >= 0xFFFFFFFFu || member->packed_bytes >= 0xFFFFFFFFu || member->position >= 0xFFFFFFFFu;
}

sd_status sd_zip_writer_end(sd_zip_writer *writer) {
    const written *member = &writer->members[writer->count - 1];
    unsigned char header[LOCAL_SIZE], extra[LOCAL_EXTRA], *at = header;
    sd_status status = SD_OK;
    if (writer->compress)
        status = deflate_bytes(writer, NULL, 0, Z_FINISH);
    if (status != SD_OK)
        return status;
    bool wide = is_wide(member);
    at = put(at, 0x04034b50, 4);
    put_common(writer, at, member, LOCAL_EXTRA, wide);
    at = put(extra, wide ? 1 : 0x7370, 2); /* else room that nobody reads */
    at = put(at, 16, 2);
    at = put(at, wide ? member->bytes : 0, 8);
    put(at, wide ? member->packed_bytes : 0, 8);
    status = sd_atomic_file_write(writer->file, member->position, header, sizeof header);
    if (status == SD_OK)
        status = sd_atomic_file_write(writer->file, member->position + LOCAL_SIZE, member->name, strlen(member->name));
    if (status == SD_OK)
        status = sd_atomic_file_write(writer->file, member->position + LOCAL_SIZE + strlen(member->name), extra,
                                      sizeof extra);
    return status;
}

static sd_status put_bytes(sd_zip_writer *writer, const void *bytes, size_t count) {
    sd_status status = sd_atomic_file_write(writer->file, writer->at, bytes, count);
    writer->at += count;
    return status;
}

sd_status sd_zip_writer_finish(sd_zip_writer *writer) {
    uint64_t directory = writer->at;
    unsigned char record[128], *at;
    for (size_t i = 0; i < writer->count; i++) {
        const written *member = &writer->members[i];
        bool wide = is_wide(member);
        at = put(record, 0x02014b50, 4);
        at = put(at, wide ? 45 : 20, 2);
        at = put_common(writer, at, member, wide ? ENTRY_EXTRA : 0, wide);
        at = put(at, 0, 2); /* comment, disk, attributes */
        at = put(at, 0, 2);
        at = put(at, 0, 2);
        at = put(at, 0, 4);
        at = put(at, wide ? 0xFFFFFFFFu : member->position, 4);
        sd_status status = put_bytes(writer, record, (size_t)(at - record));
        if (status == SD_OK)
            status = put_bytes(writer, member->name, strlen(member->name));
        if (status == SD_OK && wide) {
            at = put(record, 1, 2);
            at = put(at, ENTRY_EXTRA - 4, 2);
            at = put(at, member->bytes, 8);
            at = put(at, member->packed_bytes, 8);
            at = put(at, member->position, 8);
            status = put_bytes(writer, record, ENTRY_EXTRA);
        }
        if (status != SD_OK)
            return status;
    }
    uint64_t end = writer->at, bytes = end - directory;
    bool wide = directory >= 0xFFFFFFFFu || bytes >= 0xFFFFFFFFu || writer->count >= 0xFFFF;
    at = record;
    if (wide) {
        at = put(at, 0x06064b50, 4);
        at = put(at, 44, 8);
        at = put(at, 45, 2);
        at = put(at, 45, 2);
        at = put(at, 0, 8); /* disks */
        at = put(at, writer->count, 8);
        at = put(at, writer->count, 8);
        at = put(at, bytes, 8);
        at = put(at, directory, 8);
        at = put(at, 0x07064b50, 4);
        at = put(at, 0, 4);
        at = put(at, end, 8);
        at = put(at, 1, 4);
    }
    at = put(at, 0x06054b50, 4);
    at = put(at, 0, 4); /* disks */
    at = put(at, wide ? 0xFFFF : writer->count, 2);
    at = put(at, wide ? 0xFFFF : writer->count, 2);
    at = put(at, wide ? 0xFFFFFFFFu : bytes, 4);
    at = put(at, wide ? 0xFFFFFFFFu : directory, 4);
    at = put(at, 0, 2); /* comment */
    return put_bytes(writer, record, (size_t)(at - record));
}
