/* Products by oneDNN's C API, of version 2 or 3: of floats by its GEMM; in bf16, and with what follows a product, by a matmul
 * primitive of each shape. */
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

/* ---- a primitive for each shape ------------------------------------------------------------ */

/* Everything that a primitive is made for. Without gaps, so that shapes can be compared as bytes. */
typedef struct shape {
    uint32_t m, n, k, lda, ldb, ldc;
    uint8_t bf16, ta, tb;
    uint8_t add;                          /* C is added first: it lies where the result goes, or elsewhere */
    uint8_t bias, gelu, factor, residual; /* sd_epilogue */
} shape;

_Static_assert(sizeof(shape) == 32, "a shape has no gaps");

enum { ADD_NOTHING, ADD_HERE, ADD_ELSEWHERE };

/* What a primitive reads and writes. */
enum { A, B, C, BIAS, ADDED, FACTOR, RESIDUAL, MATRICES };

typedef struct product {
    shape shape;
    dnnl_primitive_t primitive; /* NULL: none here, or refused */
    bool refused;               /* asking again would take as long as making one */
    dnnl_memory_t memory[MATRICES]; /* NULL: not of this shape */
    int argument[MATRICES];
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
    for (size_t i = 0; i < MATRICES; i++)
        if (p->memory[i] != NULL)
            dnnl_memory_destroy(p->memory[i]);
    if (p->primitive != NULL)
        dnnl_primitive_destroy(p->primitive);
    memset(p, 0, sizeof *p);
}

