/* acts.cuh: activations in the forms that products read. */
#ifndef KRI_CUDA_ACTS_CUH
#define KRI_CUDA_ACTS_CUH

#include "common.cuh"

#include <math.h>

/* Four items; the eight lanes that hold a block of 32 call it together, with block NULL when
 * there is none to store. */
__device__ inline void kri_store_q8(kri_cu_q8_t *block, uint32_t lane8, const float v[4]) {
    uint32_t amax = 0;
    for (int i = 0; i < 4; i++) amax = max(amax, __float_as_uint(v[i]) & 0x7fffffffu);
    for (int i = 4; i > 0; i /= 2) amax = max(amax, __shfl_xor_sync(~0u, amax, i));
    const float most = __uint_as_float(amax);
    const bool is_bad = amax >= 0x7f800000u, is_zero = is_bad || most < 1e-30f;
    const float inverse = is_zero ? 0.0f : kri_quotient(127.0f, most);
    int q[4], pairs[2];
    for (int i = 0; i < 4; i++) q[i] = is_zero ? 0 : __float2int_rn(v[i] * inverse);
    pairs[0] = q[0] + q[1];
    pairs[1] = q[2] + q[3];
    for (int i = 1; i < 4; i *= 2) {
        pairs[0] += __shfl_xor_sync(~0u, pairs[0], i);
        pairs[1] += __shfl_xor_sync(~0u, pairs[1], i);
    }
    int sum = pairs[0] + pairs[1];
    sum += __shfl_xor_sync(~0u, sum, 4);
    if (!block) return;
    ((uint32_t *)block->q)[lane8] = (q[0] & 255) | (q[1] & 255) << 8 | (q[2] & 255) << 16 |
                                    (uint32_t)q[3] << 24;
    if (lane8 % 4 == 0) {
        block->sums[lane8 / 4][0] = (uint16_t)(8192 + pairs[0]);
        block->sums[lane8 / 4][1] = (uint16_t)(8192 + pairs[1]);
    }
    if (lane8 != 0) return;
    const float d = is_bad ? NAN : is_zero ? 0.0f : kri_quotient(most, 127.0f);
    block->d = d;
    block->ds = is_bad ? NAN : d * (float)sum;
}

/* Sum over the block, for all its threads. */
__device__ inline float kri_block_sum(float x) {
    __shared__ float sums[33];
    x = kri_warp_sum(x);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x < 32) {
        x = threadIdx.x < blockDim.x / 32 ? sums[threadIdx.x] : 0.0f;
        x = kri_warp_sum(x);
        if (threadIdx.x == 0) sums[32] = x;
    }
    __syncthreads();
    return sums[32];
}

__device__ inline float kri_sum_of_squares(const float *x, uint32_t n) {
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x * 4; i < n; i += blockDim.x * 4) {
        const float4 v = *(const float4 *)(x + i);
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    return kri_block_sum(sum);
}

/* act: 0 silu, 1 gelu */
__device__ inline float kri_gated(uint32_t act, float g, float u) {
    return u * (act == 0 ? g / (1.0f + expf(-g))
                         : 0.5f * g * (1.0f + tanhf(0.7978845608028654f *
                                                    (g + 0.044715f * g * g * g))));
}

#endif
