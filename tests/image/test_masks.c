/* Masks of patches: their distribution against the official generator's, and what is derived from them exactly. */
#include "failing_memory.h"
#include "golden.h"
#include "image/image.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define DRAWS        5000 /* of the official masks, and of ours */
#define PATCHES_MAX  256
#define COMPONENTS   64 /* columns of the histograms */

static sd_mask_config defaults(void) {
    sd_mask_config config;
    sd_mask_config_init(&config);
    return config;
}

/* ---- statistics ---------------------------------------------------------------------------- */

/* Two histograms of equally many draws come from one distribution: chi-square at 1e-4, bins with less than ten draws
 * taken together. Its quantile is Wilson and Hilferty's. */
static void expect_same_histogram(const double *ours, const golden_array *theirs, size_t row, const char *what) {
    size_t bins = theirs->shape[1], used = 0;
    double statistic = 0.0, rest[2] = {0.0, 0.0};
    for (size_t i = 0; i <= bins; i++) {
        double a = i < bins ? ours[i] : rest[0], b = i < bins ? golden_number(theirs, row * bins + i) : rest[1];
        if (i < bins && a + b < 10.0) {
            rest[0] += a;
            rest[1] += b;
        } else if (a + b > 0.0) {
            statistic += (a - b) * (a - b) / (a + b);
            used++;
        }
    }
    if (used < 2) {
        assert_true(statistic == 0.0);
        return;
    }
    double k = (double)(used - 1), spread = 2.0 / (9.0 * k);
    double bound = k * pow(1.0 - spread + 3.719 * sqrt(spread), 3.0);
    if (!(statistic < bound))
        fail_msg("%s, row %zu: chi-square %g with %g degrees of freedom (bound %g)", what, row, statistic, k, bound);
}

/* A mean over as many draws each, of which ours have the given sum and sum of squares. */
static void expect_same_mean(double sum, double square_sum, double n, double expected, const char *what, size_t row) {
    double mean = sum / n, variance = fmax(square_sum / n - mean * mean, 0.0);
    if (!(fabs(mean - expected) <= 5.0 * sqrt(2.0 * variance / n) + 1e-12))
        fail_msg("%s %zu: mean %g instead of %g (deviation %g)", what, row, mean, expected, sqrt(variance));
}

typedef struct shape {
    size_t count, components, largest, pairs;
} shape;

/* Size of the 4-connected component of patch p; empties it. */
static size_t take_component(uint8_t *mask, size_t rows, size_t columns, size_t p) {
    if (!mask[p])
        return 0;
    mask[p] = 0;
    size_t y = p / columns, x = p % columns, size = 1;
    if (y > 0)
        size += take_component(mask, rows, columns, p - columns);
    if (y + 1 < rows)
        size += take_component(mask, rows, columns, p + columns);
    if (x > 0)
        size += take_component(mask, rows, columns, p - 1);
    if (x + 1 < columns)
        size += take_component(mask, rows, columns, p + 1);
    return size;
}

static shape shape_of(const uint8_t *mask, size_t rows, size_t columns) {
    shape result = {0};
    uint8_t rest[PATCHES_MAX];
    memcpy(rest, mask, rows * columns);
    for (size_t p = 0; p < rows * columns; p++) {
        assert_true(mask[p] <= 1);
        result.count += mask[p];
        result.pairs += (size_t)(mask[p] && p % columns + 1 < columns && mask[p + 1]);
        result.pairs += (size_t)(mask[p] && p + columns < rows * columns && mask[p + columns]);
        size_t size = take_component(rest, rows, columns, p);
        result.components += size > 0;
        result.largest = size > result.largest ? size : result.largest;
    }
    return result;
}

