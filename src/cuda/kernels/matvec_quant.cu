/* matvec_quant.cu: up to eight rows of activations by packed quantised weights (ops/pack.h), one
 * read of each weight. A lane has one row of a group of 16, so that a warp reads two 32-blocks
 * of all 16 rows as whole lines and every lane of a half reads the same activations. Products
 * are those of the reference, integers summed exactly; only the order of the float sums differs. */
#include "common.cuh"

template <int TYPE> struct traits {
    static constexpr bool is_k = TYPE == KRI_CU_Q4_K || TYPE == KRI_CU_Q5_K;
    static constexpr bool has_min = TYPE == KRI_CU_Q4_1 || TYPE == KRI_CU_Q5_1;
    static constexpr bool is_5 =
        TYPE == KRI_CU_Q5_0 || TYPE == KRI_CU_Q5_1 || TYPE == KRI_CU_Q5_K;
    static constexpr bool is_6 = TYPE == KRI_CU_Q6_K, is_8 = TYPE == KRI_CU_Q8_0;
    static constexpr int before = is_5 ? 64 : is_6 ? 128 : 0; /* bytes before the nibbles */
    static constexpr int block_bytes = is_8 ? 512 : 256 + before;
    static constexpr int scale_bytes = has_min ? 64 : 32;
    static constexpr int super_bytes = is_k ? 64 : is_6 ? 32 : 0;
    static constexpr int n_words = is_8 ? 8 : 4;
    static constexpr int zero = TYPE == KRI_CU_Q4_0 ? 8 : TYPE == KRI_CU_Q5_0 ? 16 : is_8 ? 128 : 0;
    static constexpr int unroll = is_8 || is_5 || is_6 ? 2 : 4; /* what registers hold */
};

/* One 32-block of one row, as loaded. */
template <int TYPE> struct block_t {
    uint32_t words[traits<TYPE>::n_words], high[traits<TYPE>::is_5 ? 8 : 2];
    uint16_t d, m;
    int8_t s[2];
};

template <int TYPE>
__device__ __forceinline__ void load(block_t<TYPE> &w, const uint8_t *group, uint32_t scales,
                                     uint32_t quants, uint32_t block, uint32_t row) {
    using t = traits<TYPE>;
    const uint8_t *q = group + quants + (uint64_t)block * t::block_bytes;
#pragma unroll
    for (int i = 0; i < t::n_words; i++)
        w.words[i] = kri_load_stream32(q + t::before + (i * 16 + row) * 4);
    if (t::is_5) {
#pragma unroll
        for (int i = 0; i < 8; i++) w.high[i] = __ldg(q + i * 8 + row / 2);
    }
    if (t::is_6) {
        w.high[0] = kri_load_stream32(q + row * 4);
        w.high[1] = kri_load_stream32(q + 64 + row * 4);
    }
    const uint8_t *s = group + scales + (uint64_t)block * t::scale_bytes;
    if (t::is_k || t::is_6) {
        const uint8_t *super = group + (uint64_t)(block / 8) * t::super_bytes + row * 2;
        w.d = __ldg((const uint16_t *)super);
        if (t::is_k) w.m = __ldg((const uint16_t *)(super + 32));
        w.s[0] = (int8_t)__ldg(s + row);
        w.s[1] = (int8_t)__ldg(s + 16 + row);
    } else {
        w.d = __ldg((const uint16_t *)(s + row * 2));
        if (t::has_min) w.m = __ldg((const uint16_t *)(s + 32 + row * 2));
    }
}

template <int TYPE>
__device__ __forceinline__ uint32_t quants_of(const block_t<TYPE> &w, int u, uint32_t row) {
    using t = traits<TYPE>;
    if (t::is_8) return w.words[u % t::n_words];
    uint32_t x = (u < 4 ? w.words[u % 4] : w.words[u % 4] >> 4) & 0x0f0f0f0fu;
    if (t::is_5) {
        const uint32_t bits = w.high[t::is_5 ? u : 0] >> row % 2 * 4 & 15;
        x |= (bits * 0x00204081u & 0x01010101u) << 4;
    }
    if (t::is_6) x |= (w.high[u / 4] >> u % 4 * 2 & 0x03030303u) << 4;
    return x;
}

/* acc += the block's part of the product with one row of activations. */
template <int TYPE>
__device__ __forceinline__ float add_block(const block_t<TYPE> &w, const uint32_t (&u)[8],
                                           const kri_cu_q8_t *act, float acc) {
    using t = traits<TYPE>;
    const uint4 head = ((const uint4 *)act)[0];
    const uint4 q0 = ((const uint4 *)act)[1], q1 = ((const uint4 *)act)[2];
    const float d = __uint_as_float(head.x), ds = __uint_as_float(head.y);
    int low = kri_dot4(u[0], q0.x, 0), high = kri_dot4(u[4], q1.x, 0);
    low = kri_dot4(u[1], q0.y, low), high = kri_dot4(u[5], q1.y, high);
    low = kri_dot4(u[2], q0.z, low), high = kri_dot4(u[6], q1.z, high);
    low = kri_dot4(u[3], q0.w, low), high = kri_dot4(u[7], q1.w, high);
    const float scale = kri_half(w.d);
    if (t::is_6) {
        const int sum0 = (int)(head.z & 65535) + (int)(head.z >> 16) - 16384;
        const int sum1 = (int)(head.w & 65535) + (int)(head.w >> 16) - 16384;
        const int c = w.s[0] * (low - 32 * sum0) + w.s[1] * (high - 32 * sum1);
        return fmaf(scale * d, (float)c, acc);
    }
    const float dot = (float)(low + high);
    if (t::is_k) {
        acc = fmaf(scale * (float)(uint8_t)w.s[0] * d, dot, acc);
        return fmaf(-kri_half(w.m) * (float)(uint8_t)w.s[1], ds, acc);
    }
    if (t::has_min) return fmaf(kri_half(w.m), ds, fmaf(scale * d, dot, acc));
    return fmaf(scale, fmaf(d, dot, -(float)t::zero * ds), acc);
}

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
    MATVEC(name, type, 1) MATVEC(name, type, 2) MATVEC(name, type, 4) MATVEC(name, type, 8)
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
