#include "io/pickle.h"

#include <string.h>

#define FIRST_PIECE ((size_t)1 << 14)

/* ---- memory and bytes ----------------------------------------------------------------------- */

void sd_pickle_init(sd_pickle *pickle, sd_context *context, const char *path, const sd_input_file *input,
                    uint64_t position) {
    *pickle = (sd_pickle){.context = context, .path = path, .input = input, .position = position, .cell_count = 1};
}

void sd_pickle_clear(sd_pickle *pickle) {
    sd_release(pickle->context, pickle->bytes);
    sd_release(pickle->context, pickle->values);
    sd_release(pickle->context, pickle->cells);
    sd_release(pickle->context, pickle->storages);
    sd_release(pickle->context, pickle->tensors);
    sd_release(pickle->context, pickle->stack);
    sd_release(pickle->context, pickle->memo);
    sd_release(pickle->context, pickle->marks);
    *pickle = (sd_pickle){.context = pickle->context};
}

sd_status sd_pickle_fail(const sd_pickle *pickle, const char *problem) {
    return sd_fail(SD_ERR_FORMAT, "%s: pickle, byte %llu: %s", pickle->path,
                   (unsigned long long)(pickle->position + pickle->at), problem);
}

sd_status sd_pickle_grow(sd_pickle *pickle, void *array, size_t *room, size_t count, size_t item, size_t most) {
    if (count < *room)
        return SD_OK;
    if (count >= most)
        return sd_pickle_fail(pickle, "too many values");
    size_t wanted = sd_size_min(sd_size_max(2 * *room, count + 64), most);
    void *former, *larger = sd_allocate(pickle->context, wanted, item);
    if (!larger)
        return SD_ERR_MEMORY;
    memcpy(&former, array, sizeof former);
    if (former)
        memcpy(larger, former, count * item);
    sd_release(pickle->context, former);
    memcpy(array, &larger, sizeof larger);
    *room = wanted;
    return SD_OK;
}

/* Makes `count` bytes from `at` on readable. */
static sd_status need(sd_pickle *pickle, uint64_t count) {
    if (count <= pickle->size - pickle->at)
        return SD_OK;
    uint64_t left = pickle->input ? sd_input_file_size(pickle->input) - pickle->position - pickle->size : 0;
    if (count > pickle->size - pickle->at + left)
        return sd_pickle_fail(pickle, "truncated");
    if (pickle->at + count > SD_PICKLE_BYTES_MAX)
        return sd_pickle_fail(pickle, "too long");
    size_t wanted = sd_size_max(pickle->at + (size_t)count, sd_size_max(2 * pickle->size, FIRST_PIECE));
    wanted = left < wanted - pickle->size ? pickle->size + (size_t)left : wanted;
    unsigned char *larger = sd_allocate(pickle->context, wanted, 1);
    if (!larger)
        return SD_ERR_MEMORY;
    if (pickle->bytes)
        memcpy(larger, pickle->bytes, pickle->size);
    sd_release(pickle->context, pickle->bytes);
    pickle->bytes = larger;
    sd_status status = sd_input_file_read(pickle->input, pickle->position + pickle->size, larger + pickle->size,
                                          wanted - pickle->size);
    if (status == SD_OK)
        pickle->size = wanted;
    return status;
}

static sd_status get_number(sd_pickle *pickle, size_t bytes, uint64_t *number) {
    sd_status status = need(pickle, bytes);
    *number = 0;
    if (status == SD_OK) {
        for (size_t i = bytes; i-- > 0;)
            *number = *number << 8 | pickle->bytes[pickle->at + i];
        pickle->at += bytes;
    }
    return status;
}

/* Text of a length that `bytes` bytes tell. */
static sd_status get_text(sd_pickle *pickle, size_t bytes, sd_pickle_text *text) {
    uint64_t length;
    sd_status status = get_number(pickle, bytes, &length);
    if (status == SD_OK)
        status = need(pickle, length);
    if (status == SD_OK) {
        *text = (sd_pickle_text){pickle->at, (size_t)length};
        pickle->at += (size_t)length;
    }
    return status;
}

static sd_status get_line(sd_pickle *pickle, sd_pickle_text *line) {
    line->at = pickle->at;
    for (;;) {
        sd_status status = need(pickle, 1);
        if (status != SD_OK)
            return status;
        if (pickle->bytes[pickle->at++] == '\n')
            break;
    }
    line->length = pickle->at - 1 - line->at;
    return SD_OK;
}

