/* kr_session.c: sessions and batches. */
#include "engine/session.h"

#include "base/error.h"
#include "base/structs.h"

void kr_session_params_init(kr_session_params_t *params) {
    if (params) kri_struct_init(params, sizeof(*params));
}

static kr_status_t read_params(const kr_session_params_t *params, kr_session_params_t *p,
                               kr_error_t *error) {
    kr_session_params_init(p);
    return kri_struct_read(p, sizeof(*p), params, "params", error);
}

kr_status_t kr_session_create(kr_model_t model, const kr_session_params_t *params,
                              kr_session_t *session, kr_error_t *error) {
    kr_session_params_t p;
    if (!model) return KRI_FAIL(error, KR_E_INVALID_ARG, "model", "model is NULL");
    if (!session) return KRI_FAIL(error, KR_E_INVALID_ARG, "session", "session is NULL");
    KR_TRY(read_params(params, &p, error));
    /* Only an engine publishes pages: here it would stay empty. */
    if (p.prefix_cache == KR_PREFIX_CACHE_ON) {
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "prefix_cache",
                        "only engines have a prefix cache: must be default or off");
    }
    return kri_session_create(model, &p, session, error);
}

void kr_session_destroy(kr_session_t session) { kri_session_destroy(session); }

void kr_session_info_init(kr_session_info_t *info) {
    if (info) kri_struct_init(info, sizeof(*info));
}

kr_status_t kr_session_info(kr_session_t session, kr_session_info_t *info) {
    kr_session_info_t out;
    if (!session || !info) return KR_E_INVALID_ARG;
    kri_session_info(session, &out);
    return kri_struct_write(info, &out, sizeof(out));
}

kr_status_t kr_session_plan(kr_model_t model, const kr_session_params_t *params,
                            kr_session_info_t *info, kr_error_t *error) {
    kr_session_params_t p;
    kr_session_info_t out;
    if (!model) return KRI_FAIL(error, KR_E_INVALID_ARG, "model", "model is NULL");
    if (!info) return KRI_FAIL(error, KR_E_INVALID_ARG, "info", "info is NULL");
    kr_session_info_init(&out);
    KR_TRY(read_params(params, &p, error));
    KR_TRY(kri_session_plan(model, &p, &out, error));
    return kri_struct_write(info, &out, sizeof(out));
}

void kr_batch_init(kr_batch_t *batch) {
    if (batch) kri_struct_init(batch, sizeof(*batch));
}

kr_status_t kr_session_decode(kr_session_t session, const kr_batch_t *batch, float *logits,
                              kr_error_t *error) {
    kr_batch_t b;
    if (!session) return KRI_FAIL(error, KR_E_INVALID_ARG, "session", "session is NULL");
    if (!batch) return KRI_FAIL(error, KR_E_INVALID_ARG, "batch", "batch is NULL");
    kr_batch_init(&b);
    KR_TRY(kri_struct_read(&b, sizeof(b), batch, "batch", error));
    return kri_session_decode(session, &b, logits, error);
}

void kr_session_cancel(kr_session_t session) {
    if (session) kri_session_cancel(session);
}

kr_status_t kr_session_length(kr_session_t session, uint32_t seq, uint32_t *n_tokens) {
    if (!session || !n_tokens) return KR_E_INVALID_ARG;
    return kri_session_length(session, seq, n_tokens);
}

kr_status_t kr_session_truncate(kr_session_t session, uint32_t seq, uint32_t n_tokens) {
    return session ? kri_session_truncate(session, seq, n_tokens) : KR_E_INVALID_ARG;
}

kr_status_t kr_session_fork(kr_session_t session, uint32_t src, uint32_t dst, uint32_t n_tokens) {
    return session ? kri_session_fork(session, src, dst, n_tokens) : KR_E_INVALID_ARG;
}

kr_status_t kr_session_save(kr_session_t session, uint32_t seq, void *buf, size_t capacity,
                            size_t *n_bytes) {
    if (!session || !n_bytes || (!buf && capacity > 0)) return KR_E_INVALID_ARG;
    return kri_session_save(session, seq, buf, capacity, n_bytes);
}

kr_status_t kr_session_restore(kr_session_t session, uint32_t seq, const void *buf,
                               size_t n_bytes, kr_error_t *error) {
    if (!session) return KRI_FAIL(error, KR_E_INVALID_ARG, "session", "session is NULL");
    if (!buf) return KRI_FAIL(error, KR_E_INVALID_ARG, "buf", "buf is NULL");
    return kri_session_restore(session, seq, buf, n_bytes, error);
}
