/* explain.c: POST /v1/explain: the body of a chat completion or of a completion -> what the engine
 * would do with each prompt: its tokens, how much of it is in the prefix cache and where it begins
 * to differ, its place in the queue, memory, and the time to the first token as measured steps
 * predict it. Nothing runs. What would be refused is refused alike. */
#include <stdlib.h>
#include <string.h>

#include "dry.h"
#include "server/endpoints.h"
#include "server/job_impl.h"
#include "text_tools.h"

void endpoint_explain(call_t *call) {
    const json_t *body = call_body(call);
    if (body == NULL) return;
    if (json_object_get(body, "prompt") != NULL) endpoint_completions(call);
    else endpoint_chat_completions(call);
}

/* All n tokens of a prompt, allocated. The engine has found it good already. */
static kr_status_t take_tokens(const job_t *job, uint32_t index, size_t n, kr_token_t **tokens) {
    const job_prompt_t *prompt = &job->prompts[index];
    kr_token_t *made = malloc((n + 1) * sizeof *made);
    size_t n_made = n;
    kr_status_t status = KR_OK;
    if (made == NULL) return KR_E_NOMEM;
    if (prompt->messages != NULL) {
        status = kr_model_chat_tokenize(job->model_handle, prompt->messages, prompt->n_messages, 1,
                                        made, n, &n_made, NULL);
    } else if (prompt->tokens != NULL) {
        memcpy(made, prompt->tokens, n * sizeof *made);
    } else {
        status = kr_model_tokenize(job->model_handle, prompt->text, prompt->n_bytes,
                                   KR_TOKENIZE_ADD_BOS, made, n, &n_made, NULL);
    }
    if (status == KR_OK && n_made != n) status = KR_E_INTERNAL;
    if (status == KR_OK) *tokens = made;
    else free(made);
    return status;
}

static void put_token(job_t *job, kri_buffer_t *out, const char *name, kr_token_t token) {
    (void)kri_buffer_printf(out, ",\"%s\":", name);
    if (token < 0) {
        (void)kri_buffer_append(out, "null", 4);
        return;
    }
    (void)kri_buffer_printf(out, "{\"id\":%d,\"piece\":", token);
    job_put_token(job, token, out);
    (void)kri_buffer_append(out, "}", 1);
}

static void put_prompt(job_t *job, uint32_t index, const kr_explain_t *explain,
                       const kr_token_t *tokens, kri_buffer_t *out) {
    const uint32_t n_tokens = explain->n_prompt;
    (void)kri_buffer_printf(out, "{\"index\":%u,\"n_prompt\":%u,\"tokens\":[", index, n_tokens);
    for (uint32_t i = 0; i < n_tokens; i++) {
        (void)kri_buffer_printf(out, "%s%d", i > 0 ? "," : "", tokens[i]);
    }
    (void)kri_buffer_printf(out, "],\"n_cached\":%u,\"first_difference\":", explain->n_cached);
    if (explain->miss_position < n_tokens) {
        (void)kri_buffer_printf(out, "{\"position\":%u", explain->miss_position);
        put_token(job, out, "token", tokens[explain->miss_position]);
        put_token(job, out, "cached_token", explain->miss_cached);
        (void)kri_buffer_append(out, "}", 1);
    } else {
        (void)kri_buffer_append(out, "null", 4);
    }
    (void)kri_buffer_printf(out, ",\"queue_position\":%u,\"kv_bytes\":%llu,\"ttft_ms\":",
                            explain->queue_position, (unsigned long long)explain->kv_bytes);
    if (explain->ttft_ms > 0) (void)json_put_double(out, explain->ttft_ms);
    else (void)kri_buffer_append(out, "null", 4); /* nothing has been measured yet */
    (void)kri_buffer_append(out, "}", 1);
}

/* False: answered with what is wrong. */
static bool explain_one(job_t *job, uint32_t index, kri_buffer_t *out) {
    kr_request_params_t params;
    kr_segment_t segment;
    kr_explain_t explain;
    kr_error_t error;
    kr_token_t *tokens = NULL;
    kr_error_init(&error);
    kr_explain_init(&explain);
    job_fill_request(job, index, &params, &segment);
    kr_status_t status = kr_engine_explain(call_server(job->call)->engine, &params, &explain,
                                           &error);
    if (status == KR_OK) status = take_tokens(job, index, explain.n_prompt, &tokens);
    if (status == KR_OK) {
        put_prompt(job, index, &explain, tokens, out);
    } else {
        job_name_error(job, index, &error);
        job_fail_early(job, status, &error, true);
    }
    free(tokens);
    return status == KR_OK;
}

void explain_job(job_t *job, const server_model_t *model) {
    kri_buffer_t out;
    kri_buffer_init(&out, TEXT_TOOLS_BYTES_MAX);
    (void)kri_buffer_printf(&out, "{\"object\":\"explain\",\"model\":");
    (void)json_put_string(&out, model->name, strlen(model->name));
    (void)kri_buffer_printf(&out, ",\"n_ctx\":%u,\"prompts\":[", model->session.n_ctx);
    for (uint32_t i = 0; i < job->n_prompts; i++) {
        if (i > 0) (void)kri_buffer_append(&out, ",", 1);
        if (!explain_one(job, i, &out)) {
            kri_buffer_deinit(&out);
            return;
        }
    }
    (void)kri_buffer_append(&out, "]}", 2);
    text_tools_reply(job->call, &out);
}
