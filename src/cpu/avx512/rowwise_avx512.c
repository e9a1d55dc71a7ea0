/* rowwise_avx512.c: the element-wise and row-wise kernels with AVX-512. Tails are masked vectors
 * and not scalar loops, so every element goes through the same instructions wherever it stands. */

#include <string.h>

#include "cpu/avx512/norm_avx512.h"
#include "cpu/impl.h"

#define LANES 16u

void kri_rms_norm_avx512(const float *x, const float *restrict w, float eps, size_t n,
                         float *out) {
    const __m512 factor = _mm512_set1_ps(norm_factor(x, eps, n));
    for (size_t i = 0; i < n; i += LANES) {
        const __mmask16 lanes = lanes_below(n - i);
        __m512 y = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), factor);
        if (w != NULL) {
            y = _mm512_mul_ps(y, _mm512_maskz_loadu_ps(lanes, w + i));
        }
        _mm512_mask_storeu_ps(out + i, lanes, y);
    }
}

/* n interleaved (cos, sin) pairs, n <= 16, as two vectors. */
KRI_INLINE void load_cos_sin(const float *cos_sin, size_t n, __m512 *cosines, __m512 *sines) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28,
                                           30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const size_t n_high = n > 8u ? 2u * n - LANES : 0;
    const __m512 low = _mm512_maskz_loadu_ps(lanes_below(2u * n), cos_sin);
    const __m512 high = _mm512_maskz_loadu_ps(lanes_below(n_high), cos_sin + LANES);
    *cosines = _mm512_permutex2var_ps(low, even, high);
    *sines = _mm512_permutex2var_ps(low, odd, high);
}

void kri_rope_half_avx512(float *restrict x, size_t n_heads, size_t head_dim, size_t n_rot,
                          const float *restrict cos_sin) {
    const size_t n_half = n_rot / 2u;
    for (size_t i = 0; i < n_half; i += LANES) {
        const size_t n = n_half - i < LANES ? n_half - i : LANES;
        const __mmask16 lanes = lanes_below(n);
        __m512 cosines;
        __m512 sines;
        load_cos_sin(cos_sin + 2u * i, n, &cosines, &sines);
        for (size_t h = 0; h < n_heads; h++) {
            float *first = x + h * head_dim + i;
            float *second = first + n_half;
            const __m512 a = _mm512_maskz_loadu_ps(lanes, first);
            const __m512 b = _mm512_maskz_loadu_ps(lanes, second);
            const __m512 bs = _mm512_mul_ps(b, sines);
            const __m512 as = _mm512_mul_ps(a, sines);
            _mm512_mask_storeu_ps(first, lanes, _mm512_fmsub_ps(a, cosines, bs));
            _mm512_mask_storeu_ps(second, lanes, _mm512_fmadd_ps(b, cosines, as));
        }
    }
}

void kri_rope_pair_avx512(float *restrict x, size_t n_heads, size_t head_dim, size_t n_rot,
                          const float *restrict cos_sin) {
    for (size_t i = 0; i < n_rot; i += LANES) {
        const __mmask16 lanes = lanes_below(n_rot - i);
        const __m512 angles = _mm512_maskz_loadu_ps(lanes, cos_sin + i);
        const __m512 cosines = _mm512_moveldup_ps(angles);
        const __m512 sines = _mm512_movehdup_ps(angles);
        for (size_t h = 0; h < n_heads; h++) {
            float *at = x + h * head_dim + i;
            const __m512 v = _mm512_maskz_loadu_ps(lanes, at);
            const __m512 swapped = _mm512_permute_ps(v, 0xB1);
            const __m512 crossed = _mm512_mul_ps(swapped, sines);
            _mm512_mask_storeu_ps(at, lanes, _mm512_fmaddsub_ps(v, cosines, crossed));
        }
    }
}

