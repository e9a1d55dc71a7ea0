/* kr_machine.c: what this machine offers. */
#include "base/os.h"
#include "cpu/cpu.h"

const char *kr_isa_best(void) { return kri_isa_name(kri_isa_detect()); }

const char *kr_isa_details(void) {
    return kri_isa_has_bf16() ? "avx512+bf16" : kr_isa_best();
}

uint32_t kr_threads_default(void) { return kri_cpu_count(); }
