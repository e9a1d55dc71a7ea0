/* emulated.h: what the kernels of src/cuda/kernels need of CUDA C++, for the CPU. A block's
 * threads are fibers of one thread of the system; whatever a warp or a block does together is a
 * meeting: a fiber says its part and waits until all have. Asynchronous copies happen when they
 * are waited for, so a missing wait shows. Speed does not matter here, and neither do relaxed
 * memory orders. */
#ifndef KR_TESTS_EMULATED_H
#define KR_TESTS_EMULATED_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define KRI_SHARED_MEMORY(name) uint8_t *name = emu_shared

struct uint3 { uint32_t x, y, z; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct __half { uint16_t bits; };
struct __half2 { uint16_t low, high; };
struct __nv_bfloat16 { uint16_t bits; };

extern uint8_t *emu_shared;
extern uint3 blockIdx, gridDim, blockDim;
extern uint3 *emu_thread_index;
#define threadIdx (*emu_thread_index)

static inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    return {x, y, z, w};
}
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
static inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* ---- numbers -------------------------------------------------------------------------------- */

extern "C" float kri_f16_to_f32(uint16_t h);
extern "C" uint16_t kri_f32_to_f16(float f);

template <typename To, typename From> static inline To emu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits are kept");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline uint32_t __float_as_uint(float x) { return emu_bits<uint32_t>(x); }
static inline float __uint_as_float(uint32_t x) { return emu_bits<float>(x); }
static inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    const uint64_t bytes = low | (uint64_t)high << 32;
    uint32_t out = 0;
    for (int i = 0; i < 32; i += 8)
        out |= (uint32_t)(bytes >> (selector >> i / 2 & 7) * 8 & 255) << i;
    return out;
}
static inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
static inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
static inline uint16_t __half_as_ushort(__half h) { return h.bits; }
static inline float __half2float(__half h) { return kri_f16_to_f32(h.bits); }
static inline __half __float2half_rn(float x) { return {kri_f32_to_f16(x)}; }
static inline __half2 __floats2half2_rn(float low, float high) {
    return {kri_f32_to_f16(low), kri_f32_to_f16(high)};
}
static inline float2 __half22float2(__half2 h) {
    return {kri_f16_to_f32(h.low), kri_f16_to_f32(h.high)};
}
static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const uint32_t u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {(uint16_t)(u >> 16 | 64)};
    return {(uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16)};
}
static inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }
template <typename T> static inline T __ldg(const T *p) { return *p; }
template <typename T> static inline T __ldcg(const T *p) { return *p; }
static inline void __threadfence() {}
static inline unsigned long long atomicMax(unsigned long long *p, unsigned long long value) {
    const unsigned long long old = *p;
    if (value > old) *p = value;
    return old;
}
static inline unsigned long long atomicExch(unsigned long long *p, unsigned long long value) {
    const unsigned long long old = *p;
    *p = value;
    return old;
}
static inline uint32_t atomicInc(uint32_t *p, uint32_t most) {
    const uint32_t old = *p;
    *p = old >= most ? 0 : old + 1;
    return old;
}

/* ---- meetings ------------------------------------------------------------------------------- */

void __syncthreads();
void __syncwarp();
/* What this lane says, 6 words; returns what all lanes of the warp say: [32][6]. */
const uint32_t (*emu_meet(const uint32_t *words, int n))[6];
uint32_t emu_lane();

template <typename T> static inline T __shfl_xor_sync(unsigned, T value, int mask) {
    const uint32_t word = emu_bits<uint32_t>(value);
    return emu_bits<T>(emu_meet(&word, 1)[emu_lane() ^ (uint32_t)mask][0]);
}
template <typename T> static inline T __shfl_sync(unsigned, T value, uint32_t lane) {
    const uint32_t word = emu_bits<uint32_t>(value);
    return emu_bits<T>(emu_meet(&word, 1)[lane][0]);
}
static inline bool __any_sync(unsigned, bool value) {
    const uint32_t word = value;
    const uint32_t(*all)[6] = emu_meet(&word, 1);
    for (int i = 0; i < 32; i++)
        if (all[i][0]) return true;
    return false;
}

