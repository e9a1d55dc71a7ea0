/* ollama_generate.c: POST /api/generate: a prompt as one user message (with "system" before it), or
 * as it stands with "raw". A model without a chat template takes the prompt as it stands. */
#include "ollama.h"
#include "server/endpoints.h"
#include "texts.h"

typedef struct prompt_s {
    const char *text, *system;
    size_t n_text, n_system;
    bool is_raw;
} prompt_t;

static void read_prompt(json_reader_t *reader, prompt_t *prompt) {
    json_read_string(reader, "prompt", 0, SIZE_MAX, &prompt->text, &prompt->n_text);
    json_read_string(reader, "system", 0, SIZE_MAX, &prompt->system, &prompt->n_system);
    json_read_bool(reader, "raw", &prompt->is_raw);
    json_read_neutral(reader, "suffix", "\"\"");
    json_read_neutral(reader, "template", "\"\"");
    json_read_neutral(reader, "context", "[]");
    json_read_neutral(reader, "images", "[]");
    if (prompt->is_raw && prompt->n_system > 0) {
        json_fail(reader, "invalid_value", "system",
                  "'system' has no place in a prompt that is 'raw'");
    }
}

static void set_prompt(job_t *job, json_reader_t *reader, const server_model_t *model,
                       const prompt_t *prompt) {
    texts_list_t list;
    const bool is_bare = !model->info.has_chat_template && prompt->n_system == 0;
    if (prompt->is_raw || is_bare) {
        texts_set_prompt(job, reader,
                         &(job_prompt_t){.text = prompt->text, .n_bytes = prompt->n_text});
        return;
    }
    if (!texts_list_init(&list, job, 2, reader)) return;
    if (prompt->n_system > 0) {
        texts_list_add(&list, "system", prompt->system, prompt->n_system);
    }
    texts_list_add(&list, "user", prompt->text, prompt->n_text);
    texts_set_prompt(job, reader,
                     &(job_prompt_t){.messages = list.messages, .n_messages = list.n});
}

void endpoint_ollama_generate(call_t *call) {
    json_t *body = call_body(call);
    if (!body) return;
    json_mistake_t mistake = {0};
    json_reader_t reader;
    const server_model_t *model = NULL;
    prompt_t prompt = {0};
    json_open(&reader, body, NULL, &mistake);
    job_t *job = ollama_create(call, &reader, false, &model);
    if (!job) return;
    job->prompt_name = "prompt";
    read_prompt(&reader, &prompt);
    ollama_read_fields(job, &reader, model);
    json_finish(&reader);
    if (!mistake.is_set) set_prompt(job, &reader, model, &prompt);
    if (job_refuse_mistake(job, &mistake)) return;
    if (prompt.n_text == 0) ollama_reply_loaded(job);
    else job_run(job);
}
