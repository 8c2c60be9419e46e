/* Kernels of float pixels in 0..1: the operations of kernels_u8.c without rounding. Values are clipped to 0..1 where 8
 * bits would be. */
#include "image/gauss_kernel.h"
#include "image/kernels.h"

#include <string.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

/* NaN becomes 0. */
static inline float clip(float value) {
    value = value > 0.0f ? value : 0.0f;
    return value < 1.0f ? value : 1.0f;
}

/* ---- resize -------------------------------------------------------------------------------- */

typedef float floats16 __attribute__((vector_size(SD_TILE * 4)));

/* 16 neighbouring weighted sums, clipped. */
static inline void weigh16(const float *in, size_t stride, const float *weight, size_t count, float out[SD_TILE]) {
    floats16 sum = {0};
    for (size_t t = 0; t < count; t++) {
        floats16 value;
        memcpy(&value, in + t * stride, sizeof value);
        sum += value * weight[t];
    }
    float lanes[SD_TILE];
    memcpy(lanes, &sum, sizeof lanes);
    for (size_t i = 0; i < SD_TILE; i++)
        out[i] = clip(lanes[i]);
}

static void resize_rows(const void *source, size_t row_stride, size_t rows, size_t columns, size_t channels,
                        const sd_resample *plan, int mirror, void *out, size_t stride, size_t plane, void *tile_space) {
    float *tile = tile_space;
    size_t length = columns * channels;
    for (size_t i = 0; i < SD_TILE; i++) {
        const float *row = (const float *)(const void *)((const char *)source + (i < rows ? i : rows - 1) * row_stride);
        for (size_t j = 0; j < length; j++)
            tile[j * SD_TILE + i] = clip(row[j]);
    }
    for (size_t x = 0; x < plan->outputs; x++) {
        size_t i = mirror ? plan->outputs - 1 - x : x;
        for (size_t c = 0; c < channels; c++) {
            float lanes[SD_TILE];
            weigh16(tile + (plan->first[i] * channels + c) * SD_TILE, channels * SD_TILE,
                    plan->weight_float + i * plan->taps, plan->count[i], lanes);
            float *to = (float *)out + c * plane + x;
            for (size_t k = 0; k < rows; k++)
                to[k * stride] = lanes[k];
        }
    }
}

static void resize_columns(const void *in, size_t stride, size_t first_row, const sd_resample *plan, size_t width,
                           void *out) {
    for (size_t y = 0; y < plan->outputs; y++) {
        const float *from = (const float *)in + (plan->first[y] - first_row) * stride;
        float *to = (float *)out + y * width;
        for (size_t x = 0; x < width; x += SD_TILE)
            weigh16(from + x, stride, plan->weight_float + y * plan->taps, plan->count[y], to + x);
    }
}

static void split(const void *source, size_t n, size_t channels, int mirror, void *out) {
    const float *restrict from = source;
    float *restrict to = out;
    if (mirror) {
        for (size_t i = 0; i < n; i++)
            to[n - 1 - i] = clip(from[i * channels]);
    } else {
        for (size_t i = 0; i < n; i++)
            to[i] = clip(from[i * channels]);
    }
}

/* ---- colour -------------------------------------------------------------------------------- */

static inline float blended(float base, float factor, float v) { return clip(base + factor * (v - base)); }

/* ITU-R 601 luma. */
static inline float gray_of(float r, float g, float b) { return 0.299f * r + 0.587f * g + 0.114f * b; }

static void blend(void *values, size_t n, float base, float factor) {
    float *restrict v = values;
    for (size_t i = 0; i < n; i++)
        v[i] = blended(base, factor, v[i]);
}

static void saturate(void *red, void *green, void *blue, size_t n, float factor) {
    float *restrict r = red, *restrict g = green, *restrict b = blue;
    for (size_t i = 0; i < n; i++) {
        float base = gray_of(r[i], g[i], b[i]);
        r[i] = blended(base, factor, r[i]);
        g[i] = blended(base, factor, g[i]);
        b[i] = blended(base, factor, b[i]);
    }
}

static void gray(void *red, void *green, void *blue, size_t n) {
    float *restrict r = red, *restrict g = green, *restrict b = blue;
    for (size_t i = 0; i < n; i++)
        r[i] = g[i] = b[i] = gray_of(r[i], g[i], b[i]);
}

/* Sums have this many lanes in a fixed order, so that the result is the same for every instruction set. */
#define LANES 8

static double sum_lanes(const double lane[LANES]) {
    double total = 0.0;
    for (size_t i = 0; i < LANES; i++)
        total += lane[i];
    return total;
}

static double sum_gray(const void *red, const void *green, const void *blue, size_t n) {
    const float *restrict r = red, *restrict g = green, *restrict b = blue;
    double lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t k = 0; k < LANES; k++)
            lane[k] += (double)gray_of(r[i + k], g[i + k], b[i + k]);
    for (; i < n; i++)
        lane[i % LANES] += (double)gray_of(r[i], g[i], b[i]);
    return sum_lanes(lane);
}

static double sum(const void *values, size_t n) {
    const float *restrict v = values;
    double lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t k = 0; k < LANES; k++)
            lane[k] += (double)v[i + k];
    for (; i < n; i++)
        lane[i % LANES] += (double)v[i];
    return sum_lanes(lane);
}

static inline float floor_of(float value) {
    float whole = (float)(int32_t)value;
    return whole > value ? whole - 1.0f : whole;
}

