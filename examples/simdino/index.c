/* simdino index: build an index of images or of numbers, query it, write its rows for other programs. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "index_list.h"
#include "index_sheet.h"
#include "npy.h"
#include "output.h"
#include "program.h"
#include "progress.h"

#define CHUNK      ((uint64_t)256) /* images embedded before their rows go into the index */
#define MOST_PATHS 4096
#define SHEET_ROWS 24
#define SHEET_COLUMNS 24

static bool ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), wanted = strlen(ending);
    return length >= wanted && strcmp(text + length - wanted, ending) == 0;
}

static int no_memory(void) {
    complain("out of memory");
    return EXIT_FAILED;
}

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

/* ---- build --------------------------------------------------------------------------------- */

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
    int result = rows != NULL && ids != NULL ? EXIT_OK : no_memory();
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

/* Floats of a .npy file; doubles are rounded. */
static int read_rows(const char *path, npy_matrix *matrix) {
    if (npy_read(path, matrix) != 0) {
        return EXIT_FAILED;
    }
    if (matrix->floats == NULL) {
        matrix->floats = malloc(matrix->rows * matrix->columns * sizeof(float));
        if (matrix->floats == NULL) {
            return no_memory();
        }
        for (size_t i = 0; i < matrix->rows * matrix->columns; i++) {
            matrix->floats[i] = (float)matrix->doubles[i];
        }
    }
    return EXIT_OK;
}

