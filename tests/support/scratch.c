#define _XOPEN_SOURCE 700
#include "scratch.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

int scratch_begin(void **state) {
    const char *parent = getenv("TMPDIR");
    char *folder = calloc(1, 512);
    snprintf(folder, 512, "%s/simdino-test-XXXXXX", parent && *parent ? parent : "/tmp");
    *state = folder;
    return mkdtemp(folder) ? 0 : -1;
}

const char *scratch_path(void *state, const char *name) {
    static char paths[4][1024];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", (const char *)state, name);
    return path;
}

/* Counts the files, and removes them on demand. */
static int walk(const char *folder, int removing) {
    DIR *directory = opendir(folder);
    int count = 0;
    for (const struct dirent *entry; directory && (entry = readdir(directory));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        char path[1024];
        snprintf(path, sizeof path, "%.500s/%.500s", folder, entry->d_name);
        if (removing)
            unlink(path);
        count++;
    }
    if (directory)
        closedir(directory);
    return count;
}

int scratch_count(void *state) { return walk(state, 0); }

int scratch_end(void **state) {
    walk(*state, 1);
    int result = rmdir(*state);
    free(*state);
    return result;
}

char *scratch_read(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) {
        fail_msg("cannot open %s", path);
        return NULL;
    }
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *bytes = malloc(*size + 1);
    size_t got = fread(bytes, 1, *size, file);
    fclose(file);
    assert_true(got == *size);
    return bytes;
}

void scratch_write(const char *path, const void *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    if (!file) {
        fail_msg("cannot write %s", path);
        return;
    }
    size_t put = fwrite(bytes, 1, size, file);
    assert_int_equal(fclose(file), 0);
    assert_true(put == size);
}
