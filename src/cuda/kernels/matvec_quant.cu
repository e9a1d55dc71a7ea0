/* matvec_quant.cu: two to eight rows of activations by packed quantised weights (quant.cuh), one
 * read of each weight, and weights to bf16 for products of more rows. */
#include "quant.cuh"

/* The sums of all slices of k, then bias and store; parts of a CTA's warps meet in shared
 * memory. */
template <int M>
__device__ static void finish(const kri_cu_matvec_t &a, uint32_t part, uint32_t group,
                              float (&acc)[M]) {
    __shared__ float sums[16][M][16];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < M; m++) {
        acc[m] += __shfl_xor_sync(~0u, acc[m], 16);
        if (lane < 16) sums[warp][m][lane] = acc[m];
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < M * 16; i += blockDim.x) {
        const uint32_t m = i / 16, row = group * 16 + i % 16;
        if (m >= a.n_tokens || row >= a.n_out[part]) continue;
        float sum = 0.0f;
        for (uint32_t w = 0; w < blockDim.x / 32; w++) sum += sums[w][m][i % 16];
        if (a.bias[part]) sum += a.bias[part][row];
        float *out = a.out + m * a.out_stride + a.out_offset[part] + row;
        *out = a.accumulate ? *out + sum : sum;
    }
}

/* This lane's blocks from `block` on, one each `step`, those past the end left out: all loads
 * are on their way before the first is waited for. */
template <int TYPE>
__device__ __forceinline__ void load_some(block_t<TYPE> (&loaded)[traits<TYPE>::unroll],
                                          const kri_cu_matvec_t &a, const uint8_t *group,
                                          uint32_t block, uint32_t step, uint32_t row) {
#pragma unroll
    for (int i = 0; i < traits<TYPE>::unroll; i++) {
        if (block + i * step < a.n_in / 32)
            load(loaded[i], group, a.scales, a.quants, block + i * step, row);
    }
}

template <int TYPE, int M> __device__ static void matvec(const kri_cu_matvec_t &a) {
    constexpr int unroll = traits<TYPE>::unroll;
    const uint32_t part = (blockIdx.x >= a.first[1]) + (blockIdx.x >= a.first[2]);
    const uint32_t group = blockIdx.x - a.first[part];
    const uint8_t *w = a.w[part] + group * a.group_bytes;
    const uint32_t row = threadIdx.x % 16, n_blocks = a.n_in / 32, step = blockDim.x / 16;
    const kri_cu_q8_t *act = (const kri_cu_q8_t *)a.act;
    uint32_t block = threadIdx.x / 16;
    float acc[M] = {};
    block_t<TYPE> loaded[unroll];
    load_some<TYPE>(loaded, a, w, block, step, row);
    kri_begin(); /* activations from here on */
    while (block < n_blocks) {
#pragma unroll
        for (int i = 0; i < unroll; i++) {
            if (block + i * step >= n_blocks) continue;
            uint32_t u[8];
#pragma unroll
            for (int j = 0; j < 8; j++) u[j] = quants_of(loaded[i], j, row);
#pragma unroll
            for (int m = 0; m < M; m++) {
                const uint32_t token = m < a.n_tokens ? m : 0;
                acc[m] = add_block(loaded[i], u, act + token * n_blocks + block + i * step, acc[m]);
            }
        }
        block += unroll * step;
        load_some<TYPE>(loaded, a, w, block, step, row);
    }
    finish<M>(a, part, group, acc);
}

#define MATVEC(name, type, m)                                                                    \
    KERNEL __launch_bounds__(512) kri_matvec_##name##_##m(const kri_cu_matvec_t a) {             \
        matvec<type, m>(a);                                                                      \
    }
#define MATVECS(name, type)                                                                      \
    MATVEC(name, type, 2) MATVEC(name, type, 4) MATVEC(name, type, 8)
MATVECS(q4_0, KRI_CU_Q4_0)
MATVECS(q4_1, KRI_CU_Q4_1)
MATVECS(q5_0, KRI_CU_Q5_0)
MATVECS(q5_1, KRI_CU_Q5_1)
MATVECS(q8_0, KRI_CU_Q8_0)
MATVECS(q4_k, KRI_CU_Q4_K)
MATVECS(q5_k, KRI_CU_Q5_K)
MATVECS(q6_k, KRI_CU_Q6_K)

/* ---- to bf16, for products of many rows ------------------------------------------------------ */

/* grid (groups, ceil(blocks / 16)), 256 threads: a half warp decodes one 32-block of 16 rows. */
template <int TYPE> __device__ static void unpack(const kri_cu_unpack_t &a) {
    using t = traits<TYPE>;
    const uint32_t block = blockIdx.y * 16 + threadIdx.x / 16, row = threadIdx.x % 16;
    const uint32_t n_blocks = a.n_in / 32, at = blockIdx.x * 16 + row;
    if (block >= n_blocks || at >= a.n_rows) return;
    block_t<TYPE> w;
    load(w, a.w + blockIdx.x * a.group_bytes, a.scales, a.quants, block, row);
    const float d = kri_half(w.d);
    uint4 *out = (uint4 *)(a.out + (uint64_t)at * a.n_in + block * 32);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float scale = d, offset = -(float)t::zero * d;
        if (t::is_6) {
            scale = d * (float)w.s[half];
            offset = -32.0f * scale;
        } else if (t::is_k) {
            scale = d * (float)(uint8_t)w.s[0];
            offset = -kri_half(w.m) * (float)(uint8_t)w.s[1];
        } else if (t::has_min) {
            offset = kri_half(w.m);
        }
        uint32_t pairs[8];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t u = quants_of(w, half * 4 + i, row);
            pairs[2 * i] = kri_pack_bf16(fmaf(scale, (float)(u & 255), offset),
                                         fmaf(scale, (float)(u >> 8 & 255), offset));
            pairs[2 * i + 1] = kri_pack_bf16(fmaf(scale, (float)(u >> 16 & 255), offset),
                                             fmaf(scale, (float)(u >> 24), offset));
        }
        out[2 * half] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        out[2 * half + 1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
    }
}
#define UNPACK(name, type)                                                                       \
    KERNEL kri_unpack_##name(const kri_cu_unpack_t a) {                                          \
        kri_begin();                                                                             \
        unpack<type>(a);                                                                         \
    }
UNPACK(q4_0, KRI_CU_Q4_0)
UNPACK(q4_1, KRI_CU_Q4_1)
UNPACK(q5_0, KRI_CU_Q5_0)
UNPACK(q5_1, KRI_CU_Q5_1)
UNPACK(q8_0, KRI_CU_Q8_0)
UNPACK(q4_k, KRI_CU_Q4_K)
UNPACK(q5_k, KRI_CU_Q5_K)
UNPACK(q6_k, KRI_CU_Q6_K)
