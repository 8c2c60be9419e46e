/* Embedding: 8-bit images of the network's size in memory to class tokens, the preparation of the pixels included. The
 * last block is computed for the class token alone; GFLOP/s counts the whole network all the same, as users do. */
#include "bench.h"

#include <stdlib.h>

void bench_embed(const options *o, sd_context *context, FILE *json) {
    double before = peak_mib();
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
    if (o->packed)
        check(sd_model_pack(model, o->precision), "pack");
    sd_embed_config config;
    sd_embed_config_init(&config);
    config.batch = (int32_t)o->batch;
    config.precision = o->precision;
    sd_embedder *embedder;
    check(sd_embedder_create(context, model, &config, &embedder), "embedder");

    size_t count = (size_t)o->batch, bytes = (size_t)(o->image * o->image * 3), dim = sd_embedder_dim(embedder);
    unsigned char *pixels = take(count, bytes);
    sd_image *images = take(count, sizeof *images);
    float *out = take(count * dim, sizeof *out);
    double *times = take((size_t)o->steps, sizeof *times);
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
    double grown = peak_mib() - before;
    for (long i = 0; i < o->steps; i++) {
        double begin = now();
        check(sd_embed_images(embedder, images, count, out, dim), "embed");
        times[i] = now() - begin;
    }
    figures f = figures_of(o, context, times, (size_t)o->steps, vit_flop(o, (double)o->image) * (double)o->batch);
    size_t parameters = sd_model_parameter_count(model);
    double weights = 4.0 * (double)parameters / 1048576.0;
    printf("embed dim %ld depth %ld patch %ld, %ld x %ld pixels, batch %ld, %d threads, %s%s\n", o->dim, o->depth,
           o->patch, o->image, o->image, o->batch, sd_context_threads(context), sd_precision_name(o->precision),
           o->packed ? ", weights packed once" : "");
    printf("  %.2f ms a batch (median of %ld, fastest %.2f), %.2f images/s\n  ", 1e3 * f.seconds, o->steps,
           1e3 * f.fastest, (double)o->batch / f.seconds);
    print_rate(&f);
    printf("  the process grew by %.1f MiB, of which weights %.1f MiB\n", grown, weights);
    char extra[160];
    snprintf(extra, sizeof extra,
             ", \"packed\": %d, \"images_per_second\": %.4f, \"grown_mib\": %.1f, \"weights_mib\": %.1f, \"parameters\": %zu",
             o->packed, (double)o->batch / f.seconds, grown, weights, parameters);
    write_json(json, o, context, "embed", &f, extra);
    free(times);
    free(out);
    free(images);
    free(pixels);
    sd_embedder_destroy(embedder);
    sd_model_destroy(model);
}
