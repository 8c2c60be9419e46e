/* Passes of the network over prepared images of one size, and what their tokens give for features. */
#include "embed/embedder.h"

#include <string.h>

sd_status sd_embedder_plan(sd_embedder *e, size_t height, size_t width, size_t count, bool all_tokens,
                           sd_activations **activations) {
    sd_embed_plan *place = &e->plans[0];

    for (size_t i = 0; i < SD_EMBEDDER_PLANS; i++) {
        sd_embed_plan *p = &e->plans[i];
        if (p->activations && p->height == height && p->width == width && p->all_tokens == all_tokens) {
            place = p;
            break;
        }
        if (place->activations && (!p->activations || p->used < place->used))
            place = p;
    }
    if (!place->activations || place->height != height || place->width != width || place->all_tokens != all_tokens ||
        place->count < count) {
        const sd_image_group shape = {.count = count, .height = height, .width = width};
        sd_activations *made = NULL;
        sd_activations_destroy(place->activations); /* first, so that both need not fit */
        *place = (sd_embed_plan){0};
        sd_activations_config config;
        sd_activations_config_init(&config);
        config.mode = SD_ACTIVATIONS_INFERENCE;
        config.all_tokens = all_tokens;
        config.precision = e->config.precision;
        sd_status status = sd_activations_create_with(e->model, &shape, 1, &config, &made);
        if (status != SD_OK)
            return status;
        *place = (sd_embed_plan){
            .activations = made, .height = height, .width = width, .count = count, .all_tokens = all_tokens};
    }
    place->used = ++e->clock;
    *activations = place->activations;
    return SD_OK;
}

size_t sd_embedder_tokens(const sd_embedder *e, const sd_embed_item *it) {
    return 1 + e->registers + (it->height / e->patch) * (it->width / e->patch);
}

void sd_embedder_last_blocks(const sd_embedder *e, int32_t numbers[SD_EMBEDDER_BLOCKS_MAX]) {
    for (int32_t i = 0; i < e->config.blocks; i++)
        numbers[i] = (int32_t)e->depth - e->config.blocks + i;
}

/* Class tokens of blocks and the mean of patches, out of the tokens of the last blocks (block after block, image after
 * image) and those after the final norm. */
static void pool(const sd_embedder *e, size_t tokens, size_t count, const float *blocks, const float *normal,
                 float *features) {
    size_t d = e->width, extra = 1 + e->registers, n = (size_t)e->config.blocks;

    for (size_t i = 0; i < count; i++, features += e->dim) {
        float *mean = features;
        if (e->config.kind != SD_EMBED_MEAN) {
            for (size_t b = 0; b < n; b++)
                memcpy(features + b * d, blocks + (b * count + i) * tokens * d, d * sizeof *features);
            mean += n * d;
        }
        if (e->config.kind == SD_EMBED_CLASS)
            continue;
        for (size_t j = 0; j < d; j++) {
            double sum = 0.0;
            for (size_t t = extra; t < tokens; t++)
                sum += (double)normal[(i * tokens + t) * d + j];
            mean[j] = (float)(sum / (double)(tokens - extra));
        }
    }
}

/* Images whose tokens are kept together: up to 64 MiB of them. */
#define TOKEN_BYTES ((size_t)64 << 20)

static sd_status forward_tokens(sd_embedder *e, size_t first, size_t count) {
    const sd_embed_item *it = &e->items[first];
    size_t tokens = sd_embedder_tokens(e, it), n = (size_t)e->config.blocks, d = e->width;
    size_t most = sd_size_max(TOKEN_BYTES / ((n + 1) * tokens * d * sizeof(float)), 1), values;
    int32_t numbers[SD_EMBEDDER_BLOCKS_MAX];
    sd_status status = SD_OK;

    sd_embedder_last_blocks(e, numbers);
    for (size_t done = 0; done < count; done += most) {
        size_t part = sd_size_min(most, count - done);
        const sd_image_group group = {.pixels = (const float *)e->pixels.data + e->items[first + done].pixels,
                                      .count = part, .height = it->height, .width = it->width};
        sd_activations *activations = NULL;
        sd_forward_options options;
        sd_forward_outputs outputs;
        SD_TRY(sd_embedder_plan(e, it->height, it->width, part, true, &activations));
        SD_EXPECT(sd_size_mul(part * tokens, (n + 1) * d, &values), SD_ERR_MEMORY,
                  "the tokens of %zu images do not fit into memory", part);
        SD_TRY(sd_embedder_reserve(e->context, &e->tokens, values, sizeof(float)));
        float *blocks = e->tokens.data, *normal = blocks + n * part * tokens * d;
        sd_forward_options_init(&options);
        sd_forward_outputs_init(&outputs);
        options.head = 0;
        outputs.blocks = numbers;
        outputs.block_count = n;
        outputs.block_norm = e->config.block_norm;
        outputs.block_tokens = e->config.kind == SD_EMBED_MEAN ? NULL : blocks;
        outputs.tokens_norm = e->config.kind == SD_EMBED_CLASS ? NULL : normal;
        SD_TRY(sd_model_forward(e->model, activations, &group, 1, &options, &outputs));
        pool(e, tokens, part, blocks, normal, e->features + (first + done) * e->dim);
    }
cleanup:
    return status;
}

sd_status sd_embedder_forward(sd_embedder *e, size_t first, size_t count) {
    const sd_embed_item *it = &e->items[first];
    const sd_image_group group = {.pixels = (const float *)e->pixels.data + it->pixels,
                                  .count = count,
                                  .height = it->height,
                                  .width = it->width};
    sd_activations *activations = NULL;
    sd_forward_options options;
    sd_forward_outputs outputs;
    sd_status status = SD_OK;

    if (e->all_tokens)
        return forward_tokens(e, first, count);
    status = sd_embedder_plan(e, it->height, it->width, count, false, &activations);
    if (status != SD_OK)
        return status;
    sd_forward_options_init(&options);
    sd_forward_outputs_init(&outputs);
    options.head = e->config.kind == SD_EMBED_HEAD;
    if (e->config.kind == SD_EMBED_HEAD)
        outputs.features = e->features + first * e->dim;
    else
        outputs.class_tokens = e->features + first * e->dim;
    return sd_model_forward(e->model, activations, &group, 1, &options, &outputs);
}
