/* Every method through the pretrainer: threads, activations, accumulation, loaders, memory. (SimDINO has
 * test_pretrainer.c) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "model/model.h"
#include "small_runs.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- threads and activations --------------------------------------------------------------- */

static void test_threads_and_activations(void **state) {
    (void)state;
    for (int run = 0; run < SMALL_RUNS; run++) {
        sd_pretrainer_config c = small_config(run);
        sd_context *calm = small_context(1, NULL);
        sd_pretrainer *reference = small_trainer(calm, &c);
        sd_step_metrics expected[5];
        for (size_t i = 0; i < 5; i++)
            expected[i] = small_step(reference, i % 3 * 8);
        small_state end = small_state_of(reference);
        for (int form = 1; form < 4; form++) {
            sd_context *context = small_context(form % 2 ? 3 : 1, NULL);
            c.activations = form / 2 ? SD_ACTIVATIONS_MEMORY : SD_ACTIVATIONS_SPEED;
            sd_pretrainer *trainer = small_trainer(context, &c);
            for (size_t i = 0; i < 5; i++) {
                sd_step_metrics metrics = small_step(trainer, i % 3 * 8);
                if (memcmp(&metrics, &expected[i], sizeof metrics) != 0)
                    fail_msg("%s, form %d, step %zu: loss %.17g, expected %.17g", small_run_name(run), form, i,
                             metrics.loss, expected[i].loss);
            }
            small_state_compare(trainer, &end, small_run_name(run));
            sd_pretrainer_destroy(trainer);
            sd_context_destroy(context);
        }
        small_state_free(&end);
        sd_pretrainer_destroy(reference);
        sd_context_destroy(calm);
    }
}

/* What a step tells belongs to its method. */
static void test_metrics(void **state) {
    (void)state;
    for (int run = 0; run < SMALL_RUNS; run++) {
        sd_pretrainer_config c = small_config(run);
        sd_pretrainer *trainer = small_trainer(NULL, &c);
        for (size_t i = 0; i < 8; i++) {
            sd_step_metrics m = small_step(trainer, i % 3 * 8);
            bool prototypes = run != SMALL_SIMDINOV2, masks = run != SMALL_DINO, v2 = run >= SMALL_DINOV2;
            assert_int_equal(m.step, i);
            assert_true((m.rate > 0.0) == !prototypes && (m.compression != 0.0) == !prototypes);
            assert_true((m.patch_loss != 0.0) == masks && (m.masked_patches > 0) == masks);
            assert_true((m.koleo != 0.0) == v2);
            assert_true((m.global_loss > 0.0) == prototypes && (m.local_loss > 0.0) == prototypes);
            assert_true((m.target_entropy > 0.0) == prototypes);
            assert_true(m.target_entropy <= log(50.0) + 1e-6);
            double parts = prototypes ? m.local_loss + m.global_loss : -m.compression - m.expansion;
            parts += (masks ? m.patch_loss : 0.0) + (v2 ? 0.1 * m.koleo : 0.0);
            assert_true(fabs(m.loss - parts) < 1e-9);
            double rise = i < 6 ? 0.04 + 0.03 * (double)i / 5.0 : 0.07;
            assert_true(fabs(m.teacher_temp - (prototypes ? rise : 0.0)) < 1e-12);
        }
        sd_pretrainer_destroy(trainer);
    }
}

/* While the prototypes are frozen, they stay; when they are not, they move. */
static void test_freezing(void **state) {
    (void)state;
    for (int run = SMALL_DINO; run < SMALL_RUNS; run++) {
        sd_pretrainer_config c = small_config(run);
        sd_pretrainer *trainer = small_trainer(NULL, &c);
        const struct sd_head_layout *l = &trainer->student->layout.head[0];
        size_t bytes = 50 * 16 * sizeof(float);
        float *kept = malloc(bytes);
        for (size_t i = 0; i < 6; i++) {
            memcpy(kept, trainer->student->parameters + l->prototype_direction, bytes);
            small_step(trainer, i % 3 * 8);
            bool same = memcmp(kept, trainer->student->parameters + l->prototype_direction, bytes) == 0;
            assert_int_equal(same, i < 3);
        }
        for (size_t i = 0; run == SMALL_DINO && i < 50; i++) /* DINO's keep the length 1 */
            assert_true(trainer->student->parameters[l->prototype_scale + i] == 1.0f);
        free(kept);
        sd_pretrainer_destroy(trainer);
    }
}