void kri_gated_silu_avx512(const float *gate, const float *up, size_t n, float *out) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (size_t i = 0; i < n; i += LANES) {
        const __mmask16 lanes = lanes_below(n - i);
        const __m512 g = _mm512_maskz_loadu_ps(lanes, gate + i);
        const __m512 u = _mm512_maskz_loadu_ps(lanes, up + i);
        const __m512 e = vector_exp(_mm512_sub_ps(_mm512_setzero_ps(), g));
        const __m512 y = _mm512_mul_ps(_mm512_div_ps(g, _mm512_add_ps(one, e)), u);
        _mm512_mask_storeu_ps(out + i, lanes, y);
    }
}

/* 0.5 (1 + tanh(z)) = 1 / (1 + exp(-2z)), which keeps its digits where tanh comes near -1. */
void kri_gated_gelu_avx512(const float *gate, const float *up, size_t n, float *out) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 cubic = _mm512_set1_ps(0.044715f);
    const __m512 minus_two_root = _mm512_set1_ps(-2.0f * 0.7978845608028654f);
    for (size_t i = 0; i < n; i += LANES) {
        const __mmask16 lanes = lanes_below(n - i);
        const __m512 g = _mm512_maskz_loadu_ps(lanes, gate + i);
        const __m512 u = _mm512_maskz_loadu_ps(lanes, up + i);
        const __m512 inner = _mm512_fmadd_ps(_mm512_mul_ps(cubic, _mm512_mul_ps(g, g)), g, g);
        const __m512 e = vector_exp(_mm512_mul_ps(minus_two_root, inner));
        const __m512 y = _mm512_mul_ps(_mm512_div_ps(g, _mm512_add_ps(one, e)), u);
        _mm512_mask_storeu_ps(out + i, lanes, y);
    }
}

void kri_add_avx512(float *restrict y, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        const __mmask16 lanes = lanes_below(n - i);
        const __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, y + i),
                                         _mm512_maskz_loadu_ps(lanes, x + i));
        _mm512_mask_storeu_ps(y + i, lanes, sum);
    }
}

void kri_softcap_avx512(float *restrict x, size_t n, float cap) {
    const __m512 caps = _mm512_set1_ps(cap);
    const __m512 inverse = _mm512_set1_ps(1.0f / cap);
    for (size_t i = 0; i < n; i += LANES) {
        const __mmask16 lanes = lanes_below(n - i);
        const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), inverse);
        _mm512_mask_storeu_ps(x + i, lanes, _mm512_mul_ps(caps, vector_tanh(v)));
    }
}

void kri_kv_store_f32_avx512(const float *restrict x, size_t n, void *restrict dst) {
    float *out = dst;
    for (size_t i = 0; i < n; i += LANES) {
        const __mmask16 lanes = lanes_below(n - i);
        _mm512_mask_storeu_ps(out + i, lanes, _mm512_maskz_loadu_ps(lanes, x + i));
    }
}

void kri_kv_store_i8_avx512(const float *restrict x, size_t n, int8_t *restrict q,
                            uint16_t *restrict scale) {
    __m512i most = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += LANES) {
        const __m512 v = _mm512_maskz_loadu_ps(lanes_below(n - i), x + i);
        most = _mm512_max_epi32(most, _mm512_castps_si512(_mm512_abs_ps(v)));
    }
    const int32_t bits = _mm512_reduce_max_epi32(most);
    float amax;
    memcpy(&amax, &bits, sizeof amax);
    const __m512 inverse = _mm512_set1_ps(kri_kv_scale_i8(amax, scale));
    const __mmask16 used = _mm512_cmp_ps_mask(inverse, _mm512_setzero_ps(), _CMP_GT_OQ);
    for (size_t i = 0; i < n; i += LANES) {
        const __mmask16 lanes = lanes_below(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(lanes & used, x + i);
        const __m512i wide = _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse));
        _mm512_mask_cvtepi32_storeu_epi8(q + i, lanes, wide);
    }
}

void kri_kv_store_f16_avx512(const float *restrict x, size_t n, void *restrict dst) {
    uint16_t *out = dst;
    for (size_t i = 0; i < n; i += LANES) {
        const __mmask16 lanes = lanes_below(n - i);
        const __m512 v = _mm512_maskz_loadu_ps(lanes, x + i);
        _mm256_mask_storeu_epi16(out + i, lanes, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT |
                                                                        _MM_FROUND_NO_EXC));
    }
}
