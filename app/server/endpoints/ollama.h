/* ollama.h: what the endpoints under /api/ share: names of models, options, forms of answers. */
#ifndef SERVER_ENDPOINTS_OLLAMA_H
#define SERVER_ENDPOINTS_OLLAMA_H

#include "server/job.h"
#include "server/server.h"

/* The model of this name, also with ":latest" behind it. NULL: none. */
const server_model_t *ollama_find_model(const server_t *server, const char *name);
/* Field `model`, required: *model receives it, *shown the name as it was asked for, which answers
 * repeat. False: absent, wrong or unknown; answers nothing. */
bool ollama_read_model(call_t *call, json_reader_t *reader, const server_model_t **model,
                       const char **shown);

/* A duration; models stay loaded whatever it says. True: it is 0. */
bool ollama_read_keep_alive(json_reader_t *reader);
/* Option num_ctx: accepted only as what the model runs with. */
void ollama_read_num_ctx(json_reader_t *options, const server_model_t *model);

/* ---- generations --------------------------------------------------------------------------- */

/* What a job of /api/chat or /api/generate carries beside it (job_t.user). */
typedef struct ollama_s {
    const char *shown;         /* model as asked for */
    bool is_chat;              /* "message":{...} in place of "response" */
    bool is_unload;            /* keep_alive 0 */
} ollama_t;

/* A job for this body; NULL: answered. */
job_t *ollama_create(call_t *call, json_reader_t *reader, bool is_chat,
                     const server_model_t **model);
/* Fields that both have: stream, options, keep_alive, kr's own, and what is refused. */
void ollama_read_fields(job_t *job, json_reader_t *reader, const server_model_t *model);
/* An empty prompt asks for the model to be loaded: it is (or, with keep_alive 0, to be unloaded:
 * that is refused). Answers and discards the job. */
void ollama_reply_loaded(job_t *job);

/* ---- parts of answers ---------------------------------------------------------------------- */

/* A JSON string: RFC 3339, UTC, nanoseconds. */
void ollama_put_time(int64_t seconds, int64_t ns, kri_buffer_t *out);
void ollama_put_now(kri_buffer_t *out);
/* "name":...,"model":...,...,"details":{...} without braces around it. */
void ollama_put_model(const server_model_t *model, bool with_time, kri_buffer_t *out);
/* {...} */
void ollama_put_details(const server_model_t *model, kri_buffer_t *out);
/* Milliseconds as whole nanoseconds. */
unsigned long long ollama_ns(double ms);
/* Answers 200 with what the buffer holds and empties it, or 503 if it did not all fit. */
void ollama_reply(call_t *call, kri_buffer_t *out);

#define OLLAMA_OUT_BYTES_MAX ((size_t)16 << 20)

#endif
