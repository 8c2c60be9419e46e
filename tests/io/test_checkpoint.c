/* Checkpoints: a resumed run equals the one that was never stopped; damaged, foreign and impossible files; a full disk
 * and failing allocations. */
#define _XOPEN_SOURCE 700
#include "io/safetensors.h"
#include "train/config_text.h"
#include "train/pretrainer.h"

#include "failing_memory.h"
#include "scratch.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#define SAMPLES 4
#define LOCALS 2

/* Smaller than any real network, so that whole checkpoints can be damaged in every place. */
static sd_pretrainer_config tiny_config(sd_optimizer_kind kind) {
    sd_pretrainer_config config;
    sd_pretrainer_config_init(&config);
    config.model.image_size = 8;
    config.model.patch_size = 4;
    config.model.channels = 1;
    config.model.dim = 8;
    config.model.depth = 2;
    config.model.heads = 2;
    config.model.mlp_ratio = 2;
    config.model.head_hidden = 8;
    config.model.head_dim = 4;
    config.augment.global_size = 8;
    config.augment.local_size = 4;
    config.augment.local_crops = LOCALS;
    config.optimizer.kind = (int32_t)kind;
    config.batch_size = SAMPLES;
    config.total_steps = 20;
    config.warmup_steps = 2;
    config.lr = 1.0 / 3 * 1e-2; /* no short decimal form */
    config.seed = 0xFEDCBA9876543210u;
    return config;
}

static sd_context *make_context(int32_t threads) {
    sd_context_config config;
    sd_context_config_init(&config);
    config.threads = threads;
    config.blas_threads = SD_BLAS_THREADS_ONE;
    sd_context *context = NULL;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    return context;
}

/* Steps on made-up crops that depend on the step's number alone. Returns the last loss. */
static double train(sd_pretrainer *trainer, int steps) {
    float globals[2 * SAMPLES * 64], locals[LOCALS * SAMPLES * 16];
    sd_step_metrics metrics = {.size = sizeof metrics};
    for (int i = 0; i < steps; i++) {
        sd_random random;
        sd_random_init(&random, 9, sd_pretrainer_position(trainer), 0);
        for (size_t j = 0; j < sizeof globals / sizeof *globals; j++)
            globals[j] = (float)sd_random_normal(&random);
        for (size_t j = 0; j < sizeof locals / sizeof *locals; j++)
            locals[j] = (float)sd_random_normal(&random);
        sd_crop_batch crops = {SAMPLES, 1, 8, 4, LOCALS, globals, locals, NULL};
        assert_int_equal(sd_pretrainer_step_crops(trainer, &crops, &metrics), SD_OK);
    }
    return metrics.loss;
}

static sd_pretrainer *make_trained(sd_context *context, sd_optimizer_kind kind, int steps) {
    sd_pretrainer_config config = tiny_config(kind);
    sd_pretrainer *trainer = NULL;
    assert_int_equal(sd_pretrainer_create(context, &config, &trainer), SD_OK);
    train(trainer, steps);
    return trainer;
}

static void assert_same_state(sd_pretrainer *a, sd_pretrainer *b) {
    size_t bytes = sd_model_parameter_count(sd_pretrainer_student(a)) * sizeof(float);
    sd_optimizer *first = sd_pretrainer_optimizer(a), *second = sd_pretrainer_optimizer(b);
    assert_memory_equal(sd_model_parameters_const(sd_pretrainer_student(a)),
                        sd_model_parameters_const(sd_pretrainer_student(b)), bytes);
    assert_memory_equal(sd_model_parameters_const(sd_pretrainer_teacher(a)),
                        sd_model_parameters_const(sd_pretrainer_teacher(b)), bytes);
    assert_true(sd_optimizer_state_count(first) == sd_optimizer_state_count(second));
    for (size_t i = 0; i < sd_optimizer_state_count(first); i++)
        assert_memory_equal(sd_optimizer_state(first, i), sd_optimizer_state(second, i), bytes);
    assert_true(sd_optimizer_steps(first) == sd_optimizer_steps(second));
    assert_true(sd_pretrainer_position(a) == sd_pretrainer_position(b));
}

/* ---- resuming ------------------------------------------------------------------------------ */

