/* unpack.h: packed groups (pack.h) into operands of the matrix unit, on AVX-512 registers.
 * One 32-block of a group of 16 rows becomes eight vectors [16 rows][4 k] of unsigned bytes, and
 * these one bf16 tile [16 pairs of k][16 rows][2] with scales inside. */
#ifndef KRI_CPU_AMX_UNPACK_H
#define KRI_CPU_AMX_UNPACK_H

#include "cpu/amx/tile.h"
#include "ops/kernels.h"
#include "ops/pack.h"

typedef struct group_s {
    const uint8_t *super, *scales, *quants;
} group_t;

INLINE group_t group_at(const uint8_t *w, const kri_pack_layout_t *l, size_t g) {
    const uint8_t *group = w + g * l->group_bytes;
    return (group_t){group + l->super, group + l->scales, group + l->quants};
}

/* Bytes of the quants of one 32-block. */
INLINE size_t quant_bytes(kr_dtype_t type) {
    switch (type) {
    case KR_DTYPE_Q5_0:
    case KR_DTYPE_Q5_1:
    case KR_DTYPE_Q5_K: return 320;
    case KR_DTYPE_Q6_K: return 384;
    case KR_DTYPE_Q8_0: return 512;
    default: return 256;
    }
}

INLINE void nibbles_unpack(const uint8_t *p, __m512i w[8]) {
    const __m512i low = _mm512_set1_epi8(0x0f);
    UNROLL for (unsigned v = 0; v < 4; v++) {
        const __m512i x = _mm512_load_si512(p + 64u * v);
        w[v] = _mm512_and_si512(x, low);
        w[v + 4] = _mm512_and_si512(_mm512_srli_epi16(x, 4), low);
    }
}

