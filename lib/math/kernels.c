/* The vector kernels. This file is compiled once for each instruction set with SD_KERNELS naming the table that it
 * defines; the loops are plain C that the compiler vectorises (`omp simd` allows it to reorder the sums). */
#include "math/kernels.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef SD_KERNELS
#define SD_KERNELS sd_kernels_generic
#define SD_KERNELS_NAME "generic"
#endif

#define SD_SIMD _Pragma("omp simd")

static inline float float_from_bits(int32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline int32_t bits_of_float(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* e^x = 2^k e^r with k = round(x / ln 2), |r| <= ln 2 / 2, and e^r = 1 + r + r^2 P(r), P the minimax polynomial of
 * degree 4 (relative error 3e-9 before rounding). Below -87 the result is that of -87 (1.6e-38), above 88 that of 88. */
static inline float exp_between(float x) {
    const float round_shift = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    float shifted = x * 1.44269504f + round_shift;
    float k = shifted - round_shift;
    float r = x - k * 0.693145752f;  /* the upper bits of ln 2: exact product */
    r = r - k * 1.42860677e-6f;      /* the rest */
    float p = 1.381422072e-3f;
    p = p * r + 8.368898781e-3f;
    p = p * r + 4.166840575e-2f;
    p = p * r + 1.666651913e-1f;
    p = p * r + 4.999999335e-1f;
    p = p * (r * r) + r;
    p = p + 1.0f;
    return float_from_bits((int32_t)((uint32_t)bits_of_float(p) + ((uint32_t)bits_of_float(shifted) << 23)));
}

static inline float exp_kernel(float x) {
    x = x < -87.0f ? -87.0f : x;
    return exp_between(x > 88.0f ? 88.0f : x);
}

/* The same for x <= 0. The bound is -87, read where the compiler cannot see it: it would compute the exponential of the bound
 * beforehand and choose among results, which takes more instructions. */
static const volatile float lowest_exponent = -87.0f;
static inline float exp_nonpositive(float x, float lowest) { return exp_between(x < lowest ? lowest : x); }

/* Normal distribution. With t = |x| and w = 1/(1 + 0.265 t): upper tail Phi(-t) = e^(-t^2/2) Q(w), Q a minimax
 * polynomial of degree 9 (relative error 1.2e-8 before rounding for t <= 14), so that both tails keep their relative
 * accuracy. `density` receives e^(-x^2/2). */
static inline float normal_distribution(float x, float lowest, float *density) {
    float t = fabsf(x);
    float e = exp_nonpositive(-0.5f * x * x, lowest);
    float w = 1.0f / (1.0f + 0.265f * t);
    float q = 3.082082877e-2f;
    q = q * w - 1.442284892e-1f;
    q = q * w + 2.178146839e-1f;
    q = q * w - 1.163623090e-1f;
    q = q * w + 1.379529092e-1f;
    q = q * w + 6.031318365e-2f;
    q = q * w + 1.027009648e-1f;
    q = q * w + 1.052466664e-1f;
    q = q * w + 1.057415637e-1f;
    float tail = q * w * e;
    *density = e;
    return x < 0.0f ? tail : 1.0f - tail;
}

#define SD_INVERSE_SQRT_2PI 0.398942280f
#define SD_LAYER_NORM_EPSILON 1e-6f

static void layer_norm(const float *restrict x, size_t rows, size_t n, const float *restrict weight,
                       const float *restrict bias, float *restrict y, float *restrict mean, float *restrict rstd) {
    for (size_t i = 0; i < rows; i++, x += n, y += n) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < n; j++)
            sum += x[j];
        float m = sum / (float)n;
        float square = 0.0f;
#pragma omp simd reduction(+ : square)
        for (size_t j = 0; j < n; j++)
            square += (x[j] - m) * (x[j] - m);
        float r = 1.0f / sqrtf(square / (float)n + SD_LAYER_NORM_EPSILON);
        SD_SIMD
        for (size_t j = 0; j < n; j++)
            y[j] = (x[j] - m) * r * weight[j] + bias[j];
        mean[i] = m;
        rstd[i] = r;
    }
}

