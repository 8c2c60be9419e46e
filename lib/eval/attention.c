/* Attention of the class token, its mask as in DINO's visualize_attention.py, and similarities of patches. */
#include "base/base.h"

#include <simdino/eval.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

SD_API sd_status sd_class_attention(const float *attention, size_t heads, size_t registers, size_t patches,
                                    float *out) {
    SD_REQUIRE(attention && out, SD_ERR_ARGUMENT, "%s is NULL", attention ? "out" : "attention");
    SD_REQUIRE(heads > 0 && patches > 0, SD_ERR_ARGUMENT, "%zu heads of %zu patches: neither may be 0", heads, patches);
    size_t tokens = 1 + registers + patches;
    for (size_t h = 0; h < heads; h++)
        memcpy(out + h * patches, attention + h * tokens * tokens + 1 + registers, patches * sizeof *out);
    return SD_OK;
}

typedef struct entry {
    float attention;
    size_t patch;
} entry;

/* Smallest first, equal ones in their order. */
static int by_attention(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (x->attention != y->attention)
        return x->attention < y->attention ? -1 : 1;
    return (x->patch > y->patch) - (x->patch < y->patch);
}

SD_API sd_status sd_attention_mask(const float *attention, size_t patches, double share, uint8_t *mask) {
    SD_REQUIRE(attention && mask, SD_ERR_ARGUMENT, "%s is NULL", attention ? "mask" : "attention");
    SD_REQUIRE(patches > 0, SD_ERR_ARGUMENT, "patches is 0: it must be at least 1");
    SD_REQUIRE(share >= 0.0 && share <= 1.0, SD_ERR_ARGUMENT, "share is %g: it must be between 0 and 1", share);
    double sum = 0.0;
    for (size_t i = 0; i < patches; i++) {
        SD_REQUIRE(isfinite(attention[i]) && attention[i] >= 0.0f, SD_ERR_NUMERIC,
                   "attention[%zu] is %g: it must be finite and not negative", i, (double)attention[i]);
        sum += (double)attention[i];
    }
    entry *sorted = SD_NEW_ARRAY(NULL, entry, patches);
    if (!sorted)
        return SD_ERR_MEMORY;
    for (size_t i = 0; i < patches; i++)
        sorted[i] = (entry){.attention = attention[i], .patch = i};
    qsort(sorted, patches, sizeof *sorted, by_attention);
    double cumulated = 0.0;
    for (size_t i = 0; i < patches; i++) {
        cumulated += sum > 0.0 ? (double)sorted[i].attention / sum : 1.0 / (double)patches;
        mask[sorted[i].patch] = cumulated > 1.0 - share;
    }
    sd_release(NULL, sorted);
    return SD_OK;
}

SD_API sd_status sd_patch_similarity(const float *tokens, size_t n, size_t d, size_t ld, size_t patch,
                                     float *similarity) {
    SD_REQUIRE(tokens && similarity, SD_ERR_ARGUMENT, "%s is NULL", tokens ? "similarity" : "tokens");
    SD_REQUIRE(n > 0 && d > 0, SD_ERR_ARGUMENT, "%zu tokens of width %zu: neither may be 0", n, d);
    SD_REQUIRE(ld >= d, SD_ERR_ARGUMENT, "ld is %zu: it must be at least d = %zu", ld, d);
    SD_REQUIRE(patch < n, SD_ERR_ARGUMENT, "patch is %zu: there are %zu", patch, n);
    const float *chosen = tokens + patch * ld;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < d; j++)
            SD_REQUIRE(isfinite(tokens[i * ld + j]), SD_ERR_NUMERIC, "token %zu, column %zu is not finite", i, j);
    double own = 0.0;
    for (size_t j = 0; j < d; j++)
        own += (double)chosen[j] * (double)chosen[j];
    for (size_t i = 0; i < n; i++) {
        const float *token = tokens + i * ld;
        double product = 0.0, square = 0.0;
        for (size_t j = 0; j < d; j++) {
            product += (double)token[j] * (double)chosen[j];
            square += (double)token[j] * (double)token[j];
        }
        similarity[i] = own > 0.0 && square > 0.0 ? (float)(product / (sqrt(own) * sqrt(square))) : 0.0f;
    }
    return SD_OK;
}
