/* tiny.h: opening the tiny random models of tiny_model.h through the public API. */
#ifndef KR_TEST_TINY_H
#define KR_TEST_TINY_H

#include <stdlib.h>
#include <unistd.h>

#include "models.h"
#include "tiny_model.h"

/* Writes the bytes to a temporary file and opens it; the file is gone afterwards. */
static inline kr_status_t open_bytes(const gguf_bytes_t *bytes, const kr_model_params_t *params,
                                     kr_model_t *model, kr_error_t *error) {
    char path[] = "/tmp/kr-test-XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(gguf_write(bytes, path), 0);
    const kr_status_t status = kr_model_open(path, params, model, error);
    unlink(path);
    return status;
}

static inline kr_model_t open_tiny_config(const tiny_config_t *config) {
    kr_model_params_t params;
    kr_model_t model = NULL;
    kr_error_t error;
    gguf_bytes_t file = tiny_model(config);
    kr_model_params_init(&params);
    kr_error_init(&error);
    params.n_threads = 1;
    if (open_bytes(&file, &params, &model, &error) != KR_OK) fail_msg("%s", error.message);
    free(file.data);
    return model;
}

static inline kr_model_t open_tiny(const char *preset) {
    const tiny_config_t config = tiny_config(preset);
    return open_tiny_config(&config);
}

/* Whether this machine has a level. */
static inline int has_level(const char *isa) {
    static const char *const order[] = {"ref", "avx2", "avx512", "amx", "neon", "dotprod", "i8mm"};
    size_t wanted = 0, best = 0;
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        if (strcmp(order[i], isa) == 0) wanted = i;
        if (strcmp(order[i], kr_isa_best()) == 0) best = i;
    }
    return wanted <= best && (wanted == 0 || (wanted >= 4) == (best >= 4));
}

/* Equality of bits is asked of invariant sessions. */
static inline kr_session_t tiny_session(kr_model_t model, kr_dtype_t kv, const char *isa,
                                        uint32_t n_seqs, uint32_t n_threads) {
    kr_session_params_t params;
    kr_session_params_init(&params);
    params.kv_dtype = kv;
    params.isa = isa;
    params.n_seqs = n_seqs;
    params.n_threads = n_threads;
    params.invariant = KR_INVARIANT_ON;
    return open_session(model, &params);
}

#endif
