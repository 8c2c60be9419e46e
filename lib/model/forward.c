/* The forward pass. Chunks of images go through a block independently of each other, all of them before the next block,
 * whose weights are then packed once (block_weights.c); then come the rows of the class tokens (tail.c). */
#include "math/math.h"
#include "model/model.h"

#include <string.h>

SD_API void sd_forward_options_init(sd_forward_options *options) {
    if (options == NULL)
        return;
    memset(options, 0, sizeof *options);
    options->size = sizeof *options;
    options->head = 1;
}

SD_API void sd_forward_outputs_init(sd_forward_outputs *outputs) {
    if (outputs == NULL)
        return;
    memset(outputs, 0, sizeof *outputs);
    outputs->size = sizeof *outputs;
}

/* ---- the pass's tables --------------------------------------------------------------------- */

/* Which token rows the patches lie in that have outputs of their own. */
static sd_status place_patches(sd_activations *a, const sd_forward_options *options) {
    const sd_geometry *g = &a->geometry;
    sd_tail *tail = &a->tail;
    size_t per_image = sd_geometry_patches(g, a->groups[0].height, a->groups[0].width), next = 0;
    SD_REQUIRE(options->patch_count <= a->max_patches, SD_ERR_ARGUMENT,
               "patch_count is %zu: the activations were planned for at most %zu (max_patches)", options->patch_count,
               a->max_patches);
    SD_REQUIRE(options->patches != NULL || options->patch_count == 0, SD_ERR_ARGUMENT, "patches is NULL");
    for (size_t s = 0; s < a->images; s++) {
        tail->patch_before[s] = next;
        for (; next < options->patch_count && options->patches[next] / per_image == s; next++) {
            SD_REQUIRE(next == 0 || options->patches[next] > options->patches[next - 1], SD_ERR_ARGUMENT,
                       "patches[%zu] is %zu: the numbers must ascend", next, options->patches[next]);
            if (s < a->groups[0].count)
                tail->patch_rows[next] =
                    a->image_row[s] + 1 + g->registers + options->patches[next] % per_image;
        }
    }
    tail->patch_before[a->images] = next;
    SD_REQUIRE(next == options->patch_count && (next == 0 || options->patches[next - 1] < a->groups[0].count * per_image),
               SD_ERR_ARGUMENT, "patches[%zu] is not a patch of group 0 (%zu images of %zu patches), or out of order",
               sd_size_min(next, options->patch_count - 1), a->groups[0].count, per_image);
    tail->patch_count = next;
    return SD_OK;
}

static void halve_last_chunks(sd_activations *a) {
    if (a->chunk_count <= SD_WIDE_CHUNKS)
        return;
    sd_chunk last[SD_HALVED_CHUNKS];
    size_t count = a->chunk_count -= SD_HALVED_CHUNKS;
    memcpy(last, a->chunks + count, sizeof last);
    for (size_t i = 0; i < SD_HALVED_CHUNKS; i++) {
        size_t middle = last[i].first + (last[i].last - last[i].first) / 2;
        if (middle > last[i].first)
            a->chunks[a->chunk_count++] = (sd_chunk){last[i].first, middle};
        a->chunks[a->chunk_count++] = (sd_chunk){middle, last[i].last};
    }
}

