/* linear_dotprod.c: matrix times activations for the eight quantised weight types with sdot by
 * lane: four rows of four weights meet four of the sixteen activations that a register holds, so
 * an activation is loaded once per 16 and never broadcast. All quants are signed bytes here
 * (tile_neon.h), which is why no mixed-sign product is missed. */
#include "cpu/impl.h"

#include "cpu/neon/tile_neon.h"

/* Lanes are named one by one: they must be constants of the source. */
INLINE int32x4_t dot_16(int32x4_t start, const int8x16_t *w, const int8_t *q) {
    const int8x16_t a = vld1q_s8(q);
    int32x4_t sum = vdotq_laneq_s32(start, w[0], a, 0);
    sum = vdotq_laneq_s32(sum, w[1], a, 1);
    sum = vdotq_laneq_s32(sum, w[2], a, 2);
    return vdotq_laneq_s32(sum, w[3], a, 3);
}

INLINE int32x4_t dot_32(kr_dtype_t type, int32x4_t start, const int8x16_t *w, const int8_t *q) {
    (void)type;
    return dot_16(dot_16(start, w, q), w + 4, q + 16);
}

#include "cpu/neon/linear_tile_neon.h"

LINEAR(linear_q4_0, KR_DTYPE_Q4_0, dotprod)
LINEAR(linear_q4_1, KR_DTYPE_Q4_1, dotprod)
LINEAR(linear_q5_0, KR_DTYPE_Q5_0, dotprod)
LINEAR(linear_q5_1, KR_DTYPE_Q5_1, dotprod)
LINEAR(linear_q8_0, KR_DTYPE_Q8_0, dotprod)
LINEAR(linear_q4_k, KR_DTYPE_Q4_K, dotprod)
LINEAR(linear_q5_k, KR_DTYPE_Q5_K, dotprod)
LINEAR(linear_q6_k, KR_DTYPE_Q6_K, dotprod)
