/* The pretrainer's promises: refusals, failures that leave it as it was, memory, accumulation, loaders. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "failing_memory.h"
#include "model/model.h"
#include "train/trainer.h"
#include "ways.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SIDE 16
#define COUNT 24 /* images */

static uint8_t pixels[COUNT * SIDE * SIDE * 3];
static sd_image images[COUNT];

static int make_images(void **state) {
    (void)state;
    sd_random random;
    sd_random_init(&random, 77, 0, 0);
    for (size_t i = 0; i < sizeof pixels; i++)
        pixels[i] = (uint8_t)sd_random_u32(&random);
    for (size_t i = 0; i < COUNT; i++)
        images[i] = (sd_image){pixels + i * SIDE * SIDE * 3, SIDE, SIDE, 0, 3, SD_PIXEL_U8};
    return 0;
}

static sd_pretrainer_config small_config(void) {
    sd_pretrainer_config c;
    sd_pretrainer_config_init(&c);
    c.model.image_size = c.augment.global_size = 16;
    c.augment.local_size = 8;
    c.augment.local_crops = 3;
    c.model.patch_size = 4;
    c.model.dim = 24;
    c.model.depth = 3;
    c.model.heads = 2;
    c.model.drop_path = 0.2;
    c.model.head_hidden = 32;
    c.model.head_dim = 16;
    c.batch_size = 8;
    c.total_steps = 40;
    c.warmup_steps = 2;
    c.lr = 2e-3;
    c.seed = 5;
    return c;
}

static sd_context *make_context(int threads, failing_memory *memory) {
    sd_context_config hooks;
    sd_context_config_init(&hooks);
    hooks.threads = threads;
    hooks.blas_threads = SD_BLAS_THREADS_ONE;
    if (memory != NULL)
        failing_memory_install(memory, &hooks);
    sd_context *context = NULL;
    assert_int_equal(sd_context_create(&hooks, &context), SD_OK);
    return context;
}

static sd_pretrainer *make_trainer(sd_context *context, const sd_pretrainer_config *config) {
    sd_pretrainer *trainer = NULL;
    assert_int_equal(sd_pretrainer_create(context, config, &trainer), SD_OK);
    return trainer;
}

static double step_images(sd_pretrainer *trainer, size_t first, size_t count) {
    sd_step_metrics metrics = {.size = sizeof metrics};
    assert_int_equal(sd_pretrainer_step(trainer, images + first, count, &metrics), SD_OK);
    assert_true(isfinite(metrics.loss) && metrics.gradient_norm > 0.0 && metrics.effective_rank >= 1.0);
    return metrics.loss;
}

/* ---- refusals ------------------------------------------------------------------------------ */

typedef void spoiler(sd_pretrainer_config *);
static void no_batch(sd_pretrainer_config *c) { c->batch_size = 0; }
static void odd_globals(sd_pretrainer_config *c) { c->augment.global_size = 18; }
static void odd_locals(sd_pretrainer_config *c) { c->augment.local_size = 3; }
static void many_locals(sd_pretrainer_config *c) { c->augment.local_crops = 63; }
static void no_head(sd_pretrainer_config *c) { c->model.head_layers = 0; }
static void no_steps(sd_pretrainer_config *c) { c->total_steps = 0; }
static void long_warmup(sd_pretrainer_config *c) { c->warmup_steps = 41; }
static void nan_lr(sd_pretrainer_config *c) { c->lr = NAN; }
static void large_momentum(sd_pretrainer_config *c) { c->momentum = 1.5; }
static void negative_decay(sd_pretrainer_config *c) { c->weight_decay = -1.0; }
static void no_limit(sd_pretrainer_config *c) { c->clip_limit = 0.0; }
static void odd_groups(sd_pretrainer_config *c) { c->loss.groups = 3; }
static void no_eps(sd_pretrainer_config *c) { c->loss.eps_sq = 0.0; }
static void odd_mode(sd_pretrainer_config *c) { c->activations = SD_ACTIVATIONS_INFERENCE; }
static void odd_heads(sd_pretrainer_config *c) { c->model.heads = 5; }
static void odd_optimizer(sd_pretrainer_config *c) { c->optimizer.kind = 9; }
static void odd_accumulation(sd_pretrainer_config *c) { c->accumulation = 2; }
static void odd_products(sd_pretrainer_config *c) { c->products = 2; }

