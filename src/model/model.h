/* model.h: an opened model: hyper-parameters, bound weights, tokenizer, and its forward pass.
 * A model is immutable after kri_model_open and shared by reference count. An architecture is one
 * file (arch_<name>.c: table of keys, table of tensors, forward function) and one row in
 * archs.def; binder.c turns its tables into bound weights, so an architecture contains no loading
 * code. No back-end is named here: the forward pass calls the ops of ops/exec.h. */
#ifndef KRI_MODEL_MODEL_H
#define KRI_MODEL_MODEL_H

#include "kr.h"
#include "model/gguf.h"
#include "ops/exec.h"
#include "text/text.h"

/* ---- what the architecture's keys fill ------------------------------------------------------ */

typedef struct kri_hparams_s {
    uint32_t n_layers, n_embd, n_ff, n_ctx_train, n_vocab;
    uint32_t n_heads, n_kv_heads;   /* n_kv_heads: 0 in the file = n_heads */
    uint32_t head_dim, value_dim;   /* 0 in the file = n_embd / n_heads */
    uint32_t n_rot;                 /* rotated dims of a head; 0 in the file = head_dim */
    uint32_t window;                /* sliding window of local layers, 0 = none */
    uint32_t window_period;         /* every window_period-th layer is global */
    uint32_t n_experts;             /* refused unless 0 */
    float norm_eps, rope_base, rope_base_local, rope_scale;
    float attn_softcap, final_softcap; /* 0 = none */
} kri_hparams_t;

/* A weight matrix [n_out, n_in] or several side by side; a vector is f32 in the model's arena. */
typedef struct kri_layer_s {
    kri_weight_t qkv, attn_out, gate_up, ffn_down;
    const float *attn_norm, *ffn_norm, *q_norm, *k_norm, *post_attn_norm, *post_ffn_norm;
    uint32_t kv_group, layer_in_group;
    uint32_t is_local;              /* 1: sliding window */
} kri_layer_t;

typedef struct kri_kv_desc_s { uint32_t n_layers, n_kv_heads, head_dim, window; } kri_kv_desc_t;

/* ---- activations of a step; sizes in floats are given by kri_state_plan ------------------- */

typedef struct kri_state_s {
    float *x;          /* [n_rows, n_embd] residual stream */
    float *branch;     /* [n_rows, n_embd] output of a block before its norm; in the end the final
                        * hidden states [n_hidden_rows, n_embd] */
    float *qkv;        /* [n_rows, (n_heads + 2 n_kv_heads) * head_dim] */
    float *attn;       /* [n_rows, n_heads * head_dim] */
    float *cos_sin[2]; /* [n_rows, n_rot / 2, 2]: global, local rotary table */
} kri_state_t;

struct kr_model_s;
/* Runs the step, writes logits [n_out_rows, n_vocab] and state->branch. KR_E_CANCELLED between
 * layers. Called on every thread of a team (exec.h), so it is straight code over ops with local
 * state only. */
typedef kr_status_t kri_forward_fn(const struct kr_model_s *model, const kri_exec_t *exec,
                                   const kri_state_t *state, float *logits);

/* ---- architecture tables ------------------------------------------------------------------ */

