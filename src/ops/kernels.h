/* kernels.h: the kernel table: one slot per row of ops.def, filled with the scalar reference and
 * then overwritten by faster variants (src/cpu/impl.def). Kernels are single-threaded, allocate
 * nothing, and work on flat ranges; threads and batches are exec.h's business.
 *
 * Batch invariance. For one (token, output) pair every level performs the same float operations
 * in the same order, whatever the number of tokens, rows or threads of the call; integer sums are
 * exact. The order is stated with each type below, uses fused multiply-add (fmaf), and is the
 * same for all levels, so that `linear` is bit-identical on ref, AVX2, AVX-512 and those of ARM
 * (but for bf16 weights on a CPU with AVX512_BF16, below). */
#ifndef KRI_OPS_KERNELS_H
#define KRI_OPS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "kr.h"

/* ---- quantised activations (quant_act, block length 32) ------------------------------------
 * One block of 32 values: q = rint(x * (127 / amax)) in -127..127 (round to nearest even),
 * d = amax / 127. A block with amax < 1e-30 is all zero. A block that holds a NaN or an infinity
 * gets d = ds = NaN and q of zeros, so that bad values reach the logits and are refused there
 * (amax is taken over the absolute bit patterns as integers, which orders NaN above all). */
typedef struct kri_q8_block_s {
    float d;             /* scale */
    float ds;            /* d * (float)(sum of q) */
    uint16_t sums[2][2]; /* [h][p]: bias + sum of q[i] with i / 16 = h and i / 2 % 2 = p */
    int8_t q[32];
} kri_q8_block_t;
#define KRI_Q8_ITEMS 32u

/* The parts of a block's sum fit the int16 lanes of a byte dot product made of pairs (AVX2). The
 * bias keeps them positive, so that one multiplication adds them up without a carry between them,
 * and falls out of a product with a zero point (8, 16, 32) in int16. */
#define KRI_Q8_SUM_BIAS 8192

/* Sum of q[16 * half .. 16 * half + 15]. */
static inline int32_t kri_q8_sum_half(const kri_q8_block_t *block, unsigned half) {
    uint32_t parts;
    __builtin_memcpy(&parts, block->sums[half], sizeof parts);
    return (int32_t)((parts * 0x00010001u) >> 16) - 2 * KRI_Q8_SUM_BIAS;
}

/* Sum of q. */
static inline int32_t kri_q8_sum(const kri_q8_block_t *block) {
    uint64_t parts;
    __builtin_memcpy(&parts, block->sums, sizeof parts);
    return (int32_t)((parts * 0x0001000100010001u) >> 48) - 4 * KRI_Q8_SUM_BIAS;
}

/* x [n] with n % 32 == 0 -> blocks [n / 32]. */
typedef void kri_quant_fn(const float *restrict x, size_t n, kri_q8_block_t *restrict blocks);

/* ---- linear ---------------------------------------------------------------------------------
 * out[t, r] = sum_k act[t, k] * w[r, k] (+ bias[r]) (+ out[t, r] when accumulate).
 * w       packed groups of KRI_GROUP_ROWS rows (pack.h gives each layout), 64-byte aligned.
 * act     quantised types: kri_q8_block_t [n_tokens][n_in / 32]; float types: f32 [n_tokens][n_in];
 *         act_stride is the distance of two tokens in bytes.
 * out     f32; out_stride in floats. Rows r in [0, n_rows) are written, n_rows <= 16 * n_groups
 *         and > 16 * (n_groups - 1).
 * Order   acc = 0; for each 32-block b ascending (float types: for each k ascending) one step:
 *           q4_0 q5_0 q8_0   acc = fmaf(dw * da, (float)(idot - zero * isum), acc)
 *           q4_1 q5_1        acc = fmaf(dw * da, (float)idot, acc); acc = fmaf(m, ds, acc)
 *           q4_k q5_k        acc = fmaf((d * sc) * da, (float)idot, acc);
 *                            acc = fmaf(-(dmin * mn), ds, acc)
 *           q6_k             for each 256: part = 0; over its blocks b ascending
 *                              part = fmaf(da, (float)(sc[0] * c[0] + sc[1] * c[1]), part)
 *                              with c[h] = idot[h] - 32 * isum[h];
 *                            then acc = fmaf(d, part, acc)
 *           f32 f16 bf16     acc = fmaf((float)w, x, acc)
 *           bf16 on a CPU with AVX512_BF16 rounds x to bf16 and takes k in pairs: see
 *                            kri_linear_bf16_pair_ref
 *         with zero = 8, 16, 128 and idot over the unsigned packed quants (the integers
 *         are below 2^24, so their conversion is exact);
 *         then acc += bias, then out + acc when accumulate. */
