/* rows.cu: everything that works on whole rows: embedding, norms, forms of activations for
 * products, activations, rotary table. */
#include "acts.cuh"

#include <math.h>

/* ---- embedding: one item of a row of file blocks (block formats: ops/block.c) ---------------- */

__device__ static uint16_t read16(const uint8_t *p) { return p[0] | (uint16_t)p[1] << 8; }
__device__ static uint32_t read32(const uint8_t *p) {
    return read16(p) | (uint32_t)read16(p + 2) << 16;
}

__device__ static int low_nibble(const uint8_t *quants, uint32_t i) {
    return i < 16 ? quants[i] & 15 : quants[i - 16] >> 4;
}

__device__ static void scale_min(const uint8_t *s, uint32_t j, float *scale, float *min) {
    *scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    *min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
}

__device__ static float k4_k5(const uint8_t *row, uint32_t item, bool is_5) {
    const uint8_t *b = row + item / 256 * (is_5 ? 176 : 144);
    const uint32_t i = item % 256, j = i / 32;
    const uint8_t *quants = b + (is_5 ? 48 : 16) + i / 64 * 32;
    int q = j & 1 ? quants[i % 32] >> 4 : quants[i % 32] & 15;
    if (is_5) q |= (b[16 + i % 32] >> j & 1) << 4;
    float scale, min;
    scale_min(b + 4, j, &scale, &min);
    return kri_half(read16(b)) * scale * q - kri_half(read16(b + 2)) * min;
}

__device__ static float k6(const uint8_t *row, uint32_t item) {
    const uint8_t *b = row + item / 256 * 210;
    const uint32_t half = item % 256 / 128, r = item % 128, l = r % 32, quarter = r / 32;
    const uint8_t low = b[half * 64 + l + (quarter & 1) * 32];
    const int high = b[128 + half * 32 + l] >> 2 * quarter & 3;
    const int q = (quarter >> 1 ? low >> 4 : low & 15) | high << 4;
    const int scale = (int8_t)b[192 + half * 8 + quarter * 2 + l / 16];
    return kri_half(read16(b + 208)) * scale * (q - 32);
}

__device__ static float item_of(const uint8_t *row, uint32_t dtype, uint32_t item) {
    const uint32_t block = item / 32, i = item % 32;
    const uint8_t *b;
    switch (dtype) {
    case KRI_CU_F32: return ((const float *)row)[item];
    case KRI_CU_F16: return kri_half(((const uint16_t *)row)[item]);
    case KRI_CU_BF16: return kri_bf16(((const uint16_t *)row)[item]);
    case KRI_CU_Q4_0:
        b = row + block * 18;
        return kri_half(read16(b)) * (low_nibble(b + 2, i) - 8);
    case KRI_CU_Q4_1:
        b = row + block * 20;
        return kri_half(read16(b)) * low_nibble(b + 4, i) + kri_half(read16(b + 2));
    case KRI_CU_Q5_0:
        b = row + block * 22;
        return kri_half(read16(b)) *
               ((int)(low_nibble(b + 6, i) | (read32(b + 2) >> i & 1) << 4) - 16);
    case KRI_CU_Q5_1:
        b = row + block * 24;
        return kri_half(read16(b)) * (int)(low_nibble(b + 8, i) | (read32(b + 4) >> i & 1) << 4) +
               kri_half(read16(b + 2));
    case KRI_CU_Q8_0:
        b = row + block * 34;
        return kri_half(read16(b)) * (int8_t)b[2 + i];
    case KRI_CU_Q4_K: return k4_k5(row, item, false);
    case KRI_CU_Q5_K: return k4_k5(row, item, true);
    default: return k6(row, item);
    }
}

/* grid (n_rows) */
KERNEL kri_embed(const kri_cu_embed_t a) {
    kri_begin();
    const uint8_t *row = a.table + a.tokens[blockIdx.x] * a.row_bytes;
    float *out = a.out + (uint64_t)blockIdx.x * a.n;
    for (uint32_t i = threadIdx.x; i < a.n; i += blockDim.x) {
        out[i] = item_of(row, a.dtype, i) * a.scale;
    }
}

/* ---- forms of activations -------------------------------------------------------------------- */

