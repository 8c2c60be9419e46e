#include "io/checksum.h"
#include "io/zip.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define END_SIZE      ((size_t)22) /* end of central directory, without its comment */
#define END64_SIZE    ((size_t)56)
#define LOCATOR_SIZE  ((size_t)20)
#define ENTRY_SIZE    ((size_t)46) /* of the central directory, without name, extra field and comment */
#define LOCAL_SIZE    ((size_t)30)
#define DIRECTORY_MAX ((uint64_t)256 << 20)
#define DEFLATE_RATIO 1032 /* deflate cannot do better (zlib's technical details) */
#define PIECE         ((size_t)1 << 16)

static uint64_t little(const unsigned char *at, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = bytes; i-- > 0;)
        value = value << 8 | at[i];
    return value;
}

/* ---- the end of the file tells where the directory is --------------------------------------- */

typedef struct directory {
    uint64_t position, bytes, count;
} directory;

static sd_status read_end64(const sd_input_file *input, uint64_t end_position, directory *d) {
    const char *path = sd_input_file_path(input);
    unsigned char locator[LOCATOR_SIZE], end[END64_SIZE];
    SD_REQUIRE(end_position >= LOCATOR_SIZE + END64_SIZE, SD_ERR_FORMAT, "%s: zip: no room for its 64-bit directory",
               path);
    sd_status status = sd_input_file_read(input, end_position - LOCATOR_SIZE, locator, sizeof locator);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(little(locator, 4) == 0x07064b50 && little(locator + 16, 4) <= 1, SD_ERR_FORMAT,
               "%s: zip: the locator of its 64-bit directory is missing", path);
    uint64_t position = little(locator + 8, 8);
    SD_REQUIRE(position <= end_position - LOCATOR_SIZE - END64_SIZE, SD_ERR_FORMAT,
               "%s: zip: its 64-bit directory would end outside of the file", path);
    status = sd_input_file_read(input, position, end, sizeof end);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(little(end, 4) == 0x06064b50 && little(end + 4, 8) >= END64_SIZE - 12, SD_ERR_FORMAT,
               "%s: zip: its 64-bit directory is damaged", path);
    SD_REQUIRE(little(end + 16, 4) == 0 && little(end + 20, 4) == 0, SD_ERR_UNSUPPORTED,
               "%s: zip: archives of several disks are not read", path);
    *d = (directory){little(end + 48, 8), little(end + 40, 8), little(end + 32, 8)};
    SD_REQUIRE(d->position <= position && d->bytes <= position - d->position, SD_ERR_FORMAT,
               "%s: zip: the directory of %llu bytes lies outside of the file", path, (unsigned long long)d->bytes);
    return SD_OK;
}

/* The record stands before a comment of up to 65535 bytes, whose length it tells. */
static sd_status find_end(sd_context *context, const sd_input_file *input, directory *d) {
    const char *path = sd_input_file_path(input);
    uint64_t size = sd_input_file_size(input);
    size_t tail_size = size < END_SIZE + 65535 ? (size_t)size : END_SIZE + 65535, at = 0;
    SD_REQUIRE(size >= END_SIZE, SD_ERR_FORMAT, "%s: zip: truncated", path);
    unsigned char *tail = SD_NEW_ARRAY(context, unsigned char, tail_size);
    if (!tail)
        return SD_ERR_MEMORY;
    sd_status status;
    bool found = false;
    SD_TRY(sd_input_file_read(input, size - tail_size, tail, tail_size));
    for (size_t comment = 0; !found && comment <= tail_size - END_SIZE; comment++) {
        at = tail_size - END_SIZE - comment;
        found = little(tail + at, 4) == 0x06054b50 && little(tail + at + 20, 2) == comment;
    }
    SD_EXPECT(found, SD_ERR_FORMAT, "%s: zip: truncated: the end of its directory is missing", path);
    const unsigned char *end = tail + at;
    uint64_t position = size - tail_size + at;
    *d = (directory){little(end + 16, 4), little(end + 12, 4), little(end + 10, 2)};
    if (d->position == 0xFFFFFFFFu || d->bytes == 0xFFFFFFFFu || d->count == 0xFFFF) {
        status = read_end64(input, position, d);
        goto cleanup;
    }
    SD_EXPECT(little(end + 4, 2) == 0 && little(end + 6, 2) == 0, SD_ERR_UNSUPPORTED,
              "%s: zip: archives of several disks are not read", path);
    SD_EXPECT(d->position <= position && d->bytes <= position - d->position, SD_ERR_FORMAT,
              "%s: zip: the directory of %llu bytes lies outside of the file", path, (unsigned long long)d->bytes);
cleanup:
    sd_release(context, tail);
    return status;
}

