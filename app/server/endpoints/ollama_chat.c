/* ollama_chat.c: POST /api/chat. */
#include "ollama.h"
#include "server/endpoints.h"
#include "texts.h"

static bool read_message(texts_list_t *list, json_reader_t *message) {
    static const char *const roles[] = {"system", "user", "assistant", NULL};
    uint32_t role = 0;
    const char *text = "";
    size_t n_bytes = 0;
    json_require(message, "role");
    json_read_word(message, "role", roles, &role);
    json_require(message, "content");
    json_read_string(message, "content", 0, SIZE_MAX, &text, &n_bytes);
    json_read_neutral(message, "images", "[]");
    json_read_neutral(message, "tool_calls", "[]");
    json_read_neutral(message, "tool_name", "\"\"");
    json_read_neutral(message, "thinking", "\"\"");
    json_finish(message);
    texts_list_add(list, roles[role], text, n_bytes);
    return !message->error->is_set;
}

static void read_messages(job_t *job, json_reader_t *reader, texts_list_t *list) {
    json_t *array = NULL;
    if (!json_read_array(reader, "messages", 0, TEXTS_MESSAGES_MAX, &array)) return;
    const size_t n = json_array_size(array);
    if (!texts_list_init(list, job, n, reader)) return;
    for (size_t i = 0; i < n; i++) {
        json_reader_t message;
        texts_open_element(&message, reader, "messages", array, i);
        if (!read_message(list, &message)) return;
    }
}

void endpoint_ollama_chat(call_t *call) {
    json_t *body = call_body(call);
    if (!body) return;
    json_mistake_t mistake = {0};
    json_reader_t reader;
    const server_model_t *model = NULL;
    texts_list_t list = {0};
    json_open(&reader, body, NULL, &mistake);
    job_t *job = ollama_create(call, &reader, true, &model);
    if (!job) return;
    job->prompt_name = "messages";
    read_messages(job, &reader, &list);
    ollama_read_fields(job, &reader, model);
    json_read_neutral(&reader, "tools", "[]");
    json_finish(&reader);
    if (!mistake.is_set) {
        texts_set_prompt(job, &reader,
                         &(job_prompt_t){.messages = list.messages, .n_messages = list.n});
    }
    if (job_refuse_mistake(job, &mistake)) return;
    if (list.n == 0) ollama_reply_loaded(job);
    else job_run(job);
}
