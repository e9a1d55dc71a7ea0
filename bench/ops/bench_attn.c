/* bench_attn.c: see bench_attn.h. Both forms run over the same rows, keys and values: the packed
 * keys and values of the unfused form are the numbers in the pages, as f16. */
#include "bench_attn.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/clock.h"
#include "base/os.h"
#include "bench_util.h"
#include "cache/kv_pool.h"
#include "cpu/cpu.h"
#include "ops/exec.h"
#include "ops/pack.h"
#include "softmax.h"

/* Probabilities of one tile of rows stay in the second-level cache, as in kri_op_linear. */
#define TILE_BYTES ((size_t)512 << 10)
#define TILE_ROWS_MIN 16u

struct kri_bench_attn_s {
    kri_bench_attn_shape_t shape;
    uint32_t n_rows, n_keys, n_threads; /* rows of all sequences; keys of one */
    kri_kernels_t kernels;
    kri_kv_pool_t *kv;
    uint64_t kv_bytes;
    kr_token_t *tokens;
    int32_t *positions;
    kri_step_seq_t *seqs;
    kri_step_t step;
    kri_exec_t exec;
    kri_attn_desc_t desc;
    float *scratch;
    size_t qkv_floats, out_floats; /* of qkv and of each output */
    float *qkv, *out;
    /* The unfused form only. */
    float *out_unfused;
    uint8_t *packed_k, *packed_v; /* [n_layers][n_seqs][n_kv_heads] matrices */
    size_t k_bytes, v_bytes, k_group_bytes, v_group_bytes;
    float *scores;                /* [n_threads][rows of an item][score_stride] */
    size_t score_stride, score_floats;
    kri_bench_softmax_fn *softmax;
    uint32_t rows_per_item, heads_per_item, n_row_items;
    uint64_t next_item;
    uint32_t layer_unfused; /* the next one; of the fused form it is in desc */
};

/* ---- memory --------------------------------------------------------------------------------- */

/* A product of sizes and 0 on overflow, which no allocation accepts. */
static size_t product(size_t a, size_t b, size_t c) {
    size_t n = 0;
    return kri_mul_size(a, b, &n) && kri_mul_size(n, c, &n) ? n : 0;
}

static kr_status_t take_rows(kri_bench_attn_t *attn) {
    const kri_bench_attn_shape_t *s = &attn->shape;
    size_t n_heads = (size_t)s->n_heads + 2 * (size_t)s->n_kv_heads;
    attn->qkv_floats = product(attn->n_rows, n_heads, s->head_dim);
    attn->out_floats = product(attn->n_rows, s->n_heads, s->head_dim);
    attn->qkv = kri_alloc(product(attn->qkv_floats, sizeof(float), 1), "bench");
    attn->out = kri_alloc(product(attn->out_floats, sizeof(float), 1), "bench");
    attn->tokens = kri_calloc(attn->n_rows, sizeof *attn->tokens, "bench");
    attn->positions = kri_calloc(attn->n_rows, KRI_POS_COMPONENTS * sizeof(int32_t), "bench");
    attn->seqs = kri_calloc(s->n_seqs, sizeof *attn->seqs, "bench");
    attn->scratch = kri_alloc(product(attn->n_threads, KRI_ATTN_THREAD_FLOATS, sizeof(float)),
                              "bench");
    if (!attn->qkv || !attn->out || !attn->tokens || !attn->positions || !attn->seqs ||
        !attn->scratch) {
        return KR_E_NOMEM;
    }
    uint64_t state = KRI_BENCH_SEED;
    kri_bench_fill(&state, attn->qkv, attn->qkv_floats);
    memset(attn->out, 0, attn->out_floats * sizeof(float));
    return KR_OK;
}

static kr_status_t take_pages(kri_bench_attn_t *attn) {
    const kri_bench_attn_shape_t *s = &attn->shape;
    kri_kv_params_t params = {
        .n_groups = 1, .groups = {{s->n_layers, s->n_kv_heads, s->head_dim, 0}},
        .dtype = s->kv_dtype,
        .n_seqs = s->n_seqs, .n_ctx = attn->n_keys};
    kr_status_t status = kri_kv_pool_bytes(&params, &attn->kv_bytes);
    if (status == KR_OK) status = kri_kv_pool_create(&params, &attn->kv);
    for (uint32_t i = 0; i < s->n_seqs && status == KR_OK; i++) {
        status = kri_kv_pool_reserve(attn->kv, i, attn->n_keys);
        if (status == KR_OK) kri_kv_pool_commit(attn->kv, i, attn->n_keys);
    }
    return status;
}

