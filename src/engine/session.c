/* session.c: see session.h. */
#include "engine/session_impl.h"

#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/os.h"
#include "cpu/cpu.h"
#include "telemetry/telemetry.h"

#define N_SEQS_MAX 256u
#define N_ROWS_MAX 4096u
#define N_ROWS_DEFAULT 512u
#define N_CTX_DEFAULT 4096u

/* Where each buffer lies in the scratch block. */
typedef struct layout_s {
    size_t x, branch, qkv, attn, cos_sin[2], q8, tiles, normed, ff, own, attn_scratch, space, total;
} layout_t;

static bool place(size_t *at, size_t count, size_t item, size_t *offset) {
    return kri_place(at, count, item, 64, offset);
}

static bool make_layout(const struct kr_model_s *model, const kr_session_info_t *info,
                        bool has_tiles, layout_t *l) {
    kri_state_plan_t p;
    size_t at = 0;
    if (!kri_state_plan(model, info->n_rows_max, &p)) return false;
    const size_t f = sizeof(float);
    const size_t blocks = kri_ceil_div(p.n_in_max, KRI_Q8_ITEMS);
    const size_t tile_rows =
        has_tiles ? kri_ceil_div(info->n_rows_max, KRI_TILE_TOKENS) * KRI_TILE_TOKENS : 0;
    const size_t tile_items = (p.x > p.attn ? p.x : p.attn) / info->n_rows_max;
    return place(&at, p.x, f, &l->x) && place(&at, p.branch, f, &l->branch) &&
           place(&at, p.qkv, f, &l->qkv) && place(&at, p.attn, f, &l->attn) &&
           place(&at, p.normed, f, &l->normed) && place(&at, p.ff, f, &l->ff) &&
           place(&at, p.cos_sin, f, &l->cos_sin[0]) && place(&at, p.cos_sin, f, &l->cos_sin[1]) &&
           place(&at, info->n_rows_max, blocks * sizeof(kri_q8_block_t), &l->q8) &&
           place(&at, tile_rows, tile_items * sizeof(uint16_t), &l->tiles) &&
           place(&at, info->n_threads, sizeof(kri_exec_own_t), &l->own) &&
           place(&at, info->n_threads, KRI_ATTN_THREAD_FLOATS * f, &l->attn_scratch) &&
           place(&at, 1, kri_batch_space_bytes(info->n_rows_max, info->n_seqs), &l->space) &&
           (l->total = at, true);
}

/* With a device only the arrays of a step are the host's, and hidden states once they are fetched:
 * address space until then. */
static bool make_device_layout(const struct kr_model_s *model, const kr_session_info_t *info,
                               layout_t *l) {
    size_t at = 0;
    *l = (layout_t){0};
    return place(&at, info->n_rows_max, model->hp.n_embd * sizeof(float), &l->branch) &&
           place(&at, 1, kri_batch_space_bytes(info->n_rows_max, info->n_seqs), &l->space) &&
           (l->total = at, true);
}

static void kv_params(const struct kr_model_s *model, const kr_session_params_t *params,
                      const kr_session_info_t *info, kri_kv_params_t *kv) {
    *kv = (kri_kv_params_t){.n_groups = model->n_kv_groups, .dtype = info->kv_dtype,
                            .n_seqs = info->n_seqs, .n_ctx = info->n_ctx,
                            .n_rows = info->n_rows_max, .bytes_max = params->kv_bytes_max,
                            .prefix_cache = params->prefix_cache == KR_PREFIX_CACHE_ON};
    for (uint32_t g = 0; g < model->n_kv_groups; g++) {
        const kri_kv_desc_t *d = &model->kv_groups[g];
        kv->groups[g] = (kri_kv_shape_t){d->n_layers, d->n_kv_heads, d->head_dim, d->window};
    }
}

