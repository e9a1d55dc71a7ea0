/* bench_peak.h: what the arithmetic units of one core give at best, measured by loops that touch
 * registers only: the ceilings that kernel figures are held against. */
#ifndef KRI_BENCH_PEAK_H
#define KRI_BENCH_PEAK_H

#include "cpu/cpu.h"

typedef struct kri_bench_peak_s {
    double fma_gflops; /* f32 multiply-adds, two operations each; 0 = not measured here */
    double int8_gops;  /* u8 x s8 dot products, two operations each; 0 = the level has none */
} kri_bench_peak_t;

/* One thread, the best of a few runs of about 2 ms each. A level that this machine has not got
 * (or for which there is no loop) gives zeros. */
void kri_bench_peak(kri_isa_t level, kri_bench_peak_t *peak);

#endif
