#include "train/config_text.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

typedef struct setting {
    const char *key; /* the member's path in sd_pretrainer_config */
    sd_setting_type type;
    size_t offset;
    size_t count;    /* of numbers: F64 members may be arrays */
} setting;

#define MEMBER_SIZE(member) sizeof(((sd_pretrainer_config *)0)->member)
#define I32(member) {#member, SD_SETTING_I32, offsetof(sd_pretrainer_config, member), 1}
#define U64(member) {#member, SD_SETTING_U64, offsetof(sd_pretrainer_config, member), 1}
#define SIZE(member) {#member, SD_SETTING_SIZE, offsetof(sd_pretrainer_config, member), 1}
#define F64(member) {#member, SD_SETTING_F64, offsetof(sd_pretrainer_config, member), MEMBER_SIZE(member) / sizeof(double)}

static const setting settings[] = {
    I32(model.image_size),      I32(model.patch_size),     I32(model.channels),
    I32(model.dim),             I32(model.depth),          I32(model.heads),
    F64(model.mlp_ratio),       F64(model.drop_path),      F64(model.interpolate_offset),
    I32(model.head_layers),     I32(model.head_hidden),    I32(model.head_dim),
    F64(loss.eps_sq),           F64(loss.coeff),           I32(loss.expa_type),
    I32(loss.groups),           I32(loss.reduce_gram),     I32(loss.normalized),
    I32(augment.global_size),   I32(augment.local_size),   I32(augment.local_crops),
    F64(augment.global_scale),  F64(augment.local_scale),  F64(augment.aspect_ratio),
    F64(augment.flip),          F64(augment.jitter),       F64(augment.brightness),
    F64(augment.contrast),      F64(augment.saturation),   F64(augment.hue),
    F64(augment.gray),          F64(augment.blur),         F64(augment.blur_radius),
    F64(augment.solarize),      I32(augment.solarize_threshold), I32(augment.blur_kind),
    F64(augment.mean),          F64(augment.std),
    I32(optimizer.kind),        F64(optimizer.beta1),      F64(optimizer.beta2),
    F64(optimizer.epsilon),     F64(optimizer.momentum),   F64(optimizer.trust),
    U64(seed),                  SIZE(batch_size),          SIZE(micro_batch),
    I32(accumulation),          I32(activations),          U64(total_steps),
    U64(warmup_steps),          F64(lr),                   F64(min_lr),
    F64(weight_decay),          F64(weight_decay_end),     F64(momentum),
    F64(momentum_end),          I32(clip),                 F64(clip_limit),
    /* settings that came later: a file has them only where they differ from the defaults */
#define FIRST_LATE_SETTING "method"
    I32(method),
    I32(model.registers),       I32(model.mask_token),     I32(model.feed_forward),
    I32(model.qk_norm),         I32(model.interpolate_antialias), I32(model.drop_path_uniform),
    I32(model.drop_path_subset), I32(model.prototypes),    I32(model.prototype_scale),
    I32(model.patch_head),      I32(model.patch_prototypes), F64(model.layer_scale),
    I32(dino.target),           I32(dino.sinkhorn_iterations), F64(dino.student_temp),
    F64(dino.center_momentum),  F64(teacher_temp_start),   F64(teacher_temp),
    U64(teacher_temp_steps),    U64(epoch_steps),          U64(freeze_steps),
    F64(mask.ratio_min),        F64(mask.ratio_max),       F64(mask.probability),
    F64(mask.block_share),      F64(mask.block_aspect),    I32(mask.block_patches),
    F64(patch_weight),          F64(koleo_weight),         F64(lr_start),
    I32(warmup_kind),           F64(layer_decay),          F64(patch_embed_lr),
    F64(eps_sq_end),            F64(coeff_end),            U64(peak_steps),
    I32(precision),             I32(recomputed_blocks),    I32(products),
};

SD_API size_t sd_setting_count(void) { return sizeof settings / sizeof settings[0]; }

SD_API const char *sd_setting_name(size_t index) {
    return index < sd_setting_count() ? settings[index].key : NULL;
}

sd_setting_type sd_setting_type_of(size_t index, size_t *count) {
    *count = settings[index].count;
    return settings[index].type;
}

static size_t number_size(sd_setting_type type) {
    switch (type) {
    case SD_SETTING_I32: return sizeof(int32_t);
    case SD_SETTING_U64: return sizeof(uint64_t);
    case SD_SETTING_SIZE: return sizeof(size_t);
    case SD_SETTING_F64: return sizeof(double);
    }
    return 0;
}

size_t sd_setting_bytes(size_t index, size_t *offset) {
    *offset = settings[index].offset;
    return settings[index].count * number_size(settings[index].type);
}

