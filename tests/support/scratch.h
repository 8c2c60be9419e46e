/* A folder of its own for each test that writes files:
 *     cmocka_unit_test_setup_teardown(test, scratch_begin, scratch_end) */
#ifndef SD_TEST_SCRATCH_H
#define SD_TEST_SCRATCH_H

#include <stddef.h>

int scratch_begin(void **state);
int scratch_end(void **state); /* removes the folder and its files */

/* The path of a file in it. Up to four results are valid at a time. */
const char *scratch_path(void *state, const char *name);
/* The number of files in it. */
int scratch_count(void *state);

/* Whole files; they fail the test when it cannot be done. What scratch_read gives is freed by the caller. */
char *scratch_read(const char *path, size_t *size);
void scratch_write(const char *path, const void *bytes, size_t size);

#endif
