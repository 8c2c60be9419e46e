/* Weights from a file into a model, and the report of what did not fit. */
#include "io/weights.h"
#include "model/model.h"

#include <stdio.h>
#include <string.h>

#define NAMES_SHOWN 8

SD_API void sd_weights_options_init(sd_weights_options *options) {
    if (options == NULL)
        return;
    *options = (sd_weights_options){.size = sizeof *options, .strict = 1};
}

static sd_status read_options(const sd_weights_options *source, sd_weights_options *options) {
    sd_weights_options_init(options);
    sd_status status = sd_config_read(options, sizeof *options, source, "sd_weights_options");
    if (status != SD_OK)
        return status;
    SD_REQUIRE(options->heads >= 0, SD_ERR_ARGUMENT, "heads is %d: it must be 0 or more", (int)options->heads);
    SD_REQUIRE((options->student | 1) == 1 && (options->strict | 1) == 1 && (options->backbone | 1) == 1,
               SD_ERR_ARGUMENT, "student is %d, strict %d, backbone %d: each must be 0 or 1", (int)options->student,
               (int)options->strict, (int)options->backbone);
    return SD_OK;
}

/* ---- where each tensor comes from --------------------------------------------------------------- */

/* One tensor of the model: whole, or query, key and value one after the other. */
typedef struct source {
    sd_weight *pieces[3];
    size_t count;
} source;

static bool has_shape(const sd_stored *tensor, const int64_t *shape, size_t dimensions) {
    bool same = tensor->dimensions == dimensions;
    for (size_t i = 0; same && i < dimensions; i++)
        same = tensor->shape[i] == (uint64_t)shape[i];
    return same;
}

static bool is_position(const sd_tensor_info *info) {
    return strcmp(info->name, "backbone.pos_embed") == 0;
}

typedef enum fit { FIT, FIT_MISSING, FIT_MISMATCHED } fit;

static fit find_source(const sd_weights *weights, const sd_tensor_info *info, source *from) {
    int64_t shape[4];
    size_t dimensions = (size_t)info->dimensions;
    memcpy(shape, info->shape, sizeof shape);
    from->count = 1;
    from->pieces[0] = sd_weights_find(weights, info->name, SD_WHOLE);
    if (!from->pieces[0] && sd_weights_find(weights, info->name, 0)) {
        from->count = 3;
        shape[0] /= 3;
    }
    if (is_position(info) && weights->no_class_position)
        shape[1]--;
    bool fits = true;
    for (size_t i = 0; i < from->count; i++) {
        if (from->count == 3)
            from->pieces[i] = sd_weights_find(weights, info->name, (int)i);
        if (!from->pieces[i])
            return FIT_MISSING;
        from->pieces[i]->used = true;
        fits = fits && has_shape(sd_weights_tensor(weights, from->pieces[i]), shape, dimensions);
    }
    return fits ? FIT : FIT_MISMATCHED;
}

static sd_status read_source(const sd_weights *weights, const sd_tensor_info *info, const source *from, float *values) {
    if (is_position(info) && weights->no_class_position) { /* the class token holds its position already */
        size_t dim = (size_t)info->shape[2];
        memset(values, 0, dim * sizeof *values);
        values += dim;
    }
    for (size_t i = 0; i < from->count; i++) {
        sd_status status = sd_tensor_file_read(weights->file, from->pieces[i]->index, values);
        if (status != SD_OK)
            return status;
        values += sd_weights_tensor(weights, from->pieces[i])->count;
    }
    return SD_OK;
}

/* ---- the report --------------------------------------------------------------------------------- */

/* A line of names, cut off when the text is full. */
typedef struct line {
    char *text;
    size_t room, length;
    int32_t count;
} line;

static void put_text(line *to, const char *text) {
    size_t length = strlen(text);
    if (to->length + length + 1 > to->room)
        return;
    memcpy(to->text + to->length, text, length + 1);
    to->length += length;
}

static void put_name(line *to, const char *kind, const char *name) {
    if (to->count++ == 0) {
        put_text(to, kind);
        put_text(to, ": ");
    } else if (to->count <= NAMES_SHOWN) {
        put_text(to, ", ");
    }
    if (to->count <= NAMES_SHOWN)
        put_text(to, name);
    else if (to->count == NAMES_SHOWN + 1)
        put_text(to, ", ...");
}

#define LINE_ROOM (SD_WEIGHTS_TEXT / 3 - 2)

typedef struct lines {
    char missing[LINE_ROOM], unexpected[LINE_ROOM], mismatched[LINE_ROOM];
    line a, b, c;
} lines;

