/* Stochastic depth: each image is dropped from each residual branch with the block's own probability (DINO), or a fixed
 * share of the images of each group is (DINOv2), and what was dropped is not computed. The decisions are a function of
 * (seed, step, image number, block). */
#include "model/model.h"

static double rate_of(const sd_geometry *g, size_t block) {
    if (g->drop_uniform)
        return g->drop_path;
    return g->depth > 1 ? g->drop_path * (double)block / (double)(g->depth - 1) : 0.0;
}

/* How many of the images of a group a branch keeps when it keeps a fixed share. */
static size_t subset_of(size_t images, double rate) {
    return sd_size_max((size_t)((double)images * (1.0 - rate)), 1);
}

void sd_drop_paths(sd_activations *a, const sd_forward_options *options) {
    const sd_geometry *g = &a->geometry;
    size_t stride = a->max_images + 1;
    for (size_t block = 0; block < g->depth; block++) {
        sd_branch *branches = &a->branches[2 * block];
        double rate = rate_of(g, block);
        size_t *rows[2], *images[2];
        for (size_t branch = 0; branch < 2; branch++) {
            branches[branch] = (sd_branch){.row_before = a->image_row, .image_before = a->identity};
            for (size_t i = 0; i < a->group_count; i++)
                branches[branch].scale[i] = 1.0f;
        }
        if (!options->train || rate == 0.0 || a->compact == NULL)
            continue;
        for (size_t branch = 0; branch < 2; branch++) {
            rows[branch] = a->compact + ((2 * block + branch) * 2) * stride;
            images[branch] = rows[branch] + stride;
            rows[branch][0] = images[branch][0] = 0;
            branches[branch].row_before = rows[branch];
            branches[branch].image_before = images[branch];
        }
        for (size_t i = 0; i < a->group_count; i++) {
            size_t count = a->groups[i].count, wanted[2];
            if (count == 0)
                continue;
            wanted[0] = wanted[1] = subset_of(count, rate);
            double kept = g->drop_subset ? (double)wanted[0] / (double)count : 1.0 - rate;
            branches[0].scale[i] = branches[1].scale[i] = (float)(1.0 / kept);
            for (size_t left = count, s = a->group_first[i]; left > 0; left--, s++) {
                sd_random random;
                sd_random_init(&random, options->seed, (options->step << 32) + options->first_sample + s,
                               SD_RANDOM_DROP_PATH + (uint32_t)block);
                for (size_t branch = 0; branch < 2; branch++) {
                    /* of the images that are left, those still wanted are equally likely to be any */
                    double probability = g->drop_subset ? (double)wanted[branch] / (double)left : 1.0 - rate;
                    bool keep = 1.0 - sd_random_uniform(&random) <= probability;
                    wanted[branch] -= g->drop_subset && keep;
                    rows[branch][s + 1] = rows[branch][s] + (keep ? sd_image_tokens(a, s) : 0);
                    images[branch][s + 1] = images[branch][s] + keep;
                }
            }
        }
    }
}