/* ---- the directory -------------------------------------------------------------------------- */

/* Sizes and position that do not fit into 32 bits stand in the extra field of kind 1, in this order. */
static bool read_extra64(const unsigned char *extra, size_t size, sd_zip_member *member, uint64_t *local) {
    uint64_t *wanted[3] = {&member->bytes, &member->packed_bytes, local};
    bool missing = *wanted[0] == 0xFFFFFFFFu || *wanted[1] == 0xFFFFFFFFu || *wanted[2] == 0xFFFFFFFFu;
    while (size >= 4) {
        size_t kind = (size_t)little(extra, 2), length = (size_t)little(extra + 2, 2);
        if (length > size - 4)
            return false;
        if (kind == 1) {
            const unsigned char *at = extra + 4, *end = at + length;
            for (int i = 0; i < 3; i++)
                if (*wanted[i] == 0xFFFFFFFFu) {
                    if (end - at < 8)
                        return false;
                    *wanted[i] = little(at, 8);
                    at += 8;
                }
            return true;
        }
        extra += 4 + length;
        size -= 4 + length;
    }
    return !missing;
}

/* `local` receives the place of the member's local header. */
static sd_status read_entry(sd_zip *zip, const unsigned char *entry, uint64_t limit, size_t index, char *name,
                            uint64_t *local) {
    const char *path = sd_input_file_path(zip->input);
    sd_zip_member *member = &zip->members[index];
    size_t name_size = (size_t)little(entry + 28, 2), extra_size = (size_t)little(entry + 30, 2);
    memcpy(name, entry + ENTRY_SIZE, name_size);
    name[name_size] = '\0';
    SD_REQUIRE(strlen(name) == name_size, SD_ERR_FORMAT, "%s: zip: a zero in the name of member %zu", path, index);
    member->name = name;
    unsigned flags = (unsigned)little(entry + 8, 2), method = (unsigned)little(entry + 10, 2);
    member->crc = (uint32_t)little(entry + 16, 4);
    member->packed_bytes = little(entry + 20, 4);
    member->bytes = little(entry + 24, 4);
    *local = little(entry + 42, 4);
    SD_REQUIRE((flags & 0x2041) == 0, SD_ERR_UNSUPPORTED, "%s: zip: member %.200s is encrypted", path, name);
    SD_REQUIRE(method == 0 || method == 8, SD_ERR_UNSUPPORTED,
               "%s: zip: member %.200s is compressed by method %u: only deflate (8) is read", path, name, method);
    SD_REQUIRE(read_extra64(entry + ENTRY_SIZE + name_size, extra_size, member, local), SD_ERR_FORMAT,
               "%s: zip: the extra field of %.200s is damaged", path, name);
    member->deflated = method == 8;
    SD_REQUIRE(*local <= limit && limit - *local >= LOCAL_SIZE && member->packed_bytes <= limit - *local - LOCAL_SIZE,
               SD_ERR_FORMAT, "%s: zip: member %.200s (%llu bytes) lies outside of the file", path, name,
               (unsigned long long)member->packed_bytes);
    SD_REQUIRE(member->deflated ? member->bytes / DEFLATE_RATIO <= member->packed_bytes
                                : member->bytes == member->packed_bytes,
               SD_ERR_FORMAT, "%s: zip: member %.200s cannot have %llu bytes: %llu are in the file", path, name,
               (unsigned long long)member->bytes, (unsigned long long)member->packed_bytes);
    return SD_OK;
}

