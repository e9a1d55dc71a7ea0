/* quant_ref.c: activations to 8 bits, the definition that every level reproduces bit for bit. */
#include <math.h>
#include <string.h>

#include "ops/kernels.h"

#define AMAX_MIN 1e-30f
#define INFINITY_BITS 0x7f800000u

static uint32_t magnitude_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u & 0x7fffffffu;
}

static void quant_block(const float *x, kri_q8_block_t *block) {
    uint32_t amax_bits = 0;
    for (size_t i = 0; i < KRI_Q8_ITEMS; i++) {
        uint32_t bits = magnitude_bits(x[i]);
        if (bits > amax_bits) amax_bits = bits;
    }
    memset(block, 0, sizeof *block);
    for (size_t i = 0; i < 4; i++) block->sums[i / 2][i % 2] = KRI_Q8_SUM_BIAS;
    if (amax_bits >= INFINITY_BITS) {
        block->d = block->ds = NAN;
        return;
    }
    float amax;
    memcpy(&amax, &amax_bits, sizeof amax);
    if (amax < AMAX_MIN) return;
    float inverse = 127.0f / amax;
    for (size_t i = 0; i < KRI_Q8_ITEMS; i++) {
        int32_t q = (int32_t)rintf(x[i] * inverse);
        block->q[i] = (int8_t)q;
        uint16_t *sum = &block->sums[i / 16][i / 2 % 2];
        *sum = (uint16_t)(*sum + q);
    }
    block->d = amax / 127.0f;
    block->ds = block->d * (float)kri_q8_sum(block);
}

void kri_quant_q8_ref(const float *restrict x, size_t n, kri_q8_block_t *restrict blocks) {
    for (size_t b = 0; b < n / KRI_Q8_ITEMS; b++) quant_block(x + b * KRI_Q8_ITEMS, blocks + b);
}
