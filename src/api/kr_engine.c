/* kr_engine.c: engines and requests: arguments and structs checked, then the engine's functions. */
#include "engine/engine.h"

#include <string.h>

#include "base/error.h"
#include "base/structs.h"

#define NAME_BYTES_MAX 255u

static kr_status_t is_null(const char *name, kr_error_t *error) {
    return KRI_FAIL(error, KR_E_INVALID_ARG, name, "%s is NULL", name);
}

static kr_status_t check_name(const char *name, kr_error_t *error) {
    if (!name) return is_null("name", error);
    const size_t n_bytes = strnlen(name, NAME_BYTES_MAX + 1);
    if (n_bytes > 0 && n_bytes <= NAME_BYTES_MAX) return KR_OK;
    return KRI_FAIL(error, KR_E_INVALID_ARG, "name", "name must be 1 to %u bytes long",
                    NAME_BYTES_MAX);
}

/* ---- engine --------------------------------------------------------------------------------- */

void kr_engine_params_init(kr_engine_params_t *params) {
    if (params) kri_struct_init(params, sizeof(*params));
}

kr_status_t kr_engine_create(const kr_engine_params_t *params, kr_engine_t *engine,
                             kr_error_t *error) {
    kr_engine_params_t p;
    if (!engine) return is_null("engine", error);
    kr_engine_params_init(&p);
    KR_TRY(kri_struct_read(&p, sizeof(p), params, "params", error));
    return kri_engine_create(&p, engine, error);
}

kr_status_t kr_engine_drain(kr_engine_t engine, uint32_t timeout_ms) {
    return engine ? kri_engine_drain(engine, timeout_ms) : KR_E_INVALID_ARG;
}

void kr_engine_destroy(kr_engine_t engine) { kri_engine_destroy(engine); }

kr_status_t kr_engine_add_model(kr_engine_t engine, const char *name, kr_model_t model,
                                const kr_session_params_t *params, kr_error_t *error) {
    kr_session_params_t p;
    if (!engine) return is_null("engine", error);
    if (!model) return is_null("model", error);
    KR_TRY(check_name(name, error));
    kr_session_params_init(&p);
    KR_TRY(kri_struct_read(&p, sizeof(p), params, "params", error));
    return kri_engine_add_model(engine, name, model, &p, error);
}

kr_status_t kr_engine_remove_model(kr_engine_t engine, const char *name, kr_error_t *error) {
    if (!engine) return is_null("engine", error);
    KR_TRY(check_name(name, error));
    return kri_engine_remove_model(engine, name, error);
}

kr_status_t kr_engine_resize_kv(kr_engine_t engine, const char *name, uint64_t kv_bytes,
                                kr_error_t *error) {
    if (!engine) return is_null("engine", error);
    KR_TRY(check_name(name, error));
    if (kv_bytes == 0) return KRI_FAIL(error, KR_E_INVALID_ARG, "kv_bytes", "kv_bytes is 0");
    return kri_engine_resize_kv(engine, name, kv_bytes, error);
}

void kr_engine_stats_init(kr_engine_stats_t *stats) {
    if (stats) kri_struct_init(stats, sizeof(*stats));
}

kr_status_t kr_engine_stats(kr_engine_t engine, const char *name, kr_engine_stats_t *stats) {
    kr_engine_stats_t out;
    if (!engine || !stats) return KR_E_INVALID_ARG;
    kr_engine_stats_init(&out);
    KR_TRY(kri_engine_stats(engine, name, &out));
    return kri_struct_write(stats, &out, sizeof(out));
}

/* ---- requests ------------------------------------------------------------------------------- */

void kr_request_params_init(kr_request_params_t *params) {
    if (params) kri_struct_init(params, sizeof(*params));
}

static kr_status_t read_request(kr_engine_t engine, const kr_request_params_t *params,
                                kr_request_params_t *p, kr_error_t *error) {
    if (!engine) return is_null("engine", error);
    if (!params) return is_null("params", error);
    kr_request_params_init(p);
    return kri_struct_read(p, sizeof(*p), params, "params", error);
}

kr_status_t kr_engine_submit(kr_engine_t engine, const kr_request_params_t *params,
                             kr_request_t *request, kr_error_t *error) {
    kr_request_params_t p;
    KR_TRY(read_request(engine, params, &p, error));
    return kri_engine_submit(engine, &p, request, error);
}

void kr_request_cancel(kr_request_t request) {
    if (request) kri_request_cancel(request);
}

kr_status_t kr_request_add_credits(kr_request_t request, uint32_t n) {
    return request ? kri_request_add_credits(request, n) : KR_E_INVALID_ARG;
}

void kr_request_release(kr_request_t request) { kri_request_release(request); }

void kr_request_stats_init(kr_request_stats_t *stats) {
    if (stats) kri_struct_init(stats, sizeof(*stats));
}

kr_status_t kr_request_stats(kr_request_t request, kr_request_stats_t *stats) {
    kr_request_stats_t out;
    if (!request || !stats) return KR_E_INVALID_ARG;
    kri_request_stats(request, &out);
    return kri_struct_write(stats, &out, sizeof(out));
}

void kr_explain_init(kr_explain_t *explain) {
    if (explain) kri_struct_init(explain, sizeof(*explain));
}

kr_status_t kr_engine_explain(kr_engine_t engine, const kr_request_params_t *params,
                              kr_explain_t *explain, kr_error_t *error) {
    kr_request_params_t p;
    kr_explain_t out;
    KR_TRY(read_request(engine, params, &p, error));
    if (!explain) return is_null("explain", error);
    kr_explain_init(&out);
    KR_TRY(kri_engine_explain(engine, &p, &out, error));
    return kri_struct_write(explain, &out, sizeof(out));
}

/* ---- polling -------------------------------------------------------------------------------- */

kr_status_t kr_engine_poll(kr_engine_t engine, kr_event_t *events, uint32_t capacity,
                           uint32_t timeout_ms, uint32_t *n_events) {
    if (!engine || !events || !n_events || capacity == 0) return KR_E_INVALID_ARG;
    /* Refused before anything is taken: an event that cannot be written would be lost. */
    for (uint32_t i = 0; i < capacity; i++) {
        const uint32_t n_bytes = events[i].struct_bytes;
        if (n_bytes == sizeof(events[i])) continue;
        KR_TRY(kri_struct_write(&events[i], &n_bytes, sizeof(n_bytes)));
        /* The array's step is this size: another one would be another place. */
        if (capacity > 1 && n_bytes != sizeof(events[i])) return KR_E_UNSUPPORTED;
    }
    int32_t fd;
    KR_TRY(kri_engine_event_fd(engine, &fd)); /* only engines without a callback have one */
    return kri_engine_poll(engine, events, capacity, timeout_ms, n_events);
}

kr_status_t kr_engine_event_fd(kr_engine_t engine, int32_t *fd) {
    if (!engine || !fd) return KR_E_INVALID_ARG;
    return kri_engine_event_fd(engine, fd);
}
