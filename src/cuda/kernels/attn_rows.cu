/* attn_rows.cu: keys and values into their pages, and attention of rows one by one: decoding,
 * where a context is cut into splits that are merged afterwards, and any head size. Pages are
 * f16. */
#include "common.cuh"

#include <math.h>

/* ---- rotate and append: a warp per head, grid (ceil(heads / 4), n_rows), 128 threads
 * ---------- */

KERNEL kri_rope_append(const kri_cu_append_t a) {
    kri_begin();
    __shared__ float heads[4][KRI_CU_HEAD_DIM];
    const uint32_t lane = threadIdx.x % 32, head = blockIdx.x * 4 + threadIdx.x / 32;
    const uint32_t row = blockIdx.y, n = a.n_heads + 2 * a.n_kv_heads;
    if (head >= n) return;
    float *x = a.qkv + ((uint64_t)row * n + head) * a.head_dim, *own = heads[threadIdx.x / 32];
    const bool is_q = head < a.n_heads, is_v = head >= a.n_heads + a.n_kv_heads;
    const float *norm = is_q ? a.q_norm : is_v ? nullptr : a.k_norm;
    float sum = 0.0f;
    for (uint32_t i = lane; i < a.head_dim; i += 32) {
        own[i] = x[i];
        sum += own[i] * own[i];
    }
    const float inverse = norm ? 1.0f / sqrtf(kri_warp_sum(sum) / a.head_dim + a.eps) : 1.0f;
    for (uint32_t i = lane; i < a.head_dim && norm; i += 32) own[i] *= inverse * norm[i];
    __syncwarp();
    const uint32_t n_pairs = is_v ? 0 : a.n_rot / 2;
    const float2 *turns = (const float2 *)a.cos_sin + (uint64_t)row * (a.n_rot / 2);
    for (uint32_t i = lane; i < n_pairs; i += 32) {
        const uint32_t low = a.is_pair ? 2 * i : i, high = a.is_pair ? 2 * i + 1 : i + n_pairs;
        const float2 turn = turns[i];
        const float p = own[low], q = own[high];
        own[low] = p * turn.x - q * turn.y;
        own[high] = p * turn.y + q * turn.x;
    }
    __syncwarp();
    if (is_q) {
        for (uint32_t i = lane; i < a.head_dim; i += 32) x[i] = own[i];
        return;
    }
    const kri_cu_seq_t seq = a.step.seqs[a.step.row_seq[row]];
    const uint32_t pos = (uint32_t)a.step.positions[row];
    const uint32_t kv_head = (head - a.n_heads) % a.n_kv_heads;
    uint8_t *page = (uint8_t *)kri_kv_page(a.step, a.kv, seq, pos / 16);
    uint16_t *to = (uint16_t *)(page + (is_v ? a.kv.v : a.kv.k) +
                                (uint64_t)kv_head * a.kv.block_bytes) + pos % 16 * a.head_dim;
    for (uint32_t i = lane; i < a.head_dim; i += 32)
        to[i] = __half_as_ushort(__float2half_rn(own[i]));
}

/* ---- decode: grid (splits, KV heads * chunks of G query heads, rows), 128 threads
 * ------------- */

/* What one warp has seen of its keys: a lane holds 8 dimensions. */
template <int G> struct seen_t {
    float acc[G][8], most[G], sum[G];
};

__device__ __forceinline__ void halves(const uint4 &v, float (&f)[8]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = __half22float2(*(const __half2 *)&words[i]);
        f[2 * i] = pair.x;
        f[2 * i + 1] = pair.y;
    }
}

/* N loads of keys and values; each load is PER keys wide, this lane's key of load i is
 * key + i * PER. */
template <int HD, int G, int N>
__device__ __forceinline__ void see(seen_t<G> &seen, const float (&q)[G][8],
                                    const kri_cu_attn_t &a, const uint8_t *k, const uint8_t *v,
                                    uint32_t key, uint32_t first, uint32_t last) {
    constexpr int lanes = HD / 8, per = 32 / lanes;
    uint4 keys[N], values[N];
    float score[G][N], f[8];
#pragma unroll
    for (int i = 0; i < N; i++) keys[i] = *(const uint4 *)(k + i * 512);
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = *(const uint4 *)(v + i * 512);
#pragma unroll
    for (int i = 0; i < N; i++) {
        const bool is_seen = key + i * per >= first && key + i * per <= last;
        if (!is_seen) values[i] = make_uint4(0, 0, 0, 0);
        halves(keys[i], f);
#pragma unroll
        for (int g = 0; g < G; g++) {
            float dot = 0.0f;
#pragma unroll
            for (int d = 0; d < 8; d++) dot = fmaf(q[g][d], f[d], dot);
#pragma unroll
            for (int x = 1; x < lanes; x *= 2) dot += __shfl_xor_sync(~0u, dot, x);
            score[g][i] = is_seen ? kri_score(dot, a.scale, a.softcap) : -INFINITY;
        }
    }
#pragma unroll
    for (int g = 0; g < G; g++) {
        float most = seen.most[g];
#pragma unroll
        for (int i = 0; i < N; i++) most = fmaxf(most, score[g][i]);
#pragma unroll
        for (int x = lanes; x < 32; x *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, x));
        const float base = most == -INFINITY ? 0.0f : most; /* nothing seen yet: all weights 0 */
        const float old = exp2f(seen.most[g] - base);
        seen.most[g] = most;
        seen.sum[g] *= old;
#pragma unroll
        for (int d = 0; d < 8; d++) seen.acc[g][d] *= old;
#pragma unroll
        for (int i = 0; i < N; i++) {
            score[g][i] = exp2f(score[g][i] - base);
            seen.sum[g] += score[g][i];
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        halves(values[i], f);
#pragma unroll
        for (int g = 0; g < G; g++)
#pragma unroll
            for (int d = 0; d < 8; d++) seen.acc[g][d] = fmaf(score[g][i], f[d], seen.acc[g][d]);
    }
}