#define KRI_GROUP_ROWS 16u
typedef void kri_linear_fn(const uint8_t *restrict w, size_t n_in, size_t n_groups,
                           size_t n_rows, const void *restrict act, size_t act_stride,
                           size_t n_tokens, const float *restrict bias, uint32_t accumulate,
                           float *restrict out, size_t out_stride);

/* ---- tiles ----------------------------------------------------------------------------------
 * The same product on a matrix unit with bf16 operands and f32 sums, for many tokens at once.
 * Weights are decoded as w = fmaf(scale, q, offset), rounded to bf16 with their scale inside, so
 * that nothing has to be rescaled along k; activations are rounded to bf16. Both to nearest even;
 * subnormal operands count as zero. The order of the sum is the machine's: results differ from
 * `linear` and are not the same bits for every number of tokens. n_in is a multiple of 32.
 *
 * tiles: [ceil(n_tokens / 16)][n_in / 32][16 tokens][32 k] bf16, missing tokens are zero. */
#define KRI_TILE_TOKENS 16u
#define KRI_TILE_K 32u
#define KRI_TILE_ITEMS (KRI_TILE_TOKENS * KRI_TILE_K)
/* One token: x [n] with n % 32 == 0, or NULL for zeros, to row[k / 32 * KRI_TILE_ITEMS + k % 32];
 * row is 64-byte aligned. */
typedef void kri_tile_pack_fn(const float *restrict x, size_t n, uint16_t *restrict row);
/* Tokens of one kri_tile_linear_fn call, at most, and the scratch it needs: floats, 64-byte
 * aligned, private to the thread. */
#define KRI_TILE_TOKENS_MAX 512u
#define KRI_TILE_SCRATCH_FLOATS (32u * KRI_TILE_TOKENS_MAX + 16384u)
typedef struct kri_tile_args_s {
    kr_dtype_t dtype;          /* any but f32 */
    const uint8_t *w;          /* as in kri_linear_fn */
    size_t n_in, n_groups, n_rows, n_tokens;
    const uint16_t *tiles;     /* packed activations */
    const float *bias;         /* [n_rows] or NULL */
    uint32_t accumulate;
    float *out;
    size_t out_stride;         /* floats */
    float *scratch;
} kri_tile_args_t;
typedef void kri_tile_linear_fn(const kri_tile_args_t *args);

/* ---- row-wise ------------------------------------------------------------------------------ */

/* out[i] = x[i] * w[i] / sqrt(mean(x^2) + eps); w may be NULL (all ones); out may be x.
 * Zhang & Sennrich 2019. */
typedef void kri_rms_norm_fn(const float *x, const float *restrict w, float eps, size_t n,
                             float *out);
/* quant_q8 of what rms_norm of the same level gives, bit for bit; n % 32 == 0. */
typedef void kri_rms_norm_q8_fn(const float *x, const float *restrict w, float eps, size_t n,
                                kri_q8_block_t *restrict blocks);
/* Rotates n_heads heads of head_dim floats in place by the angles of one position:
 * cos_sin [n_rot / 2][2] (cos, sin). _half pairs (i, i + n_rot/2), _pair pairs (2i, 2i + 1);
 * dims past n_rot stay. Su et al. 2021. */
typedef void kri_rope_fn(float *restrict x, size_t n_heads, size_t head_dim, size_t n_rot,
                         const float *restrict cos_sin);
/* out[i] = act(gate[i]) * up[i]; out may be gate. silu: g / (1 + exp(-g)); gelu: the tanh form
 * 0.5 g (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3))) (Hendrycks & Gimpel 2016). NaN stays NaN. */
typedef void kri_gated_act_fn(const float *gate, const float *up, size_t n, float *out);
/* y[i] += x[i] */
typedef void kri_add_fn(float *restrict y, const float *restrict x, size_t n);
/* x[i] = cap * tanh(x[i] / cap) */
typedef void kri_softcap_fn(float *restrict x, size_t n, float cap);
/* Converts n floats to the KV cache's element type (f16: round to nearest even). */
typedef void kri_kv_store_fn(const float *restrict x, size_t n, void *restrict dst);
/* One key or value of n floats as integers: *scale = amax / 127 as an f16, rounded up, and
 * q [n] = rint(x * (1 / scale)) in -127..127. Zeros only: scale 0; a NaN, an infinity or a scale
 * past f16: scale NaN and q of zeros, so that bad values reach the logits. */
typedef void kri_kv_store_i8_fn(const float *restrict x, size_t n, int8_t *restrict q,
                                uint16_t *restrict scale);
/* The scale of a largest absolute value (a NaN for NaN) and 1 / scale, or 0 where all q are 0. */
float kri_kv_scale_i8(float amax, uint16_t *scale);

