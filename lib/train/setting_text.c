/* Settings by name, as people write them. Checkpoints have a form of their own, in which nothing is rounded
 * (config_text.h). */
#include "train/config_text.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Words for the values 0, 1, ... of a setting. */
static const struct {
    const char *name;
    const char *words[6];
} word_lists[] = {
    {"method", {"simdino", "simdinov2", "dino", "dinov2"}},
    {"optimizer.kind", {"adamw", "sgd", "lars"}},
    {"clip", {"none", "tensor", "module"}},
    {"accumulation", {"whole", "pieces"}},
    {"activations", {"inference", "speed", "memory"}},
    {"precision", {"fp32", "bf16"}},
    {"products", {"plain", "strassen"}},
    {"warmup_kind", {"inclusive", "exclusive"}},
    {"dino.target", {"center", "sinkhorn"}},
    {"model.feed_forward", {"mlp", "swiglu"}},
    {"augment.blur_kind", {"pil", "torchvision"}},
};

static const char *const *words_of(const char *name) {
    for (size_t i = 0; i < sizeof word_lists / sizeof *word_lists; i++)
        if (strcmp(word_lists[i].name, name) == 0)
            return word_lists[i].words;
    return NULL;
}

static sd_status find(const char *name, size_t *index) {
    SD_REQUIRE(name != NULL, SD_ERR_ARGUMENT, "name is NULL");
    for (*index = 0; *index < sd_setting_count(); (*index)++)
        if (strcmp(sd_setting_name(*index), name) == 0)
            return SD_OK;
    return sd_fail(SD_ERR_ARGUMENT, "there is no setting \"%.100s\"", name);
}

/* ---- numbers, whatever the locale ------------------------------------------------------------ */

/* The shortest text that reads back as the same number. */
static void print_double(double value, char *text, size_t size) {
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, size, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    const char *point = localeconv()->decimal_point;
    char *at = strstr(text, point);
    if (at != NULL && strcmp(point, ".") != 0) {
        size_t length = strlen(point);
        *at = '.';
        memmove(at + 1, at + length, strlen(at + length) + 1);
    }
}

/* Reads a number of at most 60 characters that ends at a comma or the end; returns its end, NULL when it is none. */
static const char *parse_double(const char *text, double *value) {
    size_t length = strcspn(text, ",");
    char local[80];
    const char *point = localeconv()->decimal_point;
    size_t used = 0, point_length = strlen(point);
    if (length == 0 || length > 60 || strspn(text, "+-0123456789.eE") != length || point_length > 8)
        return NULL;
    for (size_t i = 0, points = 0; i < length; i++) {
        if (text[i] != '.') {
            local[used++] = text[i];
        } else {
            if (points++ > 0)
                return NULL;
            memcpy(local + used, point, point_length);
            used += point_length;
        }
    }
    local[used] = '\0';
    char *end;
    *value = strtod(local, &end);
    return *end == '\0' && isfinite(*value) ? text + length : NULL;
}

static bool parse_whole(const char *text, double least, double most, double *value) {
    const char *end = parse_double(text, value);
    return end != NULL && *end == '\0' && *value == floor(*value) && *value >= least && *value <= most;
}

/* ---- get and set --------------------------------------------------------------------------- */

SD_API sd_status sd_setting_get(const sd_pretrainer_config *config, const char *name, char *text, size_t size) {
    SD_REQUIRE(config != NULL && text != NULL && size > 0, SD_ERR_ARGUMENT, "%s is NULL",
               config == NULL ? "config" : "text");
    size_t index = 0, count, offset, used = 0;
    sd_status status = find(name, &index);
    if (status != SD_OK)
        return status;
    sd_setting_type type = sd_setting_type_of(index, &count);
    sd_setting_bytes(index, &offset);
    const char *at = (const char *)config + offset;
    char readable[1024] = "";
    if (type != SD_SETTING_F64) {
        sd_setting_print(config, index, readable); /* whole numbers have one form */
        const char *const *words = words_of(name);
        for (size_t i = 0; words != NULL && i < 6 && words[i] != NULL; i++)
            if ((size_t)readable[0] == '0' + i && readable[1] == '\0') {
                snprintf(readable, sizeof readable, "%s", words[i]);
                break;
            }
    }
    for (size_t i = 0; type == SD_SETTING_F64 && i < count; i++) {
        double value;
        memcpy(&value, at + i * sizeof value, sizeof value);
        if (i > 0)
            readable[used++] = ',';
        print_double(value, readable + used, sizeof readable - used);
        used += strlen(readable + used);
    }
    SD_REQUIRE(strlen(readable) < size, SD_ERR_ARGUMENT, "size is %zu: %s needs %zu", size, name, strlen(readable) + 1);
    memcpy(text, readable, strlen(readable) + 1);
    return SD_OK;
}

/* Fewer numbers than a setting has are refused, but for mean and std, whose later channels keep their values. */
static bool set_doubles(const char *text, size_t count, bool fewer, double *values) {
    size_t given = 0;
    while (given < count) {
        text = parse_double(text, &values[given++]);
        if (text == NULL)
            return false;
        if (*text == '\0')
            return given == count || fewer;
        text++;
    }
    return false;
}

SD_API sd_status sd_setting_set(sd_pretrainer_config *config, const char *name, const char *text) {
    SD_REQUIRE(config != NULL && text != NULL, SD_ERR_ARGUMENT, "%s is NULL", config == NULL ? "config" : "text");
    size_t index = 0, count, offset, bytes;
    sd_status status = find(name, &index);
    if (status != SD_OK)
        return status;
    sd_setting_type type = sd_setting_type_of(index, &count);
    bytes = sd_setting_bytes(index, &offset);
    char *at = (char *)config + offset;
    const char *const *words = words_of(name);
    for (size_t i = 0; words != NULL && i < 6 && words[i] != NULL; i++)
        if (strcmp(words[i], text) == 0) {
            int32_t value = (int32_t)i;
            memcpy(at, &value, sizeof value);
            return SD_OK;
        }
    double values[SD_MAX_CHANNELS];
    if (type == SD_SETTING_F64) {
        memcpy(values, at, bytes);
        bool fewer = strcmp(name, "augment.mean") == 0 || strcmp(name, "augment.std") == 0;
        SD_REQUIRE(set_doubles(text, count, fewer, values), SD_ERR_ARGUMENT,
                   "%s is \"%.60s\": expected %zu number%s", name, text, count, count == 1 ? "" : "s with commas between");
        memcpy(at, values, bytes);
        return SD_OK;
    }
    bool narrow = type == SD_SETTING_I32;
    SD_REQUIRE(parse_whole(text, narrow ? INT32_MIN : 0, narrow ? INT32_MAX : 9007199254740992.0, &values[0]),
               SD_ERR_ARGUMENT, "%s is \"%.60s\": expected a whole number%s", name, text,
               words != NULL ? " or one of its words" : "");
    int32_t small = narrow ? (int32_t)values[0] : 0;
    uint64_t wide = narrow ? 0 : (uint64_t)values[0];
    size_t length = (size_t)wide;
    memcpy(at, narrow ? (const void *)&small : type == SD_SETTING_U64 ? (const void *)&wide : (const void *)&length, bytes);
    return SD_OK;
}
