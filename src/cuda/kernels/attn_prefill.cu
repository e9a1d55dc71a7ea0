/* attn_prefill.cu: attention of a tile of up to 64 rows of one sequence and one query head over its
 * pages (flash attention: Dao et al. 2022, 2023): keys and values come tile by tile through two
 * stages of asynchronous copies, products are f16 on the tensor cores with f32 sums, the softmax is
 * kept running. Rows in shared memory are swizzled in pieces of 16 bytes. */
#include "common.cuh"

#include <math.h>

#define ROWS KRI_CU_TILE
#define THREADS 128

template <int HD> __device__ __forceinline__ uint32_t place(uint32_t row, uint32_t piece) {
    return row * (HD * 2) + (piece ^ (row & 7)) * 16;
}

/* N keys (or values) from position `key` on; those outside [first, last] become zeros. */
template <int HD, int N>
__device__ __forceinline__ void fetch(uint32_t to, const kri_cu_attn_t &a, const kri_cu_seq_t &seq,
                                      uint64_t offset, uint32_t key, uint32_t first,
                                      uint32_t last) {
    constexpr int pieces = HD / 8;
#pragma unroll 4
    for (int i = 0; i < N * pieces / THREADS; i++) {
        const uint32_t at = threadIdx.x + i * THREADS, row = at / pieces, piece = at % pieces;
        const uint32_t pos = key + row;
        const bool valid = pos >= first && pos <= last;
        const uint8_t *from = a.kv.pool;
        if (valid) {
            from = kri_kv_page(a.step, a.kv, seq, pos / 16) + offset + pos % 16 * (HD * 2) +
                   piece * 16;
        }
        kri_copy16(to + place<HD>(row, piece), from, valid);
    }
}

template <int HD>
__device__ __forceinline__ void store_queries(uint8_t *to, const kri_cu_attn_t &a,
                                              const kri_cu_tile_t &tile, uint32_t head) {
    const uint64_t row_floats = (uint64_t)(a.n_heads + 2 * a.n_kv_heads) * HD;
    for (uint32_t i = threadIdx.x; i < ROWS * (HD / 8); i += THREADS) {
        const uint32_t row = i / (HD / 8), piece = i % (HD / 8);
        uint4 packed = make_uint4(0, 0, 0, 0);
        if (row < tile.n_rows) {
            const float4 *q = (const float4 *)(a.qkv + (tile.row + row) * row_floats + head * HD +
                                               piece * 8);
            const float4 x = q[0], y = q[1];
            packed = make_uint4(kri_pack_half(x.x, x.y), kri_pack_half(x.z, x.w),
                                kri_pack_half(y.x, y.y), kri_pack_half(y.z, y.w));
        }
        *(uint4 *)(to + place<HD>(row, piece)) = packed;
    }
}

/* A warp's 16 rows: running sums of a thread's two rows. */
template <int HD> struct rows_t {
    float acc[HD / 8][4], most[2], sum[2];
};

template <int HD, int N>
__device__ __forceinline__ void scores(float (&s)[N / 8][4], uint32_t q, uint32_t k) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < N / 8; i++)
        for (int e = 0; e < 4; e++) s[i][e] = 0.0f;
#pragma unroll
    for (int kk = 0; kk < HD / 16; kk++) {
        uint32_t x[4];
        kri_ldmatrix4(x, q + place<HD>(warp * 16 + lane % 16, kk * 2 + lane / 16));
#pragma unroll
        for (int j = 0; j < N / 16; j++) {
            uint32_t y[4];
            kri_ldmatrix4(y, k + place<HD>(j * 16 + lane / 16 * 8 + lane % 8,
                                           kk * 2 + lane / 8 % 2));
            kri_mma_half(s[2 * j], x, y[0], y[1]);
            kri_mma_half(s[2 * j + 1], x, y[2], y[3]);
        }
    }
}

/* Scores to weights, masked; what was summed before is scaled to the new maximum. */
template <int HD, int N>
__device__ __forceinline__ void weigh(float (&s)[N / 8][4], rows_t<HD> &rows,
                                      const kri_cu_attn_t &a, uint32_t key, uint32_t pos) {
    const uint32_t lane = threadIdx.x % 32;
    float most[2] = {rows.most[0], rows.most[1]};
#pragma unroll
    for (int i = 0; i < N / 8; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const uint32_t at = key + i * 8 + lane % 4 * 2 + e % 2, row = pos + e / 2 * 8;
            const bool is_seen = at <= row && at >= kri_first_key(row, a.kv.window);
            s[i][e] = is_seen ? kri_score(s[i][e], a.scale, a.softcap) : -INFINITY;
            most[e / 2] = fmaxf(most[e / 2], s[i][e]);
        }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        most[r] = fmaxf(most[r], __shfl_xor_sync(~0u, most[r], 1));
        most[r] = fmaxf(most[r], __shfl_xor_sync(~0u, most[r], 2));
        const float base = most[r] == -INFINITY ? 0.0f : most[r];
        const float old = exp2f(rows.most[r] - base);
        rows.most[r] = most[r];
        rows.sum[r] *= old;
#pragma unroll
        for (int i = 0; i < N / 8; i++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                s[i][2 * r + e] = exp2f(s[i][2 * r + e] - base);
                rows.sum[r] += s[i][2 * r + e];
            }
#pragma unroll
        for (int i = 0; i < HD / 8; i++) {
            rows.acc[i][2 * r] *= old;
            rows.acc[i][2 * r + 1] *= old;
        }
    }
}

