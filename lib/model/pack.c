/* A model that keeps its blocks' weights packed, for forward passes of a few images, which would spend a tenth of their time and
 * more on packing. */
#include "model/model.h"

SD_API sd_status sd_model_pack(sd_model *model, int32_t precision) {
    SD_REQUIRE(model != NULL, SD_ERR_ARGUMENT, "model is NULL");
    sd_model_unpack(model);
    sd_status status = sd_precision_check(precision);
    sd_packed_model *packed = NULL;
    if (status != SD_OK)
        return status;
    const sd_gemm gemm = sd_gemm_of(precision, NULL); /* nothing is multiplied */
    const size_t depth = model->geometry.depth, bytes = sd_block_weights_bytes(&model->geometry, &gemm, false);
    if (bytes == 0)
        return SD_OK;
    packed = SD_NEW(model->context, sd_packed_model);
    if (packed == NULL)
        return SD_ERR_MEMORY;
    packed->way = gemm.packed;
    packed->blocks = SD_NEW_ARRAY(model->context, sd_block_weights, depth);
    packed->memory = sd_allocate(model->context, depth, bytes);
    if (packed->blocks == NULL || packed->memory == NULL) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    for (size_t block = 0; block < depth; block++) {
        packed->blocks[block] = sd_block_weights_of(model, block);
        SD_TRY(sd_block_weights_pack(model->context, &gemm, &packed->blocks[block], packed->memory + block * bytes));
    }
    model->packed = packed;
    packed = NULL;
cleanup:
    sd_packed_model_destroy(model->context, packed);
    return status;
}

void sd_packed_model_destroy(sd_context *context, sd_packed_model *packed) {
    if (packed == NULL)
        return;
    sd_release(context, packed->blocks);
    sd_release(context, packed->memory);
    sd_release(context, packed);
}

SD_API void sd_model_unpack(sd_model *model) {
    if (model == NULL)
        return;
    sd_packed_model_destroy(model->context, model->packed);
    model->packed = NULL;
}
