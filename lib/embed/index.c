/* Rows with ids: adding, removing, looking up. A row that goes leaves its place to the last one, so that places stay
 * without gaps; what a search finds does not depend on places. */
#include "embed/index.h"

#include "base/system.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)4 << 20)
#define BLOCK_ROWS_LEAST ((size_t)16)
#define BLOCK_ROWS_MOST  ((size_t)4096)
#define DIM_MAX          ((size_t)1 << 24)
#define SLOTS_LEAST      ((size_t)64)

const sd_index_kernels *sd_index_kernels_get(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    switch (sd_cpu_detect()) {
    case SD_CPU_AVX512: return &sd_index_kernels_avx512;
    case SD_CPU_AVX2: return &sd_index_kernels_avx2;
    case SD_CPU_GENERIC: break;
    }
#endif
    return &sd_index_kernels_generic;
}

SD_API const char *sd_metric_name(int32_t metric) {
    switch (metric) {
    case SD_METRIC_COSINE: return "cosine";
    case SD_METRIC_INNER_PRODUCT: return "inner-product";
    case SD_METRIC_L2: return "l2";
    default: return "?";
    }
}

/* ---- create -------------------------------------------------------------------------------- */

SD_API sd_status sd_index_create(sd_context *context, size_t dim, sd_metric metric, sd_index **index) {
    SD_REQUIRE(index, SD_ERR_ARGUMENT, "index is NULL");
    SD_REQUIRE(dim > 0 && dim <= DIM_MAX, SD_ERR_ARGUMENT, "dim is %zu: it must be 1 to %zu", dim, DIM_MAX);
    SD_REQUIRE((int)metric >= SD_METRIC_COSINE && (int)metric <= SD_METRIC_L2, SD_ERR_ARGUMENT,
               "metric is %d: it must be one of sd_metric", (int)metric);
    sd_index *made = SD_NEW(context, sd_index);
    if (!made)
        return SD_ERR_MEMORY;
    made->context = context;
    made->dim = dim;
    made->metric = metric;
    made->block_rows = sd_size_max(BLOCK_BYTES / (dim * sizeof(float)) / 16 * 16, BLOCK_ROWS_LEAST);
    made->block_rows = sd_size_min(made->block_rows, BLOCK_ROWS_MOST);
    *index = made;
    return SD_OK;
}

static void release_block(sd_context *context, sd_index_block *block) {
    sd_release(context, block->rows);
    sd_release(context, block->halves);
    sd_release(context, block->ids);
    *block = (sd_index_block){0};
}

SD_API void sd_index_destroy(sd_index *index) {
    if (!index)
        return;
    for (size_t i = 0; i < index->block_count; i++)
        release_block(index->context, &index->blocks[i]);
    sd_release(index->context, index->blocks);
    sd_release(index->context, index->slots);
    sd_release(index->context, index);
}

SD_API size_t sd_index_dim(const sd_index *index) { return index ? index->dim : 0; }

SD_API sd_metric sd_index_metric(const sd_index *index) { return index ? index->metric : SD_METRIC_COSINE; }

SD_API uint64_t sd_index_count(const sd_index *index) { return index ? index->count : 0; }

/* ---- the map ------------------------------------------------------------------------------- */

/* The finalizer of splitmix64 (Steele et al., OOPSLA 2014): ids that follow each other go to unrelated slots. */
static size_t hash_of(int64_t id) {
    uint64_t x = (uint64_t)id;
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (size_t)(x ^ (x >> 31));
}

/* The slot of an id, or the free one where it would go. The table is never full. */
static sd_index_slot *find_slot(const sd_index *index, int64_t id) {
    size_t mask = index->slot_count - 1, at = hash_of(id) & mask;
    while (index->slots[at].place != 0 && index->slots[at].id != id)
        at = (at + 1) & mask;
    return &index->slots[at];
}

/* NULL when the id is not there. */
static sd_index_slot *find_id(const sd_index *index, int64_t id) {
    if (index->slot_count == 0)
        return NULL;
    sd_index_slot *slot = find_slot(index, id);
    return slot->place != 0 ? slot : NULL;
}

/* Frees a slot; later ones of the same run move up, so that they are still found. */
static void free_slot(sd_index *index, sd_index_slot *slot) {
    size_t mask = index->slot_count - 1, hole = (size_t)(slot - index->slots);
    for (size_t at = (hole + 1) & mask; index->slots[at].place != 0; at = (at + 1) & mask) {
        size_t home = hash_of(index->slots[at].id) & mask;
        if (((at - home) & mask) >= ((at - hole) & mask)) {
            index->slots[hole] = index->slots[at];
            hole = at;
        }
    }
    index->slots[hole] = (sd_index_slot){0};
}

