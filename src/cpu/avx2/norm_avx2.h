/* norm_avx2.h: the factor of RMSNorm, shared by the kernel that writes floats and the one that
 * writes q8 blocks, whose bits must agree. */
#ifndef KRI_CPU_NORM_AVX2_H
#define KRI_CPU_NORM_AVX2_H

#include <math.h>

#include "cpu/avx2/vmath_avx2.h"

#define HALF_LANES 4u /* doubles of a vector */
#define SUMS 4u

/* Sum of x * x in double, which no finite float overflows: lane sums in four vectors, then a
 * fixed tree; depends on n only. */
KRI_INLINE double sum_of_squares(const float *x, size_t n) {
    __m256d sums[SUMS];
    KRI_UNROLL
    for (size_t j = 0; j < SUMS; j++) {
        sums[j] = _mm256_setzero_pd();
    }
    size_t i = 0;
    for (; i + SUMS * HALF_LANES <= n; i += SUMS * HALF_LANES) {
        KRI_UNROLL
        for (size_t j = 0; j < SUMS; j++) {
            const __m256d v = _mm256_cvtps_pd(_mm_loadu_ps(x + i + j * HALF_LANES));
            sums[j] = _mm256_fmadd_pd(v, v, sums[j]);
        }
    }
    for (; i < n; i += HALF_LANES) {
        const __m128i lanes = _mm256_castsi256_si128(lanes_below(n - i));
        const __m256d v = _mm256_cvtps_pd(_mm_maskload_ps(x + i, lanes));
        sums[0] = _mm256_fmadd_pd(v, v, sums[0]);
    }
    const __m256d sum = _mm256_add_pd(_mm256_add_pd(sums[0], sums[1]),
                                      _mm256_add_pd(sums[2], sums[3]));
    const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(sum), _mm256_extractf128_pd(sum, 1));
    return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}

KRI_INLINE float norm_factor(const float *x, float eps, size_t n) {
    const double mean = sum_of_squares(x, n) / (double)n + (double)eps;
    return (float)(1.0 / sqrt(mean));
}

#undef HALF_LANES
#undef SUMS
#endif
