/* What happens to one row per image: the rest of a last block of which only the class tokens are read, the final norm,
 * and the head. */
#include "math/math.h"
#include "model/model.h"

#include <string.h>

/* ---- rows of kept images ------------------------------------------------------------------- */

static void row_residual(const sd_activations *a, const sd_branch *branch, const float *x, const float *y,
                         const float *bias, const float *gamma, float *out) {
    size_t d = a->geometry.dim;
    for (size_t s = 0; s < a->images; s++) {
        if (sd_branch_keeps(branch, s))
            a->kernels->residual(out + s * d, x + s * d, y + branch->image_before[s] * d, 1, d, bias, gamma,
                                 sd_branch_scale(a, branch, s));
        else
            memcpy(out + s * d, x + s * d, d * sizeof *out);
    }
}

static void row_gather(const sd_activations *a, const sd_branch *branch, const float *dx, float *dy) {
    size_t d = a->geometry.dim;
    for (size_t s = 0; s < a->images; s++)
        if (sd_branch_keeps(branch, s))
            a->kernels->scaled_copy(dy + branch->image_before[s] * d, dx + s * d, d,
                                    sd_branch_scale(a, branch, s));
}

/* ---- forward ------------------------------------------------------------------------------- */

static sd_status class_block_rest(const sd_model *model, sd_activations *a) {
    const sd_layout *l = &model->layout;
    sd_tail *tail = &a->tail;
    size_t block = a->geometry.depth - 1, d = a->geometry.dim, f = a->geometry.hidden, in = a->geometry.hidden_in;
    const sd_branch *attention = &a->branches[2 * block], *mlp = attention + 1;
    size_t kept1 = attention->image_before[a->images], kept2 = mlp->image_before[a->images];
    sd_status status;

    sd_product proj = sd_linear_forward(tail->attention, kept1, d, SD_PARAMETER(proj_weight), d, tail->branch);
    SD_TRY(sd_run_products(a->context, a->gemms, &proj, 1, NULL, NULL));
    row_residual(a, attention, tail->x, tail->branch, SD_PARAMETER(proj_bias), SD_GAMMA(gamma1), tail->middle);
    for (size_t s = 0; s < a->images; s++)
        if (sd_branch_keeps(mlp, s)) {
            size_t to = mlp->image_before[s];
            a->kernels->layer_norm(tail->middle + s * d, 1, d, SD_PARAMETER(norm2_weight), SD_PARAMETER(norm2_bias),
                                   tail->normal2 + to * d, tail->mean2 + to, tail->rstd2 + to);
        }
    sd_bias_finish finish = {a->kernels, SD_PARAMETER(fc1_bias), tail->gelu};
    sd_product fc1 = sd_linear_forward(tail->normal2, kept2, d, SD_PARAMETER(fc1_weight), in, tail->hidden);
    if (!a->geometry.swiglu)
        fc1.finish = sd_finish_bias(&finish);
    SD_TRY(sd_run_products(a->context, a->gemms, &fc1, 1, NULL, NULL));
    if (a->geometry.swiglu)
        a->kernels->bias_swiglu(tail->hidden, kept2, f, SD_PARAMETER(fc1_bias), tail->gelu);
    sd_product fc2 = sd_linear_forward(tail->gelu, kept2, f, SD_PARAMETER(fc2_weight), d, tail->branch);
    SD_TRY(sd_run_products(a->context, a->gemms, &fc2, 1, NULL, NULL));
    row_residual(a, mlp, tail->middle, tail->branch, SD_PARAMETER(fc2_bias), SD_GAMMA(gamma2), tail->out);
cleanup:
    return status;
}

/* Which rows pass which head: the patches follow the class tokens, and where they share a head, one product does both.
 * Returns the number of parts (0: no rows). */
typedef struct head_part {
    size_t head, first, rows;
} head_part;

