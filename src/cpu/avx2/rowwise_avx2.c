/* rowwise_avx2.c: the element-wise and row-wise kernels with AVX2. Tails are masked vectors and
 * not scalar loops, so every element goes through the same instructions wherever it stands; the
 * mask costs a little per vector, so full vectors take the plain load. */
#include <string.h>

#include "cpu/avx2/norm_avx2.h"
#include "cpu/impl.h"

#define LANES 8u

/* The first min(n, 8) floats, zeros after them. */
KRI_INLINE __m256 load_up_to(const float *x, size_t n) {
    return n >= LANES ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, lanes_below(n));
}

KRI_INLINE void store_up_to(float *x, size_t n, __m256 v) {
    if (n >= LANES) {
        _mm256_storeu_ps(x, v);
    } else {
        _mm256_maskstore_ps(x, lanes_below(n), v);
    }
}

void kri_rms_norm_avx2(const float *x, const float *restrict w, float eps, size_t n, float *out) {
    const __m256 factor = _mm256_set1_ps(norm_factor(x, eps, n));
    for (size_t i = 0; i < n; i += LANES) {
        __m256 y = _mm256_mul_ps(load_up_to(x + i, n - i), factor);
        if (w != NULL) {
            y = _mm256_mul_ps(y, load_up_to(w + i, n - i));
        }
        store_up_to(out + i, n - i, y);
    }
}

/* n interleaved (cos, sin) pairs, n <= 8, as two vectors. */
KRI_INLINE void load_cos_sin(const float *cos_sin, size_t n, __m256 *cosines, __m256 *sines) {
    const size_t n_high = n > 4u ? 2u * n - LANES : 0;
    const __m256 low = load_up_to(cos_sin, 2u * n);
    const __m256 high = n_high != 0 ? load_up_to(cos_sin + LANES, n_high) : _mm256_setzero_ps();
    const __m256 a = _mm256_permute2f128_ps(low, high, 0x20);
    const __m256 b = _mm256_permute2f128_ps(low, high, 0x31);
    *cosines = _mm256_shuffle_ps(a, b, 0x88);
    *sines = _mm256_shuffle_ps(a, b, 0xDD);
}

void kri_rope_half_avx2(float *restrict x, size_t n_heads, size_t head_dim, size_t n_rot,
                        const float *restrict cos_sin) {
    const size_t n_half = n_rot / 2u;
    for (size_t i = 0; i < n_half; i += LANES) {
        const size_t n = n_half - i < LANES ? n_half - i : LANES;
        __m256 cosines;
        __m256 sines;
        load_cos_sin(cos_sin + 2u * i, n, &cosines, &sines);
        for (size_t h = 0; h < n_heads; h++) {
            float *first = x + h * head_dim + i;
            float *second = first + n_half;
            const __m256 a = load_up_to(first, n);
            const __m256 b = load_up_to(second, n);
            const __m256 bs = _mm256_mul_ps(b, sines);
            const __m256 as = _mm256_mul_ps(a, sines);
            store_up_to(first, n, _mm256_fmsub_ps(a, cosines, bs));
            store_up_to(second, n, _mm256_fmadd_ps(b, cosines, as));
        }
    }
}

void kri_rope_pair_avx2(float *restrict x, size_t n_heads, size_t head_dim, size_t n_rot,
                        const float *restrict cos_sin) {
    for (size_t i = 0; i < n_rot; i += LANES) {
        const size_t n = n_rot - i;
        const __m256 angles = load_up_to(cos_sin + i, n);
        const __m256 cosines = _mm256_moveldup_ps(angles);
        const __m256 sines = _mm256_movehdup_ps(angles);
        for (size_t h = 0; h < n_heads; h++) {
            float *at = x + h * head_dim + i;
            const __m256 v = load_up_to(at, n);
            const __m256 crossed = _mm256_mul_ps(_mm256_permute_ps(v, 0xB1), sines);
            store_up_to(at, n, _mm256_fmaddsub_ps(v, cosines, crossed));
        }
    }
}

