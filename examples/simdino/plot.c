/* Loss curve with axes. See plot.h. Drawn at twice the size and averaged down, which smooths the lines. */
#include "plot.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "canvas.h"
#include "program.h"

#define SCALE  2
#define WIDTH  (900 * SCALE)
#define HEIGHT (640 * SCALE)
#define LEFT   (80 * SCALE)
#define RIGHT  (24 * SCALE)
#define TEXT   (SCALE) /* dots of the font */

static const color black = {30, 30, 30}, gray = {120, 120, 120}, grid = {226, 226, 226};
static const color blue = {31, 90, 180}, light_blue = {176, 200, 236};
static const color orange = {214, 96, 20}, light_orange = {246, 208, 176};
static const color green = {30, 130, 60}, light_green = {184, 222, 194};

typedef struct panel {
    int top, height;
    double low, high;   /* of the values */
    double first, last; /* of the steps */
} panel;

typedef enum series {
    SERIES_LOSS,
    SERIES_COMPRESSION,
    SERIES_EXPANSION,
    SERIES_KNN,
    SERIES_CROSS_ENTROPY,
    SERIES_TARGET_ENTROPY
} series;

static double value_of(const metrics_row *row, series which) {
    switch (which) {
    case SERIES_LOSS: return row->loss;
    case SERIES_COMPRESSION: return row->compression;
    case SERIES_EXPANSION: return row->expansion;
    case SERIES_KNN: return row->knn;
    case SERIES_CROSS_ENTROPY: return row->cross_entropy;
    case SERIES_TARGET_ENTROPY: return row->target_entropy;
    }
    return 0;
}

/* The largest of 1, 2, 5 times a power of ten that gives at least `wanted` intervals. */
static double tick_step(double span, int wanted) {
    double power = pow(10, floor(log10(span / wanted)));
    double ratio = span / wanted / power;
    return power * (ratio >= 5 ? 5 : ratio >= 2 ? 2 : 1);
}

static double x_of(const panel *p, double step) {
    return LEFT + (step - p->first) / (p->last - p->first) * (WIDTH - LEFT - RIGHT);
}

static double y_of(const panel *p, double value) {
    return p->top + p->height - (value - p->low) / (p->high - p->low) * p->height;
}

static void widen(panel *p, const metrics_row *rows, size_t count, series which) {
    for (size_t i = 0; i < count; i++) {
        double value = value_of(&rows[i], which);
        if (isfinite(value)) {
            p->low = fmin(p->low, value);
            p->high = fmax(p->high, value);
        }
    }
}

/* A little room above and below, and never an empty span. */
static void settle(panel *p) {
    if (!(p->high >= p->low)) {
        p->low = 0;
        p->high = 1;
    }
    double span = p->high - p->low;
    double room = span > 1e-9 ? 0.04 * span : fmax(0.5 * fabs(p->high), 0.5);
    p->low -= room;
    p->high += room;
}

static void number_text(double value, double step, char *text, size_t room) {
    int digits = step >= 1 ? 0 : (int)ceil(-log10(step) - 1e-9);
    snprintf(text, room, "%.*f", digits < 9 ? digits : 9, fabs(value) < step / 1000 ? 0.0 : value);
}

static void draw_frame(canvas *c, const panel *p, const char *title, bool step_labels) {
    char text[32];
    double step = tick_step(p->high - p->low, 5);
    for (double v = ceil(p->low / step) * step; v <= p->high + step / 1e6; v += step) {
        double y = y_of(p, v);
        canvas_line(c, LEFT, y, WIDTH - RIGHT, y, SCALE, grid);
        number_text(v, step, text, sizeof text);
        canvas_text(c, LEFT - 8 * SCALE - canvas_text_width(TEXT, text), (int)y - 3 * TEXT, TEXT, black, text);
    }
    step = fmax(tick_step(p->last - p->first, 6), 1);
    for (double v = ceil(p->first / step) * step; v <= p->last; v += step) {
        double x = x_of(p, v);
        canvas_line(c, x, p->top, x, p->top + p->height, SCALE, grid);
        canvas_line(c, x, p->top + p->height, x, p->top + p->height + 5 * SCALE, SCALE, black);
        if (step_labels) {
            number_text(v, step, text, sizeof text);
            canvas_text(c, (int)x - canvas_text_width(TEXT, text) / 2, p->top + p->height + 9 * SCALE, TEXT, black,
                        text);
        }
    }
    canvas_line(c, LEFT, p->top, LEFT, p->top + p->height, SCALE, black);
    canvas_line(c, LEFT, p->top + p->height, WIDTH - RIGHT, p->top + p->height, SCALE, black);
    canvas_text(c, LEFT, p->top - 14 * SCALE, TEXT, black, title);
}

