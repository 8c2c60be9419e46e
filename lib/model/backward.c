/* The backward pass: block by block from the last, each in two parallel sections: chunks of images (gradients of
 * activations), then tiles of the weight gradients, whose products run over all rows at once. A block of which only the
 * input was stored runs its chunks forward first. */
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

/* Leaves the patches for the weight product, the sums over patch rows for the bias and the mask token, and the gradient of
 * the pixels where it is wanted. A masked patch has a row of zeros, as class token and registers do: its pixels were not
 * seen. */
static void embed_backward(const backward_work *job, const sd_chunk *chunk, size_t thread, float *partial) {
    const sd_activations *a = job->a;
    const sd_geometry *g = &a->geometry;
    size_t group = sd_group_of(a, chunk->first), d = g->dim;
    const sd_image_group *images = &a->groups[group];
    size_t image_values = g->channels * images->height * images->width, extra = 1 + g->registers;
    sd_partial_layout p = sd_partials_of(g);
    float *dpatches = a->thread_work[thread].patches;
    for (size_t s = chunk->first; s < chunk->last; s++) {
        size_t row = a->image_row[s], patches = sd_image_tokens(a, s) - extra, place = s - a->group_first[group];
        const float *dx = a->layer.dx + (row + extra) * d;
        const uint8_t *mask = sd_image_mask(a, group, s);
        float *values = a->layer.patches + row * g->patch_values;
        memset(values, 0, extra * g->patch_values * sizeof *values);
        values += extra * g->patch_values;
        sd_patches_gather(images->pixels + place * image_values, g->channels, images->height, images->width, g->patch,
                          values);
        for (size_t t = 0; t < patches; t++) {
            bool masked = mask != NULL && mask[t] != 0;
            a->kernels->column_sum(dx + t * d, 1, d, d, partial + (masked ? p.mask_token : p.patch_bias));
            if (masked)
                memset(values + t * g->patch_values, 0, g->patch_values * sizeof *values);
        }
        if (job->pixels != NULL && job->pixels[group] != NULL) {
            sd_multiply(&a->gemms[thread], false, false, patches, g->patch_values, d, 1.0f, dx, d,
                     job->model->parameters + job->model->layout.patch_weight, g->patch_values, 0.0f, dpatches,
                     g->patch_values);
            for (size_t t = 0; mask != NULL && t < patches; t++)
                if (mask[t] != 0)
                    memset(dpatches + t * g->patch_values, 0, g->patch_values * sizeof *dpatches);
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
    float *registers = job->gradient + job->model->layout.registers;
    for (size_t i = 0; i < a->group_count; i++) {
        float *sums = a->dpositions[i];
        for (size_t j = 0; j < g->dim; j++)
            class_token[j] += sums[j];
        for (size_t j = 0; j < g->registers * g->dim; j++)
            registers[j] += sums[g->dim + j];
        /* registers have no position: the class token's sum takes the place before the patches */
        memmove(sums + g->registers * g->dim, sums, g->dim * sizeof *sums);
        sd_position_backward(sums + g->registers * g->dim, g->grid, g->dim, a->groups[i].height / g->patch,
                             a->groups[i].width / g->patch, &g->position,
                             job->gradient + job->model->layout.position);
    }
    return SD_OK;
}

/* ---- one block ----------------------------------------------------------------------------- */

static bool is_cancelled(sd_activations *a) {
    if (atomic_load_explicit(&a->cancelled, memory_order_relaxed))
        return true;
    if (!sd_cancelled(a->context))
        return false;
    atomic_store(&a->cancelled, true);
    return true;
}

/* A section of its own, so that the memory of packed weights serves one direction after the other. */
static void recompute_task(void *argument, size_t index, size_t thread) {
    const backward_work *job = argument;
    sd_activations *a = job->a;
    if (is_cancelled(a))
        return;
    const sd_chunk *chunk = &a->chunks[index];
    sd_block_store store = sd_chunk_store(a, job->block, chunk, thread);
    const size_t *row_before = a->branches[2 * job->block].row_before;
    float *kept = sd_layer_rows_of(a, job->block).attention + row_before[chunk->first] * a->geometry.dim;
    store.attention = sd_kept_floats(a, kept, store.attention);
    sd_block_forward(job->model, a, job->block, chunk, &store, NULL, &a->thread_work[thread]);
    sd_keep_rows(a, store.attention, row_before[chunk->last] - row_before[chunk->first], kept);
}

static void chunk_task(void *argument, size_t index, size_t thread) {
    const backward_work *job = argument;
    sd_activations *a = job->a;
    if (is_cancelled(a))
        return;
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
    size_t size = g->dim / g->heads;
    bool scaled = g->layer_scale;
    const struct {
        size_t from, count;
        float *to;
        bool wanted;
    } sums[] = {
        {p.norm1_weight, g->dim, block + l->norm1_weight, true},
        {p.norm1_bias, g->dim, block + l->norm1_bias, true},
        {p.qkv_bias, 3 * g->dim, block + l->qkv_bias, true},
        {p.qk_norm, size, block + l->q_norm_weight, g->qk_norm},
        {p.qk_norm + size, size, block + l->q_norm_bias, g->qk_norm},
        {p.qk_norm + 2 * size, size, block + l->k_norm_weight, g->qk_norm},
        {p.qk_norm + 3 * size, size, block + l->k_norm_bias, g->qk_norm},
        {p.proj_bias, g->dim, scaled ? a->scaled.dproj_bias : block + l->proj_bias, !job->class_only},
        {p.norm2_weight, g->dim, block + l->norm2_weight, !job->class_only},
        {p.norm2_bias, g->dim, block + l->norm2_bias, !job->class_only},
        {p.fc1_bias, g->hidden_in, block + l->fc1_bias, !job->class_only},
        {p.fc2_bias, g->dim, scaled ? a->scaled.dfc2_bias : block + l->fc2_bias, !job->class_only},
        {p.patch_bias, g->dim, job->gradient + l->patch_bias, job->block == 0},
        {p.mask_token, g->dim, job->gradient + l->mask_token, job->block == 0 && g->mask_token},
    };
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++)
        if (sums[i].wanted)
            a->kernels->column_sum(a->partials + sums[i].from, a->chunk_count, sums[i].count, a->partial_count,
                                   sums[i].to);
}

/* dW += dY' X of what was kept; x_step: from row to row of X. */
static sd_product weight_product(const sd_activations *a, const void *dy, const void *x, size_t x_step, size_t rows, size_t out,
                                 size_t in, float *dweight) {
    return a->keeps_bf16 ? sd_linear_weight_bf16(dy, x, x_step, rows, out, in, dweight)
                         : sd_linear_weight(dy, x, rows, out, in, dweight);
}

static sd_status block_backward(backward_work *job, const sd_product *more, size_t more_count) {
    sd_activations *a = job->a;
    const sd_geometry *g = &a->geometry;
    const sd_layout *l = &job->model->layout;
    const sd_layer_work *layer = &a->layer;
    const sd_layer_rows rows = sd_layer_rows_of(a, job->block);
    size_t d = g->dim, f = g->hidden, count = 0;
    const sd_branch *attention = &a->branches[2 * job->block], *mlp = attention + 1;
    size_t rows1 = attention->row_before[a->images], rows2 = mlp->row_before[a->images];
    float *block = job->gradient + job->block * l->block_stride;
    sd_product products[SD_PRODUCTS_MAX];
    float *dfc2 = g->layer_scale ? a->scaled.dfc2 : block + l->fc2_weight;
    float *dproj = g->layer_scale ? a->scaled.dproj : block + l->proj_weight;
    sd_status status = SD_OK;

    if (!job->class_only) { /* else the pass did it before the tail, and only class rows meet the weights */
        SD_TRY(sd_scale_begin(job->model, a, job->block));
        if (job->block < a->recomputed) {
            SD_TRY(sd_block_weights_forward(job->model, a, job->block));
            SD_TRY(sd_run(a->context, recompute_task, job, a->chunk_count));
        }
        SD_TRY(sd_block_weights_backward(job->model, a, job->block));
    }
    SD_TRY(sd_run(a->context, chunk_task, job, a->chunk_count));
    SD_EXPECT(!atomic_load(&a->cancelled), SD_ERR_CANCELLED, "the host asked to stop");
    for (size_t i = 0; i < more_count; i++)
        products[count++] = more[i];
    if (!job->class_only) { /* else they are among `more` */
        const size_t step = 2 * d; /* of bfloat16 in the place of floats */
        products[count++] = weight_product(a, layer->dmlp, layer->gelu, f, rows2, d, f, dfc2);
        products[count++] =
            weight_product(a, rows.dhidden, rows.normal2, step, rows2, g->hidden_in, d, block + l->fc1_weight);
        products[count++] = weight_product(a, rows.dqkv, rows.normal1, step, rows1, 3 * d, d, block + l->qkv_weight);
        products[count++] = weight_product(a, layer->dattention, rows.attention, step, rows1, d, d, dproj);
    }
    if (job->block == 0) {
        products[count] = sd_linear_weight(layer->dx, layer->patches, a->rows, d, g->patch_values,
                                           job->gradient + l->patch_weight);
        products[count++].strassen = false; /* pixels that are 0 in all images leave gradients of 0 */
    }
    SD_TRY(sd_run_products(a->context, a->gemms, products, count, reduce_partials, job));
    SD_TRY(sd_scale_end(job->model, a, job->block, job->gradient));
cleanup:
    return status;
}

/* ---- the pass ------------------------------------------------------------------------------ */

static void add_row(float *row, const float *values, size_t d) {
    for (size_t j = 0; j < d; j++)
        row[j] += values[j];
}

/* The gradient at the output of the last block when all tokens are computed. */
static void begin_all_tokens(const sd_model *model, sd_activations *a, const sd_backward_inputs *inputs,
                             float *gradient) {
    const sd_layout *l = &model->layout;
    const sd_tail *tail = &a->tail;
    size_t d = a->geometry.dim;
    float *dx = a->layer.dx;
    if (inputs->tokens != NULL)
        memcpy(dx, inputs->tokens, a->rows * d * sizeof *dx);
    else
        memset(dx, 0, a->rows * d * sizeof *dx);
    const float *x = a->blocks[a->geometry.depth].x;
    for (size_t row = 0; inputs->tokens_norm != NULL && row < a->rows; row++) {
        float mean, rstd;
        const float *weight = model->parameters + l->norm_weight, *bias = model->parameters + l->norm_bias;
        a->kernels->layer_norm(x + row * d, 1, d, weight, bias, a->thread_work[0].normal, &mean, &rstd);
        a->kernels->layer_norm_backward(inputs->tokens_norm + row * d, x + row * d, &mean, &rstd, 1, d, weight, bias,
                                        dx + row * d, gradient + l->norm_weight, gradient + l->norm_bias, NULL);
    }
    for (size_t s = 0; s < a->images; s++)
        add_row(dx + a->image_row[s] * d, tail->dout + s * d, d);
    for (size_t i = 0; i < tail->patch_count; i++)
        add_row(dx + tail->patch_rows[i] * d, tail->dout + (a->images + i) * d, d);
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
    bool head = inputs.features != NULL || inputs.patch_features != NULL;
    SD_REQUIRE(!head || a->has_head, SD_ERR_STATE,
               "a gradient of the features is given, but the forward pass had no head");
    SD_REQUIRE((inputs.tokens == NULL && inputs.tokens_norm == NULL) || a->all_tokens, SD_ERR_ARGUMENT,
               "a gradient of the tokens is given, but the activations were planned without all_tokens");
    if (!accumulate)
        memset(gradient, 0, model->parameter_count * sizeof *gradient);
    atomic_store(&a->cancelled, false);
    a->has_forward = false; /* gradients take the place of what it stored, even if the pass is cancelled */

    backward_work job = {.model = model, .a = a, .gradient = gradient, .pixels = pixels};
    sd_product more[SD_PRODUCTS_MAX];
    SD_TRY(sd_tail_backward(model, a, &inputs, gradient));
    if (a->all_tokens) {
        begin_all_tokens(model, a, &inputs, gradient);
    } else {
        SD_TRY(sd_scale_begin(model, a, a->geometry.depth - 1));
        SD_TRY(sd_tail_block_backward(model, a, gradient));
    }
    size_t more_count = sd_tail_products(model, a, head, gradient, more);
    for (size_t block = a->geometry.depth; block-- > 0; more_count = 0) {
        job.block = block;
        job.class_only = !a->all_tokens && block + 1 == a->geometry.depth;
        SD_TRY(block_backward(&job, more, more_count));
    }
    SD_TRY(position_backward(&job));
cleanup:
    return status;
}
