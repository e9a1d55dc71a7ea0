/* attn_rows.cu: keys and values into their pages, and attention of rows one by one for any head
 * size and type of pages, which is not fast: attn_decode.cu and attn_prefill*.cu have the usual
 * sizes. */
#include "kv8.cuh"
#include "rotate.cuh"

/* ---- rotate and append ----------------------------------------------------------------------- */

/* A head of q or k of a row to `own`, rotated; for pages of int8 also transformed. */
__device__ __forceinline__ void turn(const kri_cu_append_t &a, uint32_t row, uint32_t head,
                                     float *own) {
    const uint32_t n_pairs = a.rotate.n_rot / 2, n = a.n_heads + 2 * a.n_kv_heads;
    const float *x = a.qkv + ((uint64_t)row * n + head) * a.head_dim;
    kri_rotate(a.rotate, x, head < a.n_heads ? a.rotate.q_norm : a.rotate.k_norm, a.head_dim,
               n_pairs, row, own);
    if (a.kv.dtype == KRI_CU_I8) kri_mix(own, a.head_dim);
}

struct workspace_t { /* of a warp */
    float own[KRI_CU_HEAD_DIM];
    kri_coded_t first, coded;
};

/* A key of int8 may be the difference to the first one of its page. Where this step appends that
 * one too, it is computed here again: no row waits for another. */
__device__ static const kri_coded_t *first_key(const kri_cu_append_t &a, const kri_cu_seq_t &seq,
                                               const uint8_t *page, uint32_t pos, uint32_t row,
                                               uint32_t head, workspace_t &w) {
    const uint32_t slot = pos % 16;
    if (slot == 0 || a.kv.dtype != KRI_CU_I8) return nullptr;
    if (pos - slot < seq.pos_begin) {
        kri_first_of_page(a.kv, page, a.head_dim, &w.first);
    } else {
        turn(a, row - slot, head, w.own);
        kri_code(a.kv.dtype, w.own, a.head_dim, nullptr, &w.first);
    }
    return &w.first;
}

/* A warp's head as f16. */
__device__ __forceinline__ void store_halves(uint16_t *to, const float *own, uint32_t n) {
    for (uint32_t i = threadIdx.x % 32 * 2; i < n; i += 64)
        *(uint32_t *)(to + i) = kri_pack_half(own[i], own[i + 1]);
}

/* A warp per head, grid (ceil(heads / 4), n_rows), 128 threads */
KERNEL kri_rope_append(const kri_cu_append_t a) {
    kri_begin();
    __shared__ workspace_t warps[4];
    workspace_t &w = warps[threadIdx.x / 32];
    const uint32_t lane = threadIdx.x % 32, head = blockIdx.x * 4 + threadIdx.x / 32;
    const uint32_t row = blockIdx.y, n = a.n_heads + 2 * a.n_kv_heads;
    if (head >= n) return;
    float *x = a.qkv + ((uint64_t)row * n + head) * a.head_dim;
    const bool is_q = head < a.n_heads, is_v = head >= a.n_heads + a.n_kv_heads;
    if (is_q) {
        turn(a, row, head, w.own);
        if (a.queries)
            store_halves(a.queries + ((uint64_t)row * a.n_heads + head) * a.head_dim, w.own,
                         a.head_dim);
        if (a.queries && !a.keeps_rows) return;
        for (uint32_t i = lane; i < a.head_dim; i += 32) x[i] = w.own[i];
        return;
    }
    const kri_cu_seq_t &seq = a.step.seqs[a.step.row_seq[row]];
    const uint32_t pos = (uint32_t)a.step.positions[row];
    const uint32_t kv_head = (head - a.n_heads) % a.n_kv_heads;
    uint8_t *page = (uint8_t *)kri_kv_page(a.step, a.kv, seq, pos / 16) +
                    (uint64_t)kv_head * a.kv.block_bytes;
    const kri_coded_t *first = is_v ? nullptr : first_key(a, seq, page, pos, row, head, w);
    if (is_v) kri_rotate(a.rotate, x, nullptr, a.head_dim, 0, row, w.own);
    else turn(a, row, head, w.own);
    if (a.kv.dtype == KRI_CU_F16) {
        store_halves((uint16_t *)(page + (is_v ? a.kv.v : a.kv.k)) + pos % 16 * a.head_dim, w.own,
                     a.head_dim);
        return;
    }
    kri_code(a.kv.dtype, w.own, a.head_dim, first, &w.coded);
    kri_store_coded(a.kv, page, a.head_dim, pos % 16, is_v, &w.coded);
}

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
        float dot = 0.0f;
        for (uint32_t d = lane; d < n; d += 32)
            dot = fmaf(q[d], kri_key_item(a.kv, page, n, key % 16, d), dot);
        const float score = kri_score(kri_warp_sum(dot), a.scale, a.softcap);
        const float top = fmaxf(most, score), old = exp2f(most - top), p = exp2f(score - top);
        most = top;
        sum = sum * old + p;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (lane + 32 * i < n)
                own[i] = own[i] * old + p * kri_value_item(a.kv, page, n, key % 16, lane + 32 * i);
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
