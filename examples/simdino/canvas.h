/* canvas.h - a picture in memory: rectangles, lines, text in a small bitmap font, and PNG files of it. */
#ifndef CANVAS_H
#define CANVAS_H

#include <stddef.h>
#include <stdint.h>

typedef struct canvas {
    int width, height;
    uint8_t *pixels; /* height rows of width red-green-blue triples */
} canvas;

typedef struct color {
    uint8_t red, green, blue;
} color;

#define GLYPH_WIDTH  6 /* with the gap behind it */
#define GLYPH_HEIGHT 9 /* 7 above the base line, 2 below */

/* A white canvas; NULL when memory is short, or it would have more pixels than this. */
#define CANVAS_MOST_PIXELS ((size_t)1 << 28)
canvas *canvas_create(int width, int height);
void canvas_destroy(canvas *picture);

/* Drawing is clipped to the canvas. */
void canvas_pixel(canvas *picture, int x, int y, color ink);
void canvas_rectangle(canvas *picture, int x, int y, int width, int height, color ink);
/* A line of round pen strokes, `pen` pixels wide. */
void canvas_line(canvas *picture, double x0, double y0, double x1, double y1, double pen, color ink);
/* Text with its upper left corner at (x, y), each dot of the font `scale` pixels wide. */
void canvas_text(canvas *picture, int x, int y, int scale, color ink, const char *text);
int canvas_text_width(int scale, const char *text);

/* Writes the picture as a PNG file, made `shrink` times smaller by averaging (which smooths lines). 0 or -1, with the
 * reason reported. */
int canvas_write_png(const canvas *picture, int shrink, const char *path);

#endif