static void drop_cache(void *pointer) {
    cache *own = pointer;
    for (size_t i = 0; i < PRODUCTS; i++)
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

typedef dnnl_memory_desc_t description;

#if DNNL_VERSION_MAJOR >= 3
static bool describe(description *d, const matrix *x) {
    return dnnl_memory_desc_create_with_strides(d, 2, x->sizes, x->type, x->strides) == dnnl_success;
}
static bool make_memory(dnnl_memory_t *memory, const description *d) {
    return dnnl_memory_create(memory, *d, engine, DNNL_MEMORY_NONE) == dnnl_success;
}
static void drop_description(description *d) { dnnl_memory_desc_destroy(*d); }
static bool append_sum(dnnl_post_ops_t operations) {
    return dnnl_post_ops_append_sum(operations, 1.0f, 0, dnnl_data_type_undef) == dnnl_success;
}
static bool append_gelu(dnnl_post_ops_t operations) {
    return dnnl_post_ops_append_eltwise(operations, dnnl_eltwise_gelu_erf, 0.0f, 0.0f) == dnnl_success;
}
static bool append_binary(dnnl_post_ops_t operations, dnnl_alg_kind_t kind, const description *d) {
    return dnnl_post_ops_append_binary(operations, kind, *d) == dnnl_success;
}
static bool make_matmul(dnnl_primitive_desc_t *primitive, const description d[MATRICES], bool bias,
                        dnnl_primitive_attr_t attributes) {
    return dnnl_matmul_primitive_desc_create(primitive, engine, d[A], d[B], bias ? d[BIAS] : NULL, d[C], attributes) ==
           dnnl_success;
}
#else
static bool describe(description *d, const matrix *x) {
    return dnnl_memory_desc_init_by_strides(d, 2, x->sizes, x->type, x->strides) == dnnl_success;
}
static bool make_memory(dnnl_memory_t *memory, const description *d) {
    return dnnl_memory_create(memory, d, engine, DNNL_MEMORY_NONE) == dnnl_success;
}
static void drop_description(description *d) { (void)d; }
static bool append_sum(dnnl_post_ops_t operations) {
    return dnnl_post_ops_append_sum(operations, 1.0f) == dnnl_success;
}
static bool append_gelu(dnnl_post_ops_t operations) {
    return dnnl_post_ops_append_eltwise(operations, 1.0f, dnnl_eltwise_gelu_erf, 0.0f, 0.0f) == dnnl_success;
}
static bool append_binary(dnnl_post_ops_t operations, dnnl_alg_kind_t kind, const description *d) {
    return dnnl_post_ops_append_binary(operations, kind, d) == dnnl_success;
}
static bool make_matmul(dnnl_primitive_desc_t *primitive, const description d[MATRICES], bool bias,
                        dnnl_primitive_attr_t attributes) {
    dnnl_matmul_desc_t matmul;
    return dnnl_matmul_desc_init(&matmul, &d[A], &d[B], bias ? &d[BIAS] : NULL, &d[C]) == dnnl_success &&
           dnnl_primitive_desc_create(primitive, &matmul, attributes, engine, NULL) == dnnl_success;
}
#endif

/* In the order of sd_epilogue. The bias is the matmul's own, and comes before all of them. */
static bool append_operations(dnnl_post_ops_t operations, const shape *s, const description d[MATRICES],
                              int argument[MATRICES]) {
    int count = 0;
    bool good = true;
    if (s->add == ADD_HERE) {
        good = append_sum(operations);
        count++;
    } else if (s->add == ADD_ELSEWHERE) {
        good = append_binary(operations, dnnl_binary_add, &d[ADDED]);
        argument[ADDED] = DNNL_ARG_ATTR_MULTIPLE_POST_OP(count++) | DNNL_ARG_SRC_1;
    }
    if (good && s->gelu) {
        good = append_gelu(operations);
        count++;
    }
    if (good && s->factor) {
        good = append_binary(operations, dnnl_binary_mul, &d[FACTOR]);
        argument[FACTOR] = DNNL_ARG_ATTR_MULTIPLE_POST_OP(count++) | DNNL_ARG_SRC_1;
    }
    if (good && s->residual) {
        good = append_binary(operations, dnnl_binary_add, &d[RESIDUAL]);
        argument[RESIDUAL] = DNNL_ARG_ATTR_MULTIPLE_POST_OP(count++) | DNNL_ARG_SRC_1;
    }
    return good;
}

/* Where oneDNN has no fast code it has some that is a hundred times slower. */
static bool is_fast(dnnl_primitive_desc_t prepared) {
    const char *name = NULL;
    return dnnl_primitive_desc_query(prepared, dnnl_query_impl_info_str, 0, (void *)&name) == dnnl_success &&
           name != NULL && strncmp(name, "ref", 3) != 0;
}

static bool make_primitive(product *p, const description d[MATRICES]) {
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t operations = NULL;
    dnnl_primitive_desc_t prepared = NULL;
    bool made = dnnl_primitive_attr_create(&attributes) == dnnl_success &&
                dnnl_post_ops_create(&operations) == dnnl_success &&
                append_operations(operations, &p->shape, d, p->argument) &&
                dnnl_primitive_attr_set_post_ops(attributes, operations) == dnnl_success &&
                make_matmul(&prepared, d, p->shape.bias, attributes) && is_fast(prepared) &&
                dnnl_primitive_create(&p->primitive, prepared) == dnnl_success;
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
    const dnnl_data_type_t type = s->bf16 ? dnnl_bf16 : dnnl_f32;
    const bool has[MATRICES] = {true, true, true, s->bias, s->add == ADD_ELSEWHERE, s->factor, s->residual};
    const matrix row = matrix_of(false, 1, n, n, dnnl_f32), whole = matrix_of(false, m, n, s->ldc, dnnl_f32);
    const matrix matrices[MATRICES] = {
        matrix_of(s->ta, m, k, s->lda, type), matrix_of(s->tb, k, n, s->ldb, type), whole, row, whole, row, whole};
    description d[MATRICES];
    size_t described = 0;
    product made = {.shape = *s, .argument = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_BIAS}};
    while (described < MATRICES && describe(&d[described], &matrices[described]))
        described++;
    bool good = described == MATRICES;
    for (size_t i = 0; good && i < MATRICES; i++)
        good = !has[i] || make_memory(&made.memory[i], &d[i]);
    good = good && make_primitive(&made, d);
    for (size_t i = 0; i < described; i++)
        drop_description(&d[i]);
    if (!good)
        drop_product(&made);
    made.shape = *s;
    made.refused = !good;
    *p = made;
    return good;
}