static sd_status begin_pass(sd_activations *a, const sd_image_group *groups, size_t count,
                            const sd_forward_options *options) {
    const sd_geometry *g = &a->geometry;
    SD_REQUIRE(groups != NULL && count == a->group_count, SD_ERR_ARGUMENT,
               "group_count is %zu: the activations were planned for %zu groups", groups == NULL ? (size_t)0 : count,
               a->group_count);
    size_t images = 0;
    for (size_t i = 0; i < count; i++) {
        const sd_image_group *planned = &a->planned[i];
        SD_REQUIRE(groups[i].height == planned->height && groups[i].width == planned->width, SD_ERR_ARGUMENT,
                   "group %zu has images of %zu x %zu pixels: the activations were planned for %zu x %zu", i,
                   groups[i].height, groups[i].width, planned->height, planned->width);
        SD_REQUIRE(groups[i].count <= planned->count, SD_ERR_ARGUMENT,
                   "group %zu has %zu images: the activations were planned for at most %zu", i, groups[i].count,
                   planned->count);
        SD_REQUIRE(groups[i].pixels != NULL || groups[i].count == 0, SD_ERR_ARGUMENT,
                   "the pixels of group %zu are NULL", i);
        images += groups[i].count;
    }
    SD_REQUIRE(images > 0, SD_ERR_ARGUMENT, "the groups have no images");

    for (size_t i = 0; i < count; i++) {
        a->masks[i] = options->masks == NULL ? NULL : options->masks[i];
        SD_REQUIRE(a->masks[i] == NULL || g->mask_token, SD_ERR_ARGUMENT,
                   "masks are given for group %zu, but the model has no mask token", i);
    }
    a->images = a->rows = a->chunk_count = 0;
    size_t probability = 0;
    for (size_t i = 0; i < count; i++) {
        size_t tokens = sd_geometry_tokens(g, groups[i].height, groups[i].width);
        size_t per_chunk = sd_size_max(a->max_chunk_rows / tokens, 1);
        a->groups[i] = groups[i];
        a->group_first[i] = a->images;
        a->group_tokens[i] = tokens;
        for (size_t s = 0; s < groups[i].count; s++) {
            if (s % per_chunk == 0)
                a->chunks[a->chunk_count++] =
                    (sd_chunk){a->images, a->images + sd_size_min(per_chunk, groups[i].count - s)};
            a->tail.probability_start[a->images] = probability;
            probability += sd_mixer_sides(a->mode) * g->heads * sd_padded_row(tokens);
            a->image_row[a->images++] = a->rows;
            a->rows += tokens;
        }
    }
    a->group_first[count] = a->images;
    a->image_row[a->images] = a->rows;
    halve_last_chunks(a);
    return place_patches(a, options);
}

/* ---- one chunk ----------------------------------------------------------------------------- */

typedef struct forward_work {
    const sd_model *model;
    sd_activations *a;
    const sd_forward_outputs *outputs;
    size_t block;
} forward_work;

/* x = [class token + its position; registers; W patches + b, or the mask token, + their positions]. wide: the product is
 * divided among the threads. */
static sd_status embed_chunk(const sd_model *model, const sd_activations *a, const sd_chunk *chunk, float *x,
                             sd_thread_work *work, bool wide) {
    const sd_geometry *g = &a->geometry;
    const float *parameters = model->parameters;
    size_t d = g->dim, start = a->image_row[chunk->first], rows = a->image_row[chunk->last] - start;
    size_t group = sd_group_of(a, chunk->first), extra = 1 + g->registers;
    const sd_image_group *images = &a->groups[group];
    size_t image_values = g->channels * images->height * images->width;
    for (size_t s = chunk->first; s < chunk->last; s++) {
        /* class token and registers have rows of zeros, so that one product does all rows */
        float *patches = work->patches + (a->image_row[s] - start) * g->patch_values;
        memset(patches, 0, extra * g->patch_values * sizeof *patches);
        sd_patches_gather(images->pixels + (s - a->group_first[group]) * image_values, g->channels, images->height,
                          images->width, g->patch, patches + extra * g->patch_values);
    }
    sd_status status = sd_chunk_product(a, wide ? NULL : work->gemm,
                                        sd_linear_forward(work->patches, rows, g->patch_values,
                                                          parameters + model->layout.patch_weight, d, x));
    if (status != SD_OK)
        return status;
    const float *class_token = parameters + model->layout.cls_token, *bias = parameters + model->layout.patch_bias;
    const float *mask_token = parameters + model->layout.mask_token;
    size_t patches = a->group_tokens[group] - extra;
    for (size_t s = chunk->first; s < chunk->last; s++) {
        const float *position = a->positions[group];
        const uint8_t *mask = sd_image_mask(a, group, s);
        for (size_t j = 0; j < d; j++)
            x[j] = class_token[j] + position[j];
        memcpy(x + d, parameters + model->layout.registers, g->registers * d * sizeof *x);
        x += extra * d;
        position += d;
        for (size_t t = 0; t < patches; t++, x += d, position += d) {
            if (mask != NULL && mask[t] != 0) {
                for (size_t j = 0; j < d; j++)
                    x[j] = mask_token[j] + position[j];
            } else {
                for (size_t j = 0; j < d; j++)
                    x[j] += bias[j] + position[j];
            }
        }
    }
    return SD_OK;
}

