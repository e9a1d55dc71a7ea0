/* block_avx2.h: one 32-block of a packed group as AVX2 sees it: unpacking, scales, the panel that
 * unpacked blocks rest in, and the step of kernels.h for a tile of tokens. Everything is inlined
 * with constant type and tile size.
 *
 * A register holds four consecutive k of 8 rows (half a packed group). A weight vector of each half
 * meets a 4-byte broadcast of every token's values, unsigned by signed bytes into int16 pairs
 * (vpmaddubsw). The multiply pipes are the limit, so pairs are added in int16 as long as they
 * cannot overflow with activations in -127..127: 15 * 127 * 2 * 8 = 30480 for 4 bits,
 * 31 * 127 * 2 * 4 = 31496 for 5 bits. Where the zero point is taken off the sum starts at
 * -zero * (sum of the lane's activations) and int16 may wrap on the way, because the end fits:
 * q5_0 16 * 127 * 16 = 32512, q6_k 32 * 127 * 8 = 32512 for half a block. 8-bit weights are made
 * signed and multiplied as |w| * sign(a, w): 128 * 127 * 2 = 32512, one pair at a time. The
 * vpmaddwd that widens the pairs multiplies by q6_k's integer scale on the way. */
#ifndef KRI_CPU_AVX2_BLOCK_AVX2_H
#define KRI_CPU_AVX2_BLOCK_AVX2_H

#include <immintrin.h>
#include <stdbool.h>

#include "cpu/avx2/tile_avx2.h"
#include "ops/pack.h"

#define SUPER_BLOCKS 8u /* 32-blocks of a 256 */

/* Unpacked blocks, as many as share the super-scales of the K types. */
typedef struct panel_s {
    uint8_t w[SUPER_BLOCKS][8][64];
    uint8_t magnitude[SUPER_BLOCKS][8][64]; /* q8_0: |w| */
    uint32_t sc[SUPER_BLOCKS][2][KRI_GROUP_ROWS]; /* q6_k: scale_pairs of k < 16, of k >= 16 */
    float d[SUPER_BLOCKS][KRI_GROUP_ROWS];        /* q6_k: [0] only, of the 256 */
    float m[SUPER_BLOCKS][KRI_GROUP_ROWS];
} panel_t;

/* Where a tile's weights come from. */
typedef struct source_s {
    const uint8_t *super, *scales, *quants; /* sections of the group */
    const uint8_t *ahead; /* bytes to prefetch meanwhile, as many as the group has, or NULL */
    const panel_t *panel;
    size_t quant_bytes;
    size_t n_blocks;
} source_t;

/* A 32-block of weights, packed or in a panel, and the tokens that meet it. */
typedef struct meeting_s {
    kr_dtype_t type;
    bool from_panel;
    unsigned n; /* tokens; constant like the two above */
    const source_t *source;
    size_t b;
    const uint8_t *act; /* block b of the first token */
    size_t act_stride;
} meeting_t;

typedef struct dots_s {
    __m256i sum[2][TILE_TOKENS]; /* [half][token] */
} dots_t;

INLINE __m256i load(const uint8_t *p) {
    return _mm256_load_si256((const void *)p);
}

INLINE __m256 halfs_load(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_load_si128((const void *)p));
}

INLINE __m256 bytes_load(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)));
}

INLINE __m256 signed_bytes_load(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}

/* ---- unpacking: `half` picks rows 0..7 or 8..15, u is the unpacked vector (pack.h) ---------- */

INLINE __m256i nibbles_get(const uint8_t *p, unsigned u, unsigned half) {
    const __m256i x = load(p + 64u * (u % 4u) + 32u * half);
    return _mm256_and_si256(u < 4 ? x : _mm256_srli_epi16(x, 4), _mm256_set1_epi8(0x0f));
}

/* Bit i of a 32-bit word becomes bit 4 of byte i: every byte gets the word's byte i / 8, then only
 * its own bit is looked at. */
