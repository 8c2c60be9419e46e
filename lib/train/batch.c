#include "train/batch.h"
#include "train/trainer.h"

#include <string.h>

/* ---- sizes --------------------------------------------------------------------------------- */

sd_status sd_batch_shape_of(const sd_pretrainer_config *c, sd_batch_shape *shape) {
    *shape = (sd_batch_shape){
        .batch = c->batch_size,
        .micro = sd_trainer_micro_batch(c),
        .views = 2 + (size_t)c->augment.local_crops,
        .width = (size_t)c->model.head_dim,
        .dim = (size_t)c->model.dim,
        .global_values = sd_trainer_global_values(c),
        .local_values = sd_trainer_local_values(c),
        .koleo = sd_method_has_koleo(c),
    };
    size_t per_sample = 2 * shape->global_values + (shape->views - 2) * shape->local_values, total;
    SD_REQUIRE(sd_size_mul(per_sample, shape->micro, &total), SD_ERR_MEMORY,
               "the crops of %zu samples do not fit into memory", shape->micro);
    if (!sd_method_has_masks(c))
        return SD_OK;
    shape->grid = (size_t)(c->augment.global_size / c->model.patch_size);
    shape->patches = shape->grid * shape->grid;
    sd_status status =
        sd_masks_limit(&c->mask, 2 * shape->batch, shape->grid, shape->grid, &shape->max_patches);
    if (status != SD_OK)
        return status;
    shape->max_patches = sd_size_max(shape->max_patches, 1);
    shape->max_piece_patches = sd_size_min(shape->max_patches, 2 * shape->micro * shape->patches);
    return SD_OK;
}

/* ---- memory -------------------------------------------------------------------------------- */

/* Goes over all arrays: with `bytes` it adds up their sizes, else it allocates them; `array` is a pointer's address. */
typedef struct array_visit {
    sd_context *context;
    double *bytes;
    bool failed;
} array_visit;

static void visit(array_visit *to, void *array, size_t count, size_t size) {
    if (to->bytes != NULL) {
        *to->bytes += (double)count * (double)size;
        return;
    }
    void *memory = count == 0 || to->failed ? NULL : sd_allocate(to->context, count, size);
    memcpy(array, &memory, sizeof memory);
    to->failed = to->failed || (count > 0 && memory == NULL);
}

static void visit_all(array_visit *to, const sd_batch_shape *s, sd_batch *b) {
    const size_t real = sizeof(float);
    size_t rows = s->views * s->batch, patches = s->max_patches, crops = patches > 0 ? 2 * s->batch : 0;
    visit(to, &b->masks, crops * s->patches, 1);
    visit(to, &b->mask_counts, crops, sizeof(size_t));
    visit(to, &b->patches_before, crops > 0 ? crops + 1 : 0, sizeof(size_t));
    visit(to, &b->patch_numbers, patches, sizeof(size_t));
    visit(to, &b->patch_weights, patches, real);
    visit(to, &b->student, rows * s->width, real);
    visit(to, &b->teacher, 2 * s->batch * s->width, real);
    visit(to, &b->dstudent, rows * s->width, real);
    visit(to, &b->student_patches, patches * s->width, real);
    visit(to, &b->teacher_patches, patches * s->width, real);
    visit(to, &b->dstudent_patches, patches * s->width, real);
    visit(to, &b->class_tokens, s->koleo ? rows * s->dim : 0, real);
    visit(to, &b->dclass_tokens, s->koleo ? rows * s->dim : 0, real);
    if (s->micro >= s->batch)
        return;
    rows = s->views * s->micro;
    patches = s->max_piece_patches;
    visit(to, &b->piece_pixels, s->micro * (2 * s->global_values + (s->views - 2) * s->local_values), real);
    visit(to, &b->piece_masks, patches > 0 ? 2 * s->micro * s->patches : 0, 1);
    visit(to, &b->piece_numbers, patches, sizeof(size_t));
    visit(to, &b->piece_weights, patches, real);
    visit(to, &b->piece_student, rows * s->width, real);
    visit(to, &b->piece_teacher, 2 * s->micro * s->width, real);
    visit(to, &b->piece_dstudent, rows * s->width, real);
    visit(to, &b->piece_student_patches, patches * s->width, real);
    visit(to, &b->piece_teacher_patches, patches * s->width, real);
    visit(to, &b->piece_dstudent_patches, patches * s->width, real);
    visit(to, &b->piece_class_tokens, s->koleo ? rows * s->dim : 0, real);
    visit(to, &b->piece_dclass_tokens, s->koleo ? rows * s->dim : 0, real);
}

double sd_batch_bytes(const sd_batch_shape *shape) {
    double bytes = 0.0;
    sd_batch none;
    array_visit to = {.bytes = &bytes};
    visit_all(&to, shape, &none);
    return bytes;
}

