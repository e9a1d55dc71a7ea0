/* linear_ref.c: weights times activations for all types, in the float order of kernels.h.
 * A row's block is decoded once for up to TOKEN_TILE tokens; the sum of one (token, row) pair
 * does not see the tile, so any cut of the batch gives the same bits. */
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "ops/block.h"

#define TOKEN_TILE 16u
#define SUPER_BLOCKS 8u /* 32-blocks of a q6_k 256 */

/* Where results go and how they end: shared by all types. */
typedef struct sink_s {
    const float *bias;
    uint32_t accumulate;
    float *out;
    size_t out_stride;
} sink_t;

static void sink_put(const sink_t *sink, size_t token, size_t row, float acc) {
    float *out = sink->out + token * sink->out_stride + row;
    if (sink->bias) acc += sink->bias[row];
    *out = sink->accumulate ? *out + acc : acc;
}

static int32_t dot_quants(const uint8_t *w, const int8_t *a, size_t n) {
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += (int32_t)w[i] * (int32_t)a[i];
    return sum;
}

/* One 32-block of weights, decoded. */
typedef struct weights_s {
    uint8_t q[KRI_BLOCK_ITEMS];
    float d, m;    /* scale (q6_k: of the 256), offset (added) */
    int32_t sc[2]; /* q6_k: integer scale of each half */
} weights_t;

/* Sums of one (token, row) pair: `part` is that of the current 256 of q6_k. */
typedef struct acc_s {
    float acc, part;
} acc_t;

typedef void step_fn(const weights_t *w, const kri_q8_block_t *a, acc_t *acc);

static void step_zero(const weights_t *w, const kri_q8_block_t *a, int32_t zero, acc_t *acc) {
    int32_t dot = dot_quants(w->q, a->q, KRI_BLOCK_ITEMS);
    acc->acc = fmaf(w->d * a->d, (float)(dot - zero * kri_q8_sum(a)), acc->acc);
}

static void step_q4_0(const weights_t *w, const kri_q8_block_t *a, acc_t *acc) {
    step_zero(w, a, 8, acc);
}

static void step_q5_0(const weights_t *w, const kri_q8_block_t *a, acc_t *acc) {
    step_zero(w, a, 16, acc);
}

static void step_q8_0(const weights_t *w, const kri_q8_block_t *a, acc_t *acc) {
    step_zero(w, a, 128, acc);
}

/* q4_1 q5_1 q4_k q5_k; for the K types d and m already hold d * sc and -(dmin * mn). */
static void step_offset(const weights_t *w, const kri_q8_block_t *a, acc_t *acc) {
    int32_t dot = dot_quants(w->q, a->q, KRI_BLOCK_ITEMS);
    acc->acc = fmaf(w->d * a->d, (float)dot, acc->acc);
    acc->acc = fmaf(w->m, a->ds, acc->acc);
}

static void step_q6_k(const weights_t *w, const kri_q8_block_t *a, acc_t *acc) {
    int32_t sum = 0;
    for (unsigned h = 0; h < 2; h++) {
        int32_t dot = dot_quants(w->q + 16 * h, a->q + 16 * h, 16);
        sum += w->sc[h] * (dot - 32 * kri_q8_sum_half(a, h));
    }
    acc->part = fmaf(a->d, (float)sum, acc->part);
}

static void decode_block(kr_dtype_t dtype, const uint8_t *group, const kri_pack_layout_t *layout,
                         size_t block, size_t row, weights_t *w) {
    kri_block_t raw;
    kri_block_from_group(dtype, group, layout, block, row, &raw);
    kri_block_quants(dtype, &raw, w->q);
    w->d = kri_f16_to_f32(raw.d);
    w->m = kri_f16_to_f32(raw.m);
    if (dtype == KR_DTYPE_Q4_K || dtype == KR_DTYPE_Q5_K) {
        w->d *= (float)raw.s[0];
        w->m = -(w->m * (float)raw.s[1]);
    } else if (dtype == KR_DTYPE_Q6_K) {
        for (size_t h = 0; h < 2; h++) w->sc[h] = (int8_t)raw.s[h];
    }
}

static void linear_blocks(kr_dtype_t dtype, step_fn *step, const uint8_t *w, size_t n_in,
                          size_t n_rows, const uint8_t *act, size_t act_stride, size_t n_tokens,
                          const sink_t *sink) {
    kri_pack_layout_t layout;
    if (!kri_pack_layout(dtype, n_in, &layout)) return;
    for (size_t r = 0; r < n_rows; r++) {
        const uint8_t *group = w + r / KRI_GROUP_ROWS * layout.group_bytes;
        for (size_t t0 = 0; t0 < n_tokens; t0 += TOKEN_TILE) {
            size_t n = n_tokens - t0 < TOKEN_TILE ? n_tokens - t0 : TOKEN_TILE;
            acc_t acc[TOKEN_TILE] = {{0, 0}};
            for (size_t b = 0; b < n_in / KRI_BLOCK_ITEMS; b++) {
                bool super_ends = dtype == KR_DTYPE_Q6_K && b % SUPER_BLOCKS == SUPER_BLOCKS - 1;
                weights_t block;
                decode_block(dtype, group, &layout, b, r % KRI_GROUP_ROWS, &block);
                for (size_t t = 0; t < n; t++) {
                    const uint8_t *row = act + (t0 + t) * act_stride;
                    step(&block, (const kri_q8_block_t *)(const void *)row + b, &acc[t]);
                    if (!super_ends) continue;
                    acc[t].acc = fmaf(block.d, acc[t].part, acc[t].acc);
                    acc[t].part = 0;
                }
            }
            for (size_t t = 0; t < n; t++) sink_put(sink, t0 + t, r, acc[t].acc);
        }
    }
}

