/* index_list.h - what an index of images does not know: which image a row is of, and how its features were made. It lies
 * beside the index as INDEX.list, a text. */
#ifndef INDEX_LIST_H
#define INDEX_LIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "network.h"
#include "output.h"

typedef struct index_entry {
    int64_t id;
    char *label; /* "" when unknown */
    char *name;  /* path of a file, or "" where the data set is none of files */
} index_entry;

typedef struct index_list {
    network_options net; /* weights NULL: the rows came from a file of numbers */
    char *weights;       /* what net.weights points to */
    char *data;          /* the data set */
    int32_t split;
    index_entry *entries; /* by rising id */
    size_t count, room;
} index_list;

/* Appends an entry, whose id is above all before; the name is kept as index_list_path() makes it. 0 or -1. */
int index_list_add(index_list *list, int64_t id, const char *label, const char *name);
/* NULL when the id is not there. */
const index_entry *index_list_find(const index_list *list, int64_t id);
void index_list_free(index_list *list);

/* `index_path` is that of the index. Writes the list under a temporary name, so that output_close() can put it in its place
 * right after the index; NULL with the reason reported. */
output *index_list_write(const index_list *list, const char *index_path);
/* 0, or -1 with the reason reported; 1 when there is no list. */
int index_list_read(const char *index_path, index_list *list);

/* A path that is good in every folder; from malloc, NULL when memory is short. What is no file stays as it is. */
char *index_list_path(const char *path);

#endif
