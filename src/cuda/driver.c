/* driver.c: see driver.h. */
#include "cuda/driver.h"

#include <string.h>

#include "base/error.h"
#include "base/os.h"

typedef struct call_s {
    const char *symbol;
    size_t offset;
} call_t;

static const call_t calls[] = {
#define KR_CUDA_CALL(field, symbol, parameters) {#symbol, offsetof(kri_cuda_driver_t, field)},
#include "cuda/driver.def"
};

kr_status_t kri_cuda_driver_open(kri_cuda_driver_t *driver, kr_error_t *error) {
    void *library = kri_library_open("libcuda.so.1");
    if (!library) {
        return KRI_FAIL(error, KR_E_NOT_FOUND, "device",
                        "no CUDA driver on this machine (libcuda.so.1 was not found)");
    }
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        void *symbol = kri_library_symbol(library, calls[i].symbol);
        if (!symbol) {
            return KRI_FAIL(error, KR_E_UNSUPPORTED, "device", "the CUDA driver is too old: no %s",
                            calls[i].symbol);
        }
        memcpy((char *)driver + calls[i].offset, &symbol, sizeof symbol);
    }
    return KR_OK;
}

const char *kri_cuda_error_name(const kri_cuda_driver_t *driver, int code) {
    const char *name = NULL;
    return driver->error_name(code, &name) == KRI_CUDA_SUCCESS && name ? name : "unknown error";
}
