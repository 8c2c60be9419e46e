/* What the names in a checkpoint's pickle stand for. */
#include "io/dtype.h"
#include "io/pickle.h"

#include <string.h>

typedef enum known_global {
    GLOBAL_NONE,
    GLOBAL_DICT,         /* collections.OrderedDict, defaultdict, dict */
    GLOBAL_SEQUENCE,     /* torch.Size, list, tuple */
    GLOBAL_TENSOR,       /* torch._utils._rebuild_tensor, _v2, _v3: storage, offset, shape, strides, ... */
    GLOBAL_PARAMETER,    /* the first argument is the tensor */
    GLOBAL_FROM_TYPE,    /* function, type, arguments, state */
    GLOBAL_STORAGE,      /* torch.FloatStorage, ... */
    GLOBAL_ELEMENT_TYPE, /* torch.float32, ... */
    GLOBAL_NUMPY_SCALAR,
    GLOBAL_NUMPY_TYPE,
    GLOBAL_ENCODE /* _codecs.encode(text, "latin1") */
} known_global;

#define UNTYPED (-2)

static const struct {
    const char *module, *name;
    uint8_t global;
    int8_t dtype;
} globals[] = {
    {"collections", "OrderedDict", GLOBAL_DICT, -1},
    {"collections", "defaultdict", GLOBAL_DICT, -1},
    {"builtins", "dict", GLOBAL_DICT, -1},
    {"__builtin__", "dict", GLOBAL_DICT, -1},
    {"builtins", "list", GLOBAL_SEQUENCE, -1},
    {"builtins", "tuple", GLOBAL_SEQUENCE, -1},
    {"torch", "Size", GLOBAL_SEQUENCE, -1},
    {"torch._utils", "_rebuild_tensor", GLOBAL_TENSOR, -1},
    {"torch._utils", "_rebuild_tensor_v2", GLOBAL_TENSOR, -1},
    {"torch._utils", "_rebuild_tensor_v3", GLOBAL_TENSOR, -1},
    {"torch._utils", "_rebuild_parameter", GLOBAL_PARAMETER, -1},
    {"torch._utils", "_rebuild_parameter_with_state", GLOBAL_PARAMETER, -1},
    {"torch.nn.parameter", "Parameter", GLOBAL_PARAMETER, -1},
    {"torch._tensor", "_rebuild_from_type_v2", GLOBAL_FROM_TYPE, -1},
    {"torch", "FloatStorage", GLOBAL_STORAGE, SD_DTYPE_F32},
    {"torch", "DoubleStorage", GLOBAL_STORAGE, SD_DTYPE_F64},
    {"torch", "HalfStorage", GLOBAL_STORAGE, SD_DTYPE_F16},
    {"torch", "BFloat16Storage", GLOBAL_STORAGE, SD_DTYPE_BF16},
    {"torch", "CharStorage", GLOBAL_STORAGE, SD_DTYPE_I8},
    {"torch", "ShortStorage", GLOBAL_STORAGE, SD_DTYPE_I16},
    {"torch", "IntStorage", GLOBAL_STORAGE, SD_DTYPE_I32},
    {"torch", "LongStorage", GLOBAL_STORAGE, SD_DTYPE_I64},
    {"torch", "ByteStorage", GLOBAL_STORAGE, SD_DTYPE_U8},
    {"torch", "BoolStorage", GLOBAL_STORAGE, SD_DTYPE_BOOL},
    {"torch.storage", "UntypedStorage", GLOBAL_STORAGE, UNTYPED},
    {"torch", "UntypedStorage", GLOBAL_STORAGE, UNTYPED},
    {"torch", "float32", GLOBAL_ELEMENT_TYPE, SD_DTYPE_F32},
    {"torch", "float64", GLOBAL_ELEMENT_TYPE, SD_DTYPE_F64},
    {"torch", "float16", GLOBAL_ELEMENT_TYPE, SD_DTYPE_F16},
    {"torch", "bfloat16", GLOBAL_ELEMENT_TYPE, SD_DTYPE_BF16},
    {"torch", "int8", GLOBAL_ELEMENT_TYPE, SD_DTYPE_I8},
    {"torch", "int16", GLOBAL_ELEMENT_TYPE, SD_DTYPE_I16},
    {"torch", "int32", GLOBAL_ELEMENT_TYPE, SD_DTYPE_I32},
    {"torch", "int64", GLOBAL_ELEMENT_TYPE, SD_DTYPE_I64},
    {"torch", "uint8", GLOBAL_ELEMENT_TYPE, SD_DTYPE_U8},
    {"torch", "uint16", GLOBAL_ELEMENT_TYPE, SD_DTYPE_U16},
    {"torch", "uint32", GLOBAL_ELEMENT_TYPE, SD_DTYPE_U32},
    {"torch", "uint64", GLOBAL_ELEMENT_TYPE, SD_DTYPE_U64},
    {"torch", "bool", GLOBAL_ELEMENT_TYPE, SD_DTYPE_BOOL},
    {"torch", "float8_e4m3fn", GLOBAL_ELEMENT_TYPE, SD_DTYPE_F8_E4M3},
    {"torch", "float8_e5m2", GLOBAL_ELEMENT_TYPE, SD_DTYPE_F8_E5M2},
    {"numpy.core.multiarray", "scalar", GLOBAL_NUMPY_SCALAR, -1},
    {"numpy._core.multiarray", "scalar", GLOBAL_NUMPY_SCALAR, -1},
    {"numpy", "dtype", GLOBAL_NUMPY_TYPE, -1},
    {"_codecs", "encode", GLOBAL_ENCODE, -1},
};

