/* fuzz_shm_header.c: the header of a segment of shared memory, and a whole one behind a descriptor:
 * whatever another process has written. What is accepted is in bounds, and written again it is the
 * same bytes. */
#define _GNU_SOURCE /* memfd_create */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rpc/shm.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const rpc_shm_head_t *head) {
    uint64_t n = rpc_dtype_bytes(head->dtype);
    if (n == 0 || rpc_dtype_name(head->dtype) == NULL || head->generation == 0) abort();
    if (head->n_dims < 1 || head->n_dims > RPC_SHM_DIMS_MAX) abort();
    for (uint32_t i = 0; i < head->n_dims; i++) n *= head->dims[i];
    if (n != head->n_bytes || n == 0 || n > RPC_SHM_BYTES_MAX) abort();
}

static void load(const uint8_t *data, size_t size) {
    rpc_shm_head_t head;
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    if (rpc_shm_load_head(fd, &head) == NULL) {
        if (head.n_bytes + RPC_SHM_HEADER_BYTES != size) abort();
        uint8_t *out = malloc((size_t)head.n_bytes);
        if (out == NULL || !rpc_shm_load(fd, &head, out)) abort();
        if (memcmp(out, data + RPC_SHM_HEADER_BYTES, (size_t)head.n_bytes) != 0) abort();
        if (ftruncate(fd, (off_t)size - 1) != 0 || rpc_shm_load(fd, &head, out)) abort();
        free(out);
    }
    (void)close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    rpc_shm_head_t head, again;
    uint8_t bytes[RPC_SHM_HEADER_BYTES];
    const char *why = rpc_shm_head_read(data, size, &head);
    if (why != NULL && why[0] == '\0') abort();
    if (why == NULL) {
        check(&head);
        rpc_shm_head_put(&head, bytes);
        if (memcmp(bytes, data, sizeof bytes) != 0) abort();
        if (rpc_shm_head_read(bytes, sizeof bytes, &again) != NULL) abort();
        if (!rpc_shm_head_is_equal(&head, &again)) abort();
    }
    if (size <= 65536) load(data, size);
    if (size < RPC_SHM_NAME_MAX) { /* a name is another thing that may hold anything */
        char name[RPC_SHM_NAME_MAX] = "";
        memcpy(name, data, size);
        const int fd = rpc_shm_open(name);
        if (fd >= 0) (void)close(fd);
    }
    return 0;
}
