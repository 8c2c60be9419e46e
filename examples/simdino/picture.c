/* Images and maps in a canvas. See picture.h. */
#include "picture.h"

#include <stdlib.h>
#include <string.h>

/* ---- colours ------------------------------------------------------------------------------- */

color scale_color(color_scale scale, double share) {
    /* Ten colours of equal steps in brightness, between which is interpolated: after "inferno" and "viridis" of
     * matplotlib (CC0). */
    static const uint8_t colors[2][10][3] = {
        {{0, 0, 4}, {27, 12, 65}, {74, 12, 107}, {120, 28, 109}, {165, 44, 96}, {207, 68, 70}, {237, 105, 37},
         {251, 155, 6}, {247, 209, 61}, {252, 255, 164}},
        {{68, 1, 84}, {72, 40, 120}, {62, 73, 137}, {49, 104, 142}, {38, 130, 142}, {31, 158, 137}, {53, 183, 121},
         {110, 206, 88}, {181, 222, 43}, {253, 231, 37}},
    };
    double place = share > 0 ? (share < 1 ? share : 1) * 9 : 0;
    int low = place >= 9 ? 8 : (int)place;
    const uint8_t *a = colors[scale][low], *b = colors[scale][low + 1];
    double part = place - low;
    return (color){(uint8_t)(a[0] + part * (b[0] - a[0]) + 0.5), (uint8_t)(a[1] + part * (b[1] - a[1]) + 0.5),
                   (uint8_t)(a[2] + part * (b[2] - a[2]) + 0.5)};
}

/* ---- images -------------------------------------------------------------------------------- */

static uint8_t byte_of(const sd_image *image, const void *pixels, size_t index) {
    if (image->pixel_type == SD_PIXEL_U8) {
        return ((const uint8_t *)pixels)[index];
    }
    float value = ((const float *)pixels)[index] * 255.0f + 0.5f;
    return (uint8_t)(!(value > 0) ? 0 : value > 255 ? 255 : value);
}

int picture_image(canvas *picture, int x, int y, int width, int height, const sd_image *image) {
    size_t channels = (size_t)image->channels, value = image->pixel_type == SD_PIXEL_U8 ? 1 : sizeof(float);
    double zoom_x = (double)width / (double)image->width, zoom_y = (double)height / (double)image->height;
    double zoom = zoom_x < zoom_y ? zoom_x : zoom_y;
    if (zoom >= 2) {
        zoom = (int)zoom;
    }
    size_t to_width = (size_t)((double)image->width * zoom + 0.5), to_height = (size_t)((double)image->height * zoom + 0.5);
    to_width = to_width > 0 ? to_width : 1;
    to_height = to_height > 0 ? to_height : 1;
    void *pixels = malloc(to_width * to_height * channels * value);
    sd_filter filter = zoom >= 2 ? SD_FILTER_NEAREST : SD_FILTER_BICUBIC;
    if (pixels == NULL || sd_image_resize(image, 0, 0, image->height, image->width, filter, to_width, to_height,
                                          pixels) != SD_OK) {
        free(pixels);
        return -1;
    }
    int left = x + (width - (int)to_width) / 2, top = y + (height - (int)to_height) / 2;
    for (size_t row = 0; row < to_height; row++) {
        for (size_t column = 0; column < to_width; column++) {
            size_t at = (row * to_width + column) * channels;
            color dot;
            dot.red = dot.green = dot.blue = byte_of(image, pixels, at);
            if (channels == 3) {
                dot.green = byte_of(image, pixels, at + 1);
                dot.blue = byte_of(image, pixels, at + 2);
            }
            canvas_pixel(picture, left + (int)column, top + (int)row, dot);
        }
    }
    free(pixels);
    return 0;
}

/* ---- maps ---------------------------------------------------------------------------------- */

/* Where cell `index` of `cells` begins in a box. */
static int cell_edge(size_t index, size_t cells, int width) {
    return (int)((double)index * width / (double)cells + 0.5);
}

