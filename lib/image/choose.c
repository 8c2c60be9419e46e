/* The recipe of the crops and what is drawn for each: boxes as torchvision's RandomResizedCrop, the rest as the DINO
 * augmentation. */
#include "image/image.h"

#include <math.h>
#include <string.h>

/* Larger settings are mistakes, and would overflow sizes further down. */
#define MAX_SIDE   16384
#define MAX_BLUR   1000.0
#define MAX_FACTOR 1000.0

SD_API void sd_augment_config_init(sd_augment_config *config) {
    static const double imagenet_mean[3] = {0.485, 0.456, 0.406}, imagenet_std[3] = {0.229, 0.224, 0.225};
    if (config == NULL)
        return;
    *config = (sd_augment_config){
        .size = sizeof *config,
        .global_size = 224,
        .local_size = 96,
        .local_crops = 10,
        .global_scale = {0.4, 1.0},
        .local_scale = {0.05, 0.4},
        .aspect_ratio = {3.0 / 4.0, 4.0 / 3.0},
        .flip = 0.5,
        .jitter = 0.8,
        .brightness = 0.4,
        .contrast = 0.4,
        .saturation = 0.2,
        .hue = 0.1,
        .gray = 0.2,
        .blur = {1.0, 0.1, 0.5},
        .blur_radius = {0.1, 2.0},
        .solarize = {0.0, 0.2, 0.0},
        .solarize_threshold = 128,
        .blur_kind = SD_BLUR_PIL,
    };
    for (int c = 0; c < SD_MAX_CHANNELS; c++) {
        config->mean[c] = c < 3 ? imagenet_mean[c] : 0.5;
        config->std[c] = c < 3 ? imagenet_std[c] : 0.5;
    }
}

SD_API sd_status sd_augment_config_preset(sd_augment_config *config, const char *name) {
    static const struct {
        const char *name;
        double blur[3];
        int32_t blur_kind;
    } presets[] = {
        {"dino", {1.0, 0.1, 0.5}, SD_BLUR_PIL},
        {"dinov2", {1.0, 0.1, 0.5}, SD_BLUR_TORCHVISION},
        {"dinov2-published", {0.0, 0.9, 0.5}, SD_BLUR_TORCHVISION},
    };
    SD_REQUIRE(config != NULL, SD_ERR_ARGUMENT, "config is NULL");
    SD_REQUIRE(name != NULL, SD_ERR_ARGUMENT, "name is NULL");
    size_t i = 0, count = sizeof presets / sizeof presets[0];
    while (i < count && strcmp(presets[i].name, name) != 0)
        i++;
    SD_REQUIRE(i < count, SD_ERR_ARGUMENT, "there is no augmentation \"%s\": it is dino, dinov2 or dinov2-published",
               name);
    sd_augment_config recipe;
    sd_augment_config_init(&recipe);
    config->flip = recipe.flip;
    config->jitter = recipe.jitter;
    config->brightness = recipe.brightness;
    config->contrast = recipe.contrast;
    config->saturation = recipe.saturation;
    config->hue = recipe.hue;
    config->gray = recipe.gray;
    memcpy(config->blur, presets[i].blur, sizeof config->blur);
    memcpy(config->blur_radius, recipe.blur_radius, sizeof config->blur_radius);
    memcpy(config->solarize, recipe.solarize, sizeof config->solarize);
    config->solarize_threshold = recipe.solarize_threshold;
    config->blur_kind = presets[i].blur_kind;
    return SD_OK;
}

static sd_status check_side(const char *name, int32_t side) {
    SD_REQUIRE(side >= 1 && side <= MAX_SIDE, SD_ERR_ARGUMENT, "%s is %d: it must be in 1 .. %d", name, side, MAX_SIDE);
    return SD_OK;
}

/* Comparisons are written so that NaN fails them. */
static sd_status check_range(const char *name, const double range[2], double least, double most) {
    SD_REQUIRE(range[0] >= least && range[0] <= range[1] && range[1] <= most, SD_ERR_ARGUMENT,
               "%s is %g .. %g: it must rise and lie in %g .. %g", name, range[0], range[1], least, most);
    return SD_OK;
}