/* Fits are counted, the others named. */
static void compare(const sd_weights *weights, const sd_model *model, sd_weights_report *report, lines *l) {
    *l = (lines){0};
    l->a = (line){.text = l->missing, .room = LINE_ROOM};
    l->b = (line){.text = l->unexpected, .room = LINE_ROOM};
    l->c = (line){.text = l->mismatched, .room = LINE_ROOM};
    for (size_t i = 0; i < sd_model_tensor_count(model); i++) {
        const sd_tensor_info *info = sd_model_tensor(model, i);
        source from;
        switch (find_source(weights, info, &from)) {
        case FIT: report->loaded++; break;
        case FIT_MISSING: put_name(&l->a, "missing", info->name); break;
        case FIT_MISMATCHED: put_name(&l->c, "of another shape", info->name); break;
        }
    }
    for (size_t i = 0; i < weights->count; i++)
        if (!weights->list[i].used)
            put_name(&l->b, "unexpected", weights->file->tensors[weights->list[i].index].name);
    report->missing = l->a.count;
    report->unexpected = l->b.count;
    report->mismatched = l->c.count;
    const char *texts[3] = {l->missing, l->unexpected, l->mismatched};
    line all = {.text = report->text, .room = SD_WEIGHTS_TEXT};
    for (int i = 0; i < 3; i++)
        if (texts[i][0]) {
            put_text(&all, all.length > 0 ? "\n" : "");
            put_text(&all, texts[i]);
        }
}

static void give_report(const sd_weights_report *found, sd_weights_report *report) {
    if (!report)
        return;
    size_t size = report->size;
    memcpy(report, found, sd_size_min(size, sizeof *found));
    report->size = size;
}

/* ---- reading ------------------------------------------------------------------------------------ */

static sd_status fill(const sd_weights *weights, sd_model *model, const sd_weights_options *options, bool is_new,
                      sd_weights_report *report) {
    sd_weights_report found = {
        .size = sizeof found, .format = weights->file->form, .names = weights->names, .student = weights->student};
    lines l;
    compare(weights, model, &found, &l);
    give_report(&found, report);
    bool clean = found.missing + found.unexpected + found.mismatched == 0;
    SD_REQUIRE(clean || options->strict == 0, SD_ERR_MISMATCH,
               "%s: %d tensors missing, %d unexpected, %d of another shape: %.250s%s%.250s%s%.250s", weights->path,
               (int)found.missing, (int)found.unexpected, (int)found.mismatched, l.missing, l.missing[0] ? "; " : "",
               l.unexpected, l.unexpected[0] ? "; " : "", l.mismatched);
    if (is_new && found.missing + found.mismatched > 0)
        sd_model_initialize(model, 0);
    for (size_t i = 0; i < sd_model_tensor_count(model); i++) {
        const sd_tensor_info *info = sd_model_tensor(model, i);
        source from;
        if (find_source(weights, info, &from) != FIT)
            continue;
        sd_status status = read_source(weights, info, &from, sd_model_parameters(model) + info->offset);
        if (status != SD_OK)
            return status;
    }
    return SD_OK;
}

static sd_status check_report(const sd_weights_report *report) {
    SD_REQUIRE(!report || report->size >= sizeof report->size, SD_ERR_ARGUMENT,
               "report->size is %zu: set it to sizeof(sd_weights_report)", report ? report->size : 0);
    return SD_OK;
}

SD_API sd_status sd_weights_config(sd_context *context, const char *path, const sd_weights_options *source_options,
                                   sd_model_config *config) {
    SD_REQUIRE(config, SD_ERR_ARGUMENT, "config is NULL");
    size_t size = config->size;
    SD_REQUIRE(size >= sizeof size, SD_ERR_ARGUMENT, "config->size is %zu: set it to sizeof(sd_model_config)", size);
    sd_weights_options options;
    sd_weights weights = {.context = context};
    sd_model_config found;
    sd_status status;
    SD_TRY(read_options(source_options, &options));
    SD_TRY(sd_weights_open(context, path, &options, &weights));
    SD_TRY(sd_weights_infer(&weights, &options, &found));
    memcpy(config, &found, sd_size_min(size, sizeof found));
    config->size = size;
cleanup:
    sd_weights_close(&weights);
    return status;
}

SD_API sd_status sd_model_load_weights(sd_context *context, const char *path, const sd_weights_options *source_options,
                                       sd_model **out, sd_weights_report *report) {
    SD_REQUIRE(out, SD_ERR_ARGUMENT, "model is NULL");
    sd_weights_options options;
    sd_weights weights = {.context = context};
    sd_model_config config;
    sd_model *model = NULL;
    sd_status status;
    SD_TRY(check_report(report));
    SD_TRY(read_options(source_options, &options));
    SD_TRY(sd_weights_open(context, path, &options, &weights));
    SD_TRY(sd_weights_infer(&weights, &options, &config));
    SD_TRY(sd_model_create(context, &config, &model));
    SD_TRY(fill(&weights, model, &options, true, report));
    *out = model;
    model = NULL;
cleanup:
    sd_model_destroy(model);
    sd_weights_close(&weights);
    return status;
}

SD_API sd_status sd_model_read_weights(sd_model *model, const char *path, const sd_weights_options *source_options,
                                       sd_weights_report *report) {
    SD_REQUIRE(model, SD_ERR_ARGUMENT, "model is NULL");
    sd_weights_options options;
    sd_weights weights = {0};
    sd_status status;
    SD_TRY(check_report(report));
    SD_TRY(read_options(source_options, &options));
    SD_TRY(sd_weights_open(model->context, path, &options, &weights));
    status = fill(&weights, model, &options, false, report);
cleanup:
    sd_weights_close(&weights);
    return status;
}