/* ---- accumulation -------------------------------------------------------------------------- */

static double largest_of(const float *x, size_t count) {
    double largest = 0.0;
    for (size_t i = 0; i < count; i++)
        largest = fmax(largest, fabs((double)x[i]));
    return largest;
}

static double difference(const sd_pretrainer *a, const sd_pretrainer *b) {
    double worst = 0.0;
    for (size_t i = 0; i < a->student->parameter_count; i++)
        worst = fmax(worst, fabs((double)a->gradient[i] - (double)b->gradient[i]));
    return worst / largest_of(a->gradient, a->student->parameter_count);
}

static void test_accumulation(void **state) {
    (void)state;
    for (int run = 0; run < SMALL_RUNS; run++) {
        sd_pretrainer_config c = small_config(run);
        c.model.drop_path = 0.0; /* decisions are numbered by piece */
        sd_pretrainer *one = small_trainer(NULL, &c);
        c.micro_batch = 3;
        sd_pretrainer *whole = small_trainer(NULL, &c);
        c.accumulation = SD_ACCUMULATE_PIECES;
        sd_pretrainer *pieces = small_trainer(NULL, &c);
        for (size_t i = 0; i < 4; i++) {
            sd_step_metrics expected = small_step(one, i % 3 * 8), same = small_step(whole, i % 3 * 8);
            sd_step_metrics other = small_step(pieces, i % 3 * 8);
            assert_int_equal(same.masked_patches, expected.masked_patches);
            if (!(fabs(same.loss - expected.loss) <= 1e-5 * (1.0 + fabs(expected.loss))))
                fail_msg("%s, step %zu: loss %.9g in pieces, %.9g at once", small_run_name(run), i, same.loss,
                         expected.loss);
            if (i == 0 && !(difference(one, whole) <= 1e-5))
                fail_msg("%s: the gradient in pieces differs by %g", small_run_name(run), difference(one, whole));
            if (run == SMALL_DINO) { /* each sample has its own loss, and the center moves after the batch */
                assert_true(fabs(other.loss - expected.loss) <= 1e-5 * (1.0 + expected.loss));
                assert_true(i > 0 || difference(one, pieces) <= 1e-5);
            } else {
                assert_true(fabs(other.loss - expected.loss) > 1e-3); /* rates, neighbours, shares: of fewer samples */
                assert_true(i > 0 || difference(one, pieces) > 1e-4);
            }
        }
        sd_pretrainer_destroy(pieces);
        sd_pretrainer_destroy(whole);
        sd_pretrainer_destroy(one);
    }
}

enum { PATCHES = 16 };

/* Samples first .. first+count-1 of a batch, as a batch of their own. */
static sd_crop_batch cut_batch(const sd_crop_batch *all, size_t first, size_t count, float *pixels, uint8_t *masks) {
    size_t global = 3 * SMALL_GLOBAL * SMALL_GLOBAL, local = 3 * SMALL_LOCAL * SMALL_LOCAL;
    sd_crop_batch part = *all;
    float *locals = pixels + 2 * count * global;
    for (size_t view = 0; view < 2; view++) {
        memcpy(pixels + view * count * global, all->globals + (view * all->samples + first) * global,
               count * global * sizeof *pixels);
        memcpy(masks + view * count * PATCHES, all->masks + (view * all->samples + first) * PATCHES, count * PATCHES);
    }
    for (size_t view = 0; view < SMALL_LOCALS; view++)
        memcpy(locals + view * count * local, all->locals + (view * all->samples + first) * local,
               count * local * sizeof *pixels);
    part.samples = count;
    part.globals = pixels;
    part.locals = locals;
    part.masks = masks;
    return part;
}

