/* Reading a recipe: lines of settings, and what is told in epochs, which becomes steps once the data set is known. */
#include "train/recipes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define INCLUDES_MAX 4
#define LINE_MAX_BYTES ((size_t)256)

/* What a recipe says beside settings. */
typedef struct recipe_length {
    double epochs, epoch_images, base_lr, warmup_epochs, teacher_temp_epochs, freeze_epochs;
    bool sqrt_rule;
} recipe_length;

/* ---- lines --------------------------------------------------------------------------------- */

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

/* Takes a line apart into key and value without the blanks around them; an empty line or comment gives an empty key. */
static bool split_line(const char *line, size_t length, char *key, char *value) {
    while (length > 0 && is_blank(line[0])) {
        line++;
        length--;
    }
    while (length > 0 && is_blank(line[length - 1]))
        length--;
    key[0] = value[0] = '\0';
    if (length == 0 || line[0] == '#')
        return true;
    const char *equals = memchr(line, '=', length);
    if (equals == NULL || length >= LINE_MAX_BYTES)
        return false;
    size_t key_length = (size_t)(equals - line), value_length = length - key_length - 1;
    while (key_length > 0 && is_blank(line[key_length - 1]))
        key_length--;
    const char *from = equals + 1;
    while (value_length > 0 && is_blank(from[0])) {
        from++;
        value_length--;
    }
    memcpy(key, line, key_length);
    key[key_length] = '\0';
    memcpy(value, from, value_length);
    value[value_length] = '\0';
    return key_length > 0 && value_length > 0;
}

/* A number of the recipe itself: read as a setting of the same type would be. */
static sd_status set_number(const char *key, const char *value, double *number) {
    sd_pretrainer_config scratch;
    sd_pretrainer_config_init(&scratch);
    sd_status status = sd_setting_set(&scratch, "lr", value);
    SD_REQUIRE(status == SD_OK && scratch.lr >= 0.0, SD_ERR_ARGUMENT, "%s is \"%.60s\": expected a number of at least 0",
               key, value);
    *number = scratch.lr;
    return SD_OK;
}

static sd_status apply_text(const char *text, int depth, sd_pretrainer_config *config, recipe_length *length);

static sd_status apply_line(const char *key, const char *value, int depth, sd_pretrainer_config *config,
                            recipe_length *length) {
    const struct {
        const char *key;
        double *number;
    } numbers[] = {
        {"epochs", &length->epochs},
        {"epoch_images", &length->epoch_images},
        {"base_lr", &length->base_lr},
        {"warmup_epochs", &length->warmup_epochs},
        {"teacher_temp_epochs", &length->teacher_temp_epochs},
        {"freeze_epochs", &length->freeze_epochs},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strcmp(key, numbers[i].key) == 0)
            return set_number(key, value, numbers[i].number);
    if (strcmp(key, "include") == 0) {
        const char *text = sd_recipe_text(value);
        SD_REQUIRE(text != NULL, SD_ERR_ARGUMENT, "include = %.60s: there is no such recipe", value);
        SD_REQUIRE(depth < INCLUDES_MAX, SD_ERR_ARGUMENT, "include = %.60s: too many recipes within each other", value);
        return apply_text(text, depth + 1, config, length);
    }
    if (strcmp(key, "lr_rule") == 0) {
        length->sqrt_rule = strcmp(value, "sqrt") == 0;
        SD_REQUIRE(length->sqrt_rule || strcmp(value, "linear") == 0, SD_ERR_ARGUMENT,
                   "lr_rule is \"%.60s\": expected linear or sqrt", value);
        return SD_OK;
    }
    if (strcmp(key, "method") == 0) {
        int32_t method;
        sd_status status = sd_method_from_name(value, &method);
        return status == SD_OK ? sd_pretrainer_config_method(config, method) : status;
    }
    return sd_setting_set(config, key, value);
}

