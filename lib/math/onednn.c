/* Products by oneDNN's C API, of version 2 or 3: fp32 by its own GEMM, bf16 by a matmul primitive of each shape. */
#include "math/onednn.h"

#include <oneapi/dnnl/dnnl.h>

#include <pthread.h>
#include <string.h>

/* ---- one thread ---------------------------------------------------------------------------- */

/* The library's own threads each compute a part, so oneDNN must not start others. With OpenMP it takes as many as the
 * calling thread's setting says, which belongs to the host if that is its thread. */
#if DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP
/* omp.h is the compiler's, which need not be the one whose OpenMP oneDNN was linked with. */
int omp_get_max_threads(void);
void omp_set_num_threads(int threads);

static int take_one_thread(void) {
    int former = omp_get_max_threads();
    if (former != 1)
        omp_set_num_threads(1);
    return former;
}

static void give_threads_back(int former) {
    if (former != 1)
        omp_set_num_threads(former);
}
#elif DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_SEQ
static int take_one_thread(void) { return 1; }
static void give_threads_back(int former) { (void)former; }
#else
#error "this oneDNN's threads cannot be limited to one for a call: use one built with OpenMP or without threads"
#endif

/* ---- fp32 ---------------------------------------------------------------------------------- */

bool sd_onednn_sgemm(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                     const float *b, size_t ldb, float beta, float *c, size_t ldc) {
    int former = take_one_thread();
    dnnl_status_t status = dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', (dnnl_dim_t)m, (dnnl_dim_t)n, (dnnl_dim_t)k, alpha,
                                      a, (dnnl_dim_t)lda, b, (dnnl_dim_t)ldb, beta, c, (dnnl_dim_t)ldc);
    give_threads_back(former);
    return status == dnnl_success;
}

#if defined(SD_HAVE_PACKED_KERNELS)

#include <immintrin.h>

/* ---- bf16: a primitive for each shape ------------------------------------------------------ */

typedef struct shape {
    bool ta, tb, add;
    uint16_t m, n, k;
    uint32_t ldc;
} shape;

_Static_assert(SD_ONEDNN_SIDE <= UINT16_MAX && SD_ONEDNN_DEPTH <= UINT16_MAX, "sizes fit into a shape");

typedef struct product {
    shape shape;
    dnnl_primitive_t primitive; /* NULL: none here */
    dnnl_memory_t a, b, c;
} product;

/* What a thread has met. A primitive computes in one thread at a time, since its memory objects name the matrices. */
#define PRODUCTS 128
typedef struct cache {
    dnnl_stream_t stream;
    product products[PRODUCTS];
} cache;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool have_key;
static dnnl_engine_t engine; /* NULL: oneDNN has none */

static void drop_product(product *p) {
    dnnl_memory_destroy(p->a);
    dnnl_memory_destroy(p->b);
    dnnl_memory_destroy(p->c);
    dnnl_primitive_destroy(p->primitive);
    memset(p, 0, sizeof *p);
}

static void drop_cache(void *pointer) {
    cache *own = pointer;
    for (size_t i = 0; i < PRODUCTS; i++)
        if (own->products[i].primitive != NULL)
            drop_product(&own->products[i]);
    dnnl_stream_destroy(own->stream);
    sd_release(NULL, own);
}

static void start(void) {
    if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success)
        engine = NULL;
    have_key = pthread_key_create(&key, drop_cache) == 0;
}

/* When the library is unloaded, no thread that ends later may call drop_cache. */
__attribute__((destructor)) static void stop(void) {
    if (have_key) {
        void *own = pthread_getspecific(key);
        pthread_key_delete(key);
        if (own != NULL)
            drop_cache(own);
    }
    if (engine != NULL)
        dnnl_engine_destroy(engine);
}

