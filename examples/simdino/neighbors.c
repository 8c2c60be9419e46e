/* The contact sheet. See neighbors.h. */
#include "neighbors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "picture.h"
#include "program.h"

#define ROWS      12
#define NEIGHBORS 9
#define TILE      72  /* pixels that an image is enlarged to at least */
#define PHOTO     120 /* and the size of image files, which differ */
#define FRAME     4
#define GAP       8
#define MARGIN    24
#define HEAD      72 /* height of title and column names */
#define LABEL     14 /* height of the label below an image */

static const color black = {30, 30, 30}, gray = {120, 120, 120}, green = {24, 150, 60}, red = {214, 40, 40};

typedef struct sheet {
    canvas *picture;
    const source *data;
    int tile_width, tile_height;
} sheet;

static void label_text(const sheet *s, const features *rows, uint64_t row, char *text, size_t room) {
    if (rows->labels == NULL) {
        snprintf(text, room, "%llu", (unsigned long long)rows->images[row]);
    } else if (s->data->class_names != NULL) {
        snprintf(text, room, "%s", s->data->class_names[rows->labels[row]]);
    } else {
        snprintf(text, room, "class %d", rows->labels[row]);
    }
}

static void draw_image(const sheet *s, const sd_dataset *dataset, const features *rows, uint64_t row, int x, int y,
                       color frame) {
    sd_image image;
    void *token = NULL;
    if (sd_dataset_acquire(dataset, rows->images[row], &image, &token) != SD_OK) {
        return;
    }
    canvas_rectangle(s->picture, x - FRAME, y - FRAME, s->tile_width + 2 * FRAME, s->tile_height + 2 * FRAME, frame);
    canvas_rectangle(s->picture, x, y, s->tile_width, s->tile_height, (color){240, 240, 240});
    picture_image(s->picture, x, y, s->tile_width, s->tile_height, &image);
    sd_dataset_release(dataset, rows->images[row], token);
    char text[64];
    label_text(s, rows, row, text, sizeof text);
    picture_text(s->picture, x, y + s->tile_height + FRAME + 2, 1, s->tile_width + FRAME, black, text, 0);
}

/* The first test image of each class, then the second of each, until there are enough. */
static size_t choose_queries(const features *test, int32_t classes, size_t wanted, uint64_t *chosen) {
    size_t count = 0;
    for (uint64_t round = 0; count < wanted && round < wanted; round++) {
        for (int32_t c = 0; c < (classes > 0 ? classes : 1) && count < wanted; c++) {
            uint64_t seen = 0;
            for (uint64_t i = 0; i < test->count; i++) {
                if ((test->labels == NULL || test->labels[i] == c) && seen++ == round) {
                    chosen[count++] = i;
                    break;
                }
            }
        }
    }
    return count;
}

static void draw_sheet(const sheet *s, const char *title, const features *base, const features *queries,
                       const uint64_t *chosen, size_t rows, const int64_t *indices, size_t columns) {
    int step_x = s->tile_width + 2 * FRAME + GAP, step_y = s->tile_height + 2 * FRAME + LABEL + GAP;
    canvas_text(s->picture, MARGIN, 18, 2, black, title);
    canvas_text(s->picture, MARGIN, HEAD - 24, 1, gray, "test image");
    canvas_text(s->picture, MARGIN + step_x + GAP * 2, HEAD - 24, 1, gray,
                "its nearest training images, best first; frame: green same class, red another class");
    for (size_t row = 0; row < rows; row++) {
        int y = HEAD + (int)row * step_y;
        draw_image(s, s->data->test, queries, chosen[row], MARGIN, y, black);
        for (size_t k = 0; k < columns; k++) {
            uint64_t index = (uint64_t)indices[row * columns + k];
            bool known = base->labels != NULL && queries->labels != NULL;
            bool same = known && base->labels[index] == queries->labels[chosen[row]];
            draw_image(s, s->data->train, base, index, MARGIN + GAP * 2 + (int)(k + 1) * step_x, y,
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
    size_t rows = choose_queries(queries, source_classes(data->test), ROWS, chosen), dim = base->dim;
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
    int zoom = side > 0 && side < TILE ? (TILE + side - 1) / side : 1;
    s.tile_width = data->train_images != NULL ? PHOTO : (int)data->width * zoom;
    s.tile_height = data->train_images != NULL ? PHOTO : (int)data->height * zoom;
    int width = 2 * MARGIN + GAP * 2 + (int)(columns + 1) * (s.tile_width + 2 * FRAME + GAP);
    int height = HEAD + MARGIN + (int)rows * (s.tile_height + 2 * FRAME + LABEL + GAP);
    int needed = 2 * MARGIN + canvas_text_width(2, title);
    s.picture = canvas_create(width > needed ? width : needed, height);
    if (s.picture == NULL) {
        complain("%s: out of memory", path);
        return -1;
    }
    draw_sheet(&s, title, base, queries, chosen, rows, indices, columns);
    int result = canvas_write_png(s.picture, 1, path);
    canvas_destroy(s.picture);
    return result;
}
