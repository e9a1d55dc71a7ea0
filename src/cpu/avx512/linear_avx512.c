/* linear_avx512.c: matrix times activations for the eight quantised weight types (AVX-512 VNNI).
 *
 * One packed group is 16 rows, and a row is a lane. A tile is one group and n tokens (n constant):
 * per 32-block the weights are unpacked into eight vectors once, then every token adds eight
 * four-way dot products whose activation operand is a 4-byte broadcast from memory. Float
 * accumulators stay in registers over all of k (q6_k: over 256 k), so that the order of kernels.h
 * costs one multiply and one fused multiply-add per block. The trade: weights are unpacked again
 * for each tile of 16 tokens (about 1/10 of the work there) instead of once into a scratch panel;
 * a panel of two groups was no faster, the multiply pipes being the limit already.
 *
 * The same code serves one token and many; with one token it is bound by memory. */
#include "cpu/impl.h"

#include <immintrin.h>

#include "cpu/avx512/tile_avx512.h"
#include "ops/pack.h"

/* One unpacked 32-block of a group: bytes [u][row][4 k] and the scales of the 16 rows. */
typedef struct block_s {
    __m512i w[8];
    __m512 d;    /* scale; q6_k: the integer scale of k < 16 */
    __m512 d_hi; /* q6_k: of k >= 16 */
    __m512 m;    /* types with a minimum: q4_1 q5_1 added, q4_k q5_k subtracted */
} block_t;

typedef struct group_s {
    const uint8_t *super, *scales, *quants;
    const uint8_t *ahead; /* bytes to prefetch meanwhile, as many as the group has, or NULL */
} group_t;

#define SUPER_BLOCKS 8u /* 32-blocks of a q6_k 256 */

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

INLINE __m512 halfs_load(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_load_si256((const void *)p));
}

INLINE __m512 bytes_load(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128((const void *)p)));
}

INLINE __m512 signed_bytes_load(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const void *)p)));
}

/* ---- unpacking ----------------------------------------------------------------------------- */

INLINE void nibbles_unpack(const uint8_t *p, __m512i w[8]) {
    const __m512i low = _mm512_set1_epi8(0x0f);
    UNROLL for (unsigned v = 0; v < 4; v++) {
        const __m512i x = _mm512_load_si512(p + 64u * v);
        w[v] = _mm512_and_si512(x, low);
        w[v + 4] = _mm512_and_si512(_mm512_srli_epi16(x, 4), low);
    }
}

INLINE void fifth_bits_add(const uint8_t *high, __m512i w[8]) {
    const __m512i bit = _mm512_set1_epi8(0x10);
    UNROLL for (unsigned u = 0; u < 8; u++) {
        const __mmask64 mask = _load_mask64((__mmask64 *)(uintptr_t)(high + 8u * u));
        w[u] = _mm512_mask_add_epi8(w[u], mask, w[u], bit);
    }
}

/* Bits 4..5 of vector u lie at bits 2 (u % 4) of the bytes of two[u / 4]. The shifts cross byte
 * borders, which the mask undoes. */
INLINE void two_bits_add(const uint8_t *two, __m512i w[8]) {
    const __m512i mask = _mm512_set1_epi8(0x30);
    UNROLL for (unsigned h = 0; h < 2; h++) {
        const __m512i x = _mm512_load_si512(two + 64u * h);
        const __m512i part[4] = {_mm512_slli_epi16(x, 4), _mm512_slli_epi16(x, 2), x,
                                 _mm512_srli_epi16(x, 2)};
        UNROLL for (unsigned i = 0; i < 4; i++) { /* 0xea: (part & mask) | w */
            w[4 * h + i] = _mm512_ternarylogic_epi32(part[i], mask, w[4 * h + i], 0xea);
        }
    }
}

INLINE void block_unpack(kr_dtype_t type, const uint8_t *quants, block_t *block) {
    switch (type) {
    case KR_DTYPE_Q8_0:
        UNROLL for (unsigned u = 0; u < 8; u++) {
            block->w[u] = _mm512_load_si512(quants + 64u * u);
        }
        break;
    case KR_DTYPE_Q5_0:
    case KR_DTYPE_Q5_1:
    case KR_DTYPE_Q5_K:
        nibbles_unpack(quants + 64, block->w);
        fifth_bits_add(quants, block->w);
        break;
    case KR_DTYPE_Q6_K:
        nibbles_unpack(quants + 128, block->w);
        two_bits_add(quants, block->w);
        break;
    default:
        nibbles_unpack(quants, block->w);
        break;
    }
}

