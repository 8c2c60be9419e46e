/* simdino index query: the nearest images of an index, as a list and as a contact sheet. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "index_list.h"
#include "index_parts.h"
#include "index_sheet.h"
#include "options.h"
#include "program.h"
#include "progress.h"

#define SHEET_ROWS    24
#define SHEET_COLUMNS 24

typedef struct query_settings {
    const char *paths[INDEX_MOST_PATHS]; /* the index, then images */
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

/* The queries as rows of numbers. */
static int read_queries(query_run *r) {
    const query_settings *s = r->settings;
    if (s->path_count == 2 && index_ends_with(s->paths[1], ".npy")) {
        npy_matrix matrix = {0};
        int result = index_read_rows(s->paths[1], &matrix);
        if (result == EXIT_OK) {
            r->rows = (features){.rows = matrix.floats, .count = matrix.rows, .dim = matrix.columns};
            matrix.floats = NULL;
            r->rows.images = malloc(matrix.rows * sizeof *r->rows.images);
            result = r->rows.images != NULL ? EXIT_OK : index_no_memory();
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
    int result = index_load(r->context, s->paths[0], &r->index);
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
        return index_no_memory();
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

int index_query(int argc, char **argv) {
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
        .list_room = INDEX_MOST_PATHS,
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
