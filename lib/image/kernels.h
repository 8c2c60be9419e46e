/* Pixel kernels: loops over planes, compiled once per instruction set (kernels_u8.c, kernels_f32.c) and chosen at run
 * time (dispatch.c).
 *
 * There is one table per pixel type. The 8-bit one computes in integers, or in float where Pillow does, and gives
 * Pillow's bytes. The float one computes the same on 0..1 values without rounding, clipped where Pillow clips. `void *`
 * is an array of the table's type. Planes are packed: `width` values a row. Buffers that kernels write or read have
 * SD_PIXEL_SLACK values of room behind their end, because whole vectors are moved. */
#ifndef SD_PIXEL_KERNELS_H
#define SD_PIXEL_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Rows and columns are resized in groups of this many. */
#define SD_TILE        16
#define SD_PIXEL_SLACK 64

/* Weights of one axis: output sample i is the sum over t < count[i] of weight[i*taps + t] * input[first[i] + t]. */
typedef struct sd_resample {
    size_t outputs, taps;
    const uint32_t *first, *count;
    const int32_t *weight_int; /* times 2^22: for 8 bits */
    const float *weight_float;
} sd_resample;

/* One box blur: out = inner * (sum of in[x-reach .. x+reach]) + outer * (in[x-reach-1] + in[x+reach+1]), indices
 * clamped. The integers are times 2^24. */
typedef struct sd_box {
    size_t reach;
    uint32_t inner_int, outer_int;
    float inner, outer;
} sd_box;

/* torchvision's gaussian_blur in DINOv2 and SimDINOv2: kernel_size 9. */
#define SD_GAUSS_TAPS 9

typedef struct sd_pixel_kernels {
    const char *name;
    size_t item; /* bytes of a value */

    /* rows <= SD_TILE rows of interleaved channels, row_stride bytes apart, resized along x: value (row, c, x) goes to
     * out[c*plane + row*stride + x]. stride is a multiple of SD_TILE; mirror: x runs from right to left. The source has
     * `columns` columns. tile: room for SD_TILE*(columns*channels + SD_TILE). */
    void (*resize_rows)(const void *source, size_t row_stride, size_t rows, size_t columns, size_t channels,
                        const sd_resample *plan, int mirror, void *out, size_t stride, size_t plane, void *tile);
    /* One plane resized along y. `in` begins with input row `first_row`; its rows are `stride` apart. */
    void (*resize_columns)(const void *in, size_t stride, size_t first_row, const sd_resample *plan, size_t width,
                           void *out);
    /* n pixels of interleaved channels, one channel apart: out[i] = source[i*channels]; mirror: from right to left. */
    void (*split)(const void *source, size_t n, size_t channels, int mirror, void *out);

    /* v <- base + factor (v - base). */
    void (*blend)(void *v, size_t n, float base, float factor);
    /* The same with the pixel's own grey value as base. */
    void (*saturate)(void *r, void *g, void *b, size_t n, float factor);
    void (*gray)(void *r, void *g, void *b, size_t n);
    double (*sum_gray)(const void *r, const void *g, const void *b, size_t n);
    double (*sum)(const void *v, size_t n);
    /* factor in -0.5 .. 0.5 turns. */
    void (*hue)(void *r, void *g, void *b, size_t n, double factor);
    /* threshold in 0..256, for float pixels too. */
    void (*solarize)(void *v, size_t n, int threshold);

    /* Three box blurs along x, in place. work: room for 2*(width + 2*reach + 2). */
    void (*box_rows)(void *v, size_t width, size_t height, const sd_box *box, void *work);
    /* One box blur along y. sums: width numbers. */
    void (*box_columns)(const void *in, size_t width, size_t height, const sd_box *box, void *out, void *sums);
    /* Gaussian with mirrored borders, in place. work: width*height + width + SD_GAUSS_TAPS floats. */
    void (*gauss)(void *v, size_t width, size_t height, const float *taps, float *work);

    /* out = (v - shift) * scale. */
    void (*normalize)(const void *v, size_t n, float shift, float scale, float *out);
} sd_pixel_kernels;

/* The best set for this CPU and an sd_pixel_type. */
const sd_pixel_kernels *sd_pixel_kernels_get(int pixel_type);

extern const sd_pixel_kernels sd_pixels_u8_generic, sd_pixels_f32_generic;
#if defined(__x86_64__) && defined(__GNUC__)
#define SD_HAVE_X86_PIXEL_KERNELS 1
extern const sd_pixel_kernels sd_pixels_u8_avx2, sd_pixels_f32_avx2;
extern const sd_pixel_kernels sd_pixels_u8_avx512, sd_pixels_f32_avx512;
#endif

/* A kernel file is compiled with SD_PIXEL_SET naming its instruction set. */
#ifndef SD_PIXEL_SET
#define SD_PIXEL_SET generic
#endif
#define SD_PIXEL_JOIN2(a, b) a##b
#define SD_PIXEL_JOIN(a, b)  SD_PIXEL_JOIN2(a, b)
#define SD_PIXEL_TEXT2(a)    #a
#define SD_PIXEL_TEXT(a)     SD_PIXEL_TEXT2(a)

#endif
