/* kv8.cuh: keys and values of 8 bits: how a head of a token becomes one in a page, and back.
 * ops/step.h has the layout, ops/kernels.h what the numbers mean; for int8 both are the CPU's.
 * fp8 is e4m3 times the scale: 4 bits of exponent hold what stands out, so keys are kept as they
 * are, not transformed and not as differences. */
#ifndef KRI_CUDA_KV8_CUH
#define KRI_CUDA_KV8_CUH

#include "common.cuh"

#include <math.h>

#define KRI_DIFFERENCE 0x8000u /* sign of a key's scale: KRI_I8_DIFFERENCE */
#define KRI_KEY_BIAS 128       /* KRI_I8_KEY_BIAS */

/* kri_i8_key_at, kri_i8_value_at */
__device__ __forceinline__ uint32_t kri_key8_at(uint32_t slot, uint32_t dim) {
    return dim / 4 * 64 + slot * 4 + dim % 4;
}
__device__ __forceinline__ uint32_t kri_value8_at(uint32_t n, uint32_t slot, uint32_t dim) {
    return (slot / 4 * ((n + 3) / 4 * 4) + dim) * 4 + slot % 4;
}

/* ---- e4m3 ------------------------------------------------------------------------------------ */

/* |x| <= 448, or the next step up from it */
__device__ __forceinline__ uint8_t kri_to_e4m3(float x) {
    const uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
    const uint32_t even = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
    uint32_t code = (even >> 20) - (120u << 3); /* the exponent's bias is 127 there, 7 here */
    if (magnitude < 0x3c800000u) code = (uint32_t)__float2int_rn(fabsf(x) * 512.0f); /* < 2^-6 */
    return (uint8_t)(min(code, 0x7eu) | (bits >> 24 & 0x80u));
}
/* Four of them as halves, of 2^-8 times their value: no bits but the exponent's bias differ. */
__device__ __forceinline__ uint2 kri_halves_of_e4m3(uint32_t word) {
    const uint32_t low = __byte_perm(word, 0, 0x1404), high = __byte_perm(word, 0, 0x3424);
    return make_uint2((low & 0x80008000u) | (low >> 1 & 0x3fff3fffu),
                      (high & 0x80008000u) | (high >> 1 & 0x3fff3fffu));
}
#define KRI_E4M3_UNIT 256.0f
__device__ __forceinline__ float kri_of_e4m3(uint8_t code) {
    return kri_half((uint16_t)((code & 0x80u) << 8 | (code & 0x7fu) << 7)) * KRI_E4M3_UNIT;
}

/* ---- one head of a token, by a warp ---------------------------------------------------------- */

/* The largest |x| of a warp's lanes as bits, where a NaN is larger than all. */
__device__ __forceinline__ uint32_t kri_magnitude(float x) {
    return __float_as_uint(x) & 0x7fffffffu;
}
__device__ __forceinline__ uint32_t kri_warp_max(uint32_t x) {
    for (int i = 16; i > 0; i /= 2) x = max(x, __shfl_xor_sync(~0u, x, i));
    return x;
}

/* kri_kv_scale_i8, for any number of levels. */
__device__ __forceinline__ float kri_scale8(float amax, float levels, uint16_t *scale) {
    *scale = 0x7e00; /* NaN */
    if (!(amax <= 3.402823466e+38f)) return 0.0f;
    const float exact = amax / levels;
    uint16_t h = __half_as_ushort(__float2half_rn(exact));
    if (kri_half(h) < exact) h++;
    if (h >= 0x7c00) return 0.0f;
    *scale = h;
    return h != 0 ? 1.0f / kri_half(h) : 0.0f;
}

/* Walsh-Hadamard transform of a head in shared memory, in blocks of the largest power of two that
 * divides n: mix_heads of ops/exec_attention.c, in the same order. */
__device__ __forceinline__ void kri_mix(float *x, uint32_t n) {
    const uint32_t block = n & (~n + 1), lane = threadIdx.x % 32;
    for (uint32_t half = 1; half < block; half *= 2) {
        for (uint32_t i = lane; i < n / 2; i += 32) {
            const uint32_t low = i / half * (2 * half) + i % half;
            const float a = x[low], b = x[low + half];
            x[low] = a + b;
            x[low + half] = a - b;
        }
        __syncwarp();
    }
    const float scale = 1.0f / sqrtf((float)block);
    for (uint32_t i = lane; i < n; i += 32) x[i] *= scale;
    __syncwarp();
}

/* A key or value as it lies in a page: its bytes (keys of int8 without bias) and its scale. */
struct kri_coded_t {
    uint8_t bytes[KRI_CU_HEAD_DIM];
    uint16_t scale;
};

