/* bench_peak.c: see bench_peak.h. Each loop keeps enough independent sums to hide the latency of
 * the instruction on all ports (12 of them); an empty asm makes the compiler believe that every
 * sum changes, so that nothing is hoisted or folded. Written with vector types and intrinsics of
 * one file, since the flags of an ISA folder are not ours to use here. */
#include "bench_peak.h"

#include <stdint.h>
#include <string.h>

#include "bench_util.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define N_SUMS 12
#define N_TIMES 5
#define TIME_NS_MIN 2000000u

typedef void loop_fn(uint64_t n_steps);

#define EACH_SUM(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

/* Operations per second of a loop whose step does `step_ops` operations. */
static double measure(loop_fn *loop, double step_ops) {
    uint64_t n_steps = 1000, best = 0;
    for (int i = 0; i < N_TIMES;) {
        uint64_t start = kri_bench_thread_ns();
        loop(n_steps);
        uint64_t ns = kri_bench_thread_ns() - start;
        if (ns < TIME_NS_MIN) {
            n_steps *= 2; /* not yet a time worth reading */
            continue;
        }
        if (best == 0 || ns < best) best = ns;
        i++;
    }
    return step_ops * (double)n_steps / (double)best;
}

/* A loop over sums s0 .. s11 (named, not an array: an array may end up in memory). */
#define DEFINE_LOOP(name, target, type, reg, init, step)                                         \
    target static void name(uint64_t n_steps) {                                                  \
        type s0 = init, s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0, s8 = s0,  \
             s9 = s0, s10 = s0, s11 = s0;                                                        \
        const type a = s0;                                                                       \
        for (uint64_t i = 0; i < n_steps; i++) {                                                 \
            EACH_SUM(step)                                                                       \
            __asm__ volatile("" : "+" reg(s0), "+" reg(s1), "+" reg(s2), "+" reg(s3),            \
                             "+" reg(s4), "+" reg(s5), "+" reg(s6), "+" reg(s7), "+" reg(s8),    \
                             "+" reg(s9), "+" reg(s10), "+" reg(s11));                           \
        }                                                                                        \
    }
#define TARGET(text) __attribute__((target(text)))

typedef float vec4_t __attribute__((vector_size(16)));
#define VEC4_ONE ((vec4_t){1, 1, 1, 1})

#if defined(__x86_64__)

/* Baseline: a multiplication and an addition of 16 bytes. */
#define STEP(k) s##k = s##k * a + a;
DEFINE_LOOP(fma_baseline, , vec4_t, "x", VEC4_ONE, STEP)
#undef STEP
#define STEP(k) s##k = _mm256_fmadd_ps(s##k, a, a);
DEFINE_LOOP(fma_avx2, TARGET("avx2,fma"), __m256, "x", _mm256_set1_ps(1), STEP)
#undef STEP
/* Without dot-product instructions: u8 x s8 to pairs of 16 bits, summed there (as kernels of
 * 4-bit weights do), the widening to 32 bits left out as rare. The operand changes with the sum,
 * or the product would be computed once. */
#define STEP(k) s##k = _mm256_add_epi16(s##k, _mm256_maddubs_epi16(s##k, a));
DEFINE_LOOP(int8_avx2, TARGET("avx2"), __m256i, "x", _mm256_set1_epi8(1), STEP)
#undef STEP
#define STEP(k) s##k = _mm512_fmadd_ps(s##k, a, a);
DEFINE_LOOP(fma_avx512, TARGET("avx512f"), __m512, "v", _mm512_set1_ps(1), STEP)
#undef STEP
#define STEP(k) s##k = _mm512_dpbusd_epi32(s##k, a, a);
DEFINE_LOOP(int8_avx512, TARGET("avx512f,avx512vnni"), __m512i, "v", _mm512_set1_epi32(0x01010101),
            STEP)
#undef STEP

/* Four sums that do not wait for each other. Only called at level amx; the configuration is that of
 * src/cpu/amx/tile.h: all tiles full. */
#define TILE_OPS (4.0 * 2 * 16 * 16 * 32)
TARGET("amx-tile,amx-bf16") static void tile_amx(uint64_t n_steps) {
    _Alignas(64) uint8_t config[64] = {1};
    for (unsigned i = 0; i < 8; i++) {
        config[16 + 2 * i] = 64;
        config[48 + i] = 16;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
    for (uint64_t i = 0; i < n_steps; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}

#else

#define STEP(k) s##k = s##k * a + a;
DEFINE_LOOP(fma_baseline, , vec4_t, "w", VEC4_ONE, STEP)
#undef STEP

#endif

typedef struct peak_row_s {
    const char *isa;
    loop_fn *fma, *int8, *tile;
    double fma_ops, int8_ops; /* per instruction */
} peak_row_t;

static const peak_row_t rows[] = {
    {"ref", fma_baseline, NULL, NULL, 8, 0},
#if defined(__x86_64__)
    {"avx2", fma_avx2, int8_avx2, NULL, 16, 64},
    {"avx512", fma_avx512, int8_avx512, NULL, 32, 128},
    {"amx", fma_avx512, int8_avx512, tile_amx, 32, 128},
#endif
#if defined(__aarch64__)
    {.isa = "neon", .fma = fma_baseline, .fma_ops = 8},
    {.isa = "dotprod", .fma = fma_baseline, .fma_ops = 8},
    {.isa = "i8mm", .fma = fma_baseline, .fma_ops = 8},
#endif
};

void kri_bench_peak(kri_isa_t level, kri_bench_peak_t *peak) {
    kri_kernels_t kernels;
    memset(peak, 0, sizeof *peak);
    if (kri_cpu_kernels(kri_isa_name(level), &kernels, NULL) != KR_OK) return;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (strcmp(rows[i].isa, kernels.isa) != 0) continue;
        if (rows[i].fma != NULL) peak->fma_gflops = measure(rows[i].fma, N_SUMS * rows[i].fma_ops);
#if defined(__x86_64__)
        if (rows[i].tile != NULL) peak->tile_gflops = measure(rows[i].tile, TILE_OPS);
#endif
        if (rows[i].int8 != NULL) {
            peak->int8_gops = measure(rows[i].int8, N_SUMS * rows[i].int8_ops);
        }
    }
}