static void fill_page_i8(const kri_kv_group_t *group, uint64_t *state, uint8_t *page) {
    for (uint32_t i = 0; i < group->n_layers * group->n_kv_heads; i++) {
        uint32_t layer = i / group->n_kv_heads, head = i % group->n_kv_heads;
        kri_bench_fill_i8(state, kri_kv_place(group, layer, head), group->head_dim, page);
    }
}

static void fill_pages(kri_bench_attn_t *attn) {
    const kri_kv_group_t *group = kri_kv_pool_groups(attn->kv);
    uint32_t n_pages = (uint32_t)kri_ceil_div(attn->n_keys, KRI_PAGE_TOKENS);
    size_t n_items = group->page_bytes / sizeof(uint16_t);
    uint64_t state = KRI_BENCH_SEED + 1;
    for (uint32_t s = 0; s < attn->shape.n_seqs; s++) {
        const uint32_t *table = kri_kv_pool_table(attn->kv, s, 0);
        for (uint32_t p = 0; p < n_pages; p++) {
            uint16_t *page = (uint16_t *)(void *)(group->pool + table[p] * group->page_bytes);
            if (group->dtype == KR_DTYPE_I8) {
                fill_page_i8(group, &state, (uint8_t *)page);
                continue;
            }
            for (size_t i = 0; i < n_items; i++) {
                float value;
                kri_bench_fill(&state, &value, 1);
                page[i] = kri_f32_to_f16(value);
            }
        }
    }
}

static void describe_step(kri_bench_attn_t *attn, kri_pool_t *pool) {
    const kri_bench_attn_shape_t *s = &attn->shape;
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        attn->seqs[i] = (kri_step_seq_t){
            .seq = i, .row_begin = i * s->n_rows, .n_rows = s->n_rows, .pos_begin = s->n_past,
            .page_table = {kri_kv_pool_table(attn->kv, i, 0)}};
    }
    for (uint32_t r = 0; r < attn->n_rows; r++) {
        for (uint32_t c = 0; c < KRI_POS_COMPONENTS; c++) {
            attn->positions[r * KRI_POS_COMPONENTS + c] = (int32_t)(s->n_past + r % s->n_rows);
        }
    }
    attn->step = (kri_step_t){
        .n_rows = attn->n_rows, .tokens = attn->tokens, .positions = attn->positions,
        .n_seqs = s->n_seqs, .seqs = attn->seqs, .n_groups = 1,
        .groups = kri_kv_pool_groups(attn->kv)};
    attn->exec = (kri_exec_t){
        .kernels = &attn->kernels, .pool = pool, .n_threads = attn->n_threads,
        .step = &attn->step, .attn_scratch = attn->scratch, .attn_qk = s->attn_qk};
    attn->desc = (kri_attn_desc_t){
        .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads, .head_dim = s->head_dim,
        .n_rot = s->head_dim, .scale = 1.0f / sqrtf((float)s->head_dim)};
}

/* ---- the unfused form ----------------------------------------------------------------------- */

/* An item is one head with a run of rows, or, for one row, the heads of one KV head as rows of one
 * small GEMM. Heads are cut only where there are too few of them to keep all threads busy. */
static void split_items(kri_bench_attn_t *attn) {
    const kri_bench_attn_shape_t *s = &attn->shape;
    attn->heads_per_item = s->n_rows == 1 ? s->n_heads / s->n_kv_heads : 1;
    uint32_t n_parts = 1;
    if (s->n_rows > 1) {
        n_parts = (uint32_t)kri_ceil_div(2u * attn->n_threads, s->n_heads * s->n_seqs);
    }
    attn->rows_per_item = (uint32_t)kri_ceil_div(s->n_rows, n_parts);
    attn->n_row_items = (uint32_t)kri_ceil_div(s->n_rows, attn->rows_per_item);
}

