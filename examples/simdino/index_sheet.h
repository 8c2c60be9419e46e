/* index_sheet.h - a contact sheet: queries and what was found for each of them. */
#ifndef INDEX_SHEET_H
#define INDEX_SHEET_H

#include "index_list.h"

typedef struct index_sheet {
    const char *title;
    const sd_dataset *queries; /* images asked about, by number */
    const image_folder *query_files;
    const uint64_t *numbers;   /* of the rows of the result */
    size_t rows, columns;
    size_t found;              /* for each query, of which the first `columns` are shown */
    const int64_t *ids;        /* rows x found; -1: nothing */
    const float *scores;
    const index_list *list;
    const sd_dataset *images;  /* of the index, where they are not files; else NULL */
} index_sheet;

/* 0, or -1 with the reason reported. */
int index_sheet_write(const index_sheet *sheet, const char *path);

#endif
