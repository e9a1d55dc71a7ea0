/* errors.c: the table of error answers (docs/server.md shows it). */
#include "errors.h"

#include <string.h>

#include "base/error.h"

#define INVALID "invalid_request_error"
#define SERVER "server_error"

/* code, HTTP status, type, fixed text, Retry-After */
static const error_row_t rows[] = {
    {"internal", 500, SERVER, "internal error", false},
    {"numeric_error", 500, SERVER, "the model computed a value that is not finite", false},
    {"invalid_json", 400, INVALID, NULL, false},
    {"invalid_value", 400, INVALID, NULL, false},
    {"missing_required_parameter", 400, INVALID, NULL, false},
    {"unsupported_parameter", 400, INVALID, NULL, false},
    {"context_length_exceeded", 400, INVALID, NULL, false},
    {"limit_exceeded", 400, INVALID, NULL, false},
    {"invalid_schema", 400, INVALID, NULL, false},
    {"unsupported_schema", 400, INVALID, NULL, false},
    {"grammar_too_complex", 400, INVALID, NULL, false},
    {"template_error", 400, INVALID, NULL, false},
    {"invalid_image", 400, INVALID, NULL, false},
    {"invalid_request", 400, INVALID, NULL, false},
    {"invalid_api_key", 401, "authentication_error", NULL, false},
    {"origin_not_allowed", 403, "permission_error", NULL, false},
    {"host_not_allowed", 403, "permission_error", NULL, false},
    {"permission_denied", 403, "permission_error", NULL, false},
    {"not_found", 404, INVALID, NULL, false},
    {"model_not_found", 404, INVALID, NULL, false},
    {"response_not_found", 404, INVALID, NULL, false},
    {"previous_response_not_found", 404, INVALID, NULL, false},
    {"unknown_route", 404, INVALID, NULL, false},
    {"method_not_allowed", 405, INVALID, NULL, false},
    {"not_acceptable", 406, INVALID, NULL, false},
    {"request_timeout", 408, INVALID, NULL, false},
    {"already_exists", 409, INVALID, NULL, false},
    {"body_too_large", 413, INVALID, NULL, false},
    {"uri_too_long", 414, INVALID, NULL, false},
    {"unsupported_media_type", 415, INVALID, NULL, false},
    {"expectation_failed", 417, INVALID, NULL, false},
    {"queue_full", 429, "rate_limit_error", NULL, true},
    {"too_many_requests", 429, "rate_limit_error", NULL, true},
    {"headers_too_large", 431, INVALID, NULL, false},
    {"cancelled", 499, INVALID, "the request was cancelled", false},
    {"unsupported_transfer_coding", 501, INVALID, NULL, false},
    {"not_ready", 503, SERVER, NULL, true},
    {"model_loading", 503, SERVER, "the model is loading", true},
    {"overloaded", 503, SERVER, "the server has no room for this request now", true},
    {"shutting_down", 503, SERVER, "the server is shutting down", true},
    {"device_lost", 503, SERVER, "the device was lost", true},
    {"model_changed", 503, SERVER, "the model's file has changed", true},
    {"runtime_died", 503, SERVER, "the runtime has ended", true},
    {"deadline_exceeded", 504, SERVER, "the request's deadline has passed", false},
};
#define N_ROWS (sizeof rows / sizeof rows[0])

/* kr_status_t -> code; what stands for nothing a client can be told is "internal". */
static const char *const status_codes[] = {
    [KR_OK] = "internal",
    [KR_E_INVALID_ARG] = "invalid_value",
    [KR_E_NOT_FOUND] = "not_found",
    [KR_E_EXISTS] = "already_exists",
    [KR_E_UNSUPPORTED] = "unsupported_parameter",
    [KR_E_BAD_FORMAT] = "invalid_value",
    [KR_E_TRUNCATED] = "internal",
    [KR_E_CORRUPT] = "internal",
    [KR_E_LIMIT] = "limit_exceeded",
    [KR_E_NOMEM] = "overloaded",
    [KR_E_DEVICE_NOMEM] = "overloaded",
    [KR_E_DEVICE_LOST] = "device_lost",
    [KR_E_IO] = "internal",
    [KR_E_NOSPC] = "internal",
    [KR_E_BUSY] = "queue_full",
    [KR_E_TIMEOUT] = "deadline_exceeded",
    [KR_E_CANCELLED] = "cancelled",
    [KR_E_SHUTTING_DOWN] = "shutting_down",
    [KR_E_CONTEXT_LENGTH] = "context_length_exceeded",
    [KR_E_NUMERIC] = "numeric_error",
    [KR_E_BAD_SCHEMA] = "invalid_schema",
    [KR_E_BAD_TEMPLATE] = "template_error",
    [KR_E_BAD_IMAGE] = "invalid_image",
    [KR_E_PROTOCOL] = "invalid_request",
    [KR_E_PERMISSION] = "permission_denied",
    [KR_E_CHANGED] = "model_changed",
    [KR_E_CHILD_DIED] = "runtime_died",
    [KR_E_INTERNAL] = "internal",
};
#define N_STATUS_CODES ((kr_status_t)(sizeof status_codes / sizeof status_codes[0]))
#define COUNT_ONE(name, number, text) +1
_Static_assert(sizeof status_codes / sizeof status_codes[0] == 0 KR_STATUS_LIST(COUNT_ONE),
               "a status without a code");
