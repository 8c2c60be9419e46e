/* Planning the memory of a pass: one arena, laid out twice by the same code: once to measure, once to place. */
#include "math/math.h"
#include "model/model.h"

#include <string.h>

typedef struct arena {
    char *base; /* NULL: only measure */
    size_t used;
    bool overflow;
} arena;

static void *place(arena *space, size_t count, size_t size) {
    size_t bytes, end;
    if (!sd_size_mul(count, size, &bytes) || !sd_size_add(space->used, bytes, &end) ||
        !sd_size_add(end, SD_ALIGNMENT, &end)) {
        space->overflow = true;
        return NULL;
    }
    end = (space->used + bytes + SD_ALIGNMENT - 1) & ~(size_t)(SD_ALIGNMENT - 1);
    void *result = space->base == NULL ? NULL : space->base + space->used;
    space->used = end;
    return result;
}

static float *place_floats(arena *space, size_t rows, size_t columns) {
    size_t count;
    if (!sd_size_mul(rows, columns, &count)) {
        space->overflow = true;
        return NULL;
    }
    return place(space, count, sizeof(float));
}

/* Of block `block`, where all lie one after the other; NULL while only measuring. */
static float *input_of(float *inputs, size_t floats, size_t block) {
    return inputs == NULL ? NULL : inputs + block * floats;
}

sd_partial_layout sd_partials_of(const sd_geometry *g) {
    sd_partial_layout p;
    size_t d = g->dim;
    p.norm1_weight = 0;
    p.norm1_bias = p.norm1_weight + d;
    p.qkv_bias = p.norm1_bias + d;
    p.qk_norm = p.qkv_bias + 3 * d;
    p.proj_bias = p.qk_norm + (g->qk_norm ? 4 * d / g->heads : 0);
    p.norm2_weight = p.proj_bias + d;
    p.norm2_bias = p.norm2_weight + d;
    p.fc1_bias = p.norm2_bias + d;
    p.fc2_bias = p.fc1_bias + g->hidden_in;
    p.patch_bias = p.fc2_bias + d;
    p.mask_token = p.patch_bias + d;
    p.count = sd_size_ceil(p.mask_token + d, 16) * 16;
    return p;
}

/* ---- checking what is planned -------------------------------------------------------------- */

static sd_status check_groups(const sd_geometry *g, const sd_image_group *groups, size_t count) {
    SD_REQUIRE(groups != NULL, SD_ERR_ARGUMENT, "the image groups are NULL");
    SD_REQUIRE(count >= 1 && count <= SD_GROUPS_MAX, SD_ERR_ARGUMENT, "group_count is %zu: it must be 1 to %d", count,
               SD_GROUPS_MAX);
    for (size_t i = 0; i < count; i++) {
        SD_REQUIRE(groups[i].height >= g->patch && groups[i].width >= g->patch && groups[i].height % g->patch == 0 &&
                       groups[i].width % g->patch == 0,
                   SD_ERR_ARGUMENT,
                   "group %zu has images of %zu x %zu pixels: both sides must be multiples of the patch size %zu", i,
                   groups[i].height, groups[i].width, g->patch);
        SD_REQUIRE(groups[i].height <= 65536 && groups[i].width <= 65536, SD_ERR_ARGUMENT,
                   "group %zu has images of %zu x %zu pixels: sides above 65536 are not supported", i, groups[i].height,
                   groups[i].width);
        SD_REQUIRE(groups[i].count <= SD_BLAS_MAX, SD_ERR_ARGUMENT, "group %zu has %zu images: too many", i,
                   groups[i].count);
    }
    return SD_OK;
}

