/* Products of floats whose factors are packed, with AVX-512: FMA, nothing is rounded (packed_product.h). */
#include "base/system.h"

#if defined(SD_HAVE_FMA_KERNELS)

#include "math/packed_avx512.h"

#define LEFT_AS_IT_IS 1
#define CHUNK_ROWS SD_PACKED_ROWS

typedef enum factors { FLOATS } factors;

static inline size_t per_unit(factors kind) { return kind == FLOATS ? 1 : 0; }
static inline size_t number_bytes(factors kind) { return kind == FLOATS ? sizeof(float) : 0; }

#define WAY_NAME floats
#define FACTORS __m512
#define FACTOR(x) _mm512_castsi512_ps(x)
#define ADD_PRODUCT(sum, x, y) _mm512_fmadd_ps(x, y, sum)
#include "math/packed_tiles.h"

static inline tile_function *tile_of(factors kind, bool panels, size_t rows, size_t columns) {
    (void)panels;
    (void)kind;
    return floats_tiles[columns > 16][rows > 4 ? 2 : rows > 2];
}

static inline stream_function *stream_of(factors kind, size_t rows, size_t columns) {
    (void)kind;
    return floats_streams[columns > 16][rows > 4 ? 2 : rows > 2];
}

/* 16 units of a row of k floats, from unit u on. */
TARGET static inline __m512i units_of_row(factors kind, const float *row, size_t u, size_t k) {
    (void)kind;
    return _mm512_castps_si512(floats_of_row(row + u, k - u));
}

/* 16 units of one column each, of a row. */
TARGET static inline __m512i units_of_columns(factors kind, const void *row, const void *next, __mmask16 exist) {
    (void)kind;
    (void)next;
    return _mm512_castps_si512(_mm512_maskz_loadu_ps(exist, row));
}

#include "math/packed_columns_avx512.h"
#include "math/packed_product.h"

WAY(sd_packed_float, FLOATS, NULL, 1)

#else

/* ISO C wants something in every file. */
typedef int sd_packed_avx512_nothing;

#endif
