/* simdino show: attention, principal components of patch tokens, and similarities, as a picture beside the input. */
#include "show.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "network.h"
#include "output.h"
#include "program.h"
#include "progress.h"

#define MOST_IMAGES    64
#define MOST_PATCHES   20000
#define MOST_ATTENTION ((size_t)1 << 30) /* numbers, of one image */

typedef struct show_settings {
    network_options net;
    const char *paths[MOST_IMAGES];
    size_t path_count;
    const char *out;
    int32_t what, size, block, head, side;
    double share;
    double patch[2]; /* row and column */
    size_t patch_given;
    bool smooth, together;
} show_settings;

typedef struct show_run {
    const show_settings *settings;
    sd_context *context;
    network net;
    image_folder *files;
    sd_embedder *embedder;
    sd_embed_config config;
    show_image images[MOST_IMAGES];
    float *tokens; /* of the patches of all images */
    size_t token_count;
} show_run;

static int no_memory(void) {
    complain("out of memory");
    return EXIT_FAILED;
}

/* ---- one image ----------------------------------------------------------------------------- */

/* The part of an image that the network sees, enlarged or made smaller for the canvas. */
static int take_seen(const show_run *r, const sd_image *image, show_image *to) {
    size_t width, height, patch = (size_t)r->net.shape.patch_size;
    sd_status status = sd_image_prepare(image, (size_t)r->config.resize, 0, NULL, NULL, NULL, &width, &height);
    size_t seen_width = to->columns * patch, seen_height = to->rows * patch;
    size_t longer = seen_width > seen_height ? seen_width : seen_height;
    double zoom = (double)r->settings->side / (double)longer;
    size_t whole_width = (size_t)((double)width * zoom + 0.5), whole_height = (size_t)((double)height * zoom + 0.5);
    char why[IMAGE_WHY];
    uint8_t *whole = malloc(whole_width * whole_height * (size_t)image->channels);
    sd_filter filter = (double)image->width * 2 <= (double)whole_width ? SD_FILTER_NEAREST : SD_FILTER_BICUBIC;
    if (status == SD_OK && whole != NULL) {
        status = sd_image_resize(image, 0, 0, image->height, image->width, filter, whole_width, whole_height, whole);
    }
    if (status != SD_OK || whole == NULL) {
        free(whole);
        return status != SD_OK ? failed("cannot resize an image", status) : no_memory();
    }
    size_t left = (size_t)((double)((width - seen_width) / 2) * zoom + 0.5);
    size_t top = (size_t)((double)((height - seen_height) / 2) * zoom + 0.5);
    size_t wanted_width = (size_t)((double)seen_width * zoom + 0.5);
    size_t wanted_height = (size_t)((double)seen_height * zoom + 0.5);
    wanted_width = left + wanted_width <= whole_width ? wanted_width : whole_width - left;
    wanted_height = top + wanted_height <= whole_height ? wanted_height : whole_height - top;
    int result = EXIT_OK;
    if (image_allocate(&to->seen, wanted_width, wanted_height, image->channels, why) != 0) {
        complain("%s: %s", to->name, why);
        result = EXIT_FAILED;
    }
    for (size_t y = 0; result == EXIT_OK && y < wanted_height; y++) {
        size_t row = wanted_width * (size_t)image->channels;
        memcpy(to->seen.pixels + y * row, whole + ((top + y) * whole_width + left) * (size_t)image->channels, row);
    }
    free(whole);
    return result;
}

/* Patch tokens behind those of the images before, and attention of the class token. */
static int compute_image(show_run *r, const sd_image *image, show_image *to) {
    sd_status status = sd_embed_grid(r->embedder, image, &to->rows, &to->columns);
    if (status != SD_OK) {
        return failed(to->name, status);
    }
    size_t patches = to->rows * to->columns, dim = (size_t)r->net.shape.dim, heads = (size_t)r->net.shape.heads;
    size_t registers = (size_t)r->net.shape.registers, side = 1 + registers + patches;
    /* The attention of all tokens is as large as a network's largest activation, and needed only where it is drawn. */
    bool attends = r->settings->what != SHOW_PCA && !(r->settings->what == SHOW_SIMILARITY && r->settings->patch_given);
    if (patches > MOST_PATCHES || (attends && heads * side * side > MOST_ATTENTION)) {
        complain("%s: %zu patches: a smaller --size is needed", to->name, patches);
        return EXIT_FAILED;
    }
    float *all = attends ? malloc(heads * side * side * sizeof *all) : NULL;
    float *tokens = realloc(r->tokens, (r->token_count + patches) * dim * sizeof *tokens);
    r->tokens = tokens != NULL ? tokens : r->tokens;
    to->attention = attends ? malloc(heads * patches * sizeof *to->attention) : NULL;
    if (tokens == NULL || (attends && (all == NULL || to->attention == NULL))) {
        free(all);
        return no_memory();
    }
    sd_token_outputs outputs;
    sd_token_outputs_init(&outputs);
    outputs.patch_tokens = tokens + r->token_count * dim;
    outputs.attention = all;
    outputs.attention_block = r->settings->block;
    status = sd_embed_tokens(r->embedder, image, &outputs);
    if (status == SD_OK && attends) {
        status = sd_class_attention(all, heads, registers, patches, to->attention);
    }
    free(all);
    if (status != SD_OK) {
        return status == SD_ERR_CANCELLED ? EXIT_INTERRUPTED : failed(to->name, status);
    }
    r->token_count += patches;
    return take_seen(r, image, to);
}

