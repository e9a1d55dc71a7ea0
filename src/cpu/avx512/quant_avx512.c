/* quant_avx512.c: rounding of activations to int8 blocks of 32 (AVX-512). Two registers hold a
 * block; the sums of pairs stay in int16. */
#include <math.h>

#include "cpu/avx512/norm_avx512.h"
#include "cpu/impl.h"

/* Smallest amax that is not treated as zero (kernels.h), and the bit pattern of infinity. */
#define AMAX_MIN 1e-30f
#define BITS_INF 0x7f800000u

static void block_fill(kri_q8_block_t *block, float d) {
    *block = (kri_q8_block_t){.d = d,
                              .ds = d,
                              .sums = {{KRI_Q8_SUM_BIAS, KRI_Q8_SUM_BIAS},
                                       {KRI_Q8_SUM_BIAS, KRI_Q8_SUM_BIAS}}};
}

static void block_write(kri_q8_block_t *block, __m512 x_lo, __m512 x_hi, float amax) {
    const __m512 id = _mm512_set1_ps(127.0f / amax);
    const __m128i lo = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x_lo, id)));
    const __m128i hi = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x_hi, id)));
    const __m256i q = _mm256_set_m128i(hi, lo);
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

KRI_INLINE void quant_block(__m512 lo, __m512 hi, kri_q8_block_t *block) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    const __m512i bits = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(lo), magnitude),
                                          _mm512_and_si512(_mm512_castps_si512(hi), magnitude));
    const uint32_t amax_bits = _mm512_reduce_max_epu32(bits);
    float amax;
    __builtin_memcpy(&amax, &amax_bits, sizeof amax);
    if (amax_bits >= BITS_INF) {
        block_fill(block, NAN);
    } else if (amax < AMAX_MIN) {
        block_fill(block, 0.0f);
    } else {
        block_write(block, lo, hi, amax);
    }
}

void kri_quant_q8_avx512(const float *restrict x, size_t n, kri_q8_block_t *restrict blocks) {
    for (size_t b = 0; b < n / KRI_Q8_ITEMS; b++) {
        const float *at = x + KRI_Q8_ITEMS * b;
        quant_block(_mm512_loadu_ps(at), _mm512_loadu_ps(at + 16), &blocks[b]);
    }
}

void kri_rms_norm_q8_avx512(const float *x, const float *restrict w, float eps, size_t n,
                            kri_q8_block_t *restrict blocks) {
    const __m512 factor = _mm512_set1_ps(norm_factor(x, eps, n));
    for (size_t i = 0; i < n; i += KRI_Q8_ITEMS) {
        __m512 lo = _mm512_mul_ps(_mm512_loadu_ps(x + i), factor);
        __m512 hi = _mm512_mul_ps(_mm512_loadu_ps(x + i + 16), factor);
        if (w != NULL) {
            lo = _mm512_mul_ps(lo, _mm512_loadu_ps(w + i));
            hi = _mm512_mul_ps(hi, _mm512_loadu_ps(w + i + 16));
        }
        quant_block(lo, hi, &blocks[i / KRI_Q8_ITEMS]);
    }
}
