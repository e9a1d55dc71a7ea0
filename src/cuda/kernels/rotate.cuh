/* rotate.cuh: norm and rotation of a head of queries or keys. */
#ifndef KRI_CUDA_ROTATE_CUH
#define KRI_CUDA_ROTATE_CUH

#include "common.cuh"

#include <math.h>

/* A head of q or k by a warp: x to `own` in shared memory, normed and rotated. */
__device__ __forceinline__ void kri_rotate(const kri_cu_rotate_t &a, const float *x,
                                           const float *norm, uint32_t n, uint32_t n_pairs,
                                           uint32_t row, float *own) {
    const uint32_t lane = threadIdx.x % 32;
    const float2 *turns = (const float2 *)a.cos_sin + (uint64_t)row * (a.n_rot / 2);
    float sum = 0.0f;
    for (uint32_t i = lane; i < n; i += 32) {
        own[i] = x[i];
        sum += own[i] * own[i];
    }
    const float inverse = norm ? 1.0f / sqrtf(kri_warp_sum(sum) / n + a.eps) : 1.0f;
    for (uint32_t i = lane; i < n && norm; i += 32) own[i] *= inverse * norm[i];
    __syncwarp();
    for (uint32_t i = lane; i < n_pairs; i += 32) {
        const uint32_t low = a.is_pair ? 2 * i : i, high = a.is_pair ? 2 * i + 1 : i + n_pairs;
        const float2 turn = turns[i];
        const float p = own[low], q = own[high];
        own[low] = p * turn.x - q * turn.y;
        own[high] = p * turn.y + q * turn.x;
    }
    __syncwarp();
}

#endif
