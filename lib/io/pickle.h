/* A machine for pickles that makes no objects and calls nothing: it knows containers, numbers, text, and what PyTorch
 * puts into checkpoints (storages, tensors, parameters, NumPy scalars). All else becomes a value of kind
 * SD_PICKLE_SKIPPED, and what is done to such a value is passed over.
 *
 * Python's pickletools.py documents the opcodes (protocols 2 to 5). Values are numbered; containers may hold each other
 * in any way, cycles too: who walks through them must count his steps. */
#ifndef SD_IO_PICKLE_H
#define SD_IO_PICKLE_H

#include "base/base.h"
#include "io/file.h"
#include <simdino/io.h>

#define SD_PICKLE_BYTES_MAX  ((uint64_t)64 << 20) /* published checkpoints: below 1 MB */
#define SD_PICKLE_VALUES_MAX ((size_t)1 << 24)

typedef enum sd_pickle_kind {
    SD_PICKLE_NONE,
    SD_PICKLE_BOOL,    /* integer */
    SD_PICKLE_INTEGER, /* integer */
    SD_PICKLE_FLOAT,   /* real */
    SD_PICKLE_TEXT,    /* text: UTF-8, or bytes */
    SD_PICKLE_LATIN1,  /* text: bytes 0 to 255 written as UTF-8 */
    SD_PICKLE_LIST,    /* list: of values, tuples too */
    SD_PICKLE_DICT,    /* list: of keys and values */
    SD_PICKLE_STORAGE, /* integer: its number */
    SD_PICKLE_TENSOR,  /* integer: its number */
    SD_PICKLE_GLOBAL,  /* something that is known by name */
    SD_PICKLE_DTYPE,   /* element type of a NumPy scalar */
    SD_PICKLE_BIG,     /* text: an integer of more than eight bytes, little-endian */
    SD_PICKLE_SKIPPED
} sd_pickle_kind;

typedef uint32_t sd_pickle_id; /* the place of a value */

typedef struct sd_pickle_text {
    size_t at; /* in the pickle's bytes */
    size_t length;
} sd_pickle_text;

typedef struct sd_pickle_value {
    uint8_t kind;   /* sd_pickle_kind */
    int8_t dtype;   /* of SD_PICKLE_GLOBAL and SD_PICKLE_DTYPE */
    bool swapped;   /* SD_PICKLE_DTYPE: big-endian */
    uint8_t global; /* which one */
    union {
        int64_t integer;
        double real;
        sd_pickle_text text;
        struct {
            uint32_t first, last, count; /* cells; 0: none */
        } list;
    };
} sd_pickle_value;

/* A link of a list: of dictionaries the key too. */
typedef struct sd_pickle_cell {
    sd_pickle_id key, value;
    uint32_t next; /* 0: none */
} sd_pickle_cell;

typedef struct sd_pickle_storage {
    sd_pickle_text key;
    int32_t dtype; /* SD_DTYPE_OTHER: it cannot be read */
    bool untyped;  /* `elements` counts bytes, and the tensor tells its type */
    uint64_t elements;
    uint64_t start; /* element of the storage that counts as the first one */
} sd_pickle_storage;

typedef struct sd_pickle_tensor {
    size_t storage;
    int32_t dtype;
    size_t dimensions;
    uint64_t offset; /* in elements, as the strides */
    uint64_t shape[SD_STORED_DIMENSIONS], stride[SD_STORED_DIMENSIONS];
} sd_pickle_tensor;

typedef struct sd_pickle {
    sd_context *context;
    const char *path;           /* for messages */
    const sd_input_file *input; /* more bytes come from here; NULL: all are there */
    uint64_t position;          /* in the input, of byte 0 */
    unsigned char *bytes;       /* owned */
    size_t size, bytes_room, at;

    sd_pickle_value *values;
    size_t value_count, value_room;
    sd_pickle_cell *cells; /* 0 is not used */
    size_t cell_count, cell_room;
    sd_pickle_storage *storages;
    size_t storage_count, storage_room;
    sd_pickle_tensor *tensors;
    size_t tensor_count, tensor_room;
    sd_pickle_id *stack, *memo; /* memo: place of the value + 1, 0: none */
    size_t stack_count, stack_room, memo_count, memo_room;
    size_t *marks;
    size_t mark_count, mark_room;
} sd_pickle;

/* A pickle in a file, of unknown length, from `position` on; or (input NULL) of the bytes that the caller puts in. */
void sd_pickle_init(sd_pickle *pickle, sd_context *context, const char *path, const sd_input_file *input,
                    uint64_t position);
void sd_pickle_clear(sd_pickle *pickle);
/* Runs to the next STOP, whose value is *root. Values of a former run stay, so that several pickles may follow each
 * other; the memo does not.
 * Errors: SD_ERR_FORMAT (names the byte), SD_ERR_UNSUPPORTED (an opcode), SD_ERR_IO, SD_ERR_MEMORY. */
sd_status sd_pickle_run(sd_pickle *pickle, sd_pickle_id *root);

/* Whether a text is this one. */
bool sd_pickle_is(const sd_pickle *pickle, const sd_pickle_value *value, const char *text);

/* ---- between the two files ------------------------------------------------------------------- */

/* Makes room for one more item in a grow-only array of at most `most`. */
sd_status sd_pickle_grow(sd_pickle *pickle, void *array, size_t *room, size_t count, size_t item, size_t most);
/* "PATH: pickle, byte N: problem" */
sd_status sd_pickle_fail(const sd_pickle *pickle, const char *problem);

/* pickle_torch.c: what a name stands for; what calling it gives, in place of *result; a persistent identity. */
void sd_pickle_find_global(const sd_pickle *pickle, sd_pickle_text module, sd_pickle_text name, sd_pickle_value *value);
sd_status sd_pickle_call(sd_pickle *pickle, sd_pickle_id function, sd_pickle_id arguments, sd_pickle_id *result);
sd_status sd_pickle_persistent(sd_pickle *pickle, sd_pickle_id identity, sd_pickle_value *value);
/* The state that is given to a value: only NumPy's types care. */
void sd_pickle_build(sd_pickle *pickle, sd_pickle_id target, sd_pickle_id state);

#endif