/* Slots for `rows` rows, at most two thirds of them used. */
static sd_status reserve_slots(sd_index *index, uint64_t rows) {
    size_t wanted = sd_size_max(index->slot_count, SLOTS_LEAST);
    while (wanted / 3 * 2 < rows) {
        SD_REQUIRE(wanted <= SIZE_MAX / 2 / sizeof(sd_index_slot), SD_ERR_MEMORY, "%llu rows do not fit into memory",
                   (unsigned long long)rows);
        wanted *= 2;
    }
    if (wanted == index->slot_count)
        return SD_OK;
    sd_index_slot *former = index->slots, *slots = SD_NEW_ARRAY(index->context, sd_index_slot, wanted);
    if (!slots)
        return SD_ERR_MEMORY;
    size_t former_count = index->slot_count;
    index->slots = slots;
    index->slot_count = wanted;
    for (size_t i = 0; i < former_count; i++)
        if (former[i].place != 0)
            *find_slot(index, former[i].id) = former[i];
    sd_release(index->context, former);
    return SD_OK;
}

/* ---- room ---------------------------------------------------------------------------------- */

static sd_status add_block(sd_index *index) {
    sd_context *context = index->context;
    if (index->block_count == index->block_room) {
        size_t room = sd_size_max(2 * index->block_room, 8);
        sd_index_block *blocks = SD_NEW_ARRAY(context, sd_index_block, room);
        if (!blocks)
            return SD_ERR_MEMORY;
        if (index->block_count > 0)
            memcpy(blocks, index->blocks, index->block_count * sizeof *blocks);
        sd_release(context, index->blocks);
        index->blocks = blocks;
        index->block_room = room;
    }
    sd_index_block block = {.rows = SD_NEW_ARRAY(context, float, index->block_rows * index->dim),
                            .ids = SD_NEW_ARRAY(context, int64_t, index->block_rows)};
    if (index->metric == SD_METRIC_L2)
        block.halves = SD_NEW_ARRAY(context, float, index->block_rows);
    if (!block.rows || !block.ids || (index->metric == SD_METRIC_L2 && !block.halves)) {
        release_block(context, &block);
        return SD_ERR_MEMORY;
    }
    index->blocks[index->block_count++] = block;
    return SD_OK;
}

sd_status sd_index_reserve(sd_index *index, uint64_t more) {
    SD_REQUIRE(more <= SIZE_MAX / sizeof(float) / index->dim - index->count, SD_ERR_MEMORY,
               "%llu more rows of %zu numbers do not fit into memory", (unsigned long long)more, index->dim);
    uint64_t rows = index->count + more;
    sd_status status = reserve_slots(index, rows);
    while (status == SD_OK && (uint64_t)index->block_count * index->block_rows < rows)
        status = add_block(index);
    return status;
}

/* ---- adding -------------------------------------------------------------------------------- */

sd_status sd_index_check_row(const float *row, size_t dim, const char *what, size_t number, double *length) {
    double sum = sd_index_kernels_get()->dot(row, row, dim);
    *length = sqrt(sum);
    if (*length <= SD_INDEX_LONGEST)
        return SD_OK;
    for (size_t j = 0; j < dim; j++)
        SD_REQUIRE(isfinite(row[j]), SD_ERR_NUMERIC, "%s %zu, column %zu is not finite", what, number, j);
    return sd_fail(SD_ERR_NUMERIC, "%s %zu has length %g: it must be at most %g", what, number, *length,
                   SD_INDEX_LONGEST);
}

sd_status sd_index_claim(sd_index *index, const int64_t *ids, size_t count) {
    sd_status status = SD_OK;
    size_t claimed = 0;
    uint64_t next_id = index->next_id;
    SD_EXPECT(ids || next_id <= (uint64_t)INT64_MAX - (count - 1), SD_ERR_ARGUMENT,
              "no %zu ids are left after %llu: give the rows ids", count, (unsigned long long)(next_id - 1));
    for (; claimed < count; claimed++) {
        int64_t id = ids ? ids[claimed] : (int64_t)(index->next_id + claimed);
        SD_EXPECT(id >= 0, SD_ERR_ARGUMENT, "ids[%zu] is %lld: it must not be negative", claimed, (long long)id);
        sd_index_slot *slot = find_slot(index, id);
        SD_EXPECT(slot->place == 0, SD_ERR_ARGUMENT, "ids[%zu] is %lld: there is a row of that id already", claimed,
                  (long long)id);
        *slot = (sd_index_slot){.id = id, .place = index->count + claimed + 1};
        *sd_index_id(index, index->count + claimed) = id;
        if ((uint64_t)id >= next_id)
            next_id = (uint64_t)id + 1;
    }
    index->next_id = next_id;
    return SD_OK;
cleanup:
    while (claimed-- > 0)
        free_slot(index, find_slot(index, *sd_index_id(index, index->count + claimed)));
    return status;
}

