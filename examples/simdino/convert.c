/* simdino convert: the weights of a network under other names, in another form of file. */
#include <stdio.h>
#include <string.h>

#include "options.h"
#include "output.h"
#include "program.h"

static const char *const names_words[] = {"native", "official", "timm", "huggingface", NULL}; /* sd_names */

static int convert(const char *from, const char *to, const sd_weights_options *options, int32_t names, bool with_heads) {
    sd_context *context = open_context(0);
    sd_model *model = NULL;
    sd_weights_report report = {.size = sizeof report};
    if (context == NULL) {
        return EXIT_FAILED;
    }
    int result = EXIT_OK;
    sd_status status = sd_model_load_weights(context, from, options, &model, &report);
    if (status == SD_OK && report.text[0] != '\0') {
        say("%s", report.text);
    }
    if (status != SD_OK) {
        result = failed("cannot read the weights", status);
    } else {
        status = sd_model_save_weights(model, to, (sd_names)names, with_heads);
        result = status == SD_OK ? EXIT_OK : failed("cannot write the weights", status);
    }
    if (result == EXIT_OK) {
        printf("wrote %s: %zu parameters under %s names%s\n", to, sd_model_parameter_count(model), names_words[names],
               with_heads ? ", heads included" : "");
    }
    sd_model_destroy(model);
    sd_context_destroy(context);
    return result;
}

int command_convert(int argc, char **argv) {
    const char *files[2] = {NULL}, *to = NULL; /* the file to read, and, where --out does not name it, the one to write */
    size_t file_count = 0;
    int32_t names = SD_NAMES_OFFICIAL;
    bool with_heads = false, student = false, lenient = false;
    sd_weights_options options;
    sd_weights_options_init(&options);
    option table[] = {
        {.kind = OPTION_TEXT, .name = "out", .letter = 'o', .value = "FILE", .target = &to,
         .help = "another way to name the file to write; its ending, .safetensors or .npz, chooses the form"},
        {.kind = OPTION_CHOICE, .name = "names", .value = "NAMES", .target = &names, .choices = names_words,
         .help = "official (default; DINO, DINOv2, SimDINO, SimDINOv2), timm, huggingface, or native"},
        {.kind = OPTION_FLAG, .name = "with-heads", .target = &with_heads,
         .help = "projection heads, too (native and official names)"},
        {.kind = OPTION_FLAG, .name = "student", .target = &student,
         .help = "of a file that holds both, the student (default: the teacher)"},
        {.kind = OPTION_INT, .name = "heads", .value = "N", .target = &options.heads, .least = 1, .most = 1e4,
         .help = "attention heads, which published files do not tell (default: dim / 64)"},
        {.kind = OPTION_FLAG, .name = "lenient", .target = &lenient,
         .help = "go on when tensors are missing, unexpected or of another shape, and tell which"},
    };
    option_set set = {
        .command = "convert",
        .synopsis = "FILE OUT [options]",
        .about = "Writes the weights of a network under other names: from our checkpoints, official files (.pth), timm's,\n"
                 "Hugging Face's (safetensors) or .npz, to safetensors or .npz that loads there.",
        .options = table,
        .count = sizeof table / sizeof table[0],
        .positional_name = "FILE",
        .list = files,
        .list_room = 2,
        .list_count = &file_count,
    };
    options_outcome outcome = options_parse(&set, argc, argv);
    if (outcome != OPTIONS_GO) {
        return outcome == OPTIONS_HELP ? EXIT_OK : EXIT_WRONG_USAGE;
    }
    options_apply(&set);
    if (to != NULL && file_count == 2) {
        return options_wrong(&set, "%s and --out %s: only one file is written", files[1], to);
    }
    const char *from = files[0];
    to = file_count == 2 ? files[1] : to;
    if (from == NULL || to == NULL) {
        return options_wrong(&set, "%s", from == NULL ? "which file?" : "which file is to be written?");
    }
    if (strcmp(from, to) == 0) {
        return options_wrong(&set, "--out %s is the file that is read", to);
    }
    options.student = student;
    options.strict = !lenient;
    options.backbone = !with_heads;
    return output_probe(to) == 0 ? convert(from, to, &options, names, with_heads) : EXIT_FAILED;
}
