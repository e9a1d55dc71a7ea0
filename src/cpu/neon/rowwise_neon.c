/* rowwise_neon.c: the element-wise and row-wise kernels with NEON. Tails pass through a vector on
 * the stack and not through scalar arithmetic, so every element goes through the same instructions
 * wherever it stands. */
#include <string.h>

#include "cpu/impl.h"
#include "cpu/neon/norm_neon.h"
#include "cpu/neon/vmath_neon.h"

#define LANES 4u

void kri_rms_norm_neon(const float *x, const float *restrict w, float eps, size_t n, float *out) {
    const float factor = norm_factor(x, eps, n);
    for (size_t i = 0; i < n; i += LANES) {
        float32x4_t y = vmulq_n_f32(load_up_to(x + i, n - i), factor);
        if (w != NULL) y = vmulq_f32(y, load_up_to(w + i, n - i));
        store_up_to(out + i, n - i, y);
    }
}

/* n pairs of neighbours, n <= 4, as two vectors; and the way back. */
KRI_INLINE float32x4x2_t load_pairs(const float *x, size_t n) {
    float pairs[2u * LANES] = {0.0f};
    if (n >= LANES) return vld2q_f32(x);
    memcpy(pairs, x, 2u * n * sizeof(float));
    return vld2q_f32(pairs);
}

KRI_INLINE void store_pairs(float *x, size_t n, float32x4x2_t v) {
    float pairs[2u * LANES];
    if (n >= LANES) {
        vst2q_f32(x, v);
        return;
    }
    vst2q_f32(pairs, v);
    memcpy(x, pairs, 2u * n * sizeof(float));
}

/* Turns (a, b) by angles; angles.val: cosines, sines. */
KRI_INLINE float32x4x2_t rotate(float32x4_t a, float32x4_t b, float32x4x2_t angles) {
    float32x4x2_t out;
    out.val[0] = vfmaq_f32(vnegq_f32(vmulq_f32(b, angles.val[1])), a, angles.val[0]);
    out.val[1] = vfmaq_f32(vmulq_f32(a, angles.val[1]), b, angles.val[0]);
    return out;
}

void kri_rope_half_neon(float *restrict x, size_t n_heads, size_t head_dim, size_t n_rot,
                        const float *restrict cos_sin) {
    const size_t n_half = n_rot / 2u;
    for (size_t i = 0; i < n_half; i += LANES) {
        const size_t n = n_half - i < LANES ? n_half - i : LANES;
        const float32x4x2_t angles = load_pairs(cos_sin + 2u * i, n);
        for (size_t h = 0; h < n_heads; h++) {
            float *first = x + h * head_dim + i;
            float *second = first + n_half;
            const float32x4x2_t y = rotate(load_up_to(first, n), load_up_to(second, n), angles);
            store_up_to(first, n, y.val[0]);
            store_up_to(second, n, y.val[1]);
        }
    }
}

void kri_rope_pair_neon(float *restrict x, size_t n_heads, size_t head_dim, size_t n_rot,
                        const float *restrict cos_sin) {
    const size_t n_pairs = n_rot / 2u;
    for (size_t i = 0; i < n_pairs; i += LANES) {
        const size_t n = n_pairs - i < LANES ? n_pairs - i : LANES;
        const float32x4x2_t angles = load_pairs(cos_sin + 2u * i, n);
        for (size_t h = 0; h < n_heads; h++) {
            float *at = x + h * head_dim + 2u * i;
            const float32x4x2_t v = load_pairs(at, n);
            store_pairs(at, n, rotate(v.val[0], v.val[1], angles));
        }
    }
}

void kri_gated_silu_neon(const float *gate, const float *up, size_t n, float *out) {
    const float32x4_t one = vdupq_n_f32(1.0f);
    for (size_t i = 0; i < n; i += LANES) {
        const float32x4_t g = load_up_to(gate + i, n - i);
        const float32x4_t y = vdivq_f32(g, vaddq_f32(one, vector_exp(vnegq_f32(g))));
        store_up_to(out + i, n - i, vmulq_f32(y, load_up_to(up + i, n - i)));
    }
}

/* 0.5 (1 + tanh(z)) = 1 / (1 + exp(-2z)), which keeps its digits where tanh comes near -1. */
void kri_gated_gelu_neon(const float *gate, const float *up, size_t n, float *out) {
    const float32x4_t one = vdupq_n_f32(1.0f);
    for (size_t i = 0; i < n; i += LANES) {
        const float32x4_t g = load_up_to(gate + i, n - i);
        const float32x4_t inner = vfmaq_f32(g, vmulq_n_f32(vmulq_f32(g, g), 0.044715f), g);
        const float32x4_t e = vector_exp(vmulq_n_f32(inner, -2.0f * 0.7978845608028654f));
        const float32x4_t y = vdivq_f32(g, vaddq_f32(one, e));
        store_up_to(out + i, n - i, vmulq_f32(y, load_up_to(up + i, n - i)));
    }
}

void kri_add_neon(float *restrict y, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        const float32x4_t sum = vaddq_f32(load_up_to(y + i, n - i), load_up_to(x + i, n - i));
        store_up_to(y + i, n - i, sum);
    }
}

void kri_softcap_neon(float *restrict x, size_t n, float cap) {
    const float inverse = 1.0f / cap;
    for (size_t i = 0; i < n; i += LANES) {
        const float32x4_t v = vmulq_n_f32(load_up_to(x + i, n - i), inverse);
        store_up_to(x + i, n - i, vmulq_n_f32(vector_tanh(v), cap));
    }
}

void kri_kv_store_f32_neon(const float *restrict x, size_t n, void *restrict dst) {
    memcpy(dst, x, n * sizeof(float));
}

void kri_kv_store_i8_neon(const float *restrict x, size_t n, int8_t *restrict q,
                          uint16_t *restrict scale) {
    uint32x4_t most = vdupq_n_u32(0);
    for (size_t i = 0; i < n; i += LANES) {
        const float32x4_t v = vabsq_f32(load_up_to(x + i, n - i));
        most = vmaxq_u32(most, vreinterpretq_u32_f32(v));
    }
    const uint32_t bits = vmaxvq_u32(most);
    float amax;
    memcpy(&amax, &bits, sizeof amax);
    const float inverse = kri_kv_scale_i8(amax, scale);
    if (!(inverse > 0.0f)) {
        memset(q, 0, n);
        return;
    }
    for (size_t i = 0; i < n; i += LANES) {
        int32_t some[LANES];
        vst1q_s32(some, vcvtnq_s32_f32(vmulq_n_f32(load_up_to(x + i, n - i), inverse)));
        for (size_t j = 0; j < LANES && i + j < n; j++) {
            q[i + j] = (int8_t)some[j];
        }
    }
}

void kri_kv_store_f16_neon(const float *restrict x, size_t n, void *restrict dst) {
    uint16_t *out = dst;
    for (size_t i = 0; i < n; i += LANES) {
        const uint16x4_t half =
            vreinterpret_u16_f16(vcvt_f16_f32(load_up_to(x + i, n - i)));
        if (n - i >= LANES) {
            vst1_u16(out + i, half);
        } else {
            memcpy(out + i, &half, (n - i) * sizeof(uint16_t));
        }
    }
}
