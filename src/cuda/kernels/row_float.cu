/* row_float.cu: one row of activations by weights of a float type in rows: see row.cuh. A set is
 * four rows, a gated unit four of gate and four of up; a piece of a ring has 512 bytes of each row.
 * Every lane reads what it copied itself. */
#include "items.cuh"
#include "row.cuh"

#define SLOTS 4
#define ROWS 4
#define SETS 2
#define SLOT_BYTES (ROWS * 512)

template <typename T>
__device__ __forceinline__ void copy_chunk(uint32_t slot, const kri_cu_row_t &a,
                                           const kri_row_cursor_t &at) {
    uint32_t part;
    const uint32_t lane = threadIdx.x % 32, row = kri_row_set<SETS>(a, at, &part) * ROWS;
    const uint32_t piece = at.chunk * 32 + lane, last = a.n_out[part] - 1;
    const bool is_here = piece * items<T>::n < a.n_in;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const uint64_t from = row + r < last ? row + r : last; /* past the end: not stored */
        kri_copy16(slot + r * 512 + lane * 16,
                   a.w[part] + from * a.n_in * sizeof(T) + piece * 16, is_here);
    }
}

template <typename T>
__device__ __forceinline__ void add_chunk(const uint8_t *slot, const kri_cu_row_t &a,
                                          const float *x, uint32_t chunk, float (&acc)[ROWS]) {
    constexpr int n = items<T>::n;
    const uint32_t lane = threadIdx.x % 32, k = (chunk * 32 + lane) * n;
    if (k >= a.n_in) return;
    uint4 w[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) w[r] = *(const uint4 *)(slot + r * 512 + lane * 16);
#pragma unroll
    for (int i = 0; i < n; i += 4) {
        const float4 v = *(const float4 *)(x + k + i);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            acc[r] = fmaf(items<T>::at(w[r], i), v.x, acc[r]);
            acc[r] = fmaf(items<T>::at(w[r], i + 1), v.y, acc[r]);
            acc[r] = fmaf(items<T>::at(w[r], i + 2), v.z, acc[r]);
            acc[r] = fmaf(items<T>::at(w[r], i + 3), v.w, acc[r]);
        }
    }
}

/* All of the block's units; the ring's first pieces are on their way. */
template <typename T>
__device__ __forceinline__ void multiply_all(const uint8_t *ring, const kri_cu_row_t &a,
                                             const float *x, kri_row_cursor_t &ahead,
                                             uint32_t n_chunks) {
    __shared__ kri_row_sums_t<ROWS, SETS> sums;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, to = kri_shared(ring);
    const uint32_t n_sets = kri_row_sets<SETS>(a);
    float before = kri_row_before<ROWS>(a, blockIdx.x);
    uint32_t now = 0, turn = 0;
    for (uint32_t unit = blockIdx.x; unit < a.n_units; unit += gridDim.x, turn ^= 1) {
        for (uint32_t sub = 0; sub < n_sets; sub++) {
            float acc[ROWS] = {};
            for (uint32_t c = warp; c < n_chunks; c += ROW_WARPS, now = (now + 1) % SLOTS) {
                if (ahead.unit < a.n_units) {
                    copy_chunk<T>(to + (now + SLOTS - 1) % SLOTS * SLOT_BYTES, a, ahead);
                    kri_row_next<SETS>(a, ahead, n_chunks);
                }
                kri_copy_commit();
                kri_copy_wait<SLOTS - 1>();
                add_chunk<T>(ring + now * SLOT_BYTES, a, x, c, acc);
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                acc[r] = kri_warp_sum(acc[r]);
                if (lane == r) sums.of[turn][sub][warp][r] = acc[r];
            }
        }
        kri_row_finish<ROWS, SETS>(a, sums, turn, unit, before);
        if (unit + gridDim.x < a.n_units) before = kri_row_before<ROWS>(a, unit + gridDim.x);
    }
}

/* The rings, then n_in floats where there is a norm */
template <typename T> __device__ static void multiply(const kri_cu_row_t &a) {
    KRI_SHARED_MEMORY(memory);
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t n_chunks = (a.n_in + 32 * items<T>::n - 1) / (32 * items<T>::n);
    const uint8_t *ring = memory + warp * SLOTS * SLOT_BYTES;
    float *normed = (float *)(memory + ROW_WARPS * SLOTS * SLOT_BYTES);
    kri_row_cursor_t ahead = {warp < n_chunks ? blockIdx.x : UINT32_MAX, 0, warp};
    float4 norm[ROW_KEPT];
#pragma unroll
    for (uint32_t i = 0; i < SLOTS - 1; i++) {
        if (ahead.unit < a.n_units) {
            copy_chunk<T>(kri_shared(ring) + i * SLOT_BYTES, a, ahead);
            kri_row_next<SETS>(a, ahead, n_chunks);
        }
        kri_copy_commit();
    }
    kri_row_norm(a, norm);
    kri_begin(); /* activations from here on */
    const float *x = a.x;
    if (a.norm) {
        kri_row_items(a, norm, [&](uint32_t i, const float (&v)[4]) {
            if (i < a.n_in) *(float4 *)(normed + i) = make_float4(v[0], v[1], v[2], v[3]);
        });
        __syncthreads();
        x = normed;
    }
    multiply_all<T>(ring, a, x, ahead, n_chunks);
}

#define ROW(name, type)                                                                          \
    KERNEL __launch_bounds__(ROW_THREADS, 3) kri_row_##name(const kri_cu_row_t a) {              \
        multiply<type>(a);                                                                       \
    }
ROW(f32, float)
ROW(f16, __half)
ROW(bf16, __nv_bfloat16)
