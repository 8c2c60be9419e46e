/* Complete-or-absent files. See output.h. */
#define _POSIX_C_SOURCE 200809L
#include "output.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "program.h"

struct output {
    FILE *stream;
    char *path, *temporary;
    int error; /* errno of the first failure */
};

static void release(output *file) {
    if (file != NULL) {
        free(file->path);
        free(file->temporary);
        free(file);
    }
}

output *output_open(const char *path) {
    output *file = calloc(1, sizeof *file);
    size_t room = strlen(path) + 32;
    if (file != NULL) {
        file->path = malloc(room);
        file->temporary = malloc(room);
    }
    if (file == NULL || file->path == NULL || file->temporary == NULL) {
        release(file);
        complain("%s: out of memory", path);
        return NULL;
    }
    snprintf(file->path, room, "%s", path);
    snprintf(file->temporary, room, "%s.%ld.tmp", path, (long)getpid());
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

int output_close(output *file) {
    if (file->error == 0 && (fflush(file->stream) != 0 || fsync(fileno(file->stream)) != 0)) {
        file->error = errno;
    }
    if (fclose(file->stream) != 0 && file->error == 0) {
        file->error = errno;
    }
    if (file->error == 0 && rename(file->temporary, file->path) != 0) {
        file->error = errno;
    }
    int result = 0;
    if (file->error != 0) {
        complain("cannot write %s: %s", file->path, strerror(file->error));
        remove(file->temporary);
        result = -1;
    }
    release(file);
    return result;
}

int output_probe(const char *path) {
    output *file = output_open(path);
    if (file == NULL) {
        return -1;
    }
    fclose(file->stream);
    remove(file->temporary);
    release(file);
    return 0;
}
