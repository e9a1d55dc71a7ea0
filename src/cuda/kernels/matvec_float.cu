/* matvec_float.cu: up to eight rows of f32 activations by weights of a float type in rows, one
 * read of each weight. A warp has a few rows of weights and its lanes share k in pieces of 16
 * bytes; where rows are few, several warps of a block share k too (k_slices) and meet in shared
 * memory. */
#include "items.cuh"

#define WARPS 8

template <typename T, int M, int R>
__device__ __forceinline__ void add_piece(const kri_cu_matvec_t &a, const uint4 (&w)[R],
                                          uint32_t k, float (&acc)[M][R]) {
    constexpr int n = items<T>::n;
#pragma unroll
    for (int m = 0; m < M; m++) {
        const uint64_t token = m < a.n_tokens ? m : 0;
        const float4 *x = (const float4 *)((const float *)a.act + token * a.n_in + k);
#pragma unroll
        for (int i = 0; i < n; i += 4) {
            const float4 v = x[i / 4];
#pragma unroll
            for (int r = 0; r < R; r++) {
                acc[m][r] = fmaf(items<T>::at(w[r], i), v.x, acc[m][r]);
                acc[m][r] = fmaf(items<T>::at(w[r], i + 1), v.y, acc[m][r]);
                acc[m][r] = fmaf(items<T>::at(w[r], i + 2), v.z, acc[m][r]);
                acc[m][r] = fmaf(items<T>::at(w[r], i + 3), v.w, acc[m][r]);
            }
        }
    }
}

/* This lane's pieces from k on, one each `step`, those past the end left out. */
template <typename T, int R, int UNROLL>
__device__ __forceinline__ void load_some(uint4 (&w)[UNROLL][R], const uint8_t *const (&rows)[R],
                                          uint32_t k, uint32_t step, uint32_t n_in) {
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
#pragma unroll
        for (int r = 0; r < R; r++)
            if (k + u * step < n_in)
                w[u][r] = kri_load_stream(rows[r] + (uint64_t)(k + u * step) * sizeof(T));
}

/* Sums of the warps that share rows, then bias and store. */
template <int M, int R>
__device__ static void finish(const kri_cu_matvec_t &a, uint32_t part, uint32_t block_row,
                              const float (&acc)[M][R]) {
    __shared__ float sums[WARPS][M * R];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < M * R; i++) {
        const float sum = kri_warp_sum(acc[i / R][i % R]);
        if (lane == i % 32) sums[warp][i] = sum;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < WARPS / a.k_slices * M * R; i += 32 * WARPS) {
        const uint32_t set = i / (M * R), m = i % (M * R) / R, row = block_row + set * R + i % R;
        if (m >= a.n_tokens || row >= a.n_out[part]) continue;
        float sum = a.bias[part] ? a.bias[part][row] : 0.0f;
        for (uint32_t s = 0; s < a.k_slices; s++) sum += sums[set * a.k_slices + s][i % (M * R)];
        float *out = a.out + m * a.out_stride + a.out_offset[part] + row;
        *out = a.accumulate ? *out + sum : sum;
    }
}

template <typename T, int M, int R, int UNROLL>
__device__ static void matvec(const kri_cu_matvec_t &a) {
    constexpr int n = items<T>::n;
    const uint32_t part = (blockIdx.x >= a.first[1]) + (blockIdx.x >= a.first[2]);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_out = a.n_out[part];
    const uint32_t block_row = (blockIdx.x - a.first[part]) * (WARPS / a.k_slices) * R;
    const uint32_t row = block_row + warp / a.k_slices * R, step = a.k_slices * 32 * n;
    uint32_t k = (warp % a.k_slices * 32 + lane) * n;
    const uint8_t *rows[R];
    float acc[M][R] = {};
    uint4 w[UNROLL][R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const uint64_t at = row + r < n_out ? row + r : n_out - 1;
        rows[r] = a.w[part] + at * a.n_in * sizeof(T);
    }
    load_some<T, R, UNROLL>(w, rows, k, step, a.n_in);
    kri_begin(); /* activations from here on */
    while (k < a.n_in) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            if (k + u * step < a.n_in) add_piece<T, M, R>(a, w[u], k + u * step, acc);
        k += UNROLL * step;
        load_some<T, R, UNROLL>(w, rows, k, step, a.n_in);
    }
    finish<M, R>(a, part, block_row, acc);
}

#define MATVEC(name, type, m, r, unroll)                                                         \
    KERNEL __launch_bounds__(32 * WARPS) kri_matvec_##name##_##m(const kri_cu_matvec_t a) {      \
        matvec<type, m, r, unroll>(a);                                                           \
    }
/* exec_cuda.c counts on eight warps, of two rows of weights each for one or two rows of
 * activations, else of four. */
#define MATVECS(name, type)                                                                      \
    MATVEC(name, type, 2, 2, 4) MATVEC(name, type, 4, 4, 2) MATVEC(name, type, 8, 4, 1)
MATVECS(f32, float)
MATVECS(f16, __half)
MATVECS(bf16, __nv_bfloat16)

/* ---- to bf16, for products of many rows: grid (any), n = n_rows * n_in ----------------------- */

KERNEL kri_unpack_f32(const kri_cu_unpack_t a) {
    kri_begin();
    const uint64_t n = (uint64_t)a.n_rows * a.n_in;
    for (uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < n;
         i += (uint64_t)gridDim.x * blockDim.x * 4) {
        const float4 v = *(const float4 *)((const float *)a.w + i);
        *(uint2 *)(a.out + i) = make_uint2(kri_pack_bf16(v.x, v.y), kri_pack_bf16(v.z, v.w));
    }
}
KERNEL kri_unpack_f16(const kri_cu_unpack_t a) {
    kri_begin();
    const uint64_t n = (uint64_t)a.n_rows * a.n_in;
    for (uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < n;
         i += (uint64_t)gridDim.x * blockDim.x * 4) {
        const uint2 v = *(const uint2 *)((const uint16_t *)a.w + i);
        *(uint2 *)(a.out + i) = make_uint2(
            kri_pack_bf16(kri_half((uint16_t)v.x), kri_half((uint16_t)(v.x >> 16))),
            kri_pack_bf16(kri_half((uint16_t)v.y), kri_half((uint16_t)(v.y >> 16))));
    }
}
