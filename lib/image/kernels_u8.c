/* Kernels of 8-bit pixels. Every rounding step is Pillow's, so that the bytes are equal (the exceptions: gauss, which
 * follows torchvision to a rounding of float sums). Float products and sums must not be contracted;
 * lib/image/meson.build sets the flag. */
#include "image/gauss_kernel.h"
#include "image/kernels.h"

#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

/* ---- resize -------------------------------------------------------------------------------- */

typedef uint8_t bytes16 __attribute__((vector_size(SD_TILE)));

static inline bytes16 load16(const uint8_t *address) {
    bytes16 value;
    memcpy(&value, address, sizeof value);
    return value;
}

static inline void store16(uint8_t *address, bytes16 value) { memcpy(address, &value, sizeof value); }

/* The two halves of a perfect shuffle of a and b. */
static inline void interleave(bytes16 a, bytes16 b, bytes16 *low, bytes16 *high) {
#if defined(__clang__)
    *low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
    *low = __builtin_shuffle(a, b, (bytes16){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
    *high = __builtin_shuffle(a, b, (bytes16){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
#endif
}

/* Shuffling row i with row i + 8 four times transposes 16 x 16. */
static inline void transpose16(bytes16 row[16]) {
    bytes16 next[16];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 8; i++)
            interleave(row[i], row[i + 8], &next[2 * i], &next[2 * i + 1]);
        for (int i = 0; i < 8; i++)
            interleave(next[i], next[i + 8], &row[2 * i], &row[2 * i + 1]);
    }
}

/* 256 bits with AVX-512 too: multiplying 16 integers of 32 bits at once made the resize slower by half on an Intel
 * Xeon. */
#if defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
typedef uint8_t byte_lanes __attribute__((vector_size(LANES)));
typedef uint16_t short_lanes __attribute__((vector_size(LANES * 2)));
typedef int32_t int_lanes __attribute__((vector_size(LANES * 4)));

/* Conversions go in steps of a factor of two, which compilers turn into one instruction each; not so all the widening
 * ones. */
static inline int_lanes widened(const uint8_t *in) {
#if defined(__AVX2__)
    return (int_lanes)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)in));
#else
    byte_lanes value;
    memcpy(&value, in, sizeof value);
    return __builtin_convertvector(__builtin_convertvector(value, short_lanes), int_lanes);
#endif
}

static inline void narrowed(int_lanes value, uint8_t *out) {
    value &= value >= 0;
    int_lanes over = value > 255;
    value = (value & ~over) | (over & 255);
    byte_lanes result = __builtin_convertvector(__builtin_convertvector(value, short_lanes), byte_lanes);
    memcpy(out, &result, sizeof result);
}

/* SD_TILE neighbouring weighted sums: byte t*stride + lane of `in` times weight[t], rounded from 2^22 and clipped. */
static inline void weigh_tile(const uint8_t *in, size_t stride, const int32_t *weight, size_t count, uint8_t *out) {
    int_lanes sum[SD_TILE / LANES];
    for (size_t k = 0; k < SD_TILE / LANES; k++)
        sum[k] = (int_lanes){0} + (1 << 21);
    for (size_t t = 0; t < count; t++)
        for (size_t k = 0; k < SD_TILE / LANES; k++)
            sum[k] += widened(in + t * stride + k * LANES) * weight[t];
    for (size_t k = 0; k < SD_TILE / LANES; k++)
        narrowed(sum[k] >> 22, out + k * LANES);
}

/* The rows are transposed, so that a weighted sum over x runs over whole vectors of 16 rows, and the result is
 * transposed back into planes. */
