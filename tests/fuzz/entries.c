#define _GNU_SOURCE /* memfd_create */
#include "entries.h"

#include "io/checksum.h"
#include <simdino/simdino.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(FUZZ_IMAGES)
#include "image_file.h"
#endif

/* What the library may take for a file of so many bytes: deflate unpacks to 1032 times as much at most. */
#define MEMORY_FIXED    ((size_t)64 << 20)
#define MEMORY_PER_BYTE ((size_t)1200)
#define TENSOR_MAX      ((uint64_t)1 << 20) /* elements; larger ones are not read */
#define PREFIX          64

/* ---- a file, and memory that is counted -------------------------------------------------------- */

static char path[512];
static int descriptor = -1;

static void remove_file(void) {
    unlink(path);
}

const char *fuzz_path(void) {
    return path;
}

/* In memory where the system can do that: a disk would make a thousand runs take minutes. */
static void create_file(void) {
#ifdef MFD_CLOEXEC
    descriptor = memfd_create("simdino-fuzz", MFD_CLOEXEC);
    if (descriptor >= 0) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
        return;
    }
#endif
    const char *folder = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/simdino-fuzz-XXXXXX", folder && *folder ? folder : "/tmp");
    descriptor = mkstemp(path);
    if (descriptor < 0)
        abort();
    atexit(remove_file);
}

static void write_file(const uint8_t *data, size_t size) {
    if (descriptor < 0)
        create_file();
    if (ftruncate(descriptor, 0) != 0)
        abort();
    for (size_t done = 0; done < size;) {
        ssize_t put = pwrite(descriptor, data + done, size - done, (off_t)done);
        if (put <= 0)
            abort();
        done += (size_t)put;
    }
}

typedef struct meter {
    size_t live, peak, most;
    bool strict; /* to ask for more than `most` is a finding; else it only fails */
} meter;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *meter_allocate(void *opaque, size_t bytes) {
    meter *m = opaque;
    pthread_mutex_lock(&lock);
    bool fits = bytes <= m->most && m->live <= m->most - bytes;
    if (fits) {
        m->live += bytes;
        m->peak = m->live > m->peak ? m->live : m->peak;
    }
    pthread_mutex_unlock(&lock);
    if (!fits && m->strict) {
        fprintf(stderr, "the library asks for %zu bytes on top of %zu\n", bytes, m->live);
        abort();
    }
    char *block = fits ? malloc(bytes + PREFIX) : NULL;
    if (!block)
        return NULL;
    memcpy(block, &bytes, sizeof bytes);
    return block + PREFIX;
}

static void meter_release(void *opaque, void *address) {
    meter *m = opaque;
    char *block = (char *)address - PREFIX;
    size_t bytes;
    memcpy(&bytes, block, sizeof bytes);
    pthread_mutex_lock(&lock);
    m->live -= bytes;
    pthread_mutex_unlock(&lock);
    free(block);
}

static sd_context *begin(meter *m, size_t size, bool strict) {
    sd_context *context = NULL;
    sd_context_config config;
    sd_context_config_init(&config);
    config.threads = 1;
    config.allocate = meter_allocate;
    config.release = meter_release;
    config.memory_opaque = m;
    *m = (meter){.most = MEMORY_FIXED + MEMORY_PER_BYTE * size, .strict = strict};
    if (sd_context_create(&config, &context) != SD_OK)
        abort();
    return context;
}

/* Nothing may be left, and who fails must say why. */
static void end(sd_context *context, const meter *m) {
    sd_context_destroy(context);
    if (m->live != 0) {
        fprintf(stderr, "%zu bytes are left\n", m->live);
        abort();
    }
}

static void check_message(sd_status status) {
    if (status != SD_OK && sd_last_error()[0] == '\0')
        abort();
}

/* ---- tensors and weights ------------------------------------------------------------------------ */

