/* binder.c: from the architecture's tensor table to bound weights. First every tensor is found and
 * its shape checked, then the packed size is known, and weights.c fills it. Tensors that the table
 * does not name are refused: ignoring one would silently compute another model. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "model/model.h"
#include "ops/pack.h"

#define NAME_BYTES_MAX 160

typedef struct binding_s {
    struct kr_model_s *model;
    uint8_t *used;        /* [n_tensors] */
    uint64_t vector_bytes;
    kr_error_t *error;
} binding_t;

static uint64_t dim_of(const struct kr_model_s *m, kri_dim_t dim) {
    const kri_hparams_t *hp = &m->hp;
    switch (dim) {
    case KRI_DIM_EMBD: return hp->n_embd;
    case KRI_DIM_Q: return (uint64_t)hp->n_heads * hp->head_dim;
    case KRI_DIM_KV: return (uint64_t)hp->n_kv_heads * hp->head_dim;
    case KRI_DIM_FF: return hp->n_ff;
    case KRI_DIM_HEAD: return hp->head_dim;
    case KRI_DIM_VOCAB: return hp->n_vocab;
    case KRI_DIM_ROT_HALF: return hp->n_rot / 2;
    case KRI_DIM_NONE: break;
    }
    return 0;
}

static kr_status_t check_shape(const binding_t *b, const kri_gguf_tensor_t *t,
                               const kri_tensor_row_t *row) {
    const uint64_t n_out = dim_of(b->model, row->n_out), n_in = dim_of(b->model, row->n_in);
    const kri_tensor_t *x = &t->tensor;
    const bool is_vector = row->n_out == KRI_DIM_NONE;
    const bool fits = is_vector ? (x->n_dims == 1 && x->shape[0] == n_in)
                                : (x->n_dims == 2 && x->shape[0] == n_out && x->shape[1] == n_in);
    if (fits) return KR_OK;
    char expected[48], actual[112];
    if (is_vector) snprintf(expected, sizeof(expected), "[%llu]", (unsigned long long)n_in);
    else snprintf(expected, sizeof(expected), "[%llu, %llu]", (unsigned long long)n_out,
                  (unsigned long long)n_in);
    size_t n = 0;
    for (uint32_t i = 0; i < x->n_dims; i++) {
        n += (size_t)snprintf(actual + n, sizeof(actual) - n, "%s%llu", i ? ", " : "[",
                              (unsigned long long)x->shape[i]);
    }
    snprintf(actual + n, sizeof(actual) - n, "]");
    return KRI_FAIL(b->error, KR_E_BAD_FORMAT, t->name, "tensor %.96s has shape %s, expected %s",
                    t->name, actual, expected);
}

static kr_status_t bind_vector(binding_t *b, const kri_gguf_tensor_t *t, const float **field) {
    const kri_tensor_t *x = &t->tensor;
    if (x->dtype != KR_DTYPE_F32 && x->dtype != KR_DTYPE_F16 && x->dtype != KR_DTYPE_BF16) {
        return KRI_FAIL(b->error, KR_E_UNSUPPORTED, t->name,
                        "tensor %.96s has type %s, expected f32, f16 or bf16", t->name,
                        kr_dtype_name(x->dtype));
    }
    void *data = NULL;
    kr_status_t status =
        kr_arena_alloc(b->model->arena, (size_t)x->shape[0] * sizeof(float), &data);
    if (status != KR_OK) return KRI_FAIL(b->error, status, t->name, "no memory for %.96s", t->name);
    kri_dequant_row(x->dtype, x->data, (size_t)x->shape[0], data);
    b->vector_bytes += x->shape[0] * sizeof(float);
    *field = data;
    return KR_OK;
}

