/* ollama_tags.c: GET /api/tags: the models of this server. modified_at is when they were loaded. */
#include "ollama.h"
#include "server/endpoints.h"
#include "texts.h"

void endpoint_ollama_tags(call_t *call) {
    const server_t *server = call_server(call);
    kri_buffer_t out;
    kri_buffer_init(&out, OLLAMA_OUT_BYTES_MAX);
    texts_put(&out, "{\"models\":[");
    for (uint32_t i = 0; i < server->n_models; i++) {
        texts_put(&out, i > 0 ? ",{" : "{");
        ollama_put_model(&server->models[i], true, &out);
        texts_put(&out, "}");
    }
    texts_put(&out, "]}");
    ollama_reply(call, &out);
}
