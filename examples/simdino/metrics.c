/* Metrics of the steps. See metrics.h. */
#define _POSIX_C_SOURCE 200809L
#include "metrics.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"
#include "program.h"

#define LINE_ROOM 1024

struct metrics {
    metrics_row *rows;
    size_t count, room;
    FILE *stream;
    char *path;
    bool json;
    bool broken; /* a row could not be kept or written */
};

static const char csv_header[] = "step,epoch,loss,compression,expansion,rate,effective_rank,similarity,lr,weight_decay,"
                                 "momentum,gradient_norm,images_per_second,seconds,knn,patch_loss,koleo,local_loss,"
                                 "global_loss,target_entropy,teacher_temp\n";

static bool ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), wanted = strlen(ending);
    return length >= wanted && strcmp(text + length - wanted, ending) == 0;
}

static int keep(metrics *m, metrics_row row) {
    if (m->count == m->room) {
        size_t room = m->room == 0 ? 1024 : m->room * 2;
        metrics_row *rows = realloc(m->rows, room * sizeof *rows);
        if (rows == NULL) {
            complain("out of memory for the metrics");
            return -1;
        }
        m->rows = rows;
        m->room = room;
    }
    m->rows[m->count++] = row;
    return 0;
}

/* ---- taking over the rows of an interrupted run -------------------------------------------- */

/* The number behind "name": in a line of JSON; NAN when it is not there. */
static double json_number(const char *line, const char *name) {
    char key[32];
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *at = strstr(line, key);
    char *end = NULL;
    double value = at != NULL ? strtod(at + strlen(key), &end) : 0;
    return at != NULL && end != at + strlen(key) ? value : (double)NAN;
}

/* Column `index` of a CSV line; NAN when it is empty. */
static double csv_number(const char *line, int index) {
    for (; index > 0 && line != NULL; index--) {
        line = strchr(line, ',');
        line = line != NULL ? line + 1 : NULL;
    }
    char *end = NULL;
    double value = line != NULL ? strtod(line, &end) : 0;
    return line != NULL && end != line ? value : (double)NAN;
}

static metrics_row parse_row(bool json, const char *line) {
    if (json) {
        return (metrics_row){json_number(line, "step"), json_number(line, "loss"), json_number(line, "compression"),
                             json_number(line, "expansion"), json_number(line, "knn"),
                             json_number(line, "local_loss") + json_number(line, "global_loss"),
                             json_number(line, "target_entropy")};
    }
    return (metrics_row){csv_number(line, 0), csv_number(line, 2), csv_number(line, 3), csv_number(line, 4),
                         csv_number(line, 14), csv_number(line, 17) + csv_number(line, 18), csv_number(line, 19)};
}

static int take_over(metrics *m, uint64_t first_step) {
    FILE *old = fopen(m->path, "r");
    if (old == NULL) {
        return 0; /* nothing to take over */
    }
    output *kept = output_open(m->path);
    int result = kept != NULL ? 0 : -1;
    char line[LINE_ROOM];
    if (result == 0 && !m->json) {
        output_write(kept, csv_header, strlen(csv_header));
    }
    while (result == 0 && fgets(line, sizeof line, old) != NULL) {
        metrics_row row = parse_row(m->json, line);
        if (row.step < (double)first_step && strchr(line, '\n') != NULL) {
            output_write(kept, line, strlen(line));
            result = keep(m, row);
        }
    }
    fclose(old);
    if (kept != NULL && output_close(kept) != 0) {
        result = -1;
    }
    return result;
}

/* ---- opening, writing, closing ------------------------------------------------------------- */

