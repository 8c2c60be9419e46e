/* Drawing of the contact sheet. See index_sheet.h. */
#include "index_sheet.h"

#include <stdio.h>
#include <string.h>

#include "image_file.h"
#include "picture.h"
#include "program.h"

#define TILE   150
#define GAP    12
#define APART  28 /* between a query and what was found for it */
#define MARGIN 28
#define HEAD   84
#define TEXT   30 /* two lines below an image */

static const color ink = {32, 32, 36}, soft = {118, 118, 126}, paper = {243, 243, 245}, accent = {38, 84, 158};

static const char *file_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

static void draw(canvas *picture, int x, int y, const sd_image *image) {
    canvas_rectangle(picture, x, y, TILE, TILE, paper);
    if (image != NULL) {
        picture_image(picture, x, y, TILE, TILE, image);
    } else {
        canvas_text(picture, x + 8, y + TILE / 2 - 4, 1, soft, "cannot be read");
    }
}

static void draw_query(const index_sheet *s, canvas *picture, size_t row, int y) {
    sd_image image;
    void *token = NULL;
    bool there = sd_dataset_acquire(s->queries, s->numbers[row], &image, &token) == SD_OK;
    draw(picture, MARGIN, y, there ? &image : NULL);
    if (there) {
        sd_dataset_release(s->queries, s->numbers[row], token);
    }
    picture_frame(picture, MARGIN - 4, y - 4, TILE + 8, TILE + 8, 4, accent);
    char number[32];
    snprintf(number, sizeof number, "image %llu", (unsigned long long)s->numbers[row]);
    const char *name = s->query_files != NULL ? file_name(image_folder_path(s->query_files, s->numbers[row])) : number;
    picture_text(picture, MARGIN, y + TILE + 7, 1, TILE, ink, name, 1);
}

static void draw_found(const index_sheet *s, canvas *picture, int64_t id, float score, int x, int y) {
    const index_entry *entry = index_list_find(s->list, id);
    char text[64];
    image_pixels pixels = {0};
    sd_image image;
    void *token = NULL;
    if (entry != NULL && entry->name[0] != '\0') {
        char why[IMAGE_WHY];
        bool there = image_read(entry->name, 0, &pixels, why) == 0;
        image = (sd_image){.pixels = pixels.pixels, .width = pixels.width, .height = pixels.height,
                           .channels = pixels.channels, .pixel_type = SD_PIXEL_U8};
        draw(picture, x, y, there ? &image : NULL);
        image_free(&pixels);
    } else if (s->images != NULL && sd_dataset_acquire(s->images, (uint64_t)id, &image, &token) == SD_OK) {
        draw(picture, x, y, &image);
        sd_dataset_release(s->images, (uint64_t)id, token);
    } else {
        draw(picture, x, y, NULL);
    }
    snprintf(text, sizeof text, "%.4g", (double)score);
    canvas_text(picture, x, y + TILE + 5, 1, accent, text);
    int used = canvas_text_width(1, text) + GLYPH_WIDTH;
    if (entry != NULL) {
        picture_text(picture, x + used, y + TILE + 5, 1, TILE - used, ink, entry->label, 0);
    }
    snprintf(text, sizeof text, "%lld", (long long)id);
    picture_text(picture, x, y + TILE + 17, 1, TILE, soft,
                 entry != NULL && entry->name[0] != '\0' ? file_name(entry->name) : text, 1);
}

int index_sheet_write(const index_sheet *s, const char *path) {
    int step = TILE + GAP, height = HEAD + (int)s->rows * (TILE + TEXT + GAP) + MARGIN - GAP;
    int width = 2 * MARGIN + TILE + APART + (int)s->columns * step - GAP;
    int needed = 2 * MARGIN + canvas_text_width(2, s->title);
    canvas *picture = canvas_create(width > needed ? width : needed, height);
    if (picture == NULL) {
        complain("%s: out of memory", path);
        return -1;
    }
    canvas_text(picture, MARGIN, 20, 2, ink, s->title);
    canvas_text(picture, MARGIN, HEAD - 30, 1, soft, "query");
    canvas_text(picture, MARGIN + TILE + APART, HEAD - 30, 1, soft, "nearest images, best first, with their scores");
    for (size_t row = 0; row < s->rows; row++) {
        int y = HEAD + (int)row * (TILE + TEXT + GAP);
        draw_query(s, picture, row, y);
        for (size_t k = 0; k < s->columns; k++) {
            int64_t id = s->ids[row * s->found + k];
            if (id >= 0) {
                draw_found(s, picture, id, s->scores[row * s->found + k], MARGIN + TILE + APART + (int)k * step, y);
            }
        }
    }
    int result = canvas_write_png(picture, 1, path);
    canvas_destroy(picture);
    return result;
}
