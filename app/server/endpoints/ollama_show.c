/* ollama_show.c: POST /api/show. modelfile names the model, not the file on this machine. */
#include "ollama.h"
#include "server/endpoints.h"
#include "texts.h"

static void put_text(const char *text, kri_buffer_t *out) {
    (void)json_put_string(out, text ? text : "", text ? strlen(text) : 0);
}

static void put_count(const char *prefix, const char *name, uint64_t n, kri_buffer_t *out) {
    (void)kri_buffer_printf(out, ",\"%s.%s\":%llu", prefix, name, (unsigned long long)n);
}

static void put_model_info(const kr_model_info_t *info, kri_buffer_t *out) {
    const char *arch = info->arch; /* a name of archs.def */
    texts_put(out, "{\"general.architecture\":");
    put_text(arch, out);
    texts_put(out, ",\"general.basename\":");
    put_text(info->name, out);
    put_count("general", "parameter_count", info->n_params, out);
    put_count(arch, "block_count", info->n_layers, out);
    put_count(arch, "context_length", info->n_ctx_train, out);
    put_count(arch, "embedding_length", info->n_embd, out);
    put_count(arch, "feed_forward_length", info->n_ff, out);
    put_count(arch, "attention.head_count", info->n_heads, out);
    put_count(arch, "attention.head_count_kv", info->n_kv_heads, out);
    put_count(arch, "vocab_size", info->n_vocab, out);
    texts_put(out, "}");
}

static void show(call_t *call, const server_model_t *model) {
    kri_buffer_t out;
    kri_buffer_init(&out, OLLAMA_OUT_BYTES_MAX);
    texts_put(&out, "{\"modelfile\":\"# the model of this name on a kr server\\nFROM ");
    kri_buffer_t name;
    kri_buffer_init(&name, 4096);
    put_text(model->name, &name);
    if (name.n_bytes >= 2) (void)kri_buffer_append(&out, name.data + 1, name.n_bytes - 2);
    kri_buffer_deinit(&name);
    texts_put(&out, "\\n\",\"parameters\":\"\",\"template\":");
    put_text(model->info.chat_template, &out);
    texts_put(&out, ",\"details\":");
    ollama_put_details(model, &out);
    texts_put(&out, ",\"model_info\":");
    put_model_info(&model->info, &out);
    texts_put(&out, ",\"capabilities\":[\"completion\",\"embedding\"],\"modified_at\":");
    ollama_put_time(model->created, 0, &out);
    texts_put(&out, "}");
    ollama_reply(call, &out);
}

void endpoint_ollama_show(call_t *call) {
    json_t *body = call_body(call);
    if (!body) return;
    json_mistake_t mistake = {0};
    json_reader_t reader;
    const server_model_t *model = NULL;
    const char *shown = NULL;
    bool is_verbose = false; /* tables of the tokenizer, which are not shown */
    json_open(&reader, body, NULL, &mistake);
    ollama_read_model(call, &reader, &model, &shown);
    json_read_bool(&reader, "verbose", &is_verbose);
    json_finish(&reader);
    if (mistake.is_set) call_fail_json(call, &mistake);
    else show(call, model);
}
