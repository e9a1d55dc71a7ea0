/* cuda_util.h: what the tests of the device share: the device or a skip, memory there and back. */
#ifndef KR_TESTS_CUDA_UTIL_H
#define KR_TESTS_CUDA_UTIL_H

#include "cuda/device.h"
#include "test.h"

/* The device of the process, kept open; NULL (said aloud) where there is none that can be used. */
static inline kri_cuda_t *cuda_or_null(void) {
    static kri_cuda_t *cuda;
    static int asked;
    kr_error_t error;
    kr_error_init(&error);
    if (!asked && kri_cuda_open(&cuda, &error) != KR_OK) fprintf(stderr, "%s\n", error.message);
    asked = 1;
    return cuda;
}

/* On the emulator of tests/cuda/emulator, which takes its time. */
static inline int is_emulated_cuda(void) { return getenv("KR_TEST_CUDA") != NULL; }

#define NEED_CUDA()                                                                              \
    do {                                                                                         \
        if (!cuda_or_null()) SKIP("no CUDA device");                                             \
    } while (0)

#endif
