/* quant_neon.c: rounding of activations to int8 blocks of 32 with NEON. Eight registers hold a
 * block; fcvtns rounds to nearest even without touching the rounding mode. */
#include "cpu/impl.h"

#include <math.h>

#include "cpu/neon/norm_neon.h"
#include "cpu/neon/tile_neon.h"

/* Smallest amax that is not treated as zero (kernels.h), and the bit pattern of infinity. */
#define AMAX_MIN 1e-30f
#define BITS_INF 0x7f800000u
#define VECTORS (KRI_Q8_ITEMS / 4u)

INLINE uint32_t magnitude_max(const float32x4_t x[VECTORS]) {
    uint32x4_t most = vdupq_n_u32(0);
    UNROLL for (unsigned i = 0; i < VECTORS; i++) {
        const uint32x4_t bits = vreinterpretq_u32_f32(x[i]);
        most = vmaxq_u32(most, vandq_u32(bits, vdupq_n_u32(0x7fffffffu)));
    }
    return vmaxvq_u32(most);
}

INLINE void block_fill(kri_q8_block_t *block, float d) {
    *block = (kri_q8_block_t){.d = d,
                              .ds = d,
                              .sums = {{KRI_Q8_SUM_BIAS, KRI_Q8_SUM_BIAS},
                                       {KRI_Q8_SUM_BIAS, KRI_Q8_SUM_BIAS}}};
}

/* Sixteen values as bytes. */
INLINE int8x16_t bytes_round(const float32x4_t *x, float inverse) {
    int32x4_t q[4];
    UNROLL for (unsigned i = 0; i < 4; i++) q[i] = vcvtnq_s32_f32(vmulq_n_f32(x[i], inverse));
    const int16x8_t lo = vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]));
    const int16x8_t hi = vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]));
    return vcombine_s8(vmovn_s16(lo), vmovn_s16(hi));
}

/* block->sums without their bias: sums of pairs, then of every other pair of each half. */
INLINE int16x4_t parts_sum(int8x16_t lo, int8x16_t hi) {
    const int16x8_t pairs_lo = vpaddlq_s8(lo), pairs_hi = vpaddlq_s8(hi);
    const int32x2_t x =
        vreinterpret_s32_s16(vadd_s16(vget_low_s16(pairs_lo), vget_high_s16(pairs_lo)));
    const int32x2_t y =
        vreinterpret_s32_s16(vadd_s16(vget_low_s16(pairs_hi), vget_high_s16(pairs_hi)));
    return vadd_s16(vreinterpret_s16_s32(vzip1_s32(x, y)), vreinterpret_s16_s32(vzip2_s32(x, y)));
}

INLINE void block_write(kri_q8_block_t *block, const float32x4_t x[VECTORS], float amax) {
    const float inverse = 127.0f / amax;
    const int8x16_t lo = bytes_round(x, inverse), hi = bytes_round(x + 4, inverse);
    const int16x4_t parts = parts_sum(lo, hi);
    vst1q_s8(block->q, lo);
    vst1q_s8(block->q + 16, hi);
    block->d = amax / 127.0f;
    block->ds = block->d * (float)vaddlv_s16(parts);
    vst1_s16((void *)block->sums, vadd_s16(parts, vdup_n_s16(KRI_Q8_SUM_BIAS)));
}

INLINE void block_quant(const float32x4_t x[VECTORS], kri_q8_block_t *block) {
    const uint32_t amax_bits = magnitude_max(x);
    float amax;
    __builtin_memcpy(&amax, &amax_bits, sizeof amax);
    if (amax_bits >= BITS_INF) {
        block_fill(block, NAN);
    } else if (amax < AMAX_MIN) {
        block_fill(block, 0.0f);
    } else {
        block_write(block, x, amax);
    }
}

void kri_quant_q8_neon(const float *restrict x, size_t n, kri_q8_block_t *restrict blocks) {
    for (size_t b = 0; b < n / KRI_Q8_ITEMS; b++) {
        const float *from = x + KRI_Q8_ITEMS * b;
        float32x4_t v[VECTORS];
        UNROLL for (unsigned i = 0; i < VECTORS; i++) v[i] = vld1q_f32(from + 4u * i);
        block_quant(v, &blocks[b]);
    }
}

void kri_rms_norm_q8_neon(const float *x, const float *restrict w, float eps, size_t n,
                          kri_q8_block_t *restrict blocks) {
    const float factor = norm_factor(x, eps, n);
    for (size_t i = 0; i < n; i += KRI_Q8_ITEMS) {
        float32x4_t v[VECTORS];
        UNROLL for (unsigned k = 0; k < VECTORS; k++) {
            v[k] = vmulq_n_f32(vld1q_f32(x + i + 4u * k), factor);
            if (w != NULL) v[k] = vmulq_f32(v[k], vld1q_f32(w + i + 4u * k));
        }
        block_quant(v, &blocks[i / KRI_Q8_ITEMS]);
    }
}