static void read_tensors(const sd_tensor_file *file) {
    for (size_t i = 0; i < sd_tensor_file_count(file); i++) {
        sd_stored_tensor info = {.size = sizeof info};
        if (sd_tensor_file_info(file, i, &info) != SD_OK || !info.name ||
            sd_tensor_file_find(file, info.name) >= sd_tensor_file_count(file))
            abort();
        if (info.count > TENSOR_MAX)
            continue;
        float *values = malloc((size_t)info.count * sizeof *values + 1);
        check_message(sd_tensor_file_read(file, i, values));
        free(values);
    }
}

static fuzz_result run_tensors(const uint8_t *data, size_t size) {
    meter m;
    write_file(data, size);
    sd_context *context = begin(&m, size, true);
    sd_tensor_file *file = NULL;
    sd_status status = sd_tensor_file_open(context, path, &file);
    fuzz_result result = {status, m.peak};
    check_message(status);
    if ((status == SD_OK) != (file != NULL))
        abort();
    if (file)
        read_tensors(file);
    sd_tensor_file_close(file);
    if (status == SD_OK) {
        sd_weights_options options;
        sd_weights_report report = {.size = sizeof report};
        sd_model *model = NULL;
        sd_weights_options_init(&options);
        options.strict = 0;
        status = sd_model_load_weights(context, path, &options, &model, &report);
        check_message(status);
        if ((status == SD_OK) != (model != NULL))
            abort();
        sd_model_destroy(model);
    }
    end(context, &m);
    return result;
}

/* ---- our own checkpoints ------------------------------------------------------------------------- */

static void set_digits(uint8_t *text, size_t size, const char *key, uint32_t crc) {
    size_t length = strlen(key);
    for (size_t i = 0; i + length + SD_CRC_DIGITS <= size; i++)
        if (memcmp(text + i, key, length) == 0) {
            sd_crc32_print(crc, (char *)text + i + length);
            return;
        }
}

/* Right checksums, so that changed bytes get past them. */
static void repair(uint8_t *data, size_t size) {
    static const char header_key[] = "\"crc32_header\":\"", data_key[] = "\"crc32_data\":\"";
    uint64_t header = 0;
    if (size < 8)
        return;
    for (int i = 7; i >= 0; i--)
        header = header << 8 | data[i];
    if (header > size - 8)
        return;
    size_t prefix = 8 + (size_t)header;
    set_digits(data, prefix, data_key, sd_crc32(0, data + prefix, size - prefix));
    set_digits(data, prefix, header_key, 0);
    set_digits(data, prefix, header_key, sd_crc32(0, data, prefix));
}

static fuzz_result run_checkpoint(const uint8_t *data, size_t size) {
    meter m;
    uint8_t *copy = malloc(size + 1);
    memcpy(copy, data, size);
    repair(copy, size);
    write_file(copy, size);
    free(copy);
    sd_context *context = begin(&m, size, true);
    sd_pretrainer_config config;
    uint64_t steps;
    sd_pretrainer_config_init(&config);
    sd_status status = sd_checkpoint_info(context, path, &config, &steps);
    fuzz_result result = {status, m.peak};
    check_message(status);
    for (int32_t teacher = 0; teacher < 2; teacher++) {
        sd_model *model = NULL;
        status = sd_model_load(context, path, teacher, &model);
        check_message(status);
        sd_model_destroy(model);
        sd_weights_options options;
        sd_weights_options_init(&options);
        options.student = !teacher;
        model = NULL;
        check_message(sd_model_load_weights(context, path, &options, &model, NULL));
        sd_model_destroy(model);
    }
    end(context, &m);
    if (result.status == SD_OK) { /* its settings may ask for any memory: that of a training is not the file's */
        sd_pretrainer *trainer = NULL;
        context = begin(&m, size, false);
        check_message(sd_pretrainer_resume(context, path, &trainer));
        sd_pretrainer_destroy(trainer);
        end(context, &m);
    }
    return result;
}

/* ---- datasets ------------------------------------------------------------------------------------- */

