#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "random_floats.h"

#include "base/base.h"

#include <stdlib.h>

float *random_floats(size_t count, uint64_t seed) {
    float *x = malloc((count + 1) * sizeof *x);
    assert_non_null(x);
    sd_random random;
    sd_random_init(&random, seed, 0, 0);
    for (size_t i = 0; i < count; i++)
        x[i] = (float)sd_random_normal(&random);
    return x;
}
