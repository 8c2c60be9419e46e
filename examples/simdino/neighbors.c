/* The contact sheet. See neighbors.h. */
#include "neighbors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "canvas.h"
#include "program.h"

#define ROWS      12
#define NEIGHBORS 9
#define TILE      72 /* pixels that an image is enlarged to at least */
#define FRAME     4
#define GAP       8
#define MARGIN    24
#define HEAD      72 /* height of title and column names */
#define LABEL     14 /* height of the label below an image */

static const color black = {30, 30, 30}, gray = {120, 120, 120}, green = {24, 150, 60}, red = {214, 40, 40};

typedef struct sheet {
    canvas *picture;
    const source *data;
    int zoom, tile_width, tile_height;
} sheet;

static uint8_t byte_at(const sd_image *image, size_t x, size_t y, int32_t channel) {
    size_t size = image->pixel_type == SD_PIXEL_U8 ? 1 : sizeof(float);
    size_t stride = image->row_stride != 0 ? image->row_stride : image->width * (size_t)image->channels * size;
    size_t index = x * (size_t)image->channels + (size_t)channel;
    const char *row = (const char *)image->pixels + y * stride;
    if (image->pixel_type == SD_PIXEL_U8) {
        return ((const uint8_t *)row)[index];
    }
    float value = ((const float *)(const void *)row)[index] * 255.0f + 0.5f;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

static void label_text(const sheet *s, const sd_dataset *dataset, uint64_t index, char *text, size_t room) {
    const int32_t *labels = sd_dataset_labels(dataset);
    if (labels == NULL) {
        snprintf(text, room, "%llu", (unsigned long long)index);
    } else if (s->data->class_names != NULL) {
        snprintf(text, room, "%s", s->data->class_names[labels[index]]);
    } else {
        snprintf(text, room, "class %d", labels[index]);
    }
}

static void draw_image(const sheet *s, const sd_dataset *dataset, uint64_t index, int x, int y, color frame) {
    sd_image image;
    void *token = NULL;
    if (sd_dataset_acquire(dataset, index, &image, &token) != SD_OK) {
        return;
    }
    canvas_rectangle(s->picture, x - FRAME, y - FRAME, s->tile_width + 2 * FRAME, s->tile_height + 2 * FRAME, frame);
    for (int row = 0; row < s->tile_height; row++) {
        for (int column = 0; column < s->tile_width; column++) {
            size_t from_x = (size_t)(column / s->zoom), from_y = (size_t)(row / s->zoom);
            if (from_x < image.width && from_y < image.height) {
                color dot;
                dot.red = byte_at(&image, from_x, from_y, 0);
                dot.green = image.channels >= 3 ? byte_at(&image, from_x, from_y, 1) : dot.red;
                dot.blue = image.channels >= 3 ? byte_at(&image, from_x, from_y, 2) : dot.red;
                canvas_pixel(s->picture, x + column, y + row, dot);
            }
        }
    }
    sd_dataset_release(dataset, index, token);
    char text[32];
    label_text(s, dataset, index, text, sizeof text);
    canvas_text(s->picture, x, y + s->tile_height + FRAME + 2, 1, black, text);
}

/* The first test image of each class, then the second of each, until there are enough. */
static size_t choose_queries(const sd_dataset *test, uint64_t available, size_t wanted, uint64_t *chosen) {
    const int32_t *labels = sd_dataset_labels(test);
    int32_t classes = source_classes(test);
    size_t count = 0;
    for (uint64_t round = 0; count < wanted && round < wanted; round++) {
        for (int32_t c = 0; c < (classes > 0 ? classes : 1) && count < wanted; c++) {
            uint64_t seen = 0;
            for (uint64_t i = 0; i < available; i++) {
                if ((labels == NULL || labels[i] == c) && seen++ == round) {
                    chosen[count++] = i;
                    break;
                }
            }
        }
    }
    return count;
}

static void draw_sheet(const sheet *s, const char *title, const uint64_t *chosen, size_t rows, const int64_t *indices,
                       size_t columns) {
    const int32_t *train_labels = sd_dataset_labels(s->data->train), *test_labels = sd_dataset_labels(s->data->test);
    int step_x = s->tile_width + 2 * FRAME + GAP, step_y = s->tile_height + 2 * FRAME + LABEL + GAP;
    canvas_text(s->picture, MARGIN, 18, 2, black, title);
    canvas_text(s->picture, MARGIN, HEAD - 24, 1, gray, "test image");
    canvas_text(s->picture, MARGIN + step_x + GAP * 2, HEAD - 24, 1, gray,
                "its nearest training images, best first; frame: green same class, red another class");
    for (size_t row = 0; row < rows; row++) {
        int y = HEAD + (int)row * step_y;
        draw_image(s, s->data->test, chosen[row], MARGIN, y, black);
        for (size_t k = 0; k < columns; k++) {
            uint64_t index = (uint64_t)indices[row * columns + k];
            bool known = train_labels != NULL && test_labels != NULL;
            bool same = known && train_labels[index] == test_labels[chosen[row]];
            draw_image(s, s->data->train, index, MARGIN + GAP * 2 + (int)(k + 1) * step_x, y,
                       !known ? gray
                       : same ? green
                              : red);
        }
    }
}

int neighbors_write(sd_context *context, const char *path, const char *title, const source *data, const features *base,
                    const features *queries) {
    uint64_t chosen[ROWS];
    int64_t indices[ROWS * NEIGHBORS];
    size_t rows = choose_queries(data->test, queries->count, ROWS, chosen), dim = base->dim;
    size_t columns = base->count < NEIGHBORS ? (size_t)base->count : NEIGHBORS;
    float *vectors = malloc(ROWS * dim * sizeof *vectors);
    if (vectors == NULL) {
        complain("%s: out of memory", path);
        return -1;
    }
    for (size_t i = 0; i < rows; i++) {
        memcpy(vectors + i * dim, queries->rows + (size_t)chosen[i] * dim, dim * sizeof *vectors);
    }
    sd_status status =
        sd_nearest_neighbors(context, base->rows, (size_t)base->count, vectors, rows, dim, columns, indices, NULL);
    free(vectors);
    if (status != SD_OK) {
        failed("cannot find neighbours", status);
        return -1;
    }
    sheet s = {.data = data};
    int side = (int)(data->width > data->height ? data->width : data->height);
    s.zoom = side > 0 && side < TILE ? (TILE + side - 1) / side : 1;
    s.tile_width = (int)data->width * s.zoom;
    s.tile_height = (int)data->height * s.zoom;
    int width = 2 * MARGIN + GAP * 2 + (int)(columns + 1) * (s.tile_width + 2 * FRAME + GAP);
    int height = HEAD + MARGIN + (int)rows * (s.tile_height + 2 * FRAME + LABEL + GAP);
    int needed = 2 * MARGIN + canvas_text_width(2, title);
    s.picture = canvas_create(width > needed ? width : needed, height);
    if (s.picture == NULL) {
        complain("%s: out of memory", path);
        return -1;
    }
    draw_sheet(&s, title, chosen, rows, indices, columns);
    int result = canvas_write_png(s.picture, 1, path);
    canvas_destroy(s.picture);
    return result;
}