static void draw_values(canvas *c, const panel *p, const metrics_row *rows, size_t count, series which, color ink,
                        double pen) {
    double last_x = 0, last_y = 0;
    bool pen_down = false;
    for (size_t i = 0; i < count; i++) {
        double value = value_of(&rows[i], which);
        if (isfinite(value)) {
            double x = x_of(p, rows[i].step), y = y_of(p, value);
            if (pen_down) {
                canvas_line(c, last_x, last_y, x, y, pen, ink);
            }
            last_x = x;
            last_y = y;
            pen_down = true;
        }
    }
}

/* The mean over a window of 2% of the steps, drawn at no more points than the picture has columns. */
static void draw_mean(canvas *c, const panel *p, const metrics_row *rows, size_t count, series which, color ink) {
    size_t window = count / 50;
    size_t stride = count / 1000 + 1;
    double last_x = 0, last_y = 0;
    for (size_t i = 0; i < count; i += stride) {
        /* The window shrinks towards both ends, so that it stays centred on the step. */
        size_t half = window / 2;
        half = half > i ? i : half;
        half = half > count - 1 - i ? count - 1 - i : half;
        double sum = 0;
        size_t terms = 0;
        for (size_t j = i - half; j <= i + half; j++) {
            double value = value_of(&rows[j], which);
            if (isfinite(value)) {
                sum += value;
                terms++;
            }
        }
        if (terms > 0) {
            double x = x_of(p, rows[i].step), y = y_of(p, sum / (double)terms);
            if (i > 0) {
                canvas_line(c, last_x, last_y, x, y, 2 * SCALE, ink);
            }
            last_x = x;
            last_y = y;
        }
    }
}

static void draw_legend(canvas *c, const panel *p, int *right, color ink, const char *text) {
    *right -= canvas_text_width(TEXT, text);
    canvas_text(c, *right, p->top - 14 * SCALE, TEXT, black, text);
    *right -= 26 * SCALE;
    canvas_line(c, *right, p->top - 11 * SCALE, *right + 18 * SCALE, p->top - 11 * SCALE, 2 * SCALE, ink);
    *right -= 18 * SCALE;
}

int plot_write(const char *path, const char *title, const metrics_row *rows, size_t count) {
    if (count == 0) {
        return 0;
    }
    canvas *c = canvas_create(WIDTH, HEIGHT);
    if (c == NULL) {
        complain("%s: out of memory", path);
        return -1;
    }
    bool has_knn = false, has_prototypes = false;
    for (size_t i = 0; i < count; i++) {
        has_knn = has_knn || isfinite(rows[i].knn);
        has_prototypes = has_prototypes || rows[i].target_entropy > 0;
    }
    series first = has_prototypes ? SERIES_CROSS_ENTROPY : SERIES_COMPRESSION;
    series second = has_prototypes ? SERIES_TARGET_ENTROPY : SERIES_EXPANSION;
    panel above = {.top = 66 * SCALE, .height = 236 * SCALE, .low = INFINITY, .high = -INFINITY};
    above.first = rows[0].step;
    above.last = fmax(rows[count - 1].step, above.first + 1);
    panel below = above;
    below.top = 350 * SCALE;
    widen(&above, rows, count, SERIES_LOSS);
    widen(&below, rows, count, first);
    widen(&below, rows, count, second);
    widen(&below, rows, count, SERIES_KNN);
    settle(&above);
    settle(&below);

    canvas_text(c, LEFT, 16 * SCALE, 2 * TEXT, black, title);
    draw_frame(c, &above, "loss (thin: each step, thick: mean)", false);
    draw_values(c, &above, rows, count, SERIES_LOSS, light_blue, SCALE);
    draw_mean(c, &above, rows, count, SERIES_LOSS, blue);

    draw_frame(c, &below, has_prototypes ? "class tokens" : "its parts", true);
    draw_values(c, &below, rows, count, first, light_orange, SCALE);
    draw_values(c, &below, rows, count, second, light_green, SCALE);
    draw_mean(c, &below, rows, count, first, orange);
    draw_mean(c, &below, rows, count, second, green);
    int right = WIDTH - RIGHT;
    if (has_knn) {
        draw_values(c, &below, rows, count, SERIES_KNN, gray, 2 * SCALE);
        draw_legend(c, &below, &right, gray, "k-NN accuracy");
    }
    draw_legend(c, &below, &right, green, has_prototypes ? "entropy of the mean target" : "expansion (coding rate)");
    draw_legend(c, &below, &right, orange,
                has_prototypes ? "cross-entropy of student and teacher" : "compression (cosine of views)");
    canvas_text(c, (WIDTH + LEFT - RIGHT) / 2 - canvas_text_width(TEXT, "step") / 2, HEIGHT - 24 * SCALE, TEXT, black,
                "step");

    int result = canvas_write_png(c, SCALE, path);
    canvas_destroy(c);
    return result;
}