static void test_refusals(void **state) {
    (void)state;
    const struct {
        spoiler *spoil;
        const char *word;
    } cases[] = {
        {no_batch, "batch_size"},      {odd_globals, "global_size"},   {odd_locals, "local_size"},
        {many_locals, "local_crops"},  {no_head, "head_layers"},       {no_steps, "total_steps"},
        {long_warmup, "warmup_steps"}, {nan_lr, "lr"},                 {large_momentum, "momentum"},
        {negative_decay, "weight_decay"}, {no_limit, "clip_limit"},    {odd_groups, "groups"},
        {no_eps, "eps_sq"},            {odd_mode, "activations"},      {odd_heads, "heads"},
        {odd_optimizer, "kind"},       {odd_accumulation, "accumulation"},
        {odd_products, "products is 2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        sd_pretrainer_config c = small_config();
        cases[i].spoil(&c);
        sd_pretrainer *trainer = NULL;
        assert_int_equal(sd_pretrainer_create(NULL, &c, &trainer), SD_ERR_ARGUMENT);
        assert_null(trainer);
        if (strstr(sd_last_error(), cases[i].word) == NULL)
            fail_msg("\"%s\" does not name %s", sd_last_error(), cases[i].word);
    }
    assert_int_equal(sd_pretrainer_create(NULL, NULL, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_pretrainer_step(NULL, images, 1, NULL), SD_ERR_ARGUMENT);
    sd_pretrainer_destroy(NULL);
}

static void test_wrong_batches(void **state) {
    (void)state;
    sd_pretrainer_config c = small_config();
    sd_pretrainer *trainer = make_trainer(NULL, &c);
    assert_int_equal(sd_pretrainer_step(trainer, NULL, 4, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_pretrainer_step(trainer, images, 0, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_pretrainer_step(trainer, images, 9, NULL), SD_ERR_ARGUMENT);
    sd_image grey = images[0];
    grey.channels = 1;
    assert_int_equal(sd_pretrainer_step(trainer, &grey, 1, NULL), SD_ERR_MISMATCH);
    assert_non_null(strstr(sd_last_error(), "image 0"));
    sd_image nothing = {NULL, 0, 0, 0, 3, SD_PIXEL_U8};
    assert_int_equal(sd_pretrainer_step(trainer, &nothing, 1, NULL), SD_ERR_ARGUMENT);
    sd_crop_batch crops = {4, 3, 20, 8, 3, (const float *)(const void *)images, NULL, NULL};
    assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, NULL), SD_ERR_MISMATCH);
    crops.global_size = 16;
    assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_pretrainer_position(trainer), 0);
    step_images(trainer, 0, 3); /* and it still works, with a smaller batch too */
    assert_int_equal(sd_pretrainer_position(trainer), 1);
    sd_pretrainer_destroy(trainer);
}

static void test_end_of_schedule(void **state) {
    (void)state;
    sd_pretrainer_config c = small_config();
    c.total_steps = 2;
    sd_pretrainer *trainer = make_trainer(NULL, &c);
    step_images(trainer, 0, 8);
    step_images(trainer, 8, 8);
    assert_int_equal(sd_pretrainer_step(trainer, images, 8, NULL), SD_ERR_STATE);
    sd_pretrainer_destroy(trainer);
}

/* ---- failures leave everything as it was --------------------------------------------------- */

static void test_nan_guard(void **state) {
    (void)state;
    sd_pretrainer_config c = small_config();
    sd_pretrainer *trainer = make_trainer(NULL, &c), *other = make_trainer(NULL, &c);
    step_images(trainer, 0, 8);
    step_images(other, 0, 8);
    static float crops_of_nan[8 * 3 * (2 * 16 * 16 + 3 * 8 * 8)];
    for (size_t i = 0; i < sizeof crops_of_nan / sizeof *crops_of_nan; i++)
        crops_of_nan[i] = 0.1f * (float)(i % 13);
    crops_of_nan[700] = NAN;
    sd_crop_batch crops = {8, 3, 16, 8, 3, crops_of_nan, crops_of_nan + 8 * 3 * 2 * 16 * 16, NULL};
    assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, NULL), SD_ERR_NUMERIC);
    crops_of_nan[700] = INFINITY;
    assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, NULL), SD_ERR_NUMERIC);
    assert_int_equal(sd_pretrainer_position(trainer), 1);
    assert_true(step_images(trainer, 8, 8) == step_images(other, 8, 8));
    assert_memory_equal(trainer->student->parameters, other->student->parameters,
                        trainer->student->parameter_count * sizeof(float));
    sd_pretrainer_destroy(other);
    sd_pretrainer_destroy(trainer);
}

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
    sd_pretrainer_config c = small_config();
    sd_context *calm = make_context(1, NULL);
    sd_pretrainer *reference = make_trainer(calm, &c);
    step_images(reference, 0, 8);
    double expected = step_images(reference, 8, 8);
    stopper stop = {.stop_at = 1 << 30};
    sd_context_config hooks;
    sd_context_config_init(&hooks);
    hooks.threads = 2;
    hooks.cancel = should_stop;
    hooks.cancel_opaque = &stop;
    sd_context *context;
    assert_int_equal(sd_context_create(&hooks, &context), SD_OK);
    sd_pretrainer *trainer = make_trainer(context, &c);
    step_images(trainer, 0, 8);
    int questions = 0, cancelled = 0;
    for (;; questions++) { /* a stop at each of the moments at which the library asks */
        atomic_store(&stop.questions, 0);
        stop.stop_at = questions;
        sd_step_metrics metrics = {.size = sizeof metrics};
        sd_status status = sd_pretrainer_step(trainer, images + 8, 8, &metrics);
        if (status == SD_OK) {
            assert_true(metrics.loss == expected);
            break;
        }
        assert_int_equal(status, SD_ERR_CANCELLED);
        assert_int_equal(sd_pretrainer_position(trainer), 1);
        cancelled++;
    }
    assert_true(cancelled > 5);
    sd_pretrainer_destroy(trainer);
    sd_context_destroy(context);
    sd_pretrainer_destroy(reference);
    sd_context_destroy(calm);
}