static bool text_is(const sd_pickle *p, sd_pickle_text text, const char *wanted) {
    return text.length == strlen(wanted) && memcmp(p->bytes + text.at, wanted, text.length) == 0;
}

void sd_pickle_find_global(const sd_pickle *p, sd_pickle_text module, sd_pickle_text name, sd_pickle_value *value) {
    for (size_t i = 0; i < sizeof globals / sizeof globals[0]; i++)
        if (text_is(p, module, globals[i].module) && text_is(p, name, globals[i].name)) {
            *value =
                (sd_pickle_value){.kind = SD_PICKLE_GLOBAL, .global = globals[i].global, .dtype = globals[i].dtype};
            return;
        }
    size_t length = name.length, ending = strlen("Storage");
    if (text_is(p, module, "torch") && length > ending &&
        memcmp(p->bytes + name.at + length - ending, "Storage", ending) == 0) /* complex, quantised, ... */
        *value = (sd_pickle_value){.kind = SD_PICKLE_GLOBAL, .global = GLOBAL_STORAGE, .dtype = SD_DTYPE_OTHER};
}

/* ---- arguments -------------------------------------------------------------------------------- */

/* The first values of a list; returns how many there are. */
static size_t first_of(const sd_pickle *p, sd_pickle_id list, const sd_pickle_value **out, size_t most) {
    const sd_pickle_value *value = &p->values[list];
    size_t count = 0;
    if (value->kind != SD_PICKLE_LIST)
        return 0;
    for (uint32_t cell = value->list.first; cell != 0 && count < most; cell = p->cells[cell].next)
        out[count++] = &p->values[p->cells[cell].value];
    return count;
}

static bool is_known(const sd_pickle_value *value, known_global global) {
    return value->kind == SD_PICKLE_GLOBAL && value->global == global;
}

static bool get_size(const sd_pickle_value *value, uint64_t *size) {
    if (value->kind != SD_PICKLE_INTEGER || value->integer < 0)
        return false;
    *size = (uint64_t)value->integer;
    return true;
}

/* ("storage", type, key, location, elements[, view]) */
sd_status sd_pickle_persistent(sd_pickle *p, sd_pickle_id identity, sd_pickle_value *value) {
    const sd_pickle_value *a[6];
    size_t count = first_of(p, identity, a, 6);
    uint64_t elements;
    if (count < 5 || !sd_pickle_is(p, a[0], "storage"))
        return SD_OK; /* of another program */
    if (!is_known(a[1], GLOBAL_STORAGE) || a[2]->kind != SD_PICKLE_TEXT || !get_size(a[4], &elements))
        return sd_pickle_fail(p, "a storage of unknown form");
    sd_pickle_storage storage = {.key = a[2]->text, .dtype = a[1]->dtype, .elements = elements};
    const sd_pickle_value *view[3]; /* files before 0.4: a part of the storage: key, first element, elements */
    if (count == 6 && a[5]->kind != SD_PICKLE_NONE &&
        (first_of(p, (sd_pickle_id)(a[5] - p->values), view, 3) != 3 || !get_size(view[1], &storage.start)))
        return sd_pickle_fail(p, "a storage of unknown form");
    if (a[1]->dtype == UNTYPED) {
        storage.untyped = true;
        storage.dtype = SD_DTYPE_U8;
    }
    sd_status status =
        sd_pickle_grow(p, &p->storages, &p->storage_room, p->storage_count, sizeof *p->storages, SD_PICKLE_VALUES_MAX);
    if (status != SD_OK)
        return status;
    *value = (sd_pickle_value){.kind = SD_PICKLE_STORAGE, .integer = (int64_t)p->storage_count};
    p->storages[p->storage_count++] = storage;
    return SD_OK;
}

