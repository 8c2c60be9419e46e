#include "base/base.h"

#include <stdio.h>

#define SD_MESSAGE_MAX 1024

static _Thread_local char last_message[SD_MESSAGE_MAX];

SD_API const char *sd_status_string(sd_status status) {
    switch (status) {
    case SD_OK: return "ok";
    case SD_ERR_ARGUMENT: return "invalid argument";
    case SD_ERR_MEMORY: return "out of memory";
    case SD_ERR_NUMERIC: return "numerical failure";
    case SD_ERR_IO: return "input or output failed";
    case SD_ERR_FORMAT: return "wrong or truncated file format";
    case SD_ERR_CHECKSUM: return "checksum mismatch";
    case SD_ERR_VERSION: return "unknown file version";
    case SD_ERR_CANCELLED: return "cancelled";
    case SD_ERR_STATE: return "not possible in this state";
    case SD_ERR_UNSUPPORTED: return "not supported here";
    case SD_ERR_MISMATCH: return "mismatch";
    case SD_ERR_THREAD: return "thread failure";
    case SD_END: return "end of data";
    }
    return "unknown status";
}

SD_API const char *sd_last_error(void) { return last_message; }

sd_status sd_fail(sd_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_message, sizeof last_message, format, arguments);
    va_end(arguments);
    return status;
}