static void compare_masks(const golden *archive, int grid, size_t row) {
    size_t rows = (size_t)golden_number(golden_get(archive, "g%d_grid", grid), 0);
    size_t columns = (size_t)golden_number(golden_get(archive, "g%d_grid", grid), 1);
    size_t wanted = (size_t)golden_number(golden_get(archive, "g%d_requested", grid), row), patches = rows * columns;
    assert_true(patches <= PATCHES_MAX && golden_scalar(archive, "n_masks") == DRAWS);
    double counts[PATCHES_MAX + 1] = {0}, components[COMPONENTS] = {0}, places[PATCHES_MAX] = {0};
    double pairs[2] = {0}, largest[2] = {0};
    sd_mask_config config = defaults();
    assert_true(config.block_share * (double)patches ==
                golden_scalar(archive, "g%d_max_num_patches", grid)); /* so the defaults are the official ones */
    for (uint64_t i = 0; i < DRAWS; i++) {
        uint8_t mask[PATCHES_MAX];
        sd_random random;
        sd_random_init(&random, 17, i, (uint32_t)(100 * grid) + (uint32_t)row);
        size_t count = sd_mask_blocks(&config, &random, rows, columns, wanted, mask);
        shape found = shape_of(mask, rows, columns);
        assert_int_equal(found.count, count);
        assert_true(count <= wanted && found.components < COMPONENTS);
        counts[count] += 1.0;
        components[found.components] += 1.0;
        for (size_t p = 0; p < patches; p++)
            places[p] += mask[p];
        double share = count > 0 ? (double)found.largest / (double)count : 0.0;
        largest[0] += share;
        largest[1] += share * share;
        pairs[0] += (double)found.pairs;
        pairs[1] += (double)(found.pairs * found.pairs);
    }
    expect_same_histogram(counts, golden_get(archive, "g%d_count_hist", grid), row, "masked patches");
    expect_same_histogram(components, golden_get(archive, "g%d_components_hist", grid), row, "components");
    expect_same_mean(largest[0], largest[1], DRAWS, golden_number(golden_get(archive, "g%d_largest_share", grid), row),
                     "share of the largest component", row);
    expect_same_mean(pairs[0], pairs[1], DRAWS, golden_number(golden_get(archive, "g%d_adjacent_pairs", grid), row),
                     "adjacent pairs", row);
    const golden_array *rate = golden_get(archive, "g%d_position_rate", grid);
    for (size_t p = 0; p < patches; p++)
        expect_same_mean(places[p], places[p], DRAWS, golden_number(rate, row * patches + p), "rate of patch", p);
}

static void blocks_are_distributed_as_the_official_ones(void **state) {
    (void)state;
    golden *archive = golden_open("image/masking.npz");
    assert_true(golden_scalar(archive, "min_num_patches") == defaults().block_patches);
    assert_true(golden_scalar(archive, "min_aspect") == defaults().block_aspect);
    for (int grid = 0; grid < 3; grid++)
        for (size_t row = 0; row < golden_get(archive, "g%d_requested", grid)->count; row++)
            compare_masks(archive, grid, row);
    golden_close(archive);
}

/* ---- a batch ------------------------------------------------------------------------------- */

typedef struct batch_setting {
    sd_mask_config config;
    size_t images, rows, columns;
} batch_setting;

static batch_setting setting_of(const golden *archive, int which) {
    const double *numbers = golden_f64(archive, "c%d_config", which);
    batch_setting setting = {defaults(), (size_t)numbers[1], (size_t)numbers[2], (size_t)numbers[3]};
    setting.config.ratio_min = numbers[4];
    setting.config.ratio_max = numbers[5];
    setting.config.probability = numbers[6];
    return setting;
}

static void ratios_and_limit_are_the_official_ones(void **state) {
    (void)state;
    golden *archive = golden_open("image/collate.npz");
    for (int which = 0; which < 4; which++) {
        batch_setting setting = setting_of(archive, which);
        size_t parts = (size_t)golden_scalar(archive, "c%d_n_images_masked", which), limit = 0;
        const float *edges = golden_f32(archive, "c%d_ratio_edges", which);
        for (size_t i = 0; i <= parts; i++)
            assert_true(sd_mask_edge(&setting.config, parts, i) == edges[i]);
        assert_int_equal(sd_masks_limit(&setting.config, setting.images, setting.rows, setting.columns, &limit), SD_OK);
        assert_int_equal(limit, (size_t)golden_scalar(archive, "c%d_upperbound", which));
    }
    golden_close(archive);

    /* torch.linspace(low, high, parts + 1), where one end alone would give another last bit */
    static const struct {
        double low, high;
        size_t parts, i;
        float edge;
    } cases[] = {{0.1, 0.5, 6, 3, 0.29999998211860657f},
                 {0.1, 0.5, 5, 4, 0.42000001668930054f},
                 {0.2, 0.4, 4, 3, 0.3499999940395355f},
                 {0.1, 0.45, 6, 4, 0.3333333134651184f},
                 {0.1, 0.5, 3, 3, 0.5f}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        sd_mask_config config = defaults();
        config.ratio_min = cases[c].low;
        config.ratio_max = cases[c].high;
        assert_true(sd_mask_edge(&config, cases[c].parts, cases[c].i) == cases[c].edge);
    }
}

