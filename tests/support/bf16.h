/* The ways to compute in bf16 (SIMDINO_BF16) that this machine has. */
#ifndef SD_TEST_BF16_H
#define SD_TEST_BF16_H

#include <stddef.h>

#define BF16_WAYS_MAX 4

/* "emulate" everywhere, "fma" and "dot" where the CPU has AVX512_BF16, and then "onednn" where the library was
 * built with it. Returns their number. */
size_t bf16_ways(const char *ways[BF16_WAYS_MAX]);
/* Lets the library take this way from now on; NULL: its own choice. */
void bf16_take(const char *way);
/* The library's own choice where it has one, else "emulate". */
void bf16_take_any(void);

#endif
