/* session_cuda.c: see session_cuda.h. A step's tables go to the device in one copy; a decode
 * step then replays a graph that was recorded when its shape came up the second time, other
 * steps launch kernels one by one. Logits come back through pinned memory. */
#include "engine/session_cuda.h"

#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "cuda/exec_cuda.h"
#include "engine/weights_cuda.h"

#define N_GRAPHS 64u
#define LOGIT_ROWS 64u        /* at once, or the session's sequences where they are more */
#define PROCESSORS_MAX 160u   /* of a Hopper device; bounds the splits of attention */
#define ROWS_ALONE 16u        /* rows of a sequence from which on they attend in tiles */

/* Of argmax, for each row of logits. */
#define KEY_BYTES (sizeof(uint64_t) + sizeof(uint32_t))

/* Where each buffer lies in the block of scratch, in bytes. */
typedef struct layout_s {
    size_t x, branch, qkv, attn, cos_sin[2], q8, f32, bf16, gate_up, unpacked, partials, counters,
        keys, logits, tables, total;
    size_t unpacked_items, table_bytes;
    uint32_t logit_rows, pages_per_seq, n_tiles;
} layout_t;

/* Where each array lies in the tables of a step of at most `rows` rows. */
typedef struct tables_s {
    size_t flag, ids, tokens, positions, row_seq, out_rows, hidden_rows, decode_rows, tiles, seqs,
        pages;
} tables_t;

/* A shape of decode step; exec is NULL until it comes up a second time. */
typedef struct graph_s {
    uint32_t n_rows, n_out_rows, n_splits;
    bool is_argmax;
    void *exec;
} graph_t;

struct kri_session_cuda_s {
    kri_cuda_t *cuda;
    kri_cuda_stream_t stream;
    kri_cuda_lt_t *lt;           /* may be NULL */
    const kri_cuda_weights_t *weights;
    kri_cuda_exec_t ops;
    kri_exec_t exec;
    kri_state_t state;
    layout_t layout;
    uint32_t n_rows_max, n_seqs, n_groups;
    uint8_t *scratch, *tables;   /* device */
    uint8_t *host;               /* pinned: tables, then logits */
    float *logits, *host_logits; /* [logit_rows, n_vocab] */
    kr_status_t kv_status;       /* of the KV pool's last request for memory */
    kr_error_t kv_error;
    graph_t graphs[N_GRAPHS];
    uint32_t n_graphs, next_graph;
};

/* ---- plan ----------------------------------------------------------------------------------- */

static bool place(size_t *at, size_t count, size_t item, size_t *offset) {
    return kri_place(at, count, item, 256, offset);
}

/* Tables for n_rows rows; pages come last. Returns where they begin. */
static size_t place_tables(uint32_t n_rows, uint32_t n_seqs, uint32_t n_tiles, tables_t *t) {
    size_t at = 0;
    const bool fits = place(&at, 1, sizeof(uint32_t), &t->flag) &&
                      place(&at, n_rows, sizeof(int32_t), &t->ids) &&
                      place(&at, n_rows, sizeof(int32_t), &t->tokens) &&
                      place(&at, n_rows, sizeof(int32_t), &t->positions) &&
                      place(&at, n_rows, sizeof(uint32_t), &t->row_seq) &&
                      place(&at, n_rows, sizeof(uint32_t), &t->out_rows) &&
                      place(&at, n_rows, sizeof(uint32_t), &t->hidden_rows) &&
                      place(&at, n_rows, sizeof(uint32_t), &t->decode_rows) &&
                      place(&at, n_tiles, sizeof(kri_cu_tile_t), &t->tiles) &&
                      place(&at, n_seqs, sizeof(kri_cu_seq_t), &t->seqs) &&
                      place(&at, 0, 1, &t->pages);
    KR_ASSERT(fits);
    (void)fits; /* n_rows and n_seqs are bounded */
    return at;
}