/* ---- attention ------------------------------------------------------------------------------
 * One sequence, one layer, one KV head; a tile of consecutive query rows with the n_heads query
 * heads that share the KV head. Row r sits at position pos_begin + r and sees the keys
 * [max(0, pos - window + 1), pos] (window 0: from 0). K and V of page p start at
 * pool + page_table[p] * page_bytes + k_offset / v_offset, each [16][head_dim] elements.
 *
 * Order   Online softmax (Milakov & Gimelshein 2018; Dao et al. 2022) over key blocks of
 *         KRI_ATTN_BLOCK keys. Every KRI_ATTN_SPAN keys it starts afresh, and the partial results
 *         (maximum, sum of weights, weighted values) of a row's spans are merged in ascending
 *         order. Blocks and spans lie at multiples of the absolute position, so a row's result
 *         depends neither on the tile it was in nor on which thread computed which span.
 * Stages  KRI_ATTN_WHOLE does all of it. KRI_ATTN_PARTIAL computes one span into `partials`,
 *         KRI_ATTN_MERGE merges the partials of all spans into out; together the same bits.
 * Scores  A score of -infinity is a weight of 0; a row that has no other gives NaN, as NaN and
 *         +infinity do.
 * qk8     The slots *_qk8 and *_qk16 take q.k in integers: each query and each key of head_dim
 * qk16    floats becomes q = rint(x * (levels / amax)), d = amax / levels (as quant_q8, but one
 *         scale per vector), and q.k = d_q * d_k * idot with an exact 32-bit idot. levels: see
 *         kri_attn_qk_levels. Values stay in float.
 * i8      Keys and values are integers with a scale each (kri_kv_store_i8_fn), in the arrangement
 *         of kri_i8_key_at and kri_i8_value_at: four dimensions of a key, or one dimension of four
 *         keys, side by side are what 4-way byte dot products take. A key whose scale has a minus
 *         sign holds its difference to the key of slot 0 of its page: the integers times |scale|,
 *         and q.k of slot 0 is added to its own. q.k as qk16 with
 *         KRI_I8_QUERY_LEVELS; the value is scale * integer. A kernel may sum values in
 *         integers: then the weights of a block times their values' scales become
 *         rint(w * (KRI_I8_WEIGHT_LEVELS / their maximum)), and a weight of 0 gives a value no
 *         say, whatever its scale.
 *
 * n_rows * n_heads <= KRI_ATTN_TILE and n_rows * n_heads * head_dim <= KRI_ATTN_TILE_FLOATS (use
 * kri_attn_tile_queries). scratch: KRI_ATTN_SCRATCH_FLOATS floats, 64-byte aligned, private to the
 * thread. head_dim is a multiple of 16, at most KRI_HEAD_DIM_MAX; the reference takes any. A
 * struct because eighteen flat arguments would be read by nobody. */
#define KRI_PAGE_TOKENS 16u
#define KRI_ATTN_BLOCK 64u
#define KRI_ATTN_SPAN 512u
#define KRI_ATTN_TILE 256u
#define KRI_ATTN_GROUP 48u /* queries of a tile that are taken through a block together */
#define KRI_HEAD_DIM_MAX 512u
#define KRI_ATTN_TILE_FLOATS (64u * KRI_HEAD_DIM_MAX)
#define KRI_ATTN_SCRATCH_FLOATS                                                                  \
    (2u * KRI_ATTN_BLOCK * KRI_HEAD_DIM_MAX + 3u * KRI_ATTN_TILE_FLOATS +                        \
     KRI_ATTN_GROUP * KRI_ATTN_BLOCK + 2u * KRI_ATTN_BLOCK + 9u * KRI_ATTN_TILE)
/* Room for partial results that exec holds per thread, behind all threads' scratch. */
#define KRI_ATTN_PARTIALS_FLOATS 262144u
#define KRI_ATTN_THREAD_FLOATS (KRI_ATTN_SCRATCH_FLOATS + KRI_ATTN_PARTIALS_FLOATS)
/* Partial result of one query over one span: head_dim weighted values, maximum, sum, padding. */
#define KRI_ATTN_PARTIAL_FLOATS(head_dim) ((size_t)(head_dim) + 16u)