/* Sizes of the largest pass. */
static sd_status measure_pass(sd_activations *a, const sd_image_group *shapes, size_t count) {
    sd_status status = check_groups(&a->geometry, shapes, count);
    if (status != SD_OK)
        return status;
    a->group_count = count;
    /* it does not depend on the number of threads, and so neither do the results */
    const sd_gemm gemm = sd_gemm_of(a->precision, NULL);
    const size_t chunk_rows = sd_gemm_rows(&gemm);
    a->max_chunk_rows = chunk_rows;
    for (size_t i = 0; i < count; i++) {
        a->planned[i] = shapes[i];
        size_t tokens = sd_geometry_tokens(&a->geometry, shapes[i].height, shapes[i].width), rows;
        SD_REQUIRE(sd_size_mul(tokens, shapes[i].count, &rows) && sd_size_add(a->max_rows, rows, &a->max_rows) &&
                       a->max_rows <= SD_BLAS_MAX,
                   SD_ERR_ARGUMENT, "the pass has more than %zu tokens", SD_BLAS_MAX);
        a->max_images += shapes[i].count;
        a->max_tokens = sd_size_max(a->max_tokens, tokens);
        a->max_chunk_rows = sd_size_max(a->max_chunk_rows, tokens);
        /* every chunk but the last of a group holds at least this many images */
        a->max_chunks += sd_size_ceil(shapes[i].count, sd_size_max(chunk_rows / tokens, 1));
    }
    SD_REQUIRE(a->max_images > 0, SD_ERR_ARGUMENT, "the groups have no images");
    a->max_chunks += SD_HALVED_CHUNKS;
    return SD_OK;
}

/* ---- layout -------------------------------------------------------------------------------- */

static void *place_kept(arena *space, const sd_activations *a, size_t rows, size_t columns) {
    size_t count;
    if (!sd_size_mul(rows, columns, &count)) {
        space->overflow = true;
        return NULL;
    }
    return place(space, count, a->keeps_bf16 ? sizeof(uint16_t) : sizeof(float));
}

/* All but its input. */
static void place_block(arena *space, const sd_activations *a, size_t rows, sd_block_store *store) {
    size_t d = a->geometry.dim;
    store->mean1 = place_floats(space, rows, 1);
    store->rstd1 = place_floats(space, rows, 1);
    store->kept_qkv = place_kept(space, a, rows, 3 * d);
    store->middle = place_floats(space, rows, d);
    store->mean2 = place_floats(space, rows, 1);
    store->rstd2 = place_floats(space, rows, 1);
    store->kept_hidden = place_kept(space, a, rows, a->geometry.hidden_in);
}

/* probabilities: the sum of all images' padded tokens. */
static void place_tail(arena *space, const sd_geometry *g, size_t images, size_t patches, size_t probabilities,
                       bool class_only, sd_activation_mode mode, sd_tail *tail) {
    size_t d = g->dim, rows = images + patches, mixers = sd_mixer_sides(mode) * g->heads;
    bool training = mode != SD_ACTIVATIONS_INFERENCE;
    if (class_only) {
        float **rows_of_d[] = {&tail->query, &tail->normal1, &tail->attention, &tail->x, &tail->middle, &tail->normal2};
        for (size_t i = 0; i < sizeof rows_of_d / sizeof *rows_of_d; i++)
            *rows_of_d[i] = place_floats(space, images, d);
        tail->mixers = place_floats(space, images * mixers, d);
        tail->mixed = place_floats(space, images * g->heads, d);
        tail->probabilities = place_floats(space, probabilities, mixers);
        tail->mean2 = place_floats(space, images, 1);
        tail->rstd2 = place_floats(space, images, 1);
        tail->hidden = place_floats(space, images, g->hidden_in);
        tail->gelu = place_floats(space, images, g->hidden);
        tail->branch = place_floats(space, images, d);
        if (training) {
            float **gradients[] = {&tail->dquery, &tail->dattention, &tail->dproj, &tail->dmlp, &tail->dmiddle,
                                   &tail->dnormal};
            for (size_t i = 0; i < sizeof gradients / sizeof *gradients; i++)
                *gradients[i] = place_floats(space, images, d);
            tail->dmixers = place_floats(space, images * g->heads, d);
            tail->dhidden = place_floats(space, images, g->hidden_in);
        }
    }
    tail->probability_start = place(space, images + 1, sizeof(size_t));
    tail->patch_rows = place(space, patches, sizeof(size_t));
    tail->patch_before = place(space, images + 1, sizeof(size_t));
    tail->out = place_floats(space, rows, d);
    tail->mean = place_floats(space, rows, 1);
    tail->rstd = place_floats(space, rows, 1);
    tail->normal = place_floats(space, rows, d);
    tail->head_in[0] = tail->normal;
    for (size_t i = 0; i < g->head_layers; i++) {
        tail->head_pre[i] = place_floats(space, rows, g->head_width[i + 1]);
        if (i + 1 < g->head_layers)
            tail->head_in[i + 1] = place_floats(space, rows, g->head_width[i + 1]);
    }
    if (g->head_layers > 0) {
        tail->features = place_floats(space, rows, g->head_width[g->head_layers]);
        tail->lengths = place_floats(space, rows, 1);
    }
    if (training) {
        for (size_t i = 0; i <= g->head_layers; i++)
            tail->dhead[i] = place_floats(space, rows, g->head_width[i]);
        tail->dout = place_floats(space, rows, d);
    }
}

