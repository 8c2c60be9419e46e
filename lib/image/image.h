/* image - pixel operations on planes, the multi-crop augmentation, and the evaluation transform.
 *
 * Inside, a picture is `channels` packed planes of one pixel type one after the other, so that each operation is a loop
 * over contiguous values. Interleaved channels occur at the border only: the host's images, and pictures handed out
 * before normalisation. */
#ifndef SD_IMAGE_INTERNAL_H
#define SD_IMAGE_INTERNAL_H

#include "base/base.h"
#include "image/kernels.h"
#include <simdino/image.h>

/* ---- views (view.c) ------------------------------------------------------------------------ */

/* SD_ERR_ARGUMENT unless `image` has pixels, a size, 1 .. SD_MAX_CHANNELS channels, a known type and rows that do not
 * overlap. */
sd_status sd_image_check(const sd_image *image);
size_t sd_pixel_size(int32_t pixel_type);
size_t sd_image_stride(const sd_image *image); /* bytes; of a checked image */

/* Memory that only grows. */
typedef struct sd_scratch {
    void *data;
    size_t bytes;
} sd_scratch;

/* Room for count*size bytes and SD_PIXEL_SLACK times size behind; the content is lost when it grows. */
sd_status sd_scratch_reserve(sd_context *context, sd_scratch *scratch, size_t count, size_t size);
void sd_scratch_release(sd_context *context, sd_scratch *scratch);

/* ---- resize (resample.c, resize.c) --------------------------------------------------------- */

/* Weights of one axis with their memory. `input_first` and `input_count`: the input samples that any output needs. */
typedef struct sd_axis {
    sd_resample plan;
    size_t input_first, input_count;
    bool copies; /* as many outputs as inputs: the pass is left out */
    sd_scratch first, count, weight_int, weight_float, row;
} sd_axis;

/* The axis that maps n inputs to m outputs, of which outputs begin .. begin+outputs-1 are wanted. */
sd_status sd_axis_plan(sd_context *context, sd_axis *axis, sd_filter filter, int32_t pixel_type, size_t n, size_t m,
                       size_t begin, size_t outputs);
/* Takes the memory for up to n inputs and m outputs beforehand. */
sd_status sd_axis_reserve(sd_context *context, sd_axis *axis, sd_filter filter, int32_t pixel_type, size_t n, size_t m);
void sd_axis_release(sd_context *context, sd_axis *axis);

/* Working space of one resize. Zeroed to begin with. */
typedef struct sd_resizer {
    sd_axis x, y;
    sd_scratch tile, middle;
} sd_resizer;

typedef struct sd_resize_job {
    size_t top, left, height, width; /* box in the source: nothing outside of it contributes */
    size_t out_width, out_height;    /* that the box is resized to */
    size_t x, y, columns, rows;      /* the part of that output that is wanted */
    bool flip;                       /* mirrors the wanted part */
    sd_filter filter;
} sd_resize_job;

/* planes: channels x rows x columns values and SD_PIXEL_SLACK more. The image is checked and holds the box. */
sd_status sd_resize_planes(sd_context *context, sd_resizer *resizer, const sd_pixel_kernels *kernels,
                           const sd_image *image, const sd_resize_job *job, void *planes);
/* Takes the memory for boxes of up to width x height of an image, resized to out_width x out_height. */
sd_status sd_resizer_reserve(sd_context *context, sd_resizer *resizer, sd_filter filter, int32_t pixel_type,
                             size_t channels, size_t width, size_t height, size_t out_width, size_t out_height);
void sd_resizer_release(sd_context *context, sd_resizer *resizer);
size_t sd_resizer_bytes(const sd_resizer *resizer);

/* Planes to interleaved channels: n pixels. */
void sd_interleave(int32_t pixel_type, const void *planes, size_t n, size_t channels, void *out);

/* ---- operations on planes (color.c, blur.c) ------------------------------------------------ */

typedef struct sd_planes {
    const sd_pixel_kernels *kernels;
    void *data;
    size_t width, height, channels;
    int32_t pixel_type;
} sd_planes;

void *sd_plane(const sd_planes *planes, size_t channel);
void sd_adjust_brightness(const sd_planes *planes, double factor);
/* Towards the mean grey of the picture; without three channels, towards the mean of all values. */
void sd_adjust_contrast(const sd_planes *planes, double factor);
/* The next three do nothing without three channels. */
void sd_adjust_saturation(const sd_planes *planes, double factor);
void sd_adjust_hue(const sd_planes *planes, double factor);
void sd_make_gray(const sd_planes *planes);
void sd_make_solarized(const sd_planes *planes, int32_t threshold);

/* The box whose triple application stands for a Gaussian of `radius` in Pillow. */
sd_box sd_box_of_radius(double radius);
void sd_gauss_taps(double sigma, float taps[SD_GAUSS_TAPS]);
/* Values (of 4 bytes) that a blur needs as working space. */
sd_status sd_blur_room(size_t width, size_t height, double radius, size_t *values);
void sd_blur(const sd_planes *planes, sd_blur_kind kind, double radius, void *work);

/* ---- augmentation (choose.c, augment.c) ---------------------------------------------------- */

sd_status sd_augment_config_check(const sd_augment_config *config);
/* sd_crop_choose with a config that is complete and checked, and arguments in range. */
void sd_choose_checked(const sd_augment_config *config, size_t width, size_t height, uint64_t seed, uint64_t sample,
                       int32_t view, sd_crop_choice *choice);

/* sd_crop_apply and sd_augment for a tensor of `channels` channels: those of the image, or 3 from a grey image, whose
 * plane is then repeated. (That equals augmenting the grey image repeated: on equal channels hue and saturation change
 * nothing, and the grey value is the value.) */
sd_status sd_augment_channels(sd_augmenter *augmenter, const sd_image *image, size_t channels, uint64_t seed,
                              uint64_t sample, float *const *globals, float *const *locals);
/* Takes the memory for images of up to this size, so that augmenting them allocates nothing. */
sd_status sd_augmenter_reserve(sd_augmenter *augmenter, int32_t pixel_type, size_t channels, size_t width,
                               size_t height);
/* Bytes that the augmenter holds. */
size_t sd_augmenter_memory(const sd_augmenter *augmenter);

/* ---- masks (masks.c) ----------------------------------------------------------------------- */

/* Edge `i` of the `parts` equal parts of the config's ratios, in the float arithmetic of torch.linspace. */
float sd_mask_edge(const sd_mask_config *config, size_t parts, size_t i);
/* Masks up to `wanted` of rows x columns patches in blocks; returns how many were masked. The config is checked. */
size_t sd_mask_blocks(const sd_mask_config *config, sd_random *random, size_t rows, size_t columns, size_t wanted,
                      uint8_t *mask);

#endif