static void resize_rows(const void *source, size_t row_stride, size_t rows, size_t columns, size_t channels,
                        const sd_resample *plan, int mirror, void *out, size_t stride, size_t plane, void *tile_space) {
    uint8_t *tile = tile_space;
    const uint8_t *row[SD_TILE];
    for (size_t i = 0; i < SD_TILE; i++)
        row[i] = (const uint8_t *)source + (i < rows ? i : rows - 1) * row_stride;
    size_t length = columns * channels;
    for (size_t j = 0; j < length; j += SD_TILE) {
        bytes16 block[SD_TILE];
        if (j + SD_TILE <= length) {
            for (size_t i = 0; i < SD_TILE; i++)
                block[i] = load16(row[i] + j);
        } else {
            for (size_t i = 0; i < SD_TILE; i++) {
                uint8_t rest[SD_TILE] = {0};
                memcpy(rest, row[i] + j, length - j);
                block[i] = load16(rest);
            }
        }
        transpose16(block);
        memcpy(tile + j * SD_TILE, block, sizeof block);
    }
    for (size_t x = 0; x < plan->outputs; x += SD_TILE) {
        size_t here = plan->outputs - x < SD_TILE ? plan->outputs - x : SD_TILE;
        for (size_t c = 0; c < channels; c++) {
            bytes16 block[SD_TILE];
            memset(block, 0, sizeof block);
            for (size_t k = 0; k < here; k++) {
                size_t i = mirror ? plan->outputs - 1 - x - k : x + k;
                weigh_tile(tile + (plan->first[i] * channels + c) * SD_TILE, channels * SD_TILE,
                           plan->weight_int + i * plan->taps, plan->count[i], (uint8_t *)&block[k]);
            }
            transpose16(block);
            uint8_t *to = (uint8_t *)out + c * plane + x;
            for (size_t i = 0; i < rows; i++)
                store16(to + i * stride, block[i]);
        }
    }
}

static void resize_columns(const void *in, size_t stride, size_t first_row, const sd_resample *plan, size_t width,
                           void *out) {
    for (size_t y = 0; y < plan->outputs; y++) {
        const uint8_t *from = (const uint8_t *)in + (plan->first[y] - first_row) * stride;
        uint8_t *to = (uint8_t *)out + y * width;
        for (size_t x = 0; x < width; x += SD_TILE)
            weigh_tile(from + x, stride, plan->weight_int + y * plan->taps, plan->count[y], to + x);
    }
}

static void split(const void *source, size_t n, size_t channels, int mirror, void *out) {
    const uint8_t *restrict from = source;
    uint8_t *restrict to = out;
    if (mirror) {
        for (size_t i = 0; i < n; i++)
            to[n - 1 - i] = from[i * channels];
    } else if (channels == 1) {
        memcpy(to, from, n);
    } else {
        for (size_t i = 0; i < n; i++)
            to[i] = from[i * channels];
    }
}

/* ---- colour -------------------------------------------------------------------------------- */

static inline uint8_t clip_truncated(float value) {
    value = value > 0.0f ? value : 0.0f;
    value = value < 255.0f ? value : 255.0f;
    return (uint8_t)(int32_t)value;
}

static inline uint8_t blended(float base, float factor, uint8_t v) {
    float change = factor * ((float)v - base);
    return clip_truncated(base + change);
}

/* ITU-R 601 luma in 16 bits. */
static inline uint8_t gray_of(uint8_t r, uint8_t g, uint8_t b) {
    return (uint8_t)((19595 * r + 38470 * g + 7471 * b + 32768) >> 16);
}

static void blend(void *values, size_t n, float base, float factor) {
    uint8_t *restrict v = values;
    for (size_t i = 0; i < n; i++)
        v[i] = blended(base, factor, v[i]);
}

static void saturate(void *red, void *green, void *blue, size_t n, float factor) {
    uint8_t *restrict r = red, *restrict g = green, *restrict b = blue;
    for (size_t i = 0; i < n; i++) {
        float base = (float)gray_of(r[i], g[i], b[i]);
        r[i] = blended(base, factor, r[i]);
        g[i] = blended(base, factor, g[i]);
        b[i] = blended(base, factor, b[i]);
    }
}

