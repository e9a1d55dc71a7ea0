/* attn_avx2.h: what the attention kernels of AVX2 over floats (attention_avx2.c) and over 8-bit
 * integers (attention_i8_avx2.c) share: reductions, dot products, softmax of a block's scores,
 * merging of spans. */
#ifndef KRI_CPU_ATTN_AVX2_H
#define KRI_CPU_ATTN_AVX2_H

#include "cpu/attn_tile.h"
#include "cpu/avx2/vmath_avx2.h"

#define LANES 8u
#define QUERIES 6u      /* of a register tile of two vectors */
#define WIDE_QUERIES 3u /* of a register tile of four vectors */
#define VECTORS 4u
#define STEP 16u        /* keys or dimensions of two vectors; keys: a page */
#define VALUE_WIDTH (VECTORS * LANES)
#define BLOCK_VECTORS (KRI_ATTN_BLOCK / LANES)

/* One number per vector: lane i of the result is the sum (or the maximum, or the integer maximum)
 * of x[i], by the same tree whatever i is. */
typedef enum reduce_e { REDUCE_SUM, REDUCE_MAX, REDUCE_MAX_BITS } reduce_t;

KRI_INLINE __m256 combine(__m256 a, __m256 b, const reduce_t op) {
    if (op == REDUCE_SUM) {
        return _mm256_add_ps(a, b);
    }
    if (op == REDUCE_MAX) {
        return _mm256_max_ps(a, b);
    }
    return _mm256_castsi256_ps(
        _mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}

KRI_INLINE __m256 reduce_8(const __m256 x[LANES], const reduce_t op) {
    __m256 y[4], z[2];
    KRI_UNROLL
    for (size_t i = 0; i < 4u; i++) { /* halves: of x[i], x[i + 4] */
        y[i] = combine(_mm256_permute2f128_ps(x[i], x[i + 4u], 0x20),
                       _mm256_permute2f128_ps(x[i], x[i + 4u], 0x31), op);
    }
    KRI_UNROLL
    for (size_t i = 0; i < 2u; i++) { /* in each half: two of y[i], two of y[i + 2] */
        const __m256d a = _mm256_castps_pd(y[i]), b = _mm256_castps_pd(y[i + 2u]);
        z[i] = combine(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                       _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)), op);
    }
    const __m256 mixed = combine(_mm256_shuffle_ps(z[0], z[1], 0x88),
                                 _mm256_shuffle_ps(z[0], z[1], 0xDD), op);
    /* Halves hold x[0, 2, 1, 3] and x[4, 6, 5, 7]. */
    return _mm256_permute_ps(mixed, 0xD8);
}

KRI_INLINE __m256i broadcast_pair(const int16_t *at) {
    int32_t pair;
    memcpy(&pair, at, sizeof pair);
    return _mm256_set1_epi32(pair);
}

/* sum + two products a lane. The empty statement keeps gcc 12 from doing all products of a register
 * tile before the sums, which then do not fit into registers. */
KRI_INLINE __m256i dot_2_add(__m256i sum, __m256i a, __m256i b) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    __asm__("" : "+x"(sum));
    return sum;
}

/* All bits set in the lanes of vector j of the block that lie in the range. */
KRI_INLINE __m256 visible_lanes(attn_range_t keys, size_t j) {
    const size_t base = j * LANES;
    const size_t end = keys.end > base ? keys.end - base : 0;
    const size_t begin = keys.begin > base ? keys.begin - base : 0;
    return _mm256_castsi256_ps(_mm256_andnot_si256(lanes_below(begin), lanes_below(end)));
}

/* Soft cap and mask the scores of one query; the largest of each lane. */
KRI_INLINE __m256 cap_and_mask(const attn_tile_t *tile, attn_range_t keys, float *scores) {
    const float softcap = tile->args->softcap;
    const __m256 caps = _mm256_set1_ps(tile->cap);
    const __m256 inverse = _mm256_set1_ps(softcap > 0.0f ? 1.0f / softcap : 0.0f);
    __m256 largest = _mm256_set1_ps(-INFINITY);
    for (size_t j = 0; j < BLOCK_VECTORS; j++) {
        __m256 s = _mm256_load_ps(scores + j * LANES);
        if (softcap > 0.0f) {
            s = _mm256_mul_ps(caps, vector_tanh(_mm256_mul_ps(s, inverse)));
        }
        s = _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), s, visible_lanes(keys, j));
        largest = _mm256_max_ps(largest, s);
        _mm256_store_ps(scores + j * LANES, s);
    }
    return largest;
}

