/* The program's readers of image files: pixels of every form against known ones, and refusals with their reasons. The
 * files are the fuzzers' corpus, made by tests/fuzz/make_images.py. */
#define _XOPEN_SOURCE 700
#include "image_file.h"

#include "scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include <zlib.h>

/* Kinds that the build may lack. */
#if defined(HAVE_JPEG)
#define NEEDS_JPEG (void)0
#else
#define NEEDS_JPEG skip()
#endif
#if defined(HAVE_PNG)
#define NEEDS_PNG (void)0
#else
#define NEEDS_PNG skip()
#endif

#define CORPUS SD_TEST_DATA "/../fuzz/corpus"
#define WIDTH  ((size_t)13)
#define HEIGHT ((size_t)9)

/* Of make_images.py. */
static int value(size_t x, size_t y, size_t c) {
    int i = (int)x, j = (int)y;
    return c == 0 ? i * 18 + j * 3 : c == 1 ? i * 5 + j * 22 : 240 - i * 7 - j * 13;
}

static int palette(size_t x, size_t y, size_t c) {
    int i = (int)(x + 2 * y) % 16;
    return c == 0 ? i * 16 : c == 1 ? 255 - i * 15 : i * i;
}

static int bits_1(size_t x, size_t y, size_t c) { return (value(x, y, c) >> 7) * 255; }
static int bits_2(size_t x, size_t y, size_t c) { return (value(x, y, c) >> 6) * 85; }
static int bits_4(size_t x, size_t y, size_t c) { return (value(x, y, c) >> 4) * 17; }

static uint8_t *corpus_file(const char *name, size_t *size) {
    char path[512];
    snprintf(path, sizeof path, CORPUS "/%s", name);
    return (uint8_t *)scratch_read(path, size);
}

static image_pixels decode(const char *name, int32_t channels) {
    size_t size;
    char why[IMAGE_WHY];
    image_pixels image;
    uint8_t *bytes = corpus_file(name, &size);
    if (image_decode(bytes, size, channels, &image, why) != 0)
        fail_msg("%s: %s", name, why);
    free(bytes);
    return image;
}

static void expect_pixels(const char *name, const image_pixels *image, int (*wanted)(size_t, size_t, size_t),
                          int tolerance) {
    for (size_t y = 0; y < image->height; y++)
        for (size_t x = 0; x < image->width; x++)
            for (size_t c = 0; c < (size_t)image->channels; c++) {
                int is = image->pixels[(y * image->width + x) * (size_t)image->channels + c], should = wanted(x, y, c);
                if (is > should + tolerance || is < should - tolerance)
                    fail_msg("%s: pixel (%zu, %zu), channel %zu: %d, expected %d", name, x, y, c, is, should);
            }
}

typedef struct form {
    const char *name;
    int32_t channels;
    int (*wanted)(size_t x, size_t y, size_t c);
} form;

static void expect_forms(const form *forms, size_t count, int tolerance) {
    for (size_t i = 0; i < count; i++) {
        char path[512];
        image_pixels image = decode(forms[i].name, 0);
        assert_int_equal(image.width, WIDTH);
        assert_int_equal(image.height, HEIGHT);
        assert_int_equal(image.channels, forms[i].channels);
        expect_pixels(forms[i].name, &image, forms[i].wanted, tolerance);
        image_free(&image);
        assert_null(image.pixels);
        snprintf(path, sizeof path, CORPUS "/%s", forms[i].name);
        assert_int_equal(image_file_channels(path), forms[i].channels);
    }
}

/* Other channels than the file has: grey as Pillow makes it, or repeated. */
static void expect_channels(const char *colors, const char *gray) {
    image_pixels as_is = decode(colors, 0), same = decode(colors, 3), made = decode(colors, 1);
    assert_int_equal(made.channels, 1);
    assert_memory_equal(as_is.pixels, same.pixels, WIDTH * HEIGHT * 3);
    for (size_t i = 0; i < WIDTH * HEIGHT; i++) {
        const uint8_t *p = as_is.pixels + 3 * i;
        double wanted = 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2];
        assert_true(made.pixels[i] >= wanted - 0.51 && made.pixels[i] <= wanted + 0.51);
    }
    image_free(&as_is);
    image_free(&same);
    image_free(&made);
    as_is = decode(gray, 1);
    made = decode(gray, 3);
    assert_int_equal(made.channels, 3);
    for (size_t i = 0; i < WIDTH * HEIGHT * 3; i++)
        assert_int_equal(made.pixels[i], as_is.pixels[i / 3]);
    image_free(&as_is);
    image_free(&made);
}

