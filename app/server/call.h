/* call.h: one request to an endpoint and where its answer goes. Endpoints know neither sockets nor
 * files: HTTP (http_sink.c), `kr batch` (batch.c) and the probe (probe.c) bring a sink each.
 *
 * A call is reference-counted; whoever will answer later holds it. Exactly one answer: call_reply,
 * call_fail, or a stream. Any thread. */
#ifndef SERVER_CALL_H
#define SERVER_CALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "json.h"
#include "kr.h"

typedef struct server_s server_t;
typedef struct call_s call_t;

typedef enum call_style_e { STYLE_OPENAI, STYLE_ANTHROPIC, STYLE_OLLAMA } call_style_t;
/* What a key may do; bits. */
enum { SCOPE_NONE = 0, SCOPE_GENERATE = 1, SCOPE_METRICS = 2, SCOPE_ADMIN = 4 };

/* A row of endpoints.def. */
typedef struct endpoint_s {
    const char *name;     /* "chat_completions": metric label, log */
    const char *method;   /* "GET", "POST" or "DELETE"; HEAD goes with GET */
    const char *path;     /* "/v1/chat/completions"; "{id}" at its end takes the rest */
    uint32_t scope;
    call_style_t style;
    bool has_body;        /* a JSON object; media type application/json required */
    void (*run)(call_t *call);
} endpoint_t;

/* Who asks. */
typedef struct principal_s {
    uint64_t key_id;      /* whose prefixes and kept responses these are; 0 = no keys are in use */
    uint64_t client;      /* with whom queue, workers and memory are shared: the key, without keys
                             what the transport tells apart; 0 = the process itself */
    uint32_t scopes;
    char name[64];        /* for logs */
} principal_t;

typedef struct call_sink_s {
    /* fields: more HTTP field lines ending in CRLF, or NULL; a sink without them drops them. */
    void (*reply)(void *sink, int status, const char *content_type, const char *fields,
                  const char *body, size_t n_bytes);
    /* With can_stream: */
    void (*begin)(void *sink, const char *content_type, const char *fields, bool is_event_stream);
    bool (*write)(void *sink, const char *data, size_t n_bytes);
    void (*end)(void *sink, bool whole);
    /* NULL: nobody can go. */
    void (*watch)(void *sink, void (*gone)(void *user), void (*taken)(void *user, size_t n_bytes),
                  void *user);
    void (*destroy)(void *sink); /* with the last reference of the call */
    bool can_stream;      /* false: stream = true is refused (batch, probe) */
    /* What the call has cost, before its answer ends; may be NULL. */
    void (*note)(void *sink, uint64_t n_prompt, uint64_t n_cached, uint64_t n_generated);
} call_sink_t;

/* What a new call is made of; strings are copied where they are not the server's. */
typedef struct call_params_s {
    server_t *server;
    const endpoint_t *endpoint;
    principal_t principal;
    const char *id;       /* X-Request-Id */
    const char *body;     /* [body_bytes] and a NUL, borrowed for as long as the sink lives */
    size_t body_bytes;
    const char *tail;     /* what "{id}" of the path stands for, [tail_bytes]; or "" */
    size_t tail_bytes;
    const call_sink_t *sink;
    void *sink_user;
} call_params_t;
/* One reference. NULL without memory: the sink is then destroyed after a 503. */
call_t *call_create(const call_params_t *params);
void call_retain(call_t *call);
void call_release(call_t *call);

server_t *call_server(const call_t *call);
const endpoint_t *call_endpoint(const call_t *call);
const principal_t *call_principal(const call_t *call);
const char *call_tail(const call_t *call); /* C string */
bool call_can_stream(const call_t *call);
/* The body as an object, which belongs to the call; NULL: already answered with the error. */
json_t *call_body(call_t *call);
/* Frees it: the endpoint holds nothing of it any more. */
void call_drop_body(call_t *call);

void call_reply_json(call_t *call, int status, const kri_buffer_t *body);
void call_reply(call_t *call, int status, const char *content_type, const char *body,
                size_t n_bytes);
/* Error answers, in the endpoint's style. What is 429 or 503 gets a Retry-After. */
void call_fail_json(call_t *call, const json_mistake_t *error);
/* KR_E_BUSY is 429 here (not accepted); a request that has waited too long in the queue is
 * call_fail(call, "overloaded", ...). */
void call_fail_status(call_t *call, kr_status_t status, const kr_error_t *error);
/* code: a row of errors.c ("model_not_found"): gives HTTP status and type. param may be NULL. */
void call_fail(call_t *call, const char *code, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* 400 context_length_exceeded with the two numbers: error->offset is n_prompt. */
void call_fail_over_long(call_t *call, const kr_error_t *error, uint32_t n_ctx);
/* Tokens of the generation, for the log: before the answer ends, any number of times. */
void call_note_tokens(call_t *call, uint64_t n_prompt, uint64_t n_cached, uint64_t n_generated);
/* The error body alone, for events of a stream that fails late. */
void call_error_body(const call_t *call, kr_status_t status, const kr_error_t *error,
                     kri_buffer_t *out);

/* Measured: when a place in a full queue is likely to be free; 1..600. server may be NULL. */
uint32_t call_retry_after_s(const server_t *server);

void call_begin(call_t *call, const char *content_type, bool is_event_stream);
bool call_write(call_t *call, const char *data, size_t n_bytes);
void call_end(call_t *call, bool whole);
void call_watch(call_t *call, void (*gone)(void *user), void (*taken)(void *user, size_t n_bytes),
                void *user);

#endif
