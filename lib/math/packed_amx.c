/* Products by the matrix registers of AMX: eight tiles of 16 rows of 64 bytes. One instruction adds to 16 x 16 sums of floats the
 * products of 16 rows of A, 32 bfloat16 each, and 32 rows of B, 16 each. In one of two ways:
 *   bf16     each factor is rounded to one bfloat16
 *   floats   each factor is the sum of three bfloat16, exactly: x = x1 + x2 + x3 with x1 the nearest to x, x2 the nearest to
 *            x - x1, and x3 what is left (24 bits of significand in three times 8, of which the signs save some). Of the nine
 *            products x1 y1, x1 y2, x2 y1, x2 y2, x1 y3 and x3 y1 are added up; those left out are below 2^-26 |x y|, a quarter
 *            of what rounding a product to float costs. The CPU makes 16 products of each half of a step's 32 one sum before it
 *            adds that to C's, so that there are fewer roundings of large sums than in a chain of FMA: the results are closer to
 *            the exact ones. Infinite factors, and finite ones above 3.39e38, become NaN; products below 1e-38 become 0.
 *
 * Packed factors are made of tiles, [16][16] units of a pair of bfloat16 each. With `steps` of 32 of a slice of the inner
 * dimension, which zeros fill up:
 *   A   blocks of 16 rows, each [steps][parts][16 rows][16 units]
 *   B   panels of 16 columns, each [steps][parts][16 units][16 columns]
 * 32 x 32 numbers of C are four tiles; two more hold rows of A, two columns of B. As in packed_product.h a slice of A stays in the
 * second cache while B comes by panel by panel. */
#include "math/packed.h"

#if defined(SD_HAVE_TILE_KERNELS)

#include "math/packed_avx512.h"

#define TILES __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,amx-tile,amx-bf16")))
#define INLINE TILES static inline __attribute__((always_inline))

#define SIDE ((size_t)16)       /* of a tile, in rows and in units */
#define TILE (SIDE * SIDE)      /* units */
#define STEP (2 * SIDE)         /* numbers of the inner dimension in a tile */
#define TILE_BYTES (TILE * sizeof(unit))

/* Of a slice, at most, of one part (of three: half of them); and of its rows and columns that are packed at once. */
#define STEPS ((size_t)24)
#define A_BYTES ((size_t)1280 * 1024)
#define B_BYTES (SD_TILES_SCRATCH - A_BYTES)

_Static_assert(2 * STEPS * TILE_BYTES <= B_BYTES && 2 * STEPS * TILE_BYTES <= A_BYTES, "what a block of C takes fits in");

/* ---- 32 x 32 numbers of C -------------------------------------------------------------------- */

/* The compiler does not know that tiles are loaded from memory and stored to it. */
#define MEMORY_IS_USED() __asm__ volatile("" ::: "memory")

/* Every tile 16 rows of 64 bytes: nothing depends on sizes, edges are filled up. */
TILES static void begin_tiles(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    _Static_assert(sizeof config == 64, "as the CPU reads it");
    for (size_t i = 0; i < 8; i++) {
        config.row_bytes[i] = SIDE * sizeof(unit);
        config.rows[i] = SIDE;
    }
    MEMORY_IS_USED();
    _tile_loadconfig(&config);
}

/* The host's threads are left without tiles, which would make their switches slower. */
TILES static void end_tiles(void) { _tile_release(); }

/* Registers: 0 to 3 sums, of which 1 and 3 the right ones and 2 and 3 the lower ones; 4 and 5 rows of A, 6 and 7 columns of B. */
#define LOAD_ROWS(part)                                        \
    _tile_loadd(4, a + (part) * TILE, 64);                     \
    if (tall)                                                  \
        _tile_loadd(5, a_below + (part) * TILE, 64);
#define LOAD_COLUMNS(part)                                     \
    _tile_loadd(6, b + (part) * TILE, 64);                     \
    if (wide)                                                  \
        _tile_loadd(7, b_right + (part) * TILE, 64);
#define ADD_PRODUCTS                                           \
    _tile_dpbf16ps(0, 4, 6);                                   \
    if (wide)                                                  \
        _tile_dpbf16ps(1, 4, 7);                               \
    if (tall)                                                  \
        _tile_dpbf16ps(2, 5, 6);                               \
    if (tall && wide)                                          \
        _tile_dpbf16ps(3, 5, 7);

