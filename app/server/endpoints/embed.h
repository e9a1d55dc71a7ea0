/* embed.h: what /v1/embeddings and /api/embed share: inputs become prompts of tokens, vectors
 * become text as they come (printing 2048 at the end would hold up everyone's streams). */
#ifndef SERVER_ENDPOINTS_EMBED_H
#define SERVER_ENDPOINTS_EMBED_H

#include "server/job.h"
#include "server/server.h"

/* First member of what such a job carries (job_t.user); job memory. */
typedef struct embed_s {
    const server_model_t *model;
    bool is_base64;
    kri_buffer_t *rows;        /* [job->n_prompts]: the vector as JSON */
    uint64_t n_tokens;         /* of all inputs */
    kr_token_t *scratch;       /* [n_ctx] of embed_read */
} embed_t;

/* Reads field `name` into job->prompts: a string, an array of strings; with_tokens: also an array
 * of token ids, or of such arrays. At most JOB_INPUTS_MAX inputs, none empty. Texts are tokenized
 * (as prompts are: with BOS where the model adds one); none may be longer than the context. */
void embed_read(job_t *job, embed_t *self, json_reader_t *reader, const char *name,
                bool with_tokens);
/* "dimensions": accepted only as what the model has. */
void embed_read_dimensions(const embed_t *self, json_reader_t *reader);
/* Of job_style_t. */
void embed_take(job_t *job, uint32_t prompt, const kr_event_t *event);
void embed_destroy(job_t *job);
/* Appends a row and fails the buffer if it has none. */
void embed_put_row(const job_t *job, uint32_t prompt, kri_buffer_t *out);

#endif