/* With x^ = (x - mean) rstd and a = dy weight: dx = rstd (a - mean(a) - x^ mean(a x^)). */
static void layer_norm_backward(const float *restrict dy, const float *x, const float *restrict mean,
                                const float *restrict rstd, size_t rows, size_t n, const float *restrict weight,
                                const float *restrict bias, float *restrict dx, float *restrict dweight,
                                float *restrict dbias, float *y) {
    for (size_t i = 0; i < rows; i++, x += n, dy += n, dx += n) {
        const float m = mean[i], r = rstd[i];
        float sum = 0.0f, dot = 0.0f;
#pragma omp simd reduction(+ : sum, dot)
        for (size_t j = 0; j < n; j++) {
            float normal = (x[j] - m) * r;
            float a = dy[j] * weight[j];
            sum += a;
            dot += a * normal;
            dweight[j] += dy[j] * normal;
            dbias[j] += dy[j];
        }
        sum /= (float)n;
        dot /= (float)n;
        SD_SIMD
        for (size_t j = 0; j < n; j++)
            dx[j] += r * (dy[j] * weight[j] - sum - (x[j] - m) * r * dot);
        if (y != NULL) {
            SD_SIMD
            for (size_t j = 0; j < n; j++)
                y[j] = (x[j] - m) * r * weight[j] + bias[j];
            y += n;
        }
    }
}

static void bias_swiglu(float *restrict h, size_t rows, size_t n, const float *restrict bias, float *restrict g) {
    for (size_t i = 0; i < rows; i++, h += 2 * n, g += n) {
        SD_SIMD
        for (size_t j = 0; j < n; j++) {
            float a = h[j] + bias[j], b = h[n + j] + bias[n + j];
            h[j] = a;
            h[n + j] = b;
            g[j] = a / (1.0f + exp_kernel(-a)) * b;
        }
    }
}

/* With s = 1/(1 + e^-a): dL/da = d b s (1 + a (1 - s)), dL/db = d a s. */
static void swiglu_backward(const float *h, const float *d, size_t ldd, size_t rows, size_t n, float *dh,
                            float *g, float *restrict dbias) {
    for (size_t i = 0; i < rows; i++, h += 2 * n, d += ldd, dh += 2 * n) {
        if (g == NULL) {
            SD_SIMD
            for (size_t j = 0; j < n; j++) {
                float a = h[j], b = h[n + j], up = d[j];
                float s = 1.0f / (1.0f + exp_kernel(-a));
                float da = up * b * s * (1.0f + a * (1.0f - s)), db = up * a * s;
                dh[j] = da;
                dh[n + j] = db;
                dbias[j] += da;
                dbias[n + j] += db;
            }
            continue;
        }
        SD_SIMD
        for (size_t j = 0; j < n; j++) {
            float a = h[j], b = h[n + j], up = d[j];
            float e = 1.0f + exp_kernel(-a), s = 1.0f / e;
            float da = up * b * s * (1.0f + a * (1.0f - s)), db = up * a * s;
            g[j] = a / e * b;
            dh[j] = da;
            dh[n + j] = db;
            dbias[j] += da;
            dbias[n + j] += db;
        }
        g += n;
    }
}

static void add_bias(float *restrict y, size_t rows, size_t n, size_t ld, const float *restrict bias) {
    for (size_t i = 0; i < rows; i++, y += ld) {
        SD_SIMD
        for (size_t j = 0; j < n; j++)
            y[j] += bias[j];
    }
}

/* h = gelu(h + bias) */
static void gelu_in_place(float *restrict h, size_t rows, size_t n, size_t ld, const float *restrict bias) {
    const float lowest = lowest_exponent;
    for (size_t i = 0; i < rows; i++, h += ld) {
        SD_SIMD
        for (size_t j = 0; j < n; j++) {
            float density, x = h[j] + bias[j];
            h[j] = x * normal_distribution(x, lowest, &density);
        }
    }
}

static void bias_gelu(float *h, size_t rows, size_t n, size_t ld, const float *restrict bias, float *g, size_t ldg) {
    if (g == NULL) {
        add_bias(h, rows, n, ld, bias);
        return;
    }
    if (g == h) {
        gelu_in_place(h, rows, n, ld, bias);
        return;
    }
    const float lowest = lowest_exponent;
    for (size_t i = 0; i < rows; i++, h += ld, g += ldg) {
        SD_SIMD
        for (size_t j = 0; j < n; j++) {
            float density, x = h[j] + bias[j];
            h[j] = x;
            g[j] = x * normal_distribution(x, lowest, &density);
        }
    }
}