static void read_images(sd_dataset *dataset) {
    for (uint64_t i = 0; dataset && i < sd_dataset_count(dataset) && i < 16; i++) {
        sd_image image;
        void *token;
        if (sd_dataset_acquire(dataset, i, &image, &token) != SD_OK)
            abort();
        volatile uint8_t first = *(const uint8_t *)image.pixels;
        (void)first;
        sd_dataset_release(dataset, i, token);
    }
    sd_dataset_destroy(dataset);
}

static fuzz_result run_idx(const uint8_t *data, size_t size) {
    meter m;
    write_file(data, size);
    sd_context *context = begin(&m, size, true);
    sd_dataset *dataset = NULL;
    sd_status status = sd_dataset_open_idx(context, path, NULL, &dataset);
    fuzz_result result = {status, m.peak};
    check_message(status);
    read_images(dataset);
    dataset = NULL;
    check_message(sd_dataset_open_idx(context, path, path, &dataset)); /* as labels */
    read_images(dataset);
    end(context, &m);
    return result;
}

static fuzz_result run_cifar(const uint8_t *data, size_t size) {
    meter m;
    write_file(data, size);
    sd_context *context = begin(&m, size, true);
    sd_dataset *dataset = NULL;
    const char *paths[1] = {path};
    sd_status status = sd_dataset_open_cifar10(context, paths, 1, &dataset);
    fuzz_result result = {status, m.peak};
    check_message(status);
    read_images(dataset);
    end(context, &m);
    return result;
}

/* ---- image files ---------------------------------------------------------------------------------- */

#if defined(FUZZ_IMAGES)
/* What is decoded twice must be the same, and of all forms of one image. */
static void check_forms(const uint8_t *data, size_t size, const image_pixels *image, char why[IMAGE_WHY]) {
    image_pixels again, other;
    size_t count = image->width * image->height;
    if (count == 0 || count > IMAGE_MOST_PIXELS || (image->channels != 1 && image->channels != 3))
        abort();
    if (image_read(path, 0, &again, why) != 0 || again.width != image->width || again.height != image->height ||
        memcmp(again.pixels, image->pixels, count * (size_t)image->channels) != 0)
        abort();
    image_free(&again);
    if (image_decode(data, size, image->channels == 1 ? 3 : 1, &other, why) != 0 || other.width != image->width ||
        other.height != image->height || other.channels == image->channels)
        abort();
    image_free(&other);
}

static fuzz_result run_image(const uint8_t *data, size_t size) {
    fuzz_result result = {SD_OK, 0};
    image_pixels image;
    char why[IMAGE_WHY] = "";
    write_file(data, size);
    image_file_channels(path);
    if (image_decode(data, size, 0, &image, why) == 0) {
        check_forms(data, size, &image, why);
    } else {
        result.status = SD_ERR_FORMAT;
        if (image.pixels || why[0] == '\0' || !memchr(why, '\0', IMAGE_WHY))
            abort();
    }
    image_free(&image);
    return result;
}
#endif

/* ---- all ------------------------------------------------------------------------------------------ */

const fuzz_entry fuzz_entries[] = {
    {"safetensors", run_tensors, false},
    {"pth", run_tensors, false},
    {"pth_legacy", run_tensors, false},
    {"npz", run_tensors, false},
    {"npy", run_tensors, false},
    {"idx", run_idx, false},
    {"cifar", run_cifar, false},
    {"checkpoint", run_checkpoint, false},
#if defined(FUZZ_IMAGES) && defined(HAVE_JPEG)
    {"jpeg", run_image, true},
#endif
#if defined(FUZZ_IMAGES) && defined(HAVE_PNG)
    {"png", run_image, true},
#endif
};
const size_t fuzz_entry_count = sizeof fuzz_entries / sizeof fuzz_entries[0];

const fuzz_entry *fuzz_find(const char *format) {
    for (size_t i = 0; i < fuzz_entry_count; i++)
        if (strcmp(fuzz_entries[i].format, format) == 0)
            return &fuzz_entries[i];
    return NULL;
}
