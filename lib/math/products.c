/* Matrix products cut into tiles for the threads. */
#include "math/math.h"
#include "math/products.h"
#include "math/strassen.h"

#include <stdlib.h>
#include <string.h>

sd_product sd_linear_forward(const float *x, size_t rows, size_t in, const float *weight, size_t out, float *y) {
    return (sd_product){
        .tb = true, .m = rows, .n = out, .k = in, .a = x, .lda = in, .b = weight, .ldb = in, .c = y, .ldc = out};
}

sd_product sd_linear_backward(const float *dy, size_t rows, size_t out, const float *weight, size_t in, float *dx) {
    return (sd_product){.m = rows, .n = in, .k = out, .a = dy, .lda = out, .b = weight, .ldb = in, .c = dx, .ldc = in};
}

sd_product sd_linear_weight(const float *dy, const float *x, size_t rows, size_t out, size_t in, float *dweight) {
    return (sd_product){.ta = true,
                        .m = out,
                        .n = in,
                        .k = rows,
                        .a = dy,
                        .lda = out,
                        .b = x,
                        .ldb = in,
                        .beta = 1.0f,
                        .c = dweight,
                        .ldc = in,
                        .strassen = true};
}

sd_product sd_linear_weight_bf16(const uint16_t *dy, const uint16_t *x, size_t x_step, size_t rows, size_t out, size_t in,
                                 float *dweight) {
    sd_product product = sd_linear_weight(NULL, NULL, rows, out, in, dweight);
    product.bf16 = true;
    product.a = dy;
    product.b = x;
    product.ldb = x_step;
    product.strassen = false;
    return product;
}

typedef struct product_work {
    const sd_gemm *gemms;
    sd_product products[SD_PRODUCTS_MAX]; /* the largest first */
    size_t count;
    size_t first_task[SD_PRODUCTS_MAX + 1];
    void (*extra)(void *);
    void *extra_data;
} product_work;

/* The number of nearly equal pieces of at most about `tile` that n is cut into. */
static size_t pieces_of(size_t n, size_t tile) { return n <= tile ? 1 : sd_size_ceil(n, tile); }

/* The length of all pieces but the last; cuts lie on multiples of the width of packed panels, which that of the widest vectors
 * divides. */
static size_t piece_length(size_t n, size_t pieces) {
    return sd_size_ceil(sd_size_ceil(n, pieces), SD_FACTOR_COLUMNS) * SD_FACTOR_COLUMNS;
}

static void piece_range(size_t n, size_t pieces, size_t index, size_t *first, size_t *count) {
    size_t step = piece_length(n, pieces);
    size_t begin = sd_size_min(index * step, n), end = sd_size_min(begin + step, n);
    *first = begin;
    *count = end - begin;
}

/* What is cut into tiles: C, or with Strassen's formulas a quadrant, whose tiles are those of all four. */
static size_t rows_cut(const sd_product *product) { return product->strassen ? product->m / 2 : product->m; }
static size_t columns_cut(const sd_product *product) { return product->strassen ? product->n / 2 : product->n; }

static size_t tiles_of(const sd_product *product) {
    return pieces_of(rows_cut(product), product->tile_m) * pieces_of(columns_cut(product), product->tile_n);
}

static void product_task(void *argument, size_t index, size_t thread) {
    const product_work *work = argument;
    const sd_gemm *gemm = work->gemms == NULL ? &sd_gemm_fp32 : &work->gemms[thread];
    size_t p = 0;
    while (p < work->count && index >= work->first_task[p + 1])
        p++;
    if (p == work->count) {
        work->extra(work->extra_data);
        return;
    }
    const sd_product *product = &work->products[p];
    size_t tiles = tiles_of(product), copy = (index - work->first_task[p]) / tiles;
    size_t tile = (index - work->first_task[p]) % tiles;
    float *c = product->c + copy * product->next_c;
    size_t columns_of_tiles = pieces_of(columns_cut(product), product->tile_n);
    size_t row, rows, column, columns;
    piece_range(rows_cut(product), pieces_of(rows_cut(product), product->tile_m), tile / columns_of_tiles, &row, &rows);
    piece_range(columns_cut(product), columns_of_tiles, tile % columns_of_tiles, &column, &columns);
    if (rows == 0 || columns == 0)
        return;
    if (product->bf16) {
        const uint16_t *a = product->a, *b = product->b;
        sd_multiply_bf16(gemm, rows, columns, product->k, a + row, product->lda, b + column, product->ldb, product->beta,
                         c + row * product->ldc + column, product->ldc);
        return;
    }
    const float *a = product->a, *b = product->b;
    a += copy * product->next_a;
    b += copy * product->next_b;
    if (product->strassen) {
        gemm->strassen->gradient(product->m, product->n, product->k, a, product->lda, b, product->ldb, product->beta, c,
                                 product->ldc, row, rows, column, columns, gemm->scratch);
        return;
    }
    a += product->ta ? row : row * product->lda;
    b += product->tb ? column * product->ldb : column;
    if (product->finish.function != NULL)
        sd_multiply_finish(gemm, product->ta, product->tb, rows, columns, product->k, a, product->lda, b, product->ldb, c,
                           product->ldc, row, column, &product->finish);
    else
        sd_multiply(gemm, product->ta, product->tb, rows, columns, product->k, 1.0f, a, product->lda, b, product->ldb,
                    product->beta, c + row * product->ldc + column, product->ldc);
}