/* The largest of each lane of a query that sees the whole block. */
KRI_INLINE __m256 largest_lanes(const float *scores) {
    __m256 s[2] = {_mm256_load_ps(scores), _mm256_load_ps(scores + LANES)};
    for (size_t j = 2; j < BLOCK_VECTORS; j += 2u) {
        s[0] = _mm256_max_ps(s[0], _mm256_load_ps(scores + j * LANES));
        s[1] = _mm256_max_ps(s[1], _mm256_load_ps(scores + (j + 1u) * LANES));
    }
    return _mm256_max_ps(s[0], s[1]);
}

/* Scores -> weights of one query; their sum in each lane. */
KRI_INLINE __m256 weigh(float *scores, float max) {
    const __m256 largest = _mm256_set1_ps(max);
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (size_t j = 0; j < BLOCK_VECTORS; j += 2u) {
        KRI_UNROLL
        for (size_t odd = 0; odd < 2u; odd++) {
            float *at = scores + (j + odd) * LANES;
            const __m256 w = vector_exp2_weight(_mm256_sub_ps(_mm256_load_ps(at), largest));
            sums[odd] = _mm256_add_ps(sums[odd], w);
            _mm256_store_ps(at, w);
        }
    }
    return _mm256_add_ps(sums[0], sums[1]);
}

static void merge_queries(const attn_tile_t *tile, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i += LANES) {
        const __m256i lanes = lanes_below(end - i);
        const __m256 old = _mm256_maskload_ps(tile->total_max + i, lanes);
        const __m256 max = _mm256_maskload_ps(tile->max + i, lanes);
        const __m256 next = _mm256_max_ps(max, old);
        const __m256 old_decay = vector_exp2_weight(_mm256_sub_ps(old, next));
        const __m256 decay = vector_exp2_weight(_mm256_sub_ps(max, next));
        const __m256 old_sum = _mm256_maskload_ps(tile->total_sum + i, lanes);
        const __m256 sum = _mm256_maskload_ps(tile->sum + i, lanes);
        _mm256_maskstore_ps(tile->total_max + i, lanes, next);
        _mm256_maskstore_ps(tile->total_decay + i, lanes, old_decay);
        _mm256_maskstore_ps(tile->decay + i, lanes, decay);
        _mm256_maskstore_ps(tile->total_sum + i, lanes,
                            _mm256_fmadd_ps(old_sum, old_decay, _mm256_mul_ps(sum, decay)));
    }
    for (size_t i = begin; i < end; i++) {
        const __m256 old_decay = _mm256_set1_ps(tile->total_decay[i]);
        const __m256 decay = _mm256_set1_ps(tile->decay[i]);
        float *total = tile->total + i * tile->head_dim, *acc = tile->acc + i * tile->head_dim;
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            const __m256 y = _mm256_mul_ps(_mm256_load_ps(acc + d), decay);
            _mm256_store_ps(total + d, _mm256_fmadd_ps(_mm256_load_ps(total + d), old_decay, y));
        }
    }
}

static void write_queries(const attn_tile_t *tile) {
    const kri_attn_args_t *args = tile->args;
    for (size_t i = 0; i < tile->n_queries; i++) {
        const size_t row = i / args->n_heads;
        float *out = args->out + row * args->out_stride + i % args->n_heads * tile->head_dim;
        const __m256 factor = _mm256_set1_ps(1.0f / tile->total_sum[i]);
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            const __m256 y = _mm256_load_ps(tile->total + i * tile->head_dim + d);
            _mm256_storeu_ps(out + d, _mm256_mul_ps(y, factor));
        }
    }
}

#endif
