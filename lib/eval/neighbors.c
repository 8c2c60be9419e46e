/* Nearest neighbours by inner product, and the weighted k-NN classifier of DINO (eval_knn.py) on top of them.
 *
 * Queries are taken in blocks, one task each. A task multiplies its block with one block of the base after the other.
 * The products are a filter only: what they put within their rounding error of the k best so far is computed again by
 * one plain dot product, which decides. So equal rows have equal similarities wherever they lie (a BLAS does not
 * promise that: its kernels may sum the columns of one product in different orders), and the result is the same with
 * every BLAS. */
#include "base/base.h"
#include "math/math.h"

#include <simdino/eval.h>

#include <float.h>
#include <math.h>
#include <string.h>

#define QUERY_BLOCK ((size_t)256)
#define BASE_BLOCK ((size_t)1024)
#define HEAP_ROOM ((size_t)1 << 20) /* neighbours that one task keeps: more of them, fewer queries */
#define GROUP ((size_t)16)
#define LANES ((size_t)8)

typedef struct neighbor {
    float similarity;
    int64_t index;
} neighbor;

typedef struct search {
    sd_context *context;
    const float *base, *queries;
    size_t n, m, d, k;
    size_t query_block, base_block;
    size_t first_block;  /* of the present wave */
    double slack;        /* rounding error of the products for a query of length 1 */
    /* per thread */
    float *scores;       /* query_block x base_block */
    neighbor *heaps;     /* query_block x k */
    double *votes;       /* classes */
    /* results: lists of neighbours, or ... */
    int64_t *indices;
    float *similarities;
    /* ... votes */
    const int32_t *labels;
    size_t classes;
    double temperature;
    int32_t *predictions;
    const int32_t *truth;
    size_t *hits;        /* by query block: right in the first place, among the first five */
} search;

/* ---- the k best ---------------------------------------------------------------------------- */

