/* Looking into a forward pass: tokens of a block, attention, position embedding. */
#include "model/model.h"

#include <string.h>

static sd_status check_stored(const sd_model *model, const sd_activations *a, int32_t block) {
    SD_REQUIRE(model != NULL && a != NULL, SD_ERR_ARGUMENT, "%s is NULL", model == NULL ? "model" : "activations");
    SD_REQUIRE(a->mode == SD_ACTIVATIONS_SPEED && a->recomputed == 0 && a->all_tokens && a->has_forward, SD_ERR_STATE,
               "this needs a forward pass with SD_ACTIVATIONS_SPEED, no recomputed_blocks and all_tokens");
    SD_REQUIRE(block >= 0 && (size_t)block < a->geometry.depth, SD_ERR_ARGUMENT,
               "block is %d: the model has %zu blocks", block, a->geometry.depth);
    return SD_OK;
}

SD_API sd_status sd_model_block_tokens(const sd_model *model, const sd_activations *a, int32_t block, int32_t norm,
                                       float *tokens) {
    sd_status status = check_stored(model, a, block);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(tokens != NULL, SD_ERR_ARGUMENT, "tokens is NULL");
    size_t d = a->geometry.dim;
    const float *x = a->blocks[block + 1].x;
    if (!norm) {
        memcpy(tokens, x, a->rows * d * sizeof *tokens);
        return SD_OK;
    }
    for (size_t row = 0; row < a->rows; row++) {
        float mean, rstd;
        a->kernels->layer_norm(x + row * d, 1, d, model->parameters + model->layout.norm_weight,
                               model->parameters + model->layout.norm_bias, tokens + row * d, &mean, &rstd);
    }
    return SD_OK;
}

SD_API sd_status sd_model_attention(const sd_model *model, const sd_activations *a, int32_t block, size_t image,
                                    float *attention) {
    sd_status status = check_stored(model, a, block);
    if (status != SD_OK)
        return status;
    SD_REQUIRE(attention != NULL, SD_ERR_ARGUMENT, "attention is NULL");
    SD_REQUIRE(image < a->images, SD_ERR_ARGUMENT, "image is %zu: the pass had %zu images", image, a->images);
    const sd_branch *branch = &a->branches[2 * block];
    SD_REQUIRE(sd_branch_keeps(branch, image), SD_ERR_STATE,
               "stochastic depth dropped the attention of image %zu in block %d", image, block);
    const sd_geometry *g = &a->geometry;
    size_t tokens = sd_image_tokens(a, image), kept_count = tokens * 3 * g->dim;
    size_t floats = sd_attention_work(&a->gemms[0], tokens, g->dim / g->heads);
    const size_t scratch = sd_gemm_scratch(a->precision) / sizeof(float);
    float *work = SD_NEW_ARRAY(a->context, float, floats + scratch + (a->keeps_bf16 ? kept_count : 0));
    if (work == NULL)
        return SD_ERR_MEMORY;
    sd_gemm gemm = a->gemms[0]; /* but others may look at the same activations */
    gemm.scratch = work + floats;
    void *kept = sd_kept_at(a, a->blocks[block].kept_qkv, branch->row_before[image] * 3 * g->dim);
    float *projected = sd_kept_floats(a, kept, work + floats + scratch);
    sd_recall(a, kept, kept_count, projected);
    const float *qkv = sd_normalized_qkv(model, a, (size_t)block, image, projected, &a->thread_work[0]);
    for (size_t head = 0; head < g->heads; head++)
        sd_attention_probabilities(a->kernels, &gemm, qkv, tokens, g->dim, g->heads, head,
                                   attention + head * tokens * tokens, work);
    sd_release(a->context, work);
    return SD_OK;
}

SD_API sd_status sd_model_position_embedding(const sd_model *model, size_t height, size_t width, float *embedding) {
    SD_REQUIRE(model != NULL && embedding != NULL, SD_ERR_ARGUMENT, "%s is NULL",
               model == NULL ? "model" : "embedding");
    const sd_geometry *g = &model->geometry;
    SD_REQUIRE(height >= g->patch && width >= g->patch && height % g->patch == 0 && width % g->patch == 0,
               SD_ERR_ARGUMENT, "%zu x %zu pixels: both sides must be multiples of the patch size %zu", height, width,
               g->patch);
    sd_position_forward(model->parameters + model->layout.position, g->grid, g->dim, height / g->patch,
                        width / g->patch, &g->position, embedding);
    return SD_OK;
}
