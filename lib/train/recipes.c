/* The recipes: those of the official code, and some for small images. What a line means is in train.h.
 *
 * Sources: SimDINO's README and parser, SimDINOv2's ssl_default_config and simdino_config, DINO's README (the full
 * command for ViT-S/16, that for ViT-B/16) and the defaults of its parser, DINOv2's ssl_default_config and vitl16_short.
 * The checkpoints that DINO's authors publish come from longer runs with arguments of their own, which lie beside them. Published runs of SimDINO split the batch over 8
 * GPUs whose Gram matrices are not summed: loss.groups = 8 computes the same in one process. */
#include "train/recipes.h"

#include <string.h>

/* clang-format off */

/* Crops of the official code, of 224 and 96 pixels. */
#define OFFICIAL_CROPS \
    "augment.global_size = 224\n" \
    "augment.local_size = 96\n" \
    "augment.local_crops = 10\n" \
    "augment.global_scale = 0.4,1\n" \
    "augment.local_scale = 0.05,0.4\n"

static const char simdino_vits16[] =
    "# SimDINO, ViT-S/16 on ImageNet: 8 GPUs with 64 images each\n"
    "method = simdino\n"
    "model.dim = 384\nmodel.depth = 12\nmodel.heads = 6\nmodel.patch_size = 16\nmodel.drop_path = 0.1\n"
    "model.head_hidden = 2048\nmodel.head_dim = 256\n"
    OFFICIAL_CROPS
    "loss.eps_sq = 0.05\nloss.coeff = 1\nloss.expa_type = 1\nloss.groups = 8\nloss.normalized = 0\n"
    "batch_size = 512\nepochs = 100\nbase_lr = 0.0005\nlr_rule = linear\nmin_lr = 1e-6\nwarmup_epochs = 10\n"
    "weight_decay = 0.04\nweight_decay_end = 0.4\nmomentum = 0.996\nmomentum_end = 1\n"
    "clip = tensor\nclip_limit = 3\n";

static const char simdino_vitb16[] =
    "# SimDINO, ViT-B/16\n"
    "include = simdino-vits16\n"
    "model.dim = 768\nmodel.depth = 12\nmodel.heads = 12\n";

static const char simdino_vitl16[] =
    "# SimDINO, ViT-L/16\n"
    "include = simdino-vits16\n"
    "model.dim = 1024\nmodel.depth = 24\nmodel.heads = 16\n";

static const char simdinov2_vitl16[] =
    "# SimDINOv2, ViT-L/16 with 4 registers on ImageNet: 8 GPUs with 128 images each\n"
    "method = simdinov2\n"
    "model.dim = 1024\nmodel.depth = 24\nmodel.heads = 16\nmodel.patch_size = 16\n"
    "model.registers = 4\nmodel.layer_scale = 0.1\nmodel.drop_path = 0.2\n"
    "model.interpolate_antialias = 1\nmodel.interpolate_offset = 0\n"
    "model.head_hidden = 2048\nmodel.head_dim = 256\n"
    OFFICIAL_CROPS
    "loss.eps_sq = 0.05\nloss.coeff = 1\nloss.expa_type = 1\nloss.groups = 8\n"
    "mask.probability = 0.5\nmask.ratio_min = 0.1\nmask.ratio_max = 0.5\npatch_weight = 1\n"
    "batch_size = 1024\nepochs = 100\nbase_lr = 0.004\nlr_rule = sqrt\nmin_lr = 1e-6\nlr_start = 1e-6\n"
    "warmup_epochs = 10\nwarmup_kind = exclusive\n"
    "weight_decay = 0.04\nweight_decay_end = 0.4\nmomentum = 0.9\nmomentum_end = 1\n"
    "clip = module\nclip_limit = 3\nlayer_decay = 0.9\npatch_embed_lr = 0.2\n";

static const char simdinov2_vitb16[] =
    "# SimDINOv2, ViT-B/16 with 4 registers\n"
    "include = simdinov2-vitl16\n"
    "model.dim = 768\nmodel.depth = 12\nmodel.heads = 12\n";

static const char dino_vits16[] =
    "# DINO, ViT-S/16 on ImageNet: the full command of its README, 16 GPUs with 64 images each, 300 epochs\n"
    "method = dino\n"
    "model.dim = 384\nmodel.depth = 12\nmodel.heads = 6\nmodel.patch_size = 16\nmodel.drop_path = 0.1\n"
    "model.head_hidden = 2048\nmodel.head_dim = 256\nmodel.prototypes = 65536\nmodel.prototype_scale = 1\n"
    OFFICIAL_CROPS
    "augment.local_crops = 8\n"
    "dino.student_temp = 0.1\ndino.center_momentum = 0.9\n"
    "teacher_temp_start = 0.04\nteacher_temp = 0.07\nteacher_temp_epochs = 30\nfreeze_epochs = 1\n"
    "batch_size = 1024\nepochs = 300\nbase_lr = 0.0005\nlr_rule = linear\nmin_lr = 1e-6\nwarmup_epochs = 10\n"
    "weight_decay = 0.04\nweight_decay_end = 0.4\nmomentum = 0.996\nmomentum_end = 1\n"
    "clip = tensor\nclip_limit = 3\n";

