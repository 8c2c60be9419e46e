/* index_parts.h - what the parts of "simdino index" share. */
#ifndef INDEX_PARTS_H
#define INDEX_PARTS_H

#include <stdbool.h>

#include <simdino/simdino.h>

#include "npy.h"

#define INDEX_MOST_PATHS 4096

/* The commands: exit statuses. */
int index_build(int argc, char **argv);
int index_query(int argc, char **argv);

bool index_ends_with(const char *text, const char *ending);
/* Says so; EXIT_FAILED. */
int index_no_memory(void);
int index_load(sd_context *context, const char *path, sd_index **index);
/* Rows of numbers in a .npy file. */
int index_read_rows(const char *path, npy_matrix *matrix);

#endif
