#include "io/names.h"

#include <stdio.h>
#include <string.h>

/* ---- tables ----------------------------------------------------------------------------------- */

typedef struct pair {
    const char *theirs, *ours;
    int piece;
} pair;

/* clang-format off */
#define BOTH(theirs, ours, piece) {theirs ".weight", ours ".weight", piece}, {theirs ".bias", ours ".bias", piece}
/* clang-format on */

/* Hugging Face, outside of blocks. */
static const pair hf_outside[] = {
    {"embeddings.cls_token", "cls_token", SD_WHOLE},
    {"embeddings.position_embeddings", "pos_embed", SD_WHOLE},
    {"embeddings.mask_token", "mask_token", SD_WHOLE},
    {"embeddings.register_tokens", "register_tokens", SD_WHOLE},
    BOTH("embeddings.patch_embeddings.projection", "patch_embed.proj", SD_WHOLE),
    BOTH("layernorm", "norm", SD_WHOLE),
};

/* In "encoder.layer.N.": what all have, then what Dinov2Model and ViTModel have. */
static const pair hf_block[] = {
    BOTH("attention.attention.query", "attn.qkv", 0),
    BOTH("attention.attention.key", "attn.qkv", 1),
    BOTH("attention.attention.value", "attn.qkv", 2),
    BOTH("attention.output.dense", "attn.proj", SD_WHOLE),
};
static const pair hf_dinov2_block[] = {
    BOTH("norm1", "norm1", SD_WHOLE),
    BOTH("norm2", "norm2", SD_WHOLE),
    {"layer_scale1.lambda1", "ls1.gamma", SD_WHOLE},
    {"layer_scale2.lambda1", "ls2.gamma", SD_WHOLE},
    BOTH("mlp.fc1", "mlp.fc1", SD_WHOLE),
    BOTH("mlp.fc2", "mlp.fc2", SD_WHOLE),
    BOTH("mlp.weights_in", "mlp.w12", SD_WHOLE),
    BOTH("mlp.weights_out", "mlp.w3", SD_WHOLE),
};
static const pair hf_vit_block[] = {
    BOTH("layernorm_before", "norm1", SD_WHOLE),
    BOTH("layernorm_after", "norm2", SD_WHOLE),
    BOTH("intermediate.dense", "mlp.fc1", SD_WHOLE),
    BOTH("output.dense", "mlp.fc2", SD_WHOLE),
};

/* timm's packed SwiGLU. */
static const pair timm_swiglu[] = {
    BOTH("mlp.fc1", "mlp.w12", SD_WHOLE),
    BOTH("mlp.fc2", "mlp.w3", SD_WHOLE),
};

#define COUNT(table) (sizeof(table) / sizeof(table)[0])

static const pair *find_theirs(const pair *table, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(table[i].theirs, name) == 0)
            return &table[i];
    return NULL;
}

static const pair *find_ours(const pair *table, size_t count, const char *name, size_t piece) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(table[i].ours, name) == 0 && (table[i].piece == SD_WHOLE || table[i].piece == (int)piece))
            return &table[i];
    return NULL;
}

/* ---- names of files --------------------------------------------------------------------------- */

static bool is_segment(const char *segment, size_t length, const char *wanted) {
    return strlen(wanted) == length && memcmp(segment, wanted, length) == 0;
}

void sd_name_unwrap(const char *name, char *out) {
    static const char *const wrappers[] = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"};
    for (const char *at = name;;) {
        size_t length = strcspn(at, "./");
        bool wrapper = false;
        for (size_t i = 0; i < COUNT(wrappers) && at[length] == '.'; i++)
            wrapper = wrapper || is_segment(at, length, wrappers[i]);
        if (!wrapper) {
            memcpy(out, at, length + 1); /* with its separator, or the zero */
            out += length + 1;
        }
        if (at[length] == '\0') /* never a wrapper, so that the zero was copied */
            break;
        at += length + 1;
    }
}

static size_t before_ending(const char *name, const char *ending) {
    size_t length = strlen(name), wanted = strlen(ending);
    if (length < wanted || strcmp(name + length - wanted, ending) != 0)
        return SIZE_MAX;
    length -= wanted;
    return length == 0 || name[length - 1] == '.' || name[length - 1] == '/' ? length : SIZE_MAX;
}

size_t sd_name_find_anchor(const char *name, bool *hugging_face) {
    size_t length = before_ending(name, "patch_embed.proj.weight");
    *hugging_face = length == SIZE_MAX;
    return *hugging_face ? before_ending(name, "embeddings.patch_embeddings.projection.weight") : length;
}

/* "12." at *at; *at goes behind it. */
static bool take_number(const char **at, uint64_t *number) {
    const char *c = *at;
    uint64_t value = 0;
    if (*c == '0' && c[1] != '.')
        return false;
    for (; *c >= '0' && *c <= '9'; c++) {
        value = value * 10 + (uint64_t)(*c - '0');
        if (value > 1000000)
            return false;
    }
    if (c == *at || *c != '.')
        return false;
    *number = value;
    *at = c + 1;
    return true;
}

static bool print_name(char *out, const char *part, const char *name) {
    return (size_t)snprintf(out, SD_NATIVE_NAME_MAX, "%s%s", part, name) < SD_NATIVE_NAME_MAX;
}

static bool print_block(char *out, const char *part, uint64_t block, const char *name) {
    int length = snprintf(out, SD_NATIVE_NAME_MAX, "%s%llu.%s", part, (unsigned long long)block, name);
    return (size_t)length < SD_NATIVE_NAME_MAX;
}