static kr_status_t check_params(const struct kr_model_s *model, const kr_session_params_t *p,
                                kr_session_info_t *info, kr_error_t *error) {
    const uint32_t n_ctx_train = model->hp.n_ctx_train;
    if (model->vocab_only) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "model", "the model was opened vocab_only");
    }
    KR_TRY(kri_check_max("n_seqs", p->n_seqs, N_SEQS_MAX, error));
    KR_TRY(kri_check_max("n_rows_max", p->n_rows_max, N_ROWS_MAX, error));
    KR_TRY(kri_check_max("n_threads", p->n_threads, KRI_THREADS_MAX, error));
    if (p->n_ctx > n_ctx_train) {
        return KRI_FAIL(error, KR_E_CONTEXT_LENGTH, "n_ctx",
                        "n_ctx is %u, the model was trained for %u", p->n_ctx, n_ctx_train);
    }
    if (p->kv_dtype != KR_DTYPE_NONE && p->kv_dtype != KR_DTYPE_F16 &&
        p->kv_dtype != KR_DTYPE_F32 && !kri_kv_is_8bit(p->kv_dtype)) {
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "kv_dtype", "KV type %s is not built",
                        kr_dtype_name(p->kv_dtype));
    }
    if (p->invariant < KR_INVARIANT_DEFAULT || p->invariant > KR_INVARIANT_OFF) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "invariant", "invariant is %d, allowed are 0..2",
                        p->invariant);
    }
    if (p->attn_qk < KR_ATTN_QK_DEFAULT || p->attn_qk > KR_ATTN_QK_INT16) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "attn_qk", "attn_qk is %d, allowed are 0..3",
                        p->attn_qk);
    }
    if (p->kv_dtype == KR_DTYPE_I8 && p->attn_qk != KR_ATTN_QK_DEFAULT &&
        p->attn_qk != KR_ATTN_QK_INT16) {
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "attn_qk",
                        "a KV cache of int8 multiplies its keys by 16-bit integers only, "
                        "attn_qk %s is not built for it",
                        p->attn_qk == KR_ATTN_QK_F32 ? "f32" : "int8");
    }
    KR_TRY(kri_check_max("prefix_cache", p->prefix_cache, KR_PREFIX_CACHE_OFF, error));
    KR_TRY(kri_check_max("device", p->device, KR_DEVICE_CUDA, error));
    if (p->kv_dtype == KR_DTYPE_F8 && p->device == KR_DEVICE_CPU) {
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "kv_dtype",
                        "a KV cache of fp8 is not built for device cpu");
    }
    info->n_ctx = p->n_ctx ? p->n_ctx : n_ctx_train < N_CTX_DEFAULT ? n_ctx_train : N_CTX_DEFAULT;
    info->n_seqs = p->n_seqs ? p->n_seqs : 1;
    info->n_rows_max = p->n_rows_max ? p->n_rows_max : N_ROWS_DEFAULT;
    info->n_threads = p->n_threads ? p->n_threads : kri_cpu_count();
    info->kv_dtype = p->kv_dtype ? p->kv_dtype : KR_DTYPE_F16;
    info->device = p->device;
    return KR_OK;
}

/* Whether kv.bytes_max, where given, is enough for one token. */
static bool holds_a_token(kri_kv_params_t kv) {
    const uint64_t given = kv.bytes_max;
    uint64_t least = 0;
    kv.bytes_max = 0;
    kv.n_seqs = kv.n_ctx = kv.n_rows = 1;
    return given == 0 || (kri_kv_pool_bytes(&kv, &least) == KR_OK && given >= least);
}

