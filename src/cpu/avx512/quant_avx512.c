/* quant_avx512.c: rounding of activations to int8 blocks of 32 (AVX-512). Two registers hold a
 * block; the block sums come from one byte sum per eight values instead of a widening tree. */
#include "cpu/impl.h"

#include <immintrin.h>
#include <math.h>

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

void kri_quant_q8_avx512(const float *restrict x, size_t n, kri_q8_block_t *restrict blocks) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    for (size_t b = 0; b < n / KRI_Q8_ITEMS; b++) {
        const __m512 lo = _mm512_loadu_ps(x + KRI_Q8_ITEMS * b);
        const __m512 hi = _mm512_loadu_ps(x + KRI_Q8_ITEMS * b + 16);
        const __m512i bits = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(lo), magnitude),
                                              _mm512_and_si512(_mm512_castps_si512(hi), magnitude));
        const uint32_t amax_bits = _mm512_reduce_max_epu32(bits);
        float amax;
        __builtin_memcpy(&amax, &amax_bits, sizeof amax);
        if (amax_bits >= BITS_INF) {
            block_fill(&blocks[b], NAN);
        } else if (amax < AMAX_MIN) {
            block_fill(&blocks[b], 0.0f);
        } else {
            block_write(&blocks[b], lo, hi, amax);
        }
    }
}
