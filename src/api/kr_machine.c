/* kr_machine.c: what this machine offers. */
#include "base/os.h"
#include "cpu/cpu.h"

const char *kr_isa_best(void) { return kri_isa_name(kri_isa_detect()); }

uint32_t kr_threads_default(void) { return kri_cpu_count(); }