/* Level, kernels and scratch of the CPU. */
static kr_status_t plan_cpu(const struct kr_model_s *model, const kr_session_params_t *params,
                            kr_session_info_t *info, kri_kernels_t *kernels, layout_t *layout,
                            kr_error_t *error) {
    KR_TRY(kri_cpu_kernels(params->isa, kernels, error));
    info->isa = kernels->isa;
    /* The matrix unit sums bf16 products in an order of its own. */
    if (params->invariant == KR_INVARIANT_ON) kernels->has_tiles = 0;
    info->is_invariant = !kernels->has_tiles;
    const bool fits = make_layout(model, info, kernels->has_tiles != 0, layout);
    info->scratch_bytes = layout->total;
    if (fits) return KR_OK;
    return KRI_FAIL(error, KR_E_LIMIT, "n_ctx", "session of %u x %u tokens is too large",
                    info->n_seqs, info->n_ctx);
}

static kr_status_t plan(const struct kr_model_s *model, const kr_session_params_t *params,
                        kr_session_info_t *info, kri_kernels_t *kernels, layout_t *layout,
                        kr_error_t *error) {
    kri_kv_params_t kv;
    KR_TRY(check_params(model, params, info, error));
    if (info->device == KR_DEVICE_CUDA) {
        KR_TRY(kri_session_cuda_plan(model, params, info, error));
        if (!make_device_layout(model, info, layout)) return KR_E_LIMIT; /* never: bounded */
    } else {
        KR_TRY(plan_cpu(model, params, info, kernels, layout, error));
    }
    kv_params(model, params, info, &kv);
    if (!holds_a_token(kv)) {
        return KRI_FAIL(error, KR_E_LIMIT, "kv_bytes_max",
                        "kv_bytes_max is %llu: that is not enough for one token",
                        (unsigned long long)kv.bytes_max);
    }
    if (kri_kv_pool_bytes(&kv, &info->kv_bytes) != KR_OK) {
        return KRI_FAIL(error, KR_E_LIMIT, "n_ctx", "session of %u x %u tokens is too large",
                        info->n_seqs, info->n_ctx);
    }
    if (info->device == KR_DEVICE_CPU) return KR_OK;
    return kri_kv_pool_device_bytes(&kv, &info->device_kv_bytes);
}

kr_status_t kri_session_plan(const struct kr_model_s *model, const kr_session_params_t *params,
                             kr_session_info_t *info, kr_error_t *error) {
    kri_kernels_t kernels;
    layout_t layout;
    return plan(model, params, info, &kernels, &layout, error);
}

static void bind_scratch(struct kr_session_s *s, const layout_t *l) {
    uint8_t *base = s->scratch;
    kri_batch_space_init(&s->space, base + l->space, s->info.n_rows_max, s->info.n_seqs);
    s->exec.n_threads = s->info.n_threads;
    if (s->cuda) {
        s->state.branch = (float *)(void *)(base + l->branch);
        return;
    }
    s->state = (kri_state_t){
        .x = (float *)(void *)(base + l->x), .branch = (float *)(void *)(base + l->branch),
        .qkv = (float *)(void *)(base + l->qkv), .attn = (float *)(void *)(base + l->attn),
        .cos_sin = {(float *)(void *)(base + l->cos_sin[0]),
                    (float *)(void *)(base + l->cos_sin[1])}};
    s->exec.kernels = &s->kernels;
    s->exec.attn_scratch = (float *)(void *)(base + l->attn_scratch);
    s->exec.own = (kri_exec_own_t *)(void *)(base + l->own);
    s->exec.normed = (float *)(void *)(base + l->normed);
    s->exec.ff = base + l->ff;
    s->exec.q8 = (kri_q8_block_t *)(void *)(base + l->q8);
    s->exec.tiles = s->kernels.has_tiles ? (uint16_t *)(void *)(base + l->tiles) : NULL;
}

