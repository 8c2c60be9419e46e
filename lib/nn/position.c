/* Interpolation of the learned position embedding to another grid of patches. */
#include "nn/nn.h"

#include <math.h>
#include <string.h>

/* One axis: output position -> source positions and their weights, by cubic convolution (Keys 1981). Without
 * antialiasing a = -0.75, four taps, the border repeated. With it a = -0.5, the kernel widened by the scale where the
 * grid shrinks, and the weights of what lies inside renormalised: PyTorch's two ways. */
typedef struct axis {
    size_t native;
    double step; /* source positions per output position */
    bool antialias;
} axis;

/* The source positions first .. first+count-1 (before they are held inside the grid) of one output position. */
typedef struct taps {
    double center, stretch; /* of the kernel, in source positions */
    double first;
    size_t count;
    double sum; /* of the weights, to divide by */
} taps;

static axis axis_of(size_t native, size_t out_size, const sd_position_map *map) {
    /* PyTorch maps positions with the factor that it was given, not with the ratio of the sizes. */
    return (axis){native, (double)native / ((double)out_size + map->offset), map->antialias};
}

static double cubic(double a, double distance) {
    double t = fabs(distance);
    if (t < 1.0)
        return ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0;
    return t < 2.0 ? ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a : 0.0;
}

static double weight_of(const axis *along, const taps *at, size_t tap) {
    double distance = (at->first + (double)tap - at->center) / at->stretch;
    return cubic(along->antialias ? -0.5 : -0.75, distance) / at->sum;
}

static size_t source_of(const axis *along, const taps *at, size_t tap) {
    double source = at->first + (double)tap, last = (double)(along->native - 1);
    return (size_t)(source < 0.0 ? 0.0 : source > last ? last : source);
}

static taps taps_of(const axis *along, size_t out) {
    taps at = {.center = along->step * ((double)out + 0.5) - 0.5, .stretch = 1.0, .sum = 1.0};
    if (!along->antialias) {
        at.first = floor(at.center) - 1.0;
        at.count = 4;
        return at;
    }
    if (along->step > 1.0)
        at.stretch = along->step;
    double first = floor(at.center + 1.0 - 2.0 * at.stretch), end = floor(at.center + 1.0 + 2.0 * at.stretch);
    at.first = first < 0.0 ? 0.0 : first;
    end = end > (double)along->native ? (double)along->native : end;
    at.count = end > at.first ? (size_t)(end - at.first) : 0;
    double sum = 0.0;
    for (size_t tap = 0; tap < at.count; tap++)
        sum += weight_of(along, &at, tap);
    at.sum = sum;
    return at;
}

static void add_row(float *to, const float *from, size_t dim, float weight) {
    for (size_t d = 0; d < dim; d++)
        to[d] += weight * from[d];
}

/* forward: out += map(embedding); backward: embedding += transposed map(out). Rows of patches only. */
static void map_patches(float *embedding, size_t native, size_t dim, size_t rows, size_t columns,
                        const sd_position_map *map, float *out, bool forward) {
    axis down = axis_of(native, rows, map), along = axis_of(native, columns, map);
    for (size_t y = 0; y < rows; y++) {
        taps vertical = taps_of(&down, y);
        for (size_t x = 0; x < columns; x++) {
            taps horizontal = taps_of(&along, x);
            float *target = out + (y * columns + x) * dim;
            for (size_t i = 0; i < vertical.count; i++) {
                float weight = (float)weight_of(&down, &vertical, i);
                for (size_t j = 0; j < horizontal.count; j++) {
                    float product = weight * (float)weight_of(&along, &horizontal, j);
                    float *source =
                        embedding + (source_of(&down, &vertical, i) * native + source_of(&along, &horizontal, j)) * dim;
                    if (forward)
                        add_row(target, source, dim, product);
                    else
                        add_row(source, target, dim, product);
                }
            }
        }
    }
}

void sd_position_forward(const float *embedding, size_t native, size_t dim, size_t rows, size_t columns,
                         const sd_position_map *map, float *out) {
    if (rows == native && columns == native) {
        memcpy(out, embedding, (1 + native * native) * dim * sizeof *out);
        return;
    }
    memcpy(out, embedding, dim * sizeof *out);
    memset(out + dim, 0, rows * columns * dim * sizeof *out);
    map_patches((float *)embedding + dim, native, dim, rows, columns, map, out + dim, true);
}

void sd_position_backward(const float *dout, size_t native, size_t dim, size_t rows, size_t columns,
                          const sd_position_map *map, float *dembedding) {
    if (rows == native && columns == native) {
        for (size_t i = 0; i < (1 + native * native) * dim; i++)
            dembedding[i] += dout[i];
        return;
    }
    add_row(dembedding, dout, dim, 1.0f);
    map_patches(dembedding + dim, native, dim, rows, columns, map, (float *)dout + dim, false);
}