/* ---- how products are cut ------------------------------------------------------------------ */

/* Own products pack each factor once for a tile, and thus want large ones. Some hundred rows of a transposed A fit into the
 * cache with them; columns may be many. */
#define TILE 384
#define PACKED_ROWS 768
#define PACKED_COLUMNS 1536
#define SMALLEST_TILE ((size_t)128 * 128)

/* The longest of nearly equal pieces of n of at most `most`, a multiple of SD_FACTOR_COLUMNS. */
static size_t even_tile(size_t n, size_t most) {
    return n <= most ? n : piece_length(n, pieces_of(n, most));
}

static double work_of(const sd_product *product) {
    return (double)product->m * (double)product->n * (double)product->k * (double)sd_size_max(product->copies, 1);
}

static int by_work(const void *a, const void *b) {
    double x = work_of(a), y = work_of(b);
    return (x < y) - (x > y);
}

/* The longer side is cut until a tile is not more than its share of all work that is still to be given out: the first tiles
 * are large and the last ones small, so that the threads end together. A side that the caller has cut stays as it is. */
static void shape_tiles(sd_product *products, size_t count, bool own, size_t threads) {
    double left = 0.0;
    for (size_t p = 0; p < count; p++)
        left += work_of(&products[p]);
    for (size_t p = 0; p < count; p++) {
        sd_product *product = &products[p];
        const bool rows_free = product->tile_m == 0, columns_free = product->tile_n == 0;
        double share = left / (double)threads;
        left -= work_of(product);
        const size_t quadrants = product->strassen ? 4 : 1;
        const size_t most_rows = product->strassen ? SD_STRASSEN_ROWS : own ? PACKED_ROWS : TILE;
        const size_t most_columns = product->strassen ? PACKED_COLUMNS / 2 : own ? PACKED_COLUMNS : TILE;
        /* halves of nearly equal pieces, not of the longest allowed: 2048 columns are 2 tasks for 2 threads, not 3 */
        size_t m = rows_free ? even_tile(rows_cut(product), most_rows) : sd_size_min(rows_cut(product), product->tile_m);
        size_t n =
            columns_free ? even_tile(columns_cut(product), most_columns) : sd_size_min(columns_cut(product), product->tile_n);
        while (own && (double)(quadrants * m * n) * (double)product->k > share && quadrants * m * n > SMALLEST_TILE) {
            size_t *side = rows_free && (!columns_free || m > n) ? &m : &n;
            if (*side <= SD_FACTOR_COLUMNS || (!rows_free && !columns_free))
                break;
            *side = sd_size_ceil(*side, 2 * SD_FACTOR_COLUMNS) * SD_FACTOR_COLUMNS;
        }
        product->tile_m = m;
        product->tile_n = n;
    }
}

sd_status sd_run_products(sd_context *context, const sd_gemm *gemms, const sd_product *products, size_t count,
                          void (*extra)(void *), void *extra_data) {
    product_work work = {.gemms = gemms, .count = count, .extra = extra, .extra_data = extra_data};
    memcpy(work.products, products, count * sizeof *products);
    qsort(work.products, count, sizeof *work.products, by_work);
    /* own products, whose numbers are the same in any tile: not those of a BLAS, of which the emulated bf16 is made too */
    const bool own = gemms != NULL && sd_factor_bytes(gemms, 1, 1) > 0;
    for (size_t p = 0; p < count; p++) {
        sd_product *product = &work.products[p];
        product->strassen = product->strassen && own && gemms->strassen != NULL &&
                            sd_strassen_fits_gradient(product->m, product->n, product->k);
    }
    shape_tiles(work.products, count, own, sd_threads(context));
    for (size_t p = 0; p < count; p++)
        work.first_task[p + 1] =
            work.first_task[p] + tiles_of(&work.products[p]) * sd_size_max(work.products[p].copies, 1);
    return sd_run(context, product_task, &work, work.first_task[count] + (extra != NULL));
}