INLINE void block_scales(kr_dtype_t type, const group_t *g, size_t b, block_t *block) {
    switch (type) {
    case KR_DTYPE_Q4_1:
    case KR_DTYPE_Q5_1:
        block->d = halfs_load(g->scales + 64u * b);
        block->m = halfs_load(g->scales + 64u * b + 32u);
        break;
    case KR_DTYPE_Q4_K:
    case KR_DTYPE_Q5_K: {
        const uint8_t *super = g->super + 64u * (b / 8u);
        block->d = _mm512_mul_ps(halfs_load(super), bytes_load(g->scales + 32u * b));
        block->m = _mm512_mul_ps(halfs_load(super + 32), bytes_load(g->scales + 32u * b + 16u));
        break;
    }
    case KR_DTYPE_Q6_K:
        block->d = signed_bytes_load(g->scales + 32u * b);
        block->d_hi = signed_bytes_load(g->scales + 32u * b + 16u);
        break;
    default:
        block->d = halfs_load(g->scales + 32u * b);
        break;
    }
}

/* ---- one block, one token -------------------------------------------------------------------*/

INLINE __m512i quads_broadcast(const int8_t *q) {
    int32_t v;
    __builtin_memcpy(&v, q, sizeof v);
    return _mm512_set1_epi32(v);
}

INLINE __m512i dot_4_add(__m512i sum, const __m512i *w, const int8_t *q) {
    sum = _mm512_dpbusd_epi32(sum, w[0], quads_broadcast(q));
    sum = _mm512_dpbusd_epi32(sum, w[1], quads_broadcast(q + 4));
    sum = _mm512_dpbusd_epi32(sum, w[2], quads_broadcast(q + 8));
    return _mm512_dpbusd_epi32(sum, w[3], quads_broadcast(q + 12));
}

/* Two chains instead of one: the extra add runs on an idle pipe, half the latency is worth 6 %. */
INLINE __m512i dot_8_add(__m512i sum, const block_t *block, const kri_q8_block_t *a) {
    const __m512i lo = dot_4_add(sum, block->w, a->q);
    const __m512i hi = dot_4_add(_mm512_setzero_si512(), block->w + 4, a->q + 16);
    return _mm512_add_epi32(lo, hi);
}

/* -zero * (sum of the activations): the start value of a dot product over unsigned quants. Made
 * in general registers, which are idle here; the vector pipes are the limit. */
INLINE __m512i zero_start(int zero, int32_t sum) {
    return _mm512_set1_epi32(-zero * sum);
}

INLINE __m512 scaled_add(__m512 acc, __m512 d, float da, __m512i sum) {
    return _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(da)), _mm512_cvtepi32_ps(sum), acc);
}

/* One block of a q6_k part. The integer of kernels.h is below 2^24, so making it from integer
 * scales and dot products in floats is exact. */
INLINE __m512 part_step(const block_t *block, const kri_q8_block_t *a, __m512 part) {
    const __m512i lo = zero_start(32, kri_q8_sum_half(a, 0));
    const __m512i hi = zero_start(32, kri_q8_sum_half(a, 1));
    const __m512 c_lo = _mm512_cvtepi32_ps(dot_4_add(lo, block->w, a->q));
    const __m512 c_hi = _mm512_cvtepi32_ps(dot_4_add(hi, block->w + 4, a->q + 16));
    const __m512 c = _mm512_fmadd_ps(block->d_hi, c_hi, _mm512_mul_ps(block->d, c_lo));
    return _mm512_fmadd_ps(_mm512_set1_ps(a->d), c, part);
}