/* Pieces with losses of their own: the gradient is the mean of those of batches of the same samples. */
static void test_pieces_are_batches(void **state) {
    (void)state;
    for (int run = 0; run < SMALL_RUNS; run++) {
        sd_pretrainer_config c = small_config(run);
        c.model.drop_path = 0.0;
        c.koleo_weight = 5.0; /* so that it is seen */
        sd_pretrainer *trainers[2] = {small_trainer(NULL, &c), small_trainer(NULL, &c)};
        c.micro_batch = 5;
        c.accumulation = SD_ACCUMULATE_PIECES;
        sd_pretrainer *pieces = small_trainer(NULL, &c);
        sd_crop_batch crops, none;
        uint8_t masks[2 * SMALL_BATCH * PATCHES], some[2 * SMALL_BATCH * PATCHES];
        size_t counts[2 * SMALL_BATCH], parameters = pieces->student->parameter_count;
        float *pixels = small_crops(8, &crops), *room = small_crops(9, &none);
        assert_int_equal(sd_masks_draw(NULL, &c.mask, 1, 0, 2 * SMALL_BATCH, 4, 4, masks, counts), SD_OK);
        crops.masks = masks;
        float *mean = calloc(parameters, sizeof *mean);
        double loss = 0.0;
        for (size_t i = 0; i < 2; i++) {
            sd_crop_batch part = cut_batch(&crops, 5 * i, i ? 3 : 5, room, some);
            if (run == SMALL_DINO)
                part.masks = NULL;
            sd_step_metrics m = {.size = sizeof m};
            assert_int_equal(sd_pretrainer_step_crops(trainers[i], &part, &m), SD_OK);
            loss += (i ? 0.375 : 0.625) * m.loss;
            for (size_t j = 0; j < parameters; j++)
                mean[j] += (i ? 0.375f : 0.625f) * trainers[i]->gradient[j];
        }
        if (run == SMALL_DINO)
            crops.masks = NULL;
        sd_step_metrics m = {.size = sizeof m};
        assert_int_equal(sd_pretrainer_step_crops(pieces, &crops, &m), SD_OK);
        assert_true(fabs(m.loss - loss) <= 1e-5 * (1.0 + fabs(loss)));
        double allowed = 1e-5 * largest_of(mean, parameters);
        for (size_t j = 0; j < parameters; j++)
            if (!(fabs((double)mean[j] - (double)pieces->gradient[j]) <= allowed))
                fail_msg("%s: gradient %zu is %g, expected %g", small_run_name(run), j, (double)pieces->gradient[j],
                         (double)mean[j]);
        free(mean);
        free(room);
        free(pixels);
        sd_pretrainer_destroy(pieces);
        sd_pretrainer_destroy(trainers[1]);
        sd_pretrainer_destroy(trainers[0]);
    }
}

/* A batch smaller than batch_size, down to one sample, also in pieces. */
static void test_small_batches(void **state) {
    (void)state;
    for (int run = 0; run < SMALL_RUNS; run++)
        for (int form = 0; form < 3; form++) {
            sd_pretrainer_config c = small_config(run);
            c.micro_batch = form == 0 ? 0 : 3;
            c.accumulation = form == 2 ? SD_ACCUMULATE_PIECES : SD_ACCUMULATE_WHOLE;
            sd_pretrainer *trainer = small_trainer(NULL, &c);
            static const size_t counts[] = {5, 1, 2, 3, 4, 8, 7};
            for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
                sd_step_metrics m = {.size = sizeof m};
                if (sd_pretrainer_step(trainer, small_images(), counts[i], &m) != SD_OK)
                    fail_msg("%s, %zu samples: %s", small_run_name(run), counts[i], sd_last_error());
                assert_true(isfinite(m.loss));
            }
            sd_pretrainer_destroy(trainer);
        }
}

/* ---- loaders and the host's crops ---------------------------------------------------------- */

