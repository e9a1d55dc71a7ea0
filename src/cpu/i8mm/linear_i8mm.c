/* linear_i8mm.c: matrix times activations for the eight quantised weight types with smmla, which
 * multiplies two rows by two tokens over eight k: twice the products of sdot per instruction.
 *
 * Its operand, two rows of eight k, is two 32-bit zips away from two quads of pack.h. To pay for
 * that and for unpacking once, not once per tile, a piece of k of one group is unpacked into a
 * panel on the stack (8 KiB, in the first-level cache), zero points taken off, and all tokens use
 * it; float sums rest in memory between pieces, so the order of kernels.h is kept. A register of
 * sums is rows r, r + 1 by tokens t, t + 1; scales are stored in that shape too, so that sums are
 * put in row order only at the very end. A tile of eight row pairs by two token pairs keeps 16
 * sums and 8 activation vectors in registers. With fewer than PANEL_TOKENS_MIN tokens the panel
 * does not pay, and the dotprod kernels serve. */
#include "cpu/impl.h"

#include "cpu/neon/tile_neon.h"

#define PANEL_BLOCKS (2u * SUPER_BLOCKS)
#define PANEL_TOKENS_MIN 8u
#define ROW_PAIRS (KRI_GROUP_ROWS / 2u)
#define STEPS (KRI_Q8_ITEMS / 8u) /* of smmla in a 32-block */
#define SUM_TOKENS 64u            /* tokens whose sums are kept at once */
#define TILE_PAIRS 2u

typedef struct panel_s {
    int8_t w[PANEL_BLOCKS][ROW_PAIRS][STEPS][16];
    float d[PANEL_BLOCKS][ROW_PAIRS][4]; /* scales of rows r, r, r + 1, r + 1 */
    float m[PANEL_BLOCKS][ROW_PAIRS][4];
    int32_t sc[PANEL_BLOCKS][2][ROW_PAIRS][4]; /* q6_k: of k < 16, of k >= 16 */
} panel_t;

/* [row pair]: (r, t), (r, t + 1), (r + 1, t), (r + 1, t + 1) */
typedef struct pair_sums_s {
    float pairs[ROW_PAIRS][4];
} pair_sums_t;

/* Two tokens; the same one twice at the end of an odd number. */
typedef struct token_pair_s {
    const kri_q8_block_t *first, *second;
} token_pair_t;

/* ---- weights into the panel ---------------------------------------------------------------- */

INLINE void scales_put(float (*to)[4], float32x4_t v) {
    vst1q_f32(to[0], vzip1q_f32(v, v));
    vst1q_f32(to[1], vzip2q_f32(v, v));
}

INLINE void integer_scales_put(int32_t (*to)[4], int32x4_t v) {
    vst1q_s32(to[0], vzip1q_s32(v, v));
    vst1q_s32(to[1], vzip2q_s32(v, v));
}

/* Blocks [from, from + n) of the group. */
INLINE void panel_fill(kr_dtype_t type, const group_t *g, size_t from, size_t n,
                       panel_t *panel) {
    const int8x16_t zero = vdupq_n_s8((int8_t)zero_left(type));
    for (size_t b = 0; b < n; b++) {
        const uint8_t *quants = g->quants + (from + b) * g->quant_bytes;
        UNROLL for (unsigned j = 0; j < GROUP_QUADS; j++) {
            int8_t (*to)[STEPS][16] = &panel->w[b][2u * j];
            UNROLL for (unsigned s = 0; s < STEPS; s++) {
                const int32x4_t even = vreinterpretq_s32_s8(
                    vsubq_s8(weights_get(type, quants, 2u * s, j), zero));
                const int32x4_t odd = vreinterpretq_s32_s8(
                    vsubq_s8(weights_get(type, quants, 2u * s + 1u, j), zero));
                vst1q_s8(to[0][s], vreinterpretq_s8_s32(vzip1q_s32(even, odd)));
                vst1q_s8(to[1][s], vreinterpretq_s8_s32(vzip2q_s32(even, odd)));
            }
            const scales_t scales = scales_get(type, g, from + b, j);
            scales_put(&panel->d[b][2u * j], scales.d);
            if (type == KR_DTYPE_Q6_K) {
                integer_scales_put(&panel->sc[b][0][2u * j], scales.sc[0]);
                integer_scales_put(&panel->sc[b][1][2u * j], scales.sc[1]);
            } else {
                scales_put(&panel->m[b][2u * j], scales.m);
            }
        }
        if (g->ahead != NULL) ahead_prefetch(type, g->ahead, from + b);
    }
}

