/* tile_ref.c: the matrix-unit product in plain C: what a tile of activations looks like, and the
 * product over bf16 operands with one f32 sum in ascending k. */
#include <math.h>
#include <string.h>

#include "ops/block.h"

/* Round to nearest even; subnormals to zero, NaN stays NaN. */
static uint16_t bf16_round(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7f800000u) == 0) return (uint16_t)(bits >> 16 & 0x8000u);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static float bf16_value(float f) { return kri_bf16_to_f32(bf16_round(f)); }

void kri_tile_pack_ref(const float *restrict x, size_t n, uint16_t *restrict row) {
    for (size_t k = 0; k < n; k++)
        row[k / KRI_TILE_K * KRI_TILE_ITEMS + k % KRI_TILE_K] = x ? bf16_round(x[k]) : 0;
}

/* Scale and offset of item i of a block: value = scale * q + offset. */
static void block_scale(kr_dtype_t dtype, const kri_block_t *b, size_t i, float *scale,
                        float *offset) {
    const float d = kri_f16_to_f32(b->d), m = kri_f16_to_f32(b->m);
    *scale = d;
    *offset = 0.0f;
    switch (dtype) {
    case KR_DTYPE_Q4_0: *offset = -8.0f * d; break;
    case KR_DTYPE_Q5_0: *offset = -16.0f * d; break;
    case KR_DTYPE_Q8_0: *offset = -128.0f * d; break;
    case KR_DTYPE_Q4_1:
    case KR_DTYPE_Q5_1: *offset = m; break;
    case KR_DTYPE_Q6_K:
        *scale = d * (float)(int8_t)b->s[i / 16];
        *offset = -32.0f * *scale;
        break;
    default: /* q4_k q5_k */
        *scale = d * (float)b->s[0];
        *offset = -(m * (float)b->s[1]);
        break;
    }
}

/* The 32 weights of block `block` of row `row`, as bf16 values. */
static void weights_decode(const kri_tile_args_t *args, const kri_pack_layout_t *layout,
                           size_t row, size_t block, float *w) {
    const uint8_t *group = args->w + row / KRI_GROUP_ROWS * layout->group_bytes;
    const size_t lane = row % KRI_GROUP_ROWS;
    if (args->dtype == KR_DTYPE_F16 || args->dtype == KR_DTYPE_BF16) {
        for (size_t i = 0; i < KRI_TILE_K; i++) {
            const size_t item = (block * KRI_TILE_K + i) * KRI_GROUP_ROWS + lane;
            w[i] = bf16_value(kri_block_element(args->dtype, group, item));
        }
        return;
    }
    kri_block_t b;
    uint8_t quants[KRI_BLOCK_ITEMS];
    memset(&b, 0, sizeof b);
    kri_block_from_group(args->dtype, group, layout, block, lane, &b);
    kri_block_quants(args->dtype, &b, quants);
    for (size_t i = 0; i < KRI_BLOCK_ITEMS; i++) {
        float scale, offset;
        block_scale(args->dtype, &b, i, &scale, &offset);
        w[i] = bf16_value(fmaf(scale, (float)quants[i], offset));
    }
}

void kri_tile_linear_ref(const kri_tile_args_t *args) {
    kri_pack_layout_t layout;
    if (!kri_pack_layout(args->dtype, args->n_in, &layout)) return;
    const size_t n_steps = args->n_in / KRI_TILE_K;
    float *acc = args->scratch; /* [n_tokens] */
    for (size_t row = 0; row < args->n_rows; row++) {
        for (size_t t = 0; t < args->n_tokens; t++) acc[t] = 0.0f;
        for (size_t s = 0; s < n_steps; s++) {
            float w[KRI_TILE_K];
            weights_decode(args, &layout, row, s, w);
            for (size_t t = 0; t < args->n_tokens; t++) {
                const size_t tile = t / KRI_TILE_TOKENS * n_steps + s;
                const uint16_t *x = args->tiles + tile * KRI_TILE_ITEMS +
                                    t % KRI_TILE_TOKENS * KRI_TILE_K;
                for (size_t i = 0; i < KRI_TILE_K; i++)
                    acc[t] = fmaf(kri_bf16_to_f32(x[i]), w[i], acc[t]);
            }
        }
        for (size_t t = 0; t < args->n_tokens; t++) {
            float *out = args->out + t * args->out_stride + row, sum = acc[t];
            if (args->bias) sum += args->bias[row];
            *out = args->accumulate ? *out + sum : sum;
        }
    }
}