static bool make_layout(const struct kr_model_s *m, const kr_session_info_t *info, layout_t *l) {
    const kri_hparams_t *hp = &m->hp;
    const size_t f = sizeof(float);
    kri_state_plan_t p;
    tables_t tables;
    size_t at = 0, pages = 0;
    if (!kri_state_plan(m, info->n_rows_max, &p)) return false;
    l->logit_rows = info->n_seqs > LOGIT_ROWS ? info->n_seqs : LOGIT_ROWS;
    if (l->logit_rows > info->n_rows_max) l->logit_rows = info->n_rows_max;
    l->pages_per_seq = (uint32_t)kri_ceil_div(info->n_ctx, KRI_PAGE_TOKENS);
    const uint32_t tile_rows = kri_cuda_tile_rows(info->kv_dtype, hp->head_dim);
    l->n_tiles = (tile_rows ? info->n_rows_max / tile_rows : 0) + info->n_seqs;
    l->unpacked_items = kri_cuda_unpacked_items(p.n_in_max);
    l->table_bytes = place_tables(info->n_rows_max, info->n_seqs, l->n_tiles, &tables);
    return kri_mul_size((size_t)info->n_seqs * m->n_kv_groups, l->pages_per_seq, &pages) &&
           kri_mul_size(pages, sizeof(uint32_t), &pages) &&
           kri_add_size(l->table_bytes, pages, &l->table_bytes) &&
           place(&at, p.x, f, &l->x) && place(&at, p.branch, f, &l->branch) &&
           place(&at, p.qkv, f, &l->qkv) && place(&at, p.attn, f, &l->attn) &&
           place(&at, p.cos_sin, f, &l->cos_sin[0]) && place(&at, p.cos_sin, f, &l->cos_sin[1]) &&
           place(&at, KRI_CU_TOKENS, p.n_in_max / KRI_Q8_ITEMS * sizeof(kri_cu_q8_t), &l->q8) &&
           place(&at, KRI_CU_TOKENS, p.n_in_max * f, &l->f32) &&
           place(&at, info->n_rows_max, p.n_in_max * sizeof(uint16_t), &l->bf16) &&
           place(&at, p.ff, 2 * f, &l->gate_up) &&
           place(&at, l->unpacked_items, sizeof(uint16_t), &l->unpacked) &&
           place(&at, kri_cuda_partial_floats(PROCESSORS_MAX, hp->head_dim), f, &l->partials) &&
           place(&at, KRI_CUDA_COUNTERS(PROCESSORS_MAX), sizeof(uint32_t), &l->counters) &&
           place(&at, l->logit_rows, KEY_BYTES, &l->keys) &&
           place(&at, l->logit_rows, hp->n_vocab * f, &l->logits) &&
           place(&at, l->table_bytes, 1, &l->tables) && (l->total = at, true);
}

static kr_status_t refuse(kr_error_t *error, const char *param, const char *what) {
    return KRI_FAIL(error, KR_E_UNSUPPORTED, param, "%s is not built for device cuda", what);
}

kr_status_t kri_session_cuda_plan(const struct kr_model_s *model,
                                  const kr_session_params_t *params, kr_session_info_t *info,
                                  kr_error_t *error) {
    layout_t layout;
    uint64_t n_bytes = 0;
    if (info->kv_dtype == KR_DTYPE_F32) return refuse(error, "kv_dtype", "a KV cache of f32");
    if (params->attn_qk > KR_ATTN_QK_F32 && info->kv_dtype != KR_DTYPE_I8) {
        return refuse(error, "attn_qk", "attn_qk of integers");
    }
    if (params->invariant == KR_INVARIANT_ON) return refuse(error, "invariant", "invariant on");
    if (params->isa) return refuse(error, "isa", "an instruction set of the CPU");
    KR_TRY(kri_cuda_weights_bytes(model, &n_bytes, error));
    info->device_weight_bytes = n_bytes;
    info->device_work_bytes = KRI_CUDA_LT_BYTES;
    if (!make_layout(model, info, &layout)) {
        return KRI_FAIL(error, KR_E_LIMIT, "n_ctx", "session of %u x %u tokens is too large",
                        info->n_seqs, info->n_ctx);
    }
    info->scratch_bytes = layout.total;
    info->is_invariant = 0;
    info->isa = "sm_90";
    return KR_OK;
}

/* ---- memory of the KV pool ------------------------------------------------------------------- */

