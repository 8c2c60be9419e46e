/* Which BLAS the process has, and its number of threads. That number is global to the process, so its former value is
 * too. */
#include "base/system.h"
#include "config.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#if defined(SD_HAVE_OPENBLAS)

char *openblas_get_corename(void);
char *openblas_get_config(void);
int openblas_get_num_threads(void);
void openblas_set_num_threads(int threads);

const char *sd_blas_name(void) { return openblas_get_config(); }
const char *sd_blas_kernel(void) { return openblas_get_corename(); }
int sd_blas_thread_count(void) { return openblas_get_num_threads(); }
static void set_thread_count(int threads) { openblas_set_num_threads(threads); }

/* Kernel sets that use no more than AVX2, and those that use no more than SSE. */
static const char *const AVX2_KERNELS[] = {"Haswell", "Zen", "Excavator"};
static const char *const OLDER_KERNELS[] = {"Prescott",   "Core2",       "Penryn", "Dunnington",  "Atom",
                                            "Nehalem",    "Barcelona",   "Bobcat", "Sandybridge", "Bulldozer",
                                            "Piledriver", "Steamroller", "Katmai", "Coppermine",  "Northwood",
                                            "Banias",     "Opteron",     "Nano"};

static bool is_one_of(const char *name, const char *const *list, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(name, list[i]) == 0)
            return true;
    return false;
}

const char *sd_blas_advice(void) {
    const char *kernel = sd_blas_kernel();
    sd_cpu_level level = sd_cpu_detect();
    bool old = is_one_of(kernel, OLDER_KERNELS, sizeof OLDER_KERNELS / sizeof *OLDER_KERNELS);
    bool avx2 = is_one_of(kernel, AVX2_KERNELS, sizeof AVX2_KERNELS / sizeof *AVX2_KERNELS);
    if (!(level == SD_CPU_AVX512 && (old || avx2)) && !(level == SD_CPU_AVX2 && old))
        return "";
    if (getenv("OPENBLAS_CORETYPE") != NULL)
        return "OpenBLAS runs kernels below what this CPU can, because the environment variable OPENBLAS_CORETYPE "
               "forces "
               "them: unset it (and OPENBLAS_L2_SIZE) and start again";
    return level == SD_CPU_AVX512
               ? "OpenBLAS runs kernels below what this CPU can, probably because it is older than the CPU; "
                 "libsimdino's own matrix products stand in for it. Better: a newer OpenBLAS, or "
                 "OPENBLAS_CORETYPE=SkylakeX"
               : "OpenBLAS runs kernels below what this CPU can, probably because it is older than the CPU; "
                 "libsimdino's own matrix products stand in for it. Better: a newer OpenBLAS, or "
                 "OPENBLAS_CORETYPE=Haswell";
}

#elif defined(SD_HAVE_MKL)

int MKL_Get_Max_Threads(void);
void MKL_Set_Num_Threads(int threads);

const char *sd_blas_name(void) { return "MKL"; }
const char *sd_blas_kernel(void) { return ""; }
int sd_blas_thread_count(void) { return MKL_Get_Max_Threads(); }
static void set_thread_count(int threads) { MKL_Set_Num_Threads(threads); }
const char *sd_blas_advice(void) { return ""; }

#elif defined(SD_HAVE_BLIS)

long bli_thread_get_num_threads(void);
void bli_thread_set_num_threads(long threads);

const char *sd_blas_name(void) { return "BLIS"; }
const char *sd_blas_kernel(void) { return ""; }
int sd_blas_thread_count(void) {
    long count = bli_thread_get_num_threads();
    return count < 1 ? 1 : (int)count; /* BLIS says -1 when nobody has set it, and computes with one thread then */
}
static void set_thread_count(int threads) { bli_thread_set_num_threads(threads); }
const char *sd_blas_advice(void) { return ""; }

#else

const char *sd_blas_name(void) { return SD_BLAS_LIBRARY_NAME; }
const char *sd_blas_kernel(void) { return ""; }
int sd_blas_thread_count(void) { return 0; }
static void set_thread_count(int threads) { (void)threads; }
const char *sd_blas_advice(void) {
    return strcmp(SD_BLAS_LIBRARY_NAME, "openblas") == 0 || strcmp(SD_BLAS_LIBRARY_NAME, "accelerate") == 0
               ? ""
               : "this build uses a BLAS that does not tell its kernels; if it is the reference BLAS, training is many "
                 "times slower "
                 "than with OpenBLAS: install it and build again";
}

#endif

static pthread_mutex_t holders_lock = PTHREAD_MUTEX_INITIALIZER;
static int holders, former_threads;

void sd_blas_hold_one_thread(void) {
    pthread_mutex_lock(&holders_lock);
    if (holders++ == 0) {
        former_threads = sd_blas_thread_count();
        if (former_threads != 1)
            set_thread_count(1);
    }
    pthread_mutex_unlock(&holders_lock);
}

void sd_blas_release_one_thread(void) {
    pthread_mutex_lock(&holders_lock);
    if (--holders == 0 && former_threads > 1)
        set_thread_count(former_threads);
    pthread_mutex_unlock(&holders_lock);
}
