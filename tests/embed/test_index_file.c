/* The files of an index: round trip, damage, lying headers, a full disk, failing allocations, export. */
#define _XOPEN_SOURCE 700
#include "embed/index.h"
#include "failing_memory.h"
#include "io/checksum.h"
#include "scratch.h"

#include <simdino/index.h>

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <cmocka.h>

enum { ROWS = 7, DIM = 3, HEADER = 64, IDS = 64, FILE_SIZE = HEADER + IDS + ROWS * DIM * 4 };

static const float rows[ROWS * DIM] = {1, 2, 3, -4, 5, 0.5f, 0, 0, 0, 7, 8, 9, 1, 1, 1, -3, 2, 2, 6, 0, -2};
static const int64_t row_ids[ROWS] = {40, 3, 77, 5, 6, 1000000007, 2};

static void expect_message(const char *part) {
    if (!strstr(sd_last_error(), part))
        fail_msg("message \"%s\" does not contain \"%s\"", sd_last_error(), part);
}

static sd_index *example(sd_context *context, sd_metric metric) {
    sd_index *index = NULL;
    assert_int_equal(sd_index_create(context, DIM, metric, &index), SD_OK);
    assert_int_equal(sd_index_add(index, row_ids, rows, ROWS, DIM), SD_OK);
    return index;
}

static void write_example(const char *path, sd_metric metric) {
    sd_index *index = example(NULL, metric);
    assert_int_equal(sd_index_save(index, path), SD_OK);
    sd_index_destroy(index);
}

static sd_status try_load(const char *path) {
    sd_index *index = NULL;
    sd_status status = sd_index_load(NULL, path, &index);
    assert_true((status == SD_OK) == (index != NULL));
    sd_index_destroy(index);
    return status;
}

/* ---- round trip ---------------------------------------------------------------------------- */

static void assert_same(const sd_index *a, const sd_index *b) {
    assert_true(sd_index_dim(a) == sd_index_dim(b) && sd_index_metric(a) == sd_index_metric(b));
    assert_int_equal(sd_index_count(a), sd_index_count(b));
    size_t n = (size_t)sd_index_count(a), d = sd_index_dim(a);
    int64_t *ids = calloc(2 * n + 1, sizeof *ids), found[2][6];
    float *row = calloc(2 * d, sizeof *row), scores[2][6];
    assert_true(ids && row);
    assert_int_equal(sd_index_ids(a, ids), SD_OK);
    assert_int_equal(sd_index_ids(b, ids + n), SD_OK);
    assert_memory_equal(ids, ids + n, n * sizeof *ids);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(sd_index_get(a, ids[i], row), SD_OK);
        assert_int_equal(sd_index_get(b, ids[i], row + d), SD_OK);
        assert_memory_equal(row, row + d, d * sizeof *row);
    }
    for (size_t j = 0; j < d; j++)
        row[j] = (float)(j % 5) - 1.5f;
    assert_int_equal(sd_index_query(a, row, 1, d, 6, found[0], scores[0]), SD_OK);
    assert_int_equal(sd_index_query(b, row, 1, d, 6, found[1], scores[1]), SD_OK);
    assert_memory_equal(found[0], found[1], sizeof found[0]);
    assert_memory_equal(scores[0], scores[1], sizeof scores[0]);
    free(ids);
    free(row);
}

static void round_trip(void **state) {
    const char *path = scratch_path(*state, "a.index");
    for (int metric = SD_METRIC_COSINE; metric <= SD_METRIC_L2; metric++) {
        sd_index *index = example(NULL, (sd_metric)metric), *read = NULL;
        const int64_t gone[] = {77, 6};
        for (int step = 0; step < 3; step++) {
            assert_int_equal(sd_index_save(index, path), SD_OK);
            assert_int_equal(sd_index_load(NULL, path, &read), SD_OK);
            assert_same(index, read);
            assert_int_equal(sd_index_add(read, NULL, rows, 1, DIM), SD_OK); /* ids go on */
            assert_int_equal(sd_index_get(read, 1000000008, (float[DIM]){0}), SD_OK);
            sd_index_destroy(read);
            if (step == 0)
                assert_int_equal(sd_index_remove(index, gone, 2, NULL), SD_OK);
            else
                assert_int_equal(sd_index_remove(index, row_ids, ROWS, NULL), SD_OK); /* empty, at last */
        }
        sd_index_destroy(index);
    }
    /* Several blocks. */
    const size_t n = 3000, d = 700;
    float *many = calloc(n * d, sizeof *many);
    assert_non_null(many);
    sd_random random;
    sd_random_init(&random, 1, 0, 0);
    for (size_t i = 0; i < n * d; i++)
        many[i] = (float)sd_random_uniform(&random) - 0.5f;
    sd_index *index = NULL, *read = NULL;
    assert_int_equal(sd_index_create(NULL, d, SD_METRIC_L2, &index), SD_OK);
    assert_int_equal(sd_index_add(index, NULL, many, n, d), SD_OK);
    assert_true(index->block_count > 2);
    assert_int_equal(sd_index_save(index, path), SD_OK);
    assert_int_equal(sd_index_load(NULL, path, &read), SD_OK);
    assert_same(index, read);
    sd_index_destroy(index);
    sd_index_destroy(read);
    free(many);
}

