/* emulated_hopper.h: hopper.cuh for the CPU. Copies of boxes happen when their barrier is waited
 * for and products when they are waited for, so a missing wait shows. A product is computed by the
 * warps of a group one by one: its rows of 16 are theirs alone. */
#ifndef KR_TESTS_EMULATED_HOPPER_H
#define KR_TESTS_EMULATED_HOPPER_H

#include "emulated.h"

#define __grid_constant__
#define KRI_SHARED_ATOMS(name) uint8_t *name = emu_shared

void kri_barrier_init(uint32_t at, uint32_t n_arrivals);
static inline void kri_barrier_init_done() {}
void kri_barrier_expect(uint32_t at, uint32_t n_bytes);
static inline void kri_barrier_arrive(uint32_t at) { kri_barrier_expect(at, 0); }
void kri_barrier_wait(uint32_t at, uint32_t parity);
void kri_copy_box(uint32_t to, const void *map, uint32_t x, uint32_t y, uint32_t z, uint32_t w,
                  uint32_t barrier);
static inline void kri_fence_shared() {}
void kri_named_wait(uint32_t id, uint32_t n_threads);
void kri_named_arrive(uint32_t id, uint32_t n_threads);
template <int N> static inline void kri_registers_more() {}
template <int N> static inline void kri_registers_less() {}

static inline float kri_exp2(float x) { return exp2f(x); }
static inline float kri_tanh(float x) { return tanhf(x); }

/* ---- products ------------------------------------------------------------------------------- */

struct emu_product_t {
    float *c;
    const uint32_t *rows; /* a in registers; NULL: at a */
    uint64_t a, b;
    int n;
    bool add;
};
void emu_product(const emu_product_t &product);
void emu_product_wait(uint32_t n_left);

static inline uint64_t kri_matrix(uint32_t at, uint32_t rows, uint32_t columns) {
    return (uint64_t)(at >> 4) | (uint64_t)(columns >> 4) << 16 | (uint64_t)(rows >> 4) << 32;
}
static inline void kri_product_begin() {}
void kri_product_commit();
template <int N_LEFT, int N> static inline void kri_product_wait(float (&)[N]) {
    emu_product_wait(N_LEFT);
}
template <int N>
static inline void kri_product_shared(float (&c)[N / 2], uint64_t a, uint64_t b, bool add) {
    emu_product({c, nullptr, a, b, N, add});
}
template <int N>
static inline void kri_product_rows(float (&c)[N / 2], const uint32_t *a, uint64_t b) {
    emu_product({c, a, 0, b, N, true});
}

/* What cuTensorMapEncodeTiled keeps in its 128 bytes. */
struct emu_map_t {
    const uint8_t *address;
    uint64_t dims[4], strides[3];
};

#endif
