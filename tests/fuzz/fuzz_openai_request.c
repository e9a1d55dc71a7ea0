/* fuzz_openai_request.c: bodies of chat completions and completions up to the job that would run.
 * The server has no model, so a good body is answered with 404 and every other with 400. The first
 * byte chooses the endpoint. */
#include <stdlib.h>
#include <string.h>

#include "server/endpoints.h"
#include "server/server.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct answer_s {
    int status, n_answers;
    bool is_destroyed, is_object;
} answer_t;

static void on_reply(void *sink, int status, const char *type, const char *fields,
                     const char *body, size_t n_bytes) {
    answer_t *answer = sink;
    (void)type, (void)fields;
    answer->status = status;
    answer->n_answers++;
    json_t *root = json_loadb(body, n_bytes, 0, NULL);
    answer->is_object = json_is_object(json_object_get(root, "error"));
    json_decref(root);
}
/* Nothing runs, so nothing may be streamed. */
static void on_begin(void *sink, const char *type, const char *fields, bool is_event_stream) {
    (void)sink, (void)type, (void)fields, (void)is_event_stream;
    abort();
}
static void on_destroy(void *sink) { ((answer_t *)sink)->is_destroyed = true; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const paths[] = {"/v1/chat/completions", "/v1/completions"};
    static server_t server = {.deadline_ms = 600000};
    if (size == 0) return 0;
    const call_sink_t sink = {
        .reply = on_reply, .begin = on_begin, .destroy = on_destroy,
        .can_stream = (data[0] & 2) != 0};
    const char *path = paths[data[0] & 1];
    char *body = malloc(size);
    if (body == NULL) return 0;
    memcpy(body, data + 1, size - 1);
    body[size - 1] = '\0';
    answer_t answer = {0};
    const call_params_t params = {
        .server = &server, .endpoint = endpoint_find("POST", 4, path, strlen(path)).endpoint,
        .id = "fuzz", .body = body, .body_bytes = size - 1, .tail = "",
        .sink = &sink, .sink_user = &answer};
    call_t *call = call_create(&params);
    if (call != NULL) {
        params.endpoint->run(call);
        call_release(call);
    }
    free(body);
    if (!answer.is_destroyed || answer.n_answers != 1 || !answer.is_object) abort();
    if (answer.status != 400 && answer.status != 404) abort();
    return 0;
}
