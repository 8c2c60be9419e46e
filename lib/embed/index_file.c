/* The file of an index, and its rows for other programs.
 *
 *   0   8 bytes   "sdindex\n"
 *   8   u32       version, 1
 *   12  u32       metric
 *   16  u64       dim
 *   24  u64       count
 *   32  u64       the next automatic id
 *   40  u32 u32   CRC-32 of the ids, and of the rows
 *   48  12 bytes  zero
 *   60  u32       CRC-32 of the 60 bytes before
 *   64  i64       ids: count of them, then zeros up to a multiple of 64
 *       f32       rows: count x dim
 * All little-endian. */
#include "embed/index.h"

#include "io/checksum.h"
#include "io/file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAGIC "sdindex\n"
#define VERSION 1
#define HEADER_BYTES ((size_t)64)
#define COSINE_TOLERANCE 1e-3
#define NPY_HEADER_BYTES ((size_t)128)
#define EXPORT_BYTES ((size_t)1 << 20)

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#define REQUIRE_LITTLE_ENDIAN() \
    SD_REQUIRE(false, SD_ERR_UNSUPPORTED, "files of an index are little-endian, which this machine is not")
#else
#define REQUIRE_LITTLE_ENDIAN() ((void)0)
#endif

typedef struct header {
    uint64_t metric, dim, count, next_id;
    uint32_t ids_crc, rows_crc;
} header;

/* ---- the header ---------------------------------------------------------------------------- */

static void put(unsigned char *at, uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        at[i] = (unsigned char)(value >> (8 * i));
}

static uint64_t get(const unsigned char *at, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = bytes; i-- > 0;)
        value = value << 8 | at[i];
    return value;
}

static void write_header(const header *h, unsigned char bytes[HEADER_BYTES]) {
    memset(bytes, 0, HEADER_BYTES);
    memcpy(bytes, MAGIC, 8);
    put(bytes + 8, VERSION, 4);
    put(bytes + 12, h->metric, 4);
    put(bytes + 16, h->dim, 8);
    put(bytes + 24, h->count, 8);
    put(bytes + 32, h->next_id, 8);
    put(bytes + 40, h->ids_crc, 4);
    put(bytes + 44, h->rows_crc, 4);
    put(bytes + 60, sd_crc32(0, bytes, 60), 4);
}

static sd_status read_header(const sd_input_file *file, header *h) {
    const char *path = sd_input_file_path(file);
    unsigned char bytes[HEADER_BYTES];
    static const unsigned char zeros[12];

    SD_REQUIRE(sd_input_file_size(file) >= HEADER_BYTES, SD_ERR_FORMAT,
               "%s: no index: %llu bytes are less than its header", path, (unsigned long long)sd_input_file_size(file));
    sd_status status = sd_input_file_read(file, 0, bytes, HEADER_BYTES);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(memcmp(bytes, MAGIC, 8) == 0, SD_ERR_FORMAT, "%s: no index: it does not begin with \"sdindex\"", path);
    uint64_t version = get(bytes + 8, 4);
    SD_REQUIRE(version == VERSION, SD_ERR_VERSION, "%s: an index of version %llu: this library reads version %d", path,
               (unsigned long long)version, VERSION);
    SD_REQUIRE(get(bytes + 60, 4) == sd_crc32(0, bytes, 60), SD_ERR_CHECKSUM, "%s: the header is damaged", path);
    *h = (header){.metric = get(bytes + 12, 4),
                  .dim = get(bytes + 16, 8),
                  .count = get(bytes + 24, 8),
                  .next_id = get(bytes + 32, 8),
                  .ids_crc = (uint32_t)get(bytes + 40, 4),
                  .rows_crc = (uint32_t)get(bytes + 44, 4)};
    SD_REQUIRE(h->metric <= SD_METRIC_L2 && h->dim > 0 && h->next_id <= (uint64_t)INT64_MAX + 1 &&
                   memcmp(bytes + 48, zeros, sizeof zeros) == 0,
               SD_ERR_FORMAT, "%s: the header contradicts itself: metric %llu, width %llu, next id %llu", path,
               (unsigned long long)h->metric, (unsigned long long)h->dim, (unsigned long long)h->next_id);
    return SD_OK;
}

static uint64_t rows_position(uint64_t count) { return HEADER_BYTES + (count * sizeof(int64_t) + 63) / 64 * 64; }

