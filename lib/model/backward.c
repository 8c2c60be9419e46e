/* The backward pass: block by block from the last, each in two parallel sections: chunks of images (gradients of
 * activations), then tiles of the weight gradients, whose products run over all rows at once. */
#include "math/math.h"
#include "model/model.h"

#include <string.h>

SD_API void sd_backward_inputs_init(sd_backward_inputs *inputs) {
    if (inputs == NULL)
        return;
    memset(inputs, 0, sizeof *inputs);
    inputs->size = sizeof *inputs;
}

typedef struct backward_work {
    const sd_model *model;
    sd_activations *a;
    size_t block;
    bool class_only; /* this block is a last block of which only class tokens are read */
    float *gradient;
    float *const *pixels;
} backward_work;

/* ---- patch embedding ----------------------------------------------------------------------- */

/* Leaves the patches for the weight product, the sum over patch rows for the bias, and the gradient of the pixels where
 * it is wanted. */
static void embed_backward(const backward_work *job, const sd_chunk *chunk, size_t thread, float *partial) {
    const sd_activations *a = job->a;
    const sd_geometry *g = &a->geometry;
    size_t group = sd_group_of(a, chunk->first), d = g->dim;
    const sd_image_group *images = &a->groups[group];
    size_t image_values = g->channels * images->height * images->width;
    float *bias = partial + sd_partials_of(g).patch_bias;
    float *dpatches = a->thread_work[thread].patches;
    for (size_t s = chunk->first; s < chunk->last; s++) {
        size_t row = a->image_row[s], patches = sd_image_tokens(a, s) - 1, place = s - a->group_first[group];
        const float *dx = a->layer.dx + (row + 1) * d;
        float *values = a->layer.patches + row * g->patch_values;
        memset(values, 0, g->patch_values * sizeof *values);
        sd_patches_gather(images->pixels + place * image_values, g->channels, images->height, images->width, g->patch,
                          values + g->patch_values);
        a->kernels->column_sum(dx, patches, d, d, bias);
        if (job->pixels != NULL && job->pixels[group] != NULL) {
            sd_sgemm(false, false, patches, g->patch_values, d, 1.0f, dx, d,
                     job->model->parameters + job->model->layout.patch_weight, g->patch_values, 0.0f, dpatches,
                     g->patch_values);
            sd_patches_scatter(dpatches, g->channels, images->height, images->width, g->patch,
                               job->pixels[group] + place * image_values);
        }
    }
}

/* Gradient of the position embedding of one group: the sum over its images, a range of tokens per task. */
#define SD_POSITION_TOKENS 16

static void position_task(void *argument, size_t index, size_t thread) {
    (void)thread;
    const backward_work *job = argument;
    const sd_activations *a = job->a;
    size_t group = 0, d = a->geometry.dim;
    for (;; group++) {
        size_t tasks = sd_size_ceil(a->group_tokens[group], SD_POSITION_TOKENS);
        if (index < tasks)
            break;
        index -= tasks;
    }
    size_t first = index * SD_POSITION_TOKENS;
    size_t count = sd_size_min(SD_POSITION_TOKENS, a->group_tokens[group] - first);
    float *sum = a->dpositions[group] + first * d;
    memset(sum, 0, count * d * sizeof *sum);
    for (size_t s = a->group_first[group]; s < a->group_first[group + 1]; s++) {
        const float *dx = a->layer.dx + (a->image_row[s] + first) * d;
        for (size_t j = 0; j < count * d; j++)
            sum[j] += dx[j];
    }
}

