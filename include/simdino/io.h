/* io.h - files of tensors: published weights read and written, arrays of any kind looked into.
 *
 * The simple level turns a checkpoint of this family into a model and back: sd_model_load_weights() and
 * sd_model_save_weights(). The level below it opens any file of tensors and reads one after the other.
 *
 * Nothing in a file is believed: sizes, offsets and counts are held against the file before memory is taken for them,
 * and nothing is ever executed. A pickle (.pth, .pt) is read by a machine that knows tensors, plain containers, numbers
 * and text; all other objects in it are skipped.
 */
#ifndef SIMDINO_IO_H
#define SIMDINO_IO_H

#include <simdino/base.h>
#include <simdino/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- files of tensors ---------------------------------------------------------------------- */

/* Values are fixed for ever; new ones are appended. */
typedef enum sd_dtype {
    SD_DTYPE_F32 = 0,
    SD_DTYPE_F64 = 1,
    SD_DTYPE_F16 = 2,
    SD_DTYPE_BF16 = 3,
    SD_DTYPE_I8 = 4,
    SD_DTYPE_I16 = 5,
    SD_DTYPE_I32 = 6,
    SD_DTYPE_I64 = 7,
    SD_DTYPE_U8 = 8,
    SD_DTYPE_U16 = 9,
    SD_DTYPE_U32 = 10,
    SD_DTYPE_U64 = 11,
    SD_DTYPE_BOOL = 12,
    SD_DTYPE_F8_E4M3 = 13,
    SD_DTYPE_F8_E5M2 = 14,
    SD_DTYPE_NUMBER = 15, /* a number that is not a tensor: sd_stored_tensor.number */
    SD_DTYPE_OTHER = 16   /* text, complex numbers, ...: listed, but sd_tensor_file_read refuses it */
} sd_dtype;

/* "float32", "bfloat16", ...; "?" for another value. Thread-safe. */
SD_API const char *sd_dtype_name(int32_t dtype);

typedef enum sd_tensor_file_form {
    SD_FORM_SAFETENSORS = 0,
    SD_FORM_PTH = 1,        /* PyTorch since 1.6: a zip archive */
    SD_FORM_PTH_LEGACY = 2, /* PyTorch before: pickles, then the storages */
    SD_FORM_NPZ = 3,
    SD_FORM_NPY = 4
} sd_tensor_file_form;

#define SD_STORED_DIMENSIONS 8

typedef struct sd_stored_tensor {
    size_t size; /* set by the caller to sizeof(sd_stored_tensor) */
    /* Keys of nested dictionaries and places in lists are joined by '/': "teacher/backbone.norm.weight". The array of
     * an .npy file is called "array". Belongs to the file. */
    const char *name;
    int32_t dtype; /* sd_dtype */
    int32_t dimensions;
    int64_t shape[SD_STORED_DIMENSIONS];
    uint64_t count; /* of elements */
    uint64_t bytes; /* that they take in the file, unpacked; 0 for numbers */
    double number;  /* of SD_DTYPE_NUMBER */
} sd_stored_tensor;

/* An open file. A const one may be read by many threads at once. */
typedef struct sd_tensor_file sd_tensor_file;

/* Opens safetensors, PyTorch .pth/.pt (zip and the old form), .npz and .npy: told by content, not by name. Only headers
 * are read, so that memory and time do not depend on the size of the tensors.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_IO, SD_ERR_FORMAT (names the place), SD_ERR_CHECKSUM, SD_ERR_UNSUPPORTED (encrypted,
 * big-endian, more dimensions than SD_STORED_DIMENSIONS), SD_ERR_MEMORY. */
SD_API sd_status sd_tensor_file_open(sd_context *context, const char *path, sd_tensor_file **file);
SD_API void sd_tensor_file_close(sd_tensor_file *file);

SD_API int32_t sd_tensor_file_format(const sd_tensor_file *file); /* sd_tensor_file_form */
SD_API size_t sd_tensor_file_count(const sd_tensor_file *file);
/* Errors: SD_ERR_ARGUMENT. */
SD_API sd_status sd_tensor_file_info(const sd_tensor_file *file, size_t index, sd_stored_tensor *info);
/* The index of a name; sd_tensor_file_count() when there is none. */
SD_API size_t sd_tensor_file_find(const sd_tensor_file *file, const char *name);
/* The metadata of a safetensors file by key, NULL when there is none. */
SD_API const char *sd_tensor_file_metadata(const sd_tensor_file *file, const char *key);

/* The elements as float, row-major, info.count of them; a number (SD_DTYPE_NUMBER) gives one. Contiguous tensors are
 * streamed; a strided one takes memory for the part of its storage that it spans.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_UNSUPPORTED (SD_DTYPE_OTHER), SD_ERR_IO, SD_ERR_FORMAT, SD_ERR_CHECKSUM,
 * SD_ERR_MEMORY; `out` is undefined then. */
SD_API sd_status sd_tensor_file_read(const sd_tensor_file *file, size_t index, float *out);

/* One array to be written. */
typedef struct sd_tensor_data {
    const char *name; /* UTF-8 */
    int32_t dtype;    /* sd_dtype up to SD_DTYPE_BOOL; numpy has no SD_DTYPE_BF16 */
    int32_t dimensions;
    int64_t shape[SD_STORED_DIMENSIONS];
    const void *data; /* row-major */
} sd_tensor_data;

