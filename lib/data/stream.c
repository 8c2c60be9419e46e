#include "data/stream.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>

#define INPUT_BYTES 65536
/* Deflate's best: 258 bytes from two bits. */
#define MAX_RATIO 1032

struct sd_stream {
    sd_context *context;
    char *path;
    FILE *file;
    uint64_t file_size;
    uint64_t position; /* bytes of content that were read */
    bool gzip;
    bool inflating;    /* inflateInit2 succeeded */
    bool member_ended; /* the gzip member is complete; another may follow */
    z_stream z;
    size_t next, filled; /* unread part of `input` */
    unsigned char input[INPUT_BYTES];
};

static voidpf take_memory(voidpf opaque, uInt count, uInt size) { return sd_allocate(opaque, count, size); }

static void give_memory(voidpf opaque, voidpf address) { sd_release(opaque, address); }

static sd_status refill(sd_stream *stream) {
    stream->next = 0;
    stream->filled = fread(stream->input, 1, INPUT_BYTES, stream->file);
    SD_REQUIRE(stream->filled > 0 || !ferror(stream->file), SD_ERR_IO, "'%s' could not be read", stream->path);
    return SD_OK;
}

static sd_status measure(sd_stream *stream) {
    long end;
    SD_REQUIRE(fseek(stream->file, 0, SEEK_END) == 0 && (end = ftell(stream->file)) >= 0 &&
                   fseek(stream->file, 0, SEEK_SET) == 0,
               SD_ERR_IO, "'%s' is not a regular file", stream->path);
    stream->file_size = (uint64_t)end;
    return SD_OK;
}

static const char *open_problem(int number) {
    switch (number) {
    case ENOENT: return "it does not exist";
    case EACCES: return "permission denied";
    case EMFILE:
    case ENFILE: return "too many files are open";
    default: return "the system refused";
    }
}

sd_status sd_stream_open(sd_context *context, const char *path, sd_stream **out) {
    sd_status status = SD_OK;
    sd_stream *stream = SD_NEW(context, sd_stream);
    if (stream == NULL)
        return SD_ERR_MEMORY;
    stream->context = context;
    stream->path = sd_copy_text(context, path);
    if (stream->path == NULL) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    int saved = errno;
    stream->file = fopen(path, "rb");
    int problem = errno;
    errno = saved;
    SD_EXPECT(stream->file != NULL, SD_ERR_IO, "'%s' cannot be opened: %s", path, open_problem(problem));
    SD_TRY(measure(stream));
    SD_TRY(refill(stream));
    stream->gzip = stream->filled >= 2 && stream->input[0] == 0x1f && stream->input[1] == 0x8b;
    if (stream->gzip) {
        stream->z.zalloc = take_memory;
        stream->z.zfree = give_memory;
        stream->z.opaque = context;
        int result = inflateInit2(&stream->z, 15 + 16); /* the largest window; a gzip header */
        SD_EXPECT(result == Z_OK, result == Z_MEM_ERROR ? SD_ERR_MEMORY : SD_ERR_UNSUPPORTED,
                  "'%s': zlib could not be started", path);
        stream->inflating = true;
    }
    *out = stream;
    stream = NULL;
cleanup:
    sd_stream_close(stream);
    return status;
}

void sd_stream_close(sd_stream *stream) {
    if (stream == NULL)
        return;
    if (stream->inflating)
        inflateEnd(&stream->z);
    if (stream->file != NULL)
        fclose(stream->file);
    sd_release(stream->context, stream->path);
    sd_release(stream->context, stream);
}

uint64_t sd_stream_file_size(const sd_stream *stream) { return stream->file_size; }

sd_status sd_stream_expect(const sd_stream *stream, uint64_t count) {
    unsigned long long total = stream->file_size, wanted = count;
    if (stream->gzip) {
        uint64_t most;
        if (!__builtin_mul_overflow(stream->file_size, (uint64_t)MAX_RATIO, &most))
            SD_REQUIRE(count <= most && stream->position <= most - count, SD_ERR_FORMAT,
                       "'%s' declares %llu bytes of data, more than its %llu compressed bytes can hold", stream->path,
                       wanted, total);
        return SD_OK;
    }
    unsigned long long left = stream->file_size - stream->position;
    SD_REQUIRE(count <= left, SD_ERR_FORMAT, "'%s' is truncated: it declares %llu bytes of data and has %llu",
               stream->path, wanted, left);
    SD_REQUIRE(count == left, SD_ERR_FORMAT, "'%s' has %llu bytes behind the %llu bytes of data that it declares",
               stream->path, left - wanted, wanted);
    return SD_OK;
}