static void gray(void *red, void *green, void *blue, size_t n) {
    uint8_t *restrict r = red, *restrict g = green, *restrict b = blue;
    for (size_t i = 0; i < n; i++)
        r[i] = g[i] = b[i] = gray_of(r[i], g[i], b[i]);
}

/* Sums are taken in 32 bits over at most this many values. */
#define SUM_BLOCK 4096

static double sum_gray(const void *red, const void *green, const void *blue, size_t n) {
    const uint8_t *restrict r = red, *restrict g = green, *restrict b = blue;
    uint64_t total = 0;
    for (size_t start = 0; start < n; start += SUM_BLOCK) {
        size_t end = n - start < SUM_BLOCK ? n : start + SUM_BLOCK;
        uint32_t sum = 0;
        for (size_t i = start; i < end; i++)
            sum += gray_of(r[i], g[i], b[i]);
        total += sum;
    }
    return (double)total;
}

static double sum(const void *values, size_t n) {
    const uint8_t *restrict v = values;
    uint64_t total = 0;
    for (size_t start = 0; start < n; start += SUM_BLOCK) {
        size_t end = n - start < SUM_BLOCK ? n : start + SUM_BLOCK;
        uint32_t part = 0;
        for (size_t i = start; i < end; i++)
            part += v[i];
        total += part;
    }
    return (double)total;
}

/* v (1 - s/255 f/255) rounded: the exact quotient (it is never half-way, 65025 being odd), by a float estimate that is
 * at most one too low. Every integer here is below 2^24, exact as float. */
static inline int32_t faded(int32_t v, int32_t s, int32_t f) {
    int32_t n = v * (65025 - s * f) + 32512;
    int32_t q = (int32_t)((float)n * 1.53786e-5f); /* just below 1/65025 */
    int32_t rest = n - q * 65025;
    return q + (rest >= 65025);
}

/* To HSV, whose bytes are truncated as Pillow truncates them, H shifted, and back. */
static void hue(void *red, void *green, void *blue, size_t n, double factor) {
    uint8_t *restrict red_values = red, *restrict green_values = green, *restrict blue_values = blue;
    const int32_t shift = (int32_t)(factor * 255.0) & 255; /* truncation towards zero, then modulo 256 */
    for (size_t k = 0; k < n; k++) {
        int32_t r = red_values[k], g = green_values[k], b = blue_values[k];
        int32_t low = r < g ? r : g, high = r < g ? g : r;
        int32_t min = low < b ? low : b, max = high > b ? high : b;
        int32_t range = max - min;
        int32_t divisor = range > 0 ? range : 1;
        int32_t s = (int32_t)((float)range / (float)(max > 0 ? max : 1) * 255.0f);
        /* Within its sector the hue is a whole number plus or minus (max - middle)/range; which one depends on the
         * order of r, g, b. */
        float mid = (float)(max - (r + g + b - max - min)) / (float)divisor;
        int b_low = b == min, r_low = r == min;
        float base_r = b_low ? 1.0f : -1.0f;
        float base_g = b_low ? 1.0f : 3.0f;
        float base_b = r_low ? 3.0f : 5.0f;
        float sign_r = b_low ? -mid : mid;
        float sign_g = b_low ? mid : -mid;
        float sign_b = r_low ? mid : -mid;
        float base = g == max ? base_g : base_b;
        float sign = g == max ? sign_g : sign_b;
        base = r == max ? base_r : base;
        sign = r == max ? sign_r : sign;
        float turn = (base + sign) / 6.0f;
        turn = turn < 0.0f ? turn + 1.0f : turn;
        int32_t h = (int32_t)(turn * 255.0f);
        h = range > 0 ? h : 0;
        h = (h + shift) & 255;
        /* Back: sector and the fraction in it, in 1/255. */
        int32_t h6 = 6 * h;
        int32_t sector = (h6 * 257 + 257) >> 16; /* h6 / 255 for h6 < 65535 */
        int32_t fraction = h6 - 255 * sector;
        int32_t p = faded(max, s, 255), q = faded(max, s, fraction), t = faded(max, s, 255 - fraction);
        sector = sector == 6 ? 0 : sector;
        int32_t odd = sector & 1 ? q : t;
        /* sector:  0    1    2    3    4    5
         *      r   max  q    p    p    t    max
         *      g   t    max  max  q    p    p
         *      b   p    p    t    max  max  q   */
        int32_t pair = sector >> 1;
        int32_t leader = sector & 1 ? odd : max;   /* r in pair 0, g in pair 1, b in pair 2 */
        int32_t follower = sector & 1 ? max : odd; /* g, b, r; the third is p */
        r = pair == 0 ? leader : pair == 1 ? p : follower;
        g = pair == 1 ? leader : pair == 2 ? p : follower;
        b = pair == 2 ? leader : pair == 0 ? p : follower;
        red_values[k] = (uint8_t)r;
        green_values[k] = (uint8_t)g;
        blue_values[k] = (uint8_t)b;
    }
}

