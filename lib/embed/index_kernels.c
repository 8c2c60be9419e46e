/* The loops of a search, compiled once for each instruction set (see meson.build). */
#include "embed/index.h"

#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define ROWS    2 /* rows x queries whose sums are in registers at once */
#define QUERIES 4
#define GROUP   ((size_t)64)

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
/* For sums in double: as many numbers as fit into one register of doubles. */
#define WIDE (LANES / 2)
typedef float narrow __attribute__((vector_size(WIDE * sizeof(float)), aligned(4), may_alias));
typedef double wide __attribute__((vector_size(WIDE * sizeof(double))));

static inline lanes load(const float *at) {
    lanes value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline float sum_of(const lanes *x) {
    float part[LANES];
    memcpy(part, x, sizeof part);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            part[i] += part[i + width];
    return part[0];
}

static inline double sum_of_wide(const wide *x) {
    double part[WIDE];
    memcpy(part, x, sizeof part);
    for (int width = WIDE / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            part[i] += part[i + width];
    return part[0];
}

/* ROWS rows with QUERIES queries. */
static inline void product_tile(const float *queries, const float *rows, size_t d, float *out, size_t ld) {
    lanes sum[ROWS][QUERIES] = {{{0}}};
    size_t j = 0;
    for (; j + LANES <= d; j += LANES) {
        lanes row[ROWS];
        for (int r = 0; r < ROWS; r++)
            row[r] = load(rows + (size_t)r * d + j);
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
        for (size_t s = 0; s < 4; s++)
            sum[s] += load(a + j + s * LANES) * load(b + j + s * LANES);
    for (; j + LANES <= d; j += LANES)
        sum[0] += load(a + j) * load(b + j);
    sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    float total = sum_of(&sum[0]);
    for (; j < d; j++)
        total += a[j] * b[j];
    return total;
}

static void products(const float *queries, size_t m, const float *rows, size_t n, size_t d, float *out, size_t ld) {
    for (size_t r = 0; r < n; r += ROWS) {
        size_t q = 0;
        for (; q + QUERIES <= m && r + ROWS <= n; q += QUERIES)
            product_tile(queries + q * d, rows + r * d, d, out + q * ld + r, ld);
        for (; q < m; q++)
            for (size_t i = r; i < n && i < r + ROWS; i++)
                out[q * ld + i] = product_of_two(queries + q * d, rows + i * d, d);
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
