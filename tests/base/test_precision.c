/* Names of precisions, and which of them are refused where. */
#define _POSIX_C_SOURCE 200809L /* setenv */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/system.h"
#include "ways.h"

#include <stdlib.h>
#include <string.h>

static void names(void **state) {
    (void)state;
    assert_string_equal(sd_precision_name(SD_PRECISION_FP32), "fp32");
    assert_string_equal(sd_precision_name(SD_PRECISION_BF16), "bf16");
    assert_null(sd_precision_name(-1));
    assert_null(sd_precision_name(2));
    for (int32_t i = 0; sd_precision_name(i) != NULL; i++) {
        int32_t precision = -7;
        assert_int_equal(sd_precision_from_name(sd_precision_name(i), &precision), SD_OK);
        assert_int_equal(precision, i);
    }
    int32_t precision = -7;
    assert_int_equal(sd_precision_from_name("fp64", &precision), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "fp64"));
    assert_int_equal(sd_precision_from_name("", &precision), SD_ERR_ARGUMENT);
    assert_int_equal(sd_precision_from_name(NULL, &precision), SD_ERR_ARGUMENT);
    assert_int_equal(sd_precision_from_name("fp32", NULL), SD_ERR_ARGUMENT);
    assert_int_equal(precision, -7);
}

static const char *info_bf16(void) {
    sd_system_info info = {.size = sizeof info};
    assert_int_equal(sd_system_info_get(&info), SD_OK);
    assert_non_null(info.bf16);
    return info.bf16;
}

static void unfit_cpu(void **state) {
    (void)state;
    const char *caps[] = {"generic", "avx2"};
    for (size_t i = 0; i < 2; i++) {
        setenv("SIMDINO_CPU", caps[i], 1);
        if (sd_cpu_detect() == SD_CPU_AVX512)
            fail_msg("SIMDINO_CPU=%s is not honoured", caps[i]);
        const char *ways[] = {NULL, "fma", "dot", "emulated", ""}; /* none of which is "emulate" */
        for (size_t way = 0; way < sizeof ways / sizeof *ways; way++) {
            bf16_take(ways[way]);
            assert_int_equal(sd_precision_check(SD_PRECISION_BF16), SD_ERR_UNSUPPORTED);
            assert_non_null(strstr(sd_last_error(), "AVX512_BF16"));
            assert_non_null(strstr(sd_last_error(), "use fp32"));
            assert_string_equal(info_bf16(), "");
        }
        bf16_take("emulate");
        assert_int_equal(sd_precision_check(SD_PRECISION_BF16), SD_OK);
        assert_string_equal(info_bf16(), "emulated");
        bf16_take(NULL);
        assert_int_equal(sd_precision_check(SD_PRECISION_FP32), SD_OK);
    }
    unsetenv("SIMDINO_CPU");
    assert_int_equal(sd_precision_check(2), SD_ERR_ARGUMENT);
    assert_int_equal(sd_precision_check(-1), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "-1"));
}

static void fit_cpu(void **state) {
    (void)state;
    const char *ways[BF16_WAYS_MAX];
    if (bf16_ways(ways) == 1)
        skip();
    bf16_take("fma");
    assert_string_equal(info_bf16(), "avx512_bf16 fma");
    bf16_take("dot");
    assert_string_equal(info_bf16(), "avx512_bf16 dot");
    bf16_take(NULL);
    assert_non_null(strstr(sd_cpu_features(), "avx512_bf16"));
    if (sd_cpu_has_tiles()) {
        assert_non_null(strstr(sd_cpu_features(), "amx_bf16"));
        assert_string_equal(info_bf16(), "amx_bf16 tiles");
    } else {
        bf16_take("tiles"); /* what is not there is not taken */
        assert_true(strncmp(info_bf16(), "avx512_bf16 ", 12) == 0 || strcmp(info_bf16(), "onednn") == 0);
        bf16_take(NULL);
    }
}

static const char *info_fp32(void) {
    sd_system_info info = {.size = sizeof info};
    assert_int_equal(sd_system_info_get(&info), SD_OK);
    assert_non_null(info.fp32);
    return info.fp32;
}

static const char *fma_of_level(void) {
    const sd_cpu_level level = sd_cpu_detect();
    return level == SD_CPU_AVX512 ? "avx512 fma" : level == SD_CPU_AVX2 ? "avx2 fma" : "blas";
}

/* What the environment wishes where it is there, else the best of what is; at each level that the CPU has. */
static void ways_of_fp32(void **state) {
    (void)state;
    if (strcmp(info_fp32(), "onednn") == 0)
        skip();
    const char *before = getenv("SIMDINO_CPU"), *const levels[] = {before, "avx2", "generic"};
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
        if (levels[i] != NULL)
            setenv("SIMDINO_CPU", levels[i], 1);
        const char *best = sd_cpu_has_tiles() ? "amx_bf16 tiles, three for a float" : fma_of_level();
        fp32_take("blas");
        assert_string_equal(info_fp32(), "blas");
        fp32_take("fma");
        assert_string_equal(info_fp32(), fma_of_level());
        fp32_take(NULL);
        assert_string_equal(info_fp32(), best);
        fp32_take("tiles");
        assert_string_equal(info_fp32(), best);
        fp32_take(NULL);
    }
    assert_string_equal(info_fp32(), "blas"); /* "generic" */
    unsetenv("SIMDINO_CPU");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),
        cmocka_unit_test(unfit_cpu),
        cmocka_unit_test(fit_cpu),
        cmocka_unit_test(ways_of_fp32),
    };
    return cmocka_run_group_tests_name("precision", tests, NULL, NULL);
}