static sd_status apply_text(const char *text, int depth, sd_pretrainer_config *config, recipe_length *length) {
    for (size_t line = 1; *text != '\0'; line++) {
        size_t bytes = strcspn(text, "\n");
        char key[LINE_MAX_BYTES], value[LINE_MAX_BYTES];
        SD_REQUIRE(split_line(text, bytes, key, value), SD_ERR_ARGUMENT,
                   "line %zu of the recipe is \"%.*s\": expected \"setting = value\"", line,
                   (int)sd_size_min(bytes, 80), text);
        sd_status status = key[0] == '\0' ? SD_OK : apply_line(key, value, depth, config, length);
        if (status != SD_OK)
            return status;
        text += bytes + (text[bytes] == '\n');
    }
    return SD_OK;
}

/* ---- epochs -> steps ----------------------------------------------------------------------- */

static uint64_t steps_of(double epochs, double epoch_steps) { return (uint64_t)ceil(epochs * epoch_steps - 1e-9); }

SD_API sd_status sd_recipe_apply_text(const char *text, uint64_t images, size_t batch_size, double epochs,
                                      sd_pretrainer_config *out) {
    SD_REQUIRE(text != NULL && out != NULL, SD_ERR_ARGUMENT, "%s is NULL", text == NULL ? "text" : "config");
    SD_REQUIRE(images >= 1 && images <= (uint64_t)1 << 50, SD_ERR_ARGUMENT,
               "images is %llu: it must be at least 1 and at most 2^50", (unsigned long long)images);
    SD_REQUIRE(epochs >= 0.0 && epochs <= 1e9, SD_ERR_ARGUMENT, "epochs is %g: it must be 0 to 1e9", epochs);
    sd_pretrainer_config config;
    recipe_length length = {.epochs = 100.0};
    sd_pretrainer_config_init(&config);
    sd_status status = apply_text(text, 0, &config, &length);
    if (status != SD_OK)
        return status;
    double planned = length.epochs;
    if (batch_size > 0)
        config.batch_size = batch_size;
    if (epochs > 0.0)
        length.epochs = epochs;
    SD_REQUIRE(config.batch_size >= 1, SD_ERR_ARGUMENT, "batch_size is 0: it must be at least 1");
    SD_REQUIRE(length.epochs > 0.0 && planned > 0.0, SD_ERR_ARGUMENT, "epochs is 0: it must be above 0");
    double epoch_images = length.epoch_images > 0.0 ? length.epoch_images : (double)images;
    double epoch_steps = fmax(floor(epoch_images / (double)config.batch_size), 1.0);
    /* phases keep their share of a run that is made shorter or longer than the recipe's */
    double stretch = length.epochs / planned;
    config.total_steps = steps_of(length.epochs, epoch_steps);
    config.warmup_steps = steps_of(length.warmup_epochs * stretch, epoch_steps);
    config.teacher_temp_steps = steps_of(length.teacher_temp_epochs * stretch, epoch_steps);
    config.freeze_steps = steps_of(length.freeze_epochs * stretch, epoch_steps);
    /* DINO changes its temperature once an epoch, where there are whole epochs of it */
    bool by_epoch = config.method == SD_METHOD_DINO && length.teacher_temp_epochs * stretch >= 2.0;
    config.epoch_steps = by_epoch ? (uint64_t)epoch_steps : 0;
    if (length.base_lr > 0.0)
        config.lr = length.sqrt_rule ? sd_scale_lr_sqrt(length.base_lr, config.batch_size)
                                     : sd_scale_lr_linear(length.base_lr, config.batch_size);
    config.model.image_size = config.augment.global_size;
    *out = config;
    return SD_OK;
}

SD_API sd_status sd_recipe_apply(const char *name, uint64_t images, size_t batch_size, double epochs,
                                 sd_pretrainer_config *config) {
    SD_REQUIRE(name != NULL, SD_ERR_ARGUMENT, "name is NULL");
    const char *text = sd_recipe_text(name);
    SD_REQUIRE(text != NULL, SD_ERR_ARGUMENT, "there is no recipe \"%.60s\"", name);
    return sd_recipe_apply_text(text, images, batch_size, epochs, config);
}
