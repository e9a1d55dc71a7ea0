/* tile_neon.h: what the linear kernels of the three ARM levels share: unpacking of packed weights,
 * scales, and how finished sums leave. A register holds a quad: four rows of a group by four
 * consecutive k (16 of the 64 bytes of a vector of pack.h), so a group is four quads and a dot
 * product by lane (sdot) leaves one sum per row, without horizontal adds. */
#ifndef KRI_CPU_NEON_TILE_NEON_H
#define KRI_CPU_NEON_TILE_NEON_H

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

#include "ops/kernels.h"
#include "ops/pack.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define QUAD_ROWS 4u
#define GROUP_QUADS (KRI_GROUP_ROWS / QUAD_ROWS)
#define SUPER_BLOCKS 8u /* 32-blocks of a 256 */

/* The sections of a packed group. */
typedef struct group_s {
    const uint8_t *super, *scales, *quants;
    const uint8_t *ahead; /* bytes to prefetch meanwhile, as many as the group has, or NULL */
    size_t quant_bytes;
    size_t n_blocks;
} group_t;

/* Scales of the four rows of a quad. */
typedef struct scales_s {
    float32x4_t d;   /* scale; q6_k: of the 256 */
    float32x4_t m;   /* q4_1 q5_1: added; q4_k q5_k: subtracted */
    int32x4_t sc[2]; /* q6_k: integer scales of k < 16, of k >= 16 */
} scales_t;

/* ---- unpacking: j is the quad, u the unpacked vector (pack.h) ------------------------------- */

INLINE float32x4_t halfs_load(const uint8_t *p) {
    return vcvt_f32_f16(vld1_f16((const void *)p));
}

/* Four bytes, widened to 16 bits in the low half of a register of eight. */
INLINE uint8x8_t quad_bytes_load(const uint8_t *p) {
    return vreinterpret_u8_u32(vld1_dup_u32((const void *)p));
}

INLINE float32x4_t bytes_load(const uint8_t *p) {
    const uint16x8_t wide = vmovl_u8(quad_bytes_load(p));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)));
}

INLINE int32x4_t signed_bytes_load(const uint8_t *p) {
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(quad_bytes_load(p)));
    return vmovl_s16(vget_low_s16(wide));
}

INLINE uint8x16_t nibbles_get(const uint8_t *p, unsigned u, unsigned j) {
    const uint8x16_t x = vld1q_u8(p + 64u * (u % 4u) + 16u * j);
    return u < 4 ? vandq_u8(x, vdupq_n_u8(0x0f)) : vshrq_n_u8(x, 4);
}

/* Bit i of a 16-bit word becomes bit 4 of byte i: every byte gets the word's byte i / 8, then only
 * its own bit is looked at. */
INLINE uint8x16_t fifth_bits_get(const uint8_t *high, unsigned u, unsigned j) {
    static const uint8_t spread[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    static const uint8_t own[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint16x8_t word = vld1q_dup_u16((const void *)(high + 8u * u + 2u * j));
    const uint8x16_t x = vqtbl1q_u8(vreinterpretq_u8_u16(word), vld1q_u8(spread));
    return vandq_u8(vtstq_u8(x, vld1q_u8(own)), vdupq_n_u8(0x10));
}

/* Bits 4..5 of vector u lie at bits 2 (u % 4) of the bytes of two[u / 4]. */
INLINE uint8x16_t two_bits_get(const uint8_t *two, unsigned u, unsigned j) {
    uint8x16_t x = vld1q_u8(two + 64u * (u / 4u) + 16u * j);
    switch (u % 4u) {
    case 0: x = vshlq_n_u8(x, 4); break;
    case 1: x = vshlq_n_u8(x, 2); break;
    case 2: break;
    default: x = vshrq_n_u8(x, 2); break;
    }
    return vandq_u8(x, vdupq_n_u8(0x30));
}

/* Vector u of quad j. All packed quants below 8 bits are non-negative numbers that a signed byte
 * holds, so signed dot products take them as they are; of q8_0 the zero point is taken off. */
INLINE int8x16_t weights_get(kr_dtype_t type, const uint8_t *quants, unsigned u, unsigned j) {
    switch (type) {
    case KR_DTYPE_Q8_0:
        return vreinterpretq_s8_u8(
            veorq_u8(vld1q_u8(quants + 64u * u + 16u * j), vdupq_n_u8(0x80)));
    case KR_DTYPE_Q5_0:
    case KR_DTYPE_Q5_1:
    case KR_DTYPE_Q5_K:
        return vreinterpretq_s8_u8(
            vorrq_u8(nibbles_get(quants + 64, u, j), fifth_bits_get(quants, u, j)));
    case KR_DTYPE_Q6_K:
        return vreinterpretq_s8_u8(
            vorrq_u8(nibbles_get(quants + 128, u, j), two_bits_get(quants, u, j)));
    default: return vreinterpretq_s8_u8(nibbles_get(quants, u, j));
    }
}

/* What weights_get leaves of the zero point. */
INLINE int zero_left(kr_dtype_t type) {
    switch (type) {
    case KR_DTYPE_Q4_0: return 8;
    case KR_DTYPE_Q5_0: return 16;
    case KR_DTYPE_Q6_K: return 32;
    default: return 0;
    }
}

INLINE scales_t scales_get(kr_dtype_t type, const group_t *g, size_t b, unsigned j) {
    scales_t out = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f), {vdupq_n_s32(0), vdupq_n_s32(0)}};
    switch (type) {
    case KR_DTYPE_Q4_1:
    case KR_DTYPE_Q5_1:
        out.d = halfs_load(g->scales + 64u * b + 8u * j);
        out.m = halfs_load(g->scales + 64u * b + 32u + 8u * j);
        break;
    case KR_DTYPE_Q4_K:
    case KR_DTYPE_Q5_K: {
        const uint8_t *super = g->super + 64u * (b / SUPER_BLOCKS) + 8u * j;
        const uint8_t *scales = g->scales + 32u * b + 4u * j;
        out.d = vmulq_f32(halfs_load(super), bytes_load(scales));
        out.m = vmulq_f32(halfs_load(super + 32), bytes_load(scales + 16));
        break;
    }
    case KR_DTYPE_Q6_K: {
        const uint8_t *scales = g->scales + 32u * b + 4u * j;
        out.d = halfs_load(g->super + 32u * (b / SUPER_BLOCKS) + 8u * j);
        out.sc[0] = signed_bytes_load(scales);
        out.sc[1] = signed_bytes_load(scales + 16);
        break;
    }
    default:
        out.d = halfs_load(g->scales + 32u * b + 8u * j);
        break;
    }
    return out;
}