/* A slot's key (to k) and value (to v, v_stride items apart) of one KV head, as f16. */
static void read_slot(const kri_kv_group_t *group, kri_kv_place_t place, const uint8_t *page,
                      size_t slot, uint16_t *k, uint16_t *v, size_t v_stride) {
    const uint32_t n = group->head_dim;
    if (group->dtype != KR_DTYPE_I8) {
        memcpy(k, page + place.k + slot * n * sizeof *k, n * sizeof *k);
        for (size_t d = 0; d < n; d++)
            memcpy(v + d * v_stride, page + place.v + (slot * n + d) * sizeof *v, sizeof *v);
        return;
    }
    const uint16_t *scales = (const uint16_t *)(const void *)(page + place.scales) + slot;
    float k_scale = kri_f16_to_f32(scales[0]), v_scale = kri_f16_to_f32(scales[KRI_PAGE_TOKENS]);
    for (size_t d = 0; d < n; d++) {
        int key = page[place.k + kri_i8_key_at(slot, d)] - KRI_I8_KEY_BIAS;
        int value = (int8_t)page[place.v + kri_i8_value_at(n, slot, d)];
        k[d] = kri_f32_to_f16(k_scale * (float)key);
        v[d * v_stride] = kri_f32_to_f16(v_scale * (float)value);
    }
}

/* Keys [n_keys, head_dim] and values transposed [head_dim, n_keys] of one KV head as weights. */
static void pack_head(kri_bench_attn_t *attn, size_t index, uint16_t *k, uint16_t *v) {
    uint32_t n_kv_heads = attn->shape.n_kv_heads, head = (uint32_t)(index % n_kv_heads);
    uint32_t seq = (uint32_t)(index / n_kv_heads % attn->shape.n_seqs);
    size_t layer = index / n_kv_heads / attn->shape.n_seqs;
    const kri_kv_group_t *group = kri_kv_pool_groups(attn->kv);
    const uint32_t *table = kri_kv_pool_table(attn->kv, seq, 0);
    size_t head_dim = attn->shape.head_dim;
    kri_kv_place_t place = kri_kv_place(group, (uint32_t)layer, head);
    for (uint32_t t = 0; t < attn->n_keys; t++) {
        const uint8_t *page = group->pool + table[t / KRI_PAGE_TOKENS] * group->page_bytes;
        read_slot(group, place, page, t % KRI_PAGE_TOKENS, k + t * head_dim, v + t, attn->n_keys);
    }
    kri_pack_rows(KR_DTYPE_F16, (const uint8_t *)k, head_dim * sizeof *k, attn->n_keys, head_dim,
                  0, attn->k_bytes / attn->k_group_bytes, attn->packed_k + index * attn->k_bytes);
    kri_pack_rows(KR_DTYPE_F16, (const uint8_t *)v, attn->n_keys * sizeof *v, head_dim,
                  attn->n_keys, 0, attn->v_bytes / attn->v_group_bytes,
                  attn->packed_v + index * attn->v_bytes);
}

static size_t n_matrices(const kri_bench_attn_t *attn) {
    return (size_t)attn->shape.n_layers * attn->shape.n_seqs * attn->shape.n_kv_heads;
}

static kr_status_t pack_all(kri_bench_attn_t *attn) {
    size_t n_bytes = product(attn->n_keys, attn->shape.head_dim, sizeof(uint16_t));
    uint16_t *k = kri_alloc(n_bytes, "bench"), *v = kri_alloc(n_bytes, "bench");
    if (k != NULL && v != NULL) {
        for (size_t i = 0; i < n_matrices(attn); i++) pack_head(attn, i, k, v);
    }
    kr_status_t status = k != NULL && v != NULL ? KR_OK : KR_E_NOMEM;
    kri_free(k);
    kri_free(v);
    return status;
}

static kr_status_t take_unfused(kri_bench_attn_t *attn) {
    const kri_bench_attn_shape_t *s = &attn->shape;
    kri_pack_layout_t k, v;
    if (!kri_pack_layout(KR_DTYPE_F16, s->head_dim, &k) ||
        !kri_pack_layout(KR_DTYPE_F16, attn->n_keys, &v)) {
        return KR_E_LIMIT;
    }
    split_items(attn);
    attn->k_group_bytes = k.group_bytes;
    attn->v_group_bytes = v.group_bytes;
    attn->k_bytes = k.group_bytes * kri_ceil_div(attn->n_keys, KRI_GROUP_ROWS);
    attn->v_bytes = v.group_bytes * kri_ceil_div(s->head_dim, KRI_GROUP_ROWS);
    attn->score_stride = kri_ceil_div(attn->n_keys, KRI_GROUP_ROWS) * KRI_GROUP_ROWS;
    attn->score_floats = product((size_t)attn->rows_per_item * attn->heads_per_item,
                                 attn->score_stride, 1);
    attn->packed_k = kri_alloc(product(attn->k_bytes, n_matrices(attn), 1), "bench");
    attn->packed_v = kri_alloc(product(attn->v_bytes, n_matrices(attn), 1), "bench");
    attn->scores = kri_alloc(product(attn->score_floats, attn->n_threads, sizeof(float)), "bench");
    attn->out_unfused = kri_calloc(attn->out_floats, sizeof(float), "bench");
    attn->softmax = kri_bench_softmax(attn->kernels.isa);
    if (!attn->packed_k || !attn->packed_v || !attn->scores || !attn->out_unfused) {
        return KR_E_NOMEM;
    }
    return pack_all(attn);
}

