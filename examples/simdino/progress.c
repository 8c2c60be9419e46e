/* Progress bar with time left. See progress.h. */
#define _DEFAULT_SOURCE
#include "progress.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "program.h"

#define REDRAW_SECONDS       0.1
#define FIRST_LINE_SECONDS   2.0
#define LINE_SECONDS         5.0
#define LONGEST_LINE_SECONDS 60.0

/* One bar per program; the log may take it off from another thread, hence the lock. */
static struct {
    pthread_mutex_t lock;
    bool active, visible, terminal;
    char what[32];
    uint64_t start, done, total;
    double begun, next;
    double recent_time; /* speed is measured from here on, so that a slow first step is forgotten */
    uint64_t recent_done;
} bar = {.lock = PTHREAD_MUTEX_INITIALIZER};

void format_duration(double seconds, char *text) {
    if (!(seconds >= 0)) {
        seconds = 0;
    }
    if (seconds > 3599999) {
        seconds = 3599999;
    }
    unsigned whole = (unsigned)(seconds + 0.5);
    if (whole >= 3600) {
        snprintf(text, 24, "%u:%02u:%02u", whole / 3600, whole / 60 % 60, whole % 60);
    } else {
        snprintf(text, 24, "%u:%02u", whole / 60, whole % 60);
    }
}

static int terminal_width(void) {
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
        return size.ws_col;
    }
    return 80;
}

static void hide_locked(void) {
    if (bar.visible) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
        bar.visible = false;
    }
}

void progress_begin(const char *what, uint64_t start, uint64_t total) {
    pthread_mutex_lock(&bar.lock);
    hide_locked();
    bar.active = true;
    bar.terminal = isatty(STDERR_FILENO) != 0;
    snprintf(bar.what, sizeof bar.what, "%s", what);
    bar.start = bar.done = bar.recent_done = start;
    bar.total = total > 0 ? total : 1;
    bar.begun = bar.recent_time = seconds_now();
    bar.next = bar.begun + (bar.terminal ? 0 : FIRST_LINE_SECONDS);
    pthread_mutex_unlock(&bar.lock);
}

/* Seconds that the rest will take; -1: not known yet. */
static double seconds_left(double now) {
    double elapsed = now - bar.recent_time;
    if (bar.done <= bar.recent_done || elapsed <= 0) {
        return -1;
    }
    double rate = (double)(bar.done - bar.recent_done) / elapsed;
    return (double)(bar.total > bar.done ? bar.total - bar.done : 0) / rate;
}

static void draw_bar(double share, const char *left, const char *more) {
    char text[256];
    snprintf(text, sizeof text, "%3d%%  %llu/%llu  %s%sETA %s", (int)(100 * share), (unsigned long long)bar.done,
             (unsigned long long)bar.total, more, *more ? "  " : "", left);
    int columns = terminal_width() - 1;
    int width = columns - (int)strlen(bar.what) - (int)strlen(text) - 5;
    if (width > 40) {
        width = 40;
    }
    char line[400];
    if (width >= 6) {
        char cells[48];
        int filled = (int)(share * width);
        for (int i = 0; i < width; i++) {
            cells[i] = i < filled ? '=' : i == filled ? '>' : ' ';
        }
        cells[width] = '\0';
        snprintf(line, sizeof line, "%s [%s] %s", bar.what, cells, text);
    } else {
        snprintf(line, sizeof line, "%s %s", bar.what, text);
    }
    fprintf(stderr, "\r%.*s\033[K", columns > 0 ? columns : 1, line);
    fflush(stderr);
    bar.visible = true;
}

void progress_update(uint64_t done, const char *more) {
    pthread_mutex_lock(&bar.lock);
    if (bar.active) {
        double now = seconds_now();
        bar.done = done;
        if (now >= bar.next || (bar.terminal && done >= bar.total)) {
            double share = bar.done >= bar.total ? 1.0 : (double)bar.done / (double)bar.total;
            double left = seconds_left(now);
            char text[24] = "-:--";
            if (left >= 0) {
                format_duration(left, text);
            }
            if (bar.terminal) {
                draw_bar(share, text, more);
                bar.next = now + REDRAW_SECONDS;
            } else {
                fprintf(stderr, "%s %llu/%llu (%d%%)  %s%sETA %s\n", bar.what, (unsigned long long)bar.done,
                        (unsigned long long)bar.total, (int)(100 * share), more, *more ? "  " : "", text);
                fflush(stderr);
                /* A long run gets a line for every percent, at least one a minute. */
                double percent = (now - bar.begun + (left > 0 ? left : 0)) / 100;
                double pause = percent < LINE_SECONDS ? LINE_SECONDS : percent;
                bar.next = now + (pause > LONGEST_LINE_SECONDS ? LONGEST_LINE_SECONDS : pause);
            }
        }
        if (bar.recent_done == bar.start && done > bar.start && now - bar.begun > 1.0) {
            bar.recent_done = done; /* the first second warms up caches and is not typical */
            bar.recent_time = now;
        }
    }
    pthread_mutex_unlock(&bar.lock);
}

void progress_update_library(const char *what, uint64_t done) {
    pthread_mutex_lock(&bar.lock);
    bool meant = bar.active && strncmp(bar.what, what, strlen(what)) == 0;
    pthread_mutex_unlock(&bar.lock);
    if (meant) {
        progress_update(done, "");
    }
}

void progress_hide(void) {
    pthread_mutex_lock(&bar.lock);
    hide_locked();
    pthread_mutex_unlock(&bar.lock);
}

void progress_end(void) {
    pthread_mutex_lock(&bar.lock);
    hide_locked();
    bar.active = false;
    pthread_mutex_unlock(&bar.lock);
}
