/* linear_tile_neon.h: the matrix product of quantised weights by sixteen rows and up to eight
 * tokens, for levels whose dot product gives one sum per row of a quad. The including file defines
 * before:
 *   dot_16(start, w, q)        start + products of four vectors with 16 activations
 *   dot_32(type, start, w, q)  start + products of eight vectors with 32 activations
 *
 * The 32 registers go to float sums first: four quads by four tokens, or two quads by eight
 * tokens, make 16; the eight unpacked vectors of the quad at hand, the two activation vectors of
 * the token at hand and its integer sum fill the rest. Sums stay in registers over all of k, so the
 * order of kernels.h costs one multiply and one fused multiply-add per block. The trade: a quad is
 * unpacked again for each tile, 12 operations against 64 dot products with eight tokens. */
#ifndef KRI_CPU_NEON_LINEAR_TILE_NEON_H
#define KRI_CPU_NEON_LINEAR_TILE_NEON_H

#include "cpu/neon/tile_neon.h"

#define TILE_TOKENS 8u

/* Tile sizes in tokens, ascending, and the largest one that fits n tokens (n >= 1). */
#define TILE_SIZES 4u
static const unsigned tile_sizes[TILE_SIZES] = {1, 2, 4, 8};
INLINE unsigned tile_size_find(size_t n) {
    unsigned size = TILE_SIZES - 1;
    while (tile_sizes[size] > n) size--;
    return size;
}

INLINE float32x4_t scaled_add(float32x4_t acc, float32x4_t d, float da, int32x4_t dot) {
    return vfmaq_f32(acc, vmulq_n_f32(d, da), vcvtq_f32_s32(dot));
}

/* -zero * (sum of the activations): the start value of a dot product over unsigned quants, one
 * per token in place of a subtraction per weight. */
INLINE int32x4_t zero_start(kr_dtype_t type, int32_t sum) {
    return vdupq_n_s32(-zero_left(type) * sum);
}

/* The step of kernels.h for one quad and one token: of the sum itself, or for q6_k of the part over
 * the 256. */
INLINE float32x4_t quad_step(kr_dtype_t type, const int8x16_t w[8], const scales_t *scales,
                             const kri_q8_block_t *a, float32x4_t acc) {
    if (type == KR_DTYPE_Q6_K) {
        const int32x4_t lo = dot_16(zero_start(type, kri_q8_sum_half(a, 0)), w, a->q);
        const int32x4_t hi = dot_16(zero_start(type, kri_q8_sum_half(a, 1)), w + 4, a->q + 16);
        const int32x4_t sum = vmlaq_s32(vmulq_s32(lo, scales->sc[0]), hi, scales->sc[1]);
        return vfmaq_n_f32(acc, vcvtq_f32_s32(sum), a->d);
    }
    acc = scaled_add(acc, scales->d, a->d,
                     dot_32(type, zero_start(type, kri_q8_sum(a)), w, a->q));
    switch (type) {
    case KR_DTYPE_Q4_1:
    case KR_DTYPE_Q5_1: return vfmaq_n_f32(acc, scales->m, a->ds);
    case KR_DTYPE_Q4_K:
    case KR_DTYPE_Q5_K: return vfmsq_n_f32(acc, scales->m, a->ds);
    default: return acc;
    }
}

/* Quads [first, first + n_quads) of a group and n tokens, with the type all constants. */
typedef struct meeting_s {
    kr_dtype_t type;
    unsigned n, first, n_quads;
    const group_t *group;
    const uint8_t *act;
    size_t act_stride;
} meeting_t;

typedef struct tile_sums_s {
    float32x4_t of[TILE_TOKENS][GROUP_QUADS];
} tile_sums_t;

INLINE void sums_clear(const meeting_t *m, tile_sums_t *sums) {
    UNROLL for (unsigned t = 0; t < m->n; t++) {
        UNROLL for (unsigned j = 0; j < m->n_quads; j++) sums->of[t][j] = vdupq_n_f32(0.0f);
    }
}

INLINE void block_step(const meeting_t *m, size_t b, tile_sums_t *acc) {
    const group_t *g = m->group;
    const uint8_t *quants = g->quants + b * g->quant_bytes;
    const uint8_t *a = m->act + b * sizeof(kri_q8_block_t);
    UNROLL for (unsigned j = 0; j < m->n_quads; j++) {
        const scales_t scales = scales_get(m->type, g, b, m->first + j);
        int8x16_t w[8];
        UNROLL for (unsigned u = 0; u < 8; u++) {
            w[u] = weights_get(m->type, quants, u, m->first + j);
        }
        UNROLL for (unsigned t = 0; t < m->n; t++) {
            acc->of[t][j] = quad_step(m->type, w, &scales, (const void *)(a + t * m->act_stride),
                                      acc->of[t][j]);
        }
    }
    if (g->ahead != NULL && m->first == 0) ahead_prefetch(m->type, g->ahead, b);
}

