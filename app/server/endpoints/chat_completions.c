/* chat_completions.c: POST /v1/chat/completions in OpenAI's form. */
#include <stdlib.h>
#include <string.h>

#include "openai.h"
#include "server/endpoints.h"

#define MESSAGES_MAX 2048u

/* ---- answers --------------------------------------------------------------------------------- */

static void put_entry(job_t *job, const kr_logprob_t *entry, kri_buffer_t *out) {
    texts_put(out, "{\"token\":");
    job_put_token(job, entry->token, out);
    texts_put(out, ",\"logprob\":");
    openai_put_logprob(entry->logprob, out);
    texts_put(out, ",\"bytes\":");
    job_put_token_bytes(job, entry->token, out);
}

/* tops [n_tops], {-1, ...} where there are fewer. */
static void put_logprob(job_t *job, kr_token_t token, float logprob, const kr_logprob_t *tops,
                        uint32_t n_tops, kri_buffer_t *out) {
    const kr_logprob_t chosen = {token, logprob};
    put_entry(job, &chosen, out);
    texts_put(out, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < n_tops && tops[i].token >= 0; i++) {
        if (i > 0) texts_put(out, ",");
        put_entry(job, &tops[i], out);
        texts_put(out, "}");
    }
    texts_put(out, "]}");
}

static void put_chunk_head(job_t *job, const job_choice_t *choice, kri_buffer_t *out) {
    openai_put_chunk(job, out);
    (void)kri_buffer_printf(out, "\"choices\":[{\"index\":%u,\"delta\":{", choice->choice);
}

static void on_begin(job_t *job, kri_buffer_t *out) {
    if (!openai_begin(job, "chat.completion.chunk", out)) return;
    for (uint32_t i = 0; i < job->n_choices_all; i++) {
        put_chunk_head(job, &job->choices[i], out);
        texts_put(out, "\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},"
                        "\"logprobs\":null,\"finish_reason\":null}]");
        openai_put_tail(job, out);
    }
}

static void on_token(job_t *job, job_choice_t *choice, const kr_event_t *event,
                     kri_buffer_t *out) {
    if (event->text_bytes == 0 && job->n_tops < 0) return;
    put_chunk_head(job, choice, out);
    texts_put(out, "\"content\":");
    (void)json_put_string(out, event->text, event->text_bytes);
    texts_put(out, "},\"logprobs\":");
    if (job->n_tops < 0) {
        texts_put(out, "null");
    } else {
        const uint32_t n_wanted = (uint32_t)job->n_tops;
        const uint32_t n_tops = event->n_logprobs < n_wanted ? event->n_logprobs : n_wanted;
        texts_put(out, "{\"content\":[");
        put_logprob(job, event->token, event->logprob, event->logprobs, n_tops, out);
        texts_put(out, "],\"refusal\":null}");
    }
    texts_put(out, ",\"finish_reason\":null}]");
    openai_put_tail(job, out);
}

static void on_choice(job_t *job, job_choice_t *choice, const kr_event_t *event,
                      kri_buffer_t *out) {
    if (event->text_bytes > 0) {
        put_chunk_head(job, choice, out);
        texts_put(out, "\"content\":");
        (void)json_put_string(out, event->text, event->text_bytes);
        texts_put(out, "},\"logprobs\":null,\"finish_reason\":null}]");
        openai_put_tail(job, out);
    }
    put_chunk_head(job, choice, out);
    (void)kri_buffer_printf(out, "},\"logprobs\":null,\"finish_reason\":\"%s\"}],",
                            job_finish_word(choice->finish));
    job_put_timings(job, out);
    openai_put_tail(job, out);
}

static void put_choice(job_t *job, const job_choice_t *choice, kri_buffer_t *out) {
    (void)kri_buffer_printf(out, "{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":",
                            choice->choice);
    (void)json_put_string(out, choice->text.data != NULL ? choice->text.data : "",
                          choice->text.n_bytes);
    texts_put(out, ",\"refusal\":null,\"annotations\":[]},\"logprobs\":");
    if (job->n_tops < 0) {
        texts_put(out, "null");
    } else {
        const uint32_t n_tops = (uint32_t)job->n_tops;
        texts_put(out, "{\"content\":[");
        for (uint32_t i = 0; i < choice->n_tokens; i++) {
            if (i > 0) texts_put(out, ",");
            const job_top_t *tops = n_tops > 0 ? choice->tops + (size_t)i * n_tops : NULL;
            put_logprob(job, choice->tokens[i], choice->logprobs[i], tops, n_tops, out);
        }
        texts_put(out, "],\"refusal\":null}");
    }
    (void)kri_buffer_printf(out, ",\"finish_reason\":\"%s\"}", job_finish_word(choice->finish));
}

static void on_whole(job_t *job, kri_buffer_t *out) {
    openai_put_whole(job, "chat.completion", put_choice, out);
}

static const job_style_t style = {
    .content_type = "text/event-stream", .drops_body = true, .begin = on_begin, .token = on_token,
    .choice = on_choice, .done = openai_put_done, .failed = openai_put_failed, .whole = on_whole,
    .destroy = openai_destroy};

/* ---- requests -------------------------------------------------------------------------------- */

/* Words of the request and what the template is told; NULL: not built. */
static const char *const roles[] = {"system", "developer", "user", "assistant",
                                    "tool",   "function",  NULL};
