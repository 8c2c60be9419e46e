#include "io/dtype.h"

#include <float.h>
#include <math.h>
#include <string.h>

static const struct {
    const char *name, *safetensors;
    size_t size;
} types[] = {
    [SD_DTYPE_F32] = {"float32", "F32", 4},
    [SD_DTYPE_F64] = {"float64", "F64", 8},
    [SD_DTYPE_F16] = {"float16", "F16", 2},
    [SD_DTYPE_BF16] = {"bfloat16", "BF16", 2},
    [SD_DTYPE_I8] = {"int8", "I8", 1},
    [SD_DTYPE_I16] = {"int16", "I16", 2},
    [SD_DTYPE_I32] = {"int32", "I32", 4},
    [SD_DTYPE_I64] = {"int64", "I64", 8},
    [SD_DTYPE_U8] = {"uint8", "U8", 1},
    [SD_DTYPE_U16] = {"uint16", "U16", 2},
    [SD_DTYPE_U32] = {"uint32", "U32", 4},
    [SD_DTYPE_U64] = {"uint64", "U64", 8},
    [SD_DTYPE_BOOL] = {"bool", "BOOL", 1},
    [SD_DTYPE_F8_E4M3] = {"float8_e4m3fn", "F8_E4M3", 1},
    [SD_DTYPE_F8_E5M2] = {"float8_e5m2", "F8_E5M2", 1},
    [SD_DTYPE_NUMBER] = {"number", "", 0},
    [SD_DTYPE_OTHER] = {"other", "", 0},
};
enum { TYPES = sizeof types / sizeof types[0] };

SD_API const char *sd_dtype_name(int32_t dtype) {
    return dtype >= 0 && dtype < TYPES ? types[dtype].name : "?";
}

size_t sd_dtype_size(int32_t dtype) {
    return dtype >= 0 && dtype < TYPES ? types[dtype].size : 0;
}

int32_t sd_dtype_of_safetensors(const char *name) {
    for (int32_t i = 0; i < TYPES; i++)
        if (types[i].size > 0 && strcmp(name, types[i].safetensors) == 0)
            return i;
    return -1;
}

const char *sd_dtype_safetensors_name(int32_t dtype) {
    return dtype >= 0 && dtype < TYPES ? types[dtype].safetensors : "";
}

/* ---- one element --------------------------------------------------------------------------- */

static uint64_t load(const unsigned char *at, size_t size, bool swapped) {
    uint64_t bits = 0;
    for (size_t i = 0; i < size; i++)
        bits |= (uint64_t)at[i] << 8 * (swapped ? size - 1 - i : i);
    return bits;
}

static float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* A small float of `exponent_bits` and `fraction_bits` as IEEE 754 has them. All values are exact in float. */
static float small_float(uint32_t bits, unsigned exponent_bits, unsigned fraction_bits) {
    uint32_t sign = bits >> (exponent_bits + fraction_bits) & 1, largest = (1u << exponent_bits) - 1;
    uint32_t exponent = bits >> fraction_bits & largest, fraction = bits & ((1u << fraction_bits) - 1);
    int bias = (int)(largest >> 1);
    if (exponent == largest) /* infinity, or NaN with its payload */
        return float_of_bits(sign << 31 | 0x7F800000u | fraction << (23 - fraction_bits));
    if (exponent > 0)
        return float_of_bits(sign << 31 | (uint32_t)((int)exponent - bias + 127) << 23 |
                             fraction << (23 - fraction_bits));
    float magnitude = ldexpf((float)fraction, 1 - bias - (int)fraction_bits);
    return sign ? -magnitude : magnitude;
}

/* No infinity, and one NaN: all exponent and fraction bits set. */
static float float_of_e4m3(uint32_t bits) {
    uint32_t exponent = bits >> 3 & 15, fraction = bits & 7;
    if (exponent == 15 && fraction == 7)
        return float_of_bits(bits >> 7 << 31 | 0x7FC00000u);
    if (exponent == 0)
        return small_float(bits, 4, 3);
    return float_of_bits(bits >> 7 << 31 | (exponent - 7 + 127) << 23 | fraction << 20);
}

static double double_of_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int64_t signed_of_bits(uint64_t bits, size_t size) {
    uint64_t sign = (uint64_t)1 << (8 * size - 1);
    return (int64_t)(bits ^ sign) - (int64_t)sign;
}

static float narrow(double value) {
    if (fabs(value) > (double)FLT_MAX && isfinite(value)) { /* C leaves the cast undefined from half an ulp beyond */
        double beyond = (double)FLT_MAX + ldexp(1.0, 127 - 24);
        float most = fabs(value) < beyond ? FLT_MAX : (float)INFINITY;
        return value < 0 ? -most : most;
    }
    return (float)value;
}

double sd_dtype_to_double(int32_t dtype, bool swapped, const void *source) {
    const unsigned char *at = source;
    size_t size = sd_dtype_size(dtype);
    uint64_t bits = load(at, size, swapped);
    switch (dtype) {
    case SD_DTYPE_F64: return double_of_bits(bits);
    case SD_DTYPE_I8:
    case SD_DTYPE_I16:
    case SD_DTYPE_I32: return (double)signed_of_bits(bits, size);
    case SD_DTYPE_I64: {
        int64_t value;
        memcpy(&value, &bits, sizeof value);
        return (double)value;
    }
    case SD_DTYPE_U8:
    case SD_DTYPE_U16:
    case SD_DTYPE_U32:
    case SD_DTYPE_U64: return (double)bits;
    case SD_DTYPE_BOOL: return bits != 0 ? 1.0 : 0.0;
    case SD_DTYPE_F32: return (double)float_of_bits((uint32_t)bits);
    case SD_DTYPE_F16: return (double)small_float((uint32_t)bits, 5, 10);
    case SD_DTYPE_BF16: return (double)float_of_bits((uint32_t)bits << 16);
    case SD_DTYPE_F8_E4M3: return (double)float_of_e4m3((uint32_t)bits);
    case SD_DTYPE_F8_E5M2: return (double)small_float((uint32_t)bits, 5, 2);
    default: return 0.0;
    }
}

/* ---- many ---------------------------------------------------------------------------------- */

void sd_dtype_to_float(int32_t dtype, bool swapped, const void *source, ptrdiff_t stride, size_t count, float *out) {
    const unsigned char *at = source;
    switch (dtype) { /* the types of weights, without the detour over double, which would quieten NaNs */
    case SD_DTYPE_F32:
        for (size_t i = 0; i < count; i++, at += stride)
            out[i] = float_of_bits((uint32_t)load(at, 4, swapped));
        break;
    case SD_DTYPE_F16:
        for (size_t i = 0; i < count; i++, at += stride)
            out[i] = small_float((uint32_t)load(at, 2, swapped), 5, 10);
        break;
    case SD_DTYPE_BF16:
        for (size_t i = 0; i < count; i++, at += stride)
            out[i] = float_of_bits((uint32_t)load(at, 2, swapped) << 16);
        break;
    case SD_DTYPE_I64:
        for (size_t i = 0; i < count; i++, at += stride) { /* one rounding, as a cast from the integer has */
            uint64_t bits = load(at, 8, swapped);
            int64_t value;
            memcpy(&value, &bits, sizeof value);
            out[i] = (float)value;
        }
        break;
    case SD_DTYPE_U64:
        for (size_t i = 0; i < count; i++, at += stride)
            out[i] = (float)load(at, 8, swapped);
        break;
    default:
        for (size_t i = 0; i < count; i++, at += stride)
            out[i] = narrow(sd_dtype_to_double(dtype, swapped, at));
    }
}