static void *kv_alloc(void *ctx, size_t n_bytes) {
    kri_session_cuda_t *s = ctx;
    void *ptr = NULL;
    kr_error_init(&s->kv_error);
    s->kv_status = kri_cuda_alloc(s->cuda, "keys and values", n_bytes, &ptr, &s->kv_error);
    return s->kv_status == KR_OK ? ptr : NULL;
}

kr_status_t kri_session_cuda_kv_status(const kri_session_cuda_t *s, kr_error_t *error) {
    if (s->kv_status == KR_OK) return KR_OK;
    return KRI_FAIL(error, s->kv_status, s->kv_error.param, "%s", s->kv_error.message);
}

static void kv_free(void *ctx, void *ptr, size_t n_bytes) {
    kri_session_cuda_t *s = ctx;
    kri_cuda_free(s->cuda, ptr, n_bytes);
}

static void kv_copy(void *ctx, void *to, const void *from, size_t n_bytes) {
    kri_session_cuda_t *s = ctx;
    kri_cuda_use(&s->stream);
    kri_cuda_copy_within(&s->stream, to, from, n_bytes);
}

/* The stream keeps an error of these two, and the next step reports it. */
static void kv_read(void *ctx, void *host, const void *from, size_t n_bytes) {
    kri_session_cuda_t *s = ctx;
    kri_cuda_use(&s->stream);
    kri_cuda_copy_out(&s->stream, host, from, n_bytes);
    (void)kri_cuda_wait(&s->stream, NULL);
}

static void kv_write(void *ctx, void *to, const void *host, size_t n_bytes) {
    kri_session_cuda_t *s = ctx;
    kri_cuda_use(&s->stream);
    kri_cuda_copy_in(&s->stream, to, host, n_bytes);
    (void)kri_cuda_wait(&s->stream, NULL);
}

/* ---- create --------------------------------------------------------------------------------- */

static float *floats_at(const kri_session_cuda_t *s, size_t offset) {
    return (float *)(void *)(s->scratch + offset);
}

static void bind_scratch(kri_session_cuda_t *s) {
    const layout_t *l = &s->layout;
    s->state = (kri_state_t){.x = floats_at(s, l->x), .branch = floats_at(s, l->branch),
                             .qkv = floats_at(s, l->qkv), .attn = floats_at(s, l->attn),
                             .cos_sin = {floats_at(s, l->cos_sin[0]), floats_at(s, l->cos_sin[1])}};
    s->ops = (kri_cuda_exec_t){
        .stream = &s->stream, .lt = s->lt, .q8 = (kri_cu_q8_t *)(void *)(s->scratch + l->q8),
        .f32 = floats_at(s, l->f32), .bf16 = (uint16_t *)(void *)(s->scratch + l->bf16),
        .gate_up = floats_at(s, l->gate_up), .unpacked_items = l->unpacked_items,
        .unpacked = (uint16_t *)(void *)(s->scratch + l->unpacked),
        .partials = floats_at(s, l->partials),
        .counters = (uint32_t *)(void *)(s->scratch + l->counters)};
    s->exec = (kri_exec_t){.ops = &kri_cuda_ops, .device = &s->ops, .n_threads = 1};
    s->logits = floats_at(s, l->logits);
    s->tables = s->scratch + l->tables;
}

/* Everything the session will take, before any of it is taken. */
static kr_status_t check_memory(kri_session_cuda_t *s, struct kr_model_s *model,
                                const kr_session_info_t *info, kr_error_t *error) {
    const uint64_t weights = kri_cuda_weights_are_loaded(model) ? 0 : info->device_weight_bytes;
    return kri_cuda_check_memory(s->cuda, "weights, keys and values, activations",
                                 weights + info->device_kv_bytes + info->scratch_bytes +
                                     info->device_work_bytes, error);
}