/* ---- the panel by one or two token pairs --------------------------------------------------- */

/* A block of a token pair in the shape of the products. */
typedef struct pair_block_s {
    int8x16_t a[STEPS];
    float32x4_t d, ds; /* of t, t + 1, t, t + 1 */
} pair_block_t;

INLINE void rows_zip(const int8_t *first, const int8_t *second, int8x16_t to[2]) {
    const int64x2_t x = vreinterpretq_s64_s8(vld1q_s8(first));
    const int64x2_t y = vreinterpretq_s64_s8(vld1q_s8(second));
    to[0] = vreinterpretq_s8_s64(vzip1q_s64(x, y));
    to[1] = vreinterpretq_s8_s64(vzip2q_s64(x, y));
}

INLINE pair_block_t pair_load(const token_pair_t *pair, size_t b) {
    const kri_q8_block_t *first = pair->first + b, *second = pair->second + b;
    pair_block_t out;
    rows_zip(first->q, second->q, out.a);
    rows_zip(first->q + 16, second->q + 16, out.a + 2);
    const float32x2_t x = vld1_f32((const void *)first), y = vld1_f32((const void *)second);
    const float32x2_t d = vzip1_f32(x, y), ds = vzip2_f32(x, y); /* d and ds are neighbours */
    out.d = vcombine_f32(d, d);
    out.ds = vcombine_f32(ds, ds);
    return out;
}

INLINE float32x4_t scaled_add(float32x4_t acc, float32x4_t d, float32x4_t da, int32x4_t dot) {
    return vfmaq_f32(acc, vmulq_f32(d, da), vcvtq_f32_s32(dot));
}

INLINE int32x4_t dot_16(int32x4_t sum, const int8_t (*w)[16], const int8x16_t *a) {
    sum = vmmlaq_s32(sum, vld1q_s8(w[0]), a[0]);
    return vmmlaq_s32(sum, vld1q_s8(w[1]), a[1]);
}

/* The step of kernels.h for two rows and two tokens: of the sum itself, or for q6_k of the part
 * over the 256. */
INLINE float32x4_t pair_step(kr_dtype_t type, const panel_t *panel, size_t b, unsigned row_pair,
                             const pair_block_t *a, float32x4_t acc) {
    const int8_t (*w)[16] = panel->w[b][row_pair];
    const int32x4_t none = vdupq_n_s32(0);
    if (type == KR_DTYPE_Q6_K) {
        const int32x4_t lo = dot_16(none, w, a->a), hi = dot_16(none, w + 2, a->a + 2);
        const int32x4_t sum = vmlaq_s32(vmulq_s32(lo, vld1q_s32(panel->sc[b][0][row_pair])), hi,
                                        vld1q_s32(panel->sc[b][1][row_pair]));
        return vfmaq_f32(acc, a->d, vcvtq_f32_s32(sum));
    }
    const float32x4_t d = vld1q_f32(panel->d[b][row_pair]);
    const float32x4_t m = vld1q_f32(panel->m[b][row_pair]);
    acc = scaled_add(acc, d, a->d, dot_16(dot_16(none, w, a->a), w + 2, a->a + 2));
    switch (type) {
    case KR_DTYPE_Q4_1:
    case KR_DTYPE_Q5_1: return vfmaq_f32(acc, m, a->ds);
    case KR_DTYPE_Q4_K:
    case KR_DTYPE_Q5_K: return vfmsq_f32(acc, m, a->ds);
    default: return acc;
    }
}

typedef struct tile_sums_s {
    float32x4_t of[TILE_PAIRS][ROW_PAIRS];
} tile_sums_t;

