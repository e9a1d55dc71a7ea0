/* exec.h: ops as a model's forward pass sees them: whole batches, split over threads of the CPU or
 * given to another back-end (kri_exec_ops_t).
 * Each op states its shapes; row strides are the shape's last dimension unless given. Nothing here
 * allocates.
 *
 * A forward pass runs as a team (kri_exec_team): every thread executes the same straight code
 * with its own kri_exec_t, calls every op with the same arguments, and each op returns with a
 * barrier behind it, so that the next one may read what all threads wrote. Without a team an op
 * forks and joins the pool by itself. The bits are the same either way. */
#ifndef KRI_OPS_EXEC_H
#define KRI_OPS_EXEC_H

#include <stdbool.h>

#include "base/threads.h"
#include "ops/kernels.h"
#include "ops/step.h"
#include "tensor/dtype.h"

/* A matrix made of parts that are computed in one op and land side by side (q, k, v; gate, up).
 * Parts keep their own element type. rank / n_ranks is the seam for splitting rows over devices;
 * only 0 / 1 is accepted by the binder today. */
#define KRI_WEIGHT_PARTS_MAX 3u
typedef struct kri_weight_part_s {
    kr_dtype_t dtype;
    uint32_t n_out;         /* rows */
    uint32_t out_offset;    /* first column in the output row */
    const uint8_t *packed;  /* pack.h layout */
    size_t group_bytes;
    const float *bias;      /* [n_out] or NULL */
} kri_weight_part_t;
typedef struct kri_weight_s {
    uint32_t n_in, n_out;   /* n_out: all parts */
    uint32_t n_parts;
    uint32_t rank, n_ranks;
    kri_weight_part_t parts[KRI_WEIGHT_PARTS_MAX];
} kri_weight_t;

/* Rows that every thread prepares for itself, because that costs less than a barrier. */
#define KRI_OWN_ITEMS 8192u
/* Gate (and up) values of one pass of a thread. */
#define KRI_OWN_GATED 8192u
/* Buffers of one thread; 64-byte aligned, and so is the size. */
typedef struct kri_exec_own_s {
    kri_q8_block_t q8[KRI_OWN_ITEMS / KRI_Q8_ITEMS];
    float f32[KRI_OWN_ITEMS];
    float gate[KRI_OWN_GATED], up[KRI_OWN_GATED];
} kri_exec_own_t;

struct kri_exec_ops_s;
typedef struct kri_exec_s {
    const struct kri_exec_ops_s *ops; /* of another back-end; NULL: threads of the CPU, and all
                                       * fields below but step are of theirs */
    void *device;           /* the ops' own; see there */
    const kri_kernels_t *kernels;
    kri_pool_t *pool;
    uint32_t n_threads;
    uint32_t thread_index;  /* this view's thread of the team; 0 without one */
    kri_team_t *team;       /* NULL: ops fork and join */
    const kri_step_t *step;
    float *attn_scratch;    /* n_threads * KRI_ATTN_THREAD_FLOATS: [n_threads]
                             * [KRI_ATTN_SCRATCH_FLOATS], then partial results of attention */
    int32_t attn_qk;        /* KR_ATTN_QK_*: q.k of attention in floats or integers */
    kri_exec_own_t *own;    /* [n_threads] */
    kri_q8_block_t *q8;     /* [n_rows_max][n_in_max / 32]: input of the linear under way */
    float *normed;          /* [n_rows_max][n_embd]: the same where weights are floats */
    void *ff;               /* [n_rows_max][n_ff]: gated activations: floats, q8 blocks, tiles */
    uint16_t *tiles;        /* [n_rows_max up to 16][n_embd or n_heads * head_dim]: input of the
                             * linear under way for the matrix unit; NULL without one */
} kri_exec_t;

typedef kr_status_t kri_exec_fn(const kri_exec_t *exec, void *ctx);
/* Runs fn on every thread of a team over exec->pool; its exec differs from the given one in
 * team, thread_index and n_threads. All threads must return the same; that is the result. */
kr_status_t kri_exec_team(const kri_exec_t *exec, kri_exec_fn *fn, void *ctx);
/* For a team's thread: KR_E_CANCELLED when the step had been asked to stop at the end of the last
 * op; the same on all threads. */
kr_status_t kri_exec_continue(const kri_exec_t *exec);

/* out [n_tokens, n_embd] = scale * table[token]; table [n_vocab, n_embd] in file blocks. */
void kri_op_embed(const kri_exec_t *exec, const kri_tensor_t *table, float scale, float *out);
/* out [n_rows, n] = rms_norm(x [.., n]) * w [n]. rows [n_rows]: which rows of x are read; NULL =
 * the first n_rows, and out may be x. */
void kri_op_rms_norm(const kri_exec_t *exec, const float *x, const float *w, float eps,
                     const uint32_t *rows, uint32_t n_rows, uint32_t n, float *out);
/* x [n_rows, n] += rms_norm(branch [n_rows, n]) * w [n]; overwrites branch. */
void kri_op_norm_add(const kri_exec_t *exec, float *branch, const float *w, float eps,
                     uint32_t n_rows, uint32_t n, float *x);

/* out [n_rows, w->n_out] (row stride out_stride floats) = x [n_rows, w->n_in] * w^T, added to what
 * is there when accumulate. x is quantised first where the weight type asks for it. */
void kri_op_linear(const kri_exec_t *exec, const kri_weight_t *w, const float *x,
                   uint32_t n_rows, bool accumulate, float *out, size_t out_stride);
/* kri_op_linear of rms_norm(x) * norm [w->n_in], which is not kept. rows [n_rows]: which rows of x
 * are read; NULL = the first n_rows. */
