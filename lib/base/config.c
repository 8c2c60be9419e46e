/* Reading configuration structs of programs that were compiled against an older or newer header. */
#include "base/base.h"

#include <string.h>

sd_status sd_config_read(void *out, size_t out_size, const void *source, const char *name) {
    if (source == NULL)
        return SD_OK;
    size_t size;
    memcpy(&size, source, sizeof size);
    SD_REQUIRE(size >= sizeof size, SD_ERR_ARGUMENT,
               "%s: its size member is %zu; fill the struct with its _init function first", name, size);
    const unsigned char *bytes = source;
    for (size_t i = out_size; i < size; i++)
        SD_REQUIRE(bytes[i] == 0, SD_ERR_ARGUMENT,
                   "%s has %zu bytes, this library knows %zu, and a member beyond them is set", name, size, out_size);
    memcpy(out, source, sd_size_min(size, out_size));
    memcpy(out, &out_size, sizeof out_size);
    return SD_OK;
}
