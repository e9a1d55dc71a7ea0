/* call.c: a request to an endpoint, its body, and its one answer in the endpoint's style. */
#include "call.h"

#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "errors.h"
#include "log.h"
#include "server.h"

#define ERROR_BYTES_MAX 65536u

/* Of the answer: the first one wins. */
enum { ANSWER_NONE = 0, ANSWER_STREAM = 1, ANSWER_ENDED = 2 };

struct call_s {
    atomic_uint n_refs;
    atomic_int answer;        /* ANSWER_* */
    call_params_t params;     /* strings of it: the two below */
    char id[72];
    char *tail;
    json_t *body;             /* parsed by call_body */
};

/* ---- life ---------------------------------------------------------------------------------- */

call_t *call_create(const call_params_t *params) {
    call_t *call = calloc(1, sizeof *call);
    char *tail = malloc(params->tail_bytes + 1);
    if (call == NULL || tail == NULL) {
        static const char body[] = "{\"error\":{\"message\":\"the server is out of memory\","
                                   "\"type\":\"server_error\",\"param\":null,"
                                   "\"code\":\"overloaded\"}}";
        free(call);
        free(tail);
        params->sink->reply(params->sink_user, 503, "application/json", NULL, body,
                            sizeof body - 1);
        params->sink->destroy(params->sink_user);
        return NULL;
    }
    atomic_init(&call->n_refs, 1);
    atomic_init(&call->answer, ANSWER_NONE);
    call->params = *params;
    if (params->tail_bytes > 0) memcpy(tail, params->tail, params->tail_bytes);
    tail[params->tail_bytes] = '\0';
    call->tail = tail;
    (void)snprintf(call->id, sizeof call->id, "%s", params->id);
    return call;
}

void call_retain(call_t *call) {
    atomic_fetch_add_explicit(&call->n_refs, 1, memory_order_relaxed);
}

void call_release(call_t *call) {
    if (call == NULL) return;
    if (atomic_fetch_sub_explicit(&call->n_refs, 1, memory_order_acq_rel) != 1) return;
    /* An endpoint that ends without an answer is a bug; the client gets one all the same. */
    const int answer = atomic_load(&call->answer);
    if (answer == ANSWER_NONE) call_fail(call, "internal", NULL, "internal error");
    if (answer == ANSWER_STREAM) call_end(call, false);
    json_decref(call->body);
    call->params.sink->destroy(call->params.sink_user);
    free(call->tail);
    free(call);
}

server_t *call_server(const call_t *call) { return call->params.server; }
const endpoint_t *call_endpoint(const call_t *call) { return call->params.endpoint; }
const principal_t *call_principal(const call_t *call) { return &call->params.principal; }
const char *call_tail(const call_t *call) { return call->tail; }
bool call_can_stream(const call_t *call) { return call->params.sink->can_stream; }

json_t *call_body(call_t *call) {
    if (call->body != NULL) return call->body;
    json_mistake_t mistake = {0};
    if (!json_parse(call->params.body, call->params.body_bytes, &call->body, &mistake)) {
        call_fail_json(call, &mistake);
        return NULL;
    }
    return call->body;
}

void call_drop_body(call_t *call) {
    json_decref(call->body);
    call->body = NULL;
}

/* ---- answers ------------------------------------------------------------------------------- */

static bool move_answer(call_t *call, int from, int to) {
    return atomic_compare_exchange_strong(&call->answer, &from, to);
}

/* Whether this is the first answer: all others are dropped. */
static bool claim(call_t *call) { return move_answer(call, ANSWER_NONE, ANSWER_ENDED); }

void call_reply(call_t *call, int status, const char *content_type, const char *body,
                size_t n_bytes) {
    if (!claim(call)) return;
    call->params.sink->reply(call->params.sink_user, status, content_type, NULL, body, n_bytes);
}

void call_reply_json(call_t *call, int status, const kri_buffer_t *body) {
    call_reply(call, status, "application/json", body->data != NULL ? body->data : "",
               body->n_bytes);
}

uint32_t call_retry_after_s(const server_t *server) {
    double ms = 0;
    if (server != NULL && server->engine != NULL) {
        kr_engine_stats_t stats;
        kr_engine_stats_init(&stats);
        if (kr_engine_stats(server->engine, NULL, &stats) == KR_OK) ms = stats.retry_after_ms;
    }
    if (!(ms > 1000)) return 1;
    return ms > 600e3 ? 600 : (uint32_t)ceil(ms / 1000);
}

