/* impl.h: prototypes of all ISA variants, made from impl.def and impl_arm.def. The files of the ISA
 * folders include it, so that a variant whose signature differs from its reference does not
 * compile. */
#ifndef KRI_CPU_IMPL_H
#define KRI_CPU_IMPL_H

#include "ops/kernels.h"

#define KR_IMPL(slot, isa, ISA) __typeof__(kri_##slot##_ref) kri_##slot##_##isa;
#if defined(__aarch64__)
#include "cpu/impl_arm.def"
#else
#include "cpu/impl.def"
/* Level avx512 with AVX512_BF16 besides: numerics of kri_linear_bf16_pair_ref. */
kri_linear_fn kri_linear_bf16_avx512bf16;
#endif

#endif
