/* rng.h: PCG-XSH-RR 64/32, the generator behind a sampler's seed (O'Neill, "PCG: A Family of
 * Simple Fast Space-Efficient Statistically Good Algorithms for Random Number Generation",
 * Harvey Mudd College HMC-CS-2014-0905, section 6.3.1). 16 bytes of state, the same numbers on
 * every machine; not for secrets. */
#ifndef KRI_SAMPLE_RNG_H
#define KRI_SAMPLE_RNG_H

#include <stdint.h>

typedef struct kri_rng_s { uint64_t state, increment; } kri_rng_t;

/* `stream` picks one of 2^63 independent sequences. */
void kri_rng_seed(kri_rng_t *rng, uint64_t seed, uint64_t stream);
uint32_t kri_rng_u32(kri_rng_t *rng);
/* Uniform in [0, 1) with 53 random bits; takes two 32-bit numbers. */
double kri_rng_unit(kri_rng_t *rng);
/* Below n (> 0) by multiply and shift; its bias of n / 2^32 is harmless for pivots only. */
uint32_t kri_rng_below(kri_rng_t *rng, uint32_t n);

#endif
