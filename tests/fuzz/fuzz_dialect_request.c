/* fuzz_dialect_request.c: bodies of the Anthropic, Ollama, Responses and embeddings endpoints up to
 * the job that would run: the server has a model (its tokenizer) and no engine. The first byte
 * chooses the endpoint and whether the sink can stream. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/endpoints.h"
#include "server/responses_store.h"
#include "server/server.h"
#include "tiny_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct answer_s {
    call_style_t style;
    int status, n_answers;
    bool is_destroyed;
} answer_t;

static void require(bool condition) {
    if (!condition) abort();
}

/* Every error has the form of its dialect; what is no error says 200. */
static void check_body(const answer_t *answer, const char *body, size_t n_bytes) {
    json_t *root = json_loadb(body, n_bytes, 0, NULL);
    const json_t *error = json_object_get(root, "error");
    require(json_is_object(root));
    switch (answer->status) {
    case 200: require(!error || json_is_null(error)); break;
    case 400:
    case 404:
        if (answer->style == STYLE_OLLAMA) require(json_is_string(error));
        else require(json_is_string(json_object_get(error, "message")));
        if (answer->style == STYLE_ANTHROPIC) require(json_object_get(root, "type") != NULL);
        break;
    default: abort();
    }
    json_decref(root);
}

static void on_reply(void *sink, int status, const char *type, const char *fields,
                     const char *body, size_t n_bytes) {
    answer_t *answer = sink;
    (void)type, (void)fields;
    answer->status = status;
    answer->n_answers++;
    check_body(answer, body, n_bytes);
}
/* Nothing runs, so nothing may be streamed. */
static void on_begin(void *sink, const char *type, const char *fields, bool is_event_stream) {
    (void)sink, (void)type, (void)fields, (void)is_event_stream;
    abort();
}
static void on_destroy(void *sink) { ((answer_t *)sink)->is_destroyed = true; }

static kr_model_t open_model(void) {
    char path[] = "/tmp/kr-fuzz-XXXXXX";
    const int fd = mkstemp(path);
    kr_model_t model = NULL;
    kr_model_params_t params;
    const tiny_config_t config = tiny_config("micro_llama");
    gguf_bytes_t file = tiny_model(&config);
    kr_model_params_init(&params);
    params.vocab_only = 1;
    require(fd >= 0 && close(fd) == 0 && gguf_write(&file, path) == 0);
    require(kr_model_open(path, &params, &model, NULL) == KR_OK);
    (void)unlink(path);
    free(file.data);
    return model;
}

static server_t *the_server(void) {
    static server_t server = {.deadline_ms = 600000, .n_models = 1};
    server_model_t *model = &server.models[0];
    if (model->model) return &server;
    model->model = open_model();
    strcpy(model->name, "m");
    kr_model_info_init(&model->info);
    kr_session_info_init(&model->session);
    require(kr_model_info(model->model, &model->info) == KR_OK);
    model->session.n_ctx = 64;
    require(responses_store_create(4, 1 << 16, &server.responses) == KR_OK);
    const kr_message_t kept[] = {{"user", "hi", 2}, {"assistant", "ho", 2}};
    const response_t response = {
        .id = "resp_a", .messages = kept, .n_messages = 2, .body = "{}", .body_bytes = 2};
    require(responses_store_put(server.responses, &response) == KR_OK);
    return &server;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const paths[] = {
        "/v1/messages",  "/v1/messages/count_tokens", "/v1/responses", "/v1/embeddings",
        "/api/chat",     "/api/generate",             "/api/embed",    "/api/show"};
    if (size == 0) return 0;
    const call_sink_t sink = {
        .reply = on_reply, .begin = on_begin, .destroy = on_destroy,
        .can_stream = (data[0] & 8) != 0};
    const char *path = paths[data[0] & 7];
    char *body = malloc(size);
    require(body != NULL);
    memcpy(body, data + 1, size - 1);
    body[size - 1] = '\0';
    const endpoint_t *endpoint = endpoint_find("POST", 4, path, strlen(path)).endpoint;
    answer_t answer = {.style = endpoint->style};
    const call_params_t params = {
        .server = the_server(), .endpoint = endpoint, .id = "fuzz", .body = body,
        .body_bytes = size - 1, .tail = "", .sink = &sink, .sink_user = &answer};
    call_t *call = call_create(&params);
    if (call != NULL) {
        endpoint->run(call);
        call_release(call);
    }
    free(body);
    require(answer.is_destroyed && answer.n_answers == 1);
    return 0;
}
