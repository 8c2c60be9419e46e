/* Every method when something goes wrong: settings that make no sense, NaN, a stop, no memory. What fails leaves the
 * pretrainer as it was. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "small_runs.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- refusals ------------------------------------------------------------------------------ */

typedef void spoiler(sd_pretrainer_config *);
static void no_mask_token(sd_pretrainer_config *c) {
    c->model.mask_token = 0;
}
static void no_prototypes(sd_pretrainer_config *c) {
    c->model.prototypes = 0;
}
static void negative_prototypes(sd_pretrainer_config *c) {
    c->model.prototypes = -5;
}
static void no_patch_prototypes(sd_pretrainer_config *c) {
    c->model.patch_prototypes = 0;
}
static void stray_patch_prototypes(sd_pretrainer_config *c) {
    c->model.patch_prototypes = 9;
}
static void no_teacher_temp(sd_pretrainer_config *c) {
    c->teacher_temp = 0.0;
}
static void negative_teacher_temp(sd_pretrainer_config *c) {
    c->teacher_temp = -0.04;
}
static void no_start_temp(sd_pretrainer_config *c) {
    c->teacher_temp_start = 0.0;
}
static void nan_start_temp(sd_pretrainer_config *c) {
    c->teacher_temp_start = NAN;
}
static void no_student_temp(sd_pretrainer_config *c) {
    c->dino.student_temp = 0.0;
}
static void large_center_momentum(sd_pretrainer_config *c) {
    c->dino.center_momentum = 1.5;
}
static void no_iterations(sd_pretrainer_config *c) {
    c->dino.sinkhorn_iterations = 0;
}
static void odd_target(sd_pretrainer_config *c) {
    c->dino.target = 7;
}
static void negative_momentum(sd_pretrainer_config *c) {
    c->momentum = -0.1;
}
static void no_layer_decay(sd_pretrainer_config *c) {
    c->layer_decay = 0.0;
}
static void large_layer_decay(sd_pretrainer_config *c) {
    c->layer_decay = 1.1;
}
static void negative_patch_embed_lr(sd_pretrainer_config *c) {
    c->patch_embed_lr = -1.0;
}
static void negative_registers(sd_pretrainer_config *c) {
    c->model.registers = -1;
}
static void odd_heads(sd_pretrainer_config *c) {
    c->model.heads = 7;
}
static void negative_ratio(sd_pretrainer_config *c) {
    c->mask.ratio_min = -0.1;
}
static void large_ratio(sd_pretrainer_config *c) {
    c->mask.ratio_max = 1.2;
}
static void crossed_ratios(sd_pretrainer_config *c) {
    c->mask.ratio_min = 0.6;
}
static void nan_ratio(sd_pretrainer_config *c) {
    c->mask.ratio_max = NAN;
}
static void large_probability(sd_pretrainer_config *c) {
    c->mask.probability = 1.5;
}
static void one_row(sd_pretrainer_config *c) {
    c->augment.global_size = c->model.patch_size;
}
static void nan_koleo(sd_pretrainer_config *c) {
    c->koleo_weight = NAN;
}
static void negative_koleo(sd_pretrainer_config *c) {
    c->koleo_weight = -0.1;
}
static void nan_patch_weight(sd_pretrainer_config *c) {
    c->patch_weight = NAN;
}
static void negative_lr_start(sd_pretrainer_config *c) {
    c->lr_start = -1e-4;
}
static void odd_warmup(sd_pretrainer_config *c) {
    c->warmup_kind = 5;
}
static void odd_method(sd_pretrainer_config *c) {
    c->method = 4;
}
static void no_eps_end(sd_pretrainer_config *c) {
    c->eps_sq_end = 0.0;
}
static void nan_coeff_end(sd_pretrainer_config *c) {
    c->coeff_end = NAN;
}

