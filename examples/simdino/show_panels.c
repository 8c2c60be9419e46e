/* The pictures of simdino show: panels side by side. See show.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "picture.h"
#include "program.h"
#include "show.h"

#define IN_A_LINE 7
#define MARGIN    28
#define GAP       20
#define TITLE     18 /* above a panel */
#define LEGEND    24 /* below it */

static const color ink = {32, 32, 36}, soft = {118, 118, 126}, white = {255, 255, 255}, mark = {228, 26, 60};

typedef enum panel_kind {
    PANEL_INPUT,
    PANEL_MEAN, /* attention, the mean of all heads */
    PANEL_HEAD,
    PANEL_COLORS,
    PANEL_FOREGROUND,
    PANEL_SIMILARITY
} panel_kind;

typedef struct panel {
    panel_kind kind;
    size_t head;
} panel;

/* The panels of each image, in order. Gives their number. */
static size_t choose_panels(const show_sheet *s, panel *panels) {
    size_t count = 0;
    panels[count++] = (panel){PANEL_INPUT, 0};
    if (s->what == SHOW_ALL || s->what == SHOW_ATTENTION) {
        if (s->head >= 0) {
            panels[count++] = (panel){PANEL_HEAD, (size_t)s->head};
        } else {
            panels[count++] = (panel){PANEL_MEAN, 0};
        }
    }
    if (s->what == SHOW_ATTENTION && s->head < 0) {
        for (size_t h = 0; h < s->heads; h++) {
            panels[count++] = (panel){PANEL_HEAD, h};
        }
    }
    if (s->what == SHOW_ALL || s->what == SHOW_PCA) {
        panels[count++] = (panel){PANEL_COLORS, 0};
        panels[count++] = (panel){PANEL_FOREGROUND, 0};
    }
    if (s->what == SHOW_ALL || s->what == SHOW_SIMILARITY) {
        panels[count++] = (panel){PANEL_SIMILARITY, 0};
    }
    return count;
}

static void draw_seen(canvas *picture, int x, int y, const show_image *image) {
    const image_pixels *seen = &image->seen;
    sd_image view = {.pixels = seen->pixels, .width = seen->width, .height = seen->height, .channels = seen->channels,
                     .pixel_type = SD_PIXEL_U8};
    picture_image(picture, x, y, (int)seen->width, (int)seen->height, &view);
}

/* A frame around the chosen patch, white around red so that it is seen everywhere. */
static void draw_mark(canvas *picture, int x, int y, const show_image *image) {
    int box[4];
    picture_cell((int)image->seen.width, (int)image->seen.height, image->patch / image->columns, image->rows,
                 image->patch % image->columns, image->columns, box);
    picture_frame(picture, x + box[0] - 3, y + box[1] - 3, box[2] + 6, box[3] + 6, 2, white);
    picture_frame(picture, x + box[0] - 1, y + box[1] - 1, box[2] + 2, box[3] + 2, 2, mark);
}

/* A map from its smallest to its largest value, and a bar that tells them. */
static void draw_map(const show_sheet *s, canvas *picture, int x, int y, const show_image *image, const float *values,
                     color_scale scale) {
    size_t patches = image->rows * image->columns;
    int width = (int)image->seen.width, height = (int)image->seen.height;
    float least = values[0], most = values[0], *shares = malloc(patches * sizeof *shares);
    for (size_t i = 1; i < patches; i++) {
        least = values[i] < least ? values[i] : least;
        most = values[i] > most ? values[i] : most;
    }
    if (shares == NULL) {
        return;
    }
    for (size_t i = 0; i < patches; i++) {
        shares[i] = most > least ? (values[i] - least) / (most - least) : 0;
    }
    picture_map(picture, x, y, width, height, shares, image->rows, image->columns, scale, s->smooth);
    free(shares);
    char low[24], high[24];
    snprintf(low, sizeof low, "%.3g", (double)least);
    snprintf(high, sizeof high, "%.3g", (double)most);
    picture_scale(picture, x, y + height + 5, width, 5, scale);
    canvas_text(picture, x, y + height + 13, 1, soft, low);
    canvas_text(picture, x + width - canvas_text_width(1, high) + 1, y + height + 13, 1, soft, high);
}

/* The input, dark where the attention is not among the largest. */
static void draw_kept(const show_sheet *s, canvas *picture, int x, int y, const show_image *image,
                      const float *attention) {
    size_t patches = image->rows * image->columns, kept = 0;
    uint8_t *mask = malloc(patches);
    if (mask == NULL || sd_attention_mask(attention, patches, s->share, mask) != SD_OK) {
        free(mask);
        return;
    }
    draw_seen(picture, x, y, image);
    for (size_t i = 0; i < patches; i++) {
        int box[4];
        kept += mask[i];
        picture_cell((int)image->seen.width, (int)image->seen.height, i / image->columns, image->rows,
                     i % image->columns, image->columns, box);
        for (int row = 0; row < box[3] && !mask[i]; row++) {
            uint8_t *at = picture->pixels +
                          ((size_t)(y + box[1] + row) * (size_t)picture->width + (size_t)(x + box[0])) * 3;
            for (int c = 0; c < 3 * box[2]; c++) {
                at[c] = (uint8_t)(at[c] / 5);
            }
        }
    }
    free(mask);
    char text[64];
    snprintf(text, sizeof text, "%.0f%% of it on %zu of %zu patches", 100 * s->share, kept, patches);
    picture_text(picture, x, y + (int)image->seen.height + 7, 1, (int)image->seen.width, soft, text, 0);
}