/* ---- stack ----------------------------------------------------------------------------------- */

static sd_status push_id(sd_pickle *p, sd_pickle_id id) {
    sd_status status =
        sd_pickle_grow(p, &p->stack, &p->stack_room, p->stack_count, sizeof *p->stack, SD_PICKLE_VALUES_MAX);
    if (status == SD_OK)
        p->stack[p->stack_count++] = id;
    return status;
}

static sd_status make(sd_pickle *p, sd_pickle_value value, sd_pickle_id *id) {
    sd_status status =
        sd_pickle_grow(p, &p->values, &p->value_room, p->value_count, sizeof *p->values, SD_PICKLE_VALUES_MAX);
    if (status != SD_OK)
        return status;
    *id = (sd_pickle_id)p->value_count;
    p->values[p->value_count++] = value;
    return SD_OK;
}

static sd_status push(sd_pickle *p, sd_pickle_value value) {
    sd_pickle_id id;
    sd_status status = make(p, value, &id);
    return status == SD_OK ? push_id(p, id) : status;
}

/* Values above the last mark, or above the bottom. */
static size_t above_mark(const sd_pickle *p) {
    return p->stack_count - (p->mark_count > 0 ? p->marks[p->mark_count - 1] : 0);
}

static sd_status pop(sd_pickle *p, sd_pickle_id *id) {
    if (above_mark(p) == 0)
        return sd_pickle_fail(p, "nothing is on the stack");
    *id = p->stack[--p->stack_count];
    return SD_OK;
}

/* The place of the topmost mark, which goes. */
static sd_status pop_mark(sd_pickle *p, size_t *place) {
    if (p->mark_count == 0)
        return sd_pickle_fail(p, "no mark is set");
    *place = p->marks[--p->mark_count];
    return SD_OK;
}

/* ---- containers ------------------------------------------------------------------------------ */

static sd_status append(sd_pickle *p, sd_pickle_id container, sd_pickle_id key, sd_pickle_id value) {
    sd_status status =
        sd_pickle_grow(p, &p->cells, &p->cell_room, p->cell_count, sizeof *p->cells, SD_PICKLE_VALUES_MAX);
    if (status != SD_OK)
        return status;
    uint32_t cell = (uint32_t)p->cell_count++;
    p->cells[cell] = (sd_pickle_cell){key, value, 0};
    sd_pickle_value *list = &p->values[container];
    if (list->list.count++ == 0)
        list->list.first = cell;
    else
        p->cells[list->list.last].next = cell;
    list->list.last = cell;
    return SD_OK;
}

/* The stack from `place` on becomes a list of its own. */
static sd_status push_list(sd_pickle *p, size_t place) {
    sd_pickle_id list;
    sd_status status = make(p, (sd_pickle_value){.kind = SD_PICKLE_LIST}, &list);
    for (size_t i = place; status == SD_OK && i < p->stack_count; i++)
        status = append(p, list, 0, p->stack[i]);
    if (status != SD_OK)
        return status;
    p->stack_count = place;
    return push_id(p, list);
}

static sd_status push_tuple(sd_pickle *p, size_t count) {
    if (above_mark(p) < count)
        return sd_pickle_fail(p, "nothing is on the stack");
    return push_list(p, p->stack_count - count);
}

/* The stack from `place` on goes into the container below it, if that is one that is kept. */
static sd_status fill(sd_pickle *p, size_t place, sd_pickle_kind kind) {
    size_t floor = p->mark_count > 0 ? p->marks[p->mark_count - 1] : 0;
    size_t step = kind == SD_PICKLE_DICT ? 2 : 1;
    if (place <= floor)
        return sd_pickle_fail(p, "no container is on the stack");
    if ((p->stack_count - place) % step != 0)
        return sd_pickle_fail(p, "a key without a value");
    sd_pickle_id container = p->stack[place - 1];
    sd_status status = SD_OK;
    if (p->values[container].kind == kind)
        for (size_t i = place; status == SD_OK && i < p->stack_count; i += step)
            status =
                step == 2 ? append(p, container, p->stack[i], p->stack[i + 1]) : append(p, container, 0, p->stack[i]);
    p->stack_count = place;
    return status;
}

