/* Matrix products cut into tiles for the threads. */
#include "math/math.h"
#include "math/products.h"

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
                        .ldc = in};
}

typedef struct product_work {
    const sd_gemm *gemms;
    const sd_product *products;
    size_t count;
    size_t first_task[SD_PRODUCTS_MAX + 1];
    void (*extra)(void *);
    void *extra_data;
} product_work;

/* The number of nearly equal pieces of at most about `tile` that n is cut into. */
static size_t pieces_of(size_t n, size_t tile) {
    if (tile == 0)
        tile = SD_PRODUCT_TILE;
    return n <= tile ? 1 : sd_size_ceil(n, tile);
}

/* Piece `index` of `pieces`; cuts lie on multiples of 16, the width of the widest vectors. */
static void piece_range(size_t n, size_t pieces, size_t index, size_t *first, size_t *count) {
    size_t step = sd_size_ceil(sd_size_ceil(n, pieces), 16) * 16;
    size_t begin = sd_size_min(index * step, n), end = sd_size_min(begin + step, n);
    *first = begin;
    *count = end - begin;
}

static size_t tiles_of(const sd_product *product) {
    return pieces_of(product->m, product->tile_m) * pieces_of(product->n, product->tile_n);
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
    const float *a = product->a + copy * product->next_a, *b = product->b + copy * product->next_b;
    float *c = product->c + copy * product->next_c;
    size_t columns_of_tiles = pieces_of(product->n, product->tile_n);
    size_t row, rows, column, columns;
    piece_range(product->m, pieces_of(product->m, product->tile_m), tile / columns_of_tiles, &row, &rows);
    piece_range(product->n, columns_of_tiles, tile % columns_of_tiles, &column, &columns);
    if (rows == 0 || columns == 0)
        return;
    sd_multiply(gemm, product->ta, product->tb, rows, columns, product->k, 1.0f,
                a + (product->ta ? row : row * product->lda), product->lda,
                b + (product->tb ? column * product->ldb : column), product->ldb, product->beta,
                c + row * product->ldc + column, product->ldc);
    if (product->finish != NULL)
        product->finish(product, row, rows, column, columns);
}

sd_status sd_run_products(sd_context *context, const sd_gemm *gemms, const sd_product *products, size_t count,
                          void (*extra)(void *), void *extra_data) {
    product_work work = {
        .gemms = gemms, .products = products, .count = count, .extra = extra, .extra_data = extra_data};
    for (size_t p = 0; p < count; p++) {
        work.first_task[p + 1] = work.first_task[p] + tiles_of(&products[p]) * sd_size_max(products[p].copies, 1);
    }
    return sd_run(context, product_task, &work, work.first_task[count] + (extra != NULL));
}