/* ---- calls ------------------------------------------------------------------------------------- */

static bool get_sizes(const sd_pickle *p, const sd_pickle_value *list, uint64_t *sizes, size_t *count) {
    const sd_pickle_value *items[SD_STORED_DIMENSIONS + 1];
    if (list->kind != SD_PICKLE_LIST)
        return false;
    *count = first_of(p, (sd_pickle_id)(list - p->values), items, SD_STORED_DIMENSIONS + 1);
    if (*count > SD_STORED_DIMENSIONS)
        return false;
    for (size_t i = 0; i < *count; i++)
        if (!get_size(items[i], &sizes[i]))
            return false;
    return true;
}

/* storage, offset, shape, strides[, requires_grad, hooks[, element type, metadata]] */
static sd_status make_tensor(sd_pickle *p, sd_pickle_id arguments, sd_pickle_value *result) {
    const sd_pickle_value *a[7];
    size_t count = first_of(p, arguments, a, 7), strides = 0;
    sd_pickle_tensor tensor = {0};
    if (count < 4 || a[0]->kind != SD_PICKLE_STORAGE || !get_size(a[1], &tensor.offset) ||
        !get_sizes(p, a[2], tensor.shape, &tensor.dimensions) || !get_sizes(p, a[3], tensor.stride, &strides) ||
        strides != tensor.dimensions)
        return sd_pickle_fail(p, "a tensor of unknown form, or of more than 8 dimensions");
    tensor.storage = (size_t)a[0]->integer;
    const sd_pickle_storage *storage = &p->storages[tensor.storage];
    tensor.dtype = storage->dtype;
    if (__builtin_add_overflow(tensor.offset, storage->start, &tensor.offset))
        return sd_pickle_fail(p, "a tensor outside of its storage");
    if (count == 7 && is_known(a[6], GLOBAL_ELEMENT_TYPE))
        tensor.dtype = a[6]->dtype;
    else if (storage->untyped)
        tensor.dtype = SD_DTYPE_OTHER;
    sd_status status =
        sd_pickle_grow(p, &p->tensors, &p->tensor_room, p->tensor_count, sizeof *p->tensors, SD_PICKLE_VALUES_MAX);
    if (status != SD_OK)
        return status;
    *result = (sd_pickle_value){.kind = SD_PICKLE_TENSOR, .integer = (int64_t)p->tensor_count};
    p->tensors[p->tensor_count++] = tensor;
    return SD_OK;
}