static void collated_masks_are_the_official_ones(void **state) {
    (void)state;
    golden *archive = golden_open("image/collate.npz");
    for (int which = 0; which < 4; which++) {
        const golden_array *masks = golden_get(archive, "c%d_masks", which);
        const golden_array *indices = golden_get(archive, "c%d_mask_indices", which);
        const float *weights = golden_f32(archive, "c%d_masks_weight", which);
        size_t own_indices[512], count = 0, images = masks->shape[0], patches = masks->shape[1];
        float own_weights[512];
        assert_true(masks->item_size == 1 && indices->count <= 512);
        assert_int_equal(sd_masks_collate(masks->data, images, patches, 512, own_indices, own_weights, &count), SD_OK);
        assert_int_equal(count, indices->count);
        assert_int_equal(count, (size_t)golden_scalar(archive, "c%d_n_masked_patches", which));
        for (size_t i = 0; i < count; i++) {
            assert_int_equal(own_indices[i], (size_t)golden_number(indices, i));
            assert_true(fabsf(own_weights[i] - weights[i]) <= 1e-7f);
        }
        /* any value but 0 masks; exactly as much room as is needed; only counting */
        uint8_t *other = malloc(masks->count);
        assert_non_null(other);
        for (size_t i = 0; i < masks->count; i++)
            other[i] = ((const uint8_t *)masks->data)[i] ? (uint8_t)(i % 255 + 1) : 0;
        size_t again[512];
        assert_int_equal(sd_masks_collate(other, images, patches, count, again, NULL, &count), SD_OK);
        assert_memory_equal(again, own_indices, count * sizeof *again);
        size_t needed = 0;
        assert_int_equal(sd_masks_collate(other, images, patches, 0, NULL, NULL, &needed), SD_OK);
        assert_int_equal(needed, count);
        size_t kept = count;
        assert_int_equal(sd_masks_collate(other, images, patches, count - 1, again, NULL, &count), SD_ERR_ARGUMENT);
        assert_non_null(strstr(sd_last_error(), "capacity"));
        assert_int_equal(count, kept);
        free(other);
    }
    golden_close(archive);
}

static int descending(const void *a, const void *b) {
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x < y) - (x > y);
}

/* Masked patches per crop, sorted, and in all; and all crops have their turn. */
static void counts_are_distributed_as_the_official_ones(void **state) {
    (void)state;
    enum { BATCHES = 1000, IMAGES_MAX = 16 };
    golden *archive = golden_open("image/collate.npz");
    for (int which = 0; which < 4; which++) {
        batch_setting setting = setting_of(archive, which);
        size_t images = setting.images, patches = setting.rows * setting.columns, limit = 0;
        size_t parts = (size_t)golden_scalar(archive, "c%d_n_images_masked", which);
        assert_true(images <= IMAGES_MAX);
        assert_int_equal(sd_masks_limit(&setting.config, images, setting.rows, setting.columns, &limit), SD_OK);
        uint8_t *masks = malloc(images * patches);
        assert_non_null(masks);
        double sums[IMAGES_MAX][2] = {{0}}, totals[2] = {0}, turns[IMAGES_MAX] = {0};
        for (uint64_t step = 0; step < BATCHES; step++) {
            size_t counts[IMAGES_MAX], total = 0;
            memset(masks, 7, images * patches);
            assert_int_equal(sd_masks_draw(NULL, &setting.config, 3, step, images, setting.rows, setting.columns, masks,
                                           counts),
                             SD_OK);
            for (size_t i = 0; i < images; i++) {
                size_t masked = 0;
                for (size_t p = 0; p < patches; p++) {
                    assert_true(masks[i * patches + p] <= 1);
                    masked += masks[i * patches + p];
                }
                assert_int_equal(masked, counts[i]);
                turns[i] += counts[i] > 0;
                total += masked;
            }
            assert_true(total <= limit);
            qsort(counts, images, sizeof *counts, descending);
            for (size_t i = 0; i < images; i++) {
                assert_true(i < parts || counts[i] == 0);
                sums[i][0] += (double)counts[i];
                sums[i][1] += (double)(counts[i] * counts[i]);
            }
            totals[0] += (double)total;
            totals[1] += (double)(total * total);
        }
        const golden_array *sorted = golden_get(archive, "c%d_sorted_counts_mean", which);
        const double *expected = golden_f64(archive, "c%d_total_mean_std", which);
        for (size_t i = 0; i < images; i++) {
            expect_same_mean(sums[i][0], sums[i][1], BATCHES, golden_number(sorted, i), "sorted count", i);
            double p = (double)parts / (double)images;
            assert_true(fabs(turns[i] / BATCHES - p) <= 5.0 * sqrt(p * (1.0 - p) / BATCHES));
        }
        expect_same_mean(totals[0], totals[1], BATCHES, expected[0], "total", 0);
        double mean = totals[0] / BATCHES, deviation = sqrt(totals[1] / BATCHES - mean * mean);
        assert_true(fabs(deviation - expected[1]) <= 5.0 * expected[1] / sqrt(BATCHES));
        free(masks);
    }
    golden_close(archive);
}