void picture_cell(int width, int height, size_t row, size_t rows, size_t column, size_t columns, int box[4]) {
    box[0] = cell_edge(column, columns, width);
    box[1] = cell_edge(row, rows, height);
    box[2] = cell_edge(column + 1, columns, width) - box[0];
    box[3] = cell_edge(row + 1, rows, height) - box[1];
}

static uint8_t byte_of_share(float share) {
    return (uint8_t)(!(share > 0) ? 0 : share > 1 ? 255 : share * 255 + 0.5f);
}

static color map_color(const float *values, size_t channels, color_scale scale) {
    if (channels == 1) {
        return scale_color(scale, (double)values[0]);
    }
    return (color){byte_of_share(values[0]), byte_of_share(values[1]), byte_of_share(values[2])};
}

static void draw_map(canvas *picture, int x, int y, int width, int height, const float *values, size_t channels,
                     size_t rows, size_t columns, color_scale scale, int smooth) {
    size_t to_width = (size_t)width, to_height = (size_t)height;
    float *fine = smooth ? malloc(to_width * to_height * channels * sizeof *fine) : NULL;
    sd_image image = {.pixels = values, .width = columns, .height = rows, .channels = (int32_t)channels,
                      .pixel_type = SD_PIXEL_F32};
    if (fine != NULL &&
        sd_image_resize(&image, 0, 0, rows, columns, SD_FILTER_BICUBIC, to_width, to_height, fine) == SD_OK) {
        for (size_t i = 0; i < to_width * to_height; i++) {
            canvas_pixel(picture, x + (int)(i % to_width), y + (int)(i / to_width),
                         map_color(fine + i * channels, channels, scale));
        }
    } else {
        for (size_t i = 0; i < rows * columns; i++) {
            int box[4];
            picture_cell(width, height, i / columns, rows, i % columns, columns, box);
            canvas_rectangle(picture, x + box[0], y + box[1], box[2], box[3],
                             map_color(values + i * channels, channels, scale));
        }
    }
    free(fine);
}

void picture_map(canvas *picture, int x, int y, int width, int height, const float *shares, size_t rows, size_t columns,
                 color_scale scale, int smooth) {
    draw_map(picture, x, y, width, height, shares, 1, rows, columns, scale, smooth);
}

void picture_colors(canvas *picture, int x, int y, int width, int height, const float *colors, size_t rows,
                    size_t columns, int smooth) {
    draw_map(picture, x, y, width, height, colors, 3, rows, columns, SCALE_HEAT, smooth);
}

void picture_scale(canvas *picture, int x, int y, int width, int height, color_scale scale) {
    for (int i = 0; i < width; i++) {
        canvas_rectangle(picture, x + i, y, 1, height, scale_color(scale, (i + 0.5) / width));
    }
}

void picture_frame(canvas *picture, int x, int y, int width, int height, int pen, color ink) {
    canvas_rectangle(picture, x, y, width, pen, ink);
    canvas_rectangle(picture, x, y + height - pen, width, pen, ink);
    canvas_rectangle(picture, x, y, pen, height, ink);
    canvas_rectangle(picture, x + width - pen, y, pen, height, ink);
}

void picture_text(canvas *picture, int x, int y, int scale, int width, color ink, const char *text, int tail) {
    char cut[256];
    size_t room = width > 0 ? (size_t)(width / (GLYPH_WIDTH * scale)) : 0, length = strlen(text);
    room = room < sizeof cut - 1 ? room : sizeof cut - 1;
    if (length <= room) {
        canvas_text(picture, x, y, scale, ink, text);
        return;
    }
    if (room < 4) {
        return;
    }
    if (tail) {
        memcpy(cut, "...", 3);
        memcpy(cut + 3, text + length - (room - 3), room - 3);
    } else {
        memcpy(cut, text, room - 3);
        memcpy(cut + room - 3, "...", 3);
    }
    cut[room] = '\0';
    canvas_text(picture, x, y, scale, ink, cut);
}
