/* arch_llama.c: Llama (Touvron et al. 2023): RMSNorm before each block, grouped-query attention
 * with rotary positions on interleaved pairs (GGUF stores q and k rows permuted for that), SwiGLU.
 * Also Llama 2, Llama 3 (rope_freqs factors), SmolLM2, Mistral without a sliding window. */
#include "base/error.h"
#include "model/model.h"

static const kri_key_row_t keys[] = {
    KRI_KEYS_TRANSFORMER,
    KRI_KEY("expert_count", U32, n_experts, 0, 0, 0),
};

static const kri_tensor_row_t tensors[] = {
    KRI_MODEL_EMBED("token_embd.weight", KRI_DIM_VOCAB, KRI_DIM_EMBD),
    KRI_MODEL_VECTOR("output_norm.weight", output_norm, KRI_DIM_EMBD, 1),
    KRI_MODEL_MATRIX("output.weight", head, KRI_DIM_VOCAB, KRI_DIM_EMBD, 0),
    KRI_MODEL_VECTOR("rope_freqs.weight", rope_factors, KRI_DIM_ROT_HALF, 0),
    KRI_LAYER_VECTOR("attn_norm.weight", attn_norm, KRI_DIM_EMBD),
    KRI_LAYER_MATRIX("attn_q.weight", qkv, 0, KRI_DIM_Q, KRI_DIM_EMBD),
    KRI_LAYER_MATRIX("attn_k.weight", qkv, 1, KRI_DIM_KV, KRI_DIM_EMBD),
    KRI_LAYER_MATRIX("attn_v.weight", qkv, 2, KRI_DIM_KV, KRI_DIM_EMBD),
    KRI_LAYER_MATRIX("attn_output.weight", attn_out, 0, KRI_DIM_EMBD, KRI_DIM_Q),
    KRI_LAYER_VECTOR("ffn_norm.weight", ffn_norm, KRI_DIM_EMBD),
    KRI_LAYER_MATRIX("ffn_gate.weight", gate_up, 0, KRI_DIM_FF, KRI_DIM_EMBD),
    KRI_LAYER_MATRIX("ffn_up.weight", gate_up, 1, KRI_DIM_FF, KRI_DIM_EMBD),
    KRI_LAYER_MATRIX("ffn_down.weight", ffn_down, 0, KRI_DIM_EMBD, KRI_DIM_FF),
};

static kr_status_t forward(const struct kr_model_s *m, const kri_exec_t *e, const kri_state_t *s,
                           float *logits) {
    const kri_hparams_t *hp = &m->hp;
    const uint32_t n = e->step->n_rows, d = hp->n_embd;
    const size_t qkv_width = (size_t)(hp->n_heads + 2 * hp->n_kv_heads) * hp->head_dim;
    kri_op_embed(e, &m->embed, 1.0f, s->x);
    kri_op_rope_table(e, hp->rope_base, hp->rope_scale, m->rope_factors, hp->n_rot,
                      s->cos_sin[0]);
    for (uint32_t i = 0; i < hp->n_layers; i++) {
        const kri_layer_t *l = &m->layers[i];
        const kri_attn_desc_t attn = kri_attn_desc(m, l, true, 0.0f);
        const kri_ffn_desc_t ffn = kri_ffn_desc(m, l, KRI_ACT_SILU);
        KR_TRY(kri_exec_continue(e));

        kri_op_norm_linear(e, &l->qkv, s->x, l->attn_norm, hp->norm_eps, NULL, n, s->qkv,
                           qkv_width);
        kri_op_rope_append(e, &attn, s->cos_sin[0], s->qkv);
        kri_op_attention(e, &attn, s->qkv, s->attn);
        kri_op_linear(e, &l->attn_out, s->attn, n, true, s->x, d);

        kri_op_ffn(e, &ffn, s->x, n, true, s->x);
    }
    kri_forward_outputs(m, e, s, logits);
    return KR_OK;
}

const kri_arch_t kri_arch_llama = KRI_ARCH_TABLE("llama", keys, tensors, forward);