static int build_from_rows(const build_settings *s, sd_context *context, sd_index **index) {
    npy_matrix rows = {0};
    int result = read_rows(s->data, &rows);
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
    int result = enough ? EXIT_OK : no_memory();
    if (result == EXIT_OK) {
        result = ends_with(s->data, ".npy") ? build_from_rows(s, context, &index)
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

static int command_build(int argc, char **argv) {
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
    if (s.net.weights == NULL && !ends_with(s.data, ".npy")) {
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

/* ---- query --------------------------------------------------------------------------------- */

typedef struct query_settings {
    const char *paths[MOST_PATHS]; /* the index, then images */
    size_t path_count;
    network_options net;
    const char *sheet;
    int32_t k;
} query_settings;

typedef struct query_run {
    const query_settings *settings;
    sd_context *context;
    sd_index *index;
    index_list list;
    network net;
    image_folder *files; /* the queries; NULL when they are numbers */
    sd_dataset *images;
    features rows;
    size_t k;
    int64_t *ids;
    float *scores;
} query_run;

static int load_index(sd_context *context, const char *path, sd_index **index) {
    progress_begin("load", 0, 1);
    sd_status status = sd_index_load(context, path, index);
    progress_end();
    return status == SD_OK ? EXIT_OK : failed("cannot load the index", status);
}

/* The queries as rows of numbers. */
static int read_queries(query_run *r) {
    const query_settings *s = r->settings;
    if (s->path_count == 2 && ends_with(s->paths[1], ".npy")) {
        npy_matrix matrix = {0};
        int result = read_rows(s->paths[1], &matrix);
        if (result == EXIT_OK) {
            r->rows = (features){.rows = matrix.floats, .count = matrix.rows, .dim = matrix.columns};
            matrix.floats = NULL;
            r->rows.images = malloc(matrix.rows * sizeof *r->rows.images);
            result = r->rows.images != NULL ? EXIT_OK : no_memory();
            for (uint64_t i = 0; result == EXIT_OK && i < r->rows.count; i++) {
                r->rows.images[i] = i;
            }
        }
        npy_free(&matrix);
        return result;
    }
    network_options how = r->list.net;
    how.weights = s->net.weights != NULL ? s->net.weights : how.weights;
    if (how.weights == NULL) {
        complain("%s was made of numbers: ask it with a .npy file, or name the network with --weights", s->paths[0]);
        return EXIT_FAILED;
    }
    int result = network_open(r->context, &how, &r->net);
    if (result != EXIT_OK) {
        return result;
    }
    if (image_folder_from_list(s->paths + 1, s->path_count - 1, &r->files) != 0) {
        return EXIT_FAILED;
    }
    if (r->net.shape.channels == 1 || r->net.shape.channels == 3) {
        image_folder_set_channels(r->files, r->net.shape.channels);
    }
    r->images = image_folder_dataset(r->context, r->files);
    if (r->images == NULL ||
        network_features(r->context, &r->net, &how, r->images, 0, "embed queries", &r->rows) != 0) {
        return EXIT_FAILED;
    }
    if (r->rows.count == 0) {
        complain("none of the images can be read");
        return EXIT_FAILED;
    }
    return EXIT_OK;
}

static void print_found(const query_run *r) {
    for (uint64_t q = 0; q < r->rows.count; q++) {
        if (r->files != NULL) {
            printf("%s\n", image_folder_path(r->files, r->rows.images[q]));
        } else {
            printf("row %llu\n", (unsigned long long)q);
        }
        for (size_t i = 0; i < r->k; i++) {
            int64_t id = r->ids[q * r->k + i];
            if (id < 0) {
                break;
            }
            const index_entry *entry = index_list_find(&r->list, id);
            printf("  %4zu  %12.6g  %8lld", i + 1, (double)r->scores[q * r->k + i], (long long)id);
            if (entry != NULL && entry->label[0] != '\0') {
                printf("  %s", entry->label);
            }
            if (entry != NULL && entry->name[0] != '\0') {
                printf("  %s", entry->name);
            }
            printf("\n");
        }
    }
}

static int draw_sheet(const query_run *r) {
    source data = {0};
    const sd_dataset *images = NULL;
    if (r->files == NULL) {
        complain("--contact-sheet needs images as queries");
        return EXIT_FAILED;
    }
    if (r->list.count > 0 && r->list.entries[0].name[0] == '\0') { /* not image files: the data set has the pixels */
        if (source_open(r->context, r->list.data, NULL, &data) != 0) {
            return EXIT_FAILED;
        }
        images = r->list.split == 0 ? data.train : data.test;
    }
    char title[160];
    snprintf(title, sizeof title, "Nearest of %llu images by %s", (unsigned long long)sd_index_count(r->index),
             sd_metric_name((int32_t)sd_index_metric(r->index)));
    if (r->rows.count > SHEET_ROWS) {
        say("the contact sheet shows the first %d of %llu queries", SHEET_ROWS, (unsigned long long)r->rows.count);
    }
    if (r->k > SHEET_COLUMNS) {
        say("the contact sheet shows the %d nearest of %zu", SHEET_COLUMNS, r->k);
    }
    const index_sheet sheet = {
        .title = title,
        .queries = r->images,
        .query_files = r->files,
        .numbers = r->rows.images,
        .rows = r->rows.count < SHEET_ROWS ? (size_t)r->rows.count : SHEET_ROWS,
        .columns = r->k < SHEET_COLUMNS ? r->k : SHEET_COLUMNS,
        .found = r->k,
        .ids = r->ids,
        .scores = r->scores,
        .list = &r->list,
        .images = images,
    };
    int result = index_sheet_write(&sheet, r->settings->sheet) == 0 ? EXIT_OK : EXIT_FAILED;
    if (result == EXIT_OK) {
        printf("saved %s\n", r->settings->sheet);
    }
    source_close(&data);
    return result;
}

static int query(query_run *r) {
    const query_settings *s = r->settings;
    int result = load_index(r->context, s->paths[0], &r->index);
    if (result == EXIT_OK && index_list_read(s->paths[0], &r->list) < 0) {
        result = EXIT_FAILED;
    }
    if (result == EXIT_OK && r->list.count > 0 && r->list.count != sd_index_count(r->index)) {
        complain("%s has %llu rows, and %s.list tells of %zu images: they are not of one making", s->paths[0],
                 (unsigned long long)sd_index_count(r->index), s->paths[0], r->list.count);
        result = EXIT_FAILED;
    }
    if (result == EXIT_OK) {
        result = read_queries(r);
    }
    if (result != EXIT_OK) {
        return result;
    }
    if (r->rows.dim != sd_index_dim(r->index)) {
        complain("the queries have %zu numbers, the rows of %s have %zu: was it made with another network?",
                 r->rows.dim, s->paths[0], sd_index_dim(r->index));
        return EXIT_FAILED;
    }
    uint64_t count = sd_index_count(r->index);
    r->k = (uint64_t)s->k < count ? (size_t)s->k : (size_t)count;
    r->ids = malloc((size_t)r->rows.count * (r->k + 1) * sizeof *r->ids);
    r->scores = malloc((size_t)r->rows.count * (r->k + 1) * sizeof *r->scores);
    if (r->ids == NULL || r->scores == NULL) {
        return no_memory();
    }
    if (r->k > 0) {
        progress_begin("search", 0, r->rows.count);
        sd_status status = sd_index_query(r->index, r->rows.rows, (size_t)r->rows.count, r->rows.dim, r->k, r->ids,
                                          r->scores);
        progress_end();
        if (status != SD_OK) {
            return status == SD_ERR_CANCELLED ? EXIT_INTERRUPTED : failed("cannot search", status);
        }
    }
    print_found(r);
    return s->sheet != NULL ? draw_sheet(r) : EXIT_OK;
}

static int command_query(int argc, char **argv) {
    static query_settings s = {.net = NETWORK_OPTIONS_DEFAULT, .k = 10};
    option options[] = {
        {.kind = OPTION_INT,
         .name = "k",
         .letter = 'k',
         .value = "N",
         .target = &s.k,
         .least = 1,
         .most = 1e6,
         .help = "how many of the nearest to find (default: 10)"},
        {.kind = OPTION_TEXT,
         .name = "contact-sheet",
         .value = "FILE.png",
         .target = &s.sheet,
         .help = "a picture of the queries and what was found"},
        {.kind = OPTION_TEXT,
         .name = "weights",
         .letter = 'w',
         .value = "FILE",
         .target = &s.net.weights,
         .help = "the network (default: the one that the index was made with)"},
        ON_ERROR_OPTION,
        THREADS_OPTION(s.net.threads),
    };
    option_set set = {
        .command = "index query",
        .synopsis = "INDEX IMAGE... [options]\n       simdino index query INDEX FILE.npy [options]",
        .about = "Finds the nearest images of an index for each IMAGE (files and folders of them), prepared as the\n"
                 "images of the index were; or the nearest rows for each row of a .npy file.",
        .options = options,
        .count = sizeof options / sizeof options[0],
        .list = s.paths,
        .list_room = MOST_PATHS,
        .list_count = &s.path_count,
    };
    options_outcome outcome = options_parse(&set, argc, argv);
    if (outcome != OPTIONS_GO) {
        return outcome == OPTIONS_HELP ? EXIT_OK : EXIT_WRONG_USAGE;
    }
    options_apply(&set);
    if (s.path_count < 2) {
        return options_wrong(&set, s.path_count == 0 ? "the index is missing" : "the images to ask about are missing");
    }
    if (s.sheet != NULL && output_probe(s.sheet) != 0) {
        return EXIT_FAILED;
    }
    catch_interrupts();
    query_run r = {.settings = &s};
    r.context = open_context(s.net.threads);
    int result = r.context != NULL ? query(&r) : EXIT_FAILED;
    free(r.ids);
    free(r.scores);
    features_free(&r.rows);
    sd_dataset_destroy(r.images);
    image_folder_close(r.files);
    network_close(&r.net);
    index_list_free(&r.list);
    sd_index_destroy(r.index);
    sd_context_destroy(r.context);
    return interrupted() ? EXIT_INTERRUPTED : result;
}

/* ---- export -------------------------------------------------------------------------------- */

static int command_export(int argc, char **argv) {
    const char *path = NULL, *out = NULL, *ids = NULL;
    option options[] = {
        {.kind = OPTION_TEXT,
         .name = "out",
         .letter = 'o',
         .value = "FILE",
         .target = &out,
         .help = "FILE.npy (for NumPy) or FILE.fvecs (for FAISS)"},
        {.kind = OPTION_TEXT,
         .name = "ids",
         .value = "FILE.npy",
         .target = &ids,
         .help = "the ids of the rows, too"},
    };
    option_set set = {
        .command = "index export",
        .synopsis = "INDEX --out FILE [--ids FILE.npy]",
        .about = "Writes the rows of an index, by rising id, for other programs.",
        .options = options,
        .count = sizeof options / sizeof options[0],
        .positional_name = "index",
        .positional = &path,
    };
    options_outcome outcome = options_parse(&set, argc, argv);
    if (outcome != OPTIONS_GO) {
        return outcome == OPTIONS_HELP ? EXIT_OK : EXIT_WRONG_USAGE;
    }
    options_apply(&set);
    if (path == NULL || out == NULL) {
        return options_wrong(&set, path == NULL ? "the index is missing" : "--out is missing");
    }
    catch_interrupts();
    sd_context *context = open_context(0);
    sd_index *index = NULL;
    int result = context != NULL ? load_index(context, path, &index) : EXIT_FAILED;
    if (result == EXIT_OK) {
        progress_begin("export", 0, sd_index_count(index));
        sd_status status = sd_index_export(index, out, ids);
        progress_end();
        result = status == SD_OK ? EXIT_OK : failed("cannot export", status);
    }
    if (result == EXIT_OK) {
        printf("saved %s: %llu rows of %zu numbers\n", out, (unsigned long long)sd_index_count(index),
               sd_index_dim(index));
    }
    sd_index_destroy(index);
    sd_context_destroy(context);
    return interrupted() ? EXIT_INTERRUPTED : result;
}

/* ---- command ------------------------------------------------------------------------------- */

int command_index(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } parts[] = {{"build", command_build}, {"query", command_query}, {"export", command_export}};
    const char *name = argc > 1 ? argv[1] : NULL;
    for (size_t i = 0; name != NULL && i < sizeof parts / sizeof parts[0]; i++) {
        if (strcmp(name, parts[i].name) == 0) {
            return parts[i].run(argc - 1, argv + 1);
        }
    }
    bool help = name != NULL && (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0);
    if (!help && name != NULL) {
        complain("there is no \"index %s\"", name);
    }
    fputs("Usage: simdino index build PATH --weights FILE --out INDEX\n"
          "       simdino index query INDEX IMAGE...\n"
          "       simdino index export INDEX --out FILE\n\n"
          "Exact search among images by their features.\n  --help        after build, query or export: their options\n",
          help ? stdout : stderr);
    return help ? EXIT_OK : EXIT_WRONG_USAGE;
}
