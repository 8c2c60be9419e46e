#include "io/npy.h"

#include "io/dtype.h"

#include <stdio.h>
#include <string.h>

#define MAGIC "\x93NUMPY"

size_t sd_npy_data_offset(const void *prefix, size_t size, size_t *header) {
    const unsigned char *at = prefix;
    if (size < 10 || memcmp(at, MAGIC, 6) != 0 || at[6] < 1 || at[6] > 3)
        return 0;
    size_t length = (size_t)at[8] | (size_t)at[9] << 8;
    *header = 10;
    if (at[6] > 1) {
        if (size < 12)
            return 0;
        length |= (size_t)at[10] << 16 | (size_t)at[11] << 24;
        *header = 12;
    }
    return length <= SD_NPY_HEADER_MAX ? *header + length : 0;
}

/* ---- the dictionary ------------------------------------------------------------------------- */

typedef struct literal {
    const char *at, *end;
} literal;

static void skip_space(literal *text) {
    while (text->at < text->end && (*text->at == ' ' || *text->at == '\n' || *text->at == '\t'))
        text->at++;
}

static bool take(literal *text, const char *token) {
    size_t length = strlen(token);
    skip_space(text);
    if ((size_t)(text->end - text->at) < length || memcmp(text->at, token, length) != 0)
        return false;
    text->at += length;
    return true;
}

/* 'text' without escapes. */
static bool get_string(literal *text, const char **string, size_t *length) {
    skip_space(text);
    if (text->at == text->end || (*text->at != '\'' && *text->at != '"'))
        return false;
    const char *start = text->at + 1, *end = memchr(start, *text->at, (size_t)(text->end - start));
    if (!end || memchr(start, '\\', (size_t)(end - start)))
        return false;
    *string = start;
    *length = (size_t)(end - start);
    text->at = end + 1;
    return true;
}

static bool get_number(literal *text, uint64_t *number) {
    skip_space(text);
    const char *start = text->at;
    *number = 0;
    for (; text->at < text->end && *text->at >= '0' && *text->at <= '9'; text->at++)
        if (__builtin_mul_overflow(*number, (uint64_t)10, number) ||
            __builtin_add_overflow(*number, (uint64_t)(*text->at - '0'), number))
            return false;
    if (text->at < text->end && *text->at == 'L') /* a long of Python 2 */
        text->at++;
    return text->at > start;
}

/* Of records only the end is sought: brackets are counted, text is passed over. */
static bool skip_list(literal *text) {
    size_t depth = 0;
    do {
        skip_space(text);
        const char *string;
        size_t length;
        if (text->at == text->end)
            return false;
        char c = *text->at;
        if (c == '\'' || c == '"') {
            if (!get_string(text, &string, &length))
                return false;
            continue;
        }
        if (c == '[' || c == '(')
            depth++;
        if (c == ']' || c == ')')
            depth--;
        text->at++;
    } while (depth > 0);
    return true;
}