/* gelu'(x) = Phi(x) + x phi(x). */
static void gelu_backward(const float *h, const float *d, size_t rows, size_t n, size_t ld, float *dh,
                          float *g, float *restrict dbias) {
    const float lowest = lowest_exponent;
    for (size_t i = 0; i < rows; i++, h += ld, d += ld, dh += ld) {
        if (g == NULL) {
            SD_SIMD
            for (size_t j = 0; j < n; j++) {
                float density, phi = normal_distribution(h[j], lowest, &density);
                float slope = phi + h[j] * (SD_INVERSE_SQRT_2PI * density), down = d[j] * slope;
                dh[j] = down;
                dbias[j] += down;
            }
            continue;
        }
        SD_SIMD
        for (size_t j = 0; j < n; j++) {
            float density, phi = normal_distribution(h[j], lowest, &density);
            float slope = phi + h[j] * (SD_INVERSE_SQRT_2PI * density), down = d[j] * slope;
            g[j] = h[j] * phi;
            dh[j] = down;
            dbias[j] += down;
        }
        g += ld;
    }
}

static void residual(float *out, const float *x, const float *y, size_t rows, size_t n, const float *bias,
                     const float *gamma, float scale) {
    for (size_t i = 0; i < rows; i++, out += n, x += n, y += n) {
        if (gamma == NULL) {
            SD_SIMD
            for (size_t j = 0; j < n; j++)
                out[j] = x[j] + scale * (y[j] + bias[j]);
        } else {
            SD_SIMD
            for (size_t j = 0; j < n; j++)
                out[j] = x[j] + scale * (gamma[j] * (y[j] + bias[j]));
        }
    }
}

static void scaled_copy(float *restrict out, const float *restrict x, size_t count, float scale) {
    SD_SIMD
    for (size_t j = 0; j < count; j++)
        out[j] = scale * x[j];
}

static void column_sum(const float *restrict y, size_t rows, size_t n, size_t ld, float *restrict sum) {
    for (size_t i = 0; i < rows; i++, y += ld) {
        SD_SIMD
        for (size_t j = 0; j < n; j++)
            sum[j] += y[j];
    }
}

/* A row of attention is short, and its sum a chain of additions, each of which waits for the one before. Rows are taken some
 * at a time, step by step, so that the CPU has other rows' chains meanwhile. */
#define ROWS_AT_ONCE 8

static inline void scale_row(float *restrict x, size_t n, float factor) {
    SD_SIMD
    for (size_t j = 0; j < n; j++)
        x[j] *= factor;
}

static inline float largest_of(const float *restrict s, size_t n) {
    float largest = -FLT_MAX;
#pragma omp simd reduction(max : largest)
    for (size_t j = 0; j < n; j++)
        largest = s[j] > largest ? s[j] : largest;
    return largest;
}

/* s becomes e^(scale (s - largest)), whose sum is returned. */
static inline float exponentials(float *restrict s, size_t n, float scale, float largest, float lowest) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (size_t j = 0; j < n; j++) {
        s[j] = exp_nonpositive(scale * (s[j] - largest), lowest);
        sum += s[j];
    }
    return sum;
}

static void softmax(float *restrict s, size_t rows, size_t n, size_t ld, float scale) {
    const size_t padded = sd_padded_row(n);
    const float lowest = lowest_exponent;
    for (; rows > 0; s += ROWS_AT_ONCE * ld) {
        const size_t here = rows < ROWS_AT_ONCE ? rows : ROWS_AT_ONCE;
        float largest[ROWS_AT_ONCE], inverse[ROWS_AT_ONCE];
        /* the padding is filled with very small logits, whose exponentials (1e-38) vanish in the sum, whatever the scale */
        for (size_t i = 0; i < here; i++)
            for (size_t j = n; j < padded; j++)
                s[i * ld + j] = -1e30f;
        for (size_t i = 0; i < here; i++)
            largest[i] = largest_of(s + i * ld, padded);
        for (size_t i = 0; i < here; i++)
            inverse[i] = 1.0f / exponentials(s + i * ld, padded, scale, largest[i], lowest);
        for (size_t i = 0; i < here; i++)
            scale_row(s + i * ld, padded, inverse[i]);
        rows -= here;
    }
}

static inline float dot_of(const float *restrict x, const float *restrict y, size_t n) {
    float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (size_t j = 0; j < n; j++)
        dot += x[j] * y[j];
    return dot;
}

