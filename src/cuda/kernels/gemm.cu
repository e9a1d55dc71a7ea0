/* gemm.cu: c [m, n] f32 = a [m, k] b [n, k]^T with bf16 operands on the tensor cores: tiles of
 * 32 k come through four stages of asynchronous copies. Rows of 64 bytes in shared memory are
 * swizzled in pieces of 16, so that ldmatrix meets no bank twice. k is a multiple of 32. */
#include "common.cuh"

#define STAGES 4
#define K_TILE 32

__device__ __forceinline__ uint32_t place(uint32_t row, uint32_t piece) {
    return row * 64 + (piece ^ (row >> 1 & 3)) * 16;
}

template <int ROWS, int THREADS>
__device__ __forceinline__ void fetch(uint32_t to, const uint16_t *from, uint32_t row_begin,
                                      uint32_t n_rows, uint32_t k, uint32_t at) {
#pragma unroll
    for (int i = 0; i < (ROWS * 4 + THREADS - 1) / THREADS; i++) {
        const uint32_t piece = threadIdx.x + i * THREADS, row = piece / 4;
        if (row >= ROWS) break;
        const bool valid = row_begin + row < n_rows && at < k;
        const uint64_t source = valid ? (uint64_t)(row_begin + row) * k + at + piece % 4 * 8 : 0;
        kri_copy16(to + place(row, piece % 4), from + source, valid);
    }
}

template <int BM, int BN, int WM, int WN> __device__ static void gemm(const kri_cu_gemm_t &g) {
    constexpr int threads = BM / WM * (BN / WN) * 32, stage = (BM + BN) * 64;
    KRI_SHARED_MEMORY(memory);
    const uint32_t base = kri_shared(memory), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t m0 = blockIdx.x * BM, n0 = blockIdx.y * BN;
    const uint32_t wm = warp % (BM / WM) * WM, wn = warp / (BM / WM) * WN;
    const uint32_t n_tiles = g.k / K_TILE;
    float acc[WM / 16][WN / 8][4] = {};
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        fetch<BM, threads>(base + s * stage, g.a, m0, g.m, g.k, s * K_TILE);
        fetch<BN, threads>(base + s * stage + BM * 64, g.b, n0, g.n, g.k, s * K_TILE);
        kri_copy_commit();
    }
    for (uint32_t t = 0; t < n_tiles; t++) {
        kri_copy_wait<STAGES - 2>();
        __syncthreads();
        const uint32_t next = t + STAGES - 1, to = base + next % STAGES * stage;
        fetch<BM, threads>(to, g.a, m0, g.m, g.k, next * K_TILE);
        fetch<BN, threads>(to + BM * 64, g.b, n0, g.n, g.k, next * K_TILE);
        kri_copy_commit();
        const uint32_t tile_a = base + t % STAGES * stage, tile_b = tile_a + BM * 64;
#pragma unroll
        for (int kk = 0; kk < K_TILE / 16; kk++) {
            uint32_t a[WM / 16][4], b[WN / 16][4];
#pragma unroll
            for (int i = 0; i < WM / 16; i++)
                kri_ldmatrix4(a[i], tile_a + place(wm + i * 16 + lane % 16, kk * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < WN / 16; j++)
                kri_ldmatrix4(b[j], tile_b + place(wn + j * 16 + lane / 16 * 8 + lane % 8,
                                                   kk * 2 + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < WM / 16; i++)
#pragma unroll
                for (int j = 0; j < WN / 8; j++)
                    kri_mma_bf16(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
#pragma unroll
    for (int i = 0; i < WM / 16; i++)
#pragma unroll
        for (int j = 0; j < WN / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const uint32_t row = m0 + wm + i * 16 + lane / 4 + e / 2 * 8;
                const uint32_t column = n0 + wn + j * 8 + lane % 4 * 2 + e % 2;
                if (row >= g.m || column >= g.n) continue;
                float *c = g.c + row * g.ldc + column;
                float sum = acc[i][j][e];
                if (g.rounded) {
                    g.rounded[row * g.ldc + column] = kri_to_bf16(sum);
                    continue;
                }
                if (g.bias) sum += g.bias[column];
                *c = g.accumulate ? *c + sum : sum;
            }
}

/* grid (ceil(m / 128), ceil(n / 128)), 256 threads, 65536 bytes of shared memory */
KERNEL __launch_bounds__(256) kri_gemm_128(const kri_cu_gemm_t g) {
    kri_begin();
    gemm<128, 128, 64, 32>(g);
}
/* grid (ceil(m / 64), ceil(n / 64)), 128 threads, 32768 bytes */
KERNEL __launch_bounds__(128) kri_gemm_64(const kri_cu_gemm_t g) {
    kri_begin();
    gemm<64, 64, 32, 32>(g);
}
/* grid (ceil(m / 16), ceil(n / 64)), 128 threads, 20480 bytes */
KERNEL __launch_bounds__(128) kri_gemm_16(const kri_cu_gemm_t g) {
    kri_begin();
    gemm<16, 64, 16, 16>(g);
}
