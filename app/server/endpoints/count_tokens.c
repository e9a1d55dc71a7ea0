/* count_tokens.c: POST /v1/messages/count_tokens of the Anthropic API: the tokens that the same
 * /v1/messages would compute or find in the cache, the template's own among them. */
#include "anthropic.h"
#include "server/endpoints.h"
#include "server/server.h"

static void count(call_t *call, const job_t *job) {
    const job_prompt_t *prompt = &job->prompts[0];
    const server_model_t *model = server_find_model(call_server(call), job->model);
    if (!model) {
        call_fail(call, "model_not_found", "model", "the model '%s' does not exist", job->model);
        return;
    }
    size_t n_tokens = 0;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status =
        kr_model_chat_tokenize(model->model, prompt->messages, prompt->n_messages, 1, NULL, 0,
                               &n_tokens, &error);
    /* KR_E_LIMIT with a number only says that no room was given for the tokens. */
    if (status != KR_OK && (status != KR_E_LIMIT || n_tokens == 0)) {
        call_fail_status(call, status, &error);
        return;
    }
    kri_buffer_t out;
    kri_buffer_init(&out, 128);
    const kr_status_t put = kri_buffer_printf(&out, "{\"input_tokens\":%zu}", n_tokens);
    if (put == KR_OK) call_reply_json(call, 200, &out);
    else call_fail_status(call, put, NULL);
    kri_buffer_deinit(&out);
}

void endpoint_count_tokens(call_t *call) {
    static const job_style_t none = {0};
    job_input_t input;
    job_t *job = job_open(call, "", &none, 0, &input);
    if (!job) return;
    anthropic_read_prompt(job, &input.reader);
    json_finish(&input.reader);
    if (job_refuse_mistake(job, &input.mistake)) return;
    count(call, job);
    job_discard(job);
}
