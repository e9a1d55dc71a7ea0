/* quant_avx512.c: rounding of activations to int8 blocks of 32 (AVX-512). Two registers hold a
 * block; the block sums come from one byte sum per eight values instead of a widening tree. */
#include <math.h>

#include "cpu/avx512/norm_avx512.h"
#include "cpu/impl.h"

/* Smallest amax that is not treated as zero (kernels.h), and the bit pattern of infinity. */
#define AMAX_MIN 1e-30f
#define BITS_INF 0x7f800000u

static void block_fill(kri_q8_block_t *block, float d) {
    *block = (kri_q8_block_t){.d = d, .ds = d};
}

static void block_write(kri_q8_block_t *block, __m512 x_lo, __m512 x_hi, float amax) {
    const __m512 id = _mm512_set1_ps(127.0f / amax);
    const __m128i lo = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x_lo, id)));
    const __m128i hi = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x_hi, id)));
    const __m256i q = _mm256_set_m128i(hi, lo);
    _mm256_storeu_si256((void *)block->q, q);

    /* Sums of eight unsigned bytes q + 128; 2 * 8 * 128 is taken off again. */
    const __m256i biased = _mm256_xor_si256(q, _mm256_set1_epi8((char)0x80));
    const __m256i eights = _mm256_sad_epu8(biased, _mm256_setzero_si256());
    const __m256i pairs = _mm256_add_epi64(eights, _mm256_unpackhi_epi64(eights, eights));
    const int32_t sum_lo = _mm_cvtsi128_si32(_mm256_castsi256_si128(pairs)) - 2048;
    const int32_t sum_hi = _mm_cvtsi128_si32(_mm256_extracti128_si256(pairs, 1)) - 2048;
    block->d = amax / 127.0f;
    block->ds = block->d * (float)(sum_lo + sum_hi);
    block->sum_half[0] = sum_lo;
    block->sum_half[1] = sum_hi;
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
