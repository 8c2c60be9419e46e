/* Reader of NumPy .npz archives (zip of .npy files) and the comparisons made with them. Everything is decoded when the
 * archive is opened: the archives are small, and a damaged one then fails at once. */
#include "golden.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zlib.h>

#ifndef SD_TEST_DATA
#error "SD_TEST_DATA must be the path of tests/golden"
#endif

struct golden {
    char *file;
    golden_array *arrays;
    void **owned; /* decoded .npy file of each array; the array's data points into it */
    size_t count;
    char *tolerances; /* text of tolerances.txt; NULL until the first look-up */
};

/* ---- bytes --------------------------------------------------------------------------------- */

static void *allocate(size_t bytes) {
    void *memory = calloc(1, bytes + 1); /* one more, so that text read into it is terminated */
    if (!memory)
        fail_msg("golden: out of memory for %zu bytes", bytes);
    return memory;
}

static unsigned char *read_whole(const char *path, size_t *size) {
    FILE *stream = fopen(path, "rb");
    if (!stream) {
        fail_msg("golden: cannot open %s", path);
        return NULL;
    }
    fseek(stream, 0, SEEK_END);
    long length = ftell(stream);
    rewind(stream);
    unsigned char *bytes = allocate(length > 0 ? (size_t)length : 0);
    *size = fread(bytes, 1, length > 0 ? (size_t)length : 0, stream);
    fclose(stream);
    if (length < 0 || *size != (size_t)length)
        fail_msg("golden: cannot read %s", path);
    return bytes;
}

static uint32_t little16(const unsigned char *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint32_t little32(const unsigned char *p) { return little16(p) | little16(p + 2) << 16; }

/* ---- .npy ---------------------------------------------------------------------------------- */

/* The value that follows 'key': in the Python dictionary of the header. */
static const char *header_value(const char *header, const char *key, const char *where) {
    const char *at = strstr(header, key);
    at = at ? strchr(at + strlen(key), ':') : NULL;
    if (!at) {
        fail_msg("golden: %s: header lacks %s", where, key);
        return "";
    }
    at++;
    while (*at == ' ')
        at++;
    return at;
}

static void decode_npy(golden_array *array, unsigned char *bytes, size_t size, const char *where) {
    if (size < 12 || memcmp(bytes, "\x93NUMPY", 6) != 0)
        fail_msg("golden: %s: not a .npy file", where);
    bool version1 = bytes[6] == 1;
    size_t start = version1 ? 10 : 12;
    size_t header_size = version1 ? little16(bytes + 8) : little32(bytes + 8);
    if (header_size > size - start)
        fail_msg("golden: %s: truncated header", where);
    char *header = allocate(header_size);
    memcpy(header, bytes + start, header_size);

    const char *type = header_value(header, "'descr'", where);
    if (type[0] != '\'' || !strchr("<|=", type[1]) || !strchr("fiubS", type[2]))
        fail_msg("golden: %s: type %.8s is not supported", where, type);
    array->kind = type[2];
    array->item_size = (size_t)strtoul(type + 3, NULL, 10);
    if (strncmp(header_value(header, "'fortran_order'", where), "False", 5) != 0)
        fail_msg("golden: %s: not in C order", where);

    const char *shape = header_value(header, "'shape'", where) + 1;
    array->count = 1;
    array->dimensions = 0;
    while (*shape && *shape != ')') {
        char *end;
        unsigned long extent = strtoul(shape, &end, 10);
        if (end == shape || array->dimensions == 8) {
            fail_msg("golden: %s: bad shape", where);
            break;
        }
        array->shape[array->dimensions++] = extent;
        array->count *= extent;
        for (shape = end; *shape == ',' || *shape == ' ';)
            shape++;
    }
    free(header);
    array->data = bytes + start + header_size;
    if (array->count * array->item_size != size - start - header_size)
        fail_msg("golden: %s: %zu values of %zu bytes do not fill the file", where, array->count, array->item_size);
}

/* ---- zip ----------------------------------------------------------------------------------- */

static unsigned char *inflate_raw(const unsigned char *packed, size_t packed_size, size_t size, const char *where) {
    unsigned char *bytes = allocate(size);
    z_stream stream;
    memset(&stream, 0, sizeof stream);
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK)
        fail_msg("golden: zlib does not start");
    stream.next_in = (Bytef *)(uintptr_t)packed;
    stream.avail_in = (uInt)packed_size;
    stream.next_out = bytes;
    stream.avail_out = (uInt)size;
    int result = inflate(&stream, Z_FINISH);
    if ((result != Z_STREAM_END && !(result == Z_BUF_ERROR && size == 0)) || stream.total_out != size)
        fail_msg("golden: %s: damaged deflate stream", where);
    inflateEnd(&stream);
    return bytes;
}

