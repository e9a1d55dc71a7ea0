/* row_quant.cu: one row of activations by packed quantised weights: see row.cuh and quant.cuh. A
 * set is a group of 16 rows, a gated unit two groups of gate and two of up, which give one 8-bit
 * block; a piece of a ring has 256 k of a group. */
#include "quant.cuh"
#include "row.cuh"

#define CHUNK 8 /* 32-blocks of a piece */
#define SETS 4

template <int TYPE> struct slot_t {
    using t = traits<TYPE>;
    /* Both halves of a warp read at once, from blocks side by side: not from the same banks. */
    static constexpr int stride = t::block_bytes + (t::block_bytes / 64 % 2 ? 0 : 64);
    static constexpr int scales = CHUNK * stride, super = scales + CHUNK * t::scale_bytes;
    static constexpr int n_bytes = super + t::super_bytes;
    static constexpr int n_slots = t::is_8 ? 2 : 3;
};

template <int TYPE>
__device__ __forceinline__ void copy_chunk(uint32_t slot, const kri_cu_row_t &a,
                                           const kri_row_cursor_t &at) {
    using t = traits<TYPE>;
    using s = slot_t<TYPE>;
    constexpr uint32_t pieces = t::block_bytes / 16, scale_pieces = t::scale_bytes / 16;
    uint32_t part;
    const uint32_t group_index = kri_row_set<SETS>(a, at, &part), lane = threadIdx.x % 32;
    if (group_index * 16 >= a.n_out[part]) return; /* past the end: its rows are not stored */
    const uint8_t *group = a.w[part] + group_index * a.group_bytes;
    const uint32_t block = at.chunk * CHUNK, left = a.n_in / 32 - block;
    const uint8_t *q = group + a.quants + (uint64_t)block * t::block_bytes + lane * 16;
    const uint8_t *scales = group + a.scales + (uint64_t)block * t::scale_bytes + lane * 16;
    const uint32_t n = t::super_bytes > 0 || left > CHUNK ? CHUNK : left;
#pragma unroll
    for (uint32_t i = 0; i < CHUNK * pieces / 32; i++) {
        const uint32_t piece = lane + i * 32;
        if (piece < n * pieces)
            kri_copy16(slot + piece / pieces * s::stride + piece % pieces * 16, q + i * 512, true);
    }
    if (lane < n * scale_pieces) kri_copy16(slot + s::scales + lane * 16, scales, true);
    if (t::super_bytes > 0 && lane >= 32 - t::super_bytes / 16) {
        const uint32_t piece = (31 - lane) * 16;
        kri_copy16(slot + s::super + piece,
                   group + (uint64_t)at.chunk * t::super_bytes + piece, true);
    }
}

template <int TYPE>
__device__ __forceinline__ float add_chunk(const uint8_t *slot, const kri_cu_q8_t *act,
                                           uint32_t n_blocks, float acc) {
    using t = traits<TYPE>;
    using s = slot_t<TYPE>;
    const uint32_t row = threadIdx.x % 16, half = threadIdx.x % 32 / 16;
#pragma unroll
    for (uint32_t i = 0; i < CHUNK; i += 2) {
        const uint32_t block = i + half;
        if (t::super_bytes == 0 && block >= n_blocks) continue;
        block_t<TYPE> w;
        load_from<TYPE, true>(w, slot + block * s::stride,
                              slot + s::scales + block * t::scale_bytes, slot + s::super, row);
        uint32_t u[8];
#pragma unroll
        for (int j = 0; j < 8; j++) u[j] = quants_of(w, j, row);
        acc = add_block(w, u, act + block, acc);
    }
    return acc;
}