static size_t head_parts(const sd_activations *a, head_part parts[SD_HEADS_MAX]) {
    size_t patches = a->tail.patch_count;
    if (!a->geometry.patch_head || patches == 0) {
        parts[0] = (head_part){0, 0, a->images + patches};
        return 1;
    }
    parts[0] = (head_part){0, 0, a->images};
    parts[1] = (head_part){1, a->images, patches};
    return 2;
}

sd_status sd_head_forward(const sd_model *model, sd_activations *a) {
    const sd_geometry *g = &a->geometry;
    sd_tail *tail = &a->tail;
    head_part parts[SD_HEADS_MAX];
    size_t count = head_parts(a, parts);
    for (size_t i = 0; i < g->head_layers; i++) {
        bool last = i + 1 == g->head_layers;
        sd_product products[SD_HEADS_MAX];
        sd_bias_finish finish[SD_HEADS_MAX];
        for (size_t part = 0; part < count; part++) {
            const struct sd_head_layout *l = &model->layout.head[parts[part].head];
            size_t first = parts[part].first, out = g->head_width[i + 1];
            finish[part] = (sd_bias_finish){a->kernels, model->parameters + l->bias[i],
                                         last ? NULL : tail->head_in[i + 1] + first * out};
            products[part] = sd_linear_forward(tail->head_in[i] + first * g->head_width[i], parts[part].rows,
                                               g->head_width[i], model->parameters + l->weight[i], out,
                                               tail->head_pre[i] + first * out);
            products[part].finish = sd_finish_bias(&finish[part]);
        }
        sd_status status = sd_run_products(a->context, a->gemms, products, count, NULL, NULL);
        if (status != SD_OK)
            return status;
    }
    sd_unit_rows_forward(tail->head_pre[g->head_layers - 1], a->images + tail->patch_count,
                         g->head_width[g->head_layers], tail->features, tail->lengths);
    return SD_OK;
}

sd_status sd_tail_forward(const sd_model *model, sd_activations *a, bool head) {
    sd_tail *tail = &a->tail;
    if (!a->all_tokens) {
        sd_status status = class_block_rest(model, a);
        if (status != SD_OK)
            return status;
    }
    a->kernels->layer_norm(tail->out, a->images + tail->patch_count, a->geometry.dim,
                           model->parameters + model->layout.norm_weight,
                           model->parameters + model->layout.norm_bias, tail->normal, tail->mean, tail->rstd);
    return head ? sd_head_forward(model, a) : SD_OK;
}

/* ---- backward ------------------------------------------------------------------------------ */

sd_status sd_head_backward(const sd_model *model, sd_activations *a, float *gradient) {
    const sd_geometry *g = &a->geometry;
    sd_tail *tail = &a->tail;
    size_t last = g->head_layers;
    head_part parts[SD_HEADS_MAX];
    size_t count = head_parts(a, parts);
    sd_unit_rows_backward(tail->dhead[last], tail->features, tail->lengths, a->images + tail->patch_count,
                          g->head_width[last], tail->dhead[last]);
    for (size_t part = 0; part < count; part++)
        a->kernels->column_sum(tail->dhead[last] + parts[part].first * g->head_width[last], parts[part].rows,
                               g->head_width[last], g->head_width[last],
                               gradient + model->layout.head[parts[part].head].bias[last - 1]);
    for (size_t i = last; i-- > 0;) {
        sd_product products[SD_HEADS_MAX];
        sd_gelu_finish finish[SD_HEADS_MAX];
        for (size_t part = 0; part < count; part++) {
            const struct sd_head_layout *l = &model->layout.head[parts[part].head];
            size_t first = parts[part].first, in = g->head_width[i], out = g->head_width[i + 1];
            products[part] = sd_linear_backward(tail->dhead[i + 1] + first * out, parts[part].rows, out,
                                                model->parameters + l->weight[i], in, tail->dhead[i] + first * in);
            if (i > 0) {
                finish[part] = (sd_gelu_finish){a->kernels, tail->head_pre[i - 1] + first * in, gradient + l->bias[i - 1]};
                products[part].tile_m = SD_BLAS_MAX;
                products[part].finish = sd_finish_gelu_backward(&finish[part]);
            }
        }
        sd_status status = sd_run_products(a->context, a->gemms, products, count, NULL, NULL);
        if (status != SD_OK)
            return status;
    }
    return SD_OK;
}