static void test_refusals(void **state) {
    (void)state;
    const struct {
        int run;
        spoiler *spoil;
        const char *word, *reason;
    } cases[] = {
        {SMALL_SIMDINOV2, no_mask_token, "model.mask_token is 0", "simdinov2"},
        {SMALL_DINOV2, no_mask_token, "model.mask_token is 0", "dinov2"},
        {SMALL_DINO, no_prototypes, "model.prototypes is 0", "dino"},
        {SMALL_DINO, negative_prototypes, "model.prototypes is -5", "at least 1"},
        {SMALL_DINOV2_SINKHORN, no_patch_prototypes, "model.patch_prototypes is 0", "patch_head"},
        {SMALL_DINOV2, stray_patch_prototypes, "patch_prototypes is 9", "patch_head is 0"},
        {SMALL_DINO, no_teacher_temp, "teacher_temp is 0", "above 0"},
        {SMALL_DINOV2, negative_teacher_temp, "teacher_temp is -0.04", "above 0"},
        {SMALL_DINO, no_start_temp, "teacher_temp_start is 0", "above 0"},
        {SMALL_DINO, nan_start_temp, "teacher_temp_start is", "above 0"},
        {SMALL_DINO, no_student_temp, "dino.student_temp is 0", "above 0"},
        {SMALL_DINO, large_center_momentum, "dino.center_momentum is 1.5", "[0, 1]"},
        {SMALL_DINOV2_SINKHORN, no_iterations, "dino.sinkhorn_iterations is 0", "must be"},
        {SMALL_DINO, odd_target, "dino.target is 7", "must be"},
        {SMALL_DINO, negative_momentum, "momentum is -0.1", "[0, 1]"},
        {SMALL_SIMDINOV2, no_layer_decay, "layer_decay is 0", "above 0"},
        {SMALL_SIMDINOV2, large_layer_decay, "layer_decay is 1.1", "at most 1"},
        {SMALL_DINOV2, negative_patch_embed_lr, "patch_embed_lr is -1", "not negative"},
        {SMALL_SIMDINOV2, negative_registers, "registers is -1", "must be"},
        {SMALL_DINO, odd_heads, "heads is 7", "divide dim"},
        {SMALL_SIMDINOV2, negative_ratio, "ratio_min is -0.1", "0 .. 1"},
        {SMALL_DINOV2, large_ratio, "ratio_max is 1.2", "0 .. 1"},
        {SMALL_DINOV2, crossed_ratios, "ratio_min is 0.6", "rise"},
        {SMALL_SIMDINOV2, nan_ratio, "ratio_max is", "0 .. 1"},
        {SMALL_SIMDINOV2, large_probability, "probability is 1.5", "0 .. 1"},
        {SMALL_SIMDINOV2, one_row, "1 x 1 patches", "2 x 2"},
        {SMALL_DINOV2, nan_koleo, "koleo_weight is", "finite"},
        {SMALL_DINOV2, negative_koleo, "koleo_weight is -0.1", "not negative"},
        {SMALL_SIMDINOV2, nan_patch_weight, "patch_weight is", "finite"},
        {SMALL_SIMDINOV2, negative_lr_start, "lr_start is -0.0001", "not negative"},
        {SMALL_SIMDINOV2, odd_warmup, "warmup_kind is 5", "must be"},
        {SMALL_DINO, odd_method, "method is 4", "must be"},
        {SMALL_SIMDINOV2, no_eps_end, "eps_sq_end is 0", "above 0"},
        {SMALL_SIMDINOV2, nan_coeff_end, "coeff_end is", "finite"},
    };
    failing_memory memory;
    sd_context *context = small_context(1, &memory);
    long live = memory.live;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sd_pretrainer_config c = small_config(cases[i].run);
        cases[i].spoil(&c);
        sd_pretrainer *trainer = NULL;
        size_t bytes = 0;
        for (int form = 0; form < 2; form++) {
            sd_status status =
                form ? sd_pretrainer_memory(context, &c, &bytes) : sd_pretrainer_create(context, &c, &trainer);
            if (status != SD_ERR_ARGUMENT)
                fail_msg("%s: status %d", cases[i].word, status);
            if (strstr(sd_last_error(), cases[i].word) == NULL || strstr(sd_last_error(), cases[i].reason) == NULL)
                fail_msg("\"%s\" does not say \"%s\" and \"%s\"", sd_last_error(), cases[i].word, cases[i].reason);
        }
        assert_true(trainer == NULL && bytes == 0);
        assert_int_equal(memory.live, live);
    }
    sd_context_destroy(context);
}