/* Lays everything out in `space`. */
static void place_all(sd_activations *a, arena *space) {
    const sd_geometry *g = &a->geometry;
    size_t d = g->dim, t = a->max_rows, r = a->max_chunk_rows;
    bool training = a->mode != SD_ACTIVATIONS_INFERENCE;
    bool class_only = !a->all_tokens;

    a->image_row = place(space, a->max_images + 1, sizeof(size_t));
    a->identity = place(space, a->max_images + 1, sizeof(size_t));
    bool drops = training && g->drop_path > 0.0 && (g->depth > 1 || g->drop_uniform);
    a->compact = drops ? place(space, 4 * g->depth * (a->max_images + 1), sizeof(size_t)) : NULL;
    a->branches = place(space, 2 * g->depth, sizeof(sd_branch));
    a->chunks = place(space, a->max_chunks, sizeof(sd_chunk));
    a->blocks = place(space, g->depth + 1, sizeof(sd_block_store));
    a->thread_work = place(space, a->threads, sizeof(sd_thread_work));
    a->gemms = place(space, a->threads, sizeof(sd_gemm));
    sd_block_store discard;
    size_t probabilities = 0;
    for (size_t i = 0; i < a->group_count; i++) {
        const sd_image_group *group = &a->planned[i];
        size_t tokens = sd_geometry_tokens(g, group->height, group->width);
        a->positions[i] = place_floats(space, tokens, d);
        if (training)
            a->dpositions[i] = place_floats(space, tokens, d);
        probabilities += group->count * sd_padded_row(tokens);
    }
    if (training) {
        /* Blocks that are computed again share all buffers but their inputs, with the last block that has its own: its
         * backward pass is over by then. */
        sd_block_store shared = {0};
        const size_t input_floats = sd_padded_row(t * d);
        float *inputs = place_floats(space, g->depth, input_floats);
        size_t whole = class_only ? g->depth - 1 : g->depth; /* blocks of all tokens */
        if (a->recomputed >= whole && whole > 0)
            place_block(space, a, t, &shared);
        for (size_t block = g->depth; block-- > 0;) {
            sd_block_store *store = a->blocks != NULL ? &a->blocks[block] : &discard;
            if (block >= whole) {
                store->mean1 = place_floats(space, t, 1);
                store->rstd1 = place_floats(space, t, 1);
            } else if (block >= a->recomputed) {
                place_block(space, a, t, store);
                if (block + 1 == whole)
                    shared = *store;
            } else {
                *store = shared;
            }
            store->x = input_of(inputs, input_floats, block);
        }
        float *out = class_only ? NULL : place_floats(space, t, d);
        if (a->blocks != NULL)
            a->blocks[g->depth].x = out;
        sd_layer_work *layer = &a->layer;
        layer->dx = place_floats(space, t, d);
        layer->dattention = place_kept(space, a, t, d);
        layer->gelu = place_kept(space, a, t, g->hidden);
        layer->dmlp = place_kept(space, a, t, d);
        layer->normal1 = drops ? place_floats(space, t, d) : NULL;
        layer->normal2 = drops ? place_floats(space, t, d) : NULL;
        layer->dqkv = g->qk_norm ? place_floats(space, t, 3 * d) : NULL;
        /* the patches are needed when the inputs of all blocks from the third on are not any more */
        layer->patches = g->depth > 2 && (g->depth - 2) * input_floats >= t * g->patch_values
                             ? input_of(inputs, input_floats, 2)
                             : place_floats(space, t, g->patch_values);
        a->partial_count = sd_partials_of(g).count;
        a->partials = place_floats(space, a->max_chunks, a->partial_count);
        if (g->layer_scale) {
            sd_scaled_weights *scaled = &a->scaled;
            scaled->proj = place_floats(space, d, d);
            scaled->fc2 = place_floats(space, d, g->hidden);
            scaled->dproj = place_floats(space, d, d);
            scaled->dfc2 = place_floats(space, d, g->hidden);
            scaled->dproj_bias = place_floats(space, 1, d);
            scaled->dfc2_bias = place_floats(space, 1, d);
        }
    }
    sd_gemm gemm = sd_gemm_of(a->precision, NULL);
    if (a->allows_strassen)
        sd_gemm_take_strassen(&gemm);
    size_t packed = sd_block_weights_bytes(g, &gemm, false), packed_back = sd_block_weights_bytes(g, &gemm, true);
    if (!training) {
        a->stream = place_floats(space, t, d);
        a->shared_qkv = packed > 0 ? place_floats(space, sd_size_min(t, SD_WIDE_CHUNKS * r), 3 * d) : NULL;
    }
    if (packed > 0 && (a->max_chunks > SD_HALVED_CHUNKS + 1 || !training))
        a->packed = place(space, sd_size_max(packed, packed_back), 1);
    place_tail(space, g, a->max_images, a->max_patches, probabilities, class_only, a->mode, &a->tail);
    for (size_t thread = 0; thread < a->threads; thread++) {
        sd_thread_work unused;
        sd_thread_work *work = a->thread_work != NULL ? &a->thread_work[thread] : &unused;
        void *scratch = place(space, sd_gemm_scratch(a->precision), 1);
        if (a->gemms != NULL) {
            a->gemms[thread] = gemm;
            a->gemms[thread].scratch = scratch;
            work->gemm = &a->gemms[thread];
        }
        work->normal = place_floats(space, r, d);
        work->branch = place_floats(space, r, d);
        work->heads = place_floats(space, r, d);
        const bool in_place = !training && !g->swiglu; /* what is before GELU is not needed any more */
        work->gelu = in_place ? NULL : place_floats(space, r, g->hidden);
        work->attention = place_floats(space, sd_attention_work(&gemm, a->max_tokens, d / g->heads), 1);
        work->patches = place_floats(space, r, g->patch_values);
        work->qkv_norm = g->qk_norm ? place_floats(space, a->max_tokens, 3 * d) : NULL;
        work->qkv = a->keeps_bf16 ? place_floats(space, r, 3 * d) : NULL;
        work->hidden = a->keeps_bf16 ? place_floats(space, r, g->hidden_in) : NULL;
        sd_block_store *inference = &work->inference;
        if (!training)
            place_block(space, a, r, inference);
        inference->qkv = inference->kept_qkv;
        inference->hidden = inference->kept_hidden;
        inference->attention = work->heads;
        if (in_place)
            work->gelu = inference->hidden;
    }
}