static const char dino_vitb16[] =
    "# DINO, ViT-B/16 on ImageNet: the defaults of its code, as in its README, 16 GPUs with 64 images each, 100 epochs\n"
    "include = dino-vits16\n"
    "model.dim = 768\nmodel.depth = 12\nmodel.heads = 12\nmodel.prototype_scale = 0\n"
    "teacher_temp = 0.04\nteacher_temp_epochs = 0\nepochs = 100\n";

static const char dinov2_vitl16[] =
    "# DINOv2, ViT-L/16 on ImageNet (its default configuration): 32 GPUs with 64 images each, epochs of 1250 steps.\n"
    "# Its code blurs with the probabilities inverted; this is what was meant. As published: augment.blur = 0,0.9,0.5\n"
    "method = dinov2\n"
    "model.dim = 1024\nmodel.depth = 24\nmodel.heads = 16\nmodel.patch_size = 16\n"
    "model.layer_scale = 1e-5\nmodel.drop_path = 0.3\n"
    "model.head_hidden = 2048\nmodel.head_dim = 256\nmodel.prototypes = 65536\nmodel.prototype_scale = 1\n"
    "augment.global_size = 224\naugment.local_size = 96\naugment.local_crops = 8\n"
    "augment.global_scale = 0.32,1\naugment.local_scale = 0.05,0.32\n"
    "dino.target = center\ndino.student_temp = 0.1\ndino.center_momentum = 0.9\n"
    "teacher_temp_start = 0.04\nteacher_temp = 0.07\nteacher_temp_epochs = 30\nfreeze_epochs = 1\n"
    "mask.probability = 0.5\nmask.ratio_min = 0.1\nmask.ratio_max = 0.5\npatch_weight = 1\nkoleo_weight = 0.1\n"
    "batch_size = 2048\nepochs = 100\nepoch_images = 2560000\nbase_lr = 0.004\nlr_rule = sqrt\nmin_lr = 1e-6\n"
    "warmup_epochs = 10\n"
    "weight_decay = 0.04\nweight_decay_end = 0.4\nmomentum = 0.992\nmomentum_end = 1\n"
    "clip = module\nclip_limit = 3\nlayer_decay = 0.9\npatch_embed_lr = 0.2\n";

static const char dinov2_vitb16[] =
    "# DINOv2, ViT-B/16 with the default configuration\n"
    "include = dinov2-vitl16\n"
    "model.dim = 768\nmodel.depth = 12\nmodel.heads = 12\n";

/* Small images: a small network, few local crops, little or no blur, a larger learning rate, more weight on compression
 * and a shorter memory of the teacher, since such runs have few steps. The four methods differ in nothing else. */
#define SMALL_NETWORK \
    "model.dim = 96\nmodel.depth = 4\nmodel.heads = 3\nmodel.mlp_ratio = 4\nmodel.drop_path = 0\n" \
    "model.head_hidden = 256\nmodel.head_dim = 64\n"
#define SMALL_RUN \
    "batch_size = 64\nepochs = 10\nbase_lr = 0.004\nlr_rule = linear\nmin_lr = 1e-5\nwarmup_epochs = 1\n" \
    "weight_decay = 0.04\nmomentum = 0.99\nmomentum_end = 1\nclip_limit = 3\n"
#define SMALL_GREY \
    SMALL_NETWORK \
    "model.channels = 1\nmodel.patch_size = 7\n" \
    "# without local crops: small parts of such images tell less than they cost\n" \
    "augment.global_size = 28\naugment.local_size = 14\naugment.local_crops = 0\n" \
    "augment.global_scale = 0.5,1\naugment.local_scale = 0.2,0.6\naugment.flip = 0.5\n" \
    "augment.jitter = 0.8\naugment.brightness = 0.2\naugment.contrast = 0.2\naugment.saturation = 0\naugment.hue = 0\n" \
    "augment.gray = 0\naugment.blur = 0,0,0\naugment.blur_radius = 0.1,1\naugment.solarize = 0,0,0\n" \
    "augment.mean = 0.286\naugment.std = 0.353\n" \
    SMALL_RUN \
    "weight_decay_end = 0.2\n"
#define SMALL_COLOUR \
    SMALL_NETWORK \
    "model.patch_size = 4\n" \
    "augment.global_size = 32\naugment.local_size = 16\naugment.local_crops = 2\n" \
    "augment.global_scale = 0.4,1\naugment.local_scale = 0.15,0.5\naugment.flip = 0.5\n" \
    "augment.jitter = 0.8\naugment.brightness = 0.4\naugment.contrast = 0.4\naugment.saturation = 0.2\naugment.hue = 0.1\n" \
    "augment.gray = 0.1\naugment.blur = 0,0,0\naugment.blur_radius = 0.1,1\naugment.solarize = 0,0,0\n" \
    SMALL_RUN \
    "weight_decay_end = 0.1\n"
