/* forward.c: what the forward passes of all architectures share. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "model/model.h"

typedef struct run_ctx_s {
    const struct kr_model_s *model;
    const kri_state_t *state;
    float *logits;
    uint32_t n_bad; /* threads that found a value that is not finite; atomic */
} run_ctx_t;

bool kri_all_finite(const float *x, size_t n) {
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof(bits));
        bad |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !bad;
}

/* This thread's part of x [n]. */
static void check_finite(run_ctx_t *run, const kri_exec_t *exec, const float *x, uint64_t n) {
    uint64_t begin, end;
    kri_split(n, 16, exec->thread_index, exec->n_threads, &begin, &end);
    if (begin < end && !kri_all_finite(x + begin, (size_t)(end - begin))) {
        __atomic_fetch_add(&run->n_bad, 1, __ATOMIC_RELAXED);
    }
}

static kr_status_t run_thread(const kri_exec_t *exec, void *ctx) {
    run_ctx_t *run = ctx;
    const kri_hparams_t *hp = &run->model->hp;
    const kri_step_t *step = exec->step;
    KR_TRY(run->model->arch->forward(run->model, exec, run->state, run->logits));
    check_finite(run, exec, run->logits, (uint64_t)step->n_out_rows * hp->n_vocab);
    check_finite(run, exec, run->state->branch, (uint64_t)step->n_hidden_rows * hp->n_embd);
    return KR_OK;
}

kr_status_t kri_forward_run(const struct kr_model_s *model, const kri_exec_t *exec,
                            const kri_state_t *state, float *logits) {
    run_ctx_t run = {model, state, logits, 0};
    KR_TRY(kri_exec_team(exec, run_thread, &run));
    return run.n_bad ? KR_E_NUMERIC : KR_OK;
}

kri_attn_desc_t kri_attn_desc(const struct kr_model_s *model, const kri_layer_t *layer,
                              bool rope_pair, float softcap) {
    const kri_hparams_t *hp = &model->hp;
    return (kri_attn_desc_t){
        .group = layer->kv_group, .layer_in_group = layer->layer_in_group,
        .n_heads = hp->n_heads, .n_kv_heads = hp->n_kv_heads, .head_dim = hp->head_dim,
        .n_rot = hp->n_rot, .rope_pair = rope_pair,
        .q_norm = layer->q_norm, .k_norm = layer->k_norm, .norm_eps = hp->norm_eps,
        .scale = 1.0f / sqrtf((float)hp->head_dim), .softcap = softcap,
    };
}

kri_ffn_desc_t kri_ffn_desc(const struct kr_model_s *model, const kri_layer_t *layer,
                            kri_act_t act) {
    return (kri_ffn_desc_t){
        .gate_up = &layer->gate_up, .down = &layer->ffn_down,
        .norm = layer->ffn_norm, .norm_eps = model->hp.norm_eps, .act = act,
    };
}

static void forward_logits(const struct kr_model_s *model, const kri_exec_t *exec,
                           const kri_state_t *state, float *logits) {
    const kri_step_t *step = exec->step;
    const uint32_t n_out = step->n_out_rows, n_vocab = model->hp.n_vocab;
    /* Only the wanted rows meet the head: most of a prompt's rows have no use for logits. */
    kri_op_norm_linear(exec, &model->head, state->x, model->output_norm, model->hp.norm_eps,
                       step->out_rows, n_out, logits, n_vocab);
    if (model->hp.final_softcap > 0.0f) {
        kri_op_softcap(exec, model->hp.final_softcap, n_out, n_vocab, logits);
    }
}

void kri_forward_outputs(const struct kr_model_s *model, const kri_exec_t *exec,
                         const kri_state_t *state, float *logits) {
    const kri_step_t *step = exec->step;
    if (step->n_out_rows > 0) forward_logits(model, exec, state, logits);
    if (step->n_hidden_rows == 0) return;
    kri_op_rms_norm(exec, state->x, model->output_norm, model->hp.norm_eps, step->hidden_rows,
                    step->n_hidden_rows, model->hp.n_embd, state->branch);
}

bool kri_state_plan(const struct kr_model_s *model, uint32_t n_rows, kri_state_plan_t *plan) {
    const kri_hparams_t *hp = &model->hp;
    const size_t q = (size_t)hp->n_heads * hp->head_dim;
    const size_t kv = (size_t)hp->n_kv_heads * hp->head_dim;
    kri_state_plan_t p = {0};
    size_t qkv = 0;
    if (!kri_add_size(q, 2 * kv, &qkv)) return false;
    if (!kri_mul_size(n_rows, hp->n_embd, &p.x)) return false;
    p.branch = p.normed = p.x;
    if (!kri_mul_size(n_rows, qkv, &p.qkv) || !kri_mul_size(n_rows, q, &p.attn) ||
        !kri_mul_size(n_rows, hp->n_ff, &p.ff) || !kri_mul_size(n_rows, hp->n_rot, &p.cos_sin)) {
        return false;
    }
    p.n_in_max = hp->n_embd;
    if (q > p.n_in_max) p.n_in_max = q;
    if (hp->n_ff > p.n_in_max) p.n_in_max = hp->n_ff;
    *plan = p;
    return true;
}
