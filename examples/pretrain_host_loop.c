/* Pretrains a small network inside a host program: images come from the program's memory, the loop is its own, and one
 * library call does a whole training step. Then it saves a checkpoint, loads the teacher and embeds an image.
 *
 *     cc pretrain_host_loop.c $(pkg-config --cflags --libs simdino)
 */
#include <simdino/simdino.h>
#include <stdio.h>
#include <stdlib.h>

enum { IMAGES = 256, SIDE = 28, STEPS = 40, BATCH = 32 };

/* Every function of the library that can fail returns a status; sd_last_error() tells the reason in words. */
static void check(sd_status status, const char *what) {
    if (status != SD_OK) {
        fprintf(stderr, "%s: %s (%s)\n", what, sd_last_error(), sd_status_string(status));
        exit(1);
    }
}

/* The library never prints by itself: whoever wants its messages gives it a log function. */
static void print_log(void *opaque, sd_log_level level, const char *message) {
    (void)opaque;
    fprintf(stderr, "[%s] %s\n", level <= SD_LOG_WARNING ? "warning" : "info", message);
}

/* Draws an image of 28 x 28 grey bytes: stripes of some direction and width. Your program has its own images. */
static void draw_image(unsigned char *pixels, sd_random *random) {
    uint64_t kind = sd_random_below(random, 4), width = 2 + sd_random_below(random, 4);
    uint64_t shift = sd_random_below(random, 8);
    for (uint64_t y = 0; y < SIDE; y++) {
        for (uint64_t x = 0; x < SIDE; x++) {
            uint64_t across = kind == 0 ? x : kind == 1 ? y : kind == 2 ? x + y : x + SIDE - y;
            int bright = (across + shift) / width % 2 == 0;
            pixels[y * SIDE + x] = (unsigned char)((bright ? 160 : 40) + sd_random_below(random, 60));
        }
    }
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "host_loop.safetensors";

    /* 1. Images in memory. An sd_image is a view: the pixels stay yours. */
    static unsigned char pixels[IMAGES][SIDE * SIDE];
    static sd_image images[IMAGES];
    sd_random random;
    sd_random_init(&random, 1, 0, 0); /* seed 1 */
    for (int i = 0; i < IMAGES; i++) {
        draw_image(pixels[i], &random);
        images[i] = (sd_image){.pixels = pixels[i], .width = SIDE, .height = SIDE, .channels = 1};
    }

    /* 2. A context holds threads, memory and log. NULL instead of a configuration would be fine, too. */
    sd_context_config context_config;
    sd_context_config_init(&context_config);
    context_config.log = print_log;
    context_config.blas_threads = SD_BLAS_THREADS_ONE; /* the library's threads are enough */
    sd_context *context;
    check(sd_context_create(&context_config, &context), "context");

    /* 3. What to train: start from the defaults (ViT-S/16 on colour images) and change what is different here. */
    sd_pretrainer_config config;
    sd_pretrainer_config_init(&config);
    config.model.channels = 1;
    config.model.image_size = SIDE;
    config.model.patch_size = 7;
    config.model.dim = 64;
    config.model.depth = 3;
    config.model.heads = 4;
    config.model.drop_path = 0;
    config.model.head_hidden = 128;
    config.model.head_dim = 64;
    config.augment.global_size = SIDE; /* two large crops of each image ... */
    config.augment.local_size = 14;    /* ... and two small ones */
    config.augment.local_crops = 2;
    config.augment.mean[0] = 0.5;
    config.augment.std[0] = 0.25;
    config.batch_size = BATCH;
    config.total_steps = STEPS;
    config.warmup_steps = STEPS / 10;
    config.lr = 1e-3;
    config.momentum = 0.98; /* of the teacher: few steps want a short memory */

    size_t bytes;
    check(sd_pretrainer_memory(context, &config, &bytes), "settings");
    printf("training needs %.1f MiB\n", (double)bytes / 1048576);

    sd_pretrainer *trainer;
    check(sd_pretrainer_create(context, &config, &trainer), "pretrainer");

    /* 4. The loop is yours: choose images, call a step, look at the numbers, stop whenever you like. */
    for (int step = 0; step < STEPS; step++) {
        sd_image batch[BATCH];
        for (int i = 0; i < BATCH; i++) {
            batch[i] = images[sd_random_below(&random, IMAGES)];
        }
        sd_step_metrics metrics = {.size = sizeof metrics};
        check(sd_pretrainer_step(trainer, batch, BATCH, &metrics), "step");
        if (step % 5 == 0 || step == STEPS - 1) {
            printf("step %2d  loss %7.4f = -compression %.4f - expansion %.4f  effective rank %4.1f\n", step,
                   metrics.loss, metrics.compression, metrics.expansion, metrics.effective_rank);
        }
    }

    /* 5. Save everything; sd_pretrainer_resume() would go on exactly here. */
    check(sd_pretrainer_save(trainer, path), "save");
    sd_pretrainer_destroy(trainer);

    /* 6. Later, or in another program: load the teacher, which is the better network, and compute features. */
    sd_model *model;
    check(sd_model_load(context, path, 1, &model), "load");
    sd_embed_config embed_config;
    sd_embed_config_init(&embed_config);
    embed_config.mean[0] = config.augment.mean[0]; /* as in training */
    embed_config.std[0] = config.augment.std[0];
    /* The weights stay as they are: prepare them once instead of for every image. */
    check(sd_model_pack(model, embed_config.precision), "pack");
    sd_embedder *embedder;
    check(sd_embedder_create(context, model, &embed_config, &embedder), "embedder");
    float feature[64];
    check(sd_embed_images(embedder, images, 1, feature, 64), "embed");
    printf("the first of %zu numbers of an image's feature: %.4f %.4f %.4f\n", sd_embedder_dim(embedder),
           (double)feature[0], (double)feature[1], (double)feature[2]);

    sd_embedder_destroy(embedder);
    sd_model_destroy(model);
    sd_context_destroy(context); /* last: the others were made with it */
    if (argc <= 1) {
        remove(path);
    }
    return 0;
}
