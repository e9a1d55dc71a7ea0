/* attn_avx512.h: what the attention kernels of AVX-512 over floats (attention_avx512.c) and over
 * 8-bit integers (attention_i8_avx512.c) share: reductions, dot products, softmax of a block's
 * scores, merging of spans. */
#ifndef KRI_CPU_ATTN_AVX512_H
#define KRI_CPU_ATTN_AVX512_H

#include "cpu/attn_tile.h"
#include "cpu/avx512/vmath_avx512.h"

#define LANES 16u
#define QUERIES 6u /* of a register tile */
#define VECTORS 4u /* of a register tile: 64 keys or 64 dimensions */
#define VALUE_WIDTH (VECTORS * LANES)

/* One number per vector: lane i of the result is the sum (or the maximum, or the integer maximum)
 * of x[i], by the same tree whatever i is. */
typedef enum reduce_e {
    REDUCE_SUM,
    REDUCE_MAX,
    REDUCE_SUM_INTEGERS, /* of 32 bits */
    REDUCE_MAX_BITS,     /* of 32 bits, not negative */
    REDUCE_MAX_HALVES    /* of 16 bits; two of them a lane */
} reduce_t;

KRI_INLINE __m512 combine(__m512 a, __m512 b, const reduce_t op) {
    if (op == REDUCE_SUM) {
        return _mm512_add_ps(a, b);
    }
    if (op == REDUCE_MAX) {
        return _mm512_max_ps(a, b);
    }
    const __m512i x = _mm512_castps_si512(a), y = _mm512_castps_si512(b);
    return _mm512_castsi512_ps(op == REDUCE_SUM_INTEGERS ? _mm512_add_epi32(x, y)
                               : op == REDUCE_MAX_BITS   ? _mm512_max_epi32(x, y)
                                                         : _mm512_max_epu16(x, y));
}

KRI_INLINE __m512 reduce_16(const __m512 x[LANES], const reduce_t op) {
    __m512 y[8], z[4], u[2];
    KRI_UNROLL
    for (size_t i = 0; i < 8u; i++) { /* parts 0, 1: of x[i]; 2, 3: of x[i + 8] */
        y[i] = combine(_mm512_shuffle_f32x4(x[i], x[i + 8u], 0x88),
                       _mm512_shuffle_f32x4(x[i], x[i + 8u], 0xDD), op);
    }
    KRI_UNROLL
    for (size_t i = 0; i < 4u; i++) { /* parts: of x[i], x[i + 8], x[i + 4], x[i + 12] */
        z[i] = combine(_mm512_shuffle_f32x4(y[i], y[i + 4u], 0x88),
                       _mm512_shuffle_f32x4(y[i], y[i + 4u], 0xDD), op);
    }
    KRI_UNROLL
    for (size_t i = 0; i < 2u; i++) { /* in each part: two of z[i], two of z[i + 2] */
        const __m512d a = _mm512_castps_pd(z[i]), b = _mm512_castps_pd(z[i + 2u]);
        u[i] = combine(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)), op);
    }
    const __m512 mixed = combine(_mm512_shuffle_ps(u[0], u[1], 0x88),
                                 _mm512_shuffle_ps(u[0], u[1], 0xDD), op);
    /* Part p holds x[base[p] + 0, 2, 1, 3] with base 0, 8, 4, 12. */
    const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    return _mm512_permutexvar_ps(order, mixed);
}

/* sum + four products u8 * s8 a lane, or two products s16 * s16. Not the intrinsics: around them
 * gcc 12 copies and spills the sums of a large register tile, which takes twice the time. */
KRI_INLINE __m512i dot_add(__m512i sum, __m512i keys, __m512i q, const uint32_t qk_bits) {
    if (qk_bits == 8u) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(keys), "v"(q));
    } else {
        __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(keys), "v"(q));
    }
    return sum;
}

/* Lanes of vector j of the block that lie in the range. */
KRI_INLINE __mmask16 visible_lanes(attn_range_t keys, size_t j) {
    const size_t base = j * LANES;
    const size_t end = keys.end > base ? keys.end - base : 0;
    const size_t begin = keys.begin > base ? keys.begin - base : 0;
    return (__mmask16)(lanes_below(end) & ~lanes_below(begin));
}

