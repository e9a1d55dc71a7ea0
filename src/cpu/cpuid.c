/* cpuid.c: the highest ISA level that both the CPU and the operating system offer. Baseline code:
 * nothing here may be compiled with a feature it is about to ask for. A feature bit alone is not
 * enough: the system must also save the registers (XGETBV), or the first wide instruction traps. */
#include "base/os.h"
#include "cpu/cpu.h"

#include <string.h>

#if defined(__aarch64__)
static const char *const isa_names[KRI_N_ISA] = {"ref", "neon", "dotprod", "i8mm"};
#else
static const char *const isa_names[KRI_N_ISA] = {"ref", "avx2", "avx512", "amx"};
#endif

#if defined(__x86_64__)

#include <cpuid.h>

typedef struct leaf_s {
    unsigned eax, ebx, ecx, edx;
} leaf_t;

static leaf_t leaf_read(unsigned leaf, unsigned sub_leaf) {
    leaf_t l = {0, 0, 0, 0};
    /* Answers 0 for a leaf above the CPU's highest, which leaves every feature absent. */
    (void)__get_cpuid_count(leaf, sub_leaf, &l.eax, &l.ebx, &l.ecx, &l.edx);
    return l;
}

/* XCR0: the register states that the operating system saves. Needs OSXSAVE. */
static unsigned xcr0_read(void) {
    unsigned lo = 0, hi = 0;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0u));
    (void)hi;
    return lo;
}

static int has_all(unsigned reg, unsigned bits) {
    return (reg & bits) == bits;
}

kri_isa_t kri_isa_detect(void) {
    const unsigned ymm_state = 0x06u, zmm_state = 0xe6u, tile_state = 0x60000u;
    const leaf_t l1 = leaf_read(1, 0);
    if (!has_all(l1.ecx, bit_OSXSAVE | bit_AVX)) return KRI_ISA_REF;
    const unsigned xcr0 = xcr0_read();
    const leaf_t l7 = leaf_read(7, 0);

    if (!has_all(xcr0, ymm_state) || !has_all(l1.ecx, bit_FMA | bit_F16C) ||
        !has_all(l7.ebx, bit_AVX2 | bit_BMI2)) {
        return KRI_ISA_REF;
    }
    if (!has_all(xcr0, zmm_state) || !has_all(l7.ecx, bit_AVX512VNNI) ||
        !has_all(l7.ebx, bit_AVX512F | bit_AVX512VL | bit_AVX512BW | bit_AVX512DQ)) {
        return KRI_ISA_AVX2;
    }
    /* bit 24 AMX-TILE, 22 AMX-BF16 */
    if (!has_all(xcr0, tile_state) || !has_all(l7.edx, 1u << 22 | 1u << 24) ||
        !has_all(leaf_read(7, 1).eax, bit_AVX512BF16) || !kri_cpu_permit_tiles()) {
        return KRI_ISA_AVX512;
    }
    return KRI_ISA_AMX;
}

int kri_isa_has_bf16(void) {
    return kri_isa_detect() >= KRI_ISA_AVX512 && has_all(leaf_read(7, 1).eax, bit_AVX512BF16);
}

#elif defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>

/* The feature registers of ARM are the kernel's; it shows programs what it saves and allows. */
kri_isa_t kri_isa_detect(void) {
    const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
    if ((caps & HWCAP_ASIMD) == 0) return KRI_ISA_REF;
    if ((caps & HWCAP_ASIMDDP) == 0) return KRI_ISA_NEON;
    return (caps2 & HWCAP2_I8MM) == 0 ? KRI_ISA_DOTPROD : KRI_ISA_I8MM;
}

#else

kri_isa_t kri_isa_detect(void) {
    return KRI_ISA_REF;
}

#endif

#if !defined(__x86_64__)
int kri_isa_has_bf16(void) { return 0; }
#endif

const char *kri_isa_name(kri_isa_t isa) {
    return (unsigned)isa < KRI_N_ISA ? isa_names[isa] : "?";
}

int kri_isa_from_name(const char *name, kri_isa_t *isa) {
    if (name == NULL) return 0;
    for (unsigned i = 0; i < KRI_N_ISA; i++) {
        if (strcmp(name, isa_names[i]) == 0) {
            *isa = (kri_isa_t)i;
            return 1;
        }
    }
    return 0;
}