/* The local header repeats the entry, with another extra field; the bytes come after it. */
static sd_status find_bytes(const sd_zip *zip, sd_zip_member *member, uint64_t local, uint64_t limit) {
    unsigned char header[LOCAL_SIZE];
    sd_status status = sd_input_file_read(zip->input, local, header, sizeof header);
    if (status != SD_OK)
        return status;
    uint64_t after = LOCAL_SIZE + little(header + 26, 2) + little(header + 28, 2);
    SD_REQUIRE(little(header, 4) == 0x04034b50 && little(header + 8, 2) == (member->deflated ? 8u : 0u) &&
                   little(header + 26, 2) == strlen(member->name) && after <= limit - local &&
                   member->packed_bytes <= limit - local - after,
               SD_ERR_FORMAT, "%s: zip: the header of member %.200s is damaged", sd_input_file_path(zip->input),
               member->name);
    member->position = local + after;
    return SD_OK;
}

static int by_position(const void *left, const void *right) {
    const sd_zip_member *a = left, *b = right;
    if (a->position != b->position)
        return a->position < b->position ? -1 : 1;
    return a->packed_bytes < b->packed_bytes ? -1 : a->packed_bytes > b->packed_bytes;
}

static int by_name(const void *left, const void *right) {
    return strcmp(((const sd_zip_member *)left)->name, ((const sd_zip_member *)right)->name);
}

static sd_status check_members(sd_zip *zip) {
    const char *path = sd_input_file_path(zip->input);
    qsort(zip->members, zip->count, sizeof *zip->members, by_position);
    for (size_t i = 1; i < zip->count; i++) {
        const sd_zip_member *before = &zip->members[i - 1], *member = &zip->members[i];
        /* a local header, with its name, lies between the bytes of any two */
        SD_REQUIRE(member->position - before->position >= before->packed_bytes + LOCAL_SIZE + strlen(member->name),
                   SD_ERR_FORMAT, "%s: zip: members %.200s and %.200s overlap", path, before->name, member->name);
    }
    qsort(zip->members, zip->count, sizeof *zip->members, by_name);
    for (size_t i = 1; i < zip->count; i++)
        SD_REQUIRE(by_name(&zip->members[i - 1], &zip->members[i]) != 0, SD_ERR_FORMAT,
                   "%s: zip: member %.200s is there twice", path, zip->members[i].name);
    return SD_OK;
}

/* Walks over the entries; without arrays it only counts and measures the names. */
static sd_status walk(sd_zip *zip, const unsigned char *bytes, const directory *d, uint64_t *count, size_t *names) {
    const char *path = sd_input_file_path(zip->input);
    uint64_t at = 0, seen = 0;
    size_t names_used = 0;
    while (at < d->bytes) {
        SD_REQUIRE(d->bytes - at >= ENTRY_SIZE && little(bytes + at, 4) == 0x02014b50, SD_ERR_FORMAT,
                   "%s: zip: entry %llu of the directory is damaged", path, (unsigned long long)seen);
        const unsigned char *entry = bytes + at;
        uint64_t size = ENTRY_SIZE + little(entry + 28, 2) + little(entry + 30, 2) + little(entry + 32, 2);
        SD_REQUIRE(size <= d->bytes - at, SD_ERR_FORMAT, "%s: zip: entry %llu of the directory is truncated", path,
                   (unsigned long long)seen);
        if (zip->members) {
            uint64_t local = 0;
            sd_status status = read_entry(zip, entry, d->position, (size_t)seen, zip->names + names_used, &local);
            if (status == SD_OK)
                status = find_bytes(zip, &zip->members[seen], local, d->position);
            if (status != SD_OK)
                return status;
        }
        names_used += (size_t)little(entry + 28, 2) + 1;
        at += size;
        seen++;
    }
    *count = seen;
    *names = names_used;
    return SD_OK;
}