static sd_status check_number(const char *name, double value, double least, double most) {
    SD_REQUIRE(value >= least && value <= most, SD_ERR_ARGUMENT, "%s is %g: it must be in %g .. %g", name, value, least,
               most);
    return SD_OK;
}

sd_status sd_augment_config_check(const sd_augment_config *config) {
    sd_status status = SD_OK;
    static const char *const views[] = {"global 1", "global 2", "local"};
    SD_TRY(check_side("global_size", config->global_size));
    SD_EXPECT(config->local_crops >= 0 && config->local_crops <= SD_MAX_VIEWS - 2, SD_ERR_ARGUMENT,
              "local_crops is %d: it must be in 0 .. %d", config->local_crops, SD_MAX_VIEWS - 2);
    if (config->local_crops > 0)
        SD_TRY(check_side("local_size", config->local_size));
    SD_TRY(check_range("global_scale", config->global_scale, 1e-6, 1.0));
    SD_TRY(check_range("local_scale", config->local_scale, 1e-6, 1.0));
    SD_TRY(check_range("aspect_ratio", config->aspect_ratio, 1e-3, 1e3));
    SD_TRY(check_number("flip", config->flip, 0.0, 1.0));
    SD_TRY(check_number("jitter", config->jitter, 0.0, 1.0));
    SD_TRY(check_number("brightness", config->brightness, 0.0, MAX_FACTOR));
    SD_TRY(check_number("contrast", config->contrast, 0.0, MAX_FACTOR));
    SD_TRY(check_number("saturation", config->saturation, 0.0, MAX_FACTOR));
    SD_TRY(check_number("hue", config->hue, 0.0, 0.5));
    SD_TRY(check_number("gray", config->gray, 0.0, 1.0));
    for (int i = 0; i < 3; i++) {
        SD_EXPECT(config->blur[i] >= 0.0 && config->blur[i] <= 1.0, SD_ERR_ARGUMENT,
                  "blur of %s is %g: a probability is in 0 .. 1", views[i], config->blur[i]);
        SD_EXPECT(config->solarize[i] >= 0.0 && config->solarize[i] <= 1.0, SD_ERR_ARGUMENT,
                  "solarize of %s is %g: a probability is in 0 .. 1", views[i], config->solarize[i]);
    }
    SD_TRY(check_range("blur_radius", config->blur_radius, 0.0, MAX_BLUR));
    SD_EXPECT(config->solarize_threshold >= 0 && config->solarize_threshold <= 256, SD_ERR_ARGUMENT,
              "solarize_threshold is %d: it must be in 0 .. 256", config->solarize_threshold);
    SD_EXPECT(config->blur_kind == SD_BLUR_PIL || config->blur_kind == SD_BLUR_TORCHVISION, SD_ERR_ARGUMENT,
              "blur_kind is %d: it must be one of sd_blur_kind", config->blur_kind);
    for (int c = 0; c < SD_MAX_CHANNELS; c++) {
        SD_EXPECT(isfinite(config->mean[c]), SD_ERR_ARGUMENT, "mean of channel %d is %g", c, config->mean[c]);
        SD_EXPECT(isfinite(config->std[c]) && config->std[c] > 0.0, SD_ERR_ARGUMENT,
                  "std of channel %d is %g: it must be above 0", c, config->std[c]);
    }
cleanup:
    return status;
}

static double uniform_in(sd_random *random, double low, double high) {
    return low + (high - low) * sd_random_uniform(random);
}

static bool happens(sd_random *random, double probability) { return sd_random_uniform(random) < probability; }

/* RandomResizedCrop.get_params: ten tries at an area and an aspect ratio, then the largest central box of a permitted
 * ratio. */