/* C = A B, plus C itself if `add`, for up to 32 x 32 numbers from a block of A and a panel of B on; tall, wide: more than 16
 * rows, columns. Meanwhile the lines of `target` come in, where the results will be written to: those that are missing when they are
 * stored hold up all that is stored after them, and asked for at once they hold up the tiles. And `later` is fetched into the
 * second cache, so many lines with each step. */
INLINE void sums(size_t parts, bool tall, bool wide, size_t steps, const unit *a, const unit *b, bool add, float *c, size_t ldc,
                 const float *target, size_t target_ld, const char *later, size_t lines) {
    const size_t target_rows = sd_size_ceil(tall ? 2 * SIDE : SIDE, steps); /* for each step */
    const unit *a_below = a + steps * parts * TILE, *b_right = b + steps * parts * TILE;
    const size_t c_step = ldc * sizeof *c;
    float *c_below = c + SIDE * ldc;
    MEMORY_IS_USED();
    if (add) {
        _tile_loadd(0, c, c_step);
        if (wide)
            _tile_loadd(1, c + SIDE, c_step);
        if (tall)
            _tile_loadd(2, c_below, c_step);
        if (tall && wide)
            _tile_loadd(3, c_below + SIDE, c_step);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (size_t s = 0; s < steps; s++) {
        for (size_t l = 0; l < lines; l++, later += SD_ALIGNMENT)
            _mm_prefetch(later, _MM_HINT_T1);
        for (size_t r = 0; r < target_rows; r++, target += target_ld) {
            PREFETCH_TO_WRITE(target);
            if (wide)
                PREFETCH_TO_WRITE(target + SIDE);
        }
        LOAD_ROWS(0)
        if (parts == 3) { /* the small ones first; in an order in which each product needs one new factor */
            LOAD_COLUMNS(2)
            ADD_PRODUCTS
            LOAD_COLUMNS(1)
            ADD_PRODUCTS
            LOAD_ROWS(1)
            ADD_PRODUCTS
            LOAD_COLUMNS(0)
            ADD_PRODUCTS
            LOAD_ROWS(2)
            ADD_PRODUCTS
            LOAD_ROWS(0)
        } else {
            LOAD_COLUMNS(0)
        }
        ADD_PRODUCTS
        a += parts * TILE;
        a_below += parts * TILE;
        b += parts * TILE;
        b_right += parts * TILE;
    }
    _tile_stored(0, c, c_step);
    if (wide)
        _tile_stored(1, c + SIDE, c_step);
    if (tall)
        _tile_stored(2, c_below, c_step);
    if (tall && wide)
        _tile_stored(3, c_below + SIDE, c_step);
    MEMORY_IS_USED();
}

/* `later` and `lines` are no structure, which would be read in another size than it was written in: the CPU would wait until all
 * of C is out of the way. */
typedef void sums_function(size_t steps, const unit *a, const unit *b, bool add, float *c, size_t ldc, const float *target,
                           size_t target_ld, const char *later, size_t lines);
#define SUMS(name, parts, tall, wide)                                                                                       \
    TILES static void name(size_t steps, const unit *a, const unit *b, bool add, float *c, size_t ldc, const float *target,  \
                           size_t target_ld, const char *later, size_t lines) {                                             \
        sums(parts, tall, wide, steps, a, b, add, c, ldc, target, target_ld, later, lines);                                 \
    }
SUMS(bf16_16x16, 1, false, false)
SUMS(bf16_16x32, 1, false, true)
SUMS(bf16_32x16, 1, true, false)
SUMS(bf16_32x32, 1, true, true)
SUMS(floats_16x16, 3, false, false)
SUMS(floats_16x32, 3, false, true)
SUMS(floats_32x16, 3, true, false)
SUMS(floats_32x32, 3, true, true)
/* [tall][wide] */
static sums_function *const bf16_sums[2][2] = {{bf16_16x16, bf16_16x32}, {bf16_32x16, bf16_32x32}};
static sums_function *const floats_sums[2][2] = {{floats_16x16, floats_16x32}, {floats_32x16, floats_32x32}};

/* C = alpha A B + beta C. bf16 sums may begin with C itself, which is quicker. With six products to a step that would round large
 * sums too often: sums of floats begin with 0 in each slice. Numbers at edges are made from the same sums as others. */
INLINE void multiply_block(size_t parts, size_t steps, const unit *a, const unit *b, float alpha, float beta, float *c, size_t ldc,
                           size_t rows, size_t columns, const char *later, size_t lines) {
    sums_function *function = (parts == 1 ? bf16_sums : floats_sums)[rows > SIDE][columns > SIDE];
    const bool add = parts == 1 && alpha == 1.0f && beta == 1.0f, direct = add || (alpha == 1.0f && beta == 0.0f);
    if (direct && rows % SIDE == 0 && columns % SIDE == 0) {
        function(steps, a, b, add, c, ldc, c, ldc, later, lines);
        return;
    }
    _Alignas(SD_ALIGNMENT) float block[4 * SIDE * SIDE];
    const size_t width = 2 * SIDE;
    const __mmask16 masks[2] = {first_of(columns), columns > SIDE ? first_of(columns - SIDE) : 0};
    if (add)
        for (size_t i = 0; i < rows; i++)
            for (size_t h = 0; h < columns; h += SIDE)
                _mm512_store_ps(block + i * width + h, _mm512_maskz_loadu_ps(masks[h > 0], c + i * ldc + h));
    function(steps, a, b, add, block, width, c, ldc, later, lines);
    const __m512 s = _mm512_set1_ps(alpha), f = _mm512_set1_ps(beta);
    for (size_t i = 0; i < rows; i++)
        for (size_t h = 0; h < columns; h += SIDE) {
            const __mmask16 mask = masks[h > 0];
            __m512 x = _mm512_load_ps(block + i * width + h);
            if (!direct) {
                x = _mm512_mul_ps(x, s);
                if (beta != 0.0f) /* else C is not read */
                    x = _mm512_fmadd_ps(f, _mm512_maskz_loadu_ps(mask, c + i * ldc + h), x);
            }
            _mm512_mask_storeu_ps(c + i * ldc + h, mask, x);
        }
}

/* ---- packing ------------------------------------------------------------------------------- */

/* The nearest numbers of 8 bits of significand; ties go away from zero. */
INLINE __m512 eight_bits(__m512 x) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32((int)0xffff0000u);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), half), upper));
}