/* Items [i, i + 4) of a row; all lanes of a warp call it, also past the end of the row. */
__device__ static void store_forms(const kri_cu_acts_t &a, uint32_t row, uint32_t i,
                                   const float v[4]) {
    const uint64_t at = (uint64_t)row * a.n + i;
    if (a.q8) kri_store_q8(i < a.n ? a.q8 + at / 32 : nullptr, threadIdx.x % 8, v);
    if (i >= a.n) return;
    if (a.f32) *(float4 *)(a.f32 + at) = make_float4(v[0], v[1], v[2], v[3]);
    if (a.bf16) {
        *(uint2 *)(a.bf16 + at) =
            make_uint2(kri_pack_bf16(v[0], v[1]), kri_pack_bf16(v[2], v[3]));
    }
}

/* grid (n_rows); n a multiple of 32, so that the lanes of a q8 block are in or out together. What a
 * thread cannot keep of a row is read again. */
KERNEL kri_acts_norm(const kri_cu_acts_t a) {
    kri_begin();
    constexpr uint32_t n_kept = KRI_CU_NORM_ITEMS / 4;
    const float *x = a.x + (uint64_t)(a.rows ? a.rows[blockIdx.x] : blockIdx.x) * a.n;
    const uint32_t stride = blockDim.x * 4;
    float4 kept[n_kept];
    float sum = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < n_kept; k++) {
        const uint32_t i = k * stride + threadIdx.x * 4;
        kept[k] = i < a.n ? *(const float4 *)(x + i) : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (uint32_t k = 0; k < n_kept; k++)
        sum += kept[k].x * kept[k].x + kept[k].y * kept[k].y + kept[k].z * kept[k].z +
               kept[k].w * kept[k].w;
    for (uint32_t i = n_kept * stride + threadIdx.x * 4; i < a.n; i += stride) {
        const float4 v = *(const float4 *)(x + i);
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    const float inverse = 1.0f / sqrtf(kri_block_sum(sum) / a.n + a.eps);
    const auto store = [&](uint32_t i, float4 f) {
        const float4 w = i < a.n ? *(const float4 *)(a.w + i) : make_float4(0, 0, 0, 0);
        const float v[4] = {f.x * inverse * w.x, f.y * inverse * w.y, f.z * inverse * w.z,
                            f.w * inverse * w.w};
        store_forms(a, blockIdx.x, i, v);
    };
#pragma unroll
    for (uint32_t k = 0; k < n_kept; k++) {
        if (k * stride < a.n) store(k * stride + threadIdx.x * 4, kept[k]);
    }
    for (uint32_t begin = n_kept * stride; begin < a.n; begin += stride) {
        const uint32_t i = begin + threadIdx.x * 4;
        store(i, i < a.n ? *(const float4 *)(x + i) : make_float4(0, 0, 0, 0));
    }
}

/* grid (ceil(n / 1024), n_rows), 256 threads */
template <bool IS_GATED> __device__ static void acts_elements(const kri_cu_acts_t &a) {
    const uint32_t i = (blockIdx.x * 256 + threadIdx.x) * 4, row = blockIdx.y;
    float v[4] = {0, 0, 0, 0};
    if (IS_GATED && a.rounded && i < a.n) {
        const uint16_t *x = a.rounded + (uint64_t)row * a.n * 2 + i;
        const uint2 g = *(const uint2 *)x, u = *(const uint2 *)(x + a.n);
        v[0] = kri_gated(a.act, kri_bf16(g.x), kri_bf16(u.x));
        v[1] = kri_gated(a.act, kri_bf16(g.x >> 16), kri_bf16(u.x >> 16));
        v[2] = kri_gated(a.act, kri_bf16(g.y), kri_bf16(u.y));
        v[3] = kri_gated(a.act, kri_bf16(g.y >> 16), kri_bf16(u.y >> 16));
    } else if (i < a.n) {
        const float *x = a.x + (uint64_t)row * a.n * (IS_GATED ? 2 : 1) + i;
        const float4 g = *(const float4 *)x;
        v[0] = g.x, v[1] = g.y, v[2] = g.z, v[3] = g.w;
        for (int j = 0; IS_GATED && j < 4; j++) {
            const float u = x[a.n + j];
            v[j] = kri_gated(a.act, v[j], u);
        }
    }
    store_forms(a, row, i, v);
}
KERNEL kri_acts_plain(const kri_cu_acts_t a) {
    kri_begin();
    acts_elements<false>(a);
}
KERNEL kri_acts_gated(const kri_cu_acts_t a) {
    kri_begin();
    acts_elements<true>(a);
}

/* x += rms_norm(branch) * w; grid (n_rows) */
KERNEL kri_norm_add(const kri_cu_norm_add_t a) {
    kri_begin();
    const float *branch = a.branch + (uint64_t)blockIdx.x * a.n;
    float *x = a.x + (uint64_t)blockIdx.x * a.n;
    const float inverse = 1.0f / sqrtf(kri_sum_of_squares(branch, a.n) / a.n + a.eps);
    for (uint32_t i = threadIdx.x; i < a.n; i += blockDim.x) {
        x[i] += branch[i] * inverse * a.w[i];
    }
}

/* ---- elements -------------------------------------------------------------------------------- */

KERNEL kri_add(const kri_cu_elements_t a) {
    kri_begin();
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.n;
         i += (uint64_t)gridDim.x * blockDim.x) {
        a.y[i] += a.x[i];
    }
}