/* Decodes the member that the central directory describes at `entry`. */
static void read_member(golden *archive, const unsigned char *zip, size_t zip_size, const unsigned char *entry) {
    size_t method = little16(entry + 10), packed = little32(entry + 20), size = little32(entry + 24);
    size_t name_size = little16(entry + 28), local = little32(entry + 42);
    uint32_t checksum = little32(entry + 16);
    char *name = allocate(name_size);
    memcpy(name, entry + 46, name_size);
    if (name_size > 4 && strcmp(name + name_size - 4, ".npy") == 0)
        name[name_size - 4] = '\0';

    if (local > zip_size || zip_size - local < 30 || little32(zip + local) != 0x04034b50)
        fail_msg("golden: %s/%s: no local header", archive->file, name);
    size_t start = local + 30 + little16(zip + local + 26) + little16(zip + local + 28);
    if (start > zip_size || packed > zip_size - start)
        fail_msg("golden: %s/%s: beyond the end of the file", archive->file, name);

    unsigned char *bytes = NULL;
    if (method == 8) {
        bytes = inflate_raw(zip + start, packed, size, name);
    } else if (method == 0 && packed == size) {
        bytes = allocate(size);
        memcpy(bytes, zip + start, size);
    } else {
        fail_msg("golden: %s/%s: method %zu is not supported", archive->file, name, method);
    }
    if (crc32(0, bytes, (uInt)size) != checksum)
        fail_msg("golden: %s/%s: checksum differs", archive->file, name);
    golden_array *array = &archive->arrays[archive->count];
    array->name = name;
    archive->owned[archive->count++] = bytes;
    decode_npy(array, bytes, size, name);
}

golden *golden_open(const char *file) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", SD_TEST_DATA, file);
    size_t size = 0;
    unsigned char *zip = read_whole(path, &size);

    size_t end = size < 22 ? 0 : size - 22;
    while (end > 0 && little32(zip + end) != 0x06054b50)
        end--;
    if (size < 22 || little32(zip + end) != 0x06054b50)
        fail_msg("golden: %s is not a zip file", path);
    size_t members = little16(zip + end + 10), at = little32(zip + end + 16);

    golden *archive = allocate(sizeof *archive);
    archive->file = allocate(strlen(file));
    memcpy(archive->file, file, strlen(file));
    archive->arrays = allocate(members * sizeof *archive->arrays);
    archive->owned = allocate(members * sizeof *archive->owned);
    for (size_t i = 0; i < members; i++) {
        if (at > size || size - at < 46 || little32(zip + at) != 0x02014b50)
            fail_msg("golden: %s: damaged directory", path);
        read_member(archive, zip, size, zip + at);
        at += 46 + little16(zip + at + 28) + little16(zip + at + 30) + little16(zip + at + 32);
    }
    free(zip);
    return archive;
}

void golden_close(golden *archive) {
    if (!archive)
        return;
    for (size_t i = 0; i < archive->count; i++) {
        free((void *)(uintptr_t)archive->arrays[i].name);
        free(archive->owned[i]);
    }
    free(archive->tolerances);
    free(archive->owned);
    free(archive->arrays);
    free(archive->file);
    free(archive);
}

/* ---- look-up ------------------------------------------------------------------------------- */

size_t golden_array_count(const golden *archive) { return archive->count; }

const golden_array *golden_at(const golden *archive, size_t index) {
    return index < archive->count ? &archive->arrays[index] : NULL;
}

static const golden_array *find(const golden *archive, const char *name) {
    for (size_t i = 0; i < archive->count; i++)
        if (strcmp(archive->arrays[i].name, name) == 0)
            return &archive->arrays[i];
    return NULL;
}

bool golden_has(const golden *archive, const char *name) { return find(archive, name) != NULL; }

static const golden_array *get(const golden *archive, const char *format, va_list arguments) {
    char name[512];
    vsnprintf(name, sizeof name, format, arguments);
    const golden_array *array = find(archive, name);
    if (!array)
        fail_msg("golden: %s has no array %s", archive->file, name);
    return array;
}

static const void *typed(const golden *archive, char kind, size_t item_size, const char *format, va_list arguments) {
    const golden_array *array = get(archive, format, arguments);
    bool byte = kind == 'u' && array->kind == 'b'; /* bool is taken for u8 */
    if ((array->kind != kind && !byte) || array->item_size != item_size)
        fail_msg("golden: %s/%s is of type %c%zu, not %c%zu", archive->file, array->name, array->kind, array->item_size,
                 kind, item_size);
    return array->data;
}

const golden_array *golden_get(const golden *archive, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const golden_array *array = get(archive, format, arguments);
    va_end(arguments);
    return array;
}

