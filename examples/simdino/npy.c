/* NumPy files. See npy.h. An .npz is a ZIP archive; its members are stored without compression, because features do not
 * compress. Written and read on little-endian machines, which the format of the numbers ('<f4') names. */
#define _POSIX_C_SOURCE 200809L
#include "npy.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "output.h"
#include "program.h"

#define HEADER_ROOM    192
#define LARGEST_MEMBER 0xFFFFFFFFu /* without the 64-bit extension of ZIP */

/* ---- writing ------------------------------------------------------------------------------- */

/* Magic, version, length, and a Python literal, padded so that the data begins at a multiple of 64. Returns the
 * length. */
static size_t npy_header(unsigned char *to, const char *type, size_t rows, size_t columns) {
    char text[128];
    if (columns > 0) {
        snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (%zu, %zu), }", type, rows,
                 columns);
    } else {
        snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (%zu,), }", type, rows);
    }
    size_t length = strlen(text), total = (10 + length + 1 + 63) / 64 * 64;
    memcpy(to, "\x93NUMPY\x01\x00", 8);
    to[8] = (unsigned char)((total - 10) & 255);
    to[9] = (unsigned char)((total - 10) >> 8);
    memcpy(to + 10, text, length);
    memset(to + 10 + length, ' ', total - 10 - length - 1);
    to[total - 1] = '\n';
    return total;
}

#define MEMBERS 8

typedef struct member {
    char name[64];
    unsigned char header[HEADER_ROOM];
    size_t header_bytes, data_bytes;
    const void *data;
    uint32_t checksum;
    size_t offset;
} member;

static void put(unsigned char **at, uint32_t value, int bytes) {
    for (int i = 0; i < bytes; i++) {
        *(*at)++ = (unsigned char)(value >> (8 * i));
    }
}

static uint32_t checksum_of(const member *m) {
    uLong sum = crc32(0, m->header, (uInt)m->header_bytes);
    const unsigned char *data = m->data;
    for (size_t done = 0; done < m->data_bytes;) {
        size_t piece = m->data_bytes - done < (1u << 30) ? m->data_bytes - done : (1u << 30);
        sum = crc32(sum, data + done, (uInt)piece);
        done += piece;
    }
    return (uint32_t)sum;
}

/* The fields that a member's local header and its entry in the central directory share (ZIP specification, sections
 * 4.3.7 and 4.3.12). */
static void put_common(unsigned char **at, const member *m) {
    put(at, 20, 2);     /* version needed: 2.0 */
    put(at, 0, 2);      /* flags */
    put(at, 0, 2);      /* method: stored */
    put(at, 0, 2);      /* time */
    put(at, 0x0021, 2); /* date: 1 January 1980, so that equal content gives equal files */
    put(at, m->checksum, 4);
    put(at, (uint32_t)(m->header_bytes + m->data_bytes), 4);
    put(at, (uint32_t)(m->header_bytes + m->data_bytes), 4);
    put(at, (uint32_t)strlen(m->name), 2);
    put(at, 0, 2); /* extra field */
}

static void write_zip(output *file, member *members, size_t count) {
    unsigned char record[64], *at;
    size_t offset = 0, directory = 0;
    for (size_t i = 0; i < count; i++) {
        member *m = &members[i];
        m->offset = offset;
        at = record;
        put(&at, 0x04034b50, 4);
        put_common(&at, m);
        output_write(file, record, (size_t)(at - record));
        output_write(file, m->name, strlen(m->name));
        output_write(file, m->header, m->header_bytes);
        output_write(file, m->data, m->data_bytes);
        offset += (size_t)(at - record) + strlen(m->name) + m->header_bytes + m->data_bytes;
    }
    for (size_t i = 0; i < count; i++) {
        const member *m = &members[i];
        at = record;
        put(&at, 0x02014b50, 4);
        put(&at, 20, 2); /* made by */
        put_common(&at, m);
        put(&at, 0, 2); /* comment */
        put(&at, 0, 2); /* disk */
        put(&at, 0, 2); /* internal attributes */
        put(&at, 0, 4); /* external attributes */
        put(&at, (uint32_t)m->offset, 4);
        output_write(file, record, (size_t)(at - record));
        output_write(file, m->name, strlen(m->name));
        directory += (size_t)(at - record) + strlen(m->name);
    }
    at = record;
    put(&at, 0x06054b50, 4);
    put(&at, 0, 2);
    put(&at, 0, 2);
    put(&at, (uint32_t)count, 2);
    put(&at, (uint32_t)count, 2);
    put(&at, (uint32_t)directory, 4);
    put(&at, (uint32_t)offset, 4);
    put(&at, 0, 2);
    output_write(file, record, (size_t)(at - record));
}

static bool ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), wanted = strlen(ending);
    return length >= wanted && strcmp(text + length - wanted, ending) == 0;
}

