/* simdino index build: an index of images or of rows of numbers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "index_list.h"
#include "index_parts.h"
#include "options.h"
#include "output.h"
#include "program.h"
#include "progress.h"

#define CHUNK ((uint64_t)256) /* images embedded before their rows go into the index */

static int save_index(const sd_index *index, const char *path) {
    progress_begin("save", 0, sd_index_count(index));
    sd_status status = sd_index_save(index, path);
    progress_end();
    return status == SD_OK ? EXIT_OK : failed("cannot save the index", status);
}

/* A disk that is full leaves an older index together with its own list. */
static int save_both(const sd_index *index, const index_list *list, const char *path) {
    output *text = index_list_write(list, path);
    if (text == NULL) {
        return EXIT_FAILED;
    }
    int result = save_index(index, path);
    if (result != EXIT_OK) {
        output_discard(text);
        return result;
    }
    return output_close(text) == 0 ? EXIT_OK : EXIT_FAILED;
}

typedef struct build_settings {
    network_options net;
    const char *data, *out;
    int32_t metric, split;
    uint64_t limit;
} build_settings;

/* The label of an image in words; "" without labels. */
static const char *label_of(const source *data, const sd_dataset *images, uint64_t number, char text[16]) {
    const int32_t *labels = sd_dataset_labels(images);
    if (labels == NULL) {
        return "";
    }
    if (data->class_names != NULL) {
        return data->class_names[labels[number]];
    }
    snprintf(text, 16, "%d", labels[number]);
    return text;
}

/* Rows of images first .. first+count-1 into the index, without those that could not be read. */
static int add_chunk(sd_embedder *embedder, const source *data, const sd_dataset *images, uint64_t first,
                     uint64_t count, sd_index *index, index_list *list, float *rows, int64_t *ids) {
    size_t dim = sd_embedder_dim(embedder), kept = 0;
    const image_folder *folder = image_folder_of(images);
    sd_status status = sd_embed_dataset(embedder, images, first, count, rows, dim);
    if (status != SD_OK) {
        if (status != SD_ERR_CANCELLED) {
            images_failed(images, "cannot embed the images", status);
        }
        return status == SD_ERR_CANCELLED ? EXIT_INTERRUPTED : EXIT_FAILED;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint64_t number = first + i;
        char text[16];
        if (folder != NULL && image_folder_broken(folder, number)) {
            continue;
        }
        memmove(rows + kept * dim, rows + i * dim, dim * sizeof *rows);
        ids[kept++] = (int64_t)number;
        if (index_list_add(list, (int64_t)number, label_of(data, images, number, text),
                           folder != NULL ? image_folder_path(folder, number) : "") != 0) {
            return EXIT_FAILED;
        }
    }
    status = sd_index_add(index, ids, rows, kept, dim);
    return status == SD_OK ? EXIT_OK : failed("cannot add to the index", status);
}

static int add_images(const build_settings *s, sd_context *context, const network *net, const source *data,
                      const sd_dataset *images, sd_index **index, index_list *list) {
    sd_embed_config config;
    sd_embedder *embedder = NULL;
    network_prepare(net, &s->net, images, &config);
    list->net.resize = config.resize;
    list->net.crop = config.crop;
    list->net.features = config.kind;
    list->net.blocks = config.blocks;
    sd_status status = sd_embedder_create(context, net->model, &config, &embedder);
    if (status != SD_OK) {
        return failed("cannot prepare the network", status);
    }
    size_t dim = sd_embedder_dim(embedder);
    uint64_t count = sd_dataset_count(images);
    count = s->limit > 0 && s->limit < count ? s->limit : count;
    float *rows = malloc((size_t)CHUNK * dim * sizeof *rows);
    int64_t *ids = malloc((size_t)CHUNK * sizeof *ids);
    int result = rows != NULL && ids != NULL ? EXIT_OK : index_no_memory();
    if (result == EXIT_OK) {
        status = sd_index_create(context, dim, (sd_metric)s->metric, index);
        result = status == SD_OK ? EXIT_OK : failed("cannot make the index", status);
    }
    progress_begin("index images", 0, count);
    for (uint64_t done = 0; result == EXIT_OK && done < count;) {
        uint64_t part = count - done < CHUNK ? count - done : CHUNK;
        result = add_chunk(embedder, data, images, done, part, *index, list, rows, ids);
        done += part;
        progress_update(done, "");
    }
    progress_end();
    if (result == EXIT_OK && sd_index_count(*index) == 0) {
        complain("%s: none of the images can be read", s->data);
        result = EXIT_FAILED;
    }
    free(rows);
    free(ids);
    sd_embedder_destroy(embedder);
    return result;
}

