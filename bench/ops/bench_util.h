/* bench_util.h: fixed random numbers for the inputs of benchmarks (xorshift): every run and every
 * build computes the same thing; and the clock of single-threaded measurements. */
#ifndef KRI_BENCH_UTIL_H
#define KRI_BENCH_UTIL_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

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

/* Time that this thread has run, in nanoseconds: what other programs take does not count. */
static inline uint64_t kri_bench_thread_ns(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#endif