sd_status sd_batch_create(sd_context *context, const sd_batch_shape *shape, sd_batch *batch) {
    memset(batch, 0, sizeof *batch);
    batch->context = context;
    batch->shape = *shape;
    array_visit to = {.context = context};
    visit_all(&to, shape, batch);
    return to.failed ? SD_ERR_MEMORY : SD_OK;
}

void sd_batch_destroy(sd_batch *b) {
    void *arrays[] = {b->masks, b->mask_counts, b->patches_before, b->patch_numbers, b->patch_weights, b->student,
                      b->teacher, b->dstudent, b->student_patches, b->teacher_patches, b->dstudent_patches,
                      b->class_tokens, b->dclass_tokens, b->piece_pixels, b->piece_masks, b->piece_numbers,
                      b->piece_weights, b->piece_student, b->piece_teacher, b->piece_dstudent,
                      b->piece_student_patches, b->piece_teacher_patches, b->piece_dstudent_patches,
                      b->piece_class_tokens, b->piece_dclass_tokens};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        sd_release(b->context, arrays[i]);
}

/* ---- masks --------------------------------------------------------------------------------- */

sd_status sd_batch_set_masks(sd_batch *batch, const sd_mask_config *config, const uint8_t *given, size_t samples,
                             uint64_t seed, uint64_t step) {
    const sd_batch_shape *s = &batch->shape;
    batch->whole.patches = 0;
    batch->masks_used = NULL;
    if (s->patches == 0)
        return SD_OK;
    batch->masks_used = given != NULL ? given : batch->masks;
    if (given == NULL) {
        sd_status status = sd_masks_draw(batch->context, config, seed, step, 2 * samples, s->grid, s->grid,
                                         batch->masks, batch->mask_counts);
        if (status != SD_OK)
            return status;
    }
    size_t before = 0;
    for (size_t crop = 0; crop < 2 * samples; crop++) {
        batch->patches_before[crop] = before;
        for (size_t i = 0; i < s->patches; i++)
            before += batch->masks_used[crop * s->patches + i] != 0;
    }
    batch->patches_before[2 * samples] = before;
    return sd_masks_collate(batch->masks_used, 2 * samples, s->patches, s->max_patches, batch->patch_numbers,
                            batch->patch_weights, &batch->whole.patches);
}

/* ---- pieces -------------------------------------------------------------------------------- */

static void copy_view(float **to, const float *from, size_t samples, size_t view, size_t values, const sd_piece *piece) {
    memcpy(*to, from + (view * samples + piece->first) * values, piece->samples * values * sizeof **to);
    *to += piece->samples * values;
}

static void gather_crops(sd_batch *batch, const sd_crop_batch *crops, sd_piece *piece) {
    const sd_batch_shape *s = &batch->shape;
    float *to = batch->piece_pixels;
    piece->groups[0].pixels = to;
    for (size_t view = 0; view < 2; view++)
        copy_view(&to, crops->globals, crops->samples, view, s->global_values, piece);
    piece->groups[1].pixels = to;
    for (size_t view = 0; view + 2 < s->views; view++)
        copy_view(&to, crops->locals, crops->samples, view, s->local_values, piece);
}

static sd_status gather_masks(sd_batch *batch, const sd_crop_batch *crops, sd_piece *piece) {
    const sd_batch_shape *s = &batch->shape;
    size_t bytes = piece->samples * s->patches;
    for (size_t view = 0; view < 2; view++)
        memcpy(batch->piece_masks + view * bytes,
               batch->masks_used + (view * crops->samples + piece->first) * s->patches, bytes);
    piece->masks[0] = batch->piece_masks;
    piece->patch_numbers = batch->piece_numbers;
    piece->features.patch_weights = batch->piece_weights;
    return sd_masks_collate(batch->piece_masks, 2 * piece->samples, s->patches, s->max_piece_patches,
                            batch->piece_numbers, batch->piece_weights, &piece->features.patches);
}