static void solarize(void *values, size_t n, int threshold) {
    uint8_t *restrict v = values;
    for (size_t i = 0; i < n; i++)
        v[i] = v[i] < threshold ? v[i] : (uint8_t)(255 - v[i]);
}

/* ---- blur ---------------------------------------------------------------------------------- */

static inline uint8_t boxed(uint32_t inner_sum, uint32_t outer_sum, uint32_t inner, uint32_t outer) {
    return (uint8_t)((inner * inner_sum + outer * outer_sum + (1u << 23)) >> 24);
}

/* One pass over a row whose ends are padded by reach + 1 values on both sides; in and out point at x = 0. */
static inline void box_row(const uint8_t *restrict in, uint8_t *restrict out, size_t width, size_t reach,
                           uint32_t inner, uint32_t outer) {
    for (size_t x = 0; x < width; x++) {
        uint32_t total = in[x];
        for (size_t d = 1; d <= reach; d++)
            total += (uint32_t)in[x + d] + in[(ptrdiff_t)x - (ptrdiff_t)d];
        uint32_t edges = (uint32_t)in[x + reach + 1] + in[(ptrdiff_t)x - (ptrdiff_t)reach - 1];
        out[x] = boxed(total, edges, inner, outer);
    }
}

static void box_row_running(const uint8_t *in, uint8_t *out, size_t width, size_t reach, uint32_t inner,
                            uint32_t outer) {
    const uint8_t *last = in - reach - 1; /* leaves the sum when x advances */
    uint32_t total = 0;
    for (size_t i = 0; i < 2 * reach + 1; i++)
        total += last[i];
    for (size_t x = 0; x < width; x++) {
        total += in[x + reach];
        total -= last[x];
        out[x] = boxed(total, (uint32_t)last[x] + in[x + reach + 1], inner, outer);
    }
}

static void box_rows(void *values, size_t width, size_t height, const sd_box *box, void *work) {
    size_t pad = box->reach + 1;
    uint8_t *a = (uint8_t *)work + pad, *b = a + width + 2 * pad;
    for (size_t y = 0; y < height; y++) {
        uint8_t *row = (uint8_t *)values + y * width;
        memcpy(a, row, width);
        for (int pass = 0; pass < 3; pass++) {
            memset(a - pad, a[0], pad);
            memset(a + width, a[width - 1], pad);
            uint8_t *to = pass < 2 ? b : row;
            switch (box->reach) {
            case 0: box_row(a, to, width, 0, box->inner_int, box->outer_int); break;
            case 1: box_row(a, to, width, 1, box->inner_int, box->outer_int); break;
            default: box_row_running(a, to, width, box->reach, box->inner_int, box->outer_int); break;
            }
            b = a;
            a = to;
        }
        a = (uint8_t *)work + pad;
        b = a + width + 2 * pad;
    }
}

