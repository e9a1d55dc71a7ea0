/* attn_rows.cu: keys and values into their pages, and attention of rows one by one: decoding,
 * where a context is cut into splits that the last block merges, and any head size. Where each
 * sequence of the step has one row, decoding also rotates and appends. Pages are f16. */
#include "common.cuh"

#include <math.h>

/* ---- rotate and append ----------------------------------------------------------------------- */

/* A head of q or k by a warp: x to `own` in shared memory, normed and rotated. */
__device__ __forceinline__ void rotate(const kri_cu_rotate_t &a, const float *x, const float *norm,
                                       uint32_t n, uint32_t n_pairs, uint32_t row, float *own) {
    const uint32_t lane = threadIdx.x % 32;
    const float2 *turns = (const float2 *)a.cos_sin + (uint64_t)row * (a.n_rot / 2);
    float sum = 0.0f;
    for (uint32_t i = lane; i < n; i += 32) {
        own[i] = x[i];
        sum += own[i] * own[i];
    }
    const float inverse = norm ? 1.0f / sqrtf(kri_warp_sum(sum) / n + a.eps) : 1.0f;
    for (uint32_t i = lane; i < n && norm; i += 32) own[i] *= inverse * norm[i];
    __syncwarp();
    for (uint32_t i = lane; i < n_pairs; i += 32) {
        const uint32_t low = a.is_pair ? 2 * i : i, high = a.is_pair ? 2 * i + 1 : i + n_pairs;
        const float2 turn = turns[i];
        const float p = own[low], q = own[high];
        own[low] = p * turn.x - q * turn.y;
        own[high] = p * turn.y + q * turn.x;
    }
    __syncwarp();
}

/* A warp's head as f16. */
__device__ __forceinline__ void store_halves(uint16_t *to, const float *own, uint32_t n) {
    for (uint32_t i = threadIdx.x % 32 * 2; i < n; i += 64)
        *(uint32_t *)(to + i) = kri_pack_half(own[i], own[i + 1]);
}

/* A warp per head, grid (ceil(heads / 4), n_rows), 128 threads */
KERNEL kri_rope_append(const kri_cu_append_t a) {
    kri_begin();
    __shared__ float heads[4][KRI_CU_HEAD_DIM];
    const uint32_t lane = threadIdx.x % 32, head = blockIdx.x * 4 + threadIdx.x / 32;
    const uint32_t row = blockIdx.y, n = a.n_heads + 2 * a.n_kv_heads;
    if (head >= n) return;
    float *x = a.qkv + ((uint64_t)row * n + head) * a.head_dim, *own = heads[threadIdx.x / 32];
    const bool is_q = head < a.n_heads, is_v = head >= a.n_heads + a.n_kv_heads;
    uint16_t *to = a.queries + ((uint64_t)row * a.n_heads + head) * a.head_dim;
    if (!is_q) { /* its place is on its way while the head is rotated */
        const uint32_t pos = (uint32_t)a.step.positions[row];
        const uint32_t kv_head = (head - a.n_heads) % a.n_kv_heads;
        uint8_t *page = (uint8_t *)kri_kv_page(a.step, a.kv, a.step.seqs[a.step.row_seq[row]],
                                               pos / 16);
        to = (uint16_t *)(page + (is_v ? a.kv.v : a.kv.k) +
                          (uint64_t)kv_head * a.kv.block_bytes) + pos % 16 * a.head_dim;
    }
    rotate(a.rotate, x, is_q ? a.rotate.q_norm : is_v ? nullptr : a.rotate.k_norm, a.head_dim,
           is_v ? 0 : a.rotate.n_rot / 2, row, own);
    if (!is_q || a.queries) store_halves(to, own, a.head_dim);
    if (!is_q || (a.queries && !a.keeps_rows)) return;
    for (uint32_t i = lane; i < a.head_dim; i += 32) x[i] = own[i];
}

/* ---- decode ----------------------------------------------------------------------------------
 * grid (splits, KV heads * chunks of G query heads, rows), 128 threads */

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