/* This thread's, or NULL. */
static cache *own_cache(void) {
    pthread_once(&once, start);
    if (engine == NULL || !have_key)
        return NULL;
    cache *own = pthread_getspecific(key);
    if (own != NULL)
        return own;
    own = sd_allocate(NULL, 1, sizeof *own);
    if (own == NULL)
        return NULL;
    if (dnnl_stream_create(&own->stream, engine, dnnl_stream_default_flags) != dnnl_success) {
        sd_release(NULL, own);
        return NULL;
    }
    if (pthread_setspecific(key, own) != 0) {
        drop_cache(own);
        return NULL;
    }
    return own;
}

/* What both versions of the API can say about a matrix of a distance of rows, transposed or not. */
typedef struct matrix {
    dnnl_dims_t sizes, strides;
    dnnl_data_type_t type;
} matrix;

static matrix matrix_of(bool transposed, size_t rows, size_t columns, size_t ld, dnnl_data_type_t type) {
    return (matrix){
        .sizes = {(dnnl_dim_t)rows, (dnnl_dim_t)columns},
        .strides = {transposed ? 1 : (dnnl_dim_t)ld, transposed ? (dnnl_dim_t)ld : 1},
        .type = type,
    };
}

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t description;
static bool describe(description *d, const matrix *x) {
    return dnnl_memory_desc_create_with_strides(d, 2, x->sizes, x->type, x->strides) == dnnl_success;
}
static bool make_memory(dnnl_memory_t *memory, description *d) {
    return dnnl_memory_create(memory, *d, engine, DNNL_MEMORY_NONE) == dnnl_success;
}
static void drop_description(description *d) { dnnl_memory_desc_destroy(*d); }
static bool append_sum(dnnl_post_ops_t operations) {
    return dnnl_post_ops_append_sum(operations, 1.0f, 0, dnnl_data_type_undef) == dnnl_success;
}
static bool make_matmul(dnnl_primitive_desc_t *primitive, description d[3], dnnl_primitive_attr_t attributes) {
    return dnnl_matmul_primitive_desc_create(primitive, engine, d[0], d[1], NULL, d[2], attributes) == dnnl_success;
}
#else
typedef dnnl_memory_desc_t description;
static bool describe(description *d, const matrix *x) {
    return dnnl_memory_desc_init_by_strides(d, 2, x->sizes, x->type, x->strides) == dnnl_success;
}
static bool make_memory(dnnl_memory_t *memory, description *d) {
    return dnnl_memory_create(memory, d, engine, DNNL_MEMORY_NONE) == dnnl_success;
}
static void drop_description(description *d) { (void)d; }
static bool append_sum(dnnl_post_ops_t operations) {
    return dnnl_post_ops_append_sum(operations, 1.0f) == dnnl_success;
}
static bool make_matmul(dnnl_primitive_desc_t *primitive, description d[3], dnnl_primitive_attr_t attributes) {
    dnnl_matmul_desc_t matmul;
    return dnnl_matmul_desc_init(&matmul, &d[0], &d[1], NULL, &d[2]) == dnnl_success &&
           dnnl_primitive_desc_create(primitive, &matmul, attributes, engine, NULL) == dnnl_success;
}
#endif

static bool make_primitive(dnnl_primitive_t *primitive, description d[3], bool add) {
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t operations = NULL;
    dnnl_primitive_desc_t prepared = NULL;
    bool made = dnnl_primitive_attr_create(&attributes) == dnnl_success &&
                dnnl_post_ops_create(&operations) == dnnl_success && (!add || append_sum(operations)) &&
                dnnl_primitive_attr_set_post_ops(attributes, operations) == dnnl_success &&
                make_matmul(&prepared, d, attributes) && dnnl_primitive_create(primitive, prepared) == dnnl_success;
    if (prepared != NULL)
        dnnl_primitive_desc_destroy(prepared);
    if (operations != NULL)
        dnnl_post_ops_destroy(operations);
    if (attributes != NULL)
        dnnl_primitive_attr_destroy(attributes);
    return made;
}

