/* The libFuzzer target of one format, FUZZ_FORMAT. See tests/fuzz/meson.build. */
#include "entries.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const fuzz_entry *entry = fuzz_find(FUZZ_FORMAT);
    if (!entry)
        abort();
    entry->run(data, size);
    return 0;
}
