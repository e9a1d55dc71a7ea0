/* ollama_ps.c: GET /api/ps: the models in memory, which are all. They are kept for ever:
 * expires_at is the last moment that 64 bits of nanoseconds know. */
#include "ollama.h"
#include "server/endpoints.h"
#include "texts.h"

void endpoint_ollama_ps(call_t *call) {
    const server_t *server = call_server(call);
    kri_buffer_t out;
    kri_buffer_init(&out, OLLAMA_OUT_BYTES_MAX);
    texts_put(&out, "{\"models\":[");
    for (uint32_t i = 0; i < server->n_models; i++) {
        const server_model_t *model = &server->models[i];
        texts_put(&out, i > 0 ? ",{" : "{");
        ollama_put_model(model, false, &out);
        (void)kri_buffer_printf(&out,
                                ",\"expires_at\":\"2262-04-11T23:47:16Z\",\"size_vram\":0,"
                                "\"context_length\":%u}", model->session.n_ctx);
    }
    texts_put(&out, "]}");
    ollama_reply(call, &out);
}