static int build_from_images(const build_settings *s, sd_context *context, sd_index **index, index_list *list) {
    network net = {0};
    source data = {0};
    list->net = s->net;
    list->net.weights = list->weights;
    int result = network_open(context, &s->net, &net);
    if (result != EXIT_OK) {
        return result;
    }
    result = EXIT_FAILED;
    if (source_open(context, s->data, NULL, &data) == 0) {
        source_set_channels(&data, net.shape.channels);
        const sd_dataset *images = s->split == 0 ? data.train : data.test;
        if (images == NULL) {
            complain("%s brings no test images", s->data);
        } else {
            result = add_images(s, context, &net, &data, images, index, list);
        }
    }
    source_close(&data);
    network_close(&net);
    return result;
}

static int build_from_rows(const build_settings *s, sd_context *context, sd_index **index) {
    npy_matrix rows = {0};
    int result = index_read_rows(s->data, &rows);
    if (result == EXIT_OK) {
        sd_status status = sd_index_create(context, rows.columns, (sd_metric)s->metric, index);
        if (status == SD_OK) {
            size_t count = s->limit > 0 && s->limit < rows.rows ? (size_t)s->limit : rows.rows;
            status = sd_index_add(*index, NULL, rows.floats, count, rows.columns);
        }
        result = status == SD_OK ? EXIT_OK : failed(s->data, status);
    }
    npy_free(&rows);
    return result;
}

static int build(const build_settings *s, sd_context *context) {
    sd_index *index = NULL;
    index_list list = {.split = s->split};
    list.data = index_list_path(s->data);
    list.weights = s->net.weights != NULL ? index_list_path(s->net.weights) : NULL;
    bool enough = list.data != NULL && (list.weights != NULL || s->net.weights == NULL);
    int result = enough ? EXIT_OK : index_no_memory();
    if (result == EXIT_OK) {
        result = index_ends_with(s->data, ".npy") ? build_from_rows(s, context, &index)
                                            : build_from_images(s, context, &index, &list);
    }
    if (result == EXIT_OK) {
        result = save_both(index, &list, s->out);
    }
    if (result == EXIT_OK) {
        printf("saved %s: %llu rows of %zu numbers, compared by %s\n", s->out,
               (unsigned long long)sd_index_count(index), sd_index_dim(index), sd_metric_name(s->metric));
    }
    sd_index_destroy(index);
    index_list_free(&list);
    return result;
}

int index_build(int argc, char **argv) {
    static const char *const splits[] = {"train", "test", NULL};
    static const char *const metrics[] = {"cosine", "inner-product", "l2", NULL};
    build_settings s = {.net = NETWORK_OPTIONS_DEFAULT};
    option options[] = {
        WEIGHTS_OPTION(s.net),
        {.kind = OPTION_TEXT,
         .name = "out",
         .letter = 'o',
         .value = "FILE",
         .target = &s.out,
         .help = "the index; FILE.list beside it tells which row is of which image"},
        {.kind = OPTION_CHOICE,
         .name = "metric",
         .value = "NAME",
         .target = &s.metric,
         .choices = metrics,
         .help = "cosine (default), inner-product, or l2 (squared distance)"},
        {.kind = OPTION_CHOICE,
         .name = "split",
         .value = "NAME",
         .target = &s.split,
         .choices = splits,
         .help = "train (default) or test images"},
        {.kind = OPTION_COUNT,
         .name = "limit",
         .value = "N",
         .target = &s.limit,
         .least = 0,
         .most = 1e15,
         .help = "only the first N images or rows (default: 0, all)"},
        ON_ERROR_OPTION,
        NETWORK_CHOICE_OPTIONS(s.net),
        HEAD_OPTION(s.net),
        FEATURES_OPTIONS(s.net),
        PREPARE_OPTIONS(s.net),
        THREADS_OPTION(s.net.threads),
    };
    option_set set = {
        .command = "index build",
        .synopsis = "PATH --weights FILE --out FILE [options]\n       simdino index build FILE.npy --out FILE",
        .about = "Makes an index for exact search: of the images in PATH (" SOURCE_PATH_HELP
                 "),\nby their features, or of the rows of a .npy file.",
        .options = options,
        .count = sizeof options / sizeof options[0],
        .positional_name = "path",
        .positional = &s.data,
    };
    options_outcome outcome = options_parse(&set, argc, argv);
    if (outcome != OPTIONS_GO) {
        return outcome == OPTIONS_HELP ? EXIT_OK : EXIT_WRONG_USAGE;
    }
    options_apply(&set);
    if (s.data == NULL || s.out == NULL) {
        return options_wrong(&set, s.data == NULL ? "the images are missing: which folder?" : "--out is missing");
    }
    if (s.net.weights == NULL && !index_ends_with(s.data, ".npy")) {
        return options_wrong(&set, "--weights is missing");
    }
    if (s.net.student && s.net.teacher) {
        return options_wrong(&set, "--student and --teacher exclude each other");
    }
    if (output_probe(s.out) != 0) {
        return EXIT_FAILED;
    }
    catch_interrupts();
    sd_context *context = open_context(s.net.threads);
    int result = context != NULL ? build(&s, context) : EXIT_FAILED;
    sd_context_destroy(context);
    return interrupted() ? EXIT_INTERRUPTED : result;
}
