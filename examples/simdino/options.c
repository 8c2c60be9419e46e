/* Parsing of options. See options.h. */
#include "options.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

#define LONGEST_WORD 64
#define HELP_COLUMN  30
#define HELP_WIDTH   100

/* ---- suggestions --------------------------------------------------------------------------- */

/* Levenshtein distance: inserted, removed and replaced characters. */
static size_t edit_distance(const char *a, const char *b) {
    size_t row[LONGEST_WORD + 1];
    size_t length = strlen(b);
    if (length > LONGEST_WORD) {
        return SIZE_MAX;
    }
    for (size_t j = 0; j <= length; j++) {
        row[j] = j;
    }
    for (size_t i = 1; a[i - 1] != '\0'; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= length; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best) {
                best = row[j] + 1;
            }
            if (row[j - 1] + 1 < best) {
                best = row[j - 1] + 1;
            }
            row[j] = best;
        }
    }
    return row[length];
}

const char *nearest_word(const char *word, const char *const *words, size_t count) {
    const char *best = NULL;
    size_t best_distance = SIZE_MAX;
    for (size_t i = 0; i < count; i++) {
        if (words[i] == NULL) {
            continue;
        }
        size_t distance = edit_distance(word, words[i]);
        if (strlen(word) >= 3 && strncmp(words[i], word, strlen(word)) == 0) {
            distance = 1; /* the beginning of a name */
        }
        if (distance < best_distance) {
            best_distance = distance;
            best = words[i];
        }
    }
    size_t allowed = strlen(word) / 3 + 1;
    return best_distance <= allowed ? best : NULL;
}

/* ---- errors -------------------------------------------------------------------------------- */

static int wrong_with_arguments(const option_set *set, const char *format, va_list arguments) {
    fprintf(stderr, "simdino %s: ", set->command);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\nTry: simdino %s --help\n", set->command);
    return EXIT_WRONG_USAGE;
}

int options_wrong(const option_set *set, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int result = wrong_with_arguments(set, format, arguments);
    va_end(arguments);
    return result;
}

static bool wrong_value(const option_set *set, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    wrong_with_arguments(set, format, arguments);
    va_end(arguments);
    return false;
}

static options_outcome unknown_option(const option_set *set, const char *name) {
    const char *names[128];
    size_t count = 0;
    for (size_t i = 0; i < set->count && count < 127; i++) {
        if (set->options[i].kind != OPTION_HEADING) {
            names[count++] = set->options[i].name;
        }
    }
    names[count++] = "help";
    const char *near = nearest_word(name, names, count);
    if (near != NULL) {
        options_wrong(set, "there is no option --%s; did you mean --%s?", name, near);
    } else {
        options_wrong(set, "there is no option --%s", name);
    }
    return OPTIONS_WRONG;
}

/* ---- values -------------------------------------------------------------------------------- */

static bool parse_real(const char *text, double *value, const char **end) {
    errno = 0;
    char *stop = NULL;
    *value = strtod(text, &stop);
    *end = stop;
    return stop != text && errno == 0 && isfinite(*value);
}

static bool in_bounds(const option *o, double value) {
    return o->least >= o->most || (value >= o->least && value <= o->most);
}

static bool out_of_bounds(const option_set *set, const option *o, const char *text) {
    if (o->most >= 1e9) {
        return wrong_value(set, "--%s %s: must be at least %g", o->name, text, o->least);
    }
    return wrong_value(set, "--%s %s: must be from %g to %g", o->name, text, o->least, o->most);
}

static bool take_reals(const option_set *set, const option *o, const char *text, double *values) {
    size_t count = 0;
    const char *position = text;
    for (;;) {
        double value = 0;
        const char *end = position;
        if (count == o->count || !parse_real(position, &value, &end) || (*end != '\0' && *end != ',')) {
            break;
        }
        if (!in_bounds(o, value)) {
            return out_of_bounds(set, o, text);
        }
        if (values != NULL) {
            values[count] = value;
        }
        count++;
        if (*end == '\0') {
            if (count < o->fewest) {
                break;
            }
            if (values != NULL && o->given_count != NULL) {
                *o->given_count = count;
            }
            return true;
        }
        position = end + 1;
    }
    if (o->fewest == o->count) {
        return wrong_value(set, "--%s %s: expected %zu numbers with commas between them", o->name, text, o->count);
    }
    return wrong_value(set, "--%s %s: expected %zu to %zu numbers with commas between them", o->name, text, o->fewest,
                       o->count);
}

