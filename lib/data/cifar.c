/* CIFAR-10 binary files: records of a label byte and 32 x 32 pixels, the red, green and blue plane one after the other.
 */
#include "data/dataset.h"
#include "data/stream.h"

#define SIDE     32
#define PIXELS   (SIDE * SIDE)
#define CHANNELS 3
#define RECORD   (1 + CHANNELS * PIXELS)
#define CLASSES  10

static sd_status read_records(sd_dataset *dataset, sd_stream *stream, const char *path, size_t first, size_t count) {
    sd_status status = SD_OK;
    uint8_t record[RECORD];
    for (size_t i = first; i < first + count; i++) {
        SD_TRY(sd_stream_read(stream, record, RECORD));
        SD_EXPECT(record[0] < CLASSES, SD_ERR_FORMAT, "'%s' has label %u in record %zu: the largest is %d", path,
                  record[0], i - first, CLASSES - 1);
        dataset->labels[i] = record[0];
        uint8_t *image = dataset->pixels + i * CHANNELS * PIXELS;
        for (size_t k = 0; k < PIXELS; k++)
            for (size_t c = 0; c < CHANNELS; c++)
                image[CHANNELS * k + c] = record[1 + c * PIXELS + k];
    }
    SD_TRY(sd_stream_finish(stream));
cleanup:
    return status;
}

SD_API sd_status sd_dataset_open_cifar10(sd_context *context, const char *const *paths, size_t path_count,
                                         sd_dataset **out) {
    sd_status status = SD_OK;
    sd_dataset *dataset = NULL;
    sd_stream *stream = NULL;
    uint64_t *records = NULL, total = 0;
    SD_EXPECT(out != NULL, SD_ERR_ARGUMENT, "dataset is NULL");
    SD_EXPECT(paths != NULL && path_count > 0, SD_ERR_ARGUMENT, "no paths are given");
    for (size_t i = 0; i < path_count; i++)
        SD_EXPECT(paths[i] != NULL, SD_ERR_ARGUMENT, "paths[%zu] is NULL", i);
    dataset = SD_NEW(context, sd_dataset);
    if (dataset == NULL)
        return SD_ERR_MEMORY;
    dataset->context = context;
    records = SD_NEW_ARRAY(context, uint64_t, path_count);
    if (records == NULL) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }

    /* Sizes first: one allocation for all files, and a wrong file is found before it. */
    for (size_t i = 0; i < path_count; i++) {
        SD_TRY(sd_stream_open(context, paths[i], &stream));
        uint64_t bytes = sd_stream_file_size(stream);
        SD_EXPECT(bytes > 0 && bytes % RECORD == 0, SD_ERR_FORMAT,
                  "'%s' has %llu bytes, which is not a number of CIFAR-10 records of %d", paths[i],
                  (unsigned long long)bytes, RECORD);
        records[i] = bytes / RECORD;
        total += records[i];
        sd_stream_close(stream);
        stream = NULL;
    }
    SD_EXPECT(total <= SIZE_MAX / RECORD, SD_ERR_MEMORY, "%llu images do not fit into the address space",
              (unsigned long long)total);
    dataset->count = total;
    dataset->width = dataset->height = SIDE;
    dataset->channels = CHANNELS;
    dataset->pixels = SD_NEW_ARRAY(context, uint8_t, (size_t)total * CHANNELS * PIXELS);
    dataset->labels = SD_NEW_ARRAY(context, int32_t, (size_t)total);
    if (dataset->pixels == NULL || dataset->labels == NULL) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    for (size_t i = 0, first = 0; i < path_count; first += (size_t)records[i], i++) {
        SD_TRY(sd_stream_open(context, paths[i], &stream));
        SD_TRY(read_records(dataset, stream, paths[i], first, (size_t)records[i]));
        sd_stream_close(stream);
        stream = NULL;
    }
    *out = dataset;
    dataset = NULL;
cleanup:
    sd_stream_close(stream);
    sd_release(context, records);
    sd_dataset_destroy(dataset);
    return status;
}
