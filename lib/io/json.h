/* A strict JSON reader that the caller drives: it asks for what must come next, so that nothing nests deeper than the
 * caller's own code, and nothing is kept that was not asked for. And the writing of JSON text. */
#ifndef SD_IO_JSON_H
#define SD_IO_JSON_H

#include "base/base.h"

/* ---- reading (RFC 8259) -------------------------------------------------------------------- */

typedef struct sd_json {
    const char *text;    /* size bytes, not terminated */
    size_t size, at;
    char *strings;       /* room for decoded strings: size + 1 bytes are always enough */
    size_t strings_used;
    const char *problem; /* after a failure: what was wrong at byte `at` */
} sd_json;

typedef struct sd_json_string {
    const char *text;           /* decoded, terminated by a zero; it holds no other zero */
    size_t length;
    size_t raw_at, raw_length;  /* where it stands in the text, without its quotes */
} sd_json_string;

/* Each skips white space first and returns false, with `problem` set, when something else comes. */
bool sd_json_expect(sd_json *json, char token);
bool sd_json_get_string(sd_json *json, sd_json_string *string); /* UTF-8 is checked, \u0000 refused */
bool sd_json_get_unsigned(sd_json *json, uint64_t *number);     /* digits alone, no leading zero */
bool sd_json_expect_end(sd_json *json);
/* Takes the token if it comes next. No failure. */
bool sd_json_take(sd_json *json, char token);

/* ---- writing ------------------------------------------------------------------------------- */

/* Text that is written twice: first with buffer NULL, which only counts, then into a buffer of that length. */
typedef struct sd_text {
    char *buffer;
    size_t length;
} sd_text;

void sd_text_put(sd_text *text, const char *characters);
void sd_text_put_bytes(sd_text *text, const char *bytes, size_t count);
void sd_text_put_unsigned(sd_text *text, uint64_t number);
void sd_text_put_json_string(sd_text *text, const char *string); /* with quotes and escapes */

/* Whether the bytes are well-formed UTF-8. */
bool sd_utf8_valid(const char *bytes, size_t count);

#endif