static void resumed_run_equals_unbroken_run(void **state) {
    for (int kind = SD_OPTIMIZER_ADAMW; kind <= SD_OPTIMIZER_LARS; kind++) {
        const char *path = scratch_path(*state, "run.safetensors");
        sd_context *one = make_context(1), *three = make_context(3);
        sd_pretrainer *unbroken = make_trained(one, (sd_optimizer_kind)kind, 5), *resumed = NULL;
        assert_int_equal(sd_pretrainer_save(unbroken, path), SD_OK);
        assert_int_equal(sd_pretrainer_resume(three, path, &resumed), SD_OK);
        assert_true(sd_pretrainer_position(resumed) == 5);
        assert_same_state(unbroken, resumed);
        for (int i = 0; i < 6; i++) {
            double expected = train(unbroken, 1), actual = train(resumed, 1);
            assert_true(isfinite(expected) && expected == actual);
        }
        assert_same_state(unbroken, resumed);
        sd_pretrainer_destroy(unbroken);
        sd_pretrainer_destroy(resumed);
        sd_context_destroy(one);
        sd_context_destroy(three);
    }
}

static void saving_again_gives_the_same_file(void **state) {
    char *first = strdup(scratch_path(*state, "first")), *second = strdup(scratch_path(*state, "second"));
    sd_context *context = make_context(1);
    sd_pretrainer *trainer = make_trained(context, SD_OPTIMIZER_ADAMW, 3), *resumed = NULL;
    assert_int_equal(sd_pretrainer_save(trainer, first), SD_OK);
    assert_int_equal(sd_pretrainer_resume(context, first, &resumed), SD_OK);
    assert_int_equal(sd_pretrainer_save(resumed, second), SD_OK);
    size_t size, other_size;
    char *bytes = scratch_read(first, &size), *other = scratch_read(second, &other_size);
    assert_true(size == other_size);
    assert_memory_equal(bytes, other, size);
    free(bytes);
    free(other);
    sd_pretrainer_destroy(trainer);
    sd_pretrainer_destroy(resumed);
    sd_context_destroy(context);
    free(first);
    free(second);
}