/* 16 pairs of numbers of 8 bits. */
INLINE __m512i pairs_of(__m512 first, __m512 second) {
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(_mm512_castps_si512(first), 16), _mm512_castps_si512(second));
}

/* Which numbers of the 32 of a step make unit u: neighbours in bf16, as the CPU rounds them; those 16 apart in three parts. Both
 * factors are packed alike. */
INLINE size_t first_of_pair(size_t parts, size_t u) { return parts == 1 ? 2 * u : u; }
INLINE size_t second_of_pair(size_t parts, size_t u) { return parts == 1 ? 2 * u + 1 : u + SIDE; }

/* One row of tiles, those of all parts: 16 units of x and y, of which unit u is the pair (x_u, y_u); or, in_order and of one
 * part, the pairs of neighbours of x and then those of y. */
INLINE void split(size_t parts, bool in_order, __m512 x, __m512 y, unit *out) {
    if (parts == 1) {
        _mm512_store_si512(out, in_order ? (__m512i)_mm512_cvtne2ps_pbh(y, x) : rounded_pairs(x, y));
        return;
    }
    const __m512 x1 = eight_bits(x), y1 = eight_bits(y);
    _mm512_store_si512(out, pairs_of(x1, y1));
    const __m512 x_left = _mm512_sub_ps(x, x1), y_left = _mm512_sub_ps(y, y1);
    const __m512 x2 = eight_bits(x_left), y2 = eight_bits(y_left);
    _mm512_store_si512(out + TILE, pairs_of(x2, y2));
    _mm512_store_si512(out + 2 * TILE, pairs_of(_mm512_sub_ps(x_left, x2), _mm512_sub_ps(y_left, y2)));
}

/* Transposes the tiles of all parts. */
INLINE void turn(size_t parts, unit *tiles) {
    for (size_t p = 0; p < parts; p++) {
        __m512i t[SIDE];
        for (size_t r = 0; r < SIDE; r++)
            t[r] = _mm512_load_si512(tiles + p * TILE + r * SIDE);
        transpose(t);
        for (size_t r = 0; r < SIDE; r++)
            _mm512_store_si512(tiles + p * TILE + r * SIDE, t[r]);
    }
}

