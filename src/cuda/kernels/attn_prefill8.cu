/* attn_prefill8.cu: attention of a tile of up to 64 rows of one sequence and one query head over
 * its pages of int8 or fp8. Pages come as they are through two stages of asynchronous copies; a
 * tile of keys and values becomes halves in shared memory, scales included (their rounding is far
 * below that of 8 bits), and from there on it is flash attention on the tensor cores with sums of
 * f32. Rows in shared memory are swizzled in pieces of 16 bytes. */
#include "kv8.cuh"

#define ROWS KRI_CU_TILE8
#define THREADS 128

template <int HD> __device__ __forceinline__ uint32_t place(uint32_t row, uint32_t piece) {
    return row * (HD * 2) + (piece ^ (row & 7)) * 16;
}

/* What a KV head has in a page: keys, values, scales. */
#define RAW_BYTES(hd) (32u * (hd) + 64u)

/* The pages of N keys from position `key` on; none past `last`. */
template <int HD, int N>
__device__ __forceinline__ void fetch(uint32_t to, const kri_cu_attn_t &a, const kri_cu_seq_t &seq,
                                      uint64_t head, uint32_t key, uint32_t last) {
    constexpr uint32_t pieces = RAW_BYTES(HD) / 16;
    for (uint32_t i = threadIdx.x; i < N / 16 * pieces; i += THREADS) {
        const uint32_t page = i / pieces, at = i % pieces * 16;
        if (key + page * 16 > last) continue;
        const uint8_t *from = kri_kv_page(a.step, a.kv, seq, key / 16 + page) + head + a.kv.k + at;
        kri_copy16(to + page * RAW_BYTES(HD) + at, from, true);
    }
}

/* Pages in shared memory to keys [N][HD] and values [N][HD] of halves; those outside [first, last]
 * become zeros. */
template <int HD, int N>
__device__ __forceinline__ void unpack_keys(uint8_t *to, const uint8_t *raw, uint32_t dtype,
                                            uint32_t key, uint32_t first, uint32_t last) {
    constexpr uint32_t pieces = HD / 8;
    for (uint32_t i = threadIdx.x; i < N * pieces; i += THREADS) {
        const uint32_t row = i % N, piece = i / N, slot = row % 16;
        const uint8_t *page = raw + row / 16 * RAW_BYTES(HD);
        const uint16_t *scales = (const uint16_t *)(page + 32 * HD);
        float x[8] = {};
        if (key + row >= first && key + row <= last) {
            const float scale = kri_half(scales[slot]), of_first = kri_half(scales[0]);
            for (uint32_t e = 0; e < 8; e++) {
                const uint8_t code = page[kri_key8_at(slot, piece * 8 + e)];
                if (dtype == KRI_CU_F8) {
                    x[e] = kri_of_e4m3(code) * scale;
                    continue;
                }
                x[e] = (float)((int)code - KRI_KEY_BIAS) * fabsf(scale);
                if (scale < 0.0f)
                    x[e] += (float)((int)page[kri_key8_at(0, piece * 8 + e)] - KRI_KEY_BIAS) *
                            of_first;
            }
        }
        *(uint4 *)(to + place<HD>(row, piece)) =
            make_uint4(kri_pack_half(x[0], x[1]), kri_pack_half(x[2], x[3]),
                       kri_pack_half(x[4], x[5]), kri_pack_half(x[6], x[7]));
    }
}

template <int HD, int N>
__device__ __forceinline__ void unpack_values(uint8_t *to, const uint8_t *raw, uint32_t dtype,
                                              uint32_t key, uint32_t first, uint32_t last) {
    constexpr uint32_t pieces = HD / 8;
    for (uint32_t i = threadIdx.x; i < N / 4 * pieces; i += THREADS) { /* four keys each */
        const uint32_t four = i / pieces, piece = i % pieces, row = four * 4;
        const uint8_t *page = raw + row / 16 * RAW_BYTES(HD);
        const uint16_t *scales = (const uint16_t *)(page + 32 * HD) + 16 + row % 16;
        const uint4 *words = (const uint4 *)(page + 16 * HD +
                                             kri_value8_at(HD, row % 16, piece * 8));
        const uint4 low = words[0], high = words[1];
        const uint32_t dims[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            float x[8] = {};
            if (key + row + k >= first && key + row + k <= last) {
                const float scale = kri_half(scales[k]);
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    const uint8_t code = (uint8_t)(dims[e] >> 8 * k);
                    x[e] = scale * (dtype == KRI_CU_F8 ? kri_of_e4m3(code) : (float)(int8_t)code);
                }
            }
            *(uint4 *)(to + place<HD>(row + k, piece)) =
                make_uint4(kri_pack_half(x[0], x[1]), kri_pack_half(x[2], x[3]),
                           kri_pack_half(x[4], x[5]), kri_pack_half(x[6], x[7]));
        }
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

/* grid (tiles, heads), 128 threads; shared memory: queries, a tile of keys and of values, two
 * stages of pages */
template <int HD, int N> __device__ static void prefill(const kri_cu_attn_t &a) {
    KRI_SHARED_MEMORY(memory);
    constexpr uint32_t tile_bytes = N * HD * 2, stage = N / 16 * RAW_BYTES(HD);
    const kri_cu_tile_t tile = a.step.tiles[gridDim.x - 1 - blockIdx.x]; /* the longest first */
    const kri_cu_seq_t seq = a.step.seqs[tile.seq];
    const uint32_t head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t pos = seq.pos_begin + tile.row - seq.row_begin;
    const uint32_t first = kri_first_key(pos, a.kv.window), last = pos + tile.n_rows - 1;
    const uint64_t block = (uint64_t)(head / (a.n_heads / a.n_kv_heads)) * a.kv.block_bytes;
    uint8_t *keys = memory + ROWS * HD * 2, *values = keys + tile_bytes;
    uint8_t *raw = values + tile_bytes;
    uint32_t key = first / N * N;
    rows_t<HD> rows = {};
    rows.most[0] = rows.most[1] = -INFINITY;
    fetch<HD, N>(kri_shared(raw), a, seq, block, key, last);
    kri_copy_commit();
    store_queries<HD>(memory, a, tile, head);
    for (uint32_t i = 0; key <= last; i++, key += N) {
        const uint8_t *now = raw + i % 2 * stage;
        fetch<HD, N>(kri_shared(raw) + (i + 1) % 2 * stage, a, seq, block, key + N, last);
        kri_copy_commit();
        kri_copy_wait<1>();
        __syncthreads();
        unpack_keys<HD, N>(keys, now, a.kv.dtype, key, first, last);
        unpack_values<HD, N>(values, now, a.kv.dtype, key, first, last);
        __syncthreads();
        float s[N / 8][4];
        scores<HD, N>(s, kri_shared(memory), kri_shared(keys));
        weigh<HD, N>(s, rows, a, key, pos + warp * 16 + lane / 4);
        add_values<HD, N>(rows, s, kri_shared(values));
    }
    store_rows<HD>(rows, a, tile, head);
}

#define PREFILL(hd, n)                                                                           \
    static_assert(ROWS * hd * 2 + 2 * n * hd * 2 + 2 * (n / 16) * RAW_BYTES(hd) ==             \
                      KRI_CU_PREFILL8_##hd, "kernels.def and exec_cuda.c have this size");       \
    KERNEL __launch_bounds__(THREADS) kri_attn_prefill8_##hd(const kri_cu_attn_t a) {            \
        kri_begin();                                                                             \
        prefill<hd, n>(a);                                                                       \
    }
PREFILL(64, 64)
PREFILL(128, 64)
PREFILL(256, 32)
