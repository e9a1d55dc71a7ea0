/* job_impl.h: the inside of a running job, shared by job*.c and pump.c.
 *
 * Who holds a job: n_left counts the requests whose last event has not been seen, the worker inside
 * job_run, and the pump while it works on it. Whoever takes the last one away finishes the job
 * (answers, if that is still to be done) and frees it. Callbacks of the transport come with a
 * ticket, not with a pointer, and do their short work under the registry's lock: a job that has
 * left the registry is out of their reach.
 *
 * Locks, outermost first: job_run_s.lock, those of the transport; the registry's, then the
 * engine's. Callbacks of the transport never take job_run_s.lock. */
#ifndef SERVER_JOB_IMPL_H
#define SERVER_JOB_IMPL_H

#include <stdatomic.h>

#include "base/mutex.h"
#include "job.h"
#include "pump.h"
#include "server.h"

#define JOB_CREDITS 32u            /* TOKEN events on the way to one stream, per choice, */
#define JOB_AHEAD_BYTES 786432u    /* and what a whole job may have on the way: less than what the
                                      transport keeps for a slow reader */
#define JOB_TEXT_BYTES_MAX ((size_t)64 << 20)  /* of one choice */
#define JOB_OUT_BYTES_MAX ((size_t)256 << 20)  /* of an answer in one piece, of a stream's write */
#define JOB_POOLED_AHEAD 64u       /* prompts with pooling that one job has in the engine, and */
#define JOB_POOLED_TOKENS 2048u    /* their tokens, or one prompt: enough for full steps, and none
                                      waits in the queue for long behind its own job's */
#define JOB_RETRY_NS 20000000ull   /* a job with pooling that found the queue full tries again */
#define JOB_HEAVY_ENTRIES 4096u    /* log-probabilities of an answer in one piece: a millisecond of
                                      rendering for some hundred */
#define JOB_HOLD_NS 5000000000ull  /* a stream without a token begins after this time anyway */

typedef struct job_request_s {
    pump_user_t user;          /* kr_request_params_t.user */
    job_t *job;
    uint32_t prompt;
    uint32_t n_unmarked;       /* TOKEN events rendered since the last write */
    kr_request_t handle;       /* set by submit, before its first event */
    uint32_t n_prompt, n_cached, n_generated; /* its part of usage */
} job_request_t;

/* n TOKEN events of a prompt are consumed when the client has taken the stream's bytes up to
 * `end`. */
typedef struct job_mark_s {
    uint64_t end;
    uint32_t prompt, n;
} job_mark_t;

typedef struct job_run_s {
    kri_mutex_t lock;          /* everything but the two groups below */
    kri_buffer_t out;
    bool has_begun;            /* style->begin was called */
    bool is_open;              /* call_begin was called */
    bool is_submitted;         /* the worker has nothing more to submit */
    bool is_answered;
    kr_status_t status;        /* why it failed; KR_OK = it has not */
    kr_error_t error;
    bool is_refused;           /* by submit */
    uint32_t n_ended;          /* requests whose last event has come */
    size_t n_tokens_ahead;     /* with pooling: of the prompts in the engine */
    uint64_t n_written;        /* bytes of the stream */
    uint64_t n_shown;          /* tokens rendered into them */
    job_request_t *requests;   /* [n_prompts] */
    uint32_t credits;          /* of each request; 0 = the engine counts by itself */

    atomic_uint n_left;
    atomic_uint n_submitted;   /* requests[i].handle can be used below this */
    atomic_bool is_gone;       /* the client */
    atomic_bool is_failed;     /* status is set: what is submitted from now on is cancelled */
    atomic_int abort_status;   /* KR_OK = none */
    uint64_t due_ns;           /* registry's lock: when job_wait_over is called; 0 = never. For a
                                  stream whose prompts are accepted and that is not open, for a
                                  job that tries later */
    uint64_t ticket;           /* in the registry */
    job_t *registry_next, *registry_prev; /* registry's lock */

    /* Under the registry's lock. */
    job_mark_t *marks;         /* ring [n_marks_max] */
    uint32_t n_marks_max, first_mark, n_marks;
    uint64_t n_taken;

    /* The pump's. */
    job_t *touched_next;
    bool is_touched;
    uint32_t n_ending;         /* last events of requests seen in this batch */
} job_run_t;

/* ---- job_events.c ---------------------------------------------------------------------------- */

void job_take_event(pump_user_t *user, pump_t *pump, const kr_event_t *event);
/* A job with pooling found the queue full and has nothing under way: it is held until it has tried
 * again. With the lock. */
void job_try_later(job_t *job);
/* It is due: a stream begins without a token, a job with pooling tries again. The pump only. */
void job_wait_over(job_t *job);
/* Writes what the events since the last call gave, without http_flush. The pump only. True: only
 * the pump still holds it, and what is left takes long to render: another thread should leave
 * it. */
bool job_send(job_t *job);
/* One thread less. May free the job. */
void job_leave(job_t *job, uint32_t n);
/* Remembers the first failure. With the lock. */
void job_note_failure(job_t *job, kr_status_t status, const kr_error_t *error);
/* Answers with a status: nothing has been sent. is_refused: by submit, not later. error: as
 * job_name_error has left it. */
void job_fail_early(job_t *job, kr_status_t status, const kr_error_t *error, bool is_refused);
/* Sends, or answers with the failure. With the lock. */
void job_advance(job_t *job);
void job_cancel_requests(job_t *job);

/* ---- job_registry.c -------------------------------------------------------------------------- */

void job_register(job_t *job);
/* After its return no callback touches the job. */
void job_unregister(job_t *job);
/* For call_watch: user is the ticket. */
void job_on_gone(void *ticket);
void job_on_taken(void *ticket, size_t n_bytes);
/* A mark for what is about to be written. */
void job_add_mark(job_t *job, uint64_t end, uint32_t prompt, uint32_t n);
void job_set_waiting(job_t *job, uint64_t due_ns);
/* job_wait_over for those who are due. How long until the next one is, ms; -1 = none waits. The
 * pump only. */
int job_open_waiting(uint64_t now_ns);

/* ---- job.c ----------------------------------------------------------------------------------- */

void job_free(job_t *job);
/* Jobs with pooling: submits prompts as others end. With the lock, once the worker has nothing more
 * to submit. */
void job_submit_more(job_t *job);
/* What submit gives to the engine for a prompt; model_name is set. All is borrowed from the job. */
void job_fill_request(job_t *job, uint32_t index, kr_request_params_t *params,
                      kr_segment_t *segment);
/* Puts the request's names in place of the library's. */
void job_name_error(const job_t *job, uint32_t index, kr_error_t *error);

#endif