int npy_write(const char *path, const npy_array *arrays, size_t count) {
    member members[MEMBERS];
    bool archive = ends_with(path, ".npz");
    size_t total = 1u << 20;
    memset(members, 0, sizeof members);
    count = !archive ? 1 : count < MEMBERS ? count : MEMBERS;
    for (size_t i = 0; i < count; i++) {
        const npy_array *a = &arrays[i];
        snprintf(members[i].name, sizeof members[i].name, "%s.npy", a->name);
        members[i].header_bytes = npy_header(members[i].header, a->type, a->rows, a->columns);
        members[i].data = a->data;
        members[i].data_bytes = a->rows * (a->columns > 0 ? a->columns : 1) * a->item;
        total += members[i].data_bytes;
    }
    if (archive && total > LARGEST_MEMBER) {
        complain("%s: more than 4 GiB do not fit into an .npz archive; write .npy", path);
        return -1;
    }
    output *file = output_open(path);
    if (file == NULL) {
        return -1;
    }
    if (archive) {
        for (size_t i = 0; i < count; i++) {
            members[i].checksum = checksum_of(&members[i]);
        }
        write_zip(file, members, count);
    } else {
        output_write(file, members[0].header, members[0].header_bytes);
        output_write(file, members[0].data, members[0].data_bytes);
    }
    return output_close(file);
}

/* ---- reading ------------------------------------------------------------------------------- */

/* Reads "(3, 4)" or "(3,)" after 'shape'. */
static bool parse_shape(const char *header, size_t *rows, size_t *columns) {
    const char *at = strstr(header, "'shape'");
    at = at != NULL ? strchr(at, '(') : NULL;
    if (at == NULL) {
        return false;
    }
    char *end = NULL;
    unsigned long long first = strtoull(at + 1, &end, 10);
    if (end == at + 1) {
        return false;
    }
    unsigned long long second = 1;
    end += strspn(end, ", ");
    if (*end != ')') {
        const char *start = end;
        second = strtoull(start, &end, 10);
        end += strspn(end, ", ");
        if (end == start || *end != ')') {
            return false; /* not a number, or more than two dimensions */
        }
    }
    *rows = (size_t)first;
    *columns = (size_t)second;
    return first > 0 && second > 0 && first <= SIZE_MAX / sizeof(double) / second;
}

static int wrong_file(const char *path, const char *what) {
    complain("%s: %s", path, what);
    return -1;
}

static int read_stream(FILE *stream, const char *path, npy_matrix *matrix) {
    unsigned char start[12];
    if (fread(start, 1, 10, stream) != 10 || memcmp(start, "\x93NUMPY", 6) != 0) {
        return wrong_file(path, "not a .npy file (an .npz archive has to be unpacked first)");
    }
    size_t length = start[8] | (size_t)start[9] << 8;
    if (start[6] >= 2) { /* format 2.0 has a length of four bytes */
        if (fread(start + 10, 1, 2, stream) != 2) {
            return wrong_file(path, "truncated header");
        }
        length |= (size_t)start[10] << 16 | (size_t)start[11] << 24;
    }
    if (length > 65535) {
        return wrong_file(path, "the header is longer than 65535 bytes");
    }
    char *header = calloc(length + 1, 1);
    if (header == NULL) {
        return wrong_file(path, "out of memory");
    }
    bool complete = fread(header, 1, length, stream) == length;
    bool floats = strstr(header, "'<f4'") != NULL, doubles = strstr(header, "'<f8'") != NULL;
    bool row_major = strstr(header, "'fortran_order': False") != NULL;
    bool shaped = complete && parse_shape(header, &matrix->rows, &matrix->columns);
    free(header);
    if (!complete) {
        return wrong_file(path, "truncated header");
    }
    if (!floats && !doubles) {
        return wrong_file(path, "the numbers must be little-endian float32 or float64");
    }
    if (!row_major || !shaped) {
        return wrong_file(path, "the array must have one or two dimensions, be not empty and in C order");
    }
    size_t count = matrix->rows * matrix->columns, each = floats ? sizeof(float) : sizeof(double);
    /* The header may lie about the size: ask the file before the memory. */
    long position = ftell(stream);
    if (position < 0 || fseek(stream, 0, SEEK_END) != 0) {
        return wrong_file(path, strerror(errno));
    }
    long end = ftell(stream);
    if (end < position || (size_t)(end - position) != count * each) {
        complain("%s: truncated or too long: %zu x %zu numbers take %zu bytes, the file has %ld", path, matrix->rows,
                 matrix->columns, count * each, end - position);
        return -1;
    }
    fseek(stream, position, SEEK_SET);
    void *data = malloc(count * each);
    if (data == NULL) {
        return wrong_file(path, "out of memory");
    }
    matrix->floats = floats ? data : NULL;
    matrix->doubles = floats ? NULL : data;
    if (fread(data, each, count, stream) != count) {
        return wrong_file(path, "cannot read it to its end");
    }
    return 0;
}

int npy_read(const char *path, npy_matrix *matrix) {
    *matrix = (npy_matrix){0};
    FILE *stream = fopen(path, "rb");
    if (stream == NULL) {
        complain("cannot open %s: %s", path, strerror(errno));
        return -1;
    }
    int result = read_stream(stream, path, matrix);
    fclose(stream);
    if (result != 0) {
        npy_free(matrix);
    }
    return result;
}

void npy_free(npy_matrix *matrix) {
    free(matrix->floats);
    free(matrix->doubles);
    *matrix = (npy_matrix){0};
}