static kr_status_t open_on(kri_session_cuda_t *s, struct kr_model_s *model,
                           const kr_session_info_t *info, kri_pool_t *pool, kr_error_t *error) {
    void *scratch = NULL;
    const size_t logit_bytes = (size_t)s->layout.logit_rows * model->hp.n_vocab * sizeof(float);
    KR_TRY(kri_cuda_open(&s->cuda, error));
    if (kri_cuda_processors(s->cuda) > PROCESSORS_MAX) {
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "device", "the CUDA device has %u processors",
                        kri_cuda_processors(s->cuda));
    }
    KR_TRY(kri_cuda_stream_open(s->cuda, &s->stream, error));
    KR_TRY(check_memory(s, model, info, error));
    KR_TRY(kri_cuda_weights_get(model, pool, info->n_threads, &s->weights, error));
    KR_TRY(kri_cuda_alloc(s->cuda, "activations", s->layout.total, &scratch, error));
    s->scratch = scratch;
    s->lt = kri_cuda_lt_open(s->cuda);
    s->host = kri_cuda_pinned_alloc(s->cuda, s->layout.table_bytes + logit_bytes);
    if (!s->host) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no pinned memory for logits");
    s->host_logits = (float *)(void *)(s->host + s->layout.table_bytes);
    bind_scratch(s);
    kri_cuda_fill(&s->stream, s->ops.counters, 0,
                  KRI_CUDA_COUNTERS(PROCESSORS_MAX) * sizeof(uint32_t));
    kri_cuda_fill(&s->stream, s->scratch + s->layout.keys, 0, s->layout.logit_rows * KEY_BYTES);
    return KR_OK;
}

kr_status_t kri_session_cuda_create(struct kr_model_s *model, const kr_session_info_t *info,
                                    kri_pool_t *pool, kri_session_cuda_t **session,
                                    kri_kv_memory_t *memory, kr_error_t *error) {
    kri_session_cuda_t *s = kri_calloc(1, sizeof *s, "cuda session");
    if (!s) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the session");
    s->n_rows_max = info->n_rows_max;
    s->n_seqs = info->n_seqs;
    s->n_groups = model->n_kv_groups;
    const kr_status_t status = make_layout(model, info, &s->layout)
                                   ? open_on(s, model, info, pool, error)
                                   : KR_E_LIMIT; /* never: plan has checked */
    if (status != KR_OK) {
        kri_session_cuda_destroy(s);
        return status;
    }
    *memory = (kri_kv_memory_t){.ctx = s, .alloc = kv_alloc, .free = kv_free, .copy = kv_copy,
                                .read = kv_read, .write = kv_write};
    *session = s;
    return KR_OK;
}

void kri_session_cuda_destroy(kri_session_cuda_t *s) {
    if (!s) return;
    kri_cuda_stream_close(&s->stream);
    for (uint32_t i = 0; i < s->n_graphs; i++) kri_cuda_graph_free(s->cuda, s->graphs[i].exec);
    kri_cuda_lt_close(s->lt);
    if (s->cuda) {
        kri_cuda_free(s->cuda, s->scratch, s->layout.total);
        kri_cuda_pinned_free(s->cuda, s->host);
    }
    kri_cuda_close(s->cuda);
    kri_free(s);
}

/* ---- step ----------------------------------------------------------------------------------- */

/* Most pages that a sequence of the step holds. */
static uint32_t most_pages(const kri_step_t *step) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const uint32_t end = step->seqs[i].pos_begin + step->seqs[i].n_rows;
        if (end > n) n = end;
    }
    return (uint32_t)kri_ceil_div(n, KRI_PAGE_TOKENS);
}

static uint32_t *words_at(const kri_session_cuda_t *s, size_t offset) {
    return (uint32_t *)(void *)(s->host + offset);
}