#undef COUNT_ONE

const error_row_t *error_at(uint32_t index) { return index < N_ROWS ? &rows[index] : NULL; }

const error_row_t *error_find(const char *code) {
    for (size_t i = 0; i < N_ROWS; i++) {
        if (strcmp(rows[i].code, code) == 0) return &rows[i];
    }
    return &rows[0];
}

const error_row_t *error_of_status(kr_status_t status) {
    const bool is_known = status >= 0 && status < N_STATUS_CODES;
    return error_find(is_known ? status_codes[status] : "internal");
}

static const char *anthropic_type(int status) {
    switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 413: return "request_too_large";
    case 429: return "rate_limit_error";
    case 503: return "overloaded_error";
    case 504: return "timeout_error";
    default: break;
    }
    return status >= 500 ? "api_error" : "invalid_request_error";
}

static kr_status_t put_text(kri_buffer_t *out, const char *text) {
    return text != NULL && text[0] != '\0' ? json_put_string(out, text, strlen(text))
                                           : kri_buffer_append(out, "null", 4);
}

static kr_status_t put_openai(const error_row_t *row, const char *param, const char *message,
                              kri_buffer_t *out) {
    KR_TRY(kri_buffer_printf(out, "{\"error\":{\"message\":"));
    KR_TRY(json_put_string(out, message, strlen(message)));
    KR_TRY(kri_buffer_printf(out, ",\"type\":\"%s\",\"param\":", row->type));
    KR_TRY(put_text(out, param));
    return kri_buffer_printf(out, ",\"code\":\"%s\"}}", row->code);
}

static kr_status_t put_anthropic(const error_row_t *row, const char *message, const char *id,
                                 kri_buffer_t *out) {
    KR_TRY(kri_buffer_printf(out, "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":",
                             anthropic_type(row->status)));
    KR_TRY(json_put_string(out, message, strlen(message)));
    KR_TRY(kri_buffer_printf(out, "},\"request_id\":"));
    KR_TRY(put_text(out, id));
    return kri_buffer_append(out, "}", 1);
}

kr_status_t error_put_body(call_style_t style, const error_row_t *row, const char *param,
                           const char *message, const char *id, kri_buffer_t *out) {
    switch (style) {
    case STYLE_OPENAI: break;
    case STYLE_ANTHROPIC: return put_anthropic(row, message, id, out);
    case STYLE_OLLAMA:
        KR_TRY(kri_buffer_printf(out, "{\"error\":"));
        KR_TRY(json_put_string(out, message, strlen(message)));
        return kri_buffer_append(out, "}", 1);
    }
    return put_openai(row, param, message, out);
}

kr_status_t error_put_over_long(call_style_t style, const char *param, const char *message,
                                const char *id, uint64_t n_prompt, uint32_t n_ctx,
                                kri_buffer_t *out) {
    KR_TRY(error_put_body(style, error_find("context_length_exceeded"), param, message, id, out));
    if (style != STYLE_OPENAI || out->n_bytes < 2) return KR_OK;
    out->n_bytes -= 2; /* the two braces */
    return kri_buffer_printf(out, ",\"n_prompt\":%llu,\"n_ctx\":%u}}",
                             (unsigned long long)n_prompt, n_ctx);
}

call_style_t error_style_of_path(const char *path, size_t n_bytes) {
    static const char ollama[] = "/api/", anthropic[] = "/v1/messages";
    const size_t n_ollama = sizeof ollama - 1, n_anthropic = sizeof anthropic - 1;
    if (n_bytes >= n_ollama && memcmp(path, ollama, n_ollama) == 0) return STYLE_OLLAMA;
    if (n_bytes >= n_anthropic && memcmp(path, anthropic, n_anthropic) == 0) {
        return STYLE_ANTHROPIC;
    }
    return STYLE_OPENAI;
}
