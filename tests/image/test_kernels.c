/* The kernels against plain references written from the definition, over all colours and over odd sizes, for each
 * instruction set. */
#define _XOPEN_SOURCE 700 /* setenv */

#include "golden.h"

#include "image/image.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const levels[] = {"generic", "avx2", "avx512"};
#define FOR_EACH_LEVEL for (size_t level = 0; level < 3 && setenv("SIMDINO_CPU", levels[level], 1) == 0; level++)

static void *take(size_t bytes) {
    void *memory = calloc(1, bytes);
    assert_non_null(memory);
    return memory;
}

static uint32_t next_random(uint32_t *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* ---- hue ----------------------------------------------------------------------------------- */

/* RGB to HSV in the order of Pillow's roundings (golden README, image/color.npz). */
static void to_hsv(const uint8_t rgb[3], uint8_t hsv[3]) {
    uint8_t r = rgb[0], g = rgb[1], b = rgb[2];
    uint8_t max = r > g ? r : g, min = r < g ? r : g;
    max = max > b ? max : b;
    min = min < b ? min : b;
    hsv[0] = hsv[1] = 0;
    hsv[2] = max;
    if (max == min)
        return;
    float range = (float)(max - min), s = range / (float)max;
    float rc = (float)(max - r) / range, gc = (float)(max - g) / range, bc = (float)(max - b) / range, h;
    if (r == max)
        h = bc - gc;
    else if (g == max)
        h = (float)(2.0 + (double)rc - (double)bc);
    else
        h = (float)(4.0 + (double)gc - (double)rc);
    h = (float)fmod((double)h / 6.0 + 1.0, 1.0);
    hsv[0] = (uint8_t)((double)h * 255.0);
    hsv[1] = (uint8_t)((double)s * 255.0);
}

/* HSV to RGB in exact integers: v (1 - s/255 f/255), rounded half up. */
static uint8_t faded(uint8_t v, uint8_t s, unsigned f) {
    return (uint8_t)((2u * v * (65025u - s * f) + 65025u) / 130050u);
}

static void from_hsv(const uint8_t hsv[3], uint8_t rgb[3]) {
    unsigned h6 = 6u * hsv[0], sector = h6 / 255u % 6u, f = h6 % 255u;
    uint8_t v = hsv[2], p = faded(v, hsv[1], 255), q = faded(v, hsv[1], f), t = faded(v, hsv[1], 255u - f);
    const uint8_t table[6][3] = {{v, t, p}, {q, v, p}, {p, v, t}, {p, q, v}, {t, p, v}, {v, p, q}};
    memcpy(rgb, table[sector], 3);
}

static void references_equal_pillow(void **state) {
    (void)state;
    golden *archive = golden_open("image/color.npz");
    const golden_array *rgb = golden_get(archive, "rgb_in"), *hsv = golden_get(archive, "hsv_in");
    const uint8_t *rgb_in = rgb->data, *hsv_out = golden_u8(archive, "rgb_to_hsv");
    const uint8_t *hsv_in = hsv->data, *rgb_out = golden_u8(archive, "hsv_to_rgb");
    for (size_t i = 0; i < rgb->shape[0]; i++) {
        uint8_t out[3];
        to_hsv(rgb_in + 3 * i, out);
        assert_memory_equal(out, hsv_out + 3 * i, 3);
    }
    for (size_t i = 0; i < hsv->shape[0]; i++) {
        uint8_t out[3];
        from_hsv(hsv_in + 3 * i, out);
        assert_memory_equal(out, rgb_out + 3 * i, 3);
    }
    golden_close(archive);
}

/* Every colour without a shift, which meets every H and S that a colour can have; then each shift on a lattice of
 * colours. */
static void hue_is_exact_for_every_color(void **state) {
    (void)state;
    enum { BLOCK = 65536 };
    uint8_t *planes = take(3 * BLOCK + SD_PIXEL_SLACK), *expected = take(3 * BLOCK);
    for (int red = 0; red < 256; red++) {
        for (int i = 0; i < BLOCK; i++) {
            uint8_t rgb[3] = {(uint8_t)red, (uint8_t)(i >> 8), (uint8_t)i}, hsv[3];
            to_hsv(rgb, hsv);
            from_hsv(hsv, rgb);
            for (int c = 0; c < 3; c++)
                expected[c * BLOCK + i] = rgb[c];
        }
        FOR_EACH_LEVEL {
            for (int i = 0; i < BLOCK; i++) {
                planes[i] = (uint8_t)red;
                planes[BLOCK + i] = (uint8_t)(i >> 8);
                planes[2 * BLOCK + i] = (uint8_t)i;
            }
            sd_pixel_kernels_get(SD_PIXEL_U8)->hue(planes, planes + BLOCK, planes + 2 * BLOCK, BLOCK, 0.0);
            assert_memory_equal(planes, expected, 3 * BLOCK);
        }
    }
    for (int shift = -127; shift <= 127; shift++) {
        double factor = (shift + (shift < 0 ? -0.5 : 0.5)) / 255.0; /* truncates to shift; at 0.5 turns at the most */
        int n = 0;
        for (int r = 0; r < 256; r += 15)
            for (int g = 0; g < 256; g += 17)
                for (int b = 0; b < 256; b += 5, n++) {
                    uint8_t rgb[3] = {(uint8_t)r, (uint8_t)g, (uint8_t)b}, hsv[3];
                    to_hsv(rgb, hsv);
                    hsv[0] = (uint8_t)(hsv[0] + shift);
                    from_hsv(hsv, rgb);
                    for (int c = 0; c < 3; c++)
                        expected[c * BLOCK + n] = rgb[c];
                }
        FOR_EACH_LEVEL {
            int m = 0;
            for (int r = 0; r < 256; r += 15)
                for (int g = 0; g < 256; g += 17)
                    for (int b = 0; b < 256; b += 5, m++) {
                        planes[m] = (uint8_t)r;
                        planes[BLOCK + m] = (uint8_t)g;
                        planes[2 * BLOCK + m] = (uint8_t)b;
                    }
            sd_pixel_kernels_get(SD_PIXEL_U8)->hue(planes, planes + BLOCK, planes + 2 * BLOCK, (size_t)n, factor);
            for (int c = 0; c < 3; c++)
                assert_memory_equal(planes + c * BLOCK, expected + c * BLOCK, (size_t)n);
        }
    }
    free(planes);
    free(expected);
}

/* The float form turns by whole sectors exactly: 1/3 of a turn permutes the channels. */
static void float_hue_turns_the_wheel(void **state) {
    (void)state;
    enum { N = 1000 };
    float *planes = take((3 * N + SD_PIXEL_SLACK) * sizeof(float)), *before = take(3 * N * sizeof(float));
    uint32_t seed = 3;
    for (int i = 0; i < 3 * N; i++)
        before[i] = (float)next_random(&seed) / (float)(1 << 24);
    for (int c = 0; c < 3; c++)
        before[c * N] = 0.25f; /* grey */
    FOR_EACH_LEVEL {
        const sd_pixel_kernels *kernels = sd_pixel_kernels_get(SD_PIXEL_F32);
        memcpy(planes, before, 3 * N * sizeof(float));
        kernels->hue(planes, planes + N, planes + 2 * N, N, 0.0);
        assert_true(golden_difference_f32(planes, before, 3 * N) < 1e-6);
        kernels->hue(planes, planes + N, planes + 2 * N, N, 1.0 / 3.0); /* red becomes green */
        assert_true(golden_difference_f32(planes + N, before, N) < 3e-6);
        assert_true(golden_difference_f32(planes + 2 * N, before + N, N) < 3e-6);
        assert_true(golden_difference_f32(planes, before + 2 * N, N) < 3e-6);
        kernels->hue(planes, planes + N, planes + 2 * N, N, -1.0 / 3.0);
        assert_true(golden_difference_f32(planes, before, 3 * N) < 5e-6);
    }
    free(planes);
    free(before);
}

/* ---- resize -------------------------------------------------------------------------------- */

/* Straight from the definition: doubles, one output at a time; the pass along x is rounded. */
static double cubic(double x) {
    x = fabs(x);
    return x < 1.0 ? (1.5 * x - 2.5) * x * x + 1.0 : x < 2.0 ? ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 : 0.0;
}

static uint8_t sample(const uint8_t *in, size_t stride, size_t n, size_t m, size_t x) {
    if (n == m)
        return in[x * stride];
    double scale = (double)n / (double)m, f = scale > 1.0 ? scale : 1.0, center = ((double)x + 0.5) * scale, sum = 0.0;
    int64_t total = 1 << 21;
    size_t first = center - 2.0 * f + 0.5 > 0.0 ? (size_t)(center - 2.0 * f + 0.5) : 0;
    size_t last = center + 2.0 * f + 0.5 < (double)n ? (size_t)(center + 2.0 * f + 0.5) : n;
    for (size_t i = first; i < last; i++)
        sum += cubic(((double)i + 0.5 - center) / f);
    for (size_t i = first; i < last; i++)
        total += (int64_t)floor(cubic(((double)i + 0.5 - center) / f) / sum * 4194304.0 + 0.5) * in[i * stride];
    total >>= 22;
    return (uint8_t)(total < 0 ? 0 : total > 255 ? 255 : total);
}

static void reference_resize(const uint8_t *in, size_t row_bytes, size_t channels, size_t height, size_t width,
                             size_t out_height, size_t out_width, uint8_t *out) {
    uint8_t *middle = take(height * out_width * channels);
    for (size_t y = 0; y < height; y++)
        for (size_t x = 0; x < out_width; x++)
            for (size_t c = 0; c < channels; c++)
                middle[(y * out_width + x) * channels + c] =
                    sample(in + y * row_bytes + c, channels, width, out_width, x);
    for (size_t y = 0; y < out_height; y++)
        for (size_t k = 0; k < out_width * channels; k++)
            out[y * out_width * channels + k] = sample(middle + k, out_width * channels, height, out_height, y);
    free(middle);
}

/* Sizes around the tiles of the kernels, strides, every number of channels, 1 x 1. The pixel buffer ends with the last
 * pixel, so that an address sanitizer sees what reads too far. */
static void resize_is_exact_for_odd_sizes(void **state) {
    (void)state;
    uint32_t seed = 11;
    static const size_t sides[] = {1, 2, 3, 5, 15, 16, 17, 31, 33, 40};
    for (size_t trial = 0; trial < 400; trial++) {
        size_t channels = trial < 32 ? trial % 16 + 1 : 1 + next_random(&seed) % 5;
        size_t box[4], side[4];
        for (size_t k = 0; k < 4; k++) {
            box[k] = next_random(&seed) % 4;
            side[k] = sides[next_random(&seed) % 10];
        }
        if (trial == 0)
            for (size_t k = 0; k < 4; k++)
                side[k] = 1;
        size_t height = side[0] + box[0] + box[2], width = side[1] + box[1] + box[3];
        size_t stride = width * channels + next_random(&seed) % 9, bytes = stride * (height - 1) + width * channels;
        uint8_t *pixels = take(bytes), *out = take(side[2] * side[3] * channels),
                *expected = take(side[2] * side[3] * channels);
        for (size_t i = 0; i < bytes; i++)
            pixels[i] = (uint8_t)(next_random(&seed) % 3 * 127 + next_random(&seed) % 2);
        sd_image image = {pixels, width, height, stride, (int32_t)channels, SD_PIXEL_U8};
        reference_resize(pixels + box[0] * stride + box[1] * channels, stride, channels, side[0], side[1], side[2],
                         side[3], expected);
        FOR_EACH_LEVEL {
            assert_int_equal(
                sd_image_resize(&image, box[0], box[1], side[0], side[1], SD_FILTER_BICUBIC, side[3], side[2], out),
                SD_OK);
            if (memcmp(out, expected, side[2] * side[3] * channels) != 0)
                fail_msg("%s: %zu x %zu of %zu channels to %zu x %zu differs", levels[level], side[0], side[1],
                         channels, side[2], side[3]);
        }
        free(pixels);
        free(out);
        free(expected);
    }
}

/* ---- blur ---------------------------------------------------------------------------------- */

static uint8_t at(const uint8_t *v, ptrdiff_t i, ptrdiff_t n, ptrdiff_t step) {
    return v[(i < 0 ? 0 : i >= n ? n - 1 : i) * step];
}

static void reference_box(const uint8_t *in, uint8_t *out, ptrdiff_t n, ptrdiff_t step, const sd_box *box) {
    ptrdiff_t reach = (ptrdiff_t)box->reach;
    for (ptrdiff_t x = 0; x < n; x++) {
        uint64_t sum = 0;
        for (ptrdiff_t d = -reach; d <= reach; d++)
            sum += at(in, x + d, n, step);
        uint64_t edges = (uint64_t)at(in, x - reach - 1, n, step) + at(in, x + reach + 1, n, step);
        out[x * step] = (uint8_t)((box->inner_int * sum + box->outer_int * edges + (1u << 23)) >> 24);
    }
}

static void box_blur_is_exact_for_every_radius(void **state) {
    (void)state;
    uint32_t seed = 5;
    static const double radii[] = {0.1, 0.9, 1.4, 1.5, 2.0, 2.6, 4.0, 9.5, 40.0};
    for (size_t trial = 0; trial < 90; trial++) {
        double radius = radii[trial % 9];
        size_t width = 1 + next_random(&seed) % 40, height = 1 + next_random(&seed) % 40, n = width * height, room;
        uint8_t *in = take(n), *expected = take(n), *other = take(n);
        for (size_t i = 0; i < n; i++)
            in[i] = (uint8_t)next_random(&seed);
        sd_box box = sd_box_of_radius(radius);
        assert_true(box.reach <= (size_t)radius + 1);
        memcpy(expected, in, n);
        for (int pass = 0; pass < 3; pass++) {
            for (size_t y = 0; y < height; y++)
                reference_box(expected + y * width, other + y * width, (ptrdiff_t)width, 1, &box);
            memcpy(expected, other, n);
        }
        for (int pass = 0; pass < 3; pass++) {
            for (size_t x = 0; x < width; x++)
                reference_box(expected + x, other + x, (ptrdiff_t)height, (ptrdiff_t)width, &box);
            memcpy(expected, other, n);
        }
        assert_int_equal(sd_blur_room(width, height, radius, &room), SD_OK);
        FOR_EACH_LEVEL {
            void *work = take(room * sizeof(float));
            sd_planes planes = {sd_pixel_kernels_get(SD_PIXEL_U8), take(n), width, height, 1, SD_PIXEL_U8};
            memcpy(planes.data, in, n);
            sd_blur(&planes, SD_BLUR_PIL, radius, work);
            assert_memory_equal(planes.data, expected, n);
            free(planes.data);
            free(work);

            /* The float form stays within the roundings of six passes, half a level each. */
            work = take(room * sizeof(float));
            sd_planes floats = {
                sd_pixel_kernels_get(SD_PIXEL_F32), take(n * sizeof(float)), width, height, 1, SD_PIXEL_F32};
            for (size_t i = 0; i < n; i++)
                ((float *)floats.data)[i] = (float)in[i] / 255.0f;
            sd_blur(&floats, SD_BLUR_PIL, radius, work);
            for (size_t i = 0; i < n; i++)
                assert_true(fabsf(255.0f * ((float *)floats.data)[i] - (float)expected[i]) <= 3.05f);
            free(floats.data);
            free(work);
        }
        free(in);
        free(expected);
        free(other);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(references_equal_pillow),
        cmocka_unit_test(hue_is_exact_for_every_color),
        cmocka_unit_test(float_hue_turns_the_wheel),
        cmocka_unit_test(resize_is_exact_for_odd_sizes),
        cmocka_unit_test(box_blur_is_exact_for_every_radius),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
