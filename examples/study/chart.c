/* study_chart RESULTS.csv DATA OUT.png: the accuracies of a study as a picture, one row of dots per variation and one
 * colour per method; crosses are runs that collapsed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "canvas.h"

#define SCALE      2
#define WIDTH      (980 * SCALE)
#define LEFT       (190 * SCALE)
#define RIGHT      (30 * SCALE)
#define TOP        (70 * SCALE)
#define ROW        (26 * SCALE)
#define MOST_ROWS  64
#define METHODS    4

static const char *const methods[METHODS] = {"simdino", "dino", "simdinov2", "dinov2"};
static const color inks[METHODS] = {{31, 90, 180}, {214, 96, 20}, {20, 140, 150}, {170, 50, 110}};
static const color black = {30, 30, 30}, gray = {120, 120, 120}, grid = {228, 228, 228};

typedef struct result {
    char variant[32];
    int method;
    double accuracy, rank;
} result;

typedef struct results {
    result list[4096];
    size_t count;
    char rows[MOST_ROWS][32];
    size_t row_count;
    double low, high;
} results;

static int collapsed(const result *r) { return r->accuracy < 20 || r->rank < 1.1; }

static size_t row_of(results *all, const char *variant) {
    for (size_t i = 0; i < all->row_count; i++) {
        if (strcmp(all->rows[i], variant) == 0) {
            return i;
        }
    }
    if (all->row_count < MOST_ROWS) {
        snprintf(all->rows[all->row_count++], sizeof all->rows[0], "%s", variant);
    }
    return all->row_count - 1;
}

static int read_results(const char *path, const char *data, results *all) {
    FILE *stream = fopen(path, "r");
    if (stream == NULL) {
        perror(path);
        return -1;
    }
    char line[256], name[32], method[16], part[16], variant[32];
    all->low = 100;
    all->high = 0;
    while (all->count < sizeof all->list / sizeof *all->list && fgets(line, sizeof line, stream) != NULL) {
        result r = {.method = -1};
        if (sscanf(line, "%31[^,],%15[^,],%15[^,],%31[^,],%*d,%*d,%lf,%lf", name, method, part, variant, &r.accuracy,
                   &r.rank) != 6 || strcmp(name, data) != 0) {
            continue;
        }
        for (int i = 0; i < METHODS; i++) {
            r.method = strcmp(methods[i], method) == 0 ? i : r.method;
        }
        if (r.method < 0) {
            continue;
        }
        snprintf(r.variant, sizeof r.variant, "%s", strcmp(part, "methods") == 0 ? "recipe, seeds" : variant);
        row_of(all, r.variant);
        all->low = fmin(all->low, r.accuracy);
        all->high = fmax(all->high, r.accuracy);
        all->list[all->count++] = r;
    }
    fclose(stream);
    return 0;
}

static double x_of(const results *all, double accuracy) {
    return LEFT + (accuracy - all->low) / (all->high - all->low) * (WIDTH - LEFT - RIGHT);
}

static void dot(canvas *picture, double x, double y, color ink) { canvas_line(picture, x, y, x + 0.1, y, 7 * SCALE, ink); }

static void cross(canvas *picture, double x, double y, color ink) {
    const double arm = 4 * SCALE;
    canvas_line(picture, x - arm, y - arm, x + arm, y + arm, 2 * SCALE, ink);
    canvas_line(picture, x - arm, y + arm, x + arm, y - arm, 2 * SCALE, ink);
}

static void draw_axes(canvas *picture, const results *all, const char *data, int height) {
    char text[96];
    snprintf(text, sizeof text, "k-NN accuracy on %s (%%), runs of equal time; crosses: collapsed", data);
    canvas_text(picture, LEFT, 14 * SCALE, SCALE, black, text);
    int x = LEFT;
    for (int i = 0; i < METHODS; i++) {
        dot(picture, x + 4 * SCALE, 38 * SCALE, inks[i]);
        canvas_text(picture, x + 14 * SCALE, 34 * SCALE, SCALE, black, methods[i]);
        x += 14 * SCALE + canvas_text_width(SCALE, methods[i]) + 20 * SCALE;
    }
    double step = all->high - all->low > 40 ? 10 : all->high - all->low > 15 ? 5 : 2;
    for (double value = ceil(all->low / step) * step; value <= all->high + 1e-9; value += step) {
        int at = (int)x_of(all, value);
        canvas_rectangle(picture, at, TOP - 6 * SCALE, SCALE, height - TOP - 30 * SCALE, grid);
        snprintf(text, sizeof text, "%g", value);
        canvas_text(picture, at - canvas_text_width(SCALE, text) / 2, height - 26 * SCALE, SCALE, gray, text);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: study_chart RESULTS.csv DATA OUT.png\n");
        return 2;
    }
    static results all;
    if (read_results(argv[1], argv[2], &all) != 0) {
        return 1;
    }
    if (all.count == 0) {
        fprintf(stderr, "study_chart: %s has no results of %s\n", argv[1], argv[2]);
        return 1;
    }
    double margin = fmax(1, 0.03 * (all.high - all.low));
    all.low = fmax(0, all.low - margin);
    all.high = fmin(100, all.high + margin);
    int height = TOP + (int)all.row_count * ROW + 40 * SCALE;
    canvas *picture = canvas_create(WIDTH, height);
    if (picture == NULL) {
        fprintf(stderr, "study_chart: out of memory\n");
        return 1;
    }
    draw_axes(picture, &all, argv[2], height);
    for (size_t row = 0; row < all.row_count; row++) {
        canvas_text(picture, 12 * SCALE, TOP + (int)row * ROW + 6 * SCALE, SCALE, black, all.rows[row]);
    }
    for (size_t i = 0; i < all.count; i++) {
        const result *r = &all.list[i];
        /* the methods of a row lie a little apart */
        double y = TOP + (double)(row_of(&all, r->variant) * ROW) + (4.5 + 3.6 * r->method) * SCALE;
        (collapsed(r) ? cross : dot)(picture, x_of(&all, r->accuracy), y, inks[r->method]);
    }
    int written = canvas_write_png(picture, SCALE, argv[3]);
    canvas_destroy(picture);
    return written == 0 ? 0 : 1;
}