static sd_status plan(sd_activations *a, const sd_model_config *model, const sd_image_group *shapes, size_t count,
                      const sd_activations_config *config, size_t threads, size_t *bytes) {
    int32_t mode = config->mode;
    SD_REQUIRE(mode == SD_ACTIVATIONS_INFERENCE || mode == SD_ACTIVATIONS_SPEED || mode == SD_ACTIVATIONS_MEMORY,
               SD_ERR_ARGUMENT, "mode is %d: it must be one of sd_activation_mode", mode);
    SD_REQUIRE(config->max_patches == 0 || config->all_tokens, SD_ERR_ARGUMENT,
               "max_patches is %zu: patches need all_tokens", config->max_patches);
    SD_REQUIRE(config->max_patches <= SD_BLAS_MAX, SD_ERR_ARGUMENT, "max_patches is %zu: too many",
               config->max_patches);
    sd_status status = sd_precision_check(config->precision);
    if (status == SD_OK)
        status = sd_geometry_of(model, &a->geometry);
    if (status != SD_OK)
        return status;
    a->precision = config->precision;
    SD_REQUIRE(config->products == SD_PRODUCTS_PLAIN || config->products == SD_PRODUCTS_STRASSEN, SD_ERR_ARGUMENT,
               "products is %d: it must be one of sd_products", (int)config->products);
    a->allows_strassen = config->products == SD_PRODUCTS_STRASSEN;
    a->mode = (sd_activation_mode)mode;
    SD_REQUIRE(config->recomputed_blocks >= 0 && config->recomputed_blocks <= model->depth, SD_ERR_ARGUMENT,
               "recomputed_blocks is %d: it must be 0 to the model's depth (%d)", (int)config->recomputed_blocks,
               (int)model->depth);
    a->recomputed = mode == SD_ACTIVATIONS_MEMORY  ? a->geometry.depth
                    : mode == SD_ACTIVATIONS_SPEED ? (size_t)config->recomputed_blocks
                                                   : 0;
    /* a class-token-only last block has no normalised keys */
    a->all_tokens = config->all_tokens != 0 || a->geometry.qk_norm;
    a->max_patches = config->max_patches;
    a->threads = threads;
    /* norms of queries and keys read what is kept, too */
    const sd_gemm gemm = sd_gemm_of(a->precision, NULL);
    a->keeps_bf16 = mode != SD_ACTIVATIONS_INFERENCE && !a->geometry.qk_norm && sd_gemm_reads_bf16(&gemm);
    status = measure_pass(a, shapes, count);
    if (status != SD_OK)
        return status;
    arena space = {0};
    place_all(a, &space);
    SD_REQUIRE(!space.overflow, SD_ERR_MEMORY, "the activations do not fit into the address space");
    *bytes = space.used;
    return SD_OK;
}