/* Past the first-level cache, which may have these lines from before their last key came. */
template <int N> struct loaded_t { uint4 keys[N], values[N]; };

template <int N>
__device__ __forceinline__ void load_keys(loaded_t<N> &to, const uint8_t *k, const uint8_t *v) {
#pragma unroll
    for (int i = 0; i < N; i++) to.keys[i] = __ldcg((const uint4 *)(k + i * 512));
#pragma unroll
    for (int i = 0; i < N; i++) to.values[i] = __ldcg((const uint4 *)(v + i * 512));
}

/* N loads of keys and values; each load is PER keys wide, this lane's key of load i is
 * key + i * PER; keys of [first, limit) count. */
template <int HD, int G, int N>
__device__ __forceinline__ void see(seen_t<G> &seen, const float (&q)[G][8],
                                    const kri_cu_attn_t &a, const loaded_t<N> &loaded,
                                    uint32_t key, uint32_t first, uint32_t limit) {
    constexpr int lanes = HD / 8, per = 32 / lanes;
    const uint4(&keys)[N] = loaded.keys;
    float score[G][N], f[8];
#pragma unroll
    for (int i = 0; i < N; i++) {
        const bool is_seen = key + i * per >= first && key + i * per < limit;
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
        const bool is_seen = key + i * per >= first && key + i * per < limit;
        halves(is_seen ? loaded.values[i] : make_uint4(0, 0, 0, 0), f);
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

/* What the last block of a row's heads does: its splits together, a warp for each head. */
template <int HD>
__device__ __forceinline__ void merge_splits(const kri_cu_attn_t &a, uint32_t row, uint32_t head) {
    constexpr uint32_t n = HD + 2;
    const uint32_t lane = threadIdx.x % 32;
    const float *from = a.partials + ((uint64_t)blockIdx.z * a.n_heads + head) * a.n_splits * n;
    float *out = a.out + ((uint64_t)row * a.n_heads + head) * HD;
    float top = -INFINITY, total = 0.0f, values[HD / 32] = {};
    for (uint32_t s = lane; s < a.n_splits; s += 32) top = fmaxf(top, __ldcg(from + s * n + n - 2));
    for (int i = 16; i > 0; i /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
    for (uint32_t begin = 0; begin < a.n_splits; begin += 32) {
        const uint32_t s = begin + lane, n_here = min(32u, a.n_splits - begin);
        float weight = 0.0f;
        if (s < a.n_splits) {
            weight = exp2f(__ldcg(from + s * n + n - 2) - top);
            total += weight * __ldcg(from + s * n + n - 1);
        }
        /* Some splits more than there are have weight 0, so that loads go in bundles. */
        for (uint32_t j = 0; j < n_here; j += 8) {
#pragma unroll
            for (int i = 0; i < HD / 32; i++) {
                float value[8];
#pragma unroll
                for (int u = 0; u < 8; u++) {
                    const uint32_t split = min(begin + j + u, a.n_splits - 1);
                    value[u] = __ldcg(from + split * n + lane + 32 * i);
                }
#pragma unroll
                for (int u = 0; u < 8; u++)
                    values[i] += __shfl_sync(~0u, weight, j + u) * value[u];
            }
        }
    }
    total = kri_warp_sum(total);
#pragma unroll
    for (int i = 0; i < HD / 32; i++) out[lane + 32 * i] = values[i] / total;
}

/* Whether this block is the last of its row and heads; what the others wrote is visible then. */
__device__ __forceinline__ bool is_last_split(const kri_cu_attn_t &a) {
    __shared__ uint32_t is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t *counter = a.counters + blockIdx.z * gridDim.y + blockIdx.y;
        is_last = atomicInc(counter, a.n_splits - 1) == a.n_splits - 1; /* it is 0 again then */
    }
    __syncthreads();
    __threadfence();
    return is_last;
}

template <int HD, int G> struct fresh_t { /* of the row: rotated queries, its key and value */
    float q[G][HD], kv[2][HD];
    uint16_t half[2][HD];
};

/* The same as rotate_row without norms: all pairs at once, each by one thread. */
template <int HD, int G>
__device__ __forceinline__ void rotate_pairs(fresh_t<HD, G> &own, const kri_cu_attn_t &a,
                                             uint32_t row, const float *x, uint32_t head_begin,
                                             uint32_t n_heads, uint32_t kv_head, bool with_key,
                                             uint8_t *to_page) {
    const uint32_t n_pairs = a.rotate.n_rot / 2;
    const float2 *turns = (const float2 *)a.rotate.cos_sin + (uint64_t)row * n_pairs;
#pragma unroll
    for (int j = 0; j < ((G + 2) * (HD / 2) + 127) / 128; j++) {
        const uint32_t at = j * 128 + threadIdx.x, h = at / (HD / 2), i = at % (HD / 2);
        const bool is_q = h < G, is_v = h == G + 1, turned = !is_v && i < n_pairs;
        if (is_q ? h >= n_heads : !with_key || h > G + 1) continue;
        /* Pairs that are not turned: those past n_rot, in order, and all of a value. */
        const bool apart = turned && !a.rotate.is_pair;
        const uint32_t low = apart ? i : 2 * i, high = apart ? i + n_pairs : 2 * i + 1;
        const uint32_t head = is_q ? head_begin + h : a.n_heads + is_v * a.n_kv_heads + kv_head;
        const float p = x[head * HD + low], q = x[head * HD + high];
        const float2 turn = turned ? turns[i] : make_float2(1.0f, 0.0f);
        const float r = turned ? p * turn.x - q * turn.y : p;
        const float s = turned ? p * turn.y + q * turn.x : q;
        if (is_q) {
            own.q[h][low] = r, own.q[h][high] = s;
            continue;
        }
        const uint16_t r16 = __half_as_ushort(__float2half_rn(r));
        const uint16_t s16 = __half_as_ushort(__float2half_rn(s));
        own.half[is_v][low] = r16, own.half[is_v][high] = s16;
        if (!to_page) continue;
        uint16_t *to = (uint16_t *)(to_page + (is_v ? a.kv.v : a.kv.k));
        to[low] = r16, to[high] = s16;
    }
}

/* Rotates the block's queries and, if `with_key`, the row's key, which goes to its page together
 * with the value, if `to_page`. */
template <int HD, int G>
__device__ __forceinline__ void rotate_row(fresh_t<HD, G> &own, const kri_cu_attn_t &a,
                                           uint32_t row, uint32_t head_begin, uint32_t n_heads,
                                           uint32_t kv_head, bool with_key, uint8_t *to_page) {
    const float *x = a.qkv + (uint64_t)row * (a.n_heads + 2 * a.n_kv_heads) * HD;
    const uint32_t n_pairs = a.rotate.n_rot / 2, lane = threadIdx.x % 32;
    if (!a.rotate.q_norm && !a.rotate.k_norm) {
        rotate_pairs<HD, G>(own, a, row, x, head_begin, n_heads, kv_head, with_key, to_page);
        __syncthreads();
        return;
    }
    for (uint32_t i = threadIdx.x / 32; i < n_heads + (with_key ? 2 : 0); i += 4) {
        if (i < n_heads) {
            rotate(a.rotate, x + (head_begin + i) * HD, a.rotate.q_norm, HD, n_pairs, row,
                   own.q[i]);
            continue;
        }
        const uint32_t v = i - n_heads, head = a.n_heads + v * a.n_kv_heads + kv_head;
        rotate(a.rotate, x + head * HD, v ? nullptr : a.rotate.k_norm, HD, v ? 0 : n_pairs, row,
               own.kv[v]);
        uint16_t *to = (uint16_t *)(to_page + (v ? a.kv.v : a.kv.k));
        for (uint32_t d = lane; d < HD; d += 32) {
            own.half[v][d] = __half_as_ushort(__float2half_rn(own.kv[v][d]));
            if (to_page) to[d] = own.half[v][d];
        }
    }
    __syncthreads();
}

template <int HD, int G> __device__ static void decode(const kri_cu_attn_t &a) {
    /* A warp takes half a page at a time. */
    constexpr int lanes = HD / 8, per = 32 / lanes, n = 8 / per;
    __shared__ __align__(16) fresh_t<HD, G> fresh;
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
    const uint64_t block = (uint64_t)kv_head * a.kv.block_bytes;
    const bool is_fresh = a.rotate.cos_sin, has_last = begin <= last / 16 && last / 16 < end;
    float q[G][8];
    seen_t<G> seen;
    uint32_t half = 2 * begin + threadIdx.x / 32;
    loaded_t<n> loaded;
    if (half < 2 * end) {
        const uint8_t *at = kri_kv_page(a.step, a.kv, seq, half / 2) + block + lane * 16 +
                            half % 2 * (16 * HD);
        load_keys(loaded, at + a.kv.k, at + a.kv.v);
    }
    kri_begin(); /* the row, and those of this step in pages, from here on */
    if (is_fresh) {
        uint8_t *to = has_last && chunk == 0
                          ? (uint8_t *)kri_kv_page(a.step, a.kv, seq, last / 16) + block +
                                last % 16 * (2 * HD)
                          : nullptr;
        rotate_row<HD, G>(fresh, a, row, head_begin, n_heads, kv_head, has_last, to);
    }
    const uint64_t row_floats = (uint64_t)(a.n_heads + 2 * a.n_kv_heads) * HD;
#pragma unroll
    for (int g = 0; g < G; g++) {
        seen.most[g] = -INFINITY;
        seen.sum[g] = 0.0f;
        const uint32_t head = g < n_heads ? g : 0;
        const float *from = is_fresh ? fresh.q[head]
                                     : a.qkv + row * row_floats + (head_begin + head) * HD;
#pragma unroll
        for (int d = 0; d < 8; d++) {
            q[g][d] = from[lane % lanes * 8 + d];
            seen.acc[g][d] = 0.0f;
        }
    }
    const uint32_t limit = is_fresh ? last : last + 1;
    bool is_early = is_fresh; /* without, the keys that were loaded may be of this step */
    for (; half < 2 * end; half += 4) {
        if (!is_early) {
            const uint8_t *at = kri_kv_page(a.step, a.kv, seq, half / 2) + block + lane * 16 +
                                half % 2 * (16 * HD);
            load_keys(loaded, at + a.kv.k, at + a.kv.v);
        }
        is_early = false;
        see<HD, G, n>(seen, q, a, loaded, half * 8 + lane / lanes, first, limit);
    }
    if (is_fresh && has_last && threadIdx.x / 32 == 3) {
        const uint32_t i = lane % lanes * 8;
        loaded_t<1> own;
        own.keys[0] = *(const uint4 *)(fresh.half[0] + i);
        own.values[0] = *(const uint4 *)(fresh.half[1] + i);
        see<HD, G, 1>(seen, q, a, own, last + lane / lanes, first, last + 1);
    }
    meet<HD, G>(seen, a, row, head_begin, n_heads);
    if (a.n_splits > 1 && is_last_split(a) && threadIdx.x / 32 < n_heads)
        merge_splits<HD>(a, row, head_begin + threadIdx.x / 32);
}

#define DECODE(hd, g)                                                                            \
    KERNEL __launch_bounds__(128) kri_attn_decode_##hd##_##g(const kri_cu_attn_t a) {            \
        decode<hd, g>(a);                                                                        \
    }
#define DECODES(hd) DECODE(hd, 1) DECODE(hd, 2) DECODE(hd, 3) DECODE(hd, 4)
DECODES(64)
DECODES(128)
DECODES(256)

/* ---- any head size ---------------------------------------------------------------------------
 * grid (heads, rows), 128 threads; a warp takes every fourth key */

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