static void softmax_backward(const float *restrict p, float *restrict dp, size_t rows, size_t n, size_t ld,
                             float scale) {
    for (; rows > 0; p += ROWS_AT_ONCE * ld, dp += ROWS_AT_ONCE * ld) {
        const size_t here = rows < ROWS_AT_ONCE ? rows : ROWS_AT_ONCE;
        float dot[ROWS_AT_ONCE];
        for (size_t i = 0; i < here; i++)
            dot[i] = dot_of(p + i * ld, dp + i * ld, n);
        for (size_t i = 0; i < here; i++) {
            const float *restrict from = p + i * ld;
            const float d = dot[i];
            float *restrict to = dp + i * ld;
            SD_SIMD
            for (size_t j = 0; j < n; j++)
                to[j] = scale * from[j] * (to[j] - d);
        }
        rows -= here;
    }
}

static void row_squares(const float *restrict x, size_t rows, size_t n, double *restrict squares) {
    for (size_t i = 0; i < rows; i++, x += n) {
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < n; j++)
            sum += (double)x[j] * (double)x[j];
        squares[i] = sum;
    }
}

static float scale_logits(float *restrict x, const float *restrict factor, size_t n) {
    float nothing = 0.0f;
#pragma omp simd reduction(+ : nothing)
    for (size_t j = 0; j < n; j++) {
        x[j] *= factor[j];
        nothing += x[j] - x[j];
    }
    return nothing;
}

static void softmax_piece(float *restrict x, const float *restrict factor, const float *restrict center,
                          float inverse_temperature, size_t n, float *largest, float *sum) {
    float high = -FLT_MAX, total = 0.0f;
#pragma omp simd reduction(max : high)
    for (size_t j = 0; j < n; j++) {
        x[j] = factor[j] * x[j] - inverse_temperature * center[j];
        high = x[j] > high ? x[j] : high;
    }
#pragma omp simd reduction(+ : total)
    for (size_t j = 0; j < n; j++) {
        x[j] = exp_kernel(x[j] - high);
        total += x[j];
    }
    *largest = high;
    *sum = total;
}

static void entropy_piece(const float *restrict x, const float *restrict factor, const float *restrict q0,
                          const float *restrict q1, size_t n, float *largest, float *sum, float *dot) {
    float high = -FLT_MAX, total = 0.0f, product = 0.0f;
    if (q1 == NULL) {
#pragma omp simd reduction(+ : product) reduction(max : high)
        for (size_t j = 0; j < n; j++) {
            float logit = factor[j] * x[j];
            high = logit > high ? logit : high;
            product += q0[j] * logit;
        }
    } else {
#pragma omp simd reduction(+ : product) reduction(max : high)
        for (size_t j = 0; j < n; j++) {
            float logit = factor[j] * x[j];
            high = logit > high ? logit : high;
            product += (q0[j] + q1[j]) * logit;
        }
    }
#pragma omp simd reduction(+ : total)
    for (size_t j = 0; j < n; j++)
        total += exp_kernel(factor[j] * x[j] - high);
    *largest = high;
    *sum = total;
    *dot = product;
}

static void entropy_slope(float *restrict x, const float *restrict factor, const float *restrict q0,
                          const float *restrict q1, size_t n, float largest, float share, float weight,
                          float *restrict along) {
    if (q1 == NULL) {
        SD_SIMD
        for (size_t j = 0; j < n; j++) {
            float slope = share * exp_kernel(factor[j] * x[j] - largest) - weight * q0[j];
            along[j] += slope * x[j];
            x[j] = slope * factor[j];
        }
    } else {
        SD_SIMD
        for (size_t j = 0; j < n; j++) {
            float slope = share * exp_kernel(factor[j] * x[j] - largest) - weight * (q0[j] + q1[j]);
            along[j] += slope * x[j];
            x[j] = slope * factor[j];
        }
    }
}

static void exp_array(const float *restrict x, float *restrict y, size_t count) {
    SD_SIMD
    for (size_t i = 0; i < count; i++)
        y[i] = exp_kernel(x[i]);
}

const sd_kernels SD_KERNELS = {
    .name = SD_KERNELS_NAME,
    .layer_norm = layer_norm,
    .layer_norm_backward = layer_norm_backward,
    .bias_gelu = bias_gelu,
    .gelu_backward = gelu_backward,
    .bias_swiglu = bias_swiglu,
    .swiglu_backward = swiglu_backward,
    .add_bias = add_bias,
    .residual = residual,
    .scaled_copy = scaled_copy,
    .column_sum = column_sum,
    .softmax = softmax,
    .softmax_backward = softmax_backward,
    .row_squares = row_squares,
    .scale_logits = scale_logits,
    .softmax_piece = softmax_piece,
    .entropy_piece = entropy_piece,
    .entropy_slope = entropy_slope,
    .exp = exp_array,
};
