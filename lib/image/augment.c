/* From an image and the choices of a crop to a normalised tensor: crop, flip, jitter, grey, blur, solarise, normalise.
 */
#include "image/image.h"

#include <math.h>

struct sd_augmenter {
    sd_context *context;
    sd_augment_config config;
    const sd_pixel_kernels *kernels[2]; /* by pixel type */
    sd_resizer resizer;
    sd_scratch planes, blur;
    /* The largest image that there is room for, by pixel type. */
    struct {
        size_t channels, width, height;
    } room[2];
};

SD_API sd_status sd_augmenter_create(sd_context *context, const sd_augment_config *config, sd_augmenter **out) {
    sd_status status = SD_OK;
    sd_augmenter *augmenter = NULL;
    sd_augment_config full;
    SD_EXPECT(out != NULL, SD_ERR_ARGUMENT, "augmenter is NULL");
    sd_augment_config_init(&full);
    SD_TRY(sd_config_read(&full, sizeof full, config, "sd_augment_config"));
    SD_TRY(sd_augment_config_check(&full));
    augmenter = SD_NEW(context, sd_augmenter);
    if (augmenter == NULL)
        return SD_ERR_MEMORY;
    augmenter->context = context;
    augmenter->config = full;
    augmenter->kernels[0] = sd_pixel_kernels_get(SD_PIXEL_U8);
    augmenter->kernels[1] = sd_pixel_kernels_get(SD_PIXEL_F32);
    *out = augmenter;
cleanup:
    return status;
}

SD_API void sd_augmenter_destroy(sd_augmenter *augmenter) {
    if (augmenter == NULL)
        return;
    sd_resizer_release(augmenter->context, &augmenter->resizer);
    sd_scratch_release(augmenter->context, &augmenter->planes);
    sd_scratch_release(augmenter->context, &augmenter->blur);
    sd_release(augmenter->context, augmenter);
}

size_t sd_augmenter_memory(const sd_augmenter *augmenter) {
    return sizeof *augmenter + sd_resizer_bytes(&augmenter->resizer) + augmenter->planes.bytes + augmenter->blur.bytes;
}

sd_status sd_augmenter_reserve(sd_augmenter *augmenter, int32_t pixel_type, size_t channels, size_t width,
                               size_t height) {
    sd_status status = SD_OK;
    const sd_augment_config *config = &augmenter->config;
    const size_t item = sd_pixel_size(pixel_type), kind = pixel_type == SD_PIXEL_U8 ? 0 : 1;
    if (channels <= augmenter->room[kind].channels && width <= augmenter->room[kind].width &&
        height <= augmenter->room[kind].height)
        return SD_OK;
    channels = sd_size_max(channels, augmenter->room[kind].channels);
    width = sd_size_max(width, augmenter->room[kind].width);
    height = sd_size_max(height, augmenter->room[kind].height);
    for (int local = 0; local < (config->local_crops > 0 ? 2 : 1); local++) {
        size_t side = (size_t)(local ? config->local_size : config->global_size), values;
        SD_TRY(sd_resizer_reserve(augmenter->context, &augmenter->resizer, SD_FILTER_BICUBIC, pixel_type, channels,
                                  width, height, side, side));
        SD_TRY(sd_scratch_reserve(augmenter->context, &augmenter->planes, side * side * channels, item));
        SD_TRY(sd_blur_room(side, side, config->blur_radius[1], &values));
        SD_TRY(sd_scratch_reserve(augmenter->context, &augmenter->blur, values, sizeof(float)));
    }
    augmenter->room[kind].channels = channels;
    augmenter->room[kind].width = width;
    augmenter->room[kind].height = height;
cleanup:
    return status;
}

static sd_status check_choice(const sd_image *image, const sd_crop_choice *choice) {
    SD_REQUIRE(choice != NULL, SD_ERR_ARGUMENT, "choice is NULL");
    SD_REQUIRE(choice->size >= 1, SD_ERR_ARGUMENT, "the crop's size is %d: it must be at least 1", choice->size);
    SD_REQUIRE(choice->width >= 1 && choice->height >= 1 && choice->top >= 0 && choice->left >= 0 &&
                   (size_t)choice->top + (size_t)choice->height <= image->height &&
                   (size_t)choice->left + (size_t)choice->width <= image->width,
               SD_ERR_ARGUMENT, "the box (top %d, left %d, height %d, width %d) is empty or not inside of %zu x %zu",
               choice->top, choice->left, choice->height, choice->width, image->width, image->height);
    for (int i = 0; i < 4; i++) {
        SD_REQUIRE(choice->jitter_order[i] >= -1 && choice->jitter_order[i] <= 3, SD_ERR_ARGUMENT,
                   "jitter_order[%d] is %d: it must be in -1 .. 3", i, choice->jitter_order[i]);
        if (choice->jitter_order[i] == -1)
            break;
        double factor = choice->jitter_factor[choice->jitter_order[i]];
        bool turn = choice->jitter_order[i] == 3;
        SD_REQUIRE(turn ? factor >= -0.5 && factor <= 0.5 : factor >= 0.0 && factor <= 1e6, SD_ERR_ARGUMENT,
                   "jitter_factor[%d] is %g: it must be in %s", choice->jitter_order[i], factor,
                   turn ? "-0.5 .. 0.5" : "0 .. 1e6");
    }
    SD_REQUIRE(choice->blur >= 0.0 && choice->blur <= 1e4, SD_ERR_ARGUMENT, "blur is %g: it must be in 0 .. 10000",
               choice->blur);
    return SD_OK;
}

