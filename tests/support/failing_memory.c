#include "failing_memory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* In front of each block, so that its size is known when it is released. */
#define PREFIX 64

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *failing_allocate(void *opaque, size_t bytes) {
    failing_memory *memory = opaque;
    pthread_mutex_lock(&lock);
    long number = memory->allocations++;
    int fails = memory->fail_at >= 0 && (number == memory->fail_at || (memory->sticky && number > memory->fail_at));
    pthread_mutex_unlock(&lock);
    if (fails || bytes > SIZE_MAX - PREFIX)
        return NULL;
    char *block = malloc(bytes + PREFIX);
    if (!block)
        return NULL;
    memcpy(block, &bytes, sizeof bytes);
    memset(block + PREFIX, 0xA5, bytes); /* who relies on zeros shall notice */
    pthread_mutex_lock(&lock);
    memory->live++;
    memory->live_bytes += bytes;
    if (memory->live_bytes > memory->peak_bytes)
        memory->peak_bytes = memory->live_bytes;
    pthread_mutex_unlock(&lock);
    return block + PREFIX;
}

static void failing_release(void *opaque, void *address) {
    failing_memory *memory = opaque;
    char *block = (char *)address - PREFIX;
    size_t bytes;
    memcpy(&bytes, block, sizeof bytes);
    pthread_mutex_lock(&lock);
    memory->live--;
    memory->live_bytes -= bytes;
    pthread_mutex_unlock(&lock);
    free(block);
}

void failing_memory_install(failing_memory *memory, sd_context_config *config) {
    memset(memory, 0, sizeof *memory);
    memory->fail_at = -1;
    config->allocate = failing_allocate;
    config->release = failing_release;
    config->memory_opaque = memory;
}
