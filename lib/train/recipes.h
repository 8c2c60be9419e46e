#ifndef SD_RECIPES_H
#define SD_RECIPES_H

#include "base/base.h"
#include <simdino/train.h>

typedef struct sd_recipe {
    const char *name, *text;
} sd_recipe;

extern const sd_recipe sd_recipes[];

#endif
