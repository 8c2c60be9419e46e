#include "io/json.h"

#include <string.h>

/* ---- UTF-8 --------------------------------------------------------------------------------- */

/* Length of the well-formed sequence at `bytes` (Unicode 15, table 3-7), or 0. */
static size_t utf8_sequence(const char *bytes, size_t count) {
    unsigned char first = (unsigned char)bytes[0];
    if (first < 0x80)
        return 1;
    size_t length = first >= 0xC2 && first <= 0xDF   ? 2
                    : first >= 0xE0 && first <= 0xEF ? 3
                    : first >= 0xF0 && first <= 0xF4 ? 4
                                                     : 0;
    if (length == 0 || length > count)
        return 0;
    unsigned char low = 0x80, high = 0xBF; /* of the second byte: nothing overlong, no surrogate, at most 10FFFF */
    if (first == 0xE0)
        low = 0xA0;
    else if (first == 0xED)
        high = 0x9F;
    else if (first == 0xF0)
        low = 0x90;
    else if (first == 0xF4)
        high = 0x8F;
    for (size_t i = 1; i < length; i++, low = 0x80, high = 0xBF)
        if ((unsigned char)bytes[i] < low || (unsigned char)bytes[i] > high)
            return 0;
    return length;
}

bool sd_utf8_valid(const char *bytes, size_t count) {
    for (size_t at = 0; at < count;) {
        size_t length = utf8_sequence(bytes + at, count - at);
        if (length == 0)
            return false;
        at += length;
    }
    return true;
}

static size_t utf8_encode(uint32_t code, char *out) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xC0 | code >> 6);
        out[1] = (char)(0x80 | (code & 63));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xE0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 63));
        out[2] = (char)(0x80 | (code & 63));
        return 3;
    }
    out[0] = (char)(0xF0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 63));
    out[2] = (char)(0x80 | (code >> 6 & 63));
    out[3] = (char)(0x80 | (code & 63));
    return 4;
}

/* ---- reading ------------------------------------------------------------------------------- */

static bool problem(sd_json *json, const char *text) {
    json->problem = text;
    return false;
}

static void skip_space(sd_json *json) {
    while (json->at < json->size && memchr(" \t\n\r", json->text[json->at], 4))
        json->at++;
}

bool sd_json_take(sd_json *json, char token) {
    skip_space(json);
    if (json->at >= json->size || json->text[json->at] != token)
        return false;
    json->at++;
    return true;
}

bool sd_json_expect(sd_json *json, char token) {
    if (sd_json_take(json, token))
        return true;
    switch (token) {
    case '{': return problem(json, "expected {");
    case '}': return problem(json, "expected , or }");
    case '[': return problem(json, "expected [");
    case ']': return problem(json, "expected , or ]");
    case ':': return problem(json, "expected :");
    default: return problem(json, "unexpected character");
    }
}

bool sd_json_expect_end(sd_json *json) {
    skip_space(json);
    return json->at == json->size || problem(json, "unexpected text after the end");
}

bool sd_json_get_unsigned(sd_json *json, uint64_t *number) {
    skip_space(json);
    size_t start = json->at;
    uint64_t value = 0;
    while (json->at < json->size && json->text[json->at] >= '0' && json->text[json->at] <= '9') {
        unsigned digit = (unsigned)(json->text[json->at] - '0');
        if (value > (UINT64_MAX - digit) / 10)
            return problem(json, "number too large");
        value = value * 10 + digit;
        json->at++;
    }
    if (json->at == start)
        return problem(json, "expected a number that is whole and not negative");
    if (json->text[start] == '0' && json->at - start > 1)
        return problem(json, "number with a leading zero");
    if (json->at < json->size && memchr(".eE", json->text[json->at], 3))
        return problem(json, "expected a whole number");
    *number = value;
    return true;
}

