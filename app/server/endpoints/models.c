/* models.c: GET /v1/models and /v1/models/{id}: OpenAI's objects, and under "kr" what the engine
 * does with the model. No path of the machine is told. */
#include <string.h>

#include "server/endpoints.h"
#include "server/server.h"

#define ROW_BYTES_MAX 8192u

static void put_text(kri_buffer_t *out, const char *name, const char *text) {
    (void)kri_buffer_printf(out, ",\"%s\":", name);
    if (text == NULL) (void)kri_buffer_append(out, "null", 4);
    else (void)json_put_string(out, text, strlen(text));
}

static void put_model(kri_buffer_t *out, const server_model_t *model) {
    const kr_model_info_t *info = &model->info;
    const kr_session_info_t *session = &model->session;
    (void)kri_buffer_printf(out, "{\"id\":");
    (void)json_put_string(out, model->name, strlen(model->name));
    (void)kri_buffer_printf(out,
                            ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"kr\",\"kr\":{"
                            "\"n_ctx\":%u,\"n_ctx_train\":%u,\"n_vocab\":%u,\"n_params\":%llu,"
                            "\"model_bytes\":%llu,\"n_seqs\":%u,\"kv_bytes\":%llu",
                            (long long)model->created, session->n_ctx, info->n_ctx_train,
                            info->n_vocab, (unsigned long long)info->n_params,
                            (unsigned long long)info->model_bytes, session->n_seqs,
                            (unsigned long long)session->kv_bytes);
    put_text(out, "kv", kr_dtype_name(session->kv_dtype));
    put_text(out, "arch", info->arch);
    put_text(out, "format", info->format);
    put_text(out, "isa", session->isa);
    (void)kri_buffer_printf(out, ",\"has_chat_template\":%s}}",
                            info->has_chat_template ? "true" : "false");
}

static void reply(call_t *call, kri_buffer_t *out) {
    if (out->status == KR_OK) call_reply_json(call, 200, out);
    else call_fail_status(call, out->status, NULL);
    kri_buffer_deinit(out);
}

void endpoint_models(call_t *call) {
    const server_t *server = call_server(call);
    kri_buffer_t out;
    kri_buffer_init(&out, (size_t)ROW_BYTES_MAX * (SERVER_MODELS_MAX + 1));
    (void)kri_buffer_printf(&out, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = 0; i < server->n_models; i++) {
        if (i > 0) (void)kri_buffer_append(&out, ",", 1);
        put_model(&out, &server->models[i]);
    }
    (void)kri_buffer_append(&out, "]}", 2);
    reply(call, &out);
}

void endpoint_model(call_t *call) {
    const server_model_t *model = server_find_model(call_server(call), call_tail(call));
    if (model == NULL) {
        call_fail(call, "model_not_found", "model", "the model '%.200s' does not exist",
                  call_tail(call));
        return;
    }
    kri_buffer_t out;
    kri_buffer_init(&out, ROW_BYTES_MAX);
    put_model(&out, model);
    reply(call, &out);
}