SD_API void sd_activations_config_init(sd_activations_config *config) {
    if (config == NULL)
        return;
    memset(config, 0, sizeof *config);
    config->size = sizeof *config;
    config->mode = SD_ACTIVATIONS_SPEED;
}

sd_status sd_activations_bytes(const sd_model_config *model, const sd_image_group *shapes, size_t group_count,
                               const sd_activations_config *config, size_t threads, size_t *bytes) {
    sd_activations measured;
    memset(&measured, 0, sizeof measured);
    sd_status status = plan(&measured, model, shapes, group_count, config, threads, bytes);
    if (status == SD_OK)
        *bytes += sizeof measured;
    return status;
}

/* ---- create and destroy -------------------------------------------------------------------- */

SD_API sd_status sd_activations_create(const sd_model *model, const sd_image_group *shapes, size_t group_count,
                                       sd_activation_mode mode, int32_t all_tokens, sd_activations **out) {
    sd_activations_config config;
    sd_activations_config_init(&config);
    config.mode = (int32_t)mode;
    config.all_tokens = all_tokens;
    return sd_activations_create_with(model, shapes, group_count, &config, out);
}

SD_API sd_status sd_activations_create_with(const sd_model *model, const sd_image_group *shapes, size_t group_count,
                                            const sd_activations_config *source, sd_activations **out) {
    SD_REQUIRE(model != NULL && out != NULL, SD_ERR_ARGUMENT, "%s is NULL", model == NULL ? "model" : "activations");
    sd_activations_config config;
    sd_activations_config_init(&config);
    sd_status status = sd_config_read(&config, sizeof config, source, "sd_activations_config");
    if (status != SD_OK)
        return status;
    sd_activations *a = SD_NEW(model->context, sd_activations);
    if (a == NULL)
        return SD_ERR_MEMORY;
    a->context = model->context;
    a->kernels = sd_kernels_get();
    status = plan(a, &model->config, shapes, group_count, &config, sd_threads(model->context), &a->arena_bytes);
    if (status == SD_OK) {
        a->arena = sd_allocate(model->context, a->arena_bytes, 1);
        if (a->arena == NULL)
            status = SD_ERR_MEMORY;
    }
    if (status != SD_OK) {
        sd_activations_destroy(a);
        return status;
    }
    arena space = {.base = a->arena};
    place_all(a, &space);
    for (size_t i = 0; i <= a->max_images; i++)
        a->identity[i] = i;
    *out = a;
    return SD_OK;
}

