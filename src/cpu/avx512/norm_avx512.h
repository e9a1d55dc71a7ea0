/* norm_avx512.h: the factor of RMSNorm, shared by the kernel that writes floats and the one that
 * writes q8 blocks, whose bits must agree. */
#ifndef KRI_CPU_NORM_AVX512_H
#define KRI_CPU_NORM_AVX512_H

#include <math.h>

#include "cpu/avx512/vmath_avx512.h"

#define HALF_LANES 8u /* doubles of a vector */
#define SUMS 4u

/* Sum of x * x in double, which no finite float overflows: lane sums in four vectors, then a
 * fixed tree; depends on n only. */
KRI_INLINE double sum_of_squares(const float *x, size_t n) {
    __m512d sums[SUMS];
    KRI_UNROLL
    for (size_t j = 0; j < SUMS; j++) {
        sums[j] = _mm512_setzero_pd();
    }
    size_t i = 0;
    for (; i + SUMS * HALF_LANES <= n; i += SUMS * HALF_LANES) {
        KRI_UNROLL
        for (size_t j = 0; j < SUMS; j++) {
            const __m512d v = _mm512_cvtps_pd(_mm256_loadu_ps(x + i + j * HALF_LANES));
            sums[j] = _mm512_fmadd_pd(v, v, sums[j]);
        }
    }
    for (; i < n; i += HALF_LANES) {
        const __mmask8 lanes = (__mmask8)lanes_below(n - i);
        const __m512d v = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(lanes, x + i));
        sums[0] = _mm512_fmadd_pd(v, v, sums[0]);
    }
    return _mm512_reduce_add_pd(_mm512_add_pd(_mm512_add_pd(sums[0], sums[1]),
                                              _mm512_add_pd(sums[2], sums[3])));
}

KRI_INLINE float norm_factor(const float *x, float eps, size_t n) {
    const double mean = sum_of_squares(x, n) / (double)n + (double)eps;
    return (float)(1.0 / sqrt(mean));
}

#undef HALF_LANES
#undef SUMS
#endif