static inline size_t clamped(size_t row, size_t reach, size_t height) {
    return row + reach < height ? row + reach : height - 1;
}

static void box_columns(const void *in, size_t width, size_t height, const sd_box *box, void *out, void *work) {
    const uint8_t *from = in;
    uint32_t *restrict sums = work;
    const size_t reach = box->reach;
    const uint32_t inner = box->inner_int, outer = box->outer_int;
    if (reach == 0) {
        for (size_t y = 0; y < height; y++) {
            const uint8_t *restrict row = from + y * width;
            const uint8_t *restrict above = from + (y > 0 ? y - 1 : 0) * width;
            const uint8_t *restrict below = from + clamped(y, 1, height) * width;
            uint8_t *restrict to = (uint8_t *)out + y * width;
            for (size_t x = 0; x < width; x++)
                to[x] = boxed(row[x], (uint32_t)above[x] + below[x], inner, outer);
        }
        return;
    }
    /* Running sums: before row y they hold rows y-1-reach .. y-1+reach. */
    for (size_t x = 0; x < width; x++)
        sums[x] = (uint32_t)(reach + 1) * from[x];
    for (size_t d = 0; d < reach; d++) {
        const uint8_t *restrict row = from + clamped(0, d, height) * width;
        for (size_t x = 0; x < width; x++)
            sums[x] += row[x];
    }
    for (size_t y = 0; y < height; y++) {
        const uint8_t *restrict leaving = from + (y > reach ? y - reach - 1 : 0) * width;
        const uint8_t *restrict entering = from + clamped(y, reach, height) * width;
        const uint8_t *restrict after = from + clamped(y, reach + 1, height) * width;
        uint8_t *restrict to = (uint8_t *)out + y * width;
        for (size_t x = 0; x < width; x++) {
            uint32_t total = sums[x] + entering[x] - leaving[x];
            sums[x] = total;
            to[x] = boxed(total, (uint32_t)leaving[x] + after[x], inner, outer);
        }
    }
}

static inline float gauss_value(uint8_t v) { return (float)v; }

/* Nearest whole number, half to even: 1.5 * 2^23 leaves no fraction bits. */
static inline uint8_t gauss_result(float value) {
    float shifted = value + 12582912.0f;
    return (uint8_t)(int32_t)(shifted - 12582912.0f);
}

static void gauss(void *values, size_t width, size_t height, const float *taps, float *work) {
    float *rows = work, *padded = work + width * height;
    uint8_t *v = values;
    for (size_t y = 0; y < height; y++) {
        for (size_t x = 0; x < width; x++)
            padded[x + SD_GAUSS_REACH] = gauss_value(v[y * width + x]);
        gauss_row(padded, width, taps, rows + y * width);
    }
    for (size_t y = 0; y < height; y++) {
        gauss_column(rows, width, height, y, taps, padded);
        for (size_t x = 0; x < width; x++)
            v[y * width + x] = gauss_result(padded[x]);
    }
}

/* ---- normalise ----------------------------------------------------------------------------- */

static void normalize(const void *values, size_t n, float shift, float scale, float *restrict out) {
    const uint8_t *restrict v = values;
    for (size_t i = 0; i < n; i++)
        out[i] = ((float)v[i] - shift) * scale;
}

const sd_pixel_kernels SD_PIXEL_JOIN(sd_pixels_u8_, SD_PIXEL_SET) = {
    .name = SD_PIXEL_TEXT(SD_PIXEL_SET),
    .item = sizeof(uint8_t),
    .resize_rows = resize_rows,
    .resize_columns = resize_columns,
    .split = split,
    .blend = blend,
    .saturate = saturate,
    .gray = gray,
    .sum_gray = sum_gray,
    .sum = sum,
    .hue = hue,
    .solarize = solarize,
    .box_rows = box_rows,
    .box_columns = box_columns,
    .gauss = gauss,
    .normalize = normalize,
};