static bool take_choice(const option_set *set, const option *o, const char *text, int32_t *value) {
    char all[256] = "";
    size_t count = 0;
    for (; o->choices[count] != NULL; count++) {
        if (strcmp(o->choices[count], text) == 0) {
            if (value != NULL) {
                *value = (int32_t)count;
            }
            return true;
        }
        size_t used = strlen(all);
        snprintf(all + used, sizeof all - used, "%s%s", count > 0 ? ", " : "", o->choices[count]);
    }
    const char *near = nearest_word(text, o->choices, count);
    if (near != NULL) {
        return wrong_value(set, "--%s %s: did you mean %s? It is one of: %s", o->name, text, near, all);
    }
    return wrong_value(set, "--%s %s: it is one of: %s", o->name, text, all);
}

/* Checks the value of an option, and writes it into the target when `write` is true. */
static bool take_value(const option_set *set, const option *o, const char *text, bool write) {
    const char *end = text;
    double real = 0;
    switch (o->kind) {
    case OPTION_HEADING: return true;
    case OPTION_FLAG:
        if (write) {
            *(bool *)o->target = true;
        }
        return true;
    case OPTION_TEXT:
        if (*text == '\0') {
            return wrong_value(set, "--%s: the value is empty", o->name);
        }
        if (write) {
            *(const char **)o->target = text;
        }
        return true;
    case OPTION_INT:
    case OPTION_COUNT:
        if (!parse_real(text, &real, &end) || *end != '\0' || real != floor(real) || fabs(real) > 9007199254740992.0) {
            return wrong_value(set, "--%s %s: expected a whole number", o->name, text);
        }
        if (!in_bounds(o, real) || (o->kind == OPTION_INT && fabs(real) > INT32_MAX) ||
            (o->kind == OPTION_COUNT && real < 0)) {
            return out_of_bounds(set, o, text);
        }
        if (write && o->kind == OPTION_INT) {
            *(int32_t *)o->target = (int32_t)real;
        } else if (write) {
            *(uint64_t *)o->target = (uint64_t)real;
        }
        return true;
    case OPTION_REAL:
        if (!parse_real(text, &real, &end) || *end != '\0') {
            return wrong_value(set, "--%s %s: expected a number", o->name, text);
        }
        if (!in_bounds(o, real)) {
            return out_of_bounds(set, o, text);
        }
        if (write) {
            *(double *)o->target = real;
        }
        return true;
    case OPTION_REALS: return take_reals(set, o, text, write ? (double *)o->target : NULL);
    case OPTION_CHOICE: return take_choice(set, o, text, write ? (int32_t *)o->target : NULL);
    }
    return false;
}

/* ---- help ---------------------------------------------------------------------------------- */

/* Prints `text` broken into lines that begin at HELP_COLUMN; the cursor is at `column`. */
static void print_wrapped(const char *text, int column) {
    while (*text != '\0') {
        if (column < HELP_COLUMN) {
            printf("%*s", HELP_COLUMN - column, "");
            column = HELP_COLUMN;
        }
        size_t room = HELP_WIDTH - HELP_COLUMN;
        size_t length = strlen(text);
        if (length > room) {
            length = room;
            while (length > 0 && text[length] != ' ') {
                length--;
            }
            if (length == 0) {
                length = room;
            }
        }
        printf("%.*s\n", (int)length, text);
        text += length;
        while (*text == ' ') {
            text++;
        }
        column = 0;
    }
}