/* The block's warps together: to `out` whole, or to `partials`. */
template <int HD, int G>
__device__ static void meet(seen_t<G> &seen, const kri_cu_attn_t &a, uint32_t row,
                            uint32_t head_begin, uint32_t n_heads) {
    constexpr int lanes = HD / 8;
    __shared__ float acc[4][G][HD], most[4][G], sum[4][G];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int g = 0; g < G; g++) {
#pragma unroll
        for (int x = lanes; x < 32; x *= 2) {
            seen.sum[g] += __shfl_xor_sync(~0u, seen.sum[g], x);
#pragma unroll
            for (int d = 0; d < 8; d++)
                seen.acc[g][d] += __shfl_xor_sync(~0u, seen.acc[g][d], x);
        }
        if (lane < lanes)
            for (int d = 0; d < 8; d++) acc[warp][g][lane * 8 + d] = seen.acc[g][d];
        if (lane == 0) {
            most[warp][g] = seen.most[g];
            sum[warp][g] = seen.sum[g];
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_heads * HD; i += 128) {
        const uint32_t g = i / HD, d = i % HD, head = head_begin + g;
        const float top = fmaxf(fmaxf(most[0][g], most[1][g]), fmaxf(most[2][g], most[3][g]));
        float value = 0.0f, total = 0.0f;
        for (int w = 0; w < 4; w++) {
            const float part = top == -INFINITY ? 0.0f : exp2f(most[w][g] - top);
            value += part * acc[w][g][d];
            total += part * sum[w][g];
        }
        if (a.n_splits == 1) {
            a.out[((uint64_t)row * a.n_heads + head) * HD + d] = value / total;
            continue;
        }
        float *partial = a.partials + (((uint64_t)blockIdx.z * a.n_heads + head) * a.n_splits +
                                       blockIdx.x) * (HD + 2);
        partial[d] = value;
        if (d == 0) {
            partial[HD] = top;
            partial[HD + 1] = total;
        }
    }
}

template <int HD, int G> __device__ static void decode(const kri_cu_attn_t &a) {
    constexpr int lanes = HD / 8, per = 32 / lanes, loads = 16 / per, n = loads < 8 ? loads : 8;
    const uint32_t share = a.n_heads / a.n_kv_heads, n_chunks = (share + G - 1) / G;
    const uint32_t kv_head = blockIdx.y / n_chunks, chunk = blockIdx.y % n_chunks;
    const uint32_t head_begin = kv_head * share + chunk * G;
    const uint32_t n_heads = min((uint32_t)G, share - chunk * G);
    const uint32_t row = a.step.decode_rows[blockIdx.z];
    const uint32_t last = (uint32_t)a.step.positions[row], first = kri_first_key(last, a.kv.window);
    const kri_cu_seq_t seq = a.step.seqs[a.step.row_seq[row]];
    const uint32_t lane = threadIdx.x % 32, n_pages = last / 16 - first / 16 + 1;
    const uint32_t each = (n_pages + a.n_splits - 1) / a.n_splits;
    const uint32_t begin = first / 16 + blockIdx.x * each;
    const uint32_t end = min(begin + each, last / 16 + 1);
    const uint64_t row_floats = (uint64_t)(a.n_heads + 2 * a.n_kv_heads) * HD;
    float q[G][8];
    seen_t<G> seen;
#pragma unroll
    for (int g = 0; g < G; g++) {
        seen.most[g] = -INFINITY;
        seen.sum[g] = 0.0f;
        const uint32_t head = head_begin + (g < n_heads ? g : 0);
        const float *from = a.qkv + row * row_floats + head * HD + lane % lanes * 8;
#pragma unroll
        for (int d = 0; d < 8; d++) {
            q[g][d] = from[d];
            seen.acc[g][d] = 0.0f;
        }
    }
    for (uint32_t page = begin + threadIdx.x / 32; page < end; page += 4) {
        const uint8_t *at = kri_kv_page(a.step, a.kv, seq, page) +
                            (uint64_t)kv_head * a.kv.block_bytes + lane * 16;
        for (int i = 0; i < loads; i += n) {
            see<HD, G, n>(seen, q, a, at + a.kv.k + i * 512, at + a.kv.v + i * 512,
                          page * 16 + i * per + lane / lanes, first, last);
        }
    }
    meet<HD, G>(seen, a, row, head_begin, n_heads);
}

