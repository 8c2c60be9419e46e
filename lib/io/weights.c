#include "io/weights.h"

#include <stdlib.h>
#include <string.h>

/* ---- which part of the file ------------------------------------------------------------------- */

/* Teacher and student lie beside each other under names like "teacher/", "student.module.", "model/teacher.". */
typedef enum role { ROLE_NONE, ROLE_TEACHER, ROLE_STUDENT, ROLE_OTHER } role;

static role role_of(const char *prefix, size_t length) {
    static const struct {
        const char *segment;
        role role;
    } known[] = {{"teacher", ROLE_TEACHER},        {"ema", ROLE_TEACHER},
                 {"model_ema", ROLE_TEACHER},      {"student", ROLE_STUDENT},
                 {"state_dict_ema", ROLE_TEACHER}, {"teacher_backbone", ROLE_TEACHER},
                 {"optimizer", ROLE_OTHER},        {"student_backbone", ROLE_STUDENT}};
    for (const char *at = prefix; at < prefix + length;) {
        size_t size = strcspn(at, "./");
        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
            if (strlen(known[i].segment) == size && memcmp(at, known[i].segment, size) == 0)
                return known[i].role;
        at += size + 1;
    }
    return ROLE_NONE;
}

typedef struct file_part {
    const char *prefix; /* unwrapped; of the backbone's tensors */
    size_t length;
    size_t beside; /* bytes of it that the heads share */
    role role;
    bool hugging_face;
} file_part;

static int rank_of(role found, role wanted) { return found == wanted ? 0 : found == ROLE_NONE ? 1 : 2; }

/* Who was asked for, then who is neither, then the other; the shorter prefix of two alike. */
static bool is_better(const file_part *a, const file_part *b, bool student) {
    role wanted = student ? ROLE_STUDENT : ROLE_TEACHER;
    int first = rank_of(a->role, wanted), second = rank_of(b->role, wanted);
    return first != second ? first < second : a->length < b->length;
}

static sd_status choose_part(const sd_weights *weights, char *const *names, bool student, file_part *chosen) {
    bool found = false;
    for (size_t i = 0; i < weights->file->count; i++) {
        file_part one = {.prefix = names[i]};
        if (!names[i] || (one.length = sd_name_find_anchor(names[i], &one.hugging_face)) == SIZE_MAX)
            continue;
        one.role = role_of(one.prefix, one.length);
        if (one.role != ROLE_OTHER && (!found || is_better(&one, chosen, student))) {
            *chosen = one;
            found = true;
        }
    }
    SD_REQUIRE(
        found, SD_ERR_MISMATCH,
        "%s: no vision transformer in it: none of its %zu tensors is a patch projection (patch_embed.proj.weight)",
        weights->path, weights->file->count);
    SD_REQUIRE(!student || chosen->role != ROLE_TEACHER, SD_ERR_MISMATCH, "%s: it holds a teacher, but no student",
               weights->path);
    static const char backbone[] = "backbone.";
    size_t size = sizeof backbone - 1;
    chosen->beside = chosen->length >= size && memcmp(chosen->prefix + chosen->length - size, backbone, size) == 0 &&
                             (chosen->length == size || strchr("./", chosen->prefix[chosen->length - size - 1]))
                         ? chosen->length - size
                         : chosen->length;
    return SD_OK;
}

/* ---- translation ------------------------------------------------------------------------------ */

static const sd_stored *find_in_part(const sd_weights *weights, char *const *names, const file_part *part,
                                     const char *ending) {
    for (size_t i = 0; i < weights->file->count; i++)
        if (names[i] && strncmp(names[i], part->prefix, part->length) == 0 &&
            strcmp(names[i] + part->length, ending) == 0)
            return &weights->file->tensors[i];
    return NULL;
}

static bool is_square(uint64_t number) {
    uint64_t root = 0;
    while (root < 65536 && root * root < number)
        root++;
    return root > 0 && root * root == number;
}

/* What shapes tell of the names: timm's form of SwiGLU, and of the position embedding. */
static void find_style(sd_weights *weights, char *const *names, const file_part *part, sd_name_style *style) {
    style->hugging_face = part->hugging_face;
    weights->names = part->hugging_face ? SD_NAMES_HUGGING_FACE : SD_NAMES_OFFICIAL;
    const char *position_name = part->hugging_face ? "embeddings.position_embeddings" : "pos_embed";
    const sd_stored *position = find_in_part(weights, names, part, position_name);
    if (position && position->dimensions == 3) {
        uint64_t tokens = position->shape[1];
        weights->no_class_position = tokens == 1 || (is_square(tokens) && !is_square(tokens - 1));
    }
    if (part->hugging_face)
        return;
    const sd_stored *first = find_in_part(weights, names, part, "blocks.0.mlp.fc1.weight");
    const sd_stored *second = find_in_part(weights, names, part, "blocks.0.mlp.fc2.weight");
    style->packed_swiglu = first && second && first->dimensions == 2 && second->dimensions == 2 &&
                           second->shape[1] > 0 && first->shape[0] / 2 == second->shape[1] && first->shape[0] % 2 == 0;
    if (style->packed_swiglu || weights->no_class_position || find_in_part(weights, names, part, "reg_token"))
        weights->names = SD_NAMES_TIMM;
    const char *format = sd_tensor_file_metadata(weights->file, "format");
    if (sd_tensor_file_metadata(weights->file, "model.dim") && part->beside != part->length && format)
        weights->names = SD_NAMES_NATIVE;
}

