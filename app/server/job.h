/* job.h: the generations behind one call: one request of the engine per prompt, their choices
 * numbered through (prompt * n + choice). An endpoint fills a job from its JSON and brings a style:
 * functions that turn events into bytes. job_run does the rest: submit, credits by what the client
 * takes, cancel when it goes, collecting for answers in one piece, errors before and after the
 * first byte.
 *
 * Streams: nothing is sent before all prompts are accepted, so what is wrong with a request is a
 * real 4xx. A failure later is one error event, no [DONE] and a clean end of the body.
 *
 * Threads: job_run on the worker; style functions on the pump thread or the worker, one at a time
 * for a job. */
#ifndef SERVER_JOB_H
#define SERVER_JOB_H

#include "base/buffer.h"
#include "call.h"
#include "kr.h"

#define JOB_CHOICES_MAX 8u   /* per prompt */
#define JOB_PROMPTS_MAX 256u
#define JOB_INPUTS_MAX 2048u /* prompts of a job with pooling */

typedef struct job_s job_t;

typedef kr_logprob_t job_top_t; /* {token, logprob} */

typedef struct job_choice_s {
    uint32_t prompt, choice;   /* index of the prompt, of the choice within it */
    kri_buffer_t text;         /* what has come so far; in streams too when style->keeps_text */
    int32_t finish;            /* KR_FINISH_NONE until its CHOICE event */
    int32_t stop;              /* KR_FINISH_STOP: index of the stop string; else -1 */
    uint32_t n_tokens;         /* in token(): with the token of the event */
    uint64_t n_chars;          /* of all text so far, code points; the event's included */
    /* With n_tops >= 0, in answers in one piece and where text is kept; [n_tokens] each, in the
     * order of the tokens. tops: [n_tokens, n_tops], {-1, 0} where there are fewer. */
    kr_token_t *tokens;
    float *logprobs;
    job_top_t *tops;
    uint64_t *text_starts;     /* code points of text before the token's event */
    void *user;                /* of the style */
} job_choice_t;

/* Sums over the prompts, of what is known: n_prompt and n_cached from begin() on (with several
 * prompts: of those that were accepted by then), all of a choice's own prompt in choice(), final in
 * done() and whole(). */
typedef struct job_usage_s {
    uint64_t n_prompt, n_cached, n_generated;
    double queue_ms, prefill_ms, ttft_ms, decode_ms, total_ms; /* the slowest prompt's */
} job_usage_t;

typedef struct job_style_s {
    const char *content_type;  /* of a stream: "text/event-stream", "application/x-ndjson" */
    bool keeps_text;
    bool drops_body;           /* once the prompts are submitted nothing of the call's JSON is
                                  looked at any more: it is freed (stops are the job's anyway;
                                  with pooling the prompts must be) */
    /* Streams; each appends to out, which is sent as it stands. What does not fit or finds no
     * memory is seen by job.c (kri_buffer_t.status). Any may be NULL. begin: with the first event;
     * what fails before is a real 4xx or 5xx. done: all choices have ended well. failed: after
     * begin, instead of done. */
    void (*begin)(job_t *job, kri_buffer_t *out);
    /* event->text may be empty. */
    void (*token)(job_t *job, job_choice_t *choice, const kr_event_t *event, kri_buffer_t *out);
    void (*choice)(job_t *job, job_choice_t *choice, const kr_event_t *event, kri_buffer_t *out);
    void (*done)(job_t *job, kri_buffer_t *out);
    void (*failed)(job_t *job, kr_status_t status, const kr_error_t *error, kri_buffer_t *out);
    /* Jobs with pooling: the vector of a prompt, in any order. */
    void (*embedding)(job_t *job, uint32_t prompt, const kr_event_t *event);
    /* Answers in one piece: the whole body, 200. */
    void (*whole)(job_t *job, kri_buffer_t *out);
    /* Once, whatever the end, before the job is freed, on the thread that ends it: frees `user`. */
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
    const char *prompt_name;   /* the request's field that holds the prompts: "prompt" */
    const char *length_name;   /* the one with n_tokens_max: "max_tokens" */
    job_prompt_t *prompts;     /* job_alloc'd */
    uint32_t n_prompts;        /* 1..JOB_PROMPTS_MAX */
    uint32_t n_choices;        /* per prompt, 1..JOB_CHOICES_MAX */
    int32_t pooling;           /* KR_POOLING_*: not NONE makes vectors of length 1 in place of text.
                                  Prompts are tokens then, checked by the endpoint; they are
                                  submitted a few at a time */
    kr_sampler_params_t sampler; /* job_create: temperature 1, top_p 1, no top_k, random seed */
    const char *stops[16];     /* C strings; job_read_stop: the job's own */
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
    char id[48];               /* "chatcmpl-...": prefix of job_create, 24 random letters */
    int64_t created;           /* wall clock, s */
    uint64_t created_ns;       /* monotonic */
    const char *model_name;    /* the engine's name of it */
    kr_model_t model_handle;   /* for tokens' spellings */
    job_choice_t *choices;     /* [n_prompts * n_choices] */
    uint32_t n_choices_all;
    job_usage_t usage;
    struct job_run_s *run;
};