/* Rows and tiles of one sequence. */
static void list_rows(kri_session_cuda_t *s, const kri_step_t *step, uint32_t index,
                      const tables_t *t) {
    const kri_step_seq_t *q = &step->seqs[index];
    uint32_t *decode_rows = words_at(s, t->decode_rows);
    kri_cu_tile_t *tiles = (kri_cu_tile_t *)(void *)(s->host + t->tiles);
    const uint32_t tile_rows =
        kri_cuda_tile_rows(step->groups[0].dtype, s->weights->model.hp.head_dim);
    const bool in_tiles = q->n_rows >= ROWS_ALONE && tile_rows > 0;
    for (uint32_t r = 0; r < q->n_rows; r++) {
        const uint32_t row = q->row_begin + r;
        words_at(s, t->tokens)[row] = (uint32_t)step->tokens[row];
        words_at(s, t->positions)[row] = (uint32_t)step->positions[row * KRI_POS_COMPONENTS];
        words_at(s, t->row_seq)[row] = index;
        if (!in_tiles) {
            decode_rows[s->ops.n_decode_rows++] = row;
        } else if (r % tile_rows == 0) {
            const uint32_t left = q->n_rows - r;
            tiles[s->ops.n_tiles++] = (kri_cu_tile_t){
                .seq = index, .row = row, .n_rows = left < tile_rows ? left : tile_rows};
        }
    }
}

/* The tables in pinned memory; returns their bytes. */
static size_t fill_tables(kri_session_cuda_t *s, const kri_step_t *step, tables_t *t) {
    /* Decode steps have one layout, whatever their rows: graphs know the addresses. */
    const uint32_t n_small = s->n_seqs < s->n_rows_max ? s->n_seqs : s->n_rows_max;
    const bool is_small = step->n_rows <= n_small;
    const size_t begin = place_tables(is_small ? n_small : s->n_rows_max, s->n_seqs,
                                      is_small ? n_small : s->layout.n_tiles, t);
    kri_cu_seq_t *seqs = (kri_cu_seq_t *)(void *)(s->host + t->seqs);
    uint32_t *pages = words_at(s, begin), n = 0;
    s->ops.n_decode_rows = s->ops.n_tiles = 0;
    words_at(s, t->flag)[0] = 0;
    if (step->n_out_rows > 0) {
        memcpy(words_at(s, t->out_rows), step->out_rows, step->n_out_rows * sizeof(uint32_t));
    }
    if (step->n_hidden_rows > 0) {
        memcpy(words_at(s, t->hidden_rows), step->hidden_rows,
               step->n_hidden_rows * sizeof(uint32_t));
    }
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const kri_step_seq_t *q = &step->seqs[i];
        const uint32_t n_pages =
            (uint32_t)kri_ceil_div((uint64_t)q->pos_begin + q->n_rows, KRI_PAGE_TOKENS);
        list_rows(s, step, i, t);
        seqs[i] = (kri_cu_seq_t){.pos_begin = q->pos_begin, .row_begin = q->row_begin};
        for (uint32_t g = 0; g < step->n_groups; g++) {
            memcpy(pages + n, q->page_table[g], n_pages * sizeof(uint32_t));
            seqs[i].table[g] = n;
            n += n_pages;
        }
    }
    return begin + n * sizeof(uint32_t);
}

/* As the ops see the step: tables on the device. */
static void bind_step(kri_session_cuda_t *s, const kri_step_t *step, const tables_t *t,
                      kri_step_t *own) {
    const uint8_t *base = s->tables;
    s->ops.step = (kri_cu_step_t){
        .tokens = (const int32_t *)(const void *)(base + t->tokens),
        .positions = (const int32_t *)(const void *)(base + t->positions),
        .row_seq = (const uint32_t *)(const void *)(base + t->row_seq),
        .decode_rows = (const uint32_t *)(const void *)(base + t->decode_rows),
        .tiles = (const kri_cu_tile_t *)(const void *)(base + t->tiles),
        .seqs = (const kri_cu_seq_t *)(const void *)(base + t->seqs),
        .tables = (const uint32_t *)(const void *)(base + t->pages)};
    *own = *step;
    own->tokens = s->ops.step.tokens;
    own->positions = NULL; /* the host's; the ops have their own */
    own->out_rows = (const uint32_t *)(const void *)(base + t->out_rows);
    own->hidden_rows = (const uint32_t *)(const void *)(base + t->hidden_rows);
    s->exec.step = own;
}

/* The device writes it, and the ids of argmax, where the host reads them: pinned memory has one
 * address for both. */
static uint32_t *flag_of(const kri_session_cuda_t *s, const tables_t *t) {
    return words_at(s, t->flag);
}

