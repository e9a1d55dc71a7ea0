/* vmath_avx2.h: exp and tanh of eight floats, the same polynomials as vmath_avx512.h. Powers of
 * two are built from exponent bits because AVX2 has no scalef. Each lane depends on its own input
 * only, so a value does not depend on where it stands in a row. NaN in, NaN out. */
#ifndef KRI_CPU_VMATH_AVX2_H
#define KRI_CPU_VMATH_AVX2_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

/* Complete unrolling, so that arrays of vectors live in registers. */
#if defined(__clang__)
#define KRI_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KRI_UNROLL _Pragma("GCC unroll 16")
#endif
#define KRI_INLINE static inline __attribute__((always_inline))

/* All bits set in the first n (at most 8) lanes. */
KRI_INLINE __m256i lanes_below(size_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n < 8u ? n : 8u)), lane);
}

/* 2^n for integral n in -126..127; other n (from NaN) give some number, never a trap. */
KRI_INLINE __m256 power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/* x = n * ln 2 + r, |r| <= ln 2 / 2; returns exp(r) - 1 with full relative accuracy. */
KRI_INLINE __m256 exp_reduced(__m256 x, __m256i *n) {
    const __m256 rounded = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                                           _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    *n = _mm256_cvtps_epi32(rounded);
    __m256 r = _mm256_fnmadd_ps(rounded, _mm256_set1_ps(0x1.62e430p-1f), x);
    r = _mm256_fnmadd_ps(rounded, _mm256_set1_ps(-0x1.05c610p-29f), r);
    __m256 p = _mm256_set1_ps(0x1.6a23d0p-10f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.123a20p-7f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.5558f2p-5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.555492p-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.fffffcp-2f));
    return _mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r);
}

/* exp(x) with gradual underflow and overflow to infinity: 2^n in two factors, so that neither
 * leaves the range of exponents. The clamp keeps infinite arguments out of the reduction. */
KRI_INLINE __m256 vector_exp(__m256 x) {
    __m256i n;
    __m256 clamped = _mm256_max_ps(_mm256_set1_ps(-105.0f), x);
    clamped = _mm256_min_ps(_mm256_set1_ps(89.0f), clamped);
    const __m256 q = exp_reduced(clamped, &n);
    const __m256i half = _mm256_srai_epi32(n, 1);
    const __m256 y = _mm256_mul_ps(_mm256_add_ps(q, _mm256_set1_ps(1.0f)), power_of_two(half));
    return _mm256_mul_ps(y, power_of_two(_mm256_sub_epi32(n, half)));
}

/* 2^x for x <= 0 as a weight beside a weight of 1: below 2^-126 it is 0, because subnormal
 * results are slow on some cores and cannot change a sum that holds a 1. x - rint(x) is exact, so
 * that the base 2 saves the two-step reduction; relative error 1.6e-7. */
KRI_INLINE __m256 vector_exp2_weight(__m256 x) {
    const __m256 kept = _mm256_cmp_ps(x, _mm256_set1_ps(-126.0f), _CMP_NLT_UQ);
    const __m256 n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 r = _mm256_sub_ps(x, n);
    __m256 p = _mm256_set1_ps(0x1.5bba14p-10f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.3cea88p-7f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.c6b752p-5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.ebf9bcp-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.62e42ap-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    return _mm256_and_ps(_mm256_mul_ps(p, power_of_two(_mm256_cvtps_epi32(n))), kept);
}

/* tanh(x) = -e / (2 + e) with e = exp(-2|x|) - 1, which loses no digits near 0. */
KRI_INLINE __m256 vector_tanh(__m256 x) {
    __m256i n;
    const __m256 sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0f));
    const __m256 y = _mm256_mul_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x),
                                   _mm256_set1_ps(-2.0f));
    const __m256 q = exp_reduced(_mm256_max_ps(_mm256_set1_ps(-40.0f), y), &n);
    const __m256 scale = power_of_two(n);
    const __m256 e = _mm256_fmadd_ps(scale, q, _mm256_sub_ps(scale, _mm256_set1_ps(1.0f)));
    const __m256 t = _mm256_div_ps(_mm256_sub_ps(_mm256_setzero_ps(), e),
                                   _mm256_add_ps(e, _mm256_set1_ps(2.0f)));
    return _mm256_or_ps(t, sign);
}

#endif
