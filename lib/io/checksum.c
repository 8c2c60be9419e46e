#include "io/checksum.h"

#include <zlib.h>

uint32_t sd_crc32(uint32_t crc, const void *bytes, size_t count) {
    const unsigned char *at = bytes;
    while (count > 0) {
        size_t piece = sd_size_min(count, (size_t)1 << 30);
        crc = (uint32_t)crc32(crc, at, (uInt)piece);
        at += piece;
        count -= piece;
    }
    return crc;
}

void sd_crc32_print(uint32_t crc, char *digits) {
    for (int i = SD_CRC_DIGITS - 1; i >= 0; i--, crc >>= 4)
        digits[i] = "0123456789abcdef"[crc & 15];
}

bool sd_crc32_parse(const char *digits, size_t length, uint32_t *crc) {
    uint32_t value = 0;
    if (length != SD_CRC_DIGITS)
        return false;
    for (size_t i = 0; i < length; i++) {
        char c = digits[i];
        if (c >= '0' && c <= '9')
            value = value << 4 | (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            value = value << 4 | (uint32_t)(c - 'a' + 10);
        else
            return false;
    }
    *crc = value;
    return true;
}
