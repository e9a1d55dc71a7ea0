/* kr_machine.c: what this machine offers. */
#include <string.h>

#include "base/os.h"
#include "base/threads.h"
#include "cpu/cpu.h"

const char *kr_isa_best(void) { return kri_isa_name(kri_isa_detect()); }

const char *kr_isa_details(void) {
    const char *best = kr_isa_best(); /* amx has AVX512_BF16 by definition */
    return kri_isa_has_bf16() && strcmp(best, "avx512") == 0 ? "avx512+bf16" : best;
}

uint32_t kr_threads_default(void) { return kri_cpu_count(); }

_Static_assert((int)KR_PIN_AUTO == (int)KRI_PIN_AUTO && (int)KR_PIN_ON == (int)KRI_PIN_ON &&
                   (int)KR_PIN_OFF == (int)KRI_PIN_OFF,
               "the pool's choices are the public ones");

kr_status_t kr_threads_pin(int32_t pin) {
    if (pin < KR_PIN_AUTO || pin > KR_PIN_OFF) return KR_E_INVALID_ARG;
    kri_pool_pin((kri_pin_t)pin);
    return KR_OK;
}

uint32_t kr_threads_pinned(void) { return kri_pool_n_pinned(); }