static sd_loader *make_loader(sd_context *context, const sd_pretrainer_config *c, sd_dataset **dataset) {
    assert_int_equal(sd_dataset_from_images(context, small_images(), SMALL_IMAGES, NULL, dataset), SD_OK);
    sd_loader_config config;
    sd_loader *loader = NULL;
    sd_loader_config_init(&config);
    config.batch_size = c->batch_size;
    config.seed = 4;
    assert_int_equal(sd_loader_create(context, *dataset, &c->augment, &config, &loader), SD_OK);
    return loader;
}

static void test_loader_runs(void **state) {
    (void)state;
    for (int run = 0; run < SMALL_RUNS; run++) {
        double losses[6] = {0};
        for (int32_t threads = 1; threads <= 3; threads += 2) {
            sd_context *context = small_context(threads, NULL);
            sd_pretrainer_config c = small_config(run);
            sd_pretrainer *trainer = small_trainer(context, &c);
            sd_dataset *dataset;
            sd_loader *loader = make_loader(context, &c, &dataset);
            for (int i = 0; i < 6; i++) {
                sd_step_metrics metrics = {.size = sizeof metrics};
                assert_int_equal(sd_pretrainer_step_loader(trainer, loader, &metrics), SD_OK);
                assert_true(threads == 1 || metrics.loss == losses[i]);
                losses[i] = metrics.loss;
            }
            sd_loader_destroy(loader);
            sd_dataset_destroy(dataset);
            sd_pretrainer_destroy(trainer);
            sd_context_destroy(context);
        }
    }
}

/* Masks that the host gives: none at all, one patch, and those that the pretrainer would draw. */
static void test_given_masks(void **state) {
    (void)state;
    sd_crop_batch crops;
    float *pixels = small_crops(3, &crops);
    uint8_t masks[2 * SMALL_BATCH * PATCHES] = {0};
    for (int run = 0; run < SMALL_RUNS; run++) {
        if (run == SMALL_DINO)
            continue;
        sd_pretrainer_config c = small_config(run);
        sd_pretrainer *trainer = small_trainer(NULL, &c), *drawing = small_trainer(NULL, &c);
        sd_step_metrics drawn = {.size = sizeof drawn}, given = drawn;
        size_t counts[2 * SMALL_BATCH];
        crops.masks = NULL;
        assert_int_equal(sd_pretrainer_step_crops(drawing, &crops, &drawn), SD_OK);
        assert_int_equal(sd_masks_draw(NULL, &c.mask, c.seed, 0, 2 * SMALL_BATCH, 4, 4, masks, counts), SD_OK);
        crops.masks = masks;
        assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, &given), SD_OK);
        assert_true(drawn.masked_patches > 0 && given.masked_patches == drawn.masked_patches);
        assert_true(given.loss == drawn.loss);
        memset(masks, 0, sizeof masks);
        assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, &given), SD_OK);
        assert_true(given.masked_patches == 0 && given.patch_loss == 0.0);
        masks[5 * PATCHES + 7] = 1;
        assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, &given), SD_OK);
        assert_true(given.masked_patches == 1 && given.patch_loss != 0.0);
        memset(masks, 1, sizeof masks);
        small_state before = small_state_of(trainer);
        sd_status status = sd_pretrainer_step_crops(trainer, &crops, &given);
        assert_int_equal(status, SD_ERR_ARGUMENT); /* more than mask.ratio_max and mask.probability leave room for */
        assert_non_null(strstr(sd_last_error(), "mask"));
        small_state_compare(trainer, &before, "too many masks");
        small_state_free(&before);
        memset(masks, 0, sizeof masks);
        sd_pretrainer_destroy(drawing);
        sd_pretrainer_destroy(trainer);
    }
    free(pixels);
}

/* ---- memory -------------------------------------------------------------------------------- */

