/* route.c: from a request's head to its endpoint: access, path, method, key, media type, size;
 * then, with the body, the call. Whatever refuses says so in the style of the path's family. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "accept.h"
#include "access.h"
#include "base/clock.h"
#include "clients.h"
#include "endpoints.h"
#include "errors.h"
#include "keys.h"
#include "log.h"
#include "prometheus.h"
#include "visit.h"

#define BODY_BYTES_MAX 4096u
#define CLIENT_SHARE 4u /* one client may have a quarter of the memory for bodies */

/* ---- refusals ------------------------------------------------------------------------------ */

/* Anthropic's clients look for the request's id here; everybody gets X-Request-Id. */
static size_t put_id(call_style_t style, const char *id, char *out, size_t cap) {
    out[0] = '\0';
    if (style != STYLE_ANTHROPIC) return 0;
    return (size_t)snprintf(out, cap, "request-id: %s\r\n", id);
}

/* The lines that let a page of an allowed origin see the answer. */
static void put_cors(const http_request_t *request, char *out, size_t cap) {
    const http_text_t origin = http_field(request, "origin");
    out[0] = '\0';
    if (origin.n_bytes == 0 || origin.n_bytes > 320) return;
    (void)snprintf(out, cap,
                   "Access-Control-Allow-Origin: %.*s\r\nVary: Origin\r\n"
                   "Access-Control-Expose-Headers: X-Request-Id, request-id, Retry-After\r\n",
                   (int)origin.n_bytes, origin.data);
}

/* Answers in place of an endpoint. fields: more lines, or NULL. A page of an allowed origin may see
 * why, but for the refusals of its origin and Host themselves. */
