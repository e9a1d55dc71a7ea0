/* cpu.h: what this machine runs, and the kernel table for it.
 * Levels, ascending: ref; avx2 (AVX2, FMA, F16C, BMI2); avx512 (F, VL, BW, DQ, VNNI on top). */
#ifndef KRI_CPU_CPU_H
#define KRI_CPU_CPU_H

#include "ops/kernels.h"

typedef enum kri_isa_e { KRI_ISA_REF, KRI_ISA_AVX2, KRI_ISA_AVX512, KRI_N_ISA } kri_isa_t;

/* Highest level of CPU and operating system (CPUID and XGETBV). */
kri_isa_t kri_isa_detect(void);
/* Whether the CPU offers AVX512_BF16 on top of level avx512. Not a level: only linear_bf16 has a
 * form for it, and its activations are rounded to bf16 (kernels.h). */
int kri_isa_has_bf16(void);
const char *kri_isa_name(kri_isa_t isa);
/* false for an unknown name. */
int kri_isa_from_name(const char *name, kri_isa_t *isa);
/* The table for min(best, isa_max); isa_max NULL = best. KR_E_INVALID_ARG for an unknown name
 * (param "isa"); a level above the machine's best is lowered, never raised. */
kr_status_t kri_cpu_kernels(const char *isa_max, kri_kernels_t *kernels, kr_error_t *error);

#endif
