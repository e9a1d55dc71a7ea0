/* quant_avx2.c: rounding of activations to int8 blocks of 32 (AVX2). Four registers hold a block;
 * the sums of pairs stay in int16. */
#include <math.h>

#include "cpu/avx2/norm_avx2.h"
#include "cpu/impl.h"

/* Smallest amax that is not treated as zero (kernels.h), and the bit pattern of infinity. */
#define AMAX_MIN 1e-30f
#define BITS_INF 0x7f800000u

static uint32_t magnitude_max(const __m256 x[4]) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    __m256i m = _mm256_and_si256(_mm256_castps_si256(x[0]), mask);
    for (unsigned i = 1; i < 4; i++) {
        m = _mm256_max_epu32(m, _mm256_and_si256(_mm256_castps_si256(x[i]), mask));
    }
    __m128i h = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0x4e));
    h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(h);
}

static void block_fill(kri_q8_block_t *block, float d) {
    *block = (kri_q8_block_t){.d = d,
                              .ds = d,
                              .sums = {{KRI_Q8_SUM_BIAS, KRI_Q8_SUM_BIAS},
                                       {KRI_Q8_SUM_BIAS, KRI_Q8_SUM_BIAS}}};
}

static void block_write(kri_q8_block_t *block, const __m256 x[4], float amax) {
    const __m256 id = _mm256_set1_ps(127.0f / amax);
    __m256i i[4];
    for (unsigned k = 0; k < 4; k++) i[k] = _mm256_cvtps_epi32(_mm256_mul_ps(x[k], id));
    /* Packing works within 128-bit lanes: dwords come out as 0 2 4 6 1 3 5 7 of the eights. */
    const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(i[0], i[1]),
                                             _mm256_packs_epi32(i[2], i[3]));
    const __m256i q =
        _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((void *)block->q, q);

    /* Pairs in int16, then every other pair of a half (a 128-bit lane): even ones end in the low
     * int16 of the lane's first dword, odd ones in the high one, as block->sums has them. */
    __m256i sums = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
    sums = _mm256_add_epi16(sums, _mm256_srli_si256(sums, 8));
    sums = _mm256_add_epi16(sums, _mm256_srli_si256(sums, 4));
    sums = _mm256_add_epi16(sums, _mm256_set1_epi16(KRI_Q8_SUM_BIAS));
    /* One store of both halves: kri_q8_sum reads them together, and a load that spans two stores
     * in flight waits for both of them to reach the cache. */
    _mm_storel_epi64((void *)block->sums,
                     _mm_unpacklo_epi32(_mm256_castsi256_si128(sums),
                                        _mm256_extracti128_si256(sums, 1)));
    block->d = amax / 127.0f;
    block->ds = block->d * (float)kri_q8_sum(block);
}

KRI_INLINE void quant_block(const __m256 v[4], kri_q8_block_t *block) {
    const uint32_t amax_bits = magnitude_max(v);
    float amax;
    __builtin_memcpy(&amax, &amax_bits, sizeof amax);
    if (amax_bits >= BITS_INF) {
        block_fill(block, NAN);
    } else if (amax < AMAX_MIN) {
        block_fill(block, 0.0f);
    } else {
        block_write(block, v, amax);
    }
}

void kri_quant_q8_avx2(const float *restrict x, size_t n, kri_q8_block_t *restrict blocks) {
    for (size_t b = 0; b < n / KRI_Q8_ITEMS; b++) {
        const float *p = x + KRI_Q8_ITEMS * b;
        const __m256 v[4] = {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8), _mm256_loadu_ps(p + 16),
                             _mm256_loadu_ps(p + 24)};
        quant_block(v, &blocks[b]);
    }
}

void kri_rms_norm_q8_avx2(const float *x, const float *restrict w, float eps, size_t n,
                          kri_q8_block_t *restrict blocks) {
    const __m256 factor = _mm256_set1_ps(norm_factor(x, eps, n));
    for (size_t i = 0; i < n; i += KRI_Q8_ITEMS) {
        __m256 v[4];
        KRI_UNROLL
        for (size_t k = 0; k < 4; k++) {
            v[k] = _mm256_mul_ps(_mm256_loadu_ps(x + i + 8 * k), factor);
            if (w != NULL) v[k] = _mm256_mul_ps(v[k], _mm256_loadu_ps(w + i + 8 * k));
        }
        quant_block(v, &blocks[i / KRI_Q8_ITEMS]);
    }
}