typedef enum kri_key_type_e { KRI_KEY_U32, KRI_KEY_F32 } kri_key_type_t;
/* One hyper-parameter: "<arch>.<key>" into a field of kri_hparams_t. */
typedef struct kri_key_row_s {
    const char *key;
    kri_key_type_t type;
    size_t offset;
    uint32_t required;
    double value_min, value_max;
} kri_key_row_t;
#define KRI_KEY(key, type, field, required, min, max)                                            \
    { key, KRI_KEY_##type, offsetof(kri_hparams_t, field), required, min, max }

/* The keys that every decoder-only transformer has. */
#define KRI_KEYS_TRANSFORMER                                                                     \
    KRI_KEY("block_count", U32, n_layers, 1, 1, 1024),                                           \
    KRI_KEY("embedding_length", U32, n_embd, 1, 1, 1 << 20),                                     \
    KRI_KEY("feed_forward_length", U32, n_ff, 1, 1, 1 << 22),                                    \
    KRI_KEY("context_length", U32, n_ctx_train, 1, 1, 1 << 30),                                  \
    KRI_KEY("attention.head_count", U32, n_heads, 1, 1, 1024),                                   \
    KRI_KEY("attention.head_count_kv", U32, n_kv_heads, 0, 1, 1024),                             \
    KRI_KEY("attention.key_length", U32, head_dim, 0, 2, KRI_HEAD_DIM_MAX),                      \
    KRI_KEY("attention.value_length", U32, value_dim, 0, 2, KRI_HEAD_DIM_MAX),                   \
    KRI_KEY("attention.layer_norm_rms_epsilon", F32, norm_eps, 1, 1e-12, 0.5),                   \
    KRI_KEY("rope.dimension_count", U32, n_rot, 0, 2, KRI_HEAD_DIM_MAX),                         \
    KRI_KEY("rope.freq_base", F32, rope_base, 0, 1e-3, 1e12),                                    \
    KRI_KEY("vocab_size", U32, n_vocab, 0, 1, 4 << 20)

typedef enum kri_dim_e { KRI_DIM_NONE, KRI_DIM_EMBD, KRI_DIM_Q, KRI_DIM_KV, KRI_DIM_FF,
                         KRI_DIM_HEAD, KRI_DIM_VOCAB, KRI_DIM_ROT_HALF } kri_dim_t;
typedef enum kri_bind_e { KRI_BIND_MATRIX, KRI_BIND_BIAS, KRI_BIND_VECTOR,
                          KRI_BIND_EMBED } kri_bind_t;
/* One tensor: its name ("blk.N." is put before it when per_layer), where it goes, its shape. */
typedef struct kri_tensor_row_s {
    const char *name;
    kri_bind_t bind;
    uint32_t per_layer;
    size_t offset;         /* field of kri_layer_t or of struct kr_model_s */
    uint32_t part;         /* of a fused matrix */
    kri_dim_t n_out, n_in; /* vectors: n_out = KRI_DIM_NONE */
    uint32_t required;
} kri_tensor_row_t;
#define KRI_LAYER_MATRIX(name, field, part, n_out, n_in)                                         \
    { name, KRI_BIND_MATRIX, 1, offsetof(kri_layer_t, field), part, n_out, n_in, 1 }
#define KRI_LAYER_BIAS(name, field, part, n, required)                                           \
    { name, KRI_BIND_BIAS, 1, offsetof(kri_layer_t, field), part, KRI_DIM_NONE, n, required }
#define KRI_LAYER_VECTOR(name, field, n)                                                         \
    { name, KRI_BIND_VECTOR, 1, offsetof(kri_layer_t, field), 0, KRI_DIM_NONE, n, 1 }
#define KRI_MODEL_VECTOR(name, field, n, required)                                               \
    { name, KRI_BIND_VECTOR, 0, offsetof(struct kr_model_s, field), 0, KRI_DIM_NONE, n, required }
#define KRI_MODEL_MATRIX(name, field, n_out, n_in, required)                                     \
    { name, KRI_BIND_MATRIX, 0, offsetof(struct kr_model_s, field), 0, n_out, n_in, required }
#define KRI_MODEL_EMBED(name, n_out, n_in)                                                       \
    { name, KRI_BIND_EMBED, 0, offsetof(struct kr_model_s, embed), 0, n_out, n_in, 1 }

typedef struct kri_arch_s {
    const char *name;              /* general.architecture, and prefix of its keys */
    const kri_key_row_t *keys;
    uint32_t n_keys;
    const kri_tensor_row_t *tensors;
    uint32_t n_tensors;
    kri_forward_fn *forward;
} kri_arch_t;
#define KRI_ARCH_TABLE(name, keys, tensors, forward)                                             \
    {                                                                                            \
        name, keys, (uint32_t)(sizeof(keys) / sizeof((keys)[0])), tensors,                       \
            (uint32_t)(sizeof(tensors) / sizeof((tensors)[0])), forward                          \
    }
#define KR_ARCH(name) extern const kri_arch_t kri_arch_##name;
#include "model/archs.def"

/* ---- the model ---------------------------------------------------------------------------- */

/* A matrix in the block of packed weights, and where it comes from. */
typedef struct kri_packed_tensor_s {
    const kri_gguf_tensor_t *source;
    kri_weight_part_t *part;
    size_t n_in;
    size_t offset, n_bytes; /* in the block; tensors lie in order, without gaps */
} kri_packed_tensor_t;

struct kr_model_s {
    uint32_t n_refs;               /* atomic */
    uint32_t vocab_only;
    kri_gguf_t *gguf;
    const kri_arch_t *arch;
    kri_hparams_t hp;
    kri_layer_t *layers;           /* [n_layers] */
    kri_tensor_t embed;            /* [n_vocab, n_embd], file blocks */
    kri_weight_t head;             /* [n_vocab, n_embd]; the embedding where the file ties them */
    const float *output_norm;      /* [n_embd] */
    const float *rope_factors;     /* [n_rot / 2] or NULL */
    uint32_t n_kv_groups;
    kri_kv_desc_t kv_groups[KRI_KV_GROUPS_MAX];
    kr_arena_t arena;              /* layers and vectors */
    uint8_t *packed;               /* private block of pages; unused where the image is mapped */
    size_t packed_bytes;
    kri_packed_tensor_t *packed_tensors; /* [n_packed_tensors] */
    uint32_t n_packed_tensors;
    struct kri_image_s *image;     /* packed_image.h; NULL: nothing is kept between runs */
    void *on_device;               /* the weights on a device, made and guarded by the engine */
    void (*free_on_device)(void *on_device);
    uint64_t bytes_per_token, n_params;
    kri_tokenizer_t *tokenizer;
    kri_template_t *chat_template; /* NULL: no source, or the error below */
    char *chat_template_source;    /* C string or NULL */
    kr_error_t chat_template_error; /* why chat_template is NULL although there is a source */
    char *name;                    /* C string */
    kr_token_t token_bos, token_eos;
    uint32_t add_bos;
};

/* As kr_model_open; the kernels of packing are portable C, no back-end is chosen here. */
kr_status_t kri_model_open(const char *path, const kr_model_params_t *params,
                           struct kr_model_s **model, kr_error_t *error);
/* The same over bytes in memory (fuzzing); borrowed until close. */
kr_status_t kri_model_open_memory(const void *data, size_t n_bytes, struct kr_model_s **model,
                                  kr_error_t *error);
void kri_model_retain(struct kr_model_s *model);
void kri_model_close(struct kr_model_s *model);
/* The chat template. KR_E_NOT_FOUND: the model has none; else what is wrong with it. */
kr_status_t kri_model_template(const struct kr_model_s *model, const kri_template_t **tmpl,
                               kr_error_t *error);

/* Steps of opening, in order. */
kr_status_t kri_model_read_hparams(struct kr_model_s *model, kr_error_t *error);
kr_status_t kri_model_bind(struct kr_model_s *model, const kr_model_params_t *params,
                           kr_error_t *error);
kr_status_t kri_model_load_text(struct kr_model_s *model, kr_error_t *error);
/* Packed weights: from the image kept by an earlier run, or packed now. */
kr_status_t kri_weights_load(struct kr_model_s *model, const kr_model_params_t *params,
                             kr_error_t *error);
/* Packs one matrix into the private block and binds it there. params (for progress) may be NULL;
 * KR_E_CANCELLED only with it. */
kr_status_t kri_weights_pack(struct kr_model_s *model, const kri_packed_tensor_t *tensor,
                             kri_pool_t *pool, uint32_t n_threads,
                             const kr_model_params_t *params, kr_error_t *error);

/* Around every forward pass. The first begin checks mapped weights against their hashes, on all
 * threads, and packs anew what is damaged; later ones cost two atomic additions. KR_E_CANCELLED
 * when *cancel (may be NULL) becomes non-zero; end follows on KR_OK only. Between the two the
 * background thread of the image rests. Any thread. */
kr_status_t kri_weights_begin(struct kr_model_s *model, kri_pool_t *pool, uint32_t n_threads,
                              const uint32_t *cancel);
void kri_weights_end(struct kr_model_s *model);

/* Floats of each buffer for n_rows rows; false on overflow. */
typedef struct kri_state_plan_s {
    size_t x, branch, qkv, attn, cos_sin; /* floats of each buffer */
    size_t normed, ff;                    /* floats of kri_exec_t's buffers of these names */
    size_t n_in_max;                      /* widest input of a linear */
} kri_state_plan_t;
bool kri_state_plan(const struct kr_model_s *model, uint32_t n_rows, kri_state_plan_t *plan);

/* ---- pieces that forward functions share --------------------------------------------------- */

/* Runs the model's forward function on exec's threads. KR_E_NUMERIC when a logit or a hidden state
 * is not finite: nothing computed from it can be trusted. */
kr_status_t kri_forward_run(const struct kr_model_s *model, const kri_exec_t *exec,
                            const kri_state_t *state, float *logits);
/* No NaN and no infinity among x [n]. */
bool kri_all_finite(const float *x, size_t n);
/* Attention of one layer; softcap 0 = none. */
kri_attn_desc_t kri_attn_desc(const struct kr_model_s *model, const kri_layer_t *layer,
                              bool rope_pair, float softcap);
/* Feed-forward block of one layer, with its norm before it. */
kri_ffn_desc_t kri_ffn_desc(const struct kr_model_s *model, const kri_layer_t *layer,
                            kri_act_t act);
/* What a step gives: final norm, head and soft cap of the rows in out_rows; final norm alone of
 * those in hidden_rows. */
void kri_forward_outputs(const struct kr_model_s *model, const kri_exec_t *exec,
                         const kri_state_t *state, float *logits);

#endif