void sd_index_complete_row(sd_index *index, uint64_t place, double length) {
    sd_index_block *block = sd_index_block_of(index, place);
    if (block->halves)
        block->halves[place % index->block_rows] = (float)(0.5 * length * length);
    if (length > index->longest)
        index->longest = length;
}

SD_API sd_status sd_index_add(sd_index *index, const int64_t *ids, const float *rows, size_t count, size_t ld) {
    SD_REQUIRE(index, SD_ERR_ARGUMENT, "index is NULL");
    SD_REQUIRE(rows || count == 0, SD_ERR_ARGUMENT, "rows is NULL");
    SD_REQUIRE(ld >= index->dim, SD_ERR_ARGUMENT, "ld is %zu: it must be at least dim = %zu", ld, index->dim);
    if (count == 0)
        return SD_OK;
    sd_status status = SD_OK;
    size_t dim = index->dim;
    double length;
    for (size_t i = 0; i < count; i++)
        SD_TRY(sd_index_check_row(rows + i * ld, dim, "row", i, &length));
    SD_TRY(sd_index_reserve(index, count));
    SD_TRY(sd_index_claim(index, ids, count));
    for (size_t i = 0; i < count; i++) {
        const float *from = rows + i * ld;
        float *to = sd_index_row(index, index->count + i);
        memcpy(to, from, dim * sizeof *to);
        sd_index_check_row(from, dim, "row", i, &length);
        if (index->metric == SD_METRIC_COSINE && length > 0.0) {
            for (size_t j = 0; j < dim; j++)
                to[j] = (float)((double)from[j] / length);
            length = 1.0 + 1e-6; /* rounding */
        }
        sd_index_complete_row(index, index->count + i, length);
    }
    index->count += count;
cleanup:
    return status;
}

/* ---- removing ------------------------------------------------------------------------------ */

SD_API sd_status sd_index_remove(sd_index *index, const int64_t *ids, size_t count, uint64_t *removed) {
    SD_REQUIRE(index, SD_ERR_ARGUMENT, "index is NULL");
    SD_REQUIRE(ids || count == 0, SD_ERR_ARGUMENT, "ids is NULL");
    uint64_t before = index->count;
    for (size_t i = 0; i < count; i++) {
        sd_index_slot *slot = find_id(index, ids[i]);
        if (!slot)
            continue;
        uint64_t place = slot->place - 1, last = index->count - 1;
        free_slot(index, slot);
        if (place != last) {
            int64_t moved = *sd_index_id(index, last);
            memcpy(sd_index_row(index, place), sd_index_row(index, last), index->dim * sizeof(float));
            if (index->metric == SD_METRIC_L2)
                sd_index_block_of(index, place)->halves[place % index->block_rows] =
                    sd_index_block_of(index, last)->halves[last % index->block_rows];
            *sd_index_id(index, place) = moved;
            find_slot(index, moved)->place = place + 1;
        }
        index->count--;
    }
    if (removed)
        *removed = before - index->count;
    return SD_OK;
}

/* ---- looking up ---------------------------------------------------------------------------- */

SD_API sd_status sd_index_get(const sd_index *index, int64_t id, float *row) {
    SD_REQUIRE(index && row, SD_ERR_ARGUMENT, "%s is NULL", index ? "row" : "index");
    const sd_index_slot *slot = find_id(index, id);
    SD_REQUIRE(slot, SD_ERR_ARGUMENT, "id is %lld: there is no such row", (long long)id);
    memcpy(row, sd_index_row(index, slot->place - 1), index->dim * sizeof *row);
    return SD_OK;
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

SD_API sd_status sd_index_ids(const sd_index *index, int64_t *ids) {
    SD_REQUIRE(index && ids, SD_ERR_ARGUMENT, "%s is NULL", index ? "ids" : "index");
    for (uint64_t place = 0; place < index->count; place++)
        ids[place] = *sd_index_id(index, place);
    qsort(ids, (size_t)index->count, sizeof *ids, by_value);
    return SD_OK;
}

uint64_t *sd_index_order(const sd_index *index) {
    uint64_t *order = SD_NEW_ARRAY(index->context, uint64_t, (size_t)index->count);
    if (!order)
        return NULL;
    sd_index_ids(index, (int64_t *)order);
    for (uint64_t i = 0; i < index->count; i++)
        order[i] = find_id(index, (int64_t)order[i])->place - 1;
    return order;
}
