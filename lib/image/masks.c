/* Masks of patches for the student: blocks of random place and shape (BEiT's, as iBOT and DINOv2 use them), and how
 * many patches each crop of a batch loses. */
#include "image/image.h"

#include <math.h>
#include <string.h>

#define MAX_SIDE   16384
#define MAX_IMAGES ((1u << 24) - 2) /* each has a stream of random numbers of its own */

SD_API void sd_mask_config_init(sd_mask_config *config) {
    if (config != NULL)
        *config = (sd_mask_config){
            .size = sizeof *config,
            .ratio_min = 0.1,
            .ratio_max = 0.5,
            .probability = 0.5,
            .block_share = 0.5,
            .block_aspect = 0.3,
            .block_patches = 4,
        };
}

/* Comparisons are written so that NaN fails them. */
static sd_status check_share(const char *name, double value) {
    SD_REQUIRE(value >= 0.0 && value <= 1.0, SD_ERR_ARGUMENT, "%s is %g: it must be in 0 .. 1", name, value);
    return SD_OK;
}

static sd_status check_config(const sd_mask_config *config) {
    sd_status status = SD_OK;
    SD_TRY(check_share("ratio_min", config->ratio_min));
    SD_TRY(check_share("ratio_max", config->ratio_max));
    SD_EXPECT(config->ratio_min <= config->ratio_max, SD_ERR_ARGUMENT,
              "ratio_min is %g and ratio_max %g: the ratios must rise", config->ratio_min, config->ratio_max);
    SD_TRY(check_share("probability", config->probability));
    SD_EXPECT(config->block_share > 0.0 && config->block_share <= 1.0, SD_ERR_ARGUMENT,
              "block_share is %g: it must be above 0 and at most 1", config->block_share);
    SD_EXPECT(config->block_aspect >= 1e-3 && config->block_aspect <= 1.0, SD_ERR_ARGUMENT,
              "block_aspect is %g: it must be in 0.001 .. 1", config->block_aspect);
    SD_EXPECT(config->block_patches >= 1, SD_ERR_ARGUMENT, "block_patches is %d: it must be at least 1",
              config->block_patches);
cleanup:
    return status;
}

static size_t crops_with_masks(const sd_mask_config *config, size_t images) {
    return (size_t)((double)images * config->probability);
}

static sd_status read_config(sd_mask_config *full, const sd_mask_config *config, size_t images, size_t rows,
                             size_t columns) {
    sd_status status;
    sd_mask_config_init(full);
    SD_TRY(sd_config_read(full, sizeof *full, config, "sd_mask_config"));
    SD_TRY(check_config(full));
    SD_EXPECT(images >= 1 && images <= MAX_IMAGES, SD_ERR_ARGUMENT, "images is %zu: it must be in 1 .. %u", images,
              MAX_IMAGES);
    SD_EXPECT(rows >= 1 && rows <= MAX_SIDE && columns >= 1 && columns <= MAX_SIDE, SD_ERR_ARGUMENT,
              "the grid is %zu x %zu patches: each side must be in 1 .. %d", rows, columns, MAX_SIDE);
    bool none = crops_with_masks(full, images) == 0 || full->ratio_max == 0.0;
    SD_EXPECT(none || (rows >= 2 && columns >= 2), SD_ERR_ARGUMENT,
              "the grid is %zu x %zu patches: masks are blocks smaller than the grid on both sides, so it takes at "
              "least 2 x 2 (or probability 0)",
              rows, columns);
cleanup:
    return status;
}

/* torch.linspace goes from both ends to the middle. (Its vectorised loop, for eight numbers and more, rounds the last
 * bit differently from processor to processor; this is the plain one.) */
float sd_mask_edge(const sd_mask_config *config, size_t parts, size_t i) {
    const float low = (float)config->ratio_min, high = (float)config->ratio_max;
    const float step = (high - low) / (float)parts;
    if (i < (parts + 1) / 2) {
        float above = step * (float)i;
        return low + above;
    }
    float below = step * (float)(parts - i);
    return high - below;
}

static size_t patches_of_share(size_t patches, float share) {
    float wanted = (float)patches * share;
    return sd_size_min((size_t)wanted, patches);
}

static double uniform_in(sd_random *random, double low, double high) {
    return low + (high - low) * sd_random_uniform(random);
}

/* One block of up to `most` new patches, in ten tries; returns their number, 0 when none fitted. */
static size_t add_block(const sd_mask_config *config, sd_random *random, size_t rows, size_t columns, double most,
                        uint8_t *mask) {
    const double log_aspect = log(config->block_aspect);
    for (int try = 0; try < 10; try++) {
        double area = uniform_in(random, config->block_patches, most);
        double aspect = exp(uniform_in(random, log_aspect, -log_aspect));
        double side_h = nearbyint(sqrt(area * aspect)), side_w = nearbyint(sqrt(area / aspect));
        if (!(side_h >= 1.0 && side_h < (double)rows && side_w >= 1.0 && side_w < (double)columns))
            continue;
        size_t height = (size_t)side_h, width = (size_t)side_w, added = 0;
        size_t top = (size_t)sd_random_below(random, rows - height + 1);
        size_t left = (size_t)sd_random_below(random, columns - width + 1);
        uint8_t *corner = mask + top * columns + left;
        for (size_t y = 0; y < height; y++)
            for (size_t x = 0; x < width; x++)
                added += !corner[y * columns + x];
        if (added == 0 || (double)added > most)
            continue;
        for (size_t y = 0; y < height; y++)
            memset(corner + y * columns, 1, width);
        return added;
    }
    return 0;
}