/* rows <- values, or zeros where there are none. */
static void copy_or_clear(float *rows, const float *values, size_t count) {
    if (values != NULL)
        memcpy(rows, values, count * sizeof *rows);
    else
        memset(rows, 0, count * sizeof *rows);
}

static void add_values(float *rows, const float *values, size_t count) {
    for (size_t i = 0; values != NULL && i < count; i++)
        rows[i] += values[i];
}

sd_status sd_tail_backward(const sd_model *model, sd_activations *a, const sd_backward_inputs *inputs,
                           float *gradient) {
    const sd_layout *l = &model->layout;
    sd_tail *tail = &a->tail;
    size_t classes = a->images, patches = tail->patch_count, d = a->geometry.dim;
    size_t width = a->geometry.head_width[a->geometry.head_layers];
    if (inputs->features != NULL || inputs->patch_features != NULL) {
        float *dfeatures = tail->dhead[a->geometry.head_layers];
        copy_or_clear(dfeatures, inputs->features, classes * width);
        copy_or_clear(dfeatures + classes * width, inputs->patch_features, patches * width);
        sd_status status = sd_head_backward(model, a, gradient);
        if (status != SD_OK)
            return status;
    } else {
        memset(tail->dhead[0], 0, (classes + patches) * d * sizeof(float));
    }
    add_values(tail->dhead[0], inputs->class_tokens, classes * d);
    add_values(tail->dhead[0] + classes * d, inputs->patch_tokens, patches * d);
    memset(tail->dout, 0, (classes + patches) * d * sizeof(float));
    a->kernels->layer_norm_backward(tail->dhead[0], tail->out, tail->mean, tail->rstd, classes + patches, d,
                                    model->parameters + l->norm_weight, model->parameters + l->norm_bias, tail->dout,
                                    gradient + l->norm_weight, gradient + l->norm_bias, NULL);
    return SD_OK;
}

sd_status sd_tail_block_backward(const sd_model *model, sd_activations *a, float *gradient) {
    const sd_layout *l = &model->layout;
    sd_tail *tail = &a->tail;
    size_t block = a->geometry.depth - 1, d = a->geometry.dim, f = a->geometry.hidden, in = a->geometry.hidden_in;
    const sd_branch *attention = &a->branches[2 * block], *mlp = attention + 1;
    size_t kept1 = attention->image_before[a->images], kept2 = mlp->image_before[a->images];
    float *dblock = gradient + block * l->block_stride;
    bool scaled = a->geometry.layer_scale;
    sd_status status;

    row_gather(a, mlp, tail->dout, tail->dmlp);
    a->kernels->column_sum(tail->dmlp, kept2, d, d, scaled ? a->scaled.dfc2_bias : dblock + l->fc2_bias);
    sd_gelu_finish finish = {a->kernels, tail->hidden, dblock + l->fc1_bias};
    sd_product fc2 = sd_linear_backward(tail->dmlp, kept2, d, scaled ? a->scaled.fc2 : SD_PARAMETER(fc2_weight), f,
                                        tail->dhidden);
    fc2.ldc = in;
    if (!a->geometry.swiglu) {
        fc2.tile_m = SD_BLAS_MAX;
        fc2.finish = sd_finish_gelu_backward(&finish);
    }
    SD_TRY(sd_run_products(a->context, a->gemms, &fc2, 1, NULL, NULL));
    if (a->geometry.swiglu)
        a->kernels->swiglu_backward(tail->hidden, tail->dhidden, in, kept2, f, tail->dhidden, NULL,
                                    dblock + l->fc1_bias);
    sd_product fc1 = sd_linear_backward(tail->dhidden, kept2, in, SD_PARAMETER(fc1_weight), d, tail->dnormal);
    SD_TRY(sd_run_products(a->context, a->gemms, &fc1, 1, NULL, NULL));
    memcpy(tail->dmiddle, tail->dout, a->images * d * sizeof(float));
    for (size_t s = 0; s < a->images; s++)
        if (sd_branch_keeps(mlp, s)) {
            size_t from = mlp->image_before[s];
            a->kernels->layer_norm_backward(tail->dnormal + from * d, tail->middle + s * d, tail->mean2 + from,
                                            tail->rstd2 + from, 1, d, SD_PARAMETER(norm2_weight),
                                            SD_PARAMETER(norm2_bias), tail->dmiddle + s * d, dblock + l->norm2_weight,
                                            dblock + l->norm2_bias, NULL);
        }
    row_gather(a, attention, tail->dmiddle, tail->dproj);
    a->kernels->column_sum(tail->dproj, kept1, d, d, scaled ? a->scaled.dproj_bias : dblock + l->proj_bias);
    sd_product proj = sd_linear_backward(tail->dproj, kept1, d, scaled ? a->scaled.proj : SD_PARAMETER(proj_weight), d,
                                         tail->dattention);
    SD_TRY(sd_run_products(a->context, a->gemms, &proj, 1, NULL, NULL));
cleanup:
    return status;
}

