/* The k nearest rows of each query, exactly.
 *
 * Queries are taken in blocks, rows in segments; a task compares one block with one segment, tile by tile. The products
 * of a tile, in float and from the matrix product, are a filter only: a row that comes within their rounding error of the
 * k best so far is compared again in double precision, which decides. So scores do not depend on how the BLAS cuts its
 * sums, equal rows have equal scores, and a query finds the same alone, in a batch, and with any number of threads.
 *
 * What is better is called nearness here: the inner product, or the squared distance with its sign changed. */
#include "embed/index.h"

#include "math/math.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#define QUERY_BLOCK ((size_t)256)
#define TILE        ((size_t)1024)    /* rows: with 256 queries, a MiB of products */
#define HEAP_ROOM   ((size_t)1 << 20) /* neighbours kept at once, unless a single query wants more */
#define TASKS       ((size_t)4)       /* for each thread, so that a slow one delays the others little */

typedef struct neighbor {
    float nearness;
    int64_t id;
} neighbor;

typedef struct search {
    const sd_index *index;
    const sd_index_kernels *kernels;
    size_t k; /* neighbours to find: at most the number of rows */
    size_t wanted;
    /* the present wave of queries */
    size_t first, count;
    size_t block, segments;
    float *queries;         /* count x dim; of length 1 for cosines */
    double *squares;        /* their squared lengths */
    double *slacks;         /* rounding error of their products */
    _Atomic float *bounds;  /* k rows of one segment are at least so near */
    neighbor *heaps;        /* block of queries x segments x query x k */
    size_t *heap_counts;
    float *products;        /* threads x block x TILE */
    int64_t *ids;
    float *scores;
} search;

/* ---- the k best ---------------------------------------------------------------------------- */

static inline bool behind(neighbor a, neighbor b) {
    return a.nearness < b.nearness || (a.nearness == b.nearness && a.id > b.id);
}

/* The root is the last of the heap; `at` may be too good for its place. */
static void sift_down(neighbor *heap, size_t count, size_t at) {
    neighbor moving = heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && behind(heap[child + 1], heap[child]))
            child++;
        if (!behind(heap[child], moving))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

static void make_heap(neighbor *heap, size_t count) {
    for (size_t at = count / 2; at-- > 0;)
        sift_down(heap, count, at);
}

/* A list becomes a heap when it has k entries. */
static void insert(neighbor *heap, size_t *count, size_t k, neighbor candidate) {
    if (*count < k) {
        heap[(*count)++] = candidate;
        if (*count == k)
            make_heap(heap, k);
    } else if (behind(heap[0], candidate)) {
        heap[0] = candidate;
        sift_down(heap, k, 0);
    }
}

/* Best first. */
static void sort(neighbor *heap, size_t count) {
    make_heap(heap, count);
    for (size_t last = count; last-- > 1;) {
        neighbor worst = heap[0];
        heap[0] = heap[last];
        heap[last] = worst;
        sift_down(heap, last, 0);
    }
}

/* ---- one tile ------------------------------------------------------------------------------ */

/* Products below this cannot be among the k nearest: with <q, r> = (|q|^2 - |q - r|^2)/2 + |r|^2/2 for distances, where
 * |r|^2/2 is subtracted from the products before. */
static float limit_of(const search *s, size_t query, float nearness) {
    double bound = (double)nearness;
    if (s->index->metric == SD_METRIC_L2)
        bound = 0.5 * (bound + s->squares[query]);
    return (float)(bound - s->slacks[query]);
}

static float nearness_of(const search *s, const float *query, const float *row) {
    return s->index->metric == SD_METRIC_L2 ? (float)-s->kernels->distance(query, row, s->index->dim)
                                            : (float)s->kernels->dot(query, row, s->index->dim);
}

/* Offers `rows` rows from place `first` on, which lie in one block of the index, with these products. */
static void offer(const search *s, size_t query, neighbor *heap, size_t *count, const float *products, uint64_t first,
                  size_t rows) {
    const sd_index_block *block = sd_index_block_of(s->index, first);
    size_t from = (size_t)(first % s->index->block_rows), dim = s->index->dim;
    const float *q = s->queries + query * dim, *base = block->rows + from * dim;
    const float *halves = block->halves ? block->halves + from : NULL;
    const int64_t *ids = block->ids + from;
    float bound = atomic_load_explicit(&s->bounds[query], memory_order_relaxed), known = bound;

    if (*count == s->k && heap[0].nearness > bound)
        bound = heap[0].nearness;
    float limit = limit_of(s, query, bound);
    for (size_t i = 0; (i = s->kernels->next(products, halves, i, rows, limit)) < rows; i++) {
        neighbor candidate = {.nearness = nearness_of(s, q, base + i * dim), .id = ids[i]};
        if (candidate.nearness < bound)
            continue;
        insert(heap, count, s->k, candidate);
        if (*count == s->k && heap[0].nearness > bound) {
            bound = heap[0].nearness;
            limit = limit_of(s, query, bound);
        }
    }
    /* Tasks of other segments of the same query need not look at what is behind. */
    while (bound > known && !atomic_compare_exchange_weak_explicit(&s->bounds[query], &known, bound,
                                                                   memory_order_relaxed, memory_order_relaxed)) {
    }
}