void kri_gated_silu_avx2(const float *gate, const float *up, size_t n, float *out) {
    const __m256 one = _mm256_set1_ps(1.0f);
    for (size_t i = 0; i < n; i += LANES) {
        const __m256 g = load_up_to(gate + i, n - i);
        const __m256 e = vector_exp(_mm256_sub_ps(_mm256_setzero_ps(), g));
        const __m256 y = _mm256_div_ps(g, _mm256_add_ps(one, e));
        store_up_to(out + i, n - i, _mm256_mul_ps(y, load_up_to(up + i, n - i)));
    }
}

/* 0.5 (1 + tanh(z)) = 1 / (1 + exp(-2z)), which keeps its digits where tanh comes near -1. */
void kri_gated_gelu_avx2(const float *gate, const float *up, size_t n, float *out) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 cubic = _mm256_set1_ps(0.044715f);
    const __m256 minus_two_root = _mm256_set1_ps(-2.0f * 0.7978845608028654f);
    for (size_t i = 0; i < n; i += LANES) {
        const __m256 g = load_up_to(gate + i, n - i);
        const __m256 inner = _mm256_fmadd_ps(_mm256_mul_ps(cubic, _mm256_mul_ps(g, g)), g, g);
        const __m256 e = vector_exp(_mm256_mul_ps(minus_two_root, inner));
        const __m256 y = _mm256_div_ps(g, _mm256_add_ps(one, e));
        store_up_to(out + i, n - i, _mm256_mul_ps(y, load_up_to(up + i, n - i)));
    }
}

void kri_add_avx2(float *restrict y, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        const __m256 sum = _mm256_add_ps(load_up_to(y + i, n - i), load_up_to(x + i, n - i));
        store_up_to(y + i, n - i, sum);
    }
}

void kri_softcap_avx2(float *restrict x, size_t n, float cap) {
    const __m256 caps = _mm256_set1_ps(cap);
    const __m256 inverse = _mm256_set1_ps(1.0f / cap);
    for (size_t i = 0; i < n; i += LANES) {
        const __m256 v = _mm256_mul_ps(load_up_to(x + i, n - i), inverse);
        store_up_to(x + i, n - i, _mm256_mul_ps(caps, vector_tanh(v)));
    }
}

void kri_kv_store_f32_avx2(const float *restrict x, size_t n, void *restrict dst) {
    memcpy(dst, x, n * sizeof(float));
}

void kri_kv_store_i8_avx2(const float *restrict x, size_t n, int8_t *restrict q,
                          uint16_t *restrict scale) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i += LANES) {
        const __m256i bits = _mm256_castps_si256(load_up_to(x + i, n - i));
        most = _mm256_max_epi32(most, _mm256_and_si256(bits, magnitude));
    }
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1));
    const float inverse = kri_kv_scale_i8(_mm_cvtss_f32(_mm_castsi128_ps(m)), scale);
    if (!(inverse > 0.0f)) {
        memset(q, 0, n);
        return;
    }
    for (size_t i = 0; i < n; i += LANES) {
        const __m256 y = _mm256_mul_ps(load_up_to(x + i, n - i), _mm256_set1_ps(inverse));
        const __m256i wide = _mm256_cvtps_epi32(y);
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide),
                                              _mm256_extracti128_si256(wide, 1));
        const __m128i bytes = _mm_packs_epi16(words, words);
        if (n - i >= LANES) {
            _mm_storel_epi64((__m128i *)(void *)(q + i), bytes);
        } else {
            memcpy(q + i, &bytes, n - i);
        }
    }
}

void kri_kv_store_f16_avx2(const float *restrict x, size_t n, void *restrict dst) {
    uint16_t *out = dst;
    for (size_t i = 0; i < n; i += LANES) {
        const __m128i half = _mm256_cvtps_ph(load_up_to(x + i, n - i),
                                             _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        if (n - i >= LANES) {
            _mm_storeu_si128((__m128i *)(void *)(out + i), half);
        } else {
            memcpy(out + i, &half, (n - i) * sizeof(uint16_t));
        }
    }
}