static void networks_and_info(void **state) {
    const char *path = scratch_path(*state, "run.safetensors");
    sd_context *context = make_context(1);
    sd_pretrainer *trainer = make_trained(context, SD_OPTIMIZER_ADAMW, 4);
    assert_int_equal(sd_pretrainer_save(trainer, path), SD_OK);
    for (int32_t teacher = 0; teacher <= 1; teacher++) {
        sd_model *model = NULL;
        const sd_model *expected = teacher ? sd_pretrainer_teacher(trainer) : sd_pretrainer_student(trainer);
        assert_int_equal(sd_model_load(context, path, teacher, &model), SD_OK);
        assert_true(sd_model_parameter_count(model) == sd_model_parameter_count(expected));
        assert_memory_equal(sd_model_parameters_const(model), sd_model_parameters_const(expected),
                            sd_model_parameter_count(model) * sizeof(float));
        sd_model_destroy(model);
    }
    assert_memory_not_equal(sd_model_parameters_const(sd_pretrainer_student(trainer)),
                            sd_model_parameters_const(sd_pretrainer_teacher(trainer)), 100);

    sd_pretrainer_config read, expected = tiny_config(SD_OPTIMIZER_ADAMW);
    uint64_t steps = 0;
    sd_pretrainer_config_init(&read);
    assert_int_equal(sd_checkpoint_info(context, path, &read, &steps), SD_OK);
    assert_true(steps == 4);
    for (size_t i = 0; i < sd_setting_count(); i++) {
        size_t offset, bytes = sd_setting_bytes(i, &offset);
        if (memcmp((char *)&read + offset, (char *)&expected + offset, bytes) != 0)
            fail_msg("%s changed", sd_setting_name(i));
    }
    assert_int_equal(sd_checkpoint_info(NULL, path, NULL, NULL), SD_OK);

    struct { /* an older program, whose struct is shorter */
        sd_pretrainer_config config;
    } older;
    memset(&older, 0x77, sizeof older);
    older.config.size = offsetof(sd_pretrainer_config, batch_size);
    assert_int_equal(sd_checkpoint_info(context, path, &older.config, NULL), SD_OK);
    assert_true(older.config.seed == expected.seed && older.config.model.dim == 8);
    assert_true(older.config.batch_size % 256 == 0x77);
    assert_true(older.config.size == offsetof(sd_pretrainer_config, batch_size));
    older.config.size = 0;
    assert_int_equal(sd_checkpoint_info(context, path, &older.config, NULL), SD_ERR_ARGUMENT);

    sd_model *model = NULL;
    sd_pretrainer *none = NULL;
    assert_int_equal(sd_model_load(context, path, 2, &model), SD_ERR_ARGUMENT);
    assert_int_equal(sd_model_load(context, path, 0, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_model_load(context, NULL, 0, &model), SD_ERR_ARGUMENT);
    assert_int_equal(sd_pretrainer_resume(context, path, NULL), SD_ERR_ARGUMENT);
    assert_int_equal(sd_pretrainer_resume(context, scratch_path(*state, "missing"), &none), SD_ERR_IO);
    assert_int_equal(sd_pretrainer_save(NULL, path), SD_ERR_ARGUMENT);
    assert_int_equal(sd_pretrainer_save(trainer, NULL), SD_ERR_ARGUMENT);
    assert_true(model == NULL && none == NULL);
    sd_pretrainer_destroy(trainer);
    sd_context_destroy(context);
}

/* ---- damage -------------------------------------------------------------------------------- */

/* Nothing can be read from a damaged file, in none of the three ways. */
static void assert_refused(sd_context *context, const char *path, const char *where, size_t place) {
    sd_pretrainer *trainer = NULL;
    sd_model *model = NULL;
    sd_status status = sd_pretrainer_resume(context, path, &trainer);
    if ((status != SD_ERR_FORMAT && status != SD_ERR_CHECKSUM) || trainer)
        fail_msg("%s %zu: resume gives status %d", where, place, (int)status);
    status = sd_model_load(context, path, 1, &model);
    if ((status != SD_ERR_FORMAT && status != SD_ERR_CHECKSUM) || model)
        fail_msg("%s %zu: load gives status %d", where, place, (int)status);
}

static void truncations(void **state) {
    const char *path = scratch_path(*state, "cut.safetensors");
    sd_context *context = make_context(1);
    sd_pretrainer *trainer = make_trained(context, SD_OPTIMIZER_ADAMW, 1);
    assert_int_equal(sd_pretrainer_save(trainer, path), SD_OK);
    size_t size, header = 0;
    char *bytes = scratch_read(path, &size);
    memcpy(&header, bytes, 4);
    header += 8;
    free(bytes);
    for (size_t length = size; length > 0;) {
        length -= length > header ? sd_size_min(11, length - header) : 1; /* every length within the header */
        assert_int_equal(truncate(path, (off_t)length), 0);
        assert_refused(context, path, "cut to", length);
    }
    sd_pretrainer_destroy(trainer);
    sd_context_destroy(context);
}

static void flipped_bits(void **state) {
    const char *path = scratch_path(*state, "flip.safetensors");
    sd_context *context = make_context(1);
    sd_pretrainer *trainer = make_trained(context, SD_OPTIMIZER_SGD, 1);
    assert_int_equal(sd_pretrainer_save(trainer, path), SD_OK);
    size_t size;
    unsigned char *bytes = (unsigned char *)scratch_read(path, &size);
    size_t header = 0;
    memcpy(&header, bytes, 4);
    header += 8;
    assert_true(header < size);
    FILE *file = fopen(path, "r+b");
    /* every byte of the header and every 31st of the tensors, one bit of each */
    for (size_t at = 0; at < size; at += at < header ? 1 : 31) {
        fseek(file, (long)at, SEEK_SET);
        fputc(bytes[at] ^ 1 << (at * 5 % 8), file);
        fflush(file);
        assert_refused(context, path, "flip in byte", at);
        fseek(file, (long)at, SEEK_SET);
        fputc(bytes[at], file);
        fflush(file);
    }
    fclose(file);
    sd_pretrainer *whole = NULL;
    assert_int_equal(sd_pretrainer_resume(context, path, &whole), SD_OK);
    sd_pretrainer_destroy(whole);
    free(bytes);
    sd_pretrainer_destroy(trainer);
    sd_context_destroy(context);
}

/* ---- files that are whole but wrong -------------------------------------------------------- */

#define CONTENT_MAX 300

/* A checkpoint taken apart, to be changed and written again with right checksums. */
typedef struct content {
    sd_safetensors *file;
    sd_tensor_source tensors[CONTENT_MAX];
    size_t tensor_count;
    sd_metadata metadata[CONTENT_MAX];
    size_t metadata_count;
} content;

static void take_apart(content *parts, const char *path) {
    memset(parts, 0, sizeof *parts);
    assert_int_equal(sd_safetensors_open(NULL, path, &parts->file), SD_OK);
    assert_true(sd_safetensors_count(parts->file) < CONTENT_MAX);
    for (size_t i = 0; i < sd_safetensors_count(parts->file); i++) {
        const sd_tensor_entry *entry = sd_safetensors_at(parts->file, i);
        float *data = malloc((size_t)entry->bytes);
        assert_int_equal(sd_safetensors_read_f32(parts->file, entry, data, (size_t)entry->count), SD_OK);
        sd_tensor_source *tensor = &parts->tensors[parts->tensor_count++];
        *tensor = (sd_tensor_source){.name = entry->name, .dimensions = entry->dimensions, .data = data};
        memcpy(tensor->shape, entry->shape, sizeof tensor->shape);
    }
    for (size_t i = 0; i < sd_safetensors_metadata_count(parts->file); i++) {
        const sd_metadata *pair = sd_safetensors_metadata_at(parts->file, i);
        if (strncmp(pair->key, "crc32_", 6) != 0)
            parts->metadata[parts->metadata_count++] = *pair;
    }
}

static void throw_away(content *parts) {
    for (size_t i = 0; i < CONTENT_MAX; i++)
        free((void *)(uintptr_t)parts->tensors[i].data);
    sd_safetensors_close(parts->file);
}

static size_t metadata_index(const content *parts, const char *key) {
    for (size_t i = 0; i < parts->metadata_count; i++)
        if (strcmp(parts->metadata[i].key, key) == 0)
            return i;
    fail_msg("no %s", key);
    return 0;
}

static sd_status try_content(void **state, const content *parts) {
    const char *path = scratch_path(*state, "changed.safetensors");
    assert_int_equal(sd_safetensors_write(NULL, path, parts->tensors, parts->tensor_count, parts->metadata,
                                          parts->metadata_count),
                     SD_OK);
    sd_pretrainer *trainer = NULL;
    sd_status status = sd_pretrainer_resume(NULL, path, &trainer);
    assert_true((status == SD_OK) == (trainer != NULL));
    sd_pretrainer_destroy(trainer);
    return status;
}

static void wrong_metadata(void **state) {
    static const struct {
        const char *key, *value; /* NULL: without the key */
        sd_status expected;
    } cases[] = {
        {"library", "libsimdino 9.9.9", SD_OK},
        {"format", "pt", SD_ERR_FORMAT},
        {"format", NULL, SD_ERR_FORMAT},
        {"format_version", "2", SD_ERR_VERSION},
        {"format_version", "", SD_ERR_VERSION},
        {"format_version", NULL, SD_ERR_FORMAT},
        {"steps", "21", SD_ERR_FORMAT}, /* of 20 */
        {"steps", "-1", SD_ERR_FORMAT},
        {"steps", " 1", SD_ERR_FORMAT},
        {"steps", "", SD_ERR_FORMAT},
        {"steps", NULL, SD_ERR_FORMAT},
        {"optimizer.steps", NULL, SD_ERR_FORMAT},
        {"optimizer.steps", "1x", SD_ERR_FORMAT},
        {"model.dim", NULL, SD_ERR_FORMAT},
        {"model.dim", "eight", SD_ERR_FORMAT},
        {"model.dim", "0", SD_ERR_FORMAT},
        {"model.dim", "16", SD_ERR_FORMAT},
        {"model.dim", "16384", SD_ERR_FORMAT}, /* refused before memory is taken for it */
        {"model.depth", "1", SD_ERR_FORMAT},
        {"model.depth", "3", SD_ERR_FORMAT},
        {"model.depth", "1024", SD_ERR_FORMAT},
        {"model.channels", "2", SD_ERR_FORMAT},
        {"model.heads", "3", SD_ERR_FORMAT},
        {"model.head_layers", "2", SD_ERR_FORMAT},
        {"model.image_size", "12", SD_ERR_FORMAT},
        {"model.image_size", "65536", SD_ERR_FORMAT},
        {"optimizer.kind", "1", SD_ERR_FORMAT}, /* SGD has one moment, the file two */
        {"optimizer.kind", "9", SD_ERR_FORMAT},
        {"batch_size", "0", SD_ERR_FORMAT},
        {"batch_size", "18446744073709551615", SD_ERR_FORMAT},
        {"loss.groups", "0", SD_ERR_FORMAT},
        {"total_steps", "0", SD_ERR_FORMAT},
        {"lr", "nan (7ff8000000000000)", SD_ERR_FORMAT},
        {"model.mlp_ratio", "nan (7ff8000000000000)", SD_ERR_FORMAT},
        {"model.mlp_ratio", "inf (7ff0000000000000)", SD_ERR_FORMAT},
    };
    const char *path = scratch_path(*state, "run.safetensors");
    sd_pretrainer *trainer = make_trained(NULL, SD_OPTIMIZER_ADAMW, 1);
    assert_int_equal(sd_pretrainer_save(trainer, path), SD_OK);
    sd_pretrainer_destroy(trainer);
    static content parts;
    take_apart(&parts, path);
    assert_int_equal(try_content(state, &parts), SD_OK);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        static content changed;
        changed = parts;
        size_t index = metadata_index(&changed, cases[i].key);
        if (cases[i].value)
            changed.metadata[index].value = cases[i].value;
        else
            changed.metadata[index] = changed.metadata[--changed.metadata_count];
        sd_status status = try_content(state, &changed);
        if (status != cases[i].expected)
            fail_msg("%s \"%s\": status %d, expected %d (%s)", cases[i].key, cases[i].value ? cases[i].value : "none",
                     (int)status, (int)cases[i].expected, sd_last_error());
        if (status != SD_OK)
            assert_non_null(strstr(sd_last_error(), "changed.safetensors"));
    }
    static content changed;
    changed = parts; /* a setting of a newer library */
    changed.metadata[changed.metadata_count++] = (sd_metadata){"model.wings", "4"};
    assert_int_equal(try_content(state, &changed), SD_ERR_VERSION);
    assert_non_null(strstr(sd_last_error(), "model.wings"));
    throw_away(&parts);
}