static void linear_floats(kr_dtype_t dtype, const uint8_t *w, size_t n_in, size_t n_rows,
                          const uint8_t *act, size_t act_stride, size_t n_tokens,
                          const sink_t *sink) {
    kri_pack_layout_t layout;
    if (!kri_pack_layout(dtype, n_in, &layout)) return;
    for (size_t r = 0; r < n_rows; r++) {
        const uint8_t *group = w + r / KRI_GROUP_ROWS * layout.group_bytes;
        for (size_t t0 = 0; t0 < n_tokens; t0 += TOKEN_TILE) {
            size_t n = n_tokens - t0 < TOKEN_TILE ? n_tokens - t0 : TOKEN_TILE;
            float acc[TOKEN_TILE] = {0};
            for (size_t k = 0; k < n_in; k++) {
                float weight = kri_block_element(dtype, group,
                                                 k * KRI_GROUP_ROWS + r % KRI_GROUP_ROWS);
                for (size_t t = 0; t < n; t++) {
                    const uint8_t *row = act + (t0 + t) * act_stride;
                    acc[t] = fmaf(weight, ((const float *)(const void *)row)[k], acc[t]);
                }
            }
            for (size_t t = 0; t < n; t++) sink_put(sink, t0 + t, r, acc[t]);
        }
    }
}

#define LINEAR_ARGS                                                                              \
    const uint8_t *restrict w, size_t n_in, size_t n_groups, size_t n_rows,                      \
        const void *restrict act, size_t act_stride, size_t n_tokens,                            \
        const float *restrict bias, uint32_t accumulate, float *restrict out, size_t out_stride

static float subnormal_flush(float x) {
    return fabsf(x) < FLT_MIN ? copysignf(0.0f, x) : x;
}

/* Nearest bf16, ties to even, as f32; NaN stays NaN. */
static float bf16_round(float x) {
    uint32_t u;
    x = subnormal_flush(x);
    if (isnan(x)) return x;
    memcpy(&u, &x, sizeof u);
    u = (u + 0x7fffu + (u >> 16 & 1u)) & 0xffff0000u;
    memcpy(&x, &u, sizeof x);
    return x;
}

static float pair_step(const uint8_t *group, const float *x, size_t n_in, size_t k, size_t row,
                       float acc) {
    for (size_t i = 2; i-- > 0;) {
        float w = 0, a = 0;
        if (k + i < n_in) {
            w = kri_block_element(KR_DTYPE_BF16, group, (k + i) * KRI_GROUP_ROWS + row);
            a = bf16_round(x[k + i]);
        }
        acc = subnormal_flush(fmaf(subnormal_flush(w), a, acc));
    }
    return acc;
}

void kri_linear_bf16_pair_ref(LINEAR_ARGS) {
    sink_t sink = {bias, accumulate, out, out_stride};
    kri_pack_layout_t layout;
    (void)n_groups;
    if (!kri_pack_layout(KR_DTYPE_BF16, n_in, &layout)) return;
    for (size_t r = 0; r < n_rows; r++) {
        const uint8_t *group = w + r / KRI_GROUP_ROWS * layout.group_bytes;
        for (size_t t = 0; t < n_tokens; t++) {
            const float *x = (const float *)(const void *)((const uint8_t *)act + t * act_stride);
            float acc = 0;
            for (size_t k = 0; k < n_in; k += 2) {
                acc = pair_step(group, x, n_in, k, r % KRI_GROUP_ROWS, acc);
            }
            sink_put(&sink, t, r, acc);
        }
    }
}

#define LINEAR_QUANT(slot, dtype, step)                                                          \
    void kri_linear_##slot##_ref(LINEAR_ARGS) {                                                  \
        sink_t sink = {bias, accumulate, out, out_stride};                                       \
        (void)n_groups;                                                                          \
        linear_blocks(dtype, step, w, n_in, n_rows, act, act_stride, n_tokens, &sink);           \
    }

#define LINEAR_FLOAT(slot, dtype)                                                                \
    void kri_linear_##slot##_ref(LINEAR_ARGS) {                                                  \
        sink_t sink = {bias, accumulate, out, out_stride};                                       \
        (void)n_groups;                                                                          \
        linear_floats(dtype, w, n_in, n_rows, act, act_stride, n_tokens, &sink);                 \
    }

LINEAR_FLOAT(f32, KR_DTYPE_F32)
LINEAR_FLOAT(f16, KR_DTYPE_F16)
LINEAR_FLOAT(bf16, KR_DTYPE_BF16)
LINEAR_QUANT(q4_0, KR_DTYPE_Q4_0, step_q4_0)
LINEAR_QUANT(q4_1, KR_DTYPE_Q4_1, step_offset)
LINEAR_QUANT(q5_0, KR_DTYPE_Q5_0, step_q5_0)
LINEAR_QUANT(q5_1, KR_DTYPE_Q5_1, step_offset)
LINEAR_QUANT(q8_0, KR_DTYPE_Q8_0, step_q8_0)
LINEAR_QUANT(q4_k, KR_DTYPE_Q4_K, step_offset)
LINEAR_QUANT(q5_k, KR_DTYPE_Q5_K, step_offset)
LINEAR_QUANT(q6_k, KR_DTYPE_Q6_K, step_q6_k)
