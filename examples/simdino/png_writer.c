/* PNG writer: signature, IHDR, one IDAT of zlib data, IEND (PNG specification, sections 5 and 11). */
#include "png_writer.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "output.h"
#include "program.h"

static void put_u32(uint8_t *to, uint32_t value) {
    to[0] = (uint8_t)(value >> 24);
    to[1] = (uint8_t)(value >> 16);
    to[2] = (uint8_t)(value >> 8);
    to[3] = (uint8_t)value;
}

/* A chunk is length, type, data, and the CRC of type and data. */
static void write_chunk(output *file, const char *type, const uint8_t *data, size_t length) {
    uint8_t head[8], tail[4];
    put_u32(head, (uint32_t)length);
    memcpy(head + 4, type, 4);
    uLong sum = crc32(0, head + 4, 4);
    if (length > 0) {
        sum = crc32(sum, data, (uInt)length);
    }
    put_u32(tail, (uint32_t)sum);
    output_write(file, head, 8);
    output_write(file, data, length);
    output_write(file, tail, 4);
}

int png_write(const char *path, const uint8_t *pixels, int width, int height) {
    static const uint8_t signature[8] = {137, 80, 78, 71, 13, 10, 26, 10};
    size_t row = (size_t)width * 3, raw_size = (row + 1) * (size_t)height;
    uLongf packed_size = compressBound((uLong)raw_size);
    uint8_t *raw = malloc(raw_size), *packed = malloc(packed_size);
    output *file = NULL;
    int result = -1;
    if (raw == NULL || packed == NULL) {
        complain("%s: out of memory", path);
        goto cleanup;
    }
    for (size_t y = 0; y < (size_t)height; y++) {
        raw[y * (row + 1)] = 0; /* filter type: none */
        memcpy(raw + y * (row + 1) + 1, pixels + y * row, row);
    }
    if (compress2(packed, &packed_size, raw, (uLong)raw_size, 9) != Z_OK) {
        complain("%s: zlib failed", path);
        goto cleanup;
    }
    file = output_open(path);
    if (file == NULL) {
        goto cleanup;
    }
    uint8_t header[13];
    put_u32(header, (uint32_t)width);
    put_u32(header + 4, (uint32_t)height);
    header[8] = 8;                            /* bits per channel */
    header[9] = 2;                            /* red, green, blue */
    header[10] = header[11] = header[12] = 0; /* deflate, adaptive filters, not interlaced */
    output_write(file, signature, sizeof signature);
    write_chunk(file, "IHDR", header, sizeof header);
    write_chunk(file, "IDAT", packed, packed_size);
    write_chunk(file, "IEND", NULL, 0);
    result = output_close(file);

cleanup:
    free(raw);
    free(packed);
    return result;
}
