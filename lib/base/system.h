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
/* Whether the products of bfloat16 of math/packed.h run here, which AVX512_BF16 rounds. */
bool sd_cpu_has_bf16(void);
/* Whether those by the tiles of AMX do. The first call asks the operating system for them, for the whole process. */
bool sd_cpu_has_tiles(void);
const char *sd_cpu_features(void);

/* What computes the products of networks in fp32 here (math/packed.h). */
typedef enum sd_fp32_level {
    SD_FP32_BLAS = 0, /* or own products where the BLAS is unfit for the CPU */
    SD_FP32_ONEDNN = 1,
    SD_FP32_FMA = 2,
    SD_FP32_TILES = 3
} sd_fp32_level;

/* As the build, the CPU, SIMDINO_CPU and SIMDINO_FP32 ("blas", "fma", "tiles": that one, where it is possible) say. */
sd_fp32_level sd_fp32_detect(void);
const char *sd_fp32_level_name(sd_fp32_level level);

/* Whether Strassen's formulas make its FMA products faster: on AMD's CPUs; and where SIMDINO_FP32 is "fma", for tests. */
bool sd_cpu_prefers_strassen(void);

/* What computes in bf16 here. */
typedef enum sd_bf16_level {
    SD_BF16_NONE = 0,
    SD_BF16_EMULATED = 1,
    SD_BF16_FMA = 2,
    SD_BF16_DOT = 3,
    SD_BF16_ONEDNN = 4,
    SD_BF16_TILES = 5
} sd_bf16_level;

/* Compilers that know the instructions of AVX2 and AVX-512. */
#if defined(__x86_64__) && defined(__GNUC__)
#define SD_HAVE_FMA_KERNELS 1
#endif

/* Compilers that know the instructions of AVX512_BF16. */
#if defined(__x86_64__) && defined(__clang__) && __clang_major__ >= 9
#define SD_HAVE_PACKED_KERNELS 1
#elif defined(__x86_64__) && !defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 10
#define SD_HAVE_PACKED_KERNELS 1
#endif

/* Compilers that know the instructions of AMX, and the operating system whose permission to use them is asked for in cpu.c. */
#if defined(__x86_64__) && defined(__linux__) && defined(__clang__) && __clang_major__ >= 12
#define SD_HAVE_TILE_KERNELS 1
#elif defined(__x86_64__) && defined(__linux__) && !defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 11
#define SD_HAVE_TILE_KERNELS 1
#endif

/* As the CPU, SIMDINO_CPU and SIMDINO_BF16 ("emulate", "fma", "dot", "tiles", "onednn": that one, where it is possible) say. */
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