/* Unpacks up to `count` bytes; *done tells how many. Fewer come only at the end of the file, or of a gzip member. */
static sd_status unpack(sd_stream *stream, unsigned char *bytes, size_t count, size_t *done) {
    z_stream *z = &stream->z;
    *done = 0;
    while (*done < count && !stream->member_ended) {
        if (stream->next == stream->filled) {
            sd_status status = refill(stream);
            if (status != SD_OK)
                return status;
            SD_REQUIRE(stream->filled > 0, SD_ERR_FORMAT, "'%s' is truncated: its gzip data ends too early",
                       stream->path);
        }
        size_t room = sd_size_min(count - *done, (size_t)1 << 30);
        z->next_in = stream->input + stream->next;
        z->avail_in = (uInt)(stream->filled - stream->next);
        z->next_out = bytes + *done;
        z->avail_out = (uInt)room;
        int result = inflate(z, Z_NO_FLUSH);
        stream->next = stream->filled - z->avail_in;
        *done += room - z->avail_out;
        SD_REQUIRE(result != Z_MEM_ERROR, SD_ERR_MEMORY, "'%s': no memory to unpack it", stream->path);
        SD_REQUIRE(result == Z_OK || result == Z_STREAM_END || result == Z_BUF_ERROR, SD_ERR_FORMAT,
                   "'%s' is damaged: %s", stream->path, z->msg != NULL ? z->msg : "its gzip data is invalid");
        stream->member_ended = result == Z_STREAM_END;
    }
    return SD_OK;
}

/* Goes to the next gzip member; *more is false at the end of the file. */
static sd_status next_member(sd_stream *stream, bool *more) {
    sd_status status = stream->next == stream->filled ? refill(stream) : SD_OK;
    *more = stream->filled > stream->next;
    if (status == SD_OK && *more) {
        SD_REQUIRE(inflateReset(&stream->z) == Z_OK, SD_ERR_FORMAT, "'%s': zlib could not be restarted", stream->path);
        stream->member_ended = false;
    }
    return status;
}

sd_status sd_stream_read(sd_stream *stream, void *target, size_t count) {
    sd_status status = SD_OK;
    unsigned char *bytes = target;
    for (size_t done = 0; done < count;) {
        size_t step = 0;
        bool more = true;
        if (stream->gzip) {
            if (stream->member_ended)
                SD_TRY(next_member(stream, &more));
            if (more)
                SD_TRY(unpack(stream, bytes + done, count - done, &step));
        } else {
            if (stream->next == stream->filled)
                SD_TRY(refill(stream));
            step = sd_size_min(count - done, stream->filled - stream->next);
            more = step > 0;
            memcpy(bytes + done, stream->input + stream->next, step);
            stream->next += step;
        }
        SD_EXPECT(more, SD_ERR_FORMAT, "'%s' is truncated: %zu bytes are missing", stream->path, count - done);
        done += step;
        stream->position += step;
    }
cleanup:
    return status;
}

sd_status sd_stream_finish(sd_stream *stream) {
    sd_status status = SD_OK;
    bool more = true;
    if (!stream->gzip) {
        if (stream->next == stream->filled)
            SD_TRY(refill(stream));
        SD_EXPECT(stream->next == stream->filled, SD_ERR_FORMAT, "'%s' has bytes behind its data", stream->path);
    }
    while (stream->gzip && more) {
        unsigned char byte;
        size_t done;
        SD_TRY(unpack(stream, &byte, 1, &done));
        SD_EXPECT(done == 0, SD_ERR_FORMAT, "'%s' has bytes behind its data", stream->path);
        SD_TRY(next_member(stream, &more));
    }
cleanup:
    return status;
}
