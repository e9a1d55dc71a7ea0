/* row.cuh: products of one row of activations, what quantised and float weights share. As many
 * blocks as fit on the device take units of rows of weights in turn; the eight warps of a block
 * share the k of a unit piece by piece, so that together they read whole stretches of memory.
 * Weights come through rings in shared memory, one of each warp, filled by asynchronous copies that
 * begin before the kernel waits for the one before it and go on from unit to unit. The norm (or the
 * rounding to 8 bits) of the row is every block's own; so is what follows the product: bias, sum
 * with what is there, or the gated activation in the form that the next product reads. */
#ifndef KRI_CUDA_ROW_CUH
#define KRI_CUDA_ROW_CUH

#include "acts.cuh"

#define ROW_WARPS KRI_CU_ROW_WARPS
#define ROW_THREADS (32 * ROW_WARPS)
#define ROW_KEPT 4 /* pieces of four items of the norm's weights that a thread has in registers */

/* A piece of a warp's work: `sub` of the sets of rows of a unit, and which piece of their k. */
struct kri_row_cursor_t { uint32_t unit, sub, chunk; };

/* Sets of a unit: one, or SETS / 2 of gate and as many of up. */
template <int SETS> __device__ __forceinline__ uint32_t kri_row_sets(const kri_cu_row_t &a) {
    return a.is_gated ? SETS : 1;
}

__device__ __forceinline__ uint32_t kri_row_part(const kri_cu_row_t &a, uint32_t unit) {
    return (unit >= a.first[1]) + (unit >= a.first[2]);
}

/* Which set of ROWS rows of its part. */
template <int SETS>
__device__ __forceinline__ uint32_t kri_row_set(const kri_cu_row_t &a, const kri_row_cursor_t &c,
                                                uint32_t *part) {
    *part = a.is_gated ? c.sub / (SETS / 2) : kri_row_part(a, c.unit);
    return a.is_gated ? c.unit * (SETS / 2) + c.sub % (SETS / 2) : c.unit - a.first[*part];
}

template <int SETS>
__device__ __forceinline__ void kri_row_next(const kri_cu_row_t &a, kri_row_cursor_t &c,
                                             uint32_t n_chunks) {
    c.chunk += ROW_WARPS;
    if (c.chunk < n_chunks) return;
    c.chunk = threadIdx.x / 32;
    if (++c.sub < kri_row_sets<SETS>(a)) return;
    c.sub = 0;
    c.unit += gridDim.x;
}

/* The norm's weights of this thread's first pieces: they never change. */
__device__ __forceinline__ void kri_row_norm(const kri_cu_row_t &a, float4 (&w)[ROW_KEPT]) {
#pragma unroll
    for (int j = 0; j < ROW_KEPT; j++) {
        const uint32_t i = (j * ROW_THREADS + threadIdx.x) * 4;
        w[j] = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
        if (a.norm && i < a.n_in) w[j] = *(const float4 *)(a.norm + i);
    }
}

/* The row, normed where there is a norm, four items at a time: store(i, v), called by all lanes of
 * a warp together, also past the end of the row. */
