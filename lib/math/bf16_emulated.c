/* Products in bf16 without its instructions: pieces of both factors are rounded, and sd_sgemm multiplies them. */
#include "math/packed.h"

#include "math/math.h"

#include <string.h>

#define PIECE ((size_t)96)

_Static_assert(2 * PIECE * PIECE * sizeof(float) <= SD_PACKED_SCRATCH, "two pieces fit into the scratch");

/* The nearest bfloat16 as a float. */
static float rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        bits |= 0x00400000u; /* a NaN stays one when its lower half is cut off */
    else if (magnitude < 0x00800000u)
        bits &= 0x80000000u;
    else
        bits += 0x7fffu + (bits >> 16 & 1u);
    bits &= 0xffff0000u;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Element (i, j) of op(X), from (row, column) on, rounded to out[rows x columns]. */
static void round_piece(bool transposed, const float *x, size_t ld, size_t row, size_t column, size_t rows,
                        size_t columns, float *out) {
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            out[i * columns + j] =
                rounded(transposed ? x[(column + j) * ld + row + i] : x[(row + i) * ld + column + j]);
}

static void product(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                    const float *b, size_t ldb, float beta, float *c, size_t ldc, void *scratch) {
    float *left = scratch, *right = left + PIECE * PIECE;
    for (size_t j = 0; j < n; j += PIECE)
        for (size_t l = 0; l < k; l += PIECE) {
            size_t columns = sd_size_min(PIECE, n - j), depth = sd_size_min(PIECE, k - l);
            round_piece(tb, b, ldb, l, j, depth, columns, right);
            for (size_t i = 0; i < m; i += PIECE) {
                size_t rows = sd_size_min(PIECE, m - i);
                round_piece(ta, a, lda, i, l, rows, depth, left);
                sd_sgemm(false, false, rows, columns, depth, alpha, left, depth, right, columns, l == 0 ? beta : 1.0f,
                         c + i * ldc + j, ldc);
            }
        }
}

/* The same of numbers that are bfloat16. */
static void widen_piece(bool transposed, const uint16_t *x, size_t ld, size_t row, size_t column, size_t rows,
                        size_t columns, float *out) {
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++) {
            const uint32_t number = transposed ? x[(column + j) * ld + row + i] : x[(row + i) * ld + column + j];
            const uint32_t bits = number << 16;
            memcpy(&out[i * columns + j], &bits, sizeof bits);
        }
}

static void gradient(size_t m, size_t n, size_t k, const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb, float beta,
                     float *c, size_t ldc, void *scratch) {
    float *left = scratch, *right = left + PIECE * PIECE;
    for (size_t j = 0; j < n; j += PIECE)
        for (size_t l = 0; l < k; l += PIECE) {
            size_t columns = sd_size_min(PIECE, n - j), depth = sd_size_min(PIECE, k - l);
            widen_piece(false, b, ldb, l, j, depth, columns, right);
            for (size_t i = 0; i < m; i += PIECE) {
                size_t rows = sd_size_min(PIECE, m - i);
                widen_piece(true, a, lda, i, l, rows, depth, left);
                sd_sgemm(false, false, rows, columns, depth, 1.0f, left, depth, right, columns, l == 0 ? beta : 1.0f,
                         c + i * ldc + j, ldc);
            }
        }
}

static void round_numbers(const float *x, size_t count, uint16_t *y) {
    for (size_t i = 0; i < count; i++) {
        const float nearest = rounded(x[i]);
        uint32_t bits;
        memcpy(&bits, &nearest, sizeof bits);
        y[i] = (uint16_t)(bits >> 16);
    }
}

static void widen_numbers(const uint16_t *x, size_t count, float *y) { widen_piece(false, x, count, 0, 0, 1, count, y); }

static const sd_packed_rounded rounded_numbers = {gradient, round_numbers, widen_numbers};

const sd_packed sd_packed_bf16_emulated = {
    .product = product, .rounded = &rounded_numbers, .scratch = SD_PACKED_SCRATCH, .rows = SD_PACKED_ROWS_FAST};