/* What belongs to a method in such a run: v2 without layer-wise rates, which a network of 4 blocks has no use for. */
#define SMALL_SIMDINO   "method = simdino\nloss.eps_sq = 0.05\nloss.coeff = 3\n"
#define SMALL_SIMDINOV2 "method = simdinov2\nloss.eps_sq = 0.05\nloss.coeff = 3\nmodel.registers = 1\nlayer_decay = 1\n" \
                        "patch_embed_lr = 1\n"
#define SMALL_PROTOTYPES "model.prototypes = 1024\nteacher_temp_start = 0.04\nteacher_temp = 0.07\n" \
                         "teacher_temp_epochs = 3\nfreeze_epochs = 0.2\n"
#define SMALL_DINO      "method = dino\n" SMALL_PROTOTYPES
#define SMALL_DINOV2    "method = dinov2\nmodel.layer_scale = 0.1\nlayer_decay = 1\npatch_embed_lr = 1\n" SMALL_PROTOTYPES

#define SMALL_TITLE(method, images) "# " method " for " images ", on a few CPU cores\n"
static const char simdino_small_grey[] = SMALL_TITLE("SimDINO", "grey images up to 64 pixels") SMALL_SIMDINO SMALL_GREY;
/* Measured on Fashion-MNIST (docs/results.md): where things lie centred and upright, four large patches learn much faster
 * than many small ones, and what blurs position (flips, small crops) costs more than it gives. */
static const char simdino_centred_grey[] =
    "# SimDINO for small grey images of centred, upright things (clothes, digits, cut-out cells), on a few CPU cores\n"
    "include = simdino-small-grey\n"
    "model.patch_size = 14\n"
    "augment.global_scale = 0.6,1\naugment.flip = 0\n"
    "augment.jitter = 1\naugment.brightness = 0.4\naugment.contrast = 0.4\n"
    "loss.coeff = 5\nbatch_size = 32\nbase_lr = 0.008\n";
static const char simdinov2_small_grey[] =
    SMALL_TITLE("SimDINOv2", "grey images up to 64 pixels") SMALL_SIMDINOV2 SMALL_GREY;
static const char dino_small_grey[] = SMALL_TITLE("DINO", "grey images up to 64 pixels") SMALL_DINO SMALL_GREY;
static const char dinov2_small_grey[] = SMALL_TITLE("DINOv2", "grey images up to 64 pixels") SMALL_DINOV2 SMALL_GREY;
static const char simdino_small_colour[] =
    SMALL_TITLE("SimDINO", "colour images up to 64 pixels") SMALL_SIMDINO SMALL_COLOUR;
static const char simdinov2_small_colour[] =
    SMALL_TITLE("SimDINOv2", "colour images up to 64 pixels") SMALL_SIMDINOV2 SMALL_COLOUR;
static const char dino_small_colour[] = SMALL_TITLE("DINO", "colour images up to 64 pixels") SMALL_DINO SMALL_COLOUR;
static const char dinov2_small_colour[] =
    SMALL_TITLE("DINOv2", "colour images up to 64 pixels") SMALL_DINOV2 SMALL_COLOUR;

const sd_recipe sd_recipes[] = {
    {"simdino-small-grey", simdino_small_grey},
    {"simdino-centred-grey", simdino_centred_grey},
    {"simdino-small-colour", simdino_small_colour},
    {"simdinov2-small-grey", simdinov2_small_grey},
    {"simdinov2-small-colour", simdinov2_small_colour},
    {"dino-small-grey", dino_small_grey},
    {"dino-small-colour", dino_small_colour},
    {"dinov2-small-grey", dinov2_small_grey},
    {"dinov2-small-colour", dinov2_small_colour},
    {"simdino-vits16", simdino_vits16},
    {"simdino-vitb16", simdino_vitb16},
    {"simdino-vitl16", simdino_vitl16},
    {"simdinov2-vitb16", simdinov2_vitb16},
    {"simdinov2-vitl16", simdinov2_vitl16},
    {"dino-vits16", dino_vits16},
    {"dino-vitb16", dino_vitb16},
    {"dinov2-vitb16", dinov2_vitb16},
    {"dinov2-vitl16", dinov2_vitl16},
};
/* clang-format on */

SD_API size_t sd_recipe_count(void) { return sizeof sd_recipes / sizeof *sd_recipes; }

SD_API const char *sd_recipe_name(size_t index) { return index < sd_recipe_count() ? sd_recipes[index].name : NULL; }

SD_API const char *sd_recipe_text(const char *name) {
    for (size_t i = 0; name != NULL && i < sd_recipe_count(); i++)
        if (strcmp(sd_recipes[i].name, name) == 0)
            return sd_recipes[i].text;
    return NULL;
}
