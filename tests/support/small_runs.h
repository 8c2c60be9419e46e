/* Pretrainers of every method, small enough that a step takes milliseconds, on random images. Any failure here fails
 * the test. */
#ifndef SD_TEST_SMALL_RUNS_H
#define SD_TEST_SMALL_RUNS_H

#include "failing_memory.h"

#include "train/trainer.h"

/* Numbers of the runs. */
enum {
    SMALL_SIMDINOV2,
    SMALL_DINO,
    SMALL_DINOV2,          /* centering, one head for class tokens and patches */
    SMALL_DINOV2_SINKHORN, /* Sinkhorn-Knopp, patches have a head of their own */
    SMALL_RUNS
};

enum { SMALL_IMAGES = 24, SMALL_BATCH = 8, SMALL_GLOBAL = 16, SMALL_LOCAL = 8, SMALL_LOCALS = 2 };

const char *small_run_name(int run);
/* 2 global crops of 16, 2 local ones of 8, patches of 4, batches of 8, 40 steps; the prototypes are frozen for 3. */
sd_pretrainer_config small_config(int run);
/* SMALL_IMAGES random images of 16 x 16. */
const sd_image *small_images(void);
/* Random crops of a batch, the same for the same seed; released by free(). */
float *small_crops(uint64_t seed, sd_crop_batch *crops);

/* memory may be NULL; if not, its hooks are installed. */
sd_context *small_context(int32_t threads, failing_memory *memory);
sd_pretrainer *small_trainer(sd_context *context, const sd_pretrainer_config *config);
/* A step on images first .. first+7, which must succeed. Returns all its metrics but the times. */
sd_step_metrics small_step(sd_pretrainer *trainer, size_t first);
sd_step_metrics small_step_of(sd_pretrainer *trainer, size_t first, size_t count);

/* Everything that a step changes. */
typedef struct small_state {
    size_t count;
    float *values; /* student, teacher, moments, centers */
    uint64_t step, optimizer_steps;
} small_state;
small_state small_state_of(const sd_pretrainer *trainer);
/* Fails, naming `when`, unless the trainer's state is `kept` to the bit. */
void small_state_compare(const sd_pretrainer *trainer, const small_state *kept, const char *when);
void small_state_free(small_state *state);

#endif
