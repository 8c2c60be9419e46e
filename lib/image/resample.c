/* The weights of an antialiased resize along one axis, as Pillow computes them.
 *
 * Output x of m sees the input around centre c = (x + 1/2) n/m through the filter k stretched by f = max(n/m, 1):
 * weights k((i + 1/2 - c)/f) over the support, divided by their sum. In 8 bits they are rounded to multiples of 2^-22.
 */
#include "image/image.h"

#include <math.h>

static double bilinear(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

/* Keys' cubic convolution with a = -1/2. */
static double bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0)
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0)
        return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

static double sinc(double x) {
    const double pi = 3.14159265358979323846;
    return x == 0.0 ? 1.0 : sin(x * pi) / (x * pi);
}

static double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0; }

typedef double (*sd_filter_function)(double x);

/* Source of each output: a running sum, since Pillow adds the scale step by step and its rounding decides at pixel
 * borders. */
static void plan_nearest(sd_axis *axis, size_t n, size_t m, size_t begin, size_t outputs) {
    uint32_t *first = axis->first.data, *count = axis->count.data;
    double scale = (double)n / (double)m, position = scale * 0.5;
    for (size_t i = 0; i < begin + outputs; i++) {
        if (i >= begin) {
            size_t source = (size_t)position;
            first[i - begin] = (uint32_t)(source < n ? source : n - 1);
            count[i - begin] = 1;
        }
        position += scale;
    }
}

static void plan_weights(sd_axis *axis, sd_filter_function filter, double support, size_t n, size_t m, size_t begin,
                         size_t outputs, size_t taps, bool integers) {
    uint32_t *first = axis->first.data, *count = axis->count.data;
    double *row = axis->row.data;
    double scale = (double)n / (double)m, stretch = scale > 1.0 ? scale : 1.0;
    for (size_t i = 0; i < outputs; i++) {
        double center = ((double)(begin + i) + 0.5) * scale;
        double low = center - support + 0.5, high = center + support + 0.5;
        size_t from = low > 0.0 ? (size_t)low : 0;
        size_t to = high < (double)n ? (size_t)high : n;
        double sum = 0.0;
        for (size_t t = 0; t < to - from; t++) {
            row[t] = filter(((double)(from + t) - center + 0.5) / stretch);
            sum += row[t];
        }
        for (size_t t = 0; t < to - from; t++) {
            double weight = sum != 0.0 ? row[t] / sum : row[t];
            if (integers)
                ((int32_t *)axis->weight_int.data)[i * taps + t] =
                    (int32_t)(weight * 4194304.0 + (weight < 0.0 ? -0.5 : 0.5));
            else
                ((float *)axis->weight_float.data)[i * taps + t] = (float)weight;
        }
        first[i] = (uint32_t)from;
        count[i] = (uint32_t)(to - from);
    }
}

static const struct {
    sd_filter_function function;
    double reach;
} filters[] = {{NULL, 0.0}, {bilinear, 1.0}, {bicubic, 2.0}, {lanczos, 3.0}};

static double support_of(sd_filter filter, size_t n, size_t m) {
    double scale = (double)n / (double)m;
    return filters[filter].reach * (scale > 1.0 ? scale : 1.0);
}

static size_t taps_of(sd_filter filter, size_t n, size_t m) { return (size_t)ceil(support_of(filter, n, m)) * 2 + 1; }

static sd_status reserve(sd_context *context, sd_axis *axis, int32_t pixel_type, size_t outputs, size_t taps) {
    sd_status status = SD_OK;
    size_t weights;
    SD_EXPECT(sd_size_mul(taps, outputs, &weights), SD_ERR_MEMORY,
              "%zu weights for each of %zu outputs do not fit into the address space", taps, outputs);
    SD_TRY(sd_scratch_reserve(context, &axis->first, outputs, sizeof(uint32_t)));
    SD_TRY(sd_scratch_reserve(context, &axis->count, outputs, sizeof(uint32_t)));
    SD_TRY(sd_scratch_reserve(context, &axis->row, taps, sizeof(double)));
    SD_TRY(sd_scratch_reserve(context, pixel_type == SD_PIXEL_U8 ? &axis->weight_int : &axis->weight_float, weights,
                              sizeof(float)));
cleanup:
    return status;
}

sd_status sd_axis_reserve(sd_context *context, sd_axis *axis, sd_filter filter, int32_t pixel_type, size_t n,
                          size_t m) {
    return reserve(context, axis, pixel_type, m, taps_of(filter, n, m));
}

sd_status sd_axis_plan(sd_context *context, sd_axis *axis, sd_filter filter, int32_t pixel_type, size_t n, size_t m,
                       size_t begin, size_t outputs) {
    sd_status status = SD_OK;
    const size_t taps = taps_of(filter, n, m);
    axis->copies = n == m;
    axis->plan.outputs = outputs;
    axis->input_first = begin;
    axis->input_count = outputs;
    if (axis->copies)
        return SD_OK;
    SD_TRY(reserve(context, axis, pixel_type, outputs, taps));
    axis->plan.taps = taps;
    axis->plan.first = axis->first.data;
    axis->plan.count = axis->count.data;
    axis->plan.weight_int = axis->weight_int.data;
    axis->plan.weight_float = axis->weight_float.data;
    if (filters[filter].function == NULL)
        plan_nearest(axis, n, m, begin, outputs);
    else
        plan_weights(axis, filters[filter].function, support_of(filter, n, m), n, m, begin, outputs, taps,
                     pixel_type == SD_PIXEL_U8);
    const uint32_t *first = axis->plan.first, *count = axis->plan.count;
    axis->input_first = first[0];
    size_t end = 0;
    for (size_t i = 0; i < outputs; i++)
        end = sd_size_max(end, (size_t)first[i] + count[i]);
    axis->input_count = end - axis->input_first;
cleanup:
    return status;
}

void sd_axis_release(sd_context *context, sd_axis *axis) {
    sd_scratch_release(context, &axis->first);
    sd_scratch_release(context, &axis->count);
    sd_scratch_release(context, &axis->weight_int);
    sd_scratch_release(context, &axis->weight_float);
    sd_scratch_release(context, &axis->row);
}
