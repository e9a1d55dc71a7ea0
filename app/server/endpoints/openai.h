/* openai.h: what the answers of OpenAI's generating endpoints have in common. Appends are not
 * checked one by one: job.c looks at kri_buffer_t.status. */
#ifndef SERVER_ENDPOINTS_OPENAI_H
#define SERVER_ENDPOINTS_OPENAI_H

#include "texts.h"

/* First member of what such a job carries (job_t.user); job memory. */
typedef struct openai_job_s {
    kri_buffer_t head;         /* "data: {...," of every chunk */
} openai_job_t;

/* {"id":...,"object":"OBJECT","created":...,"model":...,"system_fingerprint":..., with the comma
 * behind. */
void openai_put_head(const job_t *job, const char *object, kri_buffer_t *out);
/* "usage":{...} of the whole job. */
void openai_put_usage(const job_t *job, kri_buffer_t *out);
/* What goes behind the choices of a stream's chunk: "usage":null if the client asked for usage. */
void openai_put_tail(const job_t *job, kri_buffer_t *out);
/* Of job_style_t.begin: makes the head of all chunks. False: *out has failed. */
bool openai_begin(job_t *job, const char *object, kri_buffer_t *out);
/* A chunk up to its choices. */
void openai_put_chunk(const job_t *job, kri_buffer_t *out);
/* job_style_t.done: the chunk with usage, then [DONE]. */
void openai_put_done(job_t *job, kri_buffer_t *out);
/* Of job_style_t.whole. */
void openai_put_whole(job_t *job, const char *object,
                      void (*put_choice)(job_t *job, const job_choice_t *choice,
                                         kri_buffer_t *out), kri_buffer_t *out);
/* job_style_t.destroy. */
void openai_destroy(job_t *job);
/* job_style_t.failed. */
void openai_put_failed(job_t *job, kr_status_t status, const kr_error_t *error,
                       kri_buffer_t *out);
/* -9999 stands for no probability at all, as in OpenAI's answers. */
void openai_put_logprob(float logprob, kri_buffer_t *out);

#endif