KERNEL kri_softcap(const kri_cu_elements_t a) {
    kri_begin();
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.n;
         i += (uint64_t)gridDim.x * blockDim.x) {
        a.y[i] = a.cap * tanhf(a.y[i] / a.cap);
    }
}

/* grid (ceil(n / 256), n_rows) */
KERNEL kri_bias(const kri_cu_bias_t a) {
    kri_begin();
    const uint32_t i = blockIdx.x * 256 + threadIdx.x;
    if (i < a.n) a.out[blockIdx.y * a.out_stride + i] += a.bias[i];
}

KERNEL kri_finite(const kri_cu_finite_t a) {
    kri_begin();
    bool is_bad = false;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.n;
         i += (uint64_t)gridDim.x * blockDim.x) {
        is_bad |= (__float_as_uint(a.x[i]) & 0x7f800000u) == 0x7f800000u;
    }
    if (__any_sync(~0u, is_bad) && threadIdx.x % 32 == 0) *a.flag = 1;
}

/* grid (blocks, n_rows), 256 threads. A key orders as the values do, then by the smaller id; all
 * ones stand for a value that is not finite. */
KERNEL kri_argmax(const kri_cu_argmax_t a) {
    kri_begin();
    __shared__ unsigned long long keys[8];
    const float *x = a.x + (uint64_t)blockIdx.y * a.n;
    unsigned long long best = 0;
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < a.n; i += gridDim.x * blockDim.x) {
        const uint32_t bits = __float_as_uint(x[i] + 0.0f); /* both zeros are equal */
        const uint32_t order = (bits >> 31) ? ~bits : bits | 0x80000000u;
        const bool is_bad = (bits & 0x7f800000u) == 0x7f800000u;
        const unsigned long long key = is_bad ? ~0ull : (uint64_t)order << 32 | (uint32_t)~i;
        best = key > best ? key : best;
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const uint32_t high = __shfl_xor_sync(~0u, (uint32_t)(best >> 32), lanes);
        const uint32_t low = __shfl_xor_sync(~0u, (uint32_t)best, lanes);
        const unsigned long long other = (unsigned long long)high << 32 | low;
        best = other > best ? other : best;
    }
    if (threadIdx.x % 32 == 0) keys[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < 8; i++) best = keys[i] > best ? keys[i] : best;
    unsigned long long *top = (unsigned long long *)(a.keys + blockIdx.y);
    atomicMax(top, best);
    __threadfence();
    if (atomicInc(a.counters + blockIdx.y, gridDim.x - 1) != gridDim.x - 1) return;
    best = atomicExch(top, 0ull);
    a.ids[blockIdx.y] = best == ~0ull ? -1 : (int32_t)~(uint32_t)best;
    if (best == ~0ull) *a.flag = 1;
}

/* grid (n_rows) */
KERNEL kri_rope_table(const kri_cu_rope_table_t a) {
    kri_begin();
    for (uint32_t i = threadIdx.x; i < a.n_pairs; i += blockDim.x) {
        double frequency = a.freq_scale * pow(a.base, -(double)i / a.n_pairs), s, c;
        if (a.factors) frequency /= (double)a.factors[i];
        sincos((double)a.positions[blockIdx.x] * frequency, &s, &c);
        float *pair = a.cos_sin + ((uint64_t)blockIdx.x * a.n_pairs + i) * 2;
        pair[0] = (float)c;
        pair[1] = (float)s;
    }
}
