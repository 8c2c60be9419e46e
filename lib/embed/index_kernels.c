/* The loops of a search, compiled once for each instruction set (see meson.build). */
#include "embed/index.h"

#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define WIDE  8 /* doubles in as large a register */
#elif defined(__AVX__)
#define LANES 8
#define WIDE  4
#else
#define LANES 4
#define WIDE  2
#endif
/* Rows x queries whose sums are in registers at once. */
#if LANES == 16
#define ROWS 4
#else
#define ROWS 2
#endif
#define QUERIES 4
#define BAND    ((size_t)16) /* rows that stay in the first cache while all queries pass */
#define AHEAD   ((size_t)8) /* rows that are fetched before their turn: the hardware alone leaves half the time waiting */
#define GROUP   ((size_t)64)

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef float narrow __attribute__((vector_size(WIDE * sizeof(float)), aligned(4), may_alias));
typedef double wide __attribute__((vector_size(WIDE * sizeof(double))));

static inline lanes load(const float *at) {
    lanes value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* Adds the element `distance` places on to each: after distances LANES/2 .. 1 the first element is the sum of all. */
#if defined(__clang__)
#define FOLD(x, type, ...) (*(x) += __builtin_shufflevector(*(x), *(x), __VA_ARGS__))
#else
#define FOLD(x, type, ...) (*(x) += __builtin_shuffle(*(x), (type){__VA_ARGS__}))
#endif
typedef int32_t lane_numbers __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef int64_t wide_numbers __attribute__((vector_size(WIDE * sizeof(int64_t))));

static inline float sum_of(lanes *x) {
#if LANES == 16
    FOLD(x, lane_numbers, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    FOLD(x, lane_numbers, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    FOLD(x, lane_numbers, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    FOLD(x, lane_numbers, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif LANES == 8
    FOLD(x, lane_numbers, 4, 5, 6, 7, 0, 1, 2, 3);
    FOLD(x, lane_numbers, 2, 3, 0, 1, 6, 7, 4, 5);
    FOLD(x, lane_numbers, 1, 0, 3, 2, 5, 4, 7, 6);
#else
    FOLD(x, lane_numbers, 2, 3, 0, 1);
    FOLD(x, lane_numbers, 1, 0, 3, 2);
#endif
    return (*x)[0];
}

static inline double sum_of_wide(wide *x) {
#if WIDE == 8
    FOLD(x, wide_numbers, 4, 5, 6, 7, 0, 1, 2, 3);
    FOLD(x, wide_numbers, 2, 3, 0, 1, 6, 7, 4, 5);
#elif WIDE == 4
    FOLD(x, wide_numbers, 2, 3, 0, 1);
#endif
    return (*x)[0] + (*x)[1];
}

/* ROWS rows with QUERIES queries. Row r + AHEAD is fetched where `fetch` is 1. */
static inline void product_tile(const float *queries, const float *rows, size_t d, float *out, size_t ld, bool fetch) {
    const float *ahead = fetch ? rows + AHEAD * d : rows;
    lanes sum[ROWS][QUERIES];
    size_t j = 0;
    for (int r = 0; r < ROWS; r++)
        for (int q = 0; q < QUERIES; q++)
            sum[r][q] = (lanes){0};
    for (; j + LANES <= d; j += LANES) {
        lanes row[ROWS];
        for (int r = 0; r < ROWS; r++) {
            row[r] = load(rows + (size_t)r * d + j);
            __builtin_prefetch(ahead + (size_t)r * d + j);
        }
        for (int q = 0; q < QUERIES; q++) {
            lanes query = load(queries + (size_t)q * d + j);
            for (int r = 0; r < ROWS; r++)
                sum[r][q] += row[r] * query;
        }
    }
    for (int q = 0; q < QUERIES; q++)
        for (int r = 0; r < ROWS; r++) {
            float total = sum_of(&sum[r][q]);
            for (size_t i = j; i < d; i++)
                total += rows[(size_t)r * d + i] * queries[(size_t)q * d + i];
            out[(size_t)q * ld + (size_t)r] = total;
        }
}

/* One query with one row; four sums hide the latency of the additions. */
static inline float product_of_two(const float *a, const float *b, size_t d) {
    lanes sum[4] = {{0}};
    size_t j = 0;
    for (; j + 4 * LANES <= d; j += 4 * LANES)
        for (size_t s = 0; s < 4; s++) {
            sum[s] += load(a + j + s * LANES) * load(b + j + s * LANES);
            __builtin_prefetch(b + AHEAD * d + j + s * LANES);
        }
    for (; j + LANES <= d; j += LANES)
        sum[0] += load(a + j) * load(b + j);
    sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    float total = sum_of(&sum[0]);
    for (; j < d; j++)
        total += a[j] * b[j];
    return total;
}

static void products(const float *queries, size_t m, const float *rows, size_t n, size_t d, float *out, size_t ld) {
    for (size_t first = 0; first < n; first += BAND) {
        size_t last = sd_size_min(first + BAND, n), q = 0, whole = first + (last - first) / ROWS * ROWS;
        for (; q + QUERIES <= m; q += QUERIES) {
            for (size_t r = first; r < whole; r += ROWS)
                product_tile(queries + q * d, rows + r * d, d, out + q * ld + r, ld, q == 0);
            for (size_t r = whole; r < last; r++)
                for (size_t i = q; i < q + QUERIES; i++)
                    out[i * ld + r] = product_of_two(queries + i * d, rows + r * d, d);
        }
        for (; q < m; q++)
            for (size_t r = first; r < last; r++)
                out[q * ld + r] = product_of_two(queries + q * d, rows + r * d, d);
    }
}

/* Elements j, j + 1, ... in double. */
static inline void widen(const float *at, wide *value) {
    narrow part;
    memcpy(&part, at, sizeof part);
    *value = __builtin_convertvector(part, wide);
}

static double dot(const float *a, const float *b, size_t d) {
    wide sum[4] = {{0}}, x, y;
    size_t j = 0;
    for (; j + 4 * WIDE <= d; j += 4 * WIDE)
        for (size_t s = 0; s < 4; s++) {
            widen(a + j + s * WIDE, &x);
            widen(b + j + s * WIDE, &y);
            sum[s] += x * y;
        }
    sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    double total = sum_of_wide(&sum[0]);
    for (; j < d; j++)
        total += (double)a[j] * (double)b[j];
    return total;
}

static double distance(const float *a, const float *b, size_t d) {
    wide sum[4] = {{0}}, x, y;
    size_t j = 0;
    for (; j + 4 * WIDE <= d; j += 4 * WIDE)
        for (size_t s = 0; s < 4; s++) {
            widen(a + j + s * WIDE, &x);
            widen(b + j + s * WIDE, &y);
            x -= y;
            sum[s] += x * x;
        }
    sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    double total = sum_of_wide(&sum[0]);
    for (; j < d; j++) {
        double difference = (double)a[j] - (double)b[j];
        total += difference * difference;
    }
    return total;
}

static size_t next(const float *x, const float *y, size_t from, size_t n, float limit) {
    size_t i = from;
    for (; i + GROUP <= n; i += GROUP) { /* most groups hold nothing of interest */
        int any = 0;
        if (y)
            for (size_t l = 0; l < GROUP; l++)
                any |= !(x[i + l] - y[i + l] < limit);
        else
            for (size_t l = 0; l < GROUP; l++)
                any |= !(x[i + l] < limit);
        if (any)
            break;
    }
    for (; i < n; i++)
        if (!((y ? x[i] - y[i] : x[i]) < limit))
            return i;
    return n;
}

const sd_index_kernels SD_INDEX_KERNELS = {
    .name = SD_INDEX_KERNELS_NAME,
    .products = products,
    .dot = dot,
    .distance = distance,
    .next = next,
};