bool sd_setting_is_late(size_t index) {
    size_t first = 0;
    while (strcmp(settings[first].key, FIRST_LATE_SETTING) != 0)
        first++;
    return index >= first;
}

bool sd_setting_is_default(const sd_pretrainer_config *config, size_t index) {
    sd_pretrainer_config defaults;
    sd_pretrainer_config_init(&defaults);
    size_t offset, bytes = sd_setting_bytes(index, &offset);
    return memcmp((const char *)config + offset, (const char *)&defaults + offset, bytes) == 0;
}

/* ---- printing ------------------------------------------------------------------------------ */

/* printf writes the decimal point of the locale, of one or more bytes: it becomes a point again. */
static size_t print_readable(double value, char *text, size_t size) {
    char local[64];
    snprintf(local, sizeof local, "%.15g", value);
    size_t length = 0;
    for (const char *c = local; *c && length + 1 < size; c++) {
        if (strchr("0123456789+-einfa", *c))
            text[length++] = *c;
        else if (length == 0 || text[length - 1] != '.')
            text[length++] = '.';
    }
    text[length] = '\0';
    return length;
}

static void print_doubles(const char *numbers, size_t count, char *text) {
    size_t length = 0;
    double value;
    uint64_t bits;
    for (size_t i = 0; i < count; i++) {
        memcpy(&value, numbers + i * sizeof value, sizeof value);
        length += print_readable(value, text + length, 32);
        text[length++] = ' ';
    }
    for (size_t i = 0; i < count; i++) {
        memcpy(&bits, numbers + i * sizeof bits, sizeof bits);
        text[length++] = i == 0 ? '(' : ' ';
        for (int shift = 60; shift >= 0; shift -= 4)
            text[length++] = "0123456789abcdef"[bits >> shift & 15];
    }
    text[length++] = ')';
    text[length] = '\0';
}

void sd_setting_print(const sd_pretrainer_config *config, size_t index, char *text) {
    const setting *one = &settings[index];
    const char *at = (const char *)config + one->offset;
    int32_t narrow;
    uint64_t wide;
    size_t size;
    switch (one->type) {
    case SD_SETTING_I32:
        memcpy(&narrow, at, sizeof narrow);
        snprintf(text, SD_SETTING_MAX, "%d", (int)narrow);
        break;
    case SD_SETTING_U64:
        memcpy(&wide, at, sizeof wide);
        snprintf(text, SD_SETTING_MAX, "%llu", (unsigned long long)wide);
        break;
    case SD_SETTING_SIZE:
        memcpy(&size, at, sizeof size);
        snprintf(text, SD_SETTING_MAX, "%zu", size);
        break;
    case SD_SETTING_F64: print_doubles(at, one->count, text); break;
    }
}

/* ---- parsing ------------------------------------------------------------------------------- */

/* Digits and nothing else, without leading zeros, at most `most`. */
static bool parse_unsigned(const char *text, uint64_t most, uint64_t *number) {
    uint64_t value = 0;
    if (!*text || (text[0] == '0' && text[1]))
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        uint64_t digit = (uint64_t)(*text - '0');
        if (value > (most - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *number = value;
    return true;
}

static bool parse_doubles(const char *text, size_t count, char *numbers) {
    const char *at = strchr(text, '(');
    if (!at)
        return false;
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = 0;
        if (*at++ != (i == 0 ? '(' : ' '))
            return false;
        for (int digit = 0; digit < 16; digit++, at++) {
            if (*at >= '0' && *at <= '9')
                bits = bits << 4 | (uint64_t)(*at - '0');
            else if (*at >= 'a' && *at <= 'f')
                bits = bits << 4 | (uint64_t)(*at - 'a' + 10);
            else
                return false;
        }
        memcpy(numbers + i * sizeof bits, &bits, sizeof bits);
    }
    return at[0] == ')' && at[1] == '\0';
}

bool sd_setting_parse(sd_pretrainer_config *config, size_t index, const char *text) {
    const setting *one = &settings[index];
    char *at = (char *)config + one->offset;
    uint64_t number;
    switch (one->type) {
    case SD_SETTING_I32: {
        bool negative = text[0] == '-';
        if (!parse_unsigned(text + negative, INT32_MAX, &number))
            return false;
        int32_t narrow = negative ? -(int32_t)number : (int32_t)number;
        memcpy(at, &narrow, sizeof narrow);
        return true;
    }
    case SD_SETTING_U64:
        if (!parse_unsigned(text, UINT64_MAX, &number))
            return false;
        memcpy(at, &number, sizeof number);
        return true;
    case SD_SETTING_SIZE: {
        if (!parse_unsigned(text, SIZE_MAX, &number))
            return false;
        size_t size = (size_t)number;
        memcpy(at, &size, sizeof size);
        return true;
    }
    case SD_SETTING_F64: return parse_doubles(text, one->count, at);
    }
    return false;
}
