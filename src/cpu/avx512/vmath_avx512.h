/* vmath_avx512.h: exp and tanh of sixteen floats. Polynomials fitted for this file (minimax of
 * the relative error, 4e-9 before rounding); results are within 2 units in the last place, which
 * costs two more multiply-adds than a 1e-6 polynomial and saves every caller an error budget.
 * Each lane depends on its own input only, so a value does not depend on where it stands in a row.
 * NaN in, NaN out. */
#ifndef KRI_CPU_VMATH_AVX512_H
#define KRI_CPU_VMATH_AVX512_H

#include <immintrin.h>
#include <stddef.h>

/* Complete unrolling, so that arrays of vectors live in registers. */
#if defined(__clang__)
#define KRI_UNROLL _Pragma("clang loop unroll(full)")
#else
#define KRI_UNROLL _Pragma("GCC unroll 16")
#endif
#define KRI_INLINE static inline __attribute__((always_inline))

/* The first n (at most 16) lanes. */
KRI_INLINE __mmask16 lanes_below(size_t n) {
    return (__mmask16)(n >= 16u ? 0xFFFFu : (1u << n) - 1u);
}

/* x = n * ln 2 + r, |r| <= ln 2 / 2; returns exp(r) - 1 with full relative accuracy. */
KRI_INLINE __m512 exp_reduced(__m512 x, __m512 *n) {
    *n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)),
                              _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(*n, _mm512_set1_ps(0x1.62e430p-1f), x);
    r = _mm512_fnmadd_ps(*n, _mm512_set1_ps(-0x1.05c610p-29f), r);
    __m512 p = _mm512_set1_ps(0x1.6a23d0p-10f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.123a20p-7f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.5558f2p-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.555492p-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.fffffcp-2f));
    return _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r);
}

/* exp(x) with gradual underflow and overflow to infinity. The clamp keeps infinite arguments out
 * of the reduction; both of its ends are past the range of float. */
KRI_INLINE __m512 vector_exp(__m512 x) {
    __m512 n;
    __m512 clamped = _mm512_max_ps(_mm512_set1_ps(-105.0f), x);
    clamped = _mm512_min_ps(_mm512_set1_ps(89.0f), clamped);
    const __m512 q = exp_reduced(clamped, &n);
    return _mm512_scalef_ps(_mm512_add_ps(q, _mm512_set1_ps(1.0f)), n);
}

/* 2^x for x <= 0 as a weight beside a weight of 1: below 2^-126 it is 0, because subnormal
 * results are slow on some cores and cannot change a sum that holds a 1. x - rint(x) is exact, so
 * that the base 2 saves the two-step reduction; relative error 1.6e-7. */
KRI_INLINE __m512 vector_exp2_weight(__m512 x) {
    const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(0x1.5bba14p-10f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.3cea88p-7f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.c6b752p-5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.ebf9bcp-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.62e42ap-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(kept, p, n);
}

/* tanh(x) = -e / (2 + e) with e = exp(-2|x|) - 1, which loses no digits near 0. */
KRI_INLINE __m512 vector_tanh(__m512 x) {
    __m512 n;
    const __m512 sign = _mm512_and_ps(x, _mm512_set1_ps(-0.0f));
    const __m512 y = _mm512_mul_ps(_mm512_andnot_ps(_mm512_set1_ps(-0.0f), x),
                                   _mm512_set1_ps(-2.0f));
    const __m512 q = exp_reduced(_mm512_max_ps(_mm512_set1_ps(-40.0f), y), &n);
    const __m512 scale = _mm512_scalef_ps(_mm512_set1_ps(1.0f), n);
    const __m512 e = _mm512_fmadd_ps(scale, q, _mm512_sub_ps(scale, _mm512_set1_ps(1.0f)));
    const __m512 t = _mm512_div_ps(_mm512_sub_ps(_mm512_setzero_ps(), e),
                                   _mm512_add_ps(e, _mm512_set1_ps(2.0f)));
    return _mm512_or_ps(t, sign);
}

#endif
