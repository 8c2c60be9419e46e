/* Networks of compact and odd shapes train with every method: narrow and wide, one block, 1 to 16 channels, patches of 2 to
 * 32 pixels. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <simdino/simdino.h>

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct shape {
    int32_t channels, patch, global, local, locals, dim, depth, heads, registers, swiglu, qk_norm;
} shape;

static void train(int32_t method, const shape *s, size_t batch) {
    sd_pretrainer_config c;
    assert_int_equal(sd_pretrainer_config_method(&c, method), SD_OK);
    c.model.channels = s->channels;
    c.model.patch_size = s->patch;
    c.model.image_size = c.augment.global_size = s->global;
    c.augment.local_size = s->local;
    c.augment.local_crops = s->locals;
    c.model.dim = s->dim;
    c.model.depth = s->depth;
    c.model.heads = s->heads;
    c.model.registers = s->registers;
    c.model.feed_forward = s->swiglu;
    c.model.qk_norm = s->qk_norm;
    c.model.head_hidden = 24;
    c.model.head_dim = 12;
    c.model.prototypes = c.model.prototypes > 0 ? 20 : 0;
    c.batch_size = batch;
    c.warmup_steps = 0;
    c.total_steps = 4;
    c.lr = 1e-3;
    sd_pretrainer *trainer = NULL;
    if (sd_pretrainer_create(NULL, &c, &trainer) != SD_OK)
        fail_msg("%s, dim %d: %s", sd_method_name(method), s->dim, sd_last_error());
    size_t global = (size_t)(s->channels * s->global * s->global), local = (size_t)(s->channels * s->local * s->local);
    float *globals = malloc(2 * batch * global * sizeof *globals);
    float *locals = malloc(((size_t)s->locals * batch * local + 1) * sizeof *locals);
    sd_random random;
    sd_random_init(&random, 3, 0, 0);
    for (size_t i = 0; i < 2 * batch * global; i++)
        globals[i] = (float)sd_random_normal(&random);
    for (size_t i = 0; i < (size_t)s->locals * batch * local; i++)
        locals[i] = (float)sd_random_normal(&random);
    sd_crop_batch crops = {.samples = batch, .channels = s->channels, .global_size = s->global, .local_size = s->local,
                           .local_crops = s->locals, .globals = globals, .locals = locals};
    for (int step = 0; step < 2; step++) {
        sd_step_metrics metrics = {.size = sizeof metrics};
        if (sd_pretrainer_step_crops(trainer, &crops, &metrics) != SD_OK)
            fail_msg("%s, dim %d: %s", sd_method_name(method), s->dim, sd_last_error());
        assert_true(isfinite(metrics.loss) && metrics.gradient_norm > 0.0);
        bool masks = method == SD_METHOD_SIMDINOV2 || method == SD_METHOD_DINOV2;
        assert_true((metrics.masked_patches > 0) == masks);
    }
    free(locals);
    free(globals);
    sd_pretrainer_destroy(trainer);
}

static void test_shapes(void **state) {
    (void)state;
    static const shape shapes[] = {
        /* channels patch global local locals dim depth heads registers swiglu qk_norm */
        {1, 2, 8, 4, 3, 64, 1, 1, 0, 0, 0},    {16, 32, 128, 64, 1, 64, 1, 4, 2, 1, 0}, {3, 5, 20, 10, 2, 70, 2, 7, 1, 0, 1},
        {4, 16, 64, 32, 0, 96, 1, 3, 0, 1, 1}, {2, 7, 28, 14, 1, 65, 3, 5, 5, 0, 0},    {7, 3, 12, 3, 2, 66, 2, 2, 0, 1, 1},
    };
    for (int32_t method = 0; method < 4; method++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            train(method, &shapes[i], 3);
}

/* As wide as ViT-g, one block. */
static void test_wide(void **state) {
    (void)state;
    static const shape wide = {3, 14, 56, 28, 1, 1536, 1, 24, 4, 1, 0};
    train(SD_METHOD_SIMDINOV2, &wide, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_wide),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