/* Adds blocks [from, from + n_blocks) of the panel to acc, for n token pairs. */
INLINE void blocks_add(kr_dtype_t type, unsigned n, const panel_t *panel, size_t from,
                       size_t n_blocks, const token_pair_t *tokens, tile_sums_t *acc) {
    for (size_t b = from; b < from + n_blocks; b++) {
        pair_block_t blocks[TILE_PAIRS];
        UNROLL for (unsigned p = 0; p < n; p++) blocks[p] = pair_load(&tokens[p], b);
        UNROLL for (unsigned r = 0; r < ROW_PAIRS; r++) {
            UNROLL for (unsigned p = 0; p < n; p++) {
                acc->of[p][r] = pair_step(type, panel, b, r, &blocks[p], acc->of[p][r]);
            }
        }
    }
}

/* One 256 of q6_k: the part over its blocks, then the scale of the 256. The parts take the
 * registers, so the sums are fetched only then. */
INLINE void super_add(kr_dtype_t type, unsigned n, const panel_t *panel, size_t b,
                      const token_pair_t *tokens, pair_sums_t *sums) {
    tile_sums_t part;
    UNROLL for (unsigned p = 0; p < n; p++) {
        UNROLL for (unsigned r = 0; r < ROW_PAIRS; r++) part.of[p][r] = vdupq_n_f32(0.0f);
    }
    blocks_add(type, n, panel, b, SUPER_BLOCKS, tokens, &part);
    UNROLL for (unsigned p = 0; p < n; p++) {
        UNROLL for (unsigned r = 0; r < ROW_PAIRS; r++) {
            float *sum = sums[p].pairs[r];
            vst1q_f32(sum, vfmaq_f32(vld1q_f32(sum), vld1q_f32(panel->d[b][r]), part.of[p][r]));
        }
    }
}

/* Adds n_blocks of the panel to the sums of n (a constant) token pairs. */
INLINE void tile(kr_dtype_t type, unsigned n, const panel_t *panel, size_t n_blocks,
                 const token_pair_t *tokens, pair_sums_t *sums) {
    if (type == KR_DTYPE_Q6_K) {
        for (size_t b = 0; b < n_blocks; b += SUPER_BLOCKS) {
            super_add(type, n, panel, b, tokens, sums);
        }
        return;
    }
    tile_sums_t acc;
    UNROLL for (unsigned p = 0; p < n; p++) {
        UNROLL for (unsigned r = 0; r < ROW_PAIRS; r++) acc.of[p][r] = vld1q_f32(sums[p].pairs[r]);
    }
    blocks_add(type, n, panel, 0, n_blocks, tokens, &acc);
    UNROLL for (unsigned p = 0; p < n; p++) {
        UNROLL for (unsigned r = 0; r < ROW_PAIRS; r++) vst1q_f32(sums[p].pairs[r], acc.of[p][r]);
    }
}

/* ---- one group, up to SUM_TOKENS tokens ---------------------------------------------------- */

/* Sums in row order, and out. */
static void sums_finish(const pair_sums_t *sums, size_t n_tokens, const tile_out_t *out) {
    float rows[SUM_TOKENS][KRI_GROUP_ROWS];
    for (size_t p = 0; p < (n_tokens + 1u) / 2u; p++) {
        UNROLL for (unsigned j = 0; j < GROUP_QUADS; j++) {
            const float32x4_t low = vld1q_f32(sums[p].pairs[2u * j]);
            const float32x4_t high = vld1q_f32(sums[p].pairs[2u * j + 1u]);
            vst1q_f32(rows[2u * p] + QUAD_ROWS * j, vuzp1q_f32(low, high));
            vst1q_f32(rows[2u * p + 1u] + QUAD_ROWS * j, vuzp2q_f32(low, high));
        }
    }
    sums_store(out, rows[0], KRI_GROUP_ROWS, n_tokens);
}

