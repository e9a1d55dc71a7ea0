/* responses.h: one POST /v1/responses under way: what its request said that the answer repeats, and
 * the conversation. Read by responses_read.c, written by responses_write.c, run by responses.c. */
#ifndef SERVER_ENDPOINTS_RESPONSES_H
#define SERVER_ENDPOINTS_RESPONSES_H

#include "server/responses_store.h"
#include "texts.h"

/* Messages of a conversation, earlier responses included. */
#define RESPONSES_MESSAGES_MAX 4096u

typedef enum responses_state_e {
    RESPONSES_IN_PROGRESS, RESPONSES_COMPLETED, RESPONSES_INCOMPLETE, RESPONSES_FAILED
} responses_state_t;

/* job_t.user; job memory. */
typedef struct responses_job_s {
    const char *instructions;    /* [instructions_bytes]; NULL = none */
    size_t instructions_bytes;
    const char *previous_id;     /* NULL = none */
    const response_t *previous;  /* held until the job ends */
    texts_list_t list;           /* the prompt: instructions first, where there are any */
    const char *metadata;        /* JSON, C string */
    const char *tool_choice;     /* "auto" or "none" */
    bool has_parallel_tools;     /* repeated only */
    bool is_stored;
    /* Of a failure: */
    const char *error_code;      /* static */
    const char *error_message;   /* borrowed for one call */
    uint64_t n_events;           /* of the stream: the next sequence_number */
} responses_job_t;

/* Fills job and self from the body. The mistake is the reader's. */
void responses_read(job_t *job, responses_job_t *self, json_reader_t *reader);
/* The response object. */
void responses_put(job_t *job, responses_state_t state, kri_buffer_t *out);
/* Of a job whose choice has ended: COMPLETED or INCOMPLETE. */
responses_state_t responses_end_state(const job_t *job);
/* The stream's style functions; done and failed come from responses.c. */
void responses_put_begin(job_t *job, kri_buffer_t *out);
void responses_put_delta(job_t *job, const kr_event_t *event, kri_buffer_t *out);
void responses_put_ended(job_t *job, kri_buffer_t *out);
/* One event that carries the response object: "response.completed". */
void responses_put_event(job_t *job, const char *type, responses_state_t state,
                         kri_buffer_t *out);

#endif
