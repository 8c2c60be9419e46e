/* IDX files: two zero bytes, a type byte (8: unsigned byte), the number of dimensions, the dimensions as big-endian
 * 32-bit numbers, then the values. */
#include "data/dataset.h"
#include "data/stream.h"

#define MAX_DIMENSIONS 4

typedef struct sd_idx_header {
    size_t dimensions;
    uint32_t size[MAX_DIMENSIONS];
} sd_idx_header;

/* Reads the header and makes sure that the file can hold what it declares; *count receives the number of values. */
static sd_status read_header(sd_stream *stream, const char *path, size_t least, size_t most, sd_idx_header *header,
                             size_t *count) {
    sd_status status = SD_OK;
    unsigned char start[4], size[4];
    SD_TRY(sd_stream_read(stream, start, sizeof start));
    SD_EXPECT(start[0] == 0 && start[1] == 0, SD_ERR_FORMAT, "'%s' is not an IDX file: it begins with %02x %02x", path,
              start[0], start[1]);
    SD_EXPECT(start[2] == 8, SD_ERR_FORMAT, "'%s' holds values of type %02x: only unsigned bytes (08) are read", path,
              start[2]);
    SD_EXPECT(start[3] >= least && start[3] <= most, SD_ERR_FORMAT, "'%s' has %u dimensions instead of %zu%s", path,
              start[3], least, most > least ? " or 4" : "");
    header->dimensions = start[3];
    *count = 1;
    for (size_t i = 0; i < header->dimensions; i++) {
        SD_TRY(sd_stream_read(stream, size, sizeof size));
        uint32_t n = (uint32_t)size[0] << 24 | (uint32_t)size[1] << 16 | (uint32_t)size[2] << 8 | size[3];
        SD_EXPECT(n > 0 && n <= INT32_MAX, SD_ERR_FORMAT, "'%s' declares dimension %zu as %u", path, i, n);
        SD_EXPECT(sd_size_mul(*count, n, count), SD_ERR_FORMAT, "'%s' declares more values than memory has addresses",
                  path);
        header->size[i] = n;
    }
    SD_TRY(sd_stream_expect(stream, *count));
cleanup:
    return status;
}

static sd_status read_images(sd_dataset *dataset, const char *path) {
    sd_status status = SD_OK;
    sd_stream *stream = NULL;
    sd_idx_header header = {0};
    size_t count;
    SD_TRY(sd_stream_open(dataset->context, path, &stream));
    SD_TRY(read_header(stream, path, 3, 4, &header, &count));
    uint32_t channels = header.dimensions == 4 ? header.size[3] : 1;
    SD_EXPECT(channels <= SD_MAX_CHANNELS, SD_ERR_FORMAT, "'%s' has images of %u channels: at most %d are possible",
              path, channels, SD_MAX_CHANNELS);
    dataset->count = header.size[0];
    dataset->height = header.size[1];
    dataset->width = header.size[2];
    dataset->channels = (int32_t)channels;
    dataset->pixels = SD_NEW_ARRAY(dataset->context, uint8_t, count);
    if (dataset->pixels == NULL) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    SD_TRY(sd_stream_read(stream, dataset->pixels, count));
    SD_TRY(sd_stream_finish(stream));
cleanup:
    sd_stream_close(stream);
    return status;
}

static sd_status read_labels(sd_dataset *dataset, const char *path) {
    sd_status status = SD_OK;
    sd_stream *stream = NULL;
    sd_idx_header header = {0};
    size_t count;
    SD_TRY(sd_stream_open(dataset->context, path, &stream));
    SD_TRY(read_header(stream, path, 1, 1, &header, &count));
    SD_EXPECT(count == dataset->count, SD_ERR_MISMATCH, "'%s' has %zu labels for %llu images", path, count,
              (unsigned long long)dataset->count);
    dataset->labels = SD_NEW_ARRAY(dataset->context, int32_t, count);
    if (dataset->labels == NULL) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    uint8_t block[1024];
    for (size_t start = 0; start < count; start += sizeof block) {
        size_t here = sd_size_min(sizeof block, count - start);
        SD_TRY(sd_stream_read(stream, block, here));
        for (size_t i = 0; i < here; i++)
            dataset->labels[start + i] = block[i];
    }
    SD_TRY(sd_stream_finish(stream));
cleanup:
    sd_stream_close(stream);
    return status;
}

SD_API sd_status sd_dataset_open_idx(sd_context *context, const char *images_path, const char *labels_path,
                                     sd_dataset **out) {
    sd_status status = SD_OK;
    sd_dataset *dataset = NULL;
    SD_EXPECT(out != NULL, SD_ERR_ARGUMENT, "dataset is NULL");
    SD_EXPECT(images_path != NULL, SD_ERR_ARGUMENT, "images_path is NULL");
    dataset = SD_NEW(context, sd_dataset);
    if (dataset == NULL)
        return SD_ERR_MEMORY;
    dataset->context = context;
    SD_TRY(read_images(dataset, images_path));
    if (labels_path != NULL)
        SD_TRY(read_labels(dataset, labels_path));
    *out = dataset;
    dataset = NULL;
cleanup:
    sd_dataset_destroy(dataset);
    return status;
}