/* ---- the walk over memory ------------------------------------------------------------------ */

/* Bytes of one 32-block of a group, all sections together. */
INLINE unsigned block_bytes(kr_dtype_t type) {
    switch (type) {
    case KR_DTYPE_Q4_0: return 288;
    case KR_DTYPE_Q4_1: return 320;
    case KR_DTYPE_Q5_0: return 352;
    case KR_DTYPE_Q5_1: return 384;
    case KR_DTYPE_Q8_0: return 544;
    case KR_DTYPE_Q4_K: return 296;
    case KR_DTYPE_Q5_K: return 360;
    default: return 420;
    }
}

/* The share of block b in the prefetch: one linear walk over all sections, so that every line is
 * asked for once. */
INLINE void ahead_prefetch(kr_dtype_t type, const uint8_t *ahead, size_t b) {
    UNROLL for (unsigned i = 0; i < (block_bytes(type) + 63u) / 64u; i++) {
        __builtin_prefetch(ahead + b * block_bytes(type) + 64u * i, 0, 3);
    }
}

/* Group g of a matrix. The prefetch begins one group ahead, or for large groups some kilobytes
 * past the scales: the distance that was measured for the x86 kernels, not yet on ARM. */
INLINE group_t group_at(const uint8_t *w, const kri_pack_layout_t *layout, size_t n_in, size_t g,
                        size_t n_groups) {
    const uint8_t *base = w + g * layout->group_bytes;
    const size_t distance =
        layout->group_bytes <= 12288u ? layout->group_bytes : layout->quants + 6144u;
    const int is_inside = g + 1u < n_groups || distance < layout->group_bytes;
    return (group_t){base + layout->super,  base + layout->scales,         base + layout->quants,
                     is_inside ? base + distance : NULL, layout->quant_bytes, n_in / KRI_Q8_ITEMS};
}

/* ---- results ------------------------------------------------------------------------------- */

typedef struct tile_out_s {
    float *out;        /* first row of the tile, first token */
    size_t stride;     /* floats */
    const float *bias; /* of the tile's rows, or NULL */
    size_t n_rows;     /* rows of the tile that exist */
    uint32_t accumulate;
} tile_out_t;

INLINE size_t rows_left(size_t n_rows, size_t group) {
    const size_t left = n_rows - group * KRI_GROUP_ROWS;
    return left < KRI_GROUP_ROWS ? left : KRI_GROUP_ROWS;
}

/* Quads [first, ...) of a tile's rows. */
INLINE tile_out_t quads_from(const tile_out_t *o, unsigned first) {
    const size_t skip = QUAD_ROWS * first;
    tile_out_t part = *o;
    part.out += skip;
    part.bias = o->bias != NULL ? o->bias + skip : NULL;
    part.n_rows = o->n_rows > skip ? o->n_rows - skip : 0;
    return part;
}

/* Bias, then what was there, for the rows that exist. `sums` is [n_tokens][row_floats]. One copy of
 * this for all tiles: it is a small part of the time and would be most of the code. */
__attribute__((noinline, unused)) static void sums_store(const tile_out_t *o, const float *sums,
                                                         size_t row_floats, size_t n_tokens) {
    const size_t n = o->n_rows < row_floats ? o->n_rows : row_floats;
    for (size_t t = 0; t < n_tokens; t++) {
        const float *sum = sums + t * row_floats;
        float *row = o->out + t * o->stride;
        for (size_t r = 0; r < n; r++) {
            float acc = sum[r];
            if (o->bias != NULL) acc += o->bias[r];
            row[r] = o->accumulate ? row[r] + acc : acc;
        }
    }
}

#endif