sd_status sd_zip_open(sd_context *context, const sd_input_file *input, sd_zip *zip) {
    const char *path = sd_input_file_path(input);
    sd_status status;
    unsigned char *bytes = NULL;
    directory d;
    uint64_t count;
    size_t names;
    *zip = (sd_zip){.context = context, .input = input};
    SD_TRY(find_end(context, input, &d));
    SD_EXPECT(d.bytes <= DIRECTORY_MAX && d.count <= d.bytes / ENTRY_SIZE, SD_ERR_FORMAT,
              "%s: zip: a directory of %llu bytes for %llu members", path, (unsigned long long)d.bytes,
              (unsigned long long)d.count);
    bytes = SD_NEW_ARRAY(context, unsigned char, (size_t)d.bytes);
    if (!bytes) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    SD_TRY(sd_input_file_read(input, d.position, bytes, (size_t)d.bytes));
    SD_TRY(walk(zip, bytes, &d, &count, &names));
    SD_EXPECT(count == d.count, SD_ERR_FORMAT, "%s: zip: %llu members in a directory of %llu", path,
              (unsigned long long)count, (unsigned long long)d.count);
    zip->names = SD_NEW_ARRAY(context, char, names);
    zip->members = SD_NEW_ARRAY(context, sd_zip_member, (size_t)count);
    if (!zip->names || !zip->members) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    SD_TRY(walk(zip, bytes, &d, &count, &names));
    zip->count = (size_t)count;
    SD_TRY(check_members(zip));
cleanup:
    sd_release(context, bytes);
    if (status != SD_OK)
        sd_zip_close(zip);
    return status;
}

void sd_zip_close(sd_zip *zip) {
    sd_release(zip->context, zip->members);
    sd_release(zip->context, zip->names);
    *zip = (sd_zip){0};
}

const sd_zip_member *sd_zip_find(const sd_zip *zip, const char *name) {
    const sd_zip_member key = {.name = name};
    return bsearch(&key, zip->members, zip->count, sizeof *zip->members, by_name);
}

/* ---- unpacking ------------------------------------------------------------------------------ */

struct sd_unpacker {
    sd_context *context;
    const sd_input_file *input;
    const char *what;
    uint64_t position, left; /* packed bytes not yet read from the file */
    bool deflated, started, ended;
    z_stream stream;
    unsigned char *packed, *scrap;
};

static void *unpacker_allocate(void *opaque, uInt count, uInt size) {
    return sd_allocate(((sd_unpacker *)opaque)->context, count, size);
}

static void unpacker_release(void *opaque, void *address) {
    sd_release(((sd_unpacker *)opaque)->context, address);
}

sd_status sd_unpacker_open(sd_context *context, const sd_input_file *input, const char *what, uint64_t position,
                           uint64_t packed_bytes, bool deflated, sd_unpacker **out) {
    sd_status status = SD_OK;
    sd_unpacker *unpacker = SD_NEW(context, sd_unpacker);
    if (!unpacker)
        return SD_ERR_MEMORY;
    unpacker->context = context;
    unpacker->input = input;
    unpacker->what = what;
    unpacker->position = position;
    unpacker->left = packed_bytes;
    unpacker->deflated = deflated;
    if (deflated) {
        unpacker->packed = SD_NEW_ARRAY(context, unsigned char, PIECE);
        unpacker->scrap = SD_NEW_ARRAY(context, unsigned char, PIECE);
        unpacker->stream.zalloc = unpacker_allocate;
        unpacker->stream.zfree = unpacker_release;
        unpacker->stream.opaque = unpacker;
        unpacker->started = unpacker->packed && unpacker->scrap && inflateInit2(&unpacker->stream, -MAX_WBITS) == Z_OK;
        if (!unpacker->started) {
            status = SD_ERR_MEMORY;
            goto cleanup;
        }
    }
    *out = unpacker;
    return SD_OK;
cleanup:
    sd_unpacker_close(unpacker);
    return status;
}

void sd_unpacker_close(sd_unpacker *unpacker) {
    if (!unpacker)
        return;
    if (unpacker->started)
        inflateEnd(&unpacker->stream);
    sd_release(unpacker->context, unpacker->packed);
    sd_release(unpacker->context, unpacker->scrap);
    sd_release(unpacker->context, unpacker);
}

