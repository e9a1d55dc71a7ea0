/* fuzz_server_request.c: any bytes as the body of any endpoint. Input: a path, a newline, the body.
 * Endpoints that only look (tokenize, explain, ...) run to their end on a tiny model; those that
 * generate run up to the engine, which takes nothing: a body that is good gets 503. Exactly one
 * answer comes, in the endpoint's style, and it is never the server's fault. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "server/endpoints.h"
#include "server/responses_store.h"
#include "server/server.h"
#include "tiny_model.h"

#define BODY_BYTES_MAX 65536u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void require(bool condition) {
    if (!condition) abort();
}

/* ---- servers ------------------------------------------------------------------------------- */

static server_t *make_server(kr_model_t model) {
    server_t *server = NULL;
    kr_engine_params_t engine;
    kr_session_params_t session;
    kr_engine_params_init(&engine);
    engine.n_threads = 1;
    kr_session_params_init(&session);
    session.n_ctx = 64;
    session.n_seqs = 1;
    require(server_create(&engine, &server, NULL) == KR_OK);
    require(server_add_model(server, "tiny", "/nowhere", model, &session, NULL) == KR_OK);
    require(responses_store_create(16, 1 << 20, &server->responses) == KR_OK);
    atomic_store(&server->is_loaded, true);
    return server;
}

/* For endpoints that submit: their engine takes nothing. For the others: explain asks it. */
static server_t *drained, *looking;

static void open_once(void) {
    if (drained != NULL) return;
    const tiny_config_t config = tiny_config("micro_llama");
    gguf_bytes_t file = tiny_model(&config);
    struct kr_model_s *model = NULL;
    require(kri_model_open_memory(file.data, file.n, &model, NULL) == KR_OK);
    drained = make_server(model);
    looking = make_server(model);
    require(kr_engine_drain(drained->engine, 1000) == KR_OK);
}

static server_t *choose_server(const endpoint_t *endpoint) {
    void (*const looks[])(call_t *call) = {endpoint_explain, endpoint_apply_template,
                                           endpoint_tokenize, endpoint_detokenize};
    for (size_t i = 0; i < sizeof looks / sizeof looks[0]; i++) {
        if (endpoint->run == looks[i]) return looking;
    }
    return drained;
}

/* ---- the sink ------------------------------------------------------------------------------ */

typedef struct answer_s {
    const endpoint_t *endpoint;
    int status, n_answers, n_destroyed;
} answer_t;

static void check_error(const endpoint_t *endpoint, const json_t *root) {
    const json_t *error = json_object_get(root, "error");
    if (endpoint->style == STYLE_OLLAMA) {
        require(json_is_string(error));
        return;
    }
    require(json_is_string(json_object_get(error, "message")));
    require(json_is_string(json_object_get(error, "type")));
    if (endpoint->style == STYLE_OPENAI) require(json_is_string(json_object_get(error, "code")));
}

static void on_reply(void *sink, int status, const char *type, const char *fields,
                     const char *body, size_t n_bytes) {
    answer_t *answer = sink;
    (void)fields;
    answer->status = status;
    answer->n_answers++;
    require(status == 200 || status == 400 || status == 404 || status == 503);
    require(strcmp(type, "application/json") == 0);
    json_t *root = json_loadb(body, n_bytes, JSON_ALLOW_NUL, NULL);
    require(root != NULL);
    if (status != 200) check_error(answer->endpoint, root);
    json_decref(root);
}
static void on_begin(void *sink, const char *type, const char *fields, bool is_event_stream) {
    (void)sink, (void)type, (void)fields, (void)is_event_stream;
    abort(); /* nothing is generated */
}
static bool on_write(void *sink, const char *data, size_t n_bytes) {
    (void)sink, (void)data, (void)n_bytes;
    abort();
}
static void on_end(void *sink, bool whole) {
    (void)sink, (void)whole;
    abort();
}
static void on_watch(void *sink, void (*gone)(void *user), void (*taken)(void *user, size_t n),
                     void *user) {
    (void)sink, (void)gone, (void)taken, (void)user;
}
static void on_destroy(void *sink) { ((answer_t *)sink)->n_destroyed++; }

static const call_sink_t sink = {.reply = on_reply, .begin = on_begin, .write = on_write,
                                 .end = on_end, .watch = on_watch, .destroy = on_destroy,
                                 .can_stream = true};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    const uint8_t *newline = n_bytes > 0 ? memchr(data, '\n', n_bytes) : NULL;
    if (newline == NULL) return 0;
    const size_t n_path = (size_t)(newline - data), n_body = n_bytes - n_path - 1;
    const endpoint_t *endpoint = endpoint_find("POST", 4, (const char *)data, n_path).endpoint;
    if (endpoint == NULL || !endpoint->has_body || n_body > BODY_BYTES_MAX) return 0;
    open_once();
    char *body = malloc(n_body + 1);
    require(body != NULL);
    memcpy(body, newline + 1, n_body);
    body[n_body] = '\0';
    answer_t answer = {.endpoint = endpoint};
    const call_params_t params = {.server = choose_server(endpoint), .endpoint = endpoint,
                                  .id = "fuzz", .body = body, .body_bytes = n_body, .tail = "",
                                  .sink = &sink, .sink_user = &answer};
    call_t *call = call_create(&params);
    require(call != NULL);
    endpoint->run(call);
    call_release(call);
    free(body);
    require(answer.n_answers == 1 && answer.n_destroyed == 1);
    return 0;
}
