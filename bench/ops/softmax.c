/* softmax.c: see softmax.h. One body for all levels, over vectors of the level's width. The
 * exponential is 2^n * 2^f with a polynomial of degree 6 on |f| <= 1/2 (about 1e-7 relative).
 * This file is compiled with contraction to fused multiply-adds, as the kernels have them. */
#include "softmax.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LOG2E 1.44269504088896f
#define ROUND_MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds to a whole number */

#define DEFINE_SOFTMAX(level, bytes, target)                                                     \
    typedef float vec_##level##_t __attribute__((vector_size(bytes), may_alias));                \
    typedef int32_t ivec_##level##_t __attribute__((vector_size(bytes), may_alias));             \
    target static void softmax_##level(float *row, size_t n, size_t n_seen, float scale) {       \
        enum { LANES = bytes / 4 };                                                              \
        const vec_##level##_t zero = {0};                                                        \
        for (size_t i = n_seen; i < n; i++) row[i] = -INFINITY;                                  \
        vec_##level##_t *v = (vec_##level##_t *)row;                                             \
        const size_t n_vecs = (n_seen + LANES - 1) / LANES;                                      \
        vec_##level##_t max = v[0];                                                              \
        for (size_t i = 1; i < n_vecs; i++) {                                                    \
            const ivec_##level##_t keep = max > v[i];                                            \
            max = (vec_##level##_t)(((ivec_##level##_t)max & keep) |                             \
                                    ((ivec_##level##_t)v[i] & ~keep));                           \
        }                                                                                        \
        float top = max[0];                                                                      \
        for (size_t l = 1; l < LANES; l++) top = max[l] > top ? max[l] : top;                    \
        const float factor = scale * LOG2E;                                                      \
        const vec_##level##_t low = zero - 126.0f;                                               \
        vec_##level##_t sum = zero;                                                              \
        for (size_t i = 0; i < n_vecs; i++) {                                                    \
            vec_##level##_t t = (v[i] - top) * factor;                                           \
            const ivec_##level##_t in = t > low;                                                 \
            t = (vec_##level##_t)(((ivec_##level##_t)t & in) | ((ivec_##level##_t)low & ~in));   \
            const vec_##level##_t shifted = t + ROUND_MAGIC;                                     \
            const vec_##level##_t f = t - (shifted - ROUND_MAGIC);                               \
            vec_##level##_t p = f * 1.54035304e-4f + 1.33335581e-3f;                             \
            p = p * f + 9.61812911e-3f;                                                          \
            p = p * f + 5.55041087e-2f;                                                          \
            p = p * f + 2.40226507e-1f;                                                          \
            p = p * f + 6.93147181e-1f;                                                          \
            p = p * f + 1.0f;                                                                    \
            p = (vec_##level##_t)((ivec_##level##_t)p + ((ivec_##level##_t)shifted << 23));      \
            p = (vec_##level##_t)((ivec_##level##_t)p & in);                                     \
            v[i] = p;                                                                            \
            sum += p;                                                                            \
        }                                                                                        \
        float total = 0;                                                                         \
        for (size_t l = 0; l < LANES; l++) total += sum[l];                                      \
        const float inverse = 1.0f / total;                                                      \
        for (size_t i = 0; i < n_vecs; i++) v[i] *= inverse;                                     \
        memset(row + n_vecs * LANES, 0, (n - n_vecs * LANES) * sizeof(float));                   \
    }

DEFINE_SOFTMAX(baseline, 16, )
#if defined(__x86_64__)
DEFINE_SOFTMAX(avx2, 32, __attribute__((target("avx2,fma"))))
DEFINE_SOFTMAX(avx512, 64, __attribute__((target("avx512f,avx512dq"))))
#endif

kri_bench_softmax_fn *kri_bench_softmax(const char *isa) {
#if defined(__x86_64__)
    if (strcmp(isa, "avx2") == 0) return softmax_avx2;
    if (strcmp(isa, "ref") != 0) return softmax_avx512; /* avx512 and all above */
#endif
    (void)isa;
    return softmax_baseline;
}