/* Rows of a chunk as an output wants them: as they are, or after the final norm. */
static void leave_rows(const sd_model *model, const sd_activations *a, const float *x, size_t rows, bool norm,
                       float *out, sd_thread_work *work) {
    size_t d = a->geometry.dim;
    if (norm) /* mean and deviation are not needed: they go where nothing is kept any more */
        a->kernels->layer_norm(x, rows, d, model->parameters + model->layout.norm_weight,
                               model->parameters + model->layout.norm_bias, out, work->normal, work->branch);
    else
        memcpy(out, x, rows * d * sizeof(float));
}

static void leave_tokens(const sd_model *model, const sd_activations *a, const sd_chunk *chunk, const float *x,
                         const sd_forward_outputs *outputs, sd_thread_work *work) {
    size_t d = a->geometry.dim, start = a->image_row[chunk->first], rows = a->image_row[chunk->last] - start;
    const sd_tail *tail = &a->tail;
    for (size_t s = chunk->first; s < chunk->last; s++)
        memcpy(tail->out + s * d, x + (a->image_row[s] - start) * d, d * sizeof(float));
    for (size_t i = tail->patch_before[chunk->first]; i < tail->patch_before[chunk->last]; i++)
        memcpy(tail->out + (a->images + i) * d, x + (tail->patch_rows[i] - start) * d, d * sizeof(float));
    if (outputs->tokens != NULL)
        memcpy(outputs->tokens + start * d, x, rows * d * sizeof(float));
    if (outputs->tokens_norm != NULL)
        leave_rows(model, a, x, rows, true, outputs->tokens_norm + start * d, work);
}

/* What was asked for of a block whose output is x. */
static void leave_block(const sd_model *model, const sd_activations *a, size_t block, const sd_chunk *chunk,
                        const sd_block_store *store, const float *x, const sd_forward_outputs *outputs,
                        sd_thread_work *work) {
    size_t d = a->geometry.dim, start = a->image_row[chunk->first], rows = a->image_row[chunk->last] - start;
    for (size_t i = 0; outputs->block_tokens != NULL && i < outputs->block_count; i++)
        if (outputs->blocks[i] == (int32_t)block)
            leave_rows(model, a, x, rows, outputs->block_norm != 0,
                       outputs->block_tokens + (i * a->rows + start) * d, work);
    if (outputs->attention == NULL || outputs->attention_block != (int32_t)block)
        return;
    const sd_branch *branch = &a->branches[2 * block];
    size_t heads = a->geometry.heads, compact = branch->row_before[chunk->first];
    size_t place = 0; /* of the chunk's first image: the matrices of the images before it */
    for (size_t s = 0; s < chunk->first; s++)
        place += heads * sd_image_tokens(a, s) * sd_image_tokens(a, s);
    for (size_t s = chunk->first; s < chunk->last; s++) {
        size_t tokens = sd_image_tokens(a, s);
        float *matrices = outputs->attention + place;
        place += heads * tokens * tokens;
        if (!sd_branch_keeps(branch, s)) {
            memset(matrices, 0, heads * tokens * tokens * sizeof *matrices);
            continue;
        }
        const float *qkv = sd_normalized_qkv(model, a, block, s,
                                             store->qkv + (branch->row_before[s] - compact) * 3 * d, work);
        for (size_t head = 0; head < heads; head++)
            sd_attention_probabilities(a->kernels, work->gemm, qkv, tokens, d, heads, head, matrices + head * tokens * tokens,
                                       work->attention);
    }
}