INLINE __m256i fifth_bits_get(const uint8_t *high, unsigned u, unsigned half) {
    const __m256i spread = _mm256_setr_epi64x(0x0000000000000000, 0x0101010101010101,
                                              0x0202020202020202, 0x0303030303030303);
    const __m256i own = _mm256_set1_epi64x((long long)0x8040201008040201ull);
    int32_t word;
    __builtin_memcpy(&word, high + 8u * u + 4u * half, sizeof word);
    const __m256i x = _mm256_shuffle_epi8(_mm256_set1_epi32(word), spread);
    const __m256i on = _mm256_cmpeq_epi8(_mm256_and_si256(x, own), own);
    return _mm256_and_si256(on, _mm256_set1_epi8(0x10));
}

/* Bits 4..5 of vector u lie at bits 2 (u % 4) of the bytes of two[u / 4]. The shifts cross byte
 * borders, which the mask undoes. */
INLINE __m256i two_bits_get(const uint8_t *two, unsigned u, unsigned half) {
    __m256i x = load(two + 64u * (u / 4u) + 32u * half);
    switch (u % 4u) {
    case 0: x = _mm256_slli_epi16(x, 4); break;
    case 1: x = _mm256_slli_epi16(x, 2); break;
    case 2: break;
    default: x = _mm256_srli_epi16(x, 2); break;
    }
    return _mm256_and_si256(x, _mm256_set1_epi8(0x30));
}

/* Vector u of a 32-block: unsigned quants, except for q8_0, where the zero point is taken off. */
INLINE __m256i weights_get(kr_dtype_t type, const uint8_t *quants, unsigned u, unsigned half) {
    switch (type) {
    case KR_DTYPE_Q8_0:
        return _mm256_xor_si256(load(quants + 64u * u + 32u * half),
                                _mm256_set1_epi8((char)0x80));
    case KR_DTYPE_Q5_0:
    case KR_DTYPE_Q5_1:
    case KR_DTYPE_Q5_K:
        return _mm256_or_si256(nibbles_get(quants + 64, u, half),
                               fifth_bits_get(quants, u, half));
    case KR_DTYPE_Q6_K:
        return _mm256_or_si256(nibbles_get(quants + 128, u, half),
                               two_bits_get(quants, u, half));
    default: return nibbles_get(quants, u, half);
    }
}

/* ---- scales of the 8 rows of a half -------------------------------------------------------- */

/* (s, s) as two int16 of each 32-bit lane: the operand of vpmaddwd. */
INLINE __m256i scale_pairs(__m256i s) {
    return _mm256_or_si256(_mm256_and_si256(s, _mm256_set1_epi32(0xffff)),
                           _mm256_slli_epi32(s, 16));
}

