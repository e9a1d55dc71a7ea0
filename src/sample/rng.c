/* rng.c: see rng.h. Pinned by the published test vector in tests/unit/sample/test_rng.c, so that
 * a seed means the same text in every version. */
#include "sample/rng.h"

uint32_t kri_rng_u32(kri_rng_t *rng) {
    uint64_t old = rng->state;
    rng->state = old * UINT64_C(6364136223846793005) + rng->increment;
    uint32_t shifted = (uint32_t)(((old >> 18) ^ old) >> 27);
    uint32_t turn = (uint32_t)(old >> 59);
    return (shifted >> turn) | (shifted << ((32u - turn) & 31u));
}

void kri_rng_seed(kri_rng_t *rng, uint64_t seed, uint64_t stream) {
    rng->state = 0;
    rng->increment = (stream << 1) | 1u;
    (void)kri_rng_u32(rng);
    rng->state += seed;
    (void)kri_rng_u32(rng);
}

double kri_rng_unit(kri_rng_t *rng) {
    uint64_t high = kri_rng_u32(rng);
    uint64_t low = kri_rng_u32(rng);
    return (double)((high << 21) | (low >> 11)) * 0x1.0p-53;
}

uint32_t kri_rng_below(kri_rng_t *rng, uint32_t n) {
    return (uint32_t)(((uint64_t)kri_rng_u32(rng) * n) >> 32);
}
