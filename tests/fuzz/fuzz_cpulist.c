/* fuzz_cpulist.c: any bytes as a kernel list of CPUs, into masks of several sizes. A list that is
 * taken sets no bit past its mask, and means the same in a larger one. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/os_cpu.h"

#define N_WORDS (KRI_CPUS_MAX / 64)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static uint64_t small[3], large[N_WORDS];
    char *text = malloc(n_bytes + 1); /* exact size: a read past the end is seen */
    if (text == NULL) return 0;
    if (n_bytes > 0) memcpy(text, data, n_bytes);
    small[2] = 77;
    const bool in_small = kri_cpu_list_parse(text, n_bytes, small, 2);
    const bool in_large = kri_cpu_list_parse(text, n_bytes, large, N_WORDS);
    if (small[2] != 77) abort();
    if (in_small && (!in_large || memcmp(small, large, 2 * sizeof *small) != 0)) abort();
    free(text);
    return 0;
}