/* ---- memo ------------------------------------------------------------------------------------ */

static sd_status remember(sd_pickle *p, uint64_t place) {
    if (above_mark(p) == 0)
        return sd_pickle_fail(p, "nothing is on the stack");
    if (place > p->at) /* picklers number them from 0, so that there are fewer than bytes */
        return sd_pickle_fail(p, "a memo far beyond the others");
    while (p->memo_room <= place) {
        sd_status status =
            sd_pickle_grow(p, &p->memo, &p->memo_room, p->memo_room, sizeof *p->memo, SD_PICKLE_BYTES_MAX + 1);
        if (status != SD_OK)
            return status;
    }
    p->memo[place] = p->stack[p->stack_count - 1] + 1;
    p->memo_count += place >= p->memo_count ? place + 1 - p->memo_count : 0;
    return SD_OK;
}

static sd_status recall(sd_pickle *p, uint64_t place) {
    if (place >= p->memo_count || p->memo[place] == 0)
        return sd_pickle_fail(p, "a memo that was not set");
    return push_id(p, p->memo[place] - 1);
}

/* ---- opcodes --------------------------------------------------------------------------------- */

static sd_status push_integer(sd_pickle *p, size_t bytes, bool is_signed) {
    uint64_t bits;
    sd_status status = get_number(p, bytes, &bits);
    if (status != SD_OK)
        return status;
    int64_t value = is_signed ? (int64_t)(int32_t)(uint32_t)bits : (int64_t)bits;
    return push(p, (sd_pickle_value){.kind = SD_PICKLE_INTEGER, .integer = value});
}

/* Two's complement of any length. */
static sd_status push_long(sd_pickle *p, size_t bytes) {
    sd_pickle_text digits;
    sd_status status = get_text(p, bytes, &digits);
    if (status != SD_OK)
        return status;
    if (digits.length > 8)
        return push(p, (sd_pickle_value){.kind = SD_PICKLE_BIG, .text = digits});
    uint64_t bits = digits.length > 0 && (p->bytes[digits.at + digits.length - 1] & 0x80) ? UINT64_MAX : 0;
    for (size_t i = digits.length; i-- > 0;)
        bits = bits << 8 | p->bytes[digits.at + i];
    int64_t value;
    memcpy(&value, &bits, sizeof value);
    return push(p, (sd_pickle_value){.kind = SD_PICKLE_INTEGER, .integer = value});
}

static sd_status push_float(sd_pickle *p) {
    sd_status status = need(p, 8);
    if (status != SD_OK)
        return status;
    uint64_t bits = 0;
    for (size_t i = 0; i < 8; i++) /* the only number that is big-endian */
        bits = bits << 8 | p->bytes[p->at + i];
    p->at += 8;
    double value;
    memcpy(&value, &bits, sizeof value);
    return push(p, (sd_pickle_value){.kind = SD_PICKLE_FLOAT, .real = value});
}

static sd_status push_text(sd_pickle *p, size_t bytes) {
    sd_pickle_text text;
    sd_status status = get_text(p, bytes, &text);
    return status == SD_OK ? push(p, (sd_pickle_value){.kind = SD_PICKLE_TEXT, .text = text}) : status;
}

static sd_status push_global(sd_pickle *p, sd_pickle_text module, sd_pickle_text name) {
    sd_pickle_value value = {.kind = SD_PICKLE_SKIPPED};
    sd_pickle_find_global(p, module, name, &value);
    return push(p, value);
}

static sd_status stack_global(sd_pickle *p) {
    sd_pickle_id name = 0, module = 0;
    sd_status status;
    if ((status = pop(p, &name)) != SD_OK || (status = pop(p, &module)) != SD_OK)
        return status;
    if (p->values[name].kind != SD_PICKLE_TEXT || p->values[module].kind != SD_PICKLE_TEXT)
        return sd_pickle_fail(p, "the name of a global is not text");
    return push_global(p, p->values[module].text, p->values[name].text);
}

static sd_status line_global(sd_pickle *p) {
    sd_pickle_text module, name;
    sd_status status = get_line(p, &module);
    if (status == SD_OK)
        status = get_line(p, &name);
    return status == SD_OK ? push_global(p, module, name) : status;
}