/* Types of one number by NumPy's short names. */
static int8_t numpy_type(const sd_pickle *p, const sd_pickle_value *name) {
    static const struct {
        const char *name;
        int8_t dtype;
    } types[] = {{"f4", SD_DTYPE_F32}, {"f8", SD_DTYPE_F64}, {"f2", SD_DTYPE_F16}, {"i1", SD_DTYPE_I8},
                 {"i2", SD_DTYPE_I16}, {"i4", SD_DTYPE_I32}, {"i8", SD_DTYPE_I64}, {"u1", SD_DTYPE_U8},
                 {"u2", SD_DTYPE_U16}, {"u4", SD_DTYPE_U32}, {"u8", SD_DTYPE_U64}, {"b1", SD_DTYPE_BOOL}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (sd_pickle_is(p, name, types[i].name))
            return types[i].dtype;
    return SD_DTYPE_OTHER;
}

/* (type, bytes); bytes as such or as text of their code points. */
static void make_scalar(const sd_pickle *p, sd_pickle_id arguments, sd_pickle_value *result) {
    const sd_pickle_value *a[2];
    unsigned char bytes[8];
    size_t count = 0;
    if (first_of(p, arguments, a, 2) != 2 || a[0]->kind != SD_PICKLE_DTYPE ||
        (a[1]->kind != SD_PICKLE_TEXT && a[1]->kind != SD_PICKLE_LATIN1))
        return;
    const unsigned char *text = p->bytes + a[1]->text.at;
    for (size_t i = 0; i < a[1]->text.length; i++) {
        if (count == sizeof bytes)
            return;
        unsigned char byte = text[i];
        if (a[1]->kind == SD_PICKLE_LATIN1 && byte >= 0x80) {
            if ((byte & 0xFC) != 0xC0 || i + 1 == a[1]->text.length)
                return;
            byte = (unsigned char)((byte & 3) << 6 | (text[++i] & 63));
        }
        bytes[count++] = byte;
    }
    if (count > 0 && count == sd_dtype_size(a[0]->dtype))
        *result =
            (sd_pickle_value){.kind = SD_PICKLE_FLOAT, .real = sd_dtype_to_double(a[0]->dtype, a[0]->swapped, bytes)};
}

/* OrderedDict() or OrderedDict([[key, value], ...]) as Python 2 wrote it. */
static sd_status make_dict(sd_pickle *p, sd_pickle_id arguments, sd_pickle_value *result) {
    const sd_pickle_value *a[1], *pair[2];
    *result = (sd_pickle_value){.kind = SD_PICKLE_DICT};
    if (first_of(p, arguments, a, 1) != 1 || a[0]->kind != SD_PICKLE_LIST)
        return SD_OK;
    for (uint32_t cell = a[0]->list.first; cell != 0; cell = p->cells[cell].next) {
        if (first_of(p, p->cells[cell].value, pair, 2) != 2)
            return sd_pickle_fail(p, "a dictionary of something else than pairs");
        sd_pickle_id key = (sd_pickle_id)(pair[0] - p->values), value = (sd_pickle_id)(pair[1] - p->values);
        sd_status status =
            sd_pickle_grow(p, &p->cells, &p->cell_room, p->cell_count, sizeof *p->cells, SD_PICKLE_VALUES_MAX);
        if (status != SD_OK)
            return status;
        uint32_t added = (uint32_t)p->cell_count++;
        p->cells[added] = (sd_pickle_cell){key, value, 0};
        if (result->list.count++ == 0)
            result->list.first = added;
        else
            p->cells[result->list.last].next = added;
        result->list.last = added;
    }
    return SD_OK;
}

/* True when the result is a value that exists already, in *same. */
static sd_status call_known(sd_pickle *p, const sd_pickle_value *function, sd_pickle_id arguments,
                            sd_pickle_value *result, bool *is_same, sd_pickle_id *same) {
    const sd_pickle_value *a[3];
    size_t count = first_of(p, arguments, a, 3);
    switch (function->global) {
    case GLOBAL_DICT: return make_dict(p, arguments, result);
    case GLOBAL_TENSOR: return make_tensor(p, arguments, result);
    case GLOBAL_FROM_TYPE:
        if (count == 3 && is_known(a[0], GLOBAL_TENSOR))
            return make_tensor(p, (sd_pickle_id)(a[2] - p->values), result);
        return SD_OK;
    case GLOBAL_SEQUENCE:
        if (count == 0)
            *result = (sd_pickle_value){.kind = SD_PICKLE_LIST};
        /* fall through */
    case GLOBAL_PARAMETER:
        if (count > 0) {
            *is_same = true;
            *same = (sd_pickle_id)(a[0] - p->values);
        }
        return SD_OK;
    case GLOBAL_NUMPY_TYPE:
        if (count > 0)
            *result = (sd_pickle_value){.kind = SD_PICKLE_DTYPE, .dtype = numpy_type(p, a[0])};
        return SD_OK;
    case GLOBAL_NUMPY_SCALAR: make_scalar(p, arguments, result); return SD_OK;
    case GLOBAL_ENCODE:
        if (count == 2 && a[0]->kind == SD_PICKLE_TEXT &&
            (sd_pickle_is(p, a[1], "latin1") || sd_pickle_is(p, a[1], "latin-1")))
            *result = (sd_pickle_value){.kind = SD_PICKLE_LATIN1, .text = a[0]->text};
        return SD_OK;
    default: return SD_OK;
    }
}

sd_status sd_pickle_call(sd_pickle *p, sd_pickle_id function, sd_pickle_id arguments, sd_pickle_id *result) {
    sd_pickle_value value = {.kind = SD_PICKLE_SKIPPED};
    bool is_same = false;
    sd_status status = SD_OK;
    if (p->values[function].kind == SD_PICKLE_GLOBAL)
        status = call_known(p, &p->values[function], arguments, &value, &is_same, result);
    if (status != SD_OK || is_same)
        return status;
    status = sd_pickle_grow(p, &p->values, &p->value_room, p->value_count, sizeof *p->values, SD_PICKLE_VALUES_MAX);
    if (status != SD_OK)
        return status;
    *result = (sd_pickle_id)p->value_count;
    p->values[p->value_count++] = value;
    return SD_OK;
}

/* numpy.dtype: (version, byte order, ...) */
void sd_pickle_build(sd_pickle *p, sd_pickle_id target, sd_pickle_id state) {
    const sd_pickle_value *a[2];
    if (p->values[target].kind == SD_PICKLE_DTYPE && first_of(p, state, a, 2) == 2)
        p->values[target].swapped = sd_pickle_is(p, a[1], ">");
}
