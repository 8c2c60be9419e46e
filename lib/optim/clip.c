/* Gradient norms and clipping. The pieces of a pass lie on the stack, a few hundred at a time: nothing is allocated. */
#include "optim/optim.h"

#include <math.h>
#include <string.h>

#define PIECES 256
#define LOCAL_TENSORS 512 /* tables of up to so many tensors need no allocation; a ViT-L has 300 */

typedef struct clip_piece {
    float *values;
    size_t count;
    size_t tensor;
    double square_sum;
    float factor;
} clip_piece;

typedef struct clip_walk {
    clip_piece pieces[PIECES];
    size_t filled;
    size_t tensor, begin; /* where the next piece starts */
} clip_walk;

/* Fills the walk with the next pieces of tensors whose factor (NULL: any) is below 1. False at the end. */
static bool next_pieces(clip_walk *walk, const sd_tensor_info *tensors, size_t tensor_count, float *gradient,
                        const double *factors) {
    walk->filled = 0;
    while (walk->filled < PIECES && walk->tensor < tensor_count) {
        const sd_tensor_info *tensor = &tensors[walk->tensor];
        bool skipped = factors && !(factors[walk->tensor] < 1);
        if (skipped || walk->begin >= tensor->count) {
            walk->tensor++;
            walk->begin = 0;
            continue;
        }
        walk->pieces[walk->filled++] = (clip_piece){
            .values = gradient + tensor->offset + walk->begin,
            .count = sd_size_min(SD_OPTIM_BLOCK, tensor->count - walk->begin),
            .tensor = walk->tensor,
            .factor = factors ? (float)factors[walk->tensor] : 1.0f,
        };
        walk->begin += SD_OPTIM_BLOCK;
    }
    return walk->filled > 0;
}

static void measure_piece(void *opaque, size_t index, size_t thread) {
    (void)thread;
    clip_piece *piece = &((clip_walk *)opaque)->pieces[index];
    piece->square_sum = sd_square_sum(piece->values, piece->count);
}

static void scale_piece(void *opaque, size_t index, size_t thread) {
    (void)thread;
    clip_piece *piece = &((clip_walk *)opaque)->pieces[index];
    sd_scale_block(piece->factor, piece->values, piece->count);
}

static const char *name_of(const sd_tensor_info *tensor) { return tensor->name ? tensor->name : ""; }

sd_status sd_gradient_norms(sd_context *context, const sd_tensor_info *tensors, size_t tensor_count,
                            const float *gradient, double *norms, double *total) {
    sd_status status = SD_OK;
    clip_walk walk;
    walk.tensor = walk.begin = 0;
    for (size_t i = 0; i < tensor_count; i++)
        norms[i] = 0;
    while (next_pieces(&walk, tensors, tensor_count, (float *)(uintptr_t)gradient, NULL)) {
        SD_TRY(sd_run(context, measure_piece, &walk, walk.filled));
        for (size_t i = 0; i < walk.filled; i++)
            norms[walk.pieces[i].tensor] += walk.pieces[i].square_sum;
    }
    double square_sum = 0;
    for (size_t i = 0; i < tensor_count; i++) {
        /* squares of floats do not overflow a double: the sum is finite exactly when all values are */
        SD_EXPECT(isfinite(norms[i]), SD_ERR_NUMERIC, "the gradient of %s (tensor %zu) holds NaN or infinity",
                  name_of(&tensors[i]), i);
        square_sum += norms[i];
        norms[i] = sqrt(norms[i]);
    }
    if (total)
        *total = sqrt(square_sum);
cleanup:
    return status;
}

static bool same_module(const char *a, const char *b) {
    size_t length = strcspn(a, ".");
    return length == strcspn(b, ".") && memcmp(a, b, length) == 0;
}

void sd_clip_factors(const sd_tensor_info *tensors, size_t tensor_count, sd_clip_kind kind, double limit,
                     const double *norms, double *factors) {
    for (size_t i = 0; i < tensor_count; i++) {
        double norm = norms[i];
        if (kind == SD_CLIP_MODULE) {
            size_t first = 0; /* the module's factor is found at its first tensor */
            while (first < i && !same_module(name_of(&tensors[first]), name_of(&tensors[i])))
                first++;
            if (first < i) {
                factors[i] = factors[first];
                continue;
            }
            double square_sum = 0;
            for (size_t j = i; j < tensor_count; j++)
                if (same_module(name_of(&tensors[i]), name_of(&tensors[j])))
                    square_sum += norms[j] * norms[j];
            norm = sqrt(square_sum);
        }
        double factor = kind == SD_CLIP_NONE ? 1 : limit / (norm + 1e-6);
        factors[i] = factor < 1 ? factor : 1;
    }
}

SD_API sd_status sd_clip_gradient(sd_context *context, const sd_tensor_info *tensors, size_t tensor_count,
                                  float *gradient, sd_clip_kind kind, double limit, double *norms, double *total) {
    SD_REQUIRE(tensors, SD_ERR_ARGUMENT, "tensors is NULL");
    SD_REQUIRE(tensor_count > 0, SD_ERR_ARGUMENT, "tensor_count is 0: it must be at least 1");
    SD_REQUIRE(gradient, SD_ERR_ARGUMENT, "gradient is NULL");
    SD_REQUIRE(kind == SD_CLIP_NONE || kind == SD_CLIP_TENSOR || kind == SD_CLIP_MODULE, SD_ERR_ARGUMENT,
               "kind is %d: no such clipping", (int)kind);
    SD_REQUIRE(kind == SD_CLIP_NONE || (limit > 0 && isfinite(limit)), SD_ERR_ARGUMENT,
               "limit is %g: it must be finite and positive", limit);

    sd_status status = SD_OK;
    double local[2 * LOCAL_TENSORS];
    double *numbers = local;
    if (tensor_count > LOCAL_TENSORS) {
        numbers = SD_NEW_ARRAY(context, double, tensor_count <= SIZE_MAX / 2 ? 2 * tensor_count : SIZE_MAX);
        if (!numbers)
            return SD_ERR_MEMORY;
    }
    double *measured = numbers, *factors = numbers + tensor_count;
    double whole = 0;
    SD_TRY(sd_gradient_norms(context, tensors, tensor_count, gradient, measured, &whole));
    sd_clip_factors(tensors, tensor_count, kind, limit, measured, factors);

    clip_walk walk;
    walk.tensor = walk.begin = 0;
    while (next_pieces(&walk, tensors, tensor_count, gradient, factors))
        SD_TRY(sd_run(context, scale_piece, &walk, walk.filled));
    if (norms)
        memcpy(norms, measured, tensor_count * sizeof *norms);
    if (total)
        *total = whole;
cleanup:
    if (numbers != local)
        sd_release(context, numbers);
    return status;
}
