/* bench_util.h: fixed random numbers for the inputs of benchmarks (xorshift): every run and every
 * build computes the same thing. */
#ifndef KRI_BENCH_UTIL_H
#define KRI_BENCH_UTIL_H

#include <stddef.h>
#include <stdint.h>

#define KRI_BENCH_SEED 88172645463325252u

static inline uint32_t kri_bench_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 32);
}
/* x [n] = -1..1 */
static inline void kri_bench_fill(uint64_t *state, float *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = (float)(int32_t)kri_bench_random(state) * 0x1p-31f;
}

#endif