static void refuse(http_exchange_t *exchange, call_style_t style, const char *code,
                   const char *fields, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
static void refuse(http_exchange_t *exchange, call_style_t style, const char *code,
                   const char *fields, const char *format, ...) {
    char message[512], cors[640] = "", lines[1024];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(message, sizeof message, format, args);
    va_end(args);
    const error_row_t *row = error_find(code);
    const char *id = http_request(exchange)->id;
    const size_t n = put_id(style, id, lines, sizeof lines);
    const bool is_access = strcmp(code, "host_not_allowed") == 0 ||
                           strcmp(code, "origin_not_allowed") == 0;
    if (!is_access) put_cors(http_request(exchange), cors, sizeof cors);
    (void)snprintf(lines + n, sizeof lines - n, "%s%s%s", cors,
                   row->has_retry ? "Retry-After: 1\r\n" : "", fields != NULL ? fields : "");
    kri_buffer_t body;
    kri_buffer_init(&body, BODY_BYTES_MAX);
    http_answer_t answer = {.status = row->status, .content_type = "application/json",
                            .fields = lines, .close = row->status == 413};
    if (error_put_body(style, row, NULL, message, id, &body) == KR_OK) {
        answer.body = body.data;
        answer.body_bytes = body.n_bytes;
    }
    http_reply(exchange, &answer);
    kri_buffer_deinit(&body);
}

static bool is_method(const http_request_t *request, const char *method) {
    return request->method.n_bytes == strlen(method) &&
           memcmp(request->method.data, method, request->method.n_bytes) == 0;
}

/* For messages: what the client sent, not too much of it. */
static int cut(http_text_t text) { return text.n_bytes < 128 ? (int)text.n_bytes : 128; }

/* ---- fields of the head --------------------------------------------------------------------- */

/* The word before ';' is `wanted`, without regard to case. */
static bool begins_with_type(http_text_t value, const char *wanted) {
    const char *end = memchr(value.data, ';', value.n_bytes);
    size_t n = end != NULL ? (size_t)(end - value.data) : value.n_bytes;
    while (n > 0 && (value.data[n - 1] == ' ' || value.data[n - 1] == '\t')) n--;
    return n == strlen(wanted) && strncasecmp(value.data, wanted, n) == 0;
}

/* application/json, of UTF-8 if it says a charset. One field: a browser's form cannot send it
 * without asking first. */
static bool has_json_type(const http_request_t *request) {
    if (http_field_count(request, "content-type") != 1) return false;
    const http_text_t value = http_field(request, "content-type");
    if (!begins_with_type(value, "application/json")) return false;
    const char *rest = memchr(value.data, ';', value.n_bytes);
    if (rest == NULL) return true;
    char parameter[64] = "";
    const size_t n_rest = value.n_bytes - (size_t)(rest - value.data);
    if (n_rest >= sizeof parameter) return false;
    size_t n = 0;
    for (size_t i = 1; i < n_rest; i++) {
        if (rest[i] != ' ' && rest[i] != '\t' && rest[i] != '"') parameter[n++] = rest[i];
    }
    return n == 0 || strcasecmp(parameter, "charset=utf-8") == 0;
}

/* ---- steps of on_head: false = answered ------------------------------------------------------ */

static bool check_access(const server_t *server, http_exchange_t *exchange, call_style_t style) {
    switch (access_check(server, http_request(exchange))) {
    case ACCESS_GRANTED: return true;
    case ACCESS_HOST:
        counters_refused(server->counters, REFUSAL_HOST);
        refuse(exchange, style, "host_not_allowed", NULL,
               "the Host of this request is not one of this server's names (--allowed-host)");
        return false;
    case ACCESS_ORIGIN: break;
    }
    counters_refused(server->counters, REFUSAL_ORIGIN);
    refuse(exchange, style, "origin_not_allowed", NULL,
           "pages of this Origin may not use this server (--allowed-origin)");
    return false;
}

/* A page asks whether it may: its origin has been checked already. */
static bool answer_preflight(http_exchange_t *exchange) {
    const http_request_t *request = http_request(exchange);
    if (!is_method(request, "OPTIONS") || http_field(request, "origin").n_bytes == 0) return false;
    const http_text_t method = http_field(request, "access-control-request-method");
    if (method.n_bytes == 0) return false;
    const endpoint_match_t match = endpoint_find(method.data, method.n_bytes, request->path.data,
                                                 request->path.n_bytes);
    if (match.endpoint == NULL) return false;
    const http_text_t wanted = http_field(request, "access-control-request-headers");
    char cors[640], lines[2048];
    put_cors(request, cors, sizeof cors);
    (void)snprintf(lines, sizeof lines,
                   "%sAccess-Control-Allow-Methods: %s\r\nAccess-Control-Allow-Headers: %.*s\r\n"
                   "Access-Control-Max-Age: 600\r\n", cors, match.allow,
                   wanted.n_bytes < 1024 ? (int)wanted.n_bytes : 0,
                   wanted.data != NULL ? wanted.data : "");
    const http_answer_t answer = {.status = 204, .fields = lines};
    http_reply(exchange, &answer);
    return true;
}

static bool find_endpoint(http_exchange_t *exchange, call_style_t style, endpoint_match_t *match) {
    const http_request_t *request = http_request(exchange);
    *match = endpoint_find(request->method.data, request->method.n_bytes, request->path.data,
                           request->path.n_bytes);
    if (match->endpoint != NULL) return true;
    if (match->allow[0] == '\0') {
        refuse(exchange, style, "unknown_route", NULL, "unknown route: %.*s", cut(request->path),
               request->path.data);
        return false;
    }
    char fields[96];
    (void)snprintf(fields, sizeof fields, "Allow: %s\r\n", match->allow);
    refuse(exchange, style, "method_not_allowed", fields, "%.*s does not take %.*s, but %s",
           cut(request->path), request->path.data, cut(request->method), request->method.data,
           match->allow);
    return false;
}

/* Whose request this is. The path that was routed is the path that is asked about here. */
static bool identify(server_t *server, http_exchange_t *exchange, const endpoint_t *endpoint,
                     principal_t *principal) {
    if (endpoint->scope == SCOPE_NONE) return true;
    if (!keys_identify(server->keys, http_request(exchange), principal)) {
        counters_refused(server->counters, REFUSAL_KEY);
        refuse(exchange, endpoint->style, "invalid_api_key", "WWW-Authenticate: Bearer\r\n",
               "this server wants a key that it knows: Authorization: Bearer KEY");
        return false;
    }
    if ((principal->scopes & endpoint->scope) == 0) {
        counters_refused(server->counters, REFUSAL_SCOPE);
        refuse(exchange, endpoint->style, "permission_denied", NULL, "%s", keys_in_use(server->keys)
               ? "the scopes of this key do not cover this endpoint"
               : "this endpoint needs a key with its scope (--api-key-file)");
        return false;
    }
    principal->client = principal->key_id != 0 ? principal->key_id
                                               : http_request(exchange)->client;
    return true;
}

static bool check_body(const server_t *server, http_exchange_t *exchange,
                       const endpoint_t *endpoint) {
    const http_request_t *request = http_request(exchange);
    if (!accept_answers(request)) {
        refuse(exchange, endpoint->style, "not_acceptable", NULL,
               "the answer is JSON (application/json), which Accept does not name");
        return false;
    }
    if (!endpoint->has_body && request->body_declared != 0) {
        refuse(exchange, endpoint->style, "invalid_request", NULL, "%s takes no body",
               endpoint->path);
        return false;
    }
    if (endpoint->has_body && !has_json_type(request)) {
        refuse(exchange, endpoint->style, "unsupported_media_type", NULL,
               "the body must be JSON: Content-Type: application/json");
        return false;
    }
    if (request->body_declared != UINT64_MAX && request->body_declared > server->body_bytes_max) {
        refuse(exchange, endpoint->style, "body_too_large", NULL,
               "the body has %llu bytes; at most %llu are taken",
               (unsigned long long)request->body_declared,
               (unsigned long long)server->body_bytes_max);
        return false;
    }
    return true;
}

/* What depends on how the server is now. Probes are always answered. */
static bool check_state(server_t *server, http_exchange_t *exchange, const endpoint_t *endpoint) {
    if (endpoint->scope == SCOPE_NONE) return true;
    if (!atomic_load(&server->is_loaded)) {
        refuse(exchange, endpoint->style, "model_loading", NULL, "the model is loading");
        return false;
    }
    if (endpoint->scope == SCOPE_GENERATE && atomic_load(&server->is_draining)) {
        refuse(exchange, endpoint->style, "shutting_down", NULL, "the server is shutting down");
        return false;
    }
    return true;
}

/* ---- the visit ------------------------------------------------------------------------------- */

/* Gives back room that reserve_body has taken. */
static void give_body(visit_t *visit, uint64_t n_bytes) {
    atomic_fetch_sub(&visit->server->bodies_bytes, n_bytes);
    clients_give(visit->server->clients, visit->principal.client, n_bytes);
    visit->body_bytes -= n_bytes;
}

static void visit_destroy(void *user) {
    visit_t *visit = user;
    give_body(visit, visit->body_bytes);
    if (visit->is_entered) keys_leave(visit->server->keys, visit->principal.key_id);
    free(visit);
}

static visit_t *visit_create(server_t *server, http_exchange_t *exchange,
                             const endpoint_match_t *match, const principal_t *principal) {
    visit_t *visit = calloc(1, sizeof *visit);
    if (visit == NULL) {
        refuse(exchange, match->endpoint->style, "overloaded", NULL, "the server is out of memory");
        return NULL;
    }
    visit->server = server;
    visit->exchange = exchange;
    visit->endpoint = match->endpoint;
    visit->principal = *principal;
    visit->tail = match->tail;
    visit->tail_bytes = match->tail_bytes;
    const size_t n_id = put_id(match->endpoint->style, http_request(exchange)->id, visit->fields,
                               sizeof visit->fields);
    put_cors(http_request(exchange), visit->fields + n_id, sizeof visit->fields - n_id);
    http_set_user(exchange, visit, visit_destroy);
    return visit;
}

/* Counts the request among what its key has in flight, until the exchange is gone. */
static bool enter(visit_t *visit) {
    if (visit->endpoint->scope != SCOPE_GENERATE) return true;
    visit->is_entered = keys_enter(visit->server->keys, visit->principal.key_id);
    if (visit->is_entered) return true;
    counters_refused(visit->server->counters, REFUSAL_IN_FLIGHT);
    refuse(visit->exchange, visit->endpoint->style, "too_many_requests", NULL,
           "the key has as many requests in flight as it may have");
    return false;
}

/* Room for the body: as much as it says it has, or may have. A client that holds bodies open must
 * leave room for those of others. */
static bool reserve_body(visit_t *visit) {
    server_t *server = visit->server;
    const uint64_t declared = http_request(visit->exchange)->body_declared;
    const uint64_t n = declared < server->body_bytes_max ? declared : server->body_bytes_max;
    if (!clients_take(server->clients, visit->principal.client, n,
                      server->bodies_bytes_max / CLIENT_SHARE)) {
        counters_refused(server->counters, REFUSAL_IN_FLIGHT);
        refuse(visit->exchange, visit->endpoint->style, "too_many_requests", NULL,
               "the bodies of this client's requests take all the memory that one may have");
        return false;
    }
    const uint64_t before = atomic_fetch_add(&server->bodies_bytes, n);
    visit->body_bytes = n;
    if (n == 0 || before + n <= server->bodies_bytes_max) return true;
    refuse(visit->exchange, visit->endpoint->style, "overloaded", NULL,
           "the bodies of other requests take all the memory there is for them");
    return false;
}

static void run(visit_t *visit) {
    const http_request_t *request = http_request(visit->exchange);
    http_retain(visit->exchange); /* the sink's */
    const call_params_t params = {
        .server = visit->server, .endpoint = visit->endpoint, .principal = visit->principal,
        .id = request->id, .body = request->body != NULL ? request->body : "",
        .body_bytes = request->body_bytes, .tail = visit->tail, .tail_bytes = visit->tail_bytes,
        .sink = &http_sink, .sink_user = visit};
    if (visit->endpoint->has_body && atomic_load(&visit->server->log_prompts)) {
        logger_prompt(visit->server->logger, request->id, params.body, params.body_bytes);
    }
    call_t *call = call_create(&params);
    if (call == NULL) return;
    visit->endpoint->run(call);
    call_release(call);
}

void server_on_head(void *user, http_exchange_t *exchange) {
    server_t *server = user;
    const http_request_t *request = http_request(exchange);
    const call_style_t style = error_style_of_path(request->path.data, request->path.n_bytes);
    if (!check_access(server, exchange, style) || answer_preflight(exchange)) return;
    endpoint_match_t match;
    principal_t principal = {0};
    if (!find_endpoint(exchange, style, &match)) return;
    if (!identify(server, exchange, match.endpoint, &principal)) return;
    if (!check_body(server, exchange, match.endpoint)) return;
    if (!check_state(server, exchange, match.endpoint)) return;
    visit_t *visit = visit_create(server, exchange, &match, &principal);
    if (visit == NULL || !enter(visit) || !reserve_body(visit)) return;
    /* What needs no key answers at once: on this thread, whose turning /livez tells about. */
    if (match.endpoint->scope == SCOPE_NONE) {
        run(visit);
        return;
    }
    http_set_group(exchange, principal.client); /* no client takes all the workers */
    http_accept(exchange, match.endpoint->has_body ? server->body_bytes_max : 0);
}

void server_on_request(void *user, http_exchange_t *exchange) {
    (void)user;
    visit_t *visit = http_user(exchange);
    const uint64_t n_bytes = http_request(exchange)->body_bytes;
    /* Chunked: now it is known how much it is. */
    if (n_bytes < visit->body_bytes) give_body(visit, visit->body_bytes - n_bytes);
    run(visit);
}

void server_on_done(void *user, const http_request_t *request, int status, uint64_t n_bytes) {
    server_t *server = user;
    visit_t *visit = request->user; /* NULL: refused before it was one */
    const endpoint_match_t match = endpoint_find(request->method.data, request->method.n_bytes,
                                                 request->path.data, request->path.n_bytes);
    const uint64_t now_ns = kri_clock_ns();
    const uint64_t ns = now_ns > request->begin_ns ? now_ns - request->begin_ns : 0;
    counters_request(server->counters,
                     match.endpoint != NULL ? (endpoint_id_t)(match.endpoint - endpoints)
                                            : N_ENDPOINTS,
                     request->method, status, ns, request->body_bytes, n_bytes);
    log_request_t line = {.request = request, .status = status, .ms = (double)ns / 1e6,
                          .route = match.endpoint != NULL ? match.endpoint->path : NULL,
                          .n_bytes = n_bytes};
    if (visit != NULL) {
        line.key_name = visit->principal.name;
        line.has_tokens = atomic_load(&visit->has_tokens);
        line.n_prompt = atomic_load(&visit->n_prompt);
        line.n_cached = atomic_load(&visit->n_cached);
        line.n_generated = atomic_load(&visit->n_generated);
    }
    logger_request(server->logger, &line);
}