/* Is a behind b? Less similar, or as similar with a higher index. */
static inline bool behind(neighbor a, neighbor b) {
    return a.similarity < b.similarity || (a.similarity == b.similarity && a.index > b.index);
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

/* Best first. */
static void sort_heap(neighbor *heap, size_t count) {
    for (size_t last = count; last-- > 1;) {
        neighbor worst = heap[0];
        heap[0] = heap[last];
        heap[last] = worst;
        sift_down(heap, last, 0);
    }
}

/* <a, b> in double, rounded; lanes, so that it can be vectorised without reordering. */
static float dot(const float *a, const float *b, size_t n) {
    double lane[LANES] = {0}, sum = 0.0;
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++)
            lane[l] += (double)a[i + l] * (double)b[i + l];
    for (; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    for (size_t l = 0; l < LANES; l++)
        sum += lane[l];
    return (float)sum;
}

/* Offers base rows first, first+1, ... with these scores to a heap that the rows before have been offered to. */
static void offer(const search *s, neighbor *heap, const float *query, double slack, const float *scores, size_t count,
                  size_t first) {
    size_t i = 0, k = s->k;

    for (; i < count && first + i < k; i++) { /* the first k are taken as they come */
        heap[first + i] = (neighbor){.similarity = dot(query, s->base + (first + i) * s->d, s->d),
                                     .index = (int64_t)(first + i)};
        if (first + i + 1 == k)
            for (size_t at = k / 2; at-- > 0;)
                sift_down(heap, k, at);
    }
    while (i < count) {
        float limit = (float)((double)heap[0].similarity - slack);
        size_t last = sd_size_min(i + GROUP, count);

        if (last == i + GROUP) { /* most groups hold nothing of interest */
            int any = 0;
            for (size_t l = 0; l < GROUP; l++)
                any |= !(scores[i + l] < limit);
            if (!any) {
                i = last;
                continue;
            }
        }
        for (; i < last; i++) {
            if (scores[i] < limit) /* a score that overflowed to NaN is looked at, too */
                continue;
            float similarity = dot(query, s->base + (first + i) * s->d, s->d);
            /* Indices only grow, so an equal similarity never displaces one that is there. */
            if (similarity > heap[0].similarity) {
                heap[0] = (neighbor){.similarity = similarity, .index = (int64_t)(first + i)};
                sift_down(heap, k, 0);
            }
        }
    }
}

/* ---- one block of queries ------------------------------------------------------------------ */

static void vote(search *s, const neighbor *nearest, size_t query, double *votes, size_t hits[2]) {
    double nearest_similarity = (double)nearest[0].similarity;
    size_t best = 0, ahead = 0, shown = sd_size_min(5, s->k);

    memset(votes, 0, s->classes * sizeof(double));
    /* Weights relative to the nearest one, so that a low temperature cannot overflow. */
    for (size_t i = 0; i < s->k; i++)
        votes[s->labels[nearest[i].index]] +=
            exp(((double)nearest[i].similarity - nearest_similarity) / s->temperature);
    for (size_t c = 1; c < s->classes; c++)
        if (votes[c] > votes[best])
            best = c;
    if (s->predictions)
        s->predictions[query] = (int32_t)best;
    if (s->truth) {
        size_t label = (size_t)s->truth[query];
        for (size_t c = 0; c < s->classes; c++)
            ahead += votes[c] > votes[label] || (votes[c] == votes[label] && c < label);
        hits[0] += label == best;
        hits[1] += ahead < shown;
    }
}

static double squared_length(const float *row, size_t d) {
    double sum = 0.0;

    for (size_t j = 0; j < d; j++)
        sum += (double)row[j] * (double)row[j];
    return sum;
}

static void search_task(void *work, size_t index, size_t thread) {
    search *s = work;
    size_t block = s->first_block + index, first_query = block * s->query_block;
    size_t count = sd_size_min(s->query_block, s->m - first_query), k = s->k, width = s->base_block;
    float *scores = s->scores + thread * s->query_block * width;
    neighbor *heaps = s->heaps + thread * s->query_block * k;

    for (size_t first = 0; first < s->n; first += width) {
        size_t rows = sd_size_min(width, s->n - first);

        if (sd_cancelled(s->context))
            return;
        sd_sgemm(false, true, count, rows, s->d, 1.0f, s->queries + first_query * s->d, s->d, s->base + first * s->d,
                 s->d, 0.0f, scores, width);
        for (size_t q = 0; q < count; q++) {
            const float *query = s->queries + (first_query + q) * s->d;
            double slack = s->slack * sqrt(squared_length(query, s->d));
            offer(s, heaps + q * k, query, slack, scores + q * width, rows, first);
        }
    }
    size_t hits[2] = {0, 0};
    for (size_t q = 0; q < count; q++) {
        neighbor *nearest = heaps + q * k;
        size_t query = first_query + q;

        sort_heap(nearest, k);
        for (size_t i = 0; i < k; i++) {
            if (s->indices)
                s->indices[query * k + i] = nearest[i].index;
            if (s->similarities)
                s->similarities[query * k + i] = nearest[i].similarity;
        }
        if (s->labels)
            vote(s, nearest, query, s->votes + thread * s->classes, hits);
    }
    if (s->hits) {
        s->hits[2 * block] = hits[0];
        s->hits[2 * block + 1] = hits[1];
    }
}

/* ---- all blocks ---------------------------------------------------------------------------- */

static sd_status check_search(const float *base, size_t n, const float *queries, size_t m, size_t d, size_t k,
                              const char *base_name, const char *query_name) {
    SD_REQUIRE(base, SD_ERR_ARGUMENT, "%s is NULL", base_name);
    SD_REQUIRE(queries, SD_ERR_ARGUMENT, "%s is NULL", query_name);
    SD_REQUIRE(n > 0 && m > 0 && d > 0, SD_ERR_ARGUMENT, "%zu rows, %zu queries, width %zu: none may be 0", n, m, d);
    SD_REQUIRE(d <= SD_BLAS_MAX, SD_ERR_ARGUMENT, "d is %zu: it must be at most %zu", d, SD_BLAS_MAX);
    SD_REQUIRE(k > 0 && k <= n, SD_ERR_ARGUMENT, "k is %zu: it must be between 1 and the number of rows, %zu", k, n);
    return SD_OK;
}

/* The features must be finite: a NaN has no place in any order. */
static sd_status check_finite(const float *rows, size_t count, size_t d, const char *name) {
    for (size_t i = 0; i < count * d; i++)
        SD_REQUIRE(isfinite(rows[i]), SD_ERR_NUMERIC, "%s: row %zu, column %zu is not finite", name, i / d, i % d);
    return SD_OK;
}

static sd_status run_search(search *s, const char *what) {
    sd_status status = SD_OK;
    sd_context *context = s->context;
    size_t threads = sd_threads(context), blocks, room;

    s->query_block = sd_size_min(sd_size_max(HEAP_ROOM / s->k, 1), QUERY_BLOCK);
    s->query_block = sd_size_min(s->query_block, s->m);
    s->base_block = sd_size_min(BASE_BLOCK, s->n);
    blocks = sd_size_ceil(s->m, s->query_block);
    threads = sd_size_max(threads, 1);
    SD_EXPECT(sd_size_mul(threads, s->query_block, &room) &&
                  sd_size_mul(room, sd_size_max(s->k, s->base_block), &room) && sd_size_mul(threads, s->classes, &room),
              SD_ERR_MEMORY, "%zu threads with %zu neighbours each do not fit into memory", threads, s->k);
    s->scores = SD_NEW_ARRAY(context, float, threads * s->query_block * s->base_block);
    s->heaps = SD_NEW_ARRAY(context, neighbor, threads * s->query_block * s->k);
    s->votes = s->labels ? SD_NEW_ARRAY(context, double, threads * s->classes) : NULL;
    s->hits = s->truth ? SD_NEW_ARRAY(context, size_t, 2 * blocks) : NULL;
    if (!s->scores || !s->heaps || (s->labels && !s->votes) || (s->truth && !s->hits)) {
        status = SD_ERR_MEMORY;
        goto cleanup;
    }
    /* |product - exact| <= d u |query| |row| whatever the order of the sum; doubled for the rounding of the limit. */
    double longest = 0.0;
    for (size_t i = 0; i < s->n; i++) {
        double length = squared_length(s->base + i * s->d, s->d);
        longest = length > longest ? length : longest;
    }
    s->slack = (double)(s->d + 8) * (double)FLT_EPSILON * sqrt(longest);
    /* In waves, so that progress can be told from this thread. */
    for (size_t done = 0; done < blocks;) {
        size_t wave = sd_size_min(4 * threads, blocks - done);
        SD_TRY(sd_check_cancel(context));
        s->first_block = done;
        SD_TRY(sd_run(context, search_task, s, wave));
        done += wave;
        SD_TRY(sd_check_cancel(context));
        sd_progress(context, what, sd_size_min(done * s->query_block, s->m), s->m);
    }
cleanup:
    sd_release(context, s->scores);
    sd_release(context, s->heaps);
    sd_release(context, s->votes);
    return status;
}

SD_API sd_status sd_nearest_neighbors(sd_context *context, const float *base, size_t n, const float *queries, size_t m,
                                      size_t d, size_t k, int64_t *indices, float *similarities) {
    sd_status status = check_search(base, n, queries, m, d, k, "base", "queries");
    search s = {.context = context, .base = base, .queries = queries, .n = n, .m = m, .d = d, .k = k,
                .indices = indices, .similarities = similarities};

    if (status == SD_OK)
        status = check_finite(base, n, d, "base");
    if (status == SD_OK)
        status = check_finite(queries, m, d, "queries");
    return status == SD_OK ? run_search(&s, "neighbours") : status;
}

static sd_status check_labels(const int32_t *labels, size_t count, size_t classes, const char *name) {
    for (size_t i = 0; i < count; i++)
        SD_REQUIRE(labels[i] >= 0 && (size_t)labels[i] < classes, SD_ERR_ARGUMENT,
                   "%s[%zu] is %d: it must be between 0 and %zu", name, i, (int)labels[i], classes - 1);
    return SD_OK;
}

SD_API sd_status sd_knn_classify(sd_context *context, const float *train, const int32_t *train_labels, size_t n_train,
                                 const float *test, const int32_t *test_labels, size_t n_test, size_t d,
                                 size_t classes, size_t k, double temperature, int32_t *predictions,
                                 sd_knn_result *result) {
    sd_status status = check_search(train, n_train, test, n_test, d, k, "train", "test");
    search s = {.context = context, .base = train, .queries = test, .n = n_train, .m = n_test, .d = d, .k = k,
                .labels = train_labels, .classes = classes, .temperature = temperature, .predictions = predictions,
                .truth = result ? test_labels : NULL};

    if (status != SD_OK)
        return status;
    SD_REQUIRE(train_labels, SD_ERR_ARGUMENT, "train_labels is NULL");
    SD_REQUIRE(test_labels || !result, SD_ERR_ARGUMENT, "test_labels is NULL: result must be NULL too");
    SD_REQUIRE(classes > 0, SD_ERR_ARGUMENT, "classes is 0: it must be at least 1");
    SD_REQUIRE(temperature > 0.0 && isfinite(temperature), SD_ERR_ARGUMENT,
               "temperature is %g: it must be positive and finite", temperature);
    SD_TRY(check_labels(train_labels, n_train, classes, "train_labels"));
    if (test_labels)
        SD_TRY(check_labels(test_labels, n_test, classes, "test_labels"));
    SD_TRY(check_finite(train, n_train, d, "train"));
    SD_TRY(check_finite(test, n_test, d, "test"));
    SD_TRY(run_search(&s, "knn"));
    if (result) {
        size_t top1 = 0, top5 = 0;
        for (size_t b = 0; b < sd_size_ceil(n_test, s.query_block); b++) {
            top1 += s.hits[2 * b];
            top5 += s.hits[2 * b + 1];
        }
        *result = (sd_knn_result){.top1 = (double)top1 / (double)n_test, .top5 = (double)top5 / (double)n_test};
    }
cleanup:
    sd_release(context, s.hits);
    return status;
}