/* What a method does not use does not stand in its way. */
static void test_settings_of_other_methods(void **state) {
    (void)state;
    sd_pretrainer_config c = small_config(SMALL_DINO);
    c.mask.ratio_min = 0.9;
    c.augment.global_size = 4;
    c.augment.local_size = 4;
    sd_pretrainer_destroy(small_trainer(NULL, &c));
    c = small_config(SMALL_SIMDINOV2);
    c.teacher_temp = 0.0;
    c.patch_weight = 0.0;
    c.model.mask_token = 0;
    sd_pretrainer *trainer = small_trainer(NULL, &c);
    small_step(trainer, 0);
    sd_pretrainer_destroy(trainer);
}

static void test_masks_without_use(void **state) {
    (void)state;
    sd_crop_batch crops;
    float *pixels = small_crops(4, &crops);
    uint8_t masks[2 * SMALL_BATCH * 16] = {1};
    for (int form = 0; form < 3; form++) {
        sd_pretrainer_config c = small_config(form == 0 ? SMALL_DINO : form == 1 ? SMALL_SIMDINOV2 : SMALL_DINOV2);
        c.patch_weight = 0.0;
        sd_pretrainer *trainer = small_trainer(NULL, &c);
        small_state before = small_state_of(trainer);
        crops.masks = masks;
        assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, NULL), SD_ERR_ARGUMENT);
        assert_non_null(strstr(sd_last_error(), "masks"));
        assert_non_null(strstr(sd_last_error(), sd_method_name(c.method)));
        small_state_compare(trainer, &before, "masks without use");
        crops.masks = NULL;
        assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, NULL), SD_OK);
        small_state_free(&before);
        sd_pretrainer_destroy(trainer);
    }
    free(pixels);
}

/* ---- NaN ----------------------------------------------------------------------------------- */

/* In the first and the last crop, in one piece and in three, on a trainer that has made steps. */
static void test_nan(void **state) {
    (void)state;
    sd_crop_batch crops;
    float *pixels = small_crops(6, &crops);
    size_t globals = SMALL_BATCH * 3 * 2 * SMALL_GLOBAL * SMALL_GLOBAL;
    const size_t places[] = {0, globals - 1, globals, globals + SMALL_BATCH * 3 * SMALL_LOCALS * 64 - 1};
    for (int run = 0; run < SMALL_RUNS; run++)
        for (int form = 0; form < 3; form++) {
            sd_pretrainer_config c = small_config(run);
            c.micro_batch = form == 0 ? 0 : 3;
            c.accumulation = form == 2 ? SD_ACCUMULATE_PIECES : SD_ACCUMULATE_WHOLE;
            sd_pretrainer *trainer = small_trainer(NULL, &c), *calm = small_trainer(NULL, &c);
            for (size_t i = 0; i < 4; i++) {
                small_step(trainer, i % 3 * 8);
                small_step(calm, i % 3 * 8);
            }
            small_state before = small_state_of(trainer);
            for (size_t i = 0; i < 4; i++) {
                float kept = pixels[places[i]];
                pixels[places[i]] = i % 2 ? INFINITY : NAN;
                assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, NULL), SD_ERR_NUMERIC);
                pixels[places[i]] = kept;
                small_state_compare(trainer, &before, small_run_name(run));
            }
            for (size_t i = 0; i < 2;
                 i++) { /* nothing of it is left anywhere, nor in what the next centers are made of */
                assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, NULL), SD_OK);
                assert_int_equal(sd_pretrainer_step_crops(calm, &crops, NULL), SD_OK);
            }
            small_state expected = small_state_of(calm);
            small_state_compare(trainer, &expected, small_run_name(run));
            small_state_free(&expected);
            small_state_free(&before);
            sd_pretrainer_destroy(calm);
            sd_pretrainer_destroy(trainer);
        }
    free(pixels);
}