/* Blocks whose tiles are made of `count` rows of X with k floats each: rows of A, or, turned, columns of B. */
INLINE void pack_rows(size_t parts, bool turned, const float *x, size_t ld, size_t count, size_t k, unit *out) {
    const size_t steps = sd_size_ceil(k, STEP);
    for (size_t i = 0; i < count; i += SIDE, out += steps * parts * TILE)
        for (size_t s = 0; s < steps; s++) {
            unit *tiles = out + s * parts * TILE;
            const size_t left = k - s * STEP;
            for (size_t r = 0; r < SIDE; r++) {
                const float *row = x + (i + r) * ld + s * STEP;
                __m512 first = _mm512_setzero_ps(), second = first;
                if (i + r < count) {
                    first = floats_of_row(row, left);
                    second = left > SIDE ? floats_of_row(row + SIDE, left - SIDE) : second;
                }
                split(parts, true, first, second, tiles + r * SIDE);
            }
            if (turned)
                turn(parts, tiles);
        }
}

/* 16 numbers of a row, of which `left` exist; bytes: of each, floats or bfloat16. */
INLINE __m512 numbers_of_row(const void *p, size_t bytes, size_t left) {
    if (bytes == sizeof(float))
        return floats_of_row(p, left);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_of(left), p)), 16));
}

/* Blocks whose tiles are made of `count` columns of k rows of X: columns of B, or, turned, rows of A. */
INLINE void pack_columns(size_t parts, size_t bytes, bool turned, const void *x, size_t ld, size_t count, size_t k, unit *out) {
    const size_t steps = sd_size_ceil(k, STEP);
    for (size_t s = 0; s < steps; s++)
        for (size_t j = 0; j < count; j += SIDE) {
            unit *tiles = out + (j / SIDE * steps + s) * parts * TILE;
            const void *from = number_at(x, s * STEP * ld + j, bytes);
            const size_t left = k - s * STEP;
            for (size_t u = 0; u < SIDE; u++) {
                const size_t f = first_of_pair(parts, u), g = second_of_pair(parts, u);
                const __m512 none = _mm512_setzero_ps();
                const __m512 first = f < left ? numbers_of_row(number_at(from, f * ld, bytes), bytes, count - j) : none;
                const __m512 second = g < left ? numbers_of_row(number_at(from, g * ld, bytes), bytes, count - j) : none;
                split(parts, false, first, second, tiles + u * SIDE);
            }
            if (turned)
                turn(parts, tiles);
        }
}

/* ---- the product --------------------------------------------------------------------------- */

/* How a product is cut. Steps depend on k alone, that sums are the same however C is cut. */
typedef struct slices {
    size_t steps;
    size_t rows, columns; /* at once */
} slices;

INLINE slices slices_of(size_t parts, size_t m, size_t n, size_t k) {
    const size_t steps = even_part(sd_size_ceil(k, STEP), STEPS / (parts == 1 ? 1 : 2), 1);
    const size_t pair_bytes = 2 * steps * parts * TILE_BYTES; /* of two blocks or panels */
    return (slices){steps, even_part(m, A_BYTES / pair_bytes * 2 * SIDE, 2 * SIDE),
                    even_part(n, B_BYTES / pair_bytes * COLUMNS, COLUMNS)};
}

/* C = alpha A B + beta C for packed rows and columns, C's from `row` on; b_later: that of B which comes next out of memory is
 * fetched. finish: NULL or what follows. */
INLINE void multiply_slice(size_t parts, size_t steps, const unit *a, const unit *b, bool b_later, float alpha, float beta,
                           float *c, size_t ldc, size_t row, size_t rows, size_t columns, const sd_finish *finish) {
    const size_t distance = steps * parts * TILE; /* of blocks and panels */
    const size_t lines = b_later ? sd_size_ceil(2 * parts * TILE_BYTES / SD_ALIGNMENT, sd_size_ceil(rows, 2 * SIDE)) : 0;
    for (size_t j = 0; j < columns; j += 2 * SIDE) {
        const char *later = (const char *)(b + (j / SIDE + 2) * distance);
        for (size_t i = 0; i < rows; i += 2 * SIDE, later += steps * lines * SD_ALIGNMENT)
            multiply_block(parts, steps, a + i / SIDE * distance, b + j / SIDE * distance, alpha,
                           beta, c + (row + i) * ldc + j, ldc, sd_size_min(2 * SIDE, rows - i),
                           sd_size_min(2 * SIDE, columns - j), later, lines);
        if (finish != NULL)
            sd_finish_panel(finish, c, ldc, row, rows, j, columns);
    }
}