/* The patch that gets most attention, the mean of all heads; or the one that was asked for. */
static int choose_patch(const show_run *r, show_image *image) {
    const show_settings *s = r->settings;
    size_t patches = image->rows * image->columns, heads = (size_t)r->net.shape.heads;
    if (s->patch_given > 0) {
        if (s->patch[0] >= (double)image->rows || s->patch[1] >= (double)image->columns) {
            complain("--patch %g,%g: %s has %zu rows and %zu columns of patches", s->patch[0], s->patch[1], image->name,
                     image->rows, image->columns);
            return EXIT_WRONG_USAGE;
        }
        image->patch = (size_t)s->patch[0] * image->columns + (size_t)s->patch[1];
        return EXIT_OK;
    }
    double best = -1;
    for (size_t i = 0; i < patches; i++) {
        double sum = 0;
        for (size_t h = 0; h < heads; h++) {
            sum += (double)image->attention[h * patches + i];
        }
        if (sum > best) {
            best = sum;
            image->patch = i;
        }
    }
    return EXIT_OK;
}

/* ---- all images ---------------------------------------------------------------------------- */

/* Colours of `count` images, whose tokens follow each other from `tokens` on. */
static int compute_colors(const show_run *r, show_image *images, size_t count, const float *tokens, bool foreground) {
    size_t n = 0, dim = (size_t)r->net.shape.dim;
    for (size_t i = 0; i < count; i++) {
        n += images[i].rows * images[i].columns;
    }
    double *colors = malloc(n * 3 * sizeof *colors);
    if (colors == NULL) {
        return no_memory();
    }
    sd_status status = sd_patch_colors(r->context, tokens, n, dim, dim, foreground, colors, NULL);
    if (status != SD_OK) {
        free(colors);
        return foreground && status == SD_ERR_ARGUMENT ? EXIT_OK : failed("cannot find the components", status);
    }
    const double *from = colors;
    int result = EXIT_OK;
    for (size_t i = 0; i < count && result == EXIT_OK; i++) {
        size_t values = images[i].rows * images[i].columns * 3;
        float *own = malloc(values * sizeof *own);
        for (size_t j = 0; own != NULL && j < values; j++) {
            own[j] = (float)*from++;
        }
        *(foreground ? &images[i].foreground_colors : &images[i].colors) = own;
        result = own != NULL ? EXIT_OK : no_memory();
    }
    free(colors);
    return result;
}

/* Each image has components of its own, or all have the same ones, so that what is alike is of one colour in all. */
static int compute_all_colors(show_run *r, size_t count) {
    size_t step = r->settings->together ? count : 1;
    const float *tokens = r->tokens;
    int result = EXIT_OK;
    for (size_t i = 0; result == EXIT_OK && i < count; i += step) {
        result = compute_colors(r, r->images + i, step, tokens, false);
        result = result == EXIT_OK ? compute_colors(r, r->images + i, step, tokens, true) : result;
        tokens += r->images[i].rows * r->images[i].columns * (size_t)r->net.shape.dim;
    }
    return result;
}

static int compute_similarities(show_run *r, size_t count) {
    const float *tokens = r->tokens;
    size_t dim = (size_t)r->net.shape.dim;
    for (size_t i = 0; i < count; i++) {
        show_image *image = &r->images[i];
        size_t patches = image->rows * image->columns;
        int result = choose_patch(r, image);
        image->similarity = malloc(patches * sizeof *image->similarity);
        if (result != EXIT_OK || image->similarity == NULL) {
            return result != EXIT_OK ? result : no_memory();
        }
        sd_status status = sd_patch_similarity(tokens, patches, dim, dim, image->patch, image->similarity);
        if (status != SD_OK) {
            return failed("cannot compare the patches", status);
        }
        tokens += patches * dim;
    }
    return EXIT_OK;
}