static void fail_row(call_t *call, const error_row_t *row, const char *param,
                     const char *message) {
    if (!claim(call)) return;
    char retry[48];
    const char *fields = NULL;
    if (row->has_retry) {
        /* What needs no key is answered by the I/O thread, which waits for no engine. */
        const bool may_wait = call->params.endpoint->scope != SCOPE_NONE;
        (void)snprintf(retry, sizeof retry, "Retry-After: %u\r\n",
                       may_wait ? call_retry_after_s(call->params.server) : 1u);
        fields = retry;
    }
    kri_buffer_t body;
    kri_buffer_init(&body, ERROR_BYTES_MAX);
    static const char last_resort[] = "{\"error\":\"out of memory\"}";
    const bool is_made = error_put_body(call->params.endpoint->style, row, param, message, call->id,
                                        &body) == KR_OK;
    call->params.sink->reply(call->params.sink_user, row->status, "application/json", fields,
                             is_made ? body.data : last_resort,
                             is_made ? body.n_bytes : sizeof last_resort - 1);
    kri_buffer_deinit(&body);
}

void call_fail(call_t *call, const char *code, const char *param, const char *format, ...) {
    char message[768];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(message, sizeof message, format, args);
    va_end(args);
    fail_row(call, error_find(code), param, message);
}

void call_fail_over_long(call_t *call, const kr_error_t *error, uint32_t n_ctx) {
    kri_buffer_t body;
    kri_buffer_init(&body, ERROR_BYTES_MAX);
    if (error_put_over_long(call->params.endpoint->style, error->param, error->message, call->id,
                            error->offset, n_ctx, &body) == KR_OK) {
        call_reply_json(call, error_find("context_length_exceeded")->status, &body);
    } else {
        call_fail(call, "context_length_exceeded", error->param, "%s", error->message);
    }
    kri_buffer_deinit(&body);
}

void call_fail_json(call_t *call, const json_mistake_t *mistake) {
    fail_row(call, error_find(mistake->code), mistake->param, mistake->message);
}

static const char *message_of(const error_row_t *row, kr_status_t status,
                              const kr_error_t *error) {
    if (row->fixed_text != NULL) return row->fixed_text;
    const bool has_text = error != NULL && error->message[0] != '\0';
    return has_text ? error->message : kr_status_text(status);
}

static const char *param_of(const error_row_t *row, const kr_error_t *error) {
    return row->status < 429 && error != NULL ? error->param : NULL;
}

/* What the client is not told is for the operator. */
static void log_hidden(const call_t *call, const error_row_t *row, kr_status_t status,
                       const kr_error_t *error) {
    const server_t *server = call->params.server;
    if (row->fixed_text == NULL || server == NULL || status == KR_E_CANCELLED) return;
    const char *text = error != NULL ? error->message : "";
    logger_line(server->logger, LOG_KIND_SERVER, KR_LOG_WARN, "%s: %s%s%s", call->id,
                kr_status_text(status), text[0] != '\0' ? ": " : "", text);
}

void call_fail_status(call_t *call, kr_status_t status, const kr_error_t *error) {
    const error_row_t *row = error_of_status(status);
    log_hidden(call, row, status, error);
    const char *message = message_of(row, status, error);
    if (status == KR_E_BUSY && error != NULL && strcmp(error->param, "key") == 0) {
        if (call->params.principal.key_id != 0) row = error_find("too_many_requests");
        else message = "as many requests of this client wait as may";
    }
    fail_row(call, row, param_of(row, error), message);
}

void call_error_body(const call_t *call, kr_status_t status, const kr_error_t *error,
                     kri_buffer_t *out) {
    /* Once accepted, busy means that it has waited too long. */
    const error_row_t *row = status == KR_E_BUSY ? error_find("overloaded")
                                                 : error_of_status(status);
    log_hidden(call, row, status, error);
    (void)error_put_body(call->params.endpoint->style, row, param_of(row, error),
                         message_of(row, status, error), call->id, out);
}

void call_note_tokens(call_t *call, uint64_t n_prompt, uint64_t n_cached, uint64_t n_generated) {
    const call_sink_t *sink = call->params.sink;
    if (sink->note != NULL) sink->note(call->params.sink_user, n_prompt, n_cached, n_generated);
}

/* ---- streams ------------------------------------------------------------------------------- */

void call_begin(call_t *call, const char *content_type, bool is_event_stream) {
    if (!call->params.sink->can_stream) return; /* a bug: the call ends without an answer */
    if (!move_answer(call, ANSWER_NONE, ANSWER_STREAM)) return;
    call->params.sink->begin(call->params.sink_user, content_type, NULL, is_event_stream);
}

bool call_write(call_t *call, const char *data, size_t n_bytes) {
    if (atomic_load(&call->answer) != ANSWER_STREAM) return false;
    return call->params.sink->write(call->params.sink_user, data, n_bytes);
}

void call_end(call_t *call, bool whole) {
    if (!move_answer(call, ANSWER_STREAM, ANSWER_ENDED)) return;
    call->params.sink->end(call->params.sink_user, whole);
}

void call_watch(call_t *call, void (*gone)(void *user), void (*taken)(void *user, size_t n_bytes),
                void *user) {
    const call_sink_t *sink = call->params.sink;
    if (sink->watch != NULL) sink->watch(call->params.sink_user, gone, taken, user);
}