INLINE void batch_run(kr_dtype_t type, const group_t *g, const uint8_t *act, size_t act_stride,
                      size_t n_tokens, const tile_out_t *out) {
    const size_t n_pairs = (n_tokens + 1u) / 2u;
    pair_sums_t sums[SUM_TOKENS / 2u];
    token_pair_t tokens[SUM_TOKENS / 2u];
    _Alignas(64) panel_t panel;
    __builtin_memset(sums, 0, n_pairs * sizeof sums[0]);
    for (size_t b = 0; b < g->n_blocks; b += PANEL_BLOCKS) {
        const size_t left = g->n_blocks - b, n = left < PANEL_BLOCKS ? left : PANEL_BLOCKS;
        panel_fill(type, g, b, n, &panel);
        for (size_t p = 0; p < n_pairs; p++) {
            const uint8_t *a = act + 2u * p * act_stride + b * sizeof(kri_q8_block_t);
            tokens[p].first = (const void *)a;
            tokens[p].second = (const void *)(2u * p + 1u < n_tokens ? a + act_stride : a);
        }
        size_t p = 0;
        for (; p + TILE_PAIRS <= n_pairs; p += TILE_PAIRS) {
            tile(type, TILE_PAIRS, &panel, n, &tokens[p], &sums[p]);
        }
        for (; p < n_pairs; p++) tile(type, 1, &panel, n, &tokens[p], &sums[p]);
    }
    sums_finish(sums, n_tokens, out);
}

typedef void batch_fn(const group_t *g, const uint8_t *act, size_t act_stride, size_t n_tokens,
                      const tile_out_t *out);

static void groups_run(kr_dtype_t type, batch_fn *batch, const uint8_t *w, size_t n_in,
                       size_t n_groups, size_t n_rows, const uint8_t *act, size_t act_stride,
                       size_t n_tokens, const float *bias, uint32_t accumulate, float *out,
                       size_t out_stride) {
    kri_pack_layout_t layout;
    if (!kri_pack_layout(type, n_in, &layout)) return;
    for (size_t i = 0; i < n_groups; i++) {
        group_t group = group_at(w, &layout, n_in, i, n_groups);
        const size_t row = i * KRI_GROUP_ROWS;
        tile_out_t to = {NULL, out_stride, bias != NULL ? bias + row : NULL,
                         rows_left(n_rows, i), accumulate};
        for (size_t t = 0; t < n_tokens; t += SUM_TOKENS) {
            const size_t left = n_tokens - t;
            to.out = out + t * out_stride + row;
            batch(&group, act + t * act_stride, act_stride, left < SUM_TOKENS ? left : SUM_TOKENS,
                  &to);
            group.ahead = NULL; /* the first batch has fetched it */
        }
    }
}

#define LINEAR(slot, type)                                                                       \
    static void slot##_batch(const group_t *g, const uint8_t *act, size_t act_stride,            \
                             size_t n_tokens, const tile_out_t *out) {                           \
        batch_run(type, g, act, act_stride, n_tokens, out);                                      \
    }                                                                                            \
    void kri_##slot##_i8mm(const uint8_t *restrict w, size_t n_in, size_t n_groups,              \
                           size_t n_rows, const void *restrict act, size_t act_stride,           \
                           size_t n_tokens, const float *restrict bias, uint32_t accumulate,     \
                           float *restrict out, size_t out_stride) {                             \
        if (n_tokens < PANEL_TOKENS_MIN) {                                                       \
            kri_##slot##_dotprod(w, n_in, n_groups, n_rows, act, act_stride, n_tokens, bias,     \
                                 accumulate, out, out_stride);                                   \
            return;                                                                              \
        }                                                                                        \
        groups_run(type, slot##_batch, w, n_in, n_groups, n_rows, act, act_stride, n_tokens,     \
                   bias, accumulate, out, out_stride);                                           \
    }

LINEAR(linear_q4_0, KR_DTYPE_Q4_0)
LINEAR(linear_q4_1, KR_DTYPE_Q4_1)
LINEAR(linear_q5_0, KR_DTYPE_Q5_0)
LINEAR(linear_q5_1, KR_DTYPE_Q5_1)
LINEAR(linear_q8_0, KR_DTYPE_Q8_0)
LINEAR(linear_q4_k, KR_DTYPE_Q4_K)
LINEAR(linear_q5_k, KR_DTYPE_Q5_K)
LINEAR(linear_q6_k, KR_DTYPE_Q6_K)
