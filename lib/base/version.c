#include "base/base.h"

#define SD_TEXT_OF(x) #x
#define SD_TEXT(x) SD_TEXT_OF(x)

SD_API int32_t sd_version(void) { return SD_VERSION_MAJOR * 10000 + SD_VERSION_MINOR * 100 + SD_VERSION_PATCH; }

SD_API const char *sd_version_string(void) {
    return SD_TEXT(SD_VERSION_MAJOR) "." SD_TEXT(SD_VERSION_MINOR) "." SD_TEXT(SD_VERSION_PATCH);
}