static int by_name(const void *left, const void *right) {
    const sd_weight *a = left, *b = right;
    int order = strcmp(a->name, b->name);
    return order != 0 ? order : a->piece != b->piece ? (a->piece < b->piece ? -1 : 1) : 0;
}

static sd_status translate(sd_weights *weights, char *const *names, const file_part *part, bool backbone_only) {
    sd_name_style style = {0};
    find_style(weights, names, part, &style);
    weights->list = SD_NEW_ARRAY(weights->context, sd_weight, weights->file->count);
    if (!weights->list)
        return SD_ERR_MEMORY;
    for (size_t i = 0; i < weights->file->count; i++) {
        if (!names[i] || strncmp(names[i], part->prefix, part->beside) != 0 || strchr(names[i] + part->beside, '/'))
            continue; /* a number, or of another part */
        sd_weight *weight = &weights->list[weights->count];
        *weight = (sd_weight){.piece = SD_WHOLE, .index = i};
        bool inside = strncmp(names[i], part->prefix, part->length) == 0;
        if (inside ? !sd_name_of_backbone(&style, names[i] + part->length, weight->name, &weight->piece)
                   : !sd_name_of_head(names[i] + part->beside, weight->name))
            weight->name[0] = '\0';
        if (!inside && weight->name[0] && backbone_only)
            continue;
        weights->v2_heads = weights->v2_heads || (!inside && strncmp(names[i] + part->beside, "dino_head.", 10) == 0);
        weights->count++;
    }
    qsort(weights->list, weights->count, sizeof *weights->list, by_name);
    return SD_OK;
}

/* ---- opening ---------------------------------------------------------------------------------- */

sd_status sd_weights_open(sd_context *context, const char *path, const sd_weights_options *options,
                          sd_weights *weights) {
    *weights = (sd_weights){.context = context, .path = path};
    char **names = NULL, *texts = NULL;
    size_t bytes = 0, used = 0;
    file_part chosen = {0};
    sd_status status;
    SD_TRY(sd_tensor_file_open(context, path, &weights->file));
    const sd_tensor_file *file = weights->file;
    if (file->safetensors && sd_safetensors_has_checksums(file->safetensors))
        SD_TRY(sd_safetensors_verify(file->safetensors));
    for (size_t i = 0; i < file->count; i++)
        bytes += strlen(file->tensors[i].name) + 2;
    names = SD_NEW_ARRAY(context, char *, file->count);
    texts = SD_NEW_ARRAY(context, char, bytes);
    if (!names || !texts) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    for (size_t i = 0; i < file->count; i++)
        if (file->tensors[i].dtype != SD_DTYPE_NUMBER && file->tensors[i].dtype != SD_DTYPE_OTHER) {
            names[i] = texts + used;
            sd_name_unwrap(file->tensors[i].name, names[i]);
            used += strlen(file->tensors[i].name) + 2;
        }
    SD_TRY(choose_part(weights, names, options->student == 1, &chosen));
    weights->student = chosen.role == ROLE_STUDENT;
    status = translate(weights, names, &chosen, options->backbone == 1);
cleanup:
    sd_release(context, texts);
    sd_release(context, names);
    if (status != SD_OK)
        sd_weights_close(weights);
    return status;
}

void sd_weights_close(sd_weights *weights) {
    sd_release(weights->context, weights->list);
    sd_tensor_file_close(weights->file);
    weights->list = NULL;
    weights->file = NULL;
    weights->count = 0;
}

sd_weight *sd_weights_find(const sd_weights *weights, const char *name, int piece) {
    size_t low = 0, high = weights->count;
    sd_weight wanted = {.piece = piece};
    size_t length = strlen(name);
    if (length == 0 || length >= sizeof wanted.name)
        return NULL;
    memcpy(wanted.name, name, length);
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (by_name(&weights->list[middle], &wanted) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < weights->count && by_name(&weights->list[low], &wanted) == 0 ? &weights->list[low] : NULL;
}

const sd_stored *sd_weights_tensor(const sd_weights *weights, const sd_weight *weight) {
    return &weights->file->tensors[weight->index];
}