metrics *metrics_open(const char *path, uint64_t first_step) {
    metrics *m = calloc(1, sizeof *m);
    if (m == NULL) {
        complain("out of memory for the metrics");
        return NULL;
    }
    if (path == NULL) {
        return m;
    }
    m->json = ends_with(path, ".jsonl") || ends_with(path, ".json");
    size_t length = strlen(path) + 1;
    m->path = malloc(length);
    if (m->path == NULL) {
        complain("out of memory for the metrics");
        metrics_close(m);
        return NULL;
    }
    memcpy(m->path, path, length);
    if (first_step > 0 && take_over(m, first_step) != 0) {
        metrics_close(m);
        return NULL;
    }
    m->stream = fopen(path, first_step > 0 ? "a" : "w");
    if (m->stream == NULL) {
        complain("cannot write %s: %s", path, strerror(errno));
        metrics_close(m);
        return NULL;
    }
    setvbuf(m->stream, NULL, _IOLBF, BUFSIZ); /* a reader sees whole lines while training runs */
    if (!m->json && fseek(m->stream, 0, SEEK_END) == 0 && ftell(m->stream) == 0) {
        fputs(csv_header, m->stream);
    }
    return m;
}

/* Numbers with 12 digits; what is not a number is empty in CSV and null in JSON. */
static void put_number(const metrics *m, char *line, const char *name, double value) {
    size_t used = strlen(line);
    char text[40] = "";
    if (isfinite(value)) {
        snprintf(text, sizeof text, "%.12g", value);
    } else if (m->json) {
        snprintf(text, sizeof text, "null");
    }
    if (m->json) {
        snprintf(line + used, LINE_ROOM - used, "%s\"%s\":%s", used > 0 ? "," : "{", name, text);
    } else {
        snprintf(line + used, LINE_ROOM - used, "%s%s", used > 0 ? "," : "", text);
    }
}

void metrics_add(metrics *m, const sd_step_metrics *step, double epoch, double knn) {
    if (m->broken) {
        return;
    }
    if (keep(m, (metrics_row){(double)step->step, step->loss, step->compression, step->expansion, knn,
                               step->local_loss + step->global_loss, step->target_entropy}) != 0) {
        m->broken = true;
        return;
    }
    if (m->stream == NULL) {
        return;
    }
    char line[LINE_ROOM] = "";
    put_number(m, line, "step", (double)step->step);
    put_number(m, line, "epoch", epoch);
    put_number(m, line, "loss", step->loss);
    put_number(m, line, "compression", step->compression);
    put_number(m, line, "expansion", step->expansion);
    put_number(m, line, "rate", step->rate);
    put_number(m, line, "effective_rank", step->effective_rank);
    put_number(m, line, "similarity", step->similarity);
    put_number(m, line, "lr", step->lr);
    put_number(m, line, "weight_decay", step->weight_decay);
    put_number(m, line, "momentum", step->momentum);
    put_number(m, line, "gradient_norm", step->gradient_norm);
    put_number(m, line, "images_per_second", step->images_per_second);
    put_number(m, line, "seconds", step->seconds);
    put_number(m, line, "knn", knn);
    put_number(m, line, "patch_loss", step->patch_loss);
    put_number(m, line, "koleo", step->koleo);
    put_number(m, line, "local_loss", step->local_loss);
    put_number(m, line, "global_loss", step->global_loss);
    put_number(m, line, "target_entropy", step->target_entropy);
    put_number(m, line, "teacher_temp", step->teacher_temp);
    if (fprintf(m->stream, "%s%s\n", line, m->json ? "}" : "") < 0) {
        complain("cannot write %s: %s; training goes on", m->path, strerror(errno));
        m->broken = true;
    }
}

int metrics_close(metrics *m) {
    int result = 0;
    if (m != NULL) {
        result = m->broken ? -1 : 0;
        if (m->stream != NULL && fclose(m->stream) != 0 && !m->broken) {
            complain("cannot write %s: %s", m->path, strerror(errno));
            result = -1;
        }
        free(m->rows);
        free(m->path);
        free(m);
    }
    return result;
}

const metrics_row *metrics_rows(const metrics *m, size_t *count) {
    *count = m->count;
    return m->rows;
}