/* ---- primitives.cuh ------------------------------------------------------------------------- */

static inline void kri_begin() {}
static inline float kri_quotient(float a, float b) { return a / b; }
static inline int kri_dot4(uint32_t a, uint32_t b, int c) {
    for (int i = 0; i < 32; i += 8) c += (int)(a >> i & 255) * (int8_t)(b >> i & 255);
    return c;
}
static inline uint4 kri_load_stream(const void *p) { return *(const uint4 *)p; }
static inline uint32_t kri_load_stream32(const void *p) { return *(const uint32_t *)p; }
static inline uint32_t kri_shared(const void *p) {
    return (uint32_t)((const uint8_t *)p - emu_shared);
}
void kri_copy16(uint32_t to, const void *from, bool valid);
void kri_copy_commit();
void emu_copy_wait(uint32_t n_left);
template <int N> static inline void kri_copy_wait() { emu_copy_wait(N); }

static inline void kri_ldmatrix4(uint32_t (&r)[4], uint32_t at) {
    const uint32_t(*all)[6] = emu_meet(&at, 1), lane = emu_lane();
    for (uint32_t j = 0; j < 4; j++)
        memcpy(&r[j], emu_shared + all[8 * j + lane / 4][0] + lane % 4 * 4, 4);
}
static inline void kri_ldmatrix4_t(uint32_t (&r)[4], uint32_t at) {
    const uint32_t(*all)[6] = emu_meet(&at, 1), lane = emu_lane();
    for (uint32_t j = 0; j < 4; j++) {
        uint16_t low, high;
        memcpy(&low, emu_shared + all[8 * j + lane % 4 * 2][0] + lane / 4 * 2, 2);
        memcpy(&high, emu_shared + all[8 * j + lane % 4 * 2 + 1][0] + lane / 4 * 2, 2);
        r[j] = low | (uint32_t)high << 16;
    }
}

/* Products of four bytes; those of a are unsigned where A is. */
template <typename A> static inline int emu_dot4(uint32_t a, uint32_t b) {
    int sum = 0;
    for (int i = 0; i < 32; i += 8) sum += (int)(A)(a >> i) * (int8_t)(b >> i);
    return sum;
}
template <typename A>
static inline void emu_mma_bytes(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const uint32_t(*all)[6] = emu_meet(words, 6), lane = emu_lane();
    for (uint32_t e = 0; e < 4; e++) {
        const uint32_t row = lane / 4, column = lane % 4 * 2 + e % 2;
        for (uint32_t k = 0; k < 8; k++)
            c[e] += emu_dot4<A>(all[row * 4 + k % 4][e / 2 + k / 4 * 2],
                                all[column * 4 + k % 4][4 + k / 4]);
    }
}
static inline void kri_mma_u8s8(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emu_mma_bytes<uint8_t>(c, a, b0, b1);
}
static inline void kri_mma_s8(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emu_mma_bytes<int8_t>(c, a, b0, b1);
}

template <float (*VALUE)(uint16_t)>
static inline void emu_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const uint32_t(*all)[6] = emu_meet(words, 6), lane = emu_lane();
    for (uint32_t e = 0; e < 4; e++) {
        const uint32_t row = lane / 4, column = lane % 4 * 2 + e % 2;
        float sum = 0;
        for (uint32_t k = 0; k < 16; k++) {
            const uint32_t x = all[row * 4 + k % 8 / 2][e / 2 + k / 8 * 2];
            const uint32_t y = all[column * 4 + k % 8 / 2][4 + k / 8];
            sum += VALUE((uint16_t)(x >> k % 2 * 16)) * VALUE((uint16_t)(y >> k % 2 * 16));
        }
        c[e] += sum;
    }
}
static inline float emu_bf16(uint16_t bits) { return __uint_as_float((uint32_t)bits << 16); }
float emu_half(uint16_t bits); /* from a table */
static inline void kri_mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emu_mma<emu_bf16>(c, a, b0, b1);
}
static inline void kri_mma_half(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emu_mma<emu_half>(c, a, b0, b1);
}

#endif