/* ---- memory -------------------------------------------------------------------------------- */

static void test_failing_allocations(void **state) {
    (void)state;
    sd_pretrainer_config c = small_config();
    c.micro_batch = 3;
    bool finished = false;
    for (long fail_at = 0; !finished; fail_at++) {
        failing_memory memory = {.fail_at = -1};
        sd_context *context = make_context(2, &memory);
        long before = memory.live;
        memory.allocations = 0;
        memory.fail_at = fail_at;
        sd_pretrainer *trainer = NULL;
        sd_status status = sd_pretrainer_create(context, &c, &trainer);
        if (status == SD_OK) {
            status = sd_pretrainer_step(trainer, images, 8, NULL);
            if (status == SD_ERR_MEMORY) { /* the failure is over: the same trainer goes on */
                memory.fail_at = -1;
                assert_int_equal(sd_pretrainer_position(trainer), 0);
                step_images(trainer, 0, 8);
            } else {
                assert_int_equal(status, SD_OK);
                finished = true;
            }
        } else {
            assert_int_equal(status, SD_ERR_MEMORY);
            assert_null(trainer);
        }
        sd_pretrainer_destroy(trainer);
        assert_int_equal(memory.live, before);
        sd_context_destroy(context);
        assert_int_equal(memory.live, 0);
    }
}