/* To HSV, H shifted, and back. With h in sixths of a turn, a channel is max - range * clip(2 - |h - k|) around its
 * sector. */
static void hue(void *red, void *green, void *blue, size_t n, double factor) {
    float *restrict red_values = red, *restrict green_values = green, *restrict blue_values = blue;
    const float shift = (float)(factor * 6.0);
    for (size_t i = 0; i < n; i++) {
        float r = red_values[i], g = green_values[i], b = blue_values[i];
        float low = r < g ? r : g, high = r < g ? g : r;
        float min = low < b ? low : b, max = high > b ? high : b;
        float range = max - min;
        float inverse = 1.0f / (range > 0.0f ? range : 1.0f);
        float h = r == max ? (g - b) * inverse : g == max ? 2.0f + (b - r) * inverse : 4.0f + (r - g) * inverse;
        h += shift;
        h -= 6.0f * floor_of(h / 6.0f);
        /* Distance from the channel's own hue (0, 2, 4): at full value up to 1, none from 2 on. */
        float from_r = h < 3.0f ? h : 6.0f - h;
        float from_g = h < 2.0f ? 2.0f - h : h - 2.0f;
        float from_b = h < 4.0f ? 4.0f - h : h - 4.0f;
        from_g = from_g > 3.0f ? 6.0f - from_g : from_g;
        from_b = from_b > 3.0f ? 6.0f - from_b : from_b;
        red_values[i] = clip(min + range * clip(2.0f - from_r));
        green_values[i] = clip(min + range * clip(2.0f - from_g));
        blue_values[i] = clip(min + range * clip(2.0f - from_b));
    }
}

static void solarize(void *values, size_t n, int threshold) {
    float *restrict v = values;
    /* In 8 bits the values below `threshold` end half a level below it. */
    const float bound = ((float)threshold - 0.5f) / 255.0f;
    for (size_t i = 0; i < n; i++)
        v[i] = v[i] < bound ? v[i] : 1.0f - v[i];
}

/* ---- blur ---------------------------------------------------------------------------------- */

static void box_row(const float *restrict in, float *restrict out, size_t width, const sd_box *box) {
    const ptrdiff_t reach = (ptrdiff_t)box->reach;
    for (ptrdiff_t x = 0; x < (ptrdiff_t)width; x++) {
        float total = in[x];
        for (ptrdiff_t d = 1; d <= reach; d++)
            total += in[x + d] + in[x - d];
        out[x] = box->inner * total + box->outer * (in[x + reach + 1] + in[x - reach - 1]);
    }
}

static void box_rows(void *values, size_t width, size_t height, const sd_box *box, void *work) {
    size_t pad = box->reach + 1;
    float *first = (float *)work + pad, *second = first + width + 2 * pad;
    for (size_t y = 0; y < height; y++) {
        float *row = (float *)values + y * width;
        float *from = first, *to = second;
        memcpy(from, row, width * sizeof *row);
        for (int pass = 0; pass < 3; pass++) {
            for (size_t d = 0; d < pad; d++) {
                from[(ptrdiff_t)d - (ptrdiff_t)pad] = from[0];
                from[width + d] = from[width - 1];
            }
            box_row(from, pass < 2 ? to : row, width, box);
            float *swap = from;
            from = to;
            to = swap;
        }
    }
}

static void box_columns(const void *in, size_t width, size_t height, const sd_box *box, void *out, void *work) {
    const float *from = in;
    float *restrict sums = work;
    const ptrdiff_t reach = (ptrdiff_t)box->reach, last = (ptrdiff_t)height - 1;
    for (ptrdiff_t y = 0; y <= last; y++) {
        memset(sums, 0, width * sizeof *sums);
        for (ptrdiff_t d = -reach; d <= reach; d++) {
            ptrdiff_t source = y + d < 0 ? 0 : y + d > last ? last : y + d;
            const float *restrict row = from + source * (ptrdiff_t)width;
            for (size_t x = 0; x < width; x++)
                sums[x] += row[x];
        }
        const float *restrict above = from + (y > reach ? y - reach - 1 : 0) * (ptrdiff_t)width;
        const float *restrict below = from + (y + reach + 1 > last ? last : y + reach + 1) * (ptrdiff_t)width;
        float *restrict to = (float *)out + y * (ptrdiff_t)width;
        for (size_t x = 0; x < width; x++)
            to[x] = box->inner * sums[x] + box->outer * (above[x] + below[x]);
    }
}

static void gauss(void *values, size_t width, size_t height, const float *taps, float *work) {
    float *rows = work, *padded = work + width * height;
    float *v = values;
    for (size_t y = 0; y < height; y++) {
        memcpy(padded + SD_GAUSS_REACH, v + y * width, width * sizeof *v);
        gauss_row(padded, width, taps, rows + y * width);
    }
    for (size_t y = 0; y < height; y++)
        gauss_column(rows, width, height, y, taps, v + y * width);
}

/* ---- normalise ----------------------------------------------------------------------------- */

static void normalize(const void *values, size_t n, float shift, float scale, float *restrict out) {
    const float *restrict v = values;
    for (size_t i = 0; i < n; i++)
        out[i] = (v[i] - shift) * scale;
}

const sd_pixel_kernels SD_PIXEL_JOIN(sd_pixels_f32_, SD_PIXEL_SET) = {
    .name = SD_PIXEL_TEXT(SD_PIXEL_SET),
    .item = sizeof(float),
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