static kr_status_t add_matrix(binding_t *b, const kri_gguf_tensor_t *t, kri_weight_t *w,
                              uint32_t part_index) {
    const kri_tensor_t *x = &t->tensor;
    kri_pack_layout_t layout;
    size_t bytes = 0;
    if (!kri_pack_layout(x->dtype, (size_t)x->shape[1], &layout) ||
        !kri_mul_size(layout.group_bytes, kri_ceil_div((size_t)x->shape[0], KRI_GROUP_ROWS),
                      &bytes)) {
        return KRI_FAIL(b->error, KR_E_BAD_FORMAT, t->name,
                        "tensor %.96s: rows of %llu do not fit type %s", t->name,
                        (unsigned long long)x->shape[1], kr_dtype_name(x->dtype));
    }
    kri_weight_part_t *part = &w->parts[part_index];
    part->dtype = x->dtype;
    part->n_out = (uint32_t)x->shape[0];
    part->group_bytes = layout.group_bytes;
    w->n_in = (uint32_t)x->shape[1];
    w->n_ranks = 1;
    if (part_index >= w->n_parts) w->n_parts = part_index + 1;
    struct kr_model_s *m = b->model;
    m->packed_tensors[m->n_packed_tensors++] = (kri_packed_tensor_t){
        .source = t, .part = part, .n_in = w->n_in, .offset = m->packed_bytes, .n_bytes = bytes};
    if (!kri_add_size(m->packed_bytes, bytes, &m->packed_bytes)) {
        return KRI_FAIL(b->error, KR_E_LIMIT, t->name, "packed weights are too large");
    }
    return KR_OK;
}

/* Columns of the parts: side by side in table order. */
static void place_parts(kri_weight_t *w) {
    uint32_t offset = 0;
    for (uint32_t i = 0; i < w->n_parts; i++) {
        w->parts[i].out_offset = offset;
        offset += w->parts[i].n_out;
    }
    w->n_out = offset;
}

static kr_status_t bind_row(binding_t *b, const kri_tensor_row_t *row, uint32_t layer) {
    struct kr_model_s *m = b->model;
    char name[NAME_BYTES_MAX];
    if (row->per_layer) snprintf(name, sizeof(name), "blk.%u.%s", layer, row->name);
    else snprintf(name, sizeof(name), "%s", row->name);
    const kri_gguf_tensor_t *t = kri_gguf_find(m->gguf, name);
    if (!t) {
        if (!row->required) return KR_OK;
        return KRI_FAIL(b->error, KR_E_BAD_FORMAT, name, "tensor %s is missing", name);
    }
    b->used[t - kri_gguf_tensor(m->gguf, 0)] = 1;
    /* The embedding's row count is the vocabulary size; everything else must agree with it. */
    if (row->bind == KRI_BIND_EMBED && m->hp.n_vocab == 0 && t->tensor.n_dims == 2 &&
        t->tensor.shape[0] <= INT32_MAX) {
        m->hp.n_vocab = (uint32_t)t->tensor.shape[0];
    }
    KR_TRY(check_shape(b, t, row));
    uint8_t *base = row->per_layer ? (uint8_t *)&m->layers[layer] : (uint8_t *)m;
    switch (row->bind) {
    case KRI_BIND_VECTOR:
        return bind_vector(b, t, (const float **)(void *)(base + row->offset));
    case KRI_BIND_BIAS: {
        kri_weight_t *w = (kri_weight_t *)(void *)(base + row->offset);
        return bind_vector(b, t, &w->parts[row->part].bias);
    }
    case KRI_BIND_MATRIX:
        return add_matrix(b, t, (kri_weight_t *)(void *)(base + row->offset), row->part);
    case KRI_BIND_EMBED: m->embed = t->tensor; return KR_OK;
    }
    return KR_OK;
}