static sd_status position_backward(const backward_work *job) {
    const sd_activations *a = job->a;
    const sd_geometry *g = &a->geometry;
    size_t tasks = 0;
    for (size_t i = 0; i < a->group_count; i++)
        tasks += sd_size_ceil(a->group_tokens[i], SD_POSITION_TOKENS);
    sd_status status = sd_run(a->context, position_task, (void *)job, tasks);
    if (status != SD_OK)
        return status;
    float *class_token = job->gradient + job->model->layout.cls_token;
    for (size_t i = 0; i < a->group_count; i++) {
        sd_position_backward(a->dpositions[i], g->grid, g->dim, a->groups[i].height / g->patch,
                             a->groups[i].width / g->patch, g->interpolate_offset,
                             job->gradient + job->model->layout.position);
        for (size_t j = 0; j < g->dim; j++)
            class_token[j] += a->dpositions[i][j];
    }
    return SD_OK;
}

/* ---- one block ----------------------------------------------------------------------------- */

static void chunk_task(void *argument, size_t index, size_t thread) {
    const backward_work *job = argument;
    sd_activations *a = job->a;
    if (atomic_load_explicit(&a->cancelled, memory_order_relaxed))
        return;
    if (sd_cancelled(a->context)) {
        atomic_store(&a->cancelled, true);
        return;
    }
    const sd_chunk *chunk = &a->chunks[index];
    float *partial = a->partials + index * a->partial_count;
    memset(partial, 0, a->partial_count * sizeof *partial);
    if (job->class_only)
        sd_class_block_backward(job->model, a, chunk, thread, partial);
    else
        sd_block_backward(job->model, a, job->block, chunk, thread, partial);
    if (job->block == 0)
        embed_backward(job, chunk, thread, partial);
}

/* Adds the chunks' sums over rows to the gradient, in the order of the chunks. */
static void reduce_partials(void *argument) {
    const backward_work *job = argument;
    const sd_activations *a = job->a;
    const sd_layout *l = &job->model->layout;
    const sd_geometry *g = &a->geometry;
    sd_partial_layout p = sd_partials_of(g);
    float *block = job->gradient + job->block * l->block_stride;
    const struct {
        size_t from, count;
        float *to;
        bool wanted;
    } sums[] = {
        {p.norm1_weight, g->dim, block + l->norm1_weight, true},
        {p.norm1_bias, g->dim, block + l->norm1_bias, true},
        {p.qkv_bias, 3 * g->dim, block + l->qkv_bias, true},
        {p.proj_bias, g->dim, block + l->proj_bias, !job->class_only},
        {p.norm2_weight, g->dim, block + l->norm2_weight, !job->class_only},
        {p.norm2_bias, g->dim, block + l->norm2_bias, !job->class_only},
        {p.fc1_bias, g->hidden, block + l->fc1_bias, !job->class_only},
        {p.fc2_bias, g->dim, block + l->fc2_bias, !job->class_only},
        {p.patch_bias, g->dim, job->gradient + l->patch_bias, job->block == 0},
    };
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++)
        if (sums[i].wanted)
            a->kernels->column_sum(a->partials + sums[i].from, a->chunk_count, sums[i].count, a->partial_count,
                                   sums[i].to);
}

static sd_status block_backward(backward_work *job, const sd_product *more, size_t more_count) {
    sd_activations *a = job->a;
    const sd_geometry *g = &a->geometry;
    const sd_layout *l = &job->model->layout;
    const sd_layer_work *layer = &a->layer;
    size_t d = g->dim, f = g->hidden, count = 0;
    const sd_branch *attention = &a->branches[2 * job->block], *mlp = attention + 1;
    size_t rows1 = attention->row_before[a->images], rows2 = mlp->row_before[a->images];
    float *block = job->gradient + job->block * l->block_stride;
    sd_product products[SD_PRODUCTS_MAX];
    sd_status status;

    SD_TRY(sd_run(a->context, chunk_task, job, a->chunk_count));
    SD_EXPECT(!atomic_load(&a->cancelled), SD_ERR_CANCELLED, "the host asked to stop");
    for (size_t i = 0; i < more_count; i++)
        products[count++] = more[i];
    if (job->class_only) {
        products[count++] =
            sd_linear_weight(layer->dqkv, layer->normal1, rows1, 2 * d, d, block + l->qkv_weight + d * d);
    } else {
        products[count++] = sd_linear_weight(layer->dmlp, layer->gelu, rows2, d, f, block + l->fc2_weight);
        products[count++] = sd_linear_weight(layer->dhidden, layer->normal2, rows2, f, d, block + l->fc1_weight);
        products[count++] = sd_linear_weight(layer->dqkv, layer->normal1, rows1, 3 * d, d, block + l->qkv_weight);
        products[count++] = sd_linear_weight(layer->dattention, a->blocks[job->block].attention, rows1, d, d,
                                           block + l->proj_weight);
    }
    if (job->block == 0)
        products[count++] = sd_linear_weight(layer->dx, layer->patches, a->rows, d, g->patch_values,
                                           job->gradient + l->patch_weight);
    SD_TRY(sd_run_products(a->context, products, count, reduce_partials, job));
cleanup:
    return status;
}