static void search_task(void *work, size_t number, size_t thread) {
    search *s = work;
    const sd_index *index = s->index;
    size_t segment = number % s->segments, first_query = number / s->segments * s->block, dim = index->dim;
    size_t queries = sd_size_min(s->block, s->count - first_query);
    uint64_t blocks = (index->count + index->block_rows - 1) / index->block_rows;
    uint64_t begin = blocks * segment / s->segments * index->block_rows;
    uint64_t end = blocks * (segment + 1) / s->segments * index->block_rows;
    float *products = s->products + thread * s->block * TILE;
    neighbor *heaps = s->heaps + number * s->block * s->k;
    size_t *counts = s->heap_counts + number * s->block;

    end = end < index->count ? end : index->count;
    for (uint64_t place = begin; place < end;) {
        size_t in_block = (size_t)(place % index->block_rows);
        size_t rows = sd_size_min(TILE, index->block_rows - in_block);
        if (rows > end - place)
            rows = (size_t)(end - place);
        if (sd_cancelled(index->context))
            return;
        if (queries <= SD_INDEX_FEW)
            s->kernels->products(s->queries + first_query * dim, queries, sd_index_row(index, place), rows, dim,
                                 products, TILE);
        else
            sd_sgemm(false, true, queries, rows, dim, 1.0f, s->queries + first_query * dim, dim,
                     sd_index_row(index, place), dim, 0.0f, products, TILE);
        for (size_t q = 0; q < queries; q++)
            offer(s, first_query + q, heaps + q * s->k, &counts[q], products + q * TILE, place, rows);
        place += rows;
    }
}

/* The neighbours of one query out of all segments. */
static void merge_task(void *work, size_t query, size_t thread) {
    search *s = work;
    size_t task = query / s->block * s->segments, in_block = query % s->block;
    neighbor *heap = s->heaps + (task * s->block + in_block) * s->k;
    size_t count = s->heap_counts[task * s->block + in_block];
    int64_t *ids = s->ids + (s->first + query) * s->wanted;
    float *scores = s->scores ? s->scores + (s->first + query) * s->wanted : NULL;
    float sign = s->index->metric == SD_METRIC_L2 ? -1.0f : 1.0f;

    (void)thread;
    for (size_t segment = 1; segment < s->segments; segment++) {
        size_t other = (task + segment) * s->block + in_block;
        for (size_t i = 0; i < s->heap_counts[other]; i++)
            insert(heap, &count, s->k, s->heaps[other * s->k + i]);
    }
    sort(heap, count);
    for (size_t i = 0; i < s->wanted; i++) {
        ids[i] = i < count ? heap[i].id : -1;
        if (scores)
            scores[i] = i < count ? sign * heap[i].nearness + 0.0f : -sign * INFINITY; /* + 0: no negative zero */
    }
}

/* ---- all queries --------------------------------------------------------------------------- */

/* Takes over the queries of a wave. */
static sd_status prepare(search *s, const float *queries, size_t ld) {
    const sd_index *index = s->index;
    size_t dim = index->dim;
    for (size_t i = 0; i < s->count; i++) {
        const float *from = queries + (s->first + i) * ld;
        float *to = s->queries + i * dim;
        double length;
        sd_status status = sd_index_check_row(from, dim, "query", s->first + i, &length);
        if (status != SD_OK)
            return status;
        memcpy(to, from, dim * sizeof *to);
        if (index->metric == SD_METRIC_COSINE && length > 0.0) {
            for (size_t j = 0; j < dim; j++)
                to[j] = (float)((double)from[j] / length);
            length = 1.0 + 1e-6;
        }
        /* |product - exact| <= d u |q| |r| whatever the order of the sum, u = FLT_EPSILON/2; the rest is for the rounding
         * of halves, limit and nearness, and for products too small for a normal float. */
        double scale = length * index->longest;
        if (index->metric == SD_METRIC_L2)
            scale = (length + index->longest) * (length + index->longest);
        s->squares[i] = length * length;
        s->slacks[i] = (double)(dim + 16) * ((double)FLT_EPSILON * scale + (double)FLT_MIN);
        atomic_store_explicit(&s->bounds[i], -INFINITY, memory_order_relaxed);
    }
    return SD_OK;
}

