/* Golden files: NumPy .npz archives under tests/golden, and the tolerances recorded for their arrays. Any failure here
 * fails the test. */
#ifndef SD_TEST_GOLDEN_H
#define SD_TEST_GOLDEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct golden golden;

typedef struct golden_array {
    const char *name;
    char kind;        /* 'f', 'i', 'u', 'b' or 'S' */
    size_t item_size; /* bytes */
    size_t dimensions;
    size_t shape[8];
    size_t count;     /* of elements */
    const void *data;
} golden_array;

golden *golden_open(const char *file); /* "loss/mcr_v1_ncrops2.npz" */
void golden_close(golden *archive);
size_t golden_array_count(const golden *archive);
const golden_array *golden_at(const golden *archive, size_t index);
bool golden_has(const golden *archive, const char *name);

/* By name (printf-style). The typed ones also fail when the type differs. */
const golden_array *golden_get(const golden *archive, const char *format, ...) __attribute__((format(printf, 2, 3)));
const float *golden_f32(const golden *archive, const char *format, ...) __attribute__((format(printf, 2, 3)));
const double *golden_f64(const golden *archive, const char *format, ...) __attribute__((format(printf, 2, 3)));
const uint8_t *golden_u8(const golden *archive, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Any numeric array's element 0. */
double golden_scalar(const golden *archive, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Element `index` of any numeric array, and of an 'S' array as a C string (valid until the next call). */
double golden_number(const golden_array *array, size_t index);
const char *golden_text(const golden_array *array, size_t index);

/* The recorded tolerance of an array: tests/golden/tolerances.txt, which holds lines "file array maxabs err32 tol". */
double golden_tolerance(const golden *archive, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Fails, naming array, index and both values, when |actual[i] - expected[i]| > tolerance anywhere or actual is not
 * finite. */
void golden_compare_f32(const golden *archive, const char *name, const float *actual, size_t count, double tolerance);
/* Largest |actual - expected| without failing; infinity when an actual value is not finite. */
double golden_difference_f32(const float *actual, const float *expected, size_t count);

#endif