/* Writes a file of the form that the ending of `path` names: .safetensors, .npz, or .npy for exactly one array (its
 * name is not kept). The file is written under a temporary name, synced and renamed.
 *   compress  1: the arrays of an .npz are deflated; else they are stored, as features and weights do not compress
 * Errors: SD_ERR_ARGUMENT (another ending, names given twice, ...), SD_ERR_IO, SD_ERR_MEMORY. */
SD_API sd_status sd_tensor_file_write(sd_context *context, const char *path, const sd_tensor_data *tensors,
                                      size_t count, int32_t compress);

/* ---- weights ------------------------------------------------------------------------------- */

/* By which names a file calls the tensors of a network. */
typedef enum sd_names {
    SD_NAMES_NATIVE = 0,      /* as in this library: "backbone.blocks.0.norm1.weight", "head.mlp.0.weight" */
    SD_NAMES_OFFICIAL = 1,    /* DINO, DINOv2, SimDINO, SimDINOv2 */
    SD_NAMES_TIMM = 2,        /* vit_*_patch*_dinov2, vit_*_patch*.dino */
    SD_NAMES_HUGGING_FACE = 3 /* Dinov2Model, Dinov2WithRegistersModel, ViTModel */
} sd_names;

typedef struct sd_weights_options {
    size_t size;
    int32_t heads;    /* of the attention, which no tensor tells; 0 (default): as our own files record, else dim/64 */
    int32_t student;  /* 1: of a file that holds both, the student; default 0: the teacher */
    int32_t strict;   /* 1 (default): missing, unexpected or mis-shaped tensors are an error; 0: they are reported */
    int32_t backbone; /* 1: heads are left out, as if they were not in the file; default 0 */
    int64_t reserved[8];
} sd_weights_options;
SD_API void sd_weights_options_init(sd_weights_options *options);

#define SD_WEIGHTS_TEXT 2000

/* What was found in a file, tensor by tensor of the model. */
typedef struct sd_weights_report {
    size_t size;        /* set by the caller to sizeof(sd_weights_report) */
    int32_t format;     /* sd_tensor_file_form */
    int32_t names;      /* sd_names; our own checkpoints are SD_NAMES_NATIVE */
    int32_t student;    /* 1: the student was taken */
    int32_t loaded;     /* tensors of the model that were read */
    int32_t missing;    /* tensors of the model that the file lacks: they keep their initial values */
    int32_t unexpected; /* tensors of the file's part that have no place in the model */
    int32_t mismatched; /* tensors of another shape than the model's: not read */
    int32_t reserved;
    char text[SD_WEIGHTS_TEXT]; /* one line for each of the three kinds, with the first names; "" when all fits */
} sd_weights_report;

/* The configuration of the network in a file, inferred from the names and shapes of its tensors: widths, depth, patch,
 * channels, position grid, registers, mask token, SwiGLU, LayerScale, norm of queries and keys, heads' widths,
 * prototypes. What no tensor tells: attention heads (see options); the position embedding's interpolation, which
 * follows the published convention (with registers: antialiased, offset 0; without: offset 0.1); stochastic depth
 * (default). Safetensors files that this library wrote tell all of it.
 * `config->size` is set by the caller; options may be NULL.
 * Errors: SD_ERR_ARGUMENT, SD_ERR_IO, SD_ERR_FORMAT, SD_ERR_CHECKSUM, SD_ERR_MISMATCH (no network of this family in it,
 * or a form that this library does not know; names the tensor), SD_ERR_UNSUPPORTED, SD_ERR_MEMORY. */
SD_API sd_status sd_weights_config(sd_context *context, const char *path, const sd_weights_options *options,
                                   sd_model_config *config);

/* Makes the model of that configuration and reads its weights. Needs little more memory than the model.
 * Files read: those of sd_tensor_file_open, with official DINO, DINOv2, SimDINO and SimDINOv2 names (blocks in chunks
 * or not; "module.", "_orig_mod.", "backbone." and containers such as "teacher" or "model" in front), timm's, Hugging
 * Face's, and our own checkpoints. options and report may be NULL.
 * Errors: as above; SD_ERR_MISMATCH also when strict and the report is not clean. The report is filled then too. */
SD_API sd_status sd_model_load_weights(sd_context *context, const char *path, const sd_weights_options *options,
                                       sd_model **model, sd_weights_report *report);

/* Reads weights into a model that exists, whose configuration may differ from the file's: with strict 0 what fits is
 * taken, and all else keeps its value. options->heads is ignored. When it fails the parameters are undefined.
 * Errors: as above. */
SD_API sd_status sd_model_read_weights(sd_model *model, const char *path, const sd_weights_options *options,
                                       sd_weights_report *report);

/* Writes a model's weights under the given names, as float32, so that the file loads in the code that uses those names;
 * the ending of `path` chooses .safetensors or .npz.
 *   with_heads  1: projection heads too (SD_NAMES_NATIVE and SD_NAMES_OFFICIAL, whose names then begin with "backbone.",
 *               "head." or "dino_head.", "ibot_head."); 0: the backbone alone, under bare names except with NATIVE
 * Errors: SD_ERR_ARGUMENT (the ending; heads under names that have none), SD_ERR_UNSUPPORTED (a form of network that
 * has no such names), SD_ERR_IO, SD_ERR_MEMORY. */
SD_API sd_status sd_model_save_weights(const sd_model *model, const char *path, sd_names names, int32_t with_heads);

#ifdef __cplusplus
}
#endif
#endif