static int32_t type_of(char kind, size_t size) {
    static const struct {
        char kind;
        size_t size;
        int32_t dtype;
    } known[] = {{'f', 4, SD_DTYPE_F32}, {'f', 8, SD_DTYPE_F64}, {'f', 2, SD_DTYPE_F16}, {'i', 1, SD_DTYPE_I8},
                 {'i', 2, SD_DTYPE_I16}, {'i', 4, SD_DTYPE_I32}, {'i', 8, SD_DTYPE_I64}, {'u', 1, SD_DTYPE_U8},
                 {'u', 2, SD_DTYPE_U16}, {'u', 4, SD_DTYPE_U32}, {'u', 8, SD_DTYPE_U64}, {'b', 1, SD_DTYPE_BOOL}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (known[i].kind == kind && known[i].size == size)
            return known[i].dtype;
    return SD_DTYPE_OTHER;
}

/* "<f4": byte order, kind, size of an element (of text: in characters, which have four bytes in kind U). */
static const char *parse_type(literal *text, sd_npy *npy) {
    const char *type;
    size_t length;
    npy->dtype = SD_DTYPE_OTHER;
    npy->item_size = 0;
    skip_space(text);
    if (text->at < text->end && *text->at == '[')
        return skip_list(text) ? NULL : "the type of records is damaged";
    if (!get_string(text, &type, &length) || length < 2)
        return "descr is not a type";
    bool ordered = strchr("<>|=", type[0]) != NULL;
    char kind = type[ordered ? 1 : 0];
    literal digits = {type + (ordered ? 2 : 1), type + length};
    uint64_t size = 0;
    if (kind == 'O')
        return NULL;
    if (digits.at == digits.end || !get_number(&digits, &size) || size > (uint64_t)1 << 32)
        return "descr is not a type";
    npy->item_size = (size_t)size * (kind == 'U' ? 4 : 1);
    npy->swapped = ordered && type[0] == '>';
    if (digits.at == digits.end) /* else a unit of time */
        npy->dtype = type_of(kind, npy->item_size);
    return NULL;
}

static const char *parse_shape(literal *text, sd_npy *npy) {
    npy->dimensions = 0;
    if (!take(text, "("))
        return "shape is not a tuple";
    while (!take(text, ")")) {
        if (npy->dimensions == SD_STORED_DIMENSIONS)
            return "too many dimensions";
        if (!get_number(text, &npy->shape[npy->dimensions++]))
            return "shape holds something else than numbers";
        if (!take(text, ",")) {
            if (!take(text, ")"))
                return "shape is not closed";
            break;
        }
    }
    return NULL;
}

const char *sd_npy_parse(const char *header, size_t size, sd_npy *npy) {
    literal text = {header, header + size};
    enum { TYPE = 1, ORDER = 2, SHAPE = 4 };
    unsigned seen = 0;
    *npy = (sd_npy){0};
    if (!take(&text, "{"))
        return "the header is not a dictionary";
    while (!take(&text, "}")) {
        const char *key, *problem = NULL;
        size_t length;
        if (!get_string(&text, &key, &length) || !take(&text, ":"))
            return "the header is damaged";
        unsigned member = length == 5 && memcmp(key, "descr", 5) == 0             ? TYPE
                          : length == 13 && memcmp(key, "fortran_order", 13) == 0 ? ORDER
                          : length == 5 && memcmp(key, "shape", 5) == 0           ? SHAPE
                                                                                  : 0;
        if (member == 0 || (seen & member))
            return member ? "a key is there twice" : "an unknown key";
        seen |= member;
        if (member == TYPE) {
            problem = parse_type(&text, npy);
        } else if (member == SHAPE) {
            problem = parse_shape(&text, npy);
        } else {
            npy->fortran = take(&text, "True");
            if (!npy->fortran && !take(&text, "False"))
                problem = "fortran_order is neither True nor False";
        }
        if (problem)
            return problem;
        if (!take(&text, ",")) {
            if (!take(&text, "}"))
                return "the header is not closed";
            break;
        }
    }
    skip_space(&text);
    if (text.at != text.end)
        return "text after the header";
    if (seen != (TYPE | ORDER | SHAPE))
        return "the header needs descr, fortran_order and shape";
    npy->count = 1;
    for (size_t i = 0; i < npy->dimensions; i++)
        if (__builtin_mul_overflow(npy->count, npy->shape[i], &npy->count) || npy->shape[i] > INT64_MAX)
            return "the array is too large";
    if (__builtin_mul_overflow(npy->count, (uint64_t)npy->item_size, &npy->bytes) || npy->bytes > INT64_MAX)
        return "the array is too large";
    return NULL;
}

/* ---- writing -------------------------------------------------------------------------------- */

size_t sd_npy_print(const sd_tensor_data *tensor, char *out) {
    static const char *const names[] = {
        [SD_DTYPE_F32] = "<f4", [SD_DTYPE_F64] = "<f8", [SD_DTYPE_F16] = "<f2", [SD_DTYPE_I8] = "|i1",
        [SD_DTYPE_I16] = "<i2", [SD_DTYPE_I32] = "<i4", [SD_DTYPE_I64] = "<i8", [SD_DTYPE_U8] = "|u1",
        [SD_DTYPE_U16] = "<u2", [SD_DTYPE_U32] = "<u4", [SD_DTYPE_U64] = "<u8", [SD_DTYPE_BOOL] = "|b1"};
    size_t known = sizeof names / sizeof names[0];
    const char *type = tensor->dtype >= 0 && (size_t)tensor->dtype < known ? names[tensor->dtype] : NULL;
    if (!type)
        return 0;
    memset(out, ' ', SD_NPY_PRINT_MAX);
    size_t at = 10 + (size_t)snprintf(out + 10, SD_NPY_PRINT_MAX - 10,
                                      "{'descr': '%s', 'fortran_order': False, 'shape': (", type);
    for (int32_t i = 0; i < tensor->dimensions; i++)
        at += (size_t)snprintf(out + at, SD_NPY_PRINT_MAX - at, "%s%lld%s", i > 0 ? " " : "",
                               (long long)tensor->shape[i], i + 1 < tensor->dimensions || i == 0 ? "," : "");
    at += (size_t)snprintf(out + at, SD_NPY_PRINT_MAX - at, "), }");
    out[at] = ' ';
    size_t total = (at + 1 + 63) / 64 * 64; /* so that the elements begin at a multiple of 64 */
    out[total - 1] = '\n';
    memcpy(out, MAGIC "\x01\x00", 8);
    out[8] = (char)((total - 10) & 255);
    out[9] = (char)((total - 10) >> 8);
    return total;
}