/* Holds what the header says against the size of the file, before memory is taken for it. */
static sd_status check_size(const sd_input_file *file, const header *h) {
    uint64_t size = sd_input_file_size(file), most = size / sizeof(int64_t);
    bool fits = h->count <= most && h->dim <= most;
    if (fits && h->count > 0)
        fits = rows_position(h->count) <= size && h->dim <= (size - rows_position(h->count)) / sizeof(float) / h->count;
    SD_REQUIRE(fits || h->count == 0, SD_ERR_FORMAT, "%s: truncated: it has %llu bytes, too few for %llu rows of %llu numbers",
               sd_input_file_path(file), (unsigned long long)size, (unsigned long long)h->count,
               (unsigned long long)h->dim);
    uint64_t expected = rows_position(h->count) + h->count * h->dim * sizeof(float);
    SD_REQUIRE(expected == size, SD_ERR_FORMAT, "%s: it has %llu bytes: %llu rows of %llu numbers take %llu",
               sd_input_file_path(file), (unsigned long long)size, (unsigned long long)h->count,
               (unsigned long long)h->dim, (unsigned long long)expected);
    return SD_OK;
}

/* ---- saving -------------------------------------------------------------------------------- */

/* Rows of block b that are in use. */
static size_t rows_in(const sd_index *index, size_t b) {
    uint64_t first = (uint64_t)b * index->block_rows;
    if (first >= index->count)
        return 0;
    return index->count - first < index->block_rows ? (size_t)(index->count - first) : index->block_rows;
}

static sd_status write_blocks(const sd_index *index, sd_atomic_file *file, header *h) {
    uint64_t ids_at = HEADER_BYTES, rows_at = rows_position(index->count), done = 0;
    static const char zeros[64];
    sd_status status = SD_OK;

    for (size_t b = 0; rows_in(index, b) > 0; b++) {
        const sd_index_block *block = &index->blocks[b];
        size_t rows = rows_in(index, b), id_bytes = rows * sizeof(int64_t);
        size_t row_bytes = rows * index->dim * sizeof(float);
        SD_TRY(sd_check_cancel(index->context));
        h->ids_crc = sd_crc32(h->ids_crc, block->ids, id_bytes);
        h->rows_crc = sd_crc32(h->rows_crc, block->rows, row_bytes);
        SD_TRY(sd_atomic_file_write(file, ids_at, block->ids, id_bytes));
        SD_TRY(sd_atomic_file_write(file, rows_at, block->rows, row_bytes));
        ids_at += id_bytes;
        rows_at += row_bytes;
        done += rows;
        sd_progress(index->context, "save", done, index->count);
    }
    status = sd_atomic_file_write(file, ids_at, zeros, (size_t)(rows_position(index->count) - ids_at));
cleanup:
    return status;
}

SD_API sd_status sd_index_save(const sd_index *index, const char *path) {
    SD_REQUIRE(index && path, SD_ERR_ARGUMENT, "%s is NULL", index ? "path" : "index");
    REQUIRE_LITTLE_ENDIAN();
    sd_status status;
    sd_atomic_file *file = NULL;
    unsigned char bytes[HEADER_BYTES];
    header h = {.metric = index->metric, .dim = index->dim, .count = index->count, .next_id = index->next_id};

    SD_TRY(sd_atomic_file_open(index->context, path, &file));
    SD_TRY(write_blocks(index, file, &h));
    write_header(&h, bytes);
    SD_TRY(sd_atomic_file_write(file, 0, bytes, HEADER_BYTES));
    status = sd_atomic_file_commit(file);
    file = NULL;
cleanup:
    sd_atomic_file_discard(file);
    return status;
}

/* ---- loading ------------------------------------------------------------------------------- */

