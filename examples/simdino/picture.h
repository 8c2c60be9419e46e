/* picture.h - images and maps of numbers, drawn into a canvas. */
#ifndef PICTURE_H
#define PICTURE_H

#include <simdino/simdino.h>

#include "canvas.h"

typedef enum color_scale {
    SCALE_HEAT, /* black, violet, orange, pale yellow: for what is never negative */
    SCALE_SIGNS /* dark blue, green, yellow: for similarities */
} color_scale;

/* The colour of a share 0..1 of a scale. */
color scale_color(color_scale scale, double share);

/* An image of 1 or 3 channels (of more, the first is shown), made larger or smaller to fit the box without changing its
 * form, in the middle of it; small ones are enlarged by whole pixels where that fits. 0, or -1 when memory is short. */
int picture_image(canvas *picture, int x, int y, int width, int height, const sd_image *image);

/* rows x columns values of 0..1, each a rectangle of the box, in the colours of a scale. smooth: with colours that flow
 * into each other (bicubic). */
void picture_map(canvas *picture, int x, int y, int width, int height, const float *shares, size_t rows, size_t columns,
                 color_scale scale, int smooth);

/* The same for rows x columns colours (red, green, blue) of 0..1. */
void picture_colors(canvas *picture, int x, int y, int width, int height, const float *colors, size_t rows,
                    size_t columns, int smooth);

/* Where cell (row, column) of such a map lies in the box. */
void picture_cell(int width, int height, size_t row, size_t rows, size_t column, size_t columns, int box[4]);

/* A bar of the colours of a scale. */
void picture_scale(canvas *picture, int x, int y, int width, int height, color_scale scale);

/* A frame of `pen` pixels inside of the box. */
void picture_frame(canvas *picture, int x, int y, int width, int height, int pen, color ink);

/* Text cut to `width` pixels, with "..." where something is missing; `tail`: its end is kept, as file names need. */
void picture_text(canvas *picture, int x, int y, int scale, int width, color ink, const char *text, int tail);

#endif