/* REDUCE, NEWOBJ, NEWOBJ_EX: what is on top below the arguments is called. */
static sd_status call(sd_pickle *p, bool with_keywords) {
    sd_pickle_id keywords, arguments = 0, function = 0, result = 0;
    sd_status status = SD_OK;
    if (with_keywords)
        status = pop(p, &keywords);
    if (status == SD_OK)
        status = pop(p, &arguments);
    if (status == SD_OK)
        status = pop(p, &function);
    if (status == SD_OK)
        status = sd_pickle_call(p, function, arguments, &result);
    return status == SD_OK ? push_id(p, result) : status;
}

static sd_status persistent(sd_pickle *p) {
    sd_pickle_id identity = 0;
    sd_pickle_value value = {.kind = SD_PICKLE_SKIPPED};
    sd_status status = pop(p, &identity);
    if (status == SD_OK)
        status = sd_pickle_persistent(p, identity, &value);
    return status == SD_OK ? push(p, value) : status;
}

static sd_status build(sd_pickle *p) {
    sd_pickle_id state = 0;
    sd_status status = pop(p, &state);
    if (status != SD_OK)
        return status;
    if (above_mark(p) == 0)
        return sd_pickle_fail(p, "nothing is on the stack");
    sd_pickle_build(p, p->stack[p->stack_count - 1], state);
    return SD_OK;
}

static sd_status set_mark(sd_pickle *p) {
    sd_status status =
        sd_pickle_grow(p, &p->marks, &p->mark_room, p->mark_count, sizeof *p->marks, SD_PICKLE_VALUES_MAX);
    if (status == SD_OK)
        p->marks[p->mark_count++] = p->stack_count;
    return status;
}

/* The opcodes whose work begins with taking the topmost mark. */
static sd_status marked(sd_pickle *p, unsigned char opcode) {
    size_t place = 0;
    sd_status status = pop_mark(p, &place);
    if (status != SD_OK)
        return status;
    switch (opcode) {
    case 't': /* TUPLE */
    case 'l': return push_list(p, place);            /* LIST */
    case 'e': return fill(p, place, SD_PICKLE_LIST); /* APPENDS */
    case 'u': return fill(p, place, SD_PICKLE_DICT); /* SETITEMS */
    case 'd': { /* DICT */
        sd_pickle_id dict;
        if ((p->stack_count - place) % 2 != 0)
            return sd_pickle_fail(p, "a key without a value");
        status = make(p, (sd_pickle_value){.kind = SD_PICKLE_DICT}, &dict);
        for (size_t i = place; status == SD_OK && i < p->stack_count; i += 2)
            status = append(p, dict, p->stack[i], p->stack[i + 1]);
        p->stack_count = place;
        return status == SD_OK ? push_id(p, dict) : status;
    }
    case 0x91: /* FROZENSET */
    case 'o':  /* OBJ */
        p->stack_count = place;
        return push(p, (sd_pickle_value){.kind = SD_PICKLE_SKIPPED});
    default: /* POP_MARK, and ADDITEMS to a set */
        p->stack_count = place;
        return SD_OK;
    }
}

static sd_status put_memo(sd_pickle *p, size_t bytes) {
    uint64_t place;
    sd_status status = get_number(p, bytes, &place);
    return status == SD_OK ? remember(p, place) : status;
}

static sd_status get_memo(sd_pickle *p, size_t bytes) {
    uint64_t place;
    sd_status status = get_number(p, bytes, &place);
    return status == SD_OK ? recall(p, place) : status;
}

static sd_status get_protocol(sd_pickle *p) {
    uint64_t version;
    sd_status status = get_number(p, 1, &version);
    if (status == SD_OK && (version < 2 || version > 5))
        return sd_pickle_fail(p, "of a protocol that is not 2 to 5");
    return status;
}

static sd_status get_frame(sd_pickle *p) {
    uint64_t length;
    sd_status status = get_number(p, 8, &length);
    return status == SD_OK ? need(p, length) : status;
}

static sd_status discard(sd_pickle *p) {
    sd_pickle_id id;
    if (above_mark(p) == 0 && p->mark_count > 0) { /* as Python does: the mark itself is taken off */
        p->mark_count--;
        return SD_OK;
    }
    return pop(p, &id);
}