static void forward_task(void *argument, size_t index, size_t thread) {
    const forward_work *job = argument;
    sd_activations *a = job->a;
    const sd_model *model = job->model;
    if (index >= a->chunk_count) {
        a->side_function(a->side_work, index - a->chunk_count, thread);
        return;
    }
    if (atomic_load_explicit(&a->cancelled, memory_order_relaxed))
        return;
    if (sd_cancelled(a->context)) {
        atomic_store(&a->cancelled, true);
        return;
    }
    const sd_chunk *chunk = &a->chunks[index];
    sd_thread_work *work = &a->thread_work[thread];
    size_t block = job->block, depth = a->geometry.depth;
    sd_block_store store = sd_chunk_store(a, block, chunk, thread);
    if (block == 0)
        (void)embed_chunk(model, a, chunk, store.x, work, false); /* fails only when wide */
    if (!a->all_tokens && block + 1 == depth) {
        sd_class_block_forward(model, a, chunk, thread);
        return;
    }
    float *out = store.x;
    if (a->mode != SD_ACTIVATIONS_INFERENCE)
        out = a->blocks[block + 1].x + a->image_row[chunk->first] * a->geometry.dim;
    sd_block_forward(model, a, block, chunk, &store, out, work);
    leave_block(model, a, block, chunk, &store, out, job->outputs, work);
    if (block + 1 == depth)
        leave_tokens(model, a, chunk, out, job->outputs, work);
}

/* Block after block, all chunks through each. */
static sd_status forward_chunks(forward_work *job) {
    sd_activations *a = job->a;
    size_t depth = a->geometry.depth;
    sd_status status;
    for (job->block = 0; job->block < depth; job->block++) {
        bool last = job->block + 1 == depth;
        if (a->all_tokens || !last)
            SD_TRY(sd_block_weights_forward(job->model, a, job->block));
        SD_TRY(sd_run(a->context, forward_task, job, a->chunk_count + (last ? a->side_count : 0)));
        a->side_done |= last;
        SD_EXPECT(!atomic_load(&a->cancelled), SD_ERR_CANCELLED, "the host asked to stop");
    }
cleanup:
    return status;
}

/* ---- a pass of a few images, divided among all threads (strips.c, wide.c) --------------------- */

/* Of a chunk, at least and on average, for Strassen's formulas, whose sums are of use for many rows. */
#define STRASSEN_ROWS ((size_t)64)

static bool goes_wide(const sd_activations *a) {
    return a->mode == SD_ACTIVATIONS_INFERENCE && a->chunk_count <= SD_WIDE_CHUNKS && a->side_count == 0 &&
           !a->geometry.qk_norm;
}

static sd_status forward_wide(const forward_work *job) {
    sd_activations *a = job->a;
    const sd_model *model = job->model;
    sd_thread_work *work = &a->thread_work[0];
    size_t depth = a->geometry.depth, full_blocks = a->all_tokens ? depth : depth - 1;
    sd_status status;
    for (size_t i = 0; i < a->chunk_count; i++)
        SD_TRY(embed_chunk(model, a, &a->chunks[i], sd_chunk_store(a, 0, &a->chunks[i], 0).x, work, true));
    for (size_t block = 0; block < full_blocks; block++) {
        SD_TRY(sd_check_cancel(a->context));
        if (a->shared_qkv != NULL) {
            SD_TRY(sd_block_weights_forward(model, a, block));
            SD_TRY(sd_block_forward_strips(model, a, block));
        }
        for (size_t i = 0; i < a->chunk_count; i++) {
            const sd_chunk *chunk = &a->chunks[i];
            sd_block_store store = sd_chunk_store(a, block, chunk, 0);
            if (a->shared_qkv != NULL)
                store.qkv = a->shared_qkv + a->image_row[chunk->first] * 3 * a->geometry.dim;
            else
                SD_TRY(sd_block_forward_wide(model, a, block, chunk, &store, store.x));
            leave_block(model, a, block, chunk, &store, store.x, job->outputs, work);
        }
    }
    for (size_t i = 0; i < a->chunk_count; i++) {
        const sd_chunk *chunk = &a->chunks[i];
        if (a->all_tokens)
            leave_tokens(model, a, chunk, sd_chunk_store(a, 0, chunk, 0).x, job->outputs, work);
        else
            sd_class_block_forward(model, a, chunk, 0);
    }
cleanup:
    return status;
}

void sd_activations_set_side_work(sd_activations *a, sd_parallel_function function, void *work, size_t count) {
    a->side_function = function;
    a->side_work = work;
    a->side_count = count;
    a->side_done = count == 0;
}

bool sd_activations_side_done(const sd_activations *a) { return a->side_done; }

/* ---- the pass ------------------------------------------------------------------------------ */