/* Refused, with a reason that has `words`; nothing is left. */
static void expect_refusal(const char *what, const uint8_t *bytes, size_t size, const char *words) {
    char why[IMAGE_WHY] = "";
    image_pixels image;
    if (image_decode(bytes, size, 0, &image, why) == 0) {
        image_free(&image);
        fail_msg("%s: was not refused", what);
    }
    assert_null(image.pixels);
    if (why[0] == '\0' || strstr(why, words) == NULL)
        fail_msg("%s: the reason is \"%s\", without \"%s\"", what, why, words);
}

static void expect_refused_file(const char *name, const char *words) {
    size_t size;
    uint8_t *bytes = corpus_file(name, &size);
    expect_refusal(name, bytes, size, words);
    free(bytes);
}

/* Cut off anywhere, in memory of its own so that reading beyond the end is found. */
static void expect_all_cuts_refused(const char *name) {
    size_t size;
    uint8_t *bytes = corpus_file(name, &size);
    for (size_t length = 0; length < size; length++) {
        char what[128];
        uint8_t *part = malloc(length + 1);
        assert_non_null(part);
        memcpy(part, bytes, length);
        snprintf(what, sizeof what, "%s, %zu of %zu bytes", name, length, size);
        expect_refusal(what, part, length, length == 0 ? "empty" : "");
        free(part);
    }
    free(bytes);
}

/* ---- PNG ----------------------------------------------------------------------------------- */

static void png_pixels(void **state) {
    NEEDS_PNG;
    static const form forms[] = {
        {"png/good-gray-1.png", 1, bits_1},
        {"png/good-gray-2.png", 1, bits_2},
        {"png/good-gray-4.png", 1, bits_4},
        {"png/good-gray-8.png", 1, value},
        {"png/good-gray-16.png", 1, value},
        {"png/good-gray-alpha-8.png", 1, value},
        {"png/good-gray-alpha-16.png", 1, value},
        {"png/good-gray-transparent.png", 1, value},
        {"png/good-gray-1-interlaced.png", 1, bits_1},
        {"png/good-rgb-8.png", 3, value},
        {"png/good-rgb-16.png", 3, value},
        {"png/good-rgba-8.png", 3, value},
        {"png/good-rgba-16.png", 3, value},
        {"png/good-rgb-transparent.png", 3, value},
        {"png/good-rgb-interlaced.png", 3, value},
        {"png/good-palette-4.png", 3, palette},
        {"png/good-palette-8.png", 3, palette},
        {"png/good-palette-transparent.png", 3, palette},
        {"png/good-palette-interlaced.png", 3, palette},
        {"png/good-text.png", 1, value},
        {"png/seed-trailing.png", 1, value},
    };
    (void)state;
    expect_forms(forms, sizeof forms / sizeof forms[0], 0);
    expect_channels("png/good-rgb-8.png", "png/good-gray-8.png");
}