/* dW of each head: its part of rows[S x D], with its row of D of each image (class_block.c). */
static sd_product head_weights(const sd_geometry *g, const float *rows, const float *mixed, size_t images,
                               float *dweight) {
    size_t d = g->dim, size = d / g->heads;
    sd_product product = sd_linear_weight(rows, mixed, images, size, d, dweight);
    product.lda = d;
    product.ldb = g->heads * d;
    product.copies = g->heads;
    product.next_a = size;
    product.next_b = d;
    product.next_c = size * d;
    return product;
}

size_t sd_tail_products(const sd_model *model, const sd_activations *a, bool head, float *gradient,
                        sd_product *products) {
    const sd_geometry *g = &a->geometry;
    const sd_layout *l = &model->layout;
    const sd_tail *tail = &a->tail;
    size_t count = 0, d = g->dim, f = g->hidden;
    head_part parts[SD_HEADS_MAX];
    for (size_t part = head ? head_parts(a, parts) : 0; part-- > 0;)
        for (size_t i = 0; i < g->head_layers; i++)
            products[count++] = sd_linear_weight(tail->dhead[i + 1] + parts[part].first * g->head_width[i + 1],
                                                 tail->head_in[i] + parts[part].first * g->head_width[i],
                                                 parts[part].rows, g->head_width[i + 1], g->head_width[i],
                                                 gradient + l->head[parts[part].head].weight[i]);
    if (!a->all_tokens) {
        const sd_branch *attention = &a->branches[2 * (g->depth - 1)], *mlp = attention + 1;
        size_t kept1 = attention->image_before[a->images], kept2 = mlp->image_before[a->images];
        float *dblock = gradient + (g->depth - 1) * l->block_stride;
        float *dfc2 = g->layer_scale ? a->scaled.dfc2 : dblock + l->fc2_weight;
        float *dproj = g->layer_scale ? a->scaled.dproj : dblock + l->proj_weight;
        products[count++] = sd_linear_weight(tail->dmlp, tail->gelu, kept2, d, f, dfc2);
        products[count++] = sd_linear_weight(tail->dhidden, tail->normal2, kept2, g->hidden_in, d,
                                             dblock + l->fc1_weight);
        products[count++] = sd_linear_weight(tail->dproj, tail->attention, kept1, d, d, dproj);
        products[count++] = sd_linear_weight(tail->dquery, tail->normal1, kept1, d, d, dblock + l->qkv_weight);
        products[count++] = head_weights(g, tail->query, tail->dmixers, kept1, dblock + l->qkv_weight + d * d);
        products[count++] = head_weights(g, tail->dattention, tail->mixed, kept1, dblock + l->qkv_weight + 2 * d * d);
    }
    return count;
}