static void test_no_allocation_in_a_step(void **state) {
    (void)state;
    sd_pretrainer_config c = small_config();
    failing_memory memory = {.fail_at = -1};
    sd_context *context = make_context(2, &memory);
    sd_pretrainer *trainer = make_trainer(context, &c);
    sd_dataset *dataset;
    assert_int_equal(sd_dataset_from_images(context, images, COUNT, NULL, &dataset), SD_OK);
    sd_loader_config loader_config;
    sd_loader_config_init(&loader_config);
    loader_config.batch_size = 8;
    sd_loader *loader;
    assert_int_equal(sd_loader_create(context, dataset, &c.augment, &loader_config, &loader), SD_OK);
    for (int i = 0; i < 6; i++) /* every thread has met an image by now */
        assert_int_equal(sd_pretrainer_step_loader(trainer, loader, NULL), SD_OK);
    long after = memory.allocations;
    for (int i = 0; i < 8; i++)
        assert_int_equal(sd_pretrainer_step_loader(trainer, loader, NULL), SD_OK);
    assert_int_equal(memory.allocations, after);
    sd_loader_destroy(loader);
    sd_dataset_destroy(dataset);
    sd_pretrainer_destroy(trainer);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

static void check_foretold(sd_pretrainer_config c) {
    failing_memory memory = {.fail_at = -1};
    sd_context *context = make_context(2, &memory);
    size_t foretold, before = memory.live_bytes;
    assert_int_equal(sd_pretrainer_memory(context, &c, &foretold), SD_OK);
    assert_int_equal(memory.live_bytes, before);
    sd_pretrainer *trainer = make_trainer(context, &c);
    sd_dataset *dataset;
    assert_int_equal(sd_dataset_from_images(context, images, COUNT, NULL, &dataset), SD_OK);
    sd_loader_config loader_config;
    sd_loader_config_init(&loader_config);
    loader_config.batch_size = c.batch_size;
    sd_loader *loader;
    assert_int_equal(sd_loader_create(context, dataset, &c.augment, &loader_config, &loader), SD_OK);
    assert_int_equal(sd_pretrainer_step_loader(trainer, loader, NULL), SD_OK);
    double taken = (double)(memory.peak_bytes - before);
    if (!(fabs((double)foretold / taken - 1.0) <= 0.1))
        fail_msg("%zu bytes were foretold, %.0f were taken", foretold, taken);
    sd_loader_destroy(loader);
    sd_dataset_destroy(dataset);
    sd_pretrainer_destroy(trainer);
    sd_context_destroy(context);
}

static void test_foretold_memory(void **state) {
    (void)state;
    sd_pretrainer_config c = small_config();
    c.model.dim = 64;
    c.model.head_hidden = 128;
    c.batch_size = 16;
    check_foretold(c);
    c.recomputed_blocks = 1;
    check_foretold(c);
    c.activations = SD_ACTIVATIONS_MEMORY;
    check_foretold(c);
    c.micro_batch = 4;
    check_foretold(c);
    c.optimizer.kind = SD_OPTIMIZER_SGD;
    c.micro_batch = 5;
    c.activations = SD_ACTIVATIONS_SPEED;
    check_foretold(c);
    bf16_take_any();
    c.precision = SD_PRECISION_BF16;
    check_foretold(c);
    bf16_take(NULL);
}

static size_t memory_of(sd_pretrainer_config c, int32_t depth, int32_t recomputed) {
    size_t bytes;
    c.model.depth = depth;
    c.recomputed_blocks = recomputed;
    assert_int_equal(sd_pretrainer_memory(NULL, &c, &bytes), SD_OK);
    return bytes;
}

/* The more samples, the fewer of the blocks of ViT-S: a quarter of its five arrays of parameters is 130 MiB, a block of a
 * sample's activations 9. */
static void test_recomputed_by_default(void **state) {
    (void)state;
    sd_pretrainer_config c = small_config();
    assert_int_equal(c.recomputed_blocks, SD_RECOMPUTED_BLOCKS_AUTO);
    assert_true(memory_of(c, 11, SD_RECOMPUTED_BLOCKS_AUTO) == memory_of(c, 11, 0));

    sd_pretrainer_config_init(&c);
    const struct {
        size_t batch, micro;
        int32_t depth, blocks;
    } cases[] = {{1, 0, 12, 6},  {4, 0, 12, 4},  {5, 0, 12, 3},  {8, 0, 12, 2},  {16, 0, 12, 1},
                 {32, 0, 12, 0}, {32, 8, 12, 2}, {4, 0, 24, 6},  {2, 0, 24, 12},  {4, 0, 11, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        c.batch_size = cases[i].batch;
        c.micro_batch = cases[i].micro;
        size_t by_default = memory_of(c, cases[i].depth, SD_RECOMPUTED_BLOCKS_AUTO);
        assert_true(by_default == memory_of(c, cases[i].depth, cases[i].blocks));
        assert_true(by_default != memory_of(c, cases[i].depth, cases[i].blocks + 1));
    }
    c.activations = SD_ACTIVATIONS_MEMORY;
    assert_true(memory_of(c, 12, SD_RECOMPUTED_BLOCKS_AUTO) == memory_of(c, 12, 0));
    c.recomputed_blocks = -2;
    size_t bytes;
    assert_int_equal(sd_pretrainer_memory(NULL, &c, &bytes), SD_ERR_ARGUMENT);
    assert_non_null(strstr(sd_last_error(), "recomputed_blocks is -2"));
}

/* ViT-S with 8 samples has 6,112 tokens of 384 numbers. In bf16 seven of the nine rows of numbers that each of 11 blocks keeps of
 * a token take two bytes less each, and six more in what blocks share: 372 MiB.
 * Packed weights are smaller too, and the memory of threads larger. */
static void test_memory_in_bf16(void **state) {
    (void)state;
    bf16_take_any();
    sd_pretrainer_config c;
    sd_pretrainer_config_init(&c);
    c.batch_size = 8;
    const size_t mib = 1 << 20, fp32 = memory_of(c, 12, 0);
    c.precision = SD_PRECISION_BF16;
    const size_t bf16 = memory_of(c, 12, 0);
    assert_true(fp32 - bf16 > 340 * mib && fp32 - bf16 < 410 * mib);
    assert_true(memory_of(c, 12, SD_RECOMPUTED_BLOCKS_AUTO) == memory_of(c, 12, 3));
    c.batch_size = 4;
    assert_true(memory_of(c, 12, SD_RECOMPUTED_BLOCKS_AUTO) == memory_of(c, 12, 6));
    bf16_take(NULL);
}

/* ---- products -------------------------------------------------------------------------------- */

/* Three steps of a network that is wide enough for Strassen's formulas: their gradients. */
static void three_steps(int32_t products, int threads, double norms[3]) {
    sd_context *context = make_context(threads, NULL);
    sd_pretrainer_config c = small_config();
    c.model.dim = 128;
    c.batch_size = 24; /* 816 tokens of global crops, 360 of local ones */
    c.products = products;
    sd_pretrainer *trainer = make_trainer(context, &c);
    for (int i = 0; i < 3; i++) {
        sd_step_metrics metrics = {.size = sizeof metrics};
        assert_int_equal(sd_pretrainer_step(trainer, images, 24, &metrics), SD_OK);
        norms[i] = metrics.gradient_norm;
    }
    sd_pretrainer_destroy(trainer);
    sd_context_destroy(context);
}

/* Strassen's formulas are the default; a run with them is near one without, and the same for any number of threads. */
static void test_products(void **state) {
    (void)state;
    sd_pretrainer_config c;
    char text[256];
    sd_pretrainer_config_init(&c);
    assert_int_equal(c.products, SD_PRODUCTS_STRASSEN);
    assert_int_equal(sd_setting_set(&c, "products", "plain"), SD_OK);
    assert_int_equal(c.products, SD_PRODUCTS_PLAIN);
    assert_int_equal(sd_setting_set(&c, "products", "strassen"), SD_OK);
    assert_int_equal(sd_setting_get(&c, "products", text, sizeof text), SD_OK);
    assert_string_equal(text, "strassen");
    assert_int_equal(sd_setting_set(&c, "products", "winograd"), SD_ERR_ARGUMENT);

    double plain[3], fast[3], other[3];
    fp32_take("fma"); /* the products that have them */
    three_steps(SD_PRODUCTS_PLAIN, 2, plain);
    three_steps(SD_PRODUCTS_STRASSEN, 2, fast);
    three_steps(SD_PRODUCTS_STRASSEN, 3, other);
    assert_true(fabs(fast[0] - plain[0]) <= 2e-6 * plain[0]); /* later ones follow their own weights */
    assert_memory_equal(fast, other, sizeof fast);
    fp32_take(NULL);
}

/* ---- accumulation, threads, loaders -------------------------------------------------------- */

static void test_whole_batch_in_pieces(void **state) {
    (void)state;
    sd_pretrainer_config c = small_config();
    c.model.drop_path = 0.0; /* decisions are numbered by piece */
    sd_pretrainer *whole = make_trainer(NULL, &c);
    c.micro_batch = 3;
    sd_pretrainer *pieces = make_trainer(NULL, &c);
    c.accumulation = SD_ACCUMULATE_PIECES;
    sd_pretrainer *separate = make_trainer(NULL, &c);
    for (int i = 0; i < 3; i++) {
        double expected = step_images(whole, (size_t)(8 * i), 8);
        assert_float_equal(step_images(pieces, (size_t)(8 * i), 8), expected, 2e-5);
        double other = step_images(separate, (size_t)(8 * i), 8);
        assert_true(fabs(other - expected) > 1e-3); /* a coding rate over fewer samples is another number */
    }
    sd_pretrainer_destroy(separate);
    sd_pretrainer_destroy(pieces);
    sd_pretrainer_destroy(whole);
}

/* A loader's batches and their losses are the same for any number of threads, and after a resumption. */
static void test_loader_runs(void **state) {
    (void)state;
    double losses[7];
    for (int threads = 1; threads <= 3; threads += 2) {
        sd_context *context = make_context(threads, NULL);
        sd_pretrainer_config c = small_config();
        sd_pretrainer *trainer = make_trainer(context, &c);
        sd_dataset *dataset;
        assert_int_equal(sd_dataset_from_images(context, images, COUNT, NULL, &dataset), SD_OK);
        sd_loader_config loader_config;
        sd_loader_config_init(&loader_config);
        loader_config.batch_size = 8;
        loader_config.seed = 4;
        sd_loader *loader;
        assert_int_equal(sd_loader_create(context, dataset, &c.augment, &loader_config, &loader), SD_OK);
        for (int i = 0; i < 7; i++) {
            sd_step_metrics metrics = {.size = sizeof metrics};
            if (threads > 1 && i == 4)
                sd_loader_seek(loader, 17); /* whoever moved it: the step takes the batch of its own number */
            assert_int_equal(sd_pretrainer_step_loader(trainer, loader, &metrics), SD_OK);
            if (threads == 1)
                losses[i] = metrics.loss;
            else
                assert_true(metrics.loss == losses[i]);
        }
        sd_loader_destroy(loader);
        sd_dataset_destroy(dataset);
        sd_pretrainer_destroy(trainer);
        sd_context_destroy(context);
    }
}

static void test_two_contexts(void **state) {
    (void)state;
    sd_pretrainer_config c = small_config();
    sd_context *one = make_context(2, NULL), *two = make_context(3, NULL);
    sd_pretrainer *a = make_trainer(one, &c), *b = make_trainer(two, &c);
    for (int i = 0; i < 3; i++)
        assert_true(step_images(a, 0, 8) == step_images(b, 0, 8));
    sd_pretrainer_destroy(a);
    sd_context_destroy(one);
    step_images(b, 0, 8);
    sd_pretrainer_destroy(b);
    sd_context_destroy(two);
}

static void count_warnings(void *opaque, sd_log_level level, const char *message) {
    *(int *)opaque += level == SD_LOG_WARNING && strstr(message, "collapsed") != NULL;
}

/* Images without any difference: all features are one. It is told in the metrics, and once by the log, but not at the
 * start of a run, where untrained networks look alike. */
static void test_collapse(void **state) {
    (void)state;
    int warnings = 0;
    sd_context_config hooks;
    sd_context_config_init(&hooks);
    hooks.log = count_warnings;
    hooks.log_opaque = &warnings;
    sd_context *context;
    assert_int_equal(sd_context_create(&hooks, &context), SD_OK);
    sd_pretrainer_config c = small_config();
    c.model.drop_path = 0.0;
    sd_pretrainer *trainer = make_trainer(context, &c);
    static float ones[8 * 3 * (2 * 16 * 16 + 3 * 8 * 8)];
    for (size_t i = 0; i < sizeof ones / sizeof *ones; i++)
        ones[i] = 1.0f;
    sd_crop_batch crops = {8, 3, 16, 8, 3, ones, ones + 8 * 3 * 2 * 16 * 16, NULL};
    for (int i = 0; i < 25; i++) {
        sd_step_metrics metrics = {.size = sizeof metrics};
        assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, &metrics), SD_OK);
        assert_int_equal(metrics.collapse, i >= 20);
    }
    assert_int_equal(warnings, 1);
    sd_pretrainer_destroy(trainer);
    sd_context_destroy(context);
}

/* The loss goes down on images that repeat. */
static void test_learns(void **state) {
    (void)state;
    sd_pretrainer_config c = small_config();
    c.model.drop_path = 0.0;
    sd_pretrainer *trainer = make_trainer(NULL, &c);
    double first = 0.0, last = 0.0;
    for (int i = 0; i < 40; i++) {
        double loss = step_images(trainer, 0, 8);
        first += i < 5 ? loss / 5.0 : 0.0;
        last += i >= 35 ? loss / 5.0 : 0.0;
    }
    assert_true(last < first - 0.05);
    sd_pretrainer_destroy(trainer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_wrong_batches),
        cmocka_unit_test(test_end_of_schedule),
        cmocka_unit_test(test_nan_guard),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_no_allocation_in_a_step),
        cmocka_unit_test(test_foretold_memory),
        cmocka_unit_test(test_recomputed_by_default), cmocka_unit_test(test_memory_in_bf16),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_whole_batch_in_pieces),
        cmocka_unit_test(test_loader_runs),
        cmocka_unit_test(test_two_contexts),
        cmocka_unit_test(test_collapse),
        cmocka_unit_test(test_learns),
    };
    return cmocka_run_group_tests(tests, make_images, NULL);
}
