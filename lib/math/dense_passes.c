/* Passes over the rows of matrices: plain loops, compiled for each instruction set where the compiler can choose at run
 * time. */
#include "math/dense.h"

#include "math/kernels.h"
#include "math/transpose.h"

#if defined(SD_HAVE_X86_KERNELS) && defined(__GLIBC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

/* Columns at once, with a sum for each, so that the loops can be vectorised without reordering. */
#define CHUNK ((size_t)64)

#define SQUARES(type)                                             \
    double squares[CHUNK] = {0}, sum = 0.0;                       \
    for (size_t j = 0; j < columns; j += CHUNK) {                 \
        size_t count = sd_size_min(CHUNK, columns - j);           \
        for (size_t i = 0; i < rows; i++) {                       \
            const type *row = x + i * ld + j;                     \
            for (size_t l = 0; l < count; l++)                    \
                squares[l] += (double)row[l] * (double)row[l];    \
        }                                                         \
    }                                                             \
    for (size_t l = 0; l < CHUNK; l++)                            \
        sum += squares[l];                                        \
    return sum;

FOR_EACH_CPU
double sd_dense_squares_f32(size_t rows, size_t columns, const float *x, size_t ld) { SQUARES(float) }

FOR_EACH_CPU
double sd_dense_squares_f64(size_t rows, size_t columns, const double *x, size_t ld) { SQUARES(double) }

/* By squares of EDGE: at a distance of some kilobytes only a few cache lines of a column stay. */
#define EDGE ((size_t)16)
#define TRANSPOSE                                                                        \
    for (size_t i0 = 0; i0 < rows; i0 += EDGE)                                           \
        for (size_t j0 = 0; j0 < columns; j0 += EDGE) {                                  \
            size_t i1 = sd_size_min(i0 + EDGE, rows), j1 = sd_size_min(j0 + EDGE, columns); \
            if (i1 == i0 + EDGE && j1 == j0 + EDGE) {                                    \
                for (size_t j = j0; j < j1; j += 4)                                      \
                    for (size_t i = i0; i < i1; i += 4)                                  \
                        FOUR(from + i * ld + j, ld, to + j * ldt + i, ldt);              \
            } else {                                                                     \
                for (size_t j = j0; j < j1; j++)                                         \
                    for (size_t i = i0; i < i1; i++)                                     \
                        to[j * ldt + i] = from[i * ld + j];                              \
            }                                                                            \
        }

#define FOUR SD_TRANSPOSE_FOUR_FLOATS
void sd_dense_transpose_f32(size_t rows, size_t columns, const float *from, size_t ld, float *to, size_t ldt) {
    TRANSPOSE
}
#undef FOUR
#define FOUR SD_TRANSPOSE_FOUR_DOUBLES
void sd_dense_transpose_f64(size_t rows, size_t columns, const double *from, size_t ld, double *to, size_t ldt) {
    TRANSPOSE
}

FOR_EACH_CPU
sd_dense_norms sd_dense_add_triangles(size_t n, size_t first, size_t end, size_t parts, const float *from, double *sum,
                                      bool begin, double factor, float *out, size_t ldo) {
    sd_dense_norms norms = {0.0, 0.0};
    double squares[CHUNK] = {0}, total[CHUNK], diagonal = 0.0;

    for (size_t i = first; i < end; i++) {
        for (size_t j = i; j < n; j += CHUNK) {
            size_t at = i * n + j, to = i * ldo + j, count = sd_size_min(CHUNK, n - j);
            const float *part = from + at;

            for (size_t l = 0; l < count; l++)
                total[l] = (double)part[l];
            if (!begin)
                for (size_t l = 0; l < count; l++)
                    total[l] += sum[at + l];
            for (size_t p = 1; p < parts; p++) {
                part += n * n;
                for (size_t l = 0; l < count; l++)
                    total[l] += (double)part[l];
            }
            if (sum)
                for (size_t l = 0; l < count; l++)
                    sum[at + l] = total[l];
            if (out)
                for (size_t l = 0; l < count; l++)
                    out[to + l] = (float)(factor * total[l]);
            if (j == i) {
                norms.trace += total[0];
                diagonal += total[0] * total[0];
                if (out)
                    out[to] = (float)(1.0 + factor * total[0]);
                total[0] = 0.0;
            }
            for (size_t l = 0; l < count; l++)
                squares[l] += total[l] * total[l];
        }
    }
    for (size_t l = 0; l < CHUNK; l++)
        norms.squares += 2.0 * squares[l];
    norms.squares += diagonal;
    return norms;
}