/* P V by tiles of rows, so that their probabilities are read from cache for every value group. */
static void weigh_values(const kri_bench_attn_t *attn, const uint8_t *values, const float *scores,
                         size_t n_rows, float *out, size_t out_stride) {
    size_t head_dim = attn->shape.head_dim;
    size_t row_bytes = attn->score_stride * sizeof(float);
    size_t tile = TILE_BYTES / row_bytes / TILE_ROWS_MIN * TILE_ROWS_MIN;
    if (tile == 0) tile = TILE_ROWS_MIN;
    for (size_t row = 0; row < n_rows; row += tile) {
        size_t n = n_rows - row < tile ? n_rows - row : tile;
        attn->kernels.linear_f16(values, attn->n_keys, attn->v_bytes / attn->v_group_bytes,
                                 head_dim, scores + row * attn->score_stride, row_bytes, n, NULL,
                                 0, out + row * out_stride, out_stride);
    }
}

static void unfused_item(const kri_bench_attn_t *attn, uint64_t item, float *scores) {
    const kri_bench_attn_shape_t *s = &attn->shape;
    uint32_t n_head_items = s->n_heads / attn->heads_per_item;
    uint32_t row = (uint32_t)(item % attn->n_row_items) * attn->rows_per_item;
    uint32_t head = (uint32_t)(item / attn->n_row_items % n_head_items) * attn->heads_per_item;
    uint32_t seq = (uint32_t)(item / attn->n_row_items / n_head_items);
    uint32_t n_rows = s->n_rows - row < attn->rows_per_item ? s->n_rows - row
                                                            : attn->rows_per_item;
    size_t head_dim = s->head_dim, out_row = (size_t)s->n_heads * head_dim;
    size_t q_row = out_row + 2 * (size_t)s->n_kv_heads * head_dim;
    size_t index = ((size_t)attn->layer_unfused * s->n_seqs + seq) * s->n_kv_heads +
                   head / (s->n_heads / s->n_kv_heads);
    size_t batch_row = (size_t)seq * s->n_rows + row;
    const float *q = attn->qkv + batch_row * q_row + head * head_dim;
    float *out = attn->out_unfused + batch_row * out_row + head * head_dim;
    bool is_decode = attn->heads_per_item > 1 || s->n_rows == 1; /* heads stand in for rows */
    size_t n = is_decode ? attn->heads_per_item : n_rows;
    attn->kernels.linear_f16(attn->packed_k + index * attn->k_bytes, head_dim,
                             attn->k_bytes / attn->k_group_bytes, attn->n_keys, q,
                             (is_decode ? head_dim : q_row) * sizeof(float), n, NULL, 0, scores,
                             attn->score_stride);
    for (size_t r = 0; r < n; r++) {
        size_t n_seen = (size_t)s->n_past + row + (is_decode ? 0 : r) + 1;
        attn->softmax(scores + r * attn->score_stride, attn->score_stride, n_seen,
                      attn->desc.scale);
    }
    weigh_values(attn, attn->packed_v + index * attn->v_bytes, scores, n, out,
                 is_decode ? head_dim : out_row);
}

static void unfused_items(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    kri_bench_attn_t *attn = ctx;
    const kri_bench_attn_shape_t *s = &attn->shape;
    uint64_t n_items = (uint64_t)(s->n_heads / attn->heads_per_item) * attn->n_row_items *
                       s->n_seqs;
    float *scores = attn->scores + thread_index * attn->score_floats;
    (void)n_threads;
    for (;;) {
        uint64_t item = __atomic_fetch_add(&attn->next_item, 1, __ATOMIC_RELAXED);
        if (item >= n_items) return;
        unfused_item(attn, item, scores);
    }
}

/* ---- calls ---------------------------------------------------------------------------------- */