static void draw_attention(const show_sheet *s, canvas *picture, int x, int y, const show_image *image,
                           const float *attention) {
    if (s->share > 0) {
        draw_kept(s, picture, x, y, image, attention);
    } else {
        draw_map(s, picture, x, y, image, attention, SCALE_HEAT);
    }
}

static void draw_panel(const show_sheet *s, canvas *picture, int x, int y, const show_image *image, panel p) {
    size_t patches = image->rows * image->columns;
    int width = (int)image->seen.width, height = (int)image->seen.height;
    char title[64];
    const char *slash = strrchr(image->name, '/');
    float *mean = NULL;
    y += TITLE;
    switch (p.kind) {
    case PANEL_INPUT:
        draw_seen(picture, x, y, image);
        if (s->what == SHOW_ALL || s->what == SHOW_SIMILARITY) {
            draw_mark(picture, x, y, image);
        }
        snprintf(title, sizeof title, "input, %zu x %zu patches", image->columns, image->rows);
        picture_text(picture, x, y + height + 7, 1, width, soft, slash != NULL ? slash + 1 : image->name, 1);
        break;
    case PANEL_MEAN:
        mean = calloc(patches, sizeof *mean);
        for (size_t i = 0; mean != NULL && i < patches * s->heads; i++) {
            mean[i % patches] += image->attention[i] / (float)s->heads;
        }
        if (mean != NULL) {
            draw_attention(s, picture, x, y, image, mean);
        }
        free(mean);
        snprintf(title, sizeof title, "attention, block %d, mean of heads", s->block);
        break;
    case PANEL_HEAD:
        draw_attention(s, picture, x, y, image, image->attention + p.head * patches);
        snprintf(title, sizeof title, "attention, block %d, head %zu", s->block, p.head);
        break;
    case PANEL_COLORS:
        picture_colors(picture, x, y, width, height, image->colors, image->rows, image->columns, s->smooth);
        snprintf(title, sizeof title, "three components as colours");
        break;
    case PANEL_FOREGROUND:
        if (image->foreground_colors != NULL) {
            picture_colors(picture, x, y, width, height, image->foreground_colors, image->rows, image->columns,
                           s->smooth);
        } else {
            canvas_text(picture, x + 8, y + height / 2, 1, soft, "none found");
        }
        snprintf(title, sizeof title, "components of the foreground");
        break;
    case PANEL_SIMILARITY:
        draw_map(s, picture, x, y, image, image->similarity, SCALE_SIGNS);
        draw_mark(picture, x, y, image);
        snprintf(title, sizeof title, "similarity to the marked patch");
        break;
    }
    picture_text(picture, x, y - 13, 1, width + GAP / 2, ink, title, 0);
}

int show_write(const show_sheet *s, const char *path) {
    panel *panels = malloc((s->heads + 8) * sizeof *panels);
    if (panels == NULL) {
        complain("out of memory");
        return -1;
    }
    size_t count = choose_panels(s, panels), line = count < IN_A_LINE ? count : IN_A_LINE;
    size_t lines = (count + line - 1) / line;
    int width = 0, height = 2 * MARGIN - GAP;
    for (size_t i = 0; i < s->count; i++) {
        const image_pixels *seen = &s->images[i].seen;
        int own = 2 * MARGIN + (int)line * ((int)seen->width + GAP) - GAP;
        width = own > width ? own : width;
        height += (int)lines * ((int)seen->height + TITLE + LEGEND + GAP);
    }
    canvas *picture = canvas_create(width, height);
    if (picture == NULL) {
        complain("%s: a picture of %d x %d pixels does not fit into memory: show fewer images, or a smaller --panel", path,
                 width, height);
        free(panels);
        return -1;
    }
    int y = MARGIN;
    for (size_t i = 0; i < s->count; i++) {
        const show_image *image = &s->images[i];
        for (size_t p = 0; p < count; p++) {
            if (p > 0 && p % line == 0) {
                y += (int)image->seen.height + TITLE + LEGEND + GAP;
            }
            draw_panel(s, picture, MARGIN + (int)(p % line) * ((int)image->seen.width + GAP), y, image, panels[p]);
        }
        y += (int)image->seen.height + TITLE + LEGEND + GAP;
    }
    int result = canvas_write_png(picture, 1, path);
    canvas_destroy(picture);
    free(panels);
    return result;
}
