/* openai.c: see openai.h. */
#include "openai.h"

#include <math.h>
#include <string.h>

#define NO_LOGPROB (-9999.0f)

void openai_put(kri_buffer_t *out, const char *text) {
    (void)kri_buffer_append(out, text, strlen(text));
}

void openai_put_head(const job_t *job, const char *object, kri_buffer_t *out) {
    (void)kri_buffer_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":",
                            job->id, object, (long long)job->created);
    (void)json_put_string(out, job->model_name, strlen(job->model_name));
    openai_put(out, ",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_");
    openai_put(out, kr_commit());
    openai_put(out, "\",");
}

void openai_put_usage(const job_t *job, kri_buffer_t *out) {
    const job_usage_t *usage = &job->usage;
    const unsigned long long n_prompt = usage->n_prompt, n_generated = usage->n_generated;
    (void)kri_buffer_printf(out,
                            "\"usage\":{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,"
                            "\"total_tokens\":%llu,"
                            "\"prompt_tokens_details\":{\"cached_tokens\":%llu,\"audio_tokens\":0},"
                            "\"completion_tokens_details\":{\"reasoning_tokens\":0,"
                            "\"audio_tokens\":0,\"accepted_prediction_tokens\":0,"
                            "\"rejected_prediction_tokens\":0}}",
                            n_prompt, n_generated, n_prompt + n_generated,
                            (unsigned long long)usage->n_cached);
}

void openai_put_tail(const job_t *job, kri_buffer_t *out) {
    openai_put(out, job->with_usage ? ",\"usage\":null}\n\n" : "}\n\n");
}

void openai_put_done(job_t *job, const kri_buffer_t *head, kri_buffer_t *out) {
    if (job->with_usage) {
        (void)kri_buffer_append(out, head->data, head->n_bytes);
        openai_put(out, "\"choices\":[],");
        openai_put_usage(job, out);
        openai_put(out, ",");
        job_put_timings(job, out);
        openai_put(out, "}\n\n");
    }
    openai_put(out, "data: [DONE]\n\n");
}

void openai_put_failed(job_t *job, kr_status_t status, const kr_error_t *error,
                       kri_buffer_t *out) {
    openai_put(out, "data: ");
    call_error_body(job->call, status, error, out);
    openai_put(out, "\n\n");
}

void openai_put_logprob(float logprob, kri_buffer_t *out) {
    (void)json_put_float(out, isfinite(logprob) ? logprob : NO_LOGPROB);
}
