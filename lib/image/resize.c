/* Crop and resize of interleaved images into planes: a pass along x, whose result has the pixel type's precision, then
 * one along y. A pass that would keep the size is a copy. */
#include "image/image.h"

#include <string.h>

/* Nearest neighbour: no weights, so the two passes are one. */
static void pick_planes(const sd_resizer *resizer, const sd_pixel_kernels *kernels, const sd_image *image,
                        const sd_resize_job *job, void *planes) {
    const sd_axis *x_axis = &resizer->x, *y_axis = &resizer->y;
    size_t channels = (size_t)image->channels, item = kernels->item, stride = sd_image_stride(image);
    for (size_t c = 0; c < channels; c++)
        for (size_t y = 0; y < job->rows; y++) {
            size_t row = job->top + (y_axis->copies ? job->y + y : y_axis->plan.first[y]);
            const char *from = (const char *)image->pixels + row * stride;
            char *to = (char *)planes + (c * job->rows + y) * job->columns * item;
            for (size_t i = 0; i < job->columns; i++) {
                size_t x = job->flip ? job->columns - 1 - i : i;
                size_t column = job->left + (x_axis->copies ? job->x + x : x_axis->plan.first[x]);
                kernels->split(from + (column * channels + c) * item, 1, channels, 0, to + i * item);
            }
        }
}

/* Memory of the two passes: `rows` x `columns` values of each channel between them, rows padded to whole tiles; a tile
 * of source rows. */
static sd_status reserve_passes(sd_context *context, sd_resizer *resizer, size_t item, size_t channels, size_t rows,
                                size_t columns, size_t source_columns) {
    sd_status status = SD_OK;
    size_t values, tile;
    SD_EXPECT(sd_size_mul(sd_size_ceil(columns, SD_TILE) * SD_TILE, rows, &values) &&
                  sd_size_mul(values, channels, &values),
              SD_ERR_MEMORY, "a picture of %zu x %zu with %zu channels does not fit into the address space", columns,
              rows, channels);
    SD_EXPECT(sd_size_mul(source_columns, channels * SD_TILE, &tile) && sd_size_add(tile, SD_TILE * SD_TILE, &tile),
              SD_ERR_MEMORY, "a row of %zu pixels does not fit into the address space", source_columns);
    SD_TRY(sd_scratch_reserve(context, &resizer->middle, values, item));
    SD_TRY(sd_scratch_reserve(context, &resizer->tile, tile, item));
cleanup:
    return status;
}

sd_status sd_resizer_reserve(sd_context *context, sd_resizer *resizer, sd_filter filter, int32_t pixel_type,
                             size_t channels, size_t width, size_t height, size_t out_width, size_t out_height) {
    sd_status status = SD_OK;
    SD_TRY(sd_axis_reserve(context, &resizer->x, filter, pixel_type, width, out_width));
    SD_TRY(sd_axis_reserve(context, &resizer->y, filter, pixel_type, height, out_height));
    SD_TRY(reserve_passes(context, resizer, sd_pixel_size(pixel_type), channels, height, out_width, width));
cleanup:
    return status;
}

sd_status sd_resize_planes(sd_context *context, sd_resizer *resizer, const sd_pixel_kernels *kernels,
                           const sd_image *image, const sd_resize_job *job, void *planes) {
    sd_status status = SD_OK;
    sd_axis *x = &resizer->x, *y = &resizer->y;
    size_t channels = (size_t)image->channels, item = kernels->item, row_stride = sd_image_stride(image);
    SD_TRY(sd_axis_plan(context, x, job->filter, image->pixel_type, job->width, job->out_width, job->x, job->columns));
    SD_TRY(sd_axis_plan(context, y, job->filter, image->pixel_type, job->height, job->out_height, job->y, job->rows));
    if (job->filter == SD_FILTER_NEAREST) {
        pick_planes(resizer, kernels, image, job, planes);
        return SD_OK;
    }

    /* Along x: the rows that the pass along y needs, into planes whose rows are padded to whole tiles. */
    size_t rows = y->input_count, stride = sd_size_ceil(job->columns, SD_TILE) * SD_TILE, plane = stride * rows;
    SD_TRY(reserve_passes(context, resizer, item, channels, rows, job->columns, x->input_first + x->input_count));
    const char *source =
        (const char *)image->pixels + (job->top + y->input_first) * row_stride + job->left * channels * item;
    char *middle = resizer->middle.data;
    if (x->copies) {
        for (size_t row = 0; row < rows; row++)
            for (size_t c = 0; c < channels; c++)
                kernels->split(source + row * row_stride + (job->x * channels + c) * item, job->columns, channels,
                               job->flip, middle + (c * plane + row * stride) * item);
    } else {
        for (size_t row = 0; row < rows; row += SD_TILE)
            kernels->resize_rows(source + row * row_stride, row_stride, sd_size_min(rows - row, SD_TILE),
                                 x->input_first + x->input_count, channels, &x->plan, job->flip,
                                 middle + row * stride * item, stride, plane, resizer->tile.data);
    }

    /* Along y, plane after plane: each may spill over its end into the next, which is written later. */
    for (size_t c = 0; c < channels; c++) {
        const char *in = middle + c * plane * item;
        char *out = (char *)planes + c * job->rows * job->columns * item;
        if (y->copies)
            for (size_t row = 0; row < rows; row++)
                memcpy(out + row * job->columns * item, in + row * stride * item, job->columns * item);
        else
            kernels->resize_columns(in, stride, y->input_first, &y->plan, job->columns, out);
    }
cleanup:
    return status;
}

