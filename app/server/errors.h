/* errors.h: every error answer of the server, from one table: code -> HTTP status, type. The body
 * in the style of each family:
 *   OpenAI     {"error":{"message":"...","type":"...","param":"..."|null,"code":"..."}}
 *   Anthropic  {"type":"error","error":{"type":"...","message":"..."},"request_id":"..."|null}
 *   Ollama     {"error":"..."} */
#ifndef SERVER_ERRORS_H
#define SERVER_ERRORS_H

#include "call.h"

typedef struct error_row_s {
    const char *code;
    int status;             /* of HTTP */
    const char *type;       /* OpenAI's; Anthropic's follows from the status */
    const char *fixed_text; /* said in place of the library's message, which may speak of the
                               inside; NULL = that message */
    bool has_retry;         /* Retry-After goes with it */
} error_row_t;

/* Unknown codes are "internal". */
const error_row_t *error_find(const char *code);
const error_row_t *error_of_status(kr_status_t status);
/* Row `index`, NULL past the last: for tests and docs. */
const error_row_t *error_at(uint32_t index);

/* Appends the body. param "" or NULL = none; id: of the request, may be NULL. Bytes of message that
 * are no UTF-8 become U+FFFD. */
kr_status_t error_put_body(call_style_t style, const error_row_t *row, const char *param,
                           const char *message, const char *id, kri_buffer_t *out);
/* That of a prompt that is too long: OpenAI's form also has the members n_prompt and n_ctx. */
kr_status_t error_put_over_long(call_style_t style, const char *param, const char *message,
                                const char *id, uint64_t n_prompt, uint32_t n_ctx,
                                kri_buffer_t *out);
/* Which style a path speaks, for errors before a route is found. */
call_style_t error_style_of_path(const char *path, size_t n_bytes);

#endif
