/* Drawing. See canvas.h. */
#include "canvas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "font.h"
#include "png_writer.h"

canvas *canvas_create(int width, int height) {
    if (width < 1 || height < 1 || (size_t)width > CANVAS_MOST_PIXELS / (size_t)height) {
        return NULL;
    }
    canvas *picture = malloc(sizeof *picture);
    uint8_t *pixels = malloc((size_t)width * (size_t)height * 3);
    if (picture == NULL || pixels == NULL) {
        free(picture);
        free(pixels);
        return NULL;
    }
    memset(pixels, 255, (size_t)width * (size_t)height * 3);
    picture->width = width;
    picture->height = height;
    picture->pixels = pixels;
    return picture;
}

void canvas_destroy(canvas *picture) {
    if (picture != NULL) {
        free(picture->pixels);
        free(picture);
    }
}

void canvas_pixel(canvas *picture, int x, int y, color ink) {
    if (x >= 0 && y >= 0 && x < picture->width && y < picture->height) {
        uint8_t *pixel = picture->pixels + ((size_t)y * (size_t)picture->width + (size_t)x) * 3;
        pixel[0] = ink.red;
        pixel[1] = ink.green;
        pixel[2] = ink.blue;
    }
}

void canvas_rectangle(canvas *picture, int x, int y, int width, int height, color ink) {
    for (int i = 0; i < height; i++) {
        for (int j = 0; j < width; j++) {
            canvas_pixel(picture, x + j, y + i, ink);
        }
    }
}

void canvas_line(canvas *picture, double x0, double y0, double x1, double y1, double pen, color ink) {
    double length = hypot(x1 - x0, y1 - y0), radius = pen / 2;
    int steps = (int)(length * 2) + 1;
    for (int s = 0; s <= steps; s++) {
        double x = x0 + (x1 - x0) * s / steps, y = y0 + (y1 - y0) * s / steps;
        for (int i = (int)floor(y - radius); i <= (int)ceil(y + radius); i++) {
            for (int j = (int)floor(x - radius); j <= (int)ceil(x + radius); j++) {
                if ((j - x) * (j - x) + (i - y) * (i - y) <= radius * radius) {
                    canvas_pixel(picture, j, i, ink);
                }
            }
        }
    }
}

int canvas_text_width(int scale, const char *text) {
    return (int)strlen(text) * GLYPH_WIDTH * scale;
}

void canvas_text(canvas *picture, int x, int y, int scale, color ink, const char *text) {
    for (; *text != '\0'; text++, x += GLYPH_WIDTH * scale) {
        const char *const *glyph = font_glyph(*text);
        for (int row = 0; glyph != NULL && row < GLYPH_HEIGHT && glyph[row] != NULL; row++) {
            for (int column = 0; glyph[row][column] != '\0'; column++) {
                if (glyph[row][column] == '#') {
                    canvas_rectangle(picture, x + column * scale, y + row * scale, scale, scale, ink);
                }
            }
        }
    }
}

int canvas_write_png(const canvas *picture, int shrink, const char *path) {
    int width = picture->width / shrink, height = picture->height / shrink;
    canvas *small = shrink > 1 ? canvas_create(width, height) : NULL;
    if (small == NULL) {
        return png_write(path, picture->pixels, picture->width, picture->height);
    }
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            for (int c = 0; c < 3; c++) {
                int sum = 0;
                for (int i = 0; i < shrink; i++) {
                    for (int j = 0; j < shrink; j++) {
                        int row = y * shrink + i, column = x * shrink + j;
                        sum += picture->pixels[((size_t)row * (size_t)picture->width + (size_t)column) * 3 + (size_t)c];
                    }
                }
                small->pixels[((size_t)y * (size_t)width + (size_t)x) * 3 + (size_t)c] =
                    (uint8_t)((sum + shrink * shrink / 2) / (shrink * shrink));
            }
        }
    }
    int result = png_write(path, small->pixels, width, height);
    canvas_destroy(small);
    return result;
}