template <typename STORE>
__device__ __forceinline__ void kri_row_items(const kri_cu_row_t &a,
                                              const float4 (&w)[ROW_KEPT], STORE store) {
    const float *x = a.x + (uint64_t)(a.rows ? a.rows[0] : 0) * a.n_in;
    const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float4 kept[ROW_KEPT];
    float sum = 0.0f, inverse = 1.0f;
#pragma unroll
    for (int j = 0; j < ROW_KEPT; j++) {
        const uint32_t i = (j * ROW_THREADS + threadIdx.x) * 4;
        kept[j] = i < a.n_in ? *(const float4 *)(x + i) : none;
        const float4 v = kept[j];
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    if (a.norm) {
        for (uint32_t i = (ROW_KEPT * ROW_THREADS + threadIdx.x) * 4; i < a.n_in;
             i += ROW_THREADS * 4) {
            const float4 v = *(const float4 *)(x + i);
            sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
        inverse = 1.0f / sqrtf(kri_block_sum(sum) / a.n_in + a.eps);
    }
#pragma unroll
    for (int j = 0; j < ROW_KEPT; j++) {
        const uint32_t begin = j * ROW_THREADS * 4;
        const float v[4] = {kept[j].x * inverse * w[j].x, kept[j].y * inverse * w[j].y,
                            kept[j].z * inverse * w[j].z, kept[j].w * inverse * w[j].w};
        if (begin < a.n_in) store(begin + threadIdx.x * 4, v);
    }
    for (uint32_t begin = ROW_KEPT * ROW_THREADS * 4; begin < a.n_in; begin += ROW_THREADS * 4) {
        const uint32_t i = begin + threadIdx.x * 4;
        float v[4] = {0, 0, 0, 0};
        for (int j = 0; j < 4 && i < a.n_in; j++)
            v[j] = x[i + j] * inverse * (a.norm ? a.norm[i + j] : 1.0f);
        store(i, v);
    }
}

template <int ROWS, int SETS> struct kri_row_sums_t {
    float of[2][SETS][ROW_WARPS][ROWS]; /* units in turn, so that a warp may be one ahead */
    __align__(16) float gated[SETS / 2 * ROWS];
};

/* The product with row i of a part, summed over the warps. */
template <int ROWS>
__device__ __forceinline__ float kri_row_total(const kri_cu_row_t &a,
                                               const float (&sums)[ROW_WARPS][ROWS], uint32_t part,
                                               uint32_t i, uint32_t row) {
    float total = a.bias[part] ? a.bias[part][row] : 0.0f;
#pragma unroll
    for (uint32_t w = 0; w < ROW_WARPS; w++) total += sums[w][i];
    return total;
}

/* By the first warp: the gated product of a unit. */
template <int ROWS, int SETS>
__device__ __forceinline__ void kri_row_gated(const kri_cu_row_t &a,
                                              kri_row_sums_t<ROWS, SETS> &sums, uint32_t turn,
                                              uint32_t unit) {
    constexpr uint32_t n = SETS / 2 * ROWS;
    const uint32_t i = threadIdx.x, begin = unit * n, row = begin + i;
    if (i < n) {
        float value = 0.0f;
        if (row < a.n_out[0]) {
            value = kri_gated(
                a.act, kri_row_total<ROWS>(a, sums.of[turn][i / ROWS], 0, i % ROWS, row),
                kri_row_total<ROWS>(a, sums.of[turn][SETS / 2 + i / ROWS], 1, i % ROWS, row));
            if (!a.out_q8) a.out[row] = value;
        }
        sums.gated[i] = value;
    }
    if (n != 32 || !a.out_q8) return;
    __syncwarp();
    float v[4] = {0, 0, 0, 0};
    for (int j = 0; j < 4 && i < 8; j++) v[j] = sums.gated[i * 4 + j];
    kri_store_q8(i < 8 && begin < a.n_out[0] ? a.out_q8 + unit : nullptr, i % 8, v);
    __syncwarp();
}

/* What the unit's rows are added to, read before the product is there. */
template <int ROWS>
__device__ __forceinline__ float kri_row_before(const kri_cu_row_t &a, uint32_t unit) {
    if (!a.accumulate || threadIdx.x >= ROWS) return 0.0f;
    const uint32_t part = kri_row_part(a, unit);
    const uint32_t row = (unit - a.first[part]) * ROWS + threadIdx.x;
    return row < a.n_out[part] ? a.out[a.out_offset[part] + row] : 0.0f;
}

/* A unit's sums are there, from all warps after this barrier. */
template <int ROWS, int SETS>
__device__ __forceinline__ void kri_row_finish(const kri_cu_row_t &a,
                                               kri_row_sums_t<ROWS, SETS> &sums, uint32_t turn,
                                               uint32_t unit, float before) {
    __syncthreads();
    if (threadIdx.x >= 32) return;
    if (a.is_gated) {
        kri_row_gated<ROWS, SETS>(a, sums, turn, unit);
        return;
    }
    const uint32_t part = kri_row_part(a, unit);
    const uint32_t i = threadIdx.x, row = (unit - a.first[part]) * ROWS + i;
    if (i >= ROWS || row >= a.n_out[part]) return;
    a.out[a.out_offset[part] + row] =
        before + kri_row_total<ROWS>(a, sums.of[turn][0], part, i, row);
}

#endif