static const char *const template_roles[] = {"system", "system", "user", "assistant", NULL, NULL};

static void read_message(job_t *job, json_reader_t *reader, kr_message_t *message) {
    static const char *const types[] = {"text", NULL};
    uint32_t role = 0;
    json_require(reader, "role");
    if (!json_read_word(reader, "role", roles, &role)) return;
    if (template_roles[role] == NULL) {
        json_fail(reader, "unsupported_parameter", "role",
                  "messages of role %s are not supported: tools are not built", roles[role]);
        return;
    }
    message->role = template_roles[role];
    json_read_neutral(reader, "name", NULL);
    if (role == 3) {
        json_read_neutral(reader, "refusal", NULL);
        json_read_neutral(reader, "audio", NULL);
        json_read_neutral(reader, "function_call", NULL);
        json_read_neutral(reader, "tool_calls", "[]");
        json_read_neutral(reader, "annotations", "[]");
    }
    json_require(reader, "content");
    if (!job_read_content(job, reader, "content", types, &message->content,
                          &message->content_bytes)) {
        json_fail(reader, "invalid_value", "content", "content is null");
    }
    json_finish(reader);
}

static void read_messages(job_t *job, json_reader_t *reader) {
    json_t *array = NULL;
    json_require(reader, "messages");
    if (!json_read_array(reader, "messages", 1, MESSAGES_MAX, &array)) return;
    const size_t n = json_array_size(array);
    kr_message_t *messages = job_alloc(job, n * sizeof *messages);
    job->prompts = job_alloc(job, sizeof *job->prompts);
    if (messages == NULL || job->prompts == NULL) {
        texts_no_memory(reader);
        return;
    }
    for (size_t i = 0; i < n && !reader->error->is_set; i++) {
        char path[32];
        json_reader_t inner;
        (void)snprintf(path, sizeof path, "messages.%zu", i);
        json_open(&inner, json_array_get(array, i), path, reader->error);
        read_message(job, &inner, &messages[i]);
    }
    job->prompts[0] = (job_prompt_t){.messages = messages, .n_messages = n};
    job->n_prompts = 1;
}

static void read_lengths(job_t *job, json_reader_t *reader) {
    int64_t old = 0, new = 0;
    const bool has_old = json_read_integer(reader, "max_tokens", 1, INT32_MAX, &old);
    const bool has_new = json_read_integer(reader, "max_completion_tokens", 1, INT32_MAX, &new);
    if (has_old && has_new && old != new) {
        json_fail(reader, "invalid_value", "max_tokens",
                  "max_tokens and max_completion_tokens differ: give one");
    }
    job->n_tokens_max = (uint32_t)(has_new ? new : old);
    if (has_new) job->length_name = "max_completion_tokens";
}

static void read_logprobs(job_t *job, json_reader_t *reader) {
    bool is_wanted = false;
    int64_t n = 0;
    (void)json_read_bool(reader, "logprobs", &is_wanted);
    const bool has_tops = json_read_integer(reader, "top_logprobs", 0, 20, &n);
    if (has_tops && n > 0 && !is_wanted) {
        json_fail(reader, "invalid_value", "top_logprobs", "top_logprobs needs logprobs true");
    }
    if (is_wanted) job->n_tops = (int32_t)n;
}

/* Known and not built: at their neutral value only. */
static void read_neutral(json_reader_t *reader) {
    static const char *const choices[] = {"none", "auto", NULL};
    json_t *format = NULL;
    uint32_t index = 0;
    bool flag = false;
    json_read_neutral(reader, "tools", "[]");
    json_read_neutral(reader, "functions", "[]");
    if (json_read_any(reader, "tool_choice", &format) && !json_is_string(format)) {
        json_fail(reader, "unsupported_parameter", "tool_choice", "tools are not built");
    } else {
        (void)json_read_word(reader, "tool_choice", choices, &index);
    }
    json_read_neutral(reader, "function_call", "\"none\"");
    (void)json_read_bool(reader, "parallel_tool_calls", &flag); /* without tools it says nothing */
    json_read_neutral(reader, "response_format", "{\"type\":\"text\"}");
    json_read_neutral(reader, "modalities", "[\"text\"]");
    json_read_neutral(reader, "audio", NULL);
    json_read_neutral(reader, "prediction", NULL);
    json_read_neutral(reader, "reasoning_effort", "\"none\"");
    json_read_neutral(reader, "verbosity", "\"medium\"");
    json_read_neutral(reader, "web_search_options", NULL);
    json_read_neutral(reader, "prompt_cache_retention", "\"in_memory\"");
}

void endpoint_chat_completions(call_t *call) {
    job_input_t input;
    job_t *job = job_open(call, "chatcmpl-", &style, sizeof(openai_job_t), &input);
    if (job == NULL) return;
    json_reader_t *reader = &input.reader;
    job->prompt_name = "messages";
    job_read_fields(job, reader, JOB_FIELD_OPENAI | JOB_FIELD_OWN);
    read_messages(job, reader);
    read_lengths(job, reader);
    read_logprobs(job, reader);
    read_neutral(reader);
    json_finish(reader);
    if (!job_refuse_mistake(job, &input.mistake)) job_run(job);
}
