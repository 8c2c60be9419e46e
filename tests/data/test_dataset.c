/* Readers of dataset files, good and hostile, and datasets in the host's hands. */
#define _XOPEN_SOURCE 700 /* mkstemp */

#include "base/base.h"
#include "failing_memory.h"
#include <simdino/data.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include <cmocka.h>

/* ---- files --------------------------------------------------------------------------------- */

typedef struct bytes {
    unsigned char data[65536];
    size_t size;
} bytes;

static void append(bytes *b, const void *data, size_t size) {
    assert_true(b->size + size <= sizeof b->data);
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void append_dimension(bytes *b, uint32_t n) {
    unsigned char big_endian[4] = {(unsigned char)(n >> 24), (unsigned char)(n >> 16), (unsigned char)(n >> 8),
                                   (unsigned char)n};
    append(b, big_endian, 4);
}

/* An IDX file whose values count up. */
static bytes idx(size_t dimensions, const uint32_t *size, size_t values) {
    bytes b = {.size = 0};
    unsigned char start[4] = {0, 0, 8, (unsigned char)dimensions};
    append(&b, start, 4);
    for (size_t i = 0; i < dimensions; i++)
        append_dimension(&b, size[i]);
    for (size_t i = 0; i < values; i++) {
        unsigned char value = (unsigned char)(i * 7 % 251);
        append(&b, &value, 1);
    }
    return b;
}

/* Appends one gzip member with the given content. */
static void append_gzip(bytes *b, const void *content, size_t size) {
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    unsigned char input[1 << 16];
    assert_true(size <= sizeof input);
    memcpy(input, content, size);
    z.next_in = input;
    z.avail_in = (uInt)size;
    z.next_out = b->data + b->size;
    z.avail_out = (uInt)(sizeof b->data - b->size);
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    b->size = sizeof b->data - z.avail_out;
    deflateEnd(&z);
}

static bytes gzip_of(const bytes *content) {
    bytes b = {.size = 0};
    append_gzip(&b, content->data, content->size);
    return b;
}

static char image_path[64], label_path[64];

static void make_path(char path[64]) {
    strcpy(path, "/tmp/simdino-test-XXXXXX");
    int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    close(descriptor);
}

static int make_paths(void **state) {
    (void)state;
    make_path(image_path);
    make_path(label_path);
    return 0;
}

static int remove_paths(void **state) {
    (void)state;
    remove(image_path);
    remove(label_path);
    return 0;
}

static void write_file(const char *path, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static void put(const char *path, const bytes *b) { write_file(path, b->data, b->size); }

static failing_memory memory;

static sd_context *watched_context(void) {
    sd_context_config config;
    sd_context_config_init(&config);
    failing_memory_install(&memory, &config);
    config.threads = 1;
    sd_context *context;
    assert_int_equal(sd_context_create(&config, &context), SD_OK);
    return context;
}

/* Opens what lies at image_path, which must give `expected`, leak nothing and leave the pointer alone on failure. */
static void expect_open(sd_context *context, bool labels, sd_status expected) {
    long before = memory.live;
    sd_dataset *untouched = (sd_dataset *)&memory, *dataset = untouched;
    sd_status status = sd_dataset_open_idx(context, image_path, labels ? label_path : NULL, &dataset);
    if (status != expected)
        fail_msg("status %s instead of %s: %s", sd_status_string(status), sd_status_string(expected), sd_last_error());
    if (status == SD_OK)
        sd_dataset_destroy(dataset);
    else
        assert_ptr_equal(dataset, untouched);
    assert_int_equal(memory.live, before);
}

static void expect_message(const char *part) {
    if (strstr(sd_last_error(), part) == NULL)
        fail_msg("\"%s\" does not tell of \"%s\"", sd_last_error(), part);
}

/* ---- IDX ----------------------------------------------------------------------------------- */

static const uint32_t gray_size[3] = {3, 4, 5}, color_size[4] = {2, 3, 4, 3}, label_size[1] = {3};

static void check_gray(const sd_dataset *dataset) {
    assert_int_equal(sd_dataset_count(dataset), 3);
    for (uint64_t i = 0; i < 3; i++) {
        sd_image image;
        void *token;
        assert_int_equal(sd_dataset_acquire(dataset, i, &image, &token), SD_OK);
        assert_int_equal(image.width, 5);
        assert_int_equal(image.height, 4);
        assert_int_equal(image.channels, 1);
        assert_int_equal(image.pixel_type, SD_PIXEL_U8);
        for (size_t k = 0; k < 20; k++)
            assert_int_equal(((const uint8_t *)image.pixels)[k], (i * 20 + k) * 7 % 251);
        sd_dataset_release(dataset, i, token);
    }
}

static void idx_files_are_read(void **state) {
    (void)state;
    bytes images = idx(3, gray_size, 60), labels = idx(1, label_size, 3);
    for (int packed = 0; packed < 4; packed++) {
        bytes image_file = packed & 1 ? gzip_of(&images) : images, label_file = packed & 2 ? gzip_of(&labels) : labels;
        put(image_path, &image_file);
        put(label_path, &label_file);
        sd_dataset *dataset;
        assert_int_equal(sd_dataset_open_idx(NULL, image_path, label_path, &dataset), SD_OK);
        check_gray(dataset);
        const int32_t expected[3] = {0, 7, 14};
        assert_memory_equal(sd_dataset_labels(dataset), expected, sizeof expected);
        sd_image image;
        void *token;
        assert_int_equal(sd_dataset_acquire(dataset, 3, &image, &token), SD_ERR_ARGUMENT);
        sd_dataset_destroy(dataset);
    }
    bytes colors = idx(4, color_size, 72);
    put(image_path, &colors);
    sd_dataset *dataset;
    assert_int_equal(sd_dataset_open_idx(NULL, image_path, NULL, &dataset), SD_OK);
    assert_null(sd_dataset_labels(dataset));
    sd_image image;
    void *token;
    assert_int_equal(sd_dataset_acquire(dataset, 1, &image, &token), SD_OK);
    assert_int_equal(image.channels, 3);
    assert_int_equal(((const uint8_t *)image.pixels)[0], 36 * 7 % 251);
    sd_dataset_destroy(dataset);
}

/* gzip allows members one after the other: their contents are joined. */
static void gzip_members_are_joined(void **state) {
    (void)state;
    bytes images = idx(3, gray_size, 60);
    for (size_t split = 0; split <= images.size; split++) {
        bytes file = {.size = 0};
        append_gzip(&file, images.data, split);
        append_gzip(&file, images.data + split, images.size - split);
        put(image_path, &file);
        sd_dataset *dataset;
        assert_int_equal(sd_dataset_open_idx(NULL, image_path, NULL, &dataset), SD_OK);
        check_gray(dataset);
        sd_dataset_destroy(dataset);
    }
}

static void truncated_files_fail(void **state) {
    (void)state;
    sd_context *context = watched_context();
    bytes images = idx(3, gray_size, 60), labels = idx(1, label_size, 3), packed = gzip_of(&images);
    put(label_path, &labels);
    for (size_t size = 0; size < images.size; size++) {
        write_file(image_path, images.data, size);
        expect_open(context, true, SD_ERR_FORMAT);
        expect_message(image_path);
    }
    for (size_t size = 0; size < packed.size; size++) {
        write_file(image_path, packed.data, size);
        expect_open(context, true, SD_ERR_FORMAT);
    }
    put(image_path, &images);
    for (size_t size = 0; size < labels.size; size++) {
        write_file(label_path, labels.data, size);
        expect_open(context, true, SD_ERR_FORMAT);
    }
    put(label_path, &labels);
    expect_open(context, true, SD_OK);
    sd_context_destroy(context);
}

/* A flipped bit in a plain file's header must be noticed; in a gzip file it must be noticed or have no effect (time
 * stamp and the like). */
static void flipped_bits_are_noticed(void **state) {
    (void)state;
    sd_context *context = watched_context();
    bytes images = idx(3, gray_size, 60), packed = gzip_of(&images);
    for (size_t bit = 0; bit < 16 * 8; bit++) {
        bytes flipped = images;
        flipped.data[bit / 8] ^= (unsigned char)(1u << bit % 8);
        put(image_path, &flipped);
        expect_open(context, false, SD_ERR_FORMAT);
    }
    size_t harmless = 0;
    for (size_t bit = 0; bit < packed.size * 8; bit++) {
        bytes flipped = packed;
        flipped.data[bit / 8] ^= (unsigned char)(1u << bit % 8);
        put(image_path, &flipped);
        long before = memory.live;
        sd_dataset *dataset;
        sd_status status = sd_dataset_open_idx(context, image_path, NULL, &dataset);
        if (status == SD_OK) {
            check_gray(dataset);
            sd_dataset_destroy(dataset);
            harmless++;
        } else {
            assert_int_equal(status, SD_ERR_FORMAT);
        }
        assert_int_equal(memory.live, before);
    }
    /* Time (4 bytes), extra flags, system; the "text" flag; up to 7 bits that fill the last byte of compressed data. */
    assert_true(harmless <= 8 * 6 + 1 + 7);
    sd_context_destroy(context);
}

/* No header makes the reader take memory that the file cannot fill. */
static void lying_headers_fail_before_memory_is_taken(void **state) {
    (void)state;
    static const uint32_t lies[][4] = {
        {0, 4, 5, 0},
        {3, 0, 5, 0},
        {3, 4, 0, 0},
        {4, 4, 5, 0},
        {2, 4, 5, 0},
        {0xffffffffu, 4, 5, 0},
        {0x80000000u, 4, 5, 0},
        {0x7fffffffu, 0x7fffffffu, 0x7fffffffu, 0},
        {0x7fffffffu, 0x40000000u, 8, 0},
        {0x10000000u, 16, 16, 0},
        {60000, 28, 28, 0},
    };
    sd_context *context = watched_context();
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        bytes plain = idx(3, lies[i], 60), packed = gzip_of(&plain);
        for (int gzip = 0; gzip < 2; gzip++) {
            put(image_path, gzip ? &packed : &plain);
            memory.peak_bytes = memory.live_bytes;
            size_t before = memory.live_bytes;
            expect_open(context, false, SD_ERR_FORMAT);
            if (memory.peak_bytes - before > 400000)
                fail_msg("%zu bytes were taken for lie %zu", memory.peak_bytes - before, i);
        }
    }
    static const uint32_t many_channels[4] = {1, 2, 2, 17}, flat[2] = {3, 20};
    bytes file = idx(4, many_channels, 68);
    put(image_path, &file);
    expect_open(context, false, SD_ERR_FORMAT);
    expect_message("17");
    file = idx(2, flat, 60);
    put(image_path, &file);
    expect_open(context, false, SD_ERR_FORMAT);
    file = idx(3, gray_size, 60);
    file.data[2] = 0x0d; /* floats */
    put(image_path, &file);
    expect_open(context, false, SD_ERR_FORMAT);
    expect_message("0d");
    sd_context_destroy(context);
}

/* The declared size governs: what unpacks to more fails after one byte too many. */
static void surplus_bytes_fail(void **state) {
    (void)state;
    sd_context *context = watched_context();
    bytes images = idx(3, gray_size, 60), longer = idx(3, gray_size, 61);
    put(image_path, &longer);
    expect_open(context, false, SD_ERR_FORMAT);
    bytes packed = gzip_of(&longer);
    put(image_path, &packed);
    expect_open(context, false, SD_ERR_FORMAT);
    expect_message("behind");
    bytes bomb = idx(3, gray_size, 60000);
    memset(bomb.data + 16, 0, bomb.size - 16);
    packed = gzip_of(&bomb);
    put(image_path, &packed);
    expect_open(context, false, SD_ERR_FORMAT);
    packed = gzip_of(&images);
    append(&packed, "rest", 4);
    put(image_path, &packed);
    expect_open(context, false, SD_ERR_FORMAT);
    packed = gzip_of(&images);
    append_gzip(&packed, "x", 1);
    put(image_path, &packed);
    expect_open(context, false, SD_ERR_FORMAT);
    packed = gzip_of(&images);
    append_gzip(&packed, "", 0);
    put(image_path, &packed);
    expect_open(context, false, SD_OK);
    sd_context_destroy(context);
}

static void labels_must_fit(void **state) {
    (void)state;
    sd_context *context = watched_context();
    static const uint32_t four[1] = {4};
    bytes images = idx(3, gray_size, 60), labels = idx(1, four, 4);
    put(image_path, &images);
    put(label_path, &labels);
    expect_open(context, true, SD_ERR_MISMATCH);
    expect_message("4 labels for 3 images");
    put(label_path, &images);
    expect_open(context, true, SD_ERR_FORMAT);
    sd_context_destroy(context);
}

static void paths_that_cannot_be_read_fail(void **state) {
    (void)state;
    sd_dataset *dataset = NULL;
    assert_int_equal(sd_dataset_open_idx(NULL, "/nonexistent/images", NULL, &dataset), SD_ERR_IO);
    expect_message("/nonexistent/images");
    expect_message("does not exist");
    assert_int_equal(sd_dataset_open_idx(NULL, "/tmp", NULL, &dataset), SD_ERR_IO);
    assert_int_equal(sd_dataset_open_idx(NULL, NULL, NULL, &dataset), SD_ERR_ARGUMENT);
    assert_int_equal(sd_dataset_open_idx(NULL, image_path, NULL, NULL), SD_ERR_ARGUMENT);
    const char *missing = "/nonexistent/batch";
    assert_int_equal(sd_dataset_open_cifar10(NULL, &missing, 1, &dataset), SD_ERR_IO);
    assert_null(dataset);
    assert_int_equal(sd_dataset_count(NULL), 0);
    assert_null(sd_dataset_labels(NULL));
    sd_dataset_destroy(NULL);
}

/* ---- CIFAR-10 ------------------------------------------------------------------------------ */

#define RECORD 3073

/* Records whose value at (plane c, pixel k) is a function of c, k and the record's number. */
static unsigned char cifar_value(size_t record, size_t c, size_t k) {
    return (unsigned char)((record * 31 + c * 101 + k) % 256);
}

static void make_cifar(unsigned char *file, size_t first, size_t count) {
    for (size_t i = 0; i < count; i++) {
        unsigned char *record = file + i * RECORD;
        record[0] = (unsigned char)((first + i) % 10);
        for (size_t c = 0; c < 3; c++)
            for (size_t k = 0; k < 1024; k++)
                record[1 + 1024 * c + k] = cifar_value(first + i, c, k);
    }
}

static void cifar_files_are_read(void **state) {
    (void)state;
    static unsigned char file[12 * RECORD];
    make_cifar(file, 0, 12);
    write_file(image_path, file, 12 * RECORD);
    make_cifar(file, 12, 5);
    write_file(label_path, file, 5 * RECORD);
    const char *paths[2] = {image_path, label_path};
    sd_dataset *dataset;
    assert_int_equal(sd_dataset_open_cifar10(NULL, paths, 2, &dataset), SD_OK);
    assert_int_equal(sd_dataset_count(dataset), 17);
    for (uint64_t i = 0; i < 17; i++) {
        sd_image image;
        void *token;
        assert_int_equal(sd_dataset_labels(dataset)[i], i % 10);
        assert_int_equal(sd_dataset_acquire(dataset, i, &image, &token), SD_OK);
        assert_true(image.width == 32 && image.height == 32 && image.channels == 3);
        const uint8_t *pixels = image.pixels;
        for (size_t k = 0; k < 1024; k++)
            for (size_t c = 0; c < 3; c++)
                assert_int_equal(pixels[3 * k + c], cifar_value((size_t)i, c, k));
        sd_dataset_release(dataset, i, token);
    }
    sd_dataset_destroy(dataset);
}

static void damaged_cifar_files_fail(void **state) {
    (void)state;
    sd_context *context = watched_context();
    static unsigned char file[2 * RECORD + 1];
    make_cifar(file, 0, 2);
    const char *paths[1] = {image_path};
    sd_dataset *dataset = NULL;
    long before = memory.live;
    for (size_t size = 0; size <= sizeof file; size += size < 40 || size > 2 * RECORD - 20 ? 1 : 191) {
        write_file(image_path, file, size);
        sd_status status = sd_dataset_open_cifar10(context, paths, 1, &dataset);
        assert_int_equal(status, size > 0 && size % RECORD == 0 ? SD_OK : SD_ERR_FORMAT);
        if (status == SD_OK)
            sd_dataset_destroy(dataset);
        assert_int_equal(memory.live, before);
    }
    file[RECORD] = 10;
    write_file(image_path, file, 2 * RECORD);
    assert_int_equal(sd_dataset_open_cifar10(context, paths, 1, &dataset), SD_ERR_FORMAT);
    expect_message("label 10");
    file[0] = 0x1f; /* looks like gzip */
    file[1] = 0x8b;
    write_file(image_path, file, 2 * RECORD);
    assert_int_equal(sd_dataset_open_cifar10(context, paths, 1, &dataset), SD_ERR_FORMAT);
    assert_int_equal(sd_dataset_open_cifar10(context, paths, 0, &dataset), SD_ERR_ARGUMENT);
    assert_int_equal(sd_dataset_open_cifar10(context, NULL, 1, &dataset), SD_ERR_ARGUMENT);
    assert_int_equal(memory.live, before);
    sd_context_destroy(context);
}

/* ---- the host's images --------------------------------------------------------------------- */

static void views_are_kept(void **state) {
    (void)state;
    uint8_t pixels[2][12] = {{1}, {2}};
    sd_image images[2] = {{pixels[0], 2, 2, 0, 3, SD_PIXEL_U8}, {pixels[1], 3, 4, 0, 1, SD_PIXEL_U8}};
    int32_t labels[2] = {-1, 70000};
    sd_dataset *dataset;
    assert_int_equal(sd_dataset_from_images(NULL, images, 2, labels, &dataset), SD_OK);
    images[1].pixels = NULL; /* the array was copied */
    labels[1] = 0;
    sd_image image;
    void *token;
    assert_int_equal(sd_dataset_acquire(dataset, 1, &image, &token), SD_OK);
    assert_ptr_equal(image.pixels, pixels[1]);
    assert_int_equal(image.height, 4);
    assert_int_equal(sd_dataset_labels(dataset)[0], -1);
    assert_int_equal(sd_dataset_labels(dataset)[1], 70000);
    sd_dataset_destroy(dataset);

    assert_int_equal(sd_dataset_from_images(NULL, images, 2, NULL, &dataset), SD_ERR_ARGUMENT);
    expect_message("image 1");
    assert_int_equal(sd_dataset_from_images(NULL, images, 0, NULL, &dataset), SD_ERR_ARGUMENT);
    assert_int_equal(sd_dataset_from_images(NULL, NULL, 1, NULL, &dataset), SD_ERR_ARGUMENT);
    assert_int_equal(sd_dataset_from_images(NULL, images, 1, NULL, NULL), SD_ERR_ARGUMENT);
}

typedef struct host {
    int result, acquired, released;
    sd_image image;
    void *last_token;
} host;

static int host_acquire(void *opaque, uint64_t index, sd_image *image, void **token) {
    host *h = opaque;
    if (h->result != 0)
        return h->result;
    h->acquired++;
    *image = h->image;
    *token = (char *)h + index;
    return 0;
}

static void host_release(void *opaque, uint64_t index, void *token) {
    host *h = opaque;
    assert_ptr_equal(token, (char *)h + index);
    h->released++;
}

static void callbacks_are_called(void **state) {
    (void)state;
    uint8_t pixels[4] = {9, 8, 7, 6};
    host h = {.image = {pixels, 2, 2, 0, 1, SD_PIXEL_U8}};
    int32_t labels[5] = {5, 4, 3, 2, 1};
    sd_dataset *dataset;
    assert_int_equal(sd_dataset_from_callbacks(NULL, 5, host_acquire, host_release, &h, labels, &dataset), SD_OK);
    sd_image image;
    void *token;
    assert_int_equal(sd_dataset_acquire(dataset, 4, &image, &token), SD_OK);
    assert_ptr_equal(image.pixels, pixels);
    assert_int_equal(h.released, 0);
    sd_dataset_release(dataset, 4, token);
    assert_int_equal(h.released, 1);
    assert_int_equal(sd_dataset_labels(dataset)[4], 1);

    h.result = 42;
    assert_int_equal(sd_dataset_acquire(dataset, 3, &image, &token), SD_ERR_IO);
    expect_message("image 3");
    expect_message("42");
    h.result = 0;
    h.image.width = 0;
    assert_int_equal(sd_dataset_acquire(dataset, 2, &image, &token), SD_ERR_IO);
    expect_message("image 2");
    assert_int_equal(h.acquired, h.released); /* a view that is refused is given back */
    sd_dataset_destroy(dataset);

    h.image.width = 2;
    assert_int_equal(sd_dataset_from_callbacks(NULL, 5, host_acquire, NULL, &h, NULL, &dataset), SD_OK);
    assert_int_equal(sd_dataset_acquire(dataset, 0, &image, &token), SD_OK);
    sd_dataset_release(dataset, 0, token);
    sd_dataset_destroy(dataset);
    assert_int_equal(sd_dataset_from_callbacks(NULL, 5, NULL, NULL, &h, NULL, &dataset), SD_ERR_ARGUMENT);
    assert_int_equal(sd_dataset_from_callbacks(NULL, 0, host_acquire, NULL, &h, NULL, &dataset), SD_ERR_ARGUMENT);
}

/* ---- memory -------------------------------------------------------------------------------- */

static sd_status open_one(sd_context *context, int kind, sd_dataset **dataset) {
    static uint8_t pixels[4];
    static host h;
    const sd_image image = {pixels, 2, 2, 0, 1, SD_PIXEL_U8};
    const int32_t label = 3;
    const char *paths[2] = {label_path, label_path};
    switch (kind) {
    case 0: return sd_dataset_open_idx(context, image_path, image_path, dataset); /* fails after the images */
    case 1: return sd_dataset_open_idx(context, image_path, NULL, dataset);
    case 2: return sd_dataset_open_cifar10(context, paths, 2, dataset);
    case 3: return sd_dataset_from_images(context, &image, 1, &label, dataset);
    default: return sd_dataset_from_callbacks(context, 1, host_acquire, host_release, &h, &label, dataset);
    }
}

static void failed_allocations_are_survived(void **state) {
    (void)state;
    bytes images = idx(3, gray_size, 60), packed = gzip_of(&images);
    put(image_path, &packed);
    static unsigned char file[RECORD];
    make_cifar(file, 0, 1);
    write_file(label_path, file, RECORD);
    sd_context *context = watched_context();
    long before = memory.live;
    for (int kind = 0; kind < 5; kind++) {
        bool succeeded = false;
        for (long i = 0; !succeeded; i++) {
            assert_true(i < 100);
            sd_dataset *dataset = NULL;
            memory.allocations = 0;
            memory.fail_at = i;
            sd_status status = open_one(context, kind, &dataset);
            succeeded = memory.allocations <= i;
            memory.fail_at = -1;
            assert_int_equal(status, !succeeded ? SD_ERR_MEMORY : kind == 0 ? SD_ERR_FORMAT : SD_OK);
            sd_dataset_destroy(dataset);
            assert_int_equal(memory.live, before);
        }
    }
    sd_context_destroy(context);
    assert_int_equal(memory.live, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(idx_files_are_read),
        cmocka_unit_test(gzip_members_are_joined),
        cmocka_unit_test(truncated_files_fail),
        cmocka_unit_test(flipped_bits_are_noticed),
        cmocka_unit_test(lying_headers_fail_before_memory_is_taken),
        cmocka_unit_test(surplus_bytes_fail),
        cmocka_unit_test(labels_must_fit),
        cmocka_unit_test(paths_that_cannot_be_read_fail),
        cmocka_unit_test(cifar_files_are_read),
        cmocka_unit_test(damaged_cifar_files_fail),
        cmocka_unit_test(views_are_kept),
        cmocka_unit_test(callbacks_are_called),
        cmocka_unit_test(failed_allocations_are_survived),
    };
    return cmocka_run_group_tests(tests, make_paths, remove_paths);
}
