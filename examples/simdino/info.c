/* simdino info: what the library is and runs on. */
#include <stdio.h>
#include <string.h>

#include "options.h"
#include "program.h"

int command_info(int argc, char **argv) {
    option_set set = {
        .command = "info",
        .synopsis = "",
        .about = "Tells the versions, the CPU, and the BLAS in use, and warns when it is slower than it could be.",
    };
    options_outcome outcome = options_parse(&set, argc, argv);
    if (outcome != OPTIONS_GO) {
        return outcome == OPTIONS_HELP ? EXIT_OK : EXIT_WRONG_USAGE;
    }
    sd_system_info info = {.size = sizeof info};
    sd_status status = sd_system_info_get(&info);
    if (status != SD_OK) {
        return failed("info", status);
    }
    sd_context *context = NULL; /* without a log, which would give the advice below as well */
    status = sd_context_create(NULL, &context);
    if (status != SD_OK) {
        return failed("cannot start the library", status);
    }
    printf("simdino       %d.%d.%d, libsimdino %s\n", SD_VERSION_MAJOR, SD_VERSION_MINOR, SD_VERSION_PATCH,
           sd_version_string());
    printf("CPU           %s\n", info.cpu);
    printf("kernels       %s\n", info.kernels);
    printf("fp32          %s\n", info.fp32);
    printf("bf16          %s\n",
           info.bf16[0] != '\0' ? info.bf16 : "not available: this CPU (as SIMDINO_CPU allows it) lacks AVX512_BF16");
    printf("threads       %d\n", sd_context_threads(context));
    printf("BLAS          %s\n", info.blas);
    printf("BLAS kernel   %s\n", info.blas_kernel[0] != '\0' ? info.blas_kernel : "(the BLAS does not tell)");
    printf("BLAS threads  ");
    if (info.blas_threads > 0) {
        printf("%d by itself; simdino uses 1 in each of its own threads\n", info.blas_threads);
    } else {
        printf("(the BLAS does not tell)\n");
    }
    if (info.advice[0] != '\0') {
        printf("warning       %s\n", info.advice);
    } else {
        printf("advice        none: the BLAS runs kernels that fit this CPU\n");
    }
    sd_context_destroy(context);
    return EXIT_OK;
}
