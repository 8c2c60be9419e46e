/* The table of recipes. See recipe.h.
 *
 * "imagenet" is the recipe of the SimDINO paper for ViT-S/16. The other two are for small images on a CPU: a small
 * network, few local crops, little or no blur, a larger learning rate, more weight on compression and a shorter memory
 * of the teacher, since such runs have few steps.
 */
#include "recipe.h"

#include <stdio.h>
#include <string.h>

/* clang-format off */
const recipe recipes[] = {
    {
        .name = "small-grey",
        .meant_for = "one channel up to 64 pixels: Fashion-MNIST, MNIST",
        .patch = 7, .dim = 96, .depth = 4, .heads = 3,
        .mlp_ratio = 4, .drop_path = 0.0,
        .head_hidden = 256, .head_dim = 64,
        .global_size = 28, .local_size = 14, .locals = 2,
        .global_scale = {0.5, 1.0}, .local_scale = {0.2, 0.6},
        .flip = 0.5, .jitter = 0.8, .brightness = 0.2, .contrast = 0.2, .saturation = 0, .hue = 0, .gray = 0,
        .blur = {0, 0, 0}, .blur_radius = {0.1, 1.0}, .solarize = {0, 0, 0},
        .mean = {0.2860}, .std = {0.3530},
        .batch = 64, .epochs = 10,
        .lr_256 = 4e-3, .min_lr = 1e-5, .warmup = 0.1,
        .weight_decay = 0.04, .weight_decay_end = 0.2,
        .momentum = 0.99, .momentum_end = 1.0,
        .eps = 0.05, .coeff = 3, .clip_limit = 3.0,
    },
    {
        .name = "small-colour",
        .meant_for = "colour up to 64 pixels: CIFAR-10",
        .patch = 4, .dim = 96, .depth = 4, .heads = 3,
        .mlp_ratio = 4, .drop_path = 0.0,
        .head_hidden = 256, .head_dim = 64,
        .global_size = 32, .local_size = 16, .locals = 2,
        .global_scale = {0.4, 1.0}, .local_scale = {0.15, 0.5},
        .flip = 0.5, .jitter = 0.8, .brightness = 0.4, .contrast = 0.4, .saturation = 0.2, .hue = 0.1, .gray = 0.1,
        .blur = {0, 0, 0}, .blur_radius = {0.1, 1.0}, .solarize = {0, 0, 0},
        .mean = {0.485, 0.456, 0.406}, .std = {0.229, 0.224, 0.225},
        .batch = 64, .epochs = 10,
        .lr_256 = 4e-3, .min_lr = 1e-5, .warmup = 0.1,
        .weight_decay = 0.04, .weight_decay_end = 0.1,
        .momentum = 0.99, .momentum_end = 1.0,
        .eps = 0.05, .coeff = 3, .clip_limit = 3.0,
    },
    {
        .name = "imagenet",
        .meant_for = "larger images: SimDINO's own recipe, ViT-S/16",
        .patch = 16, .dim = 384, .depth = 12, .heads = 6,
        .mlp_ratio = 4, .drop_path = 0.1,
        .head_hidden = 2048, .head_dim = 256,
        .global_size = 224, .local_size = 96, .locals = 10,
        .global_scale = {0.4, 1.0}, .local_scale = {0.05, 0.4},
        .flip = 0.5, .jitter = 0.8, .brightness = 0.4, .contrast = 0.4, .saturation = 0.2, .hue = 0.1, .gray = 0.2,
        .blur = {1.0, 0.1, 0.5}, .blur_radius = {0.1, 2.0}, .solarize = {0, 0.2, 0},
        .mean = {0.485, 0.456, 0.406}, .std = {0.229, 0.224, 0.225},
        .batch = 256, .epochs = 100,
        .lr_256 = 5e-4, .min_lr = 1e-6, .warmup = 0.1,
        .weight_decay = 0.04, .weight_decay_end = 0.4,
        .momentum = 0.996, .momentum_end = 1.0,
        .eps = 0.05, .coeff = 1, .clip_limit = 3.0,
    },
};
/* clang-format on */

