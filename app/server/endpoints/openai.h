/* openai.h: what the answers of OpenAI's generating endpoints have in common. Appends are not
 * checked one by one: job.c looks at kri_buffer_t.status. */
#ifndef SERVER_ENDPOINTS_OPENAI_H
#define SERVER_ENDPOINTS_OPENAI_H

#include "server/job.h"

/* {"id":...,"object":"OBJECT","created":...,"model":...,"system_fingerprint":..., with the comma
 * behind. */
void openai_put_head(const job_t *job, const char *object, kri_buffer_t *out);
/* "usage":{...} of the whole job. */
void openai_put_usage(const job_t *job, kri_buffer_t *out);
/* What goes behind the choices of a stream's chunk: "usage":null if the client asked for usage. */
void openai_put_tail(const job_t *job, kri_buffer_t *out);
/* job_style_t.done: the chunk with usage (head: of chunks), then [DONE]. */
void openai_put_done(job_t *job, const kri_buffer_t *head, kri_buffer_t *out);
/* job_style_t.failed. */
void openai_put_failed(job_t *job, kr_status_t status, const kr_error_t *error,
                       kri_buffer_t *out);
/* -9999 stands for no probability at all, as in OpenAI's answers. */
void openai_put_logprob(float logprob, kri_buffer_t *out);

void openai_put(kri_buffer_t *out, const char *text);

#endif