static void print_help(const option_set *set) {
    printf("Usage: simdino %s %s\n\n%s\n", set->command, set->synopsis, set->about);
    for (size_t i = 0; i < set->count; i++) {
        const option *o = &set->options[i];
        if (o->kind == OPTION_HEADING) {
            printf("\n%s:\n", o->name);
            continue;
        }
        int column = 0;
        if (o->letter != 0) {
            column += printf("  -%c, --%s", o->letter, o->name);
        } else {
            column += printf("  --%s", o->name);
        }
        if (o->kind != OPTION_FLAG) {
            column += printf(" %s", o->value);
        }
        if (column > HELP_COLUMN - 2) {
            printf("\n");
            column = 0;
        }
        print_wrapped(o->help, column);
    }
    printf("  --help%*sthis text\n", HELP_COLUMN - 8, "");
    if (set->more_help != NULL) {
        printf("\n");
        set->more_help();
    }
}

/* ---- parsing ------------------------------------------------------------------------------- */

static option *find_option(const option_set *set, const char *name, size_t length, char letter) {
    for (size_t i = 0; i < set->count; i++) {
        option *o = &set->options[i];
        if (o->kind == OPTION_HEADING) {
            continue;
        }
        if (letter != 0 ? o->letter == letter : strlen(o->name) == length && strncmp(o->name, name, length) == 0) {
            return o;
        }
    }
    return NULL;
}

bool option_given(const option_set *set, const char *name) {
    const option *o = find_option(set, name, strlen(name), 0);
    return o != NULL && o->text != NULL;
}

static options_outcome take_positional(option_set *set, const char *text) {
    if (set->list != NULL) {
        if (*set->list_count == set->list_room) {
            options_wrong(set, "more than %zu arguments", set->list_room);
            return OPTIONS_WRONG;
        }
        set->list[(*set->list_count)++] = text;
        return OPTIONS_GO;
    }
    if (set->positional == NULL) {
        options_wrong(set, "unexpected argument \"%s\": options begin with --", text);
        return OPTIONS_WRONG;
    }
    if (*set->positional != NULL) {
        options_wrong(set, "unexpected argument \"%s\": only one %s is taken", text, set->positional_name);
        return OPTIONS_WRONG;
    }
    *set->positional = text;
    return OPTIONS_GO;
}

options_outcome options_parse(option_set *set, int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help(set);
            return OPTIONS_HELP;
        }
    }
    bool only_positional = false;
    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        if (only_positional || argument[0] != '-' || argument[1] == '\0') {
            if (take_positional(set, argument) != OPTIONS_GO) {
                return OPTIONS_WRONG;
            }
            continue;
        }
        if (strcmp(argument, "--") == 0) {
            only_positional = true;
            continue;
        }
        const char *name = argument + 2, *value = NULL;
        option *o;
        if (argument[1] == '-') {
            value = strchr(name, '=');
            size_t length = value != NULL ? (size_t)(value - name) : strlen(name);
            value = value != NULL ? value + 1 : NULL;
            o = find_option(set, name, length, 0);
            if (o == NULL) {
                char word[LONGEST_WORD + 1];
                snprintf(word, sizeof word, "%.*s", (int)(length < LONGEST_WORD ? length : LONGEST_WORD), name);
                return unknown_option(set, word);
            }
        } else {
            o = find_option(set, NULL, 0, argument[1]);
            if (o == NULL) {
                options_wrong(set, "there is no option -%c", argument[1]);
                return OPTIONS_WRONG;
            }
            value = argument[2] == '=' ? argument + 3 : argument[2] != '\0' ? argument + 2 : NULL;
        }
        if (o->kind == OPTION_FLAG) {
            if (value != NULL) {
                options_wrong(set, "--%s takes no value", o->name);
                return OPTIONS_WRONG;
            }
            value = "";
        } else if (value == NULL) {
            if (i + 1 >= argc) {
                options_wrong(set, "--%s needs a value: --%s %s", o->name, o->name, o->value);
                return OPTIONS_WRONG;
            }
            value = argv[++i];
        }
        if (!take_value(set, o, value, false)) {
            return OPTIONS_WRONG;
        }
        o->text = value;
    }
    return OPTIONS_GO;
}

void options_apply(const option_set *set) {
    for (size_t i = 0; i < set->count; i++) {
        if (set->options[i].text != NULL) {
            take_value(set, &set->options[i], set->options[i].text, true);
        }
    }
}