const float *golden_f32(const golden *archive, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const float *data = typed(archive, 'f', 4, format, arguments);
    va_end(arguments);
    return data;
}

const double *golden_f64(const golden *archive, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const double *data = typed(archive, 'f', 8, format, arguments);
    va_end(arguments);
    return data;
}

const uint8_t *golden_u8(const golden *archive, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const uint8_t *data = typed(archive, 'u', 1, format, arguments);
    va_end(arguments);
    return data;
}

double golden_scalar(const golden *archive, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const golden_array *array = get(archive, format, arguments);
    va_end(arguments);
    return golden_number(array, 0);
}

static double half_value(uint32_t bits) {
    int exponent = (int)(bits >> 10 & 31);
    double fraction = (double)(bits & 1023);
    double magnitude = exponent == 31  ? (fraction != 0 ? (double)NAN : (double)INFINITY)
                       : exponent == 0 ? ldexp(fraction, -24)
                                       : ldexp(fraction + 1024, exponent - 25);
    return bits >> 15 ? -magnitude : magnitude;
}

/* An integer of 1, 2, 4 or 8 little-endian bytes. */
static double integer_value(const unsigned char *at, size_t size, bool is_signed) {
    uint64_t bits = 0;
    for (size_t i = size; i-- > 0;)
        bits = bits << 8 | at[i];
    if (!is_signed)
        return (double)bits;
    unsigned unused = 64 - 8 * (unsigned)size;
    return (double)((int64_t)(bits << unused) >> unused);
}

double golden_number(const golden_array *array, size_t index) {
    if (index >= array->count)
        fail_msg("golden: element %zu of %s, which has %zu", index, array->name, array->count);
    const unsigned char *at = (const unsigned char *)array->data + index * array->item_size;
    double wide;
    float narrow;
    switch (array->kind) {
    case 'f':
        if (array->item_size == 8)
            return memcpy(&wide, at, 8), wide;
        if (array->item_size == 4)
            return memcpy(&narrow, at, 4), (double)narrow;
        return half_value(little16(at));
    case 'i':
        return integer_value(at, array->item_size, true);
    case 'u':
    case 'b':
        return integer_value(at, array->item_size, false);
    default:
        fail_msg("golden: %s is not numeric", array->name);
        return 0;
    }
}

const char *golden_text(const golden_array *array, size_t index) {
    static _Thread_local char text[4096];
    if (array->kind != 'S' || index >= array->count || array->item_size >= sizeof text) {
        fail_msg("golden: no text %zu in %s", index, array->name);
        return "";
    }
    memcpy(text, (const char *)array->data + index * array->item_size, array->item_size);
    text[array->item_size] = '\0'; /* NumPy pads with zeros */
    return text;
}

/* ---- tolerances ---------------------------------------------------------------------------- */

double golden_tolerance(const golden *archive, const char *format, ...) {
    char name[512], key[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);

    golden *cache = (golden *)(uintptr_t)archive;
    if (!cache->tolerances) {
        size_t size = 0;
        cache->tolerances = (char *)read_whole(SD_TEST_DATA "/tolerances.txt", &size);
    }
    int length = snprintf(key, sizeof key, "%s %s ", archive->file, name);
    const char *line = archive->tolerances;
    while (line && *line) {
        double largest, error, tolerance;
        if (strncmp(line, key, (size_t)length) == 0 &&
            sscanf(line + length, "%lf %lf %lf", &largest, &error, &tolerance) == 3)
            return tolerance;
        line = strchr(line, '\n');
        line = line ? line + 1 : NULL;
    }
    fail_msg("golden: no tolerance recorded for %s/%s", archive->file, name);
    return 0;
}

/* ---- comparison ---------------------------------------------------------------------------- */

void golden_compare_f32(const golden *archive, const char *name, const float *actual, size_t count, double tolerance) {
    const golden_array *expected = golden_get(archive, "%s", name);
    if (expected->count != count)
        fail_msg("%s/%s has %zu values, compared with %zu", archive->file, name, expected->count, count);
    double worst = 0;
    size_t where = 0;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)actual[i] - golden_number(expected, i));
        if (!isfinite(actual[i]))
            difference = (double)INFINITY;
        if (!(difference <= worst)) {
            worst = difference;
            where = i;
        }
    }
    if (!(worst <= tolerance))
        fail_msg("%s/%s[%zu]: %.9g, expected %.9g: they differ by %.3g, tolerance %.3g (the largest of %zu values)",
                 archive->file, name, where, (double)actual[where], golden_number(expected, where), worst, tolerance,
                 count);
}

double golden_difference_f32(const float *actual, const float *expected, size_t count) {
    double worst = 0;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(actual[i]))
            return (double)INFINITY;
        worst = fmax(worst, fabs((double)actual[i] - (double)expected[i]));
    }
    return worst;
}