/* Retains the call. NULL: without memory, answered. */
job_t *job_create(call_t *call, const char *id_prefix, const job_style_t *style);
/* What an endpoint of generations begins with: the call's body behind a reader, and a job with
 * user_bytes of zeroed memory as `user` (0: none). NULL: answered. */
typedef struct job_input_s {
    json_reader_t reader;
    json_mistake_t mistake;    /* of the reader: job_refuse_mistake */
} job_input_t;
job_t *job_open(call_t *call, const char *id_prefix, const job_style_t *style, size_t user_bytes,
                job_input_t *input);
/* prefix and 24 random letters and digits. */
void job_make_id(const char *prefix, char *id, size_t cap);
/* Zeroed memory that lives as long as the job; NULL: the caller answers KR_E_NOMEM. */
void *job_alloc(job_t *job, size_t n_bytes);
/* Fields that generating endpoints share, with their bounds (docs/limits.md); the mask says which a
 * dialect has. */
enum {
    JOB_FIELD_MODEL = 1,     /* model */
    JOB_FIELD_SAMPLING = 2,  /* temperature, top_p */
    JOB_FIELD_PENALTIES = 4, /* presence_penalty, frequency_penalty */
    JOB_FIELD_SEED = 8,      /* seed */
    JOB_FIELD_STOP = 16,     /* stop */
    JOB_FIELD_BIAS = 32,     /* logit_bias */
    JOB_FIELD_N = 64,        /* n */
    JOB_FIELD_STREAM = 128,  /* stream, refused where the sink cannot */
    JOB_FIELD_STREAM_OPTIONS = 256, /* stream_options: include_usage, include_obfuscation false */
    JOB_FIELD_META = 512,    /* user, safety_identifier, prompt_cache_key: not used; metadata: 16
                                pairs, not used; store: false; service_tier: auto, default */
    JOB_FIELD_OPENAI = 1023, /* all of these */
    JOB_FIELD_SCHEDULE = 1024, /* priority, deadline_ms, cache_prompt: our own */
    JOB_FIELD_OWN = 1024 | 2048 /* those and top_k, min_p, typical_p, repeat_penalty, ignore_eos */
};
void job_read_fields(job_t *job, json_reader_t *reader, uint32_t mask);
/* "stop": null, a string or an array of up to 16 strings of 1..256 bytes. */
void job_read_stop(job_t *job, json_reader_t *reader, const char *name);
/* Text of a message's content: a string, or an array of 1..256 parts {"type":TYPE,"text":...}
 * joined, TYPE one of `types` (NULL-terminated; {"text", NULL}). Other part types are refused by
 * name. The result is the job's or the JSON's. False: absent, null, or a mistake is set. */
bool job_read_content(job_t *job, json_reader_t *reader, const char *name,
                      const char *const *types, const char **text, size_t *n_bytes);
/* Answers with the reader's mistake, if there is one, and discards the job: true. */
bool job_refuse_mistake(job_t *job, const json_mistake_t *mistake);
/* Runs it and takes the job over, in every case. Answers errors itself. */
void job_run(job_t *job);
/* Frees a job that is not run: the endpoint has answered. */
void job_discard(job_t *job);

/* ---- for styles ------------------------------------------------------------------------------ */

/* "stop" for end tokens and stop strings, "length". */
const char *job_finish_word(int32_t finish);
/* The spelling of a token as a JSON string (bytes:\xe2\x80 where it is not UTF-8 alone), and its
 * bytes as a JSON array of numbers. */
void job_put_token(job_t *job, kr_token_t token, kri_buffer_t *out);
void job_put_token_bytes(job_t *job, kr_token_t token, kri_buffer_t *out);
/* "timings":{...} (kr's own object: queue_ms, prefill_ms, ttft_ms, decode_ms, total_ms,
 * n_prompt, n_cached, n_generated), without a comma around it. */
void job_put_timings(job_t *job, kri_buffer_t *out);

/* ---- the life of the process ----------------------------------------------------------------- */

/* Ends every job that runs with this status (KR_E_SHUTTING_DOWN): streams get their error event.
 * The engine must refuse new work already (kr_engine_drain). Any thread. */
void job_abort_all(kr_status_t status);
/* Jobs that run. */
uint32_t job_count(void);

#endif
