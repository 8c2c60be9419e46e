/* What the published codes call the tensors of a network, and what they are called here. */
#ifndef SD_IO_NAMES_H
#define SD_IO_NAMES_H

#include "base/base.h"
#include <simdino/io.h>

#define SD_NATIVE_NAME_MAX ((size_t)128)

/* A tensor of a file may be a part of one of the model's: query, key or value of "attn.qkv". */
#define SD_WHOLE (-1)

/* The name without the wrappers that PyTorch puts between its parts ("module.", "_orig_mod.", ...). out: as long as the
 * name, with its zero. */
void sd_name_unwrap(const char *name, char *out);

/* If the unwrapped name ends in what the patch projection's weight is called: the bytes before that, *hugging_face
 * tells by which names; else SIZE_MAX. */
size_t sd_name_find_anchor(const char *name, bool *hugging_face);

/* How the names of one file are to be read. */
typedef struct sd_name_style {
    bool hugging_face;
    bool packed_swiglu; /* timm: fc1 holds both halves, so that fc1 and fc2 are w12 and w3 */
} sd_name_style;

/* From a name within the backbone ("blocks.0.1.norm1.weight"), and from one beside it ("dino_head.mlp.0.weight").
 * False: unknown. out: SD_NATIVE_NAME_MAX. */
bool sd_name_of_backbone(const sd_name_style *style, const char *name, char *out, int *piece);
bool sd_name_of_head(const char *name, char *out);
/* The block of a native name and what follows "blocks.N."; NULL: it is of no block. */
const char *sd_name_block(const char *native, uint64_t *block);

/* The way back: which form of file is written. */
typedef struct sd_name_target {
    sd_names names;
    bool with_heads;
    bool v2; /* Dinov2Model rather than ViTModel; dino_head. rather than head. */
} sd_name_target;

/* How many tensors a native one becomes: 1, or 3 for query, key and value; 0: it has no place there. */
size_t sd_name_pieces(const sd_name_target *target, const char *native);
/* The name of piece `piece` (0 of 1, or 0, 1, 2 of 3). False: it would be too long. */
bool sd_name_to(const sd_name_target *target, const char *native, size_t piece, char out[SD_NATIVE_NAME_MAX]);

#endif
