/* Checkpoints of every method: a run that is saved and resumed goes on as if nothing had been. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "model/model.h"
#include "scratch.h"
#include "small_runs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = 8 };

static sd_pretrainer *resume(sd_context *context, const char *path) {
    sd_pretrainer *trainer = NULL;
    if (sd_pretrainer_resume(context, path, &trainer) != SD_OK)
        fail_msg("%s", sd_last_error());
    return trainer;
}

static void compare_settings(const sd_pretrainer *actual, const sd_pretrainer *expected) {
    for (size_t i = 0; i < sd_setting_count(); i++) {
        char a[1024], b[1024];
        assert_int_equal(sd_setting_get(&actual->config, sd_setting_name(i), a, sizeof a), SD_OK);
        assert_int_equal(sd_setting_get(&expected->config, sd_setting_name(i), b, sizeof b), SD_OK);
        if (strcmp(a, b) != 0)
            fail_msg("%s is %s, was saved as %s", sd_setting_name(i), a, b);
    }
}

static void compare_files(const char *one, const char *other) {
    size_t size_one, size_other;
    char *a = scratch_read(one, &size_one), *b = scratch_read(other, &size_other);
    assert_int_equal(size_one, size_other);
    assert_memory_equal(a, b, size_one);
    free(a);
    free(b);
}

/* Batches of changing size, so that nothing of the one before may be left. */
static sd_step_metrics step(sd_pretrainer *trainer, size_t i) {
    static const size_t counts[STEPS] = {8, 8, 5, 8, 3, 2, 8, 1};
    return small_step_of(trainer, i % 3 * 8, counts[i]);
}

/* Saved after every step, while the prototypes are frozen, when they are freed, and later; with other threads. */
static void check_resumed(void **state, sd_pretrainer_config c, const char *name) {
    sd_context *one = small_context(1, NULL), *three = small_context(3, NULL);
    sd_pretrainer *unbroken = small_trainer(one, &c);
    sd_step_metrics expected[STEPS];
    const char *path = scratch_path(*state, "run.safetensors"), *end = scratch_path(*state, "end.safetensors");
    for (size_t i = 0; i < STEPS; i++)
        expected[i] = step(unbroken, i);
    small_state last = small_state_of(unbroken);
    assert_int_equal(sd_pretrainer_save(unbroken, end), SD_OK);
    sd_pretrainer *saved = small_trainer(one, &c);
    for (size_t steps = 0; steps < STEPS; steps++) {
        assert_int_equal(sd_pretrainer_save(saved, path), SD_OK);
        small_state now = small_state_of(saved);
        sd_pretrainer *resumed = resume(three, path);
        small_state_compare(resumed, &now, name);
        compare_settings(resumed, saved);
        uint64_t done;
        assert_int_equal(sd_checkpoint_info(NULL, path, NULL, &done), SD_OK);
        assert_int_equal(done, steps);
        for (size_t i = steps; i < STEPS; i++) {
            sd_step_metrics metrics = step(resumed, i);
            if (memcmp(&metrics, &expected[i], sizeof metrics) != 0)
                fail_msg("%s, saved after %zu steps, step %zu: loss %.17g, expected %.17g", name, steps, i,
                         metrics.loss, expected[i].loss);
        }
        small_state_compare(resumed, &last, name);
        assert_int_equal(sd_pretrainer_save(resumed, path), SD_OK);
        compare_files(path, end);
        small_state_free(&now);
        sd_pretrainer_destroy(resumed);
        step(saved, steps); /* and saving changed nothing */
    }
    small_state_compare(saved, &last, name);
    small_state_free(&last);
    sd_pretrainer_destroy(saved);
    sd_pretrainer_destroy(unbroken);
    sd_context_destroy(three);
    sd_context_destroy(one);
}

static void test_resume(void **state) {
    for (int run = 0; run < SMALL_RUNS; run++)
        check_resumed(state, small_config(run), small_run_name(run));
}

/* Forms that change what is kept: another optimizer, no masks, pieces, no freezing. */
static void test_resume_forms(void **state) {
    sd_pretrainer_config c = small_config(SMALL_DINO);
    c.optimizer.kind = SD_OPTIMIZER_SGD;
    c.micro_batch = 3;
    c.accumulation = SD_ACCUMULATE_PIECES;
    c.epoch_steps = 2;
    check_resumed(state, c, "dino with SGD");
    c = small_config(SMALL_DINOV2);
    c.patch_weight = 0.0;
    c.freeze_steps = 0;
    check_resumed(state, c, "dinov2 without patches");
    c = small_config(SMALL_DINOV2_SINKHORN);
    c.dino.target = SD_TARGET_CENTER;
    c.koleo_weight = 0.0;
    c.dino.center_momentum = 0.5;
    check_resumed(state, c, "dinov2 with two centers");
    c = small_config(SMALL_SIMDINOV2);
    c.eps_sq_end = 0.2;
    c.coeff_end = 0.5;
    c.micro_batch = 3;
    check_resumed(state, c, "simdinov2 with schedules");
}

