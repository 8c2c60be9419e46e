/* simdino embed: features of a data set, into a NumPy file. */
#include <stdio.h>
#include <string.h>

#include "feature_rows.h"
#include "npy.h"
#include "options.h"
#include "output.h"
#include "program.h"
#include "sources.h"

typedef struct embed_settings {
    const char *weights, *data, *out;
    int32_t features; /* sd_embed_kind */
    bool student, teacher, head, normalize;
    int32_t split;
    uint64_t limit;
    int32_t threads;
} embed_settings;

static int embed(const embed_settings *s, sd_context *context) {
    sd_pretrainer_config trained = {.size = sizeof trained};
    sd_status status = sd_checkpoint_info(context, s->weights, &trained, NULL);
    sd_model *model = NULL;
    if (status == SD_OK) {
        status = sd_model_load(context, s->weights, s->student ? 0 : 1, &model);
    }
    if (status != SD_OK) {
        return failed("cannot load the network", status);
    }
    source data = {0};
    features rows = {0};
    int result = EXIT_FAILED;
    if (source_open(context, s->data, NULL, &data) != 0) {
        goto cleanup;
    }
    const sd_dataset *images = s->split == 0 ? data.train : data.test;
    if (images == NULL) {
        complain("%s brings no test images", s->data);
        goto cleanup;
    }
    sd_embed_kind kind = s->head ? SD_EMBED_HEAD : (sd_embed_kind)s->features;
    if (features_of_model(context, model, &trained, images, s->limit, kind, "embed", &rows) != 0) {
        goto cleanup;
    }
    if (s->normalize) {
        status = sd_normalize_rows(rows.rows, (size_t)rows.count, rows.dim, rows.dim, NULL);
        if (status != SD_OK) {
            failed("cannot normalise", status);
            goto cleanup;
        }
    }
    if (npy_write(s->out, rows.rows, (size_t)rows.count, rows.dim, sd_dataset_labels(images)) == 0) {
        printf("saved %s: %llu rows of %zu numbers%s\n", s->out, (unsigned long long)rows.count, rows.dim,
               sd_dataset_labels(images) != NULL && strstr(s->out, ".npz") != NULL ? ", and their labels" : "");
        result = EXIT_OK;
    }

cleanup:
    features_free(&rows);
    source_close(&data);
    sd_model_destroy(model);
    return result;
}

int command_embed(int argc, char **argv) {
    static const char *const splits[] = {"train", "test", NULL};
    embed_settings s = {0};
    option options[] = {
        {.kind = OPTION_TEXT,
         .name = "weights",
         .letter = 'w',
         .value = "FILE",
         .target = &s.weights,
         .help = "the checkpoint of simdino pretrain"},
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
         .help = "FILE.npz (arrays \"embeddings\" and \"labels\") or FILE.npy (embeddings only)"},
        {.kind = OPTION_FLAG, .name = "teacher", .target = &s.teacher, .help = "use the teacher network (default)"},
        {.kind = OPTION_FLAG, .name = "student", .target = &s.student, .help = "use the student network"},
        {.kind = OPTION_CHOICE,
         .name = "features",
         .value = "WHICH",
         .target = &s.features,
         .choices = feature_words,
         .help = FEATURES_HELP},
        {.kind = OPTION_FLAG,
         .name = "head",
         .target = &s.head,
         .help = "the same as --features head: what the loss sees"},
        {.kind = OPTION_FLAG, .name = "normalize", .target = &s.normalize, .help = "divide each row by its length"},
        {.kind = OPTION_COUNT,
         .name = "limit",
         .value = "N",
         .target = &s.limit,
         .least = 0,
         .most = 1e15,
         .help = "only the first N images (default: 0, all)"},
        {.kind = OPTION_INT,
         .name = "threads",
         .value = "N",
         .target = &s.threads,
         .least = 0,
         .most = 4096,
         .help = "threads to compute with (default: 0, all)"},
    };
    option_set set = {
        .command = "embed",
        .synopsis = "--weights FILE --data PATH --out FILE [options]",
        .about = "Computes the features of images with a trained network and saves them for NumPy.",
        .options = options,
        .count = sizeof options / sizeof options[0],
    };
    options_outcome outcome = options_parse(&set, argc, argv);
    if (outcome != OPTIONS_GO) {
        return outcome == OPTIONS_HELP ? EXIT_OK : EXIT_WRONG_USAGE;
    }
    options_apply(&set);
    if (s.weights == NULL || s.data == NULL || s.out == NULL) {
        return options_wrong(&set, "--%s is missing", s.weights == NULL ? "weights" : s.data == NULL ? "data" : "out");
    }
    if (s.student && s.teacher) {
        return options_wrong(&set, "--student and --teacher exclude each other");
    }
    size_t length = strlen(s.out);
    if (length < 4 || (strcmp(s.out + length - 4, ".npz") != 0 && strcmp(s.out + length - 4, ".npy") != 0)) {
        return options_wrong(&set, "--out %s: the name must end in .npz or .npy", s.out);
    }
    if (output_probe(s.out) != 0) {
        return EXIT_FAILED;
    }
    catch_interrupts();
    sd_context *context = open_context(s.threads);
    int result = context != NULL ? embed(&s, context) : EXIT_FAILED;
    sd_context_destroy(context);
    return interrupted() ? EXIT_INTERRUPTED : result;
}