static bool of_hugging_face(const char *name, char *out, int *piece) {
    static const char prefix[] = "encoder.layer.";
    const pair *found;
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) {
        found = find_theirs(hf_outside, COUNT(hf_outside), name);
        return found && print_name(out, "backbone.", found->ours);
    }
    uint64_t block;
    const char *rest = name + sizeof prefix - 1;
    if (!take_number(&rest, &block))
        return false;
    found = find_theirs(hf_block, COUNT(hf_block), rest);
    if (!found)
        found = find_theirs(hf_dinov2_block, COUNT(hf_dinov2_block), rest);
    if (!found)
        found = find_theirs(hf_vit_block, COUNT(hf_vit_block), rest);
    if (!found)
        return false;
    *piece = found->piece;
    return print_block(out, "backbone.blocks.", block, found->ours);
}

bool sd_name_of_backbone(const sd_name_style *style, const char *name, char *out, int *piece) {
    static const char prefix[] = "blocks.";
    *piece = SD_WHOLE;
    if (style->hugging_face)
        return of_hugging_face(name, out, piece);
    if (strcmp(name, "reg_token") == 0)
        return print_name(out, "backbone.", "register_tokens");
    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return print_name(out, "backbone.", name);
    uint64_t block;
    const char *rest = name + sizeof prefix - 1;
    if (!take_number(&rest, &block))
        return false;
    /* Chunked: the first number was the chunk, the second is that of the block in the whole network. */
    take_number(&rest, &block);
    const pair *found = style->packed_swiglu ? find_theirs(timm_swiglu, COUNT(timm_swiglu), rest) : NULL;
    return print_block(out, "backbone.blocks.", block, found ? found->ours : rest);
}

bool sd_name_of_head(const char *name, char *out) {
    static const struct {
        const char *theirs, *ours;
    } heads[] = {
        {"head.", "head."}, {"dino_head.", "head."}, {"ibot_head.", "patch_head."}, {"patch_head.", "patch_head."}};
    for (size_t i = 0; i < COUNT(heads); i++) {
        size_t length = strlen(heads[i].theirs);
        if (strncmp(name, heads[i].theirs, length) != 0)
            continue;
        const char *rest = name + length;
        if (strcmp(rest, "last_layer.parametrizations.weight.original0") == 0) /* weight norm since PyTorch 2.0 */
            rest = "last_layer.weight_g";
        else if (strcmp(rest, "last_layer.parametrizations.weight.original1") == 0)
            rest = "last_layer.weight_v";
        return print_name(out, heads[i].ours, rest);
    }
    return false;
}

const char *sd_name_block(const char *native, uint64_t *block) {
    static const char prefix[] = "backbone.blocks.";
    const char *rest = native + sizeof prefix - 1;
    return strncmp(native, prefix, sizeof prefix - 1) == 0 && take_number(&rest, block) ? rest : NULL;
}

/* ---- the way back ----------------------------------------------------------------------------- */

static const char *after(const char *name, const char *prefix) {
    size_t length = strlen(prefix);
    return strncmp(name, prefix, length) == 0 ? name + length : NULL;
}

size_t sd_name_pieces(const sd_name_target *target, const char *native) {
    const char *inside = after(native, "backbone.");
    uint64_t block;
    if (!inside)
        return target->with_heads ? 1 : 0;
    if (target->names == SD_NAMES_TIMM && strcmp(inside, "mask_token") == 0)
        return 0;
    if (target->names != SD_NAMES_HUGGING_FACE)
        return 1;
    const char *rest = sd_name_block(native, &block);
    if (!rest)
        return find_ours(hf_outside, COUNT(hf_outside), inside, 0) ? 1 : 0;
    if (after(rest, "attn.qkv."))
        return 3;
    return find_ours(hf_block, COUNT(hf_block), rest, 0) ||
                   (target->v2 ? find_ours(hf_dinov2_block, COUNT(hf_dinov2_block), rest, 0)
                               : find_ours(hf_vit_block, COUNT(hf_vit_block), rest, 0))
               ? 1
               : 0;
}

static bool to_hugging_face(const sd_name_target *target, const char *native, const char *inside, size_t piece,
                            char *out) {
    uint64_t block;
    const char *rest = sd_name_block(native, &block);
    const pair *found = rest ? find_ours(hf_block, COUNT(hf_block), rest, piece)
                             : find_ours(hf_outside, COUNT(hf_outside), inside, piece);
    if (rest && !found)
        found = target->v2 ? find_ours(hf_dinov2_block, COUNT(hf_dinov2_block), rest, piece)
                           : find_ours(hf_vit_block, COUNT(hf_vit_block), rest, piece);
    if (!found)
        return false;
    return rest ? print_block(out, "encoder.layer.", block, found->theirs) : print_name(out, "", found->theirs);
}

bool sd_name_to(const sd_name_target *target, const char *native, size_t piece, char out[SD_NATIVE_NAME_MAX]) {
    const char *inside = after(native, "backbone."), *head;
    uint64_t block;
    if (target->names == SD_NAMES_NATIVE)
        return print_name(out, "", native);
    if (!inside) {
        if (target->v2 && (head = after(native, "patch_head.")))
            return print_name(out, "ibot_head.", head);
        if (target->v2 && (head = after(native, "head.")))
            return print_name(out, "dino_head.", head);
        return print_name(out, "", native);
    }
    if (target->names == SD_NAMES_HUGGING_FACE)
        return to_hugging_face(target, native, inside, piece, out);
    if (target->names == SD_NAMES_TIMM) {
        const char *rest = sd_name_block(native, &block);
        const pair *found = rest ? find_ours(timm_swiglu, COUNT(timm_swiglu), rest, piece) : NULL;
        if (found)
            return print_block(out, "blocks.", block, found->theirs);
        return print_name(out, "", strcmp(inside, "register_tokens") == 0 ? "reg_token" : inside);
    }
    return print_name(out, target->with_heads ? "backbone." : "", inside);
}
