/* batch - the arrays of a step and the pieces that it is computed in: crops, masks and features of samples first ..
 * first+n-1 of every view, side by side, and back to their places among the whole batch. */
#ifndef SD_BATCH_H
#define SD_BATCH_H

#include "train/objective.h"
#include <simdino/model.h>

/* Sizes that follow from a configuration. */
typedef struct sd_batch_shape {
    size_t batch, micro;            /* samples */
    size_t views;
    size_t width, dim;              /* of a feature, of the network */
    size_t global_values, local_values; /* of a crop */
    size_t patches;                 /* of a global crop; 0 where the method has no masks */
    size_t grid;                    /* patches per side of a global crop */
    size_t max_patches;             /* masked patches of a batch, at most */
    size_t max_piece_patches;
    bool koleo;
} sd_batch_shape;

/* Errors: SD_ERR_ARGUMENT (masks that the crops cannot have), SD_ERR_MEMORY. */
sd_status sd_batch_shape_of(const sd_pretrainer_config *config, sd_batch_shape *shape);

/* Everything about a batch but its crops. */
typedef struct sd_batch {
    sd_context *context;
    sd_batch_shape shape;
    sd_batch_features whole;
    /* masks of the whole batch: 2 samples x patches, patches masked before each crop, number and weight of each */
    uint8_t *masks;
    size_t *mask_counts, *patches_before, *patch_numbers;
    float *patch_weights;
    const uint8_t *masks_used;      /* masks, or the host's */
    /* rows of the whole batch */
    float *student, *teacher, *dstudent;
    float *student_patches, *teacher_patches, *dstudent_patches;
    float *class_tokens, *dclass_tokens; /* of all views: the network gives them for all */
    /* one piece; NULL when the batch is one piece */
    float *piece_pixels;
    uint8_t *piece_masks;
    size_t *piece_numbers;
    float *piece_weights;
    float *piece_student, *piece_teacher, *piece_dstudent;
    float *piece_student_patches, *piece_teacher_patches, *piece_dstudent_patches;
    float *piece_class_tokens, *piece_dclass_tokens;
} sd_batch;

sd_status sd_batch_create(sd_context *context, const sd_batch_shape *shape, sd_batch *batch);
void sd_batch_destroy(sd_batch *batch);
/* Bytes that sd_batch_create takes. */
double sd_batch_bytes(const sd_batch_shape *shape);

/* Sets the masks of a step up: the host's, or drawn from (seed, step). */
sd_status sd_batch_set_masks(sd_batch *batch, const sd_mask_config *config, const uint8_t *given, size_t samples,
                             uint64_t seed, uint64_t step);

/* One piece: its crops as image groups, its masks, and features as arrays of its own (the whole batch's, when it is the
 * whole batch). */
typedef struct sd_piece {
    size_t first, samples;
    bool whole;
    sd_image_group groups[2];
    size_t group_count;
    const uint8_t *masks[2];
    const size_t *patch_numbers;
    sd_batch_features features;
    float *student, *teacher, *student_patches, *teacher_patches, *class_tokens; /* the same, to be filled */
} sd_piece;

sd_status sd_batch_piece(sd_batch *batch, const sd_crop_batch *crops, size_t index, sd_piece *piece);
/* Copies features of a piece to the whole batch's arrays, and gradients from there to the piece's. */
void sd_batch_scatter_teacher(sd_batch *batch, const sd_piece *piece);
void sd_batch_scatter_student(sd_batch *batch, const sd_piece *piece);
void sd_batch_gather_gradients(const sd_batch *batch, const sd_piece *piece);

#endif