static bool make_product(product *p, const shape *s) {
    const size_t m = s->m, n = s->n, k = s->k;
    const matrix matrices[3] = {matrix_of(s->ta, m, k, s->ta ? m : k, dnnl_bf16),
                                matrix_of(s->tb, k, n, s->tb ? k : n, dnnl_bf16),
                                matrix_of(false, m, n, s->ldc, dnnl_f32)};
    description d[3];
    size_t described = 0;
    while (described < 3 && describe(&d[described], &matrices[described]))
        described++;
    product made = {.shape = *s};
    bool good = described == 3 && make_memory(&made.a, &d[0]) && make_memory(&made.b, &d[1]) &&
                make_memory(&made.c, &d[2]) && make_primitive(&made.primitive, d, s->add);
    for (size_t i = 0; i < described; i++)
        drop_description(&d[i]);
    if (good) {
        *p = made;
        return true;
    }
    if (made.a != NULL)
        dnnl_memory_destroy(made.a);
    if (made.b != NULL)
        dnnl_memory_destroy(made.b);
    if (made.c != NULL)
        dnnl_memory_destroy(made.c);
    return false;
}

static bool same_shape(const shape *x, const shape *y) {
    return x->ta == y->ta && x->tb == y->tb && x->add == y->add && x->m == y->m && x->n == y->n && x->k == y->k &&
           x->ldc == y->ldc;
}

/* The product of this shape, which takes the place of another one if need be. NULL: oneDNN refused. */
static product *find_product(cache *own, const shape *s) {
    uint64_t mixed = ((uint64_t)s->m << 48 | (uint64_t)s->n << 32 | (uint64_t)s->k << 16) ^
                     ((uint64_t)s->ldc << 3 | (uint64_t)s->ta << 2 | (uint64_t)s->tb << 1 | (uint64_t)s->add);
    mixed *= 0x9e3779b97f4a7c15u;
    mixed ^= mixed >> 29;
    product *p = &own->products[mixed * 0xbf58476d1ce4e5b9u >> 57];
    if (p->primitive != NULL && same_shape(&p->shape, s))
        return p;
    if (p->primitive != NULL)
        drop_product(p);
    return make_product(p, s) ? p : NULL;
}

_Static_assert(PRODUCTS == 1 << (64 - 57), "the hash's upper bits are the place");

/* ---- bf16: rounding and the product -------------------------------------------------------- */

/* Rows of floats, ld apart, as rows of bfloat16 without gaps. */
__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16"))) static void
round_rows(size_t rows, size_t columns, const float *x, size_t ld, uint16_t *out) {
    for (size_t r = 0; r < rows; r++, x += ld, out += columns) {
        size_t j = 0;
        for (; j + 16 <= columns; j += 16)
            _mm256_storeu_si256((__m256i *)(out + j), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + j)));
        if (j < columns) {
            __mmask16 left = (__mmask16)((1u << (columns - j)) - 1u);
            _mm256_mask_storeu_epi16(out + j, left, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(left, x + j)));
        }
    }
}

bool sd_onednn_bf16(bool ta, bool tb, size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b,
                    size_t ldb, bool add, float *c, size_t ldc, void *scratch) {
    cache *own = own_cache();
    if (own == NULL)
        return false;
    uint16_t *left = scratch, *right = left + SD_ONEDNN_SIDE * SD_ONEDNN_DEPTH;
    const shape s = {
        .ta = ta, .tb = tb, .add = add, .m = (uint16_t)m, .n = (uint16_t)n, .k = (uint16_t)k, .ldc = (uint32_t)ldc};
    int former = take_one_thread();
    product *p = find_product(own, &s);
    bool done = false;
    if (p != NULL) {
        round_rows(ta ? k : m, ta ? m : k, a, lda, left);
        round_rows(tb ? n : k, tb ? k : n, b, ldb, right);
        const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, p->a}, {DNNL_ARG_WEIGHTS, p->b}, {DNNL_ARG_DST, p->c}};
        done = dnnl_memory_set_data_handle(p->a, left) == dnnl_success &&
               dnnl_memory_set_data_handle(p->b, right) == dnnl_success &&
               dnnl_memory_set_data_handle(p->c, c) == dnnl_success &&
               dnnl_primitive_execute(p->primitive, own->stream, 3, arguments) == dnnl_success;
    }
    give_threads_back(former);
    return done;
}

#endif
