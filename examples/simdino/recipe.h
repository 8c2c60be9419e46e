/* recipe.h - which recipe pretraining starts from, and the command that prints recipes. */
#ifndef RECIPE_H
#define RECIPE_H

#include <simdino/simdino.h>

#include "sources.h"

/* The recipe of a method for the kind of images: "METHOD-small-grey", "METHOD-small-colour", or the smallest official
 * one. */
const char *recipe_name_for(int32_t method, const source *data);
/* The text of a recipe by its name, or of the file of that name, read into memory that `owned` receives (free it). NULL
 * with the reason reported. "small-grey" and "small-colour" are SimDINO's. */
const char *recipe_load(const char *name_or_path, char **owned);
void recipe_print_table(void);

#endif