/* Fills [out, out+count) from the deflate stream. */
static sd_status inflate_piece(sd_unpacker *unpacker, unsigned char *out, size_t count) {
    z_stream *stream = &unpacker->stream;
    const char *path = sd_input_file_path(unpacker->input);
    stream->next_out = out;
    stream->avail_out = (uInt)count;
    while (stream->avail_out > 0) {
        SD_REQUIRE(!unpacker->ended, SD_ERR_FORMAT, "%s: %.200s unpacks to less than its directory says", path,
                   unpacker->what);
        if (stream->avail_in == 0 && unpacker->left > 0) {
            size_t piece = unpacker->left < PIECE ? (size_t)unpacker->left : PIECE;
            sd_status status = sd_input_file_read(unpacker->input, unpacker->position, unpacker->packed, piece);
            if (status != SD_OK)
                return status;
            unpacker->position += piece;
            unpacker->left -= piece;
            stream->next_in = unpacker->packed;
            stream->avail_in = (uInt)piece;
        }
        int result = inflate(stream, Z_NO_FLUSH);
        if (result == Z_MEM_ERROR)
            return SD_ERR_MEMORY; /* the message is that of the allocation */
        unpacker->ended = result == Z_STREAM_END;
        SD_REQUIRE(result == Z_OK || result == Z_STREAM_END, SD_ERR_FORMAT, "%s: %.200s: its deflate stream is %s",
                   path, unpacker->what, result == Z_BUF_ERROR ? "truncated" : "damaged");
    }
    return SD_OK;
}

sd_status sd_unpacker_read(sd_unpacker *unpacker, void *out, uint64_t count) {
    unsigned char *to = out;
    if (!unpacker->deflated) {
        SD_REQUIRE(count <= unpacker->left, SD_ERR_FORMAT, "%s: %.200s is truncated",
                   sd_input_file_path(unpacker->input), unpacker->what);
        sd_status status = out ? sd_input_file_read(unpacker->input, unpacker->position, out, (size_t)count) : SD_OK;
        unpacker->position += count;
        unpacker->left -= count;
        return status;
    }
    while (count > 0) {
        size_t most = to ? (size_t)1 << 30 : PIECE;
        size_t piece = count < most ? (size_t)count : most;
        sd_status status = inflate_piece(unpacker, to ? to : unpacker->scrap, piece);
        if (status != SD_OK)
            return status;
        if (to)
            to += piece;
        count -= piece;
    }
    return SD_OK;
}

sd_status sd_unpacker_finish(sd_unpacker *unpacker) {
    const char *path = sd_input_file_path(unpacker->input);
    unsigned char more;
    if (unpacker->deflated && !unpacker->ended) {
        z_stream *stream = &unpacker->stream;
        do { /* the end of the stream may stand in bytes not yet read */
            if (stream->avail_in == 0 && unpacker->left > 0) {
                size_t piece = unpacker->left < PIECE ? (size_t)unpacker->left : PIECE;
                sd_status status = sd_input_file_read(unpacker->input, unpacker->position, unpacker->packed, piece);
                if (status != SD_OK)
                    return status;
                unpacker->position += piece;
                unpacker->left -= piece;
                stream->next_in = unpacker->packed;
                stream->avail_in = (uInt)piece;
            }
            stream->next_out = &more;
            stream->avail_out = 1;
            int result = inflate(stream, Z_NO_FLUSH);
            if (result == Z_MEM_ERROR)
                return SD_ERR_MEMORY;
            unpacker->ended = result == Z_STREAM_END;
            SD_REQUIRE(stream->avail_out == 1 && (result == Z_OK || result == Z_STREAM_END), SD_ERR_FORMAT,
                       "%s: %.200s: its deflate stream %s", path, unpacker->what,
                       stream->avail_out == 0 ? "unpacks to more than its directory says" : "is damaged");
        } while (!unpacker->ended);
    }
    SD_REQUIRE(unpacker->left == 0 && (!unpacker->deflated || unpacker->stream.avail_in == 0), SD_ERR_FORMAT,
               "%s: %.200s: bytes after its deflate stream", path, unpacker->what);
    return SD_OK;
}
