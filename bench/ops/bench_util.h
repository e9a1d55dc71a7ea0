/* bench_util.h: fixed random numbers for the inputs of benchmarks (xorshift): every run and every
 * build computes the same thing; and the clock of single-threaded measurements. */
#ifndef KRI_BENCH_UTIL_H
#define KRI_BENCH_UTIL_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "ops/step.h"

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

/* Random keys and values of one KV head of a page of int8. */
static inline void kri_bench_fill_i8(uint64_t *state, kri_kv_place_t place, uint32_t head_dim,
                                     uint8_t *page) {
    for (size_t slot = 0; slot < KRI_PAGE_TOKENS; slot++) {
        uint16_t *scales = (uint16_t *)(void *)(page + place.scales) + slot;
        float x[2 * KRI_HEAD_DIM_MAX];
        int8_t k[KRI_HEAD_DIM_MAX], v[KRI_HEAD_DIM_MAX];
        kri_bench_fill(state, x, 2 * (size_t)head_dim);
        kri_kv_store_i8_ref(x, head_dim, k, scales);
        kri_kv_store_i8_ref(x + head_dim, head_dim, v, scales + KRI_PAGE_TOKENS);
        for (size_t i = 0; i < head_dim; i++) {
            page[place.k + kri_i8_key_at(slot, i)] = (uint8_t)(k[i] + KRI_I8_KEY_BIAS);
            page[place.v + kri_i8_value_at(head_dim, slot, i)] = (uint8_t)v[i];
        }
    }
}

/* Time that this thread has run, in nanoseconds: what other programs take does not count. */
static inline uint64_t kri_bench_thread_ns(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#endif
