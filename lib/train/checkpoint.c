/* Checkpoints: one safetensors file with everything that training needs to go on.
 *
 *   metadata  format, format_version, library, steps, optimizer.steps, all settings of the configuration, the checksums
 *   tensors   student.NAME, teacher.NAME, optimizer.STATE.NAME for every tensor NAME of the model; objective.NAME for
 *             what a method's losses keep between steps (centers)
 *
 * Compatibility: format_version rises when an older library could not read a file rightly. Within one version the
 * settings may grow: a setting added later is written only where it differs from its default, so that older libraries
 * read the rest. A setting that this library does not know makes it refuse the file (SD_ERR_VERSION): to train on
 * without it would be another training.
 */
#include "io/json.h"
#include "io/safetensors.h"
#include "model/model.h"
#include "train/config_text.h"
#include "train/pretrainer.h"

#include <stdio.h>
#include <string.h>

#define FORMAT "simdino-checkpoint"
#define FORMAT_VERSION "1"

/* Metadata that is no setting. */
enum { FIXED_KEYS = 5 };
static const char *const fixed_keys[FIXED_KEYS] = {"format", "format_version", "library", "steps", "optimizer.steps"};

/* ---- writing ------------------------------------------------------------------------------- */

/* Everything that the writer is given, and the texts in it. */
typedef struct checkpoint_content {
    sd_tensor_source *tensors;
    size_t tensor_count;
    char *names;
    size_t names_used;
    sd_metadata *metadata;
    size_t metadata_count;
    char *values; /* SD_SETTING_MAX bytes each */
} checkpoint_content;

static void add_metadata(checkpoint_content *content, const char *key, const char *value) {
    char *copy = content->values + content->metadata_count * SD_SETTING_MAX;
    if (copy != value)
        snprintf(copy, SD_SETTING_MAX, "%s", value);
    content->metadata[content->metadata_count++] = (sd_metadata){key, copy};
}

static void add_number(checkpoint_content *content, const char *key, uint64_t number) {
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    add_metadata(content, key, text);
}

static sd_status collect_metadata(const sd_pretrainer *trainer, checkpoint_content *content) {
    sd_context *context = sd_pretrainer_context(trainer);
    size_t count = FIXED_KEYS + sd_setting_count();
    content->metadata = SD_NEW_ARRAY(context, sd_metadata, count);
    content->values = SD_NEW_ARRAY(context, char, count * SD_SETTING_MAX);
    if (!content->metadata || !content->values)
        return SD_ERR_MEMORY;
    char library[64];
    snprintf(library, sizeof library, "libsimdino %s", sd_version_string());
    add_metadata(content, fixed_keys[0], FORMAT);
    add_metadata(content, fixed_keys[1], FORMAT_VERSION);
    add_metadata(content, fixed_keys[2], library);
    add_number(content, fixed_keys[3], sd_pretrainer_position(trainer));
    add_number(content, fixed_keys[4], sd_optimizer_steps(sd_pretrainer_optimizer(trainer)));
    for (size_t i = 0; i < sd_setting_count(); i++) {
        if (sd_setting_is_late(i) && sd_setting_is_default(sd_pretrainer_config_of(trainer), i))
            continue;
        char *value = content->values + content->metadata_count * SD_SETTING_MAX;
        sd_setting_print(sd_pretrainer_config_of(trainer), i, value);
        add_metadata(content, sd_setting_name(i), value);
    }
    return SD_OK;
}

/* The tensors of one flat array, under "GROUP.NAME" or "GROUP.PART.NAME". */
static void add_group(checkpoint_content *content, const sd_model *model, const char *group, const char *part,
                      const float *values) {
    for (size_t i = 0; i < sd_model_tensor_count(model); i++) {
        const sd_tensor_info *info = sd_model_tensor(model, i);
        sd_text name = {.buffer = content->names ? content->names + content->names_used : NULL};
        sd_text_put(&name, group);
        sd_text_put(&name, ".");
        if (part) {
            sd_text_put(&name, part);
            sd_text_put(&name, ".");
        }
        sd_text_put(&name, info->name);
        sd_text_put_bytes(&name, "", 1);
        if (content->tensors) {
            sd_tensor_source *tensor = &content->tensors[content->tensor_count];
            tensor->name = name.buffer;
            tensor->dimensions = (size_t)info->dimensions;
            for (size_t j = 0; j < tensor->dimensions; j++)
                tensor->shape[j] = (uint64_t)info->shape[j];
            tensor->data = values + info->offset;
        }
        content->names_used += name.length;
        content->tensor_count++;
    }
}