static void wrong_tensors(void **state) {
    const char *path = scratch_path(*state, "run.safetensors");
    sd_pretrainer *trainer = make_trained(NULL, SD_OPTIMIZER_ADAMW, 1);
    assert_int_equal(sd_pretrainer_save(trainer, path), SD_OK);
    sd_pretrainer_destroy(trainer);
    static content parts, changed;
    take_apart(&parts, path);
    for (size_t i = 0; i < parts.tensor_count; i += 7) {
        changed = parts; /* missing */
        changed.tensors[i] = changed.tensors[--changed.tensor_count];
        assert_int_equal(try_content(state, &changed), SD_ERR_FORMAT);
        changed = parts; /* of another name */
        changed.tensors[i].name = "student.backbone.other";
        assert_int_equal(try_content(state, &changed), SD_ERR_FORMAT);
        changed = parts; /* of another shape with as many elements */
        changed.tensors[i].shape[changed.tensors[i].dimensions++] = 1;
        assert_int_equal(try_content(state, &changed), SD_ERR_FORMAT);
    }
    const float number = 1;
    changed = parts; /* one too many */
    changed.tensors[changed.tensor_count++] = (sd_tensor_source){.name = "student.more", .data = &number};
    assert_int_equal(try_content(state, &changed), SD_ERR_FORMAT);
    changed = parts; /* the order is free */
    sd_tensor_source first = changed.tensors[0];
    changed.tensors[0] = changed.tensors[5];
    changed.tensors[5] = first;
    assert_int_equal(try_content(state, &changed), SD_OK);
    throw_away(&parts);
}

