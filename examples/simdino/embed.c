/* simdino embed: features of a data set, into a NumPy file or a table. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "network.h"
#include "npy.h"
#include "options.h"
#include "output.h"
#include "program.h"

typedef struct embed_settings {
    network_options net;
    const char *data, *out;
    bool normalize;
    int32_t split;
    uint64_t limit;
} embed_settings;

static bool ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), wanted = strlen(ending);
    return length >= wanted && strcmp(text + length - wanted, ending) == 0;
}

/* ---- files --------------------------------------------------------------------------------- */

/* Texts as an array of NumPy's type |S: all of the longest one's length, the rest zeros. NULL when memory is short. */
static char *text_array(const char *(*text_of)(const void *from, uint64_t i), const void *from, uint64_t count,
                        size_t *length) {
    *length = 1;
    for (uint64_t i = 0; i < count; i++) {
        size_t own = strlen(text_of(from, i));
        *length = own > *length ? own : *length;
    }
    char *texts = calloc((size_t)count, *length);
    for (uint64_t i = 0; texts != NULL && i < count; i++) {
        const char *text = text_of(from, i);
        memcpy(texts + i * *length, text, strlen(text));
    }
    return texts;
}

typedef struct named_rows {
    const features *rows;
    const image_folder *folder;
    const char *const *classes;
} named_rows;

static const char *file_of(const void *from, uint64_t i) {
    const named_rows *named = from;
    return image_folder_name(named->folder, named->rows->images[i]);
}

static const char *class_of(const void *from, uint64_t i) {
    return ((const named_rows *)from)->classes[i];
}

/* Arrays "embeddings", "labels", and of image files "files" and "classes" (bytes in UTF-8). */
static int write_numpy(const char *path, const named_rows *named, int32_t classes) {
    const features *rows = named->rows;
    npy_array arrays[4] = {{"embeddings", "<f4", sizeof(float), (size_t)rows->count, rows->dim, rows->rows}};
    size_t count = 1;
    char *files = NULL, *class_names = NULL, file_type[32], class_type[32];
    if (rows->labels != NULL) {
        arrays[count++] = (npy_array){"labels", "<i4", sizeof(int32_t), (size_t)rows->count, 0, rows->labels};
    }
    if (named->folder != NULL) {
        size_t length = 0;
        files = text_array(file_of, named, rows->count, &length);
        snprintf(file_type, sizeof file_type, "|S%zu", length);
        arrays[count++] = (npy_array){"files", file_type, length, (size_t)rows->count, 0, files};
        if (named->classes != NULL) {
            class_names = text_array(class_of, named, (uint64_t)classes, &length);
            snprintf(class_type, sizeof class_type, "|S%zu", length);
            arrays[count++] = (npy_array){"classes", class_type, length, (size_t)classes, 0, class_names};
        }
        if (files == NULL || (named->classes != NULL && class_names == NULL)) {
            complain("out of memory");
            free(files);
            free(class_names);
            return -1;
        }
    }
    int result = npy_write(path, arrays, count);
    free(files);
    free(class_names);
    return result;
}

/* A field of a table: in quotes where it must be, quotes doubled (RFC 4180). */
static void write_field(output *file, const char *text) {
    if (strpbrk(text, ",\"\r\n") == NULL) {
        output_write(file, text, strlen(text));
        return;
    }
    output_write(file, "\"", 1);
    for (; *text != '\0'; text++) {
        output_write(file, *text == '"' ? "\"\"" : text, *text == '"' ? 2 : 1);
    }
    output_write(file, "\"", 1);
}

/* A line for each image: its file or number, its label where there are labels, its numbers. */
static int write_table(const char *path, const named_rows *named) {
    const features *rows = named->rows;
    output *file = output_open(path);
    char text[64];
    if (file == NULL) {
        return -1;
    }
    output_write(file, "image", 5);
    if (rows->labels != NULL) {
        output_write(file, ",label", 6);
    }
    for (size_t j = 0; j < rows->dim; j++) {
        output_write(file, text, (size_t)snprintf(text, sizeof text, ",f%zu", j));
    }
    output_write(file, "\n", 1);
    for (uint64_t i = 0; i < rows->count; i++) {
        snprintf(text, sizeof text, "%llu", (unsigned long long)rows->images[i]);
        write_field(file, named->folder != NULL ? file_of(named, i) : text);
        if (rows->labels != NULL && named->classes != NULL) {
            output_write(file, ",", 1);
            write_field(file, named->classes[rows->labels[i]]);
        } else if (rows->labels != NULL) {
            output_write(file, text, (size_t)snprintf(text, sizeof text, ",%d", rows->labels[i]));
        }
        for (size_t j = 0; j < rows->dim; j++) {
            output_write(file, text,
                         (size_t)snprintf(text, sizeof text, ",%.9g", (double)rows->rows[i * rows->dim + j]));
        }
        output_write(file, "\n", 1);
    }
    return output_close(file);
}

/* ---- command ------------------------------------------------------------------------------- */

