/* What is done with the bytes of one file of each format: by the fuzzers, and by the replay of their corpora. */
#ifndef SD_TEST_FUZZ_ENTRIES_H
#define SD_TEST_FUZZ_ENTRIES_H

#include <simdino/base.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fuzz_result {
    sd_status status;  /* of opening the file */
    size_t peak_bytes; /* of the library's memory until then */
} fuzz_result;

typedef struct fuzz_entry {
    const char *format; /* as the folder of its corpus */
    fuzz_result (*run)(const uint8_t *data, size_t size);
    bool of_program; /* a reader of the program: its messages do not name the file, its memory is not counted */
} fuzz_entry;

extern const fuzz_entry fuzz_entries[];
extern const size_t fuzz_entry_count;
const fuzz_entry *fuzz_find(const char *format); /* NULL: none */

/* The file that all runs of this process are written to; removed when it ends. */
const char *fuzz_path(void);

#endif