/* ---- stops --------------------------------------------------------------------------------- */

/* Stops at the n-th question. */
typedef struct stopper {
    atomic_int questions;
    int stop_at;
} stopper;

static int should_stop(void *opaque) {
    stopper *s = opaque;
    return atomic_fetch_add(&s->questions, 1) >= s->stop_at;
}

static void test_cancel(void **state) {
    (void)state;
    for (int run = 0; run < SMALL_RUNS; run++)
        for (int form = 0; form < 2; form++) {
            sd_pretrainer_config c = small_config(run);
            c.micro_batch = form ? 3 : 0;
            c.accumulation = form ? SD_ACCUMULATE_PIECES : SD_ACCUMULATE_WHOLE;
            sd_pretrainer *calm = small_trainer(NULL, &c);
            for (size_t i = 0; i < 4; i++)
                small_step(calm, i % 3 * 8);
            stopper stop = {.stop_at = 1 << 30};
            sd_context_config hooks;
            sd_context_config_init(&hooks);
            hooks.threads = 2;
            hooks.cancel = should_stop;
            hooks.cancel_opaque = &stop;
            sd_context *context;
            assert_int_equal(sd_context_create(&hooks, &context), SD_OK);
            sd_pretrainer *trainer = small_trainer(context, &c);
            for (size_t i = 0; i < 3; i++)
                small_step(trainer, i % 3 * 8);
            small_state before = small_state_of(trainer);
            int questions = 0;
            for (;; questions++) { /* a stop at each of the moments at which the library asks */
                atomic_store(&stop.questions, 0);
                stop.stop_at = questions;
                sd_status status = sd_pretrainer_step(trainer, small_images(), SMALL_BATCH, NULL);
                if (status == SD_OK)
                    break;
                assert_int_equal(status, SD_ERR_CANCELLED);
                small_state_compare(trainer, &before, small_run_name(run));
            }
            assert_true(questions > 5);
            small_state expected = small_state_of(calm);
            small_state_compare(trainer, &expected, small_run_name(run));
            small_state_free(&expected);
            small_state_free(&before);
            sd_pretrainer_destroy(trainer);
            sd_context_destroy(context);
            sd_pretrainer_destroy(calm);
        }
}

/* ---- memory -------------------------------------------------------------------------------- */

static void test_failing_allocations(void **state) {
    (void)state;
    for (int run = 0; run < SMALL_RUNS; run++)
        for (int form = 0; form < 2; form++) {
            sd_pretrainer_config c = small_config(run);
            c.micro_batch = form ? 3 : 0;
            c.accumulation = form ? SD_ACCUMULATE_PIECES : SD_ACCUMULATE_WHOLE;
            failing_memory memory;
            sd_context *context = small_context(2, &memory);
            long live = memory.live;
            int created = 0, stepped = 0;
            for (bool finished = false; !finished;) {
                memory.allocations = 0;
                memory.fail_at = created + stepped;
                sd_pretrainer *trainer = NULL;
                sd_status status = sd_pretrainer_create(context, &c, &trainer);
                if (status == SD_OK) {
                    small_state before = small_state_of(trainer);
                    status = sd_pretrainer_step(trainer, small_images(), SMALL_BATCH, NULL);
                    memory.fail_at = -1;
                    if (status == SD_OK) {
                        finished = true;
                    } else { /* the failure is over: the same trainer goes on */
                        assert_int_equal(status, SD_ERR_MEMORY);
                        small_state_compare(trainer, &before, small_run_name(run));
                        small_step(trainer, 0);
                        stepped++;
                    }
                    small_state_free(&before);
                } else {
                    assert_int_equal(status, SD_ERR_MEMORY);
                    assert_null(trainer);
                    created++;
                }
                sd_pretrainer_destroy(trainer);
                assert_int_equal(memory.live, live);
            }
            assert_true(created > 30 && stepped > 1);
            sd_context_destroy(context);
            assert_int_equal(memory.live, 0);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_settings_of_other_methods),
        cmocka_unit_test(test_masks_without_use),
        cmocka_unit_test(test_nan),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