kr_status_t kri_session_create(struct kr_model_s *model, const kr_session_params_t *params,
                               struct kr_session_s **out, kr_error_t *error) {
    struct kr_session_s *s = kri_calloc(1, sizeof(*s), "session");
    if (!s) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the session");
    kr_status_t status = KR_OK;
    layout_t layout;
    kri_kv_params_t kv;
    kri_kv_memory_t memory;
    s->info.struct_bytes = sizeof(s->info);
    KR_TRY_DONE(plan(model, params, &s->info, &s->kernels, &layout, error));
    status = kri_pool_shared(s->info.n_threads, &s->exec.pool);
    if (status != KR_OK) {
        KRI_FAIL(error, status, "n_threads", "cannot %s %u threads%s",
                 status == KR_E_UNSUPPORTED ? "pin" : "start", s->info.n_threads,
                 status == KR_E_UNSUPPORTED ? ": there are fewer cores" : "");
        goto done;
    }
    s->scratch = kri_pages_alloc(layout.total);
    s->scratch_bytes = layout.total;
    kv_params(model, params, &s->info, &kv);
    if (s->info.device == KR_DEVICE_CUDA) {
        KR_TRY_DONE(kri_session_cuda_create(model, &s->info, s->exec.pool, &s->cuda, &memory,
                                            error));
        kv.memory = &memory;
        s->info.isa = kri_session_cuda_level(s->cuda);
    }
    status = s->scratch ? kri_kv_pool_create(&kv, &s->kv) : KR_E_NOMEM;
    if (status == KR_E_NOMEM && s->cuda) {
        const kr_status_t why = kri_session_cuda_kv_status(s->cuda, error);
        if (why != KR_OK) {
            status = why;
            goto done;
        }
    }
    if (status != KR_OK) {
        KRI_FAIL(error, status, "n_ctx", "no memory for %llu bytes of KV and %zu of scratch",
                 (unsigned long long)s->info.kv_bytes, layout.total);
        goto done;
    }
    bind_scratch(s, &layout);
    kri_telemetry_retain(params->telemetry);
    s->telemetry = params->telemetry;
    s->exec.attn_qk = params->attn_qk;
    kri_model_retain(model);
    s->model = model;
    *out = s;
    s = NULL;
done:
    kri_session_destroy(s);
    return status;
}

void kri_session_destroy(struct kr_session_s *session) {
    if (!session) return;
    kri_kv_pool_destroy(session->kv);
    kri_session_cuda_destroy(session->cuda);
    if (session->scratch) kri_pages_free(session->scratch, session->scratch_bytes);
    kri_model_close(session->model);
    kr_telemetry_destroy(session->telemetry);
    kri_free(session);
}

void kri_session_info(const struct kr_session_s *session, kr_session_info_t *info) {
    *info = session->info;
}

/* The pass on the CPU's threads. */
static kr_status_t run_cpu(struct kr_session_s *s, const kri_step_t *step, float *logits) {
    s->exec.step = step;
    kr_status_t status =
        kri_weights_begin(s->model, s->exec.pool, s->exec.n_threads, step->cancel);
    if (status == KR_OK) {
        status = kri_forward_run(s->model, &s->exec, &s->state, logits);
        kri_weights_end(s->model);
    }
    s->exec.step = NULL;
    return status;
}

static kr_status_t run_step(struct kr_session_s *s, const kri_step_t *step, float *logits,
                            kr_error_t *error) {
    const uint64_t begin_ns = kri_clock_ns();
    const kr_status_t status =
        s->cuda ? kri_session_cuda_run(s->cuda, step, logits, s->state.branch, error)
                : run_cpu(s, step, logits);
    if (status == KR_E_CANCELLED) {
        return KRI_FAIL(error, status, NULL, "decoding was cancelled");
    }
    if (status != KR_OK && status != KR_E_NUMERIC) return status; /* the device has said why */
    const bool is_decode = step->n_rows == step->n_seqs;
    kri_telemetry_record_ns(s->telemetry, is_decode ? KRI_METRIC_decode : KRI_METRIC_prefill,
                            kri_clock_ns() - begin_ns);
    if (status == KR_OK) return KR_OK;
    return KRI_FAIL(error, status, step->n_out_rows > 0 ? "logits" : "hidden",
                    "the model computed a value that is not finite");
}