const size_t recipe_count = sizeof recipes / sizeof recipes[0];

const recipe *recipe_find(const char *name) {
    for (size_t i = 0; i < recipe_count; i++) {
        if (strcmp(recipes[i].name, name) == 0) {
            return &recipes[i];
        }
    }
    return NULL;
}

const recipe *recipe_for(const source *data) {
    if (data->width > 64 || data->height > 64) {
        return recipe_find("imagenet");
    }
    return recipe_find(data->channels == 1 ? "small-grey" : "small-colour");
}

const char *const *recipe_names(void) {
    static const char *names[sizeof recipes / sizeof recipes[0] + 1];
    for (size_t i = 0; i < recipe_count; i++) {
        names[i] = recipes[i].name;
    }
    return names;
}

void recipe_apply(const recipe *r, int32_t channels, sd_pretrainer_config *config) {
    sd_model_config *model = &config->model;
    model->image_size = r->global_size;
    model->patch_size = r->patch;
    model->channels = channels;
    model->dim = r->dim;
    model->depth = r->depth;
    model->heads = r->heads;
    model->mlp_ratio = r->mlp_ratio;
    model->drop_path = r->drop_path;
    model->head_hidden = r->head_hidden;
    model->head_dim = r->head_dim;

    sd_augment_config *augment = &config->augment;
    augment->global_size = r->global_size;
    augment->local_size = r->local_size;
    augment->local_crops = r->locals;
    memcpy(augment->global_scale, r->global_scale, sizeof r->global_scale);
    memcpy(augment->local_scale, r->local_scale, sizeof r->local_scale);
    augment->flip = r->flip;
    augment->jitter = r->jitter;
    augment->brightness = r->brightness;
    augment->contrast = r->contrast;
    augment->saturation = r->saturation;
    augment->hue = r->hue;
    augment->gray = r->gray;
    memcpy(augment->blur, r->blur, sizeof r->blur);
    memcpy(augment->blur_radius, r->blur_radius, sizeof r->blur_radius);
    memcpy(augment->solarize, r->solarize, sizeof r->solarize);
    /* A recipe knows the mean of its own kind of images; other numbers of channels keep the library's defaults. */
    for (int32_t c = 0; c < channels && c < 3 && r->std[c] > 0; c++) {
        augment->mean[c] = r->mean[c];
        augment->std[c] = r->std[c];
    }

    config->batch_size = (size_t)r->batch;
    config->min_lr = r->min_lr;
    config->weight_decay = r->weight_decay;
    config->weight_decay_end = r->weight_decay_end;
    config->momentum = r->momentum;
    config->momentum_end = r->momentum_end;
    config->loss.eps_sq = r->eps;
    config->loss.coeff = r->coeff;
    config->clip_limit = r->clip_limit;
}

void recipe_print_table(void) {
    printf("Recipes (--recipe NAME; else by the images). All numbers can be changed by the options above.\n");
    printf("  %-13s %5s %4s %5s %5s  %-9s %-9s %6s %5s %6s %7s\n", "", "patch", "dim", "depth", "heads", "global",
           "local", "head", "batch", "epochs", "lr/256");
    for (size_t i = 0; i < recipe_count; i++) {
        const recipe *r = &recipes[i];
        char global[16], local[16];
        snprintf(global, sizeof global, "2 x %d", r->global_size);
        snprintf(local, sizeof local, "%d x %d", r->locals, r->local_size);
        printf("  %-13s %5d %4d %5d %5d  %-9s %-9s %6d %5d %6g %7g\n", r->name, r->patch, r->dim, r->depth, r->heads,
               global, local, r->head_dim, (int)r->batch, r->epochs, r->lr_256);
    }
    for (size_t i = 0; i < recipe_count; i++) {
        printf("  %-13s %s\n", recipes[i].name, recipes[i].meant_for);
    }
}
