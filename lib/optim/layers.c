/* Learning rates by layer: deep layers learn faster than early ones (K. Clark et al., "ELECTRA", 2020; H. Bao et al.,
 * "BEiT", 2021), in the form of DINOv2. */
#include "optim/optim.h"

#include <math.h>
#include <string.h>

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), rest = strlen(end);
    return length >= rest && strcmp(text + length - rest, end) == 0;
}

static bool is_spared(const sd_tensor_info *tensor, const char *name) {
    return !tensor->decay || ends_with(name, ".bias") || strstr(name, "norm") || strstr(name, "gamma");
}

SD_API sd_status sd_layer_multipliers(const sd_tensor_info *tensors, size_t tensor_count, int32_t depth, double rate,
                                      double patch_embed, double *lr, double *decay, uint8_t *last_layer) {
    SD_REQUIRE(tensors || tensor_count == 0, SD_ERR_ARGUMENT, "tensors is NULL");
    SD_REQUIRE(depth >= 0 && depth < INT32_MAX, SD_ERR_ARGUMENT, "depth is %d: it must not be negative", depth);
    SD_REQUIRE(rate > 0 && isfinite(rate), SD_ERR_ARGUMENT, "rate is %g: it must be finite and positive", rate);
    SD_REQUIRE(patch_embed >= 0 && isfinite(patch_embed), SD_ERR_ARGUMENT,
               "patch_embed is %g: it must be finite and not negative", patch_embed);
    for (size_t i = 0; i < tensor_count; i++)
        SD_REQUIRE(tensors[i].layer >= 0 && tensors[i].layer <= depth + 1, SD_ERR_ARGUMENT,
                   "the layer of tensor %zu (%s) is %d: it must be in 0 .. %d", i,
                   tensors[i].name ? tensors[i].name : "unnamed", tensors[i].layer, depth + 1);
    for (size_t i = 0; i < tensor_count; i++) {
        const char *name = tensors[i].name ? tensors[i].name : "";
        if (lr) {
            lr[i] = pow(rate, (double)(depth + 1 - tensors[i].layer));
            if (strstr(name, "patch_embed"))
                lr[i] *= patch_embed;
        }
        if (decay)
            decay[i] = is_spared(&tensors[i], name) ? 0 : 1;
        if (last_layer)
            last_layer[i] = strstr(name, "last_layer") != NULL;
    }
    return SD_OK;
}
