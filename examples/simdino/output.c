/* Complete-or-absent files. See output.h. */
#define _XOPEN_SOURCE 700
#include "output.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"

struct output {
    FILE *stream;
    char *path, *temporary;
    int error;     /* errno of the first failure */
    bool in_place; /* no regular file: nothing is renamed or removed */
    bool reported;
};

static void release(output *file) {
    if (file != NULL) {
        free(file->path);
        free(file->temporary);
        free(file);
    }
}

output *output_open(const char *path) {
    struct stat about;
    bool exists = stat(path, &about) == 0, regular = exists && S_ISREG(about.st_mode);
    char *resolved = regular ? realpath(path, NULL) : NULL; /* a link stays, and what it leads to is replaced */
    output *file = calloc(1, sizeof *file);
    size_t room = strlen(resolved != NULL ? resolved : path) + 32;
    if (file != NULL) {
        file->path = malloc(room);
        file->temporary = malloc(room);
    }
    if (file == NULL || file->path == NULL || file->temporary == NULL) {
        free(resolved);
        release(file);
        complain("%s: out of memory", path);
        return NULL;
    }
    file->in_place = exists && !regular; /* to replace a device would harm others */
    snprintf(file->path, room, "%s", resolved != NULL ? resolved : path);
    if (file->in_place) {
        snprintf(file->temporary, room, "%s", path);
    } else {
        snprintf(file->temporary, room, "%s.%ld.tmp", file->path, (long)getpid());
    }
    free(resolved);
    file->stream = fopen(file->temporary, "wb");
    if (file->stream == NULL) {
        complain("cannot write %s: %s", path, strerror(errno));
        release(file);
        return NULL;
    }
    return file;
}

void output_write(output *file, const void *data, size_t bytes) {
    if (bytes > 0 && file->error == 0 && fwrite(data, 1, bytes, file->stream) != bytes) {
        file->error = errno != 0 ? errno : EIO;
    }
}

static void sync_file(output *file) {
    if (file->error == 0 && fflush(file->stream) != 0) {
        file->error = errno;
    }
    if (file->error == 0 && !file->in_place && fsync(fileno(file->stream)) != 0) {
        file->error = errno;
    }
}

int output_sync(output *file) {
    sync_file(file);
    if (file->error != 0 && !file->reported) {
        complain("cannot write %s: %s", file->path, strerror(file->error));
        file->reported = true;
    }
    return file->error != 0 ? -1 : 0;
}

int output_close(output *file) {
    sync_file(file);
    if (fclose(file->stream) != 0 && file->error == 0) {
        file->error = errno;
    }
    if (file->error == 0 && !file->in_place && rename(file->temporary, file->path) != 0) {
        file->error = errno;
    }
    int result = 0;
    if (file->error != 0) {
        if (!file->reported) {
            complain("cannot write %s: %s", file->path, strerror(file->error));
        }
        if (!file->in_place) {
            remove(file->temporary);
        }
        result = -1;
    }
    release(file);
    return result;
}

void output_discard(output *file) {
    fclose(file->stream);
    if (!file->in_place) {
        remove(file->temporary);
    }
    release(file);
}

int output_probe(const char *path) {
    struct stat about;
    if (stat(path, &about) == 0 && !S_ISREG(about.st_mode) && !S_ISDIR(about.st_mode)) {
        return 0; /* to open a pipe may mean to wait, or to end it */
    }
    output *file = output_open(path);
    if (file == NULL) {
        return -1;
    }
    output_discard(file);
    return 0;
}
