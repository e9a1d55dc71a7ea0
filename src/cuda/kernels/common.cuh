/* common.cuh: what the kernels share. Every kernel begins with kri_begin: its launch may overlap
 * the end of the one before (programmatic dependent launch), whose results it may read only from
 * then on, and not through the read-only cache, which that overlap does not keep coherent.
 * Weights never change and the tables of a step are there before its first kernel, so they may be
 * fetched before, and so may keys and values of tokens before the step. */
#ifndef KRI_CUDA_COMMON_CUH
#define KRI_CUDA_COMMON_CUH

#include "../args.h"
#include "primitives.cuh"

#define KERNEL extern "C" __global__ void

__device__ __forceinline__ float kri_half(uint16_t bits) {
    return __half2float(__ushort_as_half(bits));
}
__device__ __forceinline__ float kri_bf16(uint16_t bits) {
    return __uint_as_float((uint32_t)bits << 16);
}
__device__ __forceinline__ uint16_t kri_to_bf16(float x) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__device__ __forceinline__ uint32_t kri_pack_bf16(float low, float high) {
    return kri_to_bf16(low) | (uint32_t)kri_to_bf16(high) << 16;
}
__device__ __forceinline__ uint32_t kri_pack_half(float low, float high) {
    __half2 h = __floats2half2_rn(low, high);
    return *(uint32_t *)&h;
}

__device__ __forceinline__ float kri_warp_sum(float x) {
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
    return x;
}

__device__ __forceinline__ const uint8_t *kri_kv_page(const kri_cu_step_t &step,
                                                      const kri_cu_kv_t &kv,
                                                      const kri_cu_seq_t &seq, uint32_t page) {
    return kv.pool + step.tables[seq.table[kv.group] + page] * kv.page_bytes;
}
__device__ __forceinline__ uint32_t kri_first_key(uint32_t pos, uint32_t window) {
    return window && pos >= window ? pos - window + 1 : 0;
}

#define KRI_LOG2E 1.4426950408889634f
/* A score in units of log2, from a product of query and key. */
__device__ __forceinline__ float kri_score(float dot, float scale, float softcap) {
    float s = dot * scale;
    if (softcap > 0.0f) s = softcap * tanhf(s / softcap);
    return s * KRI_LOG2E;
}

#endif
