/* Stochastic depth: each image is dropped from each residual branch with the block's own probability, and what was
 * dropped is not computed. The decisions are a function of (seed, step, image number, block). */
#include "model/model.h"

void sd_drop_paths(sd_activations *a, const sd_forward_options *options) {
    const sd_geometry *g = &a->geometry;
    size_t stride = a->max_images + 1;
    for (size_t block = 0; block < g->depth; block++) {
        sd_branch *attention = &a->branches[2 * block], *mlp = attention + 1;
        double rate = g->depth > 1 ? g->drop_path * (double)block / (double)(g->depth - 1) : 0.0;
        if (!options->train || rate == 0.0 || a->compact == NULL) {
            *attention = *mlp = (sd_branch){a->image_row, a->identity, 1.0f};
            continue;
        }
        size_t *rows[2], *images[2];
        for (size_t branch = 0; branch < 2; branch++) {
            rows[branch] = a->compact + ((2 * block + branch) * 2) * stride;
            images[branch] = rows[branch] + stride;
            rows[branch][0] = images[branch][0] = 0;
        }
        for (size_t s = 0; s < a->images; s++) {
            sd_random random;
            sd_random_init(&random, options->seed, (options->step << 32) + options->first_sample + s,
                           SD_RANDOM_DROP_PATH + (uint32_t)block);
            for (size_t branch = 0; branch < 2; branch++) {
                bool keep = sd_random_uniform(&random) >= rate;
                rows[branch][s + 1] = rows[branch][s] + (keep ? sd_image_tokens(a, s) : 0);
                images[branch][s + 1] = images[branch][s] + keep;
            }
        }
        float scale = (float)(1.0 / (1.0 - rate));
        *attention = (sd_branch){rows[0], images[0], scale};
        *mlp = (sd_branch){rows[1], images[1], scale};
    }
}
