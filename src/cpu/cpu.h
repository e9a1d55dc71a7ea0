/* cpu.h: what this machine runs, and the kernel table for it.
 * Levels, ascending: ref; on x86-64 avx2 (AVX2, FMA, F16C, BMI2), avx512 (F, VL, BW, DQ, VNNI on
 * top), amx (AMX-TILE, AMX-BF16, AVX512_BF16 on top and the system's permission); on AArch64 neon
 * (ARMv8.0), dotprod (byte dot product), i8mm (byte matrix product). A build knows the levels of
 * its own architecture only. */
#ifndef KRI_CPU_CPU_H
#define KRI_CPU_CPU_H

#include "ops/kernels.h"

#if defined(__aarch64__)
typedef enum kri_isa_e {
    KRI_ISA_REF, KRI_ISA_NEON, KRI_ISA_DOTPROD, KRI_ISA_I8MM, KRI_N_ISA
} kri_isa_t;
#else
typedef enum kri_isa_e {
    KRI_ISA_REF, KRI_ISA_AVX2, KRI_ISA_AVX512, KRI_ISA_AMX, KRI_N_ISA
} kri_isa_t;
#endif

/* Highest level of CPU and operating system (CPUID and XGETBV; the kernel's HWCAP on ARM). */
kri_isa_t kri_isa_detect(void);
/* Whether the CPU offers AVX512_BF16 on top of level avx512. Not a level: only linear_bf16 has a
 * form for it, and its activations are rounded to bf16 (kernels.h). */
int kri_isa_has_bf16(void);
const char *kri_isa_name(kri_isa_t isa);
/* false for an unknown name. */
int kri_isa_from_name(const char *name, kri_isa_t *isa);
/* The table of level isa_max; NULL = best. KR_E_INVALID_ARG for an unknown name
 * (param "isa"), KR_E_UNSUPPORTED for a level above the machine's best. */
kr_status_t kri_cpu_kernels(const char *isa_max, kri_kernels_t *kernels, kr_error_t *error);

#endif
