/* args.h: what kernels take, one struct each, read by C (which fills it) and by CUDA C++ (which
 * gets it by value). Pointers are device addresses. Shapes are those of ops/exec.h; weights of
 * quantised types lie as in ops/pack.h, weights of float types in rows, as in the file. */
#ifndef KRI_CUDA_ARGS_H
#define KRI_CUDA_ARGS_H

#include <stdint.h>

#define KRI_CU_GROUPS 4u     /* KRI_KV_GROUPS_MAX */
#define KRI_CU_PARTS 3u      /* KRI_WEIGHT_PARTS_MAX */
#define KRI_CU_HEAD_DIM 512u /* KRI_HEAD_DIM_MAX */
#define KRI_CU_TOKENS 8u     /* most rows of a matvec */
#define KRI_CU_ROW_WARPS 8u  /* of a block of row_*.cu */
#define KRI_CU_TILE8 64u     /* query rows of a tile of attention over pages of 8 bits */
#define KRI_CU_PREFILL_DIM 256u /* largest head of attention in tiles */
#define KRI_CU_NORM_ITEMS 16u /* of a row that a thread keeps */
#define KRI_CU_SPLITS 1024u  /* most parts of a context */
#define KRI_CU_HEADS 4u      /* query heads of one KV head that a decode block takes at most */
/* Shared memory of a block of attn_decode.cu: rings of four warps. */
#define KRI_CU_DECODE_F16_64 65536
#define KRI_CU_DECODE_F16_128 98304
#define KRI_CU_DECODE_F16_256 196608
#define KRI_CU_DECODE_8_64 50688
#define KRI_CU_DECODE_8_128 99840
#define KRI_CU_DECODE_8_256 198144
/* Of one of attn_prefill8.cu: queries, a tile of keys and values, two stages of pages. */
#define KRI_CU_PREFILL8_64 41472
#define KRI_CU_PREFILL8_128 82432
#define KRI_CU_PREFILL8_256 98560
#define KRI_CU_PARTIAL 4u    /* floats of a partial result beside its values */

#ifdef __cplusplus
#define KRI_CU_ALIGN(n) alignas(n)
#else
#define KRI_CU_ALIGN(n) _Alignas(n)
#endif

/* Element types by their numbers in kr.h. */
enum {
    KRI_CU_F32 = 1, KRI_CU_F16 = 2, KRI_CU_BF16 = 3, KRI_CU_Q4_0 = 4, KRI_CU_Q4_1 = 5,
    KRI_CU_Q5_0 = 6, KRI_CU_Q5_1 = 7, KRI_CU_Q8_0 = 8, KRI_CU_Q4_K = 9, KRI_CU_Q5_K = 10,
    KRI_CU_Q6_K = 11, KRI_CU_I8 = 12, KRI_CU_F8 = 13
};

/* kri_q8_block_t (ops/kernels.h): blocks of activations are the same on both sides. */
typedef struct kri_cu_q8_s {
    float d, ds;
    uint16_t sums[2][2];
    int8_t q[32];
} kri_cu_q8_t;

/* ---- the step ------------------------------------------------------------------------------- */

typedef struct kri_cu_seq_s {
    uint32_t pos_begin, row_begin;
    uint32_t table[KRI_CU_GROUPS]; /* where its page tables begin in kri_cu_step_t.tables */
} kri_cu_seq_t;

/* Rows of one sequence, up to kri_cuda_tile_rows. */
typedef struct kri_cu_tile_s { uint32_t seq, row, n_rows, reserved; } kri_cu_tile_t;

/* The tables of a step in device memory; the same addresses for every step of a session. */
typedef struct kri_cu_step_s {
    const int32_t *tokens;       /* [n_rows] */
    const int32_t *positions;    /* [n_rows] */
    const uint32_t *row_seq;     /* [n_rows] */
    const uint32_t *decode_rows; /* rows that attend one by one */
    const kri_cu_tile_t *tiles;  /* the others */
    const kri_cu_seq_t *seqs;
    const uint32_t *tables;
} kri_cu_step_t;

/* ---- rows ----------------------------------------------------------------------------------- */

typedef struct kri_cu_embed_s {
    const int32_t *tokens;
    const uint8_t *table;
    uint64_t row_bytes;
    uint32_t dtype, n;
    float scale;
    float *out;
} kri_cu_embed_t;

/* Rows in the forms that products read: f32, bf16, q8; those not wanted are NULL. */
typedef struct kri_cu_acts_s {
    const float *x;       /* gated: rows of gate [n], up [n] */
    const uint16_t *rounded; /* gated: in place of x, as bf16; may be NULL */
    const uint32_t *rows; /* rows of x to read; NULL = the first ones (acts_norm only) */
    const float *w;       /* acts_norm only */
    float eps;
    uint32_t n, act;      /* act: 0 silu, 1 gelu (acts_gated only) */
    float *f32;
    uint16_t *bf16;
    kri_cu_q8_t *q8;
} kri_cu_acts_t;

typedef struct kri_cu_norm_add_s {
    const float *branch, *w;
    float eps;
    uint32_t n;
    float *x;
} kri_cu_norm_add_t;

typedef struct kri_cu_elements_s { /* add: y += x; softcap: y = cap tanh(y / cap) */
    const float *x;
    float *y;
    float cap;
    uint64_t n;
} kri_cu_elements_t;

typedef struct kri_cu_bias_s {
    const float *bias;
    float *out;
    uint64_t out_stride;
    uint32_t n_rows, n;
} kri_cu_bias_t;

typedef struct kri_cu_rope_table_s {
    const int32_t *positions;
    const float *factors;
    double base, freq_scale;
    uint32_t n_pairs;
    float *cos_sin;
} kri_cu_rope_table_t;

