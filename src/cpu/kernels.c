/* kernels.c: the kernel table of this machine: references first, then every level of impl.def (or
 * impl_arm.def) up to the one wanted. A slot without a row at some level keeps the level below, so
 * a new kernel is one function and one row. */
#include <stdio.h>

#include "base/error.h"
#include "cpu/cpu.h"
#if defined(__x86_64__) || defined(__aarch64__)
#include "cpu/impl.h"
#endif

static void table_fill(kri_isa_t isa, kri_kernels_t *kernels) {
    kri_kernels_ref(kernels);
#define KR_IMPL(slot, level, LEVEL)                                                              \
    if (isa >= KRI_ISA_##LEVEL) kernels->slot = kri_##slot##_##level;
#if defined(__x86_64__)
#include "cpu/impl.def"
    if (isa >= KRI_ISA_AVX512 && kri_isa_has_bf16()) {
        kernels->linear_bf16 = kri_linear_bf16_avx512bf16;
    }
#elif defined(__aarch64__)
#include "cpu/impl_arm.def"
#endif
    kernels->isa = kri_isa_name(isa);
#if defined(__x86_64__)
    kernels->has_tiles = isa >= KRI_ISA_AMX;
    kernels->has_dot16 = isa >= KRI_ISA_AVX512; /* vpdpwssd */
#endif
}

/* "ref, avx2, avx512" */
static void levels_write(kri_isa_t best, char *text, size_t n_bytes) {
    size_t at = 0;
    for (unsigned i = 0; i <= (unsigned)best; i++) {
        const int n = snprintf(text + at, n_bytes - at, "%s%s", i ? ", " : "",
                               kri_isa_name((kri_isa_t)i));
        if (n < 0 || (size_t)n >= n_bytes - at) return;
        at += (size_t)n;
    }
}

kr_status_t kri_cpu_kernels(const char *isa_max, kri_kernels_t *kernels, kr_error_t *error) {
    const kri_isa_t best = kri_isa_detect();
    kri_isa_t wanted = best;
    if (isa_max != NULL && !kri_isa_from_name(isa_max, &wanted)) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "isa", "unknown ISA level");
    }
    if (wanted > best) {
        char levels[64];
        levels_write(best, levels, sizeof levels);
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "isa", "isa %s: this machine has %s",
                        kri_isa_name(wanted), levels);
    }
    table_fill(wanted, kernels);
    return KR_OK;
}
