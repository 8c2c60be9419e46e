/* index.h - exact nearest-neighbour search among rows of features, with ids, in memory and in files. */
#ifndef SIMDINO_INDEX_H
#define SIMDINO_INDEX_H

#include <simdino/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How near two rows are: a score. Values are fixed for ever. */
typedef enum sd_metric {
    SD_METRIC_COSINE = 0,        /* cosine of their angle, -1..1; higher is nearer. With a row of zeros: 0 */
    SD_METRIC_INNER_PRODUCT = 1, /* higher is nearer */
    SD_METRIC_L2 = 2             /* squared Euclidean distance; lower is nearer */
} sd_metric;

/* "cosine", "inner-product", "l2"; "?" for another value. Thread-safe. */
SD_API const char *sd_metric_name(int32_t metric);

/* A set of rows of one width, each with an id of its own. Searching compares with every row: recall is 1 by
 * construction. Rows are kept in blocks, so that a growing index never copies what it holds.
 *
 * Threads: a const index may be queried, saved and exported by many threads at once while nobody adds or removes. */
typedef struct sd_index sd_index;

/* An empty index for rows of `dim` numbers. Errors: SD_ERR_ARGUMENT, SD_ERR_MEMORY. */
SD_API sd_status sd_index_create(sd_context *context, size_t dim, sd_metric metric, sd_index **index);
SD_API void sd_index_destroy(sd_index *index);

SD_API size_t sd_index_dim(const sd_index *index);       /* 0 for NULL */
SD_API sd_metric sd_index_metric(const sd_index *index); /* SD_METRIC_COSINE for NULL */
SD_API uint64_t sd_index_count(const sd_index *index);   /* rows; 0 for NULL */

/* Copies `count` rows, row i at rows + i*ld. All of them are added, or none.
 *   ids  their ids, not negative and none twice; NULL: one more than the largest id that was ever there, and so on (0,
 *        1, 2, ... in an index of such rows only)
 * With SD_METRIC_COSINE rows are kept divided by their length, rows of zeros as they are.
 * Errors: SD_ERR_ARGUMENT (an id that is there already: named), SD_ERR_NUMERIC (a number that is NaN or infinite, or a
 * row longer than 1e18: named), SD_ERR_MEMORY. The index is as before then. */
SD_API sd_status sd_index_add(sd_index *index, const int64_t *ids, const float *rows, size_t count, size_t ld);

/* Removes the rows of these ids; ids that are not there are passed over. `removed` (may be NULL) receives how many rows
 * went. Memory is kept for rows to come. Errors: SD_ERR_ARGUMENT. */
SD_API sd_status sd_index_remove(sd_index *index, const int64_t *ids, size_t count, uint64_t *removed);

/* Copies the row of `id` as it is kept (`dim` floats). Errors: SD_ERR_ARGUMENT (no such id). */
SD_API sd_status sd_index_get(const sd_index *index, int64_t id, float *row);

/* All ids, ascending: sd_index_count() of them. Errors: SD_ERR_ARGUMENT. */
SD_API sd_status sd_index_ids(const sd_index *index, int64_t *ids);

/* For each of `count` queries (query i at queries + i*ld) the k nearest rows, nearest first, equal ones by lower id.
 *   ids     count x k; where the index has fewer than k rows, the rest are -1
 *   scores  count x k, in double precision and then rounded; the rest are -infinity (SD_METRIC_L2: infinity); may be NULL
 * What comes out is the same for a query alone and in a batch, and for any number of threads. Batches of 64 and more
 * run near the rate of the matrix products, single queries at that of the memory. Working memory: about 1 MiB a thread
 * and 16 k bytes a query. Reports progress as "search".
 * Errors: SD_ERR_ARGUMENT (k = 0), SD_ERR_NUMERIC (a query is NaN, infinite or longer than 1e18: named), SD_ERR_MEMORY,
 * SD_ERR_CANCELLED (outputs are incomplete then), SD_ERR_THREAD. */
SD_API sd_status sd_index_query(const sd_index *index, const float *queries, size_t count, size_t ld, size_t k,
                                int64_t *ids, float *scores);

/* ---- files --------------------------------------------------------------------------------- */

/* Writes the index with checksums, under a temporary name that is synced and renamed: a file of that name is never lost
 * to a failure. Reports progress as "save". Errors: SD_ERR_ARGUMENT, SD_ERR_IO, SD_ERR_MEMORY, SD_ERR_CANCELLED. */
SD_API sd_status sd_index_save(const sd_index *index, const char *path);

/* Reads such a file. Nothing in it is believed: sizes are held against the file before memory is taken for them.
 * Reports progress as "load".
 * Errors: SD_ERR_ARGUMENT, SD_ERR_IO, SD_ERR_FORMAT (no index, truncated, contradicts itself), SD_ERR_VERSION,
 * SD_ERR_CHECKSUM, SD_ERR_MEMORY, SD_ERR_CANCELLED. */
SD_API sd_status sd_index_load(sd_context *context, const char *path, sd_index **index);

/* Writes the rows, as they are kept and by ascending id, for other programs; the ending of `path` chooses the form:
 *   .npy    a NumPy array of count x dim float32
 *   .fvecs  each row as its width (int32) and its numbers (float32), as FAISS and its benchmarks read them
 *   ids_path  NULL, or an .npy file for the ids (int64), which are 0, 1, 2, ... unless rows were removed or came with
 *             ids of their own (FAISS: IndexIDMap)
 * Errors: as sd_index_save; SD_ERR_ARGUMENT (another ending, an index without rows). */
SD_API sd_status sd_index_export(const sd_index *index, const char *path, const char *ids_path);

#ifdef __cplusplus
}
#endif
#endif
