/* What a dataset holds: packed 8-bit images of one size (from files), views of the host's images, or the host's
 * callbacks. */
#ifndef SD_DATASET_INTERNAL_H
#define SD_DATASET_INTERNAL_H

#include "base/base.h"
#include <simdino/data.h>

struct sd_dataset {
    sd_context *context;
    uint64_t count;
    int32_t *labels; /* NULL: none */

    uint8_t *pixels; /* packed */
    size_t width, height;
    int32_t channels;

    sd_image *images; /* views */

    sd_acquire_function acquire; /* callbacks */
    sd_release_image_function release;
    void *opaque;
};

#endif