/* What the objective keeps between steps, under "objective.NAME". */
static void add_state(checkpoint_content *content, sd_objective_state state) {
    sd_text name = {.buffer = content->names ? content->names + content->names_used : NULL};
    sd_text_put(&name, "objective.");
    sd_text_put(&name, state.name);
    sd_text_put_bytes(&name, "", 1);
    if (content->tensors)
        content->tensors[content->tensor_count] = (sd_tensor_source){
            .name = name.buffer, .dimensions = 2, .shape = {state.rows, state.columns}, .data = state.values};
    content->names_used += name.length;
    content->tensor_count++;
}

/* Without arrays it only counts. */
static void add_all_groups(const sd_pretrainer *trainer, checkpoint_content *content) {
    const sd_model *student = sd_pretrainer_student(trainer), *teacher = sd_pretrainer_teacher(trainer);
    sd_optimizer *optimizer = sd_pretrainer_optimizer(trainer);
    content->tensor_count = content->names_used = 0;
    add_group(content, student, "student", NULL, sd_model_parameters_const(student));
    add_group(content, teacher, "teacher", NULL, sd_model_parameters_const(teacher));
    for (size_t i = 0; i < sd_optimizer_state_count(optimizer); i++)
        add_group(content, student, "optimizer", sd_optimizer_state_name(optimizer, i),
                  sd_optimizer_state(optimizer, i));
    const sd_objective *objective = sd_pretrainer_objective(trainer);
    for (size_t i = 0; i < sd_objective_state_count(objective); i++)
        add_state(content, sd_objective_state_at(objective, i));
}

static sd_status collect_tensors(const sd_pretrainer *trainer, checkpoint_content *content) {
    sd_context *context = sd_pretrainer_context(trainer);
    add_all_groups(trainer, content);
    sd_tensor_source *tensors = SD_NEW_ARRAY(context, sd_tensor_source, content->tensor_count);
    content->names = SD_NEW_ARRAY(context, char, content->names_used);
    content->tensors = tensors;
    if (!content->names || !content->tensors)
        return SD_ERR_MEMORY;
    add_all_groups(trainer, content);
    return SD_OK;
}

SD_API sd_status sd_pretrainer_save(const sd_pretrainer *trainer, const char *path) {
    SD_REQUIRE(trainer, SD_ERR_ARGUMENT, "trainer is NULL");
    SD_REQUIRE(path, SD_ERR_ARGUMENT, "path is NULL");
    sd_status status;
    sd_context *context = sd_pretrainer_context(trainer);
    checkpoint_content content = {0};
    SD_TRY(collect_metadata(trainer, &content));
    SD_TRY(collect_tensors(trainer, &content));
    status = sd_safetensors_write(context, path, content.tensors, content.tensor_count, content.metadata,
                                  content.metadata_count);
cleanup:
    sd_release(context, content.tensors);
    sd_release(context, content.names);
    sd_release(context, content.values);
    sd_release(context, content.metadata);
    return status;
}

/* ---- reading ------------------------------------------------------------------------------- */

typedef struct checkpoint {
    sd_safetensors *file;
    const char *path;
    sd_pretrainer_config config;
    uint64_t steps, optimizer_steps;
} checkpoint;

static bool parse_count(const char *text, uint64_t *number) {
    sd_json json = {.text = text, .size = strlen(text)};
    return json.size > 0 && text[0] != ' ' && sd_json_get_unsigned(&json, number) && json.at == json.size;
}

static sd_status read_count(const checkpoint *from, const char *key, uint64_t *number) {
    const char *text = sd_safetensors_metadata(from->file, key);
    SD_REQUIRE(text, SD_ERR_FORMAT, "%s: the metadata lack %s", from->path, key);
    SD_REQUIRE(parse_count(text, number), SD_ERR_FORMAT, "%s: %s is \"%.40s\"", from->path, key, text);
    return SD_OK;
}

static bool key_is_known(const char *key) {
    for (size_t i = 0; i < FIXED_KEYS; i++)
        if (strcmp(key, fixed_keys[i]) == 0)
            return true;
    for (size_t i = 0; i < sd_setting_count(); i++)
        if (strcmp(key, sd_setting_name(i)) == 0)
            return true;
    return strncmp(key, "crc32_", 6) == 0;
}

