/* softmax.h: the softmax of the unfused attention, as good as a compiler makes it per ISA level. */
#ifndef KRI_BENCH_SOFTMAX_H
#define KRI_BENCH_SOFTMAX_H

#include <stddef.h>

/* row [n]: scores, of which the first n_seen are not masked -> probabilities, 0 where masked:
 * p = exp(scale * s - max) / sum. n_seen >= 1; row is 64-byte aligned and n a multiple of 16. */
typedef void kri_bench_softmax_fn(float *row, size_t n, size_t n_seen, float scale);

/* isa: a level's name. */
kri_bench_softmax_fn *kri_bench_softmax(const char *isa);

#endif
