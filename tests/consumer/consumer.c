/* A host program outside of the tree, in C99: pretrains a tiny network on pictures that it makes itself, resumes from a
 * checkpoint, and asks for embeddings. Built by run.sh against an installed library with the flags of pkg-config alone. */
#include <math.h>
#include <simdino/simdino.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 16
#define SIDE 12

static int failures;

static void check(int condition, const char *what) {
    printf("%s %s\n", condition ? "fine:" : "WRONG:", what);
    if (!condition) {
        printf("       last error: %s\n", sd_last_error());
        failures++;
    }
}

/* Stripes of different direction and width. */
static void draw(unsigned char *pixels, sd_image *images) {
    for (int i = 0; i < COUNT; i++) {
        unsigned char *picture = pixels + i * SIDE * SIDE * 3;
        for (int y = 0; y < SIDE; y++)
            for (int x = 0; x < SIDE; x++)
                for (int c = 0; c < 3; c++)
                    picture[(y * SIDE + x) * 3 + c] =
                        (unsigned char)(((x * (i % 4) + y * (i / 4)) * (20 + 5 * c)) & 255);
        memset(&images[i], 0, sizeof images[i]);
        images[i].pixels = picture;
        images[i].width = images[i].height = SIDE;
        images[i].channels = 3;
    }
}

static void configure(sd_pretrainer_config *config) {
    sd_pretrainer_config_init(config);
    config->model.image_size = 8;
    config->model.patch_size = 4;
    config->model.dim = 16;
    config->model.depth = 2;
    config->model.heads = 2;
    config->model.head_hidden = 16;
    config->model.head_dim = 8;
    config->augment.global_size = 8;
    config->augment.local_size = 4;
    config->augment.local_crops = 2;
    config->batch_size = COUNT / 2;
    config->total_steps = 6;
    config->warmup_steps = 2;
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "consumer.safetensors";
    static unsigned char pixels[COUNT * SIDE * SIDE * 3];
    static sd_image images[COUNT];
    draw(pixels, images);

    check(sd_version() == SD_VERSION_MAJOR * 10000 + SD_VERSION_MINOR * 100 + SD_VERSION_PATCH, "version");

    sd_context_config context_config;
    sd_context_config_init(&context_config);
    context_config.threads = 2;
    context_config.blas_threads = SD_BLAS_THREADS_ONE;
    sd_context *context = NULL;
    check(sd_context_create(&context_config, &context) == SD_OK, "sd_context_create");

    sd_dataset *dataset = NULL;
    check(sd_dataset_from_images(context, images, COUNT, NULL, &dataset) == SD_OK, "sd_dataset_from_images");

    sd_pretrainer_config config;
    configure(&config);
    sd_pretrainer *trainer = NULL;
    check(sd_pretrainer_create(context, &config, &trainer) == SD_OK, "sd_pretrainer_create");

    sd_loader_config loader_config;
    sd_loader_config_init(&loader_config);
    loader_config.batch_size = config.batch_size;
    sd_loader *loader = NULL;
    check(sd_loader_create(context, dataset, &config.augment, &loader_config, &loader) == SD_OK, "sd_loader_create");

    sd_step_metrics metrics;
    memset(&metrics, 0, sizeof metrics);
    metrics.size = sizeof metrics;
    for (int step = 0; step < 3; step++)
        check(sd_pretrainer_step_loader(trainer, loader, &metrics) == SD_OK && isfinite(metrics.loss), "step");
    check(sd_pretrainer_save(trainer, path) == SD_OK, "sd_pretrainer_save");
    check(sd_pretrainer_step_loader(trainer, loader, &metrics) == SD_OK, "fourth step");
    double uninterrupted = metrics.loss;
    sd_pretrainer_destroy(trainer);
    trainer = NULL;

    check(sd_pretrainer_resume(context, path, &trainer) == SD_OK, "sd_pretrainer_resume");
    check(sd_pretrainer_step_loader(trainer, loader, &metrics) == SD_OK, "fourth step again");
    check(metrics.loss == uninterrupted, "the resumed run has the loss of the one that was not stopped");

    sd_embedder *embedder = NULL;
    check(sd_embedder_create(context, sd_pretrainer_teacher(trainer), NULL, &embedder) == SD_OK, "sd_embedder_create");
    size_t dim = sd_embedder_dim(embedder);
    float *features = malloc(COUNT * dim * sizeof *features);
    check(features != NULL && sd_embed_images(embedder, images, COUNT, features, dim) == SD_OK, "sd_embed_images");

    double rate = 0.0;
    check(sd_coding_rate(features, COUNT, dim, dim, 0.5, &rate, NULL, 0) == SD_OK && rate > 0.0, "sd_coding_rate");
    check(sd_coding_rate(NULL, COUNT, dim, dim, 0.5, &rate, NULL, 0) == SD_ERR_ARGUMENT, "NULL is refused");
    check(sd_last_error()[0] != '\0', "and explained");

    free(features);
    sd_embedder_destroy(embedder);
    sd_loader_destroy(loader);
    sd_pretrainer_destroy(trainer);
    sd_dataset_destroy(dataset);
    sd_context_destroy(context);
    remove(path);
    return failures != 0;
}