/* Reads and computes all images; those that cannot be read are left out, or stop the run. */
static int compute_images(show_run *r, size_t *count) {
    uint64_t files = image_folder_count(r->files);
    int32_t channels = r->net.shape.channels == 1 ? 1 : 3;
    uint64_t broken = 0;
    int result = EXIT_OK;
    if (files > MOST_IMAGES) {
        say("the first %d of %llu images are shown", MOST_IMAGES, (unsigned long long)files);
        files = MOST_IMAGES;
    }
    *count = 0;
    progress_begin("show", 0, files);
    for (uint64_t i = 0; result == EXIT_OK && i < files; i++) {
        show_image *image = &r->images[*count];
        image_pixels pixels;
        char why[IMAGE_WHY];
        const char *path = image_folder_path(r->files, i);
        *image = (show_image){.name = path};
        if (image_read(path, channels, &pixels, why) != 0) {
            bool stops = image_on_error == ON_ERROR_STOP;
            complain("%s%s: %s", stops ? "" : "left out: ", path, why);
            result = stops ? EXIT_FAILED : EXIT_OK;
            broken++;
            continue;
        }
        sd_image view = {.pixels = pixels.pixels, .width = pixels.width, .height = pixels.height,
                         .channels = pixels.channels, .pixel_type = SD_PIXEL_U8};
        result = compute_image(r, &view, image);
        (*count)++;
        image_free(&pixels);
        progress_update(i + 1, "");
    }
    progress_end();
    if (result == EXIT_OK && *count == 0) {
        complain("none of the images can be read");
        result = EXIT_FAILED;
    } else if (result == EXIT_OK && broken > 0) {
        say("%llu of %llu images could not be read and were left out", (unsigned long long)broken,
            (unsigned long long)files);
    }
    return result;
}

static int prepare(show_run *r) {
    const show_settings *s = r->settings;
    int result = network_open(r->context, &s->net, &r->net);
    if (result != EXIT_OK) {
        return result;
    }
    if (s->block >= r->net.shape.depth || s->head >= r->net.shape.heads) {
        complain("--%s: the network has %d blocks of %d heads, numbered from 0",
                 s->block >= r->net.shape.depth ? "block" : "head", r->net.shape.depth, r->net.shape.heads);
        return EXIT_WRONG_USAGE;
    }
    if (image_folder_from_list(s->paths, s->path_count, &r->files) != 0) {
        return EXIT_FAILED;
    }
    network_prepare(&r->net, &s->net, NULL, &r->config);
    r->config.resize = s->size > 0 ? s->size : r->net.shape.image_size;
    sd_status status = sd_embedder_create(r->context, r->net.model, &r->config, &r->embedder);
    return status == SD_OK ? EXIT_OK : failed("cannot prepare the network", status);
}

static int show(show_run *r) {
    const show_settings *s = r->settings;
    size_t count = 0;
    int result = prepare(r);
    show_settings chosen = *s;
    if (result == EXIT_OK && s->block < 0) {
        chosen.block = r->net.shape.depth - 1;
        r->settings = &chosen;
    }
    if (result == EXIT_OK) {
        result = compute_images(r, &count);
    }
    if (result == EXIT_OK && (s->what == SHOW_ALL || s->what == SHOW_PCA)) {
        result = compute_all_colors(r, count);
    }
    if (result == EXIT_OK && (s->what == SHOW_ALL || s->what == SHOW_SIMILARITY)) {
        result = compute_similarities(r, count);
    }
    if (result == EXIT_OK) {
        const show_sheet sheet = {
            .what = (show_kind)s->what,
            .images = r->images,
            .count = count,
            .heads = (size_t)r->net.shape.heads,
            .head = s->head,
            .block = chosen.block,
            .share = s->share,
            .smooth = s->smooth,
            .side = s->side,
        };
        result = show_write(&sheet, s->out) == 0 ? EXIT_OK : EXIT_FAILED;
    }
    if (result == EXIT_OK) {
        printf("saved %s\n", s->out);
    }
    r->settings = s;
    for (size_t i = 0; i < MOST_IMAGES; i++) {
        image_free(&r->images[i].seen);
        free(r->images[i].attention);
        free(r->images[i].colors);
        free(r->images[i].foreground_colors);
        free(r->images[i].similarity);
    }
    free(r->tokens);
    sd_embedder_destroy(r->embedder);
    image_folder_close(r->files);
    network_close(&r->net);
    return result;
}