/* ---- the pass ------------------------------------------------------------------------------ */

/* The gradient at the output of the last block when all tokens are computed. */
static void begin_all_tokens(sd_activations *a, const float *dtokens) {
    size_t d = a->geometry.dim;
    if (dtokens != NULL)
        memcpy(a->layer.dx, dtokens, a->rows * d * sizeof(float));
    else
        memset(a->layer.dx, 0, a->rows * d * sizeof(float));
    for (size_t s = 0; s < a->images; s++) {
        float *row = a->layer.dx + a->image_row[s] * d;
        for (size_t j = 0; j < d; j++)
            row[j] += a->tail.dout[s * d + j];
    }
}

SD_API sd_status sd_model_backward(const sd_model *model, sd_activations *a, const sd_backward_inputs *inputs_source,
                                   float *gradient, int32_t accumulate, float *const *pixels) {
    SD_REQUIRE(model != NULL && a != NULL && gradient != NULL, SD_ERR_ARGUMENT, "%s is NULL",
               model == NULL ? "model" : a == NULL ? "activations" : "gradient");
    sd_backward_inputs inputs;
    sd_backward_inputs_init(&inputs);
    sd_status status = sd_config_read(&inputs, sizeof inputs, inputs_source, "sd_backward_inputs");
    if (status != SD_OK)
        return status;
    SD_REQUIRE(a->mode != SD_ACTIVATIONS_INFERENCE, SD_ERR_STATE,
               "the activations are for inference: nothing was stored");
    SD_REQUIRE(a->has_forward, SD_ERR_STATE, "there was no forward pass before this backward pass");
    SD_REQUIRE(memcmp(&model->geometry, &a->geometry, sizeof a->geometry) == 0, SD_ERR_MISMATCH,
               "the activations were made for a model of another configuration");
    SD_REQUIRE(inputs.features == NULL || a->has_head, SD_ERR_STATE,
               "a gradient of the features is given, but the forward pass had no head");
    SD_REQUIRE(inputs.tokens == NULL || a->all_tokens, SD_ERR_ARGUMENT,
               "a gradient of the tokens is given, but the activations were planned without all_tokens");
    if (!accumulate)
        memset(gradient, 0, model->parameter_count * sizeof *gradient);
    atomic_store(&a->cancelled, false);

    backward_work job = {.model = model, .a = a, .gradient = gradient, .pixels = pixels};
    sd_product more[SD_PRODUCTS_MAX];
    SD_TRY(sd_tail_backward(model, a, inputs.class_tokens, inputs.features, gradient));
    if (a->all_tokens)
        begin_all_tokens(a, inputs.tokens);
    else
        SD_TRY(sd_tail_block_backward(model, a, gradient));
    size_t more_count = sd_tail_products(model, a, inputs.features != NULL, gradient, more);
    for (size_t block = a->geometry.depth; block-- > 0; more_count = 0) {
        job.block = block;
        job.class_only = !a->all_tokens && block + 1 == a->geometry.depth;
        SD_TRY(block_backward(&job, more, more_count));
    }
    SD_TRY(position_backward(&job));
    a->has_forward = a->mode == SD_ACTIVATIONS_SPEED;
cleanup:
    return status;
}
