/* vmath_neon.h: exp and tanh of four floats, the same polynomials as vmath_avx2.h. Powers of two
 * are built from exponent bits. Each lane depends on its own input only, so a value does not
 * depend on where it stands in a row. NaN in, NaN out (fmax and fmin of NEON keep a NaN). */
#ifndef KRI_CPU_VMATH_NEON_H
#define KRI_CPU_VMATH_NEON_H

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

/* Complete unrolling, so that arrays of vectors live in registers. */
#if defined(__clang__)
#define KRI_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KRI_UNROLL _Pragma("GCC unroll 16")
#endif
#define KRI_INLINE static inline __attribute__((always_inline))

/* 2^n for integral n in -126..127; other n (from NaN) give some number, never a trap. */
KRI_INLINE float32x4_t power_of_two(int32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}

/* x = n * ln 2 + r, |r| <= ln 2 / 2; returns exp(r) - 1 with full relative accuracy. */
KRI_INLINE float32x4_t exp_reduced(float32x4_t x, int32x4_t *n) {
    const float32x4_t rounded = vrndnq_f32(vmulq_n_f32(x, 0x1.715476p+0f));
    *n = vcvtq_s32_f32(rounded);
    float32x4_t r = vfmsq_f32(x, rounded, vdupq_n_f32(0x1.62e430p-1f));
    r = vfmsq_f32(r, rounded, vdupq_n_f32(-0x1.05c610p-29f));
    float32x4_t p = vdupq_n_f32(0x1.6a23d0p-10f);
    p = vfmaq_f32(vdupq_n_f32(0x1.123a20p-7f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.5558f2p-5f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.555492p-3f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.fffffcp-2f), p, r);
    return vfmaq_f32(r, vmulq_f32(r, r), p);
}

/* exp(x) with gradual underflow and overflow to infinity: 2^n in two factors, so that neither
 * leaves the range of exponents. The clamp keeps infinite arguments out of the reduction. */
KRI_INLINE float32x4_t vector_exp(float32x4_t x) {
    int32x4_t n;
    const float32x4_t clamped =
        vminq_f32(vdupq_n_f32(89.0f), vmaxq_f32(vdupq_n_f32(-105.0f), x));
    const float32x4_t q = exp_reduced(clamped, &n);
    const int32x4_t half = vshrq_n_s32(n, 1);
    const float32x4_t y = vmulq_f32(vaddq_f32(q, vdupq_n_f32(1.0f)), power_of_two(half));
    return vmulq_f32(y, power_of_two(vsubq_s32(n, half)));
}

/* 2^x for x <= 0 as a weight beside a weight of 1: below 2^-126 it is 0, because subnormal
 * results are slow on some cores and cannot change a sum that holds a 1. x - rint(x) is exact, so
 * that the base 2 saves the two-step reduction; relative error 1.6e-7. */
KRI_INLINE float32x4_t vector_exp2_weight(float32x4_t x) {
    const uint32x4_t dropped = vcltq_f32(x, vdupq_n_f32(-126.0f)); /* false for NaN */
    const float32x4_t n = vrndnq_f32(x);
    const float32x4_t r = vsubq_f32(x, n);
    float32x4_t p = vdupq_n_f32(0x1.5bba14p-10f);
    p = vfmaq_f32(vdupq_n_f32(0x1.3cea88p-7f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.c6b752p-5f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.ebf9bcp-3f), p, r);
    p = vfmaq_f32(vdupq_n_f32(0x1.62e42ap-1f), p, r);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
    const float32x4_t y = vmulq_f32(p, power_of_two(vcvtq_s32_f32(n)));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), dropped));
}

/* tanh(x) = -e / (2 + e) with e = exp(-2|x|) - 1, which loses no digits near 0. */
KRI_INLINE float32x4_t vector_tanh(float32x4_t x) {
    int32x4_t n;
    const float32x4_t y = vmulq_n_f32(vabsq_f32(x), -2.0f);
    const float32x4_t q = exp_reduced(vmaxq_f32(vdupq_n_f32(-40.0f), y), &n);
    const float32x4_t scale = power_of_two(n);
    const float32x4_t e = vfmaq_f32(vsubq_f32(scale, vdupq_n_f32(1.0f)), scale, q);
    const float32x4_t t = vdivq_f32(vnegq_f32(e), vaddq_f32(e, vdupq_n_f32(2.0f)));
    return vbslq_f32(vdupq_n_u32(0x80000000u), x, t);
}

/* The first min(n, 4) floats, zeros after them; and the way back. */
KRI_INLINE float32x4_t load_up_to(const float *x, size_t n) {
    float lanes[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (n >= 4u) return vld1q_f32(x);
    for (size_t i = 0; i < n; i++) lanes[i] = x[i];
    return vld1q_f32(lanes);
}

KRI_INLINE void store_up_to(float *x, size_t n, float32x4_t v) {
    float lanes[4];
    if (n >= 4u) {
        vst1q_f32(x, v);
        return;
    }
    vst1q_f32(lanes, v);
    for (size_t i = 0; i < n; i++) x[i] = lanes[i];
}

#endif