typedef struct kri_cu_finite_s {
    const float *x;
    uint64_t n;
    uint32_t *flag; /* becomes 1 when a value is not finite */
} kri_cu_finite_t;

/* The largest of each row, the first of equals; -1 where one of a row is not finite. */
typedef struct kri_cu_argmax_s {
    const float *x;     /* [n_rows][n] */
    uint32_t n;
    uint64_t *keys;     /* [n_rows] of 0, and again afterwards */
    uint32_t *counters; /* the same */
    int32_t *ids;       /* [n_rows] */
    uint32_t *flag;     /* becomes 1 with an id of -1 */
} kri_cu_argmax_t;

/* ---- linear --------------------------------------------------------------------------------- */

/* Parts of one element type, side by side in the output. */
typedef struct kri_cu_matvec_s {
    const uint8_t *w[KRI_CU_PARTS];
    const float *bias[KRI_CU_PARTS];
    uint32_t n_out[KRI_CU_PARTS], out_offset[KRI_CU_PARTS];
    uint32_t first[KRI_CU_PARTS]; /* first block of the grid; UINT32_MAX: there is no such part */
    uint32_t n_in, n_tokens, accumulate;
    uint32_t scales, quants;      /* quantised types: offsets in a group */
    uint32_t k_slices;            /* float types: warps that share k, 1, 2, 4 or 8 */
    uint64_t group_bytes;
    const void *act;              /* f32 [n_tokens][n_in] or q8 [n_tokens][n_in / 32] */
    float *out;
    uint64_t out_stride;
} kri_cu_matvec_t;

/* One row of activations: kernels/row.cuh. Parts of one element type, side by side in the output,
 * or with is_gated gate and up, whose gated product is the output. */
typedef struct kri_cu_row_s {
    const uint8_t *w[KRI_CU_PARTS];
    const float *bias[KRI_CU_PARTS];
    uint32_t n_out[KRI_CU_PARTS], out_offset[KRI_CU_PARTS];
    uint32_t first[KRI_CU_PARTS]; /* first unit; UINT32_MAX: there is no such part */
    uint32_t n_in, accumulate, n_units;
    uint32_t scales, quants;      /* quantised types: offsets in a group */
    uint64_t group_bytes;
    const float *x;               /* f32 [..][n_in] */
    const uint32_t *rows;         /* which row of x; NULL = the first */
    const float *norm;            /* x is normed first; NULL: it is not */
    float eps;
    uint32_t is_gated, act;
    const kri_cu_q8_t *q8;        /* quantised types: in place of x; NULL = x is rounded */
    float *out;                   /* NULL with out_q8 */
    kri_cu_q8_t *out_q8;          /* is_gated of quantised types only */
} kri_cu_row_t;

/* Rows of weights to bf16 [n_rows][n_in]. */
typedef struct kri_cu_unpack_s {
    const uint8_t *w;
    uint64_t group_bytes;
    uint32_t scales, quants, n_in, n_rows;
    uint16_t *out;
} kri_cu_unpack_t;

/* c [m, n] (row stride ldc) = a [m, k] b [n, k]^T (+ bias [n]) (+ c) */
typedef struct kri_cu_gemm_s {
    const uint16_t *a, *b;
    float *c;
    uint16_t *rounded; /* in place of c, as bf16, without bias and c; may be NULL */
    const float *bias;
    uint64_t ldc;
    uint32_t m, n, k, accumulate;
} kri_cu_gemm_t;

/* ---- attention ------------------------------------------------------------------------------ */

typedef struct kri_cu_kv_s {
    uint8_t *pool;
    uint64_t page_bytes, k, v, scales; /* offsets of the layer's first block in a page; 8 bits:
                                        * scales of keys, then values */
    uint32_t block_bytes;        /* from one KV head to the next */
    uint32_t group, window;
    uint32_t dtype;              /* f16, int8 or fp8 */
} kri_cu_kv_t;

/* Norm and rotation of queries and keys; cos_sin [n_rows][n_rot]. */
typedef struct kri_cu_rotate_s {
    const float *cos_sin, *q_norm, *k_norm;
    float eps;
    uint32_t n_rot, is_pair;
} kri_cu_rotate_t;

typedef struct kri_cu_append_s {
    kri_cu_step_t step;
    kri_cu_kv_t kv;
    kri_cu_rotate_t rotate;
    float *qkv;
    uint16_t *queries; /* [n_rows][n_heads][head_dim] as f16, for attention in tiles, or NULL */
    uint32_t keeps_rows; /* with queries: qkv gets rotated ones too */
    uint32_t n_heads, n_kv_heads, head_dim;
} kri_cu_append_t;

typedef struct kri_cu_attn_s {
    kri_cu_step_t step;
    kri_cu_kv_t kv;
    const float *qkv;
    float *out;
    float *partials;   /* [decode row][head][split][head_dim + 4]: values, maximum, sum */
    uint32_t *counters; /* [decode row][chunk of heads] of 0: splits that are done */
    kri_cu_rotate_t rotate; /* cos_sin NULL: rows are rotated and appended already */
    float scale, softcap;
    uint32_t n_heads, n_kv_heads, head_dim, n_splits;
} kri_cu_attn_t;

/* Attention in tiles. Maps (the driver's CUtensorMap) of tensors of f16, of which boxes of [16][64]
 * are copied: map: keys and values [page][block][16][head_dim]; queries: [head][row][head_dim]. */
typedef struct kri_cu_prefill_s {
    kri_cu_attn_t attn;
    uint16_t *rounded; /* bf16, in place of attn.out; NULL: to attn.out */
    uint32_t n_tiles, heads_together;
    KRI_CU_ALIGN(64) uint64_t map[16];
    uint64_t queries[16];
} kri_cu_prefill_t;

#endif