kr_status_t kri_session_run(struct kr_session_s *s, const kri_step_t *step, float *logits,
                            kr_error_t *error) {
    kri_step_t own = *step;
    if (!own.cancel) own.cancel = &s->cancel;
    __atomic_store_n(&s->cancel, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&s->running, 1, __ATOMIC_RELEASE);
    const kr_status_t status = run_step(s, &own, logits, error);
    __atomic_store_n(&s->running, 0, __ATOMIC_RELEASE);
    return status;
}

bool kri_session_has_argmax(const struct kr_session_s *session) { return session->cuda != NULL; }

/* A session is not told what its rows are: single ones count as generated. An engine knows, and
 * counts for itself. */
static void count_rows(struct kr_session_s *s, const kri_step_t *step) {
    uint32_t n_single = 0;
    for (uint32_t i = 0; i < step->n_seqs; i++) n_single += step->seqs[i].n_rows == 1;
    kri_telemetry_add(s->telemetry, KRI_METRIC_tokens_generated, n_single);
    kri_telemetry_add(s->telemetry, KRI_METRIC_tokens_prompt, step->n_rows - n_single);
}

kr_status_t kri_session_decode(struct kr_session_s *s, const kr_batch_t *batch, float *logits,
                               kr_error_t *error) {
    kri_step_t step;
    KR_TRY(kri_batch_check(batch, logits, s->kv, &s->info, s->model->hp.n_vocab, &s->space,
                           error));
    KR_TRY(kri_batch_prepare(batch, s->kv, &s->space, &step, error));
    const kr_status_t status = kri_session_run(s, &step, logits, error);
    if (status == KR_OK || status == KR_E_NUMERIC) count_rows(s, &step);
    if (status == KR_OK && step.n_hidden_rows > 0) {
        memcpy(batch->hidden, kri_session_hidden(s),
               (size_t)step.n_hidden_rows * s->model->hp.n_embd * sizeof(float));
    }
    for (uint32_t i = 0; i < step.n_seqs; i++) {
        const kri_step_seq_t *q = &step.seqs[i];
        if (status == KR_OK) kri_kv_pool_commit(s->kv, q->seq, q->pos_begin + q->n_rows);
        else (void)kri_kv_pool_truncate(s->kv, q->seq, q->pos_begin); /* nothing happened */
    }
    return status;
}

void kri_session_cancel(struct kr_session_s *session) {
    if (__atomic_load_n(&session->running, __ATOMIC_ACQUIRE)) {
        __atomic_store_n(&session->cancel, 1, __ATOMIC_RELAXED);
    }
}

kr_status_t kri_session_length(const struct kr_session_s *session, uint32_t seq,
                               uint32_t *n_tokens) {
    if (seq >= session->info.n_seqs) return KR_E_INVALID_ARG;
    *n_tokens = kri_kv_pool_length(session->kv, seq);
    return KR_OK;
}

kr_status_t kri_session_truncate(struct kr_session_s *session, uint32_t seq, uint32_t n_tokens) {
    if (seq >= session->info.n_seqs || n_tokens > kri_kv_pool_length(session->kv, seq)) {
        return KR_E_INVALID_ARG;
    }
    return kri_kv_pool_truncate(session->kv, seq, n_tokens);
}

kr_status_t kri_session_fork(struct kr_session_s *session, uint32_t src, uint32_t dst,
                             uint32_t n_tokens) {
    if (src >= session->info.n_seqs || dst >= session->info.n_seqs) return KR_E_INVALID_ARG;
    return kri_kv_pool_fork(session->kv, src, dst, n_tokens);
}

kri_kv_pool_t *kri_session_kv(struct kr_session_s *session) { return session->kv; }

const float *kri_session_hidden(const struct kr_session_s *session) {
    return session->state.branch;
}
