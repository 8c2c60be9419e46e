/* The ways to multiply in a precision that this machine has, which the environment chooses (SIMDINO_FP32, SIMDINO_BF16). */
#ifndef SD_TEST_WAYS_H
#define SD_TEST_WAYS_H

#include <stddef.h>
#include <stdint.h>

#define FP32_WAYS_MAX 3
#define BF16_WAYS_MAX 5

/* "blas" everywhere (oneDNN, in a build with it), "fma" where the CPU has AVX2 and "tiles" where it has AMX. Returns their
 * number. */
size_t fp32_ways(const char *ways[FP32_WAYS_MAX]);
/* "emulate" everywhere, "fma" and "dot" where the CPU has AVX512_BF16, "tiles" where it has AMX, and then "onednn" where the
 * library was built with it. Returns their number. */
size_t bf16_ways(const char *ways[BF16_WAYS_MAX]);
/* Lets the library take this way from now on; NULL: its own choice. */
void fp32_take(const char *way);
void bf16_take(const char *way);
/* The library's own choice where it has one, else "emulate". */
void bf16_take_any(void);

/* Calls check for each of them, and leaves the choice to the library. */
void each_way(void (*check)(int32_t precision, const char *way));

#endif