static sd_status read_config(checkpoint *from) {
    sd_pretrainer_config_init(&from->config);
    for (size_t i = 0; i < sd_safetensors_metadata_count(from->file); i++) {
        const char *key = sd_safetensors_metadata_at(from->file, i)->key;
        SD_REQUIRE(key_is_known(key), SD_ERR_VERSION,
                   "%s: this library does not know its setting %.100s: use a newer one", from->path, key);
    }
    for (size_t i = 0; i < sd_setting_count(); i++) {
        const char *key = sd_setting_name(i), *text = sd_safetensors_metadata(from->file, key);
        if (!text && sd_setting_is_late(i))
            continue;
        SD_REQUIRE(text, SD_ERR_FORMAT, "%s: the metadata lack %s", from->path, key);
        SD_REQUIRE(sd_setting_parse(&from->config, i, text), SD_ERR_FORMAT, "%s: %s is \"%.100s\"", from->path, key,
                   text);
    }
    return SD_OK;
}

/* The same error with the file's name in front; a setting that no object can be made with makes the file unusable. */
static sd_status blame_file(const checkpoint *from, sd_status status) {
    char reason[600];
    snprintf(reason, sizeof reason, "%s", sd_last_error());
    return sd_fail(status == SD_ERR_ARGUMENT ? SD_ERR_FORMAT : status, "%s: %s", from->path, reason);
}

/* The network must fit into the file before memory is taken for it. */
static sd_status check_size(const checkpoint *from) {
    sd_geometry geometry;
    sd_status status = sd_geometry_of(&from->config.model, &geometry);
    if (status != SD_OK)
        return blame_file(from, status);
    uint64_t stored = 0;
    for (size_t i = 0; i < sd_safetensors_count(from->file); i++)
        stored += sd_safetensors_at(from->file, i)->count;
    SD_REQUIRE(sd_geometry_parameters(&geometry) <= stored / 2, SD_ERR_FORMAT,
               "%s: it holds %llu numbers, fewer than two networks of its configuration", from->path,
               (unsigned long long)stored);
    return SD_OK;
}

static sd_status checkpoint_open(sd_context *context, const char *path, checkpoint *from) {
    *from = (checkpoint){.path = path};
    SD_REQUIRE(path, SD_ERR_ARGUMENT, "path is NULL");
    sd_status status;
    SD_TRY(sd_safetensors_open(context, path, &from->file));
    const char *format = sd_safetensors_metadata(from->file, "format");
    const char *version = sd_safetensors_metadata(from->file, "format_version");
    SD_EXPECT(format && strcmp(format, FORMAT) == 0 && version, SD_ERR_FORMAT,
              "%s: a safetensors file, but not a checkpoint of libsimdino", path);
    SD_EXPECT(strcmp(version, FORMAT_VERSION) == 0, SD_ERR_VERSION,
              "%s: a checkpoint of version %.20s; this library knows version " FORMAT_VERSION, path, version);
    SD_EXPECT(sd_safetensors_has_checksums(from->file), SD_ERR_FORMAT, "%s: its checksums are missing", path);
    SD_TRY(read_config(from));
    SD_TRY(read_count(from, "steps", &from->steps));
    SD_TRY(read_count(from, "optimizer.steps", &from->optimizer_steps));
    SD_EXPECT(from->steps <= from->config.total_steps, SD_ERR_FORMAT, "%s: %llu steps done of %llu", path,
              (unsigned long long)from->steps, (unsigned long long)from->config.total_steps);
    SD_TRY(check_size(from));
    return SD_OK;
cleanup:
    sd_safetensors_close(from->file);
    from->file = NULL;
    return status;
}

/* Reads the tensors of one flat array. */
static sd_status read_group(const checkpoint *from, const sd_model *model, const char *group, const char *part,
                            float *values) {
    for (size_t i = 0; i < sd_model_tensor_count(model); i++) {
        const sd_tensor_info *info = sd_model_tensor(model, i);
        char name[256];
        snprintf(name, sizeof name, "%s.%s%s%s", group, part ? part : "", part ? "." : "", info->name);
        const sd_tensor_entry *entry = sd_safetensors_find(from->file, name);
        SD_REQUIRE(entry, SD_ERR_FORMAT, "%s: tensor %s is missing", from->path, name);
        bool same = entry->dimensions == (size_t)info->dimensions;
        for (size_t j = 0; same && j < entry->dimensions; j++)
            same = entry->shape[j] == (uint64_t)info->shape[j];
        SD_REQUIRE(same && strcmp(entry->dtype, "F32") == 0, SD_ERR_FORMAT,
                   "%s: tensor %s has another shape or type than its configuration says", from->path, name);
        sd_status status = sd_safetensors_read_f32(from->file, entry, values + info->offset, info->count);
        if (status != SD_OK)
            return status;
    }
    return SD_OK;
}