INLINE void quants_unpack(kr_dtype_t type, const uint8_t *p, __m512i w[8]) {
    switch (type) {
    case KR_DTYPE_Q8_0:
        UNROLL for (unsigned u = 0; u < 8; u++) w[u] = _mm512_load_si512(p + 64u * u);
        break;
    case KR_DTYPE_Q5_0:
    case KR_DTYPE_Q5_1:
    case KR_DTYPE_Q5_K: {
        const __m512i bit = _mm512_set1_epi8(0x10);
        nibbles_unpack(p + 64, w);
        UNROLL for (unsigned u = 0; u < 8; u++) {
            const __mmask64 mask = _load_mask64((__mmask64 *)(uintptr_t)(p + 8u * u));
            w[u] = _mm512_mask_add_epi8(w[u], mask, w[u], bit);
        }
        break;
    }
    case KR_DTYPE_Q6_K: {
        const __m512i mask = _mm512_set1_epi8(0x30);
        nibbles_unpack(p + 128, w);
        UNROLL for (unsigned h = 0; h < 2; h++) {
            const __m512i x = _mm512_load_si512(p + 64u * h);
            const __m512i part[4] = {_mm512_slli_epi16(x, 4), _mm512_slli_epi16(x, 2), x,
                                     _mm512_srli_epi16(x, 2)};
            UNROLL for (unsigned i = 0; i < 4; i++) { /* 0xea: (part & mask) | w */
                w[4 * h + i] = _mm512_ternarylogic_epi32(part[i], mask, w[4 * h + i], 0xea);
            }
        }
        break;
    }
    default: nibbles_unpack(p, w); break;
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

/* Scales of block b, lane = row; d[1] is of k >= 16 (q6_k only, else unset). `m`: the minimum as
 * the format has it: added (q4_1 q5_1) or subtracted (q4_k q5_k), unset for types without. */
typedef struct scales_s {
    __m512 d[2], m;
} scales_t;

INLINE scales_t scales_load(kr_dtype_t type, const group_t *g, size_t b) {
    scales_t s;
    s.d[0] = s.d[1] = s.m = _mm512_setzero_ps();
    switch (type) {
    case KR_DTYPE_Q4_1:
    case KR_DTYPE_Q5_1:
        s.d[0] = halfs_load(g->scales + 64u * b);
        s.m = halfs_load(g->scales + 64u * b + 32u);
        break;
    case KR_DTYPE_Q4_K:
    case KR_DTYPE_Q5_K: {
        const uint8_t *super = g->super + 64u * (b / 8u);
        s.d[0] = _mm512_mul_ps(halfs_load(super), bytes_load(g->scales + 32u * b));
        s.m = _mm512_mul_ps(halfs_load(super + 32), bytes_load(g->scales + 32u * b + 16u));
        break;
    }
    case KR_DTYPE_Q6_K: {
        const __m512 d = halfs_load(g->super + 32u * (b / 8u));
        s.d[0] = _mm512_mul_ps(d, signed_bytes_load(g->scales + 32u * b));
        s.d[1] = _mm512_mul_ps(d, signed_bytes_load(g->scales + 32u * b + 16u));
        break;
    }
    default: s.d[0] = halfs_load(g->scales + 32u * b); break;
    }
    return s;
}

/* value = scale * q + offset, for both halves of the block. */
INLINE void offsets_make(kr_dtype_t type, const scales_t *s, __m512 offset[2]) {
    switch (type) {
    case KR_DTYPE_Q4_1:
    case KR_DTYPE_Q5_1: offset[0] = offset[1] = s->m; break;
    case KR_DTYPE_Q4_K:
    case KR_DTYPE_Q5_K:
        offset[0] = offset[1] = _mm512_xor_ps(s->m, _mm512_set1_ps(-0.0f));
        break;
    case KR_DTYPE_Q6_K:
        offset[0] = _mm512_mul_ps(s->d[0], _mm512_set1_ps(-32.0f));
        offset[1] = _mm512_mul_ps(s->d[1], _mm512_set1_ps(-32.0f));
        break;
    default: {
        const float zero = type == KR_DTYPE_Q4_0 ? -8.0f : type == KR_DTYPE_Q5_0 ? -16.0f : -128.0f;
        offset[0] = offset[1] = _mm512_mul_ps(s->d[0], _mm512_set1_ps(zero));
        break;
    }
    }
}

/* Two vectors of 16 rows (k and k + 1) into one row of a bf16 tile: pairs (k, k + 1) by row. */
INLINE __m512i pair_rows(__m512 k0, __m512 k1) {
    static const _Alignas(64) uint16_t order[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(k1, k0);
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), both);
}

/* Block b of a group as a bf16 tile. */
INLINE void block_to_tile(kr_dtype_t type, const group_t *g, size_t b, uint8_t *tile) {
    const __m512i low = _mm512_set1_epi32(0xff);
    __m512i w[8];
    __m512 offset[2];
    const scales_t s = scales_load(type, g, b);
    const unsigned halves = type == KR_DTYPE_Q6_K ? 2 : 1;
    offsets_make(type, &s, offset);
    quants_unpack(type, g->quants + b * quant_bytes(type), w);
    UNROLL for (unsigned u = 0; u < 8; u++) {
        const unsigned h = halves == 2 ? u / 4 : 0;
        const __m512i q[4] = {_mm512_and_si512(w[u], low),
                              _mm512_and_si512(_mm512_srli_epi32(w[u], 8), low),
                              _mm512_and_si512(_mm512_srli_epi32(w[u], 16), low),
                              _mm512_srli_epi32(w[u], 24)};
        __m512 f[4];
        UNROLL for (unsigned i = 0; i < 4; i++)
            f[i] = _mm512_fmadd_ps(s.d[h], _mm512_cvtepi32_ps(q[i]), offset[h]);
        _mm512_store_si512(tile + 128u * u, pair_rows(f[0], f[1]));
        _mm512_store_si512(tile + 128u * u + 64u, pair_rows(f[2], f[3]));
    }
}

/* 32 k of a float group ([k][16] elements) as a bf16 tile. */
INLINE void f16_to_tile(const uint8_t *src, uint8_t *tile) {
    UNROLL for (unsigned p = 0; p < 16; p++)
        _mm512_store_si512(tile + 64u * p,
                           pair_rows(halfs_load(src + 64u * p), halfs_load(src + 64u * p + 32u)));
}
INLINE void bf16_to_tile(const uint8_t *src, uint8_t *tile) {
    static const _Alignas(64) uint16_t order[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    UNROLL for (unsigned p = 0; p < 16; p++)
        _mm512_store_si512(tile + 64u * p,
                           _mm512_permutexvar_epi16(_mm512_load_si512(order),
                                                    _mm512_load_si512(src + 64u * p)));
}

#endif