void sd_resizer_release(sd_context *context, sd_resizer *resizer) {
    sd_axis_release(context, &resizer->x);
    sd_axis_release(context, &resizer->y);
    sd_scratch_release(context, &resizer->tile);
    sd_scratch_release(context, &resizer->middle);
}

size_t sd_resizer_bytes(const sd_resizer *resizer) {
    size_t bytes = resizer->tile.bytes + resizer->middle.bytes;
    const sd_axis *axes[] = {&resizer->x, &resizer->y};
    for (size_t i = 0; i < 2; i++)
        bytes += axes[i]->first.bytes + axes[i]->count.bytes + axes[i]->weight_int.bytes + axes[i]->weight_float.bytes +
                 axes[i]->row.bytes;
    return bytes;
}

void sd_interleave(int32_t pixel_type, const void *planes, size_t n, size_t channels, void *out) {
    if (pixel_type == SD_PIXEL_U8) {
        for (size_t c = 0; c < channels; c++)
            for (size_t i = 0; i < n; i++)
                ((uint8_t *)out)[i * channels + c] = ((const uint8_t *)planes)[c * n + i];
    } else {
        for (size_t c = 0; c < channels; c++)
            for (size_t i = 0; i < n; i++)
                ((float *)out)[i * channels + c] = ((const float *)planes)[c * n + i];
    }
}

SD_API sd_status sd_image_resize(const sd_image *image, size_t top, size_t left, size_t height, size_t width,
                                 sd_filter filter, size_t out_width, size_t out_height, void *out) {
    sd_status status = SD_OK;
    sd_resizer resizer = {0};
    sd_scratch planes = {0};
    SD_TRY(sd_image_check(image));
    SD_EXPECT(out != NULL, SD_ERR_ARGUMENT, "out is NULL");
    SD_EXPECT(height > 0 && width > 0 && top <= image->height && height <= image->height - top &&
                  left <= image->width && width <= image->width - left,
              SD_ERR_ARGUMENT, "the box (top %zu, left %zu, height %zu, width %zu) is empty or not inside of %zu x %zu",
              top, left, height, width, image->width, image->height);
    SD_EXPECT((int)filter >= SD_FILTER_NEAREST && (int)filter <= SD_FILTER_LANCZOS, SD_ERR_ARGUMENT,
              "filter is %d: it must be one of sd_filter", (int)filter);
    SD_EXPECT(out_width > 0 && out_height > 0 && out_width <= INT32_MAX && out_height <= INT32_MAX, SD_ERR_ARGUMENT,
              "the output is %zu x %zu: each side must be in 1 .. %d", out_width, out_height, INT32_MAX);
    size_t channels = (size_t)image->channels, pixels, values;
    SD_EXPECT(sd_size_mul(out_width, out_height, &pixels) && sd_size_mul(pixels, channels, &values), SD_ERR_MEMORY,
              "an output of %zu x %zu does not fit into the address space", out_width, out_height);
    SD_TRY(sd_scratch_reserve(NULL, &planes, values, sd_pixel_size(image->pixel_type)));
    sd_resize_job job = {.top = top,
                         .left = left,
                         .height = height,
                         .width = width,
                         .out_width = out_width,
                         .out_height = out_height,
                         .columns = out_width,
                         .rows = out_height,
                         .filter = filter};
    SD_TRY(sd_resize_planes(NULL, &resizer, sd_pixel_kernels_get(image->pixel_type), image, &job, planes.data));
    sd_interleave(image->pixel_type, planes.data, pixels, channels, out);
cleanup:
    sd_scratch_release(NULL, &planes);
    sd_resizer_release(NULL, &resizer);
    return status;
}