SD_API sd_status sd_model_forward(const sd_model *model, sd_activations *a, const sd_image_group *groups,
                                  size_t group_count, const sd_forward_options *options_source,
                                  const sd_forward_outputs *outputs_source) {
    SD_REQUIRE(model != NULL && a != NULL, SD_ERR_ARGUMENT, "%s is NULL", model == NULL ? "model" : "activations");
    sd_forward_options options;
    sd_forward_outputs outputs;
    sd_forward_options_init(&options);
    sd_forward_outputs_init(&outputs);
    sd_status status = sd_config_read(&options, sizeof options, options_source, "sd_forward_options");
    if (status == SD_OK)
        status = sd_config_read(&outputs, sizeof outputs, outputs_source, "sd_forward_outputs");
    if (status != SD_OK)
        return status;
    const sd_geometry *g = &a->geometry;
    SD_REQUIRE(memcmp(&model->geometry, g, sizeof *g) == 0, SD_ERR_MISMATCH,
               "the activations were made for a model of another configuration");
    bool head = options.head != 0 && g->head_layers > 0;
    SD_REQUIRE((outputs.features == NULL && outputs.patch_features == NULL) || head, SD_ERR_ARGUMENT,
               "features are asked for, but %s", g->head_layers == 0 ? "the model has no head" : "options.head is 0");
    SD_REQUIRE((outputs.tokens == NULL && outputs.tokens_norm == NULL && outputs.block_tokens == NULL &&
                outputs.attention == NULL) ||
                   a->all_tokens,
               SD_ERR_ARGUMENT, "tokens are asked for, but the activations were planned without all_tokens");
    SD_REQUIRE(outputs.block_tokens == NULL || outputs.blocks != NULL, SD_ERR_ARGUMENT, "blocks is NULL");
    for (size_t i = 0; outputs.block_tokens != NULL && i < outputs.block_count; i++)
        SD_REQUIRE(outputs.blocks[i] >= 0 && (size_t)outputs.blocks[i] < g->depth &&
                       (i == 0 || outputs.blocks[i] > outputs.blocks[i - 1]),
                   SD_ERR_ARGUMENT, "blocks[%zu] is %d: the blocks are 0 to %zu, ascending", i, outputs.blocks[i],
                   g->depth - 1);
    SD_REQUIRE(outputs.attention == NULL ||
                   (outputs.attention_block >= 0 && (size_t)outputs.attention_block < g->depth),
               SD_ERR_ARGUMENT, "attention_block is %d: the blocks are 0 to %zu", outputs.attention_block, g->depth - 1);
    a->has_forward = false;
    status = begin_pass(a, groups, group_count, &options);
    if (status != SD_OK)
        return status;
    for (size_t i = 0; i < group_count; i++)
        sd_position_forward(model->parameters + model->layout.position, g->grid, g->dim, groups[i].height / g->patch,
                            groups[i].width / g->patch, &g->position, a->positions[i]);
    sd_drop_paths(a, &options);

    forward_work work = {.model = model, .a = a, .outputs = &outputs};
    a->strassen = a->gemms[0].strassen != NULL && a->chunk_count > 1 && !goes_wide(a) &&
                  a->rows >= STRASSEN_ROWS * a->chunk_count;
    atomic_store(&a->cancelled, false);
    status = goes_wide(a) ? forward_wide(&work) : forward_chunks(&work);
    a->side_count = 0;
    SD_TRY(status);
    SD_TRY(sd_tail_forward(model, a, head));
    if (outputs.class_tokens != NULL)
        memcpy(outputs.class_tokens, a->tail.normal, a->images * g->dim * sizeof(float));
    size_t width = g->head_width[g->head_layers], patches = a->tail.patch_count;
    if (outputs.features != NULL)
        memcpy(outputs.features, a->tail.features, a->images * width * sizeof(float));
    if (outputs.patch_tokens != NULL)
        memcpy(outputs.patch_tokens, a->tail.normal + a->images * g->dim, patches * g->dim * sizeof(float));
    if (outputs.patch_features != NULL)
        memcpy(outputs.patch_features, a->tail.features + a->images * width, patches * width * sizeof(float));
    a->has_forward = true;
    a->has_head = head;
cleanup:
    return status;
}