static void jitter(const sd_planes *planes, const sd_crop_choice *choice) {
    for (int i = 0; i < 4 && choice->jitter_order[i] >= 0; i++) {
        int32_t operation = choice->jitter_order[i];
        double factor = choice->jitter_factor[operation];
        switch (operation) {
        case 0: sd_adjust_brightness(planes, factor); break;
        case 1: sd_adjust_contrast(planes, factor); break;
        case 2: sd_adjust_saturation(planes, factor); break;
        default: sd_adjust_hue(planes, factor); break;
        }
    }
}

/* Tensor of `channels` planes; a single plane is repeated. */
static void normalize(const sd_planes *planes, const sd_augment_config *config, size_t channels, float *tensor) {
    size_t n = planes->width * planes->height;
    double full = planes->pixel_type == SD_PIXEL_U8 ? 255.0 : 1.0;
    for (size_t c = 0; c < channels; c++)
        planes->kernels->normalize(sd_plane(planes, planes->channels == 1 ? 0 : c), n, (float)(full * config->mean[c]),
                                   (float)(1.0 / (full * config->std[c])), tensor + c * n);
}

/* The image is checked. */
static sd_status apply(sd_augmenter *augmenter, const sd_image *image, const sd_crop_choice *choice, size_t channels,
                       void *pixels, float *tensor) {
    sd_status status = SD_OK;
    const sd_augment_config *config = &augmenter->config;
    size_t side = (size_t)choice->size, values, room;
    sd_planes planes = {.kernels = augmenter->kernels[image->pixel_type == SD_PIXEL_U8 ? 0 : 1],
                        .width = side,
                        .height = side,
                        .channels = (size_t)image->channels,
                        .pixel_type = image->pixel_type};
    SD_EXPECT(sd_size_mul(side * side, planes.channels, &values), SD_ERR_MEMORY,
              "a crop of side %zu does not fit into the address space", side);
    SD_TRY(sd_scratch_reserve(augmenter->context, &augmenter->planes, values, planes.kernels->item));
    planes.data = augmenter->planes.data;
    sd_resize_job job = {.top = (size_t)choice->top,
                         .left = (size_t)choice->left,
                         .height = (size_t)choice->height,
                         .width = (size_t)choice->width,
                         .out_width = side,
                         .out_height = side,
                         .columns = side,
                         .rows = side,
                         .flip = choice->flip != 0,
                         .filter = SD_FILTER_BICUBIC};
    SD_TRY(sd_resize_planes(augmenter->context, &augmenter->resizer, planes.kernels, image, &job, planes.data));
    jitter(&planes, choice);
    if (choice->gray)
        sd_make_gray(&planes);
    if (choice->blur > 0.0) {
        SD_TRY(sd_blur_room(side, side, choice->blur, &room));
        SD_TRY(sd_scratch_reserve(augmenter->context, &augmenter->blur, room, sizeof(float)));
        sd_blur(&planes, (sd_blur_kind)config->blur_kind, choice->blur, augmenter->blur.data);
    }
    if (choice->solarize)
        sd_make_solarized(&planes, config->solarize_threshold);
    if (pixels != NULL)
        sd_interleave(image->pixel_type, planes.data, side * side, planes.channels, pixels);
    if (tensor != NULL)
        normalize(&planes, config, channels, tensor);
cleanup:
    return status;
}

SD_API sd_status sd_crop_apply(sd_augmenter *augmenter, const sd_image *image, const sd_crop_choice *choice,
                               void *pixels, float *tensor) {
    sd_status status = SD_OK;
    SD_EXPECT(augmenter != NULL, SD_ERR_ARGUMENT, "augmenter is NULL");
    SD_TRY(sd_image_check(image));
    SD_TRY(check_choice(image, choice));
    SD_TRY(apply(augmenter, image, choice, (size_t)image->channels, pixels, tensor));
cleanup:
    return status;
}

sd_status sd_augment_channels(sd_augmenter *augmenter, const sd_image *image, size_t channels, uint64_t seed,
                              uint64_t sample, float *const *globals, float *const *locals) {
    sd_status status = SD_OK;
    const sd_augment_config *config = &augmenter->config;
    SD_TRY(sd_augmenter_reserve(augmenter, image->pixel_type, (size_t)image->channels, image->width, image->height));
    for (int32_t view = 0; view < 2 + config->local_crops; view++) {
        sd_crop_choice choice;
        sd_choose_checked(config, image->width, image->height, seed, sample, view, &choice);
        SD_TRY(apply(augmenter, image, &choice, channels, NULL, view < 2 ? globals[view] : locals[view - 2]));
    }
cleanup:
    return status;
}

SD_API sd_status sd_augment(sd_augmenter *augmenter, const sd_image *image, uint64_t seed, uint64_t sample,
                            float *const *globals, float *const *locals) {
    sd_status status = SD_OK;
    SD_EXPECT(augmenter != NULL, SD_ERR_ARGUMENT, "augmenter is NULL");
    SD_TRY(sd_image_check(image));
    SD_EXPECT(globals != NULL && globals[0] != NULL && globals[1] != NULL, SD_ERR_ARGUMENT, "globals is NULL");
    SD_EXPECT(locals != NULL || augmenter->config.local_crops == 0, SD_ERR_ARGUMENT,
              "locals is NULL, but there are %d local crops", augmenter->config.local_crops);
    for (int32_t i = 0; i < augmenter->config.local_crops; i++)
        SD_EXPECT(locals[i] != NULL, SD_ERR_ARGUMENT, "locals[%d] is NULL", i);
    SD_TRY(sd_augment_channels(augmenter, image, (size_t)image->channels, seed, sample, globals, locals));
cleanup:
    return status;
}