/* Soft cap and mask the scores of one query; the largest of each lane. */
KRI_INLINE __m512 cap_and_mask(const attn_tile_t *tile, attn_range_t keys, float *scores) {
    const float softcap = tile->args->softcap;
    const __m512 caps = _mm512_set1_ps(tile->cap);
    const __m512 inverse = _mm512_set1_ps(softcap > 0.0f ? 1.0f / softcap : 0.0f);
    __m512 largest = _mm512_set1_ps(-INFINITY);
    for (size_t j = 0; j < VECTORS; j++) {
        const __mmask16 visible = visible_lanes(keys, j);
        __m512 s = _mm512_maskz_load_ps(visible, scores + j * LANES);
        if (softcap > 0.0f) {
            s = _mm512_mul_ps(caps, vector_tanh(_mm512_mul_ps(s, inverse)));
        }
        s = _mm512_mask_blend_ps(visible, _mm512_set1_ps(-INFINITY), s);
        largest = _mm512_max_ps(largest, s);
        _mm512_store_ps(scores + j * LANES, s);
    }
    return largest;
}

/* The largest of each lane of a query that sees the whole block. */
KRI_INLINE __m512 largest_lanes(const float *scores) {
    __m512 s[VECTORS];
    KRI_UNROLL
    for (size_t j = 0; j < VECTORS; j++) {
        s[j] = _mm512_load_ps(scores + j * LANES);
    }
    return _mm512_max_ps(_mm512_max_ps(s[0], s[1]), _mm512_max_ps(s[2], s[3]));
}

/* Scores -> weights of one query; their sum in each lane. */
KRI_INLINE __m512 weigh(float *scores, float max) {
    const __m512 largest = _mm512_set1_ps(max);
    __m512 w[VECTORS];
    KRI_UNROLL
    for (size_t j = 0; j < VECTORS; j++) {
        w[j] = vector_exp2_weight(_mm512_sub_ps(_mm512_load_ps(scores + j * LANES), largest));
        _mm512_store_ps(scores + j * LANES, w[j]);
    }
    return _mm512_add_ps(_mm512_add_ps(w[0], w[1]), _mm512_add_ps(w[2], w[3]));
}

static void merge_queries(const attn_tile_t *tile, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i += LANES) {
        const __mmask16 lanes = lanes_below(end - i);
        const __m512 old = _mm512_maskz_loadu_ps(lanes, tile->total_max + i);
        const __m512 max = _mm512_maskz_loadu_ps(lanes, tile->max + i);
        const __m512 next = _mm512_max_ps(max, old);
        const __m512 old_decay = vector_exp2_weight(_mm512_sub_ps(old, next));
        const __m512 decay = vector_exp2_weight(_mm512_sub_ps(max, next));
        const __m512 old_sum = _mm512_maskz_loadu_ps(lanes, tile->total_sum + i);
        const __m512 sum = _mm512_maskz_loadu_ps(lanes, tile->sum + i);
        _mm512_mask_storeu_ps(tile->total_max + i, lanes, next);
        _mm512_mask_storeu_ps(tile->total_decay + i, lanes, old_decay);
        _mm512_mask_storeu_ps(tile->decay + i, lanes, decay);
        _mm512_mask_storeu_ps(
            tile->total_sum + i, lanes,
            _mm512_fmadd_ps(old_sum, old_decay, _mm512_mul_ps(sum, decay)));
    }
    for (size_t i = begin; i < end; i++) {
        const __m512 old_decay = _mm512_set1_ps(tile->total_decay[i]);
        const __m512 decay = _mm512_set1_ps(tile->decay[i]);
        float *total = tile->total + i * tile->head_dim, *acc = tile->acc + i * tile->head_dim;
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            const __m512 y = _mm512_mul_ps(_mm512_load_ps(acc + d), decay);
            _mm512_store_ps(total + d, _mm512_fmadd_ps(_mm512_load_ps(total + d), old_decay, y));
        }
    }
}

static void write_queries(const attn_tile_t *tile) {
    const kri_attn_args_t *args = tile->args;
    for (size_t i = 0; i < tile->n_queries; i++) {
        const size_t row = i / args->n_heads;
        float *out = args->out + row * args->out_stride + i % args->n_heads * tile->head_dim;
        const __m512 factor = _mm512_set1_ps(1.0f / tile->total_sum[i]);
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            const __m512 y = _mm512_load_ps(tile->total + i * tile->head_dim + d);
            _mm512_storeu_ps(out + d, _mm512_mul_ps(y, factor));
        }
    }
}

#endif