static int embed(const embed_settings *s, sd_context *context) {
    network net = {0};
    source data = {0};
    features rows = {0};
    int result = network_open(context, &s->net, &net);
    if (result != EXIT_OK) {
        return result;
    }
    result = EXIT_FAILED;
    if (source_open(context, s->data, NULL, &data) != 0) {
        goto cleanup;
    }
    source_set_channels(&data, net.shape.channels);
    const sd_dataset *images = s->split == 0 ? data.train : data.test;
    if (images == NULL) {
        complain("%s brings no test images", s->data);
        goto cleanup;
    }
    if (network_features(context, &net, &s->net, images, s->limit, "embed", &rows) != 0) {
        goto cleanup;
    }
    if (rows.count == 0) {
        complain("%s: none of the images can be read", s->data);
        goto cleanup;
    }
    if (s->normalize) {
        sd_status status = sd_normalize_rows(rows.rows, (size_t)rows.count, rows.dim, rows.dim, NULL);
        if (status != SD_OK) {
            failed("cannot normalise", status);
            goto cleanup;
        }
    }
    const named_rows named = {&rows, image_folder_of(images), data.class_names};
    bool table = ends_with(s->out, ".csv");
    int32_t classes = source_classes(data.train), test_classes = data.test != NULL ? source_classes(data.test) : 0;
    if ((table ? write_table(s->out, &named)
               : write_numpy(s->out, &named, classes > test_classes ? classes : test_classes)) == 0) {
        printf("saved %s: %llu rows of %zu numbers%s\n", s->out, (unsigned long long)rows.count, rows.dim,
               rows.labels != NULL && !ends_with(s->out, ".npy") ? ", and their labels" : "");
        result = EXIT_OK;
    }

cleanup:
    features_free(&rows);
    source_close(&data);
    network_close(&net);
    return result;
}

int command_embed(int argc, char **argv) {
    static const char *const splits[] = {"train", "test", NULL};
    const char *folder = NULL;
    embed_settings s = {.net = NETWORK_OPTIONS_DEFAULT};
    option options[] = {
        WEIGHTS_OPTION(s.net),
        {.kind = OPTION_TEXT, .name = "data", .value = "PATH", .target = &s.data, .help = SOURCE_PATH_HELP},
        {.kind = OPTION_CHOICE,
         .name = "split",
         .value = "NAME",
         .target = &s.split,
         .choices = splits,
         .help = "train (default) or test images"},
        {.kind = OPTION_TEXT,
         .name = "out",
         .letter = 'o',
         .value = "FILE",
         .target = &s.out,
         .help = "FILE.npz (arrays \"embeddings\", \"labels\", \"files\", \"classes\"), FILE.npy (embeddings only) or "
                 "FILE.csv"},
        ON_ERROR_OPTION,
        NETWORK_CHOICE_OPTIONS(s.net),
        HEAD_OPTION(s.net),
        FEATURES_OPTIONS(s.net),
        PREPARE_OPTIONS(s.net),
        {.kind = OPTION_FLAG, .name = "normalize", .target = &s.normalize, .help = "divide each row by its length"},
        {.kind = OPTION_COUNT,
         .name = "limit",
         .value = "N",
         .target = &s.limit,
         .least = 0,
         .most = 1e15,
         .help = "only the first N images (default: 0, all)"},
        THREADS_OPTION(s.net.threads),
    };
    option_set set = {
        .command = "embed",
        .synopsis = "PATH --weights FILE --out FILE [options]",
        .about = "Computes the features of images with a trained network and saves them. PATH is another way to say\n"
                 "--data PATH.",
        .options = options,
        .count = sizeof options / sizeof options[0],
        .positional_name = "path",
        .positional = &folder,
    };
    options_outcome outcome = options_parse(&set, argc, argv);
    if (outcome != OPTIONS_GO) {
        return outcome == OPTIONS_HELP ? EXIT_OK : EXIT_WRONG_USAGE;
    }
    options_apply(&set);
    if (s.data != NULL && folder != NULL) {
        return options_wrong(&set, "\"%s\" and --data exclude each other", folder);
    }
    s.data = folder != NULL ? folder : s.data;
    if (s.net.weights == NULL || s.data == NULL || s.out == NULL) {
        return options_wrong(&set, "--%s is missing",
                             s.net.weights == NULL ? "weights" : s.data == NULL ? "data" : "out");
    }
    if (s.net.student && s.net.teacher) {
        return options_wrong(&set, "--student and --teacher exclude each other");
    }
    if (!ends_with(s.out, ".npz") && !ends_with(s.out, ".npy") && !ends_with(s.out, ".csv")) {
        return options_wrong(&set, "--out %s: the name must end in .npz, .npy or .csv", s.out);
    }
    if (output_probe(s.out) != 0) {
        return EXIT_FAILED;
    }
    catch_interrupts();
    sd_context *context = open_context(s.net.threads);
    int result = context != NULL ? embed(&s, context) : EXIT_FAILED;
    sd_context_destroy(context);
    return interrupted() ? EXIT_INTERRUPTED : result;
}