void kri_op_norm_linear(const kri_exec_t *exec, const kri_weight_t *w, const float *x,
                        const float *norm, float eps, const uint32_t *rows, uint32_t n_rows,
                        float *out, size_t out_stride);

/* Rotary table of the step: cos_sin [n_rows, n_rot / 2, 2] from positions (component 0), angles
 * position * freq_scale * base^(-2i / n_rot), divided by factors[i] when given ([n_rot / 2]). */
void kri_op_rope_table(const kri_exec_t *exec, float base, float freq_scale,
                       const float *factors, uint32_t n_rot, float *cos_sin);

typedef struct kri_attn_desc_s {
    uint32_t group, layer_in_group; /* where the layer's keys and values live */
    uint32_t n_heads, n_kv_heads, head_dim, n_rot;
    bool rope_pair;                 /* true: (2i, 2i+1) pairs; false: (i, i + n_rot/2) */
    const float *q_norm, *k_norm;   /* [head_dim] RMSNorm weights before rotation, or NULL */
    float norm_eps;
    float scale, softcap;
} kri_attn_desc_t;
/* qkv [n_rows, (n_heads + 2 n_kv_heads) * head_dim]: normalises and rotates q and k in place and
 * appends k and v to the pages of each row's sequence. With KR_ATTN_QK_INT8 and for pages of int8 a
 * Walsh-Hadamard transform follows the rotation of q and k: keys in the pages are then transformed
 * ones. */
void kri_op_rope_append(const kri_exec_t *exec, const kri_attn_desc_t *desc,
                        const float *cos_sin, float *qkv);
/* out [n_rows, n_heads * head_dim] = attention of the rotated queries in qkv over the pages. */
void kri_op_attention(const kri_exec_t *exec, const kri_attn_desc_t *desc, const float *qkv,
                      float *out);

typedef enum kri_act_e { KRI_ACT_SILU, KRI_ACT_GELU_TANH } kri_act_t;
typedef struct kri_ffn_desc_s {
    const kri_weight_t *gate_up; /* two parts of n_ff rows: gate, up */
    const kri_weight_t *down;
    const float *norm;           /* [n_embd] */
    float norm_eps;
    kri_act_t act;
} kri_ffn_desc_t;
/* out [n_rows, down->n_out] = down * (act(gate * y) * (up * y)) with y = rms_norm(x) * norm, added
 * to what is there when accumulate. out may be x. The bits are those of kri_op_rms_norm,
 * kri_op_linear, kri_op_gated_act and kri_op_linear in turn. */
void kri_op_ffn(const kri_exec_t *exec, const kri_ffn_desc_t *desc, const float *x,
                uint32_t n_rows, bool accumulate, float *out);
/* out [n_rows, n_ff] = act(gate) * up; gate_up [n_rows, 2 n_ff] = gate | up. */
void kri_op_gated_act(const kri_exec_t *exec, kri_act_t act, const float *gate_up,
                      uint32_t n_rows, uint32_t n_ff, float *out);
/* y [n_rows, n] += x [n_rows, n] */
void kri_op_add(const kri_exec_t *exec, const float *x, uint32_t n_rows, uint32_t n, float *y);
/* x [n_rows, n] = cap * tanh(x / cap) */
void kri_op_softcap(const kri_exec_t *exec, float cap, uint32_t n_rows, uint32_t n, float *x);

/* The ops of a back-end that is no CPU, with the meaning of the functions above. Pointers in
 * weights, tensors, steps and arguments are then the device's, a forward pass runs on one thread
 * without a team, and an op may return before its work is done; go_on is kri_exec_continue. What
 * went wrong is the device's to remember and go_on's to tell. */
typedef struct kri_exec_ops_s {
    kr_status_t (*go_on)(const kri_exec_t *exec);
    void (*embed)(const kri_exec_t *exec, const kri_tensor_t *table, float scale, float *out);
    void (*rms_norm)(const kri_exec_t *exec, const float *x, const float *w, float eps,
                     const uint32_t *rows, uint32_t n_rows, uint32_t n, float *out);
    void (*norm_add)(const kri_exec_t *exec, float *branch, const float *w, float eps,
                     uint32_t n_rows, uint32_t n, float *x);
    void (*linear)(const kri_exec_t *exec, const kri_weight_t *w, const float *x, uint32_t n_rows,
                   bool accumulate, float *out, size_t out_stride);
    void (*norm_linear)(const kri_exec_t *exec, const kri_weight_t *w, const float *x,
                        const float *norm, float eps, const uint32_t *rows, uint32_t n_rows,
                        float *out, size_t out_stride);
    void (*rope_table)(const kri_exec_t *exec, float base, float freq_scale, const float *factors,
                       uint32_t n_rot, float *cos_sin);
    void (*rope_append)(const kri_exec_t *exec, const kri_attn_desc_t *desc, const float *cos_sin,
                        float *qkv);
    void (*attention)(const kri_exec_t *exec, const kri_attn_desc_t *desc, const float *qkv,
                      float *out);
    void (*ffn)(const kri_exec_t *exec, const kri_ffn_desc_t *desc, const float *x,
                uint32_t n_rows, bool accumulate, float *out);
    void (*gated_act)(const kri_exec_t *exec, kri_act_t act, const float *gate_up,
                      uint32_t n_rows, uint32_t n_ff, float *out);
    void (*add)(const kri_exec_t *exec, const float *x, uint32_t n_rows, uint32_t n, float *y);
    void (*softcap)(const kri_exec_t *exec, float cap, uint32_t n_rows, uint32_t n, float *x);
} kri_exec_ops_t;

#endif