/* x [n] as 8-bit numbers. `first`: the key of slot 0 of the page, to which a key of int8 may be the
 * difference; NULL for others. All in shared memory. */
__device__ static void kri_code(uint32_t dtype, const float *x, uint32_t n,
                                const kri_coded_t *first, kri_coded_t *to) {
    const uint32_t lane = threadIdx.x % 32;
    const float unit = first ? kri_half(first->scale) : 0.0f;
    uint32_t most = 0, most_apart = 0;
    uint16_t scale;
    for (uint32_t i = lane; i < n; i += 32) {
        most = max(most, kri_magnitude(x[i]));
        if (!first) continue;
        most_apart = max(most_apart, kri_magnitude(x[i] - unit * (int8_t)first->bytes[i]));
    }
    most = kri_warp_max(most);
    most_apart = kri_warp_max(most_apart);
    const bool is_apart = first && most_apart < most; /* not where the scale is a NaN */
    const float inverse = kri_scale8(__uint_as_float(is_apart ? most_apart : most),
                                     dtype == KRI_CU_I8 ? 127.0f : 448.0f, &scale);
    for (uint32_t i = lane; i < n; i += 32) {
        const float v = is_apart ? x[i] - unit * (int8_t)first->bytes[i] : x[i];
        uint8_t code = 0;
        if (inverse > 0.0f) {
            code = dtype == KRI_CU_I8 ? (uint8_t)(int8_t)__float2int_rn(v * inverse)
                                      : kri_to_e4m3(v * inverse);
        }
        to->bytes[i] = code;
    }
    if (lane == 0) to->scale = scale | (is_apart ? KRI_DIFFERENCE : 0u);
    __syncwarp();
}

/* The key in slot 0 of a page, kept there by an earlier step. head: the page's of the KV head. */
__device__ __forceinline__ void kri_first_of_page(const kri_cu_kv_t &kv, const uint8_t *head,
                                                  uint32_t n, kri_coded_t *to) {
    for (uint32_t i = threadIdx.x % 32; i < n; i += 32)
        to->bytes[i] = __ldcg(head + kv.k + kri_key8_at(0, i)) ^ KRI_KEY_BIAS;
    if (threadIdx.x % 32 == 0) to->scale = __ldcg((const uint16_t *)(head + kv.scales));
    __syncwarp();
}

__device__ __forceinline__ void kri_store_coded(const kri_cu_kv_t &kv, uint8_t *head, uint32_t n,
                                                uint32_t slot, bool is_v, const kri_coded_t *from) {
    const uint32_t bias = kv.dtype == KRI_CU_I8 && !is_v ? KRI_KEY_BIAS : 0;
    for (uint32_t i = threadIdx.x % 32; i < n; i += 32) {
        head[is_v ? kv.v + kri_value8_at(n, slot, i) : kv.k + kri_key8_at(slot, i)] =
            from->bytes[i] ^ bias;
    }
    if (threadIdx.x % 32 == 0)
        ((uint16_t *)(head + kv.scales))[(is_v ? 16 : 0) + slot] = from->scale;
}

/* ---- one item of a page of any type ---------------------------------------------------------- */

__device__ __forceinline__ float kri_scale_at(const kri_cu_kv_t &kv, const uint8_t *head,
                                              uint32_t at) {
    return kri_half(((const uint16_t *)(head + kv.scales))[at]);
}

__device__ __forceinline__ float kri_key_item(const kri_cu_kv_t &kv, const uint8_t *head,
                                              uint32_t n, uint32_t slot, uint32_t i) {
    const uint8_t *k = head + kv.k;
    if (kv.dtype == KRI_CU_F16) return kri_half(((const uint16_t *)k)[slot * n + i]);
    const float scale = kri_scale_at(kv, head, slot);
    const uint8_t code = k[kri_key8_at(slot, i)];
    if (kv.dtype == KRI_CU_F8) return scale * kri_of_e4m3(code);
    const float own = fabsf(scale) * ((int)code - KRI_KEY_BIAS);
    if (!(scale < 0.0f)) return own;
    return own + kri_scale_at(kv, head, 0) * ((int)k[kri_key8_at(0, i)] - KRI_KEY_BIAS);
}

__device__ __forceinline__ float kri_value_item(const kri_cu_kv_t &kv, const uint8_t *head,
                                                uint32_t n, uint32_t slot, uint32_t i) {
    const uint8_t *v = head + kv.v;
    if (kv.dtype == KRI_CU_F16) return kri_half(((const uint16_t *)v)[slot * n + i]);
    const float scale = kri_scale_at(kv, head, 16 + slot);
    const uint8_t code = v[kri_value8_at(n, slot, i)];
    return scale * (kv.dtype == KRI_CU_I8 ? (float)(int8_t)code : kri_of_e4m3(code));
}

#endif
