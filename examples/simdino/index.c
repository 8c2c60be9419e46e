/* simdino index: its parts, and the export of rows for other programs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "index_parts.h"
#include "options.h"
#include "program.h"
#include "progress.h"

bool index_ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), wanted = strlen(ending);
    return length >= wanted && strcmp(text + length - wanted, ending) == 0;
}

int index_no_memory(void) {
    complain("out of memory");
    return EXIT_FAILED;
}

int index_load(sd_context *context, const char *path, sd_index **index) {
    progress_begin("load", 0, 1);
    sd_status status = sd_index_load(context, path, index);
    progress_end();
    return status == SD_OK ? EXIT_OK : failed("cannot load the index", status);
}

/* Floats of a .npy file; doubles are rounded. */
int index_read_rows(const char *path, npy_matrix *matrix) {
    if (npy_read(path, matrix) != 0) {
        return EXIT_FAILED;
    }
    if (matrix->floats == NULL) {
        matrix->floats = malloc(matrix->rows * matrix->columns * sizeof(float));
        if (matrix->floats == NULL) {
            return index_no_memory();
        }
        for (size_t i = 0; i < matrix->rows * matrix->columns; i++) {
            matrix->floats[i] = (float)matrix->doubles[i];
        }
    }
    return EXIT_OK;
}

/* ---- export -------------------------------------------------------------------------------- */

static int index_export(int argc, char **argv) {
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
    int result = context != NULL ? index_load(context, path, &index) : EXIT_FAILED;
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
    } parts[] = {{"build", index_build}, {"query", index_query}, {"export", index_export}};
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
