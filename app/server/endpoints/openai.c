/* openai.c: see openai.h. */
#include "openai.h"

#include <math.h>
#include <string.h>

#define HEAD_BYTES_MAX 65536u
#define NO_LOGPROB (-9999.0f)

void openai_put_head(const job_t *job, const char *object, kri_buffer_t *out) {
    (void)kri_buffer_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":",
                            job->id, object, (long long)job->created);
    (void)json_put_string(out, job->model_name, strlen(job->model_name));
    texts_put(out, ",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_");
    texts_put(out, kr_commit());
    texts_put(out, "\",");
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
    texts_put(out, job->with_usage ? ",\"usage\":null}\n\n" : "}\n\n");
}

bool openai_begin(job_t *job, const char *object, kri_buffer_t *out) {
    openai_job_t *self = job->user;
    kri_buffer_init(&self->head, HEAD_BYTES_MAX);
    texts_put(&self->head, "data: ");
    openai_put_head(job, object, &self->head);
    if (self->head.status != KR_OK) out->status = self->head.status;
    return self->head.status == KR_OK;
}

void openai_put_chunk(const job_t *job, kri_buffer_t *out) {
    const openai_job_t *self = job->user;
    (void)kri_buffer_append(out, self->head.data, self->head.n_bytes);
}

void openai_put_done(job_t *job, kri_buffer_t *out) {
    if (job->with_usage) {
        openai_put_chunk(job, out);
        texts_put(out, "\"choices\":[],");
        openai_put_usage(job, out);
        texts_put(out, ",");
        job_put_timings(job, out);
        texts_put(out, "}\n\n");
    }
    texts_put(out, "data: [DONE]\n\n");
}

void openai_put_whole(job_t *job, const char *object,
                      void (*put_choice)(job_t *job, const job_choice_t *choice,
                                         kri_buffer_t *out), kri_buffer_t *out) {
    openai_put_head(job, object, out);
    texts_put(out, "\"choices\":[");
    for (uint32_t i = 0; i < job->n_choices_all; i++) {
        if (i > 0) texts_put(out, ",");
        put_choice(job, &job->choices[i], out);
    }
    texts_put(out, "],");
    openai_put_usage(job, out);
    texts_put(out, ",");
    job_put_timings(job, out);
    texts_put(out, "}");
}

void openai_destroy(job_t *job) {
    openai_job_t *self = job->user;
    if (self != NULL) kri_buffer_deinit(&self->head);
}

void openai_put_failed(job_t *job, kr_status_t status, const kr_error_t *error,
                       kri_buffer_t *out) {
    texts_put(out, "data: ");
    call_error_body(job->call, status, error, out);
    texts_put(out, "\n\n");
}

void openai_put_logprob(float logprob, kri_buffer_t *out) {
    (void)json_put_float(out, isfinite(logprob) ? logprob : NO_LOGPROB);
}
