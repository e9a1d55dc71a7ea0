/* norm_neon.h: the factor of rms_norm, one order of sums for all kernels that normalise. */
#ifndef KRI_CPU_NEON_NORM_NEON_H
#define KRI_CPU_NEON_NORM_NEON_H

#include <math.h>

#include "cpu/neon/vmath_neon.h"

#define NORM_SUMS 4u

/* Sum of x * x in double, which no finite float overflows: lane sums in four vectors, then a
 * fixed tree; depends on n only. */
KRI_INLINE double sum_of_squares(const float *x, size_t n) {
    float64x2_t sums[NORM_SUMS];
    KRI_UNROLL
    for (size_t j = 0; j < NORM_SUMS; j++) sums[j] = vdupq_n_f64(0.0);
    size_t i = 0;
    for (; i + 8u <= n; i += 8u) {
        KRI_UNROLL
        for (size_t j = 0; j < 2u; j++) {
            const float32x4_t v = vld1q_f32(x + i + j * 4u);
            const float64x2_t lo = vcvt_f64_f32(vget_low_f32(v)), hi = vcvt_high_f64_f32(v);
            sums[2u * j] = vfmaq_f64(sums[2u * j], lo, lo);
            sums[2u * j + 1u] = vfmaq_f64(sums[2u * j + 1u], hi, hi);
        }
    }
    for (; i < n; i += 4u) {
        const float32x4_t v = load_up_to(x + i, n - i);
        const float64x2_t lo = vcvt_f64_f32(vget_low_f32(v)), hi = vcvt_high_f64_f32(v);
        sums[0] = vfmaq_f64(sums[0], lo, lo);
        sums[1] = vfmaq_f64(sums[1], hi, hi);
    }
    return vaddvq_f64(vaddq_f64(vaddq_f64(sums[0], sums[1]), vaddq_f64(sums[2], sums[3])));
}

KRI_INLINE float norm_factor(const float *x, float eps, size_t n) {
    const double mean = sum_of_squares(x, n) / (double)n + (double)eps;
    return (float)(1.0 / sqrt(mean));
}

#undef NORM_SUMS
#endif
