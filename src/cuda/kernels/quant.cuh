/* quant.cuh: packed quantised weights (ops/pack.h) in registers. A lane has one row of a group of
 * 16, so that a warp reads two 32-blocks of all 16 rows as whole lines and every lane of a half
 * reads the same activations. Products are those of the reference, integers summed exactly. */
#ifndef KRI_CUDA_QUANT_CUH
#define KRI_CUDA_QUANT_CUH

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

/* Weights in shared memory, or in the device's, where they are read once. */
template <bool IN_SHARED> __device__ __forceinline__ uint32_t read_words(const uint8_t *p) {
    return IN_SHARED ? *(const uint32_t *)p : kri_load_stream32(p);
}
template <bool IN_SHARED, typename T> __device__ __forceinline__ T read(const uint8_t *p) {
    return IN_SHARED ? *(const T *)p : __ldg((const T *)p);
}

/* From where the block's quants, its scales and its super-block's scales are. */
template <int TYPE, bool IN_SHARED>
__device__ __forceinline__ void load_from(block_t<TYPE> &w, const uint8_t *q, const uint8_t *s,
                                          const uint8_t *super, uint32_t row) {
    using t = traits<TYPE>;
#pragma unroll
    for (int i = 0; i < t::n_words; i++)
        w.words[i] = read_words<IN_SHARED>(q + t::before + (i * 16 + row) * 4);
    if (t::is_5) {
#pragma unroll
        for (int i = 0; i < 8; i++) w.high[i] = read<IN_SHARED, uint8_t>(q + i * 8 + row / 2);
    }
    if (t::is_6) {
        w.high[0] = read_words<IN_SHARED>(q + row * 4);
        w.high[1] = read_words<IN_SHARED>(q + 64 + row * 4);
    }
    if (t::is_k || t::is_6) {
        w.d = read<IN_SHARED, uint16_t>(super + row * 2);
        if (t::is_k) w.m = read<IN_SHARED, uint16_t>(super + 32 + row * 2);
        w.s[0] = (int8_t)read<IN_SHARED, uint8_t>(s + row);
        w.s[1] = (int8_t)read<IN_SHARED, uint8_t>(s + 16 + row);
    } else {
        w.d = read<IN_SHARED, uint16_t>(s + row * 2);
        if (t::has_min) w.m = read<IN_SHARED, uint16_t>(s + 32 + row * 2);
    }
}

template <int TYPE>
__device__ __forceinline__ void load(block_t<TYPE> &w, const uint8_t *group, uint32_t scales,
                                     uint32_t quants, uint32_t block, uint32_t row) {
    using t = traits<TYPE>;
    load_from<TYPE, false>(w, group + quants + (uint64_t)block * t::block_bytes,
                           group + scales + (uint64_t)block * t::scale_bytes,
                           group + (uint64_t)(block / 8) * t::super_bytes, row);
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

#endif
