/* program.h - what the commands of the program share: exit codes, the context and its hooks, messages. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <stdbool.h>
#include <simdino/simdino.h>

enum {
    EXIT_OK = 0,
    EXIT_FAILED = 1,
    EXIT_WRONG_USAGE = 2,
    EXIT_INTERRUPTED = 130 /* 128 + SIGINT, as a shell reports it: scripts stop, and the checkpoint was saved */
};

/* The commands. argv[0] is the command's own name. */
int command_pretrain(int argc, char **argv);
int command_embed(int argc, char **argv);
int command_knn(int argc, char **argv);
int command_coding_rate(int argc, char **argv);
int command_inspect(int argc, char **argv);
int command_convert(int argc, char **argv);
int command_recipe(int argc, char **argv);
int command_index(int argc, char **argv);
int command_show(int argc, char **argv);
int command_info(int argc, char **argv);

/* ---- messages (standard error; a progress bar is taken off first) --------------------------- */

#if defined(__GNUC__)
#define PRINTF_LIKE(text, rest) __attribute__((format(printf, text, rest)))
#else
#define PRINTF_LIKE(text, rest)
#endif

void say(const char *format, ...) PRINTF_LIKE(1, 2);      /* one line */
void complain(const char *format, ...) PRINTF_LIKE(1, 2); /* one line after "simdino: " */

/* Reports a failed library call: what was tried, and the library's own words. Returns EXIT_FAILED. */
int failed(const char *what, sd_status status);

/* ---- context and signals ------------------------------------------------------------------- */

/* A context with `threads` threads (0: all), one BLAS thread in each, the log on standard error, and the two hooks that
 * Ctrl-C and the progress bar need. Reports its own failure and gives NULL. */
sd_context *open_context(int32_t threads);

/* From now on SIGINT and SIGTERM only set a flag, which the library's cancel hook reads: the running call returns with
 * SD_ERR_CANCELLED. A second signal ends the program at once. */
void catch_interrupts(void);
bool interrupted(void);
/* Lets library calls run again, so that the checkpoint can be saved; a further signal still ends the program. */
void allow_calls_after_interrupt(void);

/* Seconds of a clock that only goes forward. */
double seconds_now(void);

#endif