static sd_status duplicate(sd_pickle *p) {
    return above_mark(p) > 0 ? push_id(p, p->stack[p->stack_count - 1]) : sd_pickle_fail(p, "nothing is on the stack");
}

static sd_status fill_last(sd_pickle *p, sd_pickle_kind kind) {
    size_t count = kind == SD_PICKLE_DICT ? 2 : 1;
    if (above_mark(p) < count)
        return sd_pickle_fail(p, "nothing is on the stack");
    return fill(p, p->stack_count - count, kind);
}

static sd_status skip_instance(sd_pickle *p) { /* INST */
    sd_pickle_text module, name;
    sd_status status = get_line(p, &module);
    if (status == SD_OK)
        status = get_line(p, &name);
    return status == SD_OK ? marked(p, 'o') : status;
}

static sd_status step(sd_pickle *p, unsigned char opcode) {
#define KIND(name) ((sd_pickle_value){.kind = SD_PICKLE_##name})
    switch (opcode) {
    case 0x80: return get_protocol(p);
    case 0x95: return get_frame(p);
    case '(': return set_mark(p);
    case '0': return discard(p);
    case '2': return duplicate(p);
    case '1':
    case 't':
    case 'l':
    case 'd':
    case 'e':
    case 'u':
    case 'o':
    case 0x90:
    case 0x91: return marked(p, opcode);
    case 'N': return push(p, KIND(NONE));
    case 0x88: return push(p, (sd_pickle_value){.kind = SD_PICKLE_BOOL, .integer = 1});
    case 0x89: return push(p, (sd_pickle_value){.kind = SD_PICKLE_BOOL, .integer = 0});
    case 'J': return push_integer(p, 4, true);
    case 'K': return push_integer(p, 1, false);
    case 'M': return push_integer(p, 2, false);
    case 0x8a: return push_long(p, 1);
    case 0x8b: return push_long(p, 4);
    case 'G': return push_float(p);
    case 'U': /* bytes and text of all lengths */
    case 'C':
    case 0x8c: return push_text(p, 1);
    case 'T':
    case 'B':
    case 'X': return push_text(p, 4);
    case 0x8d:
    case 0x8e:
    case 0x96: return push_text(p, 8);
    case ']':
    case ')': return push(p, KIND(LIST));
    case '}': return push(p, KIND(DICT));
    case 0x8f: return push(p, KIND(SKIPPED)); /* EMPTY_SET */
    case 0x85: return push_tuple(p, 1);
    case 0x86: return push_tuple(p, 2);
    case 0x87: return push_tuple(p, 3);
    case 'a': return fill_last(p, SD_PICKLE_LIST);
    case 's': return fill_last(p, SD_PICKLE_DICT);
    case 'c': return line_global(p);
    case 0x93: return stack_global(p);
    case 'R':
    case 0x81: return call(p, false);
    case 0x92: return call(p, true);
    case 'i': return skip_instance(p);
    case 'b': return build(p);
    case 'Q': return persistent(p);
    case 'q': return put_memo(p, 1);
    case 'r': return put_memo(p, 4);
    case 0x94: return remember(p, p->memo_count);
    case 'h': return get_memo(p, 1);
    case 'j': return get_memo(p, 4);
    default:
        return sd_fail(SD_ERR_UNSUPPORTED, "%s: pickle, byte %llu: opcode 0x%02x is not read", p->path,
                       (unsigned long long)(p->position + p->at - 1), opcode);
    }
#undef KIND
}

sd_status sd_pickle_run(sd_pickle *p, sd_pickle_id *root) {
    p->stack_count = p->mark_count = 0;
    if (p->memo)
        memset(p->memo, 0, p->memo_room * sizeof *p->memo);
    p->memo_count = 0;
    for (;;) {
        sd_status status = need(p, 1);
        if (status != SD_OK)
            return status;
        unsigned char opcode = p->bytes[p->at++];
        if (opcode == '.')
            return pop(p, root);
        status = step(p, opcode);
        if (status != SD_OK)
            return status;
    }
}

bool sd_pickle_is(const sd_pickle *p, const sd_pickle_value *value, const char *text) {
    size_t length = strlen(text);
    return value->kind == SD_PICKLE_TEXT && value->text.length == length &&
           memcmp(p->bytes + value->text.at, text, length) == 0;
}
