/* job.h: the generations behind one call: one request of the engine per prompt, their choices
 * numbered through (prompt * n + choice). An endpoint fills a job from its JSON and brings a style:
 * functions that turn events into bytes. job_run does the rest: submit, credits by what the client
 * takes, cancel when it goes, collecting for answers in one piece, errors before and after the first
 * byte, counters.
 *
 * Streams: nothing is sent before all prompts are accepted, so what is wrong with a request is a
 * real 4xx. A failure later is one error event, no [DONE] and a clean end of the body.
 *
 * Threads: job_run on the worker; style functions on the pump thread, one at a time for a job. */
#ifndef SERVER_JOB_H
#define SERVER_JOB_H

#include "base/buffer.h"
#include "call.h"
#include "kr.h"

typedef struct job_s job_t;

typedef struct job_top_s { kr_token_t token; float logprob; } job_top_t;

typedef struct job_choice_s {
    uint32_t prompt, choice;   /* index of the prompt, of the choice within it */
    kri_buffer_t text;         /* what has come so far; in streams too when style->keeps_text */
    int32_t finish;            /* KR_FINISH_NONE until its CHOICE event */
    uint32_t n_tokens;
    /* With n_logprobs >= 0, [n_tokens] each, in the order of the tokens: */
    kr_token_t *tokens;
    float *logprobs;
    job_top_t *tops;           /* [n_tokens, n_tops] */
    uint32_t *text_ends;       /* bytes of text after the token's event */
    void *user;                /* of the style */
} job_choice_t;

typedef struct job_usage_s {   /* sums over the prompts; final in done() and whole() */
    uint64_t n_prompt, n_cached, n_generated;
    double queue_ms, prefill_ms, ttft_ms, decode_ms, total_ms; /* the slowest prompt's */
} job_usage_t;

typedef struct job_style_s {
    const char *content_type;  /* of a stream: "text/event-stream", "application/x-ndjson" */
    bool keeps_text;
    /* Streams; each appends to out, which is sent as it stands. Any may be NULL. */
    void (*begin)(job_t *job, kri_buffer_t *out);
    /* text [n_bytes] may be empty; index: of the token within its choice. */
    void (*token)(job_t *job, job_choice_t *choice, const kr_event_t *event, kri_buffer_t *out);
    void (*choice)(job_t *job, job_choice_t *choice, const kr_event_t *event, kri_buffer_t *out);
    void (*done)(job_t *job, kri_buffer_t *out);
    void (*failed)(job_t *job, kr_status_t status, const kr_error_t *error, kri_buffer_t *out);
    /* Answers in one piece: the whole body, 200. */
    void (*whole)(job_t *job, kri_buffer_t *out);
    /* Once, whatever the end, before the job is freed (on whatever thread ends it): `user` below. */
    void (*destroy)(job_t *job);
} job_style_t;

/* One prompt: exactly one of the three. All memory is the call's JSON or the job's (job_alloc). */
typedef struct job_prompt_s {
    const char *text;          /* [n_bytes], BOS where the model adds one */
    size_t n_bytes;
    const kr_token_t *tokens;  /* [n_tokens] */
    size_t n_tokens;
    const kr_message_t *messages; /* [n_messages] */
    size_t n_messages;
} job_prompt_t;

struct job_s {
    /* Filled by the endpoint between job_create and job_run. */
    const job_style_t *style;
    void *user;                /* of the style */
    const char *model;         /* name asked for, C string; NULL = the default */
    job_prompt_t *prompts;     /* job_alloc'd */
    uint32_t n_prompts;        /* 1..256 */
    uint32_t n_choices;        /* per prompt, 1..64 */
    kr_sampler_params_t sampler; /* job_create fills the server's defaults */
    const char *stops[16];     /* C strings */
    uint32_t n_stops;
    uint32_t n_tokens_max;     /* 0 = what the context leaves */
    bool ignore_end;
    int32_t priority;
    uint32_t deadline_ms;
    int32_t n_tops;            /* -1 = no log-probabilities; 0..20 most likely ones beside them */
    bool is_stream;
    bool with_usage;           /* stream: the client asks for usage */
    bool no_cache;             /* prompt is not to be looked up in the prefix cache */

    /* job.c's; read-only for styles. */
    call_t *call;
    char id[48];               /* "chatcmpl-..." : prefix given to job_create and 24 random letters */
    int64_t created;           /* wall clock, s */
    const char *model_name;    /* the engine's name of it */
    kr_model_t model_handle;   /* for tokens' spellings */
    job_choice_t *choices;     /* [n_prompts * n_choices] */
    uint32_t n_choices_all;
    job_usage_t usage;
    struct job_run_s *run;
};

/* Retains the call. NULL: without memory, answered. */
job_t *job_create(call_t *call, const char *id_prefix, const job_style_t *style);
/* Zeroed memory that lives as long as the job; NULL: the caller answers KR_E_NOMEM. */
void *job_alloc(job_t *job, size_t n_bytes);
/* The fields that all generating endpoints share, with their bounds: temperature, top_p, top_k,
 * min_p, typical_p, repeat_penalty, presence_penalty, frequency_penalty, seed, stop, logit_bias, n, stream,
 * priority, deadline_ms, cache_prompt, ignore_eos. Which of them a dialect has is said by mask. */
enum {
    JOB_FIELD_OPENAI = 1,   /* n, stop, seed, logit_bias, penalties, temperature, top_p, stream,
                               stream_options, user, metadata, store */
    JOB_FIELD_OWN = 2       /* top_k, min_p, typical_p, repeat_penalty, priority, deadline_ms,
                               ignore_eos, cache_prompt */
};
void job_read_fields(job_t *job, json_reader_t *reader, uint32_t mask);
/* "stop": null, a string or an array of up to 16 strings of 1..256 bytes. */
void job_read_stop(job_t *job, json_reader_t *reader, const char *name);
/* Text of a message's content: a string, or an array of {"type":"text","text":...} parts, joined.
 * Other part types are refused by name. The result is the job's. */
bool job_read_content(job_t *job, json_reader_t *reader, const char *name, const char **text,
                      size_t *n_bytes);
/* Runs it and takes the job over, in every case. Answers errors itself. */
void job_run(job_t *job);
/* Frees a job that is not run: the endpoint has answered. */
void job_discard(job_t *job);

/* ---- for styles ------------------------------------------------------------------------------ */

/* "stop" for end tokens and stop strings, "length". */
const char *job_finish_word(int32_t finish);
/* The spelling of a token as a JSON string, and its bytes as a JSON array of numbers. */
void job_put_token(job_t *job, kr_token_t token, kri_buffer_t *out);
void job_put_token_bytes(job_t *job, kr_token_t token, kri_buffer_t *out);
/* "timings":{...} (kr's own object: queue_ms, prefill_ms, ttft_ms, decode_ms, total_ms,
 * n_prompt, n_cached, n_generated), without a comma around it. */
void job_put_timings(job_t *job, kri_buffer_t *out);

#endif
