/* The metadata keys and the text form of the checksums. */
#ifndef SD_IO_CHECKSUM_H
#define SD_IO_CHECKSUM_H

#include "base/base.h"

#define SD_CRC_DATA_KEY "crc32_data"
#define SD_CRC_HEADER_KEY "crc32_header"
#define SD_CRC_DIGITS 8
#define SD_CRC_ZEROS "00000000"

/* CRC-32 as in zip and gzip, continued from `crc` (0 to begin). */
uint32_t sd_crc32(uint32_t crc, const void *bytes, size_t count);

/* Eight lower-case hexadecimal digits, not terminated. */
void sd_crc32_print(uint32_t crc, char *digits);
/* Accepts nothing else, so that a flipped bit cannot turn a digit into another spelling of itself. */
bool sd_crc32_parse(const char *digits, size_t length, uint32_t *crc);

#endif