static sd_status read_state(const checkpoint *from, sd_objective_state state) {
    char name[64];
    snprintf(name, sizeof name, "objective.%s", state.name);
    const sd_tensor_entry *entry = sd_safetensors_find(from->file, name);
    SD_REQUIRE(entry, SD_ERR_FORMAT, "%s: tensor %s is missing", from->path, name);
    SD_REQUIRE(entry->dimensions == 2 && entry->shape[0] == state.rows && entry->shape[1] == state.columns &&
                   strcmp(entry->dtype, "F32") == 0,
               SD_ERR_FORMAT, "%s: tensor %s has another shape or type than its configuration says", from->path, name);
    return sd_safetensors_read_f32(from->file, entry, state.values, state.rows * state.columns);
}

static sd_status read_trainer(const checkpoint *from, sd_pretrainer *trainer) {
    sd_status status;
    sd_model *student = sd_pretrainer_mutable_student(trainer), *teacher = sd_pretrainer_mutable_teacher(trainer);
    sd_optimizer *optimizer = sd_pretrainer_optimizer(trainer);
    const sd_objective *objective = sd_pretrainer_objective(trainer);
    size_t groups = 2 + sd_optimizer_state_count(optimizer), states = sd_objective_state_count(objective);
    size_t expected = groups * sd_model_tensor_count(student) + states;
    SD_EXPECT(sd_safetensors_count(from->file) == expected, SD_ERR_FORMAT, "%s: %zu tensors, expected %zu", from->path,
              sd_safetensors_count(from->file), expected);
    SD_TRY(read_group(from, student, "student", NULL, sd_model_parameters(student)));
    SD_TRY(read_group(from, teacher, "teacher", NULL, sd_model_parameters(teacher)));
    for (size_t i = 0; i < sd_optimizer_state_count(optimizer); i++)
        SD_TRY(read_group(from, student, "optimizer", sd_optimizer_state_name(optimizer, i),
                          sd_optimizer_state(optimizer, i)));
    for (size_t i = 0; i < states; i++)
        SD_TRY(read_state(from, sd_objective_state_at(objective, i)));
    SD_TRY(sd_pretrainer_set_position(trainer, from->steps, from->optimizer_steps));
cleanup:
    return status;
}

SD_API sd_status sd_pretrainer_resume(sd_context *context, const char *path, sd_pretrainer **trainer) {
    SD_REQUIRE(trainer, SD_ERR_ARGUMENT, "trainer is NULL");
    checkpoint from;
    sd_pretrainer *created = NULL;
    sd_status status = checkpoint_open(context, path, &from);
    if (status != SD_OK)
        return status;
    SD_TRY(sd_safetensors_verify(from.file));
    status = sd_pretrainer_create(context, &from.config, &created);
    if (status != SD_OK) {
        status = blame_file(&from, status);
        goto cleanup;
    }
    SD_TRY(read_trainer(&from, created));
    *trainer = created;
    created = NULL;
cleanup:
    sd_pretrainer_destroy(created);
    sd_safetensors_close(from.file);
    return status;
}

SD_API sd_status sd_model_load(sd_context *context, const char *path, int32_t teacher, sd_model **model) {
    SD_REQUIRE(model, SD_ERR_ARGUMENT, "model is NULL");
    SD_REQUIRE(teacher == 0 || teacher == 1, SD_ERR_ARGUMENT, "teacher is %d: it must be 0 or 1", (int)teacher);
    checkpoint from;
    sd_model *created = NULL;
    sd_status status = checkpoint_open(context, path, &from);
    if (status != SD_OK)
        return status;
    SD_TRY(sd_safetensors_verify(from.file));
    SD_TRY(sd_model_create(context, &from.config.model, &created));
    SD_TRY(read_group(&from, created, teacher ? "teacher" : "student", NULL, sd_model_parameters(created)));
    *model = created;
    created = NULL;
cleanup:
    sd_model_destroy(created);
    sd_safetensors_close(from.file);
    return status;
}

SD_API sd_status sd_checkpoint_info(sd_context *context, const char *path, sd_pretrainer_config *config,
                                    uint64_t *steps) {
    SD_REQUIRE(!config || config->size >= sizeof config->size, SD_ERR_ARGUMENT,
               "config->size is %zu: fill the struct with sd_pretrainer_config_init first", config ? config->size : 0);
    checkpoint from;
    sd_status status = checkpoint_open(context, path, &from);
    if (status != SD_OK)
        return status;
    if (config) { /* the members that the caller's header knows */
        size_t size = config->size;
        memcpy(config, &from.config, sd_size_min(size, sizeof from.config));
        config->size = size;
    }
    if (steps)
        *steps = from.steps;
    sd_safetensors_close(from.file);
    return SD_OK;
}
