/* output.h - files that appear complete or not at all: written under a temporary name, synced, renamed. What is no
 * regular file, such as /dev/stdout or a pipe, is written to as it is. */
#ifndef OUTPUT_H
#define OUTPUT_H

#include <stddef.h>

typedef struct output output;

/* Begins to write `path`. NULL with the reason reported. */
output *output_open(const char *path);
/* A failure is remembered for output_close(). */
void output_write(output *file, const void *data, size_t bytes);
/* Brings what was written to the disk, before the file is put in its place: 0, or -1 with the reason reported. */
int output_sync(output *file);
/* Puts the file in its place: 0. After a failure it removes the temporary file, reports why, and gives -1. */
int output_close(output *file);
/* Removes it instead. */
void output_discard(output *file);
/* Tries to begin a file at `path` and leaves nothing behind: to learn before hours of work that it cannot be written.
 * 0, or -1 with the reason reported. */
int output_probe(const char *path);

#endif
