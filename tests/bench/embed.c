/* Embedding: 8-bit images of the network's size in memory to class tokens, the preparation of the pixels included. The
 * last block is computed for the class token alone; GFLOP/s counts the whole network all the same, as a user compares. */
#include "bench.h"

#include "base/system.h"

#include <stdlib.h>
#include <sys/resource.h>

static double peak_bytes(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return 1024.0 * (double)usage.ru_maxrss;
}

void bench_embed(const options *o, sd_context *context, FILE *json) {
    double before = peak_bytes();
    sd_model_config shape;
    sd_model_config_init(&shape);
    shape.image_size = (int32_t)o->image;
    shape.patch_size = (int32_t)o->patch;
    shape.dim = (int32_t)o->dim;
    shape.depth = (int32_t)o->depth;
    shape.heads = (int32_t)o->heads;
    shape.head_layers = 0;
    sd_model *model;
    check(sd_model_create(context, &shape, &model), "model");
    sd_model_initialize(model, 1);
    sd_embed_config config;
    sd_embed_config_init(&config);
    config.batch = (int32_t)o->batch;
    config.precision = o->precision;
    sd_embedder *embedder;
    check(sd_embedder_create(context, model, &config, &embedder), "embedder");

    size_t count = (size_t)o->batch, bytes = (size_t)(o->image * o->image * 3), dim = sd_embedder_dim(embedder);
    unsigned char *pixels = malloc(count * bytes);
    sd_image *images = malloc(count * sizeof *images);
    float *out = malloc(count * dim * sizeof *out);
    double *times = calloc((size_t)o->steps, sizeof *times);
    if (pixels == NULL || images == NULL || out == NULL || times == NULL)
        exit(1);
    sd_random random;
    sd_random_init(&random, 1, 0, 0);
    for (size_t i = 0; i < count * bytes; i++)
        pixels[i] = (unsigned char)(256.0 * sd_random_uniform(&random));
    for (size_t i = 0; i < count; i++)
        images[i] = (sd_image){.pixels = pixels + i * bytes,
                               .width = (size_t)o->image,
                               .height = (size_t)o->image,
                               .channels = 3,
                               .pixel_type = SD_PIXEL_U8};
    check(sd_embed_images(embedder, images, count, out, dim), "embed");
    double peak = peak_bytes() - before;
    for (long i = 0; i < o->steps; i++) {
        double begin = now();
        check(sd_embed_images(embedder, images, count, out, dim), "embed");
        times[i] = now() - begin;
    }
    double seconds = median(times, (size_t)o->steps);
    double rate = vit_flop(o, (double)o->image) * (double)o->batch / seconds * 1e-9, ceiling = sgemm_rate(context);
    double weights = 4.0 * (double)sd_model_parameter_count(model);
    printf("embed dim %ld depth %ld patch %ld, %ld x %ld pixels, batch %ld, %d threads, %s\n", o->dim, o->depth, o->patch,
           o->image, o->image, o->batch, sd_context_threads(context), sd_precision_name(o->precision));
    printf("  %.2f ms a batch (median of %ld, fastest %.2f), %.2f images/s, %.1f GFLOP/s = %.1f%% of sgemm (%.1f)\n",
           1e3 * seconds, o->steps, 1e3 * times[0], (double)o->batch / seconds, rate, 100.0 * rate / ceiling, ceiling);
    printf("  the process grew by %.1f MiB, of which weights %.1f MiB\n", peak / 1048576.0, weights / 1048576.0);
    if (json != NULL)
        fprintf(json,
                "{\"mode\": \"embed\", \"precision\": \"%s\", \"dim\": %ld, \"depth\": %ld, \"patch\": %ld, \"image\": %ld, \"batch\": %ld, "
                "\"threads\": %d, \"seconds\": %.6f, \"images_per_second\": %.4f, \"gflops\": %.3f, \"sgemm_gflops\": "
                "%.3f, \"share\": %.4f, \"grown_bytes\": %.0f, \"weights_bytes\": %.0f, \"blas_kernel\": \"%s\"}\n",
                sd_precision_name(o->precision), o->dim, o->depth, o->patch, o->image, o->batch,
                sd_context_threads(context), seconds,
                (double)o->batch / seconds, rate, ceiling, rate / ceiling, peak, weights, sd_blas_kernel());
    free(times);
    free(out);
    free(images);
    free(pixels);
    sd_embedder_destroy(embedder);
    sd_model_destroy(model);
}