INLINE __m512 block_step(kr_dtype_t type, const block_t *block, const kri_q8_block_t *a,
                         __m512 acc) {
    switch (type) {
    case KR_DTYPE_Q4_0:
        return scaled_add(acc, block->d, a->d, dot_8_add(zero_start(8, kri_q8_sum(a)), block, a));
    case KR_DTYPE_Q5_0:
        return scaled_add(acc, block->d, a->d, dot_8_add(zero_start(16, kri_q8_sum(a)), block, a));
    case KR_DTYPE_Q8_0:
        return scaled_add(acc, block->d, a->d, dot_8_add(zero_start(128, kri_q8_sum(a)), block, a));
    case KR_DTYPE_Q6_K: return part_step(block, a, acc);
    case KR_DTYPE_Q4_1:
    case KR_DTYPE_Q5_1:
        acc = scaled_add(acc, block->d, a->d, dot_8_add(_mm512_setzero_si512(), block, a));
        return _mm512_fmadd_ps(block->m, _mm512_set1_ps(a->ds), acc);
    default: /* q4_k q5_k */
        acc = scaled_add(acc, block->d, a->d, dot_8_add(_mm512_setzero_si512(), block, a));
        return _mm512_fnmadd_ps(block->m, _mm512_set1_ps(a->ds), acc);
    }
}

/* ---- one group, n tokens ------------------------------------------------------------------- */

/* The share of block b in the prefetch: one linear walk over all sections, so that every line is
 * asked for once. Into the second level: the first has few fill buffers, and software that holds
 * them all waits for memory at two thirds of the speed (Zen 4: 18 instead of 24 GB/s a thread). */
INLINE void ahead_prefetch(kr_dtype_t type, const uint8_t *ahead, size_t b) {
    UNROLL for (unsigned i = 0; i < (block_bytes(type) + 63u) / 64u; i++) {
        _mm_prefetch((const void *)(ahead + b * block_bytes(type) + 64u * i), _MM_HINT_T1);
    }
}

/* What all steps of a tile share; type and n are constant. */
typedef struct tile_in_s {
    kr_dtype_t type;
    unsigned n; /* tokens */
    const group_t *g;
    size_t quant_bytes;
    const uint8_t *act;
    size_t act_stride;
} tile_in_t;

INLINE const kri_q8_block_t *token_block(const tile_in_t *in, unsigned t, size_t b) {
    /* Four base pointers instead of sixteen: all of them fit the general registers. */
    const uint8_t *base = in->act + b * sizeof(kri_q8_block_t) + (t / 4u) * 4u * in->act_stride;
    return (const void *)(base + (t % 4u) * in->act_stride);
}

INLINE void tile_step(const tile_in_t *in, size_t b, __m512 acc[TILE_TOKENS]) {
    block_t block;
    block_unpack(in->type, in->g->quants + b * in->quant_bytes, &block);
    block_scales(in->type, in->g, b, &block);
    UNROLL for (unsigned t = 0; t < in->n; t++) {
        acc[t] = block_step(in->type, &block, token_block(in, t, b), acc[t]);
    }
    if (in->g->ahead != NULL) ahead_prefetch(in->type, in->g->ahead, b);
}

/* One 256 of q6_k. The parts take the registers, the sums rest in memory. */
INLINE void super_step(const tile_in_t *in, size_t b, __m512 sums[TILE_TOKENS]) {
    const __m512 d = halfs_load(in->g->super + 32u * (b / SUPER_BLOCKS));
    __m512 part[TILE_TOKENS];
    UNROLL for (unsigned t = 0; t < in->n; t++) part[t] = _mm512_setzero_ps();
    for (size_t i = 0; i < SUPER_BLOCKS; i++) tile_step(in, b + i, part);
    UNROLL for (unsigned t = 0; t < in->n; t++) sums[t] = _mm512_fmadd_ps(d, part[t], sums[t]);
}

INLINE void tile(kr_dtype_t type, unsigned n, const group_t *g, const kri_pack_layout_t *layout,
                 size_t n_blocks, const uint8_t *act, size_t act_stride, const tile_out_t *out) {
    const tile_in_t in = {type, n, g, layout->quant_bytes, act, act_stride};
    __m512 acc[TILE_TOKENS];
    UNROLL for (unsigned t = 0; t < n; t++) acc[t] = _mm512_setzero_ps();
    if (type == KR_DTYPE_Q6_K) {
        for (size_t b = 0; b < n_blocks; b += SUPER_BLOCKS) super_step(&in, b, acc);
    } else {
        for (size_t b = 0; b < n_blocks; b++) tile_step(&in, b, acc);
    }
    tile_store(out, n, acc);
}

/* ---- the kernels --------------------------------------------------------------------------- */

/* Tile sizes in tokens, ascending. More of them than float weights have: a tile unpacks its
 * weights anew, so that few tokens should be one tile, and 15 two and not four. */
