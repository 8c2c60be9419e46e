/* progress.h - a progress bar on a terminal; a plain line every few seconds elsewhere. On standard error. */
#ifndef PROGRESS_H
#define PROGRESS_H

#include <stdint.h>

/* Begins to show work of `total` units, the first `start` of which were done earlier. One bar at a time. */
void progress_begin(const char *what, uint64_t start, uint64_t total);

/* `done` units are finished; `more` is shown behind them ("loss 1.23"). Draws only when it is time to. Does nothing
 * when no bar has begun. */
void progress_update(uint64_t done, const char *more);

/* The same for the library's progress hook: does nothing unless the name of the bar begins with `what`. */
void progress_update_library(const char *what, uint64_t done);

/* Takes the bar off the terminal, so that a line can be printed; the next update draws it again. */
void progress_hide(void);

/* Ends the bar. */
void progress_end(void);

/* Writes "1:02:03" or "4:05". `text` has room for 24 characters. */
void format_duration(double seconds, char *text);

#endif