/* ---- damage -------------------------------------------------------------------------------- */

static void damage(void **state) {
    const char *path = scratch_path(*state, "a.index");
    size_t size;
    write_example(path, SD_METRIC_COSINE);
    char *bytes = scratch_read(path, &size);
    assert_int_equal(size, FILE_SIZE);
    for (size_t bit = 0; bit < 8 * size; bit++) {
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ (1 << bit % 8));
        scratch_write(path, bytes, size);
        sd_status status = try_load(path);
        if (status != SD_ERR_FORMAT && status != SD_ERR_CHECKSUM && status != SD_ERR_VERSION)
            fail_msg("bit %zu of byte %zu flipped: status %d", bit % 8, bit / 8, (int)status);
        expect_message("a.index");
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ (1 << bit % 8));
    }
    for (size_t length = 0; length < size; length++) {
        scratch_write(path, bytes, length);
        assert_int_equal(try_load(path), SD_ERR_FORMAT);
    }
    char longer[FILE_SIZE + 1] = {0};
    memcpy(longer, bytes, size);
    scratch_write(path, longer, sizeof longer);
    assert_int_equal(try_load(path), SD_ERR_FORMAT);
    free(bytes);
}

static void put(char *at, uint64_t value, size_t count) {
    for (size_t i = 0; i < count; i++)
        at[i] = (char)(value >> (8 * i));
}

/* With checksums that fit. */
static void seal(char *bytes) {
    put(bytes + 40, sd_crc32(0, bytes + HEADER, ROWS * sizeof(int64_t)), 4);
    put(bytes + 44, sd_crc32(0, bytes + HEADER + IDS, ROWS * DIM * sizeof(float)), 4);
    put(bytes + 60, sd_crc32(0, bytes, 60), 4);
}

