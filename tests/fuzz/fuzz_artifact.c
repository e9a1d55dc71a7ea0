/* fuzz_artifact.c: any bytes as a file of the artifact cache. What is accepted must be exactly
 * what a writer of that key would have written, so a single flipped bit must make it unusable. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/artifact_cache.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static const char *const keys[] = {"", "k", "seed key", "spm-merges/1 size=1 mtime=2"};
    unsigned n_accepted = 0;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (kri_artifact_verify(data, n_bytes, keys[i]) != KR_OK) continue;
        n_accepted++;
        uint8_t *copy = malloc(n_bytes);
        if (!copy) return 0;
        memcpy(copy, data, n_bytes);
        copy[n_bytes - 1] ^= 1;
        if (kri_artifact_verify(copy, n_bytes, keys[i]) == KR_OK) abort();
        free(copy);
    }
    if (n_accepted > 1) abort(); /* a file belongs to one key */
    return 0;
}