/* The file says which method it is, and holds the centers of those that have them. */
static void test_method_of_the_file(void **state) {
    static const int32_t methods[] = {SD_METHOD_SIMDINOV2, SD_METHOD_DINO, SD_METHOD_DINOV2, SD_METHOD_DINOV2};
    static const size_t centers[] = {0, 1, 2, 0};
    const char *path = scratch_path(*state, "run.safetensors");
    for (int run = 0; run < SMALL_RUNS; run++) {
        sd_pretrainer_config c = small_config(run), told = {.size = sizeof told};
        sd_pretrainer *trainer = small_trainer(NULL, &c);
        small_step(trainer, 0);
        small_step(trainer, 8);
        assert_int_equal(sd_objective_state_count(trainer->objective), centers[run]);
        for (size_t i = 0; i < centers[run]; i++) {
            sd_objective_state center = sd_objective_state_at(trainer->objective, i);
            assert_true(center.rows * center.columns == 50 && center.values[0] != 0.0f);
        }
        assert_int_equal(sd_pretrainer_save(trainer, path), SD_OK);
        assert_int_equal(sd_checkpoint_info(NULL, path, &told, NULL), SD_OK);
        assert_int_equal(told.method, methods[run]);
        sd_pretrainer *resumed = resume(NULL, path);
        assert_int_equal(sd_pretrainer_get_config(resumed, &told), SD_OK);
        assert_int_equal(told.method, methods[run]);
        sd_model *model; /* a network alone, with its prototypes */
        assert_int_equal(sd_model_load(NULL, path, 1, &model), SD_OK);
        assert_int_equal(sd_model_parameter_count(model), sd_model_parameter_count(trainer->teacher));
        assert_memory_equal(sd_model_parameters(model), trainer->teacher->parameters,
                            trainer->teacher->parameter_count * sizeof(float));
        sd_model_destroy(model);
        sd_pretrainer_destroy(resumed);
        sd_pretrainer_destroy(trainer);
    }
}

/* ---- failing allocations ------------------------------------------------------------------- */

static void test_failing_saves(void **state) {
    for (int run = 0; run < SMALL_RUNS; run++) {
        const char *path = scratch_path(*state, "run.safetensors"), *first = scratch_path(*state, "first.safetensors");
        failing_memory memory;
        sd_context *context = small_context(2, &memory);
        sd_pretrainer_config c = small_config(run);
        sd_pretrainer *trainer = small_trainer(context, &c);
        small_step(trainer, 0);
        assert_int_equal(sd_pretrainer_save(trainer, path), SD_OK);
        assert_int_equal(sd_pretrainer_save(trainer, first), SD_OK);
        small_step(trainer, 8);
        long live = memory.live;
        int failures = 0;
        for (;; failures++) {
            memory.allocations = 0;
            memory.fail_at = failures;
            sd_status status = sd_pretrainer_save(trainer, path);
            assert_int_equal(memory.live, live);
            if (status == SD_OK)
                break;
            assert_int_equal(status, SD_ERR_MEMORY);
            compare_files(path, first); /* the file before is still there */
            assert_int_equal(scratch_count(*state), 2);
        }
        memory.fail_at = -1;
        assert_true(failures >= 3);
        sd_pretrainer_destroy(trainer);
        sd_context_destroy(context);
        assert_int_equal(memory.live, 0);
    }
}

static void test_failing_resumptions(void **state) {
    for (int run = 0; run < SMALL_RUNS; run++) {
        const char *path = scratch_path(*state, "run.safetensors");
        sd_pretrainer_config c = small_config(run);
        sd_pretrainer *saved = small_trainer(NULL, &c);
        small_step(saved, 0);
        assert_int_equal(sd_pretrainer_save(saved, path), SD_OK);
        failing_memory memory;
        sd_context *context = small_context(1, &memory);
        long live = memory.live;
        int failures = 0;
        for (;; failures++) {
            memory.allocations = 0;
            memory.fail_at = failures;
            sd_pretrainer *trainer = NULL;
            sd_status status = sd_pretrainer_resume(context, path, &trainer);
            if (status == SD_OK) {
                memory.fail_at = -1;
                small_state kept = small_state_of(saved);
                small_state_compare(trainer, &kept, small_run_name(run));
                small_state_free(&kept);
                sd_pretrainer_destroy(trainer);
                assert_int_equal(memory.live, live);
                break;
            }
            assert_int_equal(status, SD_ERR_MEMORY);
            assert_null(trainer);
            assert_int_equal(memory.live, live);
        }
        assert_true(failures > 40);
        sd_context_destroy(context);
        assert_int_equal(memory.live, 0);
        sd_pretrainer_destroy(saved);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_resume, scratch_begin, scratch_end),
        cmocka_unit_test_setup_teardown(test_resume_forms, scratch_begin, scratch_end),
        cmocka_unit_test_setup_teardown(test_method_of_the_file, scratch_begin, scratch_end),
        cmocka_unit_test_setup_teardown(test_failing_saves, scratch_begin, scratch_end),
        cmocka_unit_test_setup_teardown(test_failing_resumptions, scratch_begin, scratch_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