/* bytes: of a number of both factors in memory; of bfloat16 rows alone are packed as columns. */
INLINE void product_of(size_t parts, size_t bytes, bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const void *a,
                       size_t lda, const void *b, size_t ldb, float beta, float *c, size_t ldc, void *scratch) {
    unit *left = scratch, *right = left + A_BYTES / sizeof(unit);
    const slices cut = slices_of(parts, m, n, k);

    begin_tiles();
    for (size_t l = 0; l < k; l += cut.steps * STEP) {
        const size_t depth = sd_size_min(cut.steps * STEP, k - l), steps = sd_size_ceil(depth, STEP);
        for (size_t i = 0; i < m; i += cut.rows) {
            const size_t rows = sd_size_min(cut.rows, m - i);
            if (ta)
                pack_columns(parts, bytes, true, number_at(a, l * lda + i, bytes), lda, rows, depth, left);
            else
                pack_rows(parts, false, number_at(a, i * lda + l, bytes), lda, rows, depth, left);
            for (size_t j = 0; j < n; j += cut.columns) {
                const size_t columns = sd_size_min(cut.columns, n - j);
                if (tb)
                    pack_rows(parts, true, number_at(b, j * ldb + l, bytes), ldb, columns, depth, right);
                else
                    pack_columns(parts, bytes, false, number_at(b, l * ldb + j, bytes), ldb, columns, depth, right);
                multiply_slice(parts, steps, left, right, false, alpha, l == 0 ? beta : 1.0f, c + j, ldc, i, rows, columns, NULL);
            }
        }
    }
    end_tiles();
}

INLINE void product(size_t parts, bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                    const float *b, size_t ldb, float beta, float *c, size_t ldc, void *scratch) {
    product_of(parts, sizeof(float), ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, scratch);
}

/* ---- B packed beforehand ------------------------------------------------------------------- */

/* Where the panels from a column on lie in the slice from l on. */
INLINE size_t panel_place(size_t parts, size_t n, size_t l, size_t steps, size_t column) {
    return (l / STEP * (sd_size_ceil(n, COLUMNS) * COLUMNS / SIDE) + column / SIDE * steps) * parts * TILE;
}

INLINE void pack(size_t parts, bool tb, size_t n, size_t k, const float *b, size_t ldb, size_t first_panel, size_t count,
                 void *packed) {
    const slices cut = slices_of(parts, 1, n, k);
    const size_t first = first_panel * COLUMNS, columns = sd_size_min(count * COLUMNS, n - first);
    for (size_t l = 0; l < k; l += cut.steps * STEP) {
        const size_t depth = sd_size_min(cut.steps * STEP, k - l);
        unit *out = (unit *)packed + panel_place(parts, n, l, sd_size_ceil(depth, STEP), first);
        if (tb)
            pack_rows(parts, true, b + first * ldb + l, ldb, columns, depth, out);
        else
            pack_columns(parts, sizeof(float), false, b + l * ldb + first, ldb, columns, depth, out);
    }
}

INLINE void multiply(size_t parts, size_t m, size_t n, size_t k, const float *a, size_t lda, const void *packed, size_t first,
                     size_t columns, float *c, size_t ldc, const sd_finish *finish, void *scratch) {
    const slices cut = slices_of(parts, m, n, k);

    begin_tiles();
    for (size_t l = 0; l < k; l += cut.steps * STEP) {
        const size_t depth = sd_size_min(cut.steps * STEP, k - l), steps = sd_size_ceil(depth, STEP);
        const unit *b = (const unit *)packed + panel_place(parts, n, l, steps, first);
        for (size_t i = 0; i < m; i += cut.rows) {
            const size_t rows = sd_size_min(cut.rows, m - i);
            pack_rows(parts, false, a + i * lda + l, lda, rows, depth, scratch);
            multiply_slice(parts, steps, scratch, b, true, 1.0f, l == 0 ? 0.0f : 1.0f, c, ldc, i, rows, columns,
                           l + depth == k ? finish : NULL);
        }
    }
    end_tiles();
}

TILES static void bf16_gradient(size_t m, size_t n, size_t k, const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb,
                                float beta, float *c, size_t ldc, void *scratch) {
    product_of(1, sizeof *a, true, false, m, n, k, 1.0f, a, lda, b, ldb, beta, c, ldc, scratch);
}

static const sd_packed_rounded rounded = {bf16_gradient, sd_packed_round, sd_packed_widen};

#define WAY(name, parts, rounded)                                                                                           \
    PACKED_WAY(TILES, name, parts, rounded, STEP, (parts) * SIDE * sizeof(unit), SD_TILES_SCRATCH, SD_PACKED_ROWS_FAST)

WAY(sd_packed_float_tiles, 3, NULL)
WAY(sd_packed_bf16_tiles, 1, &rounded)

#else

/* ISO C wants something in every file. */
typedef int sd_packed_tiles_nothing;

#endif