SD_API void sd_activations_destroy(sd_activations *a) {
    if (a == NULL)
        return;
    sd_release(a->context, a->arena);
    sd_release(a->context, a);
}

SD_API size_t sd_activations_memory(const sd_activations *a) { return a == NULL ? 0 : a->arena_bytes + sizeof *a; }

/* ---- the rows of a block, and of a chunk ---------------------------------------------------- */

sd_layer_rows sd_layer_rows_of(const sd_activations *a, size_t block) {
    const sd_layer_work *layer = &a->layer;
    const sd_block_store *store = &a->blocks[block];
    return (sd_layer_rows){.normal1 = layer->normal1 != NULL ? layer->normal1 : store->x,
                           .normal2 = layer->normal2 != NULL ? layer->normal2 : store->middle,
                           .dqkv = layer->dqkv != NULL ? layer->dqkv : store->kept_qkv,
                           .dhidden = store->kept_hidden,
                           .attention = a->blocks[block + 1].x}; /* the input of a block whose backward pass is over */
}

sd_block_store sd_chunk_store(const sd_activations *a, size_t block, const sd_chunk *chunk, size_t thread) {
    const sd_geometry *g = &a->geometry;
    size_t d = g->dim, row = a->image_row[chunk->first];
    if (a->mode == SD_ACTIVATIONS_INFERENCE) {
        sd_block_store store = a->thread_work[thread].inference;
        store.x = a->stream + row * d;
        return store;
    }
    size_t row1 = a->branches[2 * block].row_before[chunk->first];
    size_t row2 = a->branches[2 * block + 1].row_before[chunk->first];
    bool class_only = !a->all_tokens && block + 1 == g->depth;
    const sd_thread_work *work = &a->thread_work[thread];
    sd_block_store store = a->blocks[block];
    store.x += row * d;
    store.attention = work->heads;
    store.mean1 += row1;
    store.rstd1 += row1;
    if (!class_only) {
        store.kept_qkv = sd_kept_at(a, store.kept_qkv, row1 * 3 * d);
        store.qkv = sd_kept_floats(a, store.kept_qkv, work->qkv);
        store.middle += row * d;
        store.mean2 += row2;
        store.rstd2 += row2;
        store.kept_hidden = sd_kept_at(a, store.kept_hidden, row2 * g->hidden_in);
        store.hidden = sd_kept_floats(a, store.kept_hidden, work->hidden);
    }
    return store;
}