/* One 256 of q6_k: the parts take the registers, the sums wait in memory meanwhile. */
INLINE void super_step(const meeting_t *m, size_t b, tile_sums_t *acc) {
    tile_sums_t part;
    sums_clear(m, &part);
    for (size_t i = b; i < b + SUPER_BLOCKS; i++) block_step(m, i, &part);
    UNROLL for (unsigned j = 0; j < m->n_quads; j++) {
        const scales_t scales = scales_get(m->type, m->group, b, m->first + j);
        UNROLL for (unsigned t = 0; t < m->n; t++) {
            acc->of[t][j] = vfmaq_f32(acc->of[t][j], scales.d, part.of[t][j]);
        }
    }
}

INLINE void tile(kr_dtype_t type, unsigned n, unsigned first, unsigned n_quads, const group_t *g,
                 const uint8_t *act, size_t act_stride, const tile_out_t *out) {
    const meeting_t m = {type, n, first, n_quads, g, act, act_stride};
    tile_sums_t acc;
    sums_clear(&m, &acc);
    if (type == KR_DTYPE_Q6_K) {
        for (size_t b = 0; b < g->n_blocks; b += SUPER_BLOCKS) super_step(&m, b, &acc);
    } else {
        for (size_t b = 0; b < g->n_blocks; b++) block_step(&m, b, &acc);
    }
    const tile_out_t part = quads_from(out, first);
    float sums[TILE_TOKENS * KRI_GROUP_ROWS];
    UNROLL for (unsigned t = 0; t < n; t++) {
        UNROLL for (unsigned j = 0; j < n_quads; j++) {
            vst1q_f32(sums + QUAD_ROWS * (t * n_quads + j), acc.of[t][j]);
        }
    }
    sums_store(&part, sums, QUAD_ROWS * n_quads, n);
}

typedef void tile_fn(const group_t *g, const uint8_t *act, size_t act_stride,
                     const tile_out_t *out);

static inline void groups_run(kr_dtype_t type, tile_fn *const tiles[TILE_SIZES], const uint8_t *w,
                              size_t n_in, size_t n_groups, size_t n_rows, const uint8_t *act,
                              size_t act_stride, size_t n_tokens, const float *bias,
                              uint32_t accumulate, float *out, size_t out_stride) {
    kri_pack_layout_t layout;
    if (!kri_pack_layout(type, n_in, &layout)) return;
    for (size_t i = 0; i < n_groups; i++) {
        group_t group = group_at(w, &layout, n_in, i, n_groups);
        const size_t row = i * KRI_GROUP_ROWS;
        tile_out_t to = {NULL, out_stride, bias != NULL ? bias + row : NULL,
                         rows_left(n_rows, i), accumulate};
        size_t t = 0;
        while (t < n_tokens) {
            const unsigned size = tile_size_find(n_tokens - t);
            to.out = out + t * out_stride + row;
            tiles[size](&group, act + t * act_stride, act_stride, &to);
            group.ahead = NULL; /* the first tile has fetched it */
            t += tile_sizes[size];
        }
    }
}

#define TILE(slot, type, n)                                                                      \
    static void slot##_tile_##n(const group_t *g, const uint8_t *act, size_t act_stride,         \
                                const tile_out_t *out) {                                         \
        tile(type, n, 0, 4, g, act, act_stride, out);                                            \
    }
#define TILE_HALVES(slot, type, n)                                                               \
    static void slot##_tile_##n(const group_t *g, const uint8_t *act, size_t act_stride,         \
                                const tile_out_t *out) {                                         \
        tile(type, n, 0, 2, g, act, act_stride, out);                                            \
        tile(type, n, 2, 2, g, act, act_stride, out);                                            \
    }
/* kri_<slot>_<isa> */
#define LINEAR(slot, type, isa)                                                                  \
    TILE(slot, type, 1)                                                                          \
    TILE(slot, type, 2)                                                                          \
    TILE(slot, type, 4)                                                                          \
    TILE_HALVES(slot, type, 8)                                                                   \
    void kri_##slot##_##isa(const uint8_t *restrict w, size_t n_in, size_t n_groups,             \
                            size_t n_rows, const void *restrict act, size_t act_stride,          \
                            size_t n_tokens, const float *restrict bias, uint32_t accumulate,    \
                            float *restrict out, size_t out_stride) {                            \
        static tile_fn *const tiles[TILE_SIZES] = {slot##_tile_1, slot##_tile_2, slot##_tile_4,  \
                                                   slot##_tile_8};                               \
        groups_run(type, tiles, w, n_in, n_groups, n_rows, act, act_stride, n_tokens, bias,      \
                   accumulate, out, out_stride);                                                 \
    }

#endif
