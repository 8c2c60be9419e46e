/* What the process runs on: the CPU's instruction sets and the BLAS. */
#ifndef SD_SYSTEM_H
#define SD_SYSTEM_H

#include "base/base.h"

/* Instruction sets that the vector kernels are built for, worst to best. */
typedef enum sd_cpu_level { SD_CPU_GENERIC = 0, SD_CPU_AVX2 = 1, SD_CPU_AVX512 = 2 } sd_cpu_level;

/* The best level that CPU and operating system support. Tests lower it by the environment variable SIMDINO_CPU
 * ("generic", "avx2", "avx512"). */
sd_cpu_level sd_cpu_detect(void);
const char *sd_cpu_level_name(sd_cpu_level level);
/* Whether the products of math/packed.h run here, and whether those of floats are faster than a BLAS with the right
 * kernels. */
bool sd_cpu_has_packed_products(void);
bool sd_cpu_prefers_packed_products(void);
const char *sd_cpu_features(void);

/* What computes in bf16 here (math/packed.h). */
typedef enum sd_bf16_level {
    SD_BF16_NONE = 0,
    SD_BF16_EMULATED = 1,
    SD_BF16_FMA = 2,
    SD_BF16_DOT = 3,
    SD_BF16_ONEDNN = 4
} sd_bf16_level;

/* Compilers that know the instructions of AVX512_BF16. */
#if defined(__x86_64__) && defined(__clang__) && __clang_major__ >= 9
#define SD_HAVE_PACKED_KERNELS 1
#elif defined(__x86_64__) && !defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 10
#define SD_HAVE_PACKED_KERNELS 1
#endif

/* As the CPU, SIMDINO_CPU and SIMDINO_BF16 ("emulate", "fma", "dot", "onednn": that one, where it is possible) say. */
sd_bf16_level sd_bf16_detect(void);
const char *sd_bf16_level_name(sd_bf16_level level); /* "" for none */

const char *sd_blas_name(void);   /* never NULL */
const char *sd_blas_kernel(void); /* "" unknown */
int sd_blas_thread_count(void);   /* 0 unknown */
const char *sd_blas_advice(void); /* "" or what to change */

/* Sets the BLAS of the process to one thread while at least one holder is there. */
void sd_blas_hold_one_thread(void);
void sd_blas_release_one_thread(void);

#endif