#define N_SIZES 10u
static const unsigned sizes[N_SIZES] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16};

/* The largest size that fits n tokens (n >= 1). */
INLINE unsigned size_find(size_t n) {
    unsigned size = N_SIZES - 1;
    while (sizes[size] > n) size--;
    return size;
}

typedef void tile_fn(const group_t *g, const kri_pack_layout_t *layout, size_t n_blocks,
                     const uint8_t *act, size_t act_stride, const tile_out_t *out);

INLINE void groups_run(kr_dtype_t type, tile_fn *const tiles[N_SIZES], const uint8_t *w,
                       size_t n_in, size_t n_groups, size_t n_rows, const uint8_t *act,
                       size_t act_stride, size_t n_tokens, const float *bias,
                       uint32_t accumulate, float *out, size_t out_stride) {
    kri_pack_layout_t layout;
    if (!kri_pack_layout(type, n_in, &layout)) return;
    const size_t distance = prefetch_distance(&layout);
    for (size_t g = 0; g < n_groups; g++) {
        const uint8_t *base = w + g * layout.group_bytes;
        group_t group = {base + layout.super, base + layout.scales, base + layout.quants,
                         g + 1 < n_groups || distance < layout.group_bytes ? base + distance
                                                                           : NULL};
        const size_t row = g * KRI_GROUP_ROWS;
        tile_out_t to = {NULL, out_stride, bias != NULL ? bias + row : NULL,
                         rows_mask(n_rows, g), accumulate};
        size_t t = 0;
        while (t < n_tokens) {
            const unsigned size = size_find(n_tokens - t);
            to.out = out + t * out_stride + row;
            tiles[size](&group, &layout, n_in / KRI_Q8_ITEMS, act + t * act_stride, act_stride,
                        &to);
            group.ahead = NULL; /* the first tile has fetched it */
            t += sizes[size];
        }
    }
}

#define TILE(slot, type, n)                                                                      \
    static void slot##_tile_##n(const group_t *g, const kri_pack_layout_t *layout,               \
                                size_t n_blocks, const uint8_t *act, size_t act_stride,          \
                                const tile_out_t *out) {                                         \
        tile(type, n, g, layout, n_blocks, act, act_stride, out);                                \
    }
#define LINEAR(slot, type)                                                                       \
    TILE(slot, type, 1)                                                                          \
    TILE(slot, type, 2)                                                                          \
    TILE(slot, type, 3)                                                                          \
    TILE(slot, type, 4)                                                                          \
    TILE(slot, type, 5)                                                                          \
    TILE(slot, type, 6)                                                                          \
    TILE(slot, type, 7)                                                                          \
    TILE(slot, type, 8)                                                                          \
    TILE(slot, type, 12)                                                                         \
    TILE(slot, type, 16)                                                                         \
    void kri_##slot##_avx512(const uint8_t *restrict w, size_t n_in, size_t n_groups,            \
                             size_t n_rows, const void *restrict act, size_t act_stride,         \
                             size_t n_tokens, const float *restrict bias, uint32_t accumulate,   \
                             float *restrict out, size_t out_stride) {                           \
        static tile_fn *const tiles[N_SIZES] = {slot##_tile_1,  slot##_tile_2, slot##_tile_3,    \
                                                slot##_tile_4,  slot##_tile_5, slot##_tile_6,    \
                                                slot##_tile_7,  slot##_tile_8, slot##_tile_12,   \
                                                slot##_tile_16};                                 \
        groups_run(type, tiles, w, n_in, n_groups, n_rows, act, act_stride, n_tokens, bias,      \
                   accumulate, out, out_stride);                                                 \
    }

LINEAR(linear_q4_0, KR_DTYPE_Q4_0)
LINEAR(linear_q4_1, KR_DTYPE_Q4_1)
LINEAR(linear_q5_0, KR_DTYPE_Q5_0)
LINEAR(linear_q5_1, KR_DTYPE_Q5_1)
LINEAR(linear_q8_0, KR_DTYPE_Q8_0)
LINEAR(linear_q4_k, KR_DTYPE_Q4_K)
LINEAR(linear_q5_k, KR_DTYPE_Q5_K)
LINEAR(linear_q6_k, KR_DTYPE_Q6_K)
