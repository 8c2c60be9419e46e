/* The part of the loader that the pretrainer uses: augmenting the next batch as extra tasks of a parallel section of
 * the step, so that no thread beyond the runner's is needed. */
#ifndef SD_LOADER_INTERNAL_H
#define SD_LOADER_INTERNAL_H

#include "base/base.h"
#include <simdino/data.h>

/* Chooses the samples of the batch after the one that sd_loader_next gave last and returns the number of tasks that
 * augment it; 0 when it is already there. Cannot fail and does not allocate. */
size_t sd_loader_prefetch_begin(sd_loader *loader);
/* Does task `index` on thread `thread` (< sd_threads of the loader's context). Any thread, any order, each index once.
 */
void sd_loader_prefetch_task(sd_loader *loader, size_t index, size_t thread);
/* After all tasks. Errors met by tasks are kept and reported by the sd_loader_next that would give the batch. */
void sd_loader_prefetch_end(sd_loader *loader);
/* When the tasks begun will not all be run (the step failed): forgets them. */
void sd_loader_prefetch_drop(sd_loader *loader);
/* Working memory of the loader in bytes (both batches and the per-thread space known so far). */
size_t sd_loader_memory(const sd_loader *loader);
const sd_augment_config *sd_loader_augment_config(const sd_loader *loader);
size_t sd_loader_batch_size(const sd_loader *loader);

#endif