/* Files whose checksums are right and whose content is not: refused before memory is taken for what they claim. */
static void lies(void **state) {
    const char *path = scratch_path(*state, "a.index");
    size_t size;
    sd_context_config config;
    failing_memory memory;
    sd_context *context = NULL;
    sd_context_config_init(&config);
    config.threads = 1;
    failing_memory_install(&memory, &config);
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    write_example(path, SD_METRIC_COSINE);
    char *bytes = scratch_read(path, &size), copy[FILE_SIZE];
    const struct {
        size_t at, count;
        uint64_t value;
        sd_status status;
        bool small; /* refused before memory is taken */
    } cases[] = {
        {0, 1, 'S', SD_ERR_FORMAT, true},
        {8, 4, 2, SD_ERR_VERSION, true},                 /* a later version */
        {12, 4, 3, SD_ERR_FORMAT, true},                 /* another metric */
        {16, 8, 0, SD_ERR_FORMAT, true},                 /* no width */
        {16, 8, 4, SD_ERR_FORMAT, true},
        {16, 8, UINT64_MAX, SD_ERR_FORMAT, true},
        {16, 8, UINT64_C(1) << 62, SD_ERR_FORMAT, true}, /* products that overflow to what is there */
        {24, 8, 8, SD_ERR_FORMAT, true},
        {24, 8, 6, SD_ERR_FORMAT, true},
        {24, 8, 0, SD_ERR_FORMAT, true},
        {24, 8, UINT64_MAX, SD_ERR_FORMAT, true},
        {24, 8, (UINT64_C(1) << 61) + 7, SD_ERR_FORMAT, true},
        {32, 8, 1000000007, SD_ERR_FORMAT, false},       /* the next id is there already */
        {32, 8, UINT64_MAX, SD_ERR_FORMAT, true},
        {48, 1, 1, SD_ERR_FORMAT, true},
        {HEADER, 8, 3, SD_ERR_FORMAT, false},            /* an id twice */
        {HEADER, 8, UINT64_MAX, SD_ERR_FORMAT, false},   /* a negative one */
        {HEADER + 8 * ROWS, 1, 1, SD_ERR_FORMAT, false}, /* not zero in between */
        {HEADER + IDS, 4, 0x7fc00000, SD_ERR_FORMAT, false}, /* NaN */
        {HEADER + IDS, 4, 0x3f800000, SD_ERR_FORMAT, false}, /* a row that is too long for cosines */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        memcpy(copy, bytes, size);
        put(copy + cases[i].at, cases[i].value, cases[i].count);
        seal(copy);
        scratch_write(path, copy, size);
        sd_index *index = NULL;
        memory.peak_bytes = 0;
        sd_status status = sd_index_load(context, path, &index);
        if (status != cases[i].status)
            fail_msg("case %zu: status %d (%s)", i, (int)status, sd_last_error());
        assert_null(index);
        assert_true(!cases[i].small || memory.peak_bytes < 10000);
    }
    free(bytes);
    /* A sparse file of the right size with a wide row. */
    char header[HEADER + 64] = "sdindex\n";
    put(header + 8, 1, 4);
    put(header + 16, 16, 8);
    put(header + 60, sd_crc32(0, header, 60), 4);
    scratch_write(path, header, HEADER);
    assert_int_equal(try_load(path), SD_OK); /* an index of no rows */
    assert_int_equal(sd_index_load(context, scratch_path(*state, "missing"), &(sd_index *){NULL}), SD_ERR_IO);
    expect_message("missing");
    assert_int_equal(sd_index_load(context, scratch_path(*state, "."), &(sd_index *){NULL}), SD_ERR_IO);
    assert_int_equal(sd_index_load(context, NULL, &(sd_index *){NULL}), SD_ERR_ARGUMENT);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

/* ---- a full disk, no memory, cancelled ----------------------------------------------------- */

static void limit_file_size(rlim_t bytes) {
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void full_disk(void **state) {
    char *path = strdup(scratch_path(*state, "precious.index")), *copy = strdup(scratch_path(*state, "rows.fvecs"));
    sd_index *index = example(NULL, SD_METRIC_L2);
    write_example(path, SD_METRIC_COSINE);
    size_t size, size_after;
    char *bytes = scratch_read(path, &size);
    signal(SIGXFSZ, SIG_IGN);
    sd_status status = SD_ERR_IO;
    for (rlim_t limit = 0; status != SD_OK; limit += 7) {
        limit_file_size(limit);
        sd_status exported = sd_index_export(index, copy, NULL);
        status = sd_index_save(index, path);
        limit_file_size(RLIM_INFINITY);
        assert_int_equal(exported, limit < ROWS * (4 + 4 * DIM) ? SD_ERR_IO : SD_OK);
        assert_int_equal(scratch_count(*state), exported == SD_OK ? 2 : 1);
        if (status == SD_OK)
            break;
        assert_int_equal(status, SD_ERR_IO);
        expect_message("precious.index");
        char *after = scratch_read(path, &size_after);
        assert_true(size_after == size);
        assert_memory_equal(after, bytes, size);
        free(after);
    }
    assert_int_equal(try_load(path), SD_OK);
    assert_int_equal(sd_index_save(index, "/dev/full"), SD_ERR_IO);
    assert_int_equal(sd_index_save(index, scratch_path(*state, "missing/x")), SD_ERR_IO);
    expect_message("missing/x");
    assert_int_equal(sd_index_save(index, NULL), SD_ERR_ARGUMENT);
    sd_index_destroy(index);
    free(bytes);
    free(path);
    free(copy);
}

static void failed_allocations(void **state) {
    char *path = strdup(scratch_path(*state, "a.index")), *copy = strdup(scratch_path(*state, "a.npy"));
    char *ids = strdup(scratch_path(*state, "ids.npy"));
    sd_context_config config;
    failing_memory memory;
    sd_context *context = NULL;
    sd_context_config_init(&config);
    config.threads = 1;
    failing_memory_install(&memory, &config);
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    sd_index *index = example(context, SD_METRIC_L2);
    write_example(path, SD_METRIC_COSINE);
    long live = memory.live;
    for (int sticky = 0; sticky < 2; sticky++)
        for (int what = 0; what < 3; what++) {
            long failures = 0;
            memory.sticky = sticky;
            for (sd_status status = SD_ERR_MEMORY; status != SD_OK; failures++) {
                sd_index *read = NULL;
                memory.fail_at = memory.allocations + failures;
                status = what == 0   ? sd_index_save(index, path)
                         : what == 1 ? sd_index_load(context, path, &read)
                                     : sd_index_export(index, copy, ids);
                assert_true(status == SD_OK || (status == SD_ERR_MEMORY && read == NULL));
                sd_index_destroy(read);
                assert_int_equal(memory.live, live);
                assert_int_equal(try_load(path), SD_OK);
            }
            assert_true(failures > 3);
        }
    memory.fail_at = -1;
    sd_index_destroy(index);
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
    free(path);
    free(copy);
    free(ids);
}

static int progress_calls;
static void on_progress(void *opaque, const char *what, uint64_t done, uint64_t total) {
    assert_string_equal(what, (const char *)opaque);
    assert_true(done > 0 && done <= total && total == ROWS);
    progress_calls++;
}
static int stop;
static int on_cancel(void *opaque) { return (void)opaque, stop; }

static void hooks(void **state) {
    char *path = strdup(scratch_path(*state, "a.index")), *copy = strdup(scratch_path(*state, "a.npy"));
    static char what[8];
    sd_context_config config;
    sd_context *context = NULL;
    sd_context_config_init(&config);
    config.threads = 1;
    config.progress = on_progress;
    config.progress_opaque = what;
    config.cancel = on_cancel;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    sd_index *index = example(context, SD_METRIC_L2), *read = NULL;
    for (stop = 0; stop < 2; stop++) {
        sd_status expected = stop ? SD_ERR_CANCELLED : SD_OK;
        progress_calls = 0;
        strcpy(what, "save");
        assert_int_equal(sd_index_save(index, path), expected);
        strcpy(what, "load");
        assert_int_equal(sd_index_load(context, path, &read), expected);
        strcpy(what, "export");
        assert_int_equal(sd_index_export(index, copy, NULL), expected);
        assert_int_equal(progress_calls, stop ? 0 : 3);
        if (!stop)
            sd_index_destroy(read);
    }
    assert_int_equal(scratch_count(*state), 2);
    stop = 0;
    sd_index_destroy(index);
    sd_context_destroy(context);
    free(path);
    free(copy);
}

/* ---- export -------------------------------------------------------------------------------- */

static void exports(void **state) {
    char *npy = strdup(scratch_path(*state, "a.npy")), *fvecs = strdup(scratch_path(*state, "a.fvecs"));
    char *ids = strdup(scratch_path(*state, "ids.npy"));
    static const size_t order[ROWS] = {6, 1, 3, 4, 0, 2, 5}; /* by ascending id */
    sd_index *index = example(NULL, SD_METRIC_INNER_PRODUCT);
    size_t size;
    assert_int_equal(sd_index_export(index, npy, ids), SD_OK);
    char *bytes = scratch_read(npy, &size);
    assert_int_equal(size, 128 + ROWS * DIM * 4);
    assert_memory_equal(bytes, "\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (7, 3), }  ", 71);
    assert_int_equal(bytes[127], '\n');
    for (size_t i = 0; i < ROWS; i++)
        assert_memory_equal(bytes + 128 + i * DIM * 4, rows + order[i] * DIM, DIM * 4);
    free(bytes);
    bytes = scratch_read(ids, &size);
    assert_int_equal(size, 128 + ROWS * 8);
    assert_memory_equal(bytes + 10, "{'descr': '<i8', 'fortran_order': False, 'shape': (7,), }  ", 59);
    for (size_t i = 0; i < ROWS; i++)
        assert_memory_equal(bytes + 128 + i * 8, &row_ids[order[i]], 8);
    free(bytes);
    assert_int_equal(sd_index_export(index, fvecs, NULL), SD_OK);
    bytes = scratch_read(fvecs, &size);
    assert_int_equal(size, ROWS * (4 + DIM * 4));
    for (size_t i = 0; i < ROWS; i++) {
        int32_t dim = DIM;
        assert_memory_equal(bytes + i * (4 + DIM * 4), &dim, 4);
        assert_memory_equal(bytes + i * (4 + DIM * 4) + 4, rows + order[i] * DIM, DIM * 4);
    }
    free(bytes);
    assert_int_equal(sd_index_export(index, scratch_path(*state, "a.txt"), NULL), SD_ERR_ARGUMENT);
    expect_message(".fvecs");
    assert_int_equal(sd_index_export(index, npy, fvecs), SD_ERR_ARGUMENT);
    expect_message("ids_path");
    assert_int_equal(sd_index_remove(index, row_ids, ROWS, NULL), SD_OK);
    assert_int_equal(sd_index_export(index, npy, NULL), SD_ERR_ARGUMENT);
    expect_message("no rows");
    assert_int_equal(sd_index_export(NULL, npy, NULL), SD_ERR_ARGUMENT);
    sd_index_destroy(index);
    free(npy);
    free(fvecs);
    free(ids);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, scratch_begin, scratch_end)
    const struct CMUnitTest tests[] = {
        TEST(round_trip), TEST(damage), TEST(lies), TEST(full_disk), TEST(failed_allocations), TEST(hooks), TEST(exports),
    };
    return cmocka_run_group_tests_name("index files", tests, NULL, NULL);
}
