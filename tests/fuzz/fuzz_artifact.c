/* fuzz_artifact.c: any bytes as a file of the artifact cache, and what is behind the header as the
 * index of a packed image. What is accepted must be exactly what a writer of that key would have
 * written, so a single flipped bit in header or index must make it unusable; and an index that is
 * accepted must describe tensors inside its data. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/artifact_cache.h"
#include "model/packed_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void check_index(const uint8_t *index, size_t index_bytes, uint64_t data_bytes) {
    const uint8_t *hashes = NULL;
    if (kri_image_index_check(index, index_bytes, data_bytes, &hashes) != KR_OK) return;
    const uint64_t n_blocks = (data_bytes + KRI_HUGE_PAGE_BYTES - 1) / KRI_HUGE_PAGE_BYTES;
    if (hashes < index || (uint64_t)(index + index_bytes - hashes) != n_blocks * 8) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static const char *const keys[] = {"", "k", "seed key", "packed/1 layout=1 content=0"};
    unsigned n_accepted = 0;
    kri_artifact_t artifact = {0};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (kri_artifact_verify(data, n_bytes, keys[i], &artifact) != KR_OK) continue;
        n_accepted++;
        const size_t n_checked = KRI_ARTIFACT_HEADER_BYTES + artifact.index_bytes;
        if (n_checked > n_bytes || artifact.data_bytes > n_bytes - n_checked) abort();
        uint8_t *copy = malloc(n_bytes);
        if (!copy) return 0;
        memcpy(copy, data, n_bytes);
        copy[n_checked - 1] ^= 1;
        kri_artifact_t ignored = {0};
        if (kri_artifact_verify(copy, n_bytes, keys[i], &ignored) == KR_OK) abort();
        free(copy);
        check_index(artifact.index, artifact.index_bytes, artifact.data_bytes);
    }
    if (n_accepted > 1) abort(); /* a file belongs to one key */
    if (n_accepted == 1 && kri_artifact_verify(data, n_bytes, NULL, &artifact) != KR_OK) abort();
    /* The same bytes as an index, past the hashes that a fuzzer cannot forge. */
    if (n_bytes < 16) return 0;
    uint64_t data_bytes = 0;
    for (int i = 0; i < 8; i++) data_bytes |= (uint64_t)data[8 + i] << (8 * i);
    check_index(data, n_bytes, data_bytes);
    if (n_bytes > KRI_ARTIFACT_HEADER_BYTES) {
        check_index(data + KRI_ARTIFACT_HEADER_BYTES, n_bytes - KRI_ARTIFACT_HEADER_BYTES,
                    KRI_HUGE_PAGE_BYTES + 1);
    }
    return 0;
}