static void test_no_allocation_in_a_step(void **state) {
    (void)state;
    for (int run = 0; run < SMALL_RUNS; run++)
        for (int form = 0; form < 3; form++) {
            failing_memory memory;
            sd_context *context = small_context(form == 0 ? 1 : 2, &memory);
            sd_pretrainer_config c = small_config(run);
            c.micro_batch = form == 0 ? 0 : 3;
            c.accumulation = form == 2 ? SD_ACCUMULATE_PIECES : SD_ACCUMULATE_WHOLE;
            c.activations = form == 2 ? SD_ACTIVATIONS_MEMORY : SD_ACTIVATIONS_SPEED;
            sd_pretrainer *trainer = small_trainer(context, &c);
            sd_crop_batch crops;
            float *pixels = small_crops(2, &crops);
            long after = memory.allocations;
            for (int i = 0; i < 5; i++)
                assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, NULL), SD_OK);
            assert_int_equal(memory.allocations, after); /* not even in the first */
            if (form == 0) {                             /* one thread meets all images */
                sd_dataset *dataset;
                sd_loader *loader = make_loader(context, &c, &dataset);
                small_step(trainer, 0);
                assert_int_equal(sd_pretrainer_step_loader(trainer, loader, NULL), SD_OK);
                after = memory.allocations;
                for (size_t i = 0; i < 4; i++) {
                    small_step(trainer, i % 3 * 8);
                    assert_int_equal(sd_pretrainer_step_loader(trainer, loader, NULL), SD_OK);
                }
                assert_int_equal(memory.allocations, after);
                sd_loader_destroy(loader);
                sd_dataset_destroy(dataset);
            }
            free(pixels);
            sd_pretrainer_destroy(trainer);
            sd_context_destroy(context);
            assert_int_equal(memory.live, 0);
        }
}

static void check_foretold(int run, sd_pretrainer_config c) {
    failing_memory memory;
    sd_context *context = small_context(2, &memory);
    size_t foretold, before = memory.live_bytes;
    assert_int_equal(sd_pretrainer_memory(context, &c, &foretold), SD_OK);
    assert_int_equal(memory.live_bytes, before);
    sd_pretrainer *trainer = small_trainer(context, &c);
    sd_dataset *dataset;
    sd_loader *loader = make_loader(context, &c, &dataset);
    assert_int_equal(sd_pretrainer_step_loader(trainer, loader, NULL), SD_OK);
    double taken = (double)(memory.peak_bytes - before);
    if (!(fabs((double)foretold / taken - 1.0) <= 0.1))
        fail_msg("%s: %zu bytes were foretold, %.0f were taken", small_run_name(run), foretold, taken);
    sd_loader_destroy(loader);
    sd_dataset_destroy(dataset);
    sd_pretrainer_destroy(trainer);
    sd_context_destroy(context);
}

static void test_foretold_memory(void **state) {
    (void)state;
    for (int run = 0; run < SMALL_RUNS; run++) {
        sd_pretrainer_config c = small_config(run);
        c.model.dim = 96;
        c.model.head_hidden = 128;
        c.model.head_dim = 32;
        c.model.prototypes = run == SMALL_SIMDINOV2 ? 0 : 4096;
        c.model.patch_prototypes = run == SMALL_DINOV2_SINKHORN ? 4096 : 0;
        c.batch_size = 16;
        check_foretold(run, c);
        c.activations = SD_ACTIVATIONS_MEMORY;
        check_foretold(run, c);
        c.micro_batch = 4;
        check_foretold(run, c);
        c.accumulation = SD_ACCUMULATE_PIECES;
        c.activations = SD_ACTIVATIONS_SPEED;
        check_foretold(run, c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads_and_activations),
        cmocka_unit_test(test_metrics),
        cmocka_unit_test(test_freezing),
        cmocka_unit_test(test_accumulation),
        cmocka_unit_test(test_pieces_are_batches),
        cmocka_unit_test(test_small_batches),
        cmocka_unit_test(test_loader_runs),
        cmocka_unit_test(test_given_masks),
        cmocka_unit_test(test_no_allocation_in_a_step),
        cmocka_unit_test(test_foretold_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