static void choose_box(sd_random *random, const double scale[2], const double ratio[2], size_t width, size_t height,
                       sd_crop_choice *choice) {
    const double w = (double)width, h = (double)height;
    const double log_low = log(ratio[0]), log_high = log(ratio[1]);
    for (int try = 0; try < 10; try++) {
        double area = w * h * uniform_in(random, scale[0], scale[1]);
        double aspect = exp(uniform_in(random, log_low, log_high));
        double box_w = nearbyint(sqrt(area * aspect)), box_h = nearbyint(sqrt(area / aspect));
        if (box_w >= 1.0 && box_w <= w && box_h >= 1.0 && box_h <= h) {
            choice->width = (int32_t)box_w;
            choice->height = (int32_t)box_h;
            choice->top = (int32_t)sd_random_below(random, height - (size_t)choice->height + 1);
            choice->left = (int32_t)sd_random_below(random, width - (size_t)choice->width + 1);
            return;
        }
    }
    double box_w = w, box_h = h;
    if (w / h < ratio[0])
        box_h = nearbyint(w / ratio[0]);
    else if (w / h > ratio[1])
        box_w = nearbyint(h * ratio[1]);
    /* On a picture of a few pixels a permitted ratio may round to none, or past the picture. */
    box_w = fmin(fmax(box_w, 1.0), w);
    box_h = fmin(fmax(box_h, 1.0), h);
    choice->width = (int32_t)box_w;
    choice->height = (int32_t)box_h;
    choice->top = (int32_t)((height - (size_t)choice->height) / 2);
    choice->left = (int32_t)((width - (size_t)choice->width) / 2);
}

/* ColorJitter: a random order of the operations whose range is not zero; the list ends with -1. */
static void choose_jitter(sd_random *random, const sd_augment_config *config, sd_crop_choice *choice) {
    const double range[4] = {config->brightness, config->contrast, config->saturation, config->hue};
    int32_t order[4] = {0, 1, 2, 3};
    bool jitter = happens(random, config->jitter);
    for (uint32_t i = 3; i > 0; i--) {
        uint64_t other = sd_random_below(random, i + 1);
        int32_t keep = order[i];
        order[i] = order[other];
        order[other] = keep;
    }
    for (int i = 0; i < 3; i++)
        choice->jitter_factor[i] = uniform_in(random, fmax(1.0 - range[i], 0.0), 1.0 + range[i]);
    choice->jitter_factor[3] = uniform_in(random, -range[3], range[3]);
    int used = 0;
    for (int i = 0; i < 4; i++)
        if (jitter && range[order[i]] > 0.0)
            choice->jitter_order[used++] = order[i];
    while (used < 4)
        choice->jitter_order[used++] = -1;
}

/* The config is checked and complete. Draws come in a fixed order, whether they are used or not. */
void sd_choose_checked(const sd_augment_config *config, size_t width, size_t height, uint64_t seed, uint64_t sample,
                       int32_t view, sd_crop_choice *choice) {
    sd_random random;
    sd_random_init(&random, seed, sample, SD_RANDOM_CROP + (uint32_t)view);
    memset(choice, 0, sizeof *choice);
    const int kind = view < 2 ? view : 2;
    choice->size = view < 2 ? config->global_size : config->local_size;
    choose_box(&random, view < 2 ? config->global_scale : config->local_scale, config->aspect_ratio, width, height,
               choice);
    choice->flip = happens(&random, config->flip);
    choose_jitter(&random, config, choice);
    choice->gray = happens(&random, config->gray);
    bool blur = happens(&random, config->blur[kind]);
    double radius = uniform_in(&random, config->blur_radius[0], config->blur_radius[1]);
    choice->blur = blur ? radius : 0.0;
    choice->solarize = happens(&random, config->solarize[kind]);
}

SD_API sd_status sd_crop_choose(const sd_augment_config *config, size_t width, size_t height, uint64_t seed,
                                uint64_t sample, int32_t view, sd_crop_choice *choice) {
    sd_status status = SD_OK;
    sd_augment_config full;
    sd_augment_config_init(&full);
    SD_TRY(sd_config_read(&full, sizeof full, config, "sd_augment_config"));
    SD_TRY(sd_augment_config_check(&full));
    SD_EXPECT(choice != NULL, SD_ERR_ARGUMENT, "choice is NULL");
    SD_EXPECT(width > 0 && height > 0 && width <= INT32_MAX && height <= INT32_MAX, SD_ERR_ARGUMENT,
              "the image is %zu x %zu: each side must be in 1 .. %d", width, height, INT32_MAX);
    SD_EXPECT(view >= 0 && view < 2 + full.local_crops, SD_ERR_ARGUMENT,
              "view is %d: there are 2 global and %d local views", view, full.local_crops);
    sd_choose_checked(&full, width, height, seed, sample, view, choice);
cleanup:
    return status;
}