static void png_refusals(void **state) {
    NEEDS_PNG;
    static const struct {
        const char *name, *words;
    } files[] = {
        {"png/hostile-empty.png", "empty"},          {"png/hostile-signature.png", "truncated"},
        {"png/hostile-no-end.png", "truncated"},     {"png/hostile-checksum.png", "CRC"},
        {"png/hostile-zero.png", "IHDR"},            {"png/hostile-largest.png", "IHDR"},
        {"png/hostile-wide.png", "IHDR"},            {"png/hostile-huge.png", "100000 x 100000 pixels do not fit into"},
        {"png/hostile-large.png", "do not fit"},     {"png/hostile-interlaced.png", "do not fit into"},
        {"png/hostile-short.png", "image data"},     {"png/hostile-bomb.png", "image data"},
        {"png/hostile-no-palette.png", "PLTE"},      {"png/hostile-critical.png", "critical"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        expect_refused_file(files[i].name, files[i].words);
}

static void png_cuts(void **state) {
    NEEDS_PNG;
    (void)state;
    expect_all_cuts_refused("png/good-rgb-8.png");
    expect_all_cuts_refused("png/good-palette-interlaced.png");
    expect_all_cuts_refused("png/good-text.png");
}

static uint8_t *put_number(uint8_t *to, size_t value) {
    for (int i = 3; i >= 0; i--)
        *to++ = (uint8_t)(value >> 8 * i);
    return to;
}

/* A hundred texts that would be 8 MB each are passed over, not unpacked and kept. */
static void png_texts(void **state) {
    NEEDS_PNG;
    const size_t unpacked = (size_t)8 << 20, chunks = 100;
    size_t size, start = 8 + 25; /* signature and IHDR */
    uint8_t *bytes = corpus_file("png/good-gray-8.png", &size), *text = malloc(unpacked);
    uLongf packed = compressBound(unpacked);
    uint8_t *body = malloc(7 + packed);
    image_pixels image;
    char why[IMAGE_WHY];
    struct rusage before, after;
    (void)state;
    assert_true(text != NULL && body != NULL);
    memset(text, 'a', unpacked);
    memcpy(body, "zTXtk\0\0", 7);
    assert_int_equal(compress2(body + 7, &packed, text, unpacked, 9), Z_OK);
    size_t length = 7 + packed;
    uint8_t *file = malloc(size + chunks * (length + 8)), *at = file;
    assert_non_null(file);
    memcpy(at, bytes, start);
    at += start;
    for (size_t i = 0; i < chunks; i++) {
        at = put_number(at, length - 4);
        memcpy(at, body, length);
        at = put_number(at + length, crc32(0, body, (uInt)length));
    }
    memcpy(at, bytes + start, size - start);
    at += size - start;
    getrusage(RUSAGE_SELF, &before);
    if (image_decode(file, (size_t)(at - file), 0, &image, why) != 0)
        fail_msg("%s", why);
    getrusage(RUSAGE_SELF, &after);
    expect_pixels("with texts", &image, value, 0);
    assert_true(after.ru_maxrss - before.ru_maxrss < 100 * 1024);
    image_free(&image);
    free(file);
    free(body);
    free(text);
    free(bytes);
}

/* The checksums find every flipped bit, but those in a chunk's length, which may lead to other refusals, too. */
static void png_flips(void **state) {
    NEEDS_PNG;
    size_t size;
    uint8_t *bytes = corpus_file("png/good-gray-8.png", &size);
    (void)state;
    for (size_t bit = 0; bit < 8 * size; bit++) {
        char what[64];
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        snprintf(what, sizeof what, "good-gray-8.png with bit %zu flipped", bit);
        /* Of IEND only the name counts. */
        if (bit < 8 * (size - 4))
            expect_refusal(what, bytes, size, "");
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    free(bytes);
}

/* ---- JPEG ---------------------------------------------------------------------------------- */

/* Black is 64 of 255, and Adobe's inks are the inverse of what is kept. */
static int inked(size_t x, size_t y, size_t c) { return value(x, y, c) * (255 - 64) / 255; }

static void jpeg_pixels(void **state) {
    NEEDS_JPEG;
    static const form forms[] = {
        {"jpeg/good-rgb.jpg", 3, value},
        {"jpeg/good-gray.jpg", 1, value},
        {"jpeg/good-progressive.jpg", 3, value},
        {"jpeg/good-progressive-gray.jpg", 1, value},
        {"jpeg/good-restarts.jpg", 3, value},
        {"jpeg/good-trailing.jpg", 3, value},
        {"jpeg/good-cmyk.jpg", 3, inked},
    }, coarse[] = {{"jpeg/good-subsampled.jpg", 3, value}};
    (void)state;
    expect_forms(forms, sizeof forms / sizeof forms[0], 5);
    expect_forms(coarse, 1, 25);
    expect_channels("jpeg/good-rgb.jpg", "jpeg/good-gray.jpg");
}

/* Without Adobe's marker the same numbers mean the inverse. */
static void jpeg_inks(void **state) {
    NEEDS_JPEG;
    image_pixels image = decode("jpeg/seed-cmyk-plain.jpg", 0);
    (void)state;
    for (size_t i = 0; i < WIDTH * HEIGHT * 3; i++) {
        size_t x = i / 3 % WIDTH, y = i / 3 / WIDTH;
        int wanted = (255 - value(x, y, i % 3)) * 64 / 255;
        assert_in_range(image.pixels[i] + 5, wanted, wanted + 10);
    }
    image_free(&image);
}

/* A marker behind the start: the length of what `to` holds then. */
static size_t with_exif(const uint8_t *bytes, size_t size, const uint8_t *body, size_t length, uint8_t *to) {
    memcpy(to, bytes, 2);
    to[2] = 0xff;
    to[3] = 0xe1;
    to[4] = (uint8_t)((length + 2) >> 8);
    to[5] = (uint8_t)(length + 2);
    memcpy(to + 6, body, length);
    memcpy(to + 6 + length, bytes + 2, size - 2);
    return size + length + 4;
}

static size_t exif_body(int orientation, bool big_endian, int entries_before, uint8_t body[200]) {
    size_t at = 0;
    memcpy(body, "Exif\0\0", 6);
    at = 6;
#define NUMBER(value, bytes)                                                                                           \
    for (int i_ = 0; i_ < (bytes); i_++)                                                                               \
    body[at++] = (uint8_t)((unsigned)(value) >> 8 * (big_endian ? (bytes)-1 - i_ : i_))
    body[at++] = big_endian ? 'M' : 'I';
    body[at++] = big_endian ? 'M' : 'I';
    NUMBER(42, 2);
    NUMBER(8, 4);
    NUMBER(entries_before + 1, 2);
    for (int e = 0; e <= entries_before; e++) {
        NUMBER(e < entries_before ? 0x100 + e : 0x112, 2);
        NUMBER(3, 2);
        NUMBER(1, 4);
        NUMBER(e < entries_before ? 7 : orientation, 2);
        NUMBER(0, 2);
    }
#undef NUMBER
    return at;
}

/* Where pixel (x, y) of the upright image is in the file, by the standard's words: the 0th row of the file is at ..., the
 * 0th column at ... */
static void stored_place(int orientation, size_t x, size_t y, size_t *column, size_t *row) {
    size_t right = (orientation < 5 ? WIDTH : HEIGHT) - 1 - x, bottom = (orientation < 5 ? HEIGHT : WIDTH) - 1 - y;
    switch (orientation) {
    case 1: *row = y, *column = x; break;           /* top, left */
    case 2: *row = y, *column = right; break;       /* top, right */
    case 3: *row = bottom, *column = right; break;  /* bottom, right */
    case 4: *row = bottom, *column = x; break;      /* bottom, left */
    case 5: *row = x, *column = y; break;           /* left, top */
    case 6: *row = right, *column = y; break;       /* right, top */
    case 7: *row = right, *column = bottom; break;  /* right, bottom */
    default: *row = x, *column = bottom; break;     /* left, bottom */
    }
}

static void expect_orientation(const uint8_t *bytes, size_t size, const image_pixels *plain, int orientation,
                               bool big_endian) {
    uint8_t body[200], *file = malloc(size + 300);
    char why[IMAGE_WHY];
    image_pixels image;
    assert_non_null(file);
    size_t length = exif_body(orientation, big_endian, orientation % 3, body);
    size_t whole = with_exif(bytes, size, body, length, file);
    int as = orientation >= 1 && orientation <= 8 ? orientation : 1;
    assert_int_equal(image_decode(file, whole, 0, &image, why), 0);
    assert_int_equal(image.width, as < 5 ? WIDTH : HEIGHT);
    assert_int_equal(image.height, as < 5 ? HEIGHT : WIDTH);
    for (size_t y = 0; y < image.height; y++)
        for (size_t x = 0; x < image.width; x++) {
            size_t column, row;
            stored_place(as, x, y, &column, &row);
            assert_memory_equal(image.pixels + (y * image.width + x) * 3, plain->pixels + (row * WIDTH + column) * 3, 3);
        }
    image_free(&image);
    free(file);
}

static void jpeg_orientations(void **state) {
    NEEDS_JPEG;
    size_t size;
    uint8_t *bytes = corpus_file("jpeg/good-rgb.jpg", &size);
    image_pixels plain = decode("jpeg/good-rgb.jpg", 0);
    (void)state;
    for (int orientation = 0; orientation <= 9; orientation++) {
        expect_orientation(bytes, size, &plain, orientation, false);
        expect_orientation(bytes, size, &plain, orientation, true);
    }
    image_free(&plain);
    free(bytes);
    image_pixels turned = decode("jpeg/good-oriented.jpg", 1);
    assert_int_equal(turned.width, HEIGHT);
    assert_int_equal(turned.height, WIDTH);
    image_free(&turned);
}

/* EXIF data that is cut off or lies about its places changes nothing. */
static void jpeg_wrong_exif(void **state) {
    NEEDS_JPEG;
    static const char *const names[] = {"jpeg/seed-exif-table.jpg", "jpeg/seed-exif-count.jpg", "jpeg/seed-exif-short.jpg"};
    size_t size;
    uint8_t body[200], *bytes = corpus_file("jpeg/good-rgb.jpg", &size), *file = malloc(size + 300);
    image_pixels plain = decode("jpeg/good-rgb.jpg", 0), image;
    char why[IMAGE_WHY];
    (void)state;
    assert_non_null(file);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        image = decode(names[i], 0);
        assert_int_equal(image.width, WIDTH);
        assert_memory_equal(image.pixels, plain.pixels, WIDTH * HEIGHT * 3);
        image_free(&image);
    }
    size_t length = exif_body(6, true, 2, body);
    for (size_t part = 0; part < length; part++) {
        size_t whole = with_exif(bytes, size, body, part, file);
        if (image_decode(file, whole, 0, &image, why) != 0)
            fail_msg("%zu bytes of EXIF data: %s", part, why);
        assert_int_equal(image.width, part + 2 < length ? WIDTH : image.width);
        image_free(&image);
    }
    image_free(&plain);
    free(file);
    free(bytes);
}

static void jpeg_refusals(void **state) {
    NEEDS_JPEG;
    static const struct {
        const char *name, *words;
    } files[] = {
        {"jpeg/hostile-empty.jpg", "empty"},          {"jpeg/hostile-start.jpg", ""},
        {"jpeg/hostile-no-end.jpg", "end of JPEG"},   {"jpeg/hostile-half.jpg", "premature end"},
        {"jpeg/hostile-restart.jpg", "marker"},       {"jpeg/hostile-scans.jpg", "more than 100 scans"},
        {"jpeg/hostile-huge.jpg", "65500 x 65500 pixels do not fit into"},
        {"jpeg/hostile-large.jpg", "do not fit"},     {"jpeg/hostile-large-progressive.jpg", "do not fit into"},
        {"jpeg/hostile-precision.jpg", "precision"},  {"jpeg/hostile-no-height.jpg", ""},
        {"jpeg/hostile-taller.jpg", ""},              {"jpeg/hostile-two-components.jpg", ""},
    };
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        expect_refused_file(files[i].name, files[i].words);
}

static void jpeg_cuts(void **state) {
    NEEDS_JPEG;
    (void)state;
    expect_all_cuts_refused("jpeg/good-rgb.jpg");
    expect_all_cuts_refused("jpeg/good-progressive.jpg");
    expect_all_cuts_refused("jpeg/good-cmyk.jpg");
    expect_all_cuts_refused("jpeg/good-oriented.jpg");
}

/* Nobody can tell whether pixels are what they were; but the memory is right, and a failure has a reason. */
static void jpeg_flips(void **state) {
    NEEDS_JPEG;
    static const char *const names[] = {"jpeg/good-rgb.jpg", "jpeg/good-progressive.jpg", "jpeg/good-oriented.jpg"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        size_t size;
        uint8_t *bytes = corpus_file(names[i], &size);
        for (size_t bit = i; bit < 8 * size; bit += 3) {
            char why[IMAGE_WHY] = "";
            image_pixels image;
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            if (image_decode(bytes, size, 1, &image, why) == 0)
                assert_true(image.width > 0 && image.height > 0 && image.channels == 1);
            else
                assert_true(image.pixels == NULL && why[0] != '\0');
            image_free(&image);
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        free(bytes);
    }
}

/* A thumbnail and the like push the header behind what is read to learn of the colours. */
static void jpeg_late_header(void **state) {
    NEEDS_JPEG;
    size_t size;
    uint8_t *bytes = corpus_file("jpeg/good-gray.jpg", &size), *body = calloc(1, 65000);
    uint8_t *half = malloc(size + 70000), *file = malloc(size + 140000);
    const char *path = scratch_path(*state, "late.jpg");
    image_pixels image;
    char why[IMAGE_WHY];
    assert_true(body != NULL && half != NULL && file != NULL);
    size_t once = with_exif(bytes, size, body, 65000, half);
    size_t twice = with_exif(half, once, body, 65000, file);
    scratch_write(path, file, twice);
    assert_int_equal(image_file_channels(path), 0);
    assert_int_equal(image_read(path, 0, &image, why), 0);
    assert_int_equal(image.channels, 1);
    image_free(&image);
    free(file);
    free(half);
    free(body);
    free(bytes);
}

/* ---- files --------------------------------------------------------------------------------- */

static void expect_unreadable(const char *path, const char *words) {
    image_pixels image = {.width = 5};
    char why[IMAGE_WHY] = "";
    assert_int_equal(image_read(path, 0, &image, why), -1);
    assert_null(image.pixels);
    if (strstr(why, words) == NULL)
        fail_msg("%s: the reason is \"%s\", without \"%s\"", path, why, words);
    assert_int_equal(image_file_channels(path), 0);
}

static void files(void **state) {
    const char *path = scratch_path(*state, "some.png");
    expect_unreadable(path, "No such file");
    expect_unreadable(CORPUS, "not a regular file");
    scratch_write(path, "", 0);
    expect_unreadable(path, "empty");
    scratch_write(path, "GIF89a", 6);
    expect_unreadable(path, "neither a JPEG nor a PNG file");
    scratch_write(path, "\x89PNG\r\n\x1a", 7);
    expect_unreadable(path, "neither a JPEG nor a PNG file");
    if (geteuid() != 0) {
        assert_int_equal(chmod(path, 0), 0);
        expect_unreadable(path, "ermission");
    }
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_unreadable(path, "not a regular file");
    expect_unreadable("/dev/zero", "not a regular file");
}

/* A kind that was not built in says so. */
static void missing_kinds(void **state) {
    (void)state;
#if !defined(HAVE_JPEG)
    expect_refused_file("jpeg/good-rgb.jpg", "built without");
#endif
#if !defined(HAVE_PNG)
    expect_refused_file("png/good-rgb-8.png", "built without");
#endif
#if defined(HAVE_JPEG) && defined(HAVE_PNG)
    assert_string_equal(image_kinds(), "JPEG and PNG");
#endif
}

static void names(void **state) {
    (void)state;
    assert_true(image_name("a.jpg") && image_name("a.JPEG") && image_name("a.b.Jpe") && image_name("x.PNG"));
    assert_false(image_name("jpg") || image_name(".jpg") || image_name("a.jpg.txt") || image_name("a.gif") || image_name(""));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(png_pixels),        cmocka_unit_test(png_refusals), cmocka_unit_test(png_cuts),
        cmocka_unit_test(png_flips),         cmocka_unit_test(png_texts),
        cmocka_unit_test(jpeg_pixels),       cmocka_unit_test(jpeg_inks),    cmocka_unit_test(jpeg_orientations),
        cmocka_unit_test(jpeg_wrong_exif),   cmocka_unit_test(jpeg_refusals), cmocka_unit_test(jpeg_cuts),
        cmocka_unit_test(jpeg_flips),
        cmocka_unit_test_setup_teardown(jpeg_late_header, scratch_begin, scratch_end),
        cmocka_unit_test_setup_teardown(files, scratch_begin, scratch_end),
        cmocka_unit_test(missing_kinds),     cmocka_unit_test(names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
