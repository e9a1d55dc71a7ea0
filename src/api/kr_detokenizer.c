/* kr_detokenizer.c: the incremental detokenizer, which keeps its model alive. */
#include "base/alloc.h"
#include "base/error.h"
#include "model/model.h"

struct kr_detokenizer_s {
    kr_model_t model;
    kri_detok_t *detok;
};

kr_status_t kr_detokenizer_create(kr_model_t model, const char *const *stops, size_t n_stops,
                                  kr_detokenizer_t *detokenizer, kr_error_t *error) {
    if (!model || !detokenizer) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, model ? "detokenizer" : "model",
                        "%s is NULL", model ? "detokenizer" : "model");
    }
    kr_detokenizer_t d = kri_calloc(1, sizeof(*d), "detokenizer");
    if (!d) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the detokenizer");
    kr_status_t status = kri_detok_create(model->tokenizer, stops, n_stops, &d->detok, error);
    if (status != KR_OK) {
        kri_free(d);
        return status;
    }
    kri_model_retain(model);
    d->model = model;
    *detokenizer = d;
    return KR_OK;
}

void kr_detokenizer_destroy(kr_detokenizer_t detokenizer) {
    if (!detokenizer) return;
    kri_detok_destroy(detokenizer->detok);
    kri_model_close(detokenizer->model);
    kri_free(detokenizer);
}

kr_status_t kr_detokenizer_push(kr_detokenizer_t detokenizer, kr_token_t token,
                                const char **text, size_t *text_bytes, int32_t *stopped) {
    if (!detokenizer || !text || !text_bytes || !stopped) return KR_E_INVALID_ARG;
    return kri_detok_push(detokenizer->detok, token, text, text_bytes, stopped);
}

kr_status_t kr_detokenizer_finish(kr_detokenizer_t detokenizer, const char **text,
                                  size_t *text_bytes) {
    if (!detokenizer || !text || !text_bytes) return KR_E_INVALID_ARG;
    return kri_detok_finish(detokenizer->detok, text, text_bytes);
}
