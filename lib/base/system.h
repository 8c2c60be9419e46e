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
const char *sd_cpu_features(void);

const char *sd_blas_name(void);   /* never NULL */
const char *sd_blas_kernel(void); /* "" unknown */
int sd_blas_thread_count(void);   /* 0 unknown */
const char *sd_blas_advice(void); /* "" or what to change */

/* Sets the BLAS of the process to one thread while at least one holder is there. */
void sd_blas_hold_one_thread(void);
void sd_blas_release_one_thread(void);

#endif
