/* kernels.c: the kernel table of this machine: references first, then every level of impl.def up
 * to the one wanted. A slot without a row at some level keeps the level below, so a new kernel is
 * one function and one row. */
#include "base/error.h"
#include "cpu/cpu.h"
#if defined(__x86_64__)
#include "cpu/impl.h"
#endif

static void table_fill(kri_isa_t isa, kri_kernels_t *kernels) {
    kri_kernels_ref(kernels);
#if defined(__x86_64__)
#define KR_IMPL(slot, level, LEVEL)                                                              \
    if (isa >= KRI_ISA_##LEVEL) kernels->slot = kri_##slot##_##level;
#include "cpu/impl.def"
    if (isa >= KRI_ISA_AVX512 && kri_isa_has_bf16()) {
        kernels->linear_bf16 = kri_linear_bf16_avx512bf16;
    }
#endif
    kernels->isa = kri_isa_name(isa);
}

kr_status_t kri_cpu_kernels(const char *isa_max, kri_kernels_t *kernels, kr_error_t *error) {
    const kri_isa_t best = kri_isa_detect();
    kri_isa_t wanted = best;
    if (isa_max != NULL && !kri_isa_from_name(isa_max, &wanted)) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "isa", "unknown ISA level");
    }
    table_fill(wanted < best ? wanted : best, kernels);
    return KR_OK;
}