static void argmax(kri_session_cuda_t *s, const tables_t *t, uint32_t n_rows) {
    uint8_t *keys = s->scratch + s->layout.keys;
    const kri_cu_argmax_t args = {
        .x = s->logits, .n = s->weights->model.hp.n_vocab, .keys = (uint64_t *)(void *)keys,
        .counters = (uint32_t *)(void *)(keys + s->layout.logit_rows * sizeof(uint64_t)),
        .ids = (int32_t *)(void *)words_at(s, t->ids), .flag = flag_of(s, t)};
    kri_cuda_argmax(&s->stream, &args, n_rows);
}

/* The whole pass with at most logit_rows rows of logits, and any hidden states. */
static kr_status_t forward(kri_session_cuda_t *s, const tables_t *t) {
    const struct kr_model_s *m = &s->weights->model;
    const uint64_t n_out = s->exec.step->n_out_rows, n_hidden = s->exec.step->n_hidden_rows;
    KR_TRY(m->arch->forward(m, &s->exec, &s->state, s->logits));
    if (n_out > 0 && s->exec.step->argmax) {
        argmax(s, t, (uint32_t)n_out);
    } else if (n_out > 0) {
        kri_cuda_finite(&s->stream, s->logits, n_out * m->hp.n_vocab, flag_of(s, t));
    }
    if (n_hidden > 0) {
        kri_cuda_finite(&s->stream, s->state.branch, n_hidden * m->hp.n_embd, flag_of(s, t));
    }
    return KR_OK;
}

/* The place of this shape of step; a new one is empty. */
static graph_t *find_graph(kri_session_cuda_t *s) {
    const uint32_t n_rows = s->exec.step->n_rows, n_out = s->exec.step->n_out_rows;
    const bool is_argmax = s->exec.step->argmax != NULL;
    for (uint32_t i = 0; i < s->n_graphs; i++) {
        graph_t *g = &s->graphs[i];
        if (g->n_rows == n_rows && g->n_out_rows == n_out && g->is_argmax == is_argmax &&
            g->n_splits == s->ops.n_splits) {
            return g;
        }
    }
    graph_t *g = &s->graphs[s->n_graphs < N_GRAPHS ? s->n_graphs++ : s->next_graph++ % N_GRAPHS];
    kri_cuda_graph_free(s->cuda, g->exec);
    *g = (graph_t){.n_rows = 0};
    return g;
}

/* A decode step. A shape that is new is computed without recording: libraries load what they
 * need at first use, which a recording does not allow, and shapes that do not come back are not
 * worth one. */
static kr_status_t run_decode(kri_session_cuda_t *s, const tables_t *t) {
    graph_t *g = find_graph(s);
    if (g->n_rows == 0) {
        *g = (graph_t){s->exec.step->n_rows, s->exec.step->n_out_rows, s->ops.n_splits,
                       s->exec.step->argmax != NULL, NULL};
        return forward(s, t);
    }
    if (!g->exec) {
        s->ops.cancel = NULL;
        kri_cuda_record_begin(&s->stream);
        (void)forward(s, t); /* the stream keeps what went wrong */
        kri_cuda_record_end(&s->stream, &g->exec);
    }
    if (!g->exec) return forward(s, t); /* no memory for it, or an error that is kept */
    kri_cuda_replay(&s->stream, g->exec);
    return KR_OK;
}

/* n floats, at most the logits that pinned memory is for, to the host. */
static kr_status_t fetch(kri_session_cuda_t *s, const tables_t *t, const float *from, size_t n,
                         float *to, bool *is_bad, kr_error_t *error) {
    kri_cuda_copy_out(&s->stream, s->host_logits, from, n * sizeof(float));
    KR_TRY(kri_cuda_wait(&s->stream, error));
    if (n > 0) memcpy(to, s->host_logits, n * sizeof(float));
    if (words_at(s, t->flag)[0]) *is_bad = true;
    return KR_OK;
}

/* The ids of argmax. */
static kr_status_t fetch_ids(kri_session_cuda_t *s, const tables_t *t, uint32_t n, kr_token_t *to,
                             bool *is_bad, kr_error_t *error) {
    KR_TRY(kri_cuda_wait(&s->stream, error));
    for (uint32_t i = 0; i < n; i++) to[i] = (kr_token_t)words_at(s, t->ids)[i];
    if (words_at(s, t->flag)[0]) *is_bad = true;
    return KR_OK;
}

