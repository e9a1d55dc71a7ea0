/* matvec_float.cu: up to eight rows of f32 activations by weights of a float type in rows, one read
 * of each weight. A warp has a few rows of weights; its lanes share k in pieces of 16 bytes. */
#include "common.cuh"

#define WARPS 4

template <typename T> struct items;
template <> struct items<float> {
    static constexpr int n = 4;
    __device__ static float at(const uint4 &v, int i) {
        return __uint_as_float(i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w);
    }
};
template <> struct items<__nv_bfloat16> {
    static constexpr int n = 8;
    __device__ static float at(const uint4 &v, int i) {
        const uint32_t u = i / 2 == 0 ? v.x : i / 2 == 1 ? v.y : i / 2 == 2 ? v.z : v.w;
        return __uint_as_float(i % 2 ? u & 0xffff0000u : u << 16);
    }
};
template <> struct items<__half> {
    static constexpr int n = 8;
    __device__ static float at(const uint4 &v, int i) {
        const uint32_t u = i / 2 == 0 ? v.x : i / 2 == 1 ? v.y : i / 2 == 2 ? v.z : v.w;
        return kri_half((uint16_t)(i % 2 ? u >> 16 : u));
    }
};

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

template <typename T, int M, int R, int UNROLL>
__device__ static void matvec(const kri_cu_matvec_t &a) {
    constexpr int n = items<T>::n;
    const uint32_t part = (blockIdx.x >= a.first[1]) + (blockIdx.x >= a.first[2]);
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t row = ((blockIdx.x - a.first[part]) * WARPS + threadIdx.x / 32) * R;
    const uint32_t n_out = a.n_out[part];
    const uint8_t *rows[R];
    float acc[M][R] = {};
#pragma unroll
    for (int r = 0; r < R; r++) {
        const uint64_t at = row + r < n_out ? row + r : n_out - 1;
        rows[r] = a.w[part] + at * a.n_in * sizeof(T);
        if (lane * 128 < a.n_in * sizeof(T)) kri_prefetch(rows[r] + lane * 128);
    }
    kri_begin();
    uint32_t k = lane * n;
    for (; k + (UNROLL - 1) * 32 * n < a.n_in; k += UNROLL * 32 * n) {
        uint4 w[UNROLL][R];
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
#pragma unroll
            for (int r = 0; r < R; r++)
                w[u][r] = kri_load_stream(rows[r] + (uint64_t)(k + u * 32 * n) * sizeof(T));
#pragma unroll
        for (int u = 0; u < UNROLL; u++) add_piece<T, M, R>(a, w[u], k + u * 32 * n, acc);
    }
    for (; k < a.n_in; k += 32 * n) {
        uint4 w[R];
#pragma unroll
        for (int r = 0; r < R; r++) w[r] = kri_load_stream(rows[r] + (uint64_t)k * sizeof(T));
        add_piece<T, M, R>(a, w, k, acc);
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < R; r++) {
            float sum = kri_warp_sum(acc[m][r]);
            if (lane != m * R % 32 + r || m >= a.n_tokens || row + r >= n_out) continue;
            if (a.bias[part]) sum += a.bias[part][row + r];
            float *out = a.out + m * a.out_stride + a.out_offset[part] + row + r;
            *out = a.accumulate ? *out + sum : sum;
        }
}

#define MATVEC(name, type, m, r, unroll)                                                         \
    KERNEL __launch_bounds__(32 * WARPS) kri_matvec_##name##_##m(const kri_cu_matvec_t a) {      \
        matvec<type, m, r, unroll>(a);                                                           \
    }
/* Rows of a warp: ops of exec_cuda.c count on two for one or two rows of activations, else four. */
#define MATVECS(name, type)                                                                      \
    MATVEC(name, type, 1, 2, 4) MATVEC(name, type, 2, 2, 4) MATVEC(name, type, 4, 4, 2)          \
    MATVEC(name, type, 8, 4, 1)
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