static bool get_hex4(sd_json *json, uint32_t *code) {
    if (json->size - json->at < 4)
        return problem(json, "truncated \\u escape");
    *code = 0;
    for (int i = 0; i < 4; i++, json->at++) {
        char c = json->text[json->at];
        uint32_t digit = c >= '0' && c <= '9'   ? (uint32_t)(c - '0')
                         : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a') + 10
                         : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A') + 10
                                                : 16;
        if (digit == 16)
            return problem(json, "bad \\u escape");
        *code = *code * 16 + digit;
    }
    return true;
}

/* The escape after a backslash, whose decoded bytes go to `out`; none is longer than its escape. */
static bool get_escape(sd_json *json, char *out, size_t *length) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (json->at >= json->size)
        return problem(json, "unterminated string");
    char kind = json->text[json->at++];
    const char *name = memchr(names, kind, sizeof names - 1);
    if (name) {
        out[0] = values[name - names];
        *length = 1;
        return true;
    }
    if (kind != 'u')
        return problem(json, "unknown escape");
    uint32_t code, low;
    if (!get_hex4(json, &code))
        return false;
    if (code == 0)
        return problem(json, "zero character in a string");
    if (code >= 0xDC00 && code <= 0xDFFF)
        return problem(json, "lone surrogate");
    if (code >= 0xD800 && code <= 0xDBFF) {
        if (json->size - json->at < 2 || json->text[json->at] != '\\' || json->text[json->at + 1] != 'u')
            return problem(json, "lone surrogate");
        json->at += 2;
        if (!get_hex4(json, &low))
            return false;
        if (low < 0xDC00 || low > 0xDFFF)
            return problem(json, "lone surrogate");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    *length = utf8_encode(code, out);
    return true;
}

bool sd_json_get_string(sd_json *json, sd_json_string *string) {
    skip_space(json);
    if (json->at >= json->size || json->text[json->at] != '"')
        return problem(json, "expected a string");
    string->raw_at = ++json->at;
    char *out = json->strings + json->strings_used; /* two quotes leave room for the terminating zero */
    size_t used = 0;
    for (;;) {
        if (json->at >= json->size)
            return problem(json, "unterminated string");
        unsigned char c = (unsigned char)json->text[json->at];
        size_t length;
        if (c == '"')
            break;
        if (c < 0x20)
            return problem(json, "control character in a string");
        if (c == '\\') {
            json->at++;
            if (!get_escape(json, out + used, &length))
                return false;
        } else {
            length = utf8_sequence(json->text + json->at, json->size - json->at);
            if (length == 0)
                return problem(json, "malformed UTF-8");
            memcpy(out + used, json->text + json->at, length);
            json->at += length;
        }
        used += length;
    }
    string->raw_length = json->at - string->raw_at;
    json->at++;
    out[used] = '\0';
    json->strings_used += used + 1;
    string->text = out;
    string->length = used;
    return true;
}

/* ---- writing ------------------------------------------------------------------------------- */

void sd_text_put_bytes(sd_text *text, const char *bytes, size_t count) {
    if (text->buffer)
        memcpy(text->buffer + text->length, bytes, count);
    text->length += count;
}

void sd_text_put(sd_text *text, const char *characters) { sd_text_put_bytes(text, characters, strlen(characters)); }

void sd_text_put_unsigned(sd_text *text, uint64_t number) {
    char digits[20];
    size_t first = sizeof digits;
    do {
        digits[--first] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    sd_text_put_bytes(text, digits + first, sizeof digits - first);
}

void sd_text_put_json_string(sd_text *text, const char *string) {
    static const char hex[] = "0123456789abcdef";
    sd_text_put(text, "\"");
    for (const char *c = string; *c; c++) {
        if (*c == '"' || *c == '\\') {
            sd_text_put_bytes(text, "\\", 1);
            sd_text_put_bytes(text, c, 1);
        } else if ((unsigned char)*c < 0x20) {
            char escape[6] = {'\\', 'u', '0', '0', hex[(unsigned char)*c >> 4], hex[*c & 15]};
            sd_text_put_bytes(text, escape, sizeof escape);
        } else {
            sd_text_put_bytes(text, c, 1);
        }
    }
    sd_text_put(text, "\"");
}
