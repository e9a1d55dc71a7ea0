/* linear_neon.c: matrix times activations for the eight quantised weight types on any ARMv8-A,
 * which has no byte dot product. Bytes are multiplied into int16 lanes (smlal) and added there as
 * long as they cannot overflow with activations in -127..127, which is what makes narrow weights
 * cheap: 15 * 127 * 8 = 15240 for 4 bits, 31 * 127 * 8 = 31496 for 5 bits, and for the 16
 * activations of a q6_k half 63 * 127 * 4 = 32004. Signed 8-bit weights go two by two:
 * 128 * 127 * 2 = 32512. Lanes are folded to one sum per row once per block, not per vector. */
#include "cpu/impl.h"

#include "cpu/neon/tile_neon.h"

/* Sums of the products of one quad: rows 0, 1 and rows 2, 3, four lanes a row. */
typedef struct lanes_s {
    int16x8_t lo, hi;
} lanes_t;

/* Four activations, once per row. */
INLINE int8x16_t quad_broadcast(const int8_t *q) {
    return vreinterpretq_s8_s32(vld1q_dup_s32((const void *)q));
}

INLINE lanes_t lanes_mul(int8x16_t w, const int8_t *q) {
    const int8x16_t a = quad_broadcast(q);
    return (lanes_t){vmull_s8(vget_low_s8(w), vget_low_s8(a)), vmull_high_s8(w, a)};
}

INLINE lanes_t lanes_mul_add(lanes_t sum, int8x16_t w, const int8_t *q) {
    const int8x16_t a = quad_broadcast(q);
    return (lanes_t){vmlal_s8(sum.lo, vget_low_s8(w), vget_low_s8(a)),
                     vmlal_high_s8(sum.hi, w, a)};
}

INLINE lanes_t lanes_mul_add_4(lanes_t sum, const int8x16_t *w, const int8_t *q) {
    UNROLL for (unsigned u = 0; u < 4; u++) sum = lanes_mul_add(sum, w[u], q + 4u * u);
    return sum;
}

INLINE int32x4_t lanes_fold(lanes_t sum) {
    return vpaddq_s32(vpaddlq_s16(sum.lo), vpaddlq_s16(sum.hi));
}

INLINE lanes_t lanes_mul_4(const int8x16_t *w, const int8_t *q) {
    lanes_t sum = lanes_mul(w[0], q);
    UNROLL for (unsigned u = 1; u < 4; u++) sum = lanes_mul_add(sum, w[u], q + 4u * u);
    return sum;
}

INLINE int32x4_t dot_16(int32x4_t start, const int8x16_t *w, const int8_t *q) {
    return vaddq_s32(start, lanes_fold(lanes_mul_4(w, q)));
}

INLINE int32x4_t dot_32_wide(int32x4_t start, const int8x16_t *w, const int8_t *q) {
    int32x4_t lo = vdupq_n_s32(0), hi = vdupq_n_s32(0);
    UNROLL for (unsigned u = 0; u < 8; u += 2) {
        const lanes_t pair = lanes_mul_add(lanes_mul(w[u], q + 4u * u), w[u + 1], q + 4u * u + 4u);
        lo = vpadalq_s16(lo, pair.lo);
        hi = vpadalq_s16(hi, pair.hi);
    }
    return vaddq_s32(start, vpaddq_s32(lo, hi));
}

INLINE int32x4_t dot_32(kr_dtype_t type, int32x4_t start, const int8x16_t *w, const int8_t *q) {
    if (type == KR_DTYPE_Q8_0) return dot_32_wide(start, w, q);
    const lanes_t sum = lanes_mul_add_4(lanes_mul_4(w, q), w + 4, q + 16);
    return vaddq_s32(start, lanes_fold(sum));
}

#include "cpu/neon/linear_tile_neon.h"

LINEAR(linear_q4_0, KR_DTYPE_Q4_0, neon)
LINEAR(linear_q4_1, KR_DTYPE_Q4_1, neon)
LINEAR(linear_q5_0, KR_DTYPE_Q5_0, neon)
LINEAR(linear_q5_1, KR_DTYPE_Q5_1, neon)
LINEAR(linear_q8_0, KR_DTYPE_Q8_0, neon)
LINEAR(linear_q4_k, KR_DTYPE_Q4_K, neon)
LINEAR(linear_q5_k, KR_DTYPE_Q5_K, neon)
LINEAR(linear_q6_k, KR_DTYPE_Q6_K, neon)