/* q6_k: integer scale of k < 16 or k >= 16. */
INLINE __m256i block_scale_pairs(const meeting_t *m, unsigned half, bool second) {
    const source_t *s = m->source;
    if (m->from_panel) return load((const void *)(s->panel->sc[m->b][second] + 8u * half));
    const uint8_t *p = s->scales + 32u * m->b + 8u * half + (second ? 16u : 0u);
    return scale_pairs(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}

/* q6_k: scale of the 256 that block b belongs to; others: scale of block b. */
INLINE __m256 block_scale(const meeting_t *m, unsigned half) {
    const source_t *s = m->source;
    if (m->from_panel) {
        return _mm256_load_ps(s->panel->d[m->type == KR_DTYPE_Q6_K ? 0 : m->b] + 8u * half);
    }
    switch (m->type) {
    case KR_DTYPE_Q4_K:
    case KR_DTYPE_Q5_K:
        return _mm256_mul_ps(halfs_load(s->super + 64u * (m->b / SUPER_BLOCKS) + 16u * half),
                             bytes_load(s->scales + 32u * m->b + 8u * half));
    case KR_DTYPE_Q6_K: return halfs_load(s->super + 32u * (m->b / SUPER_BLOCKS) + 16u * half);
    case KR_DTYPE_Q4_1:
    case KR_DTYPE_Q5_1: return halfs_load(s->scales + 64u * m->b + 16u * half);
    default: return halfs_load(s->scales + 32u * m->b + 16u * half);
    }
}

/* q4_1 q5_1: m, added; q4_k q5_k: dmin * mn, subtracted. */
INLINE __m256 block_minimum(const meeting_t *m, unsigned half) {
    const source_t *s = m->source;
    if (m->from_panel) return _mm256_load_ps(s->panel->m[m->b] + 8u * half);
    if (m->type == KR_DTYPE_Q4_K || m->type == KR_DTYPE_Q5_K) {
        const uint8_t *dmin = s->super + 64u * (m->b / SUPER_BLOCKS) + 32u + 16u * half;
        return _mm256_mul_ps(halfs_load(dmin), bytes_load(s->scales + 32u * m->b + 16u +
                                                          8u * half));
    }
    return halfs_load(s->scales + 64u * m->b + 32u + 16u * half);
}

INLINE bool has_minimum(kr_dtype_t type) {
    return type == KR_DTYPE_Q4_1 || type == KR_DTYPE_Q5_1 || type == KR_DTYPE_Q4_K ||
           type == KR_DTYPE_Q5_K;
}

/* Blocks [from, from + n) of the group into the panel. */
INLINE void panel_fill(kr_dtype_t type, const source_t *s, size_t from, size_t n,
                       panel_t *panel) {
    for (size_t b = 0; b < n; b++) {
        const meeting_t m = {.type = type, .source = s, .b = from + b};
        const uint8_t *quants = s->quants + (from + b) * s->quant_bytes;
        UNROLL for (unsigned half = 0; half < 2; half++) {
            UNROLL for (unsigned u = 0; u < 8; u++) {
                const __m256i w = weights_get(type, quants, u, half);
                _mm256_store_si256((void *)(panel->w[b][u] + 32u * half), w);
                if (type == KR_DTYPE_Q8_0) {
                    _mm256_store_si256((void *)(panel->magnitude[b][u] + 32u * half),
                                       _mm256_abs_epi8(w));
                }
            }
            if (type == KR_DTYPE_Q6_K) {
                _mm256_store_si256((void *)(panel->sc[b][0] + 8u * half),
                                   block_scale_pairs(&m, half, false));
                _mm256_store_si256((void *)(panel->sc[b][1] + 8u * half),
                                   block_scale_pairs(&m, half, true));
            }
            if (type != KR_DTYPE_Q6_K || b == 0) {
                _mm256_store_ps(panel->d[b] + 8u * half, block_scale(&m, half));
            }
            if (has_minimum(type)) {
                _mm256_store_ps(panel->m[b] + 8u * half, block_minimum(&m, half));
            }
        }
    }
}

/* ---- integer dot products ------------------------------------------------------------------ */

INLINE __m256i block_weights(const meeting_t *m, unsigned u, unsigned half) {
    if (m->from_panel) return load(m->source->panel->w[m->b][u] + 32u * half);
    return weights_get(m->type, m->source->quants + m->b * m->source->quant_bytes, u, half);
}

INLINE const kri_q8_block_t *token_block(const meeting_t *m, unsigned t) {
    return (const void *)(m->act + t * m->act_stride);
}

INLINE __m256i quad_broadcast(const void *q) {
    int32_t v;
    __builtin_memcpy(&v, q, sizeof v);
    return _mm256_set1_epi32(v);
}

/* An addition the compiler must do here and now: regrouped sums keep all products alive at once,
 * and they do not fit the registers. */
INLINE __m256i pinned(__m256i sum) {
    __asm__("" : "+x"(sum));
    return sum;
}

/* What the first vector of a run meets: nothing, the run's own sum, or a start value. */
typedef enum begin_e { BEGIN_NONE, BEGIN_SUM, BEGIN_ZERO_HALF, BEGIN_ZERO_BLOCK } begin_t;

/* zero * (sum of the activations) of each int16 lane: of the half that vector u lies in, or of the
 * whole block. The bias of the sums is shifted out. */
INLINE __m256i zero_lanes(const meeting_t *m, unsigned t, unsigned u, begin_t begin) {
    const kri_q8_block_t *a = token_block(m, t);
    const int shift = m->type == KR_DTYPE_Q6_K ? 5 : m->type == KR_DTYPE_Q5_0 ? 4 : 3;
    __m256i sums = quad_broadcast(a->sums[u / 4u]);
    if (begin == BEGIN_ZERO_BLOCK) sums = _mm256_add_epi16(sums, quad_broadcast(a->sums[1]));
    return _mm256_slli_epi16(sums, shift);
}

/* Adds vector u to int16 pair sums. The runs below name their vectors one by one because clang
 * does not unroll a loop over them. */
INLINE void pairs_add(const meeting_t *m, unsigned u, begin_t begin, dots_t *dots) {
    const __m256i w0 = block_weights(m, u, 0), w1 = block_weights(m, u, 1);
    UNROLL for (unsigned t = 0; t < m->n; t++) {
        const __m256i a = quad_broadcast(token_block(m, t)->q + 4u * u);
        __m256i p0 = _mm256_maddubs_epi16(w0, a), p1 = _mm256_maddubs_epi16(w1, a);
        if (begin == BEGIN_SUM) {
            p0 = pinned(_mm256_add_epi16(dots->sum[0][t], p0));
            p1 = pinned(_mm256_add_epi16(dots->sum[1][t], p1));
        } else if (begin != BEGIN_NONE) {
            const __m256i zero = zero_lanes(m, t, u, begin);
            p0 = pinned(_mm256_sub_epi16(p0, zero));
            p1 = pinned(_mm256_sub_epi16(p1, zero));
        }
        dots->sum[0][t] = p0;
        dots->sum[1][t] = p1;
    }
}

/* int16 pairs to int32, times q6_k's integer scale. */
INLINE void widen(const meeting_t *m, bool second, dots_t *dots) {
    __m256i s0 = _mm256_set1_epi16(1), s1 = s0;
    if (m->type == KR_DTYPE_Q6_K) {
        s0 = block_scale_pairs(m, 0, second);
        s1 = block_scale_pairs(m, 1, second);
    }
    UNROLL for (unsigned t = 0; t < m->n; t++) {
        dots->sum[0][t] = _mm256_madd_epi16(dots->sum[0][t], s0);
        dots->sum[1][t] = _mm256_madd_epi16(dots->sum[1][t], s1);
    }
}

/* Dot products over four and all eight vectors: as far as int16 carries. */
INLINE void dots_4(const meeting_t *m, unsigned u, begin_t begin, bool second, dots_t *dots) {
    pairs_add(m, u, begin, dots);
    pairs_add(m, u + 1, BEGIN_SUM, dots);
    pairs_add(m, u + 2, BEGIN_SUM, dots);
    pairs_add(m, u + 3, BEGIN_SUM, dots);
    widen(m, second, dots);
}

INLINE void dots_8(const meeting_t *m, begin_t begin, dots_t *dots) {
    pairs_add(m, 0, begin, dots);
    pairs_add(m, 1, BEGIN_SUM, dots);
    pairs_add(m, 2, BEGIN_SUM, dots);
    pairs_add(m, 3, BEGIN_SUM, dots);
    pairs_add(m, 4, BEGIN_SUM, dots);
    pairs_add(m, 5, BEGIN_SUM, dots);
    pairs_add(m, 6, BEGIN_SUM, dots);
    pairs_add(m, 7, BEGIN_SUM, dots);
    widen(m, false, dots);
}

INLINE void dots_add(const meeting_t *m, dots_t *dots, const dots_t *other) {
    UNROLL for (unsigned t = 0; t < m->n; t++) {
        dots->sum[0][t] = _mm256_add_epi32(dots->sum[0][t], other->sum[0][t]);
        dots->sum[1][t] = _mm256_add_epi32(dots->sum[1][t], other->sum[1][t]);
    }
}

INLINE __m256i wide_products(__m256i w, __m256i magnitude, __m256i a) {
    const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(a, w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/* |w| of 8-bit weights. */
INLINE __m256i block_magnitudes(const meeting_t *m, unsigned u, unsigned half, __m256i w) {
    if (m->from_panel) return load(m->source->panel->magnitude[m->b][u] + 32u * half);
    return _mm256_abs_epi8(w);
}

INLINE void wide_add(const meeting_t *m, unsigned u, bool first, dots_t *dots) {
    const __m256i w0 = block_weights(m, u, 0), w1 = block_weights(m, u, 1);
    const __m256i m0 = block_magnitudes(m, u, 0, w0), m1 = block_magnitudes(m, u, 1, w1);
    UNROLL for (unsigned t = 0; t < m->n; t++) {
        const __m256i a = quad_broadcast(token_block(m, t)->q + 4u * u);
        const __m256i p0 = wide_products(w0, m0, a), p1 = wide_products(w1, m1, a);
        dots->sum[0][t] = first ? p0 : pinned(_mm256_add_epi32(dots->sum[0][t], p0));
        dots->sum[1][t] = first ? p1 : pinned(_mm256_add_epi32(dots->sum[1][t], p1));
    }
}

/* 8-bit weights. */
INLINE void wide_dots(const meeting_t *m, dots_t *dots) {
    wide_add(m, 0, true, dots);
    wide_add(m, 1, false, dots);
    wide_add(m, 2, false, dots);
    wide_add(m, 3, false, dots);
    wide_add(m, 4, false, dots);
    wide_add(m, 5, false, dots);
    wide_add(m, 6, false, dots);
    wide_add(m, 7, false, dots);
}

/* The block's integer of kernels.h, which float conversion follows. */
INLINE void block_dots(const meeting_t *m, dots_t *dots) {
    dots_t other;
    switch (m->type) {
    case KR_DTYPE_Q8_0: wide_dots(m, dots); break;
    case KR_DTYPE_Q4_0:
    case KR_DTYPE_Q5_0: dots_8(m, BEGIN_ZERO_BLOCK, dots); break;
    case KR_DTYPE_Q5_1:
    case KR_DTYPE_Q5_K:
        dots_4(m, 0, BEGIN_NONE, false, dots);
        dots_4(m, 4, BEGIN_NONE, false, &other);
        dots_add(m, dots, &other);
        break;
    case KR_DTYPE_Q6_K:
        dots_4(m, 0, BEGIN_ZERO_HALF, false, dots);
        dots_4(m, 4, BEGIN_ZERO_HALF, true, &other);
        dots_add(m, dots, &other);
        break;
    default: dots_8(m, BEGIN_NONE, dots); break;
    }
}

/* ---- the float steps of kernels.h ---------------------------------------------------------- */

INLINE void minimum_add(const meeting_t *m, __m256 acc[2][TILE_TOKENS]) {
    const __m256 m0 = block_minimum(m, 0), m1 = block_minimum(m, 1);
    UNROLL for (unsigned t = 0; t < m->n; t++) {
        const __m256 ds = _mm256_set1_ps(token_block(m, t)->ds);
        if (m->type == KR_DTYPE_Q4_K || m->type == KR_DTYPE_Q5_K) {
            acc[0][t] = _mm256_fnmadd_ps(m0, ds, acc[0][t]);
            acc[1][t] = _mm256_fnmadd_ps(m1, ds, acc[1][t]);
        } else {
            acc[0][t] = _mm256_fmadd_ps(m0, ds, acc[0][t]);
            acc[1][t] = _mm256_fmadd_ps(m1, ds, acc[1][t]);
        }
    }
}

/* One 32-block: of the sum itself, or for q6_k of the part over the 256. */
INLINE void block_step(const meeting_t *m, __m256 acc[2][TILE_TOKENS]) {
    dots_t dots;
    block_dots(m, &dots);
    if (m->type == KR_DTYPE_Q6_K) {
        UNROLL for (unsigned t = 0; t < m->n; t++) {
            const __m256 da = _mm256_set1_ps(token_block(m, t)->d);
            acc[0][t] = _mm256_fmadd_ps(da, _mm256_cvtepi32_ps(dots.sum[0][t]), acc[0][t]);
            acc[1][t] = _mm256_fmadd_ps(da, _mm256_cvtepi32_ps(dots.sum[1][t]), acc[1][t]);
        }
        return;
    }
    const __m256 d0 = block_scale(m, 0), d1 = block_scale(m, 1);
    UNROLL for (unsigned t = 0; t < m->n; t++) {
        const __m256 da = _mm256_set1_ps(token_block(m, t)->d);
        acc[0][t] = _mm256_fmadd_ps(_mm256_mul_ps(d0, da), _mm256_cvtepi32_ps(dots.sum[0][t]),
                                    acc[0][t]);
        acc[1][t] = _mm256_fmadd_ps(_mm256_mul_ps(d1, da), _mm256_cvtepi32_ps(dots.sum[1][t]),
                                    acc[1][t]);
    }
    if (has_minimum(m->type)) minimum_add(m, acc);
}

#endif