static kr_status_t fetch_hidden(kri_session_cuda_t *s, const tables_t *t, uint32_t n_rows,
                                float *hidden, bool *is_bad, kr_error_t *error) {
    const kri_hparams_t *hp = &s->weights->model.hp;
    const size_t n = (size_t)n_rows * hp->n_embd, most = (size_t)s->layout.logit_rows * hp->n_vocab;
    for (size_t at = 0; at < n; at += most) {
        KR_TRY(fetch(s, t, s->state.branch + at, n - at < most ? n - at : most, hidden + at,
                     is_bad, error));
    }
    return KR_OK;
}

/* A pass without logits; hidden states, then logits follow piece by piece. */
static kr_status_t run_long(kri_session_cuda_t *s, const tables_t *t, kri_step_t *own,
                            float *logits, float *hidden, bool *is_bad, kr_error_t *error) {
    const struct kr_model_s *m = &s->weights->model;
    const uint32_t n_out = own->n_out_rows, *out_rows = own->out_rows;
    own->n_out_rows = 0;
    KR_TRY(forward(s, t));
    KR_TRY(fetch_hidden(s, t, own->n_hidden_rows, hidden, is_bad, error));
    own->n_hidden_rows = 0;
    for (uint32_t row = 0; row < n_out; row += s->layout.logit_rows) {
        own->n_out_rows = n_out - row < s->layout.logit_rows ? n_out - row : s->layout.logit_rows;
        own->out_rows = out_rows + row;
        kri_forward_outputs(m, &s->exec, &s->state, s->logits);
        if (own->argmax) {
            argmax(s, t, own->n_out_rows);
            KR_TRY(fetch_ids(s, t, own->n_out_rows, own->argmax + row, is_bad, error));
            continue;
        }
        const size_t n = (size_t)own->n_out_rows * m->hp.n_vocab;
        kri_cuda_finite(&s->stream, s->logits, n, flag_of(s, t));
        KR_TRY(fetch(s, t, s->logits, n, logits + (size_t)row * m->hp.n_vocab, is_bad, error));
    }
    return n_out > 0 ? KR_OK : kri_cuda_wait(&s->stream, error);
}

const char *kri_session_cuda_level(const kri_session_cuda_t *s) {
    return s->lt ? "sm_90+cublaslt" : "sm_90";
}

kr_status_t kri_session_cuda_run(kri_session_cuda_t *s, const kri_step_t *step, float *logits,
                                 float *hidden, kr_error_t *error) {
    const kri_hparams_t *hp = &s->weights->model.hp;
    bool is_bad = false;
    kri_step_t own;
    tables_t t;
    kri_cuda_use(&s->stream);
    const size_t n_bytes = fill_tables(s, step, &t);
    bind_step(s, step, &t, &own);
    s->ops.n_splits = kri_cuda_splits(kri_cuda_processors(s->cuda), s->ops.n_decode_rows,
                                      hp->n_heads, hp->n_kv_heads, most_pages(step));
    s->ops.cancel = step->cancel;
    kri_cuda_copy_in(&s->stream, s->tables, s->host, n_bytes);
    kr_status_t status;
    if (step->n_rows == step->n_seqs && step->n_out_rows <= s->layout.logit_rows &&
        step->n_hidden_rows == 0) {
        status = run_decode(s, &t);
        if (status == KR_OK && step->argmax) {
            status = fetch_ids(s, &t, step->n_out_rows, step->argmax, &is_bad, error);
        } else if (status == KR_OK) {
            status = fetch(s, &t, s->logits, (size_t)step->n_out_rows * hp->n_vocab, logits,
                           &is_bad, error);
        }
    } else {
        status = run_long(s, &t, &own, logits, hidden, &is_bad, error);
    }
    if (status != KR_OK) {
        KR_TRY(kri_cuda_wait(&s->stream, error)); /* a cancelled step; an error is told here */
        return status;
    }
    return is_bad ? KR_E_NUMERIC : KR_OK;
}