__device__ __forceinline__ void fetch_row(const kri_cu_row_t &a, const float4 (&norm)[ROW_KEPT],
                                          kri_cu_q8_t *act) {
    if (a.q8) {
        for (uint32_t i = threadIdx.x; i < a.n_in / 32 * 3; i += ROW_THREADS)
            ((uint4 *)act)[i] = ((const uint4 *)a.q8)[i];
    } else {
        kri_row_items(a, norm, [&](uint32_t i, const float (&v)[4]) {
            kri_store_q8(i < a.n_in ? act + i / 32 : nullptr, threadIdx.x % 8, v);
        });
    }
    __syncthreads();
}

/* n_in * 1.5 bytes, then the rings */
template <int TYPE> __device__ static void multiply(const kri_cu_row_t &a) {
    using s = slot_t<TYPE>;
    KRI_SHARED_MEMORY(memory);
    __shared__ kri_row_sums_t<16, SETS> sums;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_blocks = a.n_in / 32;
    const uint32_t n_chunks = (n_blocks + CHUNK - 1) / CHUNK, n_sets = kri_row_sets<SETS>(a);
    kri_cu_q8_t *act = (kri_cu_q8_t *)memory;
    const uint8_t *ring = memory + n_blocks * sizeof(kri_cu_q8_t) + warp * s::n_slots * s::n_bytes;
    const uint32_t to = kri_shared(ring);
    kri_row_cursor_t ahead = {warp < n_chunks ? blockIdx.x : UINT32_MAX, 0, warp};
    float4 norm[ROW_KEPT];
#pragma unroll
    for (uint32_t i = 0; i < s::n_slots - 1; i++) {
        if (ahead.unit < a.n_units) {
            copy_chunk<TYPE>(to + i * s::n_bytes, a, ahead);
            kri_row_next<SETS>(a, ahead, n_chunks);
        }
        kri_copy_commit();
    }
    kri_row_norm(a, norm);
    kri_begin(); /* activations from here on */
    float before = kri_row_before<16>(a, blockIdx.x);
    fetch_row(a, norm, act);
    uint32_t now = 0, turn = 0;
    for (uint32_t unit = blockIdx.x; unit < a.n_units; unit += gridDim.x, turn ^= 1) {
        for (uint32_t sub = 0; sub < n_sets; sub++) {
            float acc = 0.0f;
            for (uint32_t c = warp; c < n_chunks; c += ROW_WARPS) {
                const uint32_t next = now == 0 ? s::n_slots - 1 : now - 1;
                if (ahead.unit < a.n_units) {
                    copy_chunk<TYPE>(to + next * s::n_bytes, a, ahead);
                    kri_row_next<SETS>(a, ahead, n_chunks);
                }
                kri_copy_commit();
                kri_copy_wait<s::n_slots - 1>();
                __syncwarp();
                acc = add_chunk<TYPE>(ring + now * s::n_bytes, act + c * CHUNK,
                                      n_blocks - c * CHUNK, acc);
                __syncwarp();
                now = now == s::n_slots - 1 ? 0 : now + 1;
            }
            acc += __shfl_xor_sync(~0u, acc, 16);
            if (lane < 16) sums.of[turn][sub][warp][lane] = acc;
        }
        kri_row_finish<16, SETS>(a, sums, turn, unit, before);
        if (unit + gridDim.x < a.n_units) before = kri_row_before<16>(a, unit + gridDim.x);
    }
}

#define ROW(name, type)                                                                          \
    KERNEL __launch_bounds__(ROW_THREADS, 3) kri_row_##name(const kri_cu_row_t a) {              \
        multiply<type>(a);                                                                       \
    }
ROW(q4_0, KRI_CU_Q4_0)
ROW(q4_1, KRI_CU_Q4_1)
ROW(q5_0, KRI_CU_Q5_0)
ROW(q5_1, KRI_CU_Q5_1)
ROW(q8_0, KRI_CU_Q8_0)
ROW(q4_k, KRI_CU_Q4_K)
ROW(q5_k, KRI_CU_Q5_K)
ROW(q6_k, KRI_CU_Q6_K)