static sd_status run_waves(search *s, const float *queries, size_t count, size_t ld) {
    sd_context *context = s->index->context;
    size_t threads = sd_size_max(sd_threads(context), 1), tasks = TASKS * threads, dim = s->index->dim, room;
    size_t index_blocks = (size_t)((s->index->count + s->index->block_rows - 1) / s->index->block_rows);
    sd_status status = SD_OK;

    s->block = sd_size_min(sd_size_min(QUERY_BLOCK, count), sd_size_max(HEAP_ROOM / s->k, 1));
    size_t blocks = sd_size_ceil(count, s->block), heaps = sd_size_max(HEAP_ROOM / (s->block * s->k), 1);
    s->segments = sd_size_min(sd_size_ceil(tasks, sd_size_min(blocks, tasks)), sd_size_min(index_blocks, heaps));
    size_t wave = sd_size_min(blocks, sd_size_ceil(tasks, s->segments));
    wave = sd_size_min(wave, sd_size_max(heaps / s->segments, 1));
    size_t wave_queries = wave * s->block;
    SD_REQUIRE(sd_size_mul(wave_queries * s->segments, s->k, &room) && sd_size_mul(wave_queries, dim, &room),
               SD_ERR_MEMORY, "%zu neighbours of %zu queries do not fit into memory", s->k, wave_queries);
    s->queries = SD_NEW_ARRAY(context, float, wave_queries * dim);
    s->squares = SD_NEW_ARRAY(context, double, wave_queries);
    s->slacks = SD_NEW_ARRAY(context, double, wave_queries);
    s->bounds = SD_NEW_ARRAY(context, _Atomic float, wave_queries);
    s->heaps = SD_NEW_ARRAY(context, neighbor, wave_queries * s->segments * s->k);
    s->heap_counts = SD_NEW_ARRAY(context, size_t, wave_queries * s->segments);
    s->products = SD_NEW_ARRAY(context, float, threads * s->block * TILE);
    if (!s->queries || !s->squares || !s->slacks || !s->bounds || !s->heaps || !s->heap_counts || !s->products) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    for (s->first = 0; s->first < count; s->first += s->count) {
        s->count = sd_size_min(wave_queries, count - s->first);
        SD_TRY(sd_check_cancel(context));
        SD_TRY(prepare(s, queries, ld));
        memset(s->heap_counts, 0, wave_queries * s->segments * sizeof *s->heap_counts);
        SD_TRY(sd_run(context, search_task, s, sd_size_ceil(s->count, s->block) * s->segments));
        SD_TRY(sd_check_cancel(context));
        SD_TRY(sd_run(context, merge_task, s, s->count));
        sd_progress(context, "search", s->first + s->count, count);
    }
cleanup:
    sd_release(context, s->queries);
    sd_release(context, s->squares);
    sd_release(context, s->slacks);
    sd_release(context, s->bounds);
    sd_release(context, s->heaps);
    sd_release(context, s->heap_counts);
    sd_release(context, s->products);
    return status;
}

SD_API sd_status sd_index_query(const sd_index *index, const float *queries, size_t count, size_t ld, size_t k,
                                int64_t *ids, float *scores) {
    SD_REQUIRE(index, SD_ERR_ARGUMENT, "index is NULL");
    SD_REQUIRE(queries || count == 0, SD_ERR_ARGUMENT, "queries is NULL");
    SD_REQUIRE(ids || count == 0, SD_ERR_ARGUMENT, "ids is NULL");
    SD_REQUIRE(ld >= index->dim, SD_ERR_ARGUMENT, "ld is %zu: it must be at least dim = %zu", ld, index->dim);
    SD_REQUIRE(k > 0, SD_ERR_ARGUMENT, "k is 0: it must be at least 1");
    if (count == 0)
        return SD_OK;
    if (index->count == 0) {
        double length;
        for (size_t i = 0; i < count; i++) {
            sd_status status = sd_index_check_row(queries + i * ld, index->dim, "query", i, &length);
            if (status != SD_OK)
                return status;
        }
        for (size_t i = 0; i < count * k; i++) {
            ids[i] = -1;
            if (scores)
                scores[i] = index->metric == SD_METRIC_L2 ? INFINITY : -INFINITY;
        }
        return SD_OK;
    }
    search s = {.index = index, .kernels = sd_index_kernels_get(), .wanted = k, .ids = ids, .scores = scores};
    s.k = index->count < k ? (size_t)index->count : k;
    return run_waves(&s, queries, count, ld);
}