/* The masks are a function of seed, step and number of crops; drawing them takes no memory. */
static void threads_do_not_matter(void **state) {
    (void)state;
    enum { IMAGES = 37, ROWS = 9, COLUMNS = 14, SIZE = IMAGES * ROWS * COLUMNS };
    sd_mask_config config = defaults();
    uint8_t first[SIZE], again[SIZE];
    size_t first_counts[IMAGES], counts[IMAGES];
    assert_int_equal(sd_masks_draw(NULL, &config, 5, 6, IMAGES, ROWS, COLUMNS, first, first_counts), SD_OK);
    for (int32_t threads = 1; threads <= 4; threads++) {
        sd_context_config context_config;
        failing_memory memory;
        sd_context *context;
        sd_context_config_init(&context_config);
        failing_memory_install(&memory, &context_config);
        context_config.threads = threads;
        assert_int_equal(sd_context_create(&context_config, &context), SD_OK);
        long allocations = memory.allocations;
        assert_int_equal(sd_masks_draw(context, &config, 5, 6, IMAGES, ROWS, COLUMNS, again, counts), SD_OK);
        assert_int_equal(memory.allocations, allocations);
        assert_memory_equal(first, again, SIZE);
        assert_memory_equal(first_counts, counts, sizeof counts);
        sd_context_destroy(context);
    }
    assert_int_equal(sd_masks_draw(NULL, NULL, 5, 6, IMAGES, ROWS, COLUMNS, again, counts), SD_OK); /* the defaults */
    assert_memory_equal(first, again, SIZE);
    assert_int_equal(sd_masks_draw(NULL, &config, 5, 7, IMAGES, ROWS, COLUMNS, again, counts), SD_OK);
    assert_true(memcmp(first, again, SIZE) != 0);
    assert_int_equal(sd_masks_draw(NULL, &config, 4, 6, IMAGES, ROWS, COLUMNS, again, counts), SD_OK);
    assert_true(memcmp(first, again, SIZE) != 0);
}

static void odd_grids(void **state) {
    (void)state;
    static const size_t grids[][2] = {{2, 2}, {2, 9}, {9, 2}, {3, 3}, {2, 4096}, {40, 30}};
    static uint8_t masks[6 * 8192];
    size_t counts[6], limit, total = 0;
    for (size_t g = 0; g < sizeof grids / sizeof grids[0]; g++)
        for (int ratio = 0; ratio <= 2; ratio++)
            for (uint64_t step = 0; step < 20; step++) {
                sd_mask_config config = defaults();
                config.probability = 1.0;
                config.ratio_min = 0.5 * ratio;
                config.ratio_max = ratio == 2 ? 1.0 : 0.5;
                config.block_share = ratio == 1 ? 1.0 : 0.5;
                size_t patches = grids[g][0] * grids[g][1], masked = 0;
                assert_int_equal(sd_masks_limit(&config, 6, grids[g][0], grids[g][1], &limit), SD_OK);
                assert_int_equal(sd_masks_draw(NULL, &config, 1, step, 6, grids[g][0], grids[g][1], masks, counts),
                                 SD_OK);
                for (size_t i = 0; i < 6; i++) {
                    assert_true(counts[i] <= patches);
                    masked += counts[i];
                }
                assert_true(masked <= limit && limit <= 6 * patches);
                total += masked;
            }
    assert_true(total > 0);

    /* the limit does not fall with fewer crops */
    for (size_t side = 2; side < 15; side++) {
        size_t before = 0;
        sd_mask_config config = defaults();
        config.probability = 0.7;
        for (size_t images = 1; images < 300; images++) {
            assert_int_equal(sd_masks_limit(&config, images, side, side, &limit), SD_OK);
            assert_true(limit >= before);
            before = limit;
        }
    }

    /* without masks every grid will do */
    sd_mask_config config = defaults();
    config.probability = 0.0;
    memset(masks, 1, sizeof masks);
    assert_int_equal(sd_masks_draw(NULL, &config, 1, 1, 6, 1, 1, masks, counts), SD_OK);
    assert_int_equal(sd_masks_limit(&config, 6, 1, 1, &limit), SD_OK);
    assert_int_equal(limit, 0);
    for (size_t i = 0; i < 6; i++)
        assert_true(masks[i] == 0 && counts[i] == 0);
    assert_int_equal(masks[6], 1);
    config = defaults();
    assert_int_equal(sd_masks_draw(NULL, &config, 1, 1, 1, 7, 7, masks, counts), SD_OK); /* half of one crop is none */
    assert_int_equal(counts[0], 0);
}