/* ---- a full disk, failing allocations ------------------------------------------------------ */

static void limit_file_size(rlim_t bytes) {
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void full_disk(void **state) {
    const char *path = scratch_path(*state, "run.safetensors");
    sd_pretrainer *trainer = make_trained(NULL, SD_OPTIMIZER_ADAMW, 2);
    assert_int_equal(sd_pretrainer_save(trainer, path), SD_OK);
    size_t size, size_after;
    char *bytes = scratch_read(path, &size);
    train(trainer, 1);
    signal(SIGXFSZ, SIG_IGN);
    for (size_t limit = 0; limit < size; limit += 1 + size / 20) {
        limit_file_size(limit);
        sd_status status = sd_pretrainer_save(trainer, path);
        limit_file_size(RLIM_INFINITY);
        assert_int_equal(status, SD_ERR_IO);
        assert_int_equal(scratch_count(*state), 1);
        char *after = scratch_read(path, &size_after);
        assert_true(size == size_after);
        assert_memory_equal(bytes, after, size);
        free(after);
    }
    assert_int_equal(sd_pretrainer_save(trainer, path), SD_OK); /* the trainer is as usable as before */
    uint64_t steps = 0;
    assert_int_equal(sd_checkpoint_info(NULL, path, NULL, &steps), SD_OK);
    assert_true(steps == 3);
    free(bytes);
    sd_pretrainer_destroy(trainer);
}

typedef struct attempt {
    sd_context *context;
    sd_pretrainer *trainer;
    const char *path;
} attempt;

static sd_status try_save(const attempt *what) { return sd_pretrainer_save(what->trainer, what->path); }

static sd_status try_resume(const attempt *what) {
    sd_pretrainer *resumed = NULL;
    sd_status status = sd_pretrainer_resume(what->context, what->path, &resumed);
    assert_true((status == SD_OK) == (resumed != NULL));
    sd_pretrainer_destroy(resumed);
    return status;
}

static sd_status try_load(const attempt *what) {
    sd_model *model = NULL;
    sd_status status = sd_model_load(what->context, what->path, 1, &model);
    assert_true((status == SD_OK) == (model != NULL));
    sd_model_destroy(model);
    return status;
}

static sd_status try_info(const attempt *what) { return sd_checkpoint_info(what->context, what->path, NULL, NULL); }

static void failed_allocations(void **state) {
    static sd_status (*const calls[])(const attempt *) = {try_save, try_resume, try_load, try_info};
    sd_context_config config;
    failing_memory memory;
    sd_context_config_init(&config);
    config.threads = 1;
    failing_memory_install(&memory, &config);
    attempt what = {.path = scratch_path(*state, "run.safetensors")};
    assert_int_equal(sd_context_create(&config, &what.context), SD_OK);
    what.trainer = make_trained(what.context, SD_OPTIMIZER_ADAMW, 1);
    assert_int_equal(sd_pretrainer_save(what.trainer, what.path), SD_OK);
    long live = memory.live, base = memory.allocations;
    for (size_t i = 0; i < 4; i++) {
        sd_status status = SD_ERR_MEMORY;
        for (long n = 0; status != SD_OK; n++) {
            memory.allocations = base;
            memory.fail_at = base + n;
            status = calls[i](&what);
            if (status != SD_OK && status != SD_ERR_MEMORY)
                fail_msg("call %zu, allocation %ld: status %d (%s)", i, n, (int)status, sd_last_error());
            assert_true(status == SD_ERR_MEMORY || n >= 7);
            assert_int_equal(memory.live, live);
            assert_int_equal(scratch_count(*state), 1);
        }
        memory.fail_at = -1;
        assert_int_equal(try_resume(&what), SD_OK);
    }
    sd_pretrainer_destroy(what.trainer);
    sd_context_destroy(what.context);
    assert_int_equal(memory.live, 0);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, scratch_begin, scratch_end)
    const struct CMUnitTest tests[] = {
        TEST(resumed_run_equals_unbroken_run), TEST(saving_again_gives_the_same_file),
        TEST(networks_and_info),               TEST(truncations),
        TEST(flipped_bits),                    TEST(wrong_metadata),
        TEST(wrong_tensors),                   TEST(full_disk),
        TEST(failed_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