static kr_status_t bind_all(binding_t *b) {
    struct kr_model_s *m = b->model;
    for (uint32_t i = 0; i < m->arch->n_tensors; i++) {
        const kri_tensor_row_t *row = &m->arch->tensors[i];
        const uint32_t n = row->per_layer ? m->hp.n_layers : 1;
        for (uint32_t layer = 0; layer < n; layer++) KR_TRY(bind_row(b, row, layer));
    }
    for (uint32_t i = 0; i < kri_gguf_n_tensors(m->gguf); i++) {
        const kri_gguf_tensor_t *t = kri_gguf_tensor(m->gguf, i);
        if (!b->used[i]) {
            return KRI_FAIL(b->error, KR_E_UNSUPPORTED, t->name,
                            "tensor %.96s is not part of architecture %s", t->name,
                            m->arch->name);
        }
        uint64_t n_items = 1;
        for (uint32_t d = 0; d < t->tensor.n_dims; d++) n_items *= t->tensor.shape[d];
        m->n_params += n_items;
    }
    if (m->head.n_parts == 0) {
        KR_TRY(add_matrix(b, kri_gguf_find(m->gguf, "token_embd.weight"), &m->head, 0));
    }
    for (uint32_t i = 0; i < m->hp.n_layers; i++) {
        place_parts(&m->layers[i].qkv);
        place_parts(&m->layers[i].attn_out);
        place_parts(&m->layers[i].gate_up);
        place_parts(&m->layers[i].ffn_down);
    }
    place_parts(&m->head);
    return KR_OK;
}

/* Layers with the same window share a KV group. */
static void group_layers(struct kr_model_s *m) {
    const kri_hparams_t *hp = &m->hp;
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        kri_layer_t *l = &m->layers[i];
        l->is_local = hp->window > 0 && i % hp->window_period != hp->window_period - 1;
        const uint32_t window = l->is_local ? hp->window : 0;
        uint32_t g = 0;
        while (g < m->n_kv_groups && m->kv_groups[g].window != window) g++;
        if (g == m->n_kv_groups) {
            m->kv_groups[m->n_kv_groups++] = (kri_kv_desc_t){
                .n_kv_heads = hp->n_kv_heads, .head_dim = hp->head_dim, .window = window};
        }
        l->kv_group = g;
        l->layer_in_group = m->kv_groups[g].n_layers++;
    }
}

kr_status_t kri_model_bind(struct kr_model_s *model, const kr_model_params_t *params,
                           kr_error_t *error) {
    const size_t n_tensors = kri_gguf_n_tensors(model->gguf);
    binding_t b = {.model = model, .error = error};
    kr_status_t status = KR_OK;
    void *layers = NULL;
    const size_t layer_bytes = model->hp.n_layers * sizeof(kri_layer_t);
    /* Each layer needs tensors of its own: this bounds n_layers by what the file holds. */
    if (model->hp.n_layers > n_tensors) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "block_count", "%u layers but only %zu tensors",
                        model->hp.n_layers, n_tensors);
    }
    if (kr_arena_create(1 << 16, &model->arena) != KR_OK ||
        kr_arena_alloc(model->arena, layer_bytes, &layers) != KR_OK) {
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for %u layers", model->hp.n_layers);
    }
    memset(layers, 0, layer_bytes);
    model->layers = layers;
    b.used = kri_calloc(n_tensors, 1, "binder");
    /* One more for a tied head. */
    model->packed_tensors =
        kri_calloc(n_tensors + 1, sizeof(*model->packed_tensors), "binder");
    if (!b.used || !model->packed_tensors) {
        status = KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory to bind %zu tensors", n_tensors);
        goto done;
    }
    KR_TRY_DONE(bind_all(&b));
    if (model->hp.n_vocab != kri_tokenizer_n_tokens(model->tokenizer)) {
        status = KRI_FAIL(error, KR_E_BAD_FORMAT, "token_embd.weight",
                          "%u embedding rows for %u tokens", model->hp.n_vocab,
                          kri_tokenizer_n_tokens(model->tokenizer));
        goto done;
    }
    group_layers(model);
    model->bytes_per_token = model->packed_bytes + b.vector_bytes +
                             model->embed.n_bytes / model->embed.shape[0];
    status = kri_weights_load(model, params, error);
done:
    kri_free(b.used);
    return status;
}
