/* rowwise_ref.c: normalisation, rotation, activations and the KV cache's conversions.
 * Sums and transcendental functions in double, so that the reference is the more exact side. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "ops/kernels.h"
#include "ops/pack.h"

static double norm_scale(const float *x, float eps, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return 1.0 / sqrt(sum / (double)n + (double)eps);
}

void kri_rms_norm_ref(const float *x, const float *restrict w, float eps, size_t n, float *out) {
    double scale = norm_scale(x, eps, n);
    for (size_t i = 0; i < n; i++)
        out[i] = (float)((double)x[i] * scale * (w ? (double)w[i] : 1.0));
}

static void rotate(float *x0, float *x1, const float *cos_sin) {
    double a = (double)*x0, b = (double)*x1;
    double c = (double)cos_sin[0], s = (double)cos_sin[1];
    *x0 = (float)(a * c - b * s);
    *x1 = (float)(a * s + b * c);
}

void kri_rms_norm_q8_ref(const float *x, const float *restrict w, float eps, size_t n,
                         kri_q8_block_t *restrict blocks) {
    float y[KRI_Q8_ITEMS];
    double scale = norm_scale(x, eps, n);
    for (size_t b = 0; b < n / KRI_Q8_ITEMS; b++) {
        for (size_t k = 0; k < KRI_Q8_ITEMS; k++) {
            size_t i = b * KRI_Q8_ITEMS + k;
            y[k] = (float)((double)x[i] * scale * (w ? (double)w[i] : 1.0));
        }
        kri_quant_q8_ref(y, KRI_Q8_ITEMS, blocks + b);
    }
}

void kri_rope_half_ref(float *restrict x, size_t n_heads, size_t head_dim, size_t n_rot,
                       const float *restrict cos_sin) {
    for (size_t h = 0; h < n_heads; h++) {
        float *head = x + h * head_dim;
        for (size_t i = 0; i < n_rot / 2; i++)
            rotate(head + i, head + i + n_rot / 2, cos_sin + 2 * i);
    }
}

void kri_rope_pair_ref(float *restrict x, size_t n_heads, size_t head_dim, size_t n_rot,
                       const float *restrict cos_sin) {
    for (size_t h = 0; h < n_heads; h++) {
        float *head = x + h * head_dim;
        for (size_t i = 0; i < n_rot / 2; i++)
            rotate(head + 2 * i, head + 2 * i + 1, cos_sin + 2 * i);
    }
}

void kri_gated_silu_ref(const float *gate, const float *up, size_t n, float *out) {
    for (size_t i = 0; i < n; i++) {
        double g = (double)gate[i];
        out[i] = (float)(g / (1.0 + exp(-g)) * (double)up[i]);
    }
}

void kri_gated_gelu_ref(const float *gate, const float *up, size_t n, float *out) {
    const double sqrt_2_over_pi = 0.79788456080286535588;
    for (size_t i = 0; i < n; i++) {
        double g = (double)gate[i];
        double t = tanh(sqrt_2_over_pi * (g + 0.044715 * g * g * g));
        out[i] = (float)(0.5 * g * (1.0 + t) * (double)up[i]);
    }
}

void kri_add_ref(float *restrict y, const float *restrict x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

void kri_softcap_ref(float *restrict x, size_t n, float cap) {
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((double)cap * tanh((double)x[i] / (double)cap));
}

void kri_kv_store_f32_ref(const float *restrict x, size_t n, void *restrict dst) {
    memcpy(dst, x, n * sizeof *x);
}

float kri_kv_scale_i8(float amax, uint16_t *scale) {
    const uint16_t infinity = 0x7c00, nan = 0x7e00;
    *scale = nan;
    if (!(amax <= FLT_MAX)) return 0;
    float exact = amax / 127.0f;
    uint16_t h = kri_f32_to_f16(exact);
    if (kri_f16_to_f32(h) < exact) h++; /* the next half up, past the largest one infinity */
    if (h >= infinity) return 0;
    *scale = h;
    return h != 0 ? 1.0f / kri_f16_to_f32(h) : 0;
}

void kri_kv_store_i8_ref(const float *restrict x, size_t n, int8_t *restrict q,
                         uint16_t *restrict scale) {
    uint32_t amax_bits = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffffu;
        if (bits > amax_bits) amax_bits = bits;
    }
    float amax;
    memcpy(&amax, &amax_bits, sizeof amax);
    float inverse = kri_kv_scale_i8(amax, scale);
    for (size_t i = 0; i < n; i++) q[i] = inverse > 0 ? (int8_t)rintf(x[i] * inverse) : 0;
}

void kri_kv_store_f16_ref(const float *restrict x, size_t n, void *restrict dst) {
    uint16_t *out = dst;
    for (size_t i = 0; i < n; i++) out[i] = kri_f32_to_f16(x[i]);
}