sd_status sd_batch_piece(sd_batch *batch, const sd_crop_batch *crops, size_t index, sd_piece *piece) {
    const sd_batch_shape *s = &batch->shape;
    memset(piece, 0, sizeof *piece);
    piece->first = index * s->micro;
    piece->samples = sd_size_min(s->micro, crops->samples - piece->first);
    piece->whole = piece->samples == crops->samples;
    size_t global = (size_t)crops->global_size, local = (size_t)crops->local_size;
    piece->groups[0] = (sd_image_group){crops->globals, 2 * piece->samples, global, global};
    piece->groups[1] = (sd_image_group){crops->locals, (s->views - 2) * piece->samples, local, local};
    piece->group_count = s->views > 2 ? 2 : 1;
    piece->features.samples = piece->samples;
    piece->features.views = s->views;
    if (piece->whole) {
        piece->masks[0] = batch->masks_used;
        piece->patch_numbers = batch->patch_numbers;
        piece->features.patches = batch->whole.patches;
        piece->features.patch_weights = batch->patch_weights;
    } else {
        gather_crops(batch, crops, piece);
        if (batch->masks_used != NULL) {
            sd_status status = gather_masks(batch, crops, piece);
            if (status != SD_OK)
                return status;
        }
    }
    bool whole = piece->whole;
    piece->student = whole ? batch->student : batch->piece_student;
    piece->teacher = whole ? batch->teacher : batch->piece_teacher;
    piece->student_patches = whole ? batch->student_patches : batch->piece_student_patches;
    piece->teacher_patches = whole ? batch->teacher_patches : batch->piece_teacher_patches;
    piece->class_tokens = whole ? batch->class_tokens : batch->piece_class_tokens;
    sd_batch_features *f = &piece->features;
    f->student = piece->student;
    f->teacher = piece->teacher;
    f->student_patches = piece->student_patches;
    f->teacher_patches = piece->teacher_patches;
    f->class_tokens = piece->class_tokens;
    f->dstudent = whole ? batch->dstudent : batch->piece_dstudent;
    f->dstudent_patches = whole ? batch->dstudent_patches : batch->piece_dstudent_patches;
    f->dclass_tokens = whole ? batch->dclass_tokens : batch->piece_dclass_tokens;
    if (index == 0) {
        size_t patches = batch->whole.patches;
        batch->whole = (sd_batch_features){
            .samples = crops->samples, .views = s->views, .patches = patches, .student = batch->student,
            .teacher = batch->teacher, .student_patches = batch->student_patches,
            .teacher_patches = batch->teacher_patches, .patch_weights = batch->patch_weights,
            .class_tokens = batch->class_tokens, .dstudent = batch->dstudent,
            .dstudent_patches = batch->dstudent_patches, .dclass_tokens = batch->dclass_tokens,
        };
    }
    return SD_OK;
}

/* ---- rows between a piece and the whole batch ---------------------------------------------- */

typedef enum direction { TO_WHOLE, TO_PIECE } direction;

static void copy_rows(direction way, float *whole, float *piece, size_t count) {
    memcpy(way == TO_WHOLE ? whole : piece, way == TO_WHOLE ? piece : whole, count * sizeof *whole);
}

static void move_views(const sd_batch *batch, const sd_piece *piece, direction way, size_t views, size_t width,
                       float *whole, float *rows) {
    if (whole == NULL)
        return;
    for (size_t view = 0; view < views; view++)
        copy_rows(way, whole + (view * batch->whole.samples + piece->first) * width,
                  rows + view * piece->samples * width, piece->samples * width);
}

/* The patches of a piece are those of two runs of crops, in the same order. */
static void move_patches(const sd_batch *batch, const sd_piece *piece, direction way, float *whole, float *rows) {
    if (batch->masks_used == NULL)
        return;
    size_t width = batch->shape.width;
    for (size_t view = 0; view < 2; view++) {
        size_t crop = view * batch->whole.samples + piece->first;
        size_t first = batch->patches_before[crop], count = batch->patches_before[crop + piece->samples] - first;
        copy_rows(way, whole + first * width, rows, count * width);
        rows += count * width;
    }
}

void sd_batch_scatter_teacher(sd_batch *batch, const sd_piece *piece) {
    if (piece->whole)
        return;
    move_views(batch, piece, TO_WHOLE, 2, batch->shape.width, batch->teacher, piece->teacher);
    move_patches(batch, piece, TO_WHOLE, batch->teacher_patches, piece->teacher_patches);
}

void sd_batch_scatter_student(sd_batch *batch, const sd_piece *piece) {
    if (piece->whole)
        return;
    size_t views = batch->shape.views;
    move_views(batch, piece, TO_WHOLE, views, batch->shape.width, batch->student, piece->student);
    move_views(batch, piece, TO_WHOLE, views, batch->shape.dim, batch->class_tokens, piece->class_tokens);
    move_patches(batch, piece, TO_WHOLE, batch->student_patches, piece->student_patches);
}

void sd_batch_gather_gradients(const sd_batch *batch, const sd_piece *piece) {
    if (piece->whole)
        return;
    size_t views = batch->shape.views;
    move_views(batch, piece, TO_PIECE, views, batch->shape.width, batch->dstudent, piece->features.dstudent);
    move_views(batch, piece, TO_PIECE, views, batch->shape.dim, batch->dclass_tokens, piece->features.dclass_tokens);
    move_patches(batch, piece, TO_PIECE, batch->dstudent_patches, piece->features.dstudent_patches);
}
