/* options.h - command line options: "--name value", "--name=value", one-letter forms, help, and errors that help.
 *
 * A command fills a table of options, whose targets hold the defaults. options_parse() checks every value and keeps it;
 * options_apply() writes the values given into their targets. Between the two a command can replace the defaults by
 * those of the data set that was named.
 */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

typedef enum option_kind {
    OPTION_HEADING, /* not an option: a headline in the help */
    OPTION_FLAG,    /* bool, set to true */
    OPTION_TEXT,    /* const char * */
    OPTION_INT,     /* int32_t */
    OPTION_COUNT,   /* uint64_t */
    OPTION_REAL,    /* double */
    OPTION_REALS,   /* double[count], comma separated; fewer are allowed down to `least` */
    OPTION_CHOICE   /* int32_t: index in choices, a list that ends with NULL */
} option_kind;

typedef struct option {
    option_kind kind;
    const char *name;  /* without dashes; for OPTION_HEADING the headline */
    char letter;       /* one-letter form or 0 */
    const char *value; /* what the value is called in the help */
    void *target;
    const char *help;   /* with the default in words */
    double least, most; /* bounds of numbers; least == most: none. OPTION_REALS: bounds of each */
    const char *const *choices;
    size_t count;             /* OPTION_REALS: numbers wanted */
    size_t fewest;            /* OPTION_REALS: numbers needed at least */
    size_t *given_count;      /* OPTION_REALS: receives how many were given; may be NULL */
    bool fixed_by_checkpoint; /* belongs to what a checkpoint holds: refused together with --resume */
    const char *text;         /* filled by options_parse(): the value as given, NULL when it was not */
} option;

typedef struct option_set {
    const char *command;  /* "pretrain" */
    const char *synopsis; /* "--data PATH [options]" */
    const char *about;    /* a paragraph for the help */
    option *options;
    size_t count;
    const char *positional_name; /* NULL: the command takes no plain arguments */
    const char **positional;     /* receives the one plain argument */
    const char **list;           /* in place of it: receives all plain arguments, up to list_room of them */
    size_t list_room, *list_count;
    void (*more_help)(void);     /* printed at the end of the help; may be NULL */
} option_set;

typedef enum options_outcome {
    OPTIONS_GO,   /* go on */
    OPTIONS_HELP, /* the help was printed: end with EXIT_OK */
    OPTIONS_WRONG /* an error was printed: end with EXIT_WRONG_USAGE */
} options_outcome;

options_outcome options_parse(option_set *set, int argc, char **argv);
void options_apply(const option_set *set);
/* Prints "simdino COMMAND: message" and a pointer to the help. Returns EXIT_WRONG_USAGE. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
int options_wrong(const option_set *set, const char *format, ...);
bool option_given(const option_set *set, const char *name);

/* The word of `words` (NULL entries are skipped) that is nearest to `word`, or NULL when none is near. */
const char *nearest_word(const char *word, const char *const *words, size_t count);

#endif