static sd_status read_ids(const sd_input_file *file, const header *h, sd_index *index) {
    const char *path = sd_input_file_path(file);
    uint64_t at = HEADER_BYTES;
    uint32_t crc = 0;
    char padding[64] = {0};
    sd_status status = SD_OK;

    index->count = h->count; /* for rows_in() */
    for (size_t b = 0; rows_in(index, b) > 0; b++) {
        size_t bytes = rows_in(index, b) * sizeof(int64_t);
        SD_TRY(sd_input_file_read(file, at, index->blocks[b].ids, bytes));
        crc = sd_crc32(crc, index->blocks[b].ids, bytes);
        at += bytes;
    }
    SD_TRY(sd_input_file_read(file, at, padding, (size_t)(rows_position(h->count) - at)));
    SD_EXPECT(crc == h->ids_crc, SD_ERR_CHECKSUM, "%s: the ids are damaged", path);
    for (size_t i = 0; i < sizeof padding; i++)
        SD_EXPECT(padding[i] == 0, SD_ERR_FORMAT, "%s: there is something between ids and rows", path);
    index->next_id = h->next_id;
    index->count = 0;
    for (size_t b = 0; index->count < h->count; b++) {
        size_t rows = (size_t)(h->count - index->count < index->block_rows ? h->count - index->count : index->block_rows);
        if (sd_index_claim(index, index->blocks[b].ids, rows) != SD_OK || index->next_id != h->next_id) {
            status = sd_fail(SD_ERR_FORMAT, "%s: an id is negative, there twice, or not below the next one", path);
            goto cleanup;
        }
        index->count += rows;
    }
cleanup:
    return status;
}

static sd_status read_rows(const sd_input_file *file, const header *h, sd_index *index) {
    const char *path = sd_input_file_path(file);
    uint64_t at = rows_position(h->count), done = 0;
    uint32_t crc = 0;
    sd_status status = SD_OK;

    for (size_t b = 0; rows_in(index, b) > 0; b++) {
        size_t rows = rows_in(index, b), bytes = rows * index->dim * sizeof(float);
        SD_TRY(sd_check_cancel(index->context));
        SD_TRY(sd_input_file_read(file, at, index->blocks[b].rows, bytes));
        crc = sd_crc32(crc, index->blocks[b].rows, bytes);
        at += bytes;
        done += rows;
        sd_progress(index->context, "load", done, index->count);
    }
    SD_EXPECT(crc == h->rows_crc, SD_ERR_CHECKSUM, "%s: the rows are damaged", path);
    for (uint64_t place = 0; place < index->count; place++) {
        double length;
        status = sd_index_check_row(sd_index_row(index, place), index->dim, "row", (size_t)place, &length);
        bool wrong = status != SD_OK || (index->metric == SD_METRIC_COSINE && length > 0.0 &&
                                         fabs(length - 1.0) > COSINE_TOLERANCE);
        SD_EXPECT(!wrong, SD_ERR_FORMAT, "%s: row %llu is not finite or of a length that the metric does not allow",
                  path, (unsigned long long)place);
        sd_index_complete_row(index, place, length);
    }
cleanup:
    return status;
}

SD_API sd_status sd_index_load(sd_context *context, const char *path, sd_index **out) {
    SD_REQUIRE(path && out, SD_ERR_ARGUMENT, "%s is NULL", path ? "index" : "path");
    REQUIRE_LITTLE_ENDIAN();
    sd_status status;
    sd_input_file *file = NULL;
    sd_index *index = NULL;
    header h = {0};

    SD_TRY(sd_input_file_open(context, path, &file));
    SD_TRY(read_header(file, &h));
    SD_TRY(check_size(file, &h));
    if (sd_index_create(context, (size_t)h.dim, (sd_metric)h.metric, &index) == SD_ERR_ARGUMENT) {
        status = sd_fail(SD_ERR_FORMAT, "%s: rows of %llu numbers are too wide", path, (unsigned long long)h.dim);
        goto cleanup;
    }
    if (!index) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    SD_TRY(sd_index_reserve(index, h.count));
    SD_TRY(read_ids(file, &h, index));
    SD_TRY(read_rows(file, &h, index));
    *out = index;
    index = NULL;
cleanup:
    sd_index_destroy(index);
    sd_input_file_close(file);
    return status;
}

/* ---- for other programs -------------------------------------------------------------------- */

static bool ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), wanted = strlen(ending);
    return length >= wanted && strcmp(text + length - wanted, ending) == 0;
}

/* Format 1.0 of NumPy's .npy: magic, version, length, and a Python literal, padded to 128 bytes. */
static void npy_header(unsigned char bytes[NPY_HEADER_BYTES], const char *type, uint64_t rows, size_t columns) {
    char shape[64];
    snprintf(shape, sizeof shape, columns > 0 ? "(%llu, %zu)" : "(%llu,)", (unsigned long long)rows, columns);
    memset(bytes, ' ', NPY_HEADER_BYTES);
    memcpy(bytes, "\x93NUMPY\x01\x00\x76\x00", 10);
    char text[NPY_HEADER_BYTES];
    int length = snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': %s, }", type, shape);
    memcpy(bytes + 10, text, (size_t)length);
    bytes[NPY_HEADER_BYTES - 1] = '\n';
}