size_t sd_mask_blocks(const sd_mask_config *config, sd_random *random, size_t rows, size_t columns, size_t wanted,
                      uint8_t *mask) {
    const size_t patches = rows * columns;
    size_t count = 0;
    memset(mask, 0, patches);
    while (count < wanted) {
        double most = fmin((double)(wanted - count), config->block_share * (double)patches);
        size_t added = add_block(config, random, rows, columns, most, mask);
        if (added == 0)
            break;
        count += added;
    }
    return count;
}

SD_API sd_status sd_masks_limit(const sd_mask_config *config, size_t images, size_t rows, size_t columns,
                                size_t *limit) {
    SD_REQUIRE(limit != NULL, SD_ERR_ARGUMENT, "limit is NULL");
    sd_mask_config full;
    sd_status status = read_config(&full, config, images, rows, columns);
    if (status != SD_OK)
        return status;
    size_t parts = crops_with_masks(&full, images), sum = 0;
    for (size_t i = 0; i < parts; i++) /* at most MAX_IMAGES * MAX_SIDE^2 */
        sum += patches_of_share(rows * columns, sd_mask_edge(&full, parts, i + 1));
    *limit = sum;
    return SD_OK;
}

typedef struct draw_work {
    const sd_mask_config *config;
    uint64_t seed, step;
    size_t rows, columns, parts;
    uint8_t *masks;
    /* holds a random order of the crops at first: those with a number below `parts` get that part of the ratios */
    size_t *counts;
} draw_work;

static void draw_mask(void *opaque, size_t image, size_t thread) {
    (void)thread;
    const draw_work *work = opaque;
    const size_t patches = work->rows * work->columns, part = work->counts[image];
    uint8_t *mask = work->masks + image * patches;
    if (part >= work->parts) {
        memset(mask, 0, patches);
        work->counts[image] = 0;
        return;
    }
    sd_random random;
    sd_random_init(&random, work->seed, work->step, SD_RANDOM_MASK + 1 + (uint32_t)image);
    float low = sd_mask_edge(work->config, work->parts, part), high = sd_mask_edge(work->config, work->parts, part + 1);
    float above = (high - low) * (float)sd_random_uniform(&random);
    float share = fminf(low + above, high); /* not above it by rounding */
    size_t wanted = patches_of_share(patches, share);
    work->counts[image] = sd_mask_blocks(work->config, &random, work->rows, work->columns, wanted, mask);
}

SD_API sd_status sd_masks_draw(sd_context *context, const sd_mask_config *config, uint64_t seed, uint64_t step,
                               size_t images, size_t rows, size_t columns, uint8_t *masks, size_t *counts) {
    SD_REQUIRE(masks != NULL, SD_ERR_ARGUMENT, "masks is NULL");
    SD_REQUIRE(counts != NULL, SD_ERR_ARGUMENT, "counts is NULL");
    sd_mask_config full;
    sd_status status = read_config(&full, config, images, rows, columns);
    if (status != SD_OK)
        return status;
    sd_random random;
    sd_random_init(&random, seed, step, SD_RANDOM_MASK);
    for (size_t i = 0; i < images; i++) { /* Fisher-Yates, from the front */
        size_t other = (size_t)sd_random_below(&random, i + 1);
        counts[i] = counts[other];
        counts[other] = i;
    }
    draw_work work = {
        .config = &full,
        .seed = seed,
        .step = step,
        .rows = rows,
        .columns = columns,
        .parts = crops_with_masks(&full, images),
        .masks = masks,
        .counts = counts,
    };
    return sd_run(context, draw_mask, &work, images);
}

SD_API sd_status sd_masks_collate(const uint8_t *masks, size_t images, size_t patches, size_t capacity, size_t *indices,
                                  float *weights, size_t *count) {
    size_t values;
    SD_REQUIRE(masks != NULL, SD_ERR_ARGUMENT, "masks is NULL");
    SD_REQUIRE(count != NULL, SD_ERR_ARGUMENT, "count is NULL");
    SD_REQUIRE(sd_size_mul(images, patches, &values), SD_ERR_ARGUMENT,
               "%zu images of %zu patches are more than the address space holds", images, patches);
    size_t total = 0;
    for (size_t i = 0; i < images; i++) {
        const uint8_t *mask = masks + i * patches;
        size_t masked = 0;
        for (size_t p = 0; p < patches; p++)
            masked += mask[p] != 0;
        SD_REQUIRE((indices == NULL && weights == NULL) || masked <= capacity - total, SD_ERR_ARGUMENT,
                   "capacity is %zu: images 0 .. %zu alone have %zu masked patches", capacity, i, total + masked);
        for (size_t p = 0, next = total; p < patches && indices != NULL; p++)
            if (mask[p] != 0)
                indices[next++] = i * patches + p;
        for (size_t k = 0; k < masked && weights != NULL; k++)
            weights[total + k] = 1.0f / (float)masked;
        total += masked;
    }
    *count = total;
    return SD_OK;
}
