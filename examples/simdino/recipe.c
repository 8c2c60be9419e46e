/* Recipes on the command line, and the command "recipe". See recipe.h. */
#include "recipe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"
#include "program.h"

#define MOST_RECIPE_BYTES 65536

const char *recipe_name_for(int32_t method, const source *data) {
    static const char *const names[][3] = {
        [SD_METHOD_SIMDINO] = {"simdino-small-grey", "simdino-small-colour", "simdino-vits16"},
        [SD_METHOD_SIMDINOV2] = {"simdinov2-small-grey", "simdinov2-small-colour", "simdinov2-vitb16"},
        [SD_METHOD_DINO] = {"dino-small-grey", "dino-small-colour", "dino-vits16"},
        [SD_METHOD_DINOV2] = {"dinov2-small-grey", "dinov2-small-colour", "dinov2-vitb16"},
    };
    bool large = data->width > 64 || data->height > 64;
    return names[method][large ? 2 : data->channels == 1 ? 0 : 1];
}

static const char *read_file(const char *path, char **owned) {
    FILE *stream = fopen(path, "rb");
    if (stream == NULL) {
        complain("there is no recipe and no file \"%s\" (%s); \"simdino recipe\" lists the recipes", path,
                 strerror(errno));
        return NULL;
    }
    char *text = malloc(MOST_RECIPE_BYTES + 1);
    size_t length = text != NULL ? fread(text, 1, MOST_RECIPE_BYTES + 1, stream) : 0;
    bool broken = text == NULL || ferror(stream) != 0 || length > MOST_RECIPE_BYTES || memchr(text, 0, length) != NULL;
    fclose(stream);
    if (broken) {
        complain("%s is not a recipe: it cannot be read, or is not a text of up to %d bytes", path, MOST_RECIPE_BYTES);
        free(text);
        return NULL;
    }
    text[length] = '\0';
    *owned = text;
    return text;
}

const char *recipe_load(const char *name_or_path, char **owned) {
    *owned = NULL;
    const char *name = name_or_path;
    if (strcmp(name, "small-grey") == 0) {
        name = "simdino-small-grey";
    } else if (strcmp(name, "small-colour") == 0) {
        name = "simdino-small-colour";
    }
    const char *text = sd_recipe_text(name);
    return text != NULL ? text : read_file(name_or_path, owned);
}

/* The comment that a recipe begins with. */
static void print_title(const char *name) {
    const char *text = sd_recipe_text(name);
    int length = (int)strcspn(text, "\n");
    printf("  %-24s %.*s\n", name, length > 2 ? length - 2 : 0, length > 2 ? text + 2 : "");
}

void recipe_print_table(void) {
    printf("Recipes (\"simdino recipe NAME\" prints one; every number can be changed):\n");
    for (size_t i = 0; i < sd_recipe_count(); i++) {
        print_title(sd_recipe_name(i));
    }
}

/* ---- command ------------------------------------------------------------------------------- */

/* Every setting, as the recipe leaves it for a data set of that size. */
static int print_settings(const char *text, uint64_t images, uint64_t batch, double epochs) {
    sd_pretrainer_config config;
    sd_status status = sd_recipe_apply_text(text, images, (size_t)batch, epochs, &config);
    if (status != SD_OK) {
        return failed("recipe", status);
    }
    for (size_t i = 0; i < sd_setting_count(); i++) {
        char value[1024];
        status = sd_setting_get(&config, sd_setting_name(i), value, sizeof value);
        if (status != SD_OK) {
            return failed("recipe", status);
        }
        printf("%s = %s\n", sd_setting_name(i), value);
    }
    return EXIT_OK;
}

int command_recipe(int argc, char **argv) {
    const char *name = NULL;
    bool all = false;
    uint64_t images = 1281167, batch = 0;
    double epochs = 0;
    option table[] = {
        {.kind = OPTION_FLAG, .name = "all", .target = &all,
         .help = "print every setting as the recipe leaves it, in place of its own lines"},
        {.kind = OPTION_COUNT, .name = "images", .value = "N", .target = &images, .least = 1, .most = 1e15,
         .help = "with --all: images of the data set (default: ImageNet's 1281167)"},
        {.kind = OPTION_COUNT, .name = "batch", .value = "N", .target = &batch, .least = 1, .most = 1e9,
         .help = "with --all: images of a step (default: the recipe's)"},
        {.kind = OPTION_REAL, .name = "epochs", .value = "N", .target = &epochs, .least = 1e-6, .most = 1e9,
         .help = "with --all: passes over the images (default: the recipe's)"},
    };
    option_set set = {
        .command = "recipe",
        .synopsis = "[NAME] [options]",
        .about = "Prints a recipe: the settings that pretraining starts from. Without a name: lists the recipes.\n"
                 "What is printed can be changed, saved, and given to \"simdino pretrain --recipe FILE\".",
        .options = table,
        .count = sizeof table / sizeof table[0],
        .positional_name = "NAME",
        .positional = &name,
    };
    options_outcome outcome = options_parse(&set, argc, argv);
    if (outcome != OPTIONS_GO) {
        return outcome == OPTIONS_HELP ? EXIT_OK : EXIT_WRONG_USAGE;
    }
    options_apply(&set);
    if (name == NULL) {
        recipe_print_table();
        return EXIT_OK;
    }
    char *owned;
    const char *text = recipe_load(name, &owned);
    if (text == NULL) {
        return EXIT_FAILED;
    }
    int result = EXIT_OK;
    if (all) {
        result = print_settings(text, images, batch, epochs);
    } else {
        fputs(text, stdout);
    }
    free(owned);
    return result;
}
