/* Memory hooks that count, find leaks, and fail on demand. */
#ifndef SD_TEST_FAILING_MEMORY_H
#define SD_TEST_FAILING_MEMORY_H

#include <simdino/base.h>

typedef struct failing_memory {
    long allocations;       /* calls so far */
    long live;              /* allocated and not released */
    size_t live_bytes, peak_bytes;
    long fail_at;           /* the allocation with this number (from 0) fails, and all after it when sticky; -1: none */
    int sticky;
} failing_memory;

/* Puts the hooks into a context configuration. `memory` must outlive the context. Thread-safe. */
void failing_memory_install(failing_memory *memory, sd_context_config *config);

#endif
