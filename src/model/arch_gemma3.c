/* arch_gemma3.c: Gemma 3 text models (Gemma Team 2025): embeddings scaled by sqrt(n_embd), norms
 * before and after each block (GGUF stores 1 + w), RMSNorm on q and k, five sliding-window layers
 * with rotary base 10000 to one global layer with its own base and optional linear scaling, GeGLU,
 * optional soft caps on attention and logits. */
#include <math.h>

#include "base/error.h"
#include "model/model.h"

static const kri_key_row_t keys[] = {
    KRI_KEYS_TRANSFORMER,
    KRI_KEY("attention.sliding_window", U32, window, 0, 0, 1 << 30),
    KRI_KEY("attention.sliding_window_pattern", U32, window_period, 0, 1, 1024),
    KRI_KEY("attn_logit_softcapping", F32, attn_softcap, 0, 0, 1e6),
    KRI_KEY("final_logit_softcapping", F32, final_softcap, 0, 0, 1e6),
    KRI_KEY("rope.freq_base_swa", F32, rope_base_local, 0, 1e-3, 1e12),
};

static const kri_tensor_row_t tensors[] = {
    KRI_MODEL_EMBED("token_embd.weight", KRI_DIM_VOCAB, KRI_DIM_EMBD),
    KRI_MODEL_VECTOR("output_norm.weight", output_norm, KRI_DIM_EMBD, 1),
    KRI_MODEL_MATRIX("output.weight", head, KRI_DIM_VOCAB, KRI_DIM_EMBD, 0),
    KRI_LAYER_VECTOR("attn_norm.weight", attn_norm, KRI_DIM_EMBD),
    KRI_LAYER_MATRIX("attn_q.weight", qkv, 0, KRI_DIM_Q, KRI_DIM_EMBD),
    KRI_LAYER_MATRIX("attn_k.weight", qkv, 1, KRI_DIM_KV, KRI_DIM_EMBD),
    KRI_LAYER_MATRIX("attn_v.weight", qkv, 2, KRI_DIM_KV, KRI_DIM_EMBD),
    KRI_LAYER_VECTOR("attn_q_norm.weight", q_norm, KRI_DIM_HEAD),
    KRI_LAYER_VECTOR("attn_k_norm.weight", k_norm, KRI_DIM_HEAD),
    KRI_LAYER_MATRIX("attn_output.weight", attn_out, 0, KRI_DIM_EMBD, KRI_DIM_Q),
    KRI_LAYER_VECTOR("post_attention_norm.weight", post_attn_norm, KRI_DIM_EMBD),
    KRI_LAYER_VECTOR("ffn_norm.weight", ffn_norm, KRI_DIM_EMBD),
    KRI_LAYER_MATRIX("ffn_gate.weight", gate_up, 0, KRI_DIM_FF, KRI_DIM_EMBD),
    KRI_LAYER_MATRIX("ffn_up.weight", gate_up, 1, KRI_DIM_FF, KRI_DIM_EMBD),
    KRI_LAYER_MATRIX("ffn_down.weight", ffn_down, 0, KRI_DIM_EMBD, KRI_DIM_FF),
    KRI_LAYER_VECTOR("post_ffw_norm.weight", post_ffn_norm, KRI_DIM_EMBD),
};

static kr_status_t forward(const struct kr_model_s *m, const kri_exec_t *e, const kri_state_t *s,
                           float *logits) {
    const kri_hparams_t *hp = &m->hp;
    const uint32_t n = e->step->n_rows, d = hp->n_embd;
    const size_t qkv_width = (size_t)(hp->n_heads + 2 * hp->n_kv_heads) * hp->head_dim;
    kri_op_embed(e, &m->embed, sqrtf((float)d), s->x);
    kri_op_rope_table(e, hp->rope_base, hp->rope_scale, NULL, hp->n_rot, s->cos_sin[0]);
    kri_op_rope_table(e, hp->rope_base_local, 1.0f, NULL, hp->n_rot, s->cos_sin[1]);
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        const kri_layer_t *l = &m->layers[i];
        const kri_ffn_desc_t ffn = kri_ffn_desc(m, l, KRI_ACT_GELU_TANH);
        kri_attn_desc_t attn = kri_attn_desc(m, l, false, hp->attn_softcap);
        /* The 27B model (62 layers) divides by sqrt(n_embd / n_heads), the others by
         * sqrt(head_dim); the file has no key for it. */
        if (hp->n_layers == 62) attn.scale = 1.0f / sqrtf((float)(d / hp->n_heads));
        KR_TRY(kri_exec_continue(e));

        kri_op_norm_linear(e, &l->qkv, s->x, l->attn_norm, hp->norm_eps, NULL, n, s->qkv,
                           qkv_width);
        kri_op_rope_append(e, &attn, s->cos_sin[l->is_local], s->qkv);
        kri_op_attention(e, &attn, s->qkv, s->attn);
        kri_op_linear(e, &l->attn_out, s->attn, n, false, s->branch, d);
        kri_op_norm_add(e, s->branch, l->post_attn_norm, hp->norm_eps, n, d, s->x);

        kri_op_ffn(e, &ffn, s->x, n, false, s->branch);
        kri_op_norm_add(e, s->branch, l->post_ffn_norm, hp->norm_eps, n, d, s->x);
    }
    kri_forward_outputs(m, e, s, logits);
    return KR_OK;
}

const kri_arch_t kri_arch_gemma3 = KRI_ARCH_TABLE("gemma3", keys, tensors, forward);