kr_status_t kri_bench_attn_create(const kri_bench_attn_shape_t *shape, const char *isa,
                                  uint32_t n_threads, bool with_unfused, kri_bench_attn_t **out) {
    kri_bench_attn_t *attn = kri_calloc(1, sizeof *attn, "bench");
    if (attn == NULL) return KR_E_NOMEM;
    attn->shape = *shape;
    attn->n_rows = shape->n_seqs * shape->n_rows;
    attn->n_keys = shape->n_past + shape->n_rows;
    attn->n_threads = n_threads;
    kri_pool_t *pool = NULL;
    kr_status_t status = kri_cpu_kernels(isa, &attn->kernels, NULL);
    if (status == KR_OK) status = kri_pool_shared(n_threads, &pool);
    if (status == KR_OK) status = take_rows(attn);
    if (status == KR_OK) status = take_pages(attn);
    if (status == KR_OK) {
        fill_pages(attn);
        describe_step(attn, pool);
        if (with_unfused) status = take_unfused(attn);
    }
    if (status == KR_OK) *out = attn;
    else kri_bench_attn_destroy(attn);
    return status;
}

void kri_bench_attn_destroy(kri_bench_attn_t *attn) {
    if (attn == NULL) return;
    kri_free(attn->out_unfused);
    kri_free(attn->scores);
    kri_free(attn->packed_v);
    kri_free(attn->packed_k);
    kri_free(attn->scratch);
    kri_free(attn->seqs);
    kri_free(attn->positions);
    kri_free(attn->tokens);
    kri_free(attn->out);
    kri_free(attn->qkv);
    kri_kv_pool_destroy(attn->kv);
    kri_free(attn);
}

/* One thread is timed while it runs, several by the wall: their waiting for each other counts. */
static uint64_t now_ns(const kri_bench_attn_t *attn) {
    return attn->n_threads == 1 ? kri_bench_thread_ns() : kri_clock_ns();
}

uint64_t kri_bench_attn_fused(kri_bench_attn_t *attn) {
    uint64_t start = now_ns(attn);
    kri_op_attention(&attn->exec, &attn->desc, attn->qkv, attn->out);
    uint64_t ns = now_ns(attn) - start;
    attn->desc.layer_in_group = (attn->desc.layer_in_group + 1) % attn->shape.n_layers;
    return ns;
}

uint64_t kri_bench_attn_unfused(kri_bench_attn_t *attn) {
    uint64_t start = now_ns(attn);
    attn->next_item = 0;
    kri_pool_run(attn->exec.pool, attn->n_threads, unfused_items, attn);
    uint64_t ns = now_ns(attn) - start;
    attn->layer_unfused = (attn->layer_unfused + 1) % attn->shape.n_layers;
    return ns;
}

double kri_bench_attn_error(kri_bench_attn_t *attn) {
    double largest = 0, difference = 0;
    attn->desc.layer_in_group = attn->layer_unfused = attn->shape.n_layers - 1;
    (void)kri_bench_attn_fused(attn);
    (void)kri_bench_attn_unfused(attn);
    for (size_t i = 0; i < attn->out_floats; i++) {
        double a = (double)attn->out[i], b = (double)attn->out_unfused[i];
        if (!isfinite(a) || !isfinite(b)) return INFINITY;
        if (fabs(b) > largest) largest = fabs(b);
        if (fabs(a - b) > difference) difference = fabs(a - b);
    }
    return largest > 0 ? difference / largest : INFINITY;
}

double kri_bench_attn_flops(const kri_bench_attn_shape_t *shape) {
    double n_rows = (double)shape->n_rows;
    double n_pairs = n_rows * (double)shape->n_past + n_rows * (n_rows + 1) / 2;
    return 4.0 * (double)shape->head_dim * (double)shape->n_heads * (double)shape->n_seqs *
           n_pairs;
}

uint64_t kri_bench_attn_kv_bytes(const kri_bench_attn_t *attn) { return attn->kv_bytes; }

uint64_t kri_bench_attn_fused_bytes(const kri_bench_attn_t *attn) {
    return attn->kv_bytes + (attn->qkv_floats + attn->out_floats) * sizeof(float) +
           (uint64_t)attn->n_threads * KRI_ATTN_THREAD_FLOATS * sizeof(float);
}

uint64_t kri_bench_attn_unfused_bytes(const kri_bench_attn_t *attn) {
    return n_matrices(attn) * (attn->k_bytes + attn->v_bytes) +
           (attn->qkv_floats + attn->out_floats) * sizeof(float) +
           (uint64_t)attn->n_threads * attn->score_floats * sizeof(float);
}