/* ---- wrong arguments ----------------------------------------------------------------------- */

static void expect_refusal(const sd_mask_config *config, size_t images, size_t rows, size_t columns,
                           const char *culprit) {
    uint8_t masks[64] = {9};
    size_t counts[4] = {77}, limit = 55;
    assert_int_equal(sd_masks_limit(config, images, rows, columns, &limit), SD_ERR_ARGUMENT);
    if (strstr(sd_last_error(), culprit) == NULL)
        fail_msg("\"%s\" does not name %s", sd_last_error(), culprit);
    assert_int_equal(sd_masks_draw(NULL, config, 1, 1, images, rows, columns, masks, counts), SD_ERR_ARGUMENT);
    assert_true(masks[0] == 9 && counts[0] == 77 && limit == 55);
}

#define REFUSE(member, value, culprit)                                                                                 \
    do {                                                                                                               \
        sd_mask_config config = defaults();                                                                            \
        config.member = value;                                                                                         \
        expect_refusal(&config, 4, 4, 4, culprit);                                                                     \
    } while (0)

static void impossible_settings_are_refused(void **state) {
    (void)state;
    REFUSE(ratio_min, -0.1, "ratio_min is -0.1");
    REFUSE(ratio_min, NAN, "ratio_min");
    REFUSE(ratio_max, 1.5, "ratio_max is 1.5");
    REFUSE(ratio_min, 0.6, "ratio_min is 0.6 and ratio_max 0.5");
    REFUSE(probability, -1.0, "probability is -1");
    REFUSE(probability, 1.01, "probability is 1.01");
    REFUSE(probability, NAN, "probability");
    REFUSE(block_share, 0.0, "block_share is 0");
    REFUSE(block_share, 1.5, "block_share is 1.5");
    REFUSE(block_aspect, 0.0, "block_aspect is 0");
    REFUSE(block_aspect, 2.0, "block_aspect is 2");
    REFUSE(block_patches, 0, "block_patches is 0");
    REFUSE(size, 0, "size");
    sd_mask_config config = defaults();
    expect_refusal(&config, 0, 4, 4, "images is 0");
    expect_refusal(&config, 1u << 24, 4, 4, "images is 16777216");
    expect_refusal(&config, 4, 0, 4, "0 x 4");
    expect_refusal(&config, 4, 4, 0, "4 x 0");
    expect_refusal(&config, 4, SIZE_MAX, 2, "grid");
    expect_refusal(&config, 4, 1, 4, "1 x 4");
    expect_refusal(&config, 4, 4, 1, "at least 2 x 2");
    expect_refusal(NULL, 4, 4, 1, "at least 2 x 2");

    uint8_t masks[64];
    size_t counts[4], count;
    assert_int_equal(sd_masks_draw(NULL, &config, 1, 1, 4, 4, 4, NULL, counts), SD_ERR_ARGUMENT);
    assert_int_equal(sd_masks_draw(NULL, &config, 1, 1, 4, 4, 4, masks, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_masks_limit(&config, 4, 4, 4, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_masks_collate(NULL, 4, 16, 64, NULL, NULL, &count), SD_ERR_ARGUMENT);
    assert_int_equal(sd_masks_collate(masks, 4, 16, 64, NULL, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_masks_collate(masks, SIZE_MAX, 16, 64, NULL, NULL, &count), SD_ERR_ARGUMENT);
    sd_mask_config_init(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_distributed_as_the_official_ones),
        cmocka_unit_test(ratios_and_limit_are_the_official_ones),
        cmocka_unit_test(collated_masks_are_the_official_ones),
        cmocka_unit_test(counts_are_distributed_as_the_official_ones),
        cmocka_unit_test(threads_do_not_matter),
        cmocka_unit_test(odd_grids),
        cmocka_unit_test(impossible_settings_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
