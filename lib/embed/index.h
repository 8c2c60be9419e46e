/* The inside of sd_index: rows in blocks, and a map from ids to places. */
#ifndef SD_EMBED_INDEX_H
#define SD_EMBED_INDEX_H

#include "base/base.h"

#include <simdino/index.h>

/* Rows lie in blocks of about 4 MiB, which are never moved. Place p is row p % block_rows of block p / block_rows. */
typedef struct sd_index_block {
    float *rows;    /* block_rows x dim */
    float *halves;  /* SD_METRIC_L2: half the squared length of each row; else NULL */
    int64_t *ids;
} sd_index_block;

/* An entry of the map, which is a hash table with linear probing. */
typedef struct sd_index_slot {
    int64_t id;
    uint64_t place; /* 1 + place of the row; 0: free */
} sd_index_slot;

struct sd_index {
    sd_context *context;
    size_t dim;
    sd_metric metric;
    size_t block_rows;
    sd_index_block *blocks;
    size_t block_count, block_room; /* blocks with memory, and entries in `blocks` */
    uint64_t count;
    uint64_t next_id; /* one more than the largest id that was ever there; up to 2^63 */
    double longest;   /* no row is longer than this */
    sd_index_slot *slots;
    size_t slot_count; /* a power of two, or 0 */
};

/* Longer rows are refused, so that no product and no sum of squares leaves the range of float. */
#define SD_INDEX_LONGEST 1e18

/* Checks that a row can be kept or searched for, and tells its length. `what` and `number` are for the message. */
sd_status sd_index_check_row(const float *row, size_t dim, const char *what, size_t number, double *length);

/* Makes room for `more` rows. Errors: SD_ERR_MEMORY; the index is as before. */
sd_status sd_index_reserve(sd_index *index, uint64_t more);

/* Claims places count, count+1, ... for these ids; the caller fills the rows and then raises count. Needs the room.
 * Errors: SD_ERR_ARGUMENT (names the id): nothing is claimed then. */
sd_status sd_index_claim(sd_index *index, const int64_t *ids, size_t count);

/* What depends on the row at `place`, once it is there: half its squared length, and `longest`. */
void sd_index_complete_row(sd_index *index, uint64_t place, double length);

/* The places of all rows by ascending id, or NULL when memory is short. */
uint64_t *sd_index_order(const sd_index *index);

static inline sd_index_block *sd_index_block_of(const sd_index *index, uint64_t place) {
    return &index->blocks[place / index->block_rows];
}

static inline float *sd_index_row(const sd_index *index, uint64_t place) {
    return sd_index_block_of(index, place)->rows + (size_t)(place % index->block_rows) * index->dim;
}

static inline int64_t *sd_index_id(const sd_index *index, uint64_t place) {
    return &sd_index_block_of(index, place)->ids[place % index->block_rows];
}

/* ---- loops for each instruction set (index_kernels.c) -------------------------------------- */

/* Queries that `products` takes at most: with more of them the matrix product is faster, which first packs the rows. */
#define SD_INDEX_FEW ((size_t)128)

typedef struct sd_index_kernels {
    const char *name;
    /* out[q*ld + r] = <query q, row r> in float, for m queries and n rows of d numbers, packed. For few queries, where
     * the time goes into reading the rows once. */
    void (*products)(const float *queries, size_t m, const float *rows, size_t n, size_t d, float *out, size_t ld);
    /* <a, b> and |a - b|^2 in double. */
    double (*dot)(const float *a, const float *b, size_t d);
    double (*distance)(const float *a, const float *b, size_t d);
    /* The first i in [from, n) where x[i] - y[i] is not below the limit, else n. y NULL: x[i] alone. NaN counts as not
     * below. */
    size_t (*next)(const float *x, const float *y, size_t from, size_t n, float limit);
} sd_index_kernels;

/* The best set for this CPU. */
const sd_index_kernels *sd_index_kernels_get(void);

extern const sd_index_kernels sd_index_kernels_generic;
#if defined(__x86_64__) && defined(__GNUC__)
extern const sd_index_kernels sd_index_kernels_avx2;
extern const sd_index_kernels sd_index_kernels_avx512;
#endif

#endif
