/* hopper.cuh: the instructions of Hopper that C++ has no name for: barriers in shared memory,
 * copies of boxes of a tensor (TMA), products of a warp group of 128 threads (wgmma), named
 * barriers. tests/cuda/emulator/emulated_hopper.h has the same functions for the CPU. */
#ifndef KRI_CUDA_HOPPER_CUH
#define KRI_CUDA_HOPPER_CUH

#include <stdint.h>

/* Shared memory of the size given at launch, for the atoms of products (see there). */
#define KRI_SHARED_ATOMS(name) extern __shared__ __align__(1024) uint8_t name[]

/* ---- barriers in shared memory: 8 bytes, by their shared address ----------------------------- */

__device__ __forceinline__ void kri_barrier_init(uint32_t at, uint32_t n_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(n_arrivals) : "memory");
}
/* Barriers that were made are seen by copies and other threads after this and a __syncthreads. */
__device__ __forceinline__ void kri_barrier_init_done() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void kri_barrier_arrive(uint32_t at) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}
/* An arrival, and n_bytes of copies to come. */
__device__ __forceinline__ void kri_barrier_expect(uint32_t at, uint32_t n_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(n_bytes)
                 : "memory");
}
/* Waits for the end of the phase of this parity: the first is 0. */
__device__ __forceinline__ void kri_barrier_wait(uint32_t at, uint32_t parity) {
    asm volatile("{\n.reg .pred p;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra done;\nbra again;\ndone:\n}" ::"r"(at), "r"(parity) : "memory");
}

/* ---- copies of boxes ------------------------------------------------------------------------- */

/* The box at these coordinates (the fastest first) of a tensor of four dimensions. What lies
 * outside of the tensor becomes zeros, and counts as copied. */
__device__ __forceinline__ void kri_copy_box(uint32_t to, const void *map, uint32_t x, uint32_t y,
                                             uint32_t z, uint32_t w, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to), "l"(map), "r"(x), "r"(y),
                 "r"(z), "r"(w), "r"(barrier) : "memory");
}
/* What this thread wrote to shared memory is seen by products and copies that follow a barrier. */
__device__ __forceinline__ void kri_fence_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- named barriers: id 1 to 15, n_threads of both kinds of call ----------------------------- */

__device__ __forceinline__ void kri_named_wait(uint32_t id, uint32_t n_threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}
__device__ __forceinline__ void kri_named_arrive(uint32_t id, uint32_t n_threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

/* ---- registers of a warp group --------------------------------------------------------------- */

template <int N> __device__ __forceinline__ void kri_registers_more() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void kri_registers_less() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

/* ---- products --------------------------------------------------------------------------------
 * Matrices in shared memory are made of atoms of 8 rows of 128 bytes, which are swizzled in pieces
 * of 16 bytes and begin at multiples of 1024. `rows` is the distance from 8 rows to the next 8,
 * `columns` that from an atom to the one beside it (transposed operands only). */

__device__ __forceinline__ uint64_t kri_matrix(uint32_t at, uint32_t rows, uint32_t columns) {
    return (uint64_t)(at >> 4 & 0x3fff) | (uint64_t)(columns >> 4) << 16 |
           (uint64_t)(rows >> 4) << 32 | (uint64_t)1 << 62;
}

/* Before the first product of a group: registers are ready. */
__device__ __forceinline__ void kri_product_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void kri_product_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* Until at most N_LEFT groups are under way. c: the results that are ready then. */
template <int N_LEFT, int N> __device__ __forceinline__ void kri_product_wait(float (&c)[N]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N_LEFT) : "memory");
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i])::"memory");
}

#define KRI_C8(i)                                                                                \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]),  \
        "+f"(c[i + 6]), "+f"(c[i + 7])
#define KRI_C32(i) KRI_C8(i), KRI_C8(i + 8), KRI_C8(i + 16), KRI_C8(i + 24)
#define KRI_R32_0                                                                                \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
    "%25,%26,%27,%28,%29,%30,%31"
#define KRI_R8_32 "%32,%33,%34,%35,%36,%37,%38,%39"
#define KRI_R32_32                                                                               \
    KRI_R8_32 ",%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,"    \
              "%59,%60,%61,%62,%63"
#define KRI_R64_64                                                                               \
    "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,"   \
    "%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,"     \
    "%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,"      \
    "%123,%124,%125,%126,%127"

/* c [64, N] of a warp group (+)= a b of f16, 16 deep. kri_product_shared: a [64, 16] and b [N, 16]
 * in rows in shared memory. kri_product_rows: a in registers, as c lies there; b [16, N]. */
template <int N> __device__ void kri_product_shared(float (&c)[N / 2], uint64_t a, uint64_t b,
                                                    bool add);
template <int N> __device__ void kri_product_rows(float (&c)[N / 2], const uint32_t *a,
                                                  uint64_t b);

#define KRI_PRODUCTS(N, REGISTERS, OPERANDS, A, B, ADD, A0, A1, A2, A3, RB)                      \
    template <>                                                                                  \
    __device__ __forceinline__ void kri_product_shared<N>(float(&c)[N / 2], uint64_t a,          \
                                                          uint64_t b, bool add) {                \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\n"                            \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" REGISTERS "}, "  \
                     A ", " B ", p, 1, 1, 0, 0;\n}" : OPERANDS                                   \
                     : "l"(a), "l"(b), "r"((int)add));                                           \
    }                                                                                            \
    template <>                                                                                  \
    __device__ __forceinline__ void kri_product_rows<N>(float(&c)[N / 2], const uint32_t *a,     \
                                                        uint64_t b) {                            \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                  \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" REGISTERS "}, "  \
                     "{" A0 "," A1 "," A2 "," A3 "}, " RB ", p, 1, 1, 1;\n}" : OPERANDS          \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                      \
    }
#define KRI_COMMA ,
KRI_PRODUCTS(64, KRI_R32_0, KRI_C32(0), "%32", "%33", "%34", "%32", "%33", "%34", "%35", "%36")
KRI_PRODUCTS(80, KRI_R32_0 "," KRI_R8_32, KRI_C32(0) KRI_COMMA KRI_C8(32), "%40", "%41", "%42",
             "%40", "%41", "%42", "%43", "%44")
KRI_PRODUCTS(128, KRI_R32_0 "," KRI_R32_32, KRI_C32(0) KRI_COMMA KRI_C32(32), "%64", "%65",
             "%66", "%64", "%65", "%66", "%67", "%68")
KRI_PRODUCTS(256, KRI_R32_0 "," KRI_R32_32 "," KRI_R64_64,
             KRI_C32(0) KRI_COMMA KRI_C32(32) KRI_COMMA KRI_C32(64) KRI_COMMA KRI_C32(96),
             "%128", "%129", "%130", "%128", "%129", "%130", "%131", "%132")
#undef KRI_PRODUCTS

/* ---- arithmetic ------------------------------------------------------------------------------ */

/* 2^x, to 2 units in the last place; results below f32's normal range are 0. */
__device__ __forceinline__ float kri_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* tanh(x) = 1 - 2 / (e^2x + 1), to about 1e-7 */
__device__ __forceinline__ float kri_tanh(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(kri_exp2(x * 2.8853900817779268f) + 1.0f));
    return fmaf(-2.0f, y, 1.0f);
}

#endif