#define DECODE(hd, g)                                                                            \
    KERNEL __launch_bounds__(128) kri_attn_decode_##hd##_##g(const kri_cu_attn_t a) {            \
        kri_begin();                                                                             \
        decode<hd, g>(a);                                                                        \
    }
#define DECODES(hd) DECODE(hd, 1) DECODE(hd, 2) DECODE(hd, 3) DECODE(hd, 4)
DECODES(64)
DECODES(128)
DECODES(256)

/* grid (heads, rows), 128 threads */
KERNEL kri_attn_merge(const kri_cu_attn_t a) {
    kri_begin();
    __shared__ float parts[KRI_CU_SPLITS], tops[4], totals[4];
    const uint32_t head = blockIdx.x, row = a.step.decode_rows[blockIdx.y], n = a.head_dim + 2;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float *from =
        a.partials + ((uint64_t)blockIdx.y * a.n_heads + head) * a.n_splits * n;
    float top = -INFINITY, total = 0.0f;
    for (uint32_t s = threadIdx.x; s < a.n_splits; s += 128) {
        parts[s] = from[s * n + a.head_dim];
        top = fmaxf(top, parts[s]);
    }
    for (int i = 16; i > 0; i /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
    if (lane == 0) tops[warp] = top;
    __syncthreads();
    top = fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]));
    for (uint32_t s = threadIdx.x; s < a.n_splits; s += 128) {
        parts[s] = exp2f(parts[s] - top);
        total += parts[s] * from[s * n + a.head_dim + 1];
    }
    total = kri_warp_sum(total);
    if (lane == 0) totals[warp] = total;
    __syncthreads();
    total = totals[0] + totals[1] + totals[2] + totals[3];
    float *out = a.out + ((uint64_t)row * a.n_heads + head) * a.head_dim;
    for (uint32_t d = threadIdx.x; d < a.head_dim; d += 128) {
        float value = 0.0f;
#pragma unroll 8
        for (uint32_t s = 0; s < a.n_splits; s++) value += from[s * n + d] * parts[s];
        out[d] = value / total;
    }
}

/* ---- any head size: grid (heads, rows), 128 threads; a warp takes every fourth key
 * ------------ */

#define PER_LANE (KRI_CU_HEAD_DIM / 32)

KERNEL kri_attn_any(const kri_cu_attn_t a) {
    kri_begin();
    __shared__ float acc[4][KRI_CU_HEAD_DIM], mosts[4], sums[4];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.x;
    const uint32_t row = a.step.decode_rows[blockIdx.y], n = a.head_dim;
    const uint32_t last = (uint32_t)a.step.positions[row], first = kri_first_key(last, a.kv.window);
    const kri_cu_seq_t seq = a.step.seqs[a.step.row_seq[row]];
    const float *q = a.qkv + ((uint64_t)row * (a.n_heads + 2 * a.n_kv_heads) + head) * n;
    const uint64_t block = (uint64_t)(head / (a.n_heads / a.n_kv_heads)) * a.kv.block_bytes;
    float own[PER_LANE] = {}, most = -INFINITY, sum = 0.0f;
    for (uint32_t key = first + warp; key <= last; key += 4) {
        const uint8_t *page = kri_kv_page(a.step, a.kv, seq, key / 16) + block;
        const uint16_t *k = (const uint16_t *)(page + a.kv.k) + key % 16 * n;
        const uint16_t *v = (const uint16_t *)(page + a.kv.v) + key % 16 * n;
        float dot = 0.0f;
        for (uint32_t d = lane; d < n; d += 32) dot = fmaf(q[d], kri_half(k[d]), dot);
        const float score = kri_score(kri_warp_sum(dot), a.scale, a.softcap);
        const float top = fmaxf(most, score), old = exp2f(most - top), p = exp2f(score - top);
        most = top;
        sum = sum * old + p;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (lane + 32 * i < n) own[i] = own[i] * old + p * kri_half(v[lane + 32 * i]);
    }
    for (int i = 0; i < PER_LANE; i++)
        if (lane + 32 * i < n) acc[warp][lane + 32 * i] = own[i];
    if (lane == 0) mosts[warp] = most, sums[warp] = sum;
    __syncthreads();
    const float top = fmaxf(fmaxf(mosts[0], mosts[1]), fmaxf(mosts[2], mosts[3]));
    float *out = a.out + ((uint64_t)row * a.n_heads + head) * n;
    for (uint32_t d = threadIdx.x; d < n; d += blockDim.x) {
        float value = 0.0f, total = 0.0f;
        for (int w = 0; w < 4; w++) {
            value += exp2f(mosts[w] - top) * acc[w][d];
            total += exp2f(mosts[w] - top) * sums[w];
        }
        out[d] = value / total;
    }
}