/* Rows by ascending id; `counted`: each with its width before it. */
static sd_status write_rows(const sd_index *index, const uint64_t *order, bool counted, sd_atomic_file *file) {
    size_t row_bytes = index->dim * sizeof(float) + (counted ? sizeof(int32_t) : 0);
    size_t rows = sd_size_max(EXPORT_BYTES / row_bytes, 1);
    uint64_t position = counted ? 0 : NPY_HEADER_BYTES;
    int32_t dim = (int32_t)index->dim;
    sd_status status = SD_OK;
    char *piece = SD_NEW_ARRAY(index->context, char, rows * row_bytes);

    if (!piece)
        return SD_ERR_MEMORY;
    for (uint64_t i = 0; i < index->count;) {
        char *at = piece;
        SD_TRY(sd_check_cancel(index->context));
        for (size_t n = 0; n < rows && i < index->count; n++, i++) {
            if (counted) {
                memcpy(at, &dim, sizeof dim);
                at += sizeof dim;
            }
            memcpy(at, sd_index_row(index, order[i]), index->dim * sizeof(float));
            at += index->dim * sizeof(float);
        }
        SD_TRY(sd_atomic_file_write(file, position, piece, (size_t)(at - piece)));
        position += (uint64_t)(at - piece);
        sd_progress(index->context, "export", i, index->count);
    }
cleanup:
    sd_release(index->context, piece);
    return status;
}

static sd_status export_rows(const sd_index *index, const char *path) {
    sd_status status;
    sd_atomic_file *file = NULL;
    unsigned char bytes[NPY_HEADER_BYTES];
    bool counted = ends_with(path, ".fvecs");
    uint64_t *order = sd_index_order(index);

    if (!order)
        return SD_ERR_MEMORY;
    SD_TRY(sd_atomic_file_open(index->context, path, &file));
    if (!counted) {
        npy_header(bytes, "<f4", index->count, index->dim);
        SD_TRY(sd_atomic_file_write(file, 0, bytes, sizeof bytes));
    }
    SD_TRY(write_rows(index, order, counted, file));
    status = sd_atomic_file_commit(file);
    file = NULL;
cleanup:
    sd_atomic_file_discard(file);
    sd_release(index->context, order);
    return status;
}

static sd_status export_ids(const sd_index *index, const char *path) {
    sd_status status;
    sd_atomic_file *file = NULL;
    unsigned char bytes[NPY_HEADER_BYTES];
    int64_t *ids = SD_NEW_ARRAY(index->context, int64_t, (size_t)index->count);

    if (!ids)
        return SD_ERR_MEMORY;
    SD_TRY(sd_index_ids(index, ids));
    npy_header(bytes, "<i8", index->count, 0);
    SD_TRY(sd_atomic_file_open(index->context, path, &file));
    SD_TRY(sd_atomic_file_write(file, 0, bytes, sizeof bytes));
    SD_TRY(sd_atomic_file_write(file, sizeof bytes, ids, (size_t)index->count * sizeof *ids));
    status = sd_atomic_file_commit(file);
    file = NULL;
cleanup:
    sd_atomic_file_discard(file);
    sd_release(index->context, ids);
    return status;
}

SD_API sd_status sd_index_export(const sd_index *index, const char *path, const char *ids_path) {
    SD_REQUIRE(index && path, SD_ERR_ARGUMENT, "%s is NULL", index ? "path" : "index");
    REQUIRE_LITTLE_ENDIAN();
    SD_REQUIRE(index->count > 0, SD_ERR_ARGUMENT, "the index has no rows");
    SD_REQUIRE(ends_with(path, ".npy") || ends_with(path, ".fvecs"), SD_ERR_ARGUMENT,
               "path is \"%s\": it must end in .npy or .fvecs", path);
    SD_REQUIRE(!ids_path || ends_with(ids_path, ".npy"), SD_ERR_ARGUMENT, "ids_path is \"%s\": it must end in .npy",
               ids_path);
    sd_status status = export_rows(index, path);
    return status == SD_OK && ids_path ? export_ids(index, ids_path) : status;
}