/* ---- command ------------------------------------------------------------------------------- */

int command_show(int argc, char **argv) {
    static const char *const kinds[] = {"all", "attention", "pca", "similarity", NULL};
    static show_settings s = {.net = NETWORK_OPTIONS_DEFAULT, .block = -1, .head = -1, .side = 256};
    option options[] = {
        WEIGHTS_OPTION(s.net),
        {.kind = OPTION_TEXT, .name = "out", .letter = 'o', .value = "FILE.png", .target = &s.out, .help = "the picture"},
        {.kind = OPTION_CHOICE,
         .name = "what",
         .value = "NAME",
         .target = &s.what,
         .choices = kinds,
         .help = "attention: of the class token, each head; pca: three principal components of the patch tokens "
                 "as colours; similarity: of one patch to the others; all (default): one of each"},
        {.kind = OPTION_INT,
         .name = "size",
         .value = "N",
         .target = &s.size,
         .least = 1,
         .most = 8192,
         .help = "bring the shorter side of images to N pixels: more of them give finer maps (default: what the network "
                 "was made for)"},
        {.kind = OPTION_INT,
         .name = "block",
         .value = "N",
         .target = &s.block,
         .least = 0,
         .most = 1000,
         .help = "the block whose attention is shown, from 0 (default: the last)"},
        {.kind = OPTION_INT,
         .name = "head",
         .value = "N",
         .target = &s.head,
         .least = 0,
         .most = 1000,
         .help = "only this head, from 0"},
        {.kind = OPTION_REAL,
         .name = "threshold",
         .value = "X",
         .target = &s.share,
         .least = 0,
         .most = 1,
         .help = "show the image where the largest attentions are, which together make up this share (DINO: 0.6), "
                 "instead of the whole map"},
        {.kind = OPTION_REALS,
         .name = "patch",
         .value = "ROW,COLUMN",
         .target = s.patch,
         .least = 0,
         .most = 8192,
         .count = 2,
         .fewest = 2,
         .given_count = &s.patch_given,
         .help = "the patch that the others are compared with (default: the one with most attention)"},
        {.kind = OPTION_FLAG,
         .name = "together",
         .target = &s.together,
         .help = "all images have the same components, so that what is alike has one colour in all of them"},
        {.kind = OPTION_FLAG, .name = "smooth", .target = &s.smooth, .help = "let the colours of patches flow into each other"},
        {.kind = OPTION_INT,
         .name = "panel",
         .value = "N",
         .target = &s.side,
         .least = 32,
         .most = 2048,
         .help = "pixels of the longer side of each part of the picture (default: 256)"},
        ON_ERROR_OPTION,
        NETWORK_CHOICE_OPTIONS(s.net),
        MEAN_OPTIONS(s.net),
        THREADS_OPTION(s.net.threads),
    };
    option_set set = {
        .command = "show",
        .synopsis = "IMAGE... --weights FILE --out FILE.png [options]",
        .about = "Draws what the network sees in images (JPEG and PNG files, and folders of them), beside each of them.",
        .options = options,
        .count = sizeof options / sizeof options[0],
        .list = s.paths,
        .list_room = MOST_IMAGES,
        .list_count = &s.path_count,
    };
    options_outcome outcome = options_parse(&set, argc, argv);
    if (outcome != OPTIONS_GO) {
        return outcome == OPTIONS_HELP ? EXIT_OK : EXIT_WRONG_USAGE;
    }
    options_apply(&set);
    if (s.path_count == 0 || s.net.weights == NULL || s.out == NULL) {
        return options_wrong(&set, s.path_count == 0         ? "the images are missing"
                                   : s.net.weights == NULL ? "--weights is missing"
                                                           : "--out is missing");
    }
    if (s.net.student && s.net.teacher) {
        return options_wrong(&set, "--student and --teacher exclude each other");
    }
    if (output_probe(s.out) != 0) {
        return EXIT_FAILED;
    }
    catch_interrupts();
    static show_run r;
    r = (show_run){.settings = &s};
    r.context = open_context(s.net.threads);
    int result = r.context != NULL ? show(&r) : EXIT_FAILED;
    sd_context_destroy(r.context);
    return interrupted() ? EXIT_INTERRUPTED : result;
}
