/* show.h - what simdino show has computed for its pictures, and how it is to be drawn. */
#ifndef SHOW_H
#define SHOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image_file.h"

typedef enum show_kind { SHOW_ALL, SHOW_ATTENTION, SHOW_PCA, SHOW_SIMILARITY } show_kind;

/* One input image. */
typedef struct show_image {
    const char *name;
    image_pixels seen; /* the part that the network saw, at its size on the canvas */
    size_t rows, columns;
    float *attention;  /* heads x patches: of the class token */
    float *colors, *foreground_colors; /* patches x 3, 0..1; NULL: no foreground was found */
    float *similarity; /* patches */
    size_t patch;      /* the one that `similarity` is with */
} show_image;

typedef struct show_sheet {
    show_kind what;
    show_image *images;
    size_t count, heads;
    int32_t head;  /* only this one; -1: all */
    int32_t block; /* that the attention is of */
    double share;  /* of the attention that is kept; 0: the whole map is shown */
    bool smooth;
    int side;      /* of a panel: its longer side in pixels */
} show_sheet;

/* Draws all into a PNG file: a line of panels for each image. 0, or -1 with the reason reported. */
int show_write(const show_sheet *sheet, const char *path);

#endif
