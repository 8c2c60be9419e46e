/* Normal numbers, the same for the same seed. Any failure here fails the test. */
#ifndef SD_TEST_RANDOM_FLOATS_H
#define SD_TEST_RANDOM_FLOATS_H

#include <stddef.h>
#include <stdint.h>

/* To be freed; count may be 0. */
float *random_floats(size_t count, uint64_t seed);

#endif