typedef enum kri_attn_stage_e {
    KRI_ATTN_WHOLE,
    KRI_ATTN_PARTIAL,
    KRI_ATTN_MERGE
} kri_attn_stage_t;
typedef struct kri_attn_args_s {
    const float *q;   /* row r, head h at q + r * q_stride + h * head_dim */
    size_t q_stride;  /* floats */
    float *out;       /* same arrangement; not touched by KRI_ATTN_PARTIAL */
    size_t out_stride;
    const uint8_t *pool;
    size_t page_bytes, k_offset, v_offset;
    size_t scale_offset; /* i8: f16 scales [K | V][16] of a page */
    const uint32_t *page_table;
    uint32_t n_rows, n_heads, head_dim;
    uint32_t pos_begin;
    uint32_t window;
    float scale;      /* applied to q.k */
    float softcap;    /* 0 = none; cap * tanh(s / cap) after scale */
    float *scratch;
    kri_attn_stage_t stage;
    uint32_t span;    /* KRI_ATTN_PARTIAL: which one, in spans from position 0 */
    float *partials;  /* [spans of the tile][n_rows * n_heads][KRI_ATTN_PARTIAL_FLOATS], 64-byte
                         aligned, from the first span that row 0 sees */
} kri_attn_args_t;
typedef void kri_attention_fn(const kri_attn_args_t *args);

/* Queries (rows * heads) that a tile may hold. */
static inline uint32_t kri_attn_tile_queries(uint32_t head_dim) {
    uint32_t n = KRI_ATTN_TILE_FLOATS / head_dim;
    return n < KRI_ATTN_TILE ? n : KRI_ATTN_TILE;
}
/* Largest integer of a query or key: as many bits as a sum of head_dim products leaves room for,
 * head_dim * levels^2 < 2^31 (qk16), or 7 (qk8). */
static inline float kri_attn_qk_levels(uint32_t qk_bits, uint32_t head_dim) {
    if (qk_bits == 8) return 127.0f;
    return head_dim <= 64 ? 5792.0f : head_dim <= 128 ? 4095.0f : head_dim <= 256 ? 2896.0f
                                                                                  : 2047.0f;
}
/* The integers of i8. A query's: its products with 512 8-bit keys stay below 2^31, and 256 h + l
 * with 8-bit h and l. A block's weights: the same for 64 products, in 15 bits. */
#define KRI_I8_QUERY_LEVELS 32639.0f
#define KRI_I8_WEIGHT_LEVELS 32767.0f
#define KRI_I8_DIFFERENCE 0x8000u /* sign of a key's f16 scale */
#define KRI_I8_KEY_BIAS 128 /* keys are kept as integer + 128, unsigned */
/* Dimensions that a key or value takes up: whole fours. */
#define KRI_I8_DIMS(head_dim) (((size_t)(head_dim) + 3u) / 4u * 4u)
/* Index of a byte in a K block [dims / 4][16 keys][4 dims], in a V block [4][dims][4 keys]. */
static inline size_t kri_i8_key_at(size_t slot, size_t dim) {
    return dim / 4u * (4u * KRI_PAGE_TOKENS) + slot * 4u + dim % 4u;
}
static inline size_t kri_i8_value_at(uint32_t head_dim, size_t slot, size_t dim) {
    return (slot / 4u * KRI_I8_DIMS(head_dim) + dim) * 4u + slot % 4u;
}
/* The first key that the row at position pos sees, and the spans that the tile's rows see:
 * [begin, end). */
static inline uint32_t kri_attn_first_key(uint32_t pos, uint32_t window) {
    return window && pos >= window ? pos - window + 1 : 0;
}
static inline void kri_attn_spans(uint32_t pos_begin, uint32_t n_rows, uint32_t window,
                                  uint32_t *begin, uint32_t *end) {
    *begin = kri_attn_first_key(pos_begin, window) / KRI_ATTN_SPAN;
    *end = (pos_begin + n_rows - 1) / KRI_ATTN_SPAN + 1;
}

/* ---- the table ----------------------------------------------------------------------------- */

typedef struct kri_kernels_s {
    const char *isa;     /* level of the table, static C string */
    uint32_t has_tiles;  /* 1: tile_pack and tile_linear are faster than linear for many tokens */
    uint32_t has_dot16;  /* 1: attention_f16_qk16 is faster than attention_f16 for many rows and
                          * no slower for one */
#define KR_OP(slot, type, family, tolerance) type *slot;
#include "ops/ops.def"
} kri_kernels_t;

/* The reference of each slot: kri_<slot>_ref. */
#define KR_OP(slot, type, family, tolerance) type kri_##slot##_ref;
#include "ops/ops.def"

/* bf16 weights by activations rounded to bf16 (nearest even), what vdpbf16ps does: for each pair of
 * k ascending acc = fmaf(w1, x1, acc); acc = fmaf(w0, x0, acc), subnormal numbers read as zero and
 * written as zero; a missing last k is zero. Measured bit-identical on one CPU (AMD Zen 5); held
 * only to a tolerance, because no vendor promises the order. Batch invariance holds as for all. */
kri_linear_fn kri_linear_bf16_pair_ref;

/* A table of references only. */
void kri_kernels_ref(kri_kernels_t *kernels);
/* The linear slot for a weight type; NULL for an unknown one. */
kri_linear_fn *kri_kernels_linear(const kri_kernels_t *kernels, kr_dtype_t dtype);

#endif
