/* apply_template.c: POST /apply-template in llama-server's form: the body of a chat completion ->
 * {"prompt": TEXT} as the model's template writes it, without the BOS in front. To look at: sent
 * back as a prompt, what stands for control tokens would be text. */
#include <stdlib.h>
#include <string.h>

#include "dry.h"
#include "server/endpoints.h"
#include "server/job_impl.h"
#include "text_tools.h"

void endpoint_apply_template(call_t *call) { endpoint_chat_completions(call); }

void template_job(job_t *job, const server_model_t *model) {
    const job_prompt_t *prompt = &job->prompts[0];
    kr_error_t error;
    kr_error_init(&error);
    size_t n_bytes = 0;
    char *text = NULL;
    kr_status_t status = kr_model_chat_render(model->model, prompt->messages, prompt->n_messages, 1,
                                              NULL, 0, &n_bytes, &error);
    if (status == KR_E_LIMIT && n_bytes > 0) {
        text = malloc(n_bytes);
        status = text == NULL ? KR_E_NOMEM
                              : kr_model_chat_render(model->model, prompt->messages,
                                                     prompt->n_messages, 1, text, n_bytes,
                                                     &n_bytes, &error);
    }
    if (status == KR_OK) {
        kri_buffer_t out;
        kri_buffer_init(&out, TEXT_TOOLS_BYTES_MAX);
        (void)kri_buffer_printf(&out, "{\"prompt\":");
        (void)json_put_string(&out, text != NULL ? text : "", n_bytes);
        (void)kri_buffer_append(&out, "}", 1);
        text_tools_reply(job->call, &out);
    } else {
        job_name_error(job, 0, &error);
        call_fail_status(job->call, status, &error);
    }
    free(text);
}