template <int HD, int N>
__device__ __forceinline__ void add_values(rows_t<HD> &rows, const float (&s)[N / 8][4],
                                           uint32_t v) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int kk = 0; kk < N / 16; kk++) {
        const uint32_t x[4] = {kri_pack_half(s[2 * kk][0], s[2 * kk][1]),
                               kri_pack_half(s[2 * kk][2], s[2 * kk][3]),
                               kri_pack_half(s[2 * kk + 1][0], s[2 * kk + 1][1]),
                               kri_pack_half(s[2 * kk + 1][2], s[2 * kk + 1][3])};
#pragma unroll
        for (int j = 0; j < HD / 16; j++) {
            uint32_t y[4];
            kri_ldmatrix4_t(y, v + place<HD>(kk * 16 + lane / 8 % 2 * 8 + lane % 8,
                                             j * 2 + lane / 16));
            kri_mma_half(rows.acc[2 * j], x, y[0], y[1]);
            kri_mma_half(rows.acc[2 * j + 1], x, y[2], y[3]);
        }
    }
}

template <int HD>
__device__ __forceinline__ void store_rows(rows_t<HD> &rows, const kri_cu_attn_t &a,
                                           const kri_cu_tile_t &tile, uint32_t head) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = rows.sum[r];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const uint32_t row = warp * 16 + lane / 4 + r * 8;
        if (row >= tile.n_rows) continue;
        float *out = a.out + ((uint64_t)(tile.row + row) * a.n_heads + head) * HD + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < HD / 8; i++) {
            *(float2 *)(out + i * 8) =
                make_float2(rows.acc[i][2 * r] / sum, rows.acc[i][2 * r + 1] / sum);
        }
    }
}

/* grid (tiles, heads), 128 threads, (64 + 4 N) * HD * 2 bytes of shared memory */
template <int HD, int N> __device__ static void prefill(const kri_cu_attn_t &a) {
    KRI_SHARED_MEMORY(memory);
    const kri_cu_tile_t tile = a.step.tiles[gridDim.x - 1 - blockIdx.x]; /* the longest first */
    const kri_cu_seq_t seq = a.step.seqs[tile.seq];
    const uint32_t head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t pos = seq.pos_begin + tile.row - seq.row_begin;
    const uint32_t first = kri_first_key(pos, a.kv.window), last = pos + tile.n_rows - 1;
    const uint64_t block = (uint64_t)(head / (a.n_heads / a.n_kv_heads)) * a.kv.block_bytes;
    const uint32_t q = kri_shared(memory), kv = q + ROWS * HD * 2, stage = 2 * N * HD * 2;
    uint32_t key = first / N * N;
    rows_t<HD> rows = {};
    rows.most[0] = rows.most[1] = -INFINITY;
    fetch<HD, N>(kv, a, seq, a.kv.k + block, key, first, last);
    fetch<HD, N>(kv + stage / 2, a, seq, a.kv.v + block, key, first, last);
    kri_copy_commit();
    store_queries<HD>(memory, a, tile, head);
    for (uint32_t i = 0; key <= last; i++, key += N) {
        const uint32_t now = kv + i % 2 * stage, next = kv + (i + 1) % 2 * stage;
        fetch<HD, N>(next, a, seq, a.kv.k + block, key + N, first, last);
        fetch<HD, N>(next + stage / 2, a, seq, a.kv.v + block, key + N, first, last);
        kri_copy_commit();
        kri_copy_wait<1>();
        __syncthreads();
        float s[N / 8][4];
        scores<HD, N>(s, q, now);
        weigh<HD, N>(s, rows, a, key, pos + warp * 16 + lane / 4);
        add_values<HD, N>(rows, s, now + stage / 2);
        __syncthreads();
    }
    store_rows<HD>(rows, a, tile, head);
}

#define PREFILL(hd, n)                                                                           \
    KERNEL __launch_bounds__(THREADS) kri_attn_prefill_##hd(const kri_cu_attn_t a) {             \
        kri_begin();                                                                             \
        prefill<hd, n>(a);                                                                       \
    }
PREFILL(64, 64)
PREFILL(128, 64)
PREFILL(256, 32)
