/* emulated.h: the kernels of this folder compiled over tiles in ordinary memory (tile.h), and the
 * table that holds them: for tests on machines that have AVX-512 with BF16 but no AMX. */
#ifndef KRI_CPU_AMX_EMULATED_H
#define KRI_CPU_AMX_EMULATED_H

#include "ops/kernels.h"

#define KRI_EMULATED_avx2(slot)
#define KRI_EMULATED_avx512(slot)
#define KRI_EMULATED_amx(slot) __typeof__(kri_##slot##_ref) kri_##slot##_amx_emulated;
#define KR_IMPL(slot, isa, ISA) KRI_EMULATED_##isa(slot)
#include "cpu/impl.def"
#undef KRI_EMULATED_amx

/* Puts the emulated kernels over those of a table of level avx512. */
static inline void kri_amx_emulated_fill(kri_kernels_t *kernels) {
#define KRI_EMULATED_amx(slot) kernels->slot = kri_##slot##_amx_emulated;
#define KR_IMPL(slot, isa, ISA) KRI_EMULATED_##isa(slot)
#include "cpu/impl.def"
#undef KRI_EMULATED_amx
    kernels->has_tiles = 1;
}

#endif