/* The product of this shape, which takes the place of another one if need be. NULL: oneDNN refused. */
static product *find_product(cache *own, const shape *s) {
    uint64_t words[sizeof *s / sizeof(uint64_t)], mixed = 0;
    memcpy(words, s, sizeof words);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        mixed = (mixed ^ words[i]) * 0x9e3779b97f4a7c15u;
        mixed ^= mixed >> 29;
    }
    product *p = &own->products[mixed * 0xbf58476d1ce4e5b9u >> 57];
    if (memcmp(&p->shape, s, sizeof *s) == 0 && (p->primitive != NULL || p->refused))
        return p->refused ? NULL : p;
    drop_product(p);
    return make_product(p, s) ? p : NULL;
}

_Static_assert(PRODUCTS == 1 << (64 - 57), "the hash's upper bits are the place");

static shape shape_of(bool ta, bool tb, size_t m, size_t n, size_t k, size_t lda, size_t ldb, size_t ldc,
                      const sd_epilogue *then) {
    return (shape){.m = (uint32_t)m,
                   .n = (uint32_t)n,
                   .k = (uint32_t)k,
                   .lda = (uint32_t)lda,
                   .ldb = (uint32_t)ldb,
                   .ldc = (uint32_t)ldc,
                   .ta = ta,
                   .tb = tb,
                   .bias = then->bias != NULL,
                   .gelu = then->gelu != NULL,
                   .factor = then->factor != NULL,
                   .residual = then->residual != NULL};
}

/* data: of A, B and C; C's is where partial sums are, and the result goes unless the epilogue says otherwise. */
static bool execute(cache *own, product *p, const void *a, const void *b, float *c, const sd_epilogue *then) {
    const void *const data[MATRICES] = {a, b, then->out != NULL ? then->out : c, then->bias, c, then->factor, then->residual};
    dnnl_exec_arg_t arguments[MATRICES];
    int count = 0;
    for (size_t i = 0; i < MATRICES; i++) {
        if (p->memory[i] == NULL)
            continue;
        if (dnnl_memory_set_data_handle(p->memory[i], (void *)data[i]) != dnnl_success)
            return false;
        arguments[count++] = (dnnl_exec_arg_t){p->argument[i], p->memory[i]};
    }
    return dnnl_primitive_execute(p->primitive, own->stream, count, arguments) == dnnl_success;
}

bool sd_onednn_fp32(bool ta, bool tb, size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b,
                    size_t ldb, float *c, size_t ldc, const sd_epilogue *then) {
    cache *own = own_cache();
    if (own == NULL)
        return false;
    const shape s = shape_of(ta, tb, m, n, k, lda, ldb, ldc, then);
    int former = take_one_thread();
    product *p = find_product(own, &s);
    const bool done = p != NULL && execute(own, p, a, b, c, then);
    give_threads_back(former);
    return done;
}

#if defined(SD_HAVE_PACKED_KERNELS)

#include <immintrin.h>

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
                    size_t ldb, bool add, float *c, size_t ldc, const sd_epilogue *then, void *scratch) {
    cache *own = own_cache();
    if (own == NULL)
        return false;
    uint16_t *left = scratch, *right = left + SD_ONEDNN_SIDE * SD_ONEDNN_DEPTH;
    shape s = shape_of(ta, tb, m, n, k, ta ? m : k, tb ? k : n, ldc, then);
    s.bf16 = true;
    s.add = !add ? ADD_NOTHING : then->out == NULL ? ADD_HERE : ADD_ELSEWHERE;
    int former = take_one_thread();
    product *p = find_product(own, &s);
    bool done = false;
    if (p != NULL) {
        round_rows(ta ? k : m, ta ? m : k, a, lda, left);
        round_rows(tb ? n : k, tb ? k : n, b, ldb, right);
        done = execute(own, p, left, right, c, then);
    }
    give_threads_back(former);
    return done;
}

#endif
